"""Training, evaluation and the page of a batch by their command lines, with all data in a bucket that fails at times."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, command, learned, lines, run
from small_run import get_config

from ofa_jax.data.batch import digest
from ofa_jax.prepare import fixtures
from ofa_jax.tasks.training_data import training_pipeline
from tests.data.object_store import Fault, ObjectStore

STEPS = 3
BUCKET = ["--config.data.dir=gs://bucket/fixtures", "--config.vocab.path=gs://bucket/fixtures/tokenizer.model"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Iterator[ObjectStore]:
    """The fixtures in `data/fixtures` of the test's folder and in a bucket."""
    with ObjectStore() as store:
        store.put_folder(fixtures.write(tmp_path / "data" / "fixtures"), "gs://bucket/fixtures")
        for name, value in (store.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        store.faults = [Fault(status=503, every=10), Fault(reset=True, every=11, media=True)]
        yield store


@pytest.mark.full
def test_a_run_on_a_bucket_sees_the_batches_of_a_folder(store: ObjectStore, tmp_path: Path):
    run(command("remote", *BUCKET, "--config.data.num_workers=1", steps=STEPS), tmp_path)
    assert min(fault.struck for fault in store.faults) > 0
    config = get_config(f"steps={STEPS}")
    folder = tmp_path / "data" / "fixtures"
    vocab = dataclasses.replace(config.vocab, path=str(folder / "tokenizer.model"))
    pipeline, _ = training_pipeline(dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(folder)), vocab=vocab))
    seen = [line["digest"] for line in lines(tmp_path / "runs" / "remote" / "batches_0.jsonl")]
    assert seen == [digest(pipeline.batch(step)) for step in range(STEPS)]


@pytest.mark.full
def test_a_bucket_serves_training_evaluation_and_pages(store: ObjectStore, tmp_path: Path):
    run(command("local", steps=STEPS), tmp_path)
    run(command("remote", *BUCKET, steps=STEPS), tmp_path)
    assert learned(tmp_path / "runs" / "remote") == learned(tmp_path / "runs" / "local")
    config = [f"--config={ROOT}/tests/e2e/small_run.py:steps={STEPS}"]
    said = {}
    for name, flags in (("local", []), ("remote", BUCKET)):
        store.requests.clear()
        shown = run([sys.executable, str(ROOT / "launch/show.py"), *config, f"--config.name={name}", *flags, "--step=2"], tmp_path)
        assert "equals that of" in shown
        run([sys.executable, str(ROOT / "launch/eval.py"), *config, f"--config.name={name}", *flags], tmp_path)
        said[name] = (tmp_path / "runs" / name / "predictions.jsonl").read_text()
        assert bool(store.requests) == (name == "remote")
    assert said["local"] == said["remote"]
