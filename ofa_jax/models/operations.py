"""How many floating-point operations the model's products take, by component: 2 for every multiply-add of its matrices and convolutions.

It is arithmetic on the config, without an array or a trace. Sums, norms, softmax and activations are not counted, as is usual where a
rate is compared with the peak of a chip's matrix units (PaLM, appendix B). Tests compare a forward pass with the products of the
traced model exactly, and a training step's, convolutions left out, within one in a hundred. What batch norm, dropout or
rematerialisation do again or beside is no work of the model and not counted either.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping

from ofa_jax.config.schema import ModelConfig, ResNetConfig, RowBlock, RunConfig

TRAIN_FACTOR = 3  # a backward pass takes two products for each of the forward one: by the input and by the weights


def resnet_operations(net: ResNetConfig, image_px: int) -> float:
    """Operations of the image front for one picture of `image_px` x `image_px`."""
    side = -(-image_px // net.stem_stride)
    total = 2.0 * net.stem_kernel**2 * 3 * net.base_width * side**2
    side = -(-side // 2) if net.stem_pool else side
    channels = net.base_width
    for stage, (blocks, stride) in enumerate(zip(net.blocks, net.strides, strict=True)):
        width = net.base_width * 2**stage
        out = width * net.expansion
        for block in range(blocks):
            total += 2.0 * channels * width * side**2  # the first 1x1, before the stride
            side = -(-side // stride) if block == 0 else side
            total += 2.0 * (9 * width * width + width * out) * side**2
            if block == 0:
                total += 2.0 * channels * out * side**2  # the shortcut
            channels = out
    return total


def encoder_operations(model: ModelConfig, *, text: int, patches: int = 0, sampled: bool = False) -> float:
    """Operations of the encoder's layers for one sequence of `text` tokens and `patches` patches, without what sequences may share.

    sampled: its patches are its own choice, so that its positions are projected for it alone.
    """
    n, d = text + patches, model.width
    layer = 8.0 * n * d * d + 4.0 * n * n * d + 4.0 * n * d * model.ffn_width + _adapter(model, n)
    return model.encoder_layers * layer + (4.0 * n * d * d + 2.0 * n * n * d if sampled else 0.0)


def decoder_operations(model: ModelConfig, *, target: int, memory: int, sampled: bool = False) -> float:
    """Operations of the decoder's layers for one sequence of `target` tokens that sees `memory` encoder states."""
    t, n, d = target, memory, model.width
    layer = 8.0 * t * d * d + 4.0 * t * t * d  # self attention: all pairs are computed, and half of them masked
    layer += 4.0 * t * d * d + 4.0 * n * d * d + 4.0 * t * n * d
    layer += 4.0 * t * d * model.ffn_width + _adapter(model, t)
    return model.decoder_layers * layer + (2.0 * n * d * d + 2.0 * t * n * d if sampled else 0.0)


def _adapter(model: ModelConfig, positions: int) -> float:
    return 4.0 * positions * model.width * model.adapter_width


def _shared(model: ModelConfig, *, text: int, patches: int, target: int, sampled: bool) -> tuple[float, float]:
    """What all sequences of a shape share, once each: the projections of positions and their products, of encoder and decoder."""
    n, t, d = text + patches, target, model.width
    encoder = 0.0 if sampled else 4.0 * n * d * d + 2.0 * n * n * d
    decoder = 4.0 * t * d * d + 2.0 * t * t * d + 2.0 * t * d * d
    decoder += 0.0 if sampled else 2.0 * n * d * d + 2.0 * t * n * d
    return encoder, decoder


def sequences_a_row(block: RowBlock) -> int:
    """Sequences of a row: two of every pair of the stream `pairs`, one of every item of the others."""
    return block.pairs_per_image * (2 if block.stream == "pairs" else 1)


def block_operations(config: RunConfig, block: RowBlock) -> dict[str, float]:
    """Operations of one forward pass over a row block, by component: resnet, encoder, decoder, logits."""
    model = config.model
    total: dict[str, float] = collections.defaultdict(float)
    patches, sampled = 0, False
    if block.image_px:
        grid = -(-block.image_px // model.resnet.stride)
        total["resnet"] += block.rows * resnet_operations(model.resnet, block.image_px)
        total["encoder"] += 2.0 * block.rows * grid**2 * model.resnet.out_channels * model.width
        sampled = bool(block.num_patches)
        patches = block.num_patches or grid**2
    sequences = block.rows * sequences_a_row(block)
    for place in range(block.num_places):
        here = sequences // block.num_places
        text, target = block.lens_of(place)
        encoder, decoder = _shared(model, text=text, patches=patches, target=target, sampled=sampled)
        total["encoder"] += encoder + here * encoder_operations(model, text=text, patches=patches, sampled=sampled)
        total["decoder"] += decoder + here * decoder_operations(model, target=target, memory=text + patches, sampled=sampled)
        total["logits"] += 2.0 * here * target * model.width * config.vocab.padded_size
    return dict(total)


def step_operations(config: RunConfig) -> Mapping[str, float]:
    """Operations of one training step on the global batch, forward and backward, by component.

    The front's backward pass is left out where it is frozen. R-Drop, which runs every sequence twice, is counted. Objective
    `picture_words` has the front and a linear layer ("head") only.
    """
    total: dict[str, float] = collections.defaultdict(float)
    for block in config.data.row_blocks:
        if config.objective == "picture_words":
            net = config.model.resnet
            total["resnet"] += TRAIN_FACTOR * block.rows * resnet_operations(net, block.image_px)
            patches = block.rows * (-(-block.image_px // net.stride)) ** 2
            total["head"] += TRAIN_FACTOR * 2.0 * patches * net.out_channels * config.vocab.num_text
            continue
        for name, value in block_operations(config, block).items():
            frozen = name == "resnet" and "resnet" in config.optimizer.frozen
            copies = 2 if config.loss.r_drop_alpha and name != "resnet" else 1
            total[name] += value * copies * (1 if frozen else TRAIN_FACTOR)
    return dict(total)
