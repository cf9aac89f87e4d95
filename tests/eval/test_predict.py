"""launch/predict.py on a tiny run: every mode, every mistake, and that it says what the evaluation would."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.decoding import DecodeSetting
from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.schema import EOS_ID, DataConfig
from ofa_jax.data.records import Box
from ofa_jax.decode.beam import Hypotheses
from ofa_jax.eval import instruct_files
from ofa_jax.eval.codec import PatchCodec
from ofa_jax.eval.collect import collect
from ofa_jax.eval.instruct import LIKELIEST, Instructor, Request, source_buckets
from ofa_jax.eval.instruct_drawing import draw_prediction
from ofa_jax.eval.predict import Predictor
from ofa_jax.eval.scoring import read_outputs
from ofa_jax.models import ofa
from ofa_jax.vocab.layout import bin_id

ROOT = Path(__file__).resolve().parents[2]
ASK = "what is on the left?"
LABELS = ("cat", "dog", "the old tree", "yes", "no", "a cat and a dog")


def predict(*words) -> tuple[int, str, str]:
    """(exit code, output, errors) of `launch/predict.py words`, run in this process."""
    main = runpy.run_path(str(ROOT / "launch" / "predict.py"))["main"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["launch/predict.py", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


def png(width: int, height: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def world(config):
    """The tiny world's config with weights so large that outputs differ from picture to picture and from text to text."""
    blocks = [dataclasses.replace(b, stream="images") if b.name in ("detection", "image_infilling") else b for b in config.data.blocks]
    model, data = dataclasses.replace(config.model, init_std=0.4), dataclasses.replace(config.data, blocks=tuple(blocks))
    return dataclasses.replace(config, model=model, data=data)


@pytest.fixture(scope="module")
def run(world, tokenizer, tmp_path_factory):
    """A run as training leaves it: the folder, with checkpoints 3 and 7, of which the newest is used."""
    folder = tmp_path_factory.mktemp("run")
    manager = CheckpointManager(folder)
    for step in (3, 7):
        params = jax.jit(lambda key: ofa.create(world.model, world.vocab, key)[1])(jax.random.key(step))
        state = {"params": params, "stats": ofa.init_stats(world.model), "step": jnp.int32(step), "data_step": jnp.int32(step)}
        manager.save(step, state, config=world, identity={"tokenizer": tokenizer.digest}, wait=True)
    manager.close()
    return folder


@pytest.fixture(scope="module")
def instructor(run):
    return Instructor.load(run)


@pytest.fixture(scope="module")
def predictor(world, instructor):
    """The evaluation's, with the parameters that the instructor has on one device."""
    graphdef, _ = jax.eval_shape(lambda: ofa.create(world.model, world.vocab, jax.random.key(0)))
    return Predictor(graphdef, instructor._params, instructor._stats, vocab=world.vocab, batch_rows=6)


_load = functools.cache(Instructor.load.__func__)


@pytest.fixture
def loaded_once(monkeypatch):
    """Commands with the same flags of loading share an instructor, so that tests compile little."""

    def load(cls, checkpoint, *, step=None, overrides=(), batch_rows=None):
        return _load(cls, checkpoint, step=step, overrides=tuple(overrides), batch_rows=batch_rows)

    monkeypatch.setattr(Instructor, "load", classmethod(load))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "wide.png"
    path.write_bytes(png(80, 32))
    return path


def _examples(world, build_row, open_source, task):
    return collect(world, next(s for s in world.eval.sets if s.task == task), build_row=build_row, open_source=open_source)


