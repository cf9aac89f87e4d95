"""A page in the browser where one person at this machine gives instructions to a model: `launch/predict.py --serve`.

It is served on 127.0.0.1 alone and asks nothing of the internet: no analytics, no shared link, system fonts; a header tells the browser
to fetch nothing from elsewhere, and requests that name another host or come from another site are refused. Uploads are bounded, one
instruction runs at a time, and what a person can mend is said on the page in one sentence. Everything but `build_page` and `serve`
works without gradio, which requirements-serve.txt brings.
"""

from __future__ import annotations

import dataclasses
import html
import io
import math
import os
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.config.errors import ConfigError, DataError, UserError
from ofa_jax.config.schema import RunConfig, VocabConfig
from ofa_jax.data.records import Box, Caption, Question, Region
from ofa_jax.data.transforms.image import decode_image
from ofa_jax.eval.codec import PictureCodec, load_codec
from ofa_jax.eval.instruct import LIKELIEST, OUTPUTS, Instructor, Output, Prediction, Request
from ofa_jax.eval.instruct_drawing import draw_panel
from ofa_jax.eval.instruct_files import read_picture
from ofa_jax.tasks import text_infilling
from ofa_jax.tasks.base import Codes, Item, Location, Negatives, Objects, Part, TaskContext, Words
from ofa_jax.tasks.table import TASKS
from ofa_jax.vocab.boxes import box_to_bins
from ofa_jax.vocab.tokenizer import Tokenizer

HOST, DEFAULT_PORT = "127.0.0.1", 7860
MAX_MEGABYTES = 20  # of an uploaded file
MAX_PIXELS = 50_000_000  # of a picture: 150 MB when it is decoded
MAX_CHARACTERS = 10_000  # of an instruction, before it is split into tokens
MAX_BEAM = 10
FIXED_LENGTH: tuple[Output, ...] = ("box", "codes")  # outputs whose number of tokens nobody chooses

_WAITING = 8  # instructions in the queue
_KEPT_S = 86_400  # uploads and drawings stay for a day, or until the page ends
_ORIENTATION = 274  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# ---------------------------------------------------------------------------------------------------------------- what is offered
@dataclasses.dataclass(frozen=True)
class Template:
    """What choosing a task fills in."""

    label: str
    task: str  # its name in `tasks.table`
    text: str  # the instruction that the task writes for an example, whose words a person replaces
    output: Output
    hint: str


def templates(config: RunConfig, tokenizer: Tokenizer) -> tuple[Template, ...]:
    """The tasks in the order of the page. The tasks' own code writes the instructions, so they are those of training to the space."""
    px = float(config.eval.image_px)
    box = Box(px / 4, px / 4, px * 3 / 4, px * 3 / 4)
    sides = box_to_bins((0, 0, px, px), canvas_px=config.vocab.canvas_px, num_bins=config.vocab.num_bins)
    region = f"Describes a part of the picture: left, top, right, bottom, from <bin_0> to <bin_{sides[2]}>."
    offered: tuple[tuple[str, str, Item, str], ...] = (
        ("VQA", "vqa", Question("what color is the hat?", "red"), "Answers a question about the picture."),
        ("Captioning", "captioning", Caption("a red hat"), "Describes the picture."),
        ("Matching (caption)", "matching", Caption("a red hat"), "Says yes or no: is this caption the picture's?"),
        ("Matching (answer)", "matching", Question("what color is the hat?", "red"), "Says yes or no: is this the answer?"),
        ("Grounding", "grounding", Region("the red hat", box), "Finds the place of what the words between the quotes describe."),
        ("Grounded captioning", "grounded_captioning", Region("the red hat", box), region),
        ("Detection", "detection", Objects(()), "Names every object and its place."),
        ("Image infilling", "image_infilling", Codes(()), "Paints the middle of the picture, which it then does not see."),
    )
    context = TaskContext(tokenizer, Negatives(), "", config.eval.source_len, config.eval.target_len, train=False)
    made = [
        Template(label, task, _shown(_written(task, item, config.vocab, context)), TASKS[task].output, hint)
        for label, task, item, hint in offered
    ]
    # A passage is noised by chance: here one chosen word is hidden.
    passage = f"{text_infilling.OPENING} the red hat lies <mask> the table{text_infilling.CLOSING}"
    hint = "Writes the text with what <mask> hides. Give it no picture."
    return (*made, Template("Text infilling", "text_infilling", _shown(passage), TASKS["text_infilling"].output, hint))


