"""Makes the band of losses that later runs are compared with: `python launch/reference.py RUN [RUN ...] --out=FILE [--tolerance=0.1]`.

A RUN is a run's folder or its metrics.jsonl. Several runs of one config give their lowest and highest losses, one run its losses less and
more the tolerance. `launch/train.py --config.monitor.reference=FILE` then says in every line whether the loss is within the band, ahead of
it (lower) or behind, and logs the distance as reference/<metric>. Exit codes: 0, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError
from ofa_jax.monitor.reference import make_band, read_records


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    try:
        flags = _parse(argv)
        band = make_band([read_records(run) for run in flags.runs], tolerance=flags.tolerance)
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(json.dumps(band, separators=(",", ":")) + "\n", encoding="utf-8")
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    points = sum(map(len, band["curves"].values()))
    print(f"{flags.out}: {len(band['curves'])} curves, {points} points, of {band['runs']} run(s)")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected RUN [RUN ...] --out=FILE [--tolerance=0.1]")

    parser = Parser(prog="launch/reference.py", allow_abbrev=False, add_help=False)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tolerance", type=float, default=0.1)
    flags = parser.parse_args(argv[1:])
    if not 0 < flags.tolerance < 1:
        raise ConfigError(f"--tolerance: found {flags.tolerance:g}, expected more than 0 and less than 1")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv))