@pytest.mark.parametrize("task", ["vqa", "grounded_captioning", "matching"])
def test_greedy_text_is_the_evaluation_s(world, predictor, instructor, tokenizer, build_row, open_source, task):
    """The same pictures and the instruction as predictions.jsonl prints it, bins written out, give the same ids and text."""
    examples = _examples(world, build_row, open_source, task)
    expected = read_outputs(examples, predictor.free(examples), vocab=world.vocab, tokenizer=tokenizer).predictions
    scenes = {record.record_id: record.image for record in open_source(examples.block.sources[0]).read(range(7))}
    requests = [Request(tokenizer.decode(e.sequence.source_ids), scenes[e.record.record_id]) for e in examples.examples]
    assert [instructor._encode(r.text) for r in requests] == [e.sequence.source_ids for e in examples.examples]
    found = instructor.predict_all(requests, DecodeSetting("greedy", max_len=examples.block.target_len))
    assert [p.text for p in found] == expected
    assert len(set(expected)) > 1


def test_the_command_says_what_the_class_does(run, instructor, picture):
    """The only test that loads and compiles in the command."""
    expected = instructor.predict(Request(" " + ASK, picture.read_bytes()))
    assert predict(f"--checkpoint={run}", f"--image={picture}", f"--text={ASK}") == (0, f"{expected}\n", "")


@pytest.mark.full
def test_imported_weights_need_no_data(run, world, instructor, tokenizer, tmp_path):
    """The config of imported weights names no data to train on."""
    stored = CheckpointManager(run, read_only=True).restore_params()
    manager = CheckpointManager(tmp_path)
    zero = jnp.int32(0)
    state = {"params": stored.params, "stats": stored.stats, "step": zero, "data_step": zero}
    config = dataclasses.replace(world, data=DataConfig(dir=world.data.dir))
    manager.save(0, state, config=config, identity={"tokenizer": tokenizer.digest}, wait=True)
    manager.close()
    request = Request(ASK, png(20, 30))
    assert Instructor.load(tmp_path, batch_rows=1).predict(request).text == instructor.predict(request).text


def test_a_leading_space_is_added_once(instructor):
    assert instructor._encode("a cat") == instructor._encode(" a cat")
    assert instructor._encode("  a cat") != instructor._encode(" a cat")
    assert instructor._encode(" a <mask><bin_3> cat")[2:4] != instructor._encode(" a cat")[2:4]
    assert instructor.tokenizer.decode(instructor._encode("a <mask> cat <bin_3><code_7>")) == " a <mask> cat <bin_3><code_7>"
    for text in ("see <bin_33>", "see <code_8>"):
        with pytest.raises(DataError, match=r"text: (location bin|image code): found (33|8), expected 0 to"):
            instructor._encode(text)


@pytest.mark.full
def test_steps_and_overrides(run, loaded_once, picture):
    old = json.loads(predict(f"--checkpoint={run}", "--step=3", f"--image={picture}", f"--text={ASK}", "--json")[1])
    path = predict(f"--checkpoint={run}/checkpoints/3", f"--image={picture}", f"--text={ASK}", "--json")
    new = json.loads(predict(f"--checkpoint={run}", f"--image={picture}", f"--text={ASK}", "--json")[1])
    assert json.loads(path[1]) == old and old != new
    assert set(new) == {"image", "text", "output", "prediction", "score"} and new["text"] == ASK
    code, said, errors = predict(f"--checkpoint={run}", f"--text={ASK}", "--config.eval.target_len=17", "--json")
    assert code == 0, errors
    assert json.loads(said)["image"] is None


def test_text_without_a_picture(instructor):
    texts = ["what is the complete text of a cat?", "the old dog"]
    alone = [instructor.predict(Request(text)) for text in texts]
    assert alone[0].output == "text" and alone[0].box is None
    mixed = instructor.predict_all([Request(texts[0]), Request(ASK, png(20, 30)), Request(texts[1])])
    assert [mixed[0], mixed[2]] == alone, "pictures beside it change nothing"


