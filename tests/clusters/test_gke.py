"""Manifests of Kubernetes against its schemas, and a cluster of files that a run is watched in."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from launch.pods import gke as command
from ofa_jax.clusters import gke
from ofa_jax.clusters.tpus import GENERATIONS
from ofa_jax.config.hardware import load_hardware, parse_topology
from ofa_jax.monitor.exits import REASONS
from tests.clusters.schemas import BY_KIND

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "1.33"  # podFailurePolicy is final since 1.31
RUN = ("launch/train.py", "--config=configs/ofa_large.py", "--config.name=it's")


def job(topology: str, *, slices: int = 1, **fields: Any) -> gke.Job:
    given = {"name": "ofa-large", "namespace": "default", "image": "us-docker.pkg.dev/p/i/ofa:1", "command": RUN, "queue": "tpus"}
    return gke.Job(topology=parse_topology(topology, slices=slices), **{**given, **fields})  # type: ignore[arg-type]


def check(manifest: dict[str, Any]) -> None:
    """Raises where a manifest, read again from its text, is not of its type."""
    manifest = json.loads(gke.to_text(manifest))
    for item in manifest["items"] if manifest["kind"] == "List" else [manifest]:
        jsonschema.Draft202012Validator(BY_KIND[item["kind"]]).validate(item)
        for replicated in item["spec"].get("replicatedJobs", []):
            inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inner"}, **replicated["template"]}
            kubernetes_validate.validate(inner, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "made",
    [
        job("v5e:4x4"),
        job("v6e:2x2"),
        job("v4:4x4x4", slices=2, spot=True, service_account="trainer"),
        job("v5p:4x4x4", mounts=(gke.parse_mount("bucket:b:/bucket"), gke.parse_mount("claim:c:/data")), max_restarts=0),
    ],
    ids=lambda made: made.topology.text,
)
def test_a_jobset_is_of_its_type(made: gke.Job):
    check(gke.jobset(made))


def test_a_field_that_no_type_has_is_found():
    manifest = gke.jobset(job("v5e:4x4"))
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="nodeSelectors"):
        check(manifest)
    manifest = gke.jobset(job("v5e:4x4"))
    manifest["spec"]["failurePolicy"]["restarts"] = 3
    with pytest.raises(jsonschema.ValidationError, match="restarts"):
        check(manifest)


def test_a_queue_has_the_chips_of_its_topology():
    manifest = gke.queue("tpus", "research", parse_topology("v5p:2x2x2", slices=3))
    check(manifest)
    flavor, cluster_queue, local = manifest["items"]
    assert flavor["spec"]["nodeLabels"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5p-slice"
    assert cluster_queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"] == [{"name": "google.com/tpu", "nominalQuota": 24}]
    assert local["metadata"] == {"name": "tpus", "namespace": "research"}


@pytest.mark.parametrize("name", sorted(GENERATIONS))
def test_a_job_has_a_pod_for_each_host_and_a_chip_limit_that_adds_up(name: str):
    for shape in load_hardware(name).shapes:
        topology = parse_topology(f"{name}:{shape}")
        replicated = gke.jobset(job(f"{name}:{shape}"))["spec"]["replicatedJobs"][0]
        inner = replicated["template"]["spec"]
        pod = inner["template"]["spec"]
        chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
        assert replicated["replicas"] == 1 and inner["completions"] == inner["parallelism"] == topology.hosts
        assert inner["completions"] * chips == topology.chips
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == shape
        assert ("env" in pod["containers"][0]) == (topology.hosts > 1)


def test_only_what_goes_on_without_being_mended_is_started_again():
    spec = gke.jobset(job("v5e:4x4"))["spec"]
    [rule] = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    excepted = rule["onExitCodes"]["values"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn" and excepted == sorted(set(excepted))
    again = {reason.code for reason in REASONS.values() if reason.again}
    assert again <= set(excepted) and not {reason.code for reason in REASONS.values() if not reason.again} & set(excepted)
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["run", "--name=a", "--topology=v5e:2x2", "--slices=2", "--image=i", "--queue=q"],
            "found 2 slices of one host, expected slices of several",
        ),
        (["run", "--name=a", "--topology=v5e:4x4", "--queue=q"], "--image: found none"),
        (["run", "--name=a", "--topology=v5e:4x4", "--image=i"], "--queue: found none"),
        (
            ["run", "--name=a", "--topology=v5e:4x4", "--image=i", "--queue=q", "--mount=gs://b"],
            "--mount: found 'gs://b', expected bucket:NAME:/path",
        ),
        (["run", "--name=A", "--topology=v5e:4x4"], "--name: found 'A'"),
        (["run", "--name=a", "--topology=a100:8", "--image=i", "--queue=q"], "which is A100 80GB, expected TPUs"),
        (["xpk", "--name=a", "--topology=v5e:4x4", "--image=i"], "--cluster: found none"),
        (["xpk", "--name=a", "--topology=v5e:4x4", "--image=i", "--spot"], "expected none: XPK's cluster has its own"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert command.main(["gke.py", *words, "--dry_run", "--", "launch/train.py"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ConfigError: ") and sentence in said, said


KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "calls").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "create":
    (folder / "created.json").write_text(pathlib.Path(sys.argv[3]).read_text())
elif sys.argv[1:3] == ["get", "jobset"]:
    states = json.loads((folder / "states.json").read_text())
    print(json.dumps(states[0]["jobset"]))
elif sys.argv[1:3] == ["get", "pods"]:
    states = json.loads((folder / "states.json").read_text())
    print(json.dumps({{"items": states[0]["pods"]}}))
    (folder / "states.json").write_text(json.dumps(states[1:] or states))
"""


