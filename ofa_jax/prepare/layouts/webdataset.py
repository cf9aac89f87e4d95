"""Tar files of pictures with captions as img2dataset writes them: CC3M, CC12M, SBU and the subset of YFCC100M.

Page: https://github.com/rom1504/img2dataset ("webdataset" output). A tar holds up to 10,000 samples; the members of one are neighbours with
one stem, the sample's key: `000123456.jpg` (or png, webp), `000123456.txt`, the caption, and `000123456.json` with its url, caption, status
and sizes. Beside a tar lie `<stem>.parquet` and `<stem>_stats.json`, which repeat that and are not read.
"""

from __future__ import annotations

import dataclasses
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ofa_jax.data.records import Caption, RecordError
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, checked_record, required
from ofa_jax.prepare.storage import open_file

_PICTURES = ("jpg", "jpeg", "png", "webp")


@dataclasses.dataclass(frozen=True)
class WebDataset(Layout):
    """Each tar below `source` is one input; a record's id is `<tar's stem>/<key>`."""

    PAGE: ClassVar[str] = "https://github.com/rom1504/img2dataset"

    pattern: str = "**/*.tar"
    captions: bool = True  # False: pictures alone, for image infilling
    caption_field: str = ""  # of the .json; empty: the .txt
    split: str = "train"

    def inputs(self, gathered: Path) -> list[Input]:
        del gathered
        root = self.source.rstrip("/")
        paths = required(self, self.pattern)
        # Tars of different folders may have one stem: the path below the source names the input.
        return [Input(path.removeprefix(root).strip("/").removesuffix(".tar").replace("/", "_"), self.split, path) for path in paths]

    def read(self, item: Input) -> Iterator[Found]:
        with open_file(item.path) as file:
            sample: dict[str, bytes] = {}
            key, end = "", 0
            try:
                with tarfile.open(fileobj=file, mode="r|") as tar:
                    for member in tar:
                        if not member.isfile():
                            continue
                        stem, _, ending = PurePosixPath(member.name).name.partition(".")
                        if stem != key:
                            yield from self._sample(item, key, sample)
                            key, sample = stem, {}
                        opened = tar.extractfile(member)
                        assert opened is not None, member.name
                        sample[ending.lower()] = opened.read()
                        end = member.offset_data + member.size
            except (tarfile.ReadError, EOFError) as error:
                # The sample that was being read may lack a member: what is known to be whole was given already.
                yield self._error(
                    f"{item.name}/{key or '(start)'}", "(file)", f"a tar that ends after byte {end} ({error})", f"{item.path} whole"
                )
                return
            yield from self._sample(item, key, sample)

    def _error(self, record: str, field: str, found: str, expected: str) -> RecordError:
        reason = "image" if field == "image" else "schema"
        return RecordError(dataset=self.dataset, record=record, reason=reason, field=field, found=found, expected=expected)

    def _sample(self, item: Input, key: str, sample: dict[str, bytes]) -> Iterator[Found]:
        """Yields what one sample gives: errors, and at most one record."""
        if not sample:
            return
        record = f"{item.name}/{key}"
        image = next((sample[ending] for ending in _PICTURES if ending in sample), None)
        if image is None:
            found = "members " + ", ".join(sorted(sample)) + (f", status {status}" if (status := _status(sample)) else "")
            yield self._error(record, "image", found, "a member " + ", ".join(_PICTURES))
            return
        captions: tuple[Caption, ...] = ()
        if self.captions:
            try:
                captions = (Caption(self._caption(sample)),)
            except (UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
                what = f".json field {self.caption_field}" if self.caption_field else ".txt"
                found = "none" if isinstance(error, KeyError) else f"bytes that are no text ({error})"
                yield self._error(record, what, found, "a caption in UTF-8")
                return
        yield from checked_record(self, Annotated(record, item.path, captions=captions), image)

    def _caption(self, sample: dict[str, bytes]) -> str:
        if not self.caption_field:
            return sample["txt"].decode()
        value = json.loads(sample["json"])[self.caption_field]
        return value if isinstance(value, str) else ""


def _status(sample: dict[str, bytes]) -> str:
    """Returns what img2dataset says of a sample that it did not download; "" where it says nothing."""
    try:
        return str(json.loads(sample.get("json", b"{}")).get("status", ""))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return ""