@pytest.mark.parametrize(("width", "height"), [(80, 32), (16, 96)])
def test_boxes_are_pixels_of_the_picture(instructor, run, loaded_once, tmp_path, width, height):
    """Bin k of 33 is pixel k of the 32 px input, which was squashed from both sides."""
    found = instructor.predict(Request(ASK, png(width, height)), output="box")
    bins = [int(part.split("_")[1]) for part in found.written.strip("<>").split("><")]
    assert len(bins) == 4
    x, y = width / 32, height / 32
    assert found.box == pytest.approx((bins[0] * x, bins[1] * y, bins[2] * x, bins[3] * y))
    path = tmp_path / "p.png"
    path.write_bytes(png(width, height))
    flags = (f"--checkpoint={run}", f"--image={path}", f"--text={ASK}", "--output=box")
    code, said, errors = predict(*flags, "--json", f"--draw={tmp_path / 'drawn.png'}")
    assert code == 0, errors
    line = json.loads(said)
    assert line["output"] == "box" and line["prediction"] == pytest.approx(list(found.box), abs=1e-3)
    assert Image.open(tmp_path / "drawn.png").format == "PNG"
    assert predict(*flags)[1] == f"box {', '.join(f'{v:.1f}' for v in found.box)}\n"


def _writes(instructor, monkeypatch, ids):
    """Makes the instructor's model write these ids."""
    row = [*ids, EOS_ID]
    rows = instructor.batch_rows
    answer = Hypotheses(np.array([[row]] * rows), np.zeros((rows, 1)), np.full((rows, 1), len(row)))
    monkeypatch.setattr(instructor._programs, "search", lambda *args, **kwargs: answer)


def test_objects_are_read_and_scaled(instructor, monkeypatch, tokenizer, world):
    def bins(*numbers):
        return [bin_id(number, vocab=world.vocab) for number in numbers]

    ids = [
        *bins(0, 8, 16, 32),
        *tokenizer.encode(" cat"),
        *bins(1, 2, 3),
        *tokenizer.encode(" dog"),
        *bins(4, 4, 8, 8),
        *tokenizer.encode(" tree"),
    ]
    _writes(instructor, monkeypatch, ids)
    request = Request("what are the objects in the image?", png(64, 16))
    found = instructor.predict(request, output="objects")
    assert found.objects == (("cat", Box(0, 4, 32, 16)), ("tree", Box(8, 2, 16, 4))) and found.malformed == 1
    assert found.to_json()["prediction"][0] == {"label": "cat", "box": [0.0, 4.0, 32.0, 16.0]} and found.to_json()["malformed"] == 1
    assert str(found).splitlines() == ["cat: 0.0, 4.0, 32.0, 16.0", "tree: 8.0, 2.0, 16.0, 4.0", "(1 malformed parts left out)"]
    plain, drawn = (draw_prediction(request, p, codec=None) for p in (dataclasses.replace(found, objects=()), found))
    assert drawn.width > 200 and plain.tobytes() != drawn.tobytes()


def test_objects_of_the_command(run, loaded_once, picture):
    code, said, errors = predict(f"--checkpoint={run}", f"--image={picture}", "--text=what are the objects?", "--output=objects", "--json")
    assert code == 0, errors
    assert isinstance(json.loads(said)["prediction"], list)


def test_codes_are_drawn_where_there_is_a_codebook(run, loaded_once, picture, tmp_path):
    flags = (f"--checkpoint={run}", "--text=what is the image in the middle part?", "--output=codes")
    drawn = tmp_path / "drawn.png"
    code, said, errors = predict(*flags, f"--image={picture}", f"--draw={drawn}")
    assert (code, errors) == (0, "") and drawn.exists()
    codes = [int(word) for word in said.split()]
    assert len(codes) == 16 and all(0 <= c < 8 for c in codes) and len(said.splitlines()) == 4
    assert predict(*flags, f"--draw={drawn}")[0] == 0, "codes without a picture"
    nowhere = tmp_path / "nothing.png"
    code, said, errors = predict(*flags, f"--image={picture}", f"--draw={nowhere}", f"--config.data.dir={tmp_path}")
    assert code == 0 and [int(word) for word in said.split()] == codes and not nowhere.exists()
    assert errors == f"{nowhere}: not drawn, because {tmp_path} has neither vqgan.npz nor codebook.npz; the codes are written only\n"


