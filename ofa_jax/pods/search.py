"""Which mesh, micro-batches and rematerialisation suit a run on a topology: what is legal, roughly judged, then compiled.

The rough judgement is arithmetic on the config, to choose what is compiled first; what fits is for the compiler to say. Nothing that is
tried changes what is learned, except where the statistics of batch norm must be of smaller groups for micro-batches to be possible, or
where rows do not divide among the chips and the batch is multiplied; a proposal says so.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import jax

from ofa_jax.config.check import problems
from ofa_jax.config.debug import with_rows
from ofa_jax.config.errors import UserError
from ofa_jax.config.hardware import Topology
from ofa_jax.config.load import override
from ofa_jax.config.schema import ModelConfig, RowBlock, RunConfig
from ofa_jax.models.operations import sequences_a_row, step_operations
from ofa_jax.pods.estimate import SPARE, Estimate, estimate
from ofa_jax.pods.program import DoesNotFitError, compile_train_step

FSDP = (1, 2, 4, 8, 16, 32, 64)
MICROS = (1, 2, 4, 8, 16)
TRIES = 6  # compilations of a search
REMATS = ("none", "dots", "full")
BATCHES = (1, 2, 4, 8, 16)
_AGAIN = {"none": 1.0, "dots": 1.05, "full": 4 / 3}  # operations of a step: "full" runs layers forward twice
# Of what the formulas below count: workspace, and arrays that the compiler keeps beside. OFA-large with 48 rows a v5p chip and remat=dots
# was compiled to 11.2 GB of activations, where they count 8.3.
_BESIDE = 1.35


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to run a config."""

    config: RunConfig
    arg: str  # of the config's file, which gives its rows; "" for none
    flags: tuple[str, ...]  # of the command line
    changes: tuple[str, ...]  # what is learned that it changes, in words; () where nothing
    peak: float  # bytes of a chip, roughly
    seconds: float  # of a row on all chips, roughly


def choices(config: RunConfig, topology: Topology) -> list[Choice]:
    """Returns the legal ways to run `config` on the topology that roughly fit, fastest first.

    config: with the hardware's layers, and rows as its file gives them without an argument. Micro-batches and larger batches are tried only
    where nothing without them fits.
    """
    for batch in BATCHES:
        for micros in MICROS:
            found = [one for one in _legal(config, topology, batch=batch, micros=micros) if fits_roughly(one, topology)]
            if found:
                return sorted(found, key=lambda one: one.seconds)
    return []


def search(
    config: RunConfig,
    topology: Topology,
    devices: Sequence[jax.Device],
    *,
    num_tasks: int,
    wanted: int,
    rows_core_s: float,
    row_bytes: float,
) -> Estimate:
    """Compiles choices in order until `wanted` fit, prints each, and returns the estimate of the one with the most rows a second.

    Where one takes more than was judged, what follows is judged by it. Raises `UserError` where nothing is legal, or nothing of the first
    `TRIES` fits.
    """
    left = choices(config, topology)
    if not left:
        raise UserError(
            f"topology {topology.text}: found no mesh, micro-batches and batch up to {BATCHES[-1]} times as large that share the rows of "
            f"{config.name} and are judged to fit, expected one; take more chips, or fewer rows"
        )
    found: list[Estimate] = []
    factor = 1.0  # how much more than judged
    for count in range(1, TRIES + 1):
        left = [one for one in left if factor * one.peak <= (1 - SPARE) * topology.hardware.program_bytes]
        if not left or len(found) == wanted:
            break
        one = left.pop(0)
        _say(f"{count}. {f'--config=...:{one.arg} ' if one.arg else ''}{' '.join(one.flags)}: judged {one.peak / 1e9:.1f} GB, compiling")
        try:
            compiled = compile_train_step(one.config, topology, devices, num_tasks=num_tasks)
        except DoesNotFitError as error:
            _say(f"   {error}")
            factor = max(factor, topology.hardware.program_bytes / one.peak)
            continue
        made = estimate(one.config, topology, compiled, rows_core_s=rows_core_s, row_bytes=row_bytes)
        changes = f"; {'; '.join(one.changes)}" if one.changes else ""
        said = f"{made.memory.peak / 1e9:.1f} of {made.memory_limit / 1e9:.1f} GB, {made.rows_s:,.0f} rows/s at best, MFU {made.mfu:.0%}"
        _say(f"   {said}{changes}{'' if made.fits else ': does not leave a tenth'}")
        factor = max(factor, made.memory.peak / one.peak)
        if made.fits:
            found.append(made)
    if not found:
        raise UserError(f"topology {topology.text}: found nothing that fits among what was compiled; take more chips, or fewer rows")
    return max(found, key=lambda made: made.rows_s)


