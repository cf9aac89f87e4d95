"""Files of `torch.save`, read and written without PyTorch, and read without running what they hold.

Two formats exist (PyTorch's "Serialization semantics", section on the file format, describes the first):

- zip, since 1.6: stored, not compressed; below one folder of any name lie `data.pkl` (the object, a pickle of protocol 2 in which a storage
  is a persistent id), `data/<key>` (the bytes of one storage each, aligned to 64 bytes), `version`, and since 2.1 `byteorder`.
- legacy: five pickles in a row (a magic number, the protocol 1001, a dict about the machine, the object, the list of storage keys), then
  for every key the number of elements as int64 and the bytes.

A tensor is a call `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`, in elements of its storage.
"""

from __future__ import annotations

import io
import math
import mmap
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from ofa_jax.config.errors import ConvertError
from ofa_jax.convert.unpickle import Function, Refused, unpickle
from ofa_jax.convert.whole_file import map_file, written_whole, zip_records

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_ALIGNMENT = 64
_MAX_AXES = 64  # NumPy's and PyTorch's limit

# PyTorch's name of a storage's class, of its dtype, NumPy's dtype.
_DTYPES = (
    ("Float", "float32", np.dtype(np.float32)),
    ("Double", "float64", np.dtype(np.float64)),
    ("Half", "float16", np.dtype(np.float16)),
    ("BFloat16", "bfloat16", np.dtype(ml_dtypes.bfloat16)),
    ("Byte", "uint8", np.dtype(np.uint8)),
    ("Char", "int8", np.dtype(np.int8)),
    ("Short", "int16", np.dtype(np.int16)),
    ("Int", "int32", np.dtype(np.int32)),
    ("Long", "int64", np.dtype(np.int64)),
    ("Bool", "bool", np.dtype(np.bool_)),
    ("ComplexFloat", "complex64", np.dtype(np.complex64)),
    ("ComplexDouble", "complex128", np.dtype(np.complex128)),
)
_STORAGE_OF = {dtype: f"{storage}Storage" for storage, _, dtype in _DTYPES}


def read_torch(path: str | Path) -> Any:
    """Returns the object that was given to `torch.save`: dicts, lists, tuples and plain values, with read-only NumPy arrays for tensors.

    bfloat16 is `ml_dtypes.bfloat16`. Arrays of zip files are views of the mapped file, whose pages can be dropped again; those of legacy
    files lie in memory once. Tensors that share a storage share memory, and equal views of it are one array. `argparse.Namespace`
    (fairseq's `cfg`) becomes a dict of its attributes, `torch.device` a text, `torch.Size` a tuple, a bare storage an array.

    Raises `ConvertError`, before anything is run, for every name outside a fixed table, and for damage: records that are missing,
    compressed or fail their checksum, storages of another size than declared, tensors that reach out of their storage.
    """
    path = Path(path)
    mapping = map_file(path)
    if mapping[:4] == b"PK\x03\x04":
        return _read_zip(path, mapping)
    if mapping[:1] == b"\x80":
        return _read_legacy(path, mapping)
    raise ConvertError(f"{path} starts with {mapping[:8]!r}, expected a file of torch.save: a zip file (PK) or a pickle (\\x80)")


