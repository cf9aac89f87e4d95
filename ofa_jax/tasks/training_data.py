"""The pipeline of a config's training batches: one way to make it, for training and for whoever wants to see what is trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.rows import CodeArea
from ofa_jax.config.schema import AnyRun, BlockConfig, DataConfig, RunConfig, SourceConfig, VQGANRunConfig
from ofa_jax.data.batch import Row
from ofa_jax.data.codes import CODES_FOLDERS
from ofa_jax.data.pictures import picture_row
from ofa_jax.data.pipeline import Pipeline, RowBuild
from ofa_jax.data.quarantine import Quarantine
from ofa_jax.data.records import Record, RecordSource, existing_folder, load_codes_manifest, load_json, open_records
from ofa_jax.data.storage import as_path, exists
from ofa_jax.data.transforms.image import transform
from ofa_jax.tasks.negatives import load_negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.vocab.tokenizer import load_tokenizer


def training_pipeline(
    config: AnyRun,
    *,
    host: int = 0,
    num_hosts: int = 1,
    quarantine: Quarantine | None = None,
    after_row: Callable[[], None] | None = None,
) -> tuple[Pipeline, dict[str, str]]:
    """Returns (the pipeline of host `host` of `num_hosts`, facts outside the config that a resumed run must share).

    Records are opened at the first batch. after_row is called after each row that is made, by the thread or process that makes it. Raises
    ConfigError when the tokeniser does not fit, DataError when the data's folder is missing, for broken files beside the records and for
    rows that do not divide by the hosts. The first batch raises what `open_source` does.
    """
    directory = existing_folder(config.data.dir)
    build_row: RowBuild = picture_row
    identity: dict[str, str] = {}
    if not isinstance(config, VQGANRunConfig):
        tokenizer = load_tokenizer(config.vocab)
        datasets = sorted({source.dataset for block in config.data.blocks for source in block.sources})
        negatives = {dataset: load_negatives(directory, dataset) for dataset in datasets}
        build_row = RowBuilder(config.vocab, tokenizer, negatives, transform, question_objects=config.data.question_objects)
        identity["tokenizer"] = tokenizer.digest
    identity |= data_digests(config.data)
    return (
        Pipeline(
            config.data,
            config.seed,
            build_row if after_row is None else _Watched(build_row, after_row),
            partial(open_source, config),
            host=host,
            num_hosts=num_hosts,
            quarantine=quarantine,
        ),
        identity,
    )


@dataclasses.dataclass(frozen=True)
class _Watched:
    """Builds rows, and calls `after_row` after each that could be built."""

    build_row: RowBuild
    after_row: Callable[[], None]

    def __call__(self, block: BlockConfig, source: SourceConfig, record: Record, draw: np.random.Generator) -> Row:
        row = self.build_row(block, source, record, draw)
        self.after_row()
        return row


HELD_OUT_SPLIT = "validation"
_HELD_OUT_SEED = 0  # not the run's: every run of a config is judged by the same batches


def held_out_pipeline(config: RunConfig, *, host: int = 0, num_hosts: int = 1) -> tuple[RunConfig, Pipeline, list[str]]:
    """Returns (the config of held-out batches, their pipeline for host `host`, what has none: "dataset (row)").

    Its blocks are those of training at their longest shape, with pictures whole, resized and never augmented, drawn from the splits named
    `HELD_OUT_SPLIT` of the mixture's datasets; with micro-batches, blocks have the rows of one. A source without such a split is left out,
    and so is a block without sources. The same batch is the same rows, words and pictures always, in every run of the config.

    Raises ConfigError where nothing is held out, and as `training_pipeline` does.
    """
    directory = existing_folder(config.data.dir)
    splits: dict[str, Sequence[str]] = {}
    blocks, left_out = [], []
    for block in config.data.blocks:
        kept = []
        for source in block.sources:
            if source.dataset not in splits:
                splits[source.dataset] = load_json(as_path(directory) / source.dataset / "manifest.json").get("splits", {})
            if HELD_OUT_SPLIT in splits[source.dataset] and source.split != HELD_OUT_SPLIT:
                kept.append(dataclasses.replace(source, split=HELD_OUT_SPLIT, later_weights=()))
            else:
                left_out.append(f"{source.dataset} ({source.row})")
        if kept:
            changed: dict[str, Any] = {"classes": (), "num_patches": 0, "augment": "resize", "rand_augment": False}
            rows = block.rows // config.optimizer.accumulate
            blocks.append(dataclasses.replace(block, rows=rows, sources=tuple(kept), **changed))
    if not blocks:
        found = f"eval.loss_every_steps: found {config.eval.loss_every_steps}"
        raise ConfigError(f"{found}, expected 0, as no dataset of the mixture in {directory} has a split {HELD_OUT_SPLIT}")
    data = dataclasses.replace(config.data, blocks=tuple(blocks), num_workers=0, stage_steps=())
    held_out = dataclasses.replace(config, data=data)
    tokenizer = load_tokenizer(config.vocab)
    datasets = sorted({source.dataset for block in blocks for source in block.sources})
    negatives = {dataset: load_negatives(directory, dataset) for dataset in datasets}
    build_row = RowBuilder(config.vocab, tokenizer, negatives, transform, False, question_objects=data.question_objects)
    opening = partial(open_source, held_out)
    return held_out, Pipeline(data, _HELD_OUT_SEED, build_row, opening, host=host, num_hosts=num_hosts), left_out


def open_source(config: AnyRun, source: SourceConfig) -> RecordSource:
    """Returns the records of one line of a mixture, or of an evaluation set, with their image codes where its rows need them.

    Raises DataError as `open_records` does, and for side shards of codes of another grid than the model's, or of more codes than the
    vocabulary has.
    """
    records = open_records(config.data.dir, source.dataset, source.split, codes=source.code_area)
    folder = as_path(config.data.dir) / source.dataset
    if source.code_area and isinstance(config, RunConfig) and not load_json(folder / "manifest.json").get("num_codes"):
        _check_codes(config, folder, source.code_area)
    return records


def _check_codes(config: RunConfig, folder: Any, area: CodeArea) -> None:
    """A shorter grid would fit the block's lengths, and each of its codes would train the position of another one."""
    made, where = load_codes_manifest(folder, folder.name, area), f"dataset {folder.name}: {folder / CODES_FOLDERS[area]}"
    model, side = config.model, config.model.code_grid
    if made["grid"] != side:
        px = model.code_image_px * (2 if area == "central" else 1)
        raise DataError(
            f"{where}: found {made['grid']} x {made['grid']} codes at --image_px={made['image_px']}, expected {side} x {side} "
            f"(model.code_image_px={model.code_image_px}, model.code_stride={model.code_stride}); make them with a VQGAN of that stride: "
            f"`python launch/prepare.py codes --area={area} --image_px={px} --rebuild`"
        )
    if made["num_codes"] > config.vocab.num_codes:
        raise DataError(
            f"{where}: found a codebook of {made['num_codes']} codes, expected at most vocab.num_codes={config.vocab.num_codes}; make the "
            "codes with another VQGAN, or set --config.vocab.num_codes"
        )


def data_digests(data: DataConfig) -> dict[str, str]:
    """Returns `data/<dataset>` -> a short digest of what its manifests say of the records and, where the run reads them, the image codes:
    options, shards and their checksums. A dataset without a manifest is left out; opening it says what is wrong."""
    found = {}
    for dataset in sorted({source.dataset for block in data.blocks for source in block.sources}):
        sources = [source for block in data.blocks for source in block.sources if source.dataset == dataset]
        folder = as_path(data.dir) / dataset
        paths = [folder / "manifest.json"]
        areas = dict.fromkeys(source.code_area for source in sources if source.code_area)
        paths += [folder / CODES_FOLDERS[area] / "manifest.json" for area in areas]
        said = []
        for path in filter(exists, paths):
            manifest = load_json(path)
            splits = {split: manifest.get("splits", {}).get(split) for split in sorted({source.split for source in sources})}
            said.append([manifest.get("schema_version"), manifest.get("options_hash"), splits])
        if said:
            found[f"data/{dataset}"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    return found
