"""Published rows of OFA-tiny at its real size, from the real command: a checkpoint of drawn weights on a few records of the rows' sets."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.eval.pinned import pin
from ofa_jax.models import ofa
from ofa_jax.prepare.builders import base
from ofa_jax.vocab.tokenizer import load_tokenizer
from tests.e2e.processes import ROOT, TIMEOUT_S, environment
from tests.eval.conftest import scene

pytestmark = pytest.mark.full
COUNT, FIRST = 3, 262_148_000


def build(name: str, split: str, data: Path) -> None:
    """A few scenes as the data set `name`, with the question ids of VQAv2."""

    class Scenes(base.RecordBuilder, skip_registration=True):
        DESCRIBED = base.Described(record="image", source="tests", licence="none")

        def splits(self):
            return (split,)

        def records(self, of):
            for i in range(COUNT):
                record = scene(i, "validation")
                questions = [dataclasses.replace(q, question_id=FIRST + 2 * i + k) for k, q in enumerate(record.questions)]
                yield dataclasses.replace(record, dataset=name, questions=tuple(questions))

        def facts(self):
            return {"num_codes": 8}

    made = type(name, (Scenes,), {"name": name, "__module__": __name__}, skip_registration=True)
    base.build(made, data_dir=data, options=base.Options(), max_records=24, progress=lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    build("refcoco", "test_a", folder / "data")
    build("vqa_v2", "test", folder / "data")
    (folder / "data" / "vqa_v2" / "answers.txt").write_text("1\n2\n3\ncat\ndog\ntree\n")
    questions = [{"question_id": FIRST + k} for k in range(2 * COUNT)]
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    config = pin("refcoco/tiny/testA").config
    make = jax.jit(lambda key: ofa.create(config.model, config.vocab, key, precision=config.precision)[1])
    manager, zero = CheckpointManager(folder / "run"), jnp.zeros((), jnp.int32)
    stats = ofa.init_stats(config.model, precision=config.precision)
    state = {"params": make(jax.random.key(0)), "stats": stats, "step": zero, "data_step": zero}
    manager.save(0, state, config=config, identity={"tokenizer": load_tokenizer(config.vocab).digest}, wait=True)
    manager.close()
    return folder


def evaluate(folder: Path, *flags: str) -> tuple[int, str]:
    words = [sys.executable, str(ROOT / "launch" / "eval.py"), *flags]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.returncode, done.stdout + done.stderr


def test_drawn_weights_are_below_the_band_and_the_command_says_so_again(folder: Path) -> None:
    code, said = evaluate(folder, "--reproduce=refcoco/tiny/testA", "--checkpoint=run", "--data=data")
    assert code == 1 and "83.57 .. 84.57: " in said and " below" in said, said
    kept = json.loads((folder / "run" / "reproduced.json").read_text())["refcoco/tiny/testA"]
    assert kept["within"] is False and kept["image_px"] == 512 and kept["value"] < 83.57 and kept["n"] >= COUNT
    assert kept["data"]["digest"] and kept["config"]["precision"] == "bf16"
    words = shlex.split(kept["command"])
    code, again = evaluate(folder, *words[2:])
    assert code == 1 and next(line for line in again.splitlines() if line.startswith("ours")) in said
    code, refused = evaluate(folder, "--reproduce=refcoco/tiny/testB", "--checkpoint=run", "--data=data")
    assert code == 2 and "has no split 'test_b'" in refused and "launch/prepare.py build refcoco_unc --dataset=refcoco" in refused


def test_a_set_without_labels_gets_the_file_that_is_uploaded(folder: Path) -> None:
    flags = ["--reproduce=vqa_v2/tiny/test-std", "--checkpoint=run", "--data=data", "--reference=questions.json"]
    code, said = evaluate(folder, *flags)
    assert code == 0 and "upload the file at https://eval.ai/web/challenges/challenge-page/830/overview" in said, said
    kept = json.loads((folder / "run" / "reproduced.json").read_text())["vqa_v2/tiny/test-std"]
    assert kept["value"] is None and kept["within"] is None and kept["n"] == 2 * COUNT and "(6 answers)" in kept["decode"]
    sent = json.loads((folder / "run" / "submissions" / "vqa_v2-tiny-test-std.submission.json").read_text())
    assert sorted(row["question_id"] for row in sent) == [FIRST + k for k in range(2 * COUNT)]
    assert {row["answer"] for row in sent} <= {"1", "2", "3", "cat", "dog", "tree"}
    line = json.loads((folder / "run" / "reproduced" / "vqa_v2-tiny-test-std.predictions.jsonl").read_text().splitlines()[0])
    assert "reference" not in line and "score" not in line
