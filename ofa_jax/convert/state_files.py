"""The states that other programs' files hold, as names and arrays, whatever the file: told by its content, never by its suffix.

Known are files of fairseq and other uses of `torch.save`, safetensors, NumPy's .npz, and folders of Hugging Face's transformers, whose
weights lie in one file or in shards that an index lists (`{"metadata": {...}, "weight_map": {tensor: file}}`).
"""

from __future__ import annotations

import json
import reprlib
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from ml_dtypes import bfloat16

from ofa_jax.config.errors import ConvertError, nearest
from ofa_jax.convert.torch_file import read_torch
from ofa_jax.convert.whole_file import ZIP_FAULTS, map_file, written_whole, zip_records

# Where a folder of transformers keeps its weights, first come first served, as there.
FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# A safetensors file starts with the length of its JSON header as uint64 and the header; its reader takes no longer ones.
MAX_HEADER_BYTES = 100_000_000

PARTS = ("auto", "model", "ema")

# What of a fairseq file beside its weights says how they were made; the optimiser's state does not.
_FAIRSEQ_METADATA = ("args", "cfg", "task_state", "optimizer_history", "extra_state")
_NPZ_FAULTS = (*ZIP_FAULTS, zlib.error, KeyError, TypeError, SyntaxError, tokenize.TokenError, MemoryError)


@dataclass(frozen=True)
class StateFile:
    """A state as it lies in a file. The arrays may be views of the file, and are not to be written to."""

    path: Path
    format: str  # fairseq, torch, safetensors or npz
    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)  # plain values: fairseq's cfg, a folder's config.json, the file's own remarks

    def count_dtypes(self) -> dict[str, int]:
        """Returns how many tensors have which dtype, the most frequent first."""
        return dict(Counter(str(array.dtype) for array in self.tensors.values()).most_common())


def read_state(path: str | Path, *, part: str = "auto") -> StateFile:
    """Returns the state in the file, shard index or folder `path`.

    part: of a fairseq file, "model" or the average of the weights, "ema" (`extra_state["ema"]`), which evaluation of OFA's VQA models
    takes; "auto" is the model there, and all there is in any other file. A torch file may also hold its state under `state_dict`, as
    Lightning writes it. Metadata of fairseq are `cfg` and what else says how the weights were made.

    Raises `ConvertError` for a file that is missing, damaged, unsafe or of no known format, and for a part that it does not have.
    """
    path = Path(path)
    if part not in PARTS:
        raise ConvertError(f"part is {part!r}, {nearest(part, PARTS)}")
    state = _read_folder(path) if path.is_dir() else _read_file(path, part)
    if part == "ema" and state.format != "fairseq":
        raise ConvertError(f"{path} is a {state.format} file with one state, expected a fairseq file for the part ema: leave part at auto")
    return state


def _kind_of(path: Path) -> str:
    """Returns torch, safetensors, npz or index, by what is in `path`. A zip file of arrays alone is NumPy's; torch.save adds a pickle."""
    start = map_file(path)[:9]
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES:
        return "safetensors"
    if start[:1] == b"\x80":
        return "torch"
    if start[:1] == b"{":
        return "index"
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "npz" if all(name.endswith(".npy") for name in zip_records(path)) else "torch"
    raise ConvertError(f"{path} starts with {start!r}, expected a file of torch.save, safetensors or numpy.savez, or an index of shards")


def _read_file(path: Path, part: str) -> StateFile:
    kind = _kind_of(path)
    if kind == "torch":
        return _read_torch_state(path, part)
    return {"safetensors": _read_safetensors, "npz": _read_npz, "index": _read_shards}[kind](path)


def _read_torch_state(path: Path, part: str) -> StateFile:
    held = read_torch(path)
    if not isinstance(held, dict):
        raise ConvertError(f"{path} holds {type(held).__name__}, expected a dict of tensors or one with the key model or state_dict")
    if isinstance(held.get("model"), dict):
        extra = held.get("extra_state")
        extra = extra if isinstance(extra, dict) else {}
        if part == "ema" and not isinstance(extra.get("ema"), dict):
            raise ConvertError(f"{path} has no average of the weights in extra_state, found there {_listed(extra)}: take the part model")
        metadata = {key: held[key] for key in _FAIRSEQ_METADATA if key in held}
        metadata["extra_state"] = {key: value for key, value in extra.items() if not _holds_arrays(value)}
        return StateFile(path, "fairseq", _tensors(path, extra["ema"] if part == "ema" else held["model"]), metadata)
    if isinstance(held.get("state_dict"), dict):
        return StateFile(path, "torch", _tensors(path, held["state_dict"]))
    return StateFile(path, "torch", _tensors(path, held))


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, dict) and any(isinstance(item, np.ndarray) for item in value.values()))


def _tensors(path: Path, state: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    wrong = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, np.ndarray))]
    if wrong or not state:
        found = f"{_listed(wrong)} that are no named tensors" if wrong else "no tensors"
        raise ConvertError(f"{path} holds {found}, expected a state: a dict of tensors, or one under the key model or state_dict")
    return dict(state)


