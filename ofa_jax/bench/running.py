"""`launch/bench.py loop`: what the training loop itself reports of a run on the config's own data: speed, useful tokens, waits."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ofa_jax.bench.startup import train_command
from ofa_jax.config.errors import ConfigError, UserError

_WARM = 10  # steps before those that are reported: workers have then made their first batches


def report(flags: argparse.Namespace) -> str:
    """Returns what `flags.steps` steps of the config `flags.config` come to, after `_WARM` others, as lines, and writes the loop's record
    of them to `flags.json` where that is given.

    Raises `ConfigError` for no steps and `UserError` where the run fails, with its last line.
    """
    if flags.steps < 1:
        raise ConfigError(f"--steps: found {flags.steps}, expected 1 or more")
    found = time_loop(flags.config, steps=flags.steps)
    if flags.json:
        flags.json.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    wait, step = found["time/data_wait_ms"], found["time/step_ms"]
    lines = [
        f"loop: {flags.config}, {flags.steps} steps on its own data: {step:,.1f} ms a step, "
        f"{found['perf/examples_per_s']:,.1f} sequences/s",
        f"  of it {wait:,.2f} ms waiting for a batch: {wait / step:.2%}",
    ]
    if "data/useful_tokens" in found:
        lines.append(f"  {found['data/useful_tokens']:.1%} of the positions of texts are no padding")
    for name, title, scale, unit in (
        ("perf/useful_tokens_per_s", "useful tokens", 1.0, "/s"),
        ("perf/flops_per_s", "the model's operations", 1e-12, " TFLOP/s"),
        ("perf/mfu", "MFU", 100.0, " %"),
    ):
        if name in found:
            lines.append(f"  {title} {found[name] * scale:,.4g}{unit}")
    return "\n".join(lines)


def time_loop(config: str, *, steps: int) -> dict[str, Any]:
    """Returns the training loop's own record of `steps` steps after `_WARM` others. Raises `UserError` where the run fails."""
    with tempfile.TemporaryDirectory(prefix="ofa_jax-") as folder:
        command = train_command(config, workdir=Path(folder), steps=_WARM + steps)
        every = [f"--config.log_every={_WARM if steps % _WARM == 0 else 1}"]
        done = subprocess.run([*command, *every], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
            raise UserError(f"loop: {' '.join(command[2:])} ended with {done.returncode}: {said}")
        [file] = Path(folder).glob("*/metrics.jsonl")
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    timed = [record for record in records if "time/step_ms" in record and record["step"] > _WARM]
    total = {}
    for name in {name for record in timed for name, value in record.items() if isinstance(value, int | float)}:
        values = [record[name] for record in timed if name in record]
        total[name] = sum(values) / len(values)
    return total | {"step": timed[-1]["step"], "steps": steps}
