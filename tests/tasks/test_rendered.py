"""The eight tasks, rendered: exact text of what the model reads and writes, to the space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ofa_jax.config.rows import PRETRAINING_ROWS
from ofa_jax.config.schema import BlockConfig, SourceConfig
from ofa_jax.data.batch import Row
from ofa_jax.data.records import Caption, ImageRecord, TextRecord
from ofa_jax.tasks.base import Task
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import ROWS, TASK_NAMES, TASKS
from ofa_jax.vocab.tokenizer import Tokenizer

Rendered = list[tuple[str, str, float]]


@pytest.fixture
def build(
    builder: RowBuilder, block: Callable[..., BlockConfig], picture: ImageRecord, rendered: Callable[[Row], Rendered]
) -> Callable[..., Rendered]:
    def one_row(row: str, seed: int = 0, dataset: str = "scenes", **changes: object) -> Rendered:
        built = builder(block(row, **changes), SourceConfig(dataset, row), picture, np.random.default_rng(seed))
        return rendered(built)

    return one_row


def test_the_tables() -> None:
    assert TASK_NAMES == (
        "captioning", "matching", "grounding", "grounded_captioning", "vqa", "detection", "image_infilling", "text_infilling",
        "short_captioning", "answering", "entailment", "classification", "image_generation", "summarisation",
        "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2",
    )  # fmt: skip
    assert {row: [task.name for task in ROWS[row]] for row in PRETRAINING_ROWS} == {
        "caption": ["captioning", "matching"],
        "question": ["vqa", "matching"],
        "grounding": ["grounding", "grounded_captioning"],
        "detection": ["detection"],
        "image_infilling": ["image_infilling"],
        "text_infilling": ["text_infilling"],
    }
    assert all(isinstance(task, Task) and task.name == name and task.metrics for name, task in TASKS.items())
    forced = [name for name, task in TASKS.items() if task.scoring == "teacher_forced"]
    assert forced == [
        "image_infilling",
        "text_infilling",
        "image_generation",
    ]


def test_captioning(build: Callable[..., Rendered]) -> None:
    found = {build("caption", seed)[0] for seed in range(20)}
    assert found == {
        (" what does the image describe?", " a red circle and a dog.", 1.0),
        (" what does the image describe?", " a dog", 1.0),
        (" what does the image describe?", " something red", 1.0),
    }


def test_matching_of_captions(build: Callable[..., Rendered]) -> None:
    found = {build("caption", seed)[1] for seed in range(200)}
    assert (' does the image describe " a red circle and a dog. "?', " yes", 1.0) in found
    assert (' does the image describe " a red circle and a cat. "?', " no", 1.0) in found  # a swapped object
    assert (' does the image describe " two cats on a mat. "?', " no", 1.0) in found  # another caption


def test_vqa(build: Callable[..., Rendered]) -> None:
    assert {build("question", seed)[0] for seed in range(20)} == {(" what is it?", " dog", 0.6), (" how many dogs?", " 1", 1.0)}


def test_matching_of_answers(build: Callable[..., Rendered]) -> None:
    found = {build("question", seed)[1] for seed in range(200)}
    assert found == {
        (' what is the answer to question " what is it? ". is " dog "?', " yes", 0.6),
        (' what is the answer to question " what is it? ". is " cat "?', " no", 0.6),  # of the same kind
        *((f' what is the answer to question " what is it? ". is " {a} "?', " no", 0.6) for a in ("red", "left")),
        (' what is the answer to question " how many dogs? ". is " 1 "?', " yes", 1.0),
        *((f' what is the answer to question " how many dogs? ". is " {a} "?', " no", 1.0) for a in ("0", "2", "many", "red", "left")),
    }


def test_grounding(build: Callable[..., Rendered]) -> None:
    """x are halved and y are times 2/3 by the resize; a bin is px / 64 * 99, rounded."""
    found = {build("grounding", seed)[0] for seed in range(20)}
    assert found == {
        (' which region does the text " the dog left " describe?', "<bin_6><bin_6><bin_50><bin_50>", 1.0),
        (' which region does the text " the person " describe?', "<bin_0><bin_0><bin_99><bin_99>", 1.0),
    }


def test_grounded_captioning(build: Callable[..., Rendered], tokenizer: Tokenizer) -> None:
    found = {build("grounding", seed)[1] for seed in range(20)}
    assert found == {
        ("  what does the region describe? region:<bin_6><bin_6><bin_50><bin_50>", " the dog left", 1.0),
        ("  what does the region describe? region:<bin_0><bin_0><bin_99><bin_99>", " the person", 1.0),
    }
    assert len(tokenizer.encode("  what")) == len(tokenizer.encode(" what")) + 1  # the second space is a token


def test_detection(build: Callable[..., Rendered]) -> None:
    target = "<bin_6><bin_6><bin_50><bin_50> dog<bin_77><bin_0><bin_99><bin_99> traffic light"
    assert build("detection") == [(" what are the objects in the image?", target, 2.0)]


def test_image_infilling(builder: RowBuilder, block: Callable[..., BlockConfig], picture: ImageRecord, build: Callable) -> None:
    target = "".join(f"<code_{code}>" for code in range(63, 47, -1))
    assert build("image_infilling") == [(" what is the image in the middle part?", target, 2.0)]
    row = builder(block("image_infilling"), SourceConfig("scenes", "image_infilling"), picture, np.random.default_rng(0))
    assert row.hole and row.sequences[0].code_mask and row.image is not None and row.image.shape == (64, 64, 3)


def test_text_infilling(
    builder: RowBuilder,
    block: Callable[..., BlockConfig],
    text_record: TextRecord,
    rendered: Callable[[Row], Rendered],
    tokenizer: Tokenizer,
) -> None:
    row = builder(block("text_infilling"), SourceConfig("prose", "text_infilling"), text_record, np.random.default_rng(0))
    [(source, target, confidence)] = rendered(row)
    assert row.image is None and not row.hole and not row.sequences[0].code_mask and confidence == 2.0
    assert source.startswith(' what is the complete text of "') and source.endswith(' "?')
    noised = source.removeprefix(' what is the complete text of "').removesuffix(' "?')
    assert noised.count("<mask>") > 3
    assert target in text_record.text.lower()
    for kept in noised.split("<mask>"):
        assert kept in target


def test_cc12m_has_no_loss_on_its_first_two_tokens(builder: RowBuilder, block: Callable[..., BlockConfig], picture: ImageRecord) -> None:
    for dataset, prefix in (("cc12m", 2), ("cc3m", 0)):
        item = builder.build_one(block("caption"), "captioning", dataset, picture, 0, np.random.default_rng(0))
        assert item.sequence.no_loss_prefix == prefix


def test_word_limits(builder: RowBuilder, block: Callable[..., BlockConfig], picture: ImageRecord, tokenizer: Tokenizer) -> None:
    """30 words of a caption to write, 80 of a caption to judge."""
    long = dataclasses.replace(picture, captions=(Caption(" ".join(["dog"] * 100)),))
    wide = block("caption", source_len=1000, target_len=1000)
    found: dict[str, set[int]] = {}
    for seed in range(20):
        for sequence in builder(wide, SourceConfig("scenes", "caption"), long, np.random.default_rng(seed)).sequences:
            task = TASK_NAMES[sequence.task_id] + tokenizer.decode(sequence.target_ids)[:4]
            found.setdefault(task, set()).add(tokenizer.decode(sequence.source_ids + sequence.target_ids).count(" dog"))
    assert found["captioning dog"] == {30} and found["matching yes"] == {80}
