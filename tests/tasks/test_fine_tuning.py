"""The tasks of fine-tuning, rendered: sources, targets, prompts and what carries loss, to the space."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ofa_jax.config.errors import ConfigError
from ofa_jax.config.rows import ANSWERS, PROMPTED_ROWS
from ofa_jax.config.schema import BOS_ID, EOS_ID, PAD_ID, BlockConfig, SourceConfig, VocabConfig
from ofa_jax.data.batch import collate
from ofa_jax.data.records import (
    Box,
    Caption,
    ImageRecord,
    LabelledText,
    Question,
    RecordError,
    Region,
    TextRecord,
    WeightedAnswer,
)
from ofa_jax.data.transforms.image import transform
from ofa_jax.tasks.rows import RowBuilder
from ofa_jax.tasks.table import ROWS, TASKS
from ofa_jax.vocab.tokenizer import Tokenizer

TEXTS = LabelledText("1", "scenes", "A Dog  ran. ", "It moved", "entailment")


def block(row: str, **changes: Any) -> BlockConfig:
    text = row in ("summary", "painting", "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2")
    fields: dict[str, Any] = {"source_len": 128, "target_len": 128}
    sources = (SourceConfig("scenes", row),)  # type: ignore[arg-type]
    return BlockConfig("b", "text" if text else "pairs", rows=1, sources=sources, image_px=0 if text else 64, **(fields | changes))


@pytest.fixture
def render(builder: RowBuilder, tokenizer: Tokenizer) -> Callable[..., tuple[str, str, str]]:
    """Returns (source, target, prompt) as text; the prompt's ids are those of the source."""

    def run(row: str, record: ImageRecord | TextRecord) -> tuple[str, str, str]:
        made = builder(block(row), SourceConfig("scenes", row), record, np.random.default_rng(0))  # type: ignore[arg-type]
        [sequence] = made.sequences
        assert (made.image is None) == (block(row).stream == "text")
        source = sequence.source_ids[1:-1]
        kind = {(): "none", tuple(source): "source", (*source, EOS_ID): "source_eos"}[sequence.prompt_ids]
        assert sequence.ends == (kind != "source_eos")
        return tokenizer.decode(source), tokenizer.decode(sequence.target_ids), kind

    return run


def test_pictures(render: Callable[..., tuple[str, str, str]], picture: ImageRecord) -> None:
    caption = dataclasses.replace(picture, captions=(Caption("A red-circle, and " + "a dog " * 20),))
    words = "A redcircle and " + " ".join(["a dog"] * 8) + " a"
    assert render("short_caption", caption) == (" what does the image describe?", " " + words, "none")
    asked = dataclasses.replace(picture, questions=(Question("  What is it", "red dog", 0.6),))
    assert render("answer", asked) == (" what is it?", " red dog", "source")
    where = dataclasses.replace(picture, regions=(Region("The dog/left", Box(8, 6, 64, 48)),))
    assert render("referring", where)[0] == ' which region does the text " the dog left " describe?'
    said = dataclasses.replace(picture, captions=(Caption("A dog."),), questions=(Question("It is red", "neutral", kind="entailment"),))
    source = ' can image and text1 " a dog. " imply text2 " it is red "?'
    assert render("entailment", said) == (source, " maybe", "source")
    alone = dataclasses.replace(said, captions=(), questions=(Question("It is red", "contradiction"),))
    assert render("entailment", alone) == (' does the image describe " it is red "?', " no", "source")
    named = dataclasses.replace(picture, captions=(Caption("tench, Tinca tinca"),))
    assert render("class_name", named) == (" what does the image describe?", " tench, Tinca tinca", "none")
    painted = dataclasses.replace(picture, captions=(Caption("a dog"),))
    source, target, kind = render("painting", painted)
    assert (source, kind) == (" what is the complete image? caption: a dog", "none") and target.startswith("<code_63><code_62>")


