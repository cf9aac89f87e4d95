"""What must hold of the lives of a run that was killed again and again; every function returns sentences on what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise

PREEMPTED, KILLED = 75, -9
TOLERANCE = 1e-6  # of parameters under another number of devices, float64; they are of the order of 0.01 to 1


@dataclasses.dataclass
class LifeRecord:
    """One life, as the journal has it."""

    run: int
    life: int
    processes: int
    devices: int  # of each process
    start: int  # the newest committed checkpoint when it began; 0: none
    before: list[int]  # committed checkpoints
    after: list[int] = dataclasses.field(default_factory=list)
    aimed: str = ""  # phase; "" for a life that was left alone
    signal: str = ""  # "" where none was sent
    hosts: list[int] = dataclasses.field(default_factory=list)  # who got it
    hit: str = ""  # the phase in which it came
    codes: list[int] = dataclasses.field(default_factory=list)  # exit codes by process; -9 for SIGKILL
    forced: bool = False  # a process that was not struck did not end by itself in time, and was killed too
    restored: int | None = None  # the step that it said it goes on from; None where it did not come so far
    last_batch: int | None = None  # data step of the last batch that it took
    batches: list[dict[str, str]] = dataclasses.field(default_factory=list)  # by process: data step -> digest, up to the last checkpoint
    end_steps: list[int | None] = dataclasses.field(default_factory=list)  # by process: the step in its record of the end
    said_damaged: bool = False
    began: float = 0.0  # seconds of the Unix epoch
    seconds: float = 0.0

    @property
    def newest(self) -> int:
        """The newest committed checkpoint when it was over."""
        return max(self.after, default=0)

    @property
    def name(self) -> str:
        """How sentences call it."""
        struck = f"{self.signal} in {self.hit}" if self.signal else "left alone"
        return f"run {self.run} life {self.life} ({self.processes} x {self.devices}, {struck})"


def faults_of_life(life: LifeRecord, *, steps: int) -> list[str]:
    """steps: of the whole run."""
    found = []
    if life.restored is not None and life.restored != life.start:
        found.append(f"went on from step {life.restored}, expected {life.start}, the newest committed checkpoint")
    if life.newest < life.start:
        found.append(f"the newest checkpoint is {life.newest} behind it, {life.start} before it")
    if life.said_damaged:
        found.append("a checkpoint was found damaged")
    if life.signal == "SIGKILL":
        if any(life.codes[host] != KILLED for host in life.hosts):
            found.append(f"exit codes {life.codes}, expected {KILLED} of hosts {life.hosts}")
    elif not life.signal:
        if any(life.codes) or life.newest != steps:
            found.append(f"exit codes {life.codes} at step {life.newest}, expected 0 at step {steps}")
    elif life.newest == steps:  # a signal that comes while the last step is saved stops nothing any more
        if not set(life.codes) <= {0, PREEMPTED}:
            found.append(f"exit codes {life.codes}, expected 0 or {PREEMPTED}, as all steps were made")
    else:
        found += _faults_of_sigterm(life)
    return [f"{life.name}: {sentence}" for sentence in found]


def _faults_of_sigterm(life: LifeRecord) -> list[str]:
    found = []
    if life.codes != [PREEMPTED] * life.processes:
        found.append(f"exit codes {life.codes}, expected {PREEMPTED} of all")
    made = life.start if life.last_batch is None else life.last_batch + 1
    if life.newest != made:
        found.append(f"saved step {life.newest}, expected {made}, the steps that were made")
    if life.last_batch is not None and set(life.end_steps) != {made}:
        found.append(f"hosts say that they ended at steps {life.end_steps}, expected {made}")
    return found


def faults_of_batches(lives: Sequence[LifeRecord], *, steps: int, expected: Mapping[int, Sequence[Mapping[int, str]]]) -> list[str]:
    """The batches that led to the final parameters must be 0 .. steps - 1, each once, and the uninterrupted run's.

    expected: by number of processes, by process: digest by data step. What a life did behind the checkpoint that the next one began from
    led to nothing.
    """
    found, used = [], []
    for life, following in [*pairwise(lives), (lives[-1], None)]:
        until = life.newest if following is None else following.start
        for step in range(life.start, until):
            used.append(step)
            for host in range(life.processes):
                digest = life.batches[host].get(str(step)) if host < len(life.batches) else None
                if digest != expected[life.processes][host][step]:
                    found.append(
                        f"{life.name}: batch {step} of process {host} is {digest}, expected {expected[life.processes][host][step]}"
                    )
    if used != list(range(steps)):
        found.append(f"run {lives[0].run}: the batches that led to its end are {used}, expected 0 to {steps - 1}, each once")
    return found


def steps_by_layout(lives: Sequence[LifeRecord]) -> dict[str, int]:
    """How many of the updates that led to the end of a run were made by `processes x devices`."""
    found: dict[str, int] = {}
    for life, following in [*pairwise(lives), (lives[-1], None)]:
        made = (life.newest if following is None else following.start) - life.start
        if made:
            name = f"{life.processes} x {life.devices}"
            found[name] = found.get(name, 0) + made
    return found


def faults_of_parameters(run: int, verdict: Mapping[str, object], *, bitwise: bool) -> list[str]:
    """verdict: what compare_states.py printed."""
    if bitwise:
        return [] if verdict["bitwise"] else [f"run {run}: its last state is not the uninterrupted run's to the last bit: {dict(verdict)}"]
    worst = verdict["parameters"]
    assert isinstance(worst, float)
    # Not "worst > TOLERANCE": a difference that is not a number fails too.
    return [] if worst <= TOLERANCE else [f"run {run}: parameters differ by {worst:.1e}, expected at most {TOLERANCE:g}"]
