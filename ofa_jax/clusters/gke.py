"""Kubernetes on Google's machines: a run as a JobSet, whose jobs are TPU slices, admitted by a queue of Kueue; and the same by XPK.

Pods of a slice are found by their completion index and the JobSet's headless service; GKE gives them TPU_WORKER_ID and
TPU_WORKER_HOSTNAMES, and to the pods of several slices MEGASCALE_... (https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice).
Types: https://github.com/kubernetes-sigs/jobset/blob/main/api/jobset/v1alpha2/jobset_types.go and
https://github.com/kubernetes-sigs/kueue/tree/main/apis/kueue/v1beta2. Manifests are JSON, which kubectl takes as it takes YAML.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.clusters.ends import AGAIN, KILLED, describe, judge, last_error
from ofa_jax.clusters.plan import Command, Step, Written, ask, complaint, near
from ofa_jax.clusters.tpus import accelerator_type, generation_of, shape_text
from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.config.hardware import Topology

JOBSET_API = "jobset.x-k8s.io/v1alpha2"
KUEUE_API = "kueue.x-k8s.io/v1beta2"
WORKDIR = "/opt/ofa_jax"  # of the checkout in the image (docs/pods_gke.md)
CONTAINER = "train"
JOB = "slice"
_TPU = "google.com/tpu"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
# Spot nodes are given 25 s, of which a pod gets 15 (https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms); others this long.
_GRACE_S = 300
_XPK_AGAIN = 42  # of the codes below 127 the one after which XPK starts a workload again (the manifest that XPK 1.16.0's --dry-run prints)
_MOUNT = re.compile(r"(bucket|claim):([a-z0-9][-a-z0-9._]*):(/[-\w./]+)")
_FUSE_DRIVER = (
    "gcsfuse.csi.storage.gke.io"  # https://cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-ephemeral
)


@dataclasses.dataclass(frozen=True)
class Mount:
    """Storage that outlives a pod: a bucket by Cloud Storage FUSE, or a claim on a volume."""

    kind: str  # bucket | claim
    source: str
    path: str


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on Kubernetes."""

    name: str
    namespace: str
    topology: Topology
    image: str
    command: tuple[str, ...]
    queue: str
    mounts: tuple[Mount, ...] = ()
    service_account: str = ""
    spot: bool = False
    max_restarts: int = 10


def parse_mount(text: str) -> Mount:
    """Returns the mount that `bucket:NAME:/path` or `claim:NAME:/path` names. Raises ConfigError for another text."""
    found = _MOUNT.fullmatch(text)
    if not found:
        raise ConfigError(f"--mount: found {text!r}, expected bucket:NAME:/path or claim:NAME:/path, as in bucket:my-bucket:/bucket")
    return Mount(*found.groups())


def jobset(job: Job) -> dict[str, Any]:
    """Returns the JobSet: a job a slice, a pod a host. It fails at once where something has to be mended, and is started again, up to
    max_restarts times, where the same command goes on. Raises ConfigError for several slices of one host, which GKE does not join."""
    topology, generation = job.topology, generation_of(job.topology)
    hosts = topology.hosts // topology.slices
    if topology.slices > 1 and hosts == 1:
        raise ConfigError(f"--slices: found {topology.slices} slices of one host, expected slices of several hosts: GKE joins no others")
    slice_job = {
        "backoffLimit": 0,  # one lost pod ends the job: the others of its slice cannot go on without it
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": sorted((*AGAIN, *KILLED))},
                }
            ]
        },
        "template": {"metadata": _pod_metadata(job), "spec": _pod(job, generation.gke_accelerator, several=topology.hosts > 1)},
    }
    return {
        "apiVersion": JOBSET_API,
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": job.namespace,
            "labels": {_QUEUE_LABEL: job.queue},
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},  # a slice is a node pool
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [{"name": "toBeMended", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": JOB, "replicas": topology.slices, "template": {"spec": slice_job}}],
        },
    }


def _pod_metadata(job: Job) -> dict[str, Any]:
    # Kubernetes starts a container beside ours that serves the bucket, and ends it with ours.
    return {"annotations": {"gke-gcsfuse/volumes": "true"}} if any(mount.kind == "bucket" for mount in job.mounts) else {}


