"""What all builders share: schema to TFDS features, records to TFDS examples, and writing one dataset directory in one move."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# TFDS asks an online service whether a new version exists and probes cloud buckets unless told otherwise before its import.
os.environ.setdefault("NO_GCE_CHECK", "true")
import tensorflow_datasets as tfds

from ofa_jax.data.records import FEATURES, OBJECT_SEPARATOR, Fields, ImageRecord, LabelledText, Record, TextRecord
from ofa_jax.prepare import manifest as manifests

Progress = Callable[[str], None]
MAX_SHARD_RECORDS = 10_000  # random reads slow down a hundredfold in huge shards


@dataclasses.dataclass(frozen=True)
class Described:
    """What a dataset says of itself in its manifest."""

    record: str  # "image", "text" or "labelled_text": key of `data.records.FEATURES`
    source: str
    licence: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of every dataset's options; all fields go into the manifest and their hash decides whether it is rebuilt."""

    seed: int = 1


def features_of(fields: Fields) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of a schema of `data.records`."""
    made = {
        "text": tfds.features.Text,
        "image": lambda: tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "int": lambda: np.int32,
        "id": lambda: np.int64,
        "float": lambda: np.float32,
        "box": lambda: tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "ints": lambda: tfds.features.Tensor(shape=(None,), dtype=np.int32),
    }
    return tfds.features.FeaturesDict(
        {
            name: tfds.features.Sequence({key: made[sub]() for key, sub in kind.items()}) if isinstance(kind, dict) else made[kind]()
            for name, kind in fields.items()
        }
    )


def example_of(record: Record) -> dict[str, Any]:
    """Returns what TFDS encodes for a record, by the feature names of `data.records`."""
    if isinstance(record, LabelledText):
        return {"record_id": record.record_id, "text": record.text, "text2": record.text2, "answer": record.answer}
    if isinstance(record, TextRecord):
        return {"record_id": record.record_id, "text": record.text}
    return {
        "record_id": record.record_id,
        "image": record.image,
        "width": record.width,
        "height": record.height,
        "captions": [{"text": c.text, "objects": OBJECT_SEPARATOR.join(c.objects)} for c in record.captions],
        "regions": [{"text": r.text, "box": np.array(r.box, np.float32)} for r in record.regions],
        "questions": [
            {
                "question": q.question,
                "answer": q.answer,
                "confidence": q.confidence,
                "kind": q.kind,
                "question_id": q.question_id,
                "num_answers": len(q.answers),
                "num_targets": len(q.targets),
                "objects": OBJECT_SEPARATOR.join(q.objects),
            }
            for q in record.questions
        ],
        "answers": [{"text": answer} for q in record.questions for answer in q.answers],
        "targets": [{"text": target.answer, "weight": target.weight} for q in record.questions for target in q.targets],
        "objects": [{"label": o.label, "box": np.array(o.box, np.float32)} for o in record.objects],
        "codes": np.zeros(0, np.int32) if record.codes is None else record.codes.astype(np.int32),
    }


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A TFDS builder whose splits are iterators of our records; subclasses set DESCRIBED and `records`."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIBED: Described

    def __init__(self, *, options: Options, progress: Progress = lambda _: None, **kwargs: Any):
        self.options, self.progress = options, progress
        super().__init__(file_format="array_record", **kwargs)

    def records(self, split: str) -> Iterator[Record]:
        """Yields the records of a split. Deterministic: options and split decide every byte."""
        raise NotImplementedError

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits, train first."""
        raise NotImplementedError

    def negatives(self) -> dict[str, Any]:
        """Returns {"captions": [...], "objects": [...], "answers": {kind: [...]}} of the training split, after it was generated."""
        return {"captions": [], "objects": [], "answers": {}}

    def facts(self) -> dict[str, Any]:
        """Returns what the manifest says beyond options: held-out things, counts of annotations, measured baselines."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        described = self.DESCRIBED
        return self.dataset_info_from_configs(
            features=features_of(FEATURES[described.record]), description=described.source, license=described.licence, homepage=""
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in self.splits()}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in self.records(split):
            yield record.record_id, example_of(record)


def options_of(builder_class: type[RecordBuilder], options: Options) -> dict[str, Any]:
    """Returns what decides a dataset's bytes, for its manifest: the builder's version (raised when its output changes) and its options."""
    return {"version": str(builder_class.VERSION), **dataclasses.asdict(options)}


def build(
    builder_class: type[RecordBuilder], *, data_dir: Path, options: Options, max_records: int, progress: Progress, **inputs: Any
) -> Path:
    """Writes `data_dir/<dataset>` and returns it; `max_records` bounds the largest split, `inputs` go to the builder.

    TFDS writes into a scratch folder first; the finished directory appears in one rename, so an interrupted run leaves nothing half made.
    """
    final = data_dir / builder_class.name
    scratch = data_dir / f".{builder_class.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    builder = builder_class(options=options, progress=progress, data_dir=os.fspath(scratch), **inputs)
    tfds.core.utils.tqdm_utils.disable_progress_bar()
    config = tfds.download.DownloadConfig(num_shards=-(-max_records // MAX_SHARD_RECORDS), compute_stats="skip")
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints of downloads, of which there are none
        builder.download_and_prepare(download_config=config)
    written = Path(builder.data_dir)
    manifests.write_json(written / "negatives.json", builder.negatives())
    manifests.write(
        written,
        dataset=builder_class.name,
        record=builder.DESCRIBED.record,
        source=builder.DESCRIBED.source,
        licence=builder.DESCRIBED.licence,
        notes=builder.DESCRIBED.notes,
        options=options_of(builder_class, options),
        facts=builder.facts(),
    )
    shutil.rmtree(final, ignore_errors=True)
    written.rename(final)
    shutil.rmtree(scratch)
    return final


__all__ = [
    "Described",
    "ImageRecord",
    "Options",
    "Progress",
    "RecordBuilder",
    "TextRecord",
    "build",
    "example_of",
    "features_of",
    "options_of",
]
