"""Runs the model over examples in batches of one static shape a set; the only JAX of the evaluation.

Every picture of a batch goes through the ResNet once, however many questions of it the batch asks.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ofa_jax.config.decoding import GREEDY, DecodeSetting
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, VocabConfig
from ofa_jax.decode.beam import Hypotheses, beam_search
from ofa_jax.decode.candidates import Candidates, score_candidates
from ofa_jax.decode.constraints import Members
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.decode.sample import sample
from ofa_jax.decode.search import greedy
from ofa_jax.eval.collect import BOX_IDS, Examples


@dataclasses.dataclass(frozen=True)
class ClosedSet:
    """The answers that a setting allows, compiled for the device. Build it with `eval.sweep.closed_set`."""

    labels: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]  # their ids, without BOS and EOS
    members: Members
    candidates: Candidates


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What one setting wrote: ids int32 an example, to be read up to EOS, and the score of each (NaN where the method gives none)."""

    ids: list[np.ndarray]
    scores: np.ndarray  # float64 [examples]


class Predictor:
    """Decodes examples with one set of parameters. `graphdef`, `params` and `stats` are those of `models.ofa`.

    Pictures are embedded by a compilation of their own, because the ResNet takes longest to compile and does not depend on lengths.
    """

    def __init__(self, graphdef: Any, params: Any, stats: Any, *, vocab: VocabConfig, batch_rows: int):
        self._rows = batch_rows
        self._set_params(params, stats)

        def encode(params: Any, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
            model = nnx.merge(graphdef, params)
            features = batch["features"][batch["picture"]] if "features" in batch else None
            return model, model.encode(batch["source_ids"], features=features, image_mask=batch.get("present"), key=None)

        @jax.jit
        def embed(params: Any, stats: Any, images: jax.Array, holes: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).embed_images(images, holes, stats=stats, train=False, key=None)[0]

        @functools.partial(jax.jit, static_argnames=("max_len", "min_len"))
        def free(params: Any, batch: dict[str, jax.Array], max_len: int, min_len: int) -> jax.Array:
            model, encoded = encode(params, batch)
            return greedy(model, encoded, None, max_len=max_len, min_len=min_len)

        @functools.partial(jax.jit, static_argnames="num_codes")
        def generate(params: Any, batch: dict[str, jax.Array], num_codes: int) -> jax.Array:
            model, encoded = encode(params, batch)
            mask = jnp.ones(batch["source_ids"].shape[0], bool)
            allowed = (vocab.first_code_id, vocab.first_bin_id)
            return greedy(model, encoded, mask, max_len=num_codes, min_len=num_codes, allowed=allowed, code_rows="all")

        @functools.partial(jax.jit, static_argnames="codes")
        def forced(params: Any, batch: dict[str, jax.Array], codes: bool) -> jax.Array:
            model, encoded = encode(params, batch)
            mask = jnp.full(batch["source_ids"].shape[0], codes)
            hidden = model.decode(encoded, batch["decoder_ids"], mask, key=None, code_rows="all" if codes else "none")
            logits = model.logits(hidden)
            if codes:  # a code position may only hold a code, as in OFA's image generation
                ids = jnp.arange(logits.shape[-1])
                is_code = (ids >= vocab.first_code_id) & (ids < vocab.first_bin_id)
                logits = jnp.where(is_code, logits, -jnp.inf)
            return logits.argmax(-1).astype(jnp.int32)

        @functools.partial(jax.jit, static_argnames=("config", "top_k", "top_p", "method", "width"))
        def search(
            params: Any,
            batch: dict[str, jax.Array],
            members: Members | None,
            key: jax.Array,
            *,
            config: DecodeConfig,
            top_k: int,
            top_p: float,
            method: str,
            width: int,
        ) -> Hypotheses:
            model, encoded = encode(params, batch)
            prefix = _prompts(batch["source_ids"])[:, :width] if width else None
            if method == "sample":
                return sample(model, encoded, None, key, config=config, top_k=top_k, top_p=top_p, prefix_ids=prefix, constraint=members)
            return beam_search(model, encoded, None, config=config, prefix_ids=prefix, constraint=members)

        @functools.partial(jax.jit, static_argnames="prompted")
        def score(params: Any, batch: dict[str, jax.Array], answers: Candidates, prompted: bool) -> jax.Array:
            model, encoded = encode(params, batch)
            return score_candidates(model, encoded, answers, prompt_ids=_prompts(batch["source_ids"]) if prompted else None)

        self._embed, self._free, self._generate, self._forced = embed, free, generate, forced
        self._search, self._score = search, score

    def with_params(self, params: Any, stats: Any) -> Predictor:
        """Returns a predictor of the same model with other weights; it shares the compiled programs."""
        other = copy.copy(self)
        other._set_params(params, stats)
        return other

    def _set_params(self, params: Any, stats: Any) -> None:
        """Takes the weights; a batch is shared by the devices that hold them, each of which takes equally many sequences."""
        self._params, self._stats = params, stats
        leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
        sharding = leaves[0].sharding if leaves else None
        # The mesh of the weights, whatever its axes are: one program has one mesh.
        self._mesh = sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None
        parts = 1 if self._mesh is None else self._mesh.size
        self._batch_rows = -(-self._rows // parts) * parts

    def _spread(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Places arrays whose first axis counts sequences or pictures: shared by the devices where it divides, else whole on each."""
        if self._mesh is None:
            return arrays
        whole, shared = NamedSharding(self._mesh, PartitionSpec()), NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        fits = {name: len(array) % self._mesh.size == 0 for name, array in arrays.items()}
        return {name: jax.device_put(array, shared if fits[name] else whole) for name, array in arrays.items()}

    def decode(self, examples: Examples, setting: DecodeSetting = GREEDY, closed: ClosedSet | None = None) -> Decoded:
        """What `setting` writes for every example of a task with free output; the best hypothesis where it makes several.

        closed: the answers that `setting.answers` names, or None where it names none.
        """
        box = examples.task.output == "box"
        max_len, min_len = (setting.max_len or examples.block.target_len, setting.min_len)
        max_len, min_len = (BOX_IDS, BOX_IDS) if box else (max_len, min(min_len, max_len))
        if setting.method == "greedy":
            return Decoded(self.free(examples), np.full(len(examples.examples), np.nan))
        if setting.method == "score":
            assert closed is not None  # `sweep.points` gives a closed set to every setting that names one
            return self._best_answers(examples, closed, prompted=setting.prompt == "source")
        width = examples.block.source_len - 2 if setting.prompt == "source" else 0  # a source without its BOS and EOS
        config = DecodeConfig(
            beam=setting.beam, max_len=max_len + width, min_len=min_len, lenpen=setting.lenpen, temperature=setting.temperature,
            no_repeat_ngram=setting.no_repeat_ngram, normalise=setting.normalise,
        )  # fmt: skip
        ids: list[np.ndarray] = []
        scores: list[float] = []
        for number, (batch, count) in enumerate(self._batches(examples, target_len=1)):
            key = jax.random.fold_in(jax.random.key(setting.seed), number)
            found = self._search(
                self._params, batch, closed.members if closed else None, key,
                config=config, top_k=setting.top_k, top_p=setting.top_p, method=setting.method, width=width,
            )  # fmt: skip
            best, totals = np.asarray(found.sequences[:, 0])[:count], np.asarray(found.scores[:, 0], np.float64)[:count]
            begins = _prompt_lens(np.asarray(batch["source_ids"]))[:count] if width else np.zeros(count, int)
            ids += [row[begin:] for row, begin in zip(best, begins, strict=True)]
            scores += totals.tolist()
        return Decoded(ids, np.array(scores))

    def _best_answers(self, examples: Examples, closed: ClosedSet, *, prompted: bool) -> Decoded:
        ids: list[np.ndarray] = []
        scores: list[float] = []
        for batch, count in self._batches(examples, target_len=1):
            found = np.asarray(self._score(self._params, batch, closed.candidates, prompted=prompted), np.float64)[:count]
            best = found.argmax(1)
            ids += [np.array([*closed.sequences[i], EOS_ID], np.int32) for i in best]
            scores += found[np.arange(count), best].tolist()
        return Decoded(ids, np.array(scores))

    def free(self, examples: Examples) -> list[np.ndarray]:
        """Greedy output ids, int32 [T] an example, to be read up to EOS. T is the block's target length; a box is exactly four ids, as
        in the official grounding evaluation."""
        box = examples.task.output == "box"
        max_len, min_len = (BOX_IDS, BOX_IDS) if box else (examples.block.target_len, 0)
        out: list[np.ndarray] = []
        for batch, count in self._batches(examples, target_len=1):
            out.extend(np.asarray(self._free(self._params, batch, max_len=max_len, min_len=min_len))[:count])
        return out

    def generate(self, examples: Examples) -> list[np.ndarray]:
        """Image codes decoded greedily without seeing any true code, int32 [codes] an example, as ids; every id is a code."""
        num_codes = len(examples.examples[0].sequence.target_ids)
        out: list[np.ndarray] = []
        for batch, count in self._batches(examples, target_len=1):
            out.extend(np.asarray(self._generate(self._params, batch, num_codes=num_codes))[:count])
        return out

    def forced(self, examples: Examples) -> list[np.ndarray]:
        """The likeliest id at every target position given the true ids before it, int32 [target length] an example, EOS left out."""
        codes = examples.task.output == "codes"
        longest = max(len(e.sequence.target_ids) for e in examples.examples)
        target_len = longest if codes else examples.block.target_len
        out: list[np.ndarray] = []
        for batch, count in self._batches(examples, target_len=target_len):
            ids = np.asarray(self._forced(self._params, batch, codes=codes))[:count]
            lengths = [len(e.sequence.target_ids) for e in examples.examples[len(out) : len(out) + count]]
            out.extend(row[:length] for row, length in zip(ids, lengths, strict=True))
        return out

    def _batches(self, examples: Examples, *, target_len: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Batches of `batch_rows` sequences in order, the last one padded, and how many of each are examples.

        Sequences of one picture lie next to each other, so few pictures are needed; their number is static too.
        """
        rows, size = examples.examples, self._batch_rows
        starts = range(0, len(rows), size)
        source_len = examples.block.source_len
        most = max(len({e.picture for e in rows[start : start + size]}) for start in starts)
        pictures = min(size, 1 << (most - 1).bit_length())  # a power of two, so that splits of one dataset share a compilation
        for start in starts:
            chunk = rows[start : start + size]
            batch: dict[str, Any] = {
                "source_ids": np.full((size, source_len), PAD_ID, np.int32),
                "decoder_ids": np.full((size, target_len), PAD_ID, np.int32),
            }
            batch["source_ids"][:, 0] = batch["decoder_ids"][:, 0] = BOS_ID  # padding sequences read BOS alone
            for q, example in enumerate(chunk):
                sequence = example.sequence
                batch["source_ids"][q, : len(sequence.source_ids)] = sequence.source_ids
                before = sequence.target_ids[: target_len - 1]
                batch["decoder_ids"][q, 1 : len(before) + 1] = before
            if len(examples.images):
                used = sorted({e.picture for e in chunk})
                place = {picture: k for k, picture in enumerate(used)}
                shown = [*used, *[used[0]] * (pictures - len(used))]
                images = self._spread({"images": examples.images[shown], "holes": examples.holes[shown]})
                batch["picture"] = np.zeros(size, np.int32)
                batch["picture"][: len(chunk)] = [place[e.picture] for e in chunk]
                batch["present"] = np.arange(size) < len(chunk)
                features = {"features": self._embed(self._params, self._stats, **images)}
                yield self._spread(batch) | features, len(chunk)
            else:
                yield self._spread(batch), len(chunk)


def _prompts(source_ids: jax.Array) -> jax.Array:
    """source_ids int32 [Q, S], BOS first and EOS last -> what stands between them, int32 [Q, S - 2] right-padded with PAD."""
    inner = source_ids[:, 1:-1]
    return jnp.where((inner == PAD_ID) | (inner == EOS_ID), PAD_ID, inner)


def _prompt_lens(source_ids: np.ndarray) -> np.ndarray:
    """Returns the number of tokens of every prompt, int [Q]."""
    return np.asarray(_prompts(jnp.asarray(source_ids)) != PAD_ID).sum(1)
