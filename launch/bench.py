"""Measures rates: `python launch/bench.py tokenizer [--dict=FILE] [--seconds=5]`.

tokenizer: ids a second of GPT-2's byte-level BPE on one core, in batches of sentences of English prose (CPython's own documentation).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import UserError
from ofa_jax.config.schema import VocabConfig

BATCH = 256  # texts a call


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tokenizer = commands.add_parser("tokenizer")
    tokenizer.add_argument("--dict", default="", help="OFA's dict.txt; default: GPT-2's own order of ids")
    tokenizer.add_argument("--seconds", type=float, default=5.0)
    flags = parser.parse_args(argv[1:])
    try:
        print(tokenizer_rate(flags.dict, seconds=flags.seconds))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def tokenizer_rate(dict_path: str, *, seconds: float) -> str:
    """Returns a line that says how fast texts become ids, there and back."""
    from pydoc_data.topics import topics

    from ofa_jax.vocab.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(VocabConfig(path=dict_path))
    texts = [f" {line.strip()}" for topic in topics.values() for line in topic.split("\n") if len(line) > 40]
    batches = [texts[i : i + BATCH] for i in range(0, len(texts) - BATCH, BATCH)]
    tokenizer.encode_batch(batches[0])
    count, start = 0, time.process_time()
    while (took := time.process_time() - start) < seconds:
        for batch in batches:
            count += sum(map(len, tokenizer.encode_batch(batch)))
    return f"tokenizer: {count / took:,.0f} ids/s of process time, {count:,} ids in batches of {BATCH} texts"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
