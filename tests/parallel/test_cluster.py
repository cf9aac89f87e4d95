"""Which cluster an environment tells of: real-looking environments of each kind, half-set ones, and those that contradict each other."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path

import pytest

from ofa_jax.config.errors import UserError
from ofa_jax.parallel import hosts
from ofa_jax.parallel.cluster import VARIABLES, Cluster, detect, machine_attributes, node_names

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "monitor"))

from metadata_server import metadata_server

PLAIN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.5:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
POD = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "t1v-n-0,t1v-n-1,t1v-n-2,t1v-n-3", "TPU_SKIP_MDS_QUERY": "true"}
SLICES = {
    **POD,
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8080",
    "JOBSET_NAME": "run",
    "KUBERNETES_SERVICE_HOST": "10.8.0.1",
}
JOBSET = {
    "KUBERNETES_SERVICE_HOST": "10.8.0.1",
    "JOBSET_NAME": "ofa",
    "REPLICATED_JOB_NAME": "hosts",
    "JOB_COMPLETION_INDEX": "1",
    "JAX_NUM_PROCESSES": "8",
}
STEP = {
    "SLURM_JOB_ID": "123",
    "SLURM_JOB_NODELIST": "gpu[007-009,011]",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NODELIST": "gpu[007-009,011]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
# An interactive shell of salloc, where `srun hostname` would run four tasks: a step of its own, with one task.
SHELL = {**STEP, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "34889", "SLURM_PROCID": "0"}
# The script of sbatch: the job's numbers, and no step.
BATCH = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP_")} | {"SLURM_PROCID": "0"}
MPI = {"OFA_DISTRIBUTED": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"}
TOLD = {"OFA_DISTRIBUTED": "1", "OFA_PROCESS_ID": "6", "OFA_NUM_PROCESSES": "8"}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "cluster: single process (nothing tells of others)"),
        (
            PLAIN,
            "cluster: plain environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID): process 3 of 4, coordinator "
            "10.0.0.5:1234",
        ),
        (POD, "cluster: Cloud TPU (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES): process 2 of 4, coordinator t1v-n-0:8482"),
        ({**POD, "JAX_COORDINATOR_PORT": "99"}, "cluster: Cloud TPU (*): process 2 of 4, coordinator t1v-n-0:99"),
        (
            SLICES,
            "cluster: GKE run (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, MEGASCALE_SLICE_ID, MEGASCALE_NUM_SLICES, "
            "MEGASCALE_COORDINATOR_ADDRESS): process 6 of 8, coordinator run-slice-0-0.run:8482",
        ),
        (
            JOBSET,
            "cluster: JobSet ofa (JOBSET_NAME, REPLICATED_JOB_NAME, JAX_NUM_PROCESSES, JOB_COMPLETION_INDEX): process 1 of 8, coordinator "
            "ofa-hosts-0-0.ofa:55527",
        ),
        (
            {**JOBSET, "JAX_COORDINATOR_ADDRESS": "ofa-hosts-0-0.ofa:777"},
            "cluster: JobSet ofa (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JOB_COMPLETION_INDEX): process 1 of 8, coordinator "
            "ofa-hosts-0-0.ofa:777",
        ),
        (
            STEP,
            "cluster: SLURM job 123 (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_STEP_NODELIST): process 2 of 4, coordinator gpu007:61563",
        ),
        ({**STEP, **PLAIN}, "cluster: plain environment (*): process 3 of 4, coordinator 10.0.0.5:1234"),
        (SHELL, "cluster: single process (nothing tells of others)"),
        (BATCH, "cluster: single process (nothing tells of others)"),
        ({**STEP, "SLURM_PTY_PORT": "34889"}, "cluster: single process (nothing tells of others)"),
        (
            {**STEP, "SLURM_PTY_PORT": "34889", "OFA_DISTRIBUTED": "1"},
            "cluster: SLURM job 123 (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_STEP_NODELIST): process 2 of 4, coordinator gpu007:61563",
        ),
        ({**BATCH, "SLURM_NTASKS": "1", "OFA_DISTRIBUTED": "1"}, "cluster: single process (SLURM_NTASKS)"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "OFA_DISTRIBUTED": "1"}, "cluster: single process (TPU_WORKER_HOSTNAMES)"),
        ({**STEP, "OFA_DISTRIBUTED": "0"}, "cluster: single process (OFA_DISTRIBUTED)"),
        (TOLD, "cluster: another launcher (OFA_PROCESS_ID, OFA_NUM_PROCESSES): process 6 of 8"),
        (MPI, "cluster: Open MPI (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE): process 1 of 3"),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, "cluster: single process (nothing tells of others)"),
        ({"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.8.0.1"}, "cluster: single process (nothing tells of others)"),
        ({"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, "cluster: single process (nothing tells of others)"),
    ],
)  # fmt: skip
def test_an_environment_tells_of_its_cluster(environ: dict[str, str], said: str):
    assert fnmatch.fnmatchcase(str(detect(environ)), said)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID: found '', expected a number, as"),
        ({**PLAIN, "JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES: found 'four', expected a number"),
        ({**PLAIN, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID: found 4, expected 0 to 3, as JAX_NUM_PROCESSES tells of 4 process(es)"),
        ({**PLAIN, "JAX_COORDINATOR_ADDRESS": "node7"}, "JAX_COORDINATOR_ADDRESS: found 'node7', expected host:port"),
        ({"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, "found nothing, expected host:port of process 0, as JAX_NUM_PROCESSES is 4"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_COORDINATOR_ADDRESS: found nothing, expected host:port of process 0, as JAX_PROCESS_ID is 2"),
        ({**JOBSET, "JOBSET_NAME": ""}, "JAX_COORDINATOR_ADDRESS: found nothing"),
        ({**POD, **PLAIN, "JAX_NUM_PROCESSES": "8"}, "JAX_NUM_PROCESSES: found 8, expected 4 as TPU_WORKER_HOSTNAMES tells of"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_ID: found '', expected a number, as TPU_WORKER_HOSTNAMES has 2 name(s)"),
        ({**POD, "TPU_WORKER_ID": "4"}, "TPU_WORKER_ID: found 4, expected 0 to 3"),
        ({**SLICES, "MEGASCALE_SLICE_ID": ""}, "MEGASCALE_SLICE_ID: found '', expected a number, as MEGASCALE_NUM_SLICES is 2"),
        ({**SLICES, "MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID: found 2, expected 0 to 1"),
        ({**SLICES, "MEGASCALE_COORDINATOR_ADDRESS": ""}, "MEGASCALE_COORDINATOR_ADDRESS: found nothing"),
        ({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "0"}, "TPU_WORKER_HOSTNAMES: found nothing"),
        ({**STEP, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST: found '', expected the nodes of the step, as SLURM_STEP_"),
        ({**STEP, "SLURM_PROCID": "4"}, "SLURM_PROCID: found 4, expected 0 to 3"),
        ({**BATCH, "OFA_DISTRIBUTED": "1"}, "the nodes of the step, as SLURM_NTASKS is 4: start this program with srun"),
        ({"OFA_DISTRIBUTED": "1"}, "OFA_DISTRIBUTED: found 1, but nothing else that tells of a cluster"),
        ({"OFA_DISTRIBUTED": "yes"}, "OFA_DISTRIBUTED: found 'yes', expected 0"),
    ],
)  # fmt: skip
def test_what_is_half_set_or_contradicts_itself_is_one_sentence(environ: dict[str, str], said: str):
    with pytest.raises(UserError) as found:
        detect(environ)
    assert str(found.value).startswith("environment variable ") and said in str(found.value) and "\n" not in str(found.value)


def test_hosts_are_named_where_the_environment_names_them():
    assert detect(POD).names == {0: "t1v-n-0", 1: "t1v-n-1", 2: "t1v-n-2", 3: "t1v-n-3"}
    assert detect(SLICES).names == {4: "t1v-n-0", 5: "t1v-n-1", 6: "t1v-n-2", 7: "t1v-n-3"}
    assert detect(STEP).names == {0: "gpu007", 1: "gpu008", 2: "gpu009", 3: "gpu011"}


def test_a_task_takes_all_devices_of_its_node_or_the_one_of_its_number():
    assert detect(STEP).local_devices == ()
    assert detect({**STEP, "SLURM_STEP_NODELIST": "gpu[007-008]", "SLURM_LOCALID": "1"}).local_devices == (1,)


def test_short_lists_of_nodes():
    assert node_names("n7") == ["n7"]
    assert node_names("a[1-3],b,c[08-10,12]-x") == ["a1", "a2", "a3", "b", "c08-x", "c09-x", "c10-x", "c12-x"]
    assert node_names("") == []


def test_a_cloud_tpu_without_variables_is_told_by_the_metadata_of_its_machine():
    of_old = {
        "attributes/agent-worker-number": "1",
        "attributes/worker-network-endpoints": "unknown:unknown:10.1.0.2,unknown:unknown:10.1.0.3",
    }
    with metadata_server(of_old) as server:
        found = hosts.find_cluster({"GCE_METADATA_HOST": server})
        assert found == Cluster(
            "Cloud TPU", ("agent-worker-number of this machine", "worker-network-endpoints of this machine"), 1, 2, "10.1.0.2:8482",
            {0: "10.1.0.2", 1: "10.1.0.3"},
        )  # fmt: skip
        assert machine_attributes({"GCE_METADATA_HOST": server, "TPU_SKIP_MDS_QUERY": "1"}) is None
    slices = (
        "ACCELERATOR_TYPE: 'v5p-16'\nMEGASCALE_COORDINATOR_ADDRESS: '10.1.0.2:8080'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    )
    several = {"attributes/agent-worker-number": "0", "attributes/worker-network-endpoints": "w-0,w-1", "attributes/tpu-env": slices}
    with metadata_server(several) as server:
        found = hosts.find_cluster({"GCE_METADATA_HOST": server})
        assert (found.index, found.count, found.coordinator) == (2, 4, "10.1.0.2:8482")
    with metadata_server({}) as server:  # a machine without TPUs
        assert hosts.find_cluster({"GCE_METADATA_HOST": server}).count == 1
    with pytest.raises(UserError, match="metadata of this machine: no answer .* OFA_DISTRIBUTED=0 if this process is alone"):
        hosts.find_cluster({"GCE_METADATA_HOST": server})


def test_what_is_read_is_listed():
    """Whoever starts a cluster of its own takes them out."""
    used = {name for environ in (PLAIN, POD, SLICES, JOBSET, STEP, SHELL, TOLD, MPI) for name in environ}
    others = {
        "TPU_SKIP_MDS_QUERY",
        "KUBERNETES_SERVICE_HOST",
        "SLURM_NPROCS",
        "SLURM_STEP_ID",
        "SLURM_STEP_NUM_NODES",
        "SLURM_JOB_NODELIST",
    }
    assert used - others <= set(VARIABLES)
