"""One self-contained HTML page of a run: results against baselines, loss curves, and held-out examples drawn.

Everything is read back from the run's folder (eval.json, predictions.jsonl, eval_pictures/, metrics.jsonl), so the page can be made
again without the model. Pictures are embedded; the sheets and curves also lie beside the page as PNG files.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ofa_jax.config.errors import DataError
from ofa_jax.config.render import config_hash
from ofa_jax.config.rows import CODE_TASKS
from ofa_jax.config.schema import RunConfig
from ofa_jax.eval import drawing
from ofa_jax.eval.codec import PictureCodec, load_codec
from ofa_jax.eval.runner import PICTURES_DIR, PREDICTIONS_FILE, RESULTS_FILE
from ofa_jax.metrics.bootstrap import interval_text

REPORT_FILE, CURVES_FILE, SHEETS_DIR = "report.html", "loss_curves.png", "report_pictures"

_CREDITS = {
    "scenes": (
        "The scenes are synthetic compositions of real artwork: emoji drawn by <a href='https://openmoji.org'>OpenMoji</a>, the "
        "open-source emoji and icon project, licence <a href='https://creativecommons.org/licenses/by-sa/4.0/'>CC BY-SA 4.0</a>, changed "
        "by scaling and placing. Pictures of scenes in this report are under the same licence. They are no photographs."
    ),
    "easy_vqa": "easy-VQA (V. Zhou, MIT licence) is a published set of questions about drawings of single shapes.",
}
_CODES_NOTE = (
    "Image codes are those of CODEC. “True codes” is the truth encoded and decoded again, so no fill can look better. “Generated” is "
    "decoded code after code, from what the model said itself, greedily where the config names no other way (generated_code_accuracy). "
    "code_accuracy is teacher-forced: every code is predicted from the true codes before it, which is easier, and its baseline sees the "
    "true code before as well."
)
_METHOD = (
    "DECODED Text infilling is teacher-forced and counts hidden tokens only. Intervals are 95 % "
    "percentile bootstraps over records. Baselines are learned from training data, but for matching, where it is the better constant "
    "answer on the set itself. CIDEr-D (1.0 is usually printed as 100) and BLEU split words simply and do not use the Java tokeniser of "
    "published numbers. A greedy decoder gives objects no confidence: AP orders them by place in the output, so F1 is the fairer number."
)
_STYLE = """
:root { --ink: #1c2833; --soft: #5d6d7e; --line: #dfe4ea; --truth: TRUTH; --prediction: PREDICTION }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1240px;
  padding: 24px }
