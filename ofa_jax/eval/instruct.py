"""Predictions for instructions that a person types, with or without a picture: what `launch/predict.py`, a web page and tests share.

    instructor = Instructor.load("runs/quickstart")
    instructor.predict(Request("what color is the shape?", picture=Path("a.png").read_bytes())).text

Every call has one of a few static shapes: the batch is filled up, sources are padded to one of `source_buckets`, and pictures are
squashed to `eval.image_px` as in evaluation. What a request gets does not depend on the requests beside it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ofa_jax.checkpoint.folders import find_run
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.check import check
from ofa_jax.config.decoding import DecodeSetting, check_setting
from ofa_jax.config.errors import CheckpointError, ConfigError, DataError
from ofa_jax.config.load import override
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, RunConfig
from ofa_jax.data.records import Box
from ofa_jax.data.transforms.image import decode_image, resize_image
from ofa_jax.decode.candidates import Candidates, candidates
from ofa_jax.decode.constraints import Constraint, IdRange, Members
from ofa_jax.eval.codec import load_codec
from ofa_jax.eval.collect import BOX_IDS
from ofa_jax.eval.parse import read_box, read_objects, to_picture, until_eos
from ofa_jax.eval.programs import Batch, Programs, Search, prompt_lens
from ofa_jax.eval.rank import NamedScorer, shown_codes
from ofa_jax.models import ofa
from ofa_jax.parallel.mesh import on_first_device
from ofa_jax.vocab.layout import bin_id, code_id, code_of
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer
from ofa_jax.vocab.trie import build_trie

Output = Literal["text", "box", "objects", "codes"]
OUTPUTS: tuple[Output, ...] = ("text", "box", "objects", "codes")

_SHORTEST_SOURCE = 16  # of the buckets; each next one is twice as long
_TOKEN = re.compile(r"<mask>|<(?P<kind>bin|code)_(?P<number>\d{1,9})>")  # the names under which `Tokenizer.decode` writes these tokens


@dataclasses.dataclass(frozen=True)
class Request:
    """One instruction, used as typed but for one leading space that is added where there is none: OFA's instructions begin with one.

    `<mask>`, `<bin_i>` and `<code_i>` in it stand for the tokens of these names, so instructions of predictions.jsonl can be given back.
    """

    text: str
    picture: bytes | None = None  # an encoded JPEG, PNG, WebP, GIF or BMP file
    name: str = "image"  # what an error calls the picture
    number: int = 0  # draws depend on the seed and on this


# What a prediction is found by where nobody says: the likeliest token at every place.
LIKELIEST = DecodeSetting("likeliest", method="beam", beam=1, min_len=0)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model wrote, read as `output`. Boxes are pixels of the picture as it was given."""

    output: Output
    written: str  # all of it as text; boxes and codes as <bin_i> and <code_i>
    score: float  # log-probability over length ** lenpen, EOS counted; of a scored answer: log-probability among the answers
    box: Box | None = None
    objects: tuple[tuple[str, Box], ...] = ()
    codes: tuple[int, ...] = ()  # raster order
    answers: tuple[tuple[str, float], ...] = ()  # every scored answer and its log-probability, best first
    malformed: int = 0  # parts of an object list that could not be read and were left out
    others: tuple[Prediction, ...] = ()  # further hypotheses of the search, best first
    rank_score: float | None = None  # by the setting's scorer

    @property
    def text(self) -> str:
        """The words, without the spaces around them."""
        return self.written.strip()

    @property
    def value(self) -> Any:
        """The prediction as predictions.jsonl has it: a string, [x0, y0, x1, y1], [{label, box}, ...] or a list of codes."""
        if self.output == "box":
            return None if self.box is None else _rounded(self.box)
        if self.output == "objects":
            return [{"label": label, "box": _rounded(box)} for label, box in self.objects]
        return list(self.codes) if self.output == "codes" else self.text

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object: output, prediction, score; scorer_score, answers, malformed and hypotheses (all of them, best
        first) where there are any."""
        found = {"output": self.output, "prediction": self.value, "score": round(self.score, 6)}
        if self.rank_score is not None:
            found["scorer_score"] = self.rank_score
        if self.answers:
            found["answers"] = [{"answer": label, "log_prob": round(log_prob, 6)} for label, log_prob in self.answers]
        if self.others:
            alone = dataclasses.replace(self, others=())
            found["hypotheses"] = [{k: v for k, v in one.to_json().items() if k != "output"} for one in (alone, *self.others)]
        return found | ({"malformed": self.malformed} if self.malformed else {})

    def __str__(self) -> str:
        """The prediction in lines of text for a person; of several hypotheses each after a line with its score."""
        if self.others:
            hypotheses = (dataclasses.replace(self, others=()), *self.others)
            return "\n".join(f"-- {k}: score {one.score:.4f}\n{one}" for k, one in enumerate(hypotheses, 1))
        if self.answers:
            return "\n".join(f"{log_prob:10.4f}  {label}" for label, log_prob in self.answers)
        if self.output == "box":
            return f"box {_words(self.box)}"
        if self.output == "codes":
            side = math.isqrt(len(self.codes))
            wide = len(str(max(self.codes, default=0)))
            return "\n".join(" ".join(f"{code:{wide}d}" for code in self.codes[at : at + side]) for at in range(0, len(self.codes), side))
        if self.output == "objects":
            lines = [f"{label}: {_words(box)}" for label, box in self.objects] or ["(no objects)"]
            return "\n".join(lines + ([f"({self.malformed} malformed parts left out)"] if self.malformed else []))
        return self.text or "(nothing)"


@dataclasses.dataclass(frozen=True)
class Answers:
    """A closed set of answers, compiled. Build it with `Instructor.answers`."""

    labels: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens of each
    scored: Candidates
    members: Members


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A request that can be run."""

    ids: list[int]
    pixels: np.ndarray | None  # the network input
    width: int  # of the picture as it was given
    height: int
    number: int


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A setting that was checked for one kind of output."""

    output: Output
    seed: int
    max_len: int
    search: Callable[[int], Search]  # from the length of the sources
    constraint: Constraint
    score: Answers | None  # all of them are scored instead
    prompted: bool
    scorer: NamedScorer | None
    hypotheses: int  # that are kept


def source_buckets(source_len: int) -> tuple[int, ...]:
    """The lengths that sources are padded to: 16, 32, ... and `source_len` itself."""
    doubled = (_SHORTEST_SOURCE << k for k in range(source_len.bit_length()))
    return (*(length for length in doubled if length < source_len), source_len)


class Instructor:
    """Answers requests with one set of parameters. Programs are compiled on first use, one a shape and way to decode."""

    def __init__(self, config: RunConfig, params: Any, stats: Any, tokenizer: Tokenizer, *, batch_rows: int | None = None):
        """`params` and `stats` are those of `models.ofa` for this config; `batch_rows` (default: `eval.batch_rows`) requests run at
        once."""
        self.config, self.tokenizer = config, tokenizer
        self.batch_rows = config.eval.batch_rows if batch_rows is None else batch_rows
        self.source = ""  # the checkpoint's folder, where there is one
        self._params, self._stats = params, stats
        self._buckets = source_buckets(config.eval.source_len)
        graphdef, _ = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0), precision=config.precision))
        self._programs = Programs(graphdef, vocab=config.vocab)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        step: int | None = None,
        overrides: Sequence[tuple[str, str]] = (),
        batch_rows: int | None = None,
    ) -> Instructor:
        """Loads a run (its folder, its checkpoints folder or one checkpoint) on the first device, with the config that is stored in it.

        `overrides` are (dotted path, text) as `config.load.split_config` returns them. A config of precision f64 turns on JAX's 64-bit
        types. Raises CheckpointError, ConfigError or DataError with one sentence.
        """
        folder, named = find_run(checkpoint)
        if step is not None and named not in (None, step):
            raise ConfigError(f"step: found {step}, expected {named} as in {checkpoint}, or none")
        manager = CheckpointManager(folder, read_only=True)
        step = named if step is None else step
        config = override(manager.config(step), overrides)
        manager = CheckpointManager(folder, read_only=True, base=config.init.checkpoint)
        check(config, training=False)
        if config.objective != "ofa":
            raise ConfigError(f"objective: found {config.objective}, expected ofa: only the whole model follows instructions")
        if config.precision == "f64":
            jax.config.update("jax_enable_x64", True)
        try:
            tokenizer = load_tokenizer(config.vocab)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        trained_with = manager.identity(step).get("tokenizer", tokenizer.digest)
        if trained_with != tokenizer.digest:
            raise CheckpointError(
                f"{config.vocab.path or 'tokeniser'}: found digest {tokenizer.digest[:12]}, expected {trained_with[:12]}, which the run "
                "was trained with"
            )
        abstract = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0), precision=config.precision)[1])
        stats = jax.eval_shape(lambda: ofa.init_stats(config.model, precision=config.precision))
        restored = manager.restore_params(on_first_device(abstract), on_first_device(stats), step=step)
        instructor = cls(config, restored.params, restored.stats, tokenizer, batch_rows=batch_rows)
        instructor.source = str(manager.directory / str(restored.step))
        return instructor

    def answers(self, labels: Iterable[str]) -> Answers:
        """Compiles a closed set of answers, each once, in their order; each is encoded with a leading space, as every target is.

        Raises DataError for no answer and for an empty one.
        """
        kept = tuple(dict.fromkeys(label.strip() for label in labels))
        if not kept or not all(kept):
            raise DataError(f"answers: found {'an empty one' if kept else 'none'}, expected one or more, each with a character")
        members = [self.tokenizer.encode(" " + _checked_text(label, "answers")) for label in kept]
        longest = max(map(len, members))
        if longest >= self._most_tokens():
            label = kept[[len(ids) for ids in members].index(longest)]
            raise DataError(f"answers: found {longest} tokens in {label!r}, expected at most {self._most_tokens() - 1}, the longest output")
        return Answers(kept, tuple(map(len, members)), candidates(members), Members.of(build_trie(members)))

    def check(
        self, setting: DecodeSetting = LIKELIEST, *, output: Output = "text", answers: Answers | None = None, hypotheses: int = 1
    ) -> None:
        """Raises ConfigError or DataError where this model cannot decode so."""
        self._plan(setting, output, answers, hypotheses)

    def predict(
        self,
        request: Request,
        setting: DecodeSetting = LIKELIEST,
        *,
        output: Output = "text",
        answers: Answers | None = None,
        hypotheses: int = 1,
    ) -> Prediction:
        """The prediction for one request. Raises DataError for bad input, and as `check` does."""
        (found,) = self.predict_all([request], setting, output=output, answers=answers, hypotheses=hypotheses)
        if isinstance(found, DataError):
            raise found
        return found

    def predict_all(
        self,
        requests: Sequence[Request],
        setting: DecodeSetting = LIKELIEST,
        *,
        output: Output = "text",
        answers: Answers | None = None,
        hypotheses: int = 1,
    ) -> list[Prediction | DataError]:
        """For every request, in order, its prediction or what is wrong with it. Raises as `check` does.

        output: what is read from the tokens. A box or codes are exactly so many tokens, each of that kind, whatever lengths the setting
        has; codes fill in the picture's middle, which the model then does not see.
        answers: the closed set that method score compares and method beam writes a member of; it stands for `setting.answers`.
        hypotheses: so many of a search are returned, the further ones as `others`.
        """
        plan = self._plan(setting, output, answers, hypotheses)
        found: dict[int, Prediction | DataError] = {}
        groups: dict[tuple[int, bool], list[tuple[int, _Ready]]] = {}
        for place, request in enumerate(requests):
            try:
                ready = self._prepare(request, output)
            except DataError as error:
                found[place] = error
                continue
            bucket = next(length for length in self._buckets if len(ready.ids) <= length)
            groups.setdefault((bucket, ready.pixels is not None), []).append((place, ready))
        for (bucket, _), members in groups.items():
            for start in range(0, len(members), self.batch_rows):
                chunk = members[start : start + self.batch_rows]
                results = self._run([ready for _, ready in chunk], bucket, plan)
                found |= {place: result for (place, _), result in zip(chunk, results, strict=True)}
        return [found[place] for place in range(len(requests))]

    def _most_tokens(self) -> int:
        """Decoder positions of a text, EOS included."""
        return min(self.config.model.max_positions, self.config.model.num_target_positions)

    def _plan(self, setting: DecodeSetting, output: Output, answers: Answers | None, hypotheses: int) -> _Plan:
        if output not in OUTPUTS:
            raise ConfigError(f"output: found {output!r}, expected one of {', '.join(OUTPUTS)}")
        scored = setting.method == "score"
        check_setting(dataclasses.replace(setting, answers="training" if answers and setting.method in ("score", "beam") else ""))
        if setting.method == "greedy":  # the same tokens, and their score
            setting = dataclasses.replace(setting, method="beam", beam=1)
        if answers is not None and not scored and setting.method != "beam":
            raise ConfigError(f"answers: found them with method {setting.method}, which does not read them, expected method score or beam")
        if answers is not None and output != "text":
            raise ConfigError(f"answers: found output {output}, expected text: answers are texts")
        if not 1 <= hypotheses <= (most := 1 if scored else setting.beam):
            raise ConfigError(f"hypotheses: found {hypotheses}, expected 1 to {most}, those that method {setting.method} makes")
        if output == "codes" and not self.config.model.writes_codes:
            raise ConfigError("output: found codes for a model with model.without=codes, expected another")
        vocab, limit = self.config.vocab, self._most_tokens() - 1
        constraint, fixed, min_len = Constraint(), output in ("box", "codes"), 0
        if output == "box":
            max_len, constraint = BOX_IDS, IdRange(vocab.first_bin_id, vocab.size)
        elif output == "codes":
            max_len, constraint = self.config.model.code_grid**2, IdRange(vocab.first_code_id, vocab.first_bin_id)
        else:
            max_len = setting.max_len or min(self.config.eval.target_len, limit)
            min_len = setting.min_len
            if max_len > limit:
                raise ConfigError(f"max_len: found {max_len}, expected at most {limit}, the model's positions less EOS")
        for label, length in zip(answers.labels, answers.lengths, strict=True) if answers else ():
            if length > max_len:
                raise DataError(f"answers: found {length} tokens in {label!r}, expected at most max_len = {max_len}")
        prompted = setting.prompt == "source"

        def search(source_len: int) -> Search:
            prompt_len = source_len - 2 if prompted else 0
            if prompt_len + max_len > limit:
                raise ConfigError(f"prompt: found {prompt_len} tokens before max_len={max_len}, expected at most {limit} positions in all")
            try:
                return Search.of(
                    setting, max_len=max_len, min_len=min_len, prompt_len=prompt_len, codes=output == "codes",
                    fixed_length=fixed,
                )  # fmt: skip
            except ValueError as error:
                raise ConfigError(str(error)) from error

        if not scored:
            search(self._buckets[0])  # says what is wrong
        return _Plan(
            output, setting.seed, max_len, search, answers.members if answers else constraint, answers if scored else None, prompted,
            NamedScorer.load(setting.scorer) if setting.scorer else None, hypotheses,
        )  # fmt: skip

    def _prepare(self, request: Request, output: Output) -> _Ready:
        """Raises DataError for a text that is empty or too long, a picture that does not decode, and a box without a picture."""
        ids = self._encode(request.text)
        if request.picture is None:
            if output in ("box", "objects"):
                raise DataError(f"{request.name}: found none, expected a picture, whose pixels the boxes of output {output} are")
            return _Ready(ids, None, 0, 0, request.number)
        if not self.config.model.reads_pictures:
            raise DataError(f"{request.name}: found a picture for a model with model.without=pictures, expected none")
        try:
            pixels = decode_image(request.picture)
        except ValueError as error:
            raise DataError(f"{request.name}: {error}") from error
        height, width = pixels.shape[:2]
        px = self.config.eval.image_px
        return _Ready(ids, resize_image(pixels, width=px, height=px), width, height, request.number)

    def _encode(self, text: str) -> list[int]:
        """The ids of an instruction, BOS and EOS included."""
        if not text.strip():
            raise DataError(f"text: found {text!r}, expected an instruction")
        text = _checked_text(text if text.startswith(" ") else " " + text, "text")
        ids, end = [BOS_ID], 0
        for token in _TOKEN.finditer(text):
            ids += self.tokenizer.encode(text[end : token.start()])
            try:
                ids.append(self._token_id(token["kind"], int(token["number"] or 0)))
            except ValueError as error:
                raise DataError(f"text: {error}") from error
            end = token.end()
        ids += [*self.tokenizer.encode(text[end:]), EOS_ID]
        limit = self.config.eval.source_len
        if len(ids) > limit:
            raise DataError(f"text: found {len(ids) - 2} tokens, expected at most {limit - 2}, eval.source_len less BOS and EOS")
        return ids

    def _token_id(self, kind: str | None, number: int) -> int:
        vocab = self.config.vocab
        if kind is None:
            return vocab.mask_id
        return bin_id(number, vocab=vocab) if kind == "bin" else code_id(number, vocab=vocab)

    def _run(self, rows: Sequence[_Ready], bucket: int, plan: _Plan) -> list[Prediction | DataError]:
        """One batch, filled up with copies of its first row."""
        filled = [*rows, *[rows[0]] * (self.batch_rows - len(rows))]
        source_ids = np.full((len(filled), bucket), PAD_ID, np.int32)
        for row, ready in zip(source_ids, filled, strict=True):
            row[: len(ready.ids)] = ready.ids
        batch: Batch = {"source_ids": source_ids}
        if rows[0].pixels is not None:
            images = np.stack([ready.pixels for ready in filled])
            batch["features"] = self._programs.embed(self._params, self._stats, images, np.full(len(filled), plan.output == "codes"))
            batch["picture"], batch["present"] = np.arange(len(filled), dtype=np.int32), np.ones(len(filled), bool)
        if plan.score is not None:
            scores = self._programs.score(self._params, batch, plan.score.scored, prompt="source" if plan.prompted else "none")
            return [_best_answer(plan.score.labels, row) for row in np.asarray(scores, np.float64)[: len(rows)]]
        numbers = np.array([ready.number for ready in filled], np.uint32)
        how = plan.search(bucket)
        written = self._programs.search(self._params, batch, plan.constraint, np.uint32(plan.seed), numbers, how=how)
        ids, scores, lengths = jax.device_get((written.sequences, written.scores, written.lengths))
        skips = prompt_lens(source_ids) if plan.prompted else np.zeros(len(filled), int)
        found: list[Prediction | DataError] = []
        for k, ready in enumerate(rows):
            ended = [j for j in range(ids.shape[1]) if lengths[k, j]]
            if not ended:
                found.append(DataError("decoding: found no output that its rules allow, expected one: lower min_len or no_repeat_ngram"))
                continue
            read = [self._read(ready, ids[k, j, skips[k] : lengths[k, j]], float(scores[k, j]), plan.output) for j in ended]
            read = self._ranked(ready, read, plan.scorer)
            found.append(dataclasses.replace(read[0], others=tuple(read[1 : plan.hypotheses])))
        return found

    def _ranked(self, ready: _Ready, predictions: list[Prediction], scorer: NamedScorer | None) -> list[Prediction]:
        if scorer is None:
            return predictions
        values = [one.value for one in predictions]
        if predictions[0].output == "codes":
            values = shown_codes(values, load_codec(self.config.data.dir))
        order, scores = scorer.order(self.tokenizer.decode(ready.ids), ready.pixels, values)
        return [dataclasses.replace(predictions[j], rank_score=scores[j]) for j in order]

    def _read(self, ready: _Ready, ids: np.ndarray, score: float, output: Output) -> Prediction:
        vocab = self.config.vocab
        kept = until_eos(ids)
        prediction = Prediction(output, self.tokenizer.decode(kept), score)
        size = {"image_px": self.config.eval.image_px, "width": ready.width, "height": ready.height}
        if output == "box":
            box = read_box(kept, vocab=vocab)
            return dataclasses.replace(prediction, box=None if box is None else to_picture(box, **size))
        if output == "objects":
            objects, malformed = read_objects(kept, vocab=vocab, tokenizer=self.tokenizer)
            moved = tuple((label, to_picture(box, **size)) for label, box in objects)
            return dataclasses.replace(prediction, objects=moved, malformed=malformed)
        if output == "codes":
            found = (code_of(token, vocab=vocab) for token in kept)
            return dataclasses.replace(prediction, codes=tuple(code for code in found if code is not None))
        return prediction


def _best_answer(labels: Sequence[str], scores: np.ndarray) -> Prediction:
    order = np.argsort(-scores, kind="stable")
    ranked = tuple((labels[k], float(scores[k])) for k in order)
    return Prediction("text", ranked[0][0], ranked[0][1], answers=ranked)


def _checked_text(text: str, name: str) -> str:
    """The text itself. Raises DataError for half a UTF-16 pair, which JSON and command lines can hold and no tokeniser reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = ascii(text[error.start])
        raise DataError(f"{name}: found {found} at character {error.start}, expected text that can be written as UTF-8") from error
    return text


def _rounded(box: Box) -> list[float]:
    return [round(float(v), 3) for v in box]


def _words(box: Box | None) -> str:
    return "(malformed)" if box is None else ", ".join(f"{v:.1f}" for v in box)
