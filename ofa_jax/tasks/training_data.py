"""The pipeline of a config's training batches: one way to make it, for training and for whoever wants to see what is trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ofa_jax.config.schema import AnyRun, DataConfig, VQGANRunConfig
from ofa_jax.data.pictures import picture_row
from ofa_jax.data.pipeline import Pipeline, RowBuild
from ofa_jax.data.quarantine import Quarantine
from ofa_jax.data.records import CODES_FOLDER, existing_folder, load_json, open_records
from ofa_jax.data.transforms.image import transform
from ofa_jax.tasks.negatives import load_negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.vocab.tokenizer import load_tokenizer


def training_pipeline(
    config: AnyRun, *, host: int = 0, num_hosts: int = 1, quarantine: Quarantine | None = None
) -> tuple[Pipeline, dict[str, str]]:
    """Returns (the pipeline of host `host` of `num_hosts`, facts outside the config that a resumed run must share).

    Records are opened at the first batch. Raises ConfigError when the tokeniser does not fit, DataError when the data's folder is missing,
    for broken files beside the records and for rows that do not divide by the hosts.
    """
    directory = existing_folder(config.data.dir)
    build_row: RowBuild = picture_row
    identity: dict[str, str] = {}
    if not isinstance(config, VQGANRunConfig):
        tokenizer = load_tokenizer(config.vocab)
        datasets = sorted({source.dataset for block in config.data.blocks for source in block.sources})
        negatives = {dataset: load_negatives(directory, dataset) for dataset in datasets}
        build_row = RowBuilder(config.vocab, tokenizer, negatives, transform)
        identity["tokenizer"] = tokenizer.digest
    identity |= data_digests(config.data)
    return (
        Pipeline(
            config.data,
            config.seed,
            build_row,
            lambda source: open_records(directory, source.dataset, source.split, codes=source.reads_codes),
            host=host,
            num_hosts=num_hosts,
            quarantine=quarantine,
        ),
        identity,
    )


def data_digests(data: DataConfig) -> dict[str, str]:
    """Returns `data/<dataset>` -> a short digest of what its manifests say of the records and, where the run reads them, the image codes:
    options, shards and their checksums. A dataset without a manifest is left out; opening it says what is wrong."""
    found = {}
    for dataset in sorted({source.dataset for block in data.blocks for source in block.sources}):
        sources = [source for block in data.blocks for source in block.sources if source.dataset == dataset]
        folder = Path(data.dir) / dataset
        paths = [folder / "manifest.json"]
        if any(source.reads_codes for source in sources):
            paths.append(folder / CODES_FOLDER / "manifest.json")
        said = []
        for path in filter(Path.is_file, paths):
            manifest = load_json(path)
            splits = {split: manifest.get("splits", {}).get(split) for split in sorted({source.split for source in sources})}
            said.append([manifest.get("schema_version"), manifest.get("options_hash"), splits])
        if said:
            found[f"data/{dataset}"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
    return found
