"""One data set from its public files to shards, by the three passes; and what stands beside the shards at the end."""

from __future__ import annotations

import collections
import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import SCHEMA_VERSION, load_json
from ofa_jax.prepare.layouts.base import Input, Progress
from ofa_jax.prepare.layouts.ofa_negatives import read_negatives
from ofa_jax.prepare.manifest import is_done, options_hash, write_json
from ofa_jax.prepare.passes.decide import decide, load_plan, match_input
from ofa_jax.prepare.passes.index import index_input
from ofa_jax.prepare.passes.options import BuildOptions, Files
from ofa_jax.prepare.passes.runner import RunnerOptions, Unit, run_pass
from ofa_jax.prepare.passes.write import write_shard
from ofa_jax.prepare.picture_hash import short_digest
from ofa_jax.tasks.table import ROWS
from ofa_jax.vocab.tokenizer import load_tokenizer

MOST_CAPTIONS = 200_000  # captions kept as negatives: every process holds them
MOST_ANSWERS = 20_000  # answers kept of one kind, the most frequent


def build(options: BuildOptions, *, data_dir: Path, runner: RunnerOptions, rebuild: bool = False, progress: Progress = print) -> Path:
    """Writes `data_dir/<dataset>` and returns it; what an earlier call has finished is not made again.

    The folder is complete once its manifest is there; until then no reader opens it. Raises `DataError` when the folder holds work of other
    options and `rebuild` is off, when files of the layout are missing, or when inputs cannot be read.
    """
    files = Files(data_dir, options.layout.dataset)
    made_of = options.to_json()
    if is_done(files.folder, options=made_of, rebuild=rebuild):
        progress(f"{files.folder}: already prepared")
        return files.folder
    _open_folder(files, made_of, rebuild=rebuild)
    inputs = _inputs(options, files, progress)
    name = options.layout.dataset
    run_pass(
        f"{name}: index",
        [Unit(item.path, item) for item in inputs],
        functools.partial(index_input, options=options, files=files),
        is_done=lambda item: files.index(item).exists(),
        options=runner,
        progress=progress,
    )
    if options.against:
        run_pass(
            f"{name}: compare with {', '.join(options.against)}",
            [Unit(item.path, item) for item in inputs],
            functools.partial(match_input, options=options, files=files),
            is_done=lambda item: files.matches(item).exists(),
            options=runner,
            progress=progress,
        )
    plan = load_plan(files) if files.plan.exists() else decide(inputs, options=options, files=files, progress=progress)
    shards = [shard for split in plan["splits"].values() for shard in split]
    run_pass(
        f"{name}: write",
        [Unit(shard["file"], shard) for shard in shards],
        functools.partial(write_shard, inputs=inputs, options=options, files=files),
        is_done=lambda shard: files.shard_note(shard["file"]).exists(),
        options=runner,
        progress=progress,
    )
    _finish(inputs, plan, options=options, files=files, made_of=made_of)
    records = sum(shard["records"] for shard in shards)
    progress(f"{files.folder}: {records:,} records in {len(shards):,} shards")
    return files.folder


def _open_folder(files: Files, made_of: dict[str, Any], *, rebuild: bool) -> None:
    """Makes the folder ready: work of the same options stays, work of others is an error, or removed where `rebuild`."""
    note, manifest = files.passes / "options.json", files.folder / "manifest.json"
    ours = note.exists() or manifest.exists()
    if rebuild and ours:  # a folder of something else, raw files perhaps, is never removed
        manifest.unlink(missing_ok=True)  # first: without it nothing reads the rest
        shutil.rmtree(files.folder)
    if note.exists():
        old = load_json(note)
        if old != made_of:
            changed = ", ".join(f"{key}: {old.get(key)} there, {value} now" for key, value in made_of.items() if old.get(key) != value)
            raise DataError(f"{files.folder} holds unfinished work of other options ({changed}); add --rebuild to replace it")
    elif files.folder.exists() and any(files.folder.iterdir()):
        raise DataError(f"{files.folder}: found files of another origin, expected an empty folder; remove them or give another --data_dir")
    for pattern in (".*.partial", "passes/.*.partial", "passes/*/.*.partial"):
        for path in files.folder.glob(pattern):
            path.unlink(missing_ok=True)
    files.passes.mkdir(parents=True, exist_ok=True)
    write_json(note, made_of)


