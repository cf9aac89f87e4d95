"""Prepares data.

python launch/prepare.py quickstart [--data_dir=data/quickstart] [--rebuild]    everything the quickstart learns from
python launch/prepare.py fixtures   [--data_dir=data/fixtures] [--rebuild]      tiny datasets for `:debug` runs
python launch/prepare.py tokenizer  [--data_dir=data/quickstart] [--num_text=2000]   its tokeniser alone
python launch/prepare.py verify     [--data_dir=data/quickstart]                compares every shard with its manifest
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ofa_jax.config.errors import UserError
from ofa_jax.prepare import fixtures, manifest, quickstart


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit status. Expected errors are one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="launch/prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    quick = commands.add_parser("quickstart")
    quick.add_argument("--data_dir", type=Path, default=Path("data/quickstart"))
    quick.add_argument("--rebuild", action="store_true", help="replace parts that are there")
    fixture = commands.add_parser("fixtures")
    fixture.add_argument("--data_dir", type=Path, default=Path("data/fixtures"))
    fixture.add_argument("--rebuild", action="store_true", help="replace parts that are there")
    tokenizer = commands.add_parser("tokenizer")
    tokenizer.add_argument("--data_dir", type=Path, default=Path("data/quickstart"))
    tokenizer.add_argument("--num_text", type=int, default=quickstart.QuickstartOptions().num_text, help="text ids, MASK included")
    verify = commands.add_parser("verify")
    verify.add_argument("--data_dir", type=Path, default=Path("data/quickstart"))
    args = parser.parse_args(argv)
    progress = lambda line: print(line, flush=True)  # noqa: E731
    try:
        if args.command == "quickstart":
            took = quickstart.prepare(args.data_dir, options=quickstart.QuickstartOptions(), rebuild=args.rebuild, progress=progress)
            progress(f"{args.data_dir} is ready ({sum(took.values()):.0f} s)")
        elif args.command == "fixtures":
            fixtures.write(args.data_dir, rebuild=args.rebuild)
            progress(f"{args.data_dir} is ready")
        elif args.command == "tokenizer":
            quickstart.train_tokenizer(args.data_dir, args.data_dir / "tokenizer.model", num_text=args.num_text)
            progress(f"{args.data_dir / 'tokenizer.model'} has {args.num_text} text ids")
        else:
            faults = [fault for path in sorted(args.data_dir.glob("*/manifest.json")) for fault in manifest.verify(path.parent)]
            progress("\n".join(faults) or f"every shard below {args.data_dir} is as its manifest says")
            return 1 if faults else 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
