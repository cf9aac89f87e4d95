"""Typed records: what lies in the shards, checked once when it is read.

One image record carries every annotation that its picture has; a task reads the kind it needs. Boxes are pixels of the stored
picture, x0 y0 x1 y1, origin top left, x1 and y1 exclusive.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from google.protobuf import message

from ofa_jax.config.errors import DataError
from ofa_jax.config.rows import CodeArea
from ofa_jax.data.codes import CODES_FOLDERS, CODES_SCHEMA_VERSION, unpack_codes
from ofa_jax.data.example_message import Example
from ofa_jax.data.shards import ShardReader
from ofa_jax.data.storage import as_path, exists, is_folder, list_folder, local_copy, read_bytes


class Box(NamedTuple):
    """Pixels of the picture it is given with: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclasses.dataclass(frozen=True)
class Caption:
    text: str
    objects: tuple[str, ...] = ()  # object words that occur in the text; used to make negatives


@dataclasses.dataclass(frozen=True)
class Region:
    text: str
    box: Box


NO_ID = -1  # of a question whose dataset gives it none; 0 is an id like any other


class WeightedAnswer(NamedTuple):
    answer: str
    weight: float  # above 0, at most 1: of its loss, as of `Question.confidence`


@dataclasses.dataclass(frozen=True)
class Question:
    question: str
    answer: str  # the answer of the largest weight
    confidence: float = 1.0  # that weight
    kind: str = "other"  # answer type, for type-aware negatives and for the baseline per question type
    question_id: int = NO_ID  # the dataset's own, by which leaderboards know the question
    answers: tuple[str, ...] = ()  # what people answered, one string each, as they wrote it: ten in VQAv2. Empty: `answer` is all there is
    targets: tuple[WeightedAnswer, ...] = ()  # all that fine-tuning learns to answer, `answer` among them. Empty: `answer` alone
    objects: tuple[str, ...] = ()  # what a detector saw in the picture, surest first (VinVL's labels in OFA's tables)


@dataclasses.dataclass(frozen=True)
class DetectedObject:
    label: str
    box: Box


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    record_id: str
    dataset: str
    image: bytes  # an encoded JPEG, PNG or WebP file
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    regions: tuple[Region, ...] = ()
    questions: tuple[Question, ...] = ()
    objects: tuple[DetectedObject, ...] = ()
    codes: np.ndarray | None = None  # int32 [grid * grid], raster order: codes of the central square, or of the whole picture


@dataclasses.dataclass(frozen=True)
class TextRecord:
    record_id: str
    dataset: str
    text: str


@dataclasses.dataclass(frozen=True)
class LabelledText(TextRecord):
    """A text, or two, with what is to be said of them. It is a text too: what reads texts alone (infilling) reads its first one."""

    text2: str  # empty where there is no second text
    answer: str  # the name of a label ("entailment", never its number: data sets number them differently), or the text to be written


Record = ImageRecord | TextRecord


class RecordError(ValueError):
    """A content error of one record: what the quarantine counts. `str()` is one sentence with record, field, found, expected."""

    def __init__(self, *, dataset: str, record: str, reason: str, field: str, found: str, expected: str):
        super().__init__(f"{dataset} record {record}: field {field}: found {found}, expected {expected}")
        self.dataset, self.record, self.reason = dataset, record, reason
        self.field, self.found, self.expected = field, found, expected


# ------------------------------------------------------------------------------------------------------------------ on disk
# A dataset directory is an ordinary TFDS one (`dataset_info.json`, `features.json`, ArrayRecord shards of tf.train.Example), so that
# `tfds.builder_from_directory` opens it; beside them lie `manifest.json` and `negatives.json`. Records are read here straight from the
# shards: about twice as fast as through TFDS's feature decoding (80 against 180 microseconds a record before version 2 of the schema), and
# without importing TFDS.

SCHEMA_VERSION = 2  # of the features below; part of every manifest. 2: ids of questions, people's answers
OBJECT_SEPARATOR = "&&"  # joins the object words of one caption, as in the official TSV files

