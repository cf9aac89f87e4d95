"""How fast texts become ids."""

from __future__ import annotations

import argparse
import time
from pydoc_data.topics import topics

from ofa_jax.config.schema import VocabConfig
from ofa_jax.vocab.tokenizer import load_tokenizer

BATCH = 256  # texts a call


def report(flags: argparse.Namespace) -> str:
    """Returns a line that says how fast texts become ids (`launch/bench.py tokenizer`)."""
    count, took = time_tokenizer(flags.dict, seconds=flags.seconds)
    return f"tokenizer: {count / took:,.0f} ids/s of process time, {count:,} ids in batches of {BATCH} texts"


def time_tokenizer(dict_path: str, *, seconds: float) -> tuple[int, float]:
    """Returns (ids made, seconds of process time, at least `seconds`) of GPT-2's byte-level BPE on sentences of CPython's own
    documentation.

    dict_path: OFA's dict.txt; empty: GPT-2's own order of ids.
    """
    tokenizer = load_tokenizer(VocabConfig(path=dict_path))
    texts = [f" {line.strip()}" for topic in topics.values() for line in topic.split("\n") if len(line) > 40]
    batches = [texts[i : i + BATCH] for i in range(0, len(texts) - BATCH, BATCH)]
    tokenizer.encode_batch(batches[0])
    count, start = 0, time.process_time()
    while (took := time.process_time() - start) < seconds:
        for batch in batches:
            count += sum(map(len, tokenizer.encode_batch(batch)))
    return count, took
