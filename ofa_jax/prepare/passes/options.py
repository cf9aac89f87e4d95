"""What decides the bytes of a build, and where its files lie."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ofa_jax.config.schema import VocabConfig
from ofa_jax.prepare.layouts.base import Input, Layout

VERSION = "1.0.0"  # of the passes: raised when the same options give other bytes


@dataclasses.dataclass(frozen=True)
class Described:
    """What the manifest says of a data set beside its options."""

    source: str
    licence: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Options of one data set's build. All of them decide its bytes."""

    layout: Layout
    # The row kind that a mixture will draw: the records must have its items, and token lengths are those of its tasks. Empty: any, and
    # there are no token lengths, so that no block with length classes reads the data set.
    row: str
    described: Described
    tokenizer: VocabConfig = dataclasses.field(default_factory=VocabConfig)  # of the token lengths
    max_shard_records: int = 10_000  # random reads slow down a hundredfold in huge shards
    square_px: int = 0  # pictures are resized to squares of this side, as OFA's infilling pictures are (256); 0: not
    max_side_px: int = 0  # larger pictures are shrunk until their longer side is this; 0: never
    jpeg_quality: int = 95  # of pictures that are resized; others keep their bytes
    drop_duplicates: bool = True  # records whose picture and annotations equal those of an earlier one
    against: tuple[str, ...] = ()  # prepared "dataset/split" whose pictures must not occur: the leakage filter
    negatives: str = ""  # a folder of OFA's negative samples, instead of what the data set itself offers
    leak_bits: int = 48  # of 256 that a perceptual hash may differ by from one of a picture in `against`

    def to_json(self) -> dict[str, Any]:
        """Returns the options as the manifest holds them. `source` is left out: moving the raw files changes no byte."""
        raw = dataclasses.asdict(self)
        del raw["described"], raw["layout"]["source"]
        raw["layout"]["name"] = type(self.layout).__name__
        raw["version"] = VERSION
        return json.loads(json.dumps(raw))  # tuples are lists there: options are compared with those of a file


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths of one build, on a disk or in a store (`storage.as_path`). The dataset's folder is complete when its `manifest.json` is there;
    `passes/` holds what lies between."""

    data_dir: Any
    dataset: str

    @property
    def folder(self) -> Any:
        return self.data_dir / self.dataset

    @property
    def passes(self) -> Any:
        return self.folder / "passes"

    @property
    def gathered(self) -> Any:
        return self.passes / "gathered"

    @property
    def gathered_note(self) -> Any:
        """Names of what was gathered; written after it."""
        return self.passes / "gathered.json"

    @property
    def indices(self) -> Any:
        return self.passes / "index"

    @property
    def all_matches(self) -> Any:
        return self.passes / "matches"

    @property
    def written(self) -> Any:
        return self.passes / "written"

    def index(self, item: Input) -> Any:
        """Arrays of one input's records (`index.COLUMNS`)."""
        return self.indices / f"{item.name}.npz"

    def index_notes(self, item: Input) -> Any:
        """Rejects, texts for negatives and counts of one input; written before its arrays."""
        return self.indices / f"{item.name}.json"

    def matches(self, item: Input) -> Any:
        """Which pictures of one input are in the evaluation sets."""
        return self.all_matches / f"{item.name}.npy"

    @property
    def plan(self) -> Any:
        """What goes into which shard."""
        return self.passes / "plan.json"

    def keep(self, item: Input) -> Any:
        """For each record of one input whether it is written: bool [n]."""
        return self.passes / "keep" / f"{item.name}.npy"

    def shard(self, file: str) -> Any:
        return self.folder / file

    def shard_note(self, file: str) -> Any:
        """Size, checksum and counts of one finished shard; written after it."""
        return self.written / f"{file}.json"

    def shard_lengths(self, file: str) -> Any:
        """Token lengths of one shard's records; written before its note."""
        return self.written / f"{file}.npy"

    def lengths(self, split: str) -> Any:
        """Token lengths of every record of a split, uint16 [records, tasks, 2]."""
        return self.folder / f"lengths-{split}.npy"
