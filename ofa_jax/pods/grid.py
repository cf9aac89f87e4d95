"""Every size on every kind of TPU at several numbers of chips: each point one call of `launch/compile.py`, kept in one file.

A point is compiled with the paper's batch, the length classes of each block joined to one, so that all numbers of chips do the same work
and a point takes minutes; on 512 with twice the batch, because 256 rows of detection do not divide among them. Where it leaves less than a
tenth of a chip's memory it is compiled again in more micro-batches. Points that are in the file already are not compiled again, so that
the same command goes on.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import UserError
from ofa_jax.config.hardware import Topology, load_hardware, parse_topology, suited
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig
from ofa_jax.pods.search import MICROS, Choice, choose, fits_roughly

SIZES = ("tiny", "medium", "base", "large", "huge")
KINDS = ("v4", "v5e", "v5p", "v6e")
CHIPS = (16, 64, 256, 512)
# Chips of a torus as they can be had, by its dimensions; with two there are several slices beyond 256.
_SHAPES = {
    3: {8: "2x2x2", 16: "2x2x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"},
    2: {8: "2x4", 16: "4x4", 64: "8x8", 128: "8x16", 256: "16x16"},
}
_ROOT = Path(__file__).resolve().parents[2]
_ROWS = 256  # of the smallest block
_JOINED = 2_048  # rows of the largest block: classes that so many chips can share are one a block
_EXIT_DOES_NOT_FIT = 1


@dataclasses.dataclass(frozen=True)
class Point:
    """One size on so many chips of one kind."""

    size: str
    kind: str
    chips: int

    @property
    def name(self) -> str:
        return f"{self.size} {self.kind} {self.chips}"

    @property
    def topology(self) -> Topology:
        return topology_of(self.kind, self.chips)

    @property
    def batch(self) -> int:
        """The paper's, so many times."""
        return max(self.chips // _ROWS, 1)

    @property
    def arg(self) -> str:
        """The argument of the config's file."""
        return (f"batch={self.batch}," if self.batch > 1 else "") + f"shards={self.batch * _JOINED}"

    def config(self) -> RunConfig:
        """Returns the run's config with what suits the hardware."""
        path = _ROOT / "configs" / f"ofa_{self.size}.py"
        config = read_config(f"{path}:{self.arg}")
        assert isinstance(config, RunConfig)
        return suited(config, self.topology.hardware, num_devices=self.chips)

    def choices(self) -> list[Choice]:
        """Returns how it may be run, the fewest micro-batches first; those that surely take too much are left out."""
        config, topology = self.config(), self.topology
        made = (
            choose(config, topology, batch=1, micros=micros, fsdp=config.mesh.fsdp, remat=config.model.remat)
            for micros in MICROS
            if self.batch * _ROWS % (self.chips * micros) == 0
        )
        found = list(made)
        return [one for one in found if fits_roughly(one, topology)] or found[-1:]

    def command(self, one: Choice, file: Path) -> list[str]:
        """Returns the command line that compiles one of its choices and writes its numbers to `file`."""
        topology = self.topology
        shape = "x".join(map(str, topology.shape))
        slices = [f"--slices={topology.slices}"] if topology.slices > 1 else []
        config = f"--config=configs/ofa_{self.size}.py:{self.arg}"
        named = ["launch/compile.py", config, f"--topology={self.kind}:{shape}", *slices, *one.flags]
        return [sys.executable, *named, "--skip_decoding", f"--json={file}"]


def topology_of(kind: str, chips: int) -> Topology:
    """Returns the topology of so many chips as it can be had: a cube as far as it goes, several slices beyond the largest."""
    shapes = _SHAPES[load_hardware(kind).torus]
    if chips not in shapes and chips % max(shapes):
        raise UserError(f"chips: found {chips} of {kind}, expected one of {', '.join(map(str, shapes))}, or a multiple of the last")
    in_slice = min(chips, max(shapes))
    return parse_topology(f"{kind}:{shapes[in_slice]}", slices=chips // in_slice)


def points(sizes: Sequence[str] = SIZES, kinds: Sequence[str] = KINDS, chips: Sequence[int] = CHIPS) -> list[Point]:
    """Returns the points of a table, many chips first: they are the quickest to be judged."""
    return [Point(size, kind, count) for count, size, kind in itertools.product(sorted(chips, reverse=True), sizes, kinds)]


def compile_all(wanted: Sequence[Point], file: Path, *, jobs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the numbers of all points by name, of `file` where it has them, else compiled, `jobs` at a time, and added to it.

    Raises `UserError` for a point that cannot be compiled or fits in no number of micro-batches; the others are kept.
    """
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    left = [point for point in wanted if point.name not in found]
    say(f"{len(wanted) - len(left)} of {len(wanted)} points are in {file}; {len(left)} to compile, {jobs} at a time")
    began, lock, faults = time.monotonic(), threading.Lock(), []

    def run(point: Point) -> None:
        try:
            numbers = _compile(point)
        except UserError as error:
            with lock:
                faults.append(str(error))
                say(f"FAILED {error}")
            return
        with lock:
            found[point.name] = numbers
            _write(file, found)
            done = len(found) - (len(wanted) - len(left))
            rest = (time.monotonic() - began) / max(done, 1) * (len(left) - done)
            say(f"{point.name}: {describe(numbers)}; {done} of {len(left)}, about {rest / 60:.0f} minutes to go")

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, left))
    if faults:
        raise UserError(f"{len(faults)} point(s) could not be compiled, the first: {faults[0]}")
    return {point.name: found[point.name] for point in wanted}


def describe(numbers: Mapping[str, Any]) -> str:
    """Returns what a point comes to, in a line."""
    peak, limit, seconds = numbers["memory"]["peak"], numbers["memory_limit"], numbers["times"]["step_s"]
    return f"{peak / 1e9:.1f} of {limit / 1e9:.1f} GB, {seconds * 1e3:.0f} ms, MFU {numbers['mfu']:.0%}, {numbers['micros']} part(s)"


def _compile(point: Point) -> dict[str, Any]:
    environ = {**os.environ, "JAX_OPTIMIZATION_LEVEL": os.environ.get("JAX_OPTIMIZATION_LEVEL", "O0")}
    said = ""
    for one in point.choices():
        with tempfile.TemporaryDirectory(prefix="ofa_jax-") as folder:
            file = Path(folder) / "numbers.json"
            command = point.command(one, file)
            done = subprocess.run(command, cwd=_ROOT, env=environ, capture_output=True, text=True)
            said = next((line for line in reversed(done.stderr.splitlines()) if "Error: " in line), f"exit code {done.returncode}")
            if done.returncode == 0:
                return {**json.loads(file.read_text(encoding="utf-8")), "command": command[1:-1], "changes": list(one.changes)}
            if done.returncode == -signal.SIGKILL:
                raise UserError(f"{point.name}: killed, as the kernel does for want of memory; run it again with --jobs=1")
            if done.returncode != _EXIT_DOES_NOT_FIT:
                raise UserError(f"{point.name}: {' '.join(command[1:])}: {said}")
    raise UserError(f"{point.name}: fits in no number of micro-batches: {said}")


def _write(file: Path, found: Mapping[str, Any]) -> None:
    """Replaces the file in one move."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(file)
