"""Compares two evaluations: `python launch/compare.py RUN OTHER_RUN [--sets=a,b] [--out=FILE.md]`.

Both are folders that launch/eval.py wrote into, with the same sets. Prints by how much the second is better, with the 95 % interval of a
paired bootstrap over records.

Exit codes: 0 done, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import UserError
from ofa_jax.eval.compare import compare, format_compared
from ofa_jax.monitor.exits import REASONS, tell_end


def main(argv: list[str]) -> int:
    """Runs the command line `argv`, without the program, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--sets", default="")
    parser.add_argument("--out", type=Path, help="the table, as Markdown")
    flags = parser.parse_args(argv)
    try:
        table = format_compared(compare(flags.first, flags.second, sets=[name for name in flags.sets.split(",") if name]))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        tell_end("config", f"{type(error).__name__}: {error}")
        return REASONS["config"].code
    print(table)
    if flags.out:
        flags.out.write_text(table + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
