"""Files of torch.save: everything that fairseq's files hold is read, and what is written is what PyTorch reads."""

from __future__ import annotations

import argparse
import errno
import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ofa_jax.config.errors import ConvertError
from ofa_jax.convert.torch_file import read_torch, write_torch
from tests.convert.torch_bytes import ROWS, WRITERS, fairseq_state, tensor, write_zip


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Any:
    return WRITERS[request.param]


def test_a_fairseq_file_is_read_to_plain_values_and_arrays(write: Any, tmp_path: Path) -> None:
    read = read_torch(write(tmp_path / "x.pt", fairseq_state()))
    model = read["model"]
    assert read["cfg"] == {"_name": None, "model": {"arch": "ofa_tiny", "dropout": 0.1, "layers": [1, (2, 3)]}, "seed": 1 << 40}
    assert read["extra_state"] == {"val_loss": 2.5, "epoch": 3, "ok": True, "rate": 1e-5} and type(read["extra_state"]["epoch"]) is int
    assert (read["size"], read["device"], read["args"]) == ((2, 3), "cuda:0", None)
    expected = {
        "embed": ROWS, "projection": ROWS, "transposed": ROWS.T, "column": ROWS[:, 1], "half": ROWS.astype(np.float16),
        "brain": ROWS.astype(ml_dtypes.bfloat16), "bucket": np.array([[1, -2]]), "mask": np.array([True, False]), "scalar": np.array(7),
        "empty": np.zeros((0, 4), np.float32), "parameter": ROWS + 1,
    }  # fmt: skip
    assert list(model) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(model[name], array, err_msg=name, strict=True)
        assert not model[name].flags.writeable


def test_tied_tensors_are_one_array_and_views_share_memory(write: Any, tmp_path: Path) -> None:
    model = read_torch(write(tmp_path / "x.pt", fairseq_state()))["model"]
    assert model["projection"] is model["embed"]
    assert np.shares_memory(model["transposed"], model["embed"]) and np.shares_memory(model["column"], model["embed"])


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    state = {"model": {"a": 1, "b": [1.5, "text", True, None, (1, 2, 3, 4)], "long": 1 << 70, "negative": -3}}
    if protocol > 1:  # classes without protocol 2 are rebuilt by copyreg, which is not in the table
        state["model"]["w"] = tensor("0", ROWS)
        state["model"]["config"] = argparse.Namespace(a=OrderedDict(b=1))
    read = read_torch(write_zip(tmp_path / "x.pt", state, protocol=protocol, top=f"a folder named {protocol}"))
    if protocol > 1:
        np.testing.assert_array_equal(read["model"].pop("w"), ROWS, strict=True)
        assert read["model"].pop("config") == {"a": {"b": 1}}
    assert read == {"model": {"a": 1, "b": [1.5, "text", True, None, (1, 2, 3, 4)], "long": 1 << 70, "negative": -3}}


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_files_that_pytorch_wrote_are_read(name: str) -> None:
    """The files and their contents come from tests/parity/torch_files.py."""
    read = read_torch(Path(__file__).parent / "written_by_torch" / f"{name}.pt")
    model = read["model"]
    for key, dtype in {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i64": np.int64}.items():
        np.testing.assert_array_equal(model[key], np.arange(6).reshape(2, 3).astype(dtype), strict=True)
    np.testing.assert_array_equal(model["transposed"], model["f32"].T)
    np.testing.assert_array_equal(model["column"], model["f32"][:, 1])
    assert model["tied"] is model["f32"] and model["scalar"] == 3 and model["empty"].shape == (0, 2)
    np.testing.assert_array_equal(model["parameter"], np.ones(2, np.float32), strict=True)
    assert read["cfg"]["model"] == {"arch": "ofa_tiny"} and read["extra_state"]["best"] == 2.5


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "x.pt", tensor("0", ROWS))
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            data = data.replace(info.CRC.to_bytes(4, "little"), bytes(4))
    file.write_bytes(data)
    np.testing.assert_array_equal(read_torch(file), ROWS, strict=True)


def test_an_unaligned_storage_is_read(tmp_path: Path) -> None:
    for top in ("a", "ab", "abc", "abcd"):
        read = read_torch(write_zip(tmp_path / "x.pt", tensor("0", ROWS), top=top))
        assert read.flags.aligned
        np.testing.assert_array_equal(read, ROWS)


