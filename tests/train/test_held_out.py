"""The held-out loss: the numbers of the objective on fixed batches, the same on any mesh, by one program, from the averaged weights."""

import dataclasses

import jax
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from ofa_jax.config.schema import MeshConfig
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.held_out import MIN_SEQUENCES, HeldOutLoss
from ofa_jax.train.hooks import Evaluate
from ofa_jax.train.objective import make_objective
from ofa_jax.train.state import init_state
from ofa_jax.train.step import num_compilations, put_batch

TEXT = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]))
pytestmark = pytest.mark.usefixtures("compiled_programs")


def measured(config, devices, *, times=1, num_batches=2):
    state = init_state(config, make_mesh(config.mesh, devices=devices))
    source = Batches(config)
    measure = HeldOutLoss(config, source, task_names=TASK_NAMES, devices=devices)
    measure.num_batches = num_batches
    return [measure(state) for _ in range(times)], measure, source, state


def test_numbers_are_the_objectives_on_the_same_batches_every_time():
    (first, again), measure, source, state = measured(TEXT, jax.devices()[:1], times=2)
    assert first == again and source.taken == [0, 1] and source.closed == 1  # made once
    assert num_compilations(measure.program) == 1
    assert set(first) == {"held_out/loss", "held_out/nll/text_infilling"}
    objective, losses, nll, tokens = make_objective(TEXT), [], 0.0, 0.0
    for step in (0, 1):
        blocks = put_batch(Batches(TEXT).batch(step), measure.mesh)
        loss, report = objective.loss(state.ema, state.stats, blocks, None, num_tasks=4)
        losses.append(float(loss))
        nll, tokens = nll + float(report.groups["images_text"].task_nll[3]), tokens + float(report.groups["images_text"].task_tokens[3])
    assert first["held_out/loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert first["held_out/nll/text_infilling"] == pytest.approx(nll / tokens, rel=1e-5)


def test_the_average_of_the_weights_is_what_counts():
    _, measure, _, state = measured(TEXT, jax.devices()[:1])
    other = dataclasses.replace(state, params=jax.tree.map(lambda a: a * 0, state.params))
    assert measure(other) == measure(state)
    plain = dataclasses.replace(other, ema=None)
    assert measure(plain)["held_out/loss"] != measure(state)["held_out/loss"]


@pytest.mark.full
def test_eight_devices_say_what_one_does():
    [[one], [eight]] = (
        measured(config, devices)[0]
        for config, devices in ((CONFIG, jax.devices()[:1]), (dataclasses.replace(CONFIG, mesh=MeshConfig(2, 2, 2)), jax.devices()[:8]))
    )
    assert set(one) == set(eight) == {"held_out/loss", *(f"held_out/nll/{name}" for name in TASK_NAMES)}
    for name in one:
        assert eight[name] == pytest.approx(one[name], rel=2e-5), name


def test_small_batches_are_more():
    measure = HeldOutLoss(TEXT, Batches(TEXT), task_names=TASK_NAMES, devices=jax.devices()[:1])
    assert measure.num_batches == MIN_SEQUENCES // 8
    hook = Evaluate(measure, every_steps=10)
    hook.start(10)
    assert [step for step in range(10, 31) if hook.is_evaluation(step, last=False)] == [20, 30]
