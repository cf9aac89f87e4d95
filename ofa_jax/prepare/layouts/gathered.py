"""What layouts share whose annotations lie in a few big files: pictures with theirs are written into parts, in order, and read there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ofa_jax.config.errors import DataError, nearest
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, Progress, part_inputs, read_part, required, write_parts

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Gathered(Layout):
    """Base of the layouts with annotation files. Subclasses say what `pictures_in` yields; its order is that of the build.

    `splits` makes several splits of one data set, each "name" or "name=theirs": ("train", "validation=val").
    """

    splits: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)  # empty: the one of the option `split`

    def split_name(self) -> str:
        """Returns the split that all records belong to: the option `split`. Layouts without that option say another."""
        return self.split  # type: ignore[attr-defined]

    def pictures_in(self, progress: Progress) -> Iterable[Annotated]:
        """Yields every picture with its annotations, in ascending order of picture ids. Raises `DataError` for files that are missing or
        damaged, or do not belong together."""
        raise NotImplementedError

    def gather(self, folder: Path, progress: Progress) -> None:
        """Writes the parts. Raises as `pictures_in`, and `DataError` when there is no picture at all of a split."""
        for name, one in self._by_split():
            write_parts(folder, name, one.pictures_in(progress))
            if not any(folder.glob(f"{name}-*.jsonl")):
                raise DataError(f"{self.dataset}: found no picture of {one} in its annotation files, expected at least one")

    def _by_split(self) -> Iterator[tuple[str, Gathered]]:
        """Yields the name of each split and the layout of it alone."""
        if not self.splits:
            yield self.split_name(), self
            return
        if "split" not in {field.name for field in dataclasses.fields(self)}:
            raise DataError(f"{self.dataset}: option splits: found {', '.join(self.splits)}, expected none: the data set has one split")
        for item in self.splits:
            name, _, theirs = item.partition("=")
            if not name.isidentifier():
                raise DataError(
                    f"{self.dataset}: option splits: found {item!r}, expected a name, or a name and theirs as in validation=val"
                )
            yield name, dataclasses.replace(self, splits=(), split=theirs or name)  # type: ignore[call-arg]

    def inputs(self, gathered: Path) -> list[Input]:
        """Returns the parts. Raises `DataError` when nothing was gathered."""
        found = part_inputs(gathered)
        if not found:
            raise DataError(f"{self.dataset}: found no parts in {gathered}, expected those that `gather` writes")
        return found

    def read(self, item: Input) -> Iterator[Found]:
        """Yields the records of one part; what cannot be used is a `RecordError` in its place. Raises OSError when it cannot be read."""
        return read_part(self, item)


def one_file(layout: Layout, *patterns: str) -> str:
    """Returns the one file below the layout's source that matches any of the patterns. Raises `DataError` when it is not one."""
    for pattern in patterns:
        if pattern.startswith("/") or "://" in pattern:
            raise DataError(f"{layout.dataset}: found the path {pattern}, expected one below the source, {layout.source}")
    found = required(layout, *patterns)
    if len(found) > 1:
        raise DataError(f"{layout.dataset}: found {', '.join(found)}, expected one file that matches {' or '.join(patterns)}")
    return found[0]


def add_once(values: dict[Any, Value], key: Any, value: Value, *, path: str, what: str) -> None:
    """Adds `value` under `key`. Raises `DataError` when there is one already. what: what the key is the id of ("images")."""
    if key in values:
        raise DataError(f"{path}: {what}: field id: found {key!r} twice, expected every id once")
    values[key] = value


def one_of(layout: Layout, field: str, options: Iterable[str]) -> None:
    """Raises `DataError` when the layout's option `field` is none of `options`."""
    value, options = getattr(layout, field), list(options)
    if value not in options:
        raise DataError(f"{layout.dataset}: option {field}: found {value!r}, {nearest(str(value), options)}")


def by_number(picture_id: str) -> tuple[int, int, str]:
    """Returns the key by which ids of pictures are sorted: numbers by their value, others after them as texts."""
    return (0, int(picture_id), picture_id) if picture_id.isascii() and picture_id.isdigit() else (1, 0, picture_id)