def _written(task: str, item: Item, vocab: VocabConfig, context: TaskContext) -> str:
    """The source of the task for `item` as a person types it. The generator's first draw makes matching's example a true one."""
    return "".join(_part(part, vocab) for part in TASKS[task].build(item, np.random.default_rng(0), context).source)


def _part(part: Part, vocab: VocabConfig) -> str:
    if isinstance(part, Words):
        return part.text
    if isinstance(part, Location):
        return "".join(f"<bin_{k}>" for k in box_to_bins(part.box, canvas_px=vocab.canvas_px, num_bins=vocab.num_bins))
    raise TypeError(f"source: found {type(part).__name__}, expected Words or Location")


def _shown(text: str) -> str:
    """Without its first space where the instructor adds just that again."""
    return text[1:] if text.startswith(" ") and not text.startswith("  ") else text


# ------------------------------------------------------------------------------------------------------------------ what is asked
@dataclasses.dataclass(frozen=True)
class Asked:
    """One press of the button. The fields are what a browser sent: nothing about them is checked yet."""

    text: Any
    output: Any = "text"
    path: str | None = None  # of the uploaded picture
    name: str = "picture"  # what the person's machine calls it
    beam: Any = 1
    max_len: Any = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the page shows then."""

    answer: str = ""
    drawn: np.ndarray | None = None  # uint8 [h, w, 3]: the picture with boxes or filled-in codes
    notice: str = ""
    refused: bool = False  # the notice is an error


def follow(instructor: Instructor, asked: Asked, *, codec: PictureCodec | None) -> Shown:
    """What the page shows for one instruction; where something is wrong with it, that in one sentence. `codec` draws codes."""
    try:
        output, beam, max_len = read_settings(asked)
        picture = None if asked.path is None else read_upload(asked.path, asked.name)
        request = Request(read_text(asked.text), picture, asked.name)
        prediction = _predict(instructor, request, output, beam, max_len)
        notice = f"Log-probability per token: {prediction.score:.3f}."
        if output == "codes" and codec is None:
            return Shown(
                str(prediction),
                None,
                f"{notice} {instructor.config.data.dir} has neither vqgan.npz nor codebook.npz to draw the codes with.",
            )
        drawn = None if output == "text" else draw_panel(request, prediction, codec=codec)
    except UserError as error:
        return Shown(notice=str(error), refused=True)
    return Shown(str(prediction), drawn, notice)


def _predict(instructor: Instructor, request: Request, output: Output, beam: int, max_len: int | None) -> Prediction:
    setting = dataclasses.replace(LIKELIEST, beam=beam, max_len=max_len or 0)
    return instructor.predict(request, setting, output=output)


def read_settings(asked: Asked) -> tuple[Output, int, int | None]:
    """Output, beam size and longest answer; None for the config's own length, and where the output has a fixed one.

    Raises ConfigError for anything else than an output of `OUTPUTS` and whole numbers.
    """
    if asked.output not in OUTPUTS:
        raise ConfigError(f"output: found {asked.output!r}, expected one of {', '.join(OUTPUTS)}")
    beam = _whole("beam size", asked.beam, MAX_BEAM)
    if asked.output in FIXED_LENGTH or asked.max_len is None:
        return asked.output, beam, None
    return asked.output, beam, _whole("longest answer", asked.max_len)


def _whole(name: str, value: Any, most: float = math.inf) -> int:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (1 <= number <= most and float(number).is_integer()):
        expected = "of 1 or more" if most == math.inf else f"from 1 to {most}"
        raise ConfigError(f"{name}: found {value!r}, expected a whole number {expected}")
    return int(number)


def read_text(text: Any) -> str:
    """The instruction itself. Raises DataError for none and for more than `MAX_CHARACTERS`."""
    if not isinstance(text, str) or not text.strip():
        raise DataError("instruction: found none, expected a text")
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"instruction: found {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
    return text


def read_upload(path: str | Path, name: str) -> bytes:
    """The bytes of an uploaded picture, upright as browsers show it: the model sees what the person sees, and boxes are its pixels.

    Raises DataError, which calls it `name`, for one that is too large or does not decode.
    """
    data = read_picture(path)
    if len(data) > MAX_MEGABYTES << 20:
        raise DataError(f"{name}: found {len(data) / 2**20:.1f} MB, expected at most {MAX_MEGABYTES} MB")
    try:
        pixels = decode_image(data, max_pixels=MAX_PIXELS)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    turn = _TURNS.get(_orientation(data))
    if turn is None:
        return data
    out = io.BytesIO()
    Image.fromarray(pixels).transpose(turn).save(out, "PNG")
    return out.getvalue()


def _orientation(data: bytes) -> int:
    """The EXIF orientation; 1, as it is stored, where there is none that can be read."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):
        return 1


