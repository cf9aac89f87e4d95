"""What the command lines of `launch/pods` would do, word for word, and the pages that show it.

After a change that is meant, write the golden files and the pages' outputs again and read their diff:

    .venv/bin/python tests/clusters/test_dry_runs.py
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "pods"
PAGES = sorted((ROOT / "docs").glob("pods_*.md"))
_BLOCK = re.compile(r"```(\w*)\n(.*?)```\n", re.DOTALL)

_TRAIN = "-- launch/train.py --config=configs/ofa_large.py"
_POD = "--name=ofa-large --project=my-project --zone=us-east5-a"
_JOB = "--name=ofa-large --image=us-central1-docker.pkg.dev/my-project/images/ofa_jax"
DRY_RUNS = {
    "cloud_tpu_create_v4": f"cloud_tpu create {_POD} --topology=v4:2x2x4 --reserved",
    "cloud_tpu_create_v5e": f"cloud_tpu create {_POD} --topology=v5e:4x4 --spot",
    "cloud_tpu_create_v6e": f"cloud_tpu create {_POD} --topology=v6e:16x16 --runtime=v2-alpha-tpuv6e-next",
    "cloud_tpu_copy": f"cloud_tpu copy {_POD}",
    "cloud_tpu_run": f"cloud_tpu run {_POD} {_TRAIN} --config.name='it has spaces'",
    "cloud_tpu_watch": f"cloud_tpu watch {_POD}",
    "cloud_tpu_logs": f"cloud_tpu logs {_POD} --worker=all --node=all --lines=20 --follow",
    "cloud_tpu_status": f"cloud_tpu status {_POD}",
    "cloud_tpu_stop": f"cloud_tpu stop {_POD} --grace_s=120",
    "cloud_tpu_resume_two_slices": f"cloud_tpu resume {_POD} --topology=v5p:4x4x4 --slices=2 --spot {_TRAIN}",
    "cloud_tpu_delete": f"cloud_tpu delete {_POD}",
    "gke_queue": "gke queue --name=tpus --namespace=research --topology=v5p:4x4x4 --slices=4",
    "gke_run": f"gke run {_JOB} --topology=v5p:4x4x4 --slices=2 --queue=q --spot --service_account=s --mount=bucket:b:/bucket {_TRAIN}",
    "gke_run_one_host": f"gke run {_JOB} --topology=v5e:2x2 --queue=tpus --mount=claim:c:/runs --max_restarts=3 {_TRAIN}",
    "gke_logs": "gke logs --name=ofa-large --follow --lines=5",
    "gke_status": "gke status --name=ofa-large",
    "gke_delete": "gke delete --name=ofa-large",
    "gke_xpk": f"gke xpk {_JOB} --topology=v5e:8x16 --slices=2 --cluster=c --project=p --zone=us-west4-b {_TRAIN} --config.name='a b'",
    "slurm_run": f"slurm run --name=ofa-large --topology=h100:16 --time=24:00:00 --partition=gpu --account=lab --cpus_per_task=14 {_TRAIN}",
    "slurm_run_one_gpu": f"slurm run --name=ofa-tiny --topology=a100:1 --follow {_TRAIN} --config.name='a b'",
    "slurm_status": "slurm status --name=ofa-large",
    "slurm_cancel": "slurm cancel --name=ofa-large",
}


def dry_run(line: str) -> str:
    """What a command line prints with --dry_run, called in the checkout by a person of the name of `me`."""
    program, verb, *words = shlex.split(line)
    module = importlib.import_module(f"launch.pods.{program}")
    said = io.StringIO()
    with _as_me(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = module.main([program, verb, "--dry_run", *[word for word in words if word != "--dry_run"]])
    assert code == 0, said.getvalue()
    return said.getvalue().replace(sys.executable, "/shared/ofa_jax/.venv/bin/python").replace(str(ROOT), "/shared/ofa_jax")


@contextlib.contextmanager
def _as_me() -> Iterator[None]:
    before, names = os.getcwd(), {name: os.environ.get(name) for name in ("LOGNAME", "USER")}
    os.chdir(ROOT)
    os.environ.update(LOGNAME="me", USER="me")
    try:
        yield
    finally:
        os.chdir(before)
        for name, value in names.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def commands(page: str) -> list[str]:
    """The command lines of a page's shell blocks, without the comments behind them."""
    found = []
    for language, text in _BLOCK.findall(page):
        if language == "sh":
            lines = text.replace("\\\n", " ").splitlines()
            found += [line.split("  #")[0].strip() for line in lines if line.startswith("python launch/pods/")]
    return found


def _as_golden(command: str) -> str:
    return command.removeprefix("python launch/pods/").replace(".py ", " ", 1)


def with_outputs(page: str) -> str:
    """The page with the outputs of its dry runs: the block after a block that is one command with --dry_run."""
    before = ""

    def replaced(found: re.Match[str]) -> str:
        nonlocal before
        language, text = found.groups()
        command, before = before, ""
        if language == "sh" and len(only := commands(found.group())) == 1 and "--dry_run" in only[0]:
            before = only[0]
        return f"```{language}\n{dry_run(_as_golden(command)) if command and not language else text}```\n"

    return _BLOCK.sub(replaced, page)


@pytest.mark.parametrize("name", sorted(DRY_RUNS))
def test_a_dry_run_prints_its_golden_text(name: str):
    assert dry_run(DRY_RUNS[name]) == (GOLDEN / f"{name}.txt").read_text()


def test_no_golden_file_is_left_over():
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(DRY_RUNS)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_what_its_commands_print(page: Path):
    text = page.read_text()
    assert with_outputs(text) == text
    found = commands(text)
    assert len(found) >= 5
    for command in found:
        if " slurm.py logs" not in f" {command.removeprefix('python launch/pods/')}":  # it looks for the job's file
            assert dry_run(_as_golden(command))


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for left_over in GOLDEN.glob("*.txt"):
        left_over.unlink()
    for name, line in DRY_RUNS.items():
        (GOLDEN / f"{name}.txt").write_text(dry_run(line))
    for page in PAGES:
        page.write_text(with_outputs(page.read_text()))
