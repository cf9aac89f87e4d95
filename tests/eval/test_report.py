"""The page and its pictures from a small generated run folder; no model is needed."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.eval import drawing
from ofa_jax.eval.codec import PatchCodec
from ofa_jax.eval.report import write_report


def _line(task, k, prediction, reference, **more):
    return {
        "set": f"{task}/scenes", "record": f"r{k}", "dataset": "scenes", "task": task, "instruction": f" what <is> {task}?",
        "prediction": prediction, "reference": reference, "score": 0.5, "width": 40, "height": 32, "shown": True,
        "picture": f"{task}_{k}.png", **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    objects = [{"label": "cat", "box": [1, 1, 20, 20]}]
    lines = [
        _line("vqa", 0, "two <b>", ["2"]),
        _line("grounding", 0, [5, 5, 20, 30], [4, 4, 22, 30]),
        _line("grounding", 1, None, [4, 4, 22, 30], malformed=1),
        _line("detection", 0, objects, [*objects, {"label": "dog", "box": [30, 2, 10, 99]}], malformed=2),
        _line("image_infilling", 0, [0] * 16, [1] * 16, generated=[2] * 16),
    ]
    text = _line("text_infilling", 0, "the bird sat", ["the cat sat"])
    del text["picture"], text["width"], text["height"]
    lines.append(text)
    (tmp_path / "eval_pictures").mkdir()
    for line in lines:
        if "picture" in line:
            pixels = draw.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "eval_pictures" / line["picture"])
    result = {"value": 0.8, "baseline": 0.5, "baseline_name": "majority", "n": 10, "interval_95": [0.7, 0.9]}
    results = {line["set"]: {"accuracy": result} for line in lines}
    results["grounding/scenes"] = {
        "acc_at_iou_50": {**result, "by_num_objects": {"1": {"value": 1.0, "baseline": 0.1, "n": 4}}, "malformed": 3}
    }
    (tmp_path / "eval.json").write_text(json.dumps(results))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with open(tmp_path / "metrics.jsonl", "w") as out:
        for step in range(0, 400, 10):
            line = {
                "step": step,
                "time_s": step * 0.3,
                "loss/total": 9.0 / (1 + step),
                "loss/nll/vqa": 5.0 / (1 + step),
                "loss/nll/matching": None,
            }
            out.write(json.dumps(line) + "\n")
        out.write('{"step": 400, "los')  # a run that is still writing
    return tmp_path


def test_page_is_self_contained_and_says_what_it_shows(folder, config):
    count, side = np.load(f"{config.data.dir}/codebook.npz")["centers"].shape[:2]
    page = write_report(folder, config, facts={"checkpoint": "step 390"}).read_text()
    for said in (
        "OpenMoji",
        "CC BY-SA 4.0",
        "True codes",
        f"Image codes are those of no VQGAN but a codebook of {count} patches of {side} x {side} px",
        "majority",
        "step 390",
        "up to step 390 of 300,000",
        "1.9 min",
        "no box",
    ):
        assert said in page, said
    assert "what &lt;is&gt; vqa?" in page
    assert "two &lt;b&gt;" in page  # nothing that a model says is markup
    assert "the <mark>bird</mark> sat" in page
    assert "+0.300" in page
    assert not re.search(r"<(link|script|iframe)|src='(?!data:image/png;base64,)|url\(|@import", page)
    assert page.count("<div class=card>") == 6
    for name in ("loss_curves.png", "report_pictures/grounding_scenes.png", "report_pictures/text_infilling_scenes.png"):
        assert Image.open(folder / name).size[0] > 100
    assert write_report(folder, config).exists()  # a second report replaces the first


def test_no_results_is_one_sentence(tmp_path, config):
    with pytest.raises(DataError, match=r"eval.json: found no such file, expected the results of launch/eval.py"):
        write_report(tmp_path, config)


def test_boxes_are_drawn_where_they_are():
    shown = drawing.draw_boxes(
        np.full((32, 32, 3), 255, np.uint8), truth=[("", (8, 8, 24, 24))], predicted=[("", (0, 0, 4, 4))], width=64, height=32
    )
    assert shown.shape == (256, 256, 3)
    truth = np.array([int(drawing.TRUTH_COLOUR[i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero((shown == truth).all(-1))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (32, 96, 64, 192)


def test_infilling_shows_input_fill_best_and_original():
    pixels = np.full((16, 16, 3), 200, np.uint8)
    centers = np.zeros((3, 4, 4, 3), np.uint8)
    centers[1:] = [[[[10]]], [[[20]]]]
    line = {"task": "image_infilling", "generated": [1] * 4, "reference": [2] * 4, "width": 16, "height": 16}
    panels = dict(drawing.example_panels(line, pixels, PatchCodec(centers)))
    assert list(panels) == ["input", "generated", "true codes", "original"]
    assert [int(p[128, 128, 0]) for p in panels.values()] == [128, 10, 20, 200]
    assert all(p[0, 0, 0] == 200 for p in panels.values())
    assert list(dict(drawing.example_panels(line, pixels, None))) == ["input", "original"]


def test_no_curves_before_the_first_line(tmp_path):
    assert not drawing.draw_loss_curves([], tmp_path / "x.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 2: found no JSON object"):
        drawing.read_metrics(tmp_path / "metrics.jsonl")