ASKED = (
    Question("What is it", "dog", 1.0, targets=(WeightedAnswer("dog", 1.0), WeightedAnswer("red dog", 0.6), WeightedAnswer("cat", 0.3))),
    Question("Is it red?", "yes", 0.9, answers=("yes", "yes", "yes", "no")),
)


def test_every_answer_of_a_question_is_learned_with_its_weight(builder: RowBuilder, tokenizer: Tokenizer, picture: ImageRecord) -> None:
    record = dataclasses.replace(picture, questions=ASKED)
    expected = {
        (" what is it?", " dog"): 1.0,
        (" what is it?", " red dog"): 0.6,
        (" what is it?", " cat"): 0.3,
        (" is it red?", " yes"): 0.9,
    }
    seen: Counter[tuple[str, str]] = Counter()
    for seed in range(400):
        [sequence] = builder(block("answer"), SourceConfig("scenes", "answer"), record, np.random.default_rng(seed)).sequences
        said = tokenizer.decode(sequence.source_ids[1:-1]), tokenizer.decode(sequence.target_ids)
        assert sequence.confidence == expected[said]
        seen[said] += 1
    assert seen.keys() == expected.keys() and min(seen.values()) > 70, "each as often"
    several = builder(block("answer", pairs_per_image=4), SourceConfig("scenes", "answer"), record, np.random.default_rng(0))
    assert sorted(sequence.confidence for sequence in several.sequences) == [0.3, 0.6, 0.9, 1.0], "without replacement"
    assert builder.items(record, "vqa") == ASKED, "pretraining learns the best answer"


def test_evaluation_asks_a_question_once(vocab: VocabConfig, tokenizer: Tokenizer, picture: ImageRecord) -> None:
    judged = RowBuilder(vocab, tokenizer, {}, transform, train=False)
    assert judged.items(dataclasses.replace(picture, questions=ASKED), "answering") == ASKED


def test_objects_behind_questions(vocab: VocabConfig, tokenizer: Tokenizer, picture: ImageRecord) -> None:
    seen = tuple(f"red dog {n}" for n in range(40))
    record = dataclasses.replace(picture, questions=(Question("What is it", "dog", objects=seen),))
    for train in (True, False):
        build = RowBuilder(vocab, tokenizer, {}, transform, train=train, question_objects=3)
        example = build.build_one(block("answer"), "answering", "scenes", record, 0, np.random.default_rng(0))
        source = " what is it? object: red dog 0 red dog 1 red dog 2"
        assert tokenizer.decode(example.sequence.source_ids[1:-1]) == source
        assert tokenizer.decode(list(example.sequence.prompt_ids)) == source, "the decoder reads them too"
        without = dataclasses.replace(record, questions=(Question("What is it", "dog"),))
        with pytest.raises(RecordError, match="field questions/objects: found none, expected some, as data.question_objects=3 asks"):
            build.items(without, "answering")
        assert build.items(without, "vqa"), "questions of other rows have none"
    plain = RowBuilder(vocab, tokenizer, {}, transform)
    example = plain.build_one(block("answer"), "answering", "scenes", record, 0, np.random.default_rng(0))
    assert tokenizer.decode(example.sequence.source_ids[1:-1]) == " what is it?"


@pytest.mark.parametrize(
    ("row", "answer", "source", "target"),
    [
        ("cola", "acceptable", ' is the text " a dog ran. " grammatically correct?', " yes"),
        ("mnli", "neutral", ' can text1 " a dog ran. " imply text2 " it moved "?', " maybe"),
        ("mrpc", "not_equivalent", ' does text1 " a dog ran. " and text2 " it moved " have the same semantics?', " no"),
        ("qnli", "entailment", ' does " it moved " contain the answer to question " a dog ran. "?', " yes"),
        ("qqp", "equivalent", ' is question " a dog ran. " and question " it moved " equivalent?', " yes"),
        ("rte", "not_entailment", ' can text1 " a dog ran. " imply text2 " it moved "?', " no"),
        ("sst2", "negative", ' is the sentiment of text " a dog ran. " positive or negative?', " negative"),
    ],
)
def test_glue(render: Callable[..., tuple[str, str, str]], row: str, answer: str, source: str, target: str) -> None:
    record = dataclasses.replace(TEXTS, answer=answer)
    assert render(row, record) == (source, target, "source_eos")
    with pytest.raises(ConfigError, match="dataset scenes: found the label '1', expected one of"):
        render(row, dataclasses.replace(TEXTS, answer="1"))


