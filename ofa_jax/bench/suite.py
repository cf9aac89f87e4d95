"""`launch/bench.py suite`: every measurement that speaks of one accelerator, each in a process of its own, with one table at the end.

A measurement that has its file in the folder is not made again, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import ConfigError, UserError

_BENCH = Path(__file__).resolve().parents[2] / "launch" / "bench.py"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One call of `launch/bench.py`."""

    name: str
    flags: tuple[str, ...]
    peer: bool = False  # PyTorch's OFA beside it
    goals: tuple[float, float] | None = None  # of the ratios to it as published and tuned

    def command(self, peer: str, file: Path) -> list[str]:
        """Returns the command that writes its numbers to `file`."""
        return [sys.executable, str(_BENCH), *self.flags, f"--json={file}", *([f"--peer={peer}"] if self.peer and peer else [])]


# What matters most comes first. Batches are meant for 80 GB.
MEASUREMENTS = (
    Measurement("large", ("train", "--size=large"), peer=True, goals=(2.7, 2.2)),
    Measurement("large pretraining", ("train", "--size=large", "--protocol=pretraining"), peer=True, goals=(3.5, 2.8)),
    Measurement("base", ("train", "--size=base", "--rows=128"), peer=True, goals=(2.7, 0.0)),
    Measurement("tiny", ("train", "--size=tiny", "--rows=256"), peer=True, goals=(2.7, 0.0)),
    Measurement("large cudnn", ("train", "--size=large", "--attention=cudnn")),
    Measurement("large frozen", ("train", "--size=large", "--norm=frozen"), peer=True),
    Measurement("large text", ("train", "--size=large", "--text-only"), peer=True),
    Measurement("kernels", ("kernels", "--attention=reference,cudnn")),
    Measurement("kernels frozen", ("kernels", "--norm=frozen", "--convolution=matmul")),
    Measurement("huge", ("train", "--size=huge", "--rows=16", "--remat=full", "--layers=scan")),
)


def report(flags: argparse.Namespace) -> str:
    """Makes the measurements that `flags.only` names (all by default) and returns the table of all that are in `flags.out`.

    Raises `ConfigError` for a name that there is not, and `UserError` where one fails; those made before are kept.
    """
    names = [one.name for one in MEASUREMENTS]
    wanted = flags.only.split(",") if flags.only else names
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(f"--only: found {unknown[0]}, expected names out of {', '.join(names)}, separated by commas")
    flags.out.mkdir(parents=True, exist_ok=True)
    todo = [one for one in MEASUREMENTS if one.name in wanted and not _file(flags.out, one).exists()]
    began, failed = time.monotonic(), []
    for place, one in enumerate(todo, start=1):
        print(f"{one.name}: {place} of {len(todo)}, {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)
        file, new = _file(flags.out, one), flags.out / "new.json"
        done = subprocess.run(one.command(flags.peer, new), capture_output=True, text=True)
        (flags.out / f"{file.stem}.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            failed.append(f"{one.name} ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}")
            print(failed[-1], file=sys.stderr, flush=True)
        else:
            new.rename(file)
    found = {
        one.name: json.loads(_file(flags.out, one).read_text(encoding="utf-8")) for one in MEASUREMENTS if _file(flags.out, one).exists()
    }
    text = "\n".join(table(found))
    (flags.out / "table.md").write_text(text + "\n", encoding="utf-8")
    if failed:
        raise UserError(
            f"suite: {len(failed)} of {len(todo)} failed; {failed[0]}; {flags.out} has what all said, and the same command goes on"
        )
    return text


def _file(folder: Path, one: Measurement) -> Path:
    return folder / f"{one.name.replace(' ', '_')}.json"


def table(found: dict[str, Any]) -> list[str]:
    """Returns the measurements of steps as lines of a Markdown table; found: what `train` wrote, by the measurements' names."""
    lines = [
        "| | device | sequences/s | a step, ms | MFU | of a product | GB | times PyTorch's OFA as published | goal | tuned | goal |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in MEASUREMENTS:
        if one.flags[0] != "train" or one.name not in found:
            continue
        ours = found[one.name]["ofa_jax"]
        ratios = [_ratio(ours, found[one.name].get(f"peer, {way}")) for way in ("as published", "tuned")]
        goals = [f"{goal:g}" if goal else "" for goal in one.goals or (0.0, 0.0)]
        memory = ours["peak_bytes"] or ours["program_bytes"]
        mfu = f"{ours['mfu']:.1%}" if "mfu" in ours else ""
        cells = [one.name, ours["device"], f"{ours['sequences_s']:,.1f}", f"{ours['median_s'] * 1e3:,.1f}", mfu, f"{ours['of_matmul']:.1%}"]
        cells += [f"{memory / 1e9:.1f}", ratios[0], goals[0], ratios[1], goals[1]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratio(ours: dict[str, Any], peer: dict[str, Any] | None) -> str:
    if peer is None:
        return ""
    return f"{ours['sequences_s'] / (peer['sequences'] / statistics.median(peer['step_s'])):.2f}"
