from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.config.schema import VocabConfig
from ofa_jax.data.records import SCHEMA_VERSION, open_records
from ofa_jax.prepare import codebook, fixtures, manifest, quickstart
from ofa_jax.prepare.builders import easy_vqa, scenes
from ofa_jax.vocab.sentencepiece import SentencePieceTokenizer

ROOT = Path(__file__).parents[2]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def _all(prepared: Path, split: str) -> list[Any]:
    source = open_records(prepared, "scenes", split)
    return source.read(range(len(source)))


def test_fixtures_hold_every_row_kind(prepared: Path) -> None:
    scene = open_records(prepared, "scenes", "train")[0]
    assert scene.captions and scene.regions and scene.questions and scene.objects and scene.codes is not None
    every = [q.question_id for s in scenes.SPLITS for r in _all(prepared, s) for q in r.questions]
    assert min(every) == 0 and len(set(every)) == len(every)
    assert scene.questions[0].question_id // 100 == int(scene.record_id.removeprefix("train/"))
    assert len(scene.codes) == 64 and scene.codes.max() < fixtures.NUM_CODES
    assert open_records(prepared, "easy_vqa", "test")[0].questions and len(open_records(prepared, "easy_vqa", "train")) > 30
    assert len(open_records(prepared, "prose", "train")) == 64
    vocab = VocabConfig(tokenizer="sentencepiece", path=str(prepared / "tokenizer.model"), num_text=fixtures.NUM_TEXT)
    tokenizer = SentencePieceTokenizer(vocab)
    assert tokenizer.decode(tokenizer.encode(" a cat left of a dog")) == " a cat left of a dog"
    assert codebook.load(prepared / "codebook.npz").shape == (fixtures.NUM_CODES, 4, 4, 3)


def test_codes_are_those_of_the_codebook(prepared: Path) -> None:
    import cv2

    centers = codebook.load(prepared / "codebook.npz")
    for record in open_records(prepared, "scenes", "validation").read(range(4)):
        image = cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert (codebook.encode(image[None], centers)[0] == record.codes).all()


def test_manifests_say_what_there_is(prepared: Path) -> None:
    for name, record in (("scenes", "image"), ("easy_vqa", "image"), ("prose", "text")):
        found = json.loads((prepared / name / "manifest.json").read_text())
        assert found["record"] == record and found["licence"] and found["source"] and found["seed"] == 1
        assert found["token_lengths"]["fields"] and found["options_hash"] == manifest.options_hash(found["options"])
        for split, held in found["splits"].items():
            assert held["records"] == len(open_records(prepared, name, split))
            assert all(shard["records"] <= 10_000 for shard in held["shards"])
        assert manifest.verify(prepared / name) == []
    negatives = json.loads((prepared / "scenes" / "negatives.json").read_text())
    assert len(negatives["captions"]) == len(set(negatives["captions"])) > 30 and len(negatives["objects"]) == 32
    assert {"other", "how many", "yes/no", "what"} <= negatives["answers"].keys()
    assert set(json.loads((prepared / "easy_vqa" / "negatives.json").read_text())["answers"]) == {"yes/no", "shape", "color", "other"}


def test_finished_parts_are_not_made_again(prepared: Path) -> None:
    before = snapshot(prepared)
    said: list[str] = []
    took = quickstart.prepare(prepared, options=fixtures.OPTIONS, progress=said.append)
    assert set(took.values()) == {0.0} and snapshot(prepared) == before
    assert said == [f"{part}: already prepared" for part in ("easy_vqa", "scenes", "prose", "tokenizer")]


