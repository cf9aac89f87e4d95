"""Reading pickles without running them.

A pickle is a program: Python's own reader imports what it names and calls it. The machine below imports nothing and calls nothing but
the functions of a table that it is given; a name that is not in the table ends the reading. `pickletools` of the standard library takes
the opcodes apart and documents them; those known here are what picklers emit for plain values, tensors and attributes of objects.
"""

from __future__ import annotations

import mmap
import pickletools
import re
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from ofa_jax.config.errors import ConvertError

# A pickle of a thousand tensors has 0.2 MB; Python objects take about fifty times the bytes of their pickle.
MAX_BYTES = 64 << 20
MAX_ATTRIBUTES = 1_000_000

# Opcodes whose argument is the value that they push.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Keys are hashed, and the hash of a deeply nested tuple overflows the stack of the interpreter.
_KEYS = (str, int, float, bool, bytes, type(None))


class Refused(ValueError):
    """A value that a `Function` or the storages of a file do not take: what was found and expected. `unpickle` adds the place."""


@dataclass(frozen=True)
class Function:
    """What a name of the table does when a pickle calls it: `call` gets the pickle's arguments, and has to distrust them."""

    call: Callable[..., Any]


class Attributes(dict[str, Any]):
    """An object whose class is not here, as the dict of its attributes."""


def unpickle(
    file: IO[bytes] | mmap.mmap,
    *,
    where: str,
    names: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Returns the object of the pickle that starts at the position of `file`, and leaves `file` behind its end.

    where: file and record, for errors. names: what every global name ("module.name") stands for, beside those of `HARMLESS`: a
    `Function`, or a value. persistent: gives the object of a persistent id. Both may raise `Refused`. Everything else is a `ConvertError`.
    """
    machine = _Machine({**HARMLESS, **names}, persistent)
    start = position = file.tell()
    try:
        for opcode, argument, at in pickletools.genops(file):  # type: ignore[arg-type]  # read, readline and tell do
            position = at or 0
            if position - start > max_bytes:
                raise Refused(f"found a pickle of more than {max_bytes} bytes, expected names and numbers around tensors")
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except Refused as error:
        raise ConvertError(f"{where}, byte {position - start} of the pickle: {error}") from error
    except ConvertError:  # of the file, such as a record that is missing
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        place, found = f"{where}, byte {position - start} of the pickle", f"{type(error).__name__}: {error}"
        raise ConvertError(f"{place}: found what no pickler of weights writes ({found}): download or write it again") from error
    return result


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any] | None):
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.num_attributes = 0

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _VALUES:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _SHORT_TUPLES:
            stack.append(tuple(self.pop(_SHORT_TUPLES[opcode])))
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.marks.append(len(stack))
        elif opcode == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif opcode == "LIST":
            stack.append(self.pop_to_mark())
        elif opcode == "DICT":
            items = self.pop_to_mark()
            stack.append({})
            self.set_items(items)
        elif opcode == "APPEND":
            self.extend(self.pop(1))
        elif opcode == "APPENDS":
            self.extend(self.pop_to_mark())
        elif opcode == "SETITEM":
            self.set_items(self.pop(2))
        elif opcode == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif opcode == "GLOBAL":
            # pickletools joins module and name by a space.
            stack.append(self.look_up(argument.replace(" ", ".")))
        elif opcode == "STACK_GLOBAL":
            stack.append(self.look_up(".".join(self.pop(2))))
        elif opcode in ("REDUCE", "NEWOBJ"):
            function, arguments = self.pop(2)
            if not isinstance(function, Function) or type(arguments) is not tuple:
                raise TypeError(f"a call of {type(function).__name__} with {type(arguments).__name__}")
            stack.append(function.call(*arguments))
        elif opcode == "BUILD":
            self.build(*self.pop(1))
        elif opcode == "BINPERSID" and self.persistent:
            stack.append(self.persistent(*self.pop(1)))
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the opcode {opcode}")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError(f"items appended to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError(f"{len(items)} keys and values for {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _KEYS:
                raise TypeError(f"a key of type {type(key).__name__}")
            target[key] = value

    def build(self, state: Any) -> None:
        """Gives the last object its state, which only an object that is nothing but its attributes takes in."""
        target = self.stack[-1]
        if isinstance(target, Attributes):
            if type(state) is not dict or not all(isinstance(key, str) for key in state):
                raise TypeError(f"attributes as {type(state).__name__}")
            # One dict in the memo could be copied a million times.
            self.num_attributes += len(state)
            if self.num_attributes > MAX_ATTRIBUTES:
                raise Refused(f"found more than {MAX_ATTRIBUTES} attributes of objects, expected those of a config")
            target.update(state)
        elif isinstance(target, np.dtype):
            if type(state) is not tuple or ">" in state[:2]:
                raise Refused(f"found a NumPy dtype with {reprlib.repr(state)}, expected little-endian")
        elif not isinstance(target, OrderedDict):  # PyTorch's state dicts carry `_metadata`, versions of modules
            raise TypeError(f"a state for {type(target).__name__}")

    def look_up(self, name: str) -> Any:
        if name not in self.names:
            raise Refused(
                f"found the name {name!r:.80}, which is not among those of tensors and plain values and could run code; nothing was run. "
                'If you trust the file, save its weights alone with its own program: torch.save({"model": state_dict}, path)'
            )
        return self.names[name]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes in a pickle of protocol 2. Files of weights have those of a NumPy number; long ones would be copied with every call."""
    if type(text) is not str or len(text) > 32 or encoding != "latin1":
        raise Refused(f"found {reprlib.repr(text)} as {reprlib.repr(encoding)}, expected at most 32 bytes as latin1, a NumPy number")
    return text.encode(encoding)


def _numpy_dtype(name: str, *_: Any) -> np.dtype:
    if not re.fullmatch(r"[biuf][1248]|c8|c16", name):
        raise Refused(f"found the NumPy dtype {reprlib.repr(name)}, expected numbers such as 'f8'")
    return np.dtype(name)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or type(data) is not bytes or len(data) != dtype.itemsize:
        raise Refused(f"found {reprlib.repr(dtype)} with {reprlib.repr(data)}, expected a NumPy number and its bytes")
    return np.frombuffer(data, dtype)[0].item()


# Names of Python and NumPy that fairseq's files hold beside those of tensors, and what they stand for here.
# (The first two take no arguments: items come by opcodes of their own, which check them.)
HARMLESS: dict[str, Any] = {
    "collections.OrderedDict": Function(lambda: OrderedDict()),
    "argparse.Namespace": Function(lambda: Attributes()),
    "_codecs.encode": Function(_encode),
    "numpy.dtype": Function(_numpy_dtype),
    "numpy.core.multiarray.scalar": Function(_numpy_scalar),
    "numpy._core.multiarray.scalar": Function(_numpy_scalar),
    # Lightning keeps the states of callbacks by their classes: here they are only keys, which cannot be called.
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": "ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping": "EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor": "LearningRateMonitor",
    "pytorch_lightning.utilities.parsing.AttributeDict": Function(lambda *_: Attributes()),
}
