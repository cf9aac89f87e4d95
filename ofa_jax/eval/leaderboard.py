"""Leaderboard files of an evaluation: which of its sets have a format, which ids belong in the file, and one file a point.

VQA answers go by `Question.question_id`. Captions and detections go by the image id, the integer that the record id is or ends with
(COCO_val2014_000000391895 is image 391895), and detections by the ids that the official file gives the categories of the labels.
What can be wrong with ids and official files is found by `prepare`, before anything is decoded; predictions are read as they stand in
predictions.jsonl, so a point of an earlier run gives the same file.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import EvalSetConfig
from ofa_jax.data.records import NO_ID, Question
from ofa_jax.eval.collect import PER_PICTURE, choose_items
from ofa_jax.eval.submission import ScoredBox, check_ids, first_few, write_captions, write_detections, write_vqa_answers
from ofa_jax.eval.world import World
from ofa_jax.metrics.detection_ap import rank_scores

# Task that has a format -> what its ids are of.
KINDS = {"vqa": "question", "captioning": "image", "detection": "image", "answering": "question", "short_captioning": "image"}
FOLDER, ENDING = "submissions", ".submission.json"
_LAST_NUMBER = re.compile(r"[0-9]+\Z")


@dataclasses.dataclass(frozen=True)
class Request:
    """What the flags --submission and --reference ask for."""

    folder: Path | None  # of the files; None: `FOLDER` in that of the results
    references: tuple[tuple[str, Path], ...] = ()  # (name of a set, official file); no name: every set that it can serve


@dataclasses.dataclass(frozen=True)
class Reference:
    """An official file: the ids that a leaderboard expects, each once."""

    path: Path
    kind: str  # of the ids: "question" or "image"
    ids: tuple[int, ...]
    categories: Mapping[str, int]  # name -> id; none in VQA's files and those of captions


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is known of a set's file before anything is decoded."""

    eval_set: EvalSetConfig
    ids: tuple[int, ...]  # in the order of the examples, each once
    reference: Reference | None  # holds the same ids


def request_of(submission: str | None, references: Sequence[str]) -> Request | None:
    """The request of the flags, None without --submission. `references` are FILE or SET=FILE.

    Raises ConfigError for --reference alone.
    """
    if submission is None:
        if references:
            raise ConfigError(f"--reference: found {references[0]} without --submission, expected both: it says which ids the file needs")
        return None
    named = []
    for text in references:
        name, equals, file = text.partition("=")
        # A path may hold an equals sign itself.
        named.append((name, Path(file)) if equals and not Path(text).is_file() else ("", Path(text)))
    return Request(Path(submission) if submission else None, tuple(named))


def image_id(record_id: str) -> int | None:
    """The integer that a record id is or ends with (ASCII digits, leading zeros dropped), None where it ends with none."""
    found = _LAST_NUMBER.search(record_id)
    return int(found[0]) if found else None


