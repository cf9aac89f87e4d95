"""Kills a training run again and again, in every phase, and judges what it comes to: `fault_suite.py --config=PATH[:arg] --workdir=DIR`.

    python tests/e2e/fault_suite.py --config=tests/e2e/fault_run.py --workdir=runs/faults --kills=150 --out=docs/results/faults.json

Runs launch/train.py in one folder, kills it in a chosen phase (compile, data start, step, save, restore, evaluation), starts it again, and
after `--kills_per_run` kills lets it finish; then the next run, until there were `--kills`. Two of three kills are SIGKILL, the others
SIGTERM. `--runs` names the kinds of runs, in turn: `one` (one process, one device throughout), `two` (two processes of one device each
throughout), `changing` (float64; one process of 1, 2 or 4 devices or two of one, drawn anew for every life).

Judged against an uninterrupted run of the same kind: every life goes on from the newest committed checkpoint; SIGTERM loses no step, and
ends all processes with 75 at the same step; each batch led to the final parameters once, and is the uninterrupted run's; the last state
is the same to the last bit (`one`, `two`), or its parameters to 1e-6 (`changing`). Every life is a line of
`DIR/journal.jsonl`, and the same command goes on after a kill of its own. Exit code 1 where anything did not hold.

A config needs an evaluation set, and data that lies where it says, or generated fixtures. The other flags: `python ... --help`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fault_report
from fault_judge import LifeRecord, faults_of_batches, faults_of_life, faults_of_parameters
from lives import PHASES, Aim, Files, Job, Layout, json_lines, restored_step

KINDS = ("one", "changing", "two")
DELAYS_S = {"compile": 2.0, "data start": 0.3, "step": 0.5, "save": 0.3, "restore": 0.5, "evaluation": 1.0}  # at most, at first
DEADLINE_S = 300.0  # for a phase to come, or an end after SIGTERM
UNEXPECTED = 3  # lives in a row that end by themselves, at which the suite gives up


def flags(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="a run's config, PATH[:arg]")
    parser.add_argument("--workdir", required=True, type=Path, help="for the runs, their outputs and the journal")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--kills_per_run", type=int, default=25)
    parser.add_argument("--runs", default="one,changing,two,changing,changing,changing", help=f"kinds of runs, in turn: {', '.join(KINDS)}")
    parser.add_argument("--devices", default="1,2,4", help="numbers of devices of one process, in changing runs")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--save_every", type=int, default=5, help="steps")
    parser.add_argument("--evaluate_every", type=int, default=10, help="steps")
    parser.add_argument("--hang_s", type=float, default=60.0, help="of the runs (config field hang_s)")
    parser.add_argument("--patience_s", type=float, default=15.0, help="after which a process that outlives the other one is killed too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause_while", type=Path, help="a file: no life is begun while it exists")
    found = parser.parse_args(argv)
    found.runs, found.devices = found.runs.split(","), [int(number) for number in found.devices.split(",")]
    if unknown := set(found.runs) - set(KINDS):
        parser.error(f"--runs: found {', '.join(sorted(unknown))}, expected some of {', '.join(KINDS)}")
    return found


class Suite:
    """The journal, and what follows from it."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.workdir: Path = options.workdir.resolve()
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._path = self.workdir / "journal.jsonl"
        self.lives: list[LifeRecord] = []
        self.ends: dict[int, dict[str, Any]] = {}  # judgements by run
        self.references: set[str] = set()
        self.open: dict[str, Any] | None = None  # the begin of a life whose end was not written down
        self.limits = dict(DELAYS_S)
        for line in json_lines(self._path):
            self._replay(line)

    def _replay(self, line: dict[str, Any]) -> None:
        event = line.pop("event")
        if event == "options" and line["options"] != self._fixed():
            raise SystemExit(f"{self._path}: found {line['options']}, expected the same options as before or another --workdir")
        if event == "begin":
            self.open = line
        elif event == "life":
            self.lives.append(LifeRecord(**line))
            self.open = None
        elif event == "end":
            self.ends[line["run"]] = line
        elif event == "reference":
            self.references.add(line["name"])

    def _fixed(self) -> dict[str, Any]:
        """The options that the lives of one journal share."""
        free = ("workdir", "out", "pause_while", "kills", "patience_s")
        return {name: value for name, value in vars(self.options).items() if name not in free}

    def write(self, event: str, **facts: Any) -> None:
        """Appends a line to the journal."""
        with self._path.open("a") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")

    @property
    def kills(self) -> list[LifeRecord]:
        """The lives that got a signal in a phase."""
        return [life for life in self.lives if life.signal and life.hit in PHASES]

    def of_run(self, run: int) -> list[LifeRecord]:
        """The lives of a run, in order."""
        return [life for life in self.lives if life.run == run]

    def kind(self, run: int) -> str:
        """The kind of a run."""
        return str(self.options.runs[run % len(self.options.runs)])

    def folder(self, run: int) -> Path:
        """The run's folder."""
        return self.workdir / f"run_{run}"

    # -- going on

    def go_on(self) -> None:
        """Kills and judges until the wanted number of kills is reached, and what was begun is finished."""
        if not self._path.exists():
            self.write("options", options=self._fixed())
        if self.open is not None:
            self._close_interrupted(self.open)
        run = 0
        while run in self.ends or self.of_run(run) or len(self.kills) < self.options.kills:
            if run not in self.ends:
                self._finish_run(run)
            run += 1

    def _finish_run(self, run: int) -> None:
        while True:
            lives = self.of_run(run)
            if lives and lives[-1].newest == self.options.steps and lives[-1].codes and not any(lives[-1].codes):
                break
            kills = sum(life.signal != "" for life in lives)
            struck = kills < self.options.kills_per_run and len(self.kills) < self.options.kills
            tail = lives[-UNEXPECTED:]
            if len(tail) == UNEXPECTED and all(not life.signal and any(life.codes) for life in tail):
                raise SystemExit(
                    f"run {run}: {UNEXPECTED} lives in a row ended by themselves, the last with {tail[-1].codes}; see {self.workdir}"
                )
            self._live(run, struck=struck)
        self._judge(run)

    def _live(self, run: int, *, struck: bool) -> None:
        """One life of a run, with or without a kill."""
        while self.options.pause_while and self.options.pause_while.exists():
            time.sleep(1)
        lives = self.of_run(run)
        draw = random.Random(f"{self.options.seed} {run} {len(lives)}")
        files = Files(self.folder(run))
        before = files.committed()
        aimed = self._phase(run, draw) if struck else ""
        layout = self._layout(run, aimed, draw)
        record = LifeRecord(run, len(lives), layout.processes, layout.devices, max(before, default=0), before, aimed=aimed)
        aim = self._aim(record, draw) if struck else None
        logs = self._logs(record)
        record.began = time.time()
        self.write("begin", record=dataclasses.asdict(record))
        began = time.monotonic()
        job = Job(self._arguments(record, draw), layout, logs, workdir=files.workdir, cache=self.workdir / "xla")
        if aim is not None:
            record.hit = job.wait_for(aim, DEADLINE_S)
            self._adapt(aimed, missed=record.hit != aimed)  # also where the life ended before: evaluations that are cached are short
        if aim is not None and record.hit:
            job.strike(aim)
            record.signal, record.hosts = aim.signal, list(aim.hosts)
        patient = record.signal == "SIGKILL"
        record.codes, record.forced = job.finish(self.options.patience_s if patient else DEADLINE_S)
        record.seconds = round(time.monotonic() - began, 1)
        if record.signal == "SIGKILL" and len(record.hosts) == record.processes:
            phases = job.phases()  # what the dead left says more than what was seen in the moment before
            record.hit = aimed if aimed in phases else phases[0]
        self._write_down(record, logs)

    def _close_interrupted(self, begun: dict[str, Any]) -> None:
        """Writes down a life that ended with this program, when that was killed: its processes got SIGKILL."""
        record = LifeRecord(**begun["record"])
        record.signal, record.hit, record.hosts = "SIGKILL", "unknown", list(range(record.processes))
        record.codes = [-9] * record.processes
        self._write_down(record, self._logs(record))

    def _write_down(self, record: LifeRecord, logs: Sequence[Path]) -> None:
        files = Files(self.folder(record.run))
        texts = [log.read_text(errors="replace") for log in logs]
        record.after, record.restored = files.committed(), restored_step(logs[0])
        record.said_damaged = any("is damaged" in text for text in texts)
        batches = [files.batches(host, record.began) for host in range(record.processes)]
        record.last_batch = max(batches[0], default=None)
        record.batches = [{str(step): of[step] for step in of if record.start <= step < record.newest} for of in batches]
        record.end_steps = [files.last_end(host).get("step") for host in range(record.processes)]
        self.write("life", **dataclasses.asdict(record))
        self.lives.append(record)
        self.open = None
        print(fault_report.line(record, kills=len(self.kills), wanted=self.options.kills, left_s=self._left_s()), flush=True)
        for sentence in faults_of_life(record, steps=self.options.steps):
            print(f"  FAULT: {sentence}", flush=True)

    def _left_s(self) -> float:
        """Seconds that the kills still wanted will take, by those there were."""
        kills = self.kills
        return sum(life.seconds for life in self.lives) / max(len(kills), 1) * max(self.options.kills - len(kills), 0)

    # -- what happens to a life

    def _phase(self, run: int, draw: random.Random) -> str:
        hits = Counter(life.hit for life in self.kills)
        possible = [phase for phase in PHASES if phase != "evaluation" or self.kind(run) != "two"]  # two processes do not evaluate
        if not Files(self.folder(run)).committed():
            possible.remove("restore")  # of a run without a checkpoint there is nothing to restore
        return min(possible, key=lambda phase: (hits[phase], draw.random()))

    def _layout(self, run: int, aimed: str, draw: random.Random) -> Layout:
        if self.kind(run) == "one":
            return Layout(1, 1)
        lives = self.of_run(run)
        two = sum(life.processes == 2 for life in lives)
        if self.kind(run) == "two" or (aimed not in ("evaluation", "") and 3 * two <= len(lives)):
            return Layout(2, 1)
        if not aimed:  # the end of a changing run, which the uninterrupted one makes on one device
            return Layout(1, max(self.options.devices))
        others = [number for number in self.options.devices if not lives or number != lives[-1].devices]
        return Layout(1, draw.choice(others or self.options.devices))

    def _aim(self, record: LifeRecord, draw: random.Random) -> Aim:
        hits = Counter(life.hit for life in self.kills)
        name = "SIGTERM" if (hits[record.aimed] + PHASES.index(record.aimed)) % 3 == 1 else "SIGKILL"
        hosts = list(range(record.processes))
        if record.processes > 1 and draw.random() < (0.5 if name == "SIGKILL" else 0.8):
            hosts = [draw.choice(hosts)]  # one of them alone
        left = self.options.steps - record.start
        after = {
            "step": draw.randrange(1, max(min(2 * self.options.save_every, left), 2)),
            # The second save proves the first: a run that were always killed in its first would not come forward.
            "save": self.options.save_every + 1 if left > 2 * self.options.save_every and draw.random() < 0.5 else 1,
        }
        limit_s = self.limits[record.aimed]
        if record.aimed == "step":  # of which few may be left
            limit_s *= min(left / (2 * self.options.save_every), 1.0)
        return Aim(record.aimed, name, tuple(hosts), after.get(record.aimed, 0), draw.uniform(0, limit_s))

    def _adapt(self, phase: str, *, missed: bool) -> None:
        """Phases are as long as model and machine make them: kills come anywhere in them, and seldom behind their end."""
        self.limits[phase] *= 0.6 if missed else 1.1

    def _logs(self, record: LifeRecord) -> list[Path]:
        folder = self.workdir / "outputs"
        folder.mkdir(exist_ok=True)
        return [folder / f"run_{record.run}_life_{record.life}_host_{host}.txt" for host in range(record.processes)]

    def _arguments(self, record: LifeRecord, draw: random.Random) -> list[str]:
        workers = int(record.aimed == "data start" or draw.random() < 0.25)  # without one, data starts in a blink
        return [*self._of_kind(self.kind(record.run), self.folder(record.run), record.processes), f"--config.data.num_workers={workers}"]

    def _of_kind(self, kind: str, folder: Path, processes: int) -> list[str]:
        options = self.options
        return [
            f"--config={options.config}",
            f"--config.workdir={folder}",
            f"--config.steps={options.steps}",
            f"--config.checkpoint.every_steps={options.save_every}",
            "--config.checkpoint.every_s=0",
            f"--config.eval.every_steps={options.evaluate_every if processes == 1 else 0}",
            f"--config.hang_s={options.hang_s}",
            "--config.data.write_digests=true",
            *(["--config.precision=f64"] if kind == "changing" else []),
        ]

    # -- judgement

    def _reference(self, kind: str) -> Path:
        """The folder of the uninterrupted run of a kind, which is made when it is missing."""
        name = f"reference_{kind}"
        folder = self.workdir / name
        if name not in self.references:
            layout = Layout(2 if kind == "two" else 1, 1)
            logs = [self.workdir / "outputs" / f"{name}_host_{host}.txt" for host in range(layout.processes)]
            print(f"the uninterrupted run of kind {kind}", flush=True)
            job = Job(self._of_kind(kind, folder, layout.processes), layout, logs, workdir=folder, cache=self.workdir / "xla")
            codes, _ = job.finish(4 * DEADLINE_S)
            if any(codes):
                raise SystemExit(f"{logs[0]}: the uninterrupted run ended with {codes}, expected 0")
            self.references.add(name)
            self.write("reference", name=name)
        return folder

    def _judge(self, run: int) -> None:
        kind, lives = self.kind(run), self.of_run(run)
        expected = {
            processes: [Files(self._reference("two" if processes == 2 else "one")).batches(host) for host in range(processes)]
            for processes in {life.processes for life in lives}
        }
        verdict = fault_report.compared(self.folder(run), self._reference(kind))
        found = [sentence for life in lives for sentence in faults_of_life(life, steps=self.options.steps)]
        found += faults_of_batches(lives, steps=self.options.steps, expected=expected)
        found += faults_of_parameters(run, verdict, bitwise=kind != "changing")
        end = {"run": run, "kind": kind, "state": verdict, "faults": found}
        self.write("end", **end)
        self.ends[run] = end
        print(f"run {run} ({kind}): {len(lives)} lives; {json.dumps(verdict)}; {len(found)} faults", flush=True)
        for sentence in found:
            print(f"  FAULT: {sentence}", flush=True)


def main(argv: Sequence[str]) -> int:
    """Runs the suite and returns its exit code."""
    suite = Suite(flags(argv))
    suite.go_on()
    result = fault_report.result(suite.lives, list(suite.ends.values()), config=suite.options.config)
    print(fault_report.table(result))
    if suite.options.out:
        suite.options.out.parent.mkdir(parents=True, exist_ok=True)
        suite.options.out.write_text(fault_report.text(result))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
