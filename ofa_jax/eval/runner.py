"""Evaluates a model on the sets of a config: `evaluate` computes, `write_results` writes, `format_table` prints.

Inputs are values (graph definition, parameters, tokeniser, row builder, a way to open records), so a training loop may call it as
well as `launch/eval.py`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.config.decoding import DecodeSetting
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import EvalSetConfig, RunConfig, SourceConfig
from ofa_jax.data.records import RecordSource
from ofa_jax.eval.baselines import TrainingData, predict_baseline
from ofa_jax.eval.codec import load_codec
from ofa_jax.eval.collect import Examples, collect
from ofa_jax.eval.painting import PictureJudge, generate, load_judges
from ofa_jax.eval.predict import ClosedSet, Predictor
from ofa_jax.eval.scoring import Outputs, prediction_lines, read_outputs, score_set
from ofa_jax.eval.shares import gather_shares, own_share
from ofa_jax.metrics.bootstrap import interval_text
from ofa_jax.parallel import hosts
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.vocab.tokenizer import Tokenizer

RESULTS_FILE, PREDICTIONS_FILE, PICTURES_DIR = "eval.json", "predictions.jsonl", "eval_pictures"

GENERATED = "generated_code_accuracy"
_PICTURES_AT_ONCE = 32  # that a VQGAN makes of codes

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""

    results: dict[str, dict[str, dict[str, Any]]]  # set -> metric -> value, baseline, baseline_name, n, interval_95
    predictions: list[dict[str, Any]]  # the lines of predictions.jsonl
    pictures: dict[str, np.ndarray]  # file name -> network input, uint8 [px, px, 3], of the examples that the report draws


def chosen_sets(config: RunConfig, names: Sequence[str] = ()) -> tuple[EvalSetConfig, ...]:
    """The config's sets whose names are given; all without names. Raises ConfigError for a name that is none."""
    known = {s.name: s for s in config.eval.sets}
    if not known:
        raise ConfigError(f"eval.sets: found none in config {config.name}, expected at least one")
    for name in names:
        if name not in known:
            raise ConfigError(f"--sets: found {name!r}, expected some of {', '.join(known)}")
    return tuple(known[name] for name in names) if names else config.eval.sets


Way = tuple[DecodeSetting, ClosedSet | None]  # how a set is decoded (`eval.ways`)


