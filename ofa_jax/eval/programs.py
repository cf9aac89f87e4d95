"""The compiled programs of decoding, which evaluation and typed instructions share: pictures, searches, teacher forcing, closed sets.

All weights are arguments, so checkpoints of one model share the compilations; one program is compiled a shape and `Search`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ofa_jax.config.decoding import DecodeSetting
from ofa_jax.config.schema import EOS_ID, PAD_ID, VocabConfig
from ofa_jax.decode.beam import Hypotheses, beam_search
from ofa_jax.decode.candidates import Candidates, score_candidates
from ofa_jax.decode.constraints import Constraint, IdRange
from ofa_jax.decode.rules import DecodeConfig
from ofa_jax.decode.sample import sample
from ofa_jax.decode.search import greedy
from ofa_jax.models.decoder import CodeRows
from ofa_jax.tasks.base import Prompt

# A batch of Q sequences: "source_ids" int32 [Q, S], BOS first, EOS last and PAD behind; where there are pictures also "features"
# (of `Programs.embed`) of P pictures, "picture" int32 [Q], the picture of each sequence, and "present" bool [Q], whether it has one.
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Search:
    """What is static in a search: one of these is one program."""

    method: Literal["greedy", "beam", "sample"]
    rules: DecodeConfig
    top_k: int = 0
    top_p: float = 0.0
    prompt_len: int = 0  # places of the decoder that are forced to repeat the source (official `prev_output`); part of rules.max_len
    codes: bool = False  # image codes are written, at their places in the picture

    @classmethod
    def of(cls, setting: DecodeSetting, *, max_len: int, min_len: int, prompt_len: int = 0, codes: bool = False, **rules: Any) -> Search:
        """Returns the search of a checked setting that writes `min_len` to `max_len` tokens; `rules` are further ones of `DecodeConfig`.

        Raises ValueError for rules that exclude each other.
        """
        one = setting.method == "greedy"
        found = DecodeConfig(
            beam=1 if one else setting.beam, max_len=max_len + prompt_len, min_len=min_len, lenpen=setting.lenpen,
            temperature=setting.temperature, no_repeat_ngram=setting.no_repeat_ngram, normalise=setting.normalise, **rules,
        )  # fmt: skip
        assert setting.method != "score"  # closed sets are scored by `Programs.score`
        return cls(setting.method, found, setting.top_k, setting.top_p, prompt_len, codes)


class Programs:
    """The programs of one model. `graphdef` is that of `models.ofa.create`.

    mesh: that of the weights, where several devices have parts of them. Every device gathers them once a call and then works on its own
    sequences; left alone, XLA would send activations at every token instead.
    """

    def __init__(self, graphdef: Any, *, vocab: VocabConfig, mesh: Mesh | None = None):
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())

        def merge(params: Any) -> Any:
            if whole is not None:
                params = jax.tree.map(lambda value: jax.lax.with_sharding_constraint(value, whole), params)
            return nnx.merge(graphdef, params)

        def encode(params: Any, batch: Batch) -> tuple[Any, Any]:
            model = merge(params)
            features = batch["features"][batch["picture"]] if "features" in batch else None
            return model, model.encode(batch["source_ids"], features=features, image_mask=batch.get("present"), key=None)

        def code_rows(num: int, codes: bool) -> tuple[jax.Array | None, CodeRows]:
            return (jnp.ones(num, bool), "all") if codes else (None, "none")

        @jax.jit
        def embed(params: Any, stats: Any, images: jax.Array, holes: jax.Array) -> jax.Array:
            return merge(params).embed_images(images, holes, stats=stats, train=False, key=None)[0]

        @functools.partial(jax.jit, static_argnames="codes")
        def forced(params: Any, batch: Batch, decoder_ids: jax.Array, *, codes: bool) -> jax.Array:
            model, encoded = encode(params, batch)
            mask = jnp.full(batch["source_ids"].shape[0], codes)
            logits = model.logits(model.decode(encoded, decoder_ids, mask, key=None, code_rows="all" if codes else "none"))
            if codes:  # a code position may only hold a code, as in OFA's image generation
                ids = jnp.arange(logits.shape[-1])
                logits = jnp.where((ids >= vocab.first_code_id) & (ids < vocab.first_bin_id), logits, -jnp.inf)
            return logits.argmax(-1).astype(jnp.int32)

        @functools.partial(jax.jit, static_argnames="how")
        def search(params: Any, batch: Batch, constraint: Constraint, seed: jax.Array, numbers: jax.Array, *, how: Search) -> Hypotheses:
            model, encoded = encode(params, batch)
            mask, rows = code_rows(batch["source_ids"].shape[0], how.codes)
            prefix = prompts(batch["source_ids"])[:, : how.prompt_len] if how.prompt_len else None
            given: dict[str, Any] = {"config": how.rules, "prefix_ids": prefix, "constraint": constraint, "code_rows": rows}
            if how.method == "sample":
                keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(numbers)
                return sample(model, encoded, mask, keys, top_k=how.top_k, top_p=how.top_p, **given)
            if how.method == "beam":
                return beam_search(model, encoded, mask, **given)
            allowed = (constraint.start_id, constraint.stop_id) if isinstance(constraint, IdRange) else None
            ids = greedy(
                model, encoded, mask, max_len=how.rules.max_len, min_len=how.rules.min_len, allowed=allowed, code_rows=rows
            )  # fmt: skip
            return Hypotheses(ids[:, None], jnp.full((len(ids), 1), jnp.nan), jnp.sum(ids != PAD_ID, 1, dtype=jnp.int32)[:, None])

        @functools.partial(jax.jit, static_argnames="prompt")
        def score(params: Any, batch: Batch, answers: Candidates, *, prompt: Prompt) -> jax.Array:
            model, encoded = encode(params, batch)
            read = None if prompt == "none" else prompts(batch["source_ids"], with_eos=prompt == "source_eos")
            return score_candidates(model, encoded, answers, prompt_ids=read)

        # (params, stats, images uint8 [P, px, px, 3], holes bool [P]) -> features of each picture; a hole hides its middle.
        self.embed = embed
        # (params, batch, decoder_ids int32 [Q, T], codes=) -> the likeliest id at every place given those before it, int32 [Q, T].
        self.forced = forced
        # (params, batch, constraint, seed uint32, numbers uint32 [Q], how=Search) -> `Hypotheses`. Draws of a sequence depend on the seed
        # and its number alone. A greedy search gives no scores (NaN) and knows lengths and a range, no other rule or constraint.
        self.search = search
        # (params, batch, answers, prompt=) -> the log-probability of every answer, [Q, answers].
        self.score = score


def prompts(source_ids: jax.Array, *, with_eos: bool = False) -> jax.Array:
    """source_ids int32 [Q, S], BOS first and EOS last -> what stands between them, int32 [Q, S - 2] right-padded with PAD; with_eos: with
    EOS, [Q, S - 1]."""
    if with_eos:
        return source_ids[:, 1:]
    inner = source_ids[:, 1:-1]
    return jnp.where((inner == PAD_ID) | (inner == EOS_ID), PAD_ID, inner)


def prompt_lens(source_ids: np.ndarray) -> np.ndarray:
    """Returns the number of tokens of every prompt, int [Q]."""
    return np.asarray(prompts(jnp.asarray(source_ids)) != PAD_ID).sum(1)
