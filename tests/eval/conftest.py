"""A tiny world for evaluation: generated pictures with every annotation, a tokeniser trained on their words, a narrow model's config."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ofa_jax.config.schema import (
    BlockConfig,
    DataConfig,
    EvalConfig,
    EvalSetConfig,
    ModelConfig,
    ResNetConfig,
    RunConfig,
    SourceConfig,
    VocabConfig,
)
from ofa_jax.data.records import Box, Caption, DetectedObject, ImageRecord, Question, Region, TextRecord
from ofa_jax.data.transforms.image import transform
from ofa_jax.tasks.base import Negatives
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import INSTRUCTIONS
from ofa_jax.vocab import sentencepiece
from ofa_jax.vocab.tokenizer import load_tokenizer

PX, GRID, STRIDE, CODES = 32, 4, 4, 8
LABELS = ("cat", "dog", "tree")
COLOURS = {"cat": (220, 60, 60), "dog": (60, 60, 220), "tree": (60, 180, 60)}
TEXT = "the old dog sat under the tall tree and the cat looked at the dog from the house on the hill"


def scene(index: int, split: str) -> ImageRecord:
    """A white 40x32 picture with one to three coloured boxes and every annotation."""
    draw = np.random.default_rng((index, len(split)))
    pixels = np.full((32, 40, 3), 255, np.uint8)
    objects = []
    for k in range(1 + index % 3):
        label = LABELS[draw.integers(3)]
        x, y = int(draw.integers(0, 3)) + 13 * k, int(draw.integers(0, 18))
        pixels[y : y + 12, x : x + 10] = COLOURS[label]
        objects.append(DetectedObject(label, Box(x, y, x + 10, y + 12)))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    names = [o.label for o in objects]
    caption = " and ".join(f"a {n}" for n in names)
    return ImageRecord(
        f"{split}{index}",
        "scenes",
        out.getvalue(),
        40,
        32,
        captions=(Caption(caption, tuple(names)), Caption("a picture of " + caption, tuple(names))),
        regions=tuple(Region(f"the {o.label}", o.box) for o in objects),
        questions=(
            Question("how many objects are there?", str(len(objects)), kind="count"),
            Question("what is on the left?", names[0], kind="object"),
        ),
        objects=tuple(objects),
        codes=np.array([draw.integers(CODES)] * (GRID * GRID), np.int32),
    )


class ListSource:
    """Records in memory with the reader's interface."""

    def __init__(self, records):
        self._records = records

    def __len__(self):
        return len(self._records)

    def read(self, indices):
        return [self._records[i] for i in indices]


def open_list(source: SourceConfig) -> ListSource:
    """The tiny world's records of a dataset and split: 24 for training, 7 for validation."""
    count = 24 if source.split == "train" else 7
    if source.dataset == "prose":
        words = TEXT.split()
        return ListSource([TextRecord(f"t{i}", "prose", " ".join(words[i % 9 :] + words[: i % 9])) for i in range(count)])
    return ListSource([scene(i, source.split) for i in range(count)])


@pytest.fixture(scope="session")
def vocab(tmp_path_factory) -> VocabConfig:
    path = tmp_path_factory.mktemp("vocab") / "tokenizer.model"
    texts = [TEXT, "yes", "no", "a picture of a cat and a dog", "how many objects are there? what is on the left? 1 2 3", *INSTRUCTIONS]
    num_text = sentencepiece.train(texts * 3, path, 330)
    return VocabConfig(
        tokenizer="sentencepiece", path=str(path), num_text=num_text, num_codes=CODES, num_bins=33, canvas_px=PX, pad_multiple=16
    )


@pytest.fixture(scope="session")
def tokenizer(vocab):
    return load_tokenizer(vocab)


@pytest.fixture(scope="session")
def build_row(vocab, tokenizer) -> RowBuilder:
    negatives = {
        "scenes": Negatives(captions=("a house", "two dogs", "a hill"), objects=LABELS, answers={"count": ("1", "2", "3"), "other": LABELS})
    }
    return RowBuilder(vocab, tokenizer, negatives, transform, train=False)


@pytest.fixture(scope="session")
def config(vocab, tmp_path_factory) -> RunConfig:
    """Every task on seven held-out records, at the shapes of small training blocks."""
    folder = tmp_path_factory.mktemp("data")
    shades = np.linspace(0, 255, CODES).astype(np.uint8)
    np.savez(folder / "codebook.npz", centers=np.tile(shades[:, None, None, None], (1, STRIDE, STRIDE, 3)))

    def block(name, row, dataset="scenes"):
        text = row == "text_infilling"
        return BlockConfig(name, "text" if text else "pairs", 2, 72 if text else 40, 40, (SourceConfig(dataset, row),), 0 if text else PX)

    # One length for all: a test compiles as little as it can.
    blocks = tuple(block(row, row) for row in ("caption", "question", "grounding", "detection", "image_infilling"))
    blocks += (block("prose", "text_infilling", "prose"),)
    tasks = ("captioning", "matching", "grounding", "grounded_captioning", "vqa", "detection", "image_infilling")
    sets = tuple(EvalSetConfig(f"{t}/scenes", t, "scenes", "validation") for t in tasks)
    sets += (EvalSetConfig("text_infilling/prose", "text_infilling", "prose", "validation", limit=5),)
    model = ModelConfig(
        width=16, ffn_width=32, num_heads=2, encoder_layers=1, decoder_layers=1,
        resnet=ResNetConfig(blocks=(1, 1, 1), base_width=4, stem_pool=False), token_bucket_size=16, image_bucket_size=8, max_positions=128,
        code_image_px=PX // 2, code_stride=STRIDE, code_filler_id=64, dropout=0.0, encoder_drop_path_rate=0.0, decoder_drop_path_rate=0.0,
        convolution="matmul",
    )  # fmt: skip
    evaluation = EvalConfig(sets=sets, batch_rows=6, source_len=72, target_len=40, image_px=PX, bootstrap_samples=50, report_examples=3)
    return RunConfig(name="tiny_world", model=model, vocab=vocab, data=DataConfig(dir=str(folder), blocks=blocks), eval=evaluation)


@pytest.fixture(scope="session")
def open_source():
    return open_list