def _read_zip(path: Path, mapping: mmap.mmap) -> Any:
    records = zip_records(path)
    tops = [name.removesuffix("/data.pkl") for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1:
        raise ConvertError(f"{path} is a zip file of {reprlib.repr(list(records))}, expected one <folder>/data.pkl as torch.save writes it")
    top = tops[0]
    if f"{top}/constants.pkl" in records:
        raise ConvertError(f"{path} is a TorchScript program, expected weights: save its state_dict() with torch.save")

    def record(name: str) -> memoryview:
        if name not in records:
            raise ConvertError(f"{path} has no record {name!r:.80}, expected those that its data.pkl names: download or write it again")
        return _stored_bytes(path, mapping, records[name])

    if f"{top}/byteorder" in records and bytes(record(f"{top}/byteorder")) != b"little":
        raise ConvertError(f"{path} was written by a big-endian machine, expected little-endian: load and save it with PyTorch")

    def read_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        data = record(f"{top}/data/{key}")
        if len(data) != count * dtype.itemsize:
            raise Refused(f"found {len(data)} bytes in the record {top}/data/{key}, expected {count} of {dtype}")
        storage = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
        return storage if storage.flags.aligned else storage.copy()

    pickle = io.BytesIO(record(f"{top}/data.pkl"))
    return unpickle(pickle, where=f"{path}, record {top}/data.pkl", names=_torch_names(), persistent=_Storages(read_storage))


def _stored_bytes(path: Path, mapping: mmap.mmap, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a record that is not compressed, in the mapping; they lie behind the record's own header (APPNOTE.TXT of zip, 4.3.7)."""
    what = f"{path}, record {info.filename!r:.80}"
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ConvertError(f"{what} is compressed or encrypted, expected plain bytes: load and save it with PyTorch")
    header = mapping[info.header_offset : info.header_offset + 30] if info.header_offset >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ConvertError(f"{what} has no header at byte {info.header_offset}, the file is damaged: download or write it again")
    name_length, extra_length = struct.unpack("<2H", header[26:30])
    start = info.header_offset + 30 + name_length + extra_length
    data = memoryview(mapping)[start : start + info.file_size]
    # torch.serialization.set_crc32_options(False) leaves 0 for every checksum.
    if len(data) != info.file_size or (info.CRC and zlib.crc32(data) != info.CRC):
        raise ConvertError(f"{what} differs from its checksum, the file is damaged: download or write it again")
    return data


def _read_legacy(path: Path, mapping: mmap.mmap) -> Any:
    def part(name: str, **options: Any) -> Any:
        return unpickle(mapping, where=f"{path}, {name}", **{"names": {}, **options})

    if part("magic number") != _MAGIC:
        raise ConvertError(f"{path} is a pickle, but not of torch.save, expected its magic number {_MAGIC:#x} first")
    if (protocol := part("protocol")) != _PROTOCOL:
        raise ConvertError(f"{path} has the protocol {reprlib.repr(protocol)}, expected {_PROTOCOL}: load and save it with a newer PyTorch")
    machine = part("machine")
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ConvertError(f"{path} comes from {reprlib.repr(machine)}, expected a little-endian machine: load and save it with PyTorch")

    # Bytes come behind the object, so its tensors get their memory first; all of it together is less than the file, or the file is wrong.
    declared = 0

    def allocate(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        nonlocal declared
        declared += count * dtype.itemsize
        if declared > len(mapping):
            raise Refused(f"found storages of {declared} bytes up to {key!r:.80}, expected no more than the file's {len(mapping)}")
        return np.empty(count, dtype)

    storages = _Storages(allocate)
    result = part("object", names=_torch_names(), persistent=storages)
    keys = part("storage keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages.by_key):
        found, expected = reprlib.repr(keys), reprlib.repr([*storages.by_key])
        raise ConvertError(f"{path} lists the storages {found}, expected those of its tensors, {expected}: download or write it again")
    for key in keys:
        storage = storages.by_key[key]
        start = mapping.tell() + 8
        data = memoryview(mapping)[start : start + storage.nbytes]
        if mapping.read(8) != struct.pack("<q", storage.size) or len(data) != storage.nbytes:
            raise ConvertError(f"{path} is cut off or damaged at the storage {key!r:.80}: download or write it again")
        memoryview(storage.view(np.uint8))[:] = data
        storage.flags.writeable = False
        mapping.seek(start + storage.nbytes)
    return result


class _Storages:
    """Storages, each read once, by persistent id: ("storage", dtype, key, location, number of elements), and a None in legacy files."""

    def __init__(self, read: Callable[[str, np.dtype, int], np.ndarray]):
        self.read = read
        self.by_key: dict[str, np.ndarray] = {}

    def __call__(self, identity: Any) -> np.ndarray:
        match identity:
            case ("storage", np.dtype() as dtype, str(key), str(), int(count), *view) if view in ([], [None]):
                pass
            case _:
                raise Refused(f"found the storage {reprlib.repr(identity)}, expected (storage, type, key, location, elements)")
        if count < 0:
            raise Refused(f"found the storage {key!r:.80} of {count} elements, expected 0 or more")
        if key not in self.by_key:
            self.by_key[key] = self.read(key, dtype, count)
        storage = self.by_key[key]
        if (storage.dtype, storage.size) != (dtype, count):
            found = f"as {count} of {dtype} and as {storage.size} of {storage.dtype}"
            raise Refused(f"found the storage {key!r:.80} {found}, expected one of them")
        return storage


def _torch_names() -> dict[str, Any]:
    """What PyTorch's names stand for while one file is read: storages and dtypes for NumPy's dtypes, the rest for functions of ours."""
    # Tied weights are calls of their own; the same view of the same storage is the same array.
    views: dict[tuple[Any, ...], np.ndarray] = {}

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        _check_view(storage, offset, size, stride)
        key = (storage.__array_interface__["data"][0], storage.dtype, offset, size, stride)
        if key not in views:
            item = storage.itemsize
            # The stride of an axis of length 1 means nothing and may be anything.
            strides = [item * (step if length > 1 else 1) for length, step in zip(size, stride, strict=True)]
            empty = 0 in size
            view = np.empty(size, storage.dtype) if empty else np.ndarray(size, storage.dtype, storage, item * offset, strides)
            view.flags.writeable = False
            views[key] = view
        return views[key]

    functions: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.Size": _size,
        "torch.device": _device,
    }
    byte = np.dtype(np.uint8)
    return (
        {f"torch.{storage}Storage": dtype for storage, _, dtype in _DTYPES}
        | {f"torch.{name}": dtype for _, name, dtype in _DTYPES}
        | {"torch.UntypedStorage": byte, "torch.storage.UntypedStorage": byte}
        | {name: Function(call) for name, call in functions.items()}
    )


def _check_view(storage: Any, offset: Any, size: Any, stride: Any) -> None:
    """Raises `Refused` unless the tensor lies in its storage and has no more elements, so that a copy is no larger than the file."""
    view = f"a tensor of the offset {reprlib.repr(offset)}, size {reprlib.repr(size)} and stride {reprlib.repr(stride)}"
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise Refused(f"found {view} in {type(storage).__name__}, expected a storage")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > _MAX_AXES:
        raise Refused(f"found {view}, expected two tuples of one length, at most {_MAX_AXES}")
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise Refused(f"found {view}, expected integers of 0 or more")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count and (last >= storage.size or count > storage.size):
        raise Refused(f"found {view} in a storage of {storage.size} elements, expected it to lie in there without repeats")


def _parameter(data: Any, *_: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise Refused(f"found a parameter of {type(data).__name__}, expected a tensor")
    return data


def _size(lengths: Any) -> tuple[int, ...]:
    if type(lengths) not in (tuple, list) or len(lengths) > _MAX_AXES or not all(type(length) is int for length in lengths):
        raise Refused(f"found the size {reprlib.repr(lengths)}, expected integers")
    return tuple(lengths)


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise Refused(f"found the device {reprlib.repr(kind)}, {reprlib.repr(index)}, expected a text and a number")
    return kind if index is None else f"{kind}:{index}"


def write_torch(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes `state` so that `torch.load(path, weights_only=True)` returns it: dicts, lists, tuples and plain values around tensors.

    state: NumPy arrays of PyTorch's dtypes (bfloat16 as `ml_dtypes.bfloat16`) become tensors in C order, an array that occurs twice becomes
    one storage; NumPy numbers become plain ones. fairseq's layout is {"args": None, "cfg": {...}, "model": {...}, "extra_state": {...}}.
    Equal states give equal bytes. Raises `ConvertError` for anything that PyTorch would not read back, and for a full or missing folder.
    """
    pickler = _Pickler()
    try:
        pickler.add(state, "state")
    except RecursionError:
        raise ConvertError(f"{path}: found a state nested hundreds deep or in itself, expected dicts and lists of arrays") from None
    with written_whole(path) as partial, partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add_record(archive, file, "data.pkl", bytes(pickler.out) + b".")
        _add_record(archive, file, "byteorder", b"little")
        for key, array in enumerate(pickler.arrays):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _add_record(archive, file, f"data/{key}", np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
        _add_record(archive, file, "version", b"3\n")


def _add_record(archive: zipfile.ZipFile, file: IO[bytes], name: str, data: bytes | memoryview) -> None:
    """Appends a record whose bytes start at a multiple of 64: an extra field of zeros (called FB by PyTorch) fills up its header."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(data)
    # zipfile appends 20 bytes to the header of a record that may pass 2 GiB, by this rule of its own.
    large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT
    unpadded = file.tell() + 30 + len(info.filename) + 4 + 20 * large
    padding = -unpadded % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=large) as record:
        record.write(data)


class _Pickler:
    """Emits the pickle of a state in protocol 2, with the opcodes that `torch.load(weights_only=True)` knows. `arrays`: by storage key."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.arrays: list[np.ndarray] = []
        self.keys: dict[int, int] = {}

    def add(self, value: Any, name: str) -> None:
        """Appends `value`. name: where in the state it is, for errors."""
        out = self.out
        if isinstance(value, np.generic):
            value = value.item()
        if value is None:
            out += b"N"
        elif isinstance(value, bool):
            out += b"\x88" if value else b"\x89"
        elif isinstance(value, int):
            self.add_int(value, name)
        elif isinstance(value, float):
            out += b"G" + struct.pack(">d", value)
        elif isinstance(value, str):
            text = value.encode("utf-8", "surrogatepass")
            out += b"X" + struct.pack("<I", len(text)) + text
        elif isinstance(value, np.ndarray):
            self.add_tensor(value, name)
        elif isinstance(value, Mapping):
            out += b"}("
            for key, item in value.items():
                if not isinstance(key, str | int | float | None):
                    raise ConvertError(f"{name} has a key of type {type(key).__name__}, expected texts or numbers")
                self.add(key, name)
                self.add(item, f"{name}[{key!r}]")
            out += b"u"
        elif isinstance(value, list | tuple):
            out += b"](" if isinstance(value, list) else b"("
            for index, item in enumerate(value):
                self.add(item, f"{name}[{index}]")
            out += b"e" if isinstance(value, list) else b"t"
        else:
            raise ConvertError(f"{name} is of type {type(value).__name__}, expected NumPy arrays, dicts, lists, tuples and plain values")

    def add_int(self, value: int, name: str) -> None:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        if len(data) > 255:
            raise ConvertError(f"{name} is an integer of {len(data)} bytes, expected at most 255")
        in_32_bits = -(1 << 31) <= value < 1 << 31
        self.out += b"J" + struct.pack("<i", value) if in_32_bits else b"\x8a" + bytes([len(data)]) + data

    def add_tensor(self, array: np.ndarray, name: str) -> None:
        if (dtype := array.dtype.newbyteorder("=")) not in _STORAGE_OF:
            raise ConvertError(f"{name} is an array of {array.dtype}, expected one of {', '.join(map(str, _STORAGE_OF))}")
        if id(array) not in self.keys:
            self.keys[id(array)] = len(self.arrays)
            self.arrays.append(array)
        self.out += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.add("storage", name)
        self.out += f"ctorch\n{_STORAGE_OF[dtype]}\n".encode()
        self.add(str(self.keys[id(array)]), name)
        self.add("cpu", name)
        self.add(array.size, name)
        self.out += b"tQ"
        self.add(0, name)
        self.add(array.shape, name)
        self.add(tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)), name)
        self.out += b"\x89ccollections\nOrderedDict\n)RtR"