def _pod(job: Job, accelerator: str, *, several: bool) -> dict[str, Any]:
    chips = min(job.topology.hardware.host_chips, job.topology.slice_chips)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": job.image,
        "workingDir": WORKDIR,
        "command": ["python", *job.command],  # no shell: the SIGTERM of a preemption reaches Python itself
        "resources": {"limits": {_TPU: chips}, "requests": {_TPU: chips}},
        "terminationMessagePolicy": "FallbackToLogsOnError",  # the last lines of a failed log stay with its pod
    }
    if several:
        container["env"] = [{"name": "OFA_DISTRIBUTED", "value": "1"}]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": shape_text(job.topology),
        },
        "tolerations": [{"key": _TPU, "operator": "Exists", "effect": "NoSchedule"}],  # GKE keeps other pods off these nodes
        "containers": [container],
    }
    if job.service_account:
        pod["serviceAccountName"] = job.service_account
    if job.spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] += [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    if job.mounts:
        pod["volumes"] = [_volume(number, mount) for number, mount in enumerate(job.mounts)]
        container["volumeMounts"] = [{"name": f"mount-{number}", "mountPath": mount.path} for number, mount in enumerate(job.mounts)]
    return pod


def _volume(number: int, mount: Mount) -> dict[str, Any]:
    if mount.kind == "claim":
        return {"name": f"mount-{number}", "persistentVolumeClaim": {"claimName": mount.source}}
    attributes = {"bucketName": mount.source, "mountOptions": "implicit-dirs"}
    return {"name": f"mount-{number}", "csi": {"driver": _FUSE_DRIVER, "volumeAttributes": attributes}}


def queue(name: str, namespace: str, topology: Topology) -> dict[str, Any]:
    """Returns what Kueue needs before a run can be admitted: the kind of node, a queue of the cluster with so many chips of it as the
    topology has, and the queue of the namespace that runs name. All three are called `name`."""
    labels = {
        "cloud.google.com/gke-tpu-accelerator": generation_of(topology).gke_accelerator,
        "cloud.google.com/gke-tpu-topology": shape_text(topology),
    }
    flavor = {"name": name, "resources": [{"name": _TPU, "nominalQuota": topology.chips}]}
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": KUEUE_API, "kind": "ResourceFlavor", "metadata": {"name": name}, "spec": {"nodeLabels": labels}},
            {
                "apiVersion": KUEUE_API,
                "kind": "ClusterQueue",
                "metadata": {"name": name},
                "spec": {"namespaceSelector": {}, "resourceGroups": [{"coveredResources": [_TPU], "flavors": [flavor]}]},
            },
            {
                "apiVersion": KUEUE_API,
                "kind": "LocalQueue",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterQueue": name},
            },
        ],
    }


def to_text(manifest: dict[str, Any]) -> str:
    """Returns a manifest as kubectl reads it."""
    return json.dumps(manifest, indent=2) + "\n"


def run(path: Path, manifest: dict[str, Any]) -> list[Step]:
    """Returns the steps that write a JobSet and give it to the cluster, which says no where one of its name is there already."""
    return [
        Written(path, to_text(manifest), "writes the manifest"),
        Command(("kubectl", "create", "-f", near(path)), "gives the run to the cluster, which starts it when its turn comes"),
    ]


def make_queue(path: Path, manifest: dict[str, Any]) -> list[Step]:
    """Returns the steps that write a queue and give it to the cluster, or change the one that is there."""
    return [
        Written(path, to_text(manifest), "writes the manifest"),
        Command(("kubectl", "apply", "-f", near(path)), "makes the queue"),
    ]


def logs(name: str, namespace: str, *, lines: int, follow: bool) -> list[Step]:
    """Returns the steps that print the end of all pods' logs, each line with its pod's name."""
    argv = ["kubectl", "logs", f"--namespace={namespace}", f"--selector={_JOBSET_LABEL}={name}", f"--container={CONTAINER}"]
    argv += ["--prefix", f"--tail={lines}", "--max-log-requests=1024", *(["--follow"] if follow else [])]
    return [Command(tuple(argv), "prints the end of the pods' logs")]


