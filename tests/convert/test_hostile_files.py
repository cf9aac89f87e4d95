"""No file of torch.save, however hostile or damaged, does anything but fail in one sentence: nothing is run, imported or written."""

from __future__ import annotations

import argparse
import builtins
import io
import operator
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofa_jax.config.errors import ConvertError
from ofa_jax.convert.torch_file import read_torch, write_torch
from ofa_jax.convert.unpickle import unpickle
from tests.convert.torch_bytes import ROWS, WRITERS, Call, Storage, Tensor, fairseq_state, pickled, tensor, write_legacy, write_zip


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Any:
    return WRITERS[request.param]


def hostile(marker: Path) -> dict[str, Any]:
    """Objects whose pickle leaves the marker, or reaches for what could, when anything of it is run."""
    touch = f"touch {marker}"
    return {
        "system": Call(os.system, touch),
        "eval": Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "chain": Call(Call(getattr, Call(__import__, "os"), "system"), touch),
        "loads": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "open": Call(open, str(marker), "w"),
        "attrgetter": Call(operator.attrgetter, "system"),
        "numpy": Call(np.load, str(marker)),
        "_rebuild_device_tensor_from_numpy": Call("torch._utils._rebuild_device_tensor_from_numpy", ROWS.tolist()),
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
@pytest.mark.parametrize("place", ["value", "storage", "state", "key"])
def test_a_hostile_file_is_refused_by_name_and_nothing_runs(name: str, place: str, write: Any, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "x.pt"
    evil = hostile(marker)[name]
    value = {
        "value": lambda: {"model": {"w": tensor("0", ROWS), "x": evil}},
        "storage": lambda: Tensor(Storage("0", ROWS), evil),
        "state": lambda: Call(OrderedDict, state={"x": evil}),
        "key": lambda: Call(OrderedDict, [(evil, 1)]),
    }[place]()
    write(file, value)
    with pytest.raises(ConvertError) as error:
        read_torch(file)
    assert str(file) in str(error.value) and "nothing was run" in str(error.value)
    assert list(tmp_path.iterdir()) == [file]


def test_the_error_names_the_global() -> None:
    for function, module in ((os.system, os.system.__module__), (builtins.eval, "builtins"), (subprocess.Popen, "subprocess")):
        with pytest.raises(ConvertError, match=f"x.pt, byte .* found the name '{module}.{function.__name__}'"):
            unpickle(io.BytesIO(pickle.dumps(Call(function, "x"))), where="x.pt", names={})


def test_a_module_that_a_file_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_by_a_pickle.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for data in (b"cimported_by_a_pickle\nf\n.", b"\x80\x04\x8c\x14imported_by_a_pickle\x8c\x01f\x93."):
        with pytest.raises(ConvertError, match="imported_by_a_pickle.f"):
            read_torch(write_zip(tmp_path / "x.pt", data))
    assert "imported_by_a_pickle" not in sys.modules


def name(module: str, member: str) -> bytes:
    return f"c{module}\n{member}\n".encode()


ORDERED, NAMESPACE = name("collections", "OrderedDict"), name("argparse", "Namespace")
SCALAR, DTYPE = name("numpy.core.multiarray", "scalar"), name("numpy", "dtype")


@pytest.mark.parametrize(
    "data",
    {
        "call of a text": b"X\x01\0\0\0a)R.",
        "call of a dict": b"})R.",
        "call of a dtype": name("torch", "float32") + b")R.",
        "call without a tuple": ORDERED + b"]R.",
        "wrong arguments": ORDERED + b"K\x01\x85R.",
        "class as an object": NAMESPACE + b"}b.",
        "attributes of a function": ORDERED + b"}X\x04\0\0\0callK\x01sb.",
        "attributes of a dict": b"}}b.",
        "attributes that are no names": NAMESPACE + b")\x81}K\x01K\x01sb.",
        "slots": NAMESPACE + b")\x81N}\x86b.",
        "tuple as a key": b"})K\x01s.",
        "items of a text": b"X\x01\0\0\0a(K\x01e.",
        "odd items": b"}(K\x01u.",
        "empty stack": b".",
        "two results": b"NN.",
        "no such memo": b"h\x05.",
        "no mark": b"t.",
        "no end": b"N",
        "no opcode": b"\xff.",
        "extension registry": b"\x82\x01.",
        "instance of a class": b"(ios\nsystem\n.",
        "object of a class": b"(cos\nsystem\no.",
        "out-of-band buffer": b"\x97.",
        "bytearray": b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "long text": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "long integer": b"\x8b\xff\xff\xff\x7f.",
        "text persistent id": b"P0\n.",
        "persistent id without storage": b"NQ.",
        "object array": DTYPE + b"X\x01\0\0\0O\x85R.",
        "structured dtype": DTYPE + b"](X\x01\0\0\0aX\x02\0\0\0i4\x86e\x85R.",
        "big-endian number": DTYPE + b"X\x02\0\0\0f4\x85R(K\x03X\x01\0\0\0>tb.",
        "number of other bytes": SCALAR + DTYPE + b"X\x02\0\0\0f4\x85RC\x02ab\x86R.",
        "pickled bytes": name("_codecs", "encode") + b"X\x28\0\0\0" + b"a" * 40 + b"X\x06\0\0\0latin1\x86R.",
        "codec": name("_codecs", "encode") + b"X\x01\0\0\0aX\x05\0\0\0rot13\x86R.",
        "name of numbers": b"K\x01K\x02\x93.",
        "size of texts": name("torch", "Size") + b"X\x01\0\0\0a\x85\x85R.",
        "device of a list": name("torch", "device") + b"]\x85R.",
        "parameter of a text": name("torch._utils", "_rebuild_parameter") + b"X\x01\0\0\0a\x85R.",
        "tensor of a list": name("torch._utils", "_rebuild_tensor_v2") + b"(]K\0))tR.",
        "deep size": name("torch._utils", "_rebuild_tensor_v2") + b"(]K\0)" + b"\x85" * 100_000 + b")tR.",
    }.items(),
    ids=lambda item: item[0],
)
def test_what_no_pickler_of_weights_writes_is_refused(data: tuple[str, bytes], tmp_path: Path) -> None:
    file = write_zip(tmp_path / "x.pt", data[1])
    with pytest.raises(ConvertError, match="x.pt, record archive/data.pkl, byte"):
        read_torch(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_value_that_contains_itself_and_one_nested_deeply_are_only_values(tmp_path: Path) -> None:
    read = read_torch(write_zip(tmp_path / "x.pt", b"]q\x00h\x00a."))
    assert read[0] is read
    read = read_torch(write_zip(tmp_path / "x.pt", b"]" * 100_000 + b"a" * 99_999 + b"."))
    with pytest.raises(ConvertError, match="nested"):
        write_torch(tmp_path / "y.pt", {"x": read})


def test_a_pickle_of_endless_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="a pickle of more than 1000 bytes"):
        unpickle(io.BytesIO(b"N" * 2000 + b"."), where="x", names={}, max_bytes=1000)


def test_attributes_that_are_copied_again_and_again_are_refused(tmp_path: Path) -> None:
    attributes = {f"{number}": None for number in range(1000)}
    once = pickle.dumps(attributes, 2)[2:-1]
    data = once + b"q\xff(" + (NAMESPACE + b")\x81h\xffb") * 1001 + b"t."
    with pytest.raises(ConvertError, match="more than 1000000 attributes"):
        read_torch(write_zip(tmp_path / "x.pt", data))


@pytest.mark.parametrize(
    "value, found",
    {
        "beyond the end": (Tensor(Storage("0", ROWS), 1, (12,)), "offset 1, size \\(12,\\)"),
        "far beyond": (Tensor(Storage("0", ROWS), 1 << 70, (1,)), "offset 1180591620717411303424"),
        "stride": (Tensor(Storage("0", ROWS), 0, (3, 4), (5, 1)), "stride \\(5, 1\\)"),
        "stride overflow": (Tensor(Storage("0", ROWS), 0, (2, 2), (1 << 62, 1 << 62)), "stride"),
        "size overflow": (Tensor(Storage("0", ROWS), 0, (1 << 32, 1 << 32), (0, 0)), "without repeats"),
        "repeated elements": (Tensor(Storage("0", ROWS), 0, (1 << 40,), (0,)), "without repeats"),
        "negative size": (Tensor(Storage("0", ROWS), 0, (-1,)), "integers of 0 or more"),
        "negative offset": (Tensor(Storage("0", ROWS), -1, (2,)), "integers of 0 or more"),
        "negative stride": (Tensor(Storage("0", ROWS), 5, (2,), (-1,)), "integers of 0 or more"),
        "size of another type": (Tensor(Storage("0", ROWS), 0, (2.0,)), "integers of 0 or more"),
        "size without stride": (Tensor(Storage("0", ROWS), 0, (3, 4), (1,)), "two tuples of one length"),
        "many axes": (Tensor(Storage("0", ROWS), 0, (1,) * 100, (1,) * 100), "at most 64"),
        "tensor of a tensor": (Tensor(tensor("0", ROWS), 0, (3, 4), (4, 1)), "expected a storage"),
        "elements as text": (Tensor(Storage("0", ROWS, count="12"), 0, (1,)), "expected \\(storage, type, key, location, elements\\)"),
        "negative elements": (Tensor(Storage("0", ROWS, count=-1), 0, (1,)), "expected 0 or more"),
        "two types": ([tensor("0", ROWS), tensor("0", ROWS.view(np.int64), "LongStorage")], "expected one of them"),
    }.values(),
)
def test_a_tensor_that_does_not_lie_in_its_storage_is_refused(value: Any, found: str, write: Any, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=found):
        read_torch(write(tmp_path / "x.pt", value))


@pytest.mark.parametrize("count", [11, 13, 1 << 40, 1 << 62, 1 << 80])
def test_a_storage_of_another_size_than_declared_is_refused(count: int, tmp_path: Path) -> None:
    value = Tensor(Storage("0", ROWS, count=count), 0, (2,))
    with pytest.raises(ConvertError, match=f"found 48 bytes in the record archive/data/0, expected {count} of float32"):
        read_torch(write_zip(tmp_path / "x.pt", value))


@pytest.mark.parametrize(
    "count, found", [(13, "cut off or damaged at the storage '0'"), (1 << 40, "found storages of 4398046511104 bytes")]
)
def test_a_legacy_storage_of_more_elements_than_the_file_is_refused(count: int, found: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=found):
        read_torch(write_legacy(tmp_path / "x.pt", Tensor(Storage("0", ROWS, count=count), 0, (2,))))


@pytest.mark.parametrize(
    "name, content, found",
    [
        ("../../x", b"", "do not trust this file"),
        ("/etc/x", b"", "do not trust this file"),
        ("other/data.pkl", b"N.", "expected one <folder>/data.pkl"),
        ("archive/byteorder", b"big", "big-endian"),
        ("archive/data/0", ROWS.tobytes()[1:], "found 47 bytes"),
        ("archive/constants.pkl", b"N.", "TorchScript"),
    ],
)
def test_a_zip_file_with_records_that_do_not_belong_is_refused(name: str, content: bytes, found: str, tmp_path: Path) -> None:
    file = write_zip(tmp_path / "folder.pt", tensor("0", ROWS), others={name: content})
    with pytest.raises(ConvertError, match=found):
        read_torch(file)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_record_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "x.pt", tensor("0", ROWS))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data.pkl", b"N.")
    with pytest.raises(ConvertError, match="two records named 'archive/data.pkl'"):
        read_torch(file)


def test_a_compressed_record_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * 1000)
    with pytest.raises(ConvertError, match="is compressed or encrypted"):
        read_torch(tmp_path / "x.pt")


