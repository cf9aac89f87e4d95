"""States in other programs' files: every format is told by its content, and every failure is one sentence that says what to do."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.config.errors import ConvertError
from ofa_jax.convert.state_files import StateFile, check_finite, read_state, write_npz, write_safetensors
from ofa_jax.convert.torch_file import write_torch
from tests.convert.torch_bytes import fairseq_state, write_legacy, write_zip

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
STATE = {
    "encoder.w": ROWS,
    "encoder.transposed": ROWS.T,
    "half": ROWS.astype(np.float16),
    "brain": ROWS.astype(ml_dtypes.bfloat16),
    "scalar": np.array(3),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float32),
}
FAIRSEQ = {"args": None, "cfg": {"seed": 7}, "model": STATE, "extra_state": {"epoch": 3, "ema": {"encoder.w": ROWS + 1}, "best": 1.5}}

WRITERS: dict[str, Callable[[Path], None]] = {
    "fairseq": lambda path: write_torch(path, FAIRSEQ | {"last_optimizer_state": {"exp_avg": ROWS}}),
    "torch": lambda path: write_torch(path, STATE),
    "safetensors": lambda path: write_safetensors(path, STATE, {"format": "pt"}),
    "npz": lambda path: write_npz(path, STATE),
}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_format_is_told_by_content_whatever_the_name(kind: str, tmp_path: Path) -> None:
    for name in ("x.pt", "model.safetensors", "x.npz", "x"):
        WRITERS[kind](tmp_path / name)
        state = read_state(tmp_path / name)
        assert (state.format, state.path) == (kind, tmp_path / name)
        assert_same(state.tensors, STATE)
        assert state.count_dtypes() == {"float32": 3, "float16": 1, "bfloat16": 1, "int64": 1, "bool": 1}
    assert len(list(tmp_path.iterdir())) == 4


def test_numpy_reads_the_npz_and_writes_it(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", STATE)
    with np.load(tmp_path / "x.npz") as file:
        assert file["brain"].dtype == np.dtype("V2")
        assert_same({name: file[name] for name in file.files if name != "brain"}, {name: STATE[name] for name in STATE if name != "brain"})
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "y", w=ROWS, z=np.zeros((1000, 1000), np.float32))
        assert_same(read_state(tmp_path / "y.npz").tensors, {"w": ROWS, "z": np.zeros((1000, 1000), np.float32)})


def test_a_fairseq_file_gives_its_model_or_its_average_and_its_config(tmp_path: Path) -> None:
    WRITERS["fairseq"](tmp_path / "x.pt")
    for part in ("auto", "model"):
        state = read_state(tmp_path / "x.pt", part=part)
        assert_same(state.tensors, STATE)
        assert state.metadata == {"args": None, "cfg": {"seed": 7}, "extra_state": {"epoch": 3, "best": 1.5}}
    assert_same(read_state(tmp_path / "x.pt", part="ema").tensors, {"encoder.w": ROWS + 1})


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_a_fairseq_file_of_pytorch_is_read(write: Any, tmp_path: Path) -> None:
    state = read_state(write(tmp_path / "x.pt", fairseq_state()))
    assert state.format == "fairseq" and state.metadata["cfg"]["model"]["arch"] == "ofa_tiny"
    assert state.tensors["projection"] is state.tensors["embed"] and json.dumps(state.metadata["cfg"])


def test_the_state_of_a_lightning_file_is_read(tmp_path: Path) -> None:
    write_torch(tmp_path / "x.ckpt", {"epoch": 3, "state_dict": STATE, "optimizer_states": [{"state": {}}]})
    state = read_state(tmp_path / "x.ckpt")
    assert state.format == "torch"
    assert_same(state.tensors, STATE)


# Folders and shards of transformers.


def write_shards(folder: Path, kind: str, **changes: str) -> Path:
    """Two shards and their index. changes: of the index's weight_map."""
    folder.mkdir(exist_ok=True)
    stem, suffix = {"safetensors": ("model", "safetensors"), "torch": ("pytorch_model", "bin")}[kind]
    where: dict[str, str] = {}
    for number, names in enumerate((list(STATE)[:3], list(STATE)[3:]), 1):
        name = f"{stem}-{number:05}-of-00002.{suffix}"
        shard = {key: STATE[key] for key in names}
        write_safetensors(folder / name, shard) if kind == "safetensors" else write_torch(folder / name, shard)
        where |= dict.fromkeys(names, name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where | changes}, indent=2))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_shards_are_read_by_their_index_or_folder(kind: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path / "ofa", kind)
    (tmp_path / "ofa" / "config.json").write_text('{"d_model": 256}')
    for path in (index, tmp_path / "ofa"):
        state = read_state(path)
        assert (state.format, state.path) == (kind, path)
        assert_same(state.tensors, STATE)
    assert state.metadata == {"total_size": 1, "config": {"d_model": 256}}


