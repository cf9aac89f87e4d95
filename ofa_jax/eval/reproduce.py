"""One row of the published tables, measured, beside what was published (`launch/eval.py --reproduce`), and the command that does it again.

Nothing but the row's metric is computed, so that only its set needs to be there: no training data, no baseline. What is found is kept in
the run's folder: `reproduced.json` (by row), `reproduced.md` (the same as a table) and the predictions of every example in `reproduced/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ofa_jax.checkpoint.about import versions
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError, DataError
from ofa_jax.config.load import run_folder
from ofa_jax.config.published import DATA
from ofa_jax.config.render import config_hash
from ofa_jax.config.schema import RunConfig
from ofa_jax.data.records import Question
from ofa_jax.eval import leaderboard
from ofa_jax.eval.collect import Examples, block_for, collect
from ofa_jax.eval.pinned import Pinned
from ofa_jax.eval.plain import named_checkpoint, open_checkpoints, restore
from ofa_jax.eval.points import write_whole
from ofa_jax.eval.predict import Decoded, Predictor
from ofa_jax.eval.reproduce_flags import Asked
from ofa_jax.eval.runner import Way
from ofa_jax.eval.scoring import METRICS, prediction_lines, read_outputs
from ofa_jax.eval.sweep import decode_on_all_hosts
from ofa_jax.eval.ways import ways_of
from ofa_jax.eval.world import World, load_world
from ofa_jax.metrics.bootstrap import interval_95
from ofa_jax.monitor.code import code_digest, commit
from ofa_jax.parallel import hosts
from ofa_jax.tasks.table import TASKS
from ofa_jax.tasks.training_data import data_digests

RESULTS, TABLE, FOLDER = "reproduced.json", "reproduced.md", "reproduced"
_SHOWN = 12  # digits of a digest in a table
_MODEL = ("width", "ffn_width", "num_heads", "encoder_layers", "decoder_layers")


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """What came of it."""

    text: str  # for a terminal; empty on hosts but the first
    within: bool | None  # the band; None where there is no number to compare


def reproduce(asked: Asked, *, progress: Callable[[str], None]) -> Reproduced:
    """Evaluates a row, writes what it found into the run's folder and returns it as text.

    On several hosts all call it; they share the examples, and the first scores and writes. Raises CheckpointError for a checkpoint of
    another digest, size or tokeniser, DataError for a set that is not there, ConfigError as `ways_of` and METEOR's program do.
    """
    start, pinned = time.perf_counter(), asked.pinned
    folder, step = named_checkpoint(asked.checkpoint, run_folder(pinned.config), asked.step)
    manager = open_checkpoints(pinned.config, folder)
    step = manager.steps()[-1] if step is None else step
    checkpoint, digest = folder / "checkpoints" / str(step), manager.digest(step)
    _check_digest(asked, checkpoint, digest)
    config = _with_vocabulary(pinned, manager, step)
    if pinned.metric == "meteor" and hosts.is_first():
        METRICS["meteor"](["a cat"], [["a cat"]], [])  # a program of others: that it is missing is found before hours of decoding
    progress(f"{pinned.name}: {_set_text(pinned)}, {pinned.decode}; {checkpoint}, digest {digest or 'none'}")
    with _told_how_to_prepare(pinned):
        world = load_world(config, config.eval.sets)
        tokenizer = _check_tokenizer(world, manager, step)
        way = ways_of(world, config.eval.sets)[pinned.eval_set.name]
        submissions = None if pinned.metric else leaderboard.prepare(world, config.eval.sets, asked.submission)
        examples = collect(config, pinned.eval_set, build_row=world.build_row, open_source=world.open_source)
        _check_answers(pinned, examples)
    restored = restore(config, manager, step)
    predictor = Predictor(restored.graphdef, restored.params, restored.stats, vocab=config.vocab, batch_rows=config.eval.batch_rows)
    decoded = decode_on_all_hosts(world, predictor, examples, *way)
    if not hosts.is_first():
        return Reproduced("", None)
    measured, lines = _judge(pinned, world, examples, decoded)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", pinned.name)
    predictions = folder / FOLDER / f"{name}.predictions.jsonl"
    predictions.parent.mkdir(parents=True, exist_ok=True)
    write_whole(predictions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    sent = ""
    if submissions is not None:
        sent = submissions.write(pinned.eval_set.name, lines, source=str(predictions), results=folder, name=name)
    entry = {
        **measured,
        "published": [dataclasses.asdict(figure) for figure in pinned.row.figures],
        "band": list(pinned.row.band),
        "unit": pinned.row.unit,
        "set": dataclasses.asdict(pinned.eval_set),
        "prompt": TASKS[pinned.eval_set.task].prompt,
        "image_px": examples.block.image_px,
        "decode": _way_text(pinned, way),
        "metric": pinned.metric,
        "checkpoint": {
            "folder": str(folder.absolute()), "step": step, "digest": digest, "run": manager.config(step).name,
            "averaged": restored.averaged, "tokenizer": tokenizer,
        },
        "data": {"dir": config.data.dir, "digest": _data_digest(config, pinned)},
        "code": {"digest": code_digest(), "commit": commit(), "versions": versions()},
        "config": {"file": pinned.row.config, "hash": config_hash(config), "precision": config.precision},
        "device": jax.devices()[0].device_kind,
        "seconds": round(time.perf_counter() - start, 1),
        "command": _command(asked, checkpoint, digest),
        "notes": list(pinned.row.notes),
        "submission": sent,
    }  # fmt: skip
    _keep(folder, pinned.name, entry)
    text = _text(pinned, entry, folder)
    return Reproduced(f"{text}\nwritten    {folder / RESULTS}, {folder / TABLE}, {predictions}", entry["within"])


# -- what must fit before anything is decoded


def _check_digest(asked: Asked, checkpoint: Path, digest: str) -> None:
    wanted, who = asked.digest
    if not digest.startswith(wanted):
        found = digest or "none (its format is older than digests)"
        raise CheckpointError(
            f"checkpoint {checkpoint}: found the digest {found}, expected {wanted}, which {who} pins for {asked.pinned.name}: another one"
        )


def _with_vocabulary(pinned: Pinned, manager: CheckpointManager, step: int) -> RunConfig:
    """The config with the tokeniser's file that the checkpoint was trained with, unless the command line names one: weights that were
    imported bring theirs. Raises CheckpointError where the checkpoint is of another size."""
    stored, config = manager.config(step), pinned.config
    where = f"checkpoint {manager.directory / str(step)}"
    for found, expected, name in (
        *((getattr(stored.model, name), getattr(config.model, name), name) for name in _MODEL),
        (stored.model.resnet.blocks, config.model.resnet.blocks, "resnet.blocks"),
    ):
        if found != expected:
            raise CheckpointError(f"{where}: model.{name}: found {found}, expected {expected}, that of {pinned.name}: another size")
    if any(path == "vocab.path" for path, _ in pinned.given):
        return config
    vocab = dataclasses.replace(config.vocab, tokenizer=stored.vocab.tokenizer, path=stored.vocab.path)
    return dataclasses.replace(config, vocab=vocab)


def _check_tokenizer(world: World, manager: CheckpointManager, step: int) -> str:
    """The tokeniser's digest. Raises CheckpointError where the checkpoint was trained with another one: its ids mean other words."""
    found, expected = world.tokenizer.digest, manager.identity(step).get("tokenizer", "")
    if expected and found != expected:
        raise CheckpointError(
            f"checkpoint {manager.directory / str(step)}: found the tokeniser {world.config.vocab.path or 'of GPT-2'} of digest {found}, "
            f"expected that of the checkpoint, {expected}; --config.vocab.path=FILE names it"
        )
    return found