def read_reference(path: Path) -> Reference:
    """Reads the ids of an official JSON file: VQA's {"questions": [{"question_id"}]}, or its {"annotations": [{"question_id"}]}; COCO's
    {"images": [{"id"}], "categories": [{"id", "name"}]}.

    Raises DataError, one sentence, for a file that is missing, is no JSON or has no such list, and for ids that are no integers or
    stand there twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: found no readable file ({error.strerror or error}), expected VQA's questions or COCO's images") from error
    except ValueError as error:  # of the encoding too
        raise DataError(f"{path}: found what is no JSON ({error}), expected VQA's questions or COCO's images") from error
    fields = list(content) if isinstance(content, dict) else []
    known = {"questions": ("question", "question_id"), "images": ("image", "id"), "annotations": ("question", "question_id")}
    field = next((name for name in known if name in fields), None)
    if field is None:
        found = f"fields {first_few(fields)}" if fields else f"a JSON {type(content).__name__} without fields"
        raise DataError(f"{path}: found {found}, expected questions or annotations (VQA) or images (COCO)")
    kind, key = known[field]
    ids = _ids(path, field, content[field], key)
    if not ids:
        raise DataError(f"{path}: field {field}: found an empty list, expected every {kind}")
    categories = content.get("categories", []) if field == "images" else []
    numbers = _ids(path, "categories", categories, "id")
    names = [category.get("name") for category in categories]
    for number, name in enumerate(names):
        if not isinstance(name, str) or names.index(name) < number:
            raise DataError(f"{path}: categories[{number}]: field name: found {name!r}, expected a text that no category before has")
    return Reference(path, kind, ids, dict(zip(names, numbers, strict=True)))


def _ids(path: Path, field: str, rows: Any, key: str) -> tuple[int, ...]:
    """The ids of the objects in a list of an official file, each once."""
    if not isinstance(rows, list):
        raise DataError(f"{path}: field {field}: found a JSON {type(rows).__name__}, expected a list of objects")
    for number, row in enumerate(rows):
        found = row.get(key) if isinstance(row, dict) else row
        if not isinstance(row, dict) or not isinstance(found, int) or isinstance(found, bool):
            raise DataError(f"{path}: {field}[{number}]: field {key}: found {str(found)[:60]!r}, expected an integer")
    counts = Counter(row[key] for row in rows)
    twice = [i for i, count in counts.items() if count > 1]
    if twice:
        raise DataError(f"{path}: {field}: field {key}: found {len(twice)} ids more than once ({first_few(twice)}), expected each once")
    return tuple(counts)


class Submissions:
    """The leaderboard files of an evaluation. Build it with `prepare`."""

    def __init__(self, folder: Path | None, plans: Mapping[str, _Plan]):
        self._folder, self._plans = folder, plans
        self._written: dict[Path, int] = {}

    def __contains__(self, set_name: str) -> bool:
        """Whether a set has a format."""
        return set_name in self._plans

    def path(self, results: Path, name: str) -> Path:
        """Where the file called `name` of an evaluation goes whose results are in a folder."""
        return (self._folder or results / FOLDER) / f"{name}{ENDING}"

    def write(self, set_name: str, lines: Sequence[dict[str, Any]], *, source: str, results: Path, name: str) -> str:
        """Writes `path(results, name)` from the set's lines of predictions.jsonl, and returns what was written as a sentence.

        source: what an error calls the lines. Objects whose label is no category of
        the official file have no place in the format: they are left out, counted and named in the sentence. An object's score is
        1 / (1 + its place in the output), as in `ap50`. Raises DataError for lines that are not those of the set.
        """
        plan = self._plans[set_name]
        path = self.path(results, name)
        task = plan.eval_set.task
        read = [_Line(source, number, line) for number, line in enumerate(lines, start=1)]
        if task == "detection":
            assert plan.reference is not None
            boxes, lost = _scored_boxes(read, plan.reference.categories)
            write_detections(path, boxes, expected_ids=plan.ids)
            said = f"{len(boxes)} images, {sum(len(objects) for _, objects in boxes)} objects"
            if lost:
                named = first_few([f"{label!r} {count}x" for label, count in lost.most_common()])
                said += f"; {lost.total()} more of {len(lost)} labels are left out, no categories of {plan.reference.path}: {named}"
        elif task in PER_PICTURE:
            write_captions(path, [(line.image_id(), line.get("prediction", str)) for line in read], expected_ids=plan.ids)
            said = f"{len(lines)} captions"
        else:
            answers = [(line.get("question_id", int), line.get("prediction", str)) for line in read]
            write_vqa_answers(path, answers, expected_ids=plan.ids)
            said = f"{len(lines)} answers"
        if plan.reference is None and plan.eval_set.limit:
            said += f"; no --reference, and limit={plan.eval_set.limit} may leave out what a leaderboard expects"
        return f"{path}: {said}"

    def write_stored(self, set_name: str, predictions: Path, *, results: Path, name: str) -> str:
        """Writes the file from a file of predictions, as `write` does.

        Returns what was written as a sentence, or nothing where these very predictions were read before. Raises as `write`.
        """
        stamp = predictions.stat().st_mtime_ns
        if self._written.get(predictions) == stamp:
            return ""
        said = self.write(set_name, _read_lines(predictions), source=str(predictions), results=results, name=name)
        self._written[predictions] = stamp
        return said


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of predictions.jsonl, read field by field."""

    source: str
    number: int
    content: dict[str, Any]

    def fail(self, field: str, found: str, expected: str) -> DataError:
        again = "remove the file, and the same command computes the point again"
        return DataError(f"{self.source} line {self.number}: field {field}: found {found}, expected {expected}; {again}")

    def get(self, field: str, kind: type) -> Any:
        value = self.content.get(field)
        if not isinstance(value, kind):
            raise self.fail(field, f"{str(value)[:60]!r} of type {type(value).__name__}", f"one of type {kind.__name__}")
        return value

    def image_id(self) -> int:
        found = image_id(self.get("record", str))
        if found is None:
            raise self.fail("record", repr(self.content["record"]), "an id that ends with a number")
        return found

    def objects(self) -> list[tuple[str, list[float]]]:
        found = self.get("prediction", list)
        if not all(isinstance(o, dict) and isinstance(o.get("label"), str) and len(o.get("box") or ()) == 4 for o in found):
            raise self.fail("prediction", str(found)[:60], "objects with a label and a box of four numbers")
        return [(o["label"], o["box"]) for o in found]


