"""What a step must take at least, against numbers counted by hand and against programs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.ofa_tiny import get_config
from ofa_jax.bench.protocols import same_work
from ofa_jax.models.floors import UPDATE, Floor, kept_bytes, step_floors
from ofa_jax.models.layers import linear
from ofa_jax.models.operations import step_operations
from ofa_jax.pods.costs import costs
from ofa_jax.pods.hlo import parse


def test_a_feed_forward_branch_by_hand():
    config = same_work(get_config("debug"), rows=4, source_len=16, target_len=8, image_px=0, num_patches=0)
    assert config.precision == "f32"
    model, positions = config.model, 4 * 16
    d, f, layers = model.width, model.ffn_width, model.encoder_layers
    found = step_floors(config, params_bytes=1000.0)["encoder/ffn"]
    assert found.operations == 3 * 2 * positions * (d * f + f * d) * layers
    forward = positions * (d + f) + positions * (f + d) + 2 * d * f
    backward = positions * (f + 2 * d) + positions * (d + 2 * f) + 2 * 2 * d * f  # the weights, and their gradients
    assert found.num_bytes == 4 * layers * (forward + backward)


def test_devices_share_rows_and_weights_and_the_update_moves_seven_numbers_a_parameter():
    config = same_work(get_config("debug"), rows=4, source_len=16, target_len=8, image_px=64, num_patches=0)
    whole, part = step_floors(config, params_bytes=1000.0), step_floors(config, params_bytes=250.0, shards=2, tensor=2)
    assert {name.split("/")[0] for name in whole} == {"resnet", "encoder", "decoder", "logits", UPDATE}
    assert whole[UPDATE] == Floor(0.0, 7000.0) and part[UPDATE] == Floor(0.0, 1750.0)
    for name in whole.keys() - {UPDATE}:
        assert part[name].operations == whole[name].operations / 4
        assert whole[name].num_bytes / 4 < part[name].num_bytes < whole[name].num_bytes
    np.testing.assert_allclose(sum(one.operations for one in whole.values()), sum(step_operations(config).values()), rtol=1e-12)
    averaged = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, ema_decay=0.999))
    assert step_floors(averaged, params_bytes=1000.0)[UPDATE].num_bytes == 9000.0
    frozen = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, frozen=("resnet",)))
    assert step_floors(frozen, params_bytes=1000.0)["resnet"].operations == whole["resnet"].operations / 3


@pytest.mark.parametrize("shape", [(512, 256, 1024), (2048, 512, 128)])
def test_one_product_moves_its_floor_where_nothing_is_beside_it(shape: tuple[int, int, int]):
    """XLA's program of a linear layer and its gradient reads and writes what the floor says, and less than a quarter more."""
    n, d, f = shape

    def grads(x: jax.Array, kernel: jax.Array, bias: jax.Array, dy: jax.Array):
        return jax.vjp(lambda *given: linear(*given, np.dtype(np.float32)), x, kernel, bias)[1](dy)

    arguments = [jnp.zeros(size) for size in ((n, d), (d, f), (f,), (n, f))]
    moved = sum(one.num_bytes * one.turns for one in costs(parse(jax.jit(grads).lower(*arguments).compile().as_text())))
    backward = 4 * (n * (f + 2 * d) + 2 * d * f)
    # A program without an epilogue reads the result's gradient for each of three sums.
    assert backward <= moved <= backward + 4 * (2 * n * f + n * d + 4 * f)


def test_what_is_kept_at_least():
    config = same_work(get_config("debug"), rows=4, source_len=16, target_len=8, image_px=64, num_patches=0)
    model = config.model
    patches = (64 // model.resnet.stride) ** 2
    positions = model.encoder_layers * (16 + patches) + model.decoder_layers * 8
    text = dataclasses.replace(
        config, data=dataclasses.replace(config.data, blocks=(dataclasses.replace(config.data.blocks[0], image_px=64),))
    )
    assert kept_bytes(text) > 4 * 4 * positions * model.width
    assert kept_bytes(text, shards=4) == kept_bytes(text) / 4
    alone = same_work(get_config("debug"), rows=4, source_len=16, target_len=8, image_px=0, num_patches=0)
    assert kept_bytes(alone) == 4 * 4 * (model.encoder_layers * 16 + model.decoder_layers * 8) * model.width