@contextlib.contextmanager
def _told_how_to_prepare(pinned: Pinned) -> Iterator[None]:
    """Adds the command that prepares the row's set to what is said of data that is not there or does not fit."""
    try:
        yield
    except DataError as error:
        if pinned.is_debug:
            raise
        made = pinned.row.data.replace(DATA, pinned.config.data.dir)
        raise DataError(f"{error}; {pinned.row.name} is measured on what {made} makes") from error


def _check_answers(pinned: Pinned, examples: Examples) -> None:
    asked = [e.item for e in examples.examples if isinstance(e.item, Question)]
    if pinned.metric == "vqa_accuracy" and not all(question.answers for question in asked):
        one = pinned.eval_set
        raise DataError(
            f"set {one.name}: {one.dataset}/{one.split}: field answers/text: found questions without people's answers, expected them with "
            "all: they say what an answer is worth"
        )


# -- what is found


def _judge(pinned: Pinned, world: World, examples: Examples, decoded: Decoded) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was measured, in the row's unit, and the lines of the predictions."""
    vocab, everything, row = world.config.vocab, examples.examples, pinned.row
    outputs = read_outputs(examples, decoded.ids, vocab=vocab, tokenizer=world.tokenizer)
    if not pinned.metric:
        lines = prediction_lines(examples, outputs, np.zeros(len(everything)), tokenizer=world.tokenizer)
        for line in lines:  # nobody has the labels: what stands in their place says nothing
            del line["score"], line["reference"]
        return {"value": None, "interval_95": None, "ours": None, "n": len(everything), "within": None}, lines
    measured = METRICS[pinned.metric](outputs.predictions, outputs.references, everything)
    records = [e.record.record_id for e in everything]
    interval = interval_95(measured, records=records, num_samples=world.config.eval.bootstrap_samples)
    value, (low, high) = measured.value * row.scale, row.band
    found = {
        "value": round(value, 4),
        "interval_95": [round(end * row.scale, 4) for end in interval],
        "ours": measured.value,
        "n": measured.n,
        "within": None if pinned.is_debug else bool(low <= value <= high),
    }
    return found, prediction_lines(examples, outputs, measured.scores, tokenizer=world.tokenizer)


def _data_digest(config: RunConfig, pinned: Pinned) -> str:
    block = block_for(config, pinned.eval_set)[1]
    return data_digests(dataclasses.replace(config.data, blocks=(block,))).get(f"data/{pinned.eval_set.dataset}", "")


