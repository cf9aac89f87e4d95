"""The page of launch/predict.py --serve without a browser and without gradio: what it offers, what it refuses, what it shows."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ofa_jax.config.errors import ConfigError, DataError
from ofa_jax.config.rows import PRETRAINING_ROWS
from ofa_jax.data.records import Box, Caption, Question, Region
from ofa_jax.data.transforms.image import decode_image
from ofa_jax.eval import page
from ofa_jax.eval.codec import PatchCodec
from ofa_jax.eval.instruct import Instructor, Prediction
from ofa_jax.eval.page import Asked, follow, free_port, read_settings, read_text, read_upload, templates
from ofa_jax.tasks.base import Codes, Negatives, Objects, Passage, TaskContext
from ofa_jax.tasks.encode import Encoder
from ofa_jax.tasks.table import ROWS, TASKS

ROOT = Path(__file__).resolve().parents[2]
PX = 32


def png(width: int, height: int, **save) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG", **save)
    return out.getvalue()


@pytest.fixture
def picture(tmp_path) -> str:
    path = tmp_path / "wide.png"
    path.write_bytes(png(80, 32))
    return str(path)


# ---------------------------------------------------------------------------------------------------------------- what is offered
def test_every_task_is_offered_with_its_output(config, tokenizer):
    offered = templates(config, tokenizer)
    pretrained = {task.name for row in PRETRAINING_ROWS for task in ROWS[row]}  # those of fine-tuning are a run's own
    assert {t.task for t in offered} == pretrained and len({t.label for t in offered}) == len(offered)
    assert all(t.output == TASKS[t.task].output and t.hint.endswith((".", "?")) for t in offered)


# What a person may write in the place of an example's words, and the item that training makes the same instruction of.
EDITS = {
    "VQA": ("what color is the hat?", "what is on the left?", Question("what is on the left?", "cat")),
    "Captioning": ("", "", Caption("a cat")),
    "Matching (caption)": ("a red hat", "a cat and a dog", Caption("a cat and a dog")),
    "Grounding": ("the red hat", "the old tree", Region("the old tree", Box(1, 2, 3, 4))),
    "Grounded captioning": ("<bin_8><bin_8><bin_24><bin_24>", "<bin_1><bin_2><bin_3><bin_4>", Region("the tree", Box(1, 2, 3, 4))),
    "Detection": ("", "", Objects(())),
    "Image infilling": ("", "", Codes((1, 2, 3, 4))),
}


def test_edited_templates_are_the_instructions_of_training(config, tokenizer):
    """To the id: nothing that the tasks write is written a second time for the page."""
    instructor = Instructor(config, None, None, tokenizer)
    encoder = Encoder(vocab=config.vocab, encode_text=lambda text: tuple(tokenizer.encode(text)), word_starts=tokenizer.word_starts)
    context = TaskContext(tokenizer, Negatives(), "scenes", 72, 72)

    def source_ids(task, item):
        example = TASKS[task].build(item, np.random.default_rng(0), context)
        return encoder.encode(example, task_id=0, source_len=72, target_len=72, dataset="scenes", record="0").source_ids

    offered = {t.label: t for t in templates(config, tokenizer)}
    for label, (example, written, item) in EDITS.items():
        template = offered.pop(label)
        assert example in template.text
        assert instructor._encode(template.text.replace(example, written)) == source_ids(template.task, item), label
    answer = offered.pop("Matching (answer)")
    edited = answer.text.replace("what color is the hat?", "what is on the left?").replace('" red "', '" cat "')
    assert instructor._encode(edited) == source_ids("matching", Question("what is on the left?", "cat"))
    (infilling,) = offered.values()
    given = tokenizer.decode(source_ids("text_infilling", Passage("the old dog sat under the tall tree")))
    opening, _, closing = infilling.text.partition(" the red hat lies <mask> the table")
    assert given.startswith(" " + opening + " ") and given.endswith(closing) and len(closing) == 3
    assert config.vocab.mask_id in instructor._encode(infilling.text)


# ------------------------------------------------------------------------------------------------------------------- what is asked
def test_settings():
    assert read_settings(Asked("x")) == ("text", 1, None)
    assert read_settings(Asked("x", "objects", beam=10.0, max_len=7)) == ("objects", 10, 7)
    assert read_settings(Asked("x", "box", beam=3, max_len=7)) == ("box", 3, None), "four tokens, whatever the field says"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"output": "video"}, "output: found 'video', expected one of text, box, objects, codes"),
        ({"output": None}, "output: found None, expected one of"),
        ({"beam": 0}, "beam size: found 0, expected a whole number from 1 to 10"),
        ({"beam": 11}, "beam size: found 11, expected a whole number from 1 to 10"),
        ({"beam": 2.5}, "beam size: found 2.5, expected"),
        ({"beam": True}, "beam size: found True, expected"),
        ({"beam": "3"}, "beam size: found '3', expected"),
        ({"beam": float("nan")}, "beam size: found nan, expected"),
        ({"max_len": 0}, "longest answer: found 0, expected a whole number of 1 or more"),
        ({"max_len": float("inf")}, "longest answer: found inf, expected"),
        ({"text": None}, "instruction: found none, expected a text"),
        ({"text": " \n"}, "instruction: found none, expected a text"),
        ({"text": ["a"]}, "instruction: found none, expected a text"),
        ({"text": "x" * 10_001}, "instruction: found 10,001 characters, expected at most 10,000"),
        ({"path": "/nowhere/a.png"}, "/nowhere/a.png: found no file that can be read (No such file or directory), expected a picture"),
    ],
)
def test_what_is_refused_is_one_sentence(changes, sentence):
    shown = follow(None, dataclasses.replace(Asked("what?"), **changes), codec=None)
    assert shown.refused and shown.notice.startswith(sentence) and "\n" not in shown.notice
    assert shown.answer == "" and shown.drawn is None


def test_uploads_are_bounded(tmp_path, monkeypatch, picture):
    assert read_upload(picture, "a.png") == Path(picture).read_bytes()
    bad = tmp_path / "bad"
    bad.write_bytes(b"no!")
    with pytest.raises(
        DataError, match=r"notes\.png: found 3 bytes starting with 6e 6f 21 that do not decode \(unknown format\), expected"
    ):
        read_upload(bad, "notes.png")
    monkeypatch.setattr(page, "MAX_PIXELS", 2_559)
    with pytest.raises(DataError, match=r"a\.png: found \d+ bytes .* \(80 x 32 pixels are more than 2559\)"):
        read_upload(picture, "a.png")
    jpeg = tmp_path / "a.jpg"
    Image.new("RGB", (80, 32)).save(jpeg)
    with pytest.raises(
        DataError, match=r"a\.jpg: found a JPEG file of \d+ bytes that does not decode \(80 x 32 pixels are more than 2559\)"
    ):
        read_upload(jpeg, "a.jpg")
    monkeypatch.setattr(page, "MAX_MEGABYTES", 0)
    with pytest.raises(DataError, match=r"a\.png: found 0\.0 MB, expected at most 0 MB"):
        read_upload(picture, "a.png")
    assert read_text("x" * page.MAX_CHARACTERS) == "x" * page.MAX_CHARACTERS


@pytest.mark.parametrize("orientation", range(10))
def test_pictures_stand_upright(tmp_path, orientation):
    """As Pillow turns them; 0 and 9 are no orientations."""
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.png"
    path.write_bytes(png(9, 5, exif=exif))
    found = decode_image(read_upload(path, "a.png"))
    np.testing.assert_array_equal(found, np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert found.shape == ((9, 5, 3) if orientation in (5, 6, 7, 8) else (5, 9, 3))


# ------------------------------------------------------------------------------------------------------------------ what is shown
class Says:
    """In an instructor's place: gives one prediction, or raises one error."""

    def __init__(self, config, said):
        self.config, self._said = config, said

    def predict(self, request, *settings, **more):
        self.request = request
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


