"""Slurm: a run as a batch script, with a task a GPU.

A process finds the others by Slurm's own variables (parallel/cluster.py), and where tasks share a node it takes the one GPU of its number
there. So a task must see all GPUs of its node: they are asked for by node, not by task.

Before the time is up, and when it is cancelled or preempted, Slurm sends SIGTERM to all tasks; a run then saves and ends with code 75. Of
these three the script puts itself in the queue again after the first, and Slurm does after a preemption (--requeue)
(https://slurm.schedmd.com/sbatch.html).
"""

from __future__ import annotations

import dataclasses
import getpass
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from ofa_jax.clusters.ends import AGAIN, describe, goes_on, judge, last_error
from ofa_jax.clusters.plan import Command, Step, Written, near
from ofa_jax.clusters.worker import Files, read_end
from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.config.hardware import Topology

SIGNAL_BEFORE_S = 120  # the end of the time, for the step under way and the save of it
_WAIT_S = 60  # after the first task that ended, for what the others say
_TIME = re.compile(r"\d+(:\d{2}){0,2}|\d+-\d+(:\d{2}){0,2}")
_OF_A_TASK = re.compile(r"task \d+( ended with|:) ")
_CONCLUDED = re.compile(r"all \d+ tasks are done|the run ended with ")
_FEW_LINES = 10


@dataclasses.dataclass(frozen=True)
class Batch:
    """A run on Slurm. Empty texts are what the cluster gives by default."""

    name: str
    nodes: int
    tasks_a_node: int
    gpus_a_node: int
    command: tuple[str, ...]
    root: Path  # of the checkout, which all nodes see
    folder: Path  # of what is printed, which all nodes see
    python: str
    time: str = ""
    partition: str = ""
    account: str = ""
    cpus_a_task: int = 0
    lives: int = 10  # how often it puts itself in the queue again

    @property
    def tasks(self) -> int:
        return self.nodes * self.tasks_a_node


def place_tasks(topology: Topology, *, gpus_a_node: int) -> tuple[int, int, int]:
    """Returns (nodes, tasks a node, GPUs a node) for a topology. gpus_a_node: 0 for what the hardware file says. CPU topologies are tasks
    of one node, for trying a script. Raises ConfigError for TPUs, and for numbers that leave a node half used."""
    if topology.hardware.platform == "tpu":
        raise ConfigError(
            f"--topology: found {topology.text}, expected GPUs, as in h100:16; launch/pods/cloud_tpu.py and gke.py start TPUs"
        )
    if topology.hardware.platform == "cpu":
        return 1, topology.chips, 0
    of_a_node = gpus_a_node or topology.hardware.host_chips
    if topology.chips <= of_a_node:
        return 1, topology.chips, topology.chips
    if topology.chips % of_a_node:
        raise ConfigError(f"--topology: found {topology.text}, expected a multiple of {of_a_node} GPUs, those of a node (--gpus_per_node)")
    return topology.chips // of_a_node, of_a_node, of_a_node


def check_time(text: str) -> str:
    """Returns a time limit that Slurm takes. Raises ConfigError for another text."""
    if text and not _TIME.fullmatch(text):
        raise ConfigError(f"--time: found {text!r}, expected minutes, hours:minutes:seconds or days-hours, as in --time=24:00:00")
    return text


