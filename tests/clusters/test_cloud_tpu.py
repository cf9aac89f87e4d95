"""Cloud TPU pods made of folders: copies, starts, failures, preemptions and their exit codes, as a person meets them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ofa_jax.prepare import fixtures
from tests.clusters.pod_of_folders import answers, calls, preempt, remove_machines, write_gcloud
from tests.e2e.processes import environment
from tests.monitor.metadata_server import metadata_server

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120
WHERE = ("--project=grant", "--zone=us-east5-a", "--every_s=1", f"--python={sys.executable}")
RUN = "tests/clusters/a_run.py"


class Person:
    """Who calls launch/pods/cloud_tpu.py, in a folder that is no checkout."""

    def __init__(self, folder: Path, env: dict[str, str], name: str):
        self.folder, self.env, self.name = folder, env, name

    def argv(self, verb: str, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "launch" / "pods" / "cloud_tpu.py"), verb, f"--name={self.name}", *WHERE, *words]

    def call(self, verb: str, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            self.argv(verb, *words),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3 * TIMEOUT_S,
        )
        return done.returncode, done.stdout

    def must(self, verb: str, *words: str) -> str:
        code, said = self.call(verb, *words)
        assert code == 0, said
        return said


@contextlib.contextmanager
def pod(folder: Path, *, slices: int, workers: int) -> Iterator[Person]:
    """A person with a grant; what runs on the workers ends with the test, and the archive of the checkout goes."""
    name = f"pod-of-{slices}x{workers}"
    env = write_gcloud(folder / "cloud", slices=slices, workers=workers)
    with metadata_server(answers(slices=slices, workers=workers)) as server:
        try:
            yield Person(folder, {**env, "METADATA": server}, name)
        finally:
            remove_machines(folder / "cloud")
            (ROOT / "runs" / "pods" / f"{name}.tar.gz").unlink(missing_ok=True)


def test_the_error_of_a_worker_of_the_second_slice_reaches_the_terminal_and_its_code_is_passed_on(tmp_path: Path):
    with pod(tmp_path, slices=2, workers=1) as person:
        said = person.must("create", "--topology=v5p:2x2x1", "--slices=2", "--spot")
        assert "WAITING_FOR_RESOURCES" in said and said.endswith("ACTIVE\n"), said
        person.must("copy")
        assert (tmp_path / "cloud" / "homes" / "1-0" / "ofa_jax" / RUN).is_file()
        # The other one would go on for minutes: it is stopped, and saves.
        flags = [f"--checkpoint={tmp_path}/steps", "--steps=5000", "--fail=1:70"]
        code, said = person.call("run", "--follow", "--grace_s=2", "--", RUN, *flags)
        assert code == 70, said
        assert "worker 1 ended with exit code 70 (bug" in said, said
        assert "worker 1: RuntimeError: the disk of place 1 is gone\n" in said, said
        assert "worker 0: process 0 of 2 begins at step 0\n" in said, said
        assert "worker 0 ended with exit code 75" in said and "the run ended with exit code 70" in said, said
        assert said.endswith("on worker 1\n"), said

        # Mended, the same command goes on where each worker was; a second one beside it is refused.
        person.must("run", "--", RUN, *flags[:2])
        code, said = person.call("run", "--", RUN, *flags[:2])
        assert code != 0 and "found ['tests/clusters/a_run.py'" in said and "running, expected nothing" in said, said
        said = person.must("logs", "--node=1", "--worker=0", "--lines=5000")
        assert "worker 1: process 1 of 2 begins at step 2\n" in said, said
        assert person.must("stop").count("ended on SIGTERM") == 2
        code, said = person.call("watch")
        assert code == 75 and "the same command goes on" in said, said
        person.must("delete")
        assert not (tmp_path / "cloud" / "homes").exists()


@pytest.mark.full
def test_a_preempted_pod_is_asked_for_again_and_the_same_command_goes_on(tmp_path: Path):
    with pod(tmp_path, slices=1, workers=2) as person:
        command = ["--", RUN, f"--checkpoint={tmp_path}/steps", "--steps=100000", f"--until={tmp_path}/enough"]
        flags = ["--topology=v5e:2x4", "--spot", "--follow"]
        with subprocess.Popen(
            person.argv("resume", *flags, *command),
            cwd=tmp_path,
            env=person.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as following:
            assert following.stdout is not None
            for line in following.stdout:  # it makes the pod, copies and starts; the limit of the test's run ends one that says nothing
                if line.startswith("worker 0: step "):
                    break
            preempt(tmp_path / "cloud")
            said, _ = following.communicate(timeout=TIMEOUT_S)
        assert following.returncode == 75 and "its machines are gone; resume asks for others" in said, said
        code, said = person.call("run", *command)
        assert code == 1 and "the state of pod-of-1x2 is SUSPEND" in said, said

        before = int((tmp_path / "steps.0").read_text())
        assert before > 0
        (tmp_path / "enough").touch()
        said = person.must("resume", *flags, *command)
        assert f"worker 0: process 0 of 2 begins at step {before}\n" in said and said.endswith("all 2 workers are done\n"), said
        verbs = [call[0] for call in calls(tmp_path / "cloud")]
        last = verbs[len(verbs) - 1 - verbs[::-1].index("create") - 1 :]
        assert [verb for verb in last if verb != "describe"][:5] == ["delete", "create", "scp", "ssh", "ssh"], verbs


@pytest.mark.full
def test_a_training_run_goes_on_from_its_checkpoint_on_new_machines(tmp_path: Path):
    data = fixtures.write(tmp_path / "storage" / "data")  # a machine's own would be other bytes, and another run
    with pod(tmp_path, slices=1, workers=1) as person:
        person.env |= {name: environment()[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS")}
        config = f"--config={ROOT}/tests/e2e/small_run.py:steps=120"
        more = ["--config.checkpoint.every_steps=20", f"--config.workdir={tmp_path}/storage/{{name}}"]
        more += [f"--config.data.dir={data}", f"--config.vocab.path={data}/tokenizer.model"]
        command = ["--", "launch/train.py", config, "--config.name=moved", *more]
        flags = ["--topology=v5e:2x2", "--spot"]
        person.must("resume", *flags, *command)
        deadline = time.monotonic() + 2 * TIMEOUT_S
        run = tmp_path / "storage" / "moved"
        while not list(run.glob("checkpoints/*/commit_success.txt")):
            ended = any('"event": "end"' in path.read_text() for path in run.glob("lives_0.jsonl"))
            assert not ended and time.monotonic() < deadline, person.call("logs")[1]
            time.sleep(0.2)
        preempt(tmp_path / "cloud")
        said = person.must("resume", "--follow", *flags, *command)
        assert "worker 0: life 1 of this run, begun" in said and "ended without a word" in said, said
        assert "worker 0: going on from step" in said and said.endswith("all 1 workers are done\n"), said
        lives = (run / "lives_0.jsonl").read_text().splitlines()
        assert '"reason": "done"' in lives[-1] and '"step": 120' in lives[-1], lives


@pytest.mark.full
def test_a_life_that_was_stopped_is_started_again_as_often_as_was_asked(tmp_path: Path):
    with pod(tmp_path, slices=1, workers=1) as person:
        # Without a grant of time: the run ends itself with the code of a hang, again and again.
        command = ["--", RUN, f"--checkpoint={tmp_path}/steps", "--fail=0:77"]
        code, said = person.call("resume", "--topology=v5e:2x2", "--follow", "--lives=1", *command)
        assert code == 0 and "starting it again: 1 of 1" in said, said  # it fails at step 2, and goes on from there
        assert "worker 0 ended with exit code 77 (hang" in said and "process 0 of 1 begins at step 2" in said, said


@pytest.mark.full
def test_watching_a_pod_where_nothing_was_started_is_told_in_a_sentence(tmp_path: Path):
    with pod(tmp_path, slices=1, workers=1) as person:
        code, said = person.call("watch")
        assert code == 75 and "ABSENT" in said, said
        person.must("create", "--topology=v5e:2x2")
        person.must("copy")
        code, said = person.call("watch")
        assert code == 2 and "found no command on its 1 workers, expected one; run starts it" in said, said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["create", "--name=a", "--project=p", "--zone=z", "--topology=h100:8"], "expected TPUs, as in v5p:4x4x4; launch/pods/slurm.py"),
        (["create", "--name=a", "--project=p", "--zone=z", "--topology=v5p:3x3x3"], "which TPU v5p does not come in; nearest: "),
        (["create", "--name=a", "--project=p", "--zone=z"], "--topology: found none, expected one, as in --topology=v5p:4x4x4"),
        (["create", "--name=Pod_1", "--project=p", "--zone=z"], "--name: found 'Pod_1', expected at most 40 lower-case letters"),
        (["create", "--name=a", "--zone=z", "--topology=v5e:4x4"], "--project: found none, expected one"),
        (["create", "--name=a", "--project=p", "--zone=z", "--topology=v5e:4x4", "--slices=0"], "slices: found 0, expected 1 or more"),
        (["create", "--name=a", "--project=p", "--zone=z", "--topology=v5e:4x4", "--spot", "--reserved"], "--spot with --reserved"),
        (["run", "--name=a", "--project=p", "--zone=z"], "found no command, expected one of this checkout after two dashes"),
        (["run", "--name=a", "--project=p", "--zone=z", "--", "launch/trian.py"], "found the command launch/trian.py, expected a program"),
        (["delete", "--name=a", "--project=p", "--zone=z", "--", "launch/train.py"], "found the command launch/train.py after delete"),
        (["start", "--name=a"], "invalid choice: 'start'"),
        (["run", "--name=a", "--hosts=3"], "unrecognized arguments: --hosts=3; expected VERB --name=N"),
        (["watch", "--name=a", "--project=p", "--zone=z", "--every_s=0"], "--every_s: found 0, expected 0.1 or more"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    from launch.pods import cloud_tpu

    assert cloud_tpu.main(["cloud_tpu.py", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: ") and said.count("\n") == 1 and sentence in said, said


def test_a_missing_gcloud_is_told_with_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from launch.pods import cloud_tpu

    monkeypatch.setenv("PATH", str(tmp_path))
    assert cloud_tpu.main(["cloud_tpu.py", "delete", "--name=a", "--project=p", "--zone=z"]) == 2
    assert "gcloud: found no such program on the path, expected the Google Cloud CLI: https://" in capsys.readouterr().err
