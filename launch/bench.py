"""Measures rates: `python launch/bench.py train [--peer=PYTHON] ...`, `decode FOLDER [--peer=PYTHON] ...`, `data`, `codes`, `save`,
`start-up` or `tokenizer`.

train: the training step of a size on noise: its operations and their share of the device's peak, published and measured, memory, compile
time; with --peer, an environment with PyPI's modelscope (tests/parity/modelscope_ofa.py says how), PyTorch's OFA on the same work in the
same run, as published and tuned. --protocol=same-work: sequences of one length, each with its own picture (--text-only: none);
pretraining: all streams of the size's config, 1/--parts of its batch.
tokenizer: ids a second of GPT-2's byte-level BPE on one core, in batches of sentences of English prose (CPython's own documentation).
decode: beam search of captions with the weights of an exported HF-style folder; with --peer, an environment that has PyPI's
modelscope (tests/parity/modelscope_ofa.py says how), beside that package's own generator in the same run, tokens compared.
codes [--image-px=256] [--rows=8]: pictures a second that the f=8 VQGAN of 8,192 codes encodes, with drawn weights, in f32 and bf16.
save [--config=configs/ofa_base.py] [--rows=2]: how long the loop stands still for a save, and how many steps are made during it.
start-up [--config=configs/ofa_tiny.py:debug]: from the command to the end of the first step, part by part, with an empty cache of compiled
programs and with a full one.
data: rows of captions made on one core, beside decoding and resizing alone; with --peer, an environment with torch, Pillow and OpenCV,
beside a torch DataLoader with OFA's transforms; with --sizes, what decoding large pictures at a smaller size gains and costs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import UserError


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tokenizer = commands.add_parser("tokenizer")
    tokenizer.add_argument("--dict", default="", help="OFA's dict.txt; default: GPT-2's own order of ids")
    tokenizer.add_argument("--seconds", type=float, default=5.0)
    decode = commands.add_parser("decode")
    decode.add_argument("folder", type=Path, help="what launch/convert.py export wrote")
    decode.add_argument("--peer", default="", help="the Python of an environment with modelscope and torch")
    decode.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    train = commands.add_parser("train")
    train.add_argument("--size", default="large")
    train.add_argument("--peer", default="", help="the Python of an environment with modelscope and torch")
    train.add_argument("--text-only", action="store_true")
    train.add_argument("--json", type=Path, help="all numbers")
    for name, choices in (
        ("protocol", ("same-work", "pretraining")), ("precision", ("bf16", "f32")), ("norm", ("batch", "frozen")),
        ("layers", ("unroll", "scan")), ("remat", ("none", "dots", "full")), ("convolution", ("xla", "matmul")),
        ("attention", ("reference", "cudnn", "pallas")),
    ):  # fmt: skip
        train.add_argument(f"--{name}", choices=choices, default=choices[0])
    codes = commands.add_parser("codes")
    save = commands.add_parser("save")
    save.add_argument("--config", default="configs/ofa_base.py")
    save.add_argument("--folder", type=Path, help="where checkpoints are written; default: the folder of temporary files")
    start_up = commands.add_parser("start-up")
    start_up.add_argument("--config", default="configs/ofa_tiny.py:debug")
    data = commands.add_parser("data")
    data.add_argument("--peer", default="", help="the Python of an environment with torch, Pillow and OpenCV")
    data.add_argument("--sizes", action="store_true", help="time large pictures too")
    for command, numbers in (
        (decode, {"batch": 4, "image-px": 480, "beam": 5, "max-len": 16, "no-repeat-ngram": 3, "repeats": 3}),
        (codes, {"image-px": 256, "rows": 8, "repeats": 3}),
        (save, {"rows": 2, "repeats": 3}),
        (train, {"rows": 96, "source-len": 80, "target-len": 30, "image-px": 384, "num-patches": 196, "parts": 32, "steps": 20}),
        (data, {"images": 64, "image-px": 384, "repeats": 7}),
    ):
        for name, value in numbers.items():
            command.add_argument(f"--{name}", type=int, default=value)
    flags = parser.parse_args(argv[1:])
    measure = {
        "tokenizer": tokenizer_rate, "decode": decode_rate, "codes": code_rate, "save": save_times, "data": data_rate, "train": train_rate,
        "start-up": start_times,
    }  # fmt: skip
    try:
        print(measure[flags.command](flags))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


def code_rate(flags: argparse.Namespace) -> str:
    """Returns a line that says how fast pictures become codes."""
    from ofa_jax.config.schema import VQGANConfig
    from ofa_jax.models.vqgan_bench import time_encoder

    shape = {"image_px": flags.image_px, "rows": flags.rows}
    return time_encoder(VQGANConfig(), **shape, repeats=flags.repeats).line(**shape)


def save_times(flags: argparse.Namespace) -> str:
    """Returns a line that says how long a save stops training."""
    from ofa_jax.bench.saves import time_saves
    from ofa_jax.config.load import read_config

    config = read_config(flags.config)
    return time_saves(config, rows=flags.rows, saves=flags.repeats, folder=flags.folder).line(config.name)


def start_times(flags: argparse.Namespace) -> str:
    """Returns lines that say how long two starts of a run take."""
    from ofa_jax.bench.startup import report

    return report(flags.config)


def data_rate(flags: argparse.Namespace) -> str:
    """Returns lines that say how fast rows of pictures are made."""
    from ofa_jax.tasks.bench import report

    return report(count=flags.images, px=flags.image_px, repeats=flags.repeats, peer=flags.peer, sizes=flags.sizes)


def tokenizer_rate(flags: argparse.Namespace) -> str:
    """Returns a line that says how fast texts become ids, there and back."""
    from ofa_jax.vocab.bench import BATCH, time_tokenizer

    count, took = time_tokenizer(flags.dict, seconds=flags.seconds)
    return f"tokenizer: {count / took:,.0f} ids/s of process time, {count:,} ids in batches of {BATCH} texts"


def decode_rate(flags: argparse.Namespace) -> str:
    """Returns lines that say how fast captions are searched, the encoder apart, and where there is a peer, its times and the ratios."""
    from ofa_jax.bench.decoding import report

    return report(flags)


def train_rate(flags: argparse.Namespace) -> str:
    """Returns lines that say how fast a size trains, and where there is a peer, its times and the ratios."""
    from ofa_jax.bench.training import report

    return report(flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
