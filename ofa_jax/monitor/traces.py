"""What a profiler trace says in a terminal: where the time of its device threads went, by operation.

A trace is a folder that the profiler wrote (`train/tracing`); it holds `perfetto_trace.json.gz`, events of the Trace Event Format: "X" with
begin and length in microseconds, by process and thread. An operation's own time is its length without the operations inside it.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import ConfigError

NAME = "perfetto_trace.json.gz"


@dataclasses.dataclass(frozen=True)
class Operation:
    """All runs of one kind of operation: `own_ms` over all threads, without what ran inside."""

    name: str
    count: int
    own_ms: float


def trace_files(folder: Path) -> list[Path]:
    """Returns the trace files at or below `folder`, by path. Raises ConfigError where there is none."""
    found = [folder] if folder.is_file() else sorted(folder.rglob(NAME))
    if not found:
        raise ConfigError(f"trace: found no {NAME} in {folder}, expected a folder that a run wrote, as runs/quickstart/traces/step_100")
    return found


def read_events(path: Path) -> list[dict[str, Any]]:
    """Returns the events of a file. Raises ConfigError where it is no trace, or was cut off."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return list(json.load(file)["traceEvents"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"trace {path}: found no whole trace ({type(error).__name__}: {error}), expected {NAME} of the profiler"
        ) from error


def operations(events: list[dict[str, Any]]) -> list[Operation]:
    """Returns the operations of the device's programs, the one with most time of its own first; those that differ by a number alone
    (`fusion.12`) count as one."""
    threads: dict[tuple[Any, Any], list[dict[str, Any]]] = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            threads[event.get("pid"), event.get("tid")].append(event)
    own: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for of_thread in threads.values():
        _add_own_times(of_thread, own)
    found = [Operation(name, int(count), us / 1e3) for name, (count, us) in own.items()]
    return sorted(found, key=lambda operation: -operation.own_ms)


def _add_own_times(events: list[dict[str, Any]], own: Mapping[str, list[float]]) -> None:
    inside: list[tuple[float, str]] = []  # ends and names of the operations that are under way
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        begin, length = float(event["ts"]), float(event["dur"])
        while inside and inside[-1][0] <= begin:
            inside.pop()
        name = re.sub(r"(\.\d+)+$", "", str(event["args"]["hlo_op"]))
        if inside:
            own[inside[-1][1]][1] -= min(length, inside[-1][0] - begin)
        own[name][0] += 1
        own[name][1] += length
        inside.append((begin + length, name))


def table(path: Path, *, top: int) -> str:
    """Returns the `top` operations of a trace as text, with how to see the whole of it."""
    events = read_events(path)
    found = operations(events)
    timed = [event for event in events if event.get("ph") == "X"]
    span_ms = (max(e["ts"] + e["dur"] for e in timed) - min(e["ts"] for e in timed)) / 1e3 if timed else 0.0
    total = sum(operation.own_ms for operation in found)
    rows = [f"{path}: {span_ms:,.1f} ms, {total:,.1f} ms of operations on all threads of the device"]
    width = max([len(operation.name) for operation in found[:top]], default=9)
    rows.append(f"{'operation':{width}}  {'runs':>7}  {'ms':>10}  {'share':>6}")
    for operation in found[:top]:
        share = 100 * operation.own_ms / total if total else 0.0
        rows.append(f"{operation.name:{width}}  {operation.count:>7,}  {operation.own_ms:>10,.2f}  {share:>5.1f}%")
    rest = found[top:]
    if rest:
        rows.append(f"{len(rest)} others: {sum(operation.own_ms for operation in rest):,.2f} ms")
    rows.append(
        "as a time line: open that file in https://ui.perfetto.dev (it stays on your machine), or `xprof --logdir=FOLDER` with its folder"
    )
    return "\n".join(rows)
