"""Evaluation during training: the numbers of the plain evaluation, in the run's metrics, from the state as the loop has it."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.eval import in_loop as module
from ofa_jax.eval import runner
from ofa_jax.eval.world import World
from ofa_jax.models import ofa
from ofa_jax.train.hooks import Evaluate, ProgressLine, WriteMetrics


@pytest.fixture
def small(config):
    """Two sets, one of them teacher-forced."""
    sets = tuple(s for s in config.eval.sets if s.task in ("matching", "text_infilling"))
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, sets=sets, every_steps=2))


def test_numbers_are_those_of_the_plain_evaluation(small, tokenizer, build_row, open_source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_world", lambda config, sets: World(config, tokenizer, build_row, open_source, {}))
    params = jax.jit(lambda: ofa.create(small.model, small.vocab, jax.random.key(0))[1])()
    state = types.SimpleNamespace(params=params, ema=None, stats=ofa.init_stats(small.model))
    hook, metrics, line = Evaluate(module.in_loop(small), every_steps=2), WriteMetrics(tmp_path), ProgressLine(steps=5)
    hook.start(0), metrics.start(0)
    logged = []
    for step in range(6):
        numbers = hook.evaluate(step, state, last=step == 5)
        if numbers:
            logged.append(step)
            for writer in (metrics, line):
                writer.log({"step": step, "data_step": step, "time_s": 1.0, **numbers})
    metrics.close()
    assert logged == [2, 4, 5]  # and after the last step
    graphdef, _ = jax.eval_shape(lambda: ofa.create(small.model, small.vocab, jax.random.key(0)))
    plain = runner.evaluate(
        small, graphdef=graphdef, params=params, stats=state.stats, tokenizer=tokenizer, build_row=build_row, open_source=open_source,
        with_pictures=False,
    )  # fmt: skip
    [first, *_] = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name, found in plain.results.items():
        for metric, result in found.items():
            assert first[f"eval/{metric}/{name}"] == result["value"] and first[f"eval/{metric}/{name}/baseline"] == result["baseline"]
    assert "step 2/5  evaluated: accuracy/matching/scenes" in capsys.readouterr().out


def test_several_processes_are_told_what_to_do_instead(small, monkeypatch):
    monkeypatch.setattr(module.hosts, "count", lambda: 2)
    with pytest.raises(ConfigError, match=r"eval.every_steps: found 2 with 2 processes, expected 0: evaluate beside the run with"):
        module.in_loop(small)
