"""The second pass: what is written, and into which shard.

First, input by input, pictures are compared with those of the evaluation sets; then one process decides over all inputs at once. Left out
are records that return (the same id, or the same content under another) and pictures that an evaluation set has. Every one is listed.
"""

from __future__ import annotations

import collections
import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import load_json
from ofa_jax.data.storage import is_remote, read_bytes
from ofa_jax.data.storing import in_order, written_whole
from ofa_jax.prepare.evaluation_pictures import evaluation_pictures, how_found
from ofa_jax.prepare.layouts.base import Input, Progress
from ofa_jax.prepare.manifest import write_json
from ofa_jax.prepare.passes.arrays import ids_of, load_array, load_arrays, save_array
from ofa_jax.prepare.passes.options import BuildOptions, Files
from ofa_jax.prepare.picture_hash import short_digest


def match_input(item: Input, *, options: BuildOptions, files: Files) -> None:
    """Writes which pictures of one input are in the evaluation sets."""
    table = evaluation_pictures(files.data_dir, options.against)
    index = load_arrays(files.index(item), "key", "picture", "hash", "colours")
    found = table.match(
        keys=index["key"], pictures=index["picture"], hashes=index["hash"], colours=index["colours"], most_bits=options.leak_bits
    )
    save_array(files.matches(item), found)


def decide(inputs: Sequence[Input], *, options: BuildOptions, files: Files, progress: Progress) -> dict[str, Any]:
    """Writes `keep/` of every input, `rejects.jsonl`, `notices.jsonl` (records that stay, but should be known of) and `plan.json`, and
    returns the plan.

    The plan has for every split its shards in order, {"file", "records", "from": [[input, first, end], ...]}, where `first` to `end` are
    the kept records of an input by their order. Memory grows with the records, by some tens of bytes each.
    """
    remote = is_remote(files.passes)
    indices = list(in_order(functools.partial(_digests, files=files), inputs, remote=remote))
    starts = np.concatenate([[0], np.cumsum([len(part["record"]) for part in indices])]).astype(np.int64)
    total = int(starts[-1])
    record, content, usable = (np.concatenate([part[name] for part in indices]) for name in ("record", "content", "usable"))
    del indices
    first_of_id = _first(record, usable)
    first_of_content = _first(content, usable) if options.drop_duplicates else np.arange(total)
    del record, content
    names: list[str] = evaluation_pictures(files.data_dir, options.against).names if options.against else []

    counts: dict[str, int] = defaultdict(int)
    kept: list[int] = []
    keeps: list[np.ndarray] = []
    said = in_order(functools.partial(_said_before, options=options, files=files), inputs, remote=remote)
    noticed: dict[str, int] = defaultdict(int)
    with (
        written_whole(files.folder / "rejects.jsonl") as listed,
        written_whole(files.folder / "notices.jsonl") as told,
        listed.open("w", encoding="utf-8") as out,
        told.open("w", encoding="utf-8") as notes,
    ):
        for number, (item, (rejects, notices, matches)) in enumerate(zip(inputs, said, strict=True)):
            for line in rejects:
                counts[f"{line['stage']}/{line['reason']}"] += 1
                out.write(json.dumps({"input": item.name, **line}, ensure_ascii=False) + "\n")
            for line in notices:
                noticed[line["reason"]] += 1
                notes.write(json.dumps({"input": item.name, **line}, ensure_ascii=False) + "\n")
            here = np.arange(starts[number], starts[number + 1])
            reasons = np.where(
                first_of_id[here] != here,
                "duplicate_id",
                np.where(first_of_content[here] != here, "duplicate_content", np.where(matches[:, 0] > 0, "leak", "")),
            )
            here_usable = usable[here]
            keep = (reasons == "") & here_usable
            if not keep.all():
                ids = ids_of(files.index(item))
                for row in np.flatnonzero(~keep & here_usable):
                    reason = str(reasons[row])
                    counts[f"decide/{reason}"] += 1
                    place = first_of_id[here[row]] if reason == "duplicate_id" else first_of_content[here[row]]
                    line = _removed(reason, ids[row], matches[row], names, int(place), inputs, starts, files)
                    out.write(json.dumps({"input": item.name, **line}, ensure_ascii=False) + "\n")
            keeps.append(keep)
            kept.append(int(keep.sum()))
    collections.deque(
        in_order(lambda one: save_array(files.keep(one[0]), one[1]), zip(inputs, keeps, strict=True), remote=remote), maxlen=0
    )
    plan = {
        "rejects": dict(sorted(counts.items())),
        "notices": dict(sorted(noticed.items())),
        "splits": _shards(inputs, kept, options=options),
    }
    write_json(files.plan, plan)
    progress(
        f"{options.layout.dataset}: {sum(kept):,} of {total:,} records stay"
        + "".join(f", {n:,} {why}" for why, n in sorted(counts.items()))
        + "".join(f"; {n:,} with {why}, listed in notices.jsonl" for why, n in sorted(noticed.items()))
    )
    return plan