def test_an_answer_in_words(config, picture):
    says = Says(config, Prediction("text", " a red hat", -0.25))
    shown = follow(says, Asked(" what?", path=picture, name="hat.png"), codec=None)
    assert (shown.answer, shown.drawn, shown.refused) == ("a red hat", None, False) and "-0.250" in shown.notice
    assert says.request.text == " what?" and says.request.picture == Path(picture).read_bytes() and says.request.name == "hat.png"
    follow(says, Asked("what?"), codec=None)
    assert says.request.picture is None


@pytest.mark.parametrize(
    "prediction",
    [
        Prediction("box", "<bin_1>", -1.0, box=Box(8, 4, 40, 30)),
        Prediction("objects", "", -1.0, objects=(("hat", Box(8, 4, 40, 30)), ("dog", Box(0, 0, 9, 9)))),
        Prediction("codes", "", -1.0, codes=(3,) * 16),
    ],
)
def test_boxes_and_codes_are_drawn(config, picture, prediction):
    codec = PatchCodec(np.full((8, 4, 4, 3), 77, np.uint8))
    shown = follow(Says(config, prediction), Asked("what?", prediction.output, path=picture), codec=codec)
    plain = np.asarray(Image.open(picture)).repeat(3, 0).repeat(3, 1)
    assert shown.answer == str(prediction) and shown.drawn.dtype == np.uint8 and not shown.refused
    assert not np.array_equal(shown.drawn, plain) and min(shown.drawn.shape[:2]) >= 32


