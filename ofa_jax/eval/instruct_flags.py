"""The flags of `launch/predict.py` and the way to decode that they mean."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ofa_jax.config.decoding import DecodeSetting
from ofa_jax.config.errors import ConfigError


def parse_flags(words: Sequence[str], *, description: str | None) -> argparse.Namespace:
    """Returns the flags of the command's `words`, the program left out. Raises ConfigError for flags that do not belong together."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; python launch/predict.py --help shows the flags")

    parser = Parser(
        prog="launch/predict.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="a run's folder, its checkpoints folder or one checkpoint")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    work = parser.add_argument_group("what to do")
    work.add_argument("--text", help="the instruction")
    work.add_argument("--image", type=Path)
    work.add_argument("--jsonl", type=Path)
    work.add_argument("--folder", type=Path)
    work.add_argument("--out", type=Path, help="where the lines of --jsonl or --folder go")
    work.add_argument("--output", choices=("text", "box", "objects", "codes"), default="text", help="what the answer is read as")
    work.add_argument("--answers", type=Path, help="a closed set, one answer a line: all are scored")
    work.add_argument("--draw", type=Path, help="a PNG of picture, boxes, instruction and answer")
    work.add_argument("--json", action="store_true", help="print one JSON object")
    work.add_argument("--serve", action="store_true", help="a page on 127.0.0.1, which asks for everything else")
    work.add_argument("--port", type=int, help="of the page; 0: any that is free")
    how = parser.add_argument_group("decoding")
    how.add_argument("--constrain", action="store_true", help="search for one of --answers instead of scoring all")
    how.add_argument("--beam", type=int, default=1, help="hypotheses of a search, draws of sampling; 1, the default, is greedy")
    how.add_argument("--hypotheses", type=int, default=1, help="so many of them are told, best first")
    how.add_argument("--scorer", default="", help="FILE.py:function that ranks them (ofa_jax/eval/rank.py)")
    how.add_argument("--max-len", type=int, default=0, help="tokens at most; default: the config's eval.target_len")
    how.add_argument("--min-len", type=int, default=0)
    how.add_argument("--lenpen", type=float, default=1.0, help="exponent of the length that scores are divided by")
    how.add_argument("--no-repeat-ngram", type=int, default=0)
    how.add_argument("--temperature", type=float, default=1.0)
    how.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens")
    how.add_argument("--top-p", type=float, default=0.0, help="draw from the likeliest tokens of this mass")
    how.add_argument("--seed", type=int, help="of the draws; alone: draw from all tokens")
    how.add_argument("--prompt", choices=("none", "source"), default="none", help="source: the decoder reads the instruction first")
    flags = parser.parse_args(words)
    if flags.serve:
        asked = {name for name, value in vars(flags).items() if value != parser.get_default(name)}
        if others := asked - {"checkpoint", "step", "serve", "port"}:
            raise ConfigError(f"--serve: found it with {', '.join(sorted(others))}, expected at most --step and --port beside it")
        return flags
    if flags.port is not None:
        raise ConfigError("--port: found it, expected it only beside --serve")
    given = [name for name in ("image", "jsonl", "folder", "draw", "json", "text", "out") if getattr(flags, name) not in (None, False)]
    many = "jsonl" in given or "folder" in given
    allowed = ("jsonl", "out") if "jsonl" in given else ("folder", "text", "out") if many else ("text", "image", "draw", "json")
    for name in given:
        if name not in allowed:
            raise ConfigError(f"--{name}: found it, expected only {', '.join('--' + n for n in allowed)} together")
    for name in {"text", "out"}.intersection(allowed):
        if getattr(flags, name) is None:
            raise ConfigError(f"--{name}: found none, expected it")
    if flags.draw and (flags.draw.suffix.lower() != ".png" or not flags.draw.parent.is_dir()):
        raise ConfigError(f"--draw: found {flags.draw}, expected a name in a folder that is there, ending in .png")
    return flags


def setting_of(flags: argparse.Namespace) -> DecodeSetting:
    """Returns the way to decode that the flags mean. Raises ConfigError for flags that this way would not read."""
    draws = flags.seed is not None or flags.top_k or flags.top_p
    scored = flags.answers is not None and not flags.constrain
    if flags.constrain and flags.answers is None:
        raise ConfigError("--constrain: found it without --answers, expected both")
    if flags.output in ("box", "codes") and (flags.max_len or flags.min_len):
        raise ConfigError(f"--output: found {flags.output} with --max-len or --min-len, expected neither: its number of tokens is fixed")
    names = ("beam", "max_len", "min_len", "lenpen", "no_repeat_ngram", "temperature", "top_k", "top_p", "prompt", "scorer")
    given = {name: getattr(flags, name) for name in names} | {"seed": flags.seed or 0}
    defaults = {field.name: field.default for field in dataclasses.fields(DecodeSetting)}
    plain = {"beam": 1, "min_len": 0}  # what these flags are where nobody gives them
    if scored:
        given = {name: defaults[name] if value == plain.get(name, defaults[name]) else value for name, value in given.items()}
    return DecodeSetting("typed", method="score" if scored else "sample" if draws else "beam", **given)
