"""Files as `torch.save` makes them, built by Python's own pickle and zipfile and nothing of ours.

Stand-ins for PyTorch's classes carry its names, so the pickler writes the opcodes that PyTorch's would: `Tensor` reduces to a call of
`torch._utils._rebuild_tensor_v2`, a `Storage` becomes a persistent id. A mapping that a test gets is what a real reader of these files
would see; anything hostile can stand beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
MACHINE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Storage:
    """Some bytes under a key. `count`: elements that the file declares; None for what there is."""

    def __init__(self, key: str, array: np.ndarray, kind: str = "FloatStorage", count: Any = None):
        self.key, self.kind = key, kind
        self.data = np.ascontiguousarray(array).tobytes()
        self.count = array.size if count is None else count


class Tensor:
    """A view of a storage, as PyTorch pickles one. `size` and `stride` are those of a whole row by default."""

    def __init__(self, storage: Any, offset: Any = 0, size: Any = None, stride: Any = (1,)):
        self.arguments = (storage, offset, (storage.count,) if size is None else size, stride, False, OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Call:
    """Pickles as the call of `function`: a hostile object where the function does harm."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None):
        self.reduced = (function, arguments, state) if state is not None else (function, arguments)

    def __call__(self) -> Any:
        """Only there because a pickler takes nothing else as the function of another call."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return self.reduced


def tensor(key: str, array: np.ndarray, kind: str = "FloatStorage") -> Tensor:
    strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides) if array.ndim else ()
    return Tensor(Storage(key, array, kind), 0, array.shape, strides)


@contextlib.contextmanager
def _torch() -> Iterator[types.ModuleType]:
    """PyTorch's names for the time of pickling, as empty classes and functions of the same names."""
    names = {
        "torch": ["FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "BoolStorage", "Size", "device"],
        "torch._utils": ["_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_device_tensor_from_numpy"],
    }
    modules = {name: types.ModuleType(name) for name in names}
    for module, members in names.items():
        for member in members:
            setattr(modules[module], member, type(member, (), {"__module__": module}))
    with mock.patch.dict(sys.modules, modules):
        yield modules["torch"]


def pickled(value: Any, *, protocol: int = 2, legacy: bool = False) -> tuple[bytes, dict[str, Storage]]:
    """Returns the pickle of `value` and the storages that it names. Globals of PyTorch are given as texts: Call("torch.Size", (2,))."""
    storages: dict[str, Storage] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            if not isinstance(item, Storage):
                return None
            storages[item.key] = item
            return ("storage", getattr(torch, item.kind), item.key, "cpu", item.count, *((None,) if legacy else ()))

        def reducer_override(self, item: Any) -> Any:
            if isinstance(item, Call) and isinstance(item.reduced[0], str):
                module, _, name = item.reduced[0].rpartition(".")
                return getattr(sys.modules[module], name), *item.reduced[1:]
            return NotImplemented

    out = io.BytesIO()
    with _torch() as torch:
        Pickler(out, protocol).dump(value)
    return out.getvalue(), storages


def write_zip(path: Path, value: Any, *, top: str = "archive", protocol: int = 2, others: dict[str, bytes] | None = None) -> Path:
    """Writes the zip format. value: an object, or the bytes of a pickle. others: further records, or other contents of these."""
    data, storages = (value, {}) if isinstance(value, bytes) else pickled(value, protocol=protocol)
    records = {f"{top}/data.pkl": data, f"{top}/byteorder": b"little"}
    records |= {f"{top}/data/{key}": storage.data for key, storage in storages.items()} | {f"{top}/version": b"3\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (records | (others or {})).items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def write_legacy(path: Path, value: Any) -> Path:
    """Writes the format before 1.6. value: an object, or the bytes of a pickle."""
    data, storages = (value, {}) if isinstance(value, bytes) else pickled(value, legacy=True)
    parts = [pickle.dumps(MAGIC, 2), pickle.dumps(PROTOCOL, 2), pickle.dumps(MACHINE, 2), data, pickle.dumps(sorted(storages), 2)]
    parts += [struct.pack("<q", int(storages[key].count)) + storages[key].data for key in sorted(storages)]
    path.write_bytes(b"".join(parts))
    return path


WRITERS = {"zip": write_zip, "legacy": write_legacy}


def fairseq_state() -> dict[str, Any]:
    """A small file of fairseq's layout, with all that its pickles hold besides tensors."""
    tied = Storage("0", ROWS)
    model = OrderedDict(
        embed=Tensor(tied, 0, (3, 4), (4, 1)),
        projection=Tensor(tied, 0, (3, 4), (4, 1)),
        transposed=Tensor(tied, 0, (4, 3), (1, 4)),
        column=Tensor(tied, 1, (3,), (4,)),
        half=tensor("1", ROWS.astype(np.float16), "HalfStorage"),
        brain=tensor("2", ROWS.astype(ml_dtypes.bfloat16), "BFloat16Storage"),
        bucket=tensor("3", np.array([[1, -2]]), "LongStorage"),
        mask=tensor("4", np.array([True, False]), "BoolStorage"),
        scalar=tensor("5", np.array(7), "LongStorage"),
        empty=Tensor(Storage("6", np.zeros(0, np.float32)), 0, (0, 4), (4, 1)),
        parameter=Call("torch._utils._rebuild_parameter", tensor("7", ROWS + 1), True, OrderedDict()),
    )
    model._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    return {
        "args": None,
        "cfg": {"_name": None, "model": argparse.Namespace(arch="ofa_tiny", dropout=0.1, layers=[1, (2, 3)]), "seed": 1 << 40},
        "model": model,
        "extra_state": {"val_loss": np.float64(2.5), "epoch": np.int64(3), "ok": np.bool_(True), "rate": 1e-5},
        "size": Call("torch.Size", (2, 3)),
        "device": Call("torch.device", "cuda", 0),
    }
