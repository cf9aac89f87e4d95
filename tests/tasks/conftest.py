"""One record of every kind, a small tokeniser and a row builder."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ofa_jax.config.schema import BlockConfig, SourceConfig, VocabConfig
from ofa_jax.data.batch import Row
from ofa_jax.data.records import Box, Caption, DetectedObject, ImageRecord, Question, Region, TextRecord
from ofa_jax.data.transforms.image import transform
from ofa_jax.tasks.base import Negatives, TaskContext
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import INSTRUCTIONS
from ofa_jax.vocab import sentencepiece
from ofa_jax.vocab.tokenizer import Tokenizer, load_tokenizer

PASSAGE = "The quick brown fox jumps over the lazy dog, and nobody in the old village ever asked it why. " * 40
NEGATIVES = Negatives(
    captions=("Two cats on a mat.", "A red circle, and a dog!", "a blue sea"),
    objects=("cat", "dog", "tree"),
    answers={"animal": ("dog", "cat"), "how many": ("0", "1", "2", "many"), "other": ("red", "left", "table")},
)


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> VocabConfig:
    path = tmp_path_factory.mktemp("tasks") / "tokenizer.model"
    texts = [*INSTRUCTIONS, PASSAGE.lower(), *(text.lower() for text in NEGATIVES.captions)] * 3
    num_text = sentencepiece.train(texts, path, 400)
    return VocabConfig(tokenizer="sentencepiece", path=str(path), num_text=num_text, num_codes=64, num_bins=100, canvas_px=64)


@pytest.fixture(scope="session")
def tokenizer(vocab: VocabConfig) -> Tokenizer:
    return load_tokenizer(vocab)


@pytest.fixture(scope="session")
def context(tokenizer: Tokenizer) -> TaskContext:
    return TaskContext(tokenizer, NEGATIVES, "scenes", source_len=128, target_len=128)


@pytest.fixture(scope="session")
def builder(vocab: VocabConfig, tokenizer: Tokenizer) -> RowBuilder:
    return RowBuilder(vocab, tokenizer, {"scenes": NEGATIVES}, transform)


def png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def picture() -> ImageRecord:
    """128 x 96 pixels: at a network input of 64 px all x are halved and all y are times 2/3."""
    return ImageRecord(
        "picture-1",
        "scenes",
        png(128, 96),
        128,
        96,
        captions=(Caption("A red-circle and a DOG.", ("dog",)), Caption("a dog"), Caption("something red")),
        regions=(Region("The dog/left", Box(8, 6, 64, 48)), Region("the <person>", Box(0, 0, 128, 96))),
        questions=(Question("  What is it?", "dog", 0.6, "animal"), Question("How many dogs?", "1", 1.0, "how many")),
        objects=(DetectedObject("dog", Box(8, 6, 64, 48)), DetectedObject("traffic light", Box(100, 0, 128, 96))),
        codes=np.arange(63, 47, -1, dtype=np.int32),
    )


@pytest.fixture(scope="session")
def text_record() -> TextRecord:
    return TextRecord("text-1", "prose", PASSAGE)


@pytest.fixture(scope="session")
def block() -> Callable[..., BlockConfig]:
    def make(row: str, **changes: object) -> BlockConfig:
        stream = "text" if row == "text_infilling" else "pairs"
        fields = {"rows": 4, "source_len": 128, "target_len": 128, "image_px": 0 if stream == "text" else 64}
        return BlockConfig("block", stream, sources=(SourceConfig("scenes", row),), **(fields | changes))

    return make


@pytest.fixture(scope="session")
def rendered(tokenizer: Tokenizer) -> Callable[[Row], list[tuple[str, str, float]]]:
    """The sequences of a row as text: source, target, weight."""

    def render(row: Row) -> list[tuple[str, str, float]]:
        return [(tokenizer.decode(s.source_ids), tokenizer.decode(s.target_ids), s.confidence) for s in row.sequences]

    return render
