"""Evaluates checkpoints: `python launch/eval.py --config=configs/quickstart.py [--checkpoint=DIR] [--step=N] [--sets=a,b] [--no-report]`.

Writes eval.json, predictions.jsonl and report.html into the run's folder (`workdir`, or DIR where it is given), prints the table of
results against baselines. A sweep evaluates checkpoints times ways to decode times sets, and goes on where it was interrupted:

  --checkpoint=DIR   again for each further run or checkpoint; --all-steps takes every checkpoint of the runs, --watch those to come too
  --decode=NAME[:METHOD][,field=value ...]   again for each; methods greedy, beam, sample, score (ofa_jax/config/decoding.py: the fields)
  --sweep=FILE       get_sweep() -> SweepConfig in a file instead, as configs/sweeps/quickstart.py
  --render           also sweep.html: examples of every set, drawn, with what each checkpoint and way to decode made of them
  --out=DIR          of the sweep's points, predictions and tables; default: sweep/ in the first run's folder

Either way --submission[=DIR] writes the leaderboard files of VQA, captions and detections into DIR, or submissions/ in the folder of the
results; --reference=[SET=]FILE, again for each file, names official questions or images, whose ids must be those of the set.

On several hosts the same command runs on each: they share the examples, and the first one scores and writes.

Exit codes: 0 done, 2 a mistake told in one sentence, 77 a host that did not come or was lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.monitor.exits import REASONS, HangError, tell_end
from ofa_jax.parallel.huge_pages import start_with_huge_pages

if TYPE_CHECKING:
    from ofa_jax.config.decoding import SweepConfig

EXIT_MISTAKE = REASONS["config"].code
USAGE = "--config=FILE [--checkpoint=DIR] [--step=N] [--sets=a,b] [--no-report], or of a sweep (--help)"


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    from ofa_jax.data.records import RecordError

    if "--help" in argv:
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        return _evaluate([word for word in argv if word != "--traceback"])
    except (UserError, RecordError) as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return tell_end("hang" if isinstance(error, HangError) else "config", f"{type(error).__name__}: {error}")


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected {USAGE}")

    parser = Parser(prog="launch/eval.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--checkpoint", action="append", default=[])
    parser.add_argument("--step", type=int)
    parser.add_argument("--sets", default="")
    parser.add_argument("--decode", action="append", default=[])
    parser.add_argument("--sweep")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--all-steps", action="store_true")
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--no-report", action="store_true")
    parser.add_argument("--submission", nargs="?", const="")
    parser.add_argument("--reference", action="append", default=[])
    return parser.parse_args(argv[1:])


def _sweep_of(flags: argparse.Namespace, sets: list[str]) -> SweepConfig | None:
    """What the flags ask for, or None where it is the plain evaluation of one checkpoint."""
    from ofa_jax.config.decoding import GREEDY, SweepConfig, parse_setting
    from ofa_jax.config.load import read_sweep

    if not (flags.decode or flags.sweep or flags.all_steps or flags.watch or flags.render or flags.out or len(flags.checkpoint) > 1):
        return None
    if flags.step is not None:
        raise ConfigError("--step: found it in a sweep, expected --checkpoint=RUN/checkpoints/STEP")
    sweep = read_sweep(flags.sweep) if flags.sweep else SweepConfig((GREEDY,))
    given: dict[str, Any] = {"checkpoints": tuple(flags.checkpoint), "sets": tuple(sets), "decode": tuple(map(parse_setting, flags.decode))}
    return dataclasses.replace(sweep, **{field: value for field, value in given.items() if value})


def _evaluate(argv: list[str]) -> int:
    from ofa_jax.config.check import check
    from ofa_jax.config.load import load_config, run_folder

    config, rest = load_config(argv)
    flags = _parse(rest)
    check(config)
    if config.objective != "ofa":
        raise ConfigError(f"objective: found {config.objective}, expected ofa: only the whole model has tasks to be evaluated on")
    names = [name for name in flags.sets.split(",") if name]
    sweep = _sweep_of(flags, names)

    import jax

    from ofa_jax.eval.leaderboard import request_of
    from ofa_jax.eval.runner import chosen_sets
    from ofa_jax.parallel import hosts

    sets = chosen_sets(config, names or (sweep.sets if sweep else ()))
    asked = request_of(flags.submission, flags.reference)
    if config.precision == "f64":
        jax.config.update("jax_enable_x64", True)
    hosts.use_compilation_cache()
    progress = logging.getLogger("ofa_jax.eval")
    progress.setLevel(logging.INFO)
    progress.propagate = False  # the root logger's prefix would drown the line
    progress.addHandler(logging.StreamHandler(sys.stderr))
    hosts.start(say=progress.info)
    if sweep is not None:
        from ofa_jax.eval.sweep import sweep_or_watch
        from ofa_jax.eval.sweep_table import format_rows

        rows = sweep_or_watch(
            config, sweep, sets, default=run_folder(config), out=flags.out, all_steps=flags.all_steps, watch=flags.watch,
            render=flags.render, progress=progress.info if hosts.is_first() else lambda line: None, submission=asked,
        )  # fmt: skip
        if hosts.is_first():
            print(format_rows(rows))
        return 0

    from ofa_jax.eval.plain import evaluate_checkpoint, named_checkpoint

    start = time.perf_counter()
    folder, step = named_checkpoint(flags.checkpoint[0] if flags.checkpoint else None, run_folder(config), flags.step)
    found = evaluate_checkpoint(config, sets, folder=folder, step=step, with_report=not flags.no_report, start=start, submission=asked)
    if hosts.is_first():
        print(found)
    return 0


if __name__ == "__main__":
    start_with_huge_pages()
    sys.exit(main(sys.argv))
