"""How a run goes, read from the files of its folder and drawn as one screen of text. Nothing is asked of the run itself.

The folder may be watched while the run writes, after it ended, or from another machine that shares the disk. Lines that are being written
are left for the next look; a file that a resume has cut is read again from its start.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import ConfigError
from ofa_jax.monitor.heartbeat import Beat, read_beats, slowest

WIDTH = 100  # columns of a frame
CURVE = 20  # columns of a curve
_BARS = "▁▂▃▄▅▆▇█"
_NUM_EVENTS = 8
_GONE_S = 60.0  # of silence after which a host counts as gone


class Follower:
    """The lines of a growing file of JSON lines; `new` returns those since the last call."""

    def __init__(self, path: Path):
        self.path = path
        self._offset, self._inode = 0, -1

    def new(self) -> tuple[bool, list[dict[str, Any]]]:
        """Returns (whether the file began anew, so that earlier lines are void; the records of its whole new lines)."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                anew = facts.st_ino != self._inode or facts.st_size < self._offset
                if anew:
                    self._offset, self._inode = 0, facts.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return False, []
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        return anew, [json.loads(line) for line in content[:whole].splitlines() if _is_json(line)]


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # a line that a kill cut off
        return False


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened: when (as the file says it; "" where it does not), and what."""

    at: str
    what: str


class RunFiles:
    """What the files of a run's folder say, kept up to date by `look`."""

    def __init__(self, workdir: Path):
        """Raises ConfigError where there is no run in `workdir`."""
        if not (workdir / "config.json").is_file() and not any(workdir.glob("lives_*.jsonl")):
            raise ConfigError(f"--workdir: found no run in {workdir}, expected a folder that launch/train.py wrote, as runs/quickstart")
        self.workdir = workdir
        self.config: dict[str, Any] = {}
        self.curves: dict[str, dict[int, float]] = collections.defaultdict(dict)  # of losses, by step
        self.last: dict[str, Any] = {}  # the newest record of an interval
        self.beats: list[Beat] = []
        self.lives: dict[str, list[dict[str, Any]]] = {}
        self._metrics = Follower(workdir / "metrics.jsonl")
        self.written = 0.0  # seconds of the Unix epoch when metrics were last written

    def look(self) -> RunFiles:
        """Reads what is new and returns itself."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # not there yet, or being written: what was known stays
            self.config = json.loads((self.workdir / "config.json").read_text(encoding="utf-8"))
        anew, records = self._metrics.new()
        if anew:
            self.curves.clear()
            self.last = {}
        for record in records:
            for name, value in record.items():
                if name.startswith(("loss/", "held_out/")) and value is not None:
                    self.curves[name][record["step"]] = value
            if "loss/total" in record:
                self.last = record
        if self._metrics.path.exists():
            self.written = self._metrics.path.stat().st_mtime
        self.beats = read_beats(self.workdir)
        self.lives = {path.stem.removeprefix("lives_"): _records(path) for path in sorted(self.workdir.glob("lives_*.jsonl"))}
        return self

    def events(self) -> list[Event]:
        """Returns the newest events: starts and ends, checkpoints, bad steps and rewinds, rejected records; in the order of their time,
        those without one last."""
        found = []
        for host, records in self.lives.items():
            where = f"host {host}: " if len(self.lives) > 1 else ""
            found += [Event(str(record.get("time", "")), where + _life_event(record)) for record in records]
        for record in _records(self.workdir / "checkpoints.jsonl"):
            facts = ", ".join(f"{name} {value}" for name, value in record.items() if name not in ("event", "step", "at", "changes"))
            found.append(
                Event(str(record.get("at", "")), f"checkpoint of step {record.get('step')}: {record.get('event')} {facts}".rstrip())
            )
        found.sort(key=lambda event: (event.at, "ended at step" in event.what))  # seconds alone are known: an end comes last
        undated = []
        for path in sorted(self.workdir.glob("bad_steps*.jsonl")):
            undated += [Event("", _bad_event(record)) for record in _records(path)]
        for path in sorted(self.workdir.glob("rejects_*.jsonl")):
            rejects = _records(path)
            if rejects:
                last = rejects[-1]
                said = f"{last.get('dataset')} {last.get('record')}: {last.get('reason')}"
                undated.append(Event("", f"{len(rejects)} rejected records in {path.name}, the last: {said}"))
        undated = undated[-(_NUM_EVENTS // 2) :]
        return found[-(_NUM_EVENTS - len(undated)) :] + undated


def _records(path: Path) -> list[dict[str, Any]]:
    return Follower(path).new()[1]


def _life_event(record: Mapping[str, Any]) -> str:
    if record.get("event") == "start":
        return f"started (process {record.get('pid')}, {record.get('processes')} in all)"
    message = str(record.get("message") or "")
    return f"ended at step {record.get('step')}: {record.get('reason')}" + (f" ({message})" if message else "")


def _bad_event(record: Mapping[str, Any]) -> str:
    if "rewind" in record:
        rewind = record["rewind"]
        return f"rewind from step {rewind['from_step']} to {rewind['to_step']}: {rewind['why']}"
    return f"bad step {record.get('step')} skipped: {', '.join(record.get('reasons', []))} (loss {record.get('loss')})"


def curve(points: Mapping[int, float], *, columns: int = CURVE) -> str:
    """Returns the course of a number as `columns` bars: each the mean of its share of the steps, from the lowest to the highest."""
    steps = sorted(points)
    values = [points[step] for step in steps if math.isfinite(points[step])]
    if not values:
        return " " * columns
    columns_of = min(columns, len(values))
    shares = [values[i * len(values) // columns_of : (i + 1) * len(values) // columns_of] for i in range(columns_of)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means).ljust(columns)


def frame(run: RunFiles, *, now: float | None = None, width: int = WIDTH) -> str:
    """Returns one screen, without colours: lines of at most `width` columns. now: seconds of the Unix epoch."""
    now = time.time() if now is None else now
    rows: list[str] = [_headline(run, now), _progress(run, width)]
    if run.last:
        rows += ["", *_losses(run), "", *_numbers(run.last)]
    if not _has_ended(run):  # heartbeats are gone then
        rows += ["", _hosts(run, now)]
    events = run.events()
    if events:
        rows += ["", "events"] + [f"  {event.at[11:19] or '--:--:--'}  {event.what}" for event in events]
    return "\n".join((row if len(row) <= width else row[: width - 1] + "…").rstrip() for row in rows)


def _headline(run: RunFiles, now: float) -> str:
    name = run.config.get("name", run.workdir.name)
    lives = max((sum(record.get("event") == "start" for record in records) for records in run.lives.values()), default=0)
    alive = [beat for beat in run.beats if now - beat.written < _GONE_S]
    if _has_ended(run):
        state = f"ended: {next(iter(run.lives.values()))[-1].get('reason')}"
    else:
        state = "running" if alive else "silent"
    heard = f"last numbers {_duration(max(now - run.written, 0.0))} ago   " if run.written and not _has_ended(run) else ""
    return f"{name}   {state}   life {lives}   {heard}{run.workdir}"


def _has_ended(run: RunFiles) -> bool:
    """Whether every host noted the end of its last life."""
    return bool(run.lives) and all(records and records[-1].get("event") == "end" for records in run.lives.values())


def _progress(run: RunFiles, width: int) -> str:
    steps = int(run.config.get("steps") or 0)
    step = max([int(run.last.get("step", 0)), *(beat.step for beat in run.beats)])
    share = min(step / steps, 1.0) if steps else 0.0
    said = f"step {step:,} of {steps:,}  {100 * share:.1f} %"
    if run.last.get("time/left_s") is not None and not _has_ended(run):
        said += f"  {_duration(run.last['time/left_s'])} left"
    bar = max(width - len(said) - 2, 10)
    return f"{'█' * round(bar * share)}{'░' * (bar - round(bar * share))}  {said}"


def _losses(run: RunFiles) -> list[str]:
    """The table of losses; the columns of a band and of held-out batches where the run has them."""
    names = ["loss/total", *sorted(name for name in run.curves if name.startswith("loss/nll/"))]
    width = max(len(_short(name)) for name in names)
    in_band = any(f"reference/{name}" in run.last for name in names)
    held_out = any(name.startswith("held_out/") for name in run.curves)

    def row(name: str, now: str, course: str, place: str, held: str, held_course: str) -> str:
        cells = [f"{name:{width}}", f"{now:>8}", f"{course:{CURVE}}"]
        cells += [f"{place:12}"] if in_band else []
        return "  ".join([*cells, f"{held:>8}", held_course] if held_out else cells)

    rows = [row("loss", "now", "course", "band", "held out", "course")]
    for name in names:
        held = run.curves.get("held_out/loss" if name == "loss/total" else f"held_out/nll/{_short(name)}", {})
        last = _number(held[max(held)]) if held else ""
        place = _place(run.last.get(f"reference/{name}"))
        rows.append(row(_short(name), _number(run.last.get(name)), curve(run.curves[name]), place, last, curve(held)))
    return rows


def _place(distance: float | None) -> str:
    if not distance:
        return "" if distance is None else "within"
    return f"{100 * abs(distance):.1f} % {'ahead' if distance < 0 else 'behind'}"


def _short(name: str) -> str:
    return "total" if name == "loss/total" else name.rsplit("/", 1)[-1]


def _numbers(last: Mapping[str, Any]) -> list[str]:
    """The rows on speed, time, memory and gradients; what the record does not say is left out."""

    def some(*parts: str) -> str:
        return "   ".join(part for part in parts if part)

    def said(name: str, form: Callable[[float], str]) -> str:
        value = last.get(name)
        return "" if value is None else form(float(value))

    mfu = {name.rsplit("/", 1)[-1]: value for name, value in last.items() if name.startswith("perf/mfu/") and value is not None}
    parts = f" ({', '.join(f'{name} {100 * value:.1f}' for name, value in mfu.items())})" if mfu else ""
    speed = some(
        said("perf/examples_per_s", lambda v: f"{v:,.1f} examples/s"),
        said("perf/useful_tokens_per_s", lambda v: f"{v:,.0f} useful tokens/s"),
        said("data/useful_tokens", lambda v: f"{100 * v:.0f} % of positions useful"),
    )
    work = some(
        said("time/step_ms", lambda v: f"{v:,.0f} ms a step"),
        said("time/data_wait_ms", lambda v: f"{v:,.1f} ms of it waiting for data"),
        said("perf/mfu", lambda v: f"MFU {100 * v:.1f} %{parts}") or said("perf/flops_per_s", lambda v: f"{v / 1e12:.3g} TFLOP/s"),
    )
    spent = {name[8:-2]: float(value) for name, value in last.items() if name.startswith("goodput/") and name.endswith("_s")}
    total = sum(spent.values())
    by_cause = ", ".join(f"{name} {100 * value / total:.1f} %" for name, value in _largest(spent)) if total else ""
    memory = some(
        said("memory/host_peak_bytes", lambda v: f"host {v / 1e9:.2f} GB"),
        said("memory/workers_peak_bytes", lambda v: f"workers {v / 1e9:.2f} GB"),
        said("memory/device_peak_bytes", lambda v: f"device {v / 1e9:.2f}")
        + said("memory/device_limit_bytes", lambda v: f" of {v / 1e9:.2f} GB"),
    )
    norms = {name.rsplit("/", 1)[-1]: value for name, value in last.items() if name.startswith("optimizer/grad_norm/")}
    gradient = some(
        said("optimizer/grad_norm", lambda v: f"{v:.3g}")
        + (f" ({', '.join(f'{n} {_number(v)}' for n, v in norms.items())})" if norms else ""),
        said("optimizer/learning_rate", lambda v: f"learning rate {v:.3g}"),
    )
    rows = [("speed", speed), ("", work), ("time", by_cause), ("memory", memory), ("gradient", gradient)]
    return [f"{name:8}  {row}" for name, row in rows if row]


def _largest(spent: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    return sorted(spent.items(), key=lambda item: -item[1])


def _hosts(run: RunFiles, now: float) -> str:
    beats = run.beats
    if not beats:
        return "hosts     none is heard of"
    gone = [str(beat.host) for beat in beats if now - beat.written >= _GONE_S]
    silent = f"; silent for over a minute: {', '.join(gone)}" if gone else ""
    return f"hosts     {len(beats)}; {slowest(beats, now=now)}{silent}"


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.4g}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    days, hours, minutes = whole // 86_400, whole % 86_400 // 3_600, whole % 3_600 // 60
    if days:
        return f"{days}d{hours:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{whole % 60:02d}s"
