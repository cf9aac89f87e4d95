"""Every public data set of the paper's mixture, from its own layout to training: one command a set, then the config itself, made small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "prepare" / "layouts"), str(ROOT / "tests" / "prepare" / "layouts" / "fixtures")]

import annotated_fixtures as annotated  # noqa: E402
import streamed  # noqa: E402

from configs.mixtures.ofa_pretrain import blocks  # noqa: E402
from ofa_jax.data.records import load_json, open_records  # noqa: E402
from ofa_jax.prepare.sets import SETS  # noqa: E402

STEPS = 20
TASKS = ("captioning", "matching", "grounding", "grounded_captioning", "vqa", "detection", "image_infilling", "text_infilling")


def open_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    annotated.write_open_images(folder)


def pile(folder: Path) -> None:
    folder.mkdir(parents=True)
    streamed.write_pile(folder)


def refcoco(subset: str, split_by: str) -> Callable[[Path], None]:
    return lambda folder: annotated.write_refcoco(folder, subset=subset, split_by=split_by)


# Data set -> what writes its public layout into an empty folder, and the flags beside --source.
WRITE: dict[str, Callable[[Path], object]] = {
    "cc12m": streamed.write_webdataset,
    "cc3m": streamed.write_webdataset,
    "sbu": streamed.write_webdataset,
    "coco_captions": annotated.write_coco,
    "vg_captions": annotated.write_visual_genome,
    "vqa_v2": annotated.write_vqa_v2,
    "vg_qa": annotated.write_visual_genome,
    "gqa": annotated.write_gqa,
    "refcoco": refcoco("refcoco", "unc"),
    "refcoco_plus": refcoco("refcoco+", "unc"),
    "refcocog": refcoco("refcocog", "umd"),
    "vg_regions": annotated.write_visual_genome,
    "openimages": open_images,
    "objects365": annotated.write_objects365,
    "vg_objects": annotated.write_visual_genome,
    "coco_objects": annotated.write_coco,
    "openimages_all": lambda folder: streamed.write_image_folders(folder, tars=False),
    "yfcc15m": streamed.write_webdataset,
    "imagenet21k": lambda folder: streamed.write_image_folders(folder, tars=True),
    "pile": pile,
}


def launch(script: str, *flags: str, cwd: Path) -> str:
    """Runs a launch script as a person would, and returns what it printed."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch" / script), *flags], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_mixture_and_the_sets_have_the_same_names():
    named = {line.dataset: line.row for block in blocks(pairs_px=384, num_patches=196) for line in block.sources}
    assert named == {name: one.row for name, one in SETS.items()} and set(WRITE) == set(SETS)


@pytest.mark.full
def test_the_whole_mixture_is_prepared_and_trained_on(tmp_path: Path):
    data = tmp_path / "data" / "pretrain"
    for name, write in WRITE.items():
        source = tmp_path / "public" / name
        if name not in ("openimages", "pile"):
            source.mkdir(parents=True)
        write(source)
        said = launch("prepare.py", "build", name, f"--source={source}", f"--data_dir={data}", cwd=tmp_path)
        assert re.search(rf"{name}: \d+ records in 1 shards", said.splitlines()[-1]), said
        assert len(open_records(data, name, "train")) == load_json(data / name / "manifest.json")["splits"]["train"]["records"] > 0
    assert launch("prepare.py", "verify", f"--data_dir={data}", cwd=tmp_path).startswith("every shard")

    launch("train.py", f"--config={ROOT / 'configs' / 'vqgan_f8.py'}:debug", cwd=tmp_path)
    vqgan = tmp_path / "runs" / "vqgan_f8_debug"
    for name in ("openimages_all", "yfcc15m", "imagenet21k"):
        launch("prepare.py", "codes", f"--vqgan={vqgan}", f"--dataset={name}", f"--data_dir={data}", "--rows=2", cwd=tmp_path)
        assert load_json(data / name / "codes" / "manifest.json")["grid"] == 16

    config = f"{ROOT / 'configs' / 'ofa_large.py'}:debug,own_data,steps={STEPS}"
    even = [
        f"--config.data.blocks.{block.name}.sources.{number}.weight=1"
        for block in blocks(pairs_px=384, num_patches=196)
        for number in range(len(block.sources))
    ]  # twenty small steps would never draw what is a hundredth of the mixture
    said = launch("train.py", f"--config={config}", *even, cwd=tmp_path)
    assert f"step {STEPS}/{STEPS}" in said
    metrics = [json.loads(line) for line in next(tmp_path.glob("runs/ofa_large_debug/metrics*.jsonl")).read_text().splitlines()]
    last = [record for record in metrics if f"data/epochs/{'pile'}/text_infilling" in record][-1]
    for name, one in SETS.items():
        assert last[f"data/rows/{name}/{one.row}"] > 0, name
    seen = {key for record in metrics for key in record}
    assert {f"loss/nll/{task}" for task in TASKS} <= seen
