"""Runs a command on Cloud TPU VMs: asks for chips, copies this checkout to every worker, starts, follows, resumes, deletes.

    python launch/pods/cloud_tpu.py create --name=N --project=P --zone=Z --topology=v5p:4x4x4 [--slices=2] [--spot | --reserved]
    python launch/pods/cloud_tpu.py copy   --name=N --project=P --zone=Z                  and installs the pinned packages there
    python launch/pods/cloud_tpu.py run    --name=N --project=P --zone=Z [--follow] -- launch/train.py --config=configs/ofa_large.py
    python launch/pods/cloud_tpu.py watch | logs | status | stop | delete --name=N --project=P --zone=Z
    python launch/pods/cloud_tpu.py resume [flags of create and run] -- COMMAND           after a preemption: all of the above, as needed

  --dry_run          prints the exact commands and runs none
  --follow           run, resume: waits for the end, as watch does; logs: goes on with what comes
  --every_s=S        between two questions to the workers (default 15)
  --grace_s=S        after the first failure, and after a SIGTERM, before the others are ended (default 60)
  --lives=N          resume --follow: how often it is started again when it was preempted or hung (default 0)
  --python=PATH      an interpreter that the workers have already (relative to the checkout there): copy installs nothing
  --runtime=NAME     software version of the VMs (default: the one of the TPU's kind)
  --worker=W --node=S --lines=N   logs: of which worker (default 0, or all) of which slice (default 0), and how many lines

The command is any program of this checkout; it is started on every worker and outlives the connection. Exit codes: 0, 2 a mistake told in
one sentence, that of gcloud where it failed; with --follow that of the run (launch/train.py), 75 where the machines were taken away.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ofa_jax.clusters import cloud_tpu
from ofa_jax.clusters.flags import ROOT, Parser, check_command, check_given, check_name, no_command, run_main, split_command
from ofa_jax.clusters.follow import Watch, resume_run
from ofa_jax.clusters.plan import Command, Step, perform
from ofa_jax.clusters.tpus import tpu_topology
from ofa_jax.config.errors import ConfigError

_VERBS = ("create", "copy", "run", "watch", "logs", "status", "stop", "resume", "delete")


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    return run_main(argv, __doc__ or "", _act, interrupted="what was started on the workers runs on; watch and logs show it, stop ends it")


def _parse(words: list[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    flags_words, command = split_command(words)
    parser = Parser("launch/pods/cloud_tpu.py", _VERBS, "VERB --name=N --project=P --zone=Z [flags] [-- COMMAND]")
    for name, default in (("name", ""), ("project", ""), ("zone", ""), ("topology", ""), ("runtime", ""), ("python", "")):
        parser.add_argument(f"--{name}", default=default)
    for name in ("spot", "reserved", "follow"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--every_s", type=float, default=15.0)
    parser.add_argument("--grace_s", type=float, default=60.0)
    parser.add_argument("--lives", type=int, default=0)
    parser.add_argument("--worker", default="0")
    parser.add_argument("--node", default="0")
    parser.add_argument("--lines", type=int, default=50)
    flags = parser.parse_args(flags_words)
    if flags.spot and flags.reserved:
        raise ConfigError("command line: found --spot with --reserved, expected one of them")
    for name, least in (("every_s", 0.1), ("grace_s", 0), ("lives", 0), ("lines", 1)):
        if getattr(flags, name) < least:
            raise ConfigError(f"--{name}: found {getattr(flags, name):g}, expected {least} or more")
    for name in ("worker", "node"):
        if not (getattr(flags, name).isdigit() or getattr(flags, name) == "all"):
            raise ConfigError(f"--{name}: found {getattr(flags, name)!r}, expected a number from 0, or all")
    if flags.verb in ("run", "resume"):
        return flags, check_command(command)
    no_command(command, flags.verb)
    return flags, ()


def _act(words: list[str]) -> int:
    flags, command = _parse(words)
    pod = cloud_tpu.Pod(
        check_name(flags.name, "name"),
        check_given(flags.project, "project", "my-project"),
        check_given(flags.zone, "zone", "us-east5-a"),
        flags.python or cloud_tpu.PYTHON,
    )
    copying = cloud_tpu.copy(pod, ROOT, install=not flags.python)
    if flags.verb in ("create", "resume"):
        topology = tpu_topology(flags.topology, slices=flags.slices)
        asking = cloud_tpu.create(pod, topology, spot=flags.spot, reserved=flags.reserved, runtime=flags.runtime)
        if flags.verb == "resume":
            starting = [*copying, *cloud_tpu.run(pod, command)]
            if not flags.dry_run:
                return resume_run(_watch(flags, pod), asking, starting, follow=flags.follow, lives=flags.lives)
            # The state is not asked for: this is what follows a preemption.
            _do(flags, [*cloud_tpu.resume(cloud_tpu.LOST[0], pod, asking), *starting])
            return 0
        _do(flags, asking)
        if not flags.dry_run:
            cloud_tpu.wait_until_active(pod, every_s=flags.every_s, say=_say)
        return 0
    steps: dict[str, list[Step]] = {
        "copy": copying,
        "run": cloud_tpu.run(pod, command),
        "logs": cloud_tpu.logs(pod, node=flags.node, worker=flags.worker, lines=flags.lines, follow=flags.follow),
        "status": [Command(cloud_tpu.state_of_request_argv(pod), "prints the state of the request")],
        "stop": [Command(cloud_tpu.stop_argv(pod, grace_s=flags.grace_s), "ends the command on every worker")],
        "watch": [Command(cloud_tpu.state_argv(pod, since=0), "asks every worker, again and again, until all have ended")]
        if flags.dry_run
        else [],
        "delete": cloud_tpu.delete(pod),
    }
    _do(flags, steps[flags.verb])
    if not flags.dry_run and (flags.verb == "watch" or (flags.verb == "run" and flags.follow)):
        return _watch(flags, pod).to_the_end()
    return 0


def _watch(flags: argparse.Namespace, pod: cloud_tpu.Pod) -> Watch:
    return Watch(pod, _say, every_s=flags.every_s, grace_s=flags.grace_s)


def _do(flags: argparse.Namespace, steps: Sequence[Step]) -> None:
    perform(steps, dry_run=flags.dry_run, say=_say)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