def _digests(item: Input, *, files: Files) -> dict[str, np.ndarray]:
    arrays = load_arrays(files.index(item), "record", "content", "usable")
    salt = np.uint64(short_digest(item.split.encode()))  # splits may share pictures: what returns is looked for within each
    return {"record": arrays["record"] ^ salt, "content": arrays["content"] ^ salt, "usable": arrays["usable"]}


def _said_before(item: Input, *, options: BuildOptions, files: Files) -> tuple[list[dict[str, str]], list[dict[str, str]], np.ndarray]:
    """Returns what earlier passes say of an input: the lines of its rejects and of its notices, and which pictures are in the evaluation
    sets."""
    notes = json.loads(read_bytes(files.index_notes(item)).decode())
    matches = load_array(files.matches(item)) if options.against else np.zeros((notes["records"], 3), np.int64)
    return notes["rejects"], notes["notices"], matches


def _first(digests: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Returns for each usable entry the place of the first equal one, int64 [n]; for others their own."""
    places = np.arange(len(digests))
    _, first, inverse = np.unique(digests[usable], return_index=True, return_inverse=True)
    places[usable] = places[usable][first[inverse]]
    return places


def _removed(
    reason: str, record: str, match: np.ndarray, names: Sequence[str], place: int, inputs: Sequence[Input], starts: np.ndarray, files: Files
) -> dict[str, str]:
    """Returns the line of a record that was left out by the decision."""
    if reason == "leak":
        found, expected = f"the picture of {names[int(match[1])]} by {how_found(match)}", "a picture of no evaluation set"
    else:
        number = int(np.searchsorted(starts, place, side="right")) - 1
        other = ids_of(files.index(inputs[number]))[place - int(starts[number])]
        what = "id" if reason == "duplicate_id" else "picture and annotations"
        found, expected = f"the {what} of {other} in {inputs[number].name}", f"{what} of its own"
    return {"stage": "decide", "record": record, "reason": reason, "field": "(record)", "found": found, "expected": expected}


def _shards(inputs: Sequence[Input], kept: Sequence[int], *, options: BuildOptions) -> dict[str, list[dict[str, Any]]]:
    """Returns the shards of every split: whole inputs together up to the largest number of records, larger inputs in equal parts."""
    most = options.max_shard_records
    splits: dict[str, list[list[list[int]]]] = {}
    for number, (item, count) in enumerate(zip(inputs, kept, strict=True)):
        shards = splits.setdefault(item.split, [])
        if not count:
            continue
        parts = -(-count // most)
        bounds = [count * part // parts for part in range(parts + 1)]
        if parts == 1 and shards and sum(end - first for _, first, end in shards[-1]) + count <= most:
            shards[-1].append([number, 0, count])
        else:
            shards += [[[number, first, end]] for first, end in zip(bounds, bounds[1:], strict=False)]
    named: dict[str, list[dict[str, Any]]] = {}
    for split, shards in splits.items():
        if not shards:
            raise DataError(f"{options.layout.dataset}: found no usable record in split {split}; all are listed in rejects.jsonl")
        named[split] = [
            {
                "file": f"{options.layout.dataset}-{split}.array_record-{place:05d}-of-{len(shards):05d}",
                "records": sum(end - first for _, first, end in parts),
                "from": parts,
            }
            for place, parts in enumerate(shards)
        ]
    return named


def load_plan(files: Files) -> dict[str, Any]:
    """Returns the plan of a build."""
    return load_json(files.plan)