def _listed(names: Any) -> str:
    """Up to six of some names, and how many there are."""
    names = [*names]
    return f"{', '.join(reprlib.repr(name) for name in names[:6])}{' ...' * (len(names) > 6)} ({len(names)})" if names else "nothing"


def _read_safetensors(path: Path) -> StateFile:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise ConvertError(f"{path} is a damaged safetensors file or one of unknown dtypes ({error}): download it again") from error
    return StateFile(path, "safetensors", _tensors(path, tensors), metadata)


def _read_npz(path: Path) -> StateFile:
    tensors = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                tensors[name] = array = file[name]
                if not isinstance(array, np.ndarray):
                    raise ValueError(f"it starts with {array[:8]!r} instead of NumPy's magic bytes")
    except _NPZ_FAULTS as error:
        raise ConvertError(f"{path}, array {name!r:.80}: found what cannot be read safely ({error}), expected plain numbers") from error
    for name, array in tensors.items():
        # NumPy's files know no bfloat16; numpy.savez leaves its two bytes without a name.
        if array.dtype == np.dtype("V2"):
            tensors[name] = array = array.view(bfloat16)
        if not _is_number(array.dtype):
            raise ConvertError(f"{path}, array {name!r:.80} is of {array.dtype}, expected plain numbers")
    return StateFile(path, "npz", _tensors(path, tensors))


def _is_number(dtype: np.dtype) -> bool:
    return dtype.kind in "biufc" or dtype == bfloat16


def _read_folder(folder: Path) -> StateFile:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            state = _read_file(folder / name, "auto")
            config = {"config": _read_json(folder / "config.json")} if (folder / "config.json").is_file() else {}
            return StateFile(folder, state.format, state.tensors, state.metadata | config)
    found = _listed(sorted(child.name for child in folder.iterdir()))
    raise ConvertError(f"{folder} holds {found}, expected one of {', '.join(FOLDER_FILES)}: name the file itself if it is called otherwise")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConvertError(f"{path} cannot be read as JSON ({error}): download it again") from error


def _read_shards(path: Path) -> StateFile:
    """The state whose shards the index `path` names: each tensor in the shard that the index says, and no others."""
    index = _read_json(path)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ConvertError(f"{path} is JSON without a weight_map from tensors to files, expected an index of shards")
    tensors: dict[str, np.ndarray] = {}
    formats = set()
    for name in sorted(set(where.values())):
        if Path(name).name != name or name in ("", "..", "."):
            raise ConvertError(f"{path} names the shard {name!r:.80}, expected files beside it: do not trust this index")
        if _kind_of(path.parent / name) == "index":
            raise ConvertError(f"{path} names the shard {name!r:.80}, which is an index itself, expected a file of weights")
        shard = _read_file(path.parent / name, "auto")
        if differing := {tensor for tensor, file in where.items() if file == name} ^ shard.tensors.keys():
            raise ConvertError(f"{path.parent / name} differs from {path.name} in {_listed(sorted(differing))}: download both again")
        tensors |= shard.tensors
        formats.add(shard.format)
    if len(formats) != 1:
        raise ConvertError(f"{path} names shards of the formats {', '.join(sorted(formats))}, expected one format")
    metadata = index.get("metadata")
    return StateFile(path, formats.pop(), tensors, metadata if isinstance(metadata, dict) else {})


def check_finite(state: StateFile) -> None:
    """Raises a `ConvertError` that names every tensor of floating-point numbers with a NaN or an infinity, and how many of them."""
    bad = []
    for name, array in state.tensors.items():
        count = array.size - int(np.isfinite(array).sum())
        if count:
            bad.append(f"{name} ({count} of {array.size})")
    if bad:
        raise ConvertError(f"{state.path} has NaN or infinite weights in {', '.join(bad)}, expected finite numbers: a run that diverged?")


def write_safetensors(path: str | Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes named arrays and texts about them as one safetensors file, in one move.

    Arrays that are not in C order are copied while the file is written; those that share memory are written twice (it knows no ties).
    Raises `ConvertError` for a dtype that the format does not know, and for a full or missing folder.
    """
    tensors = _writable(path, state)
    with written_whole(path) as partial:
        try:
            safetensors.numpy.save_file(tensors, partial, None if metadata is None else dict(metadata))
        except (safetensors.SafetensorError, TypeError) as error:
            raise ConvertError(f"{path} cannot be written ({error}), expected texts as metadata, enough space and plain dtypes") from error


def write_npz(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as NumPy's .npz, uncompressed, in one move; `numpy.load(path)` reads it, bfloat16 there as the dtype V2.

    Raises `ConvertError` for arrays of objects, and for a full or missing folder.
    """
    tensors = _writable(path, state)
    with written_whole(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in tensors.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as record:
                np.lib.format.write_array(record, array, allow_pickle=False)


def _writable(path: str | Path, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, array in state.items():
        if not isinstance(array, np.ndarray) or not _is_number(array.dtype):
            found = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ConvertError(f"{path}: {name} is {found}, expected NumPy arrays of plain numbers")
    # safetensors takes the memory as it lies, so a transposed view would be written wrong.
    return {name: np.require(array, requirements="C") for name, array in state.items()}
