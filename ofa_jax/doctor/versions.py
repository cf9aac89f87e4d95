"""The interpreter and the installed packages against the pins of a requirements file."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from ofa_jax.config.errors import ConfigError
from ofa_jax.doctor.report import Finding, Status

ROOT = Path(__file__).resolve().parents[2]
# What decides a run's numbers, the order of its data and its files: another version of these is a failure, of others a warning.
DECISIVE = frozenset(
    ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "tensorstore", "ml-dtypes", "numpy", "grain", "array-record")
)
_PLUGINS = ("jax-cuda", "jax-rocm")  # they begin the names of packages that must be of jaxlib's own version


def read_pins(path: Path) -> list[Requirement]:
    """Returns the requirements of a file and of those that it includes by `-r`, whose environment markers hold here.

    Raises `ConfigError` for a file that is missing and for a line that pip would not understand either.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: found no such file, expected a list of requirements, as requirements.txt")
    pins = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition(" #")[0].strip()
        if not words or words.startswith("#"):
            continue
        if words.startswith("-r "):
            pins += read_pins(path.parent / words.removeprefix("-r ").strip())
            continue
        try:
            pin = Requirement(words)
        except InvalidRequirement as error:
            raise ConfigError(f"{path}: line {number}: found {words!r}, expected a requirement as name==version") from error
        if pin.marker is None or pin.marker.evaluate():
            pins.append(pin)
    return pins


def installed(pins: list[Requirement]) -> dict[str, str]:
    """Returns name -> version of what is installed of the pins; "" for what is not."""
    return {pin.name: _version(pin.name) for pin in pins}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def check_versions(path: Path) -> list[Finding]:
    """Returns what differs from the pins of a requirements file, one finding a package, or one that says that nothing does.

    Python is compared with pyproject.toml, and JAX's plugins for GPUs with jaxlib. Raises `ConfigError` as `read_pins` does.
    """
    pins = read_pins(path)
    found = installed(pins)
    install = f"pip install -r {path.name}"
    faults = [*_python()]
    for pin in pins:
        version = found[pin.name]
        if not version:
            faults.append(Finding("versions", "FAIL", f"{pin.name}: found none", f"{pin.name}{pin.specifier}", install))
        elif not pin.specifier.contains(version, prereleases=True):
            status: Status = "FAIL" if pin.name.lower() in DECISIVE else "WARN"
            faults.append(Finding("versions", status, f"{pin.name}: found {version}", f"{pin.specifier} ({path.name})", install))
    faults += _plugins()
    if faults:
        return faults
    python = ".".join(map(str, sys.version_info[:3]))
    said = ", ".join(f"{name} {found[name]}" for name in ("jax", "jaxlib", "flax", "grain") if found.get(name))
    return [Finding("versions", "ok", f"Python {python}, {len(pins)} packages as {path.name} pins them{f': {said}' if said else ''}")]


def _python() -> Iterator[Finding]:
    wanted = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"])
    found = ".".join(map(str, sys.version_info[:3]))
    if not wanted.contains(found, prereleases=True):
        yield Finding("versions", "FAIL", f"Python: found {found}", f"{wanted}", "make the environment with another interpreter")


def _plugins() -> Iterator[Finding]:
    jaxlib = _version("jaxlib")
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(_PLUGINS) and distribution.version != jaxlib:
            yield Finding(
                "versions", "FAIL", f"{name}: found {distribution.version}", f"jaxlib's {jaxlib}", f"pip install {name}=={jaxlib}"
            )
