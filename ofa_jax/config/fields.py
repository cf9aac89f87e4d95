"""The schema as a tree of typed leaves: what loading, rendering and checking have in common.

A leaf is a field that is not a dataclass. A tuple of dataclasses is walked too: its elements are addressed by their `name` where all
have one and none repeats, by index otherwise (`data.blocks.pairs.rows`, `data.blocks.0.rows`). Types are those of the schema: int,
float, bool, str, Literal, Optional, tuples of them, dataclasses and tuples of dataclasses.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from ofa_jax.config.errors import ConfigError, nearest


def field_types(cls: type) -> dict[str, Any]:
    """Returns the resolved type of every field of the dataclass `cls`, in the order of the schema; do not change the dict."""
    if cls not in _RESOLVED:
        hints = typing.get_type_hints(cls)
        _RESOLVED[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _RESOLVED[cls]


_RESOLVED: dict[type, dict[str, Any]] = {}  # resolving annotations takes most of the time of walking a config


def describe(kind: Any) -> str:
    """Returns what a person has to write for a value of the type `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if arg is type(None) else describe(arg) for arg in args)
    if origin is tuple:
        if args[-1] is not Ellipsis:
            return " and ".join(map(describe, args)) + " separated by commas"
        return f"a list of {describe(args[0])} separated by commas"
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}
    if dataclasses.is_dataclass(kind):
        return f"a group of fields ({', '.join(field_types(typing.cast(type, kind)))})"
    return names.get(kind, str(kind))


def is_row_tuple(kind: Any) -> bool:
    """Returns whether `kind` is a tuple of dataclasses, such as the blocks of a batch or the lines of a mixture."""
    return typing.get_origin(kind) is tuple and dataclasses.is_dataclass(typing.get_args(kind)[0])


def matches(value: Any, kind: Any) -> bool:
    """Returns whether `value` is what the schema's type `kind` promises. An int passes for a float, a bool for neither."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(matches(v, args[0]) for v in value)
        return len(value) == len(args) and all(map(matches, value, args))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def parse(text: str, kind: Any, *, path: str) -> Any:
    """Returns the value of type `kind` that `text` writes.

    Booleans are true or false, None is none, tuples are values separated by commas with or without brackets.
    Raises ConfigError, naming `path`, what was found and what was expected.
    """
    wrong = ConfigError(f"{path}: found {text!r}, expected {describe(kind)}")
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        for option in args:
            if text == str(option):
                return option
        raise ConfigError(f"{path}: found {text!r}, expected {describe(kind)}; {nearest(text, map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and text.lower() == "none":
            return None
        for arg in args:
            if arg is not type(None):
                try:
                    return parse(text, arg, path=path)
                except ConfigError:
                    continue  # the next member of the union may take it; if none does, the sentence below names them all
        raise wrong
    if is_row_tuple(kind) or dataclasses.is_dataclass(kind):
        raise ConfigError(f"{path}: found {text!r} for a group of fields, expected one of its fields by name, as in {path}.<field>=value")
    if origin is tuple:
        body = text.strip()
        if body[:1] + body[-1:] in ("()", "[]"):
            body = body[1:-1]
        items = [item.strip() for item in body.split(",") if item.strip()]
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(parse(item, args[0], path=path) for item in items)
        if len(items) != len(args):
            raise wrong
        return tuple(parse(item, arg, path=path) for item, arg in zip(items, args, strict=True))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise wrong
        return text.lower() == "true"
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError:
        raise wrong from None
    if kind is float and not math.isfinite(value):
        raise wrong
    return value


def element_names(rows: tuple) -> list[str]:
    """Returns how the elements of a tuple of dataclasses are addressed: by their `name` where that is unambiguous, else by index."""
    names = [getattr(row, "name", "") for row in rows]
    usable = all(isinstance(n, str) and n and not n.isdigit() and "." not in n and "=" not in n for n in names)
    return names if usable and len(set(names)) == len(names) else [str(i) for i in range(len(rows))]


def replace_at(node: Any, keys: list[str], text: str, *, path: str) -> Any:
    """Returns the dataclass `node` with the leaf below `keys` set to what `text` writes. `path` is the whole path, for sentences."""
    hints = field_types(type(node))
    key, rest = keys[0], keys[1:]
    if key not in hints:
        raise ConfigError(f"{path}: {type(node).__name__} has no field {key}; {nearest(key, hints)}")
    kind, value = hints[key], getattr(node, key)
    if not rest:
        new = parse(text, kind, path=path)
    elif dataclasses.is_dataclass(value):
        new = replace_at(value, rest, text, path=path)
    elif is_row_tuple(kind):
        names = element_names(value)
        if rest[0] in names:
            index = names.index(rest[0])
        elif rest[0].isdigit() and int(rest[0]) < len(value):
            index = int(rest[0])
        else:
            raise ConfigError(f"{path}: {key} has no element {rest[0]}; {nearest(rest[0], names)}")
        if len(rest) == 1:
            parse(text, type(value[index]), path=path)  # raises: an element is a group of fields
        new = (*value[:index], replace_at(value[index], rest[1:], text, path=path), *value[index + 1 :])
    else:
        raise ConfigError(f"{path}: {key} is {describe(kind)} and has no fields, found .{'.'.join(rest)}")
    return dataclasses.replace(node, **{key: new})
