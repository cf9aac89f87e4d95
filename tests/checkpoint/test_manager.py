"""Checkpoints: any mesh reads what another wrote, half-written ones are ignored, another model is refused in one sentence."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ofa_jax.checkpoint.folders import COMMIT_MARKER
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.schema import CheckpointConfig, RunConfig
from ofa_jax.config.sizes import SIZES

CONFIG = RunConfig(name="c", model=SIZES["nano"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: object
    opt_state: object
    stats: object
    ema: object
    step: jax.Array
    data_step: jax.Array


class Model(nnx.Module):
    def __init__(self, width):
        self.kernel = nnx.Param(jnp.arange(8.0 * width).reshape(8, width), axes=("width", "ffn"))
        self.layers = nnx.List([nnx.Param(jnp.full(4, 7.0), axes=("norm",))])


def make_state(*, width=4, add=0.0, ema=True, step=1):
    params = jax.tree.map(lambda x: x + add, nnx.split(Model(width))[1])
    return State(
        params=params,
        opt_state=(jnp.int32(step), jax.tree.map(lambda x: x * 2, params), ()),
        stats={"stem": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
        ema=jax.tree.map(lambda x: x + 100, params) if ema else None,
        step=jnp.int32(step),
        data_step=jnp.int32(step + 1),
    )


def abstract(state, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state)


def mesh_of(*shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def save(workdir, step, state):
    manager = CheckpointManager(workdir)
    manager.save(step, state, config=CONFIG, identity={"tokenizer": "t"}, wait=True)
    manager.close()


def test_a_state_goes_from_eight_devices_to_two_and_back(tmp_path):
    state = make_state()
    wide = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh_of(4, 2), P("a", "b") if x.shape == (8, 4) else P())), state)
    save(tmp_path, 3, wide)
    narrow = NamedSharding(mesh_of(2, 1), P())
    manager = CheckpointManager(tmp_path, read_only=True)
    restored = manager.restore(abstract(state, narrow))
    assert_equal(restored, state)
    assert all(leaf.sharding == narrow for leaf in jax.tree.leaves(restored))
    assert_equal(manager.restore(abstract(wide)), state)
    assert (manager.config(), manager.identity(), manager.latest()) == (CONFIG, {"tokenizer": "t"}, 3)


def test_donated_buffers_do_not_reach_a_save_under_way(tmp_path):
    state = make_state()
    expected = jax.device_get(state)
    manager = CheckpointManager(tmp_path)
    manager.save(1, state, config=CONFIG)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    for _ in range(3):
        state = step(state)
    manager.close()
    assert_equal(CheckpointManager(tmp_path, read_only=True).restore(abstract(state)), expected)


def test_the_newest_are_kept_and_a_saved_step_is_not_written_again(tmp_path):
    manager = CheckpointManager(tmp_path, CheckpointConfig(keep=2))
    for step in (1, 2, 3):
        manager.save(step, make_state(step=step), config=CONFIG)
    manager.save(3, make_state(step=3, add=50.0), config=CONFIG, wait=True)
    assert manager.steps() == [2, 3]
    assert_equal(manager.restore(abstract(make_state())), make_state(step=3))
    assert_equal(manager.restore(abstract(make_state()), step=2), make_state(step=2))
    with pytest.raises(CheckpointError, match="no checkpoint of step 1, expected one of 2, 3"):
        manager.restore(abstract(make_state()), step=1)
    manager.close()


def test_a_half_written_checkpoint_is_ignored_and_reported(tmp_path):
    save(tmp_path, 1, make_state())
    save(tmp_path, 2, make_state(step=2))
    folder = tmp_path / "checkpoints"
    (folder / "2" / COMMIT_MARKER).unlink()
    (folder / "5.orbax-checkpoint-tmp-1234").mkdir()
    reader = CheckpointManager(tmp_path, read_only=True)
    assert (reader.latest(), reader.incomplete, reader.unmarked) == (1, ("5.orbax-checkpoint-tmp-1234",), ("2",))
    assert (folder / "2").exists()
    writer = CheckpointManager(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"]  # cut off: deleted; without its marker: moved aside
    assert (folder / "2.damaged" / "params").is_dir()
    writer.save(2, make_state(step=2), config=CONFIG, wait=True)
    assert writer.latest() == 2
    writer.close()


def test_nothing_to_restore_and_damage_are_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="found no complete checkpoint, expected one"):
        CheckpointManager(tmp_path, read_only=True).restore(abstract(make_state()))
    assert not (tmp_path / "checkpoints").exists()
    save(tmp_path, 1, make_state())
    for file in (tmp_path / "checkpoints" / "1" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
        CheckpointManager(tmp_path, read_only=True).restore(abstract(make_state()))


def test_another_model_is_refused_by_the_first_parameter_that_differs(tmp_path):
    save(tmp_path, 1, make_state())
    manager = CheckpointManager(tmp_path, read_only=True)
    with pytest.raises(CheckpointError, match=r"params/kernel: found shape \(8, 4\), expected \(8, 6\)"):
        manager.restore(abstract(make_state(width=6)))
    with pytest.raises(CheckpointError, match="found ema/kernel, which this run's config does not have"):
        manager.restore(abstract(make_state(ema=False)))
    other = dataclasses.replace(make_state(), stats={"stem": {"mean": jnp.zeros(3), "var": jnp.ones(3), "count": jnp.ones(1)}})
    with pytest.raises(CheckpointError, match="found no stats/stem/count"):
        manager.restore(abstract(other))
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), make_state())
    with pytest.raises(CheckpointError, match="found dtype float32, expected bfloat16"):
        manager.restore(half)


@pytest.mark.parametrize("ema", [True, False])
def test_parameters_for_use_are_the_average_where_there_is_one(tmp_path, ema):
    state = make_state(ema=ema)
    save(tmp_path, 1, state)
    manager = CheckpointManager(tmp_path, read_only=True)
    found = manager.restore_params(abstract(state.params), abstract(state.stats))
    assert (found.step, found.averaged) == (1, ema)
    assert_equal(found.params, state.ema if ema else state.params)
    assert_equal(found.stats, state.stats)
    plain = manager.restore_params()
    np.testing.assert_array_equal(plain.params["kernel"], np.asarray(jax.tree.leaves(found.params)[0]))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
    assert_equal(manager.restore_params(shapes).params, found.params)


def test_a_reader_cannot_write(tmp_path):
    with pytest.raises(ValueError, match="read only"):
        CheckpointManager(Path(tmp_path), read_only=True).save(1, make_state(), config=CONFIG)