def script(batch: Batch) -> str:
    """Returns the batch script."""
    options = {
        "job-name": batch.name,
        "nodes": batch.nodes,
        "ntasks-per-node": batch.tasks_a_node,
        "gpus-per-node": batch.gpus_a_node or "",
        "cpus-per-task": batch.cpus_a_task or "",
        "time": batch.time,
        "partition": batch.partition,
        "account": batch.account,
        "signal": f"TERM@{SIGNAL_BEFORE_S}",
        "output": _output(batch),
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value != ""]
    program = [batch.python, "launch/pods/worker.py", "task"]
    after = [batch.python, "launch/pods/slurm.py", "judge", f"--name={batch.name}"]
    again = "|".join(map(str, AGAIN))
    return f"""#!/bin/bash
{chr(10).join(lines)}
#SBATCH --requeue
# {batch.tasks} tasks. Written by launch/pods/slurm.py.
trap : TERM  # the tasks get it too, and save; this script waits for them
cd {shlex.quote(str(batch.root))} || exit 2
folder={shlex.quote(str(batch.folder))}/{batch.name}-$SLURM_JOB_ID
rm -f "$folder"/task_*/worker.code  # of an earlier life
{"export OFA_DISTRIBUTED=1" + chr(10) if batch.tasks > 1 else ""}srun --label --unbuffered --kill-on-bad-exit=0 --wait={_WAIT_S} \\
    {shlex.join(program)} --folder="$folder" -- \\
    {shlex.join(batch.command)} &
while wait $!; [ $? -gt 128 ] && kill -0 $! 2>/dev/null; do :; done
{shlex.join(after)} --folder="$folder" --tasks={batch.tasks}
code=$?
case $code in {again})
  # A job that was cancelled is COMPLETING by now, and stays so.
  if [ "$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T)" = RUNNING ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {batch.lives} ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # it ends here
  fi ;;
esac
exit $code
"""


def _output(batch: Batch) -> str:
    return f"{batch.folder}/{batch.name}-%j.out"


def run(path: Path, batch: Batch, *, follow: bool) -> list[Step]:
    """Returns the steps that write the script and put it in the queue; with `follow` the last one ends with the run."""
    argv = ("sbatch", "--wait", near(path)) if follow else ("sbatch", near(path))
    return [Written(path, script(batch), "writes the script"), Command(argv, "puts it in the queue")]


def status(name: str) -> list[Step]:
    """Returns the steps that print the jobs of this name."""
    return [Command(("squeue", f"--name={name}", f"--user={getpass.getuser()}", "--long"), "prints the jobs of this name")]


def cancel(name: str) -> list[Step]:
    """Returns the steps that end the jobs of this name."""
    return [Command(("scancel", f"--name={name}", f"--user={getpass.getuser()}"), "ends the jobs of this name")]


def outputs(folder: Path, name: str) -> list[Path]:
    """Returns the files of what the jobs of this name printed, the newest first."""
    return sorted(folder.glob(f"{name}-*.out"), key=lambda path: path.stat().st_mtime, reverse=True)


def logs(folder: Path, name: str, *, lines: int, follow: bool) -> list[Step]:
    """Returns the steps that print the end of what the newest job of this name printed. Raises UserError where there is none."""
    found = outputs(folder, name)
    if not found:
        raise UserError(f"{folder}: found no {name}-JOB.out, expected one; it appears when the job begins (status shows the queue)")
    return [Command(("tail", f"--lines={lines}", *(["-F"] if follow else []), str(found[0])), "prints the end of what the job printed")]


def conclude(folder: Path, *, tasks: int, say: Callable[[str], None]) -> int:
    """Says of every task that failed how it ended and its last error, and returns the run's exit code (`ends.judge`). A task that left no
    code was killed. folder: of the tasks of one job."""
    codes: list[int] = []
    for number in range(tasks):
        code, log = read_end(Files(folder / f"task_{number}"))
        codes.append(code)
        if code:
            say(f"task {number} ended with {describe(code)}")
            lines = last_error(log)
            for line in lines[-1:] if goes_on(code) else lines:
                say(f"task {number}: {line}")
    code = judge(codes)
    say(f"all {tasks} tasks are done" if code == 0 else f"the run ended with {describe(code)}")
    return code


def conclusion(printed: str) -> list[str]:
    """Returns what `conclude` said at the end of what a job printed, the last life's only; where it said nothing, the last lines."""
    lines = printed.splitlines()
    ends = [number for number, line in enumerate(lines) if _CONCLUDED.match(line)]
    if not ends:
        return lines[-_FEW_LINES:]
    begin = ends[-1]
    while begin > 0 and _OF_A_TASK.match(lines[begin - 1]):
        begin -= 1
    return lines[begin : ends[-1] + 1]
