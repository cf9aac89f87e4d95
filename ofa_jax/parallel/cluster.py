"""Which cluster this process runs on, and its place among the others: read from the environment, before anything is started.

| cluster | told by | coordinator |
|---|---|---|
| plain environment | JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID | as given |
| Cloud TPU, GKE with TPUs | TPU_WORKER_ID, TPU_WORKER_HOSTNAMES; MEGASCALE_* for several slices | the first worker, port 8482 |
| Cloud TPU without those | the machine's metadata: agent-worker-number, worker-network-endpoints, tpu-env | the same |
| JobSet without TPUs | JOB_COMPLETION_INDEX, JAX_NUM_PROCESSES; JAX_COORDINATOR_ADDRESS, or JOBSET_NAME, REPLICATED_JOB_NAME | pod 0-0 |
| SLURM | SLURM_PROCID, SLURM_STEP_NUM_TASKS of a step that srun started | the first node, port 61440 + job % 4096 |
| another launcher | OFA_PROCESS_ID, OFA_NUM_PROCESSES, with OFA_DISTRIBUTED=1 | JAX finds it |
| Open MPI | OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE, with OFA_DISTRIBUTED=1 | JAX finds it |

The first that speaks of several processes counts. JAX_COORDINATOR_PORT is another port. OFA_DISTRIBUTED=0 says that this process is alone,
whatever else is set; 1 says that it is not, and asks for the step of a SLURM allocation that would else count as a shell. Ports and the
names of pods are those that JAX itself takes (https://docs.jax.dev/en/latest/multi_process.html, and jax/_src/clusters of its source), so
that a process of ours finds one that JAX started. Sources of the variables: https://docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus,
https://jobset.sigs.k8s.io/docs/concepts/, https://slurm.schedmd.com/srun.html.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from ofa_jax.config.errors import UserError
from ofa_jax.monitor import maintenance

SINGLE, PLAIN, CLOUD_TPU, GKE, JOBSET, SLURM, LAUNCHER, MPI = (
    "single process", "plain environment", "Cloud TPU", "GKE", "JobSet", "SLURM job", "another launcher", "Open MPI",
)  # fmt: skip
TPU_PORT, JOBSET_PORT = "8482", "55527"
# All that `detect` reads. Whoever starts processes of a cluster of its own takes these out of their environment first.
VARIABLES = (
    "OFA_DISTRIBUTED", "OFA_PROCESS_ID", "OFA_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT",
    "JAX_COORDINATOR_BIND_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_LOCAL_DEVICE_IDS", "TPU_WORKER_ID",
    "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "JOBSET_NAME",
    "REPLICATED_JOB_NAME", "JOB_COMPLETION_INDEX", "SLURM_JOB_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PTY_PORT", "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the environment tells of the processes of a job."""

    kind: str  # one of the names above, with the job's own where it has one
    told_by: tuple[str, ...]  # variables, or attributes of the machine
    index: int = 0  # of this process
    count: int = 1  # of processes
    coordinator: str = ""  # host:port of process 0; "" of a single process, or where JAX finds it
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)  # of hosts by index, as far as they are known
    local_devices: tuple[int, ...] = ()  # of its host, that this process takes; () for all

    def __str__(self) -> str:
        told = ", ".join(self.told_by)
        if self.count == 1:
            return f"cluster: {self.kind} ({told or 'nothing tells of others'})"
        where = f", coordinator {self.coordinator}" if self.coordinator else ""
        return f"cluster: {self.kind} ({told}): process {self.index} of {self.count}{where}"


def detect(environ: Mapping[str, str], *, attribute: Callable[[str], str] | None = None) -> Cluster:
    """Returns the cluster that the environment tells of.

    attribute: an attribute of this machine by name, "" where it has none, as `machine_attributes` reads them; None: not asked for.
    Raises `UserError` for variables that are half set or contradict each other.
    """
    switch = environ.get("OFA_DISTRIBUTED", "")
    if switch not in ("", "0", "1"):
        raise UserError(
            f"environment variable OFA_DISTRIBUTED: found {switch!r}, expected 0 (this process is alone), 1 (it is not) or nothing"
        )
    if switch == "0":
        return Cluster(SINGLE, ("OFA_DISTRIBUTED",))
    found = _plain(environ) or _tpu(environ) or _slurm(environ, asked=switch == "1")
    if found is None and attribute is not None:
        found = _tpu_by_attributes(environ, attribute)
    if found is None and switch == "1":
        found = _found_by_jax(environ)
    return found or Cluster(SINGLE, ())


def machine_attributes(environ: Mapping[str, str]) -> Callable[[str], str] | None:
    """Returns what reads an attribute of this machine by name, or None where there is no need to ask: not on Google's machines, nor where
    JAX, which sets TPU_SKIP_MDS_QUERY when it is imported, found no TPU. It raises OSError where the server does not answer."""
    server = maintenance.metadata_server(environ)
    if not server or environ.get("TPU_SKIP_MDS_QUERY"):
        return None
    return lambda name: maintenance.read_metadata(server, f"attributes/{name}") or ""