# Feature -> kind, for the writers (`prepare.builders.base`) and the reader. Kinds: text, image (encoded bytes), int, id (an integer of
# 64 bits), float, box (four floats), ints (any number of them). A nested dictionary is a list of such items, stored as parallel columns
# "captions/text", ... Answers of people are one list a record: the first `num_answers` are those of the first question, and so on; so are
# targets.
Fields = dict[str, "str | dict[str, str]"]
IMAGE_FEATURES: Fields = {
    "record_id": "text",
    "image": "image",
    "width": "int",
    "height": "int",
    "captions": {"text": "text", "objects": "text"},
    "regions": {"text": "text", "box": "box"},
    "questions": {
        "question": "text", "answer": "text", "confidence": "float", "kind": "text", "question_id": "id", "num_answers": "int",
        "num_targets": "int", "objects": "text",
    },
    "answers": {"text": "text"},
    "targets": {"text": "text", "weight": "float"},
    "objects": {"label": "text", "box": "box"},
    "codes": "ints",
}  # fmt: skip
TEXT_FEATURES: Fields = {"record_id": "text", "text": "text"}
LABELLED_TEXT_FEATURES: Fields = {"record_id": "text", "text": "text", "text2": "text", "answer": "text"}
FEATURES: dict[str, Fields] = {  # by the manifest's "record"
    "image": IMAGE_FEATURES,
    "text": TEXT_FEATURES,
    "labelled_text": LABELLED_TEXT_FEATURES,
}

_VALUES = {
    "text": "bytes_list",
    "image": "bytes_list",
    "int": "int64_list",
    "id": "int64_list",
    "ints": "int64_list",
    "float": "float_list",
    "box": "float_list",
}


def columns(fields: Fields) -> dict[str, str]:
    """Returns the flat columns of a schema as stored in an Example: name ("captions/text") -> kind."""
    flat = {}
    for name, kind in fields.items():
        flat.update({f"{name}/{key}": sub for key, sub in kind.items()} if isinstance(kind, dict) else {name: kind})
    return flat


COLUMNS = {record: columns(fields) for record, fields in FEATURES.items()}
# Columns that shards of this version made earlier lack, with what each of `questions` has then; None: a list that is empty.
_LATER: dict[str, int | bytes | None] = {"questions/num_targets": 0, "questions/objects": b"", "targets/text": None, "targets/weight": None}


def parse_record(data: bytes, *, kind: str, dataset: str, record: str, num_codes: int) -> Record:
    """Returns the checked record of one serialized Example of a `FEATURES` kind.

    `record` names it until its own id is known ("split#index"), `num_codes` bounds image codes. Raises `RecordError`, reasons "schema",
    "empty_text", "box_outside", "confidence", "question_id", "token_range". The picture itself is not decoded here.
    """
    try:
        features = Example.FromString(data).features.feature
    except message.DecodeError:
        raise RecordError(
            dataset=dataset,
            record=record,
            reason="schema",
            field="(record)",
            found=f"{len(data)} bytes that do not parse",
            expected="an Example",
        ) from None
    raw: dict[str, Any] = {}
    for name, column in COLUMNS[kind].items():
        if name not in features and name in _LATER:
            raw[name] = [] if _LATER[name] is None else [_LATER[name]] * len(raw["questions/question"])
            continue
        if name not in features:
            raise RecordError(
                dataset=dataset, record=record, reason="schema", field=name, found="no such field", expected=f"a {column} field"
            )
        raw[name] = getattr(features[name], _VALUES[column]).value
    check = _Checker(dataset, record)
    check.record = record_id = check.text("record_id", check.one("record_id", raw["record_id"]))
    if "image" not in raw:
        text = check.text("text", check.one("text", raw["text"]))
        if "answer" not in raw:
            return TextRecord(record_id, dataset, text)
        text2 = check.decoded("text2", check.one("text2", raw["text2"]))
        return LabelledText(record_id, dataset, text, text2, check.text("answer", check.one("answer", raw["answer"])))
    width, height = check.one("width", raw["width"]), check.one("height", raw["height"])
    if width < 1 or height < 1:
        check.fail("schema", "width", f"a picture of {width}x{height} pixels", "at least 1x1")
    captions = tuple(
        Caption(check.text("captions/text", text), tuple(words.decode().split(OBJECT_SEPARATOR)) if words else ())
        for text, words in check.items(raw, "captions")
    )
    regions = tuple(
        Region(check.text("regions/text", text), check.box("regions/box", box, width, height)) for text, box in check.items(raw, "regions")
    )
    people = check.answers("questions/num_answers", list(raw["questions/num_answers"]), "answers/text", raw["answers/text"])
    targets = check.targets(list(raw["questions/num_targets"]), raw["targets/text"], raw["targets/weight"])
    check.question_ids("questions/question_id", list(raw["questions/question_id"]))
    questions = tuple(
        Question(
            check.text("questions/question", question),
            check.text("questions/answer", answer),
            check.confidence("questions/confidence", confidence),
            check.text("questions/kind", kind),
            question_id,
            answers,
            weighted,
            tuple(check.decoded("questions/objects", seen).split(OBJECT_SEPARATOR)) if seen else (),
        )
        for (question, answer, confidence, kind, question_id, _, _, seen), answers, weighted in zip(
            check.items(raw, "questions"), people, targets, strict=False
        )
    )
    objects = tuple(
        DetectedObject(check.text("objects/label", label), check.box("objects/box", box, width, height))
        for label, box in check.items(raw, "objects")
    )
    codes = check.codes("codes", np.array(raw["codes"], np.int32), num_codes) if raw["codes"] else None
    return ImageRecord(record_id, dataset, check.one("image", raw["image"]), width, height, captions, regions, questions, objects, codes)


