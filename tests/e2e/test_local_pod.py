"""A whole pod on this machine: four processes train and save, lose one, go on, are stopped, go on as two, and are evaluated by two. One
record of their data is damaged all the while."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from array_record.python import array_record_module
from processes import ROOT, TIMEOUT_S, command, environment, lines, run, started
from test_hang import job
from test_injected_faults import committed, wait_until

from ofa_jax.data.example_message import Example
from ofa_jax.prepare import fixtures

pytestmark = pytest.mark.full
HANG_S, EVERY = 20, 10
FLAGS = (f"--config.hang_s={HANG_S}", f"--config.checkpoint.every_steps={EVERY}", "--config.checkpoint.keep=100")
OWN = socket.gethostname()


def pod(processes: int, arguments: Sequence[str]) -> list[str]:
    """The command line that runs another one, which begins with the interpreter, as a pod."""
    return [sys.executable, str(ROOT / "launch" / "pods" / "local.py"), f"--processes={processes}", "--wait_s=60", "--", *arguments[1:]]


def damage_a_record(folder: Path) -> str:
    """Takes away the picture of one record of the captions, and returns the record's name."""
    dataset = folder / "scenes"
    manifest = json.loads((dataset / "manifest.json").read_text())
    [facts] = manifest["splits"]["train"]["shards"]
    path = dataset / facts["file"]
    reader = array_record_module.ArrayRecordReader(str(path))
    records = [Example.FromString(content) for content in reader.read(0, reader.num_records())]
    reader.close()
    records[20].features.feature["image"].bytes_list.value[0] = b"no picture"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record.SerializeToString(deterministic=True))
    writer.close()
    facts["bytes"] = path.stat().st_size
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    return records[20].features.feature["record_id"].bytes_list.value[0].decode()


def pid_of(workdir: Path, host: int) -> int:
    """The process of the newest life of a host."""
    return [line["pid"] for line in lines(workdir / f"lives_{host}.jsonl") if line["event"] == "start"][-1]


def rejects(workdir: Path) -> list[dict]:
    return [line for path in sorted(workdir.glob("rejects_*.jsonl")) for line in lines(path)]


