"""Compiles every size for every kind of TPU at 16, 64, 256 and 512 chips, and says what more chips would bring.

    python launch/scaling.py --points=docs/results/pods.json --out=docs/scaling.md [--sizes=large,huge] [--kinds=v5p] [--jobs=2]

Each point is a call of launch/compile.py, minutes each, hours in all: the same command goes on where it was stopped. Needs libtpu
(`make tpu-env`), and no chip. Writes, beside --points, its table (.md), and to --out the table and the plot (.png beside it) of step time
and MFU on 8 to 4,096 chips, from lines fitted on the points.

  --chips=N,...        of the points (default 16,64,256,512; what is predicted needs all)
  --jobs=N             points at a time (default 2; each takes a core and up to 10 GB)
  --table              only what is in --points already: compiles nothing

Exit codes: 0 done, 1 a point could not be compiled, or a prediction is off by more than 5 %; 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError

EXIT_FAILED, EXIT_MISTAKE = 1, 2


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        return _scale(_parse([word for word in argv[1:] if word != "--traceback"]))
    except ConfigError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except UserError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parse(words: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected --points=FILE.json [--out=FILE.md] [--sizes=...] [--kinds=...]")

    parser = Parser(prog="launch/scaling.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--points", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    for name in ("sizes", "kinds", "chips"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    flags = parser.parse_args(words)
    if flags.jobs < 1:
        raise ConfigError(f"command line: --jobs: found {flags.jobs}, expected 1 or more")
    for name in ("points", "out"):
        file = getattr(flags, name)
        if file and not file.absolute().parent.is_dir():
            raise ConfigError(f"command line: --{name}: found no folder {file.absolute().parent}, expected one for the file")
    return flags


def _scale(flags: argparse.Namespace) -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is run
    from ofa_jax.pods import grid, scaling_page

    def chosen(name: str, known: tuple[Any, ...]) -> list[Any]:
        words = [word for word in getattr(flags, name).split(",") if word]
        if unknown := set(words) - set(map(str, known)):
            raise ConfigError(f"command line: --{name}: found {min(unknown)}, expected some of {', '.join(map(str, known))}")
        return [one for one in known if not words or str(one) in words]

    wanted = grid.points(chosen("sizes", grid.SIZES), chosen("kinds", grid.KINDS), chosen("chips", grid.CHIPS))
    if flags.table:
        stored = json.loads(flags.points.read_text(encoding="utf-8")) if flags.points.exists() else {}
        found = {point.name: stored[point.name] for point in wanted if point.name in stored}
    else:
        found = grid.compile_all(wanted, flags.points, jobs=flags.jobs, say=lambda line: print(line, flush=True))
    command = f"python launch/scaling.py --points={flags.points}" + (f" --out={flags.out}" if flags.out else "")
    page = scaling_page.table(found, command=command)
    flags.points.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    if not flags.out:
        return 0
    off = scaling_page.write(found, flags.out, command=command)
    for line in off:
        print(line, file=sys.stderr)
    return EXIT_FAILED if off else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
