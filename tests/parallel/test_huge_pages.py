"""A program that asks for large pages is started again with them once, and with everything else as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ofa_jax.parallel.huge_pages import TUNABLE, steps_run_on_cpu, wanted

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, os, sys
from ofa_jax.parallel.huge_pages import start_with_huge_pages
print("started", os.getpid(), flush=True)
start_with_huge_pages()
print(json.dumps([os.environ.get("GLIBC_TUNABLES"), sys.argv, sys.flags.dev_mode]))
"""


def started(tmp_path: Path, **environ: str) -> tuple[int, list]:
    """Returns how often the program was started, and what it found of itself at last; it is one process all along."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-X", "dev", str(program), "--one=1", "two words"],
        env={**plain, "PYTHONPATH": str(ROOT), **environ}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *starts, last = done.stdout.splitlines()
    assert len(set(starts)) == 1
    assert json.loads(last)[1:] == [[str(program), "--one=1", "two words"], True]
    return len(starts), json.loads(last)[0]


def test_it_starts_again_where_the_kernel_waits_to_be_asked(tmp_path: Path):
    asks = wanted({}) is not None
    assert started(tmp_path, JAX_PLATFORMS="cpu") == ((2, f"{TUNABLE}=1") if asks else (1, None))


@pytest.mark.parametrize("environ", [{"JAX_PLATFORMS": "tpu,cpu"}, {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": f"{TUNABLE}=0"}])
def test_it_goes_on_where_there_is_nothing_to_gain_or_a_person_says_no(tmp_path: Path, environ: dict[str, str]):
    assert started(tmp_path, **environ) == (1, environ.get("GLIBC_TUNABLES"))


def test_other_tunables_stay():
    other = "glibc.malloc.check=1"
    found = wanted({"GLIBC_TUNABLES": other, "HOME": "/"})
    assert found is None or found == {"GLIBC_TUNABLES": f"{other}:{TUNABLE}=1", "HOME": "/"}
    assert wanted({"GLIBC_TUNABLES": f"{TUNABLE}=2"}) is None


def test_whether_steps_run_on_the_cpu():
    assert steps_run_on_cpu({"JAX_PLATFORMS": "cpu"})
    assert not steps_run_on_cpu({"JAX_PLATFORMS": "cuda"})
