"""What stays of a run's checkpoints, and what happens when a save fails, hangs or is slow."""

import dataclasses
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ofa_jax.checkpoint import manager as managing
from ofa_jax.checkpoint.about import FORMAT
from ofa_jax.checkpoint.digests import write_digests
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.checkpoint.retention import BestOf, best_steps
from ofa_jax.checkpoint.staging import HostCopy
from ofa_jax.config.errors import CheckpointError, HungSaveError
from ofa_jax.config.schema import CheckpointConfig, RunConfig
from ofa_jax.config.sizes import SIZES

CONFIG = RunConfig(name="c", model=SIZES["nano"])


def state(value, size=8):
    return {
        "params": {"kernel": jnp.full((size, 4), value, jnp.float32)},
        "opt_state": {"count": jnp.int32(value)},
        "step": jnp.int32(value),
        "data_step": jnp.int32(value),
    }


def save_all(manager, steps, scores=None):
    for step in steps:
        metrics = {"eval/cider/coco": scores[step]} if scores and step in scores else None
        manager.save(step, state(step), config=CONFIG, metrics=metrics, wait=True)


def test_the_newest_and_every_nth_stay(tmp_path):
    manager = CheckpointManager(tmp_path, CheckpointConfig(keep=2, keep_every=4))
    save_all(manager, range(1, 8))
    assert manager.steps() == [4, 6, 7]
    manager.close()
    again = CheckpointManager(tmp_path, CheckpointConfig(keep=1, keep_every=4))
    save_all(again, (8, 9))
    assert again.steps() == [4, 8, 9]
    again.close()


@pytest.mark.parametrize(("lowest", "kept"), [(False, [2, 4, 6]), (True, [1, 5, 6])])
def test_the_best_by_a_metric_stay_also_after_a_restart(tmp_path, lowest, kept):
    """Steps 3 and 6 were not evaluated: they are kept as the newest at most."""
    plan = CheckpointConfig(keep=1, keep_best=2, best_metric="eval/cider/coco", lowest_is_best=lowest)
    scores = {1: 0.1, 2: 0.9, 4: 0.5, 5: 0.3}
    first = CheckpointManager(tmp_path, plan)
    save_all(first, (1, 2, 3), scores)
    first.close()
    second = CheckpointManager(tmp_path, plan)
    save_all(second, (4, 5, 6), scores)
    assert second.steps() == kept
    assert second.about(kept[0]).metrics == {"eval/cider/coco": scores[kept[0]]}
    second.close()


def test_the_best_of_equal_scores_is_the_newer_and_a_score_that_is_no_number_is_none():
    assert best_steps({1: 0.5, 2: 0.5, 3: float("nan"), 4: None, 5: float("inf"), 6: 0.1}, 1, lowest=False) == {2}
    policy = BestOf(1, True, {1: 3.0, 2: 2.0, 3: None}.get)
    assert policy.should_preserve([SimpleNamespace(step=step) for step in (1, 2, 3)], context=None) == [False, True, False]


def test_nothing_is_deleted_before_a_newer_checkpoint_is_committed(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, CheckpointConfig(keep=1))
    save_all(manager, (1,))
    go, reached = threading.Event(), threading.Event()

    def slow(folder, about):
        reached.set()
        assert go.wait(60)
        write_digests(folder, about)

    monkeypatch.setattr(managing, "write_digests", slow)
    manager.save(2, state(2), config=CONFIG)
    assert reached.wait(60)
    assert manager.steps() == [1]
    go.set()
    manager.wait()
    assert manager.steps() == [2]
    manager.close()


