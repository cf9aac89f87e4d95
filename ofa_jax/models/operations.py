"""What the model's products take, by component: floating-point operations, 2 for every multiply-add of matrices and convolutions, and the
numbers that they read and write.

It is arithmetic on the config, without an array or a trace. Sums, norms, softmax and activations are not counted, as is usual where a
rate is compared with the peak of a chip's matrix units (PaLM, appendix B). Tests compare a forward pass with the products of the
traced model exactly, and a training step's, convolutions left out, within one in a hundred. What batch norm, dropout or
rematerialisation do again or beside is no work of the model and not counted either. Nor are the logits of a closed set (`loss.answers`):
of the few ids that occur in it, whose number the config does not say. `models/floors` makes bytes and seconds of it.

Components are the scopes that the model's modules are traced under: "resnet", "encoder/attention", "decoder/ffn" ...; functions that sum
operations do so by the first part of the name.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

from ofa_jax.config.parameters import part_stays
from ofa_jax.config.rows import SEQUENCES_PER_ITEM
from ofa_jax.config.schema import ModelConfig, ResNetConfig, RowBlock, RunConfig

TRAIN_FACTOR = 3  # a backward pass takes two products for each of the forward one: by the input and by the weights


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of a forward pass, or several that read the same input: operations, and how many numbers it reads and writes."""

    component: str
    operations: float
    read: float  # of activations
    written: float
    weights: float = 0.0  # of parameters, read

    def times(self, count: float) -> Product:
        """Returns the same of so many inputs that share the weights."""
        return dataclasses.replace(self, operations=count * self.operations, read=count * self.read, written=count * self.written)


def _linear(component: str, positions: float, num_in: int, num_out: int) -> Product:
    """A matrix on all positions; several that read the same input are one with the columns of all."""
    return Product(component, 2.0 * positions * num_in * num_out, positions * num_in, positions * num_out, num_in * num_out)


def _attended(component: str, queries: int, keys: int, width: int) -> Product:
    """Scores and their product with the values, of a sequence; the scores themselves need not be written."""
    return Product(component, 4.0 * queries * keys * width, (queries + 2 * keys) * width, queries * width)


def _repeated(products: list[Product], layers: int) -> Iterator[Product]:
    for one in products:
        yield dataclasses.replace(one.times(layers), weights=layers * one.weights)


