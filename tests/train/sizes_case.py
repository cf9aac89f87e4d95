"""Every size of `configs/`, shrunk to what a CPU compiles and runs, with what could matter to layouts; and steps of it on a mesh.

Of the run's own config stays all but what is said here: norms, losses, optimizer, sharing of parameters, which rows sample patches.

- Depth: two layers of the decoder, of the encoder as many as the size's proportion says (huge has twice as many); of each ResNet stage a
  third of its blocks, at least two, so that every stage has stacked ones and the sizes differ as they do.
- Width: the size's own heads, 64 wide and huge's 80, but two of them, which `tensor=2` parts. The feed-forward is twice as wide.
- Rows: eight a block, one for each of eight devices. Pictures have an eighth of their side, so that 196 sampled patches of 576 are 3 of 9;
  lengths a sixteenth or so. Pairs keep their longest length class, whose two sequences have lengths of their own.
- The vocabulary is small, and padded as the real one is.
- All that is random is on: dropout, that of attention too, dropped paths, the ResNet's too, and sampled patches where the size has them.

Gradients lie on both sides of the number of elements from which `train/gradients` scatters them instead of summing them whole.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ofa_jax.config.check import check
from ofa_jax.config.rows import TASK_NAMES
from ofa_jax.config.schema import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    BlockConfig,
    DataConfig,
    EvalConfig,
    LengthClass,
    MeshConfig,
    ModelConfig,
    RowBlock,
    RunConfig,
    VocabConfig,
)
from ofa_jax.data.batch import Batch, Block
from ofa_jax.parallel.mesh import make_mesh, replicated
from ofa_jax.parallel.rules import key_path_name
from ofa_jax.train.optimizer import AdamState
from ofa_jax.train.state import TrainState, init_state, state_shardings
from ofa_jax.train.step import make_train_step, put_batch

SIZES = ("tiny", "medium", "base", "large", "huge")
NORMS = ("batch", "frozen")
STEPS = 300
LATER = {
    "base": "frozen",
    "huge": "batch",
}  # whose parameters are compared after `STEPS`: sampled patches; the deepest, of another head width
PROCESSES = MeshConfig(data=1, fsdp=2)  # of two processes: rows, parameters and the vocabulary are split
ROWS = 8  # of a block, and of a length class: one for each of eight devices
VOCAB = VocabConfig(num_text=50, num_codes=16, num_bins=10, canvas_px=64, pad_multiple=16)
_TASKS = {"pairs": ("captioning", "matching"), "detection": ("detection",), "infilling": ("image_infilling",), "text": ("text_infilling",)}


def shrunk(size: str, *, norm: str, precision: str) -> RunConfig:
    """Returns the run of `configs/ofa_<size>.py`, shrunk as the module says."""
    config: RunConfig = importlib.import_module(f"configs.ofa_{size}").get_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(_small_model(config.model), image_norm=norm),
        vocab=VOCAB,
        data=DataConfig(blocks=tuple(_small_block(block) for block in config.data.blocks)),
        loss=dataclasses.replace(config.loss, logit_chunk=4),
        eval=EvalConfig(source_len=16, target_len=16, image_px=32),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-3),
        steps=STEPS,
        precision=precision,
    )


def _small_model(model: ModelConfig) -> ModelConfig:
    width = 2 * model.head_width
    return dataclasses.replace(
        model,
        width=width,
        ffn_width=2 * width,
        num_heads=2,
        encoder_layers=2 * model.encoder_layers // model.decoder_layers,
        decoder_layers=2,
        resnet=dataclasses.replace(
            model.resnet, blocks=tuple(max(2, count // 3) for count in model.resnet.blocks), base_width=8, drop_path_rate=0.1
        ),
        token_bucket_size=8,
        image_bucket_size=8,
        max_positions=24,
        num_source_positions=26,
        num_target_positions=26,
        code_image_px=model.code_image_px // 8,
        code_filler_id=64,
        attention_dropout=0.1,
        layers="scan",  # compiles faster, and is no part of what is said of layouts
    )


def _small_block(block: BlockConfig) -> BlockConfig:
    def small(lens: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(2, length // 16) for length in lens)

    longest = block.classes[-1:] if block.stream == "pairs" else ()
    classes = tuple(LengthClass(ROWS, small(part.source_lens), small(part.target_lens)) for part in longest)
    codes = block.name == "infilling"
    return dataclasses.replace(
        block,
        rows=ROWS,
        source_len=max(4, block.source_len // 16),
        target_len=5 if codes else max(4, block.target_len // 32),
        image_px=block.image_px // 8,
        num_patches=block.num_patches // 64,
        classes=classes,
    )


def batch_of(config: RunConfig, data_step: int, *, host: int = 0, num_hosts: int = 1) -> Batch:
    """Returns the rows of one host of `num_hosts` of the batch of a step, a pure function of (seed, data_step)."""
    blocks = {}
    for index, row_block in enumerate(config.data.row_blocks):
        block = _block(row_block, np.random.default_rng((config.seed, data_step, index)))
        blocks[row_block.name] = Block(
            *(None if values is None else np.split(values, num_hosts)[host] for values in block)  # rows and sequences lie in order
        )
    return Batch(data_step, blocks, ())


def _block(config: RowBlock, draw: np.random.Generator) -> Block:
    name = config.name.split("_")[0]
    tasks = [TASK_NAMES.index(task) for task in _TASKS[name]]
    sequences = config.rows * len(tasks)
    source = np.full((sequences, config.source_len), PAD_ID, np.int32)
    decoder, target = np.full((2, sequences, config.target_len), PAD_ID, np.int32)
    for q in range(sequences):
        source_len, target_len = config.lens_of(q % len(tasks))
        body = draw.integers(4, VOCAB.num_text, size=int(draw.integers(0, source_len - 1)))
        source[q, : len(body) + 2] = [BOS_ID, *body, EOS_ID]
        count = int(draw.integers(1, target_len))
        if name == "infilling":
            answer = VOCAB.first_code_id + draw.integers(0, VOCAB.num_codes, size=target_len - 1)
        elif name == "detection":
            answer = VOCAB.first_bin_id + draw.integers(0, VOCAB.num_bins, size=count)
        else:
            answer = draw.integers(4, VOCAB.num_text, size=count)
        decoder[q, : len(answer) + 1] = [BOS_ID, *answer]
        target[q, : len(answer) + 1] = [*answer, EOS_ID]
    pictures = config.stream != "text"
    return Block(
        images=draw.integers(0, 256, size=(config.rows, config.image_px, config.image_px, 3), dtype=np.uint8) if pictures else None,
        image_mask=np.arange(config.rows) != 3 if pictures else None,
        hole_mask=np.full(config.rows, name == "infilling") if pictures else None,
        source_ids=source,
        decoder_ids=decoder,
        target_ids=target,
        confidence=draw.choice(np.float32([0.5, 1.0, 2.0]), size=sequences),
        code_mask=np.full(sequences, name == "infilling"),
        task_ids=np.tile(np.int32(tasks), config.rows),
        elements=np.arange(config.rows, dtype=np.int64),
    )


Arrays = dict[str, np.ndarray]


def start_of(config: RunConfig) -> TrainState:
    """Returns the state at step 0 as NumPy arrays."""
    return jax.device_get(init_state(config, make_mesh(MeshConfig(), devices=jax.local_devices()[:1])))


def train(config: RunConfig, mesh: Mesh, start: TrainState, *, steps: int) -> tuple[Arrays, Arrays]:
    """Runs the step that trains, on this process's rows, and returns what one step came to, and parameters and statistics after `steps`.

    Of one step: loss, sums by task, the norm of the gradient, new statistics, and the gradients as Adam's first moments, which are those
    after clipping times 1 - beta1. Raises ConfigError where the config does not fit the mesh.
    """
    check(config, mesh.size)
    state = _placed(start, state_shardings(config, mesh))
    step = make_train_step(config, mesh, num_tasks=len(TASK_NAMES))
    first: Arrays = {}
    for data_step in range(steps):
        state, metrics = step(state, put_batch(_own_batch(config, data_step), mesh))
        if data_step == 0:
            moments = next(part for part in state.opt_state if isinstance(part, AdamState)).mu
            sums = {name: getattr(metrics, name) for name in ("loss", "group_loss", "task_nll", "task_tokens", "grad_norm", "part_norms")}
            first = _whole({"metrics": sums, "stats": state.stats, "gradients": moments}, mesh)
    return first, _whole({"params": state.params, "stats": state.stats, "steps": (state.step, state.data_step)}, mesh)


def loss_of(config: RunConfig, mesh: Mesh, start: TrainState) -> float:
    """Returns the loss of the first step. Only what it takes is compiled."""
    check(config, mesh.size)
    step = make_train_step(config, mesh, num_tasks=len(TASK_NAMES))
    state = _placed(start, state_shardings(config, mesh))
    loss = jax.jit(lambda state, blocks: step(state, blocks)[1].loss)(state, put_batch(_own_batch(config, 0), mesh))
    return float(_whole({"loss": loss}, mesh)["loss"])


def _own_batch(config: RunConfig, data_step: int) -> Batch:
    return batch_of(config, data_step, host=jax.process_index(), num_hosts=jax.process_count())


def _placed(state: TrainState, shardings: Any) -> TrainState:
    """The state on a mesh that other processes may have a part in; each gives what its own devices hold."""
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda place: np.asarray(x)[place]), state, shardings)


def _whole(tree: Any, mesh: Mesh) -> Arrays:
    """The tree's arrays by their paths, each process with all of every array."""
    if jax.process_count() > 1:
        tree = jax.jit(lambda same: same, out_shardings=replicated(mesh))(tree)
    return {key_path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
