"""Mesh sizes, the rules table and the sentences of their errors, on eight fake devices."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import BlockConfig, MeshConfig
from ofa_jax.parallel import hosts
from ofa_jax.parallel.mesh import check_rows, make_mesh, mesh_shape, on_first_device
from ofa_jax.parallel.rules import RULES, key_path_name, param_shardings, partition_spec


def test_one_free_axis_takes_what_is_left():
    assert mesh_shape(MeshConfig(), num_devices=8) == (8, 1, 1)
    assert mesh_shape(MeshConfig(data=2, fsdp=-1, tensor=2), num_devices=8) == (2, 2, 2)
    assert mesh_shape(MeshConfig(data=1, fsdp=4, tensor=2), num_devices=8) == (1, 4, 2)


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (MeshConfig(data=3), "product of 3, expected the number of devices, 8"),
        (MeshConfig(data=-1, fsdp=3), "product 3 divides the 8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (MeshConfig(data=0), "mesh.data: found 0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_sentence(mesh, words):
    with pytest.raises(UserError, match=words):
        mesh_shape(mesh, num_devices=8)


def test_rows_that_do_not_divide_name_the_nearest_legal_ones():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), devices=jax.devices()[:4])
    block = BlockConfig("text", "text", 6, 8, 8, ())
    with pytest.raises(UserError, match=r"data.blocks.text.rows: found 6, expected a multiple of .* = 4; nearest: 4 or 8"):
        check_rows([block], mesh)


def test_the_table_is_small_and_names_mesh_axes():
    assert len(RULES) <= 16
    assert {a for rule in RULES.values() for a in rule.mesh_axes} == {"data", "fsdp", "tensor"}


def test_partitions():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert partition_spec(("vocab", "width"), (16, 8), mesh, name="e") == P(("fsdp", "tensor"), None)
    assert partition_spec(("layers", "width", "heads"), (3, 8, 8), mesh, name="q") == P(None, "fsdp", "tensor")
    assert partition_spec((None, "norm"), (3, 7), mesh, name="n") == P(None, None)
    # One mesh axis splits one dimension: the second `width` stays whole.
    assert partition_spec(("width", "width"), (8, 8), mesh, name="w") == P("fsdp", None)
    # The one rule that lets an uneven dimension be replicated.
    assert partition_spec(("channels_in", "channels_out"), (8, 7), mesh, name="c") == P(None, None)
    with pytest.raises(UserError, match="parameter w: dimension width of size 7 cannot be split over mesh.fsdp = 2"):
        partition_spec(("width",), (7,), mesh, name="w")
    with pytest.raises(ValueError, match="'depth' is not in the table"):
        partition_spec(("depth",), (8,), mesh, name="w")
    with pytest.raises(ValueError, match="2 axis names"):
        partition_spec(("width", "norm"), (8,), mesh, name="w")


class Layer(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((8, 16)), axes=("width", "ffn"))


class Unnamed(nnx.Module):
    def __init__(self):
        self.bias = nnx.Param(jnp.ones(8))


def test_shardings_follow_the_parameters_axes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = nnx.split(Layer())[1]
    shardings = param_shardings(params, mesh)
    placed = jax.device_put(params, shardings)
    [(path, kernel)] = jax.tree_util.tree_flatten_with_path(placed)[0]
    assert key_path_name(path) == "kernel"
    assert kernel.sharding.spec == P("fsdp", "tensor")
    with pytest.raises(ValueError, match="parameter bias: no logical axis names"):
        param_shardings(nnx.split(Unnamed())[1], mesh)


def test_hosts_start_only_when_the_environment_says_so():
    assert hosts.start({}).count == 1
    assert hosts.start({"TPU_WORKER_HOSTNAMES": "one"}).count == 1
    with pytest.raises(UserError, match="JAX_PROCESS_ID: found '', expected a number"):
        hosts.start({"JAX_COORDINATOR_ADDRESS": "localhost:1234"})
    assert (hosts.index(), hosts.count(), hosts.is_first()) == (0, 1, True)


def test_the_compilation_cache_goes_below_the_users_cache_folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        assert hosts.use_compilation_cache({"XDG_CACHE_HOME": str(tmp_path)}) == str(tmp_path / "ofa_jax" / "xla")
        assert (tmp_path / "ofa_jax" / "xla").is_dir()
        assert hosts.use_compilation_cache({"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}) == "/elsewhere"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_what_is_restored_for_one_device_is_not_copied_to_all():
    found = on_first_device({"a": jax.ShapeDtypeStruct((3, 2), jnp.float32)})["a"]
    assert found.shape == (3, 2) and found.dtype == jnp.float32 and found.sharding.device_set == {jax.devices()[0]}