def resnet_products(net: ResNetConfig, image_px: int) -> Iterator[Product]:
    """Yields the convolutions of the image front for one picture of `image_px` x `image_px`."""

    def convolution(kernel: int, channels: int, out: int, before: int, after: int) -> Product:
        weights = kernel**2 * channels * out
        return Product("resnet", 2.0 * weights * after**2, channels * before**2, out * after**2, weights)

    side = -(-image_px // net.stem_stride)
    yield convolution(net.stem_kernel, 3, net.base_width, image_px, side)
    side = -(-side // 2) if net.stem_pool else side
    channels = net.base_width
    for stage, (blocks, stride) in enumerate(zip(net.blocks, net.strides, strict=True)):
        width = net.base_width * 2**stage
        out = width * net.expansion
        for block in range(blocks):
            yield convolution(1, channels, width, side, side)  # before the stride
            before, side = side, -(-side // stride) if block == 0 else side
            yield convolution(3, width, width, before, side)
            yield convolution(1, width, out, side, side)
            if block == 0:
                yield convolution(1, channels, out, side, side)  # the shortcut
            channels = out


def resnet_operations(net: ResNetConfig, image_px: int) -> float:
    """Operations of the image front for one picture of `image_px` x `image_px`."""
    return sum(one.operations for one in resnet_products(net, image_px))


def encoder_products(model: ModelConfig, *, text: int, patches: int = 0, sampled: bool = False) -> Iterator[Product]:
    """Yields the encoder's products for one sequence of `text` tokens and `patches` patches, without what sequences may share.

    sampled: its patches are its own choice, so that its positions are projected for it alone.
    """
    n, d = text + patches, model.width
    yield from _repeated(
        [
            _linear("encoder/attention", n, d, 3 * d),
            _attended("encoder/attention", n, n, d),
            _linear("encoder/attention", n, d, d),
            _linear("encoder/ffn", n, d, model.ffn_width),
            _linear("encoder/ffn", n, model.ffn_width, d),
            *_bottleneck("encoder/ffn", n, d, model.adapter_width),
            *2 * _bottleneck("encoder/attention", n, d, model.lora_rank),
        ],
        model.encoder_layers,
    )
    if sampled:
        yield from _positions("encoder/positions", n, n, d)


def decoder_products(model: ModelConfig, *, target: int, memory: int, sampled: bool = False) -> Iterator[Product]:
    """Yields the decoder's products for one sequence of `target` tokens that sees `memory` encoder states."""
    t, n, d = target, memory, model.width
    yield from _repeated(
        [
            _linear("decoder/self_attention", t, d, 3 * d),
            _attended("decoder/self_attention", t, t, d),  # all pairs are computed, and half of them masked
            _linear("decoder/self_attention", t, d, d),
            _linear("decoder/cross_attention", t, d, d),
            _linear("decoder/cross_attention", n, d, 2 * d),
            _attended("decoder/cross_attention", t, n, d),
            _linear("decoder/cross_attention", t, d, d),
            _linear("decoder/ffn", t, d, model.ffn_width),
            _linear("decoder/ffn", t, model.ffn_width, d),
            *_bottleneck("decoder/ffn", t, d, model.adapter_width),
            *2 * _bottleneck("decoder/self_attention", t, d, model.lora_rank),
            *_bottleneck("decoder/cross_attention", t, d, model.lora_rank),
            *_bottleneck("decoder/cross_attention", n, d, model.lora_rank),
        ],
        model.decoder_layers,
    )
    if sampled:
        yield _linear("decoder/positions", n, d, d)
        yield Product("decoder/positions", 2.0 * t * n * d, (t + n) * d, 0.0)


def _bottleneck(component: str, positions: int, width: int, inner: int) -> list[Product]:
    """Down to `inner` and up again: an adapter, or the update beside a projection; nothing where `inner` is 0."""
    return [_linear(component, positions, width, inner), _linear(component, positions, inner, width)] if inner else []


def _positions(component: str, queries: int, keys: int, width: int) -> Iterator[Product]:
    """The projections of positions and their product, which need not be written."""
    yield _linear(component, queries, width, width)
    yield _linear(component, keys, width, width)
    yield Product(component, 2.0 * queries * keys * width, (queries + keys) * width, 0.0)


def _shared(model: ModelConfig, *, text: int, patches: int, target: int, sampled: bool) -> Iterator[Product]:
    """What all sequences of a shape share, once each: the projections of positions and their products, of encoder and decoder."""
    n, t, d = text + patches, target, model.width
    if not sampled:
        yield from _positions("encoder/positions", n, n, d)
        yield _linear("decoder/positions", n, d, d)
        yield Product("decoder/positions", 2.0 * t * n * d, (t + n) * d, 0.0)
    yield from _positions("decoder/positions", t, t, d)
    yield _linear("decoder/positions", t, d, d)


def sequences_a_row(block: RowBlock) -> int:
    """Sequences of a row: as many as its row kind makes of an item, of every one that is drawn (without a mixture two of every pair of the
    stream `pairs`, as in pretraining, and one of every item of the others)."""
    rows = SEQUENCES_PER_ITEM.get(block.stream, {})
    return block.pairs_per_image * (rows[block.sources[0].row] if block.sources else max(rows.values(), default=1))


def block_products(config: RunConfig, block: RowBlock) -> Iterator[Product]:
    """Yields the products of one forward pass over a row block, all its rows together."""
    model, width = config.model, config.model.width
    patches, sampled = 0, False
    if block.image_px:
        grid = -(-block.image_px // model.resnet.stride)
        for one in resnet_products(model.resnet, block.image_px):
            yield one.times(block.rows)
        yield _linear("encoder/inputs", block.rows * grid**2, model.resnet.out_channels, width)
        sampled = bool(block.num_patches)
        patches = block.num_patches or grid**2
    sequences = block.rows * sequences_a_row(block)
    for place in range(block.num_places):
        here = sequences // block.num_places
        text, target = block.lens_of(place)
        read = block.prompt_len + target
        yield from _shared(model, text=text, patches=patches, target=read, sampled=sampled)
        for one in encoder_products(model, text=text, patches=patches, sampled=sampled):
            yield one.times(here)
        for one in decoder_products(model, target=read, memory=text + patches, sampled=sampled):
            yield one.times(here)
        yield _linear("logits", here * target, width, 0 if config.loss.answers else config.vocab.padded_size)


def step_products(config: RunConfig) -> Iterator[tuple[Product, int]]:
    """Yields (forward product of the global batch, how often a training step takes its operations): three times with its backward pass,
    once where the front is frozen.

    R-Drop, which runs every sequence twice, is counted. Objective `picture_words` has the front and a linear layer ("head") only.
    """
    for block in config.data.row_blocks:
        if config.objective == "picture_words":
            net = config.model.resnet
            for one in resnet_products(net, block.image_px):
                yield one.times(block.rows), TRAIN_FACTOR
            patches = block.rows * (-(-block.image_px // net.stride)) ** 2
            yield _linear("head", patches, net.out_channels, config.vocab.num_text), TRAIN_FACTOR
            continue
        for one in block_products(config, block):
            front = one.component == "resnet"
            copies = 2 if config.loss.r_drop_alpha and not front else 1
            yield one.times(copies), 1 if front and part_stays("resnet", config.optimizer) else TRAIN_FACTOR


def block_operations(config: RunConfig, block: RowBlock) -> dict[str, float]:
    """Operations of one forward pass over a row block, by component: resnet, encoder, decoder, logits."""
    return _summed((one, 1) for one in block_products(config, block))


def step_operations(config: RunConfig) -> Mapping[str, float]:
    """Operations of one training step on the global batch, forward and backward, by component (`step_products` says what is counted)."""
    return _summed(step_products(config))


def _summed(products: Iterator[tuple[Product, int]]) -> dict[str, float]:
    total: dict[str, float] = collections.defaultdict(float)
    for one, passes in products:
        total[one.component.split("/")[0]] += passes * one.operations
    return dict(total)
