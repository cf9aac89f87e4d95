"""Soaks the data of a run: `python launch/soak.py --config=configs/ofa_large.py [--minutes=30] [--step_s=S] [--config.a.b=value ...]`.

Makes the batches that the run trains on, without the model, and says at the end how fast they came, how long one was waited for, how the
memory of every process moved and how many records were rejected; they are listed in soak_rejects.jsonl in the run's folder.

  --minutes=M      how long (default 30)
  --step_s=S       what a step of the model takes; default 0: batches are taken as fast as they come
  --data_step=N    the first batch (default 0)
  --max_wait_s=S   the longest wait for a batch that is no fault (default 1)
  --max_growth=F   how much of its lowest resident memory a process may grow by (default 0.05)
  --out=FILE       the report as JSON, too

The first tenth of the time is for settling and not judged. Exit codes: 0 within the limits, 1 not, 2 a mistake or broken data told in one
sentence, 75 ended by SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError

EXIT_FAULT, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 75
USAGE = "--config=FILE [--minutes=M] [--step_s=S] [--data_step=N] [--max_wait_s=S] [--max_growth=F] [--out=FILE]"


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        return _soak([word for word in argv if word != "--traceback"])
    except UserError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected {USAGE}")

    parser = Parser(prog="launch/soak.py", allow_abbrev=False, add_help=False)
    for name, default in (("minutes", 30.0), ("step_s", 0.0), ("max_wait_s", 1.0), ("max_growth", 0.05)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--data_step", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(argv[1:])


def _soak(argv: list[str]) -> int:
    from ofa_jax.config.check import check
    from ofa_jax.config.debug import datasets_of, uses_fixtures
    from ofa_jax.config.load import load_run, run_folder
    from ofa_jax.tasks.soak import SoakOptions, soak

    config, rest = load_run(argv)
    flags = _parse(rest)
    check(config)
    if flags.minutes <= 0 or flags.data_step < 0:
        raise ConfigError(
            f"command line: found --minutes={flags.minutes:g} --data_step={flags.data_step}, expected more than 0, and 0 or more"
        )
    if uses_fixtures(config):
        from ofa_jax.prepare import fixtures

        print(f"fixtures: {fixtures.write(config.data.dir, datasets=datasets_of(config))}")
    received: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda found, _: received.append(signal.Signals(found).name))
    options = SoakOptions(60 * flags.minutes, flags.step_s, flags.data_step, flags.max_wait_s, flags.max_growth)
    rejects = run_folder(config) / "soak_rejects.jsonl"
    seen = soak(config, options, rejects=rejects, stop=lambda: received[0] if received else "")
    print("\n".join(seen.lines()))
    if flags.out:
        flags.out.write_text(seen.to_json() + "\n", encoding="utf-8")
    if seen.ended != "time":
        print(f"ended by {seen.ended}", file=sys.stderr)
        return EXIT_STOPPED
    return EXIT_FAULT if seen.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
