"""Looks a run over before it is paid for: `python launch/doctor.py --config=configs/ofa_large.py [--config.a.b=value ...]`, on every host.

Prints a line for every check, `ok`, `WARN` or `FAIL`, with what was found, what was expected and what to do. Nothing is trained, and
what it writes to measure the disks is removed again.

  --compile            compiles the training step for the devices that are here, and says what memory it takes, activations included
  --chip=NAME          for another accelerator than those here (a file of configs/hardware, as v5e): memory and pace by its
                       published numbers
  --devices=N          for so many devices instead of those here
  --mfu=F              share of the chips' peak that a step is predicted with (default 0.4)
  --step_s=S           what a step takes, where it is known
  --seconds=S          of each measurement (default 5)
  --requirements=FILE  the pins to compare with (default: the requirements.txt of this repository)
  --join_s=S           how long hosts are waited for, and an eighth of what a check may take (default 120)
  --out=FILE           the report as JSON, too (host 0)

Exit codes: 0 no check failed (warnings are allowed), 1 one did, or a host did not come, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.monitor.exits import HangError

EXIT_FAILED, EXIT_MISTAKE = 1, 2
USAGE = "--config=FILE [--compile] [--chip=NAME] [--devices=N] [--mfu=F] [--step_s=S] [--seconds=S] [--requirements=FILE] [--out=FILE]"


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        return _examine([word for word in argv if word != "--traceback"])
    except UserError as error:
        if traceback:
            raise
        if isinstance(error, HangError):  # a host that did not come
            print(f"FAIL  {'hosts':9} {error}", flush=True)
            return EXIT_FAILED
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected {USAGE}")

    parser = Parser(prog="launch/doctor.py", allow_abbrev=False, add_help=False)
    for name, default in (("mfu", 0.4), ("step_s", 0.0), ("seconds", 5.0), ("join_s", 120.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--devices", type=int, default=0)
    parser.add_argument("--chip", default="")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--requirements", type=Path, default=Path(__file__).resolve().parents[1] / "requirements.txt")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args(argv[1:])
    for name, fits, expected in (
        ("mfu", 0 < flags.mfu <= 1, "more than 0, at most 1"),
        ("step_s", flags.step_s >= 0, "0 or more"),
        ("seconds", flags.seconds > 0, "more than 0"),
        ("join_s", flags.join_s >= 1, "1 or more"),
        ("devices", flags.devices >= 0, "0 (those that are here) or more"),
    ):
        if not fits:
            raise ConfigError(f"command line: --{name}: found {getattr(flags, name):g}, expected {expected}")
    if flags.compile and (flags.chip or flags.devices):
        raise ConfigError("command line: found --compile with --chip or --devices, expected it without: it compiles for what is here")
    return flags


def _examine(argv: list[str]) -> int:
    from ofa_jax.config.check import check
    from ofa_jax.config.hardware import load_hardware
    from ofa_jax.config.load import load_run
    from ofa_jax.config.schema import MeshConfig

    config, rest = load_run(argv)
    flags = _parse(rest)
    # Before anything slow is imported or started. What the mesh divides is a check of its own, with what would fit.
    check(dataclasses.replace(config, mesh=MeshConfig()))

    import jax

    from ofa_jax.doctor.examine import Options, examine, joined
    from ofa_jax.doctor.versions import read_pins
    from ofa_jax.parallel import hosts
    from ofa_jax.parallel.machine import load_here

    chip = load_hardware(flags.chip) if flags.chip else None
    options = Options(flags.requirements, flags.seconds, chip, flags.devices, flags.mfu, flags.step_s, flags.compile)
    read_pins(flags.requirements)
    if flags.out and not flags.out.absolute().parent.is_dir():
        raise ConfigError(f"command line: --out: found no folder {flags.out.absolute().parent}, expected one for the report")
    if config.precision == "f64":
        jax.config.update("jax_enable_x64", True)
    hosts.use_compilation_cache()  # what --compile makes, the run need not compile again
    say = functools.partial(print, flush=True)
    with joined(config, deadline_s=flags.join_s, give_up=_give_up, say=say) as watch:
        config = load_here(argv, chip=chip, num_devices=flags.devices, checked=False)
        report = examine(config, options, say=say, enter=watch.enter)
        if hosts.is_first():
            print(report.summary(), flush=True)
            if flags.out:
                flags.out.write_text(report.to_json(), encoding="utf-8")
    return EXIT_FAILED if report.failed else 0


def _give_up(said: str) -> None:
    """Ends the process from beside its main thread, which waits for something that does not come."""
    print(f"FAIL  {'hosts':9} {said}", flush=True)
    os._exit(EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