def _number(environ: Mapping[str, str], name: str, because: str) -> int:
    text = environ.get(name, "")
    if not text.isdigit():
        raise UserError(f"environment variable {name}: found {text!r}, expected a number, as {because}")
    return int(text)


def _check_place(index: int, count: int, own: str, all_of_them: str) -> None:
    if index >= count:
        raise UserError(
            f"environment variable {own}: found {index}, expected 0 to {count - 1}, as {all_of_them} tells of {count} process(es)"
        )


def _plain(environ: Mapping[str, str]) -> Cluster | None:
    address = environ.get("JAX_COORDINATOR_ADDRESS", "")
    in_jobset = "JOB_COMPLETION_INDEX" in environ and not environ.get("JAX_PROCESS_ID")
    told = "JAX_COORDINATOR_ADDRESS"
    if not address:
        jobset, replicated = environ.get("JOBSET_NAME", ""), environ.get("REPLICATED_JOB_NAME", "")
        several = environ.get("JAX_NUM_PROCESSES", "") not in ("", "1")
        if not several and not environ.get("JAX_PROCESS_ID", "").strip("0"):
            return None
        if not (in_jobset and jobset and replicated):
            name = "JAX_NUM_PROCESSES" if several else "JAX_PROCESS_ID"
            raise UserError(
                f"environment variable JAX_COORDINATOR_ADDRESS: found nothing, expected host:port of process 0, as {name} is "
                f"{environ[name]}; unset that if this process is alone"
            )
        address = f"{jobset}-{replicated}-0-0.{jobset}:{environ.get('JAX_COORDINATOR_PORT') or JOBSET_PORT}"
        told = "JOBSET_NAME, REPLICATED_JOB_NAME"
    name, colon, port = address.rpartition(":")
    if not (name and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"environment variable JAX_COORDINATOR_ADDRESS: found {address!r}, expected host:port of process 0, as node7:12321")
    own = "JOB_COMPLETION_INDEX" if in_jobset else "JAX_PROCESS_ID"
    index = _number(environ, own, f"{told} is {address}" if told.startswith("JAX") else f"{told} are set")
    count = _number(environ, "JAX_NUM_PROCESSES", f"{told} is {address}" if told.startswith("JAX") else f"{told} are set")
    _check_place(index, count, own, "JAX_NUM_PROCESSES")
    workers = _workers(environ)
    if len(workers) > 1 and count != len(workers) * _slices(environ):
        raise UserError(
            f"environment variable JAX_NUM_PROCESSES: found {count}, expected {len(workers) * _slices(environ)} as TPU_WORKER_HOSTNAMES "
            "tells of, or one of the two unset"
        )
    kind = f"{JOBSET} {environ.get('JOBSET_NAME', '')}".strip() if in_jobset else PLAIN
    return Cluster(kind, (told, "JAX_NUM_PROCESSES", own), index, count, address)


def _workers(environ: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name.strip()]


def _slices(environ: Mapping[str, str]) -> int:
    if not environ.get("MEGASCALE_NUM_SLICES"):
        return 1
    return max(_number(environ, "MEGASCALE_NUM_SLICES", "it is set"), 1)


def _tpu(environ: Mapping[str, str]) -> Cluster | None:
    workers, slices = _workers(environ), _slices(environ)
    if len(workers) * slices <= 1:
        if slices > 1:
            raise UserError(
                "environment variable TPU_WORKER_HOSTNAMES: found nothing, expected the hosts of this slice, as MEGASCALE_NUM_SLICES is "
                f"{slices}"
            )
        return None
    in_pod = "KUBERNETES_SERVICE_HOST" in environ or "JOBSET_NAME" in environ
    kind = " ".join(filter(None, (GKE, environ.get("JOBSET_NAME", "")))) if in_pod else CLOUD_TPU
    own = _number(environ, "TPU_WORKER_ID", f"TPU_WORKER_HOSTNAMES has {len(workers)} name(s)")
    _check_place(own, len(workers), "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")
    told = ["TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"]
    first, own_slice = workers[0], 0
    if slices > 1:
        own_slice = _number(environ, "MEGASCALE_SLICE_ID", f"MEGASCALE_NUM_SLICES is {slices}")
        _check_place(own_slice, slices, "MEGASCALE_SLICE_ID", "MEGASCALE_NUM_SLICES")
        first = environ.get("MEGASCALE_COORDINATOR_ADDRESS", "")
        if not first:
            raise UserError(
                "environment variable MEGASCALE_COORDINATOR_ADDRESS: found nothing, expected the first host of the first slice, as "
                f"MEGASCALE_NUM_SLICES is {slices}"
            )
        told += ["MEGASCALE_SLICE_ID", "MEGASCALE_NUM_SLICES", "MEGASCALE_COORDINATOR_ADDRESS"]
    return _of_workers(environ, kind, tuple(told), workers, own, own_slice, slices, first)


