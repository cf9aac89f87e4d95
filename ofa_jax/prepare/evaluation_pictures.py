"""The pictures of evaluation sets, by which the leakage filter keeps them out of training data.

OFA's authors removed pictures of the downstream tasks' validation and test sets from all pretraining data (OFA-Sys/OFA issue 181). A
picture is found by its public name, by its bytes, or by its perceptual hash: encoded, scaled or slightly cropped otherwise, it is the
same picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.pictures import decode_picture
from ofa_jax.data.records import ImageRecord, RecordError, open_records
from ofa_jax.data.storage import exists, is_remote
from ofa_jax.data.storing import in_order, names_in
from ofa_jax.prepare.passes.arrays import join_ids, load_arrays, save_arrays, split_ids
from ofa_jax.prepare.picture_hash import HashTable, crops, mean_colours, perceptual_hash, short_digest

_BY_HASH, _BY_BYTES, _BY_NAME = 1, 2, 3
_HOW = {_BY_HASH: "its perceptual hash", _BY_BYTES: "its bytes", _BY_NAME: "its name"}
_READ_TOGETHER = 64


def table_path(data_dir: Any, dataset: str, split: str) -> Any:
    """Returns where the table of one evaluation set lies."""
    return data_dir / dataset / f"pictures-{split}.npz"


def write_table(data_dir: Any, dataset: str, split: str, *, progress: Callable[[str], None] = print) -> Any:
    """Writes the table of a prepared split's pictures and returns its path: digests of names and bytes, and for each picture the hashes of
    the whole and of slight crops.

    Raises `DataError` when the split is not there, does not hold pictures, or has one that does not decode.
    """
    source = open_records(data_dir, dataset, split)
    names = _names_of(data_dir / dataset)
    ids: list[str] = []
    keys: list[int] = []
    pictures: list[int] = []
    hashes: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    owners: list[int] = []
    seen: set[int] = set()
    for start in range(0, len(source), _READ_TOGETHER):
        for record in source.read(range(start, min(start + _READ_TOGETHER, len(source)))):
            if not isinstance(record, ImageRecord):
                raise DataError(f"{dataset}/{split}: found text records, expected pictures to keep out of training data")
            digest = short_digest(record.image)
            if digest in seen:
                continue
            seen.add(digest)
            try:
                pixels = decode_picture(record)
            except RecordError as error:
                raise DataError(str(error)) from error
            parts = list(crops(pixels))
            found = [perceptual_hash(part) for part in parts]
            hashes += found
            colours += [mean_colours(part) for part in parts]
            owners += [len(ids)] * len(found)
            ids.append(record.record_id)
            keys.append(names.get(short_digest(record.record_id.encode()), 0))
            pictures.append(digest)
    path = table_path(data_dir, dataset, split)
    save_arrays(
        path,
        {
            "ids": join_ids(ids),
            "key": np.array(keys, np.uint64),
            "picture": np.array(pictures, np.uint64),
            "hash": np.array(hashes, np.uint64),
            "colours": np.array(colours, np.uint8),
            "owner": np.array(owners, np.int64),
        },
    )
    progress(f"{path}: {len(ids):,} pictures")
    return path


def _names_of(folder: Any) -> dict[int, int]:
    """Returns the digest of a record's id -> that of its picture's public name, for a data set that the passes have built."""
    names: dict[int, int] = {}
    indices = folder / "passes" / "index"
    paths = [indices / name for name in sorted(names_in(indices)) if name.endswith(".npz")]
    for arrays in in_order(lambda path: load_arrays(path, "record", "key"), paths, remote=is_remote(folder)):
        names.update(zip(arrays["record"].tolist(), arrays["key"].tolist(), strict=True))
    return names


class EvaluationPictures:
    """The tables of several evaluation sets as one."""

    def __init__(self, data_dir: Any, against: Sequence[str]):
        """against: "dataset/split" each. Raises `DataError` for one without a table."""
        self.names: list[str] = []
        keys, pictures, hashes, colours, owners = [], [], [], [], []
        for name in against:
            dataset, _, split = name.partition("/")
            path = table_path(data_dir, dataset, split)
            if not exists(path):
                raise DataError(
                    f"{path} is missing, expected the pictures of {name}; write it with "
                    f"`python launch/prepare.py pictures --dataset={dataset} --split={split}`"
                )
            arrays = load_arrays(path, "key", "picture", "hash", "colours", "owner", "ids")
            owners.append(arrays["owner"] + len(self.names))
            self.names += [f"{name}/{record}" for record in split_ids(arrays["ids"])]
            keys.append(arrays["key"])
            pictures.append(arrays["picture"])
            hashes.append(arrays["hash"])
            colours.append(arrays["colours"])
        self._keys, self._pictures = _Lookup(np.concatenate(keys)), _Lookup(np.concatenate(pictures))
        self._table = HashTable(np.concatenate(hashes), np.concatenate(colours), np.concatenate(owners))

    def match(self, *, keys: np.ndarray, pictures: np.ndarray, hashes: np.ndarray, colours: np.ndarray, most_bits: int) -> np.ndarray:
        """Returns for each record, int64 [n, 3]: how its picture was found (0: not; `how_found`), its number in `names`, bits that differ.

        keys, pictures: digests uint64 [n], 0 for none. hashes: uint64 [n, 4]. colours: uint8 [n, 192].
        """
        found = np.zeros((len(keys), 3), np.int64)
        owner, bits = self._table.match(hashes, colours, most_bits=most_bits)
        for how, numbers in ((_BY_HASH, owner), (_BY_BYTES, self._pictures.find(pictures)), (_BY_NAME, self._keys.find(keys))):
            hit = numbers >= 0
            found[hit, 0], found[hit, 1] = how, numbers[hit]
            found[hit, 2] = bits[hit] if how == _BY_HASH else 0
        return found


def how_found(match: np.ndarray) -> str:
    """Returns in words how a picture was found, from its row of `EvaluationPictures.match`."""
    how, bits = int(match[0]), int(match[2])
    return _HOW[how] + (f", which differs in {bits} bits" if how == _BY_HASH else "")


class _Lookup:
    """Numbers of digests; 0 is none."""

    def __init__(self, digests: np.ndarray):
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Returns the number of each digest, -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(digests), -1, np.int64)
        place = np.minimum(np.searchsorted(self._sorted, digests), len(self._sorted) - 1)
        return np.where((self._sorted[place] == digests) & (digests != 0), self._order[place], -1)


@functools.cache
def evaluation_pictures(data_dir: Any, against: tuple[str, ...]) -> EvaluationPictures:
    """Returns the tables; read once a process."""
    return EvaluationPictures(data_dir, against)
