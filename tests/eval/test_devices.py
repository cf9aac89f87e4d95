"""In float64 the tokens of every way to decode are the same for any number of devices, any layout of the weights and any batch."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ofa_jax.config.decoding import GREEDY, DecodeSetting
from ofa_jax.config.schema import MeshConfig
from ofa_jax.decode.candidates import candidates
from ofa_jax.decode.constraints import Members
from ofa_jax.eval.collect import collect
from ofa_jax.eval.predict import ClosedSet, Predictor
from ofa_jax.eval.runner import chosen_sets
from ofa_jax.models import ofa
from ofa_jax.parallel.mesh import make_mesh, replicated
from ofa_jax.parallel.rules import param_shardings
from ofa_jax.vocab.trie import build_trie

pytestmark = pytest.mark.full
ANSWERS = ("cat", "dog", "tree", "1", "2", "the old tree")
SETTINGS = (
    GREEDY,
    DecodeSetting("beam", method="beam", beam=3, max_len=8, no_repeat_ngram=2),
    DecodeSetting("drawn", method="sample", beam=2, max_len=8, top_p=0.9, seed=4),
    DecodeSetting("trie", method="beam", beam=3, answers="given", prompt="source"),
    DecodeSetting("scored", method="score", answers="given"),
)


@pytest.fixture(scope="module", autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def examples(config, build_row, open_source):
    return collect(config, chosen_sets(config, ["vqa/scenes"])[0], build_row=build_row, open_source=open_source)


@pytest.fixture(scope="module")
def closed(tokenizer):
    sequences = tuple(tuple(ids) for ids in tokenizer.encode_batch([f" {answer}" for answer in ANSWERS]))
    return ClosedSet(ANSWERS, sequences, Members.of(build_trie(sequences)), candidates(sequences))


@pytest.fixture(scope="module")
def weights(config):
    """Weights so large that outputs differ from example to example."""
    model = dataclasses.replace(config.model, init_std=0.4)
    graphdef, params = ofa.create(model, config.vocab, jax.random.key(1), precision="f64")
    return graphdef, params, ofa.init_stats(model, precision="f64")


def decoded(weights, config, examples, closed, *, rows, mesh=None, shard=False):
    """(ids, scores) of every setting."""
    graphdef, params, stats = weights
    if mesh is not None:
        params = jax.device_put(params, param_shardings(params, mesh) if shard else replicated(mesh))
        stats = jax.device_put(stats, replicated(mesh))
    predictor = Predictor(graphdef, params, stats, vocab=config.vocab, batch_rows=rows)
    found = {s.name: predictor.decode(examples, s, closed if s.answers else None) for s in SETTINGS}
    return {name: ([ids.tolist() for ids in one.ids], one.scores) for name, one in found.items()}


@pytest.fixture(scope="module")
def alone(weights, config, examples, closed):
    found = decoded(weights, config, examples, closed, rows=6)
    for name, (ids, scores) in found.items():  # the likeliest answer of a closed set may be one for all, its score is not
        differ = len({tuple(row) for row in ids}) > 1 or len(np.unique(np.round(scores, 6))) > 1
        assert differ, f"{name} says the same of every example, which shows nothing"
    return found


@pytest.mark.parametrize(
    ("rows", "layout", "shard"),
    [
        (4, None, False),
        (8, {"data": 8}, False),
        (3, {"data": 2, "fsdp": 2, "tensor": 2}, True),
    ],
)
def test_tokens_are_the_same(weights, config, examples, closed, alone, rows, layout, shard):
    mesh = None if layout is None else make_mesh(MeshConfig(**layout))
    found = decoded(weights, config, examples, closed, rows=rows, mesh=mesh, shard=shard)
    for name, (ids, scores) in alone.items():
        assert found[name][0] == ids, name
        np.testing.assert_allclose(found[name][1], scores, rtol=1e-9, err_msg=name)