h1 { font-size: 26px; margin: 0 0 4px }
h2 { font-size: 19px; margin: 36px 0 8px; padding-top: 12px; border-top: 1px solid var(--line) }
p { margin: 6px 0; max-width: 90ch }
small { color: var(--soft) }
.facts { color: var(--soft); margin: 0 0 12px }
.facts b { color: var(--ink); font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-size: 13.5px }
th, td { padding: 4px 8px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-weight: 600; color: var(--soft) }
td:first-child { white-space: nowrap }
td:last-child { min-width: 150px }
.wide { overflow-x: auto }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.above { color: #1b7837; font-weight: 600 }
.near { color: var(--soft) }
.below { color: #b2182b; font-weight: 600 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(262px, 1fr)); gap: 16px }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)) }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow-wrap: anywhere; font-size: 14px }
.card img { display: block; width: 100%; max-width: 256px; image-rendering: pixelated; border-radius: 4px }
.card .score { float: right; color: var(--soft); font-size: 12px; margin-left: 8px }
.panels { display: grid; grid-template-columns: repeat(4, 1fr); gap: 6px }
.panels span { font-size: 12px; color: var(--soft) }
.ask { color: var(--soft); margin: 6px 0 2px }
.said { color: var(--prediction) }
.true { color: var(--truth) }
.key { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin: 0 4px 0 10px; vertical-align: -1px }
.curves { width: 100%; max-width: 1000px }
mark { background: #fff3c4; color: inherit; padding: 0 1px }
"""


def write_report(directory: str | Path, config: RunConfig, *, facts: dict[str, str] | None = None) -> Path:
    """Writes report.html, loss_curves.png and report_pictures/ into the run's folder and returns the page's path.

    `facts` are further (name, value) pairs for the head of the page. Raises DataError where the evaluation's files are missing.
    """
    directory = Path(directory)
    for name in (RESULTS_FILE, PREDICTIONS_FILE):
        if not (directory / name).exists():
            raise DataError(f"{directory / name}: found no such file, expected the results of launch/eval.py")
    results = json.loads((directory / RESULTS_FILE).read_text(encoding="utf-8"))
    with open(directory / PREDICTIONS_FILE, encoding="utf-8") as lines:
        shown = [line for line in map(json.loads, lines) if line.get("shown")]
    metrics = drawing.read_metrics(directory / "metrics.jsonl") if (directory / "metrics.jsonl").exists() else []
    curves = drawing.draw_loss_curves(metrics, directory / CURVES_FILE)
    codec = load_codec(config.data.dir)
    (directory / SHEETS_DIR).mkdir(exist_ok=True)

    body = [f"<h1>{escaped(config.name)}</h1>", _facts(config, metrics, facts or {}), notes(shown, codec)]
    body += ["<h2>Held-out results against baselines</h2>", f"<p><small>{_method(config)}</small></p>", _table(results)]
    if curves:
        body += ["<h2>Loss by task</h2>", f"<img class=curves alt='loss curves' src='{_embedded((directory / CURVES_FILE).read_bytes())}'>"]
    for name in results:
        its = [line for line in shown if line["set"] == name]
        if its:
            body.append(_section(name, its, directory, codec))
    (directory / REPORT_FILE).write_text(page(f"{config.name}: report", body), encoding="utf-8")
    return directory / REPORT_FILE


def page(title: str, body: Sequence[str]) -> str:
    """Returns a whole HTML page of parts of HTML, in the reports' style."""
    style = _STYLE.replace("TRUTH", drawing.TRUTH_COLOUR).replace("PREDICTION", drawing.PREDICTION_COLOUR)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escaped(title)}</title><style>{style}</style><body>{''.join(body)}</body></html>\n"
    )


def escaped(value: Any) -> str:
    """Returns a value as text that means itself in HTML."""
    return html.escape(str(value))


def _embedded(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def embedded_pixels(pixels: np.ndarray, *, exact: bool = True) -> str:
    """Returns the address of a picture, uint8 [h, w, 3], that holds all of it: a PNG, or where it need not be `exact` a small JPEG."""
    out = io.BytesIO()
    if not exact:
        Image.fromarray(pixels).save(out, "JPEG", quality=90)
        return _embedded(out.getvalue(), "jpeg")
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return _embedded(out.getvalue())


def _facts(config: RunConfig, metrics: Sequence[dict[str, Any]], facts: dict[str, str]) -> str:
    known = {"config": config_hash(config)[:12]}
    if metrics:
        last = metrics[-1]
        known["training log"] = f"up to step {last['step']:,} of {config.steps:,}"
        if last.get("time_s") is not None:
            known["training time"] = f"{last['time_s'] / 60:.1f} min"
    return "<p class=facts>" + " · ".join(f"{escaped(k)} <b>{escaped(v)}</b>" for k, v in {**known, **facts}.items()) + "</p>"


def notes(lines: Sequence[dict[str, Any]], codec: PictureCodec | None) -> str:
    """Returns what must be said about the data of these predictions: where pictures come from, their licence, and what made their codes."""
    datasets = {line["dataset"] for line in lines}
    said = [note for dataset, note in _CREDITS.items() if dataset in datasets]
    if any(line["task"] in CODE_TASKS for line in lines):
        made_by = "a codec that is not in the data folder, so that no fill is drawn" if codec is None else codec.description
        said.append(_CODES_NOTE.replace("CODEC", escaped(made_by)))
    return "".join(f"<p>{note}</p>" for note in said)


def _method(config: RunConfig) -> str:
    ways = "; ".join(config.eval.decode)
    decoded = (
        f"Sets are decoded as the config says ({escaped(ways)}), others greedily."
        if ways
        else "Text, boxes and objects are decoded greedily."
    )
    return _METHOD.replace("DECODED", decoded)


def _table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    heads = ("set", "metric", "value", "95 % interval", "baseline", "margin", "n", "baseline is")
    numbers = heads[2:7]
    rows = ["<div class=wide><table><tr>" + "".join(f"<th{' class=n' if h in numbers else ''}>{h}" for h in heads) + "</tr>"]
    for name, metrics in results.items():
        for place, (metric, r) in enumerate(metrics.items()):
            low, high = r["interval_95"]
            kind = "near" if low is None else "above" if low > r["baseline"] else "below" if high < r["baseline"] else "near"
            rows.append(
                f"<tr><td>{escaped(name) if place == 0 else ''}<td>{escaped(metric)}"
                f"<td class=n>{r['value']:.3f}<td class=n>{interval_text(r['interval_95']).replace('..', '–')}"
                f"<td class=n>{r['baseline']:.3f}"
                f"<td class='n {kind}'>{r['value'] - r['baseline']:+.3f}<td class=n>{r['n']:,}<td>{escaped(r['baseline_name'])}</tr>"
            )
            if details := _details(r):
                rows.append(f"<tr><td><td colspan={len(heads) - 1}><small>{details}</small></tr>")
    return "".join(rows) + "</table></div>"


def _details(result: dict[str, Any]) -> str:
    """What stands below a metric: its value by number of objects, and how many outputs were malformed."""
    parts = []
    if result.get("by_num_objects"):
        groups = [
            f"{size}: <b>{group['value']:.2f}</b> ({group['baseline']:.2f}, n {group['n']})"
            for size, group in result["by_num_objects"].items()
        ]
        parts.append("by objects in the picture (baseline): " + " · ".join(groups))
    if result.get("malformed"):
        parts.append(f"malformed outputs: {result['malformed']} of {result['n']}")
    return "; ".join(parts)


def _section(name: str, lines: Sequence[dict[str, Any]], directory: Path, codec: PictureCodec | None) -> str:
    """The cards of one set; its contact sheet is written as a PNG beside the page."""
    task = lines[0]["task"]
    legend = "<p>" + "".join(f"<span class=key style='background:var(--{kind})'></span>{kind}" for kind in ("truth", "prediction")) + "</p>"
    cards, sheet = [], []
    for line in lines:
        pixels = np.asarray(Image.open(directory / PICTURES_DIR / line["picture"]).convert("RGB")) if line.get("picture") else None
        panels = drawing.example_panels(line, pixels, codec)
        asked = line["instruction"].strip()
        said, true = words(line)
        pictures = "".join(picture_html(caption, panel) for caption, panel in panels)
        if len(panels) > 1:
            pictures = f"<div class=panels>{pictures}</div>"
        cards.append(
            f"<div class=card>{pictures}<div class=ask><span class=score>score {line['score']:.2f}</span>{escaped(asked)}</div>"
            f"<div class=said>{_marked(line, said)}</div><div class=true>{escaped(true)}</div></div>"
        )
        colours = ("#5d6d7e", drawing.PREDICTION_COLOUR, drawing.TRUTH_COLOUR)
        sheet.append((panels, [(text, c) for text, c in zip((asked, said, true), colours, strict=True) if text]))
    drawing.contact_sheet(sheet).save(directory / SHEETS_DIR / f"{name.replace('/', '_')}.png")
    wide = " wide" if task in (*CODE_TASKS, "text_infilling") else ""
    return f"<h2>{escaped(name)}</h2>{legend if task in ('grounding', 'detection') else ''}<div class='cards{wide}'>{''.join(cards)}</div>"


def picture_html(caption: str, pixels: np.ndarray, *, exact: bool = True) -> str:
    """Returns a picture, embedded (`embedded_pixels`), with its caption below."""
    below = f"<span>{escaped(caption)}</span>" if caption else ""
    return f"<div><img alt='{escaped(caption)}' src='{embedded_pixels(pixels, exact=exact)}'>{below}</div>"


def words(line: dict[str, Any]) -> tuple[str, str]:
    """Returns the prediction and the truth of a line of predictions.jsonl in words."""
    task, prediction, reference = line["task"], line["prediction"], line["reference"]
    if task in CODE_TASKS:
        right, forced = (sum(p == r for p, r in zip(codes, reference, strict=True)) for codes in (line["generated"], prediction))
        return f"{right} of {len(reference)} generated codes right ({forced} when teacher-forced)", ""
    if task == "grounding":
        said = "no box: malformed output" if prediction is None else "box " + _box_text(prediction)
        return said, "box " + _box_text(reference)
    if task == "detection":
        said, true = (", ".join(o["label"] for o in objects) or "nothing" for objects in (prediction, reference))
        malformed = f" ({line['malformed']} malformed)" if line.get("malformed") else ""
        return "said: " + said + malformed, "true: " + true
    return "said: " + (prediction or "(nothing)"), "true: " + " / ".join(reference)


def _box_text(box: Sequence[float]) -> str:
    return ", ".join(f"{v:.0f}" for v in box)


def _marked(line: dict[str, Any], said: str) -> str:
    """The prediction as HTML; words of a filled-in text that differ from the truth's word at the same place are marked."""
    if line["task"] != "text_infilling":
        return escaped(said)
    true = line["reference"][0].split()
    words = line["prediction"].split()
    if len(true) != len(words):  # another number of words: places do not correspond
        return escaped(said)
    return "said: " + " ".join(escaped(w) if w == t else f"<mark>{escaped(w)}</mark>" for w, t in zip(words, true, strict=True))
