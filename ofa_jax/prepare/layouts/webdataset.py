"""Tar files of pictures with captions as img2dataset writes them: CC3M, CC12M, SBU and the subset of YFCC100M.

Pages: https://github.com/rom1504/img2dataset (its output format "webdataset"), https://github.com/webdataset/webdataset. The members of
one sample are neighbours in the tar and have one key: `000123456.jpg` (or png, webp), its caption `000123456.txt`, and `000123456.json`
with key, url, caption, status and sizes. The `.parquet` and `_stats.json` beside a tar repeat that, and list what was not downloaded;
they are not read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ofa_jax.data.records import Caption
from ofa_jax.data.storage import open_file
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, checked_record, required
from ofa_jax.prepare.layouts.streams import Damaged, file_error, file_inputs, record_error, tar_members

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")  # a GIF is kept where it is one still picture


@dataclasses.dataclass(frozen=True)
class WebDataset(Layout):
    """Each tar below `source` is one input; the id of a record is `<name of the tar>/<key>`."""

    PAGE: ClassVar[str] = "https://github.com/rom1504/img2dataset"

    pattern: str = "**/*.tar"
    split: str = "train"
    captions: bool = True  # False: pictures alone, for image infilling
    caption_field: str = ""  # of the .json; empty: the .txt

    def inputs(self, gathered: Path) -> list[Input]:
        return file_inputs(self, required(self, self.pattern), split=self.split, endings=(".tar",))

    def read(self, item: Input) -> Iterator[Found]:
        key = ""
        sample: dict[str, bytes] = {}
        with open_file(item.path) as file:
            try:
                for name, content in tar_members(file):
                    folder, _, member = name.removeprefix("./").rpartition("/")
                    stem, _, ending = member.partition(".")  # as the library does: "a.seg.png" is the member "seg.png" of "a"
                    found = f"{folder}/{stem}".lstrip("/")
                    if found != key:
                        yield from self._sample(item, key, sample)
                        key, sample = found, {}
                    sample[ending.lower()] = content
            except Damaged as error:
                # What the last sample lacks lay behind the cut: the error of the file names it then.
                if self._is_whole(sample):
                    yield from self._sample(item, key, sample)
                    yield file_error(self, item, str(error))
                else:
                    yield file_error(self, item, str(error), last=f"{item.name}/{key}" if key else "")
                return
        if not key:
            yield file_error(self, item, "a tar without files")
        yield from self._sample(item, key, sample)

    def _is_whole(self, sample: Mapping[str, bytes]) -> bool:
        return any(name in sample for name in PICTURES) and (not self.captions or ("json" if self.caption_field else "txt") in sample)

    def _sample(self, item: Input, key: str, sample: Mapping[str, bytes]) -> Iterator[Found]:
        """Yields what one sample gives: errors, and at most one record."""
        if not sample:
            return
        record = f"{item.name}/{key}"
        image = next((sample[ending] for ending in PICTURES if ending in sample), None)
        status = _metadata(sample).get("status", "success")
        if image is None or status != "success":
            found = f"members {', '.join(sorted(sample))}" + ("" if status == "success" else f" and the status {status!r}")
            expected = f"a picture ({', '.join(PICTURES)})"
            yield record_error(self, record, reason="image", field="image", found=found, expected=expected)
            return
        captions: tuple[Caption, ...] = ()
        if self.captions:
            field = f"json/{self.caption_field}" if self.caption_field else "txt"
            try:
                text = _caption(sample, self.caption_field)
            except ValueError as error:
                yield record_error(self, record, field=field, found=str(error), expected="a caption in UTF-8")
                return
            captions = (Caption(text),)
        yield from checked_record(self, Annotated(record, key, captions=captions), image)


def _caption(sample: Mapping[str, bytes], field: str) -> str:
    """Returns the caption of a sample. Raises ValueError with what was found instead."""
    member = "json" if field else "txt"
    if member not in sample:
        raise ValueError(f"members {', '.join(sorted(sample))}")
    try:
        text = sample[member].decode()
        if not field:
            return text.strip()
        raw = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"bytes that are no UTF-8 ({error.reason} at {error.start})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a .json that does not parse ({error})") from error
    value = raw.get(field) if isinstance(raw, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]!r} of fields {', '.join(raw) if isinstance(raw, dict) else '(no object)'}")
    if not _is_utf8(value):
        raise ValueError(f"half of a surrogate pair in {value[:60]!a}")
    return value.strip()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(sample: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns what the .json says; nothing where there is none or it does not parse: a picture with its .txt needs none."""
    try:
        raw = json.loads(sample.get("json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}
