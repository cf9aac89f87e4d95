"""Pictures by class, without texts: one tar a class, as ImageNet-21K is published, or one folder a class.

Page: https://image-net.org/download-images. `n01440764.tar` holds the JPEG files of the WordNet noun 01440764; unpacked, they lie in a
folder of that name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import is_remote, list_files, open_file
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, Progress, checked_record
from ofa_jax.prepare.layouts.streams import Damaged, file_error, file_inputs, record_error, relative_path, tar_members

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_RUN = ".pictures.json"  # a list of some of a folder's files


@dataclasses.dataclass(frozen=True)
class ImageFolders(Layout):
    """Each tar and each folder directly in `source` is one input; the id of a record is `<class>/<file>`.

    A folder of more than `most_pictures` is several inputs, `<class>@00000` and so on: runs of its files sorted by name, so that all the
    workers share a folder that holds everything, as Open Images' do. Which files they are is listed once, before the passes.
    Files that are no pictures by their ending (lists, bounding boxes) are not read; neither are tars inside a class's folder.
    """

    PAGE: ClassVar[str] = "https://image-net.org/download-images"

    split: str = "train"
    most_pictures: int = 10_000  # of a folder, in one input

    def gather(self, folder: Path, progress: Progress) -> None:
        """Lists the pictures of every folder that is too large for one input. Raises `DataError` for a size below 1."""
        if self.most_pictures < 1:
            raise DataError(f"{self.dataset}: option most_pictures: found {self.most_pictures}, expected 1 or more")
        for path in _folders(self.source):
            names = [name for file in list_files(path, "**/*") if _is_picture(name := relative_path(path, file))]
            if len(names) <= self.most_pictures:
                continue
            parts = -(-len(names) // self.most_pictures)
            name = relative_path(self.source, path)
            for part in range(parts):
                here = names[len(names) * part // parts : len(names) * (part + 1) // parts]
                text = json.dumps({"folder": name, "pictures": here}, indent=0, ensure_ascii=True)
                (folder / f"{name}@{part:05d}{_RUN}").write_text(text + "\n", encoding="utf-8")
            progress(f"{self.dataset}: {len(names):,} pictures of {path} are {parts:,} inputs")

    def inputs(self, gathered: Path) -> list[Input]:
        tars = list_files(self.source, "*.tar")
        folders = _folders(self.source)
        if not tars and not folders:
            raise DataError(f"{self.dataset}: found no *.tar and no folders in {self.source}, expected them as {self.PAGE} describes")
        runs: dict[str, list[Input]] = {}
        for path in list_files(str(gathered), f"*{_RUN}"):
            name = relative_path(str(gathered), path).removesuffix(_RUN)
            runs.setdefault(name.rpartition("@")[0], []).append(Input(name, self.split, path))
        whole = file_inputs(self, sorted(tars + folders), split=self.split, endings=(".tar",))
        return [part for item in whole for part in (runs.get(item.name, [item]) if not item.path.endswith(".tar") else [item])]

    def read(self, item: Input) -> Iterator[Found]:
        if item.path.endswith(_RUN):
            yield from self._read_run(item)
            return
        pictures = _in_tar(item.path) if item.path.endswith(".tar") else _in_folder(item.path)
        number = 0
        try:
            for name, content in pictures:
                if not _is_picture(name):
                    continue
                number += 1
                record = f"{item.name}/{name}"
                if content is None:
                    yield record_error(self, record, reason="image", field="image", found="no such file", expected=f"{item.path}/{name}")
                else:
                    yield from checked_record(self, Annotated(record, name), content)
        except Damaged as error:
            yield file_error(self, item, f"{error}, {number} whole pictures before it")
            return
        if not number:
            yield file_error(self, item, f"no file that ends in {', '.join(_PICTURES)}")

    def _read_run(self, item: Input) -> Iterator[Found]:
        with open_file(item.path) as file:
            listed = json.load(file)
        folder = f"{self.source.rstrip('/')}/{listed['folder']}"
        for name in listed["pictures"]:
            record = f"{listed['folder']}/{name}"
            content = _content(f"{folder}/{name}")
            if content is None:
                yield record_error(self, record, reason="image", field="image", found="no such file", expected=f"{folder}/{name}")
            else:
                yield from checked_record(self, Annotated(record, name), content)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_PICTURES)


def _folders(source: str) -> list[str]:
    if not is_remote(source):
        return sorted(str(path) for path in Path(source).glob("*") if path.is_dir() and not path.name.startswith("."))
    return sorted({path.rpartition("/")[0] for path in list_files(source, "*/*")})  # object stores have no folders of their own


def _in_tar(path: str) -> Iterator[tuple[str, bytes | None]]:
    with open_file(path) as file:
        for name, content in tar_members(file):
            yield name.removeprefix("./"), content


def _in_folder(path: str) -> Iterator[tuple[str, bytes | None]]:
    for file_path in list_files(path, "**/*"):
        name = relative_path(path, file_path)
        yield name, _content(file_path) if _is_picture(name) else None


def _content(path: str) -> bytes | None:
    """Returns a file's bytes, None for one that was removed since it was listed."""
    try:
        with open_file(path) as file:
            return file.read()
    except FileNotFoundError:
        return None