def _say(line: str) -> None:
    print(line, flush=True)


def fits_roughly(one: Choice, topology: Topology) -> bool:
    """Returns whether it is judged to leave `SPARE` of a chip's memory."""
    return one.peak <= (1 - SPARE) * topology.hardware.program_bytes


def _legal(config: RunConfig, topology: Topology, *, batch: int, micros: int) -> Iterator[Choice]:
    chips, hardware = topology.chips, topology.hardware
    slices = [fsdp for fsdp in FSDP if topology.slice_chips % fsdp == 0]
    remats = REMATS[REMATS.index(hardware.remat) :] if hardware.remat else REMATS
    for fsdp, remat in itertools.product(slices, remats):
        one = choose(config, topology, batch=batch, micros=micros, fsdp=fsdp, remat=remat)
        if next(problems(one.config, chips), None) is None:
            yield one


def choose(config: RunConfig, topology: Topology, *, batch: int, micros: int, fsdp: int, remat: str) -> Choice:
    """Returns one way to run `config`, which need not be legal. Length classes are joined where the chips cannot share them, and the
    statistics of batch norm are of as many images as every part of every block has, where micro-batches forbid them to be of all."""
    chips = topology.chips
    shards = chips * micros
    several = [part.rows for block in config.data.blocks for part in block.classes]
    arg = [f"batch={batch}"] * (batch > 1) + [f"shards={shards}"] * any(batch * rows % shards for rows in several)
    changes = [f"the batch is {batch} times as large"] * (batch > 1)
    config = with_rows(config, batch=batch, shards=shards)
    flags = [f"mesh.fsdp={fsdp}", f"model.remat={remat}"]
    if micros > 1:
        flags.append(f"optimizer.accumulate={micros}")
        if config.model.image_norm == "batch" and not config.model.norm_group and (group := _largest_group(config, shards)):
            flags.append(f"model.norm_group={group}")
            changes.append(f"batch norm has the statistics of {group} image(s), not of the whole stream")
    config = override(config, [tuple(flag.split("=", 1)) for flag in flags])  # type: ignore[misc]
    said = tuple(f"--config.{flag}" for flag in flags)
    return Choice(config, ",".join(arg), said, tuple(changes), rough_bytes(config, topology), rough_s(config, topology))


