"""The code stage: pictures of finished shards -> image codes in side shards, joined by index.

`<dataset>/codes/` (of whole pictures: `codes_whole/`) has one shard for every shard of the dataset, with one record for every record, in
the same order (`data.codes` reads them). A shard appears under its name in one move and is never written again, so a run that is killed
goes on at the first shard that is missing, every picture is encoded once into what stays, and the bytes do not depend on interruptions.
Several hosts share the shards out by number. The manifest comes last: without it the codes are not finished and are not read.

How OFA's own codes were cut is not published: a maintainer says that the central 128 x 128 part was encoded. Here a picture is resized to a
square (Lanczos, as the official `generate_code.py` does) and its centre, or the whole of it, is encoded by itself.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.config.rows import CodeArea
from ofa_jax.data.codes import CODES_FOLDERS, CODES_SCHEMA_VERSION, pack_codes
from ofa_jax.data.pictures import decode_picture
from ofa_jax.data.records import ImageRecord, RecordError, load_json, open_records
from ofa_jax.data.storage import as_path, exists, file_size, is_remote, read_bytes
from ofa_jax.data.storing import PARTIAL, in_order, names_in, remove_file, remove_folder, write_bytes, written_whole
from ofa_jax.prepare.manifest import file_digest, options_hash, write_json

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 [n, px, px, 3] -> int [n, g, g]
Progress = Callable[[str], None]
_SAY_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True)
class CodeOptions:
    """What decides the bytes of the codes, beside the pictures."""

    vqgan: str  # digest of the weights and the structure
    num_codes: int
    stride: int
    image_px: int  # side of the square that a picture is resized to
    area: CodeArea = "central"  # the central half-side square, for infilling; or all of it, for text-to-image
    precision: str = "f32"  # of the encoder

    @property
    def code_px(self) -> int:
        """Side of what is encoded."""
        return self.image_px // 2 if self.area == "central" else self.image_px

    @property
    def grid(self) -> int:
        """Codes a side."""
        return self.code_px // self.stride


@dataclasses.dataclass(frozen=True)
class _Shard:
    split: str
    source: str  # file name of the dataset's shard
    start: int  # index of its first record in the split
    records: int

    @property
    def file(self) -> str:
        return f"codes-{self.source}"


def area_of(pixels: np.ndarray, options: CodeOptions) -> np.ndarray:
    """Returns what of a picture, uint8 [h, w, 3], is encoded: uint8 [code_px, code_px, 3]."""
    side = options.image_px
    if pixels.shape[:2] != (side, side):
        pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
    low = (side - options.code_px) // 2
    return pixels[low : low + options.code_px, low : low + options.code_px]


def write_codes(
    data_dir: Any,
    dataset: str,
    encode: Encode,
    options: CodeOptions,
    *,
    batch: int,
    threads: int = 2,
    host: int = 0,
    num_hosts: int = 1,
    rebuild: bool = False,
    wait_for_others: Callable[[str], None] = lambda _: None,
    progress: Progress = print,
) -> dict[str, float]:
    """Writes the codes of every split of `data_dir/dataset` that are missing; returns {"pictures", "seconds"} of this call and host.

    data_dir is a local folder or an address. encode gets at most `batch` pictures at a time. wait_for_others is called, with a name, when
    the first host has made the folder ready and when this host's shards are there; the first host then writes the manifest. A picture
    that cannot be used has no codes: it is listed in `codes/without_codes_<host>.jsonl`, and the manifest counts it.
    Raises `DataError` when codes of other options are there and `rebuild` is off, or when image_px does not fit the stride.
    """
    if options.code_px % options.stride or options.image_px % 2:
        raise DataError(
            f"image_px: found {options.image_px}, whose {options.area} area has {options.code_px} px, expected a multiple of "
            f"{options.stride}"
        )
    data_dir = as_path(data_dir)
    manifest = load_json(data_dir / dataset / "manifest.json")
    if manifest.get("record") != "image":
        raise DataError(f"dataset {dataset} in {data_dir}: found {manifest.get('record')} records, expected image records to have codes")
    check_one_vqgan(data_dir, dataset, options.vqgan, options.area)
    folder = data_dir / dataset / CODES_FOLDERS[options.area]
    made_of = {**dataclasses.asdict(options), "dataset": manifest["options_hash"]}
    _check_options(folder, made_of, rebuild=rebuild)
    if exists(folder / "manifest.json") and not rebuild:
        progress(f"{folder}: already prepared")
        return {"pictures": 0, "seconds": 0.0}
    if host == 0:
        _prepare_folder(folder, made_of, rebuild=rebuild)
    wait_for_others("start")
    shards = list(_shards(manifest))
    mine = [shard for number, shard in enumerate(shards) if number % num_hosts == host]
    there = names_in(folder)
    missing = [shard for shard in mine if shard.file not in there]
    if len(missing) < len(mine):
        progress(f"{folder}: going on, {len(mine) - len(missing)} of {len(mine)} shards are there")
    total, done, began = sum(shard.records for shard in missing), 0, time.monotonic()
    said = began
    listed = folder / f"without_codes_{host}.jsonl"
    rejects = dict.fromkeys(_lines(listed) if listed.name in there else ())  # a shard that was begun again lists its pictures again
    if listed.name not in there:
        write_bytes(listed, b"")
    for shard in missing:
        known = len(rejects)
        with written_whole(folder / shard.file) as local:
            writer = array_record_module.ArrayRecordWriter(str(local), "group_size:1")
            for codes in _codes_of(data_dir, dataset, shard, encode, options, batch=batch, threads=threads, rejects=rejects):
                writer.write(pack_codes(codes))
                done += 1
                if time.monotonic() - said > _SAY_EVERY_S:
                    said = time.monotonic()
                    rate = done / (said - began)
                    progress(f"{dataset}: {done:,} of {total:,} pictures, {rate:.0f} a second, {(total - done) / rate:.0f} s left")
            writer.close()
            if len(rejects) > known:
                write_bytes(listed, "".join(f"{line}\n" for line in rejects).encode())
    seconds = time.monotonic() - began
    wait_for_others("end")
    if host == 0:
        _write_manifest(folder, manifest, shards, options, made_of)
    if done:
        progress(f"{dataset}: codes of {done:,} pictures in {seconds:.1f} s, {done / seconds:.0f} a second")
    return {"pictures": done, "seconds": seconds}


def check_one_vqgan(data_dir: Any, dataset: str, vqgan: str, area: CodeArea = "central") -> None:
    """Raises `DataError` when records of `dataset` hold codes, or when `data_dir` has codes, but those of the same dataset and area, of
    another VQGAN than the one with the digest `vqgan`: the folder's one vqgan.npz draws the codes of all."""
    data_dir = as_path(data_dir)
    own = data_dir / dataset / "manifest.json"
    if exists(own) and (count := load_json(own).get("num_codes")):
        raise DataError(f"{data_dir}: dataset {dataset}: found {count} codes in its records, expected none; prepare it without codes first")
    folders = [data_dir / name / codes for name in sorted(names_in(data_dir)) for codes in CODES_FOLDERS.values()]
    for note in (folder / "options.json" for folder in folders if (folder.parent.name, folder.name) != (dataset, CODES_FOLDERS[area])):
        name = note.parent.parent.name
        if exists(note) and (found := load_json(note)["vqgan"]) != vqgan:
            raise DataError(
                f"{data_dir}: dataset {name} has codes of the VQGAN {found[:12]}, expected those of {vqgan[:12]} as for {dataset}; "
                f"remove {note.parent}, or give another --data_dir"
            )