def _scored_boxes(lines: Sequence[_Line], categories: Mapping[str, int]) -> tuple[list[tuple[int, list[ScoredBox]]], Counter[str]]:
    """The objects of every image as the format has them, and how often each label is no category."""
    boxes: list[tuple[int, list[ScoredBox]]] = []
    lost: Counter[str] = Counter()
    for line in lines:
        objects = line.objects()
        scored = zip(objects, rank_scores(len(objects)), strict=True)
        boxes.append((line.image_id(), [(categories[label], box, score) for (label, box), score in scored if label in categories]))
        lost.update(label for label, _ in objects if label not in categories)
    return boxes, lost


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise _Line(str(path), number, {}).fail("(line)", f"what is no JSON ({error})", "an object") from error
            if not isinstance(line, dict):
                raise _Line(str(path), number, {}).fail("(line)", text[:60].strip(), "an object")
            lines.append(line)
    return lines


def prepare(world: World, sets: Sequence[EvalSetConfig], request: Request) -> Submissions:
    """Reads the official files and the ids of the sets that have a format, and checks that they agree.

    Raises ConfigError for flags that do not fit the sets, and DataError for official files or records whose ids are missing, repeated or
    others than expected. Nothing is decoded.
    """
    able = [s for s in sets if s.task in KINDS]
    if not able:
        raise ConfigError(
            f"--submission: found tasks {', '.join(dict.fromkeys(s.task for s in sets))}, expected a set of {', '.join(KINDS)}: no other "
            "task has a leaderboard file"
        )
    references = _assign(able, [(name, read_reference(path)) for name, path in request.references])
    for eval_set in able:
        if eval_set.task == "detection" and eval_set.name not in references:
            raise ConfigError(
                f"--submission: set {eval_set.name}: found no official file with categories, expected --reference=FILE: detections go "
                "by their ids (--sets leaves the set out)"
            )
    plans = {}
    for eval_set in able:
        ids, reference = _ids_of(world, eval_set), references.get(eval_set.name)
        if reference is not None:
            limit = f", limit={eval_set.limit}" if eval_set.limit else ""
            head = f"set {eval_set.name} ({eval_set.dataset}/{eval_set.split}{limit}) beside {reference.path}"
            check_ids(head, KINDS[eval_set.task], ids, reference.ids)
        plans[eval_set.name] = _Plan(eval_set, ids, reference)
    return Submissions(request.folder, plans)


def _assign(sets: Sequence[EvalSetConfig], references: Sequence[tuple[str, Reference]]) -> dict[str, Reference]:
    """The official file of every set that has one: the file that names it, else the one that can serve it."""

    def serves(reference: Reference, eval_set: EvalSetConfig) -> bool:
        return KINDS[eval_set.task] == reference.kind and (eval_set.task != "detection" or bool(reference.categories))

    names = [s.name for s in sets]
    found: dict[str, Reference] = {}
    for name, reference in sorted(references, key=lambda pair: not pair[0]):  # named ones first
        what = f"--reference={name + '=' if name else ''}{reference.path}"
        holds = f"{reference.kind} ids{' and categories' if reference.categories else ''}"
        if name and name not in names:
            raise ConfigError(f"{what}: found set {name!r}, expected one of {', '.join(names)}")
        fitting = [s for s in sets if serves(reference, s) and (s.name == name if name else all(s.name != n for n, _ in references))]
        if not fitting:
            wanted = f"those that set {name} needs" if name else "those of a set that no other file names"
            raise ConfigError(f"{what}: found {holds}, expected {wanted}: {', '.join(f'{s.name} ({s.task})' for s in sets)}")
        for eval_set in fitting:
            if eval_set.name in found:
                other = found[eval_set.name].path
                raise ConfigError(f"{what}: found {other} for set {eval_set.name} too, expected one file: write {eval_set.name}=FILE")
            found[eval_set.name] = reference
    return found


def _ids_of(world: World, eval_set: EvalSetConfig) -> tuple[int, ...]:
    """The ids of a set's examples, in their order."""
    owners: dict[int, str] = {}
    kind = KINDS[eval_set.task]
    field = "questions/question_id" if kind == "question" else "record_id"
    items = choose_items(world.config, eval_set, build_row=world.build_row, open_source=world.open_source, with_pictures=False)
    for chosen in items:
        record, item = chosen.record.record_id, chosen.item
        head = f"set {eval_set.name}: {eval_set.dataset} record {record}: field {field}: found "
        if isinstance(item, Question) and kind == "question":
            number, what = item.question_id, f"{item.question_id} (no id) for {item.question!r}"
            found = None if number == NO_ID else number
        else:
            found, what = image_id(record), repr(record)
        if found is None:
            expected = "an id of 0 or more" if kind == "question" else "an id that is or ends with a number, the image id"
            raise DataError(f"{head}{what}, expected {expected}: leaderboards go by it")
        if found in owners:
            raise DataError(f"{head}{kind} id {found}, which record {owners[found]} has too, expected ids that differ")
        owners[found] = record
    return tuple(owners)