STATE = {
    "args": None,
    "cfg": {"model": {"arch": "ofa_tiny", "dropout": 0.1, "share": True, "": []}, "sizes": (1, 2, 3, 4), "seed": -(1 << 40), 3: "three"},
    "model": {
        "f32": ROWS,
        "tied": ROWS,
        "transposed": ROWS.T,
        "f16": ROWS.astype(np.float16),
        "bf16": ROWS.astype(ml_dtypes.bfloat16),
        "i64": np.array([1, -1]),
        "mask": np.array([True, False]),
        "big-endian": ROWS.astype(">f4"),
        "scalar": np.array(3.0),
        "empty": np.zeros((0, 2), np.float32),
    },
}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_torch(tmp_path / "x.pt", STATE | {"number": np.float32(0.5)})
    read = read_torch(tmp_path / "x.pt")
    assert (read["args"], read["cfg"], read["number"]) == (None, STATE["cfg"], 0.5)
    assert list(read["model"]) == list(STATE["model"])
    for name, array in STATE["model"].items():
        np.testing.assert_array_equal(read["model"][name], array.astype(array.dtype.newbyteorder("=")), err_msg=name, strict=True)
    assert read["model"]["tied"] is read["model"]["f32"]
    write_torch(tmp_path / "y.pt", read)
    assert (tmp_path / "y.pt").read_bytes() == (tmp_path / "x.pt").read_bytes()


def test_python_reads_what_is_written_and_finds_only_what_pytorch_allows(tmp_path: Path) -> None:
    """By Python's own pickle and zipfile: opcodes and names are among those of torch.load(weights_only=True), storages are aligned."""
    write_torch(tmp_path / "x.pt", STATE)
    data = (tmp_path / "x.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        records = {name: archive.read(name) for name in archive.namelist()}
        for info in archive.infolist():
            start = info.header_offset + 30 + sum(int.from_bytes(data[info.header_offset + at :][:2], "little") for at in (26, 28))
            assert start % 64 == 0 and data[start : start + info.file_size] == records[info.filename]
    assert list(records) == ["archive/data.pkl", "archive/byteorder", *(f"archive/data/{n}" for n in range(9)), "archive/version"]
    assert (records["archive/version"], records["archive/byteorder"]) == (b"3\n", b"little")
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(records["archive/data.pkl"])}
    assert opcodes <= {
        *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "EMPTY_TUPLE", "TUPLE", "EMPTY_LIST", "APPENDS", "EMPTY_DICT", "SETITEMS"),
    }
    found = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found.add(f"{module}.{name}")
            return OrderedDict if name == "OrderedDict" else lambda *arguments: arguments if name.startswith("_") else name

        def persistent_load(self, identity: Any) -> Any:
            return identity[2:]

    read = Unpickler(io.BytesIO(records["archive/data.pkl"])).load()
    assert read["cfg"] == STATE["cfg"]
    assert read["model"]["f32"] == read["model"]["tied"] == (("0", "cpu", 12), 0, (3, 4), (4, 1), False, OrderedDict())
    kinds = ("Float", "Half", "BFloat16", "Long", "Bool", "Double")
    assert found == {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", *(f"torch.{kind}Storage" for kind in kinds)}


@pytest.mark.parametrize(
    "value, found",
    [
        (np.array([None]), "state['w'] is an array of object, expected one of float32"),
        (np.array(["a"]), "state['w'] is an array of <U1"),
        (np.zeros(2, np.uint32), "state['w'] is an array of uint32"),
        ([1, {2, 3}], "state['w'][1] is of type set"),
        ({(1, 2): 3}, "state['w'] has a key of type tuple"),
        (1 << 4000, "state['w'] is an integer of 501 bytes"),
    ],
)
def test_what_pytorch_would_not_read_is_refused_and_nothing_written(value: Any, found: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError) as error:
        write_torch(tmp_path / "x.pt", {"w": value})
    assert found in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.pt"
    write_torch(file, {"w": ROWS})
    older = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile._ZipWriteFile, "write", full)
    with pytest.raises(ConvertError, match="x.pt cannot be written \\(No space left on device\\)"):
        write_torch(file, {"w": ROWS + 1})
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == older


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="missing/x.pt cannot be written"):
        write_torch(tmp_path / "missing" / "x.pt", {"w": ROWS})