def test_codes_fill_the_middle(instructor):
    request, codec = Request(ASK, png(64, 32)), PatchCodec(np.zeros((8, 4, 4, 3), np.uint8))
    found = dataclasses.replace(instructor.predict(request, output="codes"), codes=(0,) * 16)
    sheet = np.asarray(draw_prediction(request, found, codec=codec))  # 64x32 is shown four times as large, 12 px from the corner
    panel = sheet[12 : 12 + 128, 12 : 12 + 256]
    assert (panel[36:92, 72:184] == 0).all() and panel[:24].any() and panel[:, :56].any()


def test_answers_are_scored(run, instructor, loaded_once, picture, tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("\n".join((*LABELS, "", "cat")) + "\n")
    flags = (f"--checkpoint={run}", f"--image={picture}", f"--text={ASK}", f"--answers={path}")
    line = json.loads(predict(*flags, "--json")[1])
    scores = [one["log_prob"] for one in line["answers"]]
    assert sorted(one["answer"] for one in line["answers"]) == sorted(LABELS)
    assert scores == sorted(scores, reverse=True) and np.exp(scores).sum() == pytest.approx(1, abs=1e-4)
    assert line["prediction"] == line["answers"][0]["answer"] and line["score"] == scores[0]
    code, said, _ = predict(*flags, f"--draw={tmp_path / 'drawn.png'}")
    assert code == 0 and said.splitlines()[0] == f"{scores[0]:10.4f}  {line['prediction']}" and len(said.splitlines()) == len(LABELS)
    # A search whose beam holds every answer finds the best of them, with the same score.
    code, said, errors = predict(*flags, "--constrain", "--beam=6", "--lenpen=0", "--json")
    assert code == 0, errors
    assert json.loads(said)["prediction"] == line["prediction"] and json.loads(said)["score"] == pytest.approx(scores[0], abs=1e-4)
    with pytest.raises(DataError, match=r"answers: found \d+ tokens in 'the old tree', expected at most max_len = 2"):
        instructor.check(DecodeSetting("all", method="score", answers=str(path), max_len=2), answers=instructor.answers(LABELS))


def test_draws_depend_on_seed_and_request_alone(instructor):
    setting = DecodeSetting("drawn", method="sample", beam=1, seed=5, top_k=20, max_len=12)
    requests = [Request(ASK, png(20, 20), number=k) for k in range(8)]
    found = [p.text for p in instructor.predict_all(requests, setting)]
    assert len(set(found)) > 1
    assert [p.text for p in instructor.predict_all(requests[5:2:-1], setting)] == found[5:2:-1]
    assert found != [p.text for p in instructor.predict_all(requests, dataclasses.replace(setting, seed=6))]
    only = instructor.predict(requests[0], dataclasses.replace(setting, top_k=1))
    best = instructor.predict(requests[0], dataclasses.replace(LIKELIEST, min_len=1, max_len=12))
    assert only.written == best.written and only.score == pytest.approx(best.score, abs=1e-5)


SCORERS = """
def shortest(instruction, picture, predictions):
    assert picture.shape == (32, 32, 3) and "left" in instruction
    return [-len(text) for text in predictions]

def broken(instruction, picture, predictions):
    return [1.0]
"""


def test_hypotheses_are_told_and_ranked(run, loaded_once, picture, tmp_path):
    scorers = tmp_path / "scorers.py"
    scorers.write_text(SCORERS)
    flags = (f"--checkpoint={run}", f"--image={picture}", f"--text={ASK}", "--beam=4", "--max-len=12", "--hypotheses=4", "--seed=3")
    plain = json.loads(predict(*flags, "--json")[1])
    scores = [one["score"] for one in plain["hypotheses"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert (plain["prediction"], plain["score"]) == (plain["hypotheses"][0]["prediction"], scores[0])
    code, said, errors = predict(*flags, f"--scorer={scorers}:shortest", "--json")
    assert code == 0, errors
    ranked = json.loads(said)
    lengths = [len(one["prediction"]) for one in ranked["hypotheses"]]
    assert lengths == sorted(lengths) and ranked["scorer_score"] == -lengths[0]
    assert sorted(one["prediction"] for one in ranked["hypotheses"]) == sorted(one["prediction"] for one in plain["hypotheses"])
    assert predict(*flags)[1].startswith(f"-- 1: score {scores[0]:.4f}\n{plain['prediction']}")
    code, _, errors = predict(*flags, f"--scorer={scorers}:broken")
    assert code == 2 and "broken: found [1.0] for" in errors and "expected 4 finite numbers, one of each" in errors


def test_few_programs_are_compiled(instructor, tokenizer):
    assert source_buckets(72) == (16, 32, 64, 72) and source_buckets(16) == (16,) and source_buckets(10) == (10,)
    search, setting = instructor._programs.search, dataclasses.replace(LIKELIEST, max_len=7)
    before = search._cache_size()
    texts = [" cat" * n for n in (1, 2, 3, 5)]
    assert {len(instructor._encode(text)) for text in texts} == {4, 6, 8, 12}
    for picture in (png(10, 20), png(33, 7)):
        instructor.predict_all([Request(text, picture) for text in texts for _ in range(3)], setting)
    assert search._cache_size() == before + 1


BAD_LINES = {
    "[1": "found no JSON (",
    "[1]": "found a list, expected an object with image and text",
    "": "found no JSON (",
    '{"image": "a.png"}': "text: found none, expected a string",
    '{"image": "a.png", "text": 5}': "text: found a number, expected a string",
    '{"image": 7, "text": "x"}': "image: found a number, expected a path, or no such field",
    '{"image": "", "text": "x"}': "image: found an empty string, expected a path",
    '{"image": "no.png", "text": "x"}': "found no file that can be read (No such file or directory), expected a picture",
    '{"image": "bad.png", "text": "x"}': "image: found 3 bytes starting with 6e 6f 21 that do not decode",
    '{"image": "a.png", "text": " "}': "text: found ' ', expected an instruction",
    '{"text": "\\ud800"}': "text: found '\\ud800' at character 1, expected text that can be written as UTF-8",
    json.dumps({"text": "cat " * 90}): "tokens, expected at most 70, eval.source_len less BOS and EOS",
}
GOOD_LINES = [{"image": f"{name}.png", "text": text} for name in "abc" for text in (ASK, "how many objects are there?", "a dog")]


@pytest.fixture
def batch(tmp_path):
    """A JSONL file beside its pictures: good and bad lines mixed."""
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        (folder / f"{name}.png").write_bytes(png(20 + 9 * seed, 30, seed))
    (folder / "bad.png").write_bytes(b"no!")
    lines = [json.dumps(line) for line in [*GOOD_LINES, {"text": "the old dog", "id": 5}, {"text": "yes", "image": None}]]
    for place, bad in enumerate(BAD_LINES):
        lines.insert(place * 2, bad)
    path = folder / "in.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_batch_answers_every_line_in_order(run, instructor, loaded_once, batch, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    code, said, _ = predict(f"--checkpoint={run}", f"--jsonl={batch}", f"--out={out}")
    assert code == 1 and said == f"{out}: 23 lines, 12 with an error\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    given = batch.read_text().split("\n")[:-1]
    assert len(lines) == len(given) == 23
    for number, (asked, found) in enumerate(zip(given, lines, strict=True), 1):
        if asked in BAD_LINES:
            assert found["error"].startswith(f"{batch}: line {number}: ") and BAD_LINES[asked] in found["error"]
            assert "prediction" not in found
        else:
            asked = json.loads(asked)
            assert (found["image"], found["text"]) == (asked.get("image"), asked["text"]) and "error" not in found
    one = lines[1]
    assert one["prediction"] == instructor.predict(Request(one["text"], (batch.parent / one["image"]).read_bytes())).text
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    code, _, errors = predict(f"--checkpoint={run}", f"--jsonl={batch}", f"--out={out}")
    assert code == 2 and errors == f"ConfigError: --out: found {out}, expected a name that is free\n"


class Killed(BaseException):
    pass


def test_a_killed_batch_goes_on(run, loaded_once, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(instruct_files, "_BATCHES_A_WRITE", 1)
    flags = (f"--checkpoint={run}", f"--jsonl={batch}", "--seed=3", "--max-len=12")
    assert predict(*flags, f"--out={tmp_path / 'whole.jsonl'}")[0] == 1
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    real, calls = Instructor.predict_all, []

    def dies(self, requests, **how):
        calls.append(len(requests))
        if len(calls) == 3:
            raise Killed
        return real(self, requests, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Instructor, "predict_all", dies)
        with pytest.raises(Killed):
            predict(*flags, f"--out={out}")
    assert part.read_bytes().count(b"\n") == 12 and not out.exists()
    with open(part, "ab") as file:
        file.write(b'{"image": "a.png", "te')  # the write that the kill tore

    for change, sentence in (
        ("--seed=4", "found lines made with seed=3, expected 4; remove it to start again"),
        ("--config.eval.target_len=30", "found lines made with config="),
    ):
        code, _, errors = predict(*flags[:2], "--max-len=12", "--seed=3", change, f"--out={out}")
        assert code == 2 and sentence in errors and errors.count("\n") == 1
    other = batch.with_name("other.jsonl")
    other.write_text("".join(reversed(batch.read_text().splitlines(keepends=True))))
    code, _, errors = predict(flags[0], f"--jsonl={other}", *flags[2:], f"--out={out}")
    assert code == 2 and "out.jsonl.part: line 1: found another request than the input's" in errors

    code, said, errors = predict(*flags, f"--out={out}")
    assert (code, said) == (1, f"{out}: 23 lines, 12 with an error\n") and errors.startswith(f"{part}: 12 of 23 lines are done\n")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not part.exists() and not part.with_name(part.name + ".json").exists()


def test_a_folder(run, loaded_once, batch, tmp_path):
    out = tmp_path / "out.jsonl"
    code, said, _ = predict(f"--checkpoint={run}", f"--folder={batch.parent}", f"--text={ASK}", "--output=box", f"--out={out}")
    assert code == 1 and said == f"{out}: 4 lines, 1 with an error; 1 files of other kinds in {batch.parent} were left out\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.png", "b.png", "bad.png", "c.png"]
    assert lines[2]["error"].startswith(f"{batch.parent / 'bad.png'}: image: found 3 bytes") and len(lines[3]["prediction"]) == 4


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--text: found none, expected it"),
        (["--text=x", "--speed=3"], "command line: unrecognized arguments: --speed=3; python launch/predict.py --help"),
        (["--text=x", "--step=9"], "found no checkpoint of step 9, expected one of 3, 7"),
        (["--text=x", "--config=configs/quickstart.py"], "--config: found configs/quickstart.py, expected none"),
        (["--text=x", "--config.eval.image_px=33"], "eval.image_px"),
        (["--text="], "text: found '', expected an instruction"),
        (["--text=" + "cat " * 90], "tokens, expected at most 70, eval.source_len less BOS and EOS"),
        (["--text=x", "--image={tmp}/no.png"], "no.png: found no file that can be read (No such file or directory), expected a picture"),
        (["--text=x", "--image={tmp}/bad.png"], "bad.png: found 3 bytes starting with 6e 6f 21 that do not decode (unknown format)"),
        (["--text=x", "--output=box"], "--image: found none, expected a picture"),
        (["--text=x", "--answers={tmp}/empty.txt"], "empty.txt: found no answer, expected one a line"),
        (["--text=x", "--answers={tmp}/no.txt"], "no.txt: found no text file that can be read"),
        (["--text=x", "--answers={tmp}/a.txt", "--max-len=1"], "found 2 tokens in 'cat', expected at most max_len = 1"),
        (
            ["--text=x", "--answers={tmp}/a.txt", "--beam=2"],
            "beam: found 2 with method score, which does not read it, expected it with beam or sample",
        ),
        (["--text=x", "--answers={tmp}/a.txt", "--output=codes"], "answers: found output codes, expected text"),
        (["--text=x", "--constrain"], "--constrain: found it without --answers, expected both"),
        (["--text=x", "--beam=0"], "beam: found 0, expected at least 1"),
        (["--text=x", "--max-len=500"], "max_len: found 500, expected at most 127"),
        (["--text=x", "--min-len=50"], "min_len: found 50, expected 0 to max_len = 40"),
        (["--text=x", "--output=codes", "--max-len=5"], "--output: found codes with --max-len or --min-len, expected neither"),
        (["--text=x", "--temperature=0.5"], "temperature: found 0.5 with one hypothesis, which it does not change"),
        (["--text=x", "--temperature=0", "--seed=1"], "temperature: found 0.0, expected more than 0"),
        (["--text=x", "--top-p=2"], "top_p: found 2.0, expected 0 (off) to 1"),
        (["--text=x", "--no-repeat-ngram=1", "--output=codes"], "decoding: found no output that its rules allow"),
        (["--text=x", "--hypotheses=2"], "hypotheses: found 2, expected 1 to 1, those that method beam makes"),
        (["--text=x", "--beam=2", "--scorer=longest"], "scorer: found 'longest', expected FILE.py:function"),
        (["--text=x", "--beam=2", "--scorer={tmp}/no.py:f"], "scorer: found no file"),
        (["--text=x", "--prompt=source", "--max-len=120"], "prompt: found 14 tokens before max_len=120, expected at most 127 positions"),
        (["--text=x", "--draw={tmp}/a.jpg"], "a.jpg, expected a name in a folder that is there, ending in .png"),
        (["--text=x", "--jsonl={tmp}/a.jsonl", "--out={tmp}/b"], "--text: found it, expected only --jsonl, --out together"),
        (["--jsonl={tmp}/no.jsonl", "--out={tmp}/b"], "no.jsonl: found no file that can be read"),
        (["--jsonl={tmp}/empty.txt", "--out={tmp}/b"], "empty.txt: found no line, expected JSON lines with image and text"),
        (["--jsonl={tmp}/a.jsonl"], "--out: found none, expected it"),
        (["--folder={tmp}/none", "--text=x", "--out={tmp}/b"], "none: found no folder that can be read"),
        (["--folder={tmp}/empty", "--text=x", "--out={tmp}/b"], "empty: found no picture among 0 files"),
        (["--folder={tmp}", "--text=", "--out={tmp}/b"], "text: found '', expected an instruction"),
    ],
)
def test_mistakes_are_one_sentence(run, loaded_once, tmp_path, flags, sentence):
    (tmp_path / "bad.png").write_bytes(b"no!")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "a.txt").write_text("\n".join(LABELS))
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    code, said, errors = predict(f"--checkpoint={run}", *(flag.format(tmp=tmp_path) for flag in flags))
    assert code == 2 and said == "", errors
    assert sentence in errors and errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_no_run_and_another_tokeniser(run, world, tmp_path, tokenizer):
    code, _, errors = predict(f"--checkpoint={tmp_path}", "--text=x")
    assert code == 2 and "found no complete checkpoint, expected one" in errors
    manager = CheckpointManager(tmp_path)
    params = jax.jit(lambda: ofa.create(world.model, world.vocab, jax.random.key(0))[1])()
    state = {"params": params, "stats": ofa.init_stats(world.model), "step": jnp.int32(1), "data_step": jnp.int32(1)}
    manager.save(1, state, config=world, identity={"tokenizer": "0" * 64}, wait=True)
    manager.close()
    code, _, errors = predict(f"--checkpoint={tmp_path}", "--text=x")
    assert code == 2 and f"found digest {tokenizer.digest[:12]}, expected 000000000000, which the run was trained with" in errors
    with pytest.raises(ConfigError, match="step: found 3, expected 7 as in"):
        Instructor.load(run / "checkpoints" / "7", step=3)
