"""The page as a person uses it: the real command, a real browser without a window. One server and one tab, used test after test."""

from __future__ import annotations

import dataclasses
import io
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.eval.instruct import LIKELIEST, Instructor, Request
from ofa_jax.models import ofa

pytestmark = [pytest.mark.full, pytest.mark.serve]

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No window, and nothing that a browser asks of the internet by itself.
BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
START_S, ANSWER_MS, STOP_S = 180, 120_000, 20
ASK = "what is on the left?"
NEW_PICTURE = """before => {
  const picture = document.querySelector("#drawn img");
  return picture && picture.getAttribute("src") !== before && picture.naturalWidth >= 100;
}"""


def png(width: int = 80, height: int = 48) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def run(config, tokenizer, tmp_path_factory):
    """A checkpoint with weights so large that answers differ."""
    blocks = [dataclasses.replace(b, stream="images") if b.name in ("detection", "image_infilling") else b for b in config.data.blocks]
    model, data = dataclasses.replace(config.model, init_std=0.4), dataclasses.replace(config.data, blocks=tuple(blocks))
    world = dataclasses.replace(config, model=model, data=data)
    folder = tmp_path_factory.mktemp("run")
    params = jax.jit(lambda: ofa.create(world.model, world.vocab, jax.random.key(3))[1])()
    state = {"params": params, "stats": ofa.init_stats(world.model), "step": jnp.int32(3), "data_step": jnp.int32(3)}
    manager = CheckpointManager(folder)
    manager.save(3, state, config=world, identity={"tokenizer": tokenizer.digest}, wait=True)
    manager.close()
    return folder


class Server:
    """The command, running; what it prints is kept."""

    def __init__(self, run: Path, folder: Path):
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.outside = socket.create_server(("127.0.0.1", 0))  # every way to the internet leads here, where nobody answers
        self.outside.setblocking(False)
        proxy = f"http://127.0.0.1:{self.outside.getsockname()[1]}"
        environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environ |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "TMPDIR": str(self.temporary), "GRADIO_SHARE": "True"}
        environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
        command = [sys.executable, str(ROOT / "launch" / "predict.py"), f"--checkpoint={run}", "--serve", "--port=0"]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        self.printed: list[str] = []
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            for line in self.process.stdout:
                self.printed.append(line)
                lines.put(line)
            lines.put("")

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()
        deadline = time.monotonic() + START_S
        while True:
            line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line, "".join(self.printed)
            if found := re.fullmatch(rf"serving {re.escape(str(run))} at (http://127\.0\.0\.1:\d+)\n", line):
                self.address = found[1]
                return

    def asked_outside(self) -> bool:
        """Whether something tried to reach another machine."""
        try:
            self.outside.accept()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    server = Server(run, tmp_path_factory.mktemp("server"))
    yield server
    server.process.kill()
    server.process.wait()
    server.outside.close()


@pytest.fixture(scope="module")
def tab(server):
    """The page in a browser, with `requests` and `console`: what it fetched and what it complained of."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        pytest.fail("found no playwright, expected it: pip install -r requirements-test-serve.txt, as `make test-full` does")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.fail(f"found none of {', '.join(BROWSERS)}, expected a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=list(BROWSER_FLAGS))
        tab = window.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(30_000)
        tab.requests, tab.console = [], []
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.on("console", lambda message: tab.console.append(f"{message.type}: {message.text}"))
        tab.goto(server.address)
        tab.locator("#ask").wait_for()
        yield tab
        window.close()


def choose(tab, task: str) -> str:
    """Chooses a task and returns the instruction that it fills in."""
    field = tab.locator("#instruction textarea")
    before = field.input_value()
    tab.locator("#task").get_by_text(task, exact=True).click()
    tab.wait_for_function("before => document.querySelector('#instruction textarea').value !== before", arg=before)
    return field.input_value()


def upload(tab, name: str, content: bytes, kind: str = "image/png") -> None:
    """Gives a file to the picture's field, after removing the one that is there."""
    remove = tab.locator("#picture button[aria-label='Remove Image'], #picture button[aria-label='Clear']")
    if remove.count():
        remove.first.click()
    with tab.expect_file_chooser() as chooser:
        tab.locator("#picture").get_by_text("Click to Upload").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": content})


def ask(tab) -> str:
    """Presses the button and returns the notice that comes: a line about the answer, or why there is none."""
    tab.evaluate("document.querySelector('#notice p')?.setAttribute('data-old', '1')")
    tab.locator("#ask").click()
    said = tab.locator("#notice p:not([data-old])")
    said.wait_for(timeout=ANSWER_MS)
    return said.inner_text()


