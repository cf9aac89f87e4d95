"""A run whose data is all eight tasks at the sizes of the real mixture, and that data: photographs of 640 x 480, one record in a hundred
damaged, each in a way of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from array_record.python import array_record_module

from configs.ofa_tiny import get_config as tiny
from ofa_jax.config.schema import BlockConfig, RunConfig, SourceConfig
from ofa_jax.data.examples import serialize
from ofa_jax.data.records import (
    SCHEMA_VERSION,
    Box,
    Caption,
    DetectedObject,
    Example,
    ImageRecord,
    Question,
    Record,
    Region,
    TextRecord,
)
from ofa_jax.tasks.bench import encode, photograph

ROWS = 16  # of a block
RECORDS = 50 * ROWS  # of a dataset, so that epochs end where batches end
DAMAGED = range(37, RECORDS, 100)  # one in a hundred
LINES = {  # dataset -> row kind
    "captions": "caption",
    "questions": "question",
    "regions": "grounding",
    "objects": "detection",
    "pictures": "image_infilling",
    "prose": "text_infilling",
}
_WIDTH, _HEIGHT = 640, 480


def get_config(arg: str = "") -> RunConfig:
    """Returns the run; give its data with --config.data.dir."""
    config = tiny(arg)
    pairs = {"stream": "pairs", "image_px": 384, "num_patches": 196, "augment": "random_resize_crop", "rand_augment": True}
    images = {"stream": "images", "image_px": 256}
    shapes = {
        "captions": (24, 32, pairs),
        "questions": (40, 16, pairs),
        "regions": (24, 24, pairs),
        "objects": (12, 272, images | {"augment": "scale_jitter"}),
        "pictures": (12, 260, images),
        "prose": (272, 260, {"stream": "text"}),
    }
    blocks = tuple(
        BlockConfig(name=name, rows=ROWS, source_len=source, target_len=target, sources=(SourceConfig(name, LINES[name]),), **more)
        for name, (source, target, more) in shapes.items()
    )
    data = dataclasses.replace(config.data, blocks=blocks, num_workers=2, max_reject_fraction=0.05, stage_steps=())
    return dataclasses.replace(config, data=data)


def write(folder: Path) -> dict[str, list[str]]:
    """Writes the datasets and returns, for each, how its damaged records are called in lists."""
    files = [encode(photograph(_WIDTH, _HEIGHT, seed)) for seed in range(16)]
    return {name: _write_dataset(folder / name, files) for name in LINES}


def _write_dataset(folder: Path, files: list[bytes]) -> list[str]:
    folder.mkdir(parents=True)
    shard = folder / f"{folder.name}-train.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    called = []
    for index in range(RECORDS):
        record = _record(folder.name, index, files[index % len(files)])
        data = serialize(record)
        if index in DAMAGED:
            damages = TEXT_DAMAGES if folder.name == "prose" else IMAGE_DAMAGES
            data, keeps_id = damages[index // 100 % len(damages)](data)
            called.append(record.record_id if keeps_id else f"train#{index}")
        writer.write(data)
    writer.close()
    table = {"records": RECORDS, "shards": [{"file": shard.name, "records": RECORDS, "bytes": shard.stat().st_size}]}
    kind = "text" if folder.name == "prose" else "image"
    codes = {"num_codes": 8_192} if folder.name == "pictures" else {}
    manifest = {"schema_version": SCHEMA_VERSION, "record": kind, "row": LINES[folder.name], "splits": {"train": table}, **codes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    captions = [_words(index) for index in range(50)]
    negatives = {"captions": captions, "objects": ["dog", "tree"], "answers": {"other": ["red", "two", "a cat"]}}
    (folder / "negatives.json").write_text(json.dumps(negatives))
    return called


def _words(index: int, count: int = 10) -> str:
    words = ("a", "the", "two", "red", "small", "dog", "cat", "woman", "street", "table", "on", "under", "near", "holding", "house", "boat")
    return " ".join(words[i] for i in np.random.default_rng(index).integers(len(words), size=count))


def _record(dataset: str, index: int, file: bytes) -> Record:
    name = f"{dataset}/{index}"
    if dataset == "prose":
        return TextRecord(name, dataset, _words(index, 150))
    draw = np.random.default_rng([1, index])
    boxes = [Box(x, y, x + 60 + 3 * y / 4, y + 80) for x, y in draw.integers(0, 300, (8, 2)).tolist()]
    return ImageRecord(
        name, dataset, file, _WIDTH, _HEIGHT,
        captions=(Caption(_words(index)),),
        regions=tuple(Region(_words(1_000 + index, 4), box) for box in boxes[:2]),
        questions=(Question("what is on the table?", "a cat", 1.0, "other"),),
        objects=tuple(DetectedObject("dog", box) for box in boxes),
        codes=draw.integers(0, 8_192, 256).astype(np.int32) if dataset == "pictures" else None,
    )  # fmt: skip


# Ways to damage the bytes of a record: they return the new bytes, and whether its id can still be read.
Damage = Callable[[bytes], tuple[bytes, bool]]


def _edited(edit: Callable[[dict], None], *, keeps_id: bool = True) -> Damage:
    def damage(data: bytes) -> tuple[bytes, bool]:
        example = Example.FromString(data)
        edit(example.features.feature)
        return example.SerializeToString(deterministic=True), keeps_id

    return damage


def _set_image(change: Callable[[bytes], bytes]) -> Damage:
    def edit(features: dict) -> None:
        features["image"].bytes_list.value[0] = change(features["image"].bytes_list.value[0])

    return _edited(edit)


def _set(field: str, kind: str, values: list) -> Damage:
    def edit(features: dict) -> None:
        getattr(features[field], kind).value[:] = values

    return _edited(edit, keeps_id=field != "record_id")


IMAGE_DAMAGES: tuple[Damage, ...] = (
    _set_image(lambda image: image[: len(image) // 2]),
    lambda data: (data[:1000], False),
    _set("regions/box", "float_list", [10, 10, 900, 20, 0, 0, 5, 5]),
    _set_image(lambda image: b"<html>404 Not Found</html>"),
    _edited(lambda features: features.pop("captions/text"), keeps_id=False),
    _set("captions/text", "bytes_list", [b"\xff\xfe not UTF-8"]),
    _set_image(lambda image: b""),
    _set("record_id", "bytes_list", [b""]),
)
TEXT_DAMAGES: tuple[Damage, ...] = (
    _set("text", "bytes_list", [b"  "]),
    lambda data: (b"\x07" + data, False),
    _set("text", "bytes_list", [b"\xff\xfe"]),
    _edited(lambda features: features.pop("text"), keeps_id=False),
)