@pytest.mark.parametrize("name, kind", [("model.safetensors", "safetensors"), ("pytorch_model.bin", "torch")])
def test_a_folder_with_one_file_is_read(name: str, kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / name)
    (tmp_path / "vocab.json").write_text("{}")
    assert_same(read_state(tmp_path).tensors, STATE)


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    "changes, found",
    [
        ({"more": SHARD}, "model-00001-of-00002.safetensors differs from model.safetensors.index.json in 'more'"),
        ({"scalar": SHARD}, "in 'scalar'"),
        ({"more": "missing.safetensors"}, "missing.safetensors cannot be read"),
        ({"more": "../x.safetensors"}, "do not trust this index"),
        ({"more": ".."}, "do not trust this index"),
        ({"more": "model.safetensors.index.json"}, "which is an index itself"),
    ],
)
def test_shards_that_differ_from_their_index_are_named(changes: dict[str, str], found: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=found):
        read_state(write_shards(tmp_path, "safetensors", **changes))


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}', "{", '{"a": ' * 100_000])
def test_json_that_is_no_index_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConvertError, match="x.json (is JSON without a weight_map|cannot be read as JSON)"):
        read_state(tmp_path / "x.json")


# What goes wrong.


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npz_record(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def safetensors_header(text: str, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "is empty"),
        (b"hello, world", "starts with b'hello, wo', expected a file of torch.save, safetensors or numpy.savez"),
        (b"PK\x03\x04 and no more", "is a zip file that is cut off or damaged"),
        (b"\x80\x02}.", "not of torch.save"),
        (b"<html><body>404</body></html>", "is a web page"),
        (npz_record("a.txt", b""), "is a zip file of \\['a.txt'\\], expected one <folder>/data.pkl"),
        (b"PK\x05\x06" + bytes(18), "holds no tensors"),
        (npz(a=np.array([None])), "array 'a': found what cannot be read safely \\(Object arrays cannot be loaded"),
        (npz(a=np.array(["text"])), "array 'a' is of <U4, expected plain numbers"),
        (npz(a=np.zeros(2, "i4,f4")), "expected plain numbers"),
        (npz(a=np.zeros(2, "V4")), "array 'a' is of \\|V4"),
        (npz_record("a.npy", npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n")), "array 'a'"),
        (npz_record("a.npy", npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n")), "array 'a'"),
        (npz_record("a.npy", npy_header("__import__('os').system('true')\n")), "array 'a'"),
        (npz_record("a.npy", b"no header"), "array 'a'"),
        (safetensors_header("{broken}"), "is a damaged safetensors file"),
        (safetensors_header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1234"), "is a damaged safetensors file"),
        (safetensors_header('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', b"12345678"), "is a damaged safetensors file"),
        (safetensors_header('{"a":{"dtype":"X32","shape":[2],"data_offsets":[0,8]}}', b"12345678"), "is a damaged safetensors file"),
        (safetensors_header("{}"), "holds no tensors"),
    ],
)
def test_a_damaged_or_strange_file_is_named(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(ConvertError, match=found) as error:
        read_state(tmp_path / "x.bin")
    assert str(tmp_path / "x.bin") in str(error.value)


@pytest.mark.parametrize(
    "state, part, found",
    [
        ({"model": STATE, "extra_state": {"epoch": 3}}, "ema", "no average of the weights in extra_state, found there 'epoch' \\(1\\)"),
        ({"model": STATE}, "ema", "found there nothing"),
        (STATE, "ema", "is a torch file with one state, expected a fairseq file for the part ema"),
        (STATE, "emma", "part is 'emma', did you mean ema\\?"),
        ([1, 2], "auto", "holds list, expected a dict of tensors"),
        ({"epoch": 1, "w": ROWS}, "auto", "holds 'epoch' \\(1\\) that are no named tensors"),
        ({"model": {}}, "auto", "holds no tensors"),
        ({"model": {3: ROWS}}, "auto", "holds 3 \\(1\\) that are no named tensors"),
    ],
)
def test_a_state_or_part_that_is_not_there_is_named(state: Any, part: str, found: str, tmp_path: Path) -> None:
    write_torch(tmp_path / "x.pt", state)
    with pytest.raises(ConvertError, match=found):
        read_state(tmp_path / "x.pt", part=part)


def test_a_folder_without_weights_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ConvertError, match="holds 'weights.pt' \\(1\\), expected one of model.safetensors, .* name the file itself"):
        read_state(tmp_path)
    with pytest.raises(ConvertError, match="x.pt cannot be read \\(No such file or directory\\)"):
        read_state(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(npz(a=ROWS))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("a.npy", b"")
    with pytest.raises(ConvertError, match="two records named 'a.npy'"):
        read_state(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_cut_at_places_is_refused(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for cut in (0, 1, 4, 9, 50, len(data) // 2, len(data) - 1):
        (tmp_path / "x").write_bytes(data[:cut])
        with pytest.raises(ConvertError, match=f"{tmp_path / 'x'}"):
            read_state(tmp_path / "x")


@pytest.mark.parametrize("kind", WRITERS)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_file_with_changed_bytes_is_read_or_refused(
    kind: str, changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"changed_{kind}"
    WRITERS[kind](path)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    try:
        read_state(path)
    except ConvertError as error:
        assert str(path) in str(error)


# Checks and writers.


def test_weights_that_are_not_finite_are_all_named() -> None:
    good = {"a": ROWS, "n": np.array([1]), "b": ROWS.astype(ml_dtypes.bfloat16), "e": np.zeros(0, np.float32)}
    check_finite(StateFile(Path("x.pt"), "torch", good))
    bad = good | {"nan": np.array([1, np.nan, np.inf], np.float32), "inf": np.array(-np.inf, ml_dtypes.bfloat16)}
    with pytest.raises(ConvertError, match=r"x.pt has NaN or infinite weights in nan \(2 of 3\), inf \(1 of 1\), expected finite numbers"):
        check_finite(StateFile(Path("x.pt"), "torch", bad))


@pytest.mark.parametrize("write", [write_safetensors, write_npz])
@pytest.mark.parametrize("value", [np.array([None]), np.array(["a"]), np.zeros(2, "i4,f4"), 3.0, [1.0]])
def test_what_is_no_array_of_numbers_is_not_written(write: Any, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="a.b is .*, expected NumPy arrays of plain numbers"):
        write(tmp_path / "x", {"a.b": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_safetensors, write_npz])
def test_a_write_that_fails_leaves_the_older_file(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    write(file, {"a": ROWS})
    older = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConvertError, match="x cannot be written \\(No space left on device\\)"):
        write(file, {"a": ROWS + 1})
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == older
    with pytest.raises(ConvertError, match="missing/x cannot be written"):
        write(tmp_path / "missing" / "x", {"a": ROWS})