def _command(asked: Asked, checkpoint: Path, digest: str) -> str:
    """The command that does it again, wherever the checkpoint's run began."""
    words = ["python", "launch/eval.py", f"--reproduce={asked.pinned.name}", f"--checkpoint={checkpoint}"]
    words += [f"--digest={digest}"] if digest else []
    words += [f"--config.{path}={text}" for path, text in asked.pinned.given]
    words += [f"--reference={f'{name}=' if name else ''}{path}" for name, path in asked.submission.references]
    return shlex.join(words)


def _keep(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Writes an entry into the results of the run, in the place of an earlier one, and the table of all."""
    path = folder / RESULTS
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: found what is no JSON ({error}), expected results by row; move it away") from error
    if not isinstance(kept, dict):
        raise DataError(f"{path}: found a JSON {type(kept).__name__}, expected results by row; move it away")
    kept |= {name: entry}
    write_whole(path, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / TABLE, _table(kept))


# -- as text


def _table(kept: dict[str, dict[str, Any]]) -> str:
    header = ("row", "ours", "95 % interval", "n", "published", "band", "within", "checkpoint", "code", "command")
    rows = [header, ("---",) * len(header)]
    for name, one in kept.items():
        at, code = one["checkpoint"], one["code"]
        rows.append((
            name, _number(one["value"]), _range(one["interval_95"]), str(one["n"]), ", ".join(f"{f['value']:g}" for f in one["published"]),
            _range(one["band"]), _verdict(one, is_debug=":" in name), f"step {at['step']}, {at['digest'][:_SHOWN] or 'no digest'}",
            code["commit"][:_SHOWN] or code["digest"], f"`{one['command']}`",
        ))  # fmt: skip
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def _text(pinned: Pinned, entry: dict[str, Any], folder: Path) -> str:
    row, at, code = pinned.row, entry["checkpoint"], entry["code"]
    weights = ", averaged weights" if at["averaged"] else ""
    lines = [
        ("row", f"{pinned.name}: {_set_text(pinned)}"),
        ("decode", entry["decode"]),
        (
            "checkpoint",
            f"step {at['step']:,} of {folder} (config {at['run']}){weights}, digest {at['digest'] or 'none (its format has none)'}",
        ),
    ]
    if pinned.is_debug:
        lines.append(("debug", _debug_text(pinned)))
    if pinned.metric:
        scale = f" x {row.scale:g}" if row.scale != 1 else ""
        value, interval = _number(entry["value"]), _range(entry["interval_95"])
        lines.append(("ours", f"{value} ({pinned.metric}{scale}), 95 % interval {interval}, n {entry['n']:,}"))
    else:
        lines.append(("ours", f"{entry['n']:,} answers; their labels are not public: upload the file at {row.leaderboard}"))
        lines.append(("file", entry["submission"]))
    for place, figure in enumerate(row.figures):
        lines.append(("published" if not place else "", f"{figure.value:g} {row.unit} ({figure.kind}: {figure.source})"))
    lines.append(("band", f"{_range(entry['band'])}: {_verdict(entry, is_debug=pinned.is_debug)}"))
    lines += [("note", note) for note in row.notes]
    of = f"commit {code['commit']}" if code["commit"] else "no commit"
    lines.append(("code", f"ofa_jax {code['versions']['ofa_jax']}, {of}, files {code['digest']}"))
    lines.append(("again", entry["command"]))
    return "\n".join(f"{key.ljust(_SHOWN - 1)}{text}" for key, text in lines)


def _debug_text(pinned: Pinned) -> str:
    row = pinned.row
    instead = [f"generated fixtures instead of {row.eval_set.dataset}/{row.eval_set.split}"]
    if pinned.decode != row.decode:
        instead.append(f"{pinned.decode} instead of {row.decode.replace(DATA, 'DATA')}, as the fixtures' answers are others")
    if pinned.metric != row.metric:
        instead.append(f"{pinned.metric} instead of {row.metric or 'a file for the leaderboard'}, as one answer is known to each question")
    return f"{'; '.join(instead)}: the numbers mean nothing"


def _verdict(entry: dict[str, Any], *, is_debug: bool) -> str:
    value, (low, high) = entry["value"], entry["band"]
    if is_debug:
        return "not compared"
    if value is None:
        return "compare it with what the leaderboard says"
    if low <= value <= high:
        return "within"
    return f"{low - value:.2f} below" if value < low else f"{value - high:.2f} above"


def _set_text(pinned: Pinned) -> str:
    one, px = pinned.eval_set, block_for(pinned.config, pinned.eval_set)[1].image_px
    limit = f" ({one.limit:,} examples at most)" if one.limit else ""
    return f"{one.dataset}/{one.split}{limit} as {one.task}, prompt {TASKS[one.task].prompt}, {f'{px} px' if px else 'no pictures'}"


def _way_text(pinned: Pinned, way: Way) -> str:
    setting, closed = way
    return pinned.decode + (f" ({len(closed.labels):,} answers)" if closed is not None and setting.answers != "task" else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _range(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.2f} .. {ends[1]:.2f}"
