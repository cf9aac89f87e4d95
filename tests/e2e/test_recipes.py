"""Every fine-tuning recipe on its fixture, by the commands that people run: trained, evaluated on the way and behind it, resumed, asked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT, run

RECIPES = {
    "coco_caption": "what does the image describe?",
    "coco_caption_reward": "what does the image describe?",
    "refcoco": 'which region does the text " the dog " describe?',
    "vqa_v2": "what color is the shape?",
    "snli_ve": 'does the image describe " a dog "?',
    "gigaword": 'what is the summary of article " a dog is there "?',
    "glue:data=cola": 'is the text " a dog " grammatically correct?',
    "glue:data=mnli": 'can text1 " a dog " imply text2 " an animal "?',
    "glue:data=mrpc": 'does text1 " a dog " and text2 " an animal " have the same semantics?',
    "glue:data=qnli": 'does " a dog " contain the answer to question " what "?',
    "glue:data=qqp": 'is question " what " and question " who " equivalent?',
    "glue:data=rte": 'can text1 " a dog " imply text2 " an animal "?',
    "glue:data=sst2": 'is the sentiment of text " good " positive or negative?',
    "imagenet": "what does the image describe?",
    "image_generation": "what is the complete image? caption: a dog",
    "image_generation_reward": "what is the complete image? caption: a dog",
    "laptop_easy_vqa": "what color is the shape?",
    "laptop_grounding": 'which region does the text " the dog " describe?',
    "laptop_caption": "what does the image describe?",
    "laptop_caption_reward": "what does the image describe?",
    "laptop_fashion_mnist": "what does the image describe?",
    "laptop_fashion_mnist:light=lora": "what does the image describe?",
    "laptop_painting": "what is the complete image? caption: a dog",
}
ROWS = {  # one of the published rows of a recipe, where it has any
    "coco_caption": "coco_caption/large/cider",
    "coco_caption_reward": "coco_caption_reward/large/bleu4",
    "refcoco": "refcoco/large/testB",
    "vqa_v2": "vqa_v2/large/test-std",
    "snli_ve": "snli_ve/large/test",
    "gigaword": "gigaword/large/rouge_l",
    "glue:data=mnli": "glue/large/mnli",
    "glue:data=mrpc": "glue/large/mrpc",
    "glue:data=qnli": "glue/large/qnli",
    "glue:data=qqp": "glue/large/qqp",
    "glue:data=rte": "glue/large/rte",
    "glue:data=sst2": "glue/large/sst2",
    "imagenet": "imagenet/large/top1",
}
QUICK = ("refcoco", "vqa_v2", "glue:data=cola")  # a picture and a box, a picture and a prompt, texts and a closed set


@pytest.mark.parametrize("recipe", QUICK)
def test_a_recipe_is_trained_judged_and_resumed(recipe: str, tmp_path: Path) -> None:
    trained(recipe, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_evaluated_and_asked_too(recipe: str, tmp_path: Path) -> None:
    config, flags, workdir = trained(recipe, tmp_path)
    run([sys.executable, str(ROOT / "launch" / "eval.py"), config, *flags], tmp_path)
    results = json.loads((workdir / "eval.json").read_text())
    assert results and all(found["n"] for metrics in results.values() for found in metrics.values()), results
    if recipe in ROWS:
        row = f"{ROWS[recipe]}:debug"
        said = run([sys.executable, str(ROOT / "launch" / "eval.py"), f"--reproduce={row}", f"--checkpoint={workdir}"], tmp_path)
        found = json.loads((workdir / "reproduced.json").read_text())[row]
        assert found["n"] and found["checkpoint"]["step"] == 4 and "the numbers mean nothing" in said
    asked = [f"--checkpoint={workdir}", f"--text={RECIPES[recipe]}"]
    if RECIPES[recipe].startswith("what is the complete image?"):
        asked += ["--output=codes", f"--draw={tmp_path / 'painted.png'}"]
    run([sys.executable, str(ROOT / "launch" / "predict.py"), *asked], tmp_path)
    assert (tmp_path / "painted.png").exists() == ("--output=codes" in asked)


def trained(recipe: str, tmp_path: Path) -> tuple[str, list[str], Path]:
    """Trains a recipe to step 4, takes its last checkpoint away and goes on. Returns the config, the flags and the run's folder."""
    name, _, arg = recipe.partition(":")
    config = f"--config={ROOT}/configs/finetune/{name}.py:debug{',' + arg if arg else ''},steps=4"
    workdir = tmp_path / "run"
    flags = [
        f"--config.workdir={workdir}",
        "--config.checkpoint.every_steps=2",
        "--config.checkpoint.keep=2",
        "--config.eval.every_steps=2",
    ]
    if name == "image_generation_reward":
        judge = tmp_path / "clip.py"
        judge.write_text("def reward(instruction, picture, pictures, captions):\n    return [float(one.mean()) for one in pictures]\n")
        flags.append(f"--config.reward.0.reward={judge}:reward")
    train = [sys.executable, str(ROOT / "launch" / "train.py"), config, *flags]
    said = run(train, tmp_path)
    assert "step 4/4" in said and said.count("evaluated:") == 2, said
    shutil.rmtree(workdir / "checkpoints" / "4")
    said = run(train, tmp_path)
    assert "going on from step 2" in said and "step 4/4" in said, said
    return config, flags, workdir