def _inputs(options: BuildOptions, files: Files, progress: Progress) -> list[Input]:
    """Returns the inputs, after the annotations of all were gathered."""
    if not files.gathered.exists():
        partial = files.passes / ".gathered.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        options.layout.gather(partial, progress)
        os.replace(partial, files.gathered)
    inputs = options.layout.inputs(files.gathered)
    if not inputs:
        raise DataError(
            f"{options.layout.dataset}: found no input in {options.layout.source}, expected some as {options.layout.PAGE} describes"
        )
    repeated = [name for name, count in collections.Counter(item.name for item in inputs).items() if count > 1]
    if repeated:
        raise DataError(f"{options.layout.dataset}: found several inputs of the name {repeated[0]}, expected a name of its own for each")
    return inputs


def _finish(inputs: Sequence[Input], plan: dict[str, Any], *, options: BuildOptions, files: Files, made_of: dict[str, Any]) -> None:
    """Writes what stands beside the shards: token lengths, negatives, the files by which TFDS opens the folder, and last the manifest."""
    notes = {split: [load_json(files.shard_note(shard["file"])) for shard in shards] for split, shards in plan["splits"].items()}
    for split, of_split in notes.items():
        _join_lengths([files.shard_lengths(note["file"]) for note in of_split], files.lengths(split))
    negatives = read_negatives(options.negatives) if options.negatives else _negatives(inputs, files)
    write_json(files.folder / "negatives.json", negatives)
    _write_tfds_files(files.folder, notes, options)
    histograms: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for note in notes.get("train", next(iter(notes.values()))):
        for field, counts in note["token_lengths"].items():
            histograms[field].update(counts)
    num_codes = options.layout.NUM_CODES
    write_json(
        files.folder / "manifest.json",
        {
            "dataset": options.layout.dataset,
            "schema_version": SCHEMA_VERSION,
            "record": options.layout.KIND,
            "row": options.row,
            "source": options.described.source,
            "licence": options.described.licence,
            "notes": list(options.described.notes),
            "options": made_of,
            "options_hash": options_hash(made_of),
            "inputs": {"number": len(inputs), "digest": f"{short_digest(repr([item.name for item in inputs]).encode()):016x}"},
            **({"num_codes": num_codes} if num_codes else {}),
            "rejects": plan["rejects"],
            "tasks": [task.name for task in ROWS[options.row]],
            "token_lengths": {
                "tokenizer": load_tokenizer(options.tokenizer).digest,
                "fields": {field: dict(sorted(counts.items(), key=lambda pair: int(pair[0][2:]))) for field, counts in histograms.items()},
            },
            "splits": {
                split: {
                    "records": sum(note["records"] for note in of_split),
                    "shards": [{key: note[key] for key in ("file", "records", "bytes", "sha256")} for note in of_split],
                }
                for split, of_split in notes.items()
            },
        },
    )


def _join_lengths(parts: Sequence[Path], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, np.concatenate([np.load(part) for part in parts]))
    os.replace(partial, path)


def _negatives(inputs: Sequence[Input], files: Files) -> dict[str, Any]:
    """Returns what wrong captions and answers are drawn from, of the training inputs: a fair sample of captions, all object words, and
    answers by kind."""
    captions: set[str] = set()
    objects: set[str] = set()
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for item in inputs:
        if item.split != "train":
            continue
        notes = load_json(files.index_notes(item))
        captions.update(notes["captions"])
        objects.update(notes["objects"])
        for kind, counts in notes["answers"].items():
            answers[kind].update(counts)
    chosen = sorted(captions, key=lambda caption: short_digest(caption.encode()))[:MOST_CAPTIONS]
    every: collections.Counter[str] = collections.Counter()
    for counter in answers.values():
        every.update(counter)
    by_kind = {kind: [answer for answer, _ in counter.most_common(MOST_ANSWERS)] for kind, counter in sorted(answers.items())}
    if by_kind:
        by_kind["other"] = [answer for answer, _ in every.most_common(MOST_ANSWERS)]  # what every kind falls back on
    return {"captions": chosen, "objects": sorted(objects), "answers": by_kind}


def _write_tfds_files(folder: Path, notes: dict[str, list[dict[str, Any]]], options: BuildOptions) -> None:
    """Writes `dataset_info.json` and `features.json`, so that `tfds.builder_from_directory` opens the folder."""
    from ofa_jax.data.records import FEATURES
    from ofa_jax.prepare.builders import base  # imports TFDS, which takes seconds

    tfds = base.tfds
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=options.layout.dataset,
        filetype_suffix="array_record",
        template=tfds.core.naming.DEFAULT_FILENAME_TEMPLATE,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=base.features_of(FEATURES[options.layout.KIND]),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[note["records"] for note in of_split],
                num_bytes=sum(note["bytes"] for note in of_split),
                filename_template=template,
            )
            for split, of_split in notes.items()
        ],
        version="1.0.0",
        check_data=False,
        description=options.described.source,
        license=options.described.licence,
    )