def test_a_pod_loses_a_process_goes_on_is_stopped_shrinks_and_is_evaluated(tmp_path: Path):
    fixtures.write(tmp_path / "data" / "fixtures")
    damaged = damage_a_record(tmp_path / "data" / "fixtures")
    workdir, log = tmp_path / "runs" / "pod", tmp_path / "log.txt"
    endless = command("pod", *FLAGS, steps=1_000_000)

    # One of four is killed in the midst of its steps: the others say which, and end within the deadline.
    with started(pod(4, endless), tmp_path, log) as process:
        wait_until(lambda: committed(workdir) != [] and len(lines(workdir / "metrics.jsonl")) > EVERY + 2, process, log)
        os.kill(pid_of(workdir, 2), signal.SIGKILL)
        began = time.monotonic()
        assert process.wait(TIMEOUT_S) == 128 + signal.SIGKILL, log.read_text()
        assert time.monotonic() - began < HANG_S
    said = log.read_text()
    assert "[0] cluster: plain environment (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID): process 0 of 4" in said
    assert f"[0] hosts: 0 {OWN}, 1 {OWN}, 2 {OWN}, 3 {OWN}" in said
    for host in (0, 1, 3):
        assert f"[{host}] ended: hang (77) at step " in said
        end = lines(workdir / f"lives_{host}.jsonl")[-1]
        assert (end["event"], end["reason"]) == ("end", "hang") and end["message"].startswith(f"host 2 ({OWN}) of 4 is lost: ")
    assert "local pod: process 2 of 4 was the first to fail: killed by SIGKILL (code 137)" in said.splitlines()[-1]
    assert {line["record"] for line in rejects(workdir)} == {damaged}, "the damaged record is listed, and training went on"

    # The same command goes on from the last checkpoint. Ctrl-C goes to all, and all save the same step.
    kept = max(committed(workdir))
    with started(pod(4, endless), tmp_path, log) as process:
        wait_until(lambda: f"step {kept + 3}/" in log.read_text(), process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 75, log.read_text()
    said = log.read_text()
    assert f"[0] going on from step {kept} " in said and "ended without a word" not in said
    saved = max(committed(workdir))
    assert saved >= kept + 3
    ends = [lines(workdir / f"lives_{host}.jsonl")[-1] for host in range(4)]
    assert [(end["reason"], end["step"]) for end in ends] == [("preempted", saved)] * 4

    # Two processes go on from what four saved, to the end.
    steps = saved + 3
    said = run(pod(2, command("pod", *FLAGS, steps=steps)), tmp_path)
    assert f"[0] going on from step {saved} " in said and f"step {steps}/{steps}" in said
    assert "local pod: all 2 processes are done" in said.splitlines()[-1]
    assert [line["step"] for line in lines(workdir / "metrics.jsonl") if "loss/total" in line] == list(range(1, steps + 1))

    # Two processes evaluate together, and find what one does.
    evaluate = [sys.executable, str(ROOT / "launch" / "eval.py"), f"--config={ROOT}/tests/e2e/small_run.py:steps={steps}", "--no-report"]
    found = {}
    for count in (2, 1):
        said = run(pod(count, [*evaluate, "--config.name=pod"]) if count > 1 else [*evaluate, "--config.name=pod"], tmp_path)
        found[count] = json.loads((workdir / "eval.json").read_text()), lines(workdir / "predictions.jsonl")
        assert "captioning/scenes/validation" in said
        assert not [line for line in said.splitlines() if line.startswith("[1]") and "scenes" in line], "the first host alone says it"
    assert found[2] == found[1]


def test_a_host_that_does_not_come_is_named_by_the_three_that_do(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = command("missing", "--config.hang_s=10", steps=2)
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_COORDINATOR_BIND_ADDRESS": address, "JAX_NUM_PROCESSES": "4"}
    with contextlib.ExitStack() as stack:
        logs = [tmp_path / f"log_{host}.txt" for host in (0, 1, 2)]
        processes = [
            stack.enter_context(started(arguments, tmp_path, log, JAX_PROCESS_ID=str(host), **names)) for host, log in enumerate(logs)
        ]
        began = time.monotonic()
        assert [process.wait(60) for process in processes] == [77, 77, 77]
        assert time.monotonic() - began < 40, "imports on a busy machine, and the deadline"
    for log in logs:
        sentence, end = log.read_text().strip().splitlines()[-2:]
        assert sentence.startswith("HangError: host 3 of 4 did not come within 10 s: start the same command there")
        assert sentence.endswith("--config.hang_s=SECONDS waits longer") and end.startswith("ended: hang (77) at step 0")
        assert "Traceback" not in log.read_text()


def test_a_coordinators_port_in_use_is_one_sentence(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        names = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_COORDINATOR_BIND_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": "0",
        }
        began = time.monotonic()
        done = subprocess.run(
            command("taken", steps=2), cwd=tmp_path, env=environment(**names), capture_output=True, text=True, timeout=TIMEOUT_S
        )
    assert done.returncode == 2 and time.monotonic() - began < 30
    sentence, end = done.stderr.strip().splitlines()[-2:]
    assert sentence.startswith(f"UserError: port {address.split(':')[1]} of the coordinator: found it in use on this machine")
    assert end.startswith("ended: config (2) at step 0") and "Traceback" not in done.stderr


def test_the_last_error_of_a_host_reaches_the_terminal_of_the_first(tmp_path: Path):
    """The second host's list of batches cannot be written: it alone ends, and the first says why it goes no further."""
    workdir = tmp_path / "runs" / "fails"
    workdir.mkdir(parents=True)
    (workdir / "batches_1.jsonl").mkdir()
    with contextlib.ExitStack() as stack:
        hosts = job(tmp_path, command("fails", "--config.hang_s=20", steps=50), stack, (0, 1))
        codes = [process.wait(TIMEOUT_S) for process, _ in hosts]
        first, second = (log.read_text() for _, log in hosts)
    assert codes[0] == 77 and codes[1] not in (0, 77), first + second
    assert f"host 1 ({OWN}) of 2 ended: " in first and "batches_1.jsonl" in first
    assert lines(workdir / "lives_0.jsonl")[-1]["message"].startswith(f"host 1 ({OWN}) of 2 ended: ")