def test_codes_without_a_codebook_are_only_written(config, picture):
    prediction = Prediction("codes", "", -1.0, codes=(3,) * 16)
    shown = follow(Says(config, prediction), Asked("what?", "codes", path=picture), codec=None)
    assert shown.drawn is None and not shown.refused and shown.answer == str(prediction)
    assert f"{config.data.dir} has neither vqgan.npz nor codebook.npz to draw the codes with." in shown.notice


@pytest.mark.parametrize("error", [DataError("text: found 90 tokens"), ConfigError("max_len: found 500")])
def test_what_the_model_refuses_is_its_sentence(config, error):
    shown = follow(Says(config, error), Asked("what?"), codec=None)
    assert shown == page.Shown(notice=str(error), refused=True)


def test_notices_are_no_html_of_strangers():
    assert page.notice("", refused=True) == ""
    assert page.notice("<b> & b.png", refused=True) == '<p class="refused" role="alert">&lt;b&gt; &amp; b.png</p>'
    assert page.notice("fine", refused=False) == '<p class="note" role="status">fine</p>'


# --------------------------------------------------------------------------------------------------------------------- the server
def test_ports(monkeypatch):
    with socket.socket() as taken:
        taken.bind((page.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port: found {port}, which cannot be taken \(.*\), expected a free one"):
            free_port(port)
        monkeypatch.setattr(page, "DEFAULT_PORT", port)
        assert free_port(None) not in (0, port)
    assert free_port(port) == port and free_port(None) == port and free_port(0) != 0
    for number in (-1, 65_536):
        with pytest.raises(ConfigError, match=f"--port: found {number}, expected 0 .* to 65535"):
            free_port(number)


def _answer(headers: dict[str, str], kind: str = "http") -> list[dict]:
    """What the server sends for a request with these headers; the inner application says 200 and nothing."""
    sent: list[dict] = []

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(page.LoopbackOnly(inner)(scope, None, send))
    return sent


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:7860"},
        {"Host": "localhost:7860"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"},
    ],
)
def test_own_requests_pass_and_browsers_are_kept_here(headers):
    start, _ = _answer(headers)
    assert start["status"] == 200 and start["headers"][0] == (b"a", b"b")
    name, policy = start["headers"][1]
    assert name == b"content-security-policy" and b"default-src 'self'" in policy and b"http" not in policy


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example:7860"},
        {"host": "127.0.0.1.evil.example:7860"},
        {"host": "127.0.0.1:7860", "origin": "http://evil.example"},
        {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"},
        {"host": "127.0.0.1:7860", "origin": "null"},
    ],
)
def test_requests_of_strangers_are_refused(headers):
    start, body = _answer(headers)
    assert start["status"] == 403 and b"expected one of 127.0.0.1" in body["body"]
    assert _answer(headers, kind="lifespan")[0]["status"] == 200, "what is no request is passed on"


def predict(*words) -> tuple[int, str, str]:
    """(exit code, output, errors) of `launch/predict.py words`, run in this process."""
    main = runpy.run_path(str(ROOT / "launch" / "predict.py"))["main"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["launch/predict.py", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


def test_mistakes_of_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "GRADIO_SHARE": "True"})
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    handler = signal.getsignal(signal.SIGTERM)
    serve = ("--checkpoint=nowhere", "--serve")
    assert predict(*serve, "--port=0") == (
        2, "", "ConfigError: --serve: found no package gradio, expected it: pip install -r requirements-serve.txt\n"
    )  # fmt: skip
    assert "GRADIO_SHARE" not in os.environ and signal.getsignal(signal.SIGTERM) is handler
    with socket.socket() as taken:
        taken.bind((page.HOST, 0))
        port = taken.getsockname()[1]
        taken.listen()
        code, _, errors = predict(*serve, f"--port={port}")
    assert code == 2 and errors.startswith(f"ConfigError: --port: found {port}, which cannot be taken (") and errors.count("\n") == 1
    for flags, sentence in (
        (("--text=x", "--top-p=0.5"), "--serve: found it with text, top_p, expected at most --step and --port beside it"),
        (("--port=many",), "command line: argument --port: invalid int value: 'many'"),
    ):
        code, _, errors = predict(*serve, *flags)
        assert code == 2 and errors.startswith(f"ConfigError: {sentence}") and errors.count("\n") == 1
    for port in (0, 7860):
        code, _, errors = predict("--checkpoint=nowhere", "--text=x", f"--port={port}")
        assert (code, errors) == (2, "ConfigError: --port: found it, expected it only beside --serve\n")