def test_a_storage_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="has no record 'archive/data/../../secret'"):
        read_torch(write_zip(tmp_path / "x.pt", pickled(tensor("../../secret", ROWS))[0]))


def test_a_flipped_bit_of_a_storage_is_found(tmp_path: Path) -> None:
    data = bytearray(write_zip(tmp_path / "x.pt", tensor("0", ROWS)).read_bytes())
    data[data.index(ROWS.tobytes()) + 17] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ConvertError, match="record 'archive/data/0' differs from its checksum"):
        read_torch(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "data, found",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x89PNG", "starts with b'\\\\x89PNG', expected a file of torch.save"),
        (pickle.dumps({"a": 1}, 2), "not of torch.save"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1000, 2), "has the protocol 1000"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2), "expected a little-endian machine"),
        (b"PK\x03\x04", "cut off or damaged"),
    ],
)
def test_a_file_of_another_kind_is_named(data: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ConvertError, match=found):
        read_torch(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "x.pt", tmp_path):
        with pytest.raises(ConvertError, match=f"{path} cannot be read"):
            read_torch(path)


# Damage: whatever happens to the bytes, the answer is a value or our error.


def read_or_refuse(path: Path, data: bytes) -> bool:
    """Returns whether `data` is read. Any exception but ours fails the test."""
    path.write_bytes(data)
    try:
        read_torch(path)
    except ConvertError as error:
        assert str(path) in str(error)
        return False
    return True


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("samples")
    return {name: write(folder / name, fairseq_state()).read_bytes() for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_cut_anywhere_is_refused(name: str, samples: dict[str, bytes], tmp_path: Path) -> None:
    data = samples[name]
    assert read_or_refuse(tmp_path / "x.pt", data)
    assert [cut for cut in range(0, len(data), 7) if read_or_refuse(tmp_path / "x.pt", data[:cut])] == []


@pytest.mark.parametrize("name", WRITERS)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_file_with_changed_bytes_is_read_or_refused(
    name: str, changes: list[tuple[int, int]], samples: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(samples[name])
    for place, value in changes:
        data[place % len(data)] = value
    read_or_refuse(tmp_path_factory.getbasetemp() / "changed.pt", bytes(data))


@pytest.mark.parametrize("change", [1, 0x80, 0xFF])
def test_a_pickle_with_any_changed_byte_is_read_or_refused(change: int, tmp_path: Path) -> None:
    """The zip format again, with checksums that fit the changed pickle."""
    data, storages = pickled({"model": {"w": tensor("0", ROWS), "n": np.float64(1)}, "cfg": argparse.Namespace(a=[1, (2,)])})
    records = {f"archive/data/{key}": storage.data for key, storage in storages.items()}
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]
        read_or_refuse(tmp_path / "x.pt", write_zip(tmp_path / "y.pt", changed, others=records).read_bytes())


OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
PIECES = st.sampled_from([*OPCODES, ORDERED, NAMESPACE, SCALAR, DTYPE, b"K\x01", b"X\x02\0\0\0f4", b"C\x01a", b"q\x01", b"h\x01"])


@given(st.lists(PIECES | st.binary(max_size=3), max_size=40))
def test_any_sequence_of_opcodes_is_read_or_refused(pieces: list[bytes]) -> None:
    try:
        unpickle(io.BytesIO(b"".join(pieces) + b"."), where="x", names={})
    except ConvertError:
        return
