"""The merged table of a sweep: as JSON, CSV, Markdown and for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.eval.points import write_whole
from ofa_jax.metrics.bootstrap import interval_text

TABLE = "sweep"
COLUMNS = ("checkpoint", "set", "decode", "metric", "value", "low", "high", "baseline", "baseline_name", "n")


def write_tables(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Writes `sweep.json` (the rows), `sweep.csv` and `sweep.md` into `out`."""
    write_whole(out / f"{TABLE}.json", json.dumps(list(rows), indent=1) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / f"{TABLE}.csv", text.getvalue())
    header, *body = cells_of(rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *body)]
    write_whole(out / f"{TABLE}.md", "\n".join(lines) + "\n")


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the table for a terminal: one line a set, metric and checkpoint, one column a way to decode."""
    cells = cells_of(rows)
    widths = [max(len(row[c]) for row in cells) for c in range(len(cells[0]))]
    lines = ["  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def cells_of(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table, its header first: sets, metrics, checkpoints down, ways to decode across; a cell is a value and its interval."""
    settings = list(dict.fromkeys(row["decode"] for row in rows))
    table: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault((row["set"], row["metric"], row["checkpoint"]), {})[row["decode"]] = row
    return [["set", "metric", "checkpoint", *settings, "baseline", "n"], *_body(table, settings)]


def _body(table: dict[tuple[str, str, str], dict[str, dict[str, Any]]], settings: list[str]) -> Iterator[list[str]]:
    for key, found in table.items():
        any_row = next(iter(found.values()))
        cells = {s: (row["value"], interval_text((row["low"], row["high"]))) for s, row in found.items()}
        values = [f"{cells[s][0]:.3f} ({cells[s][1]})" if s in cells else "" for s in settings]
        yield [*key, *values, f"{any_row['baseline']:.3f}", str(any_row["n"])]