class Judge:
    """Compares decoded ids with references and with the set's baseline. What it reads of the training data is kept."""

    def __init__(
        self, config: RunConfig, *, tokenizer: Tokenizer, build_row: RowBuilder, open_source: Callable[[SourceConfig], RecordSource]
    ):
        self._config, self._tokenizer = config, tokenizer
        self._training = TrainingData(open_source, build_row)
        self.codec = load_codec(config.data.dir, rows=_PICTURES_AT_ONCE)
        self._pictures = PictureJudge(config, open_source=open_source, codec=self.codec)
        self._baselines: dict[tuple[str, bool], tuple[str, Sequence[Any]]] = {}

    def __call__(
        self, examples: Examples, ids: Sequence[np.ndarray], *, generated: Sequence[np.ndarray] | None = None
    ) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Returns the metrics of the set (as in eval.json) and the lines of predictions.jsonl.

        ids: of every example, as `Predictor` gives them. generated: codes decoded without seeing true ones, scored beside the forced.
        """
        outputs = self._read(examples, ids)
        name, baseline = self._baseline(examples, generated=False)
        samples = self._config.eval.bootstrap_samples
        results, scores = score_set(examples, outputs, baseline_name=name, baseline=baseline, num_samples=samples)
        lines = prediction_lines(examples, outputs, scores, tokenizer=self._tokenizer)
        if generated is not None:
            free = self._read(examples, generated)
            name, baseline = self._baseline(examples, generated=True)
            results |= score_set(examples, free, baseline_name=name, baseline=baseline, num_samples=samples, metrics=[GENERATED])[0]
            for line, codes in zip(lines, free.predictions, strict=True):
                line["generated"] = codes
            if examples.task.name == "image_generation":
                results |= self._pictures(examples, free.predictions)
        return results, lines

    def _read(self, examples: Examples, ids: Sequence[np.ndarray]) -> Outputs:
        return read_outputs(examples, ids, vocab=self._config.vocab, tokenizer=self._tokenizer)

    def _baseline(self, examples: Examples, *, generated: bool) -> tuple[str, Sequence[Any]]:
        key = examples.eval_set.name, generated
        if key not in self._baselines:
            more = {"generated": True} if generated else {}
            self._baselines[key] = predict_baseline(examples, self._training, codec=self.codec, **more)
        return self._baselines[key]


def evaluate(
    config: RunConfig,
    *,
    graphdef: Any,
    params: Any,
    stats: Any,
    tokenizer: Tokenizer,
    build_row: RowBuilder,
    open_source: Callable[[SourceConfig], RecordSource],
    sets: Sequence[EvalSetConfig] | None = None,
    ways: Mapping[str, Way] | None = None,
    with_pictures: bool = True,
) -> Evaluation:
    """Evaluates `sets` (default: all of the config): every set against its baseline, with a 95 % interval.

    `build_row` must not augment (`train=False`). Free tasks are decoded as `ways` says by set (greedily where it does not), infilling
    tasks are teacher-forced. The pictures of
    each set's first `report_examples` examples, spread over the set, are kept for the report unless `with_pictures` is False.

    On several hosts all call it with the same arguments and weights on a device of their own: each decodes its share of the examples, the
    first scores, and the others' evaluation is empty.
    """
    predictor = Predictor(graphdef, params, stats, vocab=config.vocab, batch_rows=config.eval.batch_rows)
    judge = Judge(config, tokenizer=tokenizer, build_row=build_row, open_source=open_source)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    lines: list[dict[str, Any]] = []
    pictures: dict[str, np.ndarray] = {}
    chosen = config.eval.sets if sets is None else sets
    if any(eval_set.task == "image_generation" for eval_set in chosen) and hosts.is_first():
        load_judges(config.eval.pictures)
    for number, eval_set in enumerate(chosen):
        start = time.perf_counter()
        examples = collect(config, eval_set, build_row=build_row, open_source=open_source)
        collected = time.perf_counter()
        mine = own_share(examples)
        decoded_here = decode_set(predictor, mine, (ways or {}).get(eval_set.name)) if mine.examples else []
        ids, _ = gather_shares(decoded_here, {}, total=len(examples.examples))
        generated = None
        if examples.task.output == "codes":
            # Teacher forcing shows the code before, and repeating it already looks like a picture: what is drawn is generated.
            way = (ways or {}).get(eval_set.name, (None, None))[0]
            generated = generate(predictor, examples, way, config=config, codec=judge.codec, tokenizer=tokenizer)
        if not hosts.is_first():
            continue
        decoded = time.perf_counter()
        results[eval_set.name], new = judge(examples, ids, generated=generated)
        if with_pictures:
            count = min(config.eval.report_examples, len(new))
            for k in range(count):
                i = k * len(new) // count
                new[i]["shown"] = True
                if len(examples.images):
                    new[i]["picture"] = f"{number:02d}_{k:02d}.png"
                    pictures[new[i]["picture"]] = examples.images[examples.examples[i].picture]
        lines += new
        _log.info(
            "%s: %d examples; collected in %.1f s, decoded in %.1f s, scored in %.1f s",
            eval_set.name, len(new), collected - start, decoded - collected, time.perf_counter() - decoded,
        )  # fmt: skip
    return Evaluation(results, lines, pictures)


def decode_set(predictor: Predictor, examples: Examples, way: Way | None) -> list[np.ndarray]:
    """Returns the ids of every example: teacher-forced where its task is, else as `way` says, greedily without one."""
    if examples.task.scoring == "teacher_forced":
        return predictor.forced(examples)
    return predictor.free(examples) if way is None else predictor.decode(examples, *way).ids


def write_results(evaluation: Evaluation, directory: str | Path) -> None:
    """Writes eval.json, predictions.jsonl and eval_pictures/ into `directory`, replacing those of an earlier evaluation."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULTS_FILE).write_text(json.dumps(evaluation.results, indent=1) + "\n", encoding="utf-8")
    with open(directory / PREDICTIONS_FILE, "w", encoding="utf-8") as out:
        for line in evaluation.predictions:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    folder = directory / PICTURES_DIR
    if folder.exists():
        shutil.rmtree(folder)
    if evaluation.pictures:
        folder.mkdir()
        for name, pixels in evaluation.pictures.items():
            Image.fromarray(pixels).save(folder / name)


def format_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The results as lines of text: set, metric, value, 95 % interval, baseline and the margin above it."""
    header = ("set", "metric", "value", "95 % interval", "baseline", "margin", "n", "baseline is")
    rows = [header]
    for name, metrics in results.items():
        for metric, r in metrics.items():
            rows.append((
                name, metric, f"{r['value']:.3f}", interval_text(r["interval_95"]), f"{r['baseline']:.3f}",
                f"{r['value'] - r['baseline']:+.3f}", str(r["n"]), r["baseline_name"],
            ))  # fmt: skip
    widths = [max(len(row[c]) for row in rows) for c in range(len(header))]
    right = {2, 4, 5, 6}
    lines = []
    for row in rows:
        cells = (v.rjust(w) if c in right else v.ljust(w) for c, (v, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
