"""How long the training loop stands still for a save, and that it goes on during it."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from ofa_jax.bench.noise import noise_batch
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import AnyRun
from ofa_jax.parallel.mesh import make_mesh
from ofa_jax.train.state import init_state
from ofa_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True)
class SaveTimes:
    """What was measured, in seconds; lists are by save."""

    device: str
    state_bytes: int
    step_s: float  # of a step with no save beside it, in the median
    blocked_s: list[float]  # that the loop stood still
    save_s: list[float]  # from the call until the checkpoint was on disk
    steps: list[int]  # begun meanwhile
    beside_s: list[float]  # in the median, of those

    def line(self, name: str) -> str:
        """Returns a sentence that says it, of the config `name`."""
        saves = zip(self.blocked_s, self.save_s, self.steps, self.beside_s, strict=True)
        during = "; ".join(
            f"still for {blocked:.2f} s, on disk after {took:.1f} s, {steps} step(s) begun meanwhile, {beside:.2f} s a step"
            for blocked, took, steps, beside in saves
        )
        return f"save: {name}, {self.state_bytes / 1e9:.2f} GB on {self.device}, {self.step_s:.2f} s a step without a save: {during}"


def report(flags: argparse.Namespace) -> str:
    """Returns a line that says how long a save stops training (`launch/bench.py save`)."""
    config = read_config(flags.config)
    return time_saves(config, rows=flags.rows, saves=flags.repeats, folder=flags.folder).line(config.name)


def time_saves(config: AnyRun, *, rows: int, saves: int, folder: Path | None = None) -> SaveTimes:
    """Returns the times of `saves` saves of the drawn state of `config`, each made while the training step runs on batches of `rows` rows a
    block, of noise. The checkpoints are deleted.

    folder: where they are written (default: the system's folder of temporary files).
    """
    blocks = tuple(dataclasses.replace(block, rows=rows, classes=()) for block in config.data.blocks)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, blocks=blocks))
    mesh = make_mesh(config.mesh)
    train_step: Any = make_train_step(config, mesh, num_tasks=1)
    state = init_state(config, mesh)
    batch = noise_batch(config, mesh)

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    step()  # compiles
    alone = [step() for _ in range(3)]
    blocked, took, made, beside = [], [], [], []
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        manager = CheckpointManager(workdir, config.checkpoint)
        try:
            manager.prepare(state)
            step()  # as in a run: its loop prepares at the start, and steps before it saves
            for number in range(1, saves + 1):
                manager.save(number, state, config=config)
                times = []
                while not (done := manager.done()):
                    times.append(step())
                    manager.check()
                blocked.append(done[0].blocked_s)
                took.append(done[0].save_s)
                made.append(len(times))
                beside.append(statistics.median(times))
        finally:
            manager.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return SaveTimes(jax.devices()[0].device_kind, size, statistics.median(alone), blocked, took, made, beside)
