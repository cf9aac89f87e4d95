"""Runs the model over examples in batches of one static shape a set; the only JAX of the evaluation.

Every picture of a batch goes through the ResNet once, however many questions of it the batch asks.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ofa_jax.config.decoding import GREEDY, DecodeSetting
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, VocabConfig
from ofa_jax.decode.candidates import Candidates
from ofa_jax.decode.constraints import Constraint, IdRange, Members
from ofa_jax.eval.collect import BOX_IDS, Examples
from ofa_jax.eval.programs import Programs, Search, prompt_lens
from ofa_jax.tasks.base import Prompt


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
    others: list[list[np.ndarray]] = dataclasses.field(default_factory=list)  # further hypotheses an example, best first, if any are made
    other_scores: list[list[float]] = dataclasses.field(default_factory=list)
    rank_scores: np.ndarray | None = None  # float64 [examples]: what the setting's scorer gave to `ids`


def prompt_of(examples: Examples, setting: DecodeSetting) -> Prompt:
    """Returns what the decoder reads before it answers: what the task was trained with, else what the setting says."""
    return setting.prompt if examples.task.prompt == "none" else examples.task.prompt


class Predictor:
    """Decodes examples with one set of parameters. `graphdef`, `params` and `stats` are those of `models.ofa`."""

    def __init__(self, graphdef: Any, params: Any, stats: Any, *, vocab: VocabConfig, batch_rows: int):
        self._rows, self._vocab = batch_rows, vocab
        self._graphdef = graphdef
        self._made: dict[Mesh | None, Programs] = {}  # shared by all predictors of the model
        self._set_params(params, stats)

    def with_params(self, params: Any, stats: Any) -> Predictor:
        """Returns a predictor of the same model with other weights; it shares the compiled programs of those that are placed alike."""
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
        if self._mesh not in self._made:
            self._made[self._mesh] = Programs(self._graphdef, vocab=self._vocab, mesh=self._mesh)
        self._programs = self._made[self._mesh]
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

        closed: the answers that `setting.answers` names, or None where it names none. A box is exactly four ids whatever the setting
        says, as in the official grounding evaluation.
        """
        if setting.method == "score":
            assert closed is not None  # `sweep.points` gives a closed set to every setting that names one
            return self._best_answers(examples, closed, prompt=prompt_of(examples, setting))
        prompt = prompt_of(examples, setting)
        if prompt == "source_eos":
            raise ConfigError(
                f"decode {setting.name}: found method {setting.method} for task {examples.task.name}, expected score with answers=task: "
                "its answer is one word behind the end of the question, where nothing else can be written"
            )
        max_len = setting.max_len or examples.block.target_len
        max_len, min_len = (BOX_IDS, BOX_IDS) if examples.task.output == "box" else (max_len, min(setting.min_len, max_len))
        width = 0 if prompt == "none" else examples.block.source_len - 2  # a source without its BOS and EOS
        if prompt == "source" and setting.method == "greedy":
            setting = dataclasses.replace(setting, method="beam", beam=1)  # the same tokens, by the search that knows forced ones
        how = Search.of(setting, max_len=max_len, min_len=min_len, prompt_len=width)
        return self._search(examples, how, closed.members if closed else Constraint(), seed=setting.seed)

    def free(self, examples: Examples) -> list[np.ndarray]:
        """Greedy output ids, int32 [T] an example, to be read up to EOS; T is the block's target length, or four of a box."""
        return self.decode(examples).ids

    def generate(self, examples: Examples, setting: DecodeSetting = GREEDY) -> Decoded:
        """Image codes decoded without seeing any true code, int32 [codes] an example, as ids; every id is a code, and there are as many as
        the model's grid has, whatever lengths the setting has."""
        num_codes = len(examples.examples[0].sequence.target_ids)
        how = Search.of(setting, max_len=num_codes, min_len=num_codes, codes=True)
        found = self._search(examples, how, IdRange(self._vocab.first_code_id, self._vocab.first_bin_id), seed=setting.seed)
        others = [[ids[:num_codes] for ids in row] for row in found.others]
        return dataclasses.replace(found, ids=[ids[:num_codes] for ids in found.ids], others=others)

    def forced(self, examples: Examples) -> list[np.ndarray]:
        """The likeliest id at every target position given the true ids before it, int32 [target length] an example, EOS left out."""
        codes = examples.task.output == "codes"
        longest = max(len(e.sequence.target_ids) for e in examples.examples)
        target_len = longest if codes else examples.block.target_len
        out: list[np.ndarray] = []
        for batch, begin, count in self._batches(examples):
            rows = examples.examples[begin : begin + count]
            decoder_ids = np.full((self._batch_rows, target_len), PAD_ID, np.int32)
            decoder_ids[:, 0] = BOS_ID
            for row, example in zip(decoder_ids, rows, strict=False):
                before = example.sequence.target_ids[: target_len - 1]
                row[1 : len(before) + 1] = before
            ids = np.asarray(self._programs.forced(self._params, batch, self._spread({"ids": decoder_ids})["ids"], codes=codes))
            out.extend(row[: len(e.sequence.target_ids)] for row, e in zip(ids, rows, strict=False))
        return out

    def _search(self, examples: Examples, how: Search, constraint: Constraint, *, seed: int = 0) -> Decoded:
        found = Decoded([], np.zeros(len(examples.examples)))
        for batch, begin, count in self._batches(examples):
            numbers = np.zeros(self._batch_rows, np.uint32)
            numbers[:count] = [e.number for e in examples.examples[begin : begin + count]]
            spread = self._spread({"numbers": numbers})["numbers"]
            hypotheses = self._programs.search(self._params, batch, constraint, np.uint32(seed), spread, how=how)
            ids, scores, lengths = (np.asarray(x)[:count] for x in (hypotheses.sequences, hypotheses.scores, hypotheses.lengths))
            skip = prompt_lens(np.asarray(batch["source_ids"]))[:count] if how.prompt_len else np.zeros(count, int)
            for k in range(count):
                kept = [j for j in range(1, ids.shape[1]) if lengths[k, j]]
                found.ids.append(ids[k, 0, skip[k] :])
                found.scores[begin + k] = scores[k, 0]
                found.others.append([ids[k, j, skip[k] :] for j in kept])
                found.other_scores.append([float(scores[k, j]) for j in kept])
        return found

    def _best_answers(self, examples: Examples, closed: ClosedSet, *, prompt: Prompt) -> Decoded:
        ids: list[np.ndarray] = []
        scores: list[float] = []
        for batch, _, count in self._batches(examples):
            found = np.asarray(self._programs.score(self._params, batch, closed.candidates, prompt=prompt), np.float64)[:count]
            best = found.argmax(1)
            ids += [np.array([*closed.sequences[i], EOS_ID], np.int32) for i in best]
            scores += found[np.arange(count), best].tolist()
        return Decoded(ids, np.array(scores))

    def _batches(self, examples: Examples) -> Iterator[tuple[dict[str, Any], int, int]]:
        """Batches of `batch_rows` sequences in order, the last one padded, the index of each one's first example, and their number.

        Sequences of one picture lie next to each other, so few pictures are needed; their number is static too.
        """
        rows, size = examples.examples, self._batch_rows
        starts = range(0, len(rows), size)
        most = max(len({e.picture for e in rows[start : start + size]}) for start in starts)
        pictures = min(size, 1 << (most - 1).bit_length())  # a power of two, so that splits of one dataset share a compilation
        for start in starts:
            chunk = rows[start : start + size]
            batch: dict[str, Any] = {"source_ids": np.full((size, examples.block.source_len), PAD_ID, np.int32)}
            batch["source_ids"][:, 0] = BOS_ID  # padding sequences read BOS alone
            for q, example in enumerate(chunk):
                batch["source_ids"][q, : len(example.sequence.source_ids)] = example.sequence.source_ids
            if len(examples.images):
                used = sorted({e.picture for e in chunk})
                place = {picture: k for k, picture in enumerate(used)}
                shown = [*used, *[used[0]] * (pictures - len(used))]
                images = self._spread({"images": examples.images[shown], "holes": examples.holes[shown]})
                batch["picture"] = np.zeros(size, np.int32)
                batch["picture"][: len(chunk)] = [place[e.picture] for e in chunk]
                batch["present"] = np.arange(size) < len(chunk)
                features = {"features": self._programs.embed(self._params, self._stats, **images)}
                yield self._spread(batch) | features, start, len(chunk)
            else:
                yield self._spread(batch), start, len(chunk)
