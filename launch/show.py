"""Shows the batch of a step: `python launch/show.py --config=configs/quickstart.py --step=300 [--task=NAME] [--dataset=NAME] [--rejects]`.

Makes the batch that the run trains on at that step, by the same code, and writes one self-contained HTML page: every row as the network
gets it, its boxes and hole, its sequences in words, the record it came from, and the records that were rejected.

  --step=N        the step as the log counts it, from 1: the batch with data_step N - 1; or --data_step=N
  --task=NAME     only rows with this task, and of their sequences only its own
  --dataset=NAME  only rows of this dataset
  --rejects       only rows whose first draw was rejected
  --rows=N        at most N rows of a block (default 32; 0: all); a page holds 400 in all, more rows take more pages (FILE-2.html, ...)
  --out=FILE      default: show_<step>.html in the run's folder

Where the run wrote digests of its batches (data.write_digests), the page says whether they agree. Any step can be shown, past or to come;
no checkpoint is needed. The whole batch is made, whatever is shown of it, because its digest is that of all rows: of the 3,072 rows of the
pretraining mixture some 100 a second, in 2 to 3 GB of memory. Exit codes: 0 done, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError

EXIT_MISTAKE = 2
USAGE = "--config=FILE --step=N [--task=NAME] [--dataset=NAME] [--rejects] [--rows=N] [--out=FILE]"


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        return _show([word for word in argv if word != "--traceback"])
    except UserError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected {USAGE}")

    parser = Parser(prog="launch/show.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--step", type=int)
    parser.add_argument("--data_step", type=int)
    parser.add_argument("--task", default="")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--rejects", action="store_true")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv[1:])


def _show(argv: list[str]) -> int:
    from ofa_jax.config.check import check
    from ofa_jax.config.load import load_run, run_folder

    config, rest = load_run(argv)
    flags = _parse(rest)
    check(config)
    if (flags.step is None) == (flags.data_step is None):
        raise ConfigError("--step: found neither or both of --step and --data_step, expected one: --step=N, N as in the log, from 1")
    data_step = flags.data_step if flags.step is None else flags.step - 1
    if data_step < 0:
        raise ConfigError("--step: found a step before the first, expected --step=1 or more, or --data_step=0 or more")

    # A page needs no accelerator, and one that trains must not be disturbed. JAX is imported for the codes of pictures alone.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    from ofa_jax.config.debug import datasets_of, uses_fixtures
    from ofa_jax.eval.batch_page import write_batch_page
    from ofa_jax.eval.batch_rows import Selection, check_selection
    from ofa_jax.eval.countdown import Countdown
    from ofa_jax.tasks.training_data import training_pipeline

    selection = Selection(flags.task, flags.dataset, flags.rejects, flags.rows)
    check_selection(selection, config)
    if uses_fixtures(config):
        from ofa_jax.prepare import fixtures

        print(f"fixtures: {fixtures.write(config.data.dir, datasets=datasets_of(config))}")
    say = lambda line: print(line, flush=True)  # noqa: E731
    rows = Countdown("rows of the batch", sum(block.rows for block in config.data.blocks), say)
    pipeline, _ = training_pipeline(config, after_row=rows)
    folder = run_folder(config)
    out = flags.out or folder / f"show_{data_step + 1}.html"
    made = write_batch_page(config, pipeline, data_step=data_step, selection=selection, directory=folder, out=out, progress=say)
    say(f"step {data_step + 1} (data_step {data_step}): digest {made.digest} {made.verdict}")
    further = f" and {more} more page{'s' if more > 1 else ''}" if (more := len(made.pages) - 1) else ""
    say(f"{made.pages[0]}{further}: {made.shown} of {made.total} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
