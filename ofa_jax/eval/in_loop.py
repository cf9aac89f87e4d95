"""Evaluation during training: the sets of the config, by the code of `launch/eval.py`, as numbers for the run's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.schema import RunConfig
from ofa_jax.eval.collect import Examples, collect
from ofa_jax.eval.predict import Predictor
from ofa_jax.eval.runner import Judge, chosen_sets, decode_set
from ofa_jax.eval.ways import ways_of
from ofa_jax.eval.world import load_world
from ofa_jax.models import ofa
from ofa_jax.parallel import hosts


def in_loop(config: RunConfig) -> Callable[[Any], dict[str, float]]:
    """Returns a function from a train state to `eval/<metric>/<set>` -> value and `.../baseline`, decoded as `eval.decode` says.

    It takes the average of the weights where the state keeps one. Examples are collected at its first call and kept. Raises
    ConfigError without sets, or with several processes, whose parameters are parts of one array.
    """
    if hosts.count() > 1:
        raise ConfigError(
            f"eval.every_steps: found {config.eval.every_steps} with {hosts.count()} processes, expected 0: evaluate beside the run with "
            "launch/eval.py --watch"
        )
    sets = chosen_sets(config)
    world = load_world(config, sets)
    graphdef, _ = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0), precision=config.precision))
    model = Predictor(graphdef, None, None, vocab=config.vocab, batch_rows=config.eval.batch_rows)
    judge = Judge(config, tokenizer=world.tokenizer, build_row=world.build_row, open_source=world.open_source)
    ways = ways_of(world, sets)
    kept: dict[str, Examples] = {}

    def measure(state: Any) -> dict[str, float]:
        predictor = model.with_params(state.params if state.ema is None else state.ema, state.stats)
        numbers = {}
        for eval_set in sets:
            if eval_set.name not in kept:
                kept[eval_set.name] = collect(config, eval_set, build_row=world.build_row, open_source=world.open_source)
            examples = kept[eval_set.name]
            results, _ = judge(examples, decode_set(predictor, examples, ways.get(eval_set.name)))
            for metric, found in results.items():
                numbers[f"eval/{metric}/{eval_set.name}"] = found["value"]
                numbers[f"eval/{metric}/{eval_set.name}/baseline"] = found["baseline"]
        return numbers

    return measure
