"""Cloud TPU VMs by queued resources: what gcloud is told, from the request for chips to their deletion.

A queued resource is a request that waits until its slices can be had (https://cloud.google.com/tpu/docs/queued-resources). One that was
preempted stays behind, suspended and without machines: it is deleted and asked for again, and the run's own command goes on from its newest
checkpoint.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ofa_jax.clusters.plan import Command, Packed, Step, ask, complaint, near
from ofa_jax.clusters.tpus import accelerator_type, generation_of
from ofa_jax.config.errors import UserError
from ofa_jax.config.hardware import Topology

FOLDER = "ofa_jax"  # of the checkout, in the home of every worker
PYTHON = ".venv/bin/python"  # of the environment that `copy` makes there
# States of https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources: those that lead to machines, and those
# that have lost them or never will have any.
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
LEAVING = ("SUSPENDING", "DELETING")
LOST = ("SUSPENDED", "FAILED", *LEAVING)
ACTIVE = "ACTIVE"
ABSENT = "ABSENT"  # our word where gcloud finds no such request

# The VMs' system has Python 3.10, which is too old: uv brings 3.12. What is there already is kept.
_INSTALL = (
    f"{{ test -x {PYTHON} || {{ python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --python 3.12 .venv; }}; }}"
    f" && python3 -m uv pip install --quiet --python {PYTHON} -r requirements-tpu.txt -r requirements-stores.txt"
)


@dataclasses.dataclass(frozen=True)
class Pod:
    """A queued resource: its name and where it is."""

    name: str
    project: str
    zone: str
    python: str = PYTHON  # of the workers, relative to the checkout there

    @property
    def worker_folder(self) -> str:
        """Where a worker keeps log and exit code, relative to the checkout there."""
        return f"runs/pods/{self.name}"

    def gcloud(self, verb: str, names: Sequence[str], *flags: str) -> tuple[str, ...]:
        """Returns gcloud's command line for one of its verbs for queued resources; names come before all flags."""
        return ("gcloud", "compute", "tpus", "queued-resources", verb, *names, f"--project={self.project}", f"--zone={self.zone}", *flags)

    def on_workers(self, command: str, *, node: str = "all", worker: str = "all") -> tuple[str, ...]:
        """Returns gcloud's command line that runs a shell command in the checkout of workers; a node is a slice."""
        return self.gcloud("ssh", [self.name], f"--node={node}", f"--worker={worker}", f"--command=cd {FOLDER} && {command}")

    def worker_command(self, verb: str, *flags: str) -> str:
        """Returns the shell command that calls launch/pods/worker.py on a worker."""
        return shlex.join([self.python, "launch/pods/worker.py", verb, f"--folder={self.worker_folder}", *flags])


def create(pod: Pod, topology: Topology, *, spot: bool, reserved: bool, runtime: str) -> list[Step]:
    """Returns the steps that ask for the slices. runtime: the VMs' software version, "" for the one of the TPU's kind."""
    generation = generation_of(topology)
    nodes = [f"--node-id={pod.name}"]
    if topology.slices > 1:
        nodes = [f"--node-count={topology.slices}", f"--node-prefix={pod.name}"]
    kinds = [flag for flag, wanted in (("--spot", spot), ("--reserved", reserved)) if wanted]
    argv = pod.gcloud(
        "create",
        [pod.name],
        f"--accelerator-type={accelerator_type(topology)}",
        f"--runtime-version={runtime or generation.runtime}",
        *nodes,
        *kinds,
    )
    return [Command(argv, f"asks for {topology.text}: {topology.chips} chips")]