def _check_options(folder: Any, made_of: dict[str, Any], *, rebuild: bool) -> None:
    note = folder / "options.json"
    old = load_json(note) if exists(note) and not rebuild else made_of
    if old != made_of:
        changed = ", ".join(f"{key}: {old.get(key)} there, {value} now" for key, value in made_of.items() if old.get(key) != value)
        raise DataError(f"{folder} holds codes of other options ({changed}); add --rebuild to replace them")


def _prepare_folder(folder: Any, made_of: dict[str, Any], *, rebuild: bool) -> None:
    """Removes what is there where `rebuild`, and what a killed run left half written; notes the options before the first shard."""
    if rebuild:
        remove_file(folder / "manifest.json")  # first: without it nothing reads the rest
        remove_folder(folder, last="options.json")
    elif not is_remote(folder):  # a store shows nothing half written
        for path in folder.glob(f".*{PARTIAL}"):
            path.unlink()
    write_json(folder / "options.json", made_of)


def _lines(path: Any) -> list[str]:
    return read_bytes(path).decode().splitlines()


def _shards(manifest: dict[str, Any]) -> Iterator[_Shard]:
    for split, table in manifest["splits"].items():
        start = 0
        for shard in table["shards"]:
            yield _Shard(split, shard["file"], start, shard["records"])
            start += shard["records"]


def _codes_of(
    data_dir: Any, dataset: str, shard: _Shard, encode: Encode, options: CodeOptions, *, batch: int, threads: int, rejects: dict[str, None]
) -> Iterator[np.ndarray | None]:
    """Yields the codes int [grid * grid] of each record, None for a picture that cannot be used. Pictures are decoded ahead, in threads."""
    source = open_records(data_dir, dataset, shard.split)

    def prepared(index: int) -> np.ndarray | RecordError:
        try:
            record = source[index]
            assert isinstance(record, ImageRecord), dataset
            return area_of(decode_picture(record), options)
        except RecordError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:

        def ahead(start: int) -> list[Future[np.ndarray | RecordError]]:
            return [pool.submit(prepared, index) for index in range(start, min(start + batch, shard.start + shard.records))]

        starts = range(shard.start, shard.start + shard.records, batch)
        coming = ahead(starts[0]) if len(starts) else []
        for start in starts:
            found = [future.result() for future in coming]
            coming = ahead(start + batch)
            pictures = [item for item in found if isinstance(item, np.ndarray)]
            codes = iter(encode(np.stack(pictures)).reshape(len(pictures), -1) if pictures else ())
            for item in found:
                if isinstance(item, RecordError):
                    line = {
                        "split": shard.split,
                        "record": item.record,
                        "field": item.field,
                        "found": item.found,
                        "expected": item.expected,
                    }
                    rejects[json.dumps(line)] = None
                    yield None
                else:
                    yield next(codes)


def _write_manifest(folder: Any, manifest: dict[str, Any], shards: list[_Shard], options: CodeOptions, made_of: dict[str, Any]) -> None:
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in manifest["splits"]}
    sums = in_order(lambda path: (file_size(path), file_digest(path)), [folder / shard.file for shard in shards], remote=is_remote(folder))
    for shard, (size, digest) in zip(shards, sums, strict=True):
        splits[shard.split].append({"file": shard.file, "records": shard.records, "bytes": size, "sha256": digest, "of": shard.source})
    lists = [name for name in names_in(folder) if name.startswith("without_codes_")]
    without = {line for name in lists for line in _lines(folder / name)}
    write_json(
        folder / "manifest.json",
        {
            "schema_version": CODES_SCHEMA_VERSION,
            **dataclasses.asdict(options),
            "grid": options.grid,
            "options_hash": options_hash(made_of),
            "without_codes": len(without),
            "splits": {split: {"shards": found} for split, found in splits.items()},
        },
    )
