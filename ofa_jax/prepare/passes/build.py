"""One data set from its public files to shards, by the three passes; and what stands beside the shards at the end."""

from __future__ import annotations

import collections
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import FEATURES, SCHEMA_VERSION, load_json
from ofa_jax.data.storage import exists, is_remote
from ofa_jax.data.storing import PARTIAL, in_order, names_in, remove_file, remove_folder, write_bytes, written_folder
from ofa_jax.prepare.layouts.base import LEFT_OUT, Input, Progress
from ofa_jax.prepare.layouts.ofa_negatives import read_negatives
from ofa_jax.prepare.manifest import is_done, options_hash, write_json
from ofa_jax.prepare.passes.arrays import load_array, save_array
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


def build(options: BuildOptions, *, data_dir: Any, runner: RunnerOptions, rebuild: bool = False, progress: Progress = print) -> Any:
    """Writes `data_dir/<dataset>` and returns it; what an earlier call has finished is not made again.

    The folder is complete once its manifest is there; until then no reader opens it. Raises `DataError` when the folder holds work of other
    options and `rebuild` is off, when files of the layout are missing, when inputs cannot be read, or when workers of the runner share no
    disk and `data_dir` (`storage.as_path`) is on one.
    """
    files = Files(data_dir, options.layout.dataset)
    for what, path in (("--data_dir", data_dir), ("--source", options.layout.source)):
        if runner.shares_no_disk and not is_remote(path):
            raise DataError(f"{what}: found {path} on a disk of this machine, expected an address (gs://...) that workers of Dataflow see")
    made_of = options.to_json()
    if is_done(files.folder, options=made_of, rebuild=rebuild):
        progress(f"{files.folder}: already prepared")
        return files.folder
    _open_folder(files, made_of, rebuild=rebuild)
    inputs = _inputs(options, files, progress)
    name = options.layout.dataset
    run_pass(
        f"{name}: index",
        [Unit(item.path, item, files.index(item).name) for item in inputs],
        functools.partial(index_input, options=options, files=files),
        folder=files.indices,
        options=runner,
        progress=progress,
    )
    if options.against:
        run_pass(
            f"{name}: compare with {', '.join(options.against)}",
            [Unit(item.path, item, files.matches(item).name) for item in inputs],
            functools.partial(match_input, options=options, files=files),
            folder=files.all_matches,
            options=runner,
            progress=progress,
        )
    plan = load_plan(files) if exists(files.plan) else decide(inputs, options=options, files=files, progress=progress)
    shards = [shard for split in plan["splits"].values() for shard in split]
    run_pass(
        f"{name}: write",
        [Unit(shard["file"], shard, files.shard_note(shard["file"]).name) for shard in shards],
        functools.partial(write_shard, inputs=inputs, options=options, files=files),
        folder=files.written,
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
    if rebuild and (exists(note) or exists(manifest)):  # a folder of something else, raw files perhaps, is never removed
        remove_file(manifest)  # first: without it nothing reads the rest
        remove_folder(files.folder, last="passes/options.json")  # last: by it the rest is known as ours
    if exists(note):
        old = load_json(note)
        if old != made_of:
            changed = ", ".join(f"{key}: {old.get(key)} there, {value} now" for key, value in made_of.items() if old.get(key) != value)
            raise DataError(f"{files.folder} holds unfinished work of other options ({changed}); add --rebuild to replace it")
    elif names_in(files.folder):
        raise DataError(f"{files.folder}: found files of another origin, expected an empty folder; remove them or give another --data_dir")
    if not is_remote(files.folder):  # a store shows nothing half written
        for pattern in ("", "passes/", "passes/*/"):
            for path in files.folder.glob(f"{pattern}.*{PARTIAL}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if not exists(note):
        write_json(note, made_of)


def _inputs(options: BuildOptions, files: Files, progress: Progress) -> list[Input]:
    """Returns the inputs, after the annotations of all were gathered."""
    if not exists(files.gathered_note):
        with written_folder(files.gathered) as folder:
            options.layout.gather(folder, progress)
            names = sorted(path.name for path in folder.iterdir())
        write_json(files.gathered_note, {"files": names})
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
    remote = is_remote(files.folder)
    notes = {
        split: list(in_order(lambda shard: load_json(files.shard_note(shard["file"])), shards, remote=remote))
        for split, shards in plan["splits"].items()
    }
    for split, of_split in notes.items() if options.row else ():
        parts = in_order(load_array, [files.shard_lengths(note["file"]) for note in of_split], remote=remote)
        save_array(files.lengths(split), np.concatenate(list(parts)))
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
            **({"left_out": load_json(files.gathered / LEFT_OUT)} if exists(files.gathered / LEFT_OUT) else {}),
            "notices": plan["notices"],
            "tasks": [task.name for task in ROWS[options.row]] if options.row else [],
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


def _negatives(inputs: Sequence[Input], files: Files) -> dict[str, Any]:
    """Returns what wrong captions and answers are drawn from, of the training inputs: a fair sample of captions, all object words, and
    answers by kind."""
    captions: set[str] = set()
    objects: set[str] = set()
    answers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    training = [files.index_notes(item) for item in inputs if item.split == "train"]
    for notes in in_order(load_json, training, remote=is_remote(files.folder)):
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


def _write_tfds_files(folder: Any, notes: dict[str, list[dict[str, Any]]], options: BuildOptions) -> None:
    """Writes `dataset_info.json` and `features.json`, so that `tfds.builder_from_directory` opens the folder."""
    from ofa_jax.prepare.builders import base  # imports TFDS, which takes seconds

    with tempfile.TemporaryDirectory(prefix="ofa_jax-") as name:
        shards = {note["file"] for of_split in notes.values() for note in of_split}
        for file in shards:
            Path(name, file).touch()  # TFDS looks for their names alone
        _write_metadata(base, Path(name), notes, options)
        for path in sorted(Path(name).iterdir()):
            if path.name not in shards:
                write_bytes(folder / path.name, path.read_bytes())


def _write_metadata(base: Any, folder: Path, notes: dict[str, list[dict[str, Any]]], options: BuildOptions) -> None:
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