def pod(uid: str, host: int, code: int | None, message: str = "") -> dict[str, Any]:
    state = {"running": {}} if code is None else {"terminated": {"exitCode": code, "message": message}}
    labels = {"jobset.sigs.k8s.io/job-index": "0", "batch.kubernetes.io/job-completion-index": str(host)}
    return {
        "metadata": {"name": f"p{uid}", "uid": uid, "labels": labels},
        "status": {"containerStatuses": [{"name": "train", "state": state}]},
    }


def jobset_state(restarts: int, *conditions: str) -> dict[str, Any]:
    found = [{"type": name, "status": "True", "message": f"jobset {name.lower()}"} for name in conditions]
    return {"spec": {"failurePolicy": {"maxRestarts": 10}}, "status": {"restarts": restarts, "conditions": found}}


def test_a_run_is_followed_over_a_restart_to_the_error_of_one_host(tmp_path: Path):
    error = "step 7\nValueError: rows differ\nended: data (65) at step 7: rows differ\n"
    states = [
        {"jobset": jobset_state(0), "pods": [pod("a", 0, None), pod("b", 1, None)]},
        {"jobset": jobset_state(0), "pods": [pod("a", 0, 75, "stopped by a signal at step 3 and saved\n"), pod("b", 1, 75)]},
        {"jobset": jobset_state(1), "pods": [pod("c", 0, None), pod("d", 1, None)]},
        {"jobset": jobset_state(1), "pods": [pod("c", 0, 137), pod("d", 1, 65, error)]},
        {"jobset": jobset_state(1, "Failed"), "pods": [pod("c", 0, 137), pod("d", 1, 65, error)]},
    ]
    (tmp_path / "states.json").write_text(json.dumps(states))
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    flags = [
        "--name=followed-in-a-test",
        "--topology=v5e:2x4",
        "--image=i",
        "--queue=q",
        "--mount=bucket:b:/bucket",
        "--follow",
        "--every_s=0.1",
    ]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / "pods" / "gke.py"), "run", *flags, "--", *RUN],
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    (ROOT / "runs" / "pods" / "followed-in-a-test.jobset.json").unlink()
    assert done.returncode == 65, done.stdout
    check(json.loads((tmp_path / "created.json").read_text()))
    for said in (
        "slice 0 host 0 ended with exit code 75 (preempted",
        "followed-in-a-test: started again, 1 of at most 10 times",
        "slice 0 host 1 ended with exit code 65 (data",
        "slice 0 host 1: ValueError: rows differ\n",
        "followed-in-a-test: failed, exit code 65 (data",
    ):
        assert said in done.stdout, done.stdout
