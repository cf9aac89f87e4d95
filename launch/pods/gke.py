"""Runs a command on Kubernetes with TPUs (GKE): a JobSet in a queue of Kueue, or the same by XPK.

    python launch/pods/gke.py queue    --name=Q --topology=v5p:4x4x4 [--slices=4]       once: a queue for so many chips
    python launch/pods/gke.py manifest --name=N [flags of run] -- COMMAND               prints the JobSet
    python launch/pods/gke.py run      --name=N --topology=v5p:4x4x4 [--slices=2] --image=IMAGE --queue=Q [--follow] -- launch/train.py ...
    python launch/pods/gke.py watch | logs | status | delete --name=N
    python launch/pods/gke.py xpk      --name=N --cluster=C --project=P --zone=Z [flags of run] -- COMMAND

  --dry_run              prints the exact commands and files, and does nothing
  --namespace=NAME       (default: default)
  --mount=KIND:NAME:/path   storage of the pods, as often as needed: bucket (Cloud Storage FUSE) or claim (of a volume). A run that is
                         to go on after a restart has its folder in one: --config.workdir=/bucket/runs/{name}
  --service_account=NAME of Kubernetes, with the right to read and write the bucket
  --max_restarts=N       after preemptions and hangs (default 10); whatever has to be mended ends the run at once
  --spot                 on spot nodes
  --follow --every_s=S   run: waits for the end, as watch does (default 15 s between questions); logs: goes on with what comes
  --lines=N              logs: of each pod (default 50)

The image holds this checkout in /opt/ofa_jax and its packages (docs/pods_gke.md). Exit codes: 0, 2 a mistake told in one sentence, that of
kubectl or xpk where it failed; with --follow that of the run (launch/train.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ofa_jax.clusters import gke
from ofa_jax.clusters.flags import ROOT, Parser, check_command, check_given, check_name, no_command, run_main, split_command
from ofa_jax.clusters.plan import Step, perform
from ofa_jax.clusters.tpus import tpu_topology
from ofa_jax.config.errors import ConfigError

_VERBS = ("queue", "manifest", "run", "watch", "logs", "status", "delete", "xpk")
_WITH_COMMAND = ("manifest", "run", "xpk")


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    return run_main(argv, __doc__ or "", _act, interrupted="the run goes on; watch and logs show it, delete ends it")


def _parse(words: list[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    flags_words, command = split_command(words)
    parser = Parser("launch/pods/gke.py", _VERBS, "VERB --name=N [flags] [-- COMMAND]")
    for name in ("name", "topology", "image", "queue", "service_account", "cluster", "project", "zone"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--max_restarts", type=int, default=10)
    parser.add_argument("--mount", action="append", default=[], type=str)
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--every_s", type=float, default=15.0)
    for name in ("spot", "follow"):
        parser.add_argument(f"--{name}", action="store_true")
    flags = parser.parse_args(flags_words)
    for name, least in (("max_restarts", 0), ("lines", 1), ("every_s", 0.1)):
        if getattr(flags, name) < least:
            raise ConfigError(f"--{name}: found {getattr(flags, name):g}, expected {least} or more")
    check_name(flags.name, "name")
    check_name(flags.namespace, "namespace")
    if flags.verb in _WITH_COMMAND:
        return flags, check_command(command)
    no_command(command, flags.verb)
    return flags, ()


def _job(flags: argparse.Namespace, command: tuple[str, ...]) -> gke.Job:
    if not flags.mount and flags.verb != "xpk":
        print("no --mount: a run that is started again finds no checkpoint and begins at step 0", file=sys.stderr)
    return gke.Job(
        flags.name,
        flags.namespace,
        tpu_topology(flags.topology, slices=flags.slices),
        check_given(flags.image, "image", "us-central1-docker.pkg.dev/my-project/images/ofa_jax"),
        command,
        flags.name if flags.verb == "xpk" else check_name(flags.queue, "queue"),
        tuple(map(gke.parse_mount, flags.mount)),
        flags.service_account,
        flags.spot,
        flags.max_restarts,
    )


def _act(words: list[str]) -> int:
    flags, command = _parse(words)
    folder = ROOT / "runs" / "pods"
    job = _job(flags, command) if command else None
    if flags.verb == "manifest" and job:
        print(gke.to_text(gke.jobset(job)), end="")
        return 0
    steps: list[Step] = []
    if flags.verb == "queue":
        found = gke.queue(flags.name, flags.namespace, tpu_topology(flags.topology, slices=flags.slices))
        steps = gke.make_queue(folder / f"{flags.name}.queue.json", found)
    elif flags.verb == "run" and job:
        steps = gke.run(folder / f"{job.name}.jobset.json", gke.jobset(job))
    elif flags.verb == "xpk" and job:
        if flags.mount or flags.service_account or flags.spot:
            raise ConfigError("command line: found --mount, --service_account or --spot with xpk, expected none: XPK's cluster has its own")
        given = {name: check_given(getattr(flags, name), name, f"my-{name}") for name in ("cluster", "project", "zone")}
        steps = gke.xpk(job, **given)
    elif flags.verb == "logs":
        steps = gke.logs(flags.name, flags.namespace, lines=flags.lines, follow=flags.follow)
    elif flags.verb == "delete":
        steps = gke.delete(flags.name, flags.namespace)
    elif flags.verb == "status" or flags.dry_run:
        steps = gke.status(flags.name, flags.namespace)
    perform(steps, dry_run=flags.dry_run, say=_say)
    if not flags.dry_run and (flags.verb == "watch" or (flags.verb == "run" and flags.follow)):
        return gke.watch(flags.name, flags.namespace, every_s=flags.every_s, say=_say)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