def test_a_summary(render: Callable[..., tuple[str, str, str]]) -> None:
    record = dataclasses.replace(TEXTS, text="the <unk> fox", text2="", answer="a fox <unk>")
    assert render("summary", record) == (' what is the summary of article " the unk fox "?', "a fox unk", "none")


def test_arrays_behind_a_prompt(builder: RowBuilder, tokenizer: Tokenizer, picture: ImageRecord) -> None:
    asked = dataclasses.replace(picture, questions=(Question("what", "dog"),))
    made = block("answer", source_len=12, target_len=6)
    arrays = collate([builder(made, made.sources[0], asked, np.random.default_rng(0))], made, [0])
    source, answer = tokenizer.encode(" what?"), tokenizer.encode(" dog")
    pad = [PAD_ID] * (11 + 6 - 1 - len(source) - len(answer))
    assert arrays.decoder_ids.tolist() == [[BOS_ID, *source, *answer, *pad]]
    assert arrays.target_ids.tolist() == [[PAD_ID] * len(source) + [*answer, EOS_ID, *pad]]
    glue = block("rte", source_len=48, target_len=4)
    arrays = collate([builder(glue, glue.sources[0], TEXTS, np.random.default_rng(0))], glue, [0])
    source, answer = arrays.source_ids[0][arrays.source_ids[0] != PAD_ID].tolist(), tokenizer.encode(" yes")
    pad = [PAD_ID] * (47 + 4 - len(source) - len(answer) + 1)
    assert arrays.decoder_ids.tolist() == [[*source, *answer[:-1], *pad]]
    assert arrays.target_ids.tolist() == [[PAD_ID] * (len(source) - 1) + [*answer, *pad]]


def test_a_long_question_is_cut_and_its_answer_is_not(builder: RowBuilder, tokenizer: Tokenizer, picture: ImageRecord) -> None:
    asked = dataclasses.replace(picture, questions=(Question("what is it " * 20, "dog"),))
    made = block("answer", source_len=24, target_len=8)
    [sequence] = builder(made, made.sources[0], asked, np.random.default_rng(0)).sequences
    assert tokenizer.decode(sequence.target_ids) == " dog" and 20 <= len(sequence.source_ids) <= 24
    with pytest.raises(ConfigError, match="target_len: found 1, expected at least"):
        builder(block("answer", target_len=1), made.sources[0], asked, np.random.default_rng(0))


def test_records_of_another_kind(builder: RowBuilder, picture: ImageRecord, text_record: TextRecord) -> None:
    for row, record, found in (("cola", picture, "image"), ("summary", text_record, "text"), ("answer", TEXTS, "labelled text")):
        with pytest.raises(ConfigError, match=f"dataset (scenes|prose): found {found} records, expected .* records for {row}"):
            builder.items(record, row)
    with pytest.raises(RecordError, match="captions and codes"):
        builder.items(dataclasses.replace(picture, codes=None), "painting")


def test_what_a_config_may_say_agrees_with_the_tasks() -> None:
    for row, tasks in ROWS.items():
        prompted = {task.prompt != "none" for task in tasks}
        assert prompted == {row in PROMPTED_ROWS}, row
        assert all(set(task.answers) == set(ANSWERS.get(row, ())) for task in tasks), row
    assert {task.name for task in TASKS.values() if task.answers} == set(ANSWERS)
