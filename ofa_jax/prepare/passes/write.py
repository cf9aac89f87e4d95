"""The third pass: one shard. Its inputs are read again, the records that stay are written, and a note with its checksum comes last."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import simplejpeg
from array_record.python import array_record_module

from ofa_jax.config.errors import DataError
from ofa_jax.data.examples import serialize
from ofa_jax.data.records import Box, ImageRecord, Record, RecordError
from ofa_jax.data.storing import written_whole
from ofa_jax.data.transforms.image import decode_image, resize_image
from ofa_jax.prepare.layouts.base import Input
from ofa_jax.prepare.manifest import file_digest, length_histogram, write_json
from ofa_jax.prepare.passes.arrays import load_array, load_arrays, save_array
from ofa_jax.prepare.passes.index import counter_of
from ofa_jax.prepare.passes.options import BuildOptions, Files
from ofa_jax.prepare.picture_hash import short_digest


def write_shard(shard: dict[str, Any], *, inputs: Sequence[Input], options: BuildOptions, files: Files) -> None:
    """Writes one shard of the plan, its token lengths and its note.

    Raises `DataError` when an input has changed since it was indexed, OSError when one cannot be read.
    """
    counter = counter_of(options)
    lengths: list[np.ndarray] = []
    image_bytes = 0
    with written_whole(files.shard(shard["file"])) as local:
        writer = array_record_module.ArrayRecordWriter(str(local), "group_size:1")
        for number, first, end in shard["from"]:
            for record, length in _kept(inputs[number], first, end, options=options, files=files):
                stored = _as_stored(record, options)
                writer.write(serialize(stored))
                lengths.append(length)
                image_bytes += len(stored.image) if isinstance(stored, ImageRecord) else 0
        writer.close()
        table = np.array(lengths, np.uint16).reshape(len(lengths), len(counter.tasks), 2)
        save_array(files.shard_lengths(shard["file"]), table)
        size, digest = local.stat().st_size, file_digest(local)  # of what was written, before it travels
    histogram = {
        f"{task}/{side}": length_histogram(table[:, place, which].tolist())
        for place, task in enumerate(counter.tasks)
        for which, side in enumerate(("source", "target"))
    }
    write_json(
        files.shard_note(shard["file"]),
        {
            "file": shard["file"],
            "records": len(lengths),
            "bytes": size,
            "sha256": digest,
            "image_bytes": image_bytes,
            "token_lengths": histogram,
        },
    )


def _kept(item: Input, first: int, end: int, *, options: BuildOptions, files: Files) -> Iterator[tuple[Record, np.ndarray]]:
    """Yields the kept records `first` to `end` of an input and their lengths. The input has to be as it was when it was indexed."""
    index = load_arrays(files.index(item), "record", "lengths")
    keep = load_array(files.keep(item))
    wanted = np.flatnonzero(keep)[first:end]
    last = int(wanted[-1]) if len(wanted) else -1
    chosen = set(wanted.tolist())
    place = -1
    for found in options.layout.read(item):
        if isinstance(found, RecordError):
            continue
        if place + 1 >= len(keep) or short_digest(found.record_id.encode()) != int(index["record"][place + 1]):
            raise DataError(
                f"{item.path}: found record {found.record_id}, expected the one that was indexed at place {place + 1}; "
                f"the file has changed: remove {files.index(item)} and start again with --rebuild"
            )
        place += 1
        if place in chosen:
            yield found, index["lengths"][place]
        if place >= last:
            return
    if place < last:
        raise DataError(f"{item.path}: found {place + 1} records, expected {len(keep)} as indexed; the file has changed: add --rebuild")


def _as_stored(record: Record, options: BuildOptions) -> Record:
    """Returns a record with its picture as the options want it; boxes move with the pixels."""
    if not isinstance(record, ImageRecord):
        return record
    width, height = record.width, record.height
    if options.square_px:
        width = height = options.square_px
    elif options.max_side_px and max(width, height) > options.max_side_px:
        scale = options.max_side_px / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    if (width, height) == (record.width, record.height):
        return record
    pixels = resize_image(decode_image(record.image), width=width, height=height)
    x, y = width / record.width, height / record.height

    def moved(box: Box) -> Box:
        return Box(box.x0 * x, box.y0 * y, min(box.x1 * x, width), min(box.y1 * y, height))

    return dataclasses.replace(
        record,
        image=simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=options.jpeg_quality, colorsubsampling="444"),
        width=width,
        height=height,
        regions=tuple(dataclasses.replace(region, box=moved(region.box)) for region in record.regions),
        objects=tuple(dataclasses.replace(found, box=moved(found.box)) for found in record.objects),
    )