def _of_workers(
    environ: Mapping[str, str], kind: str, told: tuple[str, ...], workers: list[str], own: int, own_slice: int, slices: int, first: str
) -> Cluster:
    """A cluster of TPU slices: process i of slice s is number s * (hosts of a slice) + i. Only the own slice's names are known."""
    before = own_slice * len(workers)
    names = {before + number: name for number, name in enumerate(workers)}
    coordinator = f"{first.split(':')[0]}:{environ.get('JAX_COORDINATOR_PORT') or TPU_PORT}"
    return Cluster(kind, told, before + own, len(workers) * slices, coordinator, names)


def _tpu_by_attributes(environ: Mapping[str, str], attribute: Callable[[str], str]) -> Cluster | None:
    """What Google's own machines say of themselves. A shell of theirs has none of the variables."""
    own = attribute("agent-worker-number")
    if not own.isdigit():
        return None  # no TPU, or none of a slice
    # Either names, or triples of name, id and address.
    endpoints = [endpoint.split(":") for endpoint in attribute("worker-network-endpoints").split(",") if endpoint]
    workers = [parts[2] if len(parts) == 3 else parts[0] for parts in endpoints]
    lines = (line.split(":", 1) for line in attribute("tpu-env").splitlines() if ":" in line)
    of_slices = {name.strip(): value.strip().strip("'") for name, value in lines}
    more = {name: of_slices[name] for name in of_slices if name.startswith("MEGASCALE_")}
    known = {**more, **environ, "TPU_WORKER_ID": own, "TPU_WORKER_HOSTNAMES": ",".join(workers)}
    found = _tpu(known)
    if found is None:
        return None
    told = ("agent-worker-number", "worker-network-endpoints", *(("tpu-env",) if more else ()))
    return dataclasses.replace(found, kind=CLOUD_TPU, told_by=tuple(f"{name} of this machine" for name in told))


def _slurm(environ: Mapping[str, str], *, asked: bool) -> Cluster | None:
    """A step of srun with several tasks. A shell in an allocation is none: sbatch's script and salloc's shell are one task, and that of
    `srun --pty` has SLURM_PTY_PORT; unless `asked`, none of them waits for others."""
    tasks = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    if not environ.get("SLURM_JOB_ID") or (not asked and (tasks == "SLURM_NTASKS" or "SLURM_PTY_PORT" in environ)):
        return None
    job = environ["SLURM_JOB_ID"]
    if "SLURM_PROCID" not in environ and not asked:
        return None
    count = _number(environ, tasks, f"SLURM_JOB_ID is {job}")
    if count == 1:
        return Cluster(SINGLE, (tasks,)) if asked else None
    index = _number(environ, "SLURM_PROCID", f"{tasks} is {count}")
    _check_place(index, count, "SLURM_PROCID", tasks)
    nodes = node_names(environ.get("SLURM_STEP_NODELIST", ""))
    if not nodes:
        raise UserError(
            f"environment variable SLURM_STEP_NODELIST: found {environ.get('SLURM_STEP_NODELIST', '')!r}, expected the nodes of the step, "
            f"as {tasks} is {count}: start this program with srun"
        )
    port = environ.get("JAX_COORDINATOR_PORT") or str(_number(environ, "SLURM_JOB_ID", f"{tasks} is {count}") % 2**12 + 2**16 - 2**12)
    # One task a node takes all its devices; of several, each takes that of its number. (JAX itself would give each one device.)
    alone = len(nodes) == count
    local = () if alone else (_number(environ, "SLURM_LOCALID", f"{count} tasks share {len(nodes)} node(s)"),)
    names = dict(enumerate(nodes)) if alone else {}
    return Cluster(f"{SLURM} {job}", ("SLURM_PROCID", tasks, "SLURM_STEP_NODELIST"), index, count, f"{nodes[0]}:{port}", names, local)


def node_names(listed: str) -> list[str]:
    """Returns the names of SLURM's short list of nodes, in order: `a[1-2],b` is a1, a2, b, and digits keep their leading zeros."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", listed):
        before, bracket, rest = part.partition("[")
        ranges, _, after = rest.partition("]")
        if not bracket:
            names.append(part)
        for one in ranges.split(",") if bracket else ():
            first, _, last = one.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            names += [f"{before}{number:0{len(first)}d}{after}" for number in numbers]
    return names


def _found_by_jax(environ: Mapping[str, str]) -> Cluster:
    """Processes whose place is told, and whose coordinator JAX itself finds."""
    for kind, own, all_of_them in (
        (LAUNCHER, "OFA_PROCESS_ID", "OFA_NUM_PROCESSES"),
        (MPI, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ):
        if all_of_them not in environ:
            continue
        count = _number(environ, all_of_them, "OFA_DISTRIBUTED is 1")
        index = _number(environ, own, f"{all_of_them} is {count}")
        _check_place(index, count, own, all_of_them)
        return Cluster(kind, (own, all_of_them), index, count)
    if _workers(environ):
        return Cluster(SINGLE, ("TPU_WORKER_HOSTNAMES",))
    raise UserError(
        "environment variable OFA_DISTRIBUTED: found 1, but nothing else that tells of a cluster, expected JAX_COORDINATOR_ADDRESS, "
        "TPU_WORKER_HOSTNAMES, a job of SLURM or Open MPI's mpirun: start this program by one of them, or unset it"
    )