@dataclasses.dataclass
class _Checker:
    """The checks of one record; each returns the value or raises `RecordError`."""

    dataset: str
    record: str

    def fail(self, reason: str, field: str, found: str, expected: str) -> NoReturn:
        raise RecordError(dataset=self.dataset, record=self.record, reason=reason, field=field, found=found, expected=expected)

    def one(self, field: str, values: Sequence[Any]) -> Any:
        if len(values) != 1:
            self.fail("schema", field, f"{len(values)} values", "one")
        return values[0]

    def items(self, raw: dict[str, Any], name: str) -> zip:
        """Returns the items of a list, each as its columns' values; a box is a slice of four."""
        kinds = IMAGE_FEATURES[name]
        assert isinstance(kinds, dict)
        parts = []
        for key, kind in kinds.items():
            values = raw[f"{name}/{key}"]
            parts.append([values[i : i + 4] for i in range(0, len(values), 4)] if kind == "box" else values)
        if len({len(part) for part in parts}) > 1:
            self.fail(
                "schema",
                name,
                "columns of " + ", ".join(f"{len(part)} {key}" for part, key in zip(parts, kinds, strict=True)),
                "equal lengths",
            )
        return zip(*parts, strict=True)

    def decoded(self, field: str, value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            self.fail("schema", field, "bytes that are no UTF-8", "text")

    def text(self, field: str, value: bytes) -> str:
        text = self.decoded(field, value)
        if not text.strip():
            self.fail("empty_text", field, repr(text), "at least one word")
        return text

    def confidence(self, field: str, value: float) -> float:
        if not 0 < value <= 1:  # NaN fails too
            self.fail("confidence", field, repr(value), "more than 0 and at most 1")
        return value

    def question_ids(self, field: str, values: list[int]) -> None:
        if values and min(values) < NO_ID:
            self.fail("question_id", field, str(min(values)), f"an id of 0 or more, or {NO_ID} for none")

    def answers(self, field: str, counts: list[int], texts_field: str, texts: Sequence[bytes]) -> Iterable[tuple[str, ...]]:
        """Returns the people's answers of each question in turn. A person may have left one empty, so they need no word."""
        if sum(counts) != len(texts) or (counts and min(counts) < 0):
            self.fail("schema", field, f"{counts}", f"numbers of 0 or more whose sum is the {len(texts)} values of {texts_field}")
        left = (self.decoded(texts_field, text) for text in texts)
        return (tuple(itertools.islice(left, count)) for count in counts) if texts else itertools.repeat(())

    def targets(self, counts: list[int], texts: Sequence[bytes], weights: Sequence[float]) -> Iterable[tuple[WeightedAnswer, ...]]:
        """Returns the weighted answers of each question in turn."""
        if len(texts) != len(weights) or sum(counts) != len(texts) or (counts and min(counts) < 0):
            found = f"{len(texts)} texts, {len(weights)} weights"
            self.fail("schema", "targets", found, f"as many as the sum of questions/num_targets, {counts}, all 0 or more")
        left = (
            WeightedAnswer(self.text("targets/text", text), self.confidence("targets/weight", weight))
            for text, weight in zip(texts, weights, strict=True)
        )
        return (tuple(itertools.islice(left, count)) for count in counts) if texts else itertools.repeat(())

    def box(self, field: str, values: Sequence[float], width: int, height: int) -> Box:
        if len(values) != 4:
            self.fail("schema", field, f"{len(values)} numbers", "four")
        x0, y0, x1, y1 = values
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            self.fail("box_outside", field, f"{x0:g},{y0:g},{x1:g},{y1:g}", f"x0 < x1 and y0 < y1 within {width}x{height}")
        return Box(x0, y0, x1, y1)

    def codes(self, field: str, values: np.ndarray, num_codes: int) -> np.ndarray:
        if round(len(values) ** 0.5) ** 2 != len(values):
            self.fail("schema", field, f"{len(values)} codes", "a square grid")
        if values.min() < 0 or values.max() >= num_codes:
            self.fail("token_range", field, f"codes from {values.min()} to {values.max()}", f"0 to {num_codes - 1}")
        return values


class RecordSource:
    """Random access to the records of one split, with the codes of side shards where they are given. It pickles and survives a fork."""

    def __init__(
        self,
        *,
        dataset: str,
        split: str,
        shards: ShardReader,
        record: str,
        num_codes: int,
        codes: ShardReader | None = None,
        lengths: tuple[str | os.PathLike[str], str] | None = None,
    ):
        """record: the kind, a key of `FEATURES`. num_codes: bound of image codes. codes: a record of `data.codes` for each of `shards`.
        lengths: the file of the records' token lengths, and the row kind whose tasks they are of."""
        self.dataset, self.split, self.num_codes = dataset, split, num_codes
        self._lengths = lengths
        self._shards, self._codes, self._kind = shards, codes, record

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Record:
        """Returns record `index`, 0 <= index < len. Raises `RecordError` for its content, OSError when the shard cannot be read."""
        return self.read([index])[0]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records at `indices`, in their order; one read per shard. Raises as `__getitem__`, for the first bad record."""
        records = [
            parse_record(data, kind=self._kind, dataset=self.dataset, record=f"{self.split}#{index}", num_codes=self.num_codes)
            for index, data in zip(indices, self._shards.read_bytes(indices), strict=True)
        ]
        if self._codes is None:
            return records
        return [self._with_codes(record, data) for record, data in zip(records, self._codes.read_bytes(indices), strict=True)]

    def read_bytes(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the serialized Examples at `indices`. Raises IndexError outside the split, OSError when a shard cannot be read."""
        return self._shards.read_bytes(indices)

    def sequence_lengths(self, row: str) -> np.ndarray:
        """Returns tokens of source and target of every record's sequences, uint16 [records, tasks, 2], the tasks of row kind `row` in
        order.

        The array lies on the disk (a copy of it, where the data is in a store) and is read where it is used. Raises `DataError` when the
        data set was prepared without lengths, or with those of another row kind.
        """
        if self._lengths is None or self._lengths[1] != row:
            found = "none" if self._lengths is None else f"those of row kind {self._lengths[1]}"
            raise DataError(
                f"dataset {self.dataset}, split {self.split}: token lengths of {row} rows: found {found}, expected them for a block with "
                f"length classes; prepare it with `python launch/prepare.py build`, or leave out the block's classes"
            )
        lengths = np.load(local_copy(self._lengths[0]), mmap_mode="r")
        if len(lengths) != len(self):
            raise DataError(f"{self._lengths[0]}: found lengths of {len(lengths)} records, expected {len(self)}; prepare it again")
        return lengths

    def _with_codes(self, record: Record, data: bytes) -> Record:
        assert isinstance(record, ImageRecord), self.dataset
        check = _Checker(self.dataset, record.record_id)
        try:
            codes = unpack_codes(data)
        except ValueError as error:
            check.fail("schema", "codes", str(error), "packed codes")
        return dataclasses.replace(record, codes=None if codes is None else check.codes("codes", codes, self.num_codes))


def load_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the JSON object in a file or object. Raises `DataError` when it is missing or does not parse."""
    try:
        return json.loads(read_bytes(path).decode())
    except FileNotFoundError:
        raise DataError(f"{path} is missing; prepare the data again: {_HOW}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} does not parse as JSON ({error}); prepare the data again: {_HOW}") from None


_HOW = (
    "`python launch/prepare.py quickstart` makes the quickstart's data, `launch/prepare.py build <dataset>` a public data set; or name "
    "another directory with --config.data.dir"
)


def existing_folder(data_dir: str | os.PathLike[str]) -> Any:
    """Returns the data directory as a path (`data.storage.as_path`). Raises `DataError`, one sentence with what to run, when it does not
    exist."""
    root = as_path(data_dir)
    if not is_folder(root):
        raise DataError(f"data directory {root} does not exist; {_HOW}")
    return root


def open_records(data_dir: str | os.PathLike[str], dataset: str, split: str, *, codes: CodeArea | None = None) -> RecordSource:
    """Returns the records of `data_dir/dataset`, split `split`; with `codes`, those of its side shards of that area (`data.codes`) too.

    `data_dir` is a local folder or an address (gs://, s3://). A dataset whose own records hold codes (`num_codes` in its manifest) needs no
    side shards. Checks at once that every shard is there with the size its manifest names. Raises `DataError`, one sentence with what to
    run.
    """
    folder = as_path(data_dir) / dataset
    files = list_folder(folder)
    if files is None:
        root = existing_folder(data_dir)
        have = sorted(name for name, size in (list_folder(root) or {}).items() if size is None and exists(root / name / "manifest.json"))
        raise DataError(f"data directory {root} has no dataset {dataset!r} (it has: {', '.join(have) or 'none'}); {_HOW}")
    manifest = load_json(folder / "manifest.json")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{folder / 'manifest.json'}: field schema_version: found {manifest.get('schema_version')}, "
            f"expected {SCHEMA_VERSION}; prepare it again with --rebuild: {_HOW}"
        )
    if split not in manifest["splits"]:
        raise DataError(f"dataset {dataset!r} in {as_path(data_dir)} has no split {split!r}; it has: {', '.join(manifest['splits'])}")
    side = load_codes_manifest(folder, dataset, codes) if codes and not manifest.get("num_codes") else None
    return RecordSource(
        dataset=dataset,
        split=split,
        shards=_open_shards(folder, manifest["splits"][split]["shards"], f"{dataset}/{split}", files),
        record=manifest["record"],
        num_codes=side["num_codes"] if side else manifest.get("num_codes", 0),
        codes=_open_codes(folder, manifest, side, split, CODES_FOLDERS[codes]) if codes and side else None,
        lengths=(folder / lengths, manifest["row"]) if (lengths := f"lengths-{split}.npy") in files else None,
    )


def load_codes_manifest(folder: str | os.PathLike[str], dataset: str, area: CodeArea) -> dict[str, Any]:
    """Returns what the side shards of an area, in a dataset's directory, say of themselves. Raises `DataError` when there are none, or
    unfinished ones, or those of another area."""
    path = as_path(folder) / CODES_FOLDERS[area] / "manifest.json"
    how = f"make them with `python launch/prepare.py codes --area={area}`"
    if not exists(path):
        raise DataError(f"dataset {dataset!r}: found no finished image codes ({path} is missing), expected them; {how}")
    manifest = load_json(path)
    for field, expected in {"schema_version": CODES_SCHEMA_VERSION, "area": area}.items():
        if (found := manifest.get(field)) != expected:
            raise DataError(f"{path}: field {field}: found {found}, expected {expected}; {how} --rebuild")
    return manifest


def _open_codes(folder: Any, manifest: dict[str, Any], side: dict[str, Any], split: str, name: str) -> ShardReader:
    own = [(shard["file"], shard["records"]) for shard in manifest["splits"][split]["shards"]]
    theirs = [(shard["of"], shard["records"]) for shard in side["splits"].get(split, {"shards": ()})["shards"]]
    if own != theirs:
        raise DataError(
            f"{folder / name}: found codes of other shards than {folder} has, expected one for each; make them again with "
            f"`python launch/prepare.py codes --area={side['area']} --rebuild`"
        )
    codes = folder / name
    return _open_shards(codes, side["splits"][split]["shards"], f"codes of {folder.name}/{split}", list_folder(codes) or {})


def _open_shards(folder: Any, shards: Sequence[dict[str, Any]], name: str, files: Mapping[str, int | None]) -> ShardReader:
    """files: what the folder holds, name -> bytes."""
    paths, lengths, sizes = ([folder / one["file"] for one in shards], *([one[key] for one in shards] for key in ("records", "bytes")))
    for path, size in zip(paths, sizes, strict=True):
        found = files.get(path.name)
        if found != size:
            said = "no file" if found is None else f"{found} bytes"
            raise DataError(f"{path}: found {said}, expected {size} bytes as its manifest says; prepare it again: {_HOW}")
    return ShardReader(paths, lengths, sizes=sizes, name=name)