def answer(tab) -> str:
    return tab.locator("#answer textarea").input_value()


def test_a_question_about_a_picture_is_answered(tab, run):
    assert choose(tab, "Captioning") == "what does the image describe?"
    assert choose(tab, "VQA") == "what color is the hat?"
    upload(tab, "wide.png", png())
    tab.locator("#picture img").wait_for()
    tab.locator("#instruction textarea").fill(ASK)
    assert ask(tab).startswith("Log-probability per token: -")
    assert answer(tab) == str(Instructor.load(run, batch_rows=1).predict(Request(ASK, png())))
    assert not tab.locator("#drawn").is_visible()


def test_beams_and_lengths(tab, run):
    tab.get_by_text("Decoding", exact=True).click()
    tab.locator("#beam input[type=number]").fill("3")
    tab.locator("#max_len input").fill("5")
    ask(tab)
    assert answer(tab) == str(
        Instructor.load(run, batch_rows=1).predict(Request(ASK, png()), dataclasses.replace(LIKELIEST, beam=3, max_len=5))
    )
    tab.locator("#max_len input").fill("500")
    assert ask(tab) == "max_len: found 500, expected at most 127, the model's positions less EOS"
    assert tab.locator("#notice p.refused").count() == 1 and answer(tab) == ""
    tab.locator("#beam input[type=number]").fill("1")


@pytest.mark.parametrize(
    ("task", "starts"), [("Grounding", "box "), ("Detection", ""), ("Image infilling", "")], ids=["box", "objects", "codes"]
)
def test_places_and_codes_are_drawn(tab, task, starts):
    choose(tab, task)
    if task != "Detection":
        assert tab.locator("#max_len input").is_disabled(), "500, which is still in this field, has no meaning here"
    else:
        tab.locator("#max_len input").fill("")
    before = tab.locator("#drawn img").get_attribute("src") if tab.locator("#drawn img").count() else ""
    assert ask(tab).startswith("Log-probability per token: -")
    assert answer(tab).startswith(starts) and answer(tab)
    tab.wait_for_function(NEW_PICTURE, arg=before)
    assert tab.locator("#drawn img").is_visible()


def test_what_is_no_picture_is_refused_and_the_page_goes_on(tab, run):
    choose(tab, "VQA")
    upload(tab, "notes.png", b"not a picture at all")
    said = tab.locator("#notice p.refused")
    said.wait_for()
    assert said.inner_text().startswith(
        "notes.png: found 20 bytes starting with 6e 6f 74 20 61 20 70 69 that do not decode (unknown format)"
    )
    tab.locator("#picture").get_by_text("Click to Upload").wait_for()
    upload(tab, "notes.txt", b"not a picture at all", "text/plain")
    tab.get_by_text("Invalid file type: notes.txt.").first.wait_for()
    upload(tab, "large.png", bytes(21 << 20))
    tab.get_by_text("exceed the maximum allowed size of 20.0").first.wait_for()

    field = tab.locator("#instruction textarea")
    field.fill("  ")
    assert ask(tab) == "instruction: found none, expected a text"
    field.fill("cat " * 90)
    assert ask(tab).endswith("tokens, expected at most 70, eval.source_len less BOS and EOS")
    choose(tab, "Grounding")
    assert ask(tab) == "picture: found none, expected a picture, whose pixels the boxes of output box are"
    choose(tab, "Text infilling")
    ask(tab)
    assert answer(tab) == str(Instructor.load(run, batch_rows=1).predict(Request(field.input_value())))
    upload(tab, "tall.png", png(30, 70))
    tab.locator("#picture img").wait_for()
    choose(tab, "Detection")
    assert ask(tab).startswith("Log-probability per token: -") and tab.locator("#drawn img").is_visible()


def test_nothing_leaves_this_machine(tab, server):
    strangers = [url for url in tab.requests if not url.startswith((server.address + "/", "data:", f"blob:{server.address}"))]
    assert strangers == [] and len(tab.requests) > 10
    assert [line for line in tab.console if "Content Security Policy" in line] == []
    assert not server.asked_outside()


def test_the_command_ends_with_ctrl_c(tab, server):
    """The last test of this file: it ends the server, while the browser is still connected."""
    assert [path.name for path in server.temporary.iterdir() if path.name.startswith("ofa_page_")] != []
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(STOP_S) == 0, "".join(server.printed)
    server.reader.join(STOP_S)
    assert "Traceback" not in "".join(server.printed) and "rror" not in "".join(server.printed), "".join(server.printed)
    assert [path.name for path in server.temporary.iterdir() if path.name.startswith("ofa_page_")] == [], "uploads are removed"
