"""The tables and the plot of `launch/scaling.py`: what was compiled, how well it was predicted, and what more chips would bring."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no window system is needed
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ofa_jax.config.errors import UserError
from ofa_jax.pods import scaling
from ofa_jax.pods.grid import KINDS, SIZES, topology_of
from ofa_jax.pods.roofline import OUTER_HOP_S
from ofa_jax.pods.scaling import FITTED, PREDICTED, Fit, Forecast

CHIPS = (8, 16, 64, 128, 256, 512, 1024, 2048, 4096)
WEAK_ROWS = 12.0  # of a chip: the paper's batch on 256 chips
ALLOWED = 0.05  # that a prediction of bytes may be off
KEPT = 0.9  # of the throughput that a chip has alone with 8: below, a batch is said not to scale further
_COLUMNS = (
    "size", "chips", "mesh data x fsdp", "rows", "parts", "norm over", "GB a chip", "to spare", "TFLOP a chip", "GB sent", "ms",
    "rows/s a chip", "MFU",
)  # fmt: skip
_HEADS = {"batch": "the paper's batch of {rows:,} rows", "rows": "{rows:g} rows a chip, the batch growing with the chips"}


def table(points: Mapping[str, Any], *, command: str) -> str:
    """Returns the compiled points as a page of Markdown."""
    lines = [
        "# What the sizes take on TPU pods",
        "",
        "Compiled ahead of time by libtpu for topologies that were not there; nothing here was run. Seconds are those of published rates",
        "with nothing overlapping (`ofa_jax/pods/roofline.py`): what the hardware allows, not what a program reaches.",
        "",
        f"    {command}",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    order = {name: (SIZES.index(size), KINDS.index(kind), int(chips)) for name in points for size, kind, chips in [name.split()]}
    for name in sorted(points, key=lambda name: order[name]):
        one, size = points[name], name.split()[0]
        peak, limit = one["memory"]["peak"], one["memory_limit"]
        group = next((flag.rpartition("=")[2] for flag in one["command"] if "norm_group" in flag), "")
        sent = sum(line["total_bytes"] for line in one["collectives"])
        cells = [
            size,
            one["topology"],
            f"{one['mesh']['data']} x {one['mesh']['fsdp']}",
            f"{one['rows']:,}",
            str(one["micros"]),
            f"{group} image(s)" if group else "all",
            f"{peak / 1e9:.1f}",
            f"{1 - peak / limit:.0%}",
            f"{one['executed'] / 1e12:.1f}",
            f"{sent / 1e9:.2f}",
            f"{one['times']['step_s'] * 1e3:,.0f}",
            f"{one['rows_s'] / one['chips']:,.1f}",
            f"{one['mfu']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(points: Mapping[str, Any], file: Path, *, command: str) -> list[str]:
    """Writes the page of scaling to `file` and its plot beside it (.png). Returns a line for every prediction that is off by more than
    `ALLOWED`. Raises `UserError` where a size and kind lacks a point."""
    fits = [_fit(points, size, kind) for size in SIZES for kind in KINDS if any(name.startswith(f"{size} {kind} ") for name in points)]
    forecasts = {(fit.size, fit.kind): {way: list(_forecasts(fit, way)) for way in _HEADS} for fit in fits}
    off: list[str] = []
    lines = [*_head(command, file), *_errors(points, fits, off)]
    for way, head in _HEADS.items():
        rows = fits[0].batch if way == "batch" else WEAK_ROWS
        lines += ["", f"## {head.format(rows=rows).capitalize()}", "", *_table(fits, forecasts, way)]
    lines += ["", "## Where the paper's batch stops scaling", "", *_limits(fits, forecasts)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plot(fits, forecasts, file.with_suffix(".png"))
    return off


def _fit(points: Mapping[str, Any], size: str, kind: str) -> Fit:
    missing = [chips for chips in (*FITTED, PREDICTED) if f"{size} {kind} {chips}" not in points]
    if missing:
        raise UserError(f"points: found none of {size} on {missing[0]} {kind}, expected it; run without --table")
    return scaling.fit(points, size, kind)


def _forecasts(fit: Fit, way: str) -> Iterator[Forecast]:
    for chips in CHIPS:
        topology = topology_of(fit.kind, chips)
        over = scaling.paths(topology, fit.fsdp)
        yield scaling.forecast(fit, topology, over, rows=fit.batch / chips if way == "batch" else WEAK_ROWS)


def _head(command: str, file: Path) -> list[str]:
    return [
        "# Scaling on paper",
        "",
        f"    {command}",
        "",
        f"![MFU and step time by chips]({file.with_suffix('.png').name})",
        "",
        f"Lines are fitted on steps compiled for {', '.join(map(str, FITTED))} chips: bytes over links, operations and memory are a fixed",
        "part and one for each row of a chip. Seconds are those of published rates, which no program reaches; nothing overlaps,",
        "collectives go one after another along rings of the real torus with a microsecond a hop, and slices of v5e and v6e beyond 256",
        f"chips are joined by their hosts' network, at {1e6 * OUTER_HOP_S:.0f} microseconds an exchange (assumed; batch norm of all chips",
        "asks for some hundreds a step, one over groups of images, `model.norm_group`, for none). The mesh is the hardware file's:",
        "parameters over 16 chips, copies beyond. Input, saving and stragglers are not counted.",
        "",
    ]


def _errors(points: Mapping[str, Any], fits: list[Fit], off: list[str]) -> list[str]:
    lines = [
        f"## Bytes predicted for {PREDICTED} chips, beside those compiled",
        "",
        f"| size | kind | {' | '.join(scaling.EXCHANGES)} |",
        "|---|---" + "|---" * len(scaling.EXCHANGES) + "|",
    ]
    for fit in fits:
        found = scaling.errors(points, fit.size, fit.kind)
        lines.append(f"| {fit.size} | {fit.kind} | {' | '.join(f'{found.get(name, 0.0):+.1%}' for name in scaling.EXCHANGES)} |")
        off += [f"{fit.size} {fit.kind}: {name}: off by {error:+.1%}" for name, error in found.items() if abs(error) > ALLOWED]
    return lines


def _table(fits: list[Fit], forecasts: Mapping[tuple[str, str], Mapping[str, list[Forecast]]], way: str) -> list[str]:
    lines = [f"| size | kind | {' | '.join(f'{chips} chips' for chips in CHIPS)} |", "|---|---|" + "---|" * len(CHIPS)]
    for fit in fits:
        cells = [
            f"{one.step_s * 1e3:,.0f} ({one.sent_s * 1e3:,.0f}) {one.mfu:.0%}" if one.rows >= 1 else "-"
            for one in forecasts[fit.size, fit.kind][way]
        ]
        lines.append(f"| {fit.size} | {fit.kind} | {' | '.join(cells)} |")
    return ["Milliseconds a step (of which between chips) and MFU; - where a chip would have less than a row.", "", *lines]


def _limits(fits: list[Fit], forecasts: Mapping[tuple[str, str], Mapping[str, list[Forecast]]]) -> list[str]:
    lines = [
        f"The most chips on which a chip keeps {KEPT:.0%} of the throughput that it has among 8 with the same batch, and the batches that",
        f"keep it on {PREDICTED} and on {CHIPS[-1]:,}. Last: a chip among {PREDICTED} against one among 8, {WEAK_ROWS:g} rows each.",
        "",
        f"| size | kind | chips for the paper's batch | rows for {PREDICTED} | rows for {CHIPS[-1]:,} | {PREDICTED} against 8 |",
        "|---|---|---|---|---|---|",
    ]
    for fit in fits:
        ways = forecasts[fit.size, fit.kind]
        alone = ways["batch"][0]
        best = alone.rows / alone.step_s
        most = max((one.chips for one in ways["batch"] if one.rows >= 1 and one.rows / one.step_s >= KEPT * best), default=0)
        needed = [_rows_needed(fit, chips, KEPT * best) for chips in (PREDICTED, CHIPS[-1])]
        weak = {one.chips: one for one in ways["rows"]}
        ratio = weak[8].step_s / weak[PREDICTED].step_s
        said = [f"{chips * rows:,.0f}" if rows else "none" for chips, rows in zip((PREDICTED, CHIPS[-1]), needed, strict=True)]
        lines.append(f"| {fit.size} | {fit.kind} | {most} | {' | '.join(said)} | {ratio:.0%} |")
    return lines


def _rows_needed(fit: Fit, chips: int, rate: float) -> int:
    """The fewest whole rows of a chip with which it makes `rate` rows a second; 0: more than 4,096."""
    topology = topology_of(fit.kind, chips)
    over = scaling.paths(topology, fit.fsdp)
    for rows in range(1, 4097):
        if rows / scaling.forecast(fit, topology, over, rows=float(rows)).step_s >= rate:
            return rows
    return 0


def _plot(fits: list[Fit], forecasts: Mapping[tuple[str, str], Mapping[str, list[Forecast]]], file: Path) -> None:
    """A column for each kind of chip, and for each way of growing a row of MFU and one of seconds a step."""
    kinds = [kind for kind in KINDS if any(fit.kind == kind for fit in fits)]
    shown = {"MFU at published rates, %": lambda one: 100 * one.mfu, "seconds a step": lambda one: one.step_s}
    figure = Figure(figsize=(4 * len(kinds), 3 * len(_HEADS) * len(shown)), layout="tight")
    axes = figure.subplots(len(_HEADS) * len(shown), len(kinds), sharex=True, sharey="row", squeeze=False)
    for row, ((way, head), (label, value)) in enumerate(itertools.product(_HEADS.items(), shown.items())):
        title = head.format(rows=fits[0].batch if way == "batch" else WEAK_ROWS)
        for column, kind in enumerate(kinds):
            place = axes[row][column]
            for fit in (fit for fit in fits if fit.kind == kind):
                points = [one for one in forecasts[fit.size, kind][way] if one.rows >= 1]
                place.plot([one.chips for one in points], [value(one) for one in points], marker="o", markersize=3, label=fit.size)
            place.set_xscale("log", base=2)
            place.set_xticks(CHIPS, [f"{chips}" for chips in CHIPS], fontsize=7)
            place.tick_params(labelbottom=True)
            place.set_title(f"{kind}: {title}", fontsize=8)
            place.grid(alpha=0.3)
        axes[row][0].set_ylabel(label, fontsize=8)
        if label.startswith("MFU"):
            axes[row][0].set_ylim(bottom=0)
        else:
            for place in axes[row]:
                place.set_yscale("log")
                place.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                place.yaxis.set_major_formatter("{x:g}")
                place.yaxis.set_minor_locator(NullLocator())
    for place in axes[-1]:
        place.set_xlabel("chips")
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=100)
