"""Pictures by class: ImageNet-21K as a tar a synset, or a folder of files a class.

Page: https://image-net.org/download-images: `n01440764.tar` holds the JPEG files `n01440764_10026.JPEG`, ... of one WordNet synset. The
pictures are for image infilling: nothing is said of them.
"""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ofa_jax.data.records import RecordError
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, checked_record, required
from ofa_jax.prepare.storage import list_files, open_file

_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class ImageFolders(Layout):
    """Each tar, or each folder of pictures, is one input; a record's id is `<tar or folder>/<file without its ending>`."""

    PAGE: ClassVar[str] = "https://image-net.org/download-images"

    archives: bool = True  # tars; False: folders
    pattern: str = ""  # of tars or of pictures; empty: **/*.tar, */*
    split: str = "train"

    def inputs(self, gathered: Path) -> list[Input]:
        del gathered
        root = self.source.rstrip("/")
        if self.archives:
            paths = required(self, self.pattern or "**/*.tar")
        else:
            paths = sorted({path.rpartition("/")[0] for path in required(self, self.pattern or "*/*") if _is_picture(path)})
        names = [path.removeprefix(root).strip("/").removesuffix(".tar").replace("/", "_") for path in paths]
        return [Input(name or "pictures", self.split, path) for name, path in zip(names, paths, strict=True)]

    def read(self, item: Input) -> Iterator[Found]:
        pictures = self._of_tar(item) if self.archives else self._of_folder(item)
        for name, image in pictures:
            if isinstance(image, RecordError):
                yield image
            elif _is_picture(name):
                yield from checked_record(self, Annotated(f"{item.name}/{PurePosixPath(name).stem}", name), image)
            else:
                yield self._error(f"{item.name}/{name}", "(file)", name, f"a file that ends with {', '.join(_ENDINGS)}")

    def _error(self, record: str, field: str, found: str, expected: str) -> RecordError:
        return RecordError(dataset=self.dataset, record=record, reason="schema", field=field, found=found, expected=expected)

    def _of_tar(self, item: Input) -> Iterator[tuple[str, bytes | RecordError]]:
        end, name = 0, "(start)"
        with open_file(item.path) as file:
            try:
                with tarfile.open(fileobj=file, mode="r|") as tar:
                    for member in tar:
                        if member.isfile():
                            opened = tar.extractfile(member)
                            assert opened is not None, member.name
                            name = member.name
                            yield name, opened.read()
                            end = member.offset_data + member.size
            except (tarfile.ReadError, EOFError) as error:
                found = f"a tar that ends after byte {end} ({error})"
                yield name, self._error(f"{item.name}/{name}", "(file)", found, f"{item.path} whole")

    def _of_folder(self, item: Input) -> Iterator[tuple[str, bytes]]:
        for path in list_files(item.path, "*"):
            with open_file(path) as file:
                yield path.rpartition("/")[2], file.read()


def _is_picture(path: str) -> bool:
    return path.lower().endswith(_ENDINGS)