def copy(pod: Pod, root: Path, *, install: bool) -> list[Step]:
    """Returns the steps that put the checkout on every worker, and with `install` the packages of requirements-tpu.txt."""
    archive = root / "runs" / "pods" / f"{pod.name}.tar.gz"
    unpack = "rm -rf ofa_jax configs launch && tar -xzf ../ofa_jax.tar.gz"  # code of an earlier copy goes, runs and data stay
    steps: list[Step] = [
        Packed(root, archive, "packs the files of this checkout, as they are"),
        Command(
            pod.gcloud("scp", [near(archive), f"{pod.name}:ofa_jax.tar.gz"], "--node=all", "--worker=all"),
            "copies them to every worker of every slice",
        ),
        Command(
            pod.gcloud("ssh", [pod.name], "--node=all", "--worker=all", f"--command=mkdir -p {FOLDER} && cd {FOLDER} && {unpack}"),
            "unpacks them there",
        ),
    ]
    if install:
        steps.append(Command(pod.on_workers(_INSTALL), "makes the environment there, with the pinned packages"))
    return steps


def run(pod: Pod, command: Sequence[str]) -> list[Step]:
    """Returns the steps that start the user's command on every worker."""
    text = pod.worker_command("run", "--", *command)
    return [Command(pod.on_workers(text), "starts the command on every worker; it outlives this connection")]


def state_argv(pod: Pod, *, since: int) -> tuple[str, ...]:
    """Returns the command line that asks every worker how its process is, and the first one for its log from the byte `since` on."""
    return pod.on_workers(pod.worker_command("state", "--of=0", f"--since={since}"))


def stop_argv(pod: Pod, *, grace_s: float) -> tuple[str, ...]:
    """Returns the command line that ends the command on every worker: by SIGTERM, on which a run saves, and after the grace by SIGKILL."""
    return pod.on_workers(pod.worker_command("stop", f"--grace_s={grace_s:g}"))


def logs(pod: Pod, *, node: str, worker: str, lines: int, follow: bool) -> list[Step]:
    """Returns the steps that print the end of the workers' logs, and with `follow` what comes."""
    text = pod.worker_command("log", f"--lines={lines}", *(["--follow"] if follow else []))
    return [Command(pod.on_workers(text, node=node, worker=worker), "prints the end of the workers' logs")]


def delete(pod: Pod) -> list[Step]:
    """Returns the steps that give the machines back, with all that is on them, and end the request."""
    return [
        Command(pod.gcloud("delete", [pod.name], "--force", "--quiet"), "deletes the request and its machines; what lies on them is lost")
    ]


def state_of_request_argv(pod: Pod) -> tuple[str, ...]:
    """Returns the command line that prints the state of the request."""
    return pod.gcloud("describe", [pod.name], "--format=value(state.state)")


def ask_state(pod: Pod) -> str:
    """Returns the state of the request as gcloud names it, ABSENT where there is none. Raises UserError where gcloud does not say."""
    found = ask(state_of_request_argv(pod))
    if found.returncode == 0 and found.stdout.strip():
        return found.stdout.strip().rpartition("=")[2]
    if "NOT_FOUND" in found.stderr or "not found" in found.stderr.lower():
        return ABSENT
    raise UserError(f"gcloud: found no state of {pod.name}, but {complaint(found)!r}; try: {shlex.join(state_of_request_argv(pod))}")


def wait_until_active(pod: Pod, *, every_s: float, say: Callable[[str], None]) -> None:
    """Returns once the machines are there; says each change of state. Raises UserError where they will not come."""
    before = ""
    while True:
        state = ask_state(pod)
        if state != before:
            say(f"{pod.name}: {state}")
        if state == ACTIVE:
            return
        if state not in WAITING:
            raise UserError(f"{pod.name}: found the state {state}, expected machines; launch/pods/cloud_tpu.py resume asks for them again")
        before = state
        time.sleep(every_s)


def resume(state: str, pod: Pod, ask_again: Sequence[Step]) -> list[Step]:
    """Returns the steps from a state of the request to one that leads to machines. `ask_again`: those of `create`."""
    if state == ACTIVE or state in WAITING:
        return []
    if state == ABSENT:
        return list(ask_again)
    return [*delete(pod), *ask_again]