def status(name: str, namespace: str) -> list[Step]:
    """Returns the steps that print the JobSet and its pods."""
    pods = ("kubectl", "get", "pods", f"--namespace={namespace}", f"--selector={_JOBSET_LABEL}={name}", "--output=wide")
    return [
        Command(("kubectl", "get", "jobset", name, f"--namespace={namespace}"), "prints the run"),
        Command(pods, "prints its pods"),
    ]


def delete(name: str, namespace: str) -> list[Step]:
    """Returns the steps that end the run and remove it from the cluster; what it wrote to its mounts stays."""
    return [Command(("kubectl", "delete", "jobset", name, f"--namespace={namespace}"), "ends the run and its pods")]


def xpk(job: Job, *, cluster: str, project: str, zone: str) -> list[Step]:
    """Returns the steps that start the same run by XPK (https://github.com/AI-Hypercomputer/xpk), on a cluster that XPK made."""
    # XPK sends SIGTERM to the shell of the command, which is therefore replaced by it.
    command = f"cd {WORKDIR} && exec python launch/pods/worker.py mapped --again={_XPK_AGAIN} -- {shlex.join(job.command)}"
    if job.topology.hosts > 1:
        command = f"export OFA_DISTRIBUTED=1; {command}"
    argv = [
        "xpk",
        "workload",
        "create",
        f"--cluster={cluster}",
        f"--workload={job.name}",
        f"--project={project}",
        f"--zone={zone}",
        f"--tpu-type={accelerator_type(job.topology)}",
        f"--num-slices={job.topology.slices}",
        f"--docker-image={job.image}",
        f"--max-restarts={job.max_restarts}",
        f"--termination-grace-period-seconds={_GRACE_S}",
        f"--command={command}",
    ]
    return [Command(tuple(argv), "starts the run by XPK")]


def watch(name: str, namespace: str, *, every_s: float, say: Callable[[str], None]) -> int:
    """Waits for the end of a run and returns its exit code. Says every restart, and of every pod that failed the last lines, while they
    can be had. Raises UserError where the cluster knows no such run."""
    told: set[str] = set()
    codes: list[int] = []
    restarts = 0
    while True:
        found = _get(["jobset", name], namespace)
        now = int(found.get("status", {}).get("restarts", 0))
        for pod in _get(["pods", f"--selector={_JOBSET_LABEL}={name}"], namespace).get("items", []):
            identity = pod["metadata"].get("uid", pod["metadata"]["name"])
            if identity not in told and (ended := _terminated(pod)):
                told.add(identity)
                codes.append(int(ended["exitCode"]))
                _tell(pod, ended, say)
        if now != restarts:
            say(f"{name}: started again, {now} of at most {found['spec'].get('failurePolicy', {}).get('maxRestarts', 0)} times")
            restarts, codes = now, []
        conditions = {one["type"]: one for one in found.get("status", {}).get("conditions", []) if one.get("status") == "True"}
        if "Completed" in conditions:
            say(f"{name}: done")
            return 0
        if failed := conditions.get("Failed"):
            code = judge(codes) or 1
            say(f"{name}: failed, {describe(code)}: {failed.get('message', 'no message')}")
            return code
        time.sleep(every_s)


def _get(words: Sequence[str], namespace: str) -> dict[str, Any]:
    found = ask(["kubectl", "get", *words, f"--namespace={namespace}", "--output=json"])
    if found.returncode:
        raise UserError(f"kubectl get {words[0]}: found {complaint(found)!r}, expected an answer; is it the right cluster and namespace?")
    return json.loads(found.stdout)


def _terminated(pod: dict[str, Any]) -> dict[str, Any] | None:
    for status in pod.get("status", {}).get("containerStatuses", []):
        if status["name"] == CONTAINER:
            return status.get("state", {}).get("terminated")
    return None


def _tell(pod: dict[str, Any], ended: dict[str, Any], say: Callable[[str], None]) -> None:
    """Slice and host are labels that JobSet and Job give their pods."""
    labels = pod["metadata"].get("labels", {})
    place = f"slice {labels.get('jobset.sigs.k8s.io/job-index', '?')} host {labels.get('batch.kubernetes.io/job-completion-index', '?')}"
    if ended["exitCode"] == 0:
        say(f"{place} is done")
        return
    say(f"{place} ended with {describe(int(ended['exitCode']))}")
    for line in last_error(ended.get("message", "")):
        say(f"{place}: {line}")
