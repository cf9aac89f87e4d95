"""Measures rates: `python launch/bench.py train [--peer=PYTHON] ...`, `kernels`, `reward`, `suite`, `loop`, `decode FOLDER ...`, `data`,
`codes`, `save`, `start-up` or `tokenizer`.

train: the training step of a size on noise: its operations and their share of the device's peak, published and measured, memory, compile
time; with --peer, an environment with PyPI's modelscope (tests/parity/modelscope_ofa.py says how), PyTorch's OFA on the same work in the
same run, as published and tuned. --protocol=same-work: sequences of one length, each with its own picture (--text-only: none);
pretraining: all streams of the size's config, 1/--parts of its batch.
kernels: the parts of that step one by one, forward and backward, beside what they take at least at rates measured in the same run;
--attention=reference,cudnn times layers with each.
reward [--size=tiny] [--rows=16]: a self-critical step beside the cross-entropy step on as many sequences.
suite [--out=runs/bench] [--only=NAMES]: all that speaks of one accelerator, `train` and `kernels` of several sizes, with one table.
tokenizer: ids a second of GPT-2's byte-level BPE on one core, in batches of sentences of English prose (CPython's own documentation).
decode: beam search of captions with the weights of an exported HF-style folder; with --peer, an environment that has PyPI's
modelscope (tests/parity/modelscope_ofa.py says how), beside that package's own generator in the same run, tokens compared.
codes [--image-px=256] [--rows=8]: pictures a second that the f=8 VQGAN of 8,192 codes encodes, with drawn weights, in f32 and bf16.
save [--config=configs/ofa_base.py] [--rows=2]: how long the loop stands still for a save, and how many steps are made during it.
loop [--config=configs/quickstart.py] [--steps=50]: the training command itself on the config's own data: useful tokens, waits for batches.
start-up [--config=configs/ofa_tiny.py:debug]: from the command to the end of the first step, part by part, with an empty cache of compiled
programs and with a full one.
data: rows of captions made on one core, beside decoding and resizing alone; with --peer, an environment with torch, Pillow and OpenCV,
beside a torch DataLoader with OFA's transforms; with --sizes, what decoding large pictures at a smaller size gains and costs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import UserError
from ofa_jax.parallel.huge_pages import start_with_huge_pages

# Each has `report(flags)`, which returns what was measured as lines of text.
_MODULES = {
    "tokenizer": "ofa_jax.vocab.bench",
    "decode": "ofa_jax.bench.decoding",
    "codes": "ofa_jax.models.vqgan_bench",
    "save": "ofa_jax.bench.saves",
    "data": "ofa_jax.tasks.bench",
    "train": "ofa_jax.bench.training",
    "kernels": "ofa_jax.bench.kernels",
    "suite": "ofa_jax.bench.suite",
    "loop": "ofa_jax.bench.running",
    "start-up": "ofa_jax.bench.startup",
    "reward": "ofa_jax.bench.rewarding",
}
_CHOICES = {
    "protocol": ("same-work", "pretraining"),
    "precision": ("bf16", "f32"),
    "norm": ("batch", "frozen"),
    "layers": ("unroll", "scan"),
    "remat": ("none", "dots", "full"),
    "convolution": ("", "xla", "matmul"),  # "": what suits the device
    "attention": ("reference", "cudnn", "pallas"),
    "dropout-bits": ("hash", "threefry"),
}
_WORK = {"rows": 96, "source-len": 80, "target-len": 30, "image-px": 384, "num-patches": 196}


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
    train, kernels = commands.add_parser("train"), commands.add_parser("kernels")
    train.add_argument("--peer", default="", help="the Python of an environment with modelscope and torch")
    train.add_argument("--text-only", action="store_true")
    kernels.add_argument("--attention", default="reference", help="names, separated by commas")
    for command, names in ((train, _CHOICES), (kernels, ("precision", "norm", "convolution", "dropout-bits"))):
        command.add_argument("--size", default="large")
        command.add_argument("--json", type=Path, help="all numbers")
        for name in names:
            command.add_argument(f"--{name}", choices=_CHOICES[name], default=_CHOICES[name][0])
    codes = commands.add_parser("codes")
    save = commands.add_parser("save")
    save.add_argument("--config", default="configs/ofa_base.py")
    save.add_argument("--folder", type=Path, help="where checkpoints are written; default: the folder of temporary files")
    start_up = commands.add_parser("start-up")
    start_up.add_argument("--config", default="configs/ofa_tiny.py:debug")
    suite = commands.add_parser("suite")
    suite.add_argument("--peer", default="", help="the Python of an environment with modelscope and torch")
    suite.add_argument("--out", type=Path, default=Path("runs/bench"), help="the folder of what is measured")
    suite.add_argument("--only", default="", help="names, separated by commas; default: all")
    reward = commands.add_parser("reward")
    reward.add_argument("--size", default="tiny")
    reward.add_argument("--precision", choices=_CHOICES["precision"], default="f32")
    reward.add_argument("--convolution", choices=("xla", "matmul"), default="matmul")
    loop = commands.add_parser("loop")
    loop.add_argument("--config", default="configs/quickstart.py")
    loop.add_argument("--json", type=Path, help="all numbers")
    data = commands.add_parser("data")
    data.add_argument("--peer", default="", help="the Python of an environment with torch, Pillow and OpenCV")
    data.add_argument("--sizes", action="store_true", help="time large pictures too")
    for command, numbers in (
        (decode, {"batch": 4, "image-px": 480, "beam": 5, "max-len": 16, "no-repeat-ngram": 3, "repeats": 3}),
        (reward, {"rows": 8, "image-px": 256, "steps": 5}),
        (codes, {"image-px": 256, "rows": 8, "repeats": 3}),
        (save, {"rows": 2, "repeats": 3}),
        (train, {**_WORK, "parts": 32, "steps": 20}),
        (kernels, {**_WORK, "repeats": 5}),
        (loop, {"steps": 50}),
        (data, {"images": 64, "image-px": 384, "repeats": 7}),
    ):
        for name, value in numbers.items():
            command.add_argument(f"--{name}", type=int, default=value)
    flags = parser.parse_args(argv[1:])
    try:
        print(importlib.import_module(_MODULES[flags.command]).report(flags))
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    start_with_huge_pages()
    sys.exit(main(sys.argv))