def test_a_save_that_fails_keeps_the_checkpoint_before_and_is_told_without_waiting(tmp_path, monkeypatch):
    manager = CheckpointManager(tmp_path, CheckpointConfig(keep=1))
    save_all(manager, (1,))

    def full(folder, about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(managing, "write_digests", full)
    manager.save(2, state(2), config=CONFIG)
    deadline = time.monotonic() + 60
    with pytest.raises(CheckpointError, match=r"checkpoints/2: the checkpoint of step 2 could not be written: .*No space left on device"):
        while time.monotonic() < deadline:
            manager.check()
            time.sleep(0.01)
    manager.check()  # told once
    assert manager.steps() == [1]
    manager.close()
    assert CheckpointManager(tmp_path, read_only=True).incomplete == ("2.orbax-checkpoint-tmp",)


def test_a_save_that_hangs_ends_the_run_at_its_deadline(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(managing, "write_digests", lambda folder, about: go.wait(60))
    manager = CheckpointManager(tmp_path, CheckpointConfig(deadline_s=0.5))
    manager.save(3, state(3), config=CONFIG)
    manager.check()
    time.sleep(0.6)
    expected = r"checkpoints/3: the save of step 3 is not done after \d+ s, expected at most checkpoint.deadline_s=0.5; look at the disk"
    with pytest.raises(HungSaveError, match=expected):
        manager.check()
    with pytest.raises(HungSaveError, match=expected):
        manager.wait()
    began = time.monotonic()
    manager.close()  # does not wait for it
    assert time.monotonic() - began < 5
    go.set()


def test_steps_go_on_while_a_save_is_under_way_and_it_knows_its_times(tmp_path, monkeypatch):
    go = threading.Event()

    def slow(folder, about):
        assert go.wait(60)
        write_digests(folder, about)

    monkeypatch.setattr(managing, "write_digests", slow)
    manager = CheckpointManager(tmp_path)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    now = step(state(0, size=1000))
    manager.save(1, now, config=CONFIG)
    for _ in range(20):
        now = jax.block_until_ready(step(now))
        manager.check()
    assert (manager.done(), manager.steps()) == ([], [])
    go.set()
    manager.wait()
    (saved,) = manager.done()
    assert saved.step == 1 and 0 < saved.blocked_s < saved.save_s
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), now)
    restored = manager.restore(shapes)
    np.testing.assert_array_equal(restored["params"]["kernel"], np.full((1000, 4), 1, np.float32))
    manager.close()


def test_the_copy_of_a_state_leaves_its_buffers_to_the_step():
    """A buffer that somebody else holds cannot be donated: the step would copy it into new memory."""
    spread = jax.sharding.NamedSharding(jax.make_mesh((4, 2), ("a", "b")), jax.sharding.PartitionSpec("a"))
    tree = {"a": jax.device_put(jnp.arange(64.0).reshape(8, 8), spread), "b": jnp.arange(3, dtype=jnp.bfloat16), "c": jnp.int32(5)}
    copier = HostCopy(tree)
    first = copier.take(tree)
    assert jax.tree.map(lambda x: x.sharding, first) == jax.tree.map(lambda x: x.sharding, tree)
    before = [shard.data.unsafe_buffer_pointer() for shard in tree["a"].addressable_shards]
    stepped = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(tree)
    assert [shard.data.unsafe_buffer_pointer() for shard in stepped["a"].addressable_shards] == before
    np.testing.assert_array_equal(first["a"], np.arange(64.0).reshape(8, 8))
    np.testing.assert_array_equal(first["b"], np.arange(3))
    pointer = first["a"].addressable_shards[0].data.unsafe_buffer_pointer()
    second = copier.take(stepped)
    np.testing.assert_array_equal(second["a"], np.arange(1, 65.0).reshape(8, 8))
    assert second["a"].addressable_shards[0].data.unsafe_buffer_pointer() == pointer


def test_a_metric_that_is_not_finite_is_not_saved(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, state(1), config=dataclasses.replace(CONFIG, seed=5), metrics={"a": float("nan"), "b": 1.0}, wait=True)
    about = manager.about()
    assert (about.format, about.metrics, about.config.seed) == (FORMAT, {"b": 1.0}, 5)
    assert {"jax", "flax", "orbax-checkpoint", "ofa_jax"} <= set(about.versions)
    manager.close()
