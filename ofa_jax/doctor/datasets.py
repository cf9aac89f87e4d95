"""Whether everything that a run reads is there: the tokeniser, every dataset of the mixture and of the evaluation, first parameters."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from functools import partial

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import AnyRun, RunConfig, SourceConfig
from ofa_jax.data.records import RecordSource, load_json
from ofa_jax.data.storage import as_path
from ofa_jax.doctor.report import Finding
from ofa_jax.tasks.negatives import load_negatives
from ofa_jax.tasks.training_data import data_digests, open_source
from ofa_jax.vocab.tokenizer import load_tokenizer


@dataclasses.dataclass
class Material:
    """What of a run's data was found."""

    identity: dict[str, str]  # facts that all hosts must have alike: `tokenizer`, and `data/<dataset>`
    shards: list[tuple[str, int]]  # (path or address, bytes) of the training shards, those of one dataset after those of another in turns
    records: dict[str, int]  # by `dataset/split`
    row_bytes: dict[str, float]  # mean bytes of a record, by `dataset/split`


def look(config: AnyRun) -> tuple[Material, list[Finding]]:
    """Returns what was found, and the findings: one that all is there, or one for each tokeniser, dataset or file that is not as it
    should be."""
    material = Material({}, [], {}, {})
    faults: list[Finding] = []

    def attempt(check: str, call: object) -> bool:
        try:
            call()  # type: ignore[operator]
        except (UserError, OSError) as error:
            if str(error) not in {fault.found for fault in faults}:
                faults.append(Finding(check, "FAIL", str(error)))
            return False
        return True

    findings = []
    if isinstance(config, RunConfig) and attempt("tokenizer", partial(_tokenizer, config, material)):
        where = config.vocab.path or "GPT-2's own order"
        findings.append(Finding("tokenizer", "ok", f"{config.vocab.tokenizer}, {where}: {config.vocab.num_text:,} ids"))
    sources = list(_sources(config))
    opened = {
        source: attempt("datasets", partial(_open, config, source, block_has_classes, material)) for source, block_has_classes in sources
    }
    if isinstance(config, RunConfig):
        for dataset in sorted({source.dataset for source, there in opened.items() if there}):
            attempt("datasets", partial(load_negatives, as_path(config.data.dir), dataset))
    attempt("datasets", partial(_identify, config, material))
    if all(fault.check != "datasets" for fault in faults):
        total = sum(material.records.values())
        count = len({source.dataset for source, _ in sources})
        said = f"all {count} of {config.data.dir} open: {len(material.records)} splits, {total:,} records"
        findings.append(Finding("datasets", "ok", said, numbers={"records": total, "splits": len(material.records)}))
    return material, [*faults, *findings]


def _sources(config: AnyRun) -> Iterator[tuple[SourceConfig, bool]]:
    """Yields (a line of the mixture or of the evaluation, whether its token lengths are needed), each once."""
    classes: dict[SourceConfig, bool] = collections.defaultdict(bool)
    for block in config.data.blocks:
        for source in block.sources:
            plain = SourceConfig(source.dataset, source.row, split=source.split)
            classes[plain] |= bool(block.classes)
    yield from classes.items()
    if isinstance(config, RunConfig):
        rows = {(one.dataset, one.split, one.task == "image_infilling") for one in config.eval.sets}
        for dataset, split, codes in sorted(rows):
            yield SourceConfig(dataset, "image_infilling" if codes else "caption", split=split), False
    elif config.eval.dataset:
        yield SourceConfig(config.eval.dataset, "picture", split=config.eval.split), False


def _open(config: AnyRun, source: SourceConfig, lengths: bool, material: Material) -> None:
    records: RecordSource = open_source(config, source)
    if lengths:
        records.sequence_lengths(source.row)
    name = f"{source.dataset}/{source.split}"
    if name in material.records:
        return
    folder = as_path(config.data.dir) / source.dataset
    shards = load_json(folder / "manifest.json")["splits"][source.split]["shards"]
    material.records[name] = len(records)
    material.row_bytes[name] = sum(shard["bytes"] for shard in shards) / max(len(records), 1)
    # A pass of reading takes some of each dataset before it takes more of any.
    material.shards[:] = _in_turns(material.shards, [(str(folder / shard["file"]), shard["bytes"]) for shard in shards])


def _in_turns(first: list[tuple[str, int]], second: list[tuple[str, int]]) -> list[tuple[str, int]]:
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return [*(one for pair in pairs for one in pair), *first[shorter:], *second[shorter:]]


def _tokenizer(config: RunConfig, material: Material) -> None:
    try:
        material.identity["tokenizer"] = load_tokenizer(config.vocab).digest
    except OSError as error:
        raise UserError(f"vocab.path: {config.vocab.path}: {error.strerror or error}, expected the tokeniser's file") from error


def _identify(config: AnyRun, material: Material) -> None:
    material.identity |= data_digests(config.data)


def bytes_a_step(config: AnyRun, material: Material) -> float | None:
    """Returns how many bytes of records one global batch reads, by the mixture's weights; None where a dataset did not open."""
    total = 0.0
    for block in config.data.blocks:
        weights = sum(source.weight for source in block.sources)
        for source in block.sources:
            mean = material.row_bytes.get(f"{source.dataset}/{source.split}")
            if mean is None:
                return None
            total += block.rows * source.weight / weights * mean
    return total