def notice(text: str, *, refused: bool) -> str:
    """The HTML of a notice, empty for an empty text."""
    kind, role = ("refused", "alert") if refused else ("note", "status")
    return f'<p class="{kind}" role="{role}">{html.escape(text)}</p>' if text else ""


# -------------------------------------------------------------------------------------------------------------------- the server
def free_port(port: int | None) -> int:
    """`port` where it can be taken; for 0 any free one; for None `DEFAULT_PORT`, or any free one where that is taken.

    Raises ConfigError for a number that is no port and for a port that cannot be taken.
    """
    if port is not None and not 0 <= port < 1 << 16:
        raise ConfigError(f"--port: found {port}, expected 0 (any that is free) to {(1 << 16) - 1}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that ended a moment ago leaves its port
        try:
            probe.bind((HOST, DEFAULT_PORT if port is None else port))
        except OSError as error:
            if port is not None:
                raise ConfigError(f"--port: found {port}, which cannot be taken ({error.strerror}), expected a free one") from error
        else:
            return probe.getsockname()[1]
    return free_port(0)


class LoopbackOnly:
    """Server code (an ASGI application) around another: lets pass what this machine's own pages ask, and tells browsers to stay here.

    A page of another site can send requests to 127.0.0.1, under a name of its own that it points there too: both are refused.
    """

    POLICY = (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "frame-ancestors 'none'; form-action 'self'"
    )
    _NAMES = (HOST, "localhost")

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Answers one request: 403 for a stranger's, the inner application's answer with the policy for others."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if host.partition(":")[0] not in self._NAMES or origin not in (None, f"http://{host}"):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": f"found a request of {origin or host}, expected one of {HOST}\n".encode()})
            return

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", self.POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self._app(scope, receive, answer)


def serve(load: Callable[[], Instructor], *, run: str, port: int | None = None) -> None:
    """Serves the page of the model that `load` loads until Ctrl-C (or the signal TERM), and prints its address once it answers.

    `port` is as in `free_port`. Raises ConfigError where gradio is missing or the port cannot be taken, before anything is loaded, and
    as `load` does.
    """
    port = free_port(port)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: uploads are removed
    with tempfile.TemporaryDirectory(prefix="ofa_page_", ignore_cleanup_errors=True) as folder:
        page = None
        try:
            gr = _import_gradio(folder)
            instructor = load()
            page = build_page(gr, instructor, run=run, codec=load_codec(instructor.config.data.dir))
            _launch(gr, page, port)
            print(f"serving {run} at http://{HOST}:{port}", flush=True)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("", flush=True)  # below the ^C of a terminal
        finally:
            signal.signal(signal.SIGTERM, before)
            if page is not None:
                page.close(verbose=False)


def _import_gradio(folder: str) -> Any:
    """gradio, which reads its settings from the environment when it is imported: none of them but these."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # It asks its own page whether it is there: not through a proxy.
    outside = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{outside},{HOST}".lstrip(",")
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ConfigError(f"--serve: found no package {error.name}, expected it: pip install -r requirements-serve.txt") from error
    return gradio


def _launch(gr: Any, page: Any, port: int) -> None:
    from starlette.middleware import Middleware

    theme = gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"),
        font_mono=("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"),
    )  # fmt: skip
    try:
        page.launch(
            server_name=HOST, server_port=port, share=False, inline=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            show_error=True, max_file_size=MAX_MEGABYTES << 20, footer_links=[], run_history=False, enable_monitoring=False,
            ssr_mode=False, pwa=False, mcp_server=False, app_kwargs={"middleware": [Middleware(LoopbackOnly)]}, theme=theme, css=_CSS,
        )  # fmt: skip
    except OSError as error:  # taken since it was tried
        raise ConfigError(f"--port: found {port}, which cannot be taken ({error}), expected a free one") from error


_CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
#title h1 { font-size: 1.35rem; font-weight: 650; margin: 0.4rem 0 0.1rem; }
#title p { color: var(--body-text-color-subdued); margin: 0; overflow-wrap: anywhere; }
#notice p { margin: 0; padding: 0.6rem 0.9rem; border-radius: 8px; border-left: 4px solid; overflow-wrap: anywhere; }
#notice .refused { border-color: #d84315; background: rgba(216, 67, 21, 0.12); }
#notice .note { border-color: #00897b; background: rgba(0, 137, 123, 0.10); }
#answer textarea { font-size: 1.1rem; }
"""


def build_page(gr: Any, instructor: Instructor, *, run: str, codec: PictureCodec | None) -> Any:
    """The page (`gradio.Blocks`, not yet launched) of one model. `gr` is the module gradio, `codec` draws codes."""
    offered = {template.label: template for template in templates(instructor.config, instructor.tokenizer)}
    first = next(iter(offered.values()))
    outputs = [("Words", "text"), ("One box", "box"), ("Objects", "objects"), ("Image codes", "codes")]
    with gr.Blocks(title=f"OFA: {run}", analytics_enabled=False, delete_cache=(3600, _KEPT_S)) as page:
        model = f"{html.escape(instructor.source or run)}. The first answer of a kind takes longer: its program is compiled."
        gr.HTML(f"<h1>Ask OFA</h1><p>{model}</p>", elem_id="title")
        said = gr.HTML(elem_id="notice")
        with gr.Row(equal_height=False):
            with gr.Column():
                picture = gr.Image(
                    label=f"Picture, or none (at most {MAX_MEGABYTES} MB)", type="filepath", image_mode=None,
                    sources=["upload", "clipboard"], height=280, buttons=["fullscreen"], elem_id="picture",
                )  # fmt: skip
                task = gr.Radio(list(offered), value=first.label, label="Task: fills in its instruction", elem_id="task")
                text = gr.Textbox(first.text, label="Instruction: write any", info=first.hint, lines=2, max_lines=10, elem_id="instruction")
                output = gr.Radio(outputs, value=first.output, label="The answer is", elem_id="output")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                with gr.Accordion("Decoding", open=False):
                    beam = gr.Slider(1, MAX_BEAM, value=1, step=1, label="Beam size", info="1 is greedy decoding.", elem_id="beam")
                    max_len = gr.Number(
                        None, label="Longest answer", placeholder=str(instructor.config.eval.target_len), precision=0, minimum=1,
                        info="In tokens; boxes and codes have a fixed length.", elem_id="max_len",
                    )  # fmt: skip
            with gr.Column():
                answer = gr.Textbox(label="Answer", lines=4, max_lines=24, interactive=False, buttons=["copy"], elem_id="answer")
                drawn = gr.Image(
                    label="Drawn", format="png", interactive=False, visible=False, buttons=["download", "fullscreen"], elem_id="drawn"
                )

        def choose(label: str) -> tuple[Any, Any]:
            template = offered[label]
            return gr.update(value=template.text, info=template.hint), template.output

        def length_matters(kind: str) -> Any:
            return gr.update(interactive=kind not in FIXED_LENGTH)

        def uploaded(file: dict[str, Any]) -> tuple[Any, str]:
            try:
                read_upload(file["path"], file.get("orig_name") or "picture")
            except DataError as error:
                return None, notice(str(error), refused=True)
            return gr.skip(), ""

        def asked(file: dict[str, Any] | None, *words: Any) -> tuple[Any, ...]:
            text, output, beam, max_len = words
            given = {} if file is None else {"path": file["path"], "name": file.get("orig_name") or "picture"}
            shown = follow(instructor, Asked(text, output, beam=beam, max_len=max_len, **given), codec=codec)
            return shown.answer, gr.update(value=shown.drawn, visible=shown.drawn is not None), notice(shown.notice, refused=shown.refused)

        # Without gradio's own reading of the values: its sentences would stand beside ours, and it decodes pictures in another way.
        plain = {"preprocess": False, "api_visibility": "private"}
        task.input(choose, task, [text, output], queue=False, show_progress="hidden", **plain)
        output.change(length_matters, output, max_len, queue=False, show_progress="hidden", **plain)
        picture.upload(uploaded, picture, [picture, said], show_progress="hidden", **plain)
        gr.on(
            [ask.click, text.submit], asked, [picture, text, output, beam, max_len], [answer, drawn, said],
            concurrency_limit=1, show_progress_on=[answer], **plain,
        )  # fmt: skip
    return page.queue(max_size=_WAITING, default_concurrency_limit=1)
