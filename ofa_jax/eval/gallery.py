"""One HTML page of a sweep: its table, and examples of every set with what each checkpoint and way to decode made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import DataError
from ofa_jax.eval.codec import load_codec
from ofa_jax.eval.collect import Examples
from ofa_jax.eval.drawing import enlarge, example_panels
from ofa_jax.eval.report import escaped, notes, page, picture_html, words

GALLERY_FILE = "sweep.html"
_DRAWN = ("box", "objects", "codes")  # outputs that are drawn on the picture, once a point


class Gallery:
    """Collects the sections of the page, set by set."""

    def __init__(self, data_dir: str, shown: int):
        """`shown` examples of a set, spread over it, are drawn; image codes are drawn by what `data_dir` has."""
        self._codec, self._shown = load_codec(data_dir), shown
        self._sections: list[str] = []
        self._lines: list[dict[str, Any]] = []

    def add(self, examples: Examples, predictions: Sequence[tuple[str, Path]]) -> None:
        """Adds a set: the points' names and their files of predictions, one line an example in the order of `examples`.

        Raises DataError for a file of another number of lines.
        """
        count = len(examples.examples)
        chosen = [k * count // min(self._shown, count) for k in range(min(self._shown, count))]
        found = {name: _read(path, count) for name, path in predictions}
        cards = [self._card(examples, i, {name: lines[i] for name, lines in found.items()}) for i in chosen]
        wide = " wide" if examples.task.output == "codes" or (len(found) > 2 and examples.task.output in _DRAWN) else ""
        self._lines += [lines[i] for lines in found.values() for i in chosen]
        self._sections.append(f"<h2>{escaped(examples.eval_set.name)}</h2><div class='cards{wide}'>{''.join(cards)}</div>")

    def _card(self, examples: Examples, i: int, lines: dict[str, dict[str, Any]]) -> str:
        """One example: its picture, the instruction, what every point said, the truth."""
        example = examples.examples[i]
        pixels = examples.images[example.picture] if len(examples.images) else None
        pictures = ""
        if pixels is not None and examples.task.output in _DRAWN:
            for name, line in lines.items():
                panels = example_panels(line, pixels, self._codec)
                pictures += "".join(picture_html(f"{name}: {caption}" if caption else name, panel) for caption, panel in panels)
            pictures = f"<div class=panels>{pictures}</div>"
        elif pixels is not None:
            pictures = picture_html("", enlarge(pixels))
        said = "".join(
            f"<div class=said><small>{escaped(name)} ({line['score']:.2f})</small> {escaped(words(line)[0])}</div>"
            for name, line in lines.items()
        )
        any_line = next(iter(lines.values()))
        asked, true = any_line["instruction"].strip(), words(any_line)[1]
        return f"<div class=card>{pictures}<div class=ask>{escaped(asked)}</div>{said}<div class=true>{escaped(true)}</div></div>"

    def write(self, path: Path, *, title: str, table: Sequence[Sequence[str]]) -> None:
        """Writes the page; `table` is the sweep's, its header first."""
        header, *rows = table
        body = [f"<h1>{escaped(title)}</h1>", notes(self._lines, self._codec), "<div class=wide><table><tr>"]
        body += [f"<th>{escaped(cell)}" for cell in header]
        body += ["<tr>" + "".join(f"<td>{escaped(cell)}" for cell in row) for row in rows]
        path.write_text(page(title, [*body, "</table></div>", *self._sections]), encoding="utf-8")


def _read(path: Path, count: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(lines) != count:
        raise DataError(f"{path}: found {len(lines)} predictions, expected {count}, one an example; remove the file to have it made again")
    return lines
