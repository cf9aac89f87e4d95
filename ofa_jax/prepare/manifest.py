"""The manifest of a prepared part: what it holds, where it came from, how it was made, and whether it has to be made again.

`manifest.json` lies beside the shards of every dataset. The reader (`data.records.open_records`) trusts its shard list; `launch/prepare.py`
compares its options hash to decide what is already done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import SCHEMA_VERSION, load_json
from ofa_jax.data.storage import as_path, exists, file_size, open_file
from ofa_jax.data.storing import write_bytes

_BLOCK = 1 << 22  # bytes read at a time


def write_json(path: Any, value: Any) -> None:
    """Writes a JSON file whole: readers see the old file or the new one."""
    write_bytes(as_path(path), (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def options_hash(options: dict[str, Any]) -> str:
    """Returns a short hex digest of the options that made a part; equal options, equal digest."""
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Any) -> str:
    """Returns the sha256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open_file(str(path)) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def shard_table(folder: Any) -> dict[str, dict[str, Any]]:
    """Returns split -> {"records", "shards": [{"file", "records", "bytes", "sha256"}]} of a directory that TFDS wrote."""
    info = load_json(folder / "dataset_info.json")
    table = {}
    for split in info["splits"]:
        lengths = [int(n) for n in split.get("shardLengths", ())]
        shards = []
        for index, length in enumerate(lengths):
            # TFDS's default template {DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}, which builder_from_directory expects
            name = f"{info['name']}-{split['name']}.array_record-{index:05d}-of-{len(lengths):05d}"
            path = folder / name
            shards.append({"file": name, "records": length, "bytes": file_size(path), "sha256": file_digest(path)})
        table[split["name"]] = {"records": sum(lengths), "shards": shards}
    return table


def write(
    folder: Any,
    *,
    dataset: str,
    record: str,
    source: str,
    licence: str,
    notes: Iterable[str],
    options: dict[str, Any],
    facts: dict[str, Any],
) -> None:
    """Writes `folder/manifest.json` for a directory that TFDS has finished; `facts` are merged in at top level (such as num_codes)."""
    write_json(
        folder / "manifest.json",
        {
            "dataset": dataset,
            "schema_version": SCHEMA_VERSION,
            "record": record,
            "source": source,
            "licence": licence,
            "notes": list(notes),
            "seed": options.get("seed"),
            "options": options,
            "options_hash": options_hash(options),
            **facts,
            "splits": shard_table(folder),
        },
    )


def add_token_lengths(folder: Any, histogram: dict[str, dict[str, int]], *, tokenizer_digest: str) -> None:
    """Adds the token-length histograms (text field -> {upper bound: count}) of a tokeniser to a manifest."""
    path = folder / "manifest.json"
    manifest = load_json(path)
    manifest["token_lengths"] = {"tokenizer": tokenizer_digest, "fields": histogram}
    write_json(path, manifest)


def length_histogram(lengths: Iterable[int]) -> dict[str, int]:
    """Returns counts of lengths by upper bound (powers of two, inclusive): {"<=8": 12, ...}, empty bounds left out."""
    values = np.asarray(list(lengths), np.int64)
    bounds = 2 ** np.ceil(np.log2(np.maximum(values, 1))).astype(np.int64)
    return {f"<={bound}": int(count) for bound, count in zip(*np.unique(bounds, return_counts=True), strict=True)}


def is_done(folder: Any, *, options: dict[str, Any], rebuild: bool) -> bool:
    """Says whether a dataset directory is finished and was made with these options.

    Raises `DataError` when it was made with other options and `rebuild` is off: prepared data is never replaced silently.
    """
    if rebuild or not exists(folder / "manifest.json"):
        return False
    manifest = load_json(folder / "manifest.json")
    if manifest.get("schema_version") == SCHEMA_VERSION and manifest.get("options_hash") == options_hash(options):
        return True
    old, version = manifest.get("options", {}), manifest.get("schema_version")
    changed = [f"{key}: {old.get(key)} there, {value} now" for key, value in options.items() if old.get(key) != value]
    if version != SCHEMA_VERSION:
        changed.append(f"schema_version of its records: {version} there, {SCHEMA_VERSION} now")
    raise DataError(
        f"{folder} was prepared with other options ({', '.join(changed)}); add --rebuild to replace it, or give another --data_dir"
    )


def verify(folder: Any) -> list[str]:
    """Returns one sentence for every shard whose bytes differ from the manifest; an empty list when all are intact."""
    found = []
    for split in load_json(folder / "manifest.json")["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["file"]
            if not exists(path):
                found.append(f"{path} is missing")
            elif file_digest(path) != shard["sha256"]:
                found.append(f"{path}: its sha256 differs from the manifest's")
    return found
