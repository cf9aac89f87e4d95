"""Everything the quickstart learns from, made from pip packages alone: easy-VQA, scenes of OpenMoji drawings, prose and a tokeniser.

The codes of the scenes come later, from a VQGAN trained on them (configs/quickstart_vqgan.py, then `launch/prepare.py codes`).

`prepare` makes what is missing, part by part; a finished part is not made again, and a part made with other options is never replaced
silently. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.data.records import ImageRecord, Record, TextRecord, load_json, open_records
from ofa_jax.prepare import codebook, manifest
from ofa_jax.prepare.builders import base, easy_vqa, prose, scenes
from ofa_jax.vocab import sentencepiece

# Seconds on two CPU cores, for the estimate that is printed before a part starts.
ESTIMATES_S = {"easy_vqa": 6, "scenes": 60, "prose": 8, "tokenizer": 6}
# The words of all instructions (OFA's templates), so that each of them is one piece.
INSTRUCTIONS = (
    'which region does the text " " describe?',
    "what does the region describe? region:",
    'does the image describe " "?',
    'what is the answer to question " ". is " "?',
    "what does the image describe?",
    "what is the image in the middle part?",
    "what are the objects in the image?",
    'what is the complete text of " "?',
)
_SCENES_IN_TOKENIZER = 3_000
_INSTRUCTION_REPEATS = 300


@dataclasses.dataclass(frozen=True)
class QuickstartOptions:
    """Options of every part; `num_text` counts the text ids of the config (MASK included, which is no piece of the model file)."""

    easy_vqa: easy_vqa.EasyVqaOptions = dataclasses.field(default_factory=easy_vqa.EasyVqaOptions)
    scenes: scenes.ScenesOptions = dataclasses.field(default_factory=scenes.ScenesOptions)
    prose: prose.ProseOptions = dataclasses.field(default_factory=prose.ProseOptions)
    num_text: int = 2_000


def prepare(
    data_dir: Path, *, options: QuickstartOptions, rebuild: bool = False, progress: Callable[[str], None] = print
) -> dict[str, float]:
    """Makes `data_dir/{easy_vqa,scenes,prose,tokenizer.model}`, with patches as codes also codebook.npz.

    Returns the seconds each part took; 0.0 was there already.

    Raises `DataError` when a part was made with other options and `rebuild` is off.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    took = {}
    parts: dict[str, tuple[dict[str, Any], Callable[[], None]]] = {
        "easy_vqa": (
            base.options_of(easy_vqa.EasyVqa, options.easy_vqa),
            lambda: _build(easy_vqa.EasyVqa, data_dir, options.easy_vqa, 4_000, progress),
        ),
        "scenes": (base.options_of(scenes.Scenes, options.scenes), lambda: _build_scenes(data_dir, options.scenes, progress)),
        "prose": (base.options_of(prose.Prose, options.prose), lambda: _build(prose.Prose, data_dir, options.prose, 20_000, progress)),
    }
    for name, (part, make) in parts.items():
        done = manifest.is_done(data_dir / name, options=part, rebuild=rebuild)
        if name == "scenes":
            done = done and _codebook_fits(data_dir, options.scenes)
        took[name] = _timed(name, done, make, progress)
    model, made_of = data_dir / "tokenizer.model", _tokenizer_options(data_dir, options.num_text)
    done = tokenizer_is_done(model, options=made_of, rebuild=rebuild or any(took.values()))
    took["tokenizer"] = _timed("tokenizer", done, lambda: train_tokenizer(data_dir, model, num_text=options.num_text), progress)
    return took


def _timed(name: str, done: bool, make: Callable[[], None], progress: Callable[[str], None]) -> float:
    if done:
        progress(f"{name}: already prepared")
        return 0.0
    progress(f"{name}: preparing (about {ESTIMATES_S[name]} s on two cores)")
    start = time.monotonic()
    make()
    seconds = time.monotonic() - start
    progress(f"{name}: done in {seconds:.1f} s")
    return seconds


def _build(
    builder: type[base.RecordBuilder], data_dir: Path, options: base.Options, max_records: int, progress: Callable[[str], None]
) -> None:
    base.build(builder, data_dir=data_dir, options=options, max_records=max_records, progress=progress)


