"""Seven tasks of GLUE: a text or two with the name of a label (https://gluebenchmark.com/tasks; STS-B and WNLI are not OFA's).

The official download has a folder for each task, with `train.tsv` and `dev.tsv`, cells never in quotes: `CoLA` (without a line of names),
`MNLI` (`dev_matched.tsv` and `dev_mismatched.tsv`), `MRPC`, `QNLI`, `QQP`, `RTE`, `SST-2`. Of MRPC the download has only `dev_ids.tsv`; the
pairs are those of Microsoft's `msr_paraphrase_train.txt`, from which GLUE's own script makes `train.tsv` and `dev.tsv`. Hugging Face's copy
(https://huggingface.co/datasets/nyu-mll/glue) has parquet files in a folder for each task, with numbers for labels: those of its card.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ofa_jax.config.errors import DataError
from ofa_jax.data.records import LabelledText, RecordError
from ofa_jax.data.storage import list_files
from ofa_jax.prepare.layouts.base import Found, Input, Kind, Layout
from ofa_jax.prepare.layouts.gathered import one_file, one_of
from ofa_jax.prepare.layouts.streams import Damaged, file_error, file_inputs, record_error, text_lines
from ofa_jax.prepare.layouts.table_rows import Problem, read_rows


@dataclasses.dataclass(frozen=True)
class _Task:
    """How a task lies on disk."""

    folder: str  # of the official download
    texts: tuple[str, ...]  # columns there: the first text, and the second
    label: str  # column there
    names: tuple[str, ...]  # of the labels, by the numbers of Hugging Face's card
    numbered: bool  # the official files have those numbers too, not the names
    hub_texts: tuple[str, ...]  # columns of Hugging Face's files; their label is "label"
    header: tuple[str, ...] = ()  # names of the columns, of official files without a line of names


_ENTAILMENT = ("entailment", "not_entailment")
_SAME = ("not_equivalent", "equivalent")  # of MRPC and of QQP, whose card says not_duplicate and duplicate: one pair of names for both
_TASKS = {
    "cola": _Task(
        "CoLA", ("sentence",), "label", ("unacceptable", "acceptable"), True, ("sentence",), ("source", "label", "author", "sentence")
    ),
    "mnli": _Task(
        "MNLI", ("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction"), False, ("premise", "hypothesis")
    ),
    "mrpc": _Task("MRPC", ("#1 String", "#2 String"), "Quality", _SAME, True, ("sentence1", "sentence2")),
    "qnli": _Task("QNLI", ("question", "sentence"), "label", _ENTAILMENT, False, ("question", "sentence")),
    "qqp": _Task("QQP", ("question1", "question2"), "is_duplicate", _SAME, True, ("question1", "question2")),
    "rte": _Task("RTE", ("sentence1", "sentence2"), "label", _ENTAILMENT, False, ("sentence1", "sentence2")),
    "sst2": _Task("SST-2", ("sentence",), "label", ("negative", "positive"), True, ("sentence",)),
}
_MATCHED = {"validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched"}
_MSR, _MSR_IDS = "msr_paraphrase_train.txt", ("#1 ID", "#2 ID")


@dataclasses.dataclass(frozen=True)
class Glue(Layout):
    """One task, a record a row, named `<split>/<row>` by its number in the file.

    Splits are train and validation; of MNLI train, validation_matched and validation_mismatched. The test files have no labels and are not
    read. Answers are names of labels: unacceptable, acceptable (CoLA); entailment, neutral, contradiction (MNLI); not_equivalent,
    equivalent (MRPC, QQP); entailment, not_entailment (QNLI, RTE); negative, positive (SST-2). `source` holds the task's folder, or is it.
    """

    KIND: ClassVar[Kind] = "labelled_text"
    PAGE: ClassVar[str] = "https://gluebenchmark.com/tasks"

    subset: str = "cola"  # cola | mnli | mrpc | qnli | qqp | rte | sst2

    def __post_init__(self) -> None:
        one_of(self, "subset", _TASKS)

    def inputs(self, gathered: Path) -> list[Input]:
        task = _TASKS[self.subset]
        files = {"train": "train", **(_MATCHED if self.subset == "mnli" else {"validation": "dev"})}
        there = [folder for folder in (f"{task.folder}/", "") if list_files(self.source, f"{folder}train.tsv")]
        if there:
            return [Input(split, split, one_file(self, f"{there[0]}{file}.tsv")) for split, file in files.items()]
        if self.subset == "mrpc" and list_files(self.source, f"**/{_MSR}"):
            path = one_file(self, f"**/{_MSR}")
            self._dev_ids()
            return [Input(split, split, path) for split in files]
        found = []
        for split in files:
            paths = [path for folder in (f"{self.subset}/", "") for path in list_files(self.source, f"{folder}{split}-*.parquet")]
            if not paths:
                raise DataError(
                    f"{self.dataset}: found neither {task.folder}/train.tsv nor {self.subset}/{split}-*.parquet in {self.source}, "
                    f"expected one of them as {self.PAGE} and the card of Hugging Face's nyu-mll/glue describe"
                )
            found += file_inputs(self, paths, split=split, endings=(".parquet",))
        return [dataclasses.replace(item, name=item.name.removeprefix(f"{self.subset}_")) for item in found]

    def read(self, item: Input) -> Iterator[Found]:
        task, hub, msr = _TASKS[self.subset], item.path.endswith(".parquet"), item.path.endswith(_MSR)
        texts, label = (task.hub_texts, "label") if hub else (task.texts, task.label)
        names = {str(number) if hub or task.numbered else name: name for number, name in enumerate(task.names)}
        held_out = self._dev_ids() if msr else frozenset()
        wanted = [*texts, label, *(_MSR_IDS if msr else ())]
        number = 0
        try:
            form = ".parquet" if hub else ".tsv"
            for number, values in read_rows(item.path, wanted, header=() if hub else task.header, quoted="never", form=form):
                record = f"{item.name}/{number}"
                validation = item.split != "train"
                if isinstance(values, Problem):
                    if not (msr and validation):  # a row of unknown ids is listed once
                        yield record_error(self, record, field=values.field, found=values.found, expected=values.expected)
                    continue
                if msr and ((values[_MSR_IDS[0]], values[_MSR_IDS[1]]) in held_out) != validation:
                    continue
                try:
                    yield self._record(record, [(column, values[column]) for column in texts], label, str(values[label]), names)
                except RecordError as error:
                    yield error
        except Damaged as error:
            yield file_error(self, item, str(error))
            return
        if not number:
            yield file_error(self, item, "a table without rows")

    def _record(self, record: str, texts: list[tuple[str, Any]], column: str, label: str, names: dict[str, str]) -> LabelledText:
        said = [self._text(record, *pair) for pair in texts]
        if label.strip() not in names:
            self.fail(record, "label", column, repr(label[:40]), " or ".join(names))
        return LabelledText(record, self.dataset, said[0], said[1] if len(said) > 1 else "", names[label.strip()])

    def _text(self, record: str, column: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            self.fail(record, "empty_text", column, f"{value!r:.60}", "at least one word")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            self.fail(record, "schema", column, f"{value[:60]!a} (no UTF-8 at {error.start})", "text in UTF-8")
        return value.strip()

    def _dev_ids(self) -> frozenset[tuple[str, str]]:
        """Returns the pairs of ids of MRPC that GLUE holds out of Microsoft's training file. Raises `DataError` when they are missing."""
        path = one_file(self, "**/dev_ids.tsv", "**/mrpc_dev_ids.tsv")
        pairs = [line.decode("utf-8", "replace").split() for _, line in text_lines(path) if line.strip()]
        if wrong := next((pair for pair in pairs if len(pair) != 2), None):
            raise DataError(f"{path}: found {' '.join(wrong)!r:.60}, expected two ids a line")
        return frozenset((first, second) for first, second in pairs)
