"""A config as text: one leaf a line for people and golden files, JSON for checkpoints, a hash, and what differs between two.

The rows of a table, which are dataclasses of plain values inside a tuple (the lines of a mixture, the sets of an evaluation), take
one line each, and so does the guard; a block, which holds a table itself, takes a line for every field. A `name` that is already in the
path is not repeated, and what few configs use is not said where it is empty.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from typing import Any

from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.fields import describe, element_names, field_types, is_row_tuple, matches
from ofa_jax.config.schema import AnyRun, RunConfig, VQGANRunConfig

_UNSAID_WHEN_EMPTY = (
    "classes", "later_weights", "rand_augment", "stage_steps", "keep_every", "keep_best", "best_metric", "lowest_is_best",
    "loss_every_steps", "reference", "trace_step", "wandb", "answers", "decoder_noise", "decode", "reward", "question_objects",
    "captioner", "features", "real", "probabilities", "images", "texts", "without",
)  # fmt: skip
_UNSAID_AS = {"deadline_s": 1_200.0, "content": "all", "pixel_scale": "half"}  # the schema's defaults, which few configs change
_ONE_LINE = ("guard",)  # a policy that is read as a whole


def leaves(config: AnyRun) -> dict[str, str]:
    """Returns the rendered value of every leaf by dotted path, in the order of the schema."""
    lines: dict[str, str] = {}
    _walk(config, "", lines)
    return lines


def render(config: AnyRun) -> str:
    """Returns the config as text, `a.b.c = value`, one leaf a line, ending with a newline. Equal configs give equal text."""
    return "".join(f"{path} = {value}\n" for path, value in leaves(config).items())


def config_hash(config: AnyRun) -> str:
    """Returns the SHA-256 of the rendered text, 64 hex digits."""
    return hashlib.sha256(render(config).encode()).hexdigest()


def diff(a: AnyRun, b: AnyRun) -> list[str]:
    """Returns one line per leaf that differs, `path: value in a -> value in b`; a leaf that one side lacks is shown as (none)."""
    left, right = leaves(a), leaves(b)
    paths = list(left) + [path for path in right if path not in left]
    changed = [path for path in paths if left.get(path) != right.get(path)]
    return [f"{path}: {left.get(path, '(none)')} -> {right.get(path, '(none)')}" for path in changed]


def to_json(config: AnyRun) -> str:
    """Returns the config as JSON, fields in the order of the schema; `from_json` gives back an equal config."""
    return json.dumps(dataclasses.asdict(config), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> AnyRun:
    """Returns the config that `to_json` wrote, of the kind that its objective says, by this version of the schema or an older one.

    A field that the text lacks has its default, which for a field added later must be what runs did before. Raises ConfigError for
    text that is not JSON, a field that the schema lacks, a missing field without a default, and a value of another type.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"stored config: found no JSON at line {error.lineno}, column {error.colno}, expected what to_json wrote"
        ) from None
    vqgan = isinstance(data, dict) and data.get("objective") == "vqgan"
    return _build(VQGANRunConfig if vqgan else RunConfig, data, "config")


def _walk(node: Any, prefix: str, lines: dict[str, str], *, named: bool = False) -> None:
    for name, kind in field_types(type(node)).items():
        if named and name == "name":
            continue
        value, path = getattr(node, name), prefix + name
        if name in _ONE_LINE:
            lines[path] = _row_text(value, named=False)
        elif dataclasses.is_dataclass(value):
            _walk(value, path + ".", lines)
        elif is_row_tuple(kind) and value:
            for key, element in zip(element_names(value), value, strict=True):
                named = key == getattr(element, "name", None)
                if _is_plain(type(element)):
                    lines[f"{path}.{key}"] = _row_text(element, named=named)
                else:
                    _walk(element, f"{path}.{key}.", lines, named=named)
        elif (value or name not in _UNSAID_WHEN_EMPTY) and value != _UNSAID_AS.get(name):
            lines[path] = _text(value, kind)


def _is_plain(cls: type) -> bool:
    return not any(dataclasses.is_dataclass(kind) or is_row_tuple(kind) for kind in field_types(cls).values())


def _row_text(row: Any, *, named: bool) -> str:
    kinds = field_types(type(row))
    said = {name: getattr(row, name) for name in kinds if not (named and name == "name")}
    return ", ".join(f"{name}={_text(value, kinds[name])}" for name, value in said.items() if value or name not in _UNSAID_WHEN_EMPTY)


def _text(value: Any, kind: Any) -> str:
    # 1 and 1.0 are equal configs, so they must be equal text, also inside a tuple.
    if kind is float and matches(value, float):
        return repr(float(value))
    if typing.get_origin(kind) is tuple and float in typing.get_args(kind) and matches(value, kind):
        args = typing.get_args(kind)
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return repr(tuple(float(v) if of is float else v for v, of in zip(value, kinds, strict=True)))
    return repr(value)


def _build(kind: Any, data: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = field_types(typing.cast(type, kind))
        if not isinstance(data, dict):
            raise ConfigError(f"stored {path}: found {data!r}, expected {describe(kind)}")
        for name in data:
            if name not in hints:
                raise ConfigError(f"stored {path}: found the unknown field {name}; {nearest(name, hints)}")
        for field in dataclasses.fields(kind):
            if field.name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"stored {path}: found no field {field.name}, expected {describe(hints[field.name])}")
        return typing.cast(Any, kind)(**{name: _build(hints[name], value, f"{path}.{name}") for name, value in data.items()})
    if is_row_tuple(kind) and isinstance(data, list):
        return tuple(_build(typing.get_args(kind)[0], item, f"{path}.{i}") for i, item in enumerate(data))
    value = tuple(data) if typing.get_origin(kind) is tuple and isinstance(data, list) else data
    if not matches(value, kind):
        raise ConfigError(f"stored {path}: found {data!r}, expected {describe(kind)}")
    return value
