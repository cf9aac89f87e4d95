"""A run small enough for tests: width 32, one layer each, 32 px pictures, and real `Batch` arrays made from (seed, data_step)."""

from __future__ import annotations

import numpy as np

from ofa_jax.config.schema import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    BlockConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ResNetConfig,
    RunConfig,
    SourceConfig,
    VocabConfig,
)
from ofa_jax.data.batch import Batch, Block, Reject

TASK_NAMES = ("captioning", "matching", "image_infilling", "text_infilling")
VOCAB = VocabConfig(tokenizer="sentencepiece", num_text=50, num_codes=16, num_bins=10, canvas_px=32, pad_multiple=16)
MODEL = ModelConfig(
    width=32, ffn_width=64, num_heads=4, encoder_layers=1, decoder_layers=1,
    resnet=ResNetConfig(blocks=(1,), base_width=8, strides=(2,), stem_pool=False, stem_kernel=3),
    token_bucket_size=8, image_bucket_size=8, max_positions=24, code_image_px=16, code_stride=4, code_filler_id=64,
    dropout=0.1, encoder_drop_path_rate=0.0, decoder_drop_path_rate=0.0,
)  # fmt: skip
BLOCKS = (
    BlockConfig("pairs", "pairs", 8, 10, 6, (SourceConfig("d", "caption"),), image_px=32, pairs_per_image=1, num_patches=20),
    BlockConfig("images", "images", 8, 6, 17, (SourceConfig("d", "image_infilling"),), image_px=32),
    BlockConfig("text", "text", 8, 12, 12, (SourceConfig("d", "text_infilling"),)),
)
CONFIG = RunConfig(
    name="test",
    model=MODEL,
    vocab=VOCAB,
    data=DataConfig(blocks=BLOCKS),
    loss=LossConfig(label_smoothing=0.1, logit_chunk=8),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.1, ema_decay=0.9),
    steps=4,
    log_every=1,
)
GROUPS = {"pairs": 2, "images": 1, "text": 1}
TASK_OF_BLOCK = {"pairs": (0, 1), "images": (2,), "text": (3,)}


def make_block(config: BlockConfig, draw: np.random.Generator, vocab: VocabConfig = VOCAB) -> Block:
    """Returns a block whose targets follow from its sources, so that a model can learn it."""
    rows, group = config.rows, GROUPS[config.stream]
    count = rows * group
    source = np.full((count, config.source_len), PAD_ID, np.int32)
    decoder = np.full((count, config.target_len), PAD_ID, np.int32)
    target = np.full((count, config.target_len), PAD_ID, np.int32)
    for q in range(count):
        length = int(draw.integers(1, config.source_len - 2))
        body = draw.integers(4, vocab.num_text, size=length)
        source[q, : length + 2] = [BOS_ID, *body, EOS_ID]
        if config.stream == "images":
            answer = vocab.first_code_id + draw.integers(0, vocab.num_codes, size=config.target_len - 1)
        else:
            answer = body[: config.target_len - 1]
        decoder[q, : len(answer) + 1] = [BOS_ID, *answer]
        target[q, : len(answer) + 1] = [*answer, EOS_ID]
    pictures = config.stream != "text"
    return Block(
        images=draw.integers(0, 256, size=(rows, config.image_px, config.image_px, 3), dtype=np.uint8) if pictures else None,
        image_mask=np.arange(rows) != 3 if pictures else None,
        hole_mask=np.full(rows, config.stream == "images") if pictures else None,
        source_ids=source,
        decoder_ids=decoder,
        target_ids=target,
        confidence=draw.choice(np.float32([0.5, 1.0, 2.0]), size=count).astype(np.float32),
        code_mask=np.full(count, config.stream == "images"),
        task_ids=np.tile(np.int32(TASK_OF_BLOCK[config.stream]), rows),
        elements=np.arange(rows, dtype=np.int64),
    )


class Batches:
    """A pipeline of made-up batches: a pure function of (seed, data_step). Counts what was taken and closed."""

    def __init__(self, config: RunConfig = CONFIG):
        self.config, self.taken, self.closed = config, [], 0

    def batch(self, data_step: int) -> Batch:
        blocks = {
            block.name: make_block(block, np.random.default_rng((self.config.seed, data_step, index)), self.config.vocab)
            for index, block in enumerate(self.config.data.blocks)
        }
        rejects = (Reject("d", "r1", "image", "image", "3 bytes", "a JPEG file"),) if data_step == 1 else ()
        return Batch(data_step, blocks, rejects)

    def iterate(self, start: int):
        outer = self

        class Iterator:
            step = start

            def __next__(self) -> Batch:
                outer.taken.append(self.step)
                self.step += 1
                return outer.batch(self.step - 1)

            def close(self) -> None:
                outer.closed += 1

        return Iterator()
