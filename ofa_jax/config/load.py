"""From the command line to a `RunConfig`: `--config=configs/x.py[:arg]` and `--config.a.b=value`.

absl refuses flags with dots, so these are taken out of argv before absl parses the rest. A config file is Python with a function
`get_config(arg: str)` that returns a `RunConfig` or, to train a VQGAN, a `VQGANRunConfig`; `arg` is what follows the colon, a list of
`name` and `name=value` separated by commas, read with `parse_arg`. The file is found from the working directory; it may import its
neighbours as `configs.x`, wherever the command runs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ofa_jax.config.decoding import SweepConfig
from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.fields import parse, replace_at
from ofa_jax.config.schema import AnyRun, RunConfig

Run = TypeVar("Run", bound=AnyRun)
_FLAG = re.compile(r"^--?config(?P<path>\.[^=]*)?(?:=(?P<value>.*))?$", re.DOTALL)


def load_config(argv: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """Returns what `load_run` does, for commands about OFA: raises ConfigError for the config of another model too."""
    config, rest = load_run(argv)
    if not isinstance(config, RunConfig):
        raise ConfigError(f"--config: found the run {config.name} of a {config.objective}, expected one of an OFA model")
    return config, rest


def load_run(argv: Sequence[str]) -> tuple[AnyRun, list[str]]:
    """Returns the config that `argv` asks for and what is left of `argv`, in order (its first element, the program's name, included).

    Overrides are applied after the file, from left to right. Cross-field checks are the caller's next step (`config.check.check`).
    Raises ConfigError with one sentence for a missing file, an unknown field or a value of the wrong type.
    """
    spec, overrides, rest = split_config(argv)
    if not spec:
        raise ConfigError("--config: found none, expected --config=configs/<name>.py[:arg], for example --config=configs/quickstart.py")
    return override(read_config(spec), overrides), rest


def run_folder(config: AnyRun) -> Path:
    """Returns the run's working directory."""
    return Path(config.workdir.replace("{name}", config.name))


def split_config(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str]], list[str]]:
    """Returns (`file.py[:arg]` or None, the overrides as (dotted path, text), what is left of `argv`), for commands that may do without.

    Raises ConfigError for a flag without a value and for a second config file.
    """
    spec: str | None = None
    overrides: list[tuple[str, str]] = []
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":  # absl's own end of flags
            rest += [word, *words]
            break
        found = _FLAG.match(word)
        if found is None:
            rest.append(word)
        elif found["path"] is None:
            if spec is not None:
                raise ConfigError(f"--config: found it twice ({spec} and {word}), expected one config file")
            if found["value"] is None and not words:
                raise ConfigError("--config: found no file after it, expected --config=configs/<name>.py")
            spec = found["value"] if found["value"] is not None else words.pop(0)
        elif found["value"] is None:
            raise ConfigError(f"{word}: found no value, expected {word}=<value>")
        else:
            overrides.append((found["path"][1:], found["value"]))
    return spec or None, overrides, rest


def override(config: Run, overrides: Sequence[tuple[str, str]]) -> Run:
    """Returns `config` with every (dotted path, text) of `overrides` applied in order; texts are parsed by the field's type."""
    for path, text in overrides:
        if not path or any(not key for key in path.split(".")):
            raise ConfigError(f"--config.{path}: found an empty name in the path, expected --config.<field>.<field>=value")
        config = replace_at(config, path.split("."), text, path=f"config.{path}")
    return config


def read_config(spec: str) -> AnyRun:
    """Returns `get_config(arg)` of the file that `spec` (`path.py` or `path.py:arg`) names."""
    match = re.match(r"^(?P<file>.*?\.py)(?::(?P<arg>.*))?$", spec, re.DOTALL)
    if match is None:
        raise ConfigError(f"--config: found {spec!r}, expected the path of a Python file, as in configs/quickstart.py:debug")
    module = _import_file(Path(match["file"]))
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{match['file']}: found no function get_config, expected get_config(arg: str) -> RunConfig")
    config = get_config(match["arg"] or "")
    if not isinstance(config, AnyRun):
        raise ConfigError(f"{match['file']}: get_config returned {type(config).__name__}, expected a RunConfig or a VQGANRunConfig")
    return config


def read_sweep(path: str) -> SweepConfig:
    """Returns `get_sweep()` of the Python file at `path`. Raises ConfigError where there is no such file or function."""
    module = _import_file(Path(path), flag="--sweep")
    get_sweep = getattr(module, "get_sweep", None)
    if not callable(get_sweep):
        raise ConfigError(f"--sweep: {path}: found no function get_sweep, expected get_sweep() -> SweepConfig")
    sweep = get_sweep()
    if not isinstance(sweep, SweepConfig):
        raise ConfigError(f"--sweep: {path}: get_sweep returned {type(sweep).__name__}, expected a SweepConfig")
    return sweep


def read_function(spec: str, *, flag: str) -> Callable[..., Any]:
    """Returns the function that "FILE.py:name" names. Raises ConfigError where there is no such file or function."""
    file, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise ConfigError(f"{flag}: found {spec!r}, expected FILE.py:function")
    function = getattr(_import_file(Path(file), flag=flag), name, None)
    if not callable(function):
        raise ConfigError(f"{flag}: {file}: found no function {name}, expected one")
    return function


def parse_arg(arg: str, **defaults: Any) -> dict[str, Any]:
    """Returns `defaults` with the values that the mini-argument list `arg` gives: `debug,steps=10`.

    A value is parsed by the type of its default (bool, int, float or str); a bare name sets a bool to True.
    Raises ConfigError for an unknown name, naming the nearest known one, and for a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (item.strip() for item in arg.split(","))):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ConfigError(f"config argument {name!r} is unknown; {nearest(name, defaults)}")
        kind = type(defaults[name])
        if not equals and kind is not bool:
            raise ConfigError(f"config argument {name!r}: found no value, expected {name}=<{kind.__name__}>")
        values[name] = parse(text, kind, path=f"config argument {name}") if equals else True
    return values


def split_arg(arg: str, **defaults: str) -> tuple[dict[str, str], str]:
    """Returns `defaults` with the values that `arg` gives (`size=base,debug`), and the rest of `arg`, which is for others."""
    chosen, rest = dict(defaults), []
    for word in filter(None, (word.strip() for word in arg.split(","))):
        name, equals, value = word.partition("=")
        if equals and name in chosen:
            chosen[name] = value
        else:
            rest.append(word)
    return chosen, ",".join(rest)


def _import_file(path: Path, *, flag: str = "--config") -> types.ModuleType:
    """Imports a config file by path: as `configs.x` where it lies in the repository's `configs`, else under a name of its own."""
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else None
        there = sorted(p.name for p in folder.glob("*.py") if p.stem != "__init__") if folder else []
        hint = nearest(path.name, there) if there else f"expected a file below the working directory {Path.cwd()}"
        raise ConfigError(f"{flag}: found no file {path}; {hint}")
    path = path.resolve()
    root = Path(__file__).resolve().parents[2]
    # Configs import each other as `configs.x`; a command that runs elsewhere does not have the repository on its path.
    if str(root) not in sys.path:
        sys.path.append(str(root))
    if path.is_relative_to(root / "configs"):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        module = importlib.import_module(name)
        if Path(module.__file__ or "").resolve() == path:
            return module
        raise ConfigError(f"{flag}: {name} is {module.__file__}, expected {path}; another package named configs is earlier on the path")
    name = f"config_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{flag}: {path} cannot be imported, expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
