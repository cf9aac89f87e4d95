"""Counted operations against the products that the traced model really has."""

from __future__ import annotations

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.ofa_tiny import get_config
from ofa_jax.config.schema import RunConfig
from ofa_jax.models import ofa
from ofa_jax.models.operations import block_operations, block_products, resnet_operations, step_operations
from ofa_jax.train.pretraining import Pretraining


def products(jaxpr, kinds: tuple[str, ...] = ("dot_general", "conv_general_dilated")) -> float:
    """2 x multiply-adds of every dot and convolution of a jaxpr, those inside of loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    total += times * products(getattr(inner, "jaxpr", inner), kinds)
        if equation.primitive.name not in kinds:
            continue
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(left[axis] for axis in contract)
        else:
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(kernel[:-1])
    return total


def traced(config: RunConfig, *, gradient: bool, key: bool, **kinds) -> float:
    """The products of the loss of one batch, or of its gradient."""
    objective = Pretraining(config)
    params, stats = jax.eval_shape(objective.init, jax.random.key(0))
    blocks = {}
    from ofa_jax.data.batch import Block
    from ofa_jax.models.operations import sequences_a_row

    for block in config.data.row_blocks:
        q, px = block.rows * sequences_a_row(block), block.image_px
        ints, masks = jax.ShapeDtypeStruct, jnp.bool_
        blocks[block.name] = Block(
            images=ints((block.rows, px, px, 3), jnp.uint8) if px else None,
            image_mask=ints((block.rows,), masks) if px else None,
            hole_mask=ints((block.rows,), masks) if px else None,
            source_ids=ints((q, block.source_len), jnp.int32),
            decoder_ids=ints((q, block.target_len), jnp.int32),
            target_ids=ints((q, block.target_len), jnp.int32),
            confidence=ints((q,), jnp.float32),
            code_mask=ints((q,), masks),
            task_ids=ints((q,), jnp.int32),
            elements=None,
        )

    def loss(params, stats, blocks):
        drawn = jax.random.key(1) if key else None
        return objective.loss(params, stats, blocks, drawn, num_tasks=8)[0]

    function = jax.grad(loss) if gradient else loss
    return products(jax.make_jaxpr(function)(params, stats, blocks).jaxpr, **kinds)


def small(*, kept: int = 0) -> RunConfig:
    """The debug variant of OFA-tiny's pretraining, without length classes; logits in one piece."""
    config = get_config("debug")
    blocks = tuple(
        dataclasses.replace(block, num_patches=kept if block.stream == "pairs" else 0, classes=()) for block in config.data.blocks
    )
    data, loss = dataclasses.replace(config.data, blocks=blocks), dataclasses.replace(config.loss, logit_chunk=0)
    return dataclasses.replace(config, data=data, loss=loss)


@pytest.mark.parametrize(("kept", "rank"), [(0, 0), (10, 3)])
def test_a_forward_pass_has_the_products_that_are_counted(kept: int, rank: int):
    config = small(kept=kept)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lora_rank=rank))
    counted = sum(sum(block_operations(config, block).values()) for block in config.data.row_blocks)
    np.testing.assert_allclose(traced(config, gradient=False, key=bool(kept)), counted, rtol=1e-12)


def test_logits_of_a_closed_set_are_not_counted():
    """The config does not say how many ids occur in it."""
    config = small()
    closed = dataclasses.replace(config, loss=dataclasses.replace(config.loss, answers="names.txt"))
    whole, found = dict(step_operations(config)), dict(step_operations(closed))
    assert whole.pop("logits") > 0 and found.pop("logits") == 0 and found == whole


def test_the_front_alone():
    config = small()
    graphdef, state = jax.eval_shape(lambda key: ofa.create(config.model, config.vocab, key), jax.random.key(0))
    stats = jax.eval_shape(lambda: ofa.init_stats(config.model))

    def front(state, images, stats):
        return nnx.merge(graphdef, state).embed_images(images, None, stats=stats, train=False)[0]

    for px in (64, 224, 384):
        images = jax.ShapeDtypeStruct((1, px, px, 3), jnp.uint8)
        found = products(jax.make_jaxpr(front)(state, images, stats).jaxpr)
        np.testing.assert_allclose(resnet_operations(config.model.resnet, px), found, rtol=1e-12)


def test_a_training_step_is_three_forward_passes():
    """Of all that is no convolution, whose gradient is traced with the zeros of strides; and but for what positions share."""
    config = small()
    counted = sum(value for name, value in step_operations(config).items() if name != "resnet")
    found = traced(config, gradient=True, key=True, kinds=("dot_general",))
    np.testing.assert_allclose(found, counted, rtol=0.01)


def test_components_and_frozen_fronts():
    config = small()
    whole = step_operations(config)
    assert set(whole) == {"resnet", "encoder", "decoder", "logits"} and all(value > 0 for value in whole.values())
    frozen = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, frozen=("resnet",)))
    assert step_operations(frozen)["resnet"] * 3 == whole["resnet"]
    assert collections.Counter(step_operations(frozen)) - collections.Counter(whole) == {}


@pytest.mark.full
def test_what_rematerialisation_does_again():
    """`model.remat=dots` repeats scores and their product with the values, which `Linear` does not make; full repeats what layers do, but
    for their last product, which nothing backward reads."""
    config = small()

    def again(remat: str) -> float:
        model = dataclasses.replace(config.model, remat=remat, layers="scan")
        return traced(dataclasses.replace(config, model=model), gradient=True, key=True, kinds=("dot_general",))

    layers = [
        one for block in config.data.row_blocks for one in block_products(config, block) if one.component.endswith(("attention", "ffn"))
    ]
    last = sum(one.operations for one in layers if one.component.endswith("ffn")) / 2
    plain = again("none")
    np.testing.assert_allclose(again("dots") - plain, sum(one.operations for one in layers if not one.weights), rtol=1e-12)
    np.testing.assert_allclose(again("full") - plain, sum(one.operations for one in layers) - last, rtol=1e-12)