def _build_scenes(data_dir: Path, options: scenes.ScenesOptions, progress: Callable[[str], None]) -> None:
    more: dict[str, Any] = {}
    if options.num_codes:
        progress(f"scenes: {options.num_codes} image codes by k-means from {options.codebook_pictures:,} pictures")
        centers = scenes.fit_codebook(options)
        codebook.save(data_dir / "codebook.npz", centers)
        more = {"centers": centers, "codebook_digest": manifest.file_digest(data_dir / "codebook.npz")}
    largest = max(getattr(options, split) for split in scenes.SPLITS)
    base.build(scenes.Scenes, data_dir=data_dir, options=options, max_records=largest, progress=progress, **more)


def _codebook_fits(data_dir: Path, options: scenes.ScenesOptions) -> bool:
    """Says whether the codebook, if there is to be one, is that of the scenes' codes (a run may have been cut off between the two)."""
    if not options.num_codes:
        return True
    path = data_dir / "codebook.npz"
    return path.exists() and manifest.file_digest(path) == load_json(data_dir / "scenes" / "manifest.json")["codebook_sha256"]


def texts_of(record: Record) -> Iterator[tuple[str, str]]:
    """Yields (field, text) for every text of a record that a task may show."""
    if isinstance(record, TextRecord):
        yield "text", record.text
        return
    assert isinstance(record, ImageRecord)
    for caption in record.captions:
        yield "caption", caption.text
    for region in record.regions:
        yield "region", region.text
    for question in record.questions:
        yield "question", question.question
        yield "answer", question.answer
    for item in record.objects:
        yield "label", item.label


def tokenizer_texts(data_dir: Path) -> Iterator[str]:
    """Yields the texts that the tokeniser is trained on: training splits only, and the instructions."""
    for dataset, limit in (("prose", None), ("scenes", _SCENES_IN_TOKENIZER), ("easy_vqa", None)):
        source = open_records(data_dir, dataset, "train")
        for record in source.read(range(min(len(source), limit or len(source)))):
            for _, text in texts_of(record):
                yield text
    for _ in range(_INSTRUCTION_REPEATS):
        yield from INSTRUCTIONS


def _tokenizer_options(data_dir: Path, num_text: int) -> dict[str, Any]:
    made_of = {name: load_json(data_dir / name / "manifest.json")["options_hash"] for name in ("prose", "scenes", "easy_vqa")}
    return {"num_text": num_text, "made_of": made_of}


def tokenizer_is_done(model: Path, *, options: dict[str, Any], rebuild: bool) -> bool:
    """Says whether `model` is there and was trained with these options. Raises `DataError` when it was trained with others."""
    note = model.with_suffix(".json")
    if rebuild or not (model.exists() and note.exists()):
        return False
    if load_json(note)["options_hash"] == manifest.options_hash(options):
        return True
    raise DataError(f"{model} was trained with other options or data ({note}); add --rebuild to replace it, or give another --data_dir")


def train_tokenizer(data_dir: Path, model: Path, *, num_text: int) -> None:
    """Trains `model` on the prepared training splits, writes its note beside it, and adds token lengths to the manifests."""
    sentencepiece.train(tokenizer_texts(data_dir), model, num_text - 1)
    options = _tokenizer_options(data_dir, num_text)
    tokenizer = sentencepiece.SentencePieceTokenizer(VocabConfig(tokenizer="sentencepiece", path=str(model), num_text=num_text))
    for dataset in ("prose", "scenes", "easy_vqa"):
        source = open_records(data_dir, dataset, "train")
        lengths: dict[str, list[int]] = {}
        for record in source.read(range(min(len(source), _SCENES_IN_TOKENIZER))):
            for field, text in texts_of(record):
                lengths.setdefault(field, []).append(len(tokenizer.encode(" " + text)))
        histogram = {field: manifest.length_histogram(values) for field, values in lengths.items()}
        manifest.add_token_lengths(data_dir / dataset, histogram, tokenizer_digest=tokenizer.digest)
    manifest.write_json(
        model.with_suffix(".json"),
        {"options": options, "options_hash": manifest.options_hash(options), "sha256": manifest.file_digest(model), "num_text": num_text},
    )
