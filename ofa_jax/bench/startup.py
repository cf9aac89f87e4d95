"""`launch/bench.py start-up`: how long a run takes to its first step, part by part, with and without compiled programs in the cache.

The real command is run for one step, in a folder that is deleted afterwards; its own lines say where a part ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ofa_jax.config.errors import UserError
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig

_TRAIN = Path(__file__).resolve().parents[2] / "launch" / "train.py"
# What a line begins with, and what ended there.
_PARTS = (
    ("workdir ", "Python, imports and devices"),
    ("starting at step 0", "checkpoints looked for"),
    ("compiling the training step", "state drawn, data opened"),
    ("first step after ", "first batch, step compiled and run"),
)
_LAST = "saved and ended"


@dataclasses.dataclass(frozen=True)
class StartTimes:
    """Seconds of the parts of one start, in their order."""

    name: str
    parts: dict[str, float]

    @property
    def first_step_s(self) -> float:
        """From the command to the end of the first step."""
        return sum(seconds for part, seconds in self.parts.items() if part != _LAST)

    def lines(self) -> list[str]:
        """Returns the times as lines of text."""
        parts = (f"  {part:<36} {seconds:8.2f} s" for part, seconds in self.parts.items())
        return [f"start-up, {self.name}: first step after {self.first_step_s:.2f} s", *parts]


def report(flags: argparse.Namespace) -> str:
    """Returns what two starts of the config `flags.config` took, as lines: the second finds the first's programs.

    Raises `UserError` where the run fails, with its last line.
    """
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ofa_jax-") as folder:
        for name in ("nothing compiled", "programs in the cache"):
            lines += time_start(flags.config, name, workdir=Path(folder) / name.replace(" ", "_"), cache=Path(folder) / "cache").lines()
    return "\n".join(lines)


def train_command(config: str, *, workdir: Path, steps: int) -> list[str]:
    """Returns the command of a run of `steps` steps below `workdir` that trains and does nothing else."""
    command = [sys.executable, "-u", str(_TRAIN), f"--config={config}", f"--config.workdir={workdir}/{{name}}"]
    command += [f"--config.steps={steps}", "--config.eval.every_steps=0"]
    return command + (["--config.eval.loss_every_steps=0"] if isinstance(read_config(config), RunConfig) else [])


def time_start(config: str, name: str, *, workdir: Path, cache: Path) -> StartTimes:
    """Returns the times of a run of one step in `workdir`, whose compiled programs are read from and written to `cache`.

    Raises `UserError` where the run fails, with its last line, and where a line that ends a part never comes.
    """
    command = train_command(config, workdir=workdir, steps=1)
    environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    marks, said, parts = list(_PARTS), "nothing said", {}
    began = time.perf_counter()
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            said = line.strip() or said
            if marks and line.startswith(marks[0][0]):
                now = time.perf_counter()
                parts[marks.pop(0)[1]], began = now - began, now
    if run.returncode:
        raise UserError(f"start-up: {' '.join(command[2:])} ended with {run.returncode}: {said}")
    if marks:
        raise UserError(f"start-up: found no line that begins with {marks[0][0]!r} in what {' '.join(command[2:])} said, expected one")
    return StartTimes(name, {**parts, _LAST: time.perf_counter() - began})
