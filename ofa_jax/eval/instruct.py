"""Predictions for instructions that a person types, with or without a picture: what `launch/predict.py`, a web page and tests share.

    instructor = Instructor.load("runs/quickstart")
    instructor.predict(Request("what color is the shape?", picture=Path("a.png").read_bytes())).text

Every call has one of a few static shapes: the batch is filled up, sources are padded to one of `source_buckets`, and pictures are
squashed to `eval.image_px` as in evaluation. What a request gets does not depend on the requests beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from ofa_jax.checkpoint.manager import CheckpointManager, find_run
from ofa_jax.config.check import check
from ofa_jax.config.errors import CheckpointError, ConfigError, DataError
from ofa_jax.config.load import override
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, RunConfig
from ofa_jax.data.records import Box
from ofa_jax.data.transforms.image import decode_image, resize_image
from ofa_jax.decode.beam import beam_search
from ofa_jax.decode.candidates import Candidates, candidates, score_candidates
from ofa_jax.decode.constraints import Constraint, IdRange, Members
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.decode.sample import sample
from ofa_jax.eval.collect import BOX_IDS
from ofa_jax.eval.parse import read_box, read_objects, to_picture, until_eos
from ofa_jax.models import ofa
from ofa_jax.models.decoder import CodeRows
from ofa_jax.vocab.layout import bin_id, code_id, code_of
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer
from ofa_jax.vocab.trie import build_trie

Output = Literal["text", "box", "objects", "codes"]
OUTPUTS: tuple[Output, ...] = ("text", "box", "objects", "codes")

_ALL: CodeRows = "all"
_NONE: CodeRows = "none"
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


@dataclasses.dataclass(frozen=True)
class Decoding:
    """What a prediction is and how it is found. Raises ConfigError for settings that cannot be run."""

    output: Output = "text"  # a box or codes: exactly so many tokens, each of that kind; codes fill in the picture's hidden middle
    beam: int = 1  # hypotheses; 1 is greedy. The best one is returned
    max_len: int | None = None  # tokens before EOS; None: `eval.target_len`
    min_len: int = 0
    lenpen: float = 1.0
    no_repeat_ngram: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int | None = None  # this, top_k or top_p: tokens are drawn instead of searched for
    constrain: bool = False  # a search writes one of the given answers; False: every answer is scored

    def __post_init__(self):
        if self.output not in OUTPUTS:
            raise ConfigError(f"output: found {self.output!r}, expected one of {', '.join(OUTPUTS)}")
        if self.output in ("box", "codes") and (self.max_len is not None or self.min_len):
            raise ConfigError(f"output: found {self.output} with max_len or min_len, expected neither: its number of tokens is fixed")
        if self.max_len is not None and self.max_len < 1:
            raise ConfigError(f"max_len: found {self.max_len}, expected at least 1")
        for name in ("lenpen", "temperature", "top_p"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected a finite number")
        if self.top_k < 0:
            raise ConfigError(f"top_k: found {self.top_k}, expected 0 (off) or more")
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"top_p: found {self.top_p}, expected 0 (off) to 1")
        if self.seed is not None and not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed: found {self.seed}, expected 0 to {(1 << 32) - 1}")
        if self.temperature != 1 and self.beam == 1 and not self.draws:
            raise ConfigError(
                f"temperature: found {self.temperature} with one greedy hypothesis, which it does not change; expected seed, top_k, top_p "
                "or a beam of 2 or more beside it"
            )

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.seed is not None or self.top_k > 0 or self.top_p > 0


GREEDY = Decoding()


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
        """The prediction as a JSON object: output, prediction, score; answers and malformed where there are any."""
        found = {"output": self.output, "prediction": self.value, "score": round(self.score, 6)}
        if self.answers:
            found["answers"] = [{"answer": label, "log_prob": round(log_prob, 6)} for label, log_prob in self.answers]
        return found | ({"malformed": self.malformed} if self.malformed else {})

    def __str__(self) -> str:
        """The prediction in lines of text for a person."""
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
    """A checked `Decoding`."""

    decoding: Decoding
    rules: DecodeConfig
    constraint: Constraint
    answers: Answers | None  # those to score


def source_buckets(source_len: int) -> tuple[int, ...]:
    """The lengths that sources are padded to: 16, 32, ... and `source_len` itself."""
    doubled = (_SHORTEST_SOURCE << k for k in range(source_len.bit_length()))
    return (*(length for length in doubled if length < source_len), source_len)


class Instructor:
    """Answers requests with one set of parameters. Programs are compiled on first use, one a shape and `Decoding`."""

    def __init__(self, config: RunConfig, params: Any, stats: Any, tokenizer: Tokenizer, *, batch_rows: int | None = None):
        """`params` and `stats` are those of `models.ofa` for this config; `batch_rows` (default: `eval.batch_rows`) requests run at
        once."""
        self.config, self.tokenizer = config, tokenizer
        self.batch_rows = config.eval.batch_rows if batch_rows is None else batch_rows
        self.source = ""  # the checkpoint's folder, where there is one
        self._params, self._stats = params, stats
        self._buckets = source_buckets(config.eval.source_len)
        graphdef, _ = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0), precision=config.precision))

        @jax.jit
        def embed(params: Any, stats: Any, images: jax.Array, holes: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).embed_images(images, holes, stats=stats, train=False, key=None)[0]

        def encode(params: Any, source_ids: jax.Array, features: jax.Array | None) -> tuple[Any, Any]:
            model = nnx.merge(graphdef, params)
            return model, model.encode(source_ids, features=features, key=None)

        @functools.partial(jax.jit, static_argnames=("rules", "draws", "codes"))
        def write(
            params: Any, source_ids: jax.Array, features: jax.Array | None, constraint: Constraint, seed: jax.Array, numbers: jax.Array,
            *, rules: DecodeConfig, draws: tuple[int, float] | None, codes: bool,
        ) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
            model, encoded = encode(params, source_ids, features)
            mask, kind = (jnp.ones(source_ids.shape[0], bool), _ALL) if codes else (None, _NONE)
            if draws is None:
                found = beam_search(model, encoded, mask, config=rules, constraint=constraint, code_rows=kind)
            else:
                keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(numbers)
                found = sample(
                    model, encoded, mask, keys, config=rules, constraint=constraint, code_rows=kind, top_k=draws[0], top_p=draws[1]
                )
            return found.sequences[:, 0], found.scores[:, 0], found.lengths[:, 0]

        @jax.jit
        def score(params: Any, source_ids: jax.Array, features: jax.Array | None, answers: Candidates) -> jax.Array:
            return score_candidates(*encode(params, source_ids, features), answers)

        self._embed, self._write, self._score = embed, write, score

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
        check(config)
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
        place = SingleDeviceSharding(jax.devices()[0])  # left alone, every device would compute the same

        def placed(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

        abstract = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0), precision=config.precision)[1])
        stats = jax.eval_shape(lambda: ofa.init_stats(config.model, precision=config.precision))
        restored = manager.restore_params(placed(abstract), placed(stats), step=step)
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

    def check(self, decoding: Decoding, answers: Answers | None = None) -> None:
        """Raises ConfigError or DataError where this model cannot decode so."""
        self._plan(decoding, answers)

    def predict(self, request: Request, decoding: Decoding = GREEDY, answers: Answers | None = None) -> Prediction:
        """The prediction for one request. Raises DataError for bad input, and as `check` does."""
        (found,) = self.predict_all([request], decoding, answers)
        if isinstance(found, DataError):
            raise found
        return found

    def predict_all(
        self, requests: Sequence[Request], decoding: Decoding = GREEDY, answers: Answers | None = None
    ) -> list[Prediction | DataError]:
        """For every request, in order, its prediction or what is wrong with it. Raises as `check` does.

        With `answers` all of them are scored and the likeliest is the prediction; with `decoding.constrain` too, a search writes one.
        """
        plan = self._plan(decoding, answers)
        found: dict[int, Prediction | DataError] = {}
        groups: dict[tuple[int, bool], list[tuple[int, _Ready]]] = {}
        for place, request in enumerate(requests):
            try:
                ready = self._prepare(request, decoding.output)
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

    def _plan(self, decoding: Decoding, answers: Answers | None) -> _Plan:
        vocab, limit = self.config.vocab, self._most_tokens() - 1
        if answers is None and decoding.constrain:
            raise ConfigError("constrain: found it without answers, expected answers beside it")
        if answers is not None and decoding.output != "text":
            raise ConfigError(f"answers: found output {decoding.output}, expected text: answers are texts")
        if answers is not None and not decoding.constrain and decoding != Decoding(max_len=decoding.max_len):
            raise ConfigError(
                "answers: found settings of a search, expected none, because all answers are scored, or constrain beside them"
            )
        constraint, fixed = Constraint(), True
        if decoding.output == "box":
            max_len, constraint = BOX_IDS, IdRange(vocab.first_bin_id, vocab.size)
        elif decoding.output == "codes":
            max_len, constraint = self.config.model.code_grid**2, IdRange(vocab.first_code_id, vocab.first_bin_id)
        else:
            max_len, fixed = min(self.config.eval.target_len, limit) if decoding.max_len is None else decoding.max_len, False
            if max_len > limit:
                raise ConfigError(f"max_len: found {max_len}, expected at most {limit}, the model's positions less EOS")
        if answers is not None:
            for label, length in zip(answers.labels, answers.lengths, strict=True):
                if length > max_len:
                    raise DataError(f"answers: found {length} tokens in {label!r}, expected at most max_len = {max_len}")
            constraint = answers.members if decoding.constrain else constraint
        try:
            rules = DecodeConfig(
                beam=decoding.beam, max_len=max_len, min_len=decoding.min_len, lenpen=decoding.lenpen, temperature=decoding.temperature,
                no_repeat_ngram=decoding.no_repeat_ngram, fixed_length=fixed,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return _Plan(decoding, rules, constraint, None if decoding.constrain else answers)

    def _prepare(self, request: Request, output: Output) -> _Ready:
        """Raises DataError for a text that is empty or too long, a picture that does not decode, and a box without a picture."""
        ids = self._encode(request.text)
        if request.picture is None:
            if output in ("box", "objects"):
                raise DataError(f"{request.name}: found none, expected a picture, whose pixels the boxes of output {output} are")
            return _Ready(ids, None, 0, 0, request.number)
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
        codes, features = plan.decoding.output == "codes", None
        if rows[0].pixels is not None:
            images = np.stack([ready.pixels for ready in filled])
            features = self._embed(self._params, self._stats, images, np.full(len(filled), codes))
        if plan.answers is not None:
            scores = np.asarray(self._score(self._params, source_ids, features, plan.answers.scored), np.float64)
            return [_best_answer(plan.answers.labels, row) for row in scores[: len(rows)]]
        decoding = plan.decoding
        seed, numbers = np.uint32(decoding.seed or 0), np.array([ready.number for ready in filled], np.uint32)
        draws = (decoding.top_k, decoding.top_p) if decoding.draws else None
        found = self._write(
            self._params, source_ids, features, plan.constraint, seed, numbers, rules=plan.rules, draws=draws, codes=codes
        )  # fmt: skip
        ids, scores, lengths = jax.device_get(found)
        return [
            self._read(ready, ids[k, : lengths[k]], float(scores[k]), decoding.output)
            if lengths[k]
            else DataError("decoding: found no output that its rules allow, expected one: lower min_len or no_repeat_ngram")
            for k, ready in enumerate(rows)
        ]

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