def _largest_group(config: RunConfig, parts: int) -> int:
    """Images that can share statistics in every block, where it is cut into so many parts; 0 where its rows do not divide."""
    rows = [block.rows for block in config.data.row_blocks if block.stream != "text"]
    return 0 if any(count % parts for count in rows) else math.gcd(*(count // parts for count in rows))


def rough_bytes(config: RunConfig, topology: Topology) -> float:
    """Returns roughly the bytes of a chip that a step takes: state, gathered parameters, gradients, and what is kept for them."""
    item = 2 if config.precision == "bf16" else 4
    shards = config.mesh.fsdp * config.mesh.tensor
    num_params = rough_params(config)
    copies = 4.0 if config.optimizer.ema_decay else 3.0
    state = copies * 4.0 * num_params / shards
    gathered = (item if config.mesh.fsdp > 1 else 0) * num_params + 4.0 * num_params  # and gradients, whole until they are summed
    rows = config.mesh.tensor / topology.chips / config.optimizer.accumulate  # of a block's, that a chip has at once
    kept = sum(rows * block.rows * _kept(config, block, item) for block in config.data.row_blocks)
    return state + gathered + _BESIDE * kept


def rough_params(config: RunConfig) -> float:
    """Returns roughly the number of parameters: products of matrices only."""
    model, net = config.model, config.model.resnet
    d, f = model.width, model.ffn_width
    layers = model.encoder_layers * (4 * d * d + 2 * d * f) + model.decoder_layers * (8 * d * d + 2 * d * f)
    convolutions, channels = 0.0, net.base_width
    for stage, blocks in enumerate(net.blocks):
        width = net.base_width * 2**stage
        out = width * net.expansion
        convolutions += channels * (width + out) + blocks * (9 * width * width + width * out) + (blocks - 1) * out * width
        channels = out
    return layers + config.vocab.padded_size * d + (convolutions if model.reads_pictures else 0.0)


def _kept(config: RunConfig, block: RowBlock, item: int) -> float:
    """Bytes that one row of a block keeps for the backward pass."""
    model, net = config.model, config.model.resnet
    total, patches = 0.0, 0
    if block.image_px:
        side = -(-block.image_px // net.stem_stride)
        side = -(-side // 2) if net.stem_pool else side
        channels = net.base_width
        for stage, (blocks, stride) in enumerate(zip(net.blocks, net.strides, strict=True)):
            out = net.base_width * 2**stage * net.expansion
            inside = 1.0 if model.remat != "none" else 4.0
            total += item * inside * channels * side**2
            side = -(-side // stride)
            total += item * inside * (blocks - 1) * out * side**2
            channels = out
        patches = block.num_patches or side**2
    each = sequences_a_row(block) // block.num_places
    for place in range(block.num_places):
        text, target = block.lens_of(place)
        n = text + patches
        encoder = _kept_by_layer(model, n, n, item)
        decoder = _kept_by_layer(model, target, target, item) + _kept_by_layer(model, target, n, item) / 2 + item * 2.0 * n * model.width
        total += each * (model.encoder_layers * encoder + model.decoder_layers * decoder)
    return total


def _kept_by_layer(model: ModelConfig, queries: int, keys: int, item: int) -> float:
    """Bytes that a layer keeps for one sequence: its input; with remat=dots its products too; with none, scores and everything else."""
    width = {"full": 1.0 * model.width, "dots": 6.0 * model.width + model.ffn_width, "none": 18.0 * model.width + 4.0 * model.ffn_width}
    scores = model.num_heads * queries * keys * (item + 4.0) if model.remat == "none" else 0.0
    return item * queries * width[model.remat] + scores


def rough_s(config: RunConfig, topology: Topology) -> float:
    """Returns roughly the seconds of a row: half of the peak for the operations, and parameters gathered and gradients summed over
    one ring a dimension of the torus. For an order, not for a prediction."""
    hardware = topology.hardware
    rows = sum(block.rows for block in config.data.row_blocks)
    operations = sum(step_operations(config).values()) * _AGAIN[config.model.remat]
    local = operations / (topology.chips * 0.5 * hardware.bf16_flops)
    fsdp = config.mesh.fsdp
    rings = max(1, round(math.log(fsdp, max(topology.shape)))) if fsdp > 1 else 0
    sent = 6.0 * rough_params(config) * (fsdp - 1) / fsdp / (max(rings, 1) * 2 * hardware.link_rate)
    outer = max(hardware.torus - rings, 1) * 2 * hardware.link_rate
    sent += 8.0 * rough_params(config) / fsdp / outer if topology.chips > fsdp else 0.0
    return (local + sent) / rows
