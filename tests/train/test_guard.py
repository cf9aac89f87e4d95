"""The guard: bad batches, poisoned by their confidence weights, change nothing; a row of them ends the run or takes it back."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_case import BLOCKS, CONFIG, TASK_NAMES, Batches

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.load import run_folder
from ofa_jax.config.schema import CheckpointConfig, GuardConfig
from ofa_jax.monitor.exits import DivergenceError, reason_of
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.guard import BadSteps, element_ranges, initial_guard, judge
from ofa_jax.train.hooks import Evaluate, Hook, WriteDigests, WriteMetrics
from ofa_jax.train.loop import train
from ofa_jax.train.state import abstract_state, init_state
from ofa_jax.train.step import make_train_step, num_compilations, put_batch

pytestmark = pytest.mark.usefixtures("compiled_programs")
GUARD = GuardConfig(loss_factor=3.0, norm_factor=10.0, deviations=6.0, window=2, max_in_a_row=2)
# Pictures, sampled patches, dropout, running statistics and the average all take part in what must stay as it is.
ONE_BLOCK = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[:1]), checkpoint=CheckpointConfig(3, 0.0, 9), guard=GUARD, steps=7
)
# Runs need less, to trace and to save.
TEXT = dataclasses.replace(
    ONE_BLOCK,
    data=dataclasses.replace(CONFIG.data, blocks=BLOCKS[2:]),
    optimizer=dataclasses.replace(CONFIG.optimizer, ema_decay=0.0),
    steps=6,
)
NAN, SPIKE, HUGE = float("nan"), 1e3, 1e25  # HUGE: the loss is a number, the squares of its gradient are not


class Poisoned(Batches):
    """Made-up batches; those of some data steps have their confidence weights multiplied."""

    def __init__(self, config, poison):
        super().__init__(config)
        self.poison = poison

    def batch(self, data_step):
        batch = super().batch(data_step)
        if data_step not in self.poison:
            return batch
        weight = np.float32(self.poison[data_step])
        blocks = {name: block._replace(confidence=block.confidence * weight) for name, block in batch.blocks.items()}
        return batch._replace(blocks=blocks)


def of_run(tmp_path, name="run", **guard):
    changed = dataclasses.replace(TEXT.guard, **guard)
    return dataclasses.replace(TEXT, workdir=str(tmp_path / name), guard=changed)


def run(config, poison, hooks=(), **options):
    options = {"task_names": TASK_NAMES, "devices": jax.devices()[:1], **options}
    return train(config, Poisoned(config, poison), list(hooks), **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_same(a, b):
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


# -- the verdict


def follow(pairs, config=GUARD):
    """The verdicts of steps with these (loss, norm)."""
    guard, verdicts = initial_guard(), []
    for loss, norm in pairs:
        guard, verdict = judge(guard, loss=jnp.float32(loss), grad_norm=jnp.float32(norm), config=config)
        verdicts.append([name for name, holds in zip("lnLN", verdict.reasons, strict=True) if holds])
    return guard, verdicts


def test_before_a_window_only_what_is_not_finite_is_bad():
    config = dataclasses.replace(GUARD, deviations=0.0)
    guard, verdicts = follow([(1, 1), (math.inf, 1), (900, 1), (900 * 900, 1), (NAN, NAN)], config)
    assert verdicts == [[], ["l"], [], ["L"], ["l", "n"]]
    assert int(guard.in_a_row) == 2 and int(guard.loss.count) == 2


def test_the_usual_level_is_the_mean_and_variance_of_logarithms_of_accepted_steps():
    draw = np.random.default_rng(0)
    values = np.exp(draw.normal(size=40))
    steady = GuardConfig(0.0, 0.0, 6.0, window=40)
    guard, _ = follow([(v, 2.0) for v in values], steady)
    np.testing.assert_allclose(guard.loss.mean, np.mean(np.log(values)), rtol=1e-5)
    np.testing.assert_allclose(guard.loss.var, np.var(np.log(values)), rtol=1e-4)
    np.testing.assert_allclose(guard.norm.mean, math.log(2), rtol=1e-6)
    mean = var = 0.0
    for n, x in enumerate(np.log(values), 1):
        weight = 1 / min(n, 8)
        mean, var = mean + weight * (x - mean), (1 - weight) * (var + weight * (x - mean) ** 2)
    guard, _ = follow([(v, 2.0) for v in values], dataclasses.replace(steady, window=8))
    np.testing.assert_allclose([guard.loss.mean, guard.loss.var], [mean, var], rtol=1e-4)


def test_a_spike_is_above_the_factor_and_above_the_deviations():
    calm = [(2.0, 5.0)] * 4
    assert follow([*calm, (5.9, 49.0)])[1][-1] == [] and follow([*calm, (6.1, 51.0)])[1][-1] == ["L", "N"]
    assert follow([*calm, (1e-9, 1e-9)])[1][-1] == [], "what is small is no fault"
    noisy = [(v, 5.0) for v in (1.0, 3.0) * 8]
    assert follow([*noisy, (11.0, 5.0)])[1][-1] == [], "six deviations of these logarithms are more than the factor"
    assert follow([*noisy, (300.0, 5.0)])[1][-1] == ["L"]
    off = dataclasses.replace(GUARD, loss_factor=0.0, norm_factor=0.0)
    assert follow([*calm, (1e9, 1e9)], off)[1][-1] == []


def test_a_loss_below_zero_is_judged_by_being_finite_alone():
    guard, verdicts = follow([(2, 1), (2, 1), (-0.5, 1), (400, 1), (-1, 1), (NAN, 1)])
    assert verdicts == [[], [], [], [], [], ["l"]]
    assert int(guard.loss.count) == 0 and int(guard.norm.count) == 2


def test_ranges_of_elements():
    assert element_ranges(np.array([4, 5, 6, 9, 11, 12])) == [[4, 6], [9, 9], [11, 12]]
    assert element_ranges(np.arange(0)) == []


# -- the step


@pytest.fixture(scope="module")
def stepped(compiled_programs):
    """The states of a run of compiled steps over data steps 0 to 6 with three bad ones, and of one that never drew those."""
    mesh = make_mesh(ONE_BLOCK.mesh, devices=jax.devices()[:1])
    step = make_train_step(ONE_BLOCK, mesh, num_tasks=len(TASK_NAMES))
    poison = {2: NAN, 4: SPIKE, 5: HUGE}
    source = Poisoned(ONE_BLOCK, poison)
    results = []
    for passes_over in ((), tuple(poison)):
        state, verdicts = init_state(ONE_BLOCK, mesh), []
        for data_step in range(7):
            if data_step in passes_over:
                state = dataclasses.replace(state, data_step=state.data_step + 1)
                continue
            state, metrics = step(state, put_batch(source.batch(data_step), mesh))
            verdicts.append(jax.device_get((metrics.loss, metrics.grad_norm, metrics.verdict, metrics.step)))
        results.append((jax.device_get(state), verdicts))
    return results, num_compilations(step)


def test_a_bad_batch_leaves_the_run_of_one_that_never_drew_it(stepped):
    (bad, verdicts), (clean, _) = stepped[0]
    assert [bool(v.accepted) for _, _, v, _ in verdicts] == [True, True, False, True, False, False, True]
    assert [int(step) for *_, step in verdicts] == [1, 2, 2, 3, 3, 3, 4]
    assert [v.reasons.tolist() for _, _, v, _ in verdicts if not v.accepted] == [
        [True, True, False, False],
        [False, False, True, True],
        [False, True, True, True],
    ]
    assert [int(v.in_a_row) for _, _, v, _ in verdicts] == [0, 0, 1, 0, 1, 2, 0]
    assert np.isfinite(verdicts[5][0]), "the loss of an infinite gradient was finite"
    assert (int(bad.step), int(bad.data_step)) == (4, 7)
    assert_same(bad, clean)  # parameters, moments with their counts, statistics, average, guard and counters


def test_one_program_serves_good_and_bad_steps(stepped):
    assert stepped[1] == 1


@pytest.mark.full
def test_eight_devices_decide_as_one(stepped):
    mesh = make_mesh(ONE_BLOCK.mesh, devices=jax.devices()[:8])
    step, state = make_train_step(ONE_BLOCK, mesh, num_tasks=len(TASK_NAMES)), init_state(ONE_BLOCK, mesh)
    source, found = Poisoned(ONE_BLOCK, {2: NAN, 4: SPIKE, 5: HUGE}), []
    for data_step in range(7):
        state, metrics = step(state, put_batch(source.batch(data_step), mesh))
        found.append(jax.device_get(metrics.verdict))
    (_, expected), _ = stepped[0]
    for one, eight in zip((v for _, _, v, _ in expected), found, strict=True):
        assert one.reasons.tolist() == eight.reasons.tolist() and one.in_a_row == eight.in_a_row
        np.testing.assert_allclose(one.usual_loss, eight.usual_loss, rtol=1e-4)
        np.testing.assert_allclose(one.usual_norm, eight.usual_norm, rtol=1e-3)
    assert int(state.step) == 4


# -- the run


class Events(Hook):
    """What a hook hears, and a signal before the batch of a data step."""

    def __init__(self, kill_at=None):
        self.records, self.batches, self.rewinds, self.evaluated, self.kill_at = [], [], [], [], kill_at

    def batch(self, batch):
        self.batches.append(batch.data_step)
        if batch.data_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def log(self, record):
        self.records.append(dict(record))

    def rewind(self, step, *, data_step):
        self.rewinds.append((step, data_step))


def test_a_run_makes_its_updates_in_spite_of_bad_batches(tmp_path, capsys):
    config = of_run(tmp_path)
    workdir, events, measured = run_folder(config), Events(), []
    evaluate = Evaluate(lambda state: {"eval/step": measured.append(int(state.step)) or 1}, every_steps=2)
    result = run(config, {2: NAN, 4: SPIKE, 7: NAN}, [events, WriteMetrics(workdir), WriteDigests(workdir, host=0), evaluate])
    assert (result.step, result.stopped) == (6, False)
    assert (int(result.state.step), int(result.state.data_step)) == (6, 9)
    assert measured == [2, 4, 6], "each with the state of its step"
    records = [record for record in events.records if "loss/total" in record]
    assert [(r["step"], r["data_step"]) for r in records] == [(1, 0), (2, 1), (3, 3), (4, 5), (5, 6), (6, 8)]
    assert [r.get("guard/skipped_steps", 0) for r in records] == [0, 0, 1, 1, 0, 1]
    assert all(np.isfinite(r["loss/total"]) for r in records)
    assert CheckpointManager(workdir, read_only=True).steps() == [3, 6]
    bad = lines(workdir / "bad_steps.jsonl")
    assert [(b["step"], b["data_step"], b["in_a_row"]) for b in bad] == [(3, 2, 1), (4, 4, 1), (6, 7, 1)]
    assert bad[0]["loss"] == "nan" and bad[0]["reasons"] == ["loss not finite", "gradient not finite"]
    assert bad[1]["loss"] > 100 * bad[1]["usual_loss"] > 0
    assert bad[1]["elements"] == {"text": [[0, 7]]}
    assert [line["data_step"] for line in lines(workdir / "batches_0.jsonl")] == list(range(9))
    printed = capsys.readouterr().out
    assert "bad step: update 3 (data_step 2) was skipped: loss not finite, gradient not finite (loss nan" in printed
    assert "launch/show.py --config=... --data_step=4" in printed


@pytest.mark.full
def test_a_row_of_bad_steps_ends_the_run(tmp_path):
    config = of_run(tmp_path)
    workdir = run_folder(config)
    with pytest.raises(
        DivergenceError, match=r"update 4: found 2 bad steps in a row \(data_step 3 to 4, the last: loss not finite"
    ) as error:
        run(config, {3: SPIKE, 4: NAN, 5: NAN})
    assert "gone back 0 times of guard.rewinds=0" in str(error.value) and str(workdir / "bad_steps.jsonl") in str(error.value)
    assert reason_of(error.value) == "nan"
    assert [line["data_step"] for line in lines(workdir / "bad_steps.jsonl")] == [3, 4]
    assert CheckpointManager(workdir, read_only=True).steps() == [3]
    with pytest.raises(DivergenceError, match="data_step 3 to 4"):
        run(config, {3: SPIKE, 4: NAN, 5: NAN})
    assert [line["data_step"] for line in lines(workdir / "bad_steps.jsonl")] == [3, 4], "the second run made them again"
    more = dataclasses.replace(config, guard=dataclasses.replace(config.guard, max_in_a_row=4))
    assert run(more, {3: SPIKE, 4: NAN, 5: NAN}).step == 6, "the guard may change on resume"


ROW = {4: SPIKE, 5: NAN}
REWIND = {
    "from_step": 4,
    "to_step": 3,
    "skipped_data_steps": [3, 5],
    "why": "2 bad steps in a row, the last: loss not finite, gradient not finite",
}


@pytest.fixture(scope="module")
def rewound(tmp_path_factory, compiled_programs):
    """A run that goes back once, to step 3, and on with data step 6."""
    config, events = of_run(tmp_path_factory.mktemp("rewound"), rewinds=1), Events()
    workdir = run_folder(config)
    result = run(config, ROW, [events, WriteMetrics(workdir), WriteDigests(workdir, host=0)])
    return config, jax.device_get(result.state), events


@pytest.mark.full
def test_a_rewind_goes_on_from_the_checkpoint_with_later_batches(rewound):
    config, state, events = rewound
    workdir = run_folder(config)
    assert (int(state.step), int(state.data_step)) == (6, 9)
    assert events.rewinds == [(3, 6)]
    # The batch of data step 6 was under way when the row was known; it belonged to what was given up, and came again.
    assert events.batches == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8]
    assert [line["data_step"] for line in lines(workdir / "batches_0.jsonl")] == list(range(9))
    logged = [(line["step"], line["data_step"]) for line in lines(workdir / "metrics.jsonl")]
    assert logged == [(1, 0), (2, 1), (3, 2), (4, 6), (5, 7), (6, 8)], "step 4 of the first way is gone"
    listed = lines(workdir / "bad_steps.jsonl")
    assert [line["data_step"] for line in listed] == [4, 5, 5] and listed[-1]["rewind"] == REWIND
    manager = CheckpointManager(workdir, read_only=True)
    assert {step: manager.facts(step)["rewinds"] for step in manager.steps()} == {3: [], 6: [REWIND]}


@pytest.mark.full
def test_a_rewound_run_is_the_run_that_never_drew_what_was_skipped(rewound):
    config, state, _ = rewound
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    step, clean = make_train_step(config, mesh, num_tasks=len(TASK_NAMES)), init_state(config, mesh)
    for data_step in (0, 1, 2, 6, 7, 8):
        clean = dataclasses.replace(clean, data_step=jnp.int32(data_step))
        clean, _ = step(clean, put_batch(Batches(config).batch(data_step), mesh))
    assert_same(state, jax.device_get(clean))


@pytest.mark.full
@pytest.mark.parametrize("kill_at", [4, 5, 7])
def test_a_run_stopped_in_a_row_or_behind_a_rewind_decides_the_same(rewound, tmp_path, kill_at):
    """The signal comes in the first bad step, in the second, which decides the rewind, and behind it. A stop saves, within the row too."""
    config, expected, _ = rewound
    config = dataclasses.replace(config, workdir=str(tmp_path))
    hooks = [WriteMetrics(tmp_path), WriteDigests(tmp_path, host=0)]
    first = run(config, ROW, [Events(kill_at=kill_at), *hooks])
    assert first.stopped and first.step < 6
    second = run(config, ROW, hooks)
    assert_same(expected, jax.device_get(second.state))
    folder = run_folder(rewound[0])
    for name in ("bad_steps.jsonl", "batches_0.jsonl"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), name
    kept = ("step", "data_step", "loss/total", "optimizer/grad_norm")
    for a, b in zip(lines(tmp_path / "metrics.jsonl"), lines(folder / "metrics.jsonl"), strict=True):
        assert [a[name] for name in kept] == [b[name] for name in kept]
    assert CheckpointManager(tmp_path, read_only=True).facts(6)["rewinds"] == [REWIND]


@pytest.mark.full
def test_rewinds_are_counted_over_the_lives_of_a_run(tmp_path):
    config = of_run(tmp_path, rewinds=1)
    first = run(config, ROW, [Events(kill_at=7)])
    assert first.stopped
    with pytest.raises(DivergenceError, match=r"gone back 1 times of guard\.rewinds=1"):
        run(config, {**ROW, 8: NAN, 9: NAN})
    with pytest.raises(DivergenceError, match="there is no checkpoint to go back to"):
        run(of_run(tmp_path, "early", rewinds=1), {0: NAN, 1: NAN})


@pytest.mark.full
def test_a_checkpoint_from_before_the_guard_goes_on(tmp_path, capsys):
    """The part and the config's field are taken away, as an older version wrote them."""
    config = of_run(tmp_path)
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    step, state = make_train_step(config, mesh, num_tasks=len(TASK_NAMES)), init_state(config, mesh)
    for data_step in range(2):
        state, _ = step(state, put_batch(Batches(config).batch(data_step), mesh))
    manager = CheckpointManager(run_folder(config))
    manager.save(2, dataclasses.replace(state, guard=None), config=dataclasses.replace(config, guard=GuardConfig()), wait=True)
    manager.close()
    assert manager.missing_parts(abstract_state(config), step=2) == ("guard",)
    result = run(config, {5: SPIKE})
    assert "lacks a part of the state, filled in: guard with its initial values" in capsys.readouterr().out
    assert result.step == 6 and [line["data_step"] for line in lines(run_folder(config) / "bad_steps.jsonl")] == [5]


def test_the_list_of_a_run_without_bad_steps_is_no_file(tmp_path):
    listed = BadSteps(tmp_path, host=1, data_step=0)
    listed.close()
    assert listed.path.name == "bad_steps_1.jsonl" and not listed.path.exists()
