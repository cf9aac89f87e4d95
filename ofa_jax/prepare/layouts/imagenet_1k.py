"""ImageNet-1K: pictures with the words of their class (https://image-net.org/challenges/LSVRC/2012/).

Words are those of `synset_words.txt` (Caffe's: "n01440764 tench, Tinca tinca"; Kaggle's `LOC_synset_mapping.txt` has the same form).
Training pictures lie in a folder or a tar a class, `train/n01440764/` or `train/n01440764.tar`. Those of validation lie so too, or all in
one folder, `val/ILSVRC2012_val_00000001.JPEG`, as they are published. Which class each of these shows is said by one of two lists: Caffe's
`val.txt` ("ILSVRC2012_val_00000001.JPEG 65": a name and the class's place in synset_words.txt, from 0), or the official development kit's
`ILSVRC2012_validation_ground_truth.txt` (a number a line, in the order of the pictures' names). The kit's numbers are its own order of the
classes, which is not that of the words' file, so its `meta.mat` has to be there too: it says which number is which class.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import Caption, ImageRecord
from ofa_jax.data.storage import list_files, read_bytes
from ofa_jax.prepare.layouts.base import Annotated, Found, Input, Layout, Progress, part_inputs, read_part, write_parts
from ofa_jax.prepare.layouts.gathered import one_file
from ofa_jax.prepare.layouts.image_folders import ImageFolders
from ofa_jax.prepare.layouts.streams import record_error, relative_path

_LISTED, _TRUTH, _META = "val.txt", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


@dataclasses.dataclass(frozen=True)
class ImageNet1k(Layout):
    """A record a picture, `<class>/<file>`, or `<file>` of a validation folder without classes; its caption is the words of its class."""

    PAGE: ClassVar[str] = "https://image-net.org/challenges/LSVRC/2012/"

    train: str = "train"  # folder below the source; empty: no such split
    validation: str = "val"
    words: str = "synset_words.txt"  # file below the source

    def gather(self, folder: Path, progress: Progress) -> None:
        """Lists the pictures of a validation folder without classes. Raises `DataError` when the words or the classes are missing, or
        their number is another."""
        names = _words(one_file(self, self.words))
        progress(f"{self.dataset}: words of {len(names):,} classes")
        for split, place in self._splits():
            if pictures := self._flat(place):
                classes = self._classes([relative_path(self.source, path).rpartition("/")[2] for path in pictures], list(names))
                shown = (
                    Annotated(Path(path).stem, relative_path(self.source, path), captions=(Caption(names[one]),))
                    for path, one in zip(pictures, classes, strict=True)
                )
                write_parts(folder, split, shown)

    def inputs(self, gathered: Path) -> list[Input]:
        found = []
        for split, place in self._splits():
            if self._flat(place):
                found += [item for item in part_inputs(gathered) if item.split == split]
            else:
                classes = self._folders(split, place).inputs(gathered)
                found += [dataclasses.replace(item, name=f"{split}@{item.name}") for item in classes]
        return found

    def read(self, item: Input) -> Iterator[Found]:
        if item.path.endswith(".jsonl"):
            yield from read_part(self, item)
            return
        names = _words(one_file(self, self.words))
        split, _, synset = item.name.partition("@")
        for found in self._folders(split, dict(self._splits())[split]).read(dataclasses.replace(item, name=synset)):
            if not isinstance(found, ImageRecord):
                yield found
            elif synset in names:
                yield dataclasses.replace(found, captions=(Caption(names[synset]),))
            else:
                expected = f"a class of {self.words}"
                yield record_error(self, found.record_id, reason="label", field="(folder)", found=synset, expected=expected)

    def _splits(self) -> Iterator[tuple[str, str]]:
        yield from ((split, place) for split, place in (("train", self.train), ("validation", self.validation)) if place)

    def _folders(self, split: str, place: str) -> ImageFolders:
        return ImageFolders(f"{self.source.rstrip('/')}/{place}", self.dataset, split=split)

    def _flat(self, place: str) -> list[str]:
        """Returns the pictures that lie directly in a folder, by their names."""
        return list_files(self.source, f"{place}/*.JPEG")

    def _classes(self, pictures: list[str], synsets: list[str]) -> list[str]:
        """Returns the class of each of the pictures, which are sorted by name. Raises `DataError`."""
        if any(list_files(self.source, place) for place in _places(_LISTED)):
            return self._listed_classes(one_file(self, *_places(_LISTED)), pictures, synsets)
        path, meta = one_file(self, *_places(_TRUTH), *_places(_LISTED)), one_file(self, *_places(_META))
        numbers = read_bytes(path).decode("ascii", "replace").split()
        if len(numbers) != len(pictures):
            raise DataError(f"{path}: found {len(numbers):,} numbers, expected {len(pictures):,}, one for each picture")
        by_number = _kit_synsets(meta)
        found = [by_number.get(number, "") for number in numbers]
        for number, synset in zip(numbers, found, strict=True):
            if synset not in synsets:
                raise DataError(f"{path}: found {number!r}, expected a number that {meta} has with a class of {self.words}")
        return found

    def _listed_classes(self, path: str, pictures: list[str], synsets: list[str]) -> list[str]:
        places: dict[str, str] = {}
        for line in read_bytes(path).decode("utf-8", "replace").splitlines():
            name, _, place = line.strip().rpartition(" ")
            if not place.isdecimal() or int(place) >= len(synsets):
                raise DataError(f"{path}: found {line[:60]!r}, expected the name of a picture and a number from 0 to {len(synsets) - 1}")
            places[name.rpartition("/")[2]] = synsets[int(place)]
        if missing := next((name for name in pictures if name not in places), None):
            raise DataError(f"{path}: found no line of {missing}, expected one of every picture")
        return [places[name] for name in pictures]


def _places(name: str) -> tuple[str, ...]:
    """Returns where a list may lie, without a search through all pictures: in the source, in a folder of it, in a development kit's."""
    return name, f"*/{name}", f"*/data/{name}"


def _words(path: str) -> dict[str, str]:
    """Returns the words of the classes by their WordNet ids, in the file's order. Raises `DataError`."""
    names: dict[str, str] = {}
    for line in read_bytes(path).decode("utf-8", "replace").splitlines():
        synset, _, words = line.partition(" ")
        if not synset or not words.strip() or synset in names:
            raise DataError(f"{path}: found {line[:60]!r}, expected a WordNet id and words, every id once")
        names[synset] = words.strip()
    if not names:
        raise DataError(f"{path}: found no line, expected a WordNet id and words a line")
    return names


def _kit_synsets(path: str) -> dict[str, str]:
    """Returns WordNet ids by the development kit's numbers. Raises `DataError` for a file without them."""
    import scipy.io  # a part of what JAX needs; takes a while to load

    try:
        table = scipy.io.loadmat(io.BytesIO(read_bytes(path)), squeeze_me=True)["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
    except (scipy.io.matlab.MatReadError, zlib.error, EOFError, ValueError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        raise DataError(f"{path}: found {type(error).__name__} {error}, expected the development kit's synsets") from None
