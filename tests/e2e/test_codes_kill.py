"""The code stage by the real command line, killed outright at three random moments: the same command ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import ROOT, TIMEOUT_S, run, run_together, started

from ofa_jax.prepare import fixtures
from tests.data.object_store import ObjectStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fixtures, and a VQGAN of two steps."""
    folder = tmp_path_factory.mktemp("codes")
    run([sys.executable, str(ROOT / "launch" / "train.py"), f"--config={ROOT}/configs/quickstart_vqgan.py:debug"], folder)
    assert (folder / "runs" / "quickstart_vqgan_debug" / "reconstructions" / "numbers.json").exists()
    return folder


def command(data: str) -> list[str]:
    prepare = [sys.executable, str(ROOT / "launch" / "prepare.py"), "codes", "--vqgan=runs/quickstart_vqgan_debug"]
    return [*prepare, f"--data_dir={data}", "--dataset=easy_vqa", "--image_px=64", "--rows=2"]


@pytest.mark.full
def test_three_kills_change_nothing(folder):
    for data in ("whole", "killed"):
        fixtures.write(folder / data)
    began = time.monotonic()
    said = run(command("whole"), folder)
    seconds = time.monotonic() - began
    assert "codes of" in said and "a second" in said, said
    codes = folder / "killed" / "easy_vqa" / "codes"
    for kill in range(3):
        with started(command("killed"), folder, folder / f"killed_{kill}.log") as process:
            deadline = time.monotonic() + TIMEOUT_S
            while not codes.exists():  # the first pictures come soon after the options were written
                assert process.poll() is None and time.monotonic() < deadline, (folder / f"killed_{kill}.log").read_text()
                time.sleep(0.01)
            time.sleep(random.SystemRandom().uniform(0, seconds / 2))
            process.kill()
            process.wait()
            print("killed", process.returncode == -signal.SIGKILL, sorted(path.name for path in codes.iterdir()))
    run(command("killed"), folder)
    whole, killed = ({p.name: p.read_bytes() for p in (folder / data / "easy_vqa" / "codes").iterdir()} for data in ("whole", "killed"))
    assert whole == killed
    assert (folder / "whole" / "vqgan.npz").read_bytes() == (folder / "killed" / "vqgan.npz").read_bytes()


@pytest.mark.full
def test_two_processes_train_and_share_the_shards(folder, tmp_path):
    for data in ("whole", "shared"):
        fixtures.write(folder / data)
    run(command("whole"), folder)
    for code, said in run_together(command("shared"), folder, count=2):
        assert code == 0, said
    whole, shared = ({p.name: p.read_bytes() for p in (folder / data / "easy_vqa" / "codes").iterdir()} for data in ("whole", "shared"))
    assert shared.pop("without_codes_1.jsonl") == b"" and shared == whole
    train = [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={ROOT}/configs/vqgan_f8.py:debug"]
    for code, said in run_together(train, tmp_path, count=2):
        assert code == 0, said
    numbers = json.loads((tmp_path / "runs" / "vqgan_f8_debug" / "reconstructions" / "numbers.json").read_text())
    assert numbers["step"] == 2 and numbers["psnr"] > 0


@pytest.mark.full
def test_another_vqgan_is_refused(folder):
    data = folder / "refused"
    fixtures.write(data)
    run(command("refused"), folder)
    shutil.copytree(folder / "runs" / "quickstart_vqgan_debug", folder / "runs" / "other")
    shutil.rmtree(folder / "runs" / "quickstart_vqgan_debug")
    flags = ["--config.seed=7"]
    run([sys.executable, str(ROOT / "launch" / "train.py"), f"--config={ROOT}/configs/quickstart_vqgan.py:debug", *flags], folder)
    log = folder / "refused.log"
    with started(command("refused"), folder, log) as process:
        assert process.wait(TIMEOUT_S) == 1
    assert "found another VQGAN" in log.read_text()


@pytest.mark.full
def test_codes_of_a_data_folder_in_a_store_are_those_of_a_local_one(folder):
    fixtures.write(folder / "local")
    with ObjectStore() as store:
        store.put_folder(folder / "local", "gs://bucket/data")
        run(command("local"), folder)
        environment = os.environ | store.environment | {"XDG_CACHE_HOME": str(folder / "cache")}
        for expected in ("codes of", "already prepared"):  # the second time it compares the VQGAN that is there
            done = subprocess.run(command("gs://bucket/data"), cwd=folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr
        local = {str(path.relative_to(folder / "local")): path.read_bytes() for path in (folder / "local").rglob("*") if path.is_file()}
        assert {name: store.get(f"gs://bucket/data/{name}") for name in store.names("gs://bucket/data")} == local
