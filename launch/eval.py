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

One row of the published tables: `python launch/eval.py --reproduce=refcoco/large/testA [--checkpoint=RUN] [--data=DIR]` pins config, set,
prompt, picture size, decoding and metric (ofa_jax/config/published.py), prints ours beside the published value and its band, and writes
reproduced.json and reproduced.md into the run's folder; --reproduce=list has the rows, ROW:debug runs on the fixtures, --digest=HASH (or a
JSON file of hashes by row, as reproduced.json is) pins the checkpoint.

On several hosts the same command runs on each: they share the examples, and the first one scores and writes.

Exit codes: 0 done, 1 a row that was measured outside its band, 2 a mistake told in one sentence, 77 a host that did not come or was lost.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.monitor.exits import REASONS, HangError, tell_end
from ofa_jax.parallel.huge_pages import start_with_huge_pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from ofa_jax.config.schema import RunConfig

EXIT_MISTAKE, EXIT_OUTSIDE = REASONS["config"].code, 1


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    from ofa_jax.data.records import RecordError

    if "--help" in argv:
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        words = [word for word in argv if word != "--traceback"]
        return _reproduce(words) if any(word.partition("=")[0] == "--reproduce" for word in words) else _evaluate(words)
    except (UserError, RecordError) as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return tell_end("hang" if isinstance(error, HangError) else "config", f"{type(error).__name__}: {error}")


def _start(config: RunConfig) -> Callable[[str], None]:
    """Starts the hosts; returns what prints a line of progress, on all of them."""
    import jax

    from ofa_jax.parallel import hosts

    if config.precision == "f64":
        jax.config.update("jax_enable_x64", True)
    hosts.use_compilation_cache()
    progress = logging.getLogger("ofa_jax.eval")
    progress.setLevel(logging.INFO)
    progress.propagate = False  # the root logger's prefix would drown the line
    progress.addHandler(logging.StreamHandler(sys.stderr))
    hosts.start(say=progress.info)
    return progress.info


def _reproduce(argv: list[str]) -> int:
    from ofa_jax.eval import pinned, reproduce, reproduce_flags
    from ofa_jax.parallel import hosts

    asked = reproduce_flags.read(argv)
    if asked is None:
        print(pinned.list_rows())
        return 0
    say = _start(asked.pinned.config)
    found = reproduce.reproduce(asked, progress=say if hosts.is_first() else lambda line: None)
    if hosts.is_first():
        print(found.text)
    return EXIT_OUTSIDE if found.within is False else 0


def _evaluate(argv: list[str]) -> int:
    from ofa_jax.config.check import check
    from ofa_jax.config.load import load_config, run_folder
    from ofa_jax.eval import eval_flags

    config, rest = load_config(argv)
    flags = eval_flags.parse(rest)
    check(config)
    if config.objective != "ofa":
        raise ConfigError(f"objective: found {config.objective}, expected ofa: only the whole model has tasks to be evaluated on")
    names = [name for name in flags.sets.split(",") if name]
    sweep = eval_flags.sweep_of(flags, names)

    from ofa_jax.eval.leaderboard import request_of
    from ofa_jax.eval.runner import chosen_sets
    from ofa_jax.parallel import hosts

    sets = chosen_sets(config, names or (sweep.sets if sweep else ()))
    asked = request_of(flags.submission, flags.reference)
    say = _start(config)
    if sweep is not None:
        from ofa_jax.eval.sweep import sweep_or_watch
        from ofa_jax.eval.sweep_table import format_rows

        rows = sweep_or_watch(
            config, sweep, sets, default=run_folder(config), out=flags.out, all_steps=flags.all_steps, watch=flags.watch,
            render=flags.render, progress=say if hosts.is_first() else lambda line: None, submission=asked,
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
