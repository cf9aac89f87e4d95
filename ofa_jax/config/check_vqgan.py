"""Cross-field checks of a VQGAN's run, in the same form as those of OFA's (`config/check`)."""

from __future__ import annotations

from collections.abc import Iterator

from ofa_jax.config.errors import nearest
from ofa_jax.config.findings import at_least, data_findings, mesh_findings, multiple, named_findings, positive, run_findings
from ofa_jax.config.schema import BlockConfig, VQGANRunConfig

PARTS = ("vqgan", "discriminator")


def vqgan_problems(config: VQGANRunConfig, num_devices: int | None, *, training: bool) -> Iterator[str]:
    """Yields every problem of `config`, whose types are right, as one sentence."""
    yield from run_findings(config)
    yield from _model(config)
    yield from _loss(config)
    if not training:
        return
    sizes = yield from mesh_findings(config.mesh, num_devices)
    if sizes is not None:
        yield from _data(config, sizes["data"] * sizes["fsdp"])
    yield from named_findings(config.optimizer, PARTS)
    for name in config.init.parts:
        if name not in PARTS:
            yield f"init.parts: found {name}, expected parts of the model; {nearest(name, PARTS)}"
    if config.checkpoint.content != "all":
        why = "because entries of the codebook are revived whether they learn or not"
        yield f"checkpoint.content: found {config.checkpoint.content}, expected all for objective=vqgan, {why}"
    if config.optimizer.accumulate > 1:
        why = "because the discriminator's weight is of the whole batch"
        yield f"optimizer.accumulate: found {config.optimizer.accumulate}, expected 1 for objective=vqgan, {why}"
    yield from _eval(config)


def _model(config: VQGANRunConfig) -> Iterator[str]:
    model = config.model
    for name in ("width", "num_blocks", "latent_width", "num_codes", "code_width", "norm_groups", "norm_eps"):
        yield from positive(f"model.{name}", getattr(model, name))
    if not model.multiples or min(model.multiples) < 1:
        yield f"model.multiples: found {model.multiples}, expected at least one level, each a positive multiple of model.width"
        return
    if model.norm_groups > 0:
        for level in range(len(model.multiples)):
            width = model.level_width(level)
            if width % model.norm_groups:
                yield f"model.width: found {width} channels at level {level}, expected a multiple of model.norm_groups={model.norm_groups}"
    levels = set(range(len(model.multiples)))
    if not levels.issuperset(model.attention_levels):
        yield f"model.attention_levels: found {model.attention_levels}, expected levels from 0 to {max(levels)}"


def _loss(config: VQGANRunConfig) -> Iterator[str]:
    loss = config.loss
    for name in ("pixel_weight", "perceptual_weight", "quantizer_weight", "commitment", "discriminator_start", "discriminator_weight",
                 "revive_every"):  # fmt: skip
        yield from at_least(f"loss.{name}", getattr(loss, name), 0)
    for value in loss.temperature:
        yield from positive("loss.temperature", value)
    start = f"loss.quantizer_start_fraction: found {loss.quantizer_start_fraction}"
    if not 0.0 <= loss.quantizer_start_fraction < 1.0:
        yield f"{start}, expected 0 or more and below 1"
    elif loss.quantizer_start_fraction and config.model.quantizer != "nearest":
        yield f"{start}, expected 0 with model.quantizer={config.model.quantizer}, which draws softly from the start"
    if loss.discriminator_weight:
        yield from positive("loss.discriminator_layers", loss.discriminator_layers)
        groups = config.model.norm_groups
        if groups > 0:
            yield from multiple("loss.discriminator_width", 2 * loss.discriminator_width, groups, "model.norm_groups, twice the width")


def _data(config: VQGANRunConfig, shards: int) -> Iterator[str]:
    yield from data_findings(config.data)
    for block in config.data.blocks:
        yield from _block(config, block, shards)


def _block(config: VQGANRunConfig, block: BlockConfig, shards: int) -> Iterator[str]:
    path = f"data.blocks.{block.name}"
    if block.stream != "pictures":
        yield f"{path}.stream: found {block.stream}, expected pictures, because a VQGAN reads no sequences"
        return
    for name in ("source_len", "target_len", "num_patches"):
        if getattr(block, name):
            yield f"{path}.{name}: found {getattr(block, name)}, expected 0, because a row of stream pictures has no sequences"
    yield from positive(f"{path}.rows", block.rows)
    if shards > 1:
        yield from multiple(f"{path}.rows", block.rows, shards, f"{shards} devices share the rows")
    yield from multiple(f"{path}.image_px", block.image_px, config.model.stride, "the stride of the codes")
    if not block.sources:
        yield f"{path}.sources: found none, expected at least one line"
    for index, source in enumerate(block.sources):
        if source.row != "picture":
            yield f"{path}.sources.{index}.row: found {source.row}, expected picture"
        yield from positive(f"{path}.sources.{index}.weight", source.weight)


def _eval(config: VQGANRunConfig) -> Iterator[str]:
    plan = config.eval
    if not plan.dataset:
        if plan.every_steps:
            yield f"eval.every_steps: found {plan.every_steps} without eval.dataset, expected 0 or a dataset"
        return
    for name in ("limit", "batch_rows"):
        yield from positive(f"eval.{name}", getattr(plan, name))
    for name in ("every_steps", "drawn"):
        yield from at_least(f"eval.{name}", getattr(plan, name), 0)
    yield from multiple("eval.image_px", plan.image_px, config.model.stride, "the stride of the codes")
