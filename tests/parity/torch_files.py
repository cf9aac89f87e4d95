"""Compares `ofa_jax.convert.torch_file` with PyTorch itself. Run by hand, by an interpreter that has PyTorch, from the repository's root:

    python3.12 -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 numpy==2.4.6 ml-dtypes==0.6.0
    PYTHONPATH=. /tmp/torch/bin/python tests/parity/torch_files.py

PyTorch reads what we write (also mapped, weights_only=True), and we read what it writes in both formats: every dtype, views that are not
contiguous, parameters, shared storages, a Linear's state dict. `--samples` also writes the files in tests/convert/written_by_torch anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from ofa_jax.convert.torch_file import read_torch, write_torch

SAMPLES = Path(__file__).resolve().parents[1] / "convert" / "written_by_torch"
DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "int64", "bool", "complex64", "complex128")


def numpy_dtype(name: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def sample() -> dict[str, Any]:
    """What `test_files_that_pytorch_wrote_are_read` expects."""
    f32 = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    model = {
        "f32": f32,
        "tied": f32,
        "transposed": f32.T,
        "column": f32[:, 1],
        "f16": f32.half(),
        "bf16": f32.bfloat16(),
        "i64": f32.long(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    return {"cfg": {"model": argparse.Namespace(arch="ofa_tiny")}, "model": model, "extra_state": {"best": np.float64(2.5)}}


def tensors_of_every_dtype() -> dict[str, torch.Tensor]:
    return {name: (torch.arange(12).reshape(3, 4) - 3).to(getattr(torch, name)) for name in DTYPES}


def equal(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    """Same dtype, shape and bytes."""
    theirs = theirs.detach().contiguous()
    name = str(theirs.dtype).removeprefix("torch.")
    data = theirs.reshape(-1).view(torch.uint8).numpy().tobytes() if theirs.numel() else b""
    return ours.dtype == numpy_dtype(name) and ours.shape == tuple(theirs.shape) and np.ascontiguousarray(ours).tobytes() == data


def we_read_what_pytorch_writes(path: Path, new_format: bool) -> Iterable[tuple[str, bool]]:
    linear = torch.nn.Linear(3, 2)
    state = sample() | {
        "every": tensors_of_every_dtype(),
        "linear": linear.state_dict(),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
    }
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    read = read_torch(path)
    for group in ("model", "every", "linear"):
        yield from ((f"{group}.{name}", equal(read[group][name], value)) for name, value in state[group].items())
    yield "ties", read["model"]["tied"] is read["model"]["f32"] and np.shares_memory(read["model"]["column"], read["model"]["f32"])
    yield "plain values", read["cfg"]["model"] == {"arch": "ofa_tiny"} and read["extra_state"] == {"best": 2.5} and read["size"] == (2, 3)
    torch.serialization.set_crc32_options(False)
    torch.save(torch.arange(3.0).untyped_storage(), path, _use_new_zipfile_serialization=new_format)
    torch.serialization.set_crc32_options(True)
    yield "a bare storage, without checksums", read_torch(path).tobytes() == np.arange(3, dtype=np.float32).tobytes()


def pytorch_reads_what_we_write(path: Path, mapped: bool) -> Iterable[tuple[str, bool]]:
    every = {name: (np.arange(12).reshape(3, 4) - 3).astype(numpy_dtype(name)) for name in DTYPES}
    f32 = every["float32"]
    model = every | {
        "tied": f32,
        "transposed": f32.T,
        "column": f32[:, 1],
        "scalar": np.array(3),
        "empty": np.zeros((0, 2)),
        "big": f32.astype(">f4"),
    }
    cfg = {"a": [1, -(1 << 40), 2.5, "text", True, None, (1, 2, 3, 4)], "b": {}, 3: "three"}
    write_torch(path, {"args": None, "cfg": cfg, "model": model})
    read = torch.load(path, weights_only=True, mmap=mapped)
    for name, array in model.items():
        yield name, equal(array.astype(array.dtype.newbyteorder("=")), read["model"][name])
    yield "ties", read["model"]["tied"].data_ptr() == read["model"]["float32"].data_ptr()
    yield "plain values", read["cfg"] == cfg and read["args"] is None
    yield "our own reading", all(equal(read_torch(path)["model"][name], tensor) for name, tensor in read["model"].items())


def main() -> int:
    if "--samples" in sys.argv[1:]:
        SAMPLES.mkdir(exist_ok=True)
        torch.save(sample(), SAMPLES / "zip.pt")
        torch.save(sample(), SAMPLES / "legacy.pt", _use_new_zipfile_serialization=False)
    checks: dict[str, Callable[[Path], Iterable[tuple[str, bool]]]] = {
        "we read PyTorch's zip format": lambda path: we_read_what_pytorch_writes(path, True),
        "we read PyTorch's legacy format": lambda path: we_read_what_pytorch_writes(path, False),
        "PyTorch reads our file": lambda path: pytorch_reads_what_we_write(path, False),
        "PyTorch maps our file": lambda path: pytorch_reads_what_we_write(path, True),
    }
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for title, check in checks.items():
            results = dict(check(Path(folder) / "x.pt"))
            wrong = [name for name, passed in results.items() if not passed]
            failed += len(wrong)
            print(f"{title}: {len(results) - len(wrong)} of {len(results)}", *wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
