"""What the fault suite prints and writes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fault_judge import LifeRecord, steps_by_layout
from lives import PHASES

SIGNALS = ("SIGKILL", "SIGTERM")


def line(life: LifeRecord, *, kills: int, wanted: int, left_s: float) -> str:
    """The progress line of a life."""
    if life.signal:
        struck = f"{life.signal} in {life.hit}" + (f" (aimed at {life.aimed})" if life.aimed != life.hit else "")
        if life.processes > 1:
            struck += f" of host {' and '.join(map(str, life.hosts))}"
    else:
        struck = "left alone" if not life.aimed else f"ended before {life.aimed} came"
    forced = ", the other was killed too" if life.forced else ""
    return (
        f"run {life.run} life {life.life}: {life.processes} x {life.devices} from step {life.start}: {struck}: exit {life.codes}{forced}, "
        f"checkpoints {life.before} -> {life.after}, {life.seconds:.0f} s; {kills} of {wanted} kills, about {left_s / 60:.0f} min left"
    )


def compared(workdir: Path, reference: Path) -> dict[str, Any]:
    """What compare_states.py says of the last states of two runs; in a process of its own, for its own precision."""
    program = Path(__file__).with_name("compare_states.py")
    done = subprocess.run([sys.executable, str(program), str(workdir), str(reference)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"{program} {workdir} {reference}: exit code {done.returncode}\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def result(lives: Sequence[LifeRecord], ends: Sequence[Mapping[str, Any]], *, config: str) -> dict[str, Any]:
    """Everything, as the JSON file has it."""
    kills = [life for life in lives if life.signal and life.hit in PHASES]
    return {
        "config": config,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "kills": len(kills),
        "by_phase": {phase: {name: sum((k.hit, k.signal) == (phase, name) for k in kills) for name in SIGNALS} for phase in PHASES},
        "aimed_and_hit": sum(life.hit == life.aimed for life in kills),
        "lives": len(lives),
        "lives_of_two_processes": sum(life.processes == 2 for life in lives),
        "kills_of_two_processes": sum(life.processes == 2 for life in kills),
        "seconds": round(sum(life.seconds for life in lives)),
        "runs": [
            {
                "run": end["run"],
                "kind": end["kind"],
                "lives": sum(life.run == end["run"] for life in lives),
                "kills": sum(life.run == end["run"] for life in kills),
                "layouts": sorted({f"{life.processes} x {life.devices}" for life in lives if life.run == end["run"]}),
                "steps_by_layout": steps_by_layout([life for life in lives if life.run == end["run"]]),
                "state": end["state"],
                "faults": len(end["faults"]),
            }
            for end in sorted(ends, key=lambda end: end["run"])
        ],
        "faults": [sentence for end in ends for sentence in end["faults"]],
        "each_life": [_row(life) for life in lives],
    }


def _row(life: LifeRecord) -> dict[str, Any]:
    names = ("run", "life", "processes", "devices", "aimed", "hit", "signal", "hosts", "codes", "forced", "start", "restored", "last_batch")
    return {name: getattr(life, name) for name in names} | {"before": life.before, "after": life.after, "seconds": life.seconds}


def text(found: Mapping[str, Any]) -> str:
    """JSON with a line a life."""
    rows = ",\n".join("    " + json.dumps(row) for row in found["each_life"])
    head = json.dumps({name: value for name, value in found.items() if name != "each_life"}, indent=2)
    return f'{head[:-2]},\n  "each_life": [\n{rows}\n  ]\n}}\n'


def table(found: Mapping[str, Any]) -> str:
    """The result in words."""
    rows = ["phase        SIGKILL  SIGTERM"]
    rows += [f"{phase:12} {of['SIGKILL']:7} {of['SIGTERM']:8}" for phase, of in found["by_phase"].items()]
    hit, two, minutes = found["aimed_and_hit"], found["lives_of_two_processes"], found["seconds"] / 60
    rows.append(f"{found['kills']} kills ({hit} in the phase aimed at), {found['lives']} lives, {two} of two processes, {minutes:.0f} min")
    for run in found["runs"]:
        state = run["state"]
        same = "the same to the last bit" if state["bitwise"] else f"parameters within {state['parameters']:.1e}"
        layouts = ", ".join(f"{steps} steps by {layout}" for layout, steps in run["steps_by_layout"].items())
        rows.append(
            f"run {run['run']} ({run['kind']}: {layouts}): {run['kills']} kills, {run['lives']} lives; {same}; {run['faults']} faults"
        )
    rows.append(f"{len(found['faults'])} faults")
    return "\n".join(rows)
