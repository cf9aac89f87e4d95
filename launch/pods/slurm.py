"""Runs a command on GPUs of a Slurm cluster: writes a batch script, puts it in the queue, follows it. Call it on a login node.

    python launch/pods/slurm.py script --name=N --topology=h100:16 [flags of run] -- launch/train.py ...     prints the script
    python launch/pods/slurm.py run    --name=N --topology=h100:16 [--follow] -- launch/train.py --config=configs/ofa_large.py
    python launch/pods/slurm.py logs | status | cancel --name=N

  --dry_run            prints the exact commands and files, and does nothing
  --time=24:00:00      two minutes before its end the run saves, and goes into the queue again
  --partition=NAME --account=NAME --cpus_per_task=N    as the cluster wants them
  --gpus_per_node=N    of this cluster's nodes (default: those of the hardware file)
  --lives=N            how often it goes into the queue again after a preemption, a hang or the end of its time (default 10)
  --python=PATH        of the environment (default: the one that runs this)
  --folder=DIR         of what is printed (default: runs/pods of this checkout); checkout, environment and folder must be seen by all nodes
  --follow             run: waits for the end and prints what failed; logs: goes on with what comes
  --lines=N            logs: how many (default 50)

Each GPU has a task. Exit codes: 0, 2 a mistake told in one sentence, that of Slurm's program where it failed; with --follow that of the run
(launch/train.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ofa_jax.clusters import slurm
from ofa_jax.clusters.flags import ROOT, Parser, check_command, check_given, check_name, no_command, run_main, split_command
from ofa_jax.clusters.plan import CommandError, Step, perform
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.hardware import parse_topology

_VERBS = ("script", "run", "logs", "status", "cancel", "judge")


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    return run_main(argv, __doc__ or "", _act, interrupted="the job goes on; status and logs show it, cancel ends it")


def _parse(words: list[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    flags_words, command = split_command(words)
    parser = Parser("launch/pods/slurm.py", _VERBS, "VERB --name=N [flags] [-- COMMAND]")
    for name in ("name", "topology", "time", "partition", "account"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "pods")
    for name, default in (("gpus_per_node", 0), ("cpus_per_task", 0), ("lives", 10), ("lines", 50), ("tasks", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--follow", action="store_true")
    flags = parser.parse_args(flags_words)
    for name, least in (("gpus_per_node", 0), ("cpus_per_task", 0), ("lives", 0), ("lines", 1), ("tasks", 1)):
        if getattr(flags, name) < least:
            raise ConfigError(f"--{name}: found {getattr(flags, name)}, expected {least} or more")
    check_name(flags.name, "name")
    if flags.verb in ("script", "run"):
        return flags, check_command(command)
    no_command(command, flags.verb)
    return flags, ()


def _batch(flags: argparse.Namespace, command: tuple[str, ...]) -> slurm.Batch:
    topology = parse_topology(check_given(flags.topology, "topology", "h100:16"))
    nodes, tasks, gpus = slurm.place_tasks(topology, gpus_a_node=flags.gpus_per_node)
    return slurm.Batch(
        flags.name,
        nodes,
        tasks,
        gpus,
        command,
        ROOT,
        flags.folder.absolute(),
        flags.python,
        slurm.check_time(flags.time),
        flags.partition,
        flags.account,
        flags.cpus_per_task,
        flags.lives,
    )


def _act(words: list[str]) -> int:
    flags, command = _parse(words)
    if flags.verb == "judge":  # by the script, after its tasks
        return slurm.conclude(flags.folder, tasks=flags.tasks, say=_say)
    steps: list[Step]
    if command:
        batch = _batch(flags, command)
        if flags.verb == "script":
            print(slurm.script(batch), end="")
            return 0
        if not flags.dry_run:
            batch.folder.mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for what a job prints
        steps = slurm.run(batch.folder / f"{flags.name}.sbatch", batch, follow=flags.follow)
    elif flags.verb == "logs":
        steps = slurm.logs(flags.folder, flags.name, lines=flags.lines, follow=flags.follow)
    else:
        steps = slurm.cancel(flags.name) if flags.verb == "cancel" else slurm.status(flags.name)
    try:
        perform(steps, dry_run=flags.dry_run, say=_say)
    except CommandError:
        if flags.verb == "run" and flags.follow and (found := slurm.outputs(flags.folder, flags.name)):
            _say(f"# the end of {found[0]}")
            _say("\n".join(slurm.conclusion(found[0].read_text(errors="replace"))))
        raise
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