def test_changed_options_are_refused_and_rebuilt_only_when_asked(prepared: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    changed = dataclasses.replace(fixtures.OPTIONS, prose=dataclasses.replace(fixtures.OPTIONS.prose, max_words=30))
    before = snapshot(data)
    with pytest.raises(DataError, match="max_words: 36 there, 30 now.*--rebuild"):
        quickstart.prepare(data, options=changed, progress=lambda _: None)
    with pytest.raises(DataError, match=r"tokenizer\.model was trained with other options.*--rebuild"):
        quickstart.prepare(data, options=dataclasses.replace(fixtures.OPTIONS, num_text=410), progress=lambda _: None)
    old = data / "easy_vqa" / "manifest.json"
    held = old.read_text()
    old.write_text(held.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 1'))
    with pytest.raises(DataError, match=f"easy_vqa was .*schema_version of its records: 1 there, {SCHEMA_VERSION} now.*--rebuild"):
        quickstart.prepare(data, options=fixtures.OPTIONS, progress=lambda _: None)
    old.write_text(held)
    assert snapshot(data) == before | {"easy_vqa/manifest.json": snapshot(data)["easy_vqa/manifest.json"]}
    took = quickstart.prepare(data, options=changed, rebuild=True, progress=lambda _: None)
    assert all(took.values())
    assert json.loads((data / "prose" / "manifest.json").read_text())["options"]["max_words"] == 30


def test_an_interrupted_run_leaves_no_half_made_part(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"

    def fail(self: scenes.SceneMaker, split: str, index: int, draw: object = None) -> scenes.Scene:
        if split == "validation":
            raise KeyboardInterrupt
        return real(self, split, index, draw)  # type: ignore[arg-type]

    real = scenes.SceneMaker.make
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(scenes.SceneMaker, "make", fail)
        fixtures.write(data)
    assert not (data / "scenes").exists()
    with pytest.raises(DataError, match="no dataset 'scenes'"):
        open_records(data, "scenes", "train")
    fixtures.write(data)
    assert not list(data.rglob("*partial*"))
    for name in ("scenes", "prose", "easy_vqa"):  # the same options give the same records
        ours, theirs = open_records(data, name, "train"), open_records(prepared, name, "train")
        assert ours.read_bytes(range(len(ours))) == theirs.read_bytes(range(len(theirs)))


def test_scenes_without_codes_are_the_same_scenes_and_wait_for_a_vqgan(prepared: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(fixtures.OPTIONS, scenes=dataclasses.replace(fixtures.OPTIONS.scenes, num_codes=0))
    quickstart.prepare(tmp_path, options=options, progress=lambda _: None)
    assert not (tmp_path / "codebook.npz").exists() and "num_codes" not in json.loads((tmp_path / "scenes" / "manifest.json").read_text())
    bare, coded = open_records(tmp_path, "scenes", "validation")[3], open_records(prepared, "scenes", "validation")[3]
    assert bare.codes is None and dataclasses.replace(coded, codes=None) == bare
    with pytest.raises(DataError, match=r"found no finished image codes .*launch/prepare.py codes"):
        open_records(tmp_path, "scenes", "train", codes="central")
    assert quickstart.prepare(tmp_path, options=options, progress=lambda _: None)["scenes"] == 0


def test_a_codebook_of_another_run_makes_the_scenes_again(prepared: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    codebook.save(data / "codebook.npz", np.zeros((32, 4, 4, 3), np.uint8))
    took = quickstart.prepare(data, options=fixtures.OPTIONS, progress=lambda _: None)
    assert took["scenes"] > 0 and took["prose"] == 0
    assert (codebook.load(data / "codebook.npz") == codebook.load(prepared / "codebook.npz")).all()


def test_damage_is_found_by_its_checksum(prepared: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    path = next((data / "prose").glob("*train*"))
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    next((data / "prose").glob("*validation*")).unlink()
    assert [("sha256" in line, "missing" in line) for line in sorted(manifest.verify(data / "prose"))] == [(True, False), (False, True)]


def test_the_official_test_split_of_easy_vqa_is_whole_and_apart(tmp_path: Path) -> None:
    builder = easy_vqa.EasyVqa(options=easy_vqa.EasyVqaOptions(), data_dir=os.fspath(tmp_path))
    by_split = {split: list(builder.records(split)) for split in builder.splits()}
    assert {split: len(held) for split, held in by_split.items()} == {"train": 3750, "validation": 250, "test": 1000}
    assert sum(len(record.questions) for record in by_split["test"]) == 9_673
    assert sum(len(record.questions) for split in ("train", "validation") for record in by_split[split]) == 38_575
    ids = [record.record_id for held in by_split.values() for record in held]
    assert len(set(ids)) == len(ids)
    asked = {q.question_id: q for held in by_split.values() for record in held for q in record.questions}
    assert sorted(asked) == list(range(38_575 + 9_673))  # every question has an id of its own
    first, answers, _ = easy_vqa.easy_vqa.get_test_questions()
    assert [(asked[38_575 + i].question, asked[38_575 + i].answer) for i in range(len(first))] == list(zip(first, answers, strict=True))


def test_length_histograms_count_by_powers_of_two() -> None:
    assert manifest.length_histogram([1, 2, 3, 4, 5, 16, 17]) == {"<=1": 1, "<=2": 1, "<=4": 2, "<=8": 1, "<=16": 1, "<=32": 1}


def test_the_command_refuses_in_one_sentence(prepared: Path) -> None:
    command = [sys.executable, "launch/prepare.py"]
    done = subprocess.run([*command, "fixtures", f"--data_dir={prepared}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "is ready" in done.stdout
    wrong = subprocess.run([*command, "quickstart", f"--data_dir={prepared}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1 and "--rebuild" in wrong.stderr
