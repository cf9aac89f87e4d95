"""Follows instructions that you type, on any picture or without one.

python launch/predict.py --checkpoint=RUN [--image=FILE] --text="what color is the shape?" [--output=box|objects|codes] [--draw=O.png]
python launch/predict.py --checkpoint=RUN --jsonl=IN.jsonl --out=OUT.jsonl         lines {"image": ..., "text": ...}; images by IN's folder
python launch/predict.py --checkpoint=RUN --folder=DIR --text=... --out=OUT.jsonl  every picture of a folder
python launch/predict.py --checkpoint=RUN --serve [--port=N]                       a page in the browser, for this machine alone

The text is used exactly as typed, but for one leading space that is added where there is none, because OFA's instructions begin with
one; <mask>, <bin_i> and <code_i> in it are the tokens of these names. The config is that of the checkpoint; --config.a.b=value changes
a field (--config.eval.image_px=256, source_len, target_len). Boxes are pixels of the picture as it is stored. Codes fill in the
picture's middle, which the model then does not see; they are drawn where data.dir has a codebook.npz. The same batch command goes on
where a killed one stopped. The page ends with Ctrl-C; without --port it is at 7860, or at any free port where that is taken.
Exit codes: 0 done, 1 some lines of a batch have an error, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError

EXIT_ERRORS, EXIT_MISTAKE = 1, 2


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    traceback = "--traceback" in argv
    try:
        return _predict([word for word in argv if word != "--traceback"])
    except UserError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE


def _parse(words: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; python launch/predict.py --help shows the flags")

    parser = Parser(prog="launch/predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
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
    how.add_argument("--beam", type=int, default=1, help="hypotheses; 1, the default, is greedy")
    how.add_argument("--max-len", type=int, help="tokens at most; default: the config's eval.target_len")
    how.add_argument("--min-len", type=int, default=0)
    how.add_argument("--lenpen", type=float, default=1.0, help="exponent of the length that scores are divided by")
    how.add_argument("--no-repeat-ngram", type=int, default=0)
    how.add_argument("--temperature", type=float, default=1.0)
    how.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens")
    how.add_argument("--top-p", type=float, default=0.0, help="draw from the likeliest tokens of this mass")
    how.add_argument("--seed", type=int, help="of the draws; alone: draw from all tokens")
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


def _predict(argv: list[str]) -> int:
    from ofa_jax.config.load import split_config

    spec, overrides, rest = split_config(argv)
    flags = _parse(rest[1:])
    if spec:
        raise ConfigError(f"--config: found {spec}, expected none: the config is that of the checkpoint, --config.a.b=value changes it")

    from ofa_jax.eval import instruct_files as files
    from ofa_jax.eval.instruct import Decoding, Instructor, Request
    from ofa_jax.parallel import hosts

    load = functools.partial(Instructor.load, flags.checkpoint, step=flags.step, overrides=overrides)
    if flags.serve:
        from ofa_jax.eval import page

        hosts.use_compilation_cache()
        page.serve(functools.partial(load, batch_rows=1), run=flags.checkpoint, port=flags.port)
        return 0
    names = ("output", "beam", "max_len", "min_len", "lenpen", "no_repeat_ngram", "temperature", "top_k", "top_p", "seed", "constrain")
    decoding = Decoding(**{name: getattr(flags, name) for name in names})
    labels = None if flags.answers is None else files.read_answers(flags.answers)
    lines, others = None, 0
    if flags.jsonl:
        lines = files.read_requests(flags.jsonl)
    elif flags.folder:
        lines, others = files.folder_requests(flags.folder, flags.text)
    picture = None if flags.image is None else files.read_picture(flags.image)  # what is missing is said before anything slow starts
    if lines is not None:
        files.check_out(flags.out)
    hosts.use_compilation_cache()
    instructor = load(batch_rows=None if lines else 1)
    answers = None if labels is None else instructor.answers(labels)
    if lines is not None:
        say = functools.partial(print, file=sys.stderr)
        failed = files.write_predictions(instructor, lines, flags.out, decoding=decoding, answers=answers, progress=say)
        left_out = f"; {others} files of other kinds in {flags.folder} were left out" if others else ""
        print(f"{flags.out}: {len(lines):,} lines, {failed:,} with an error{left_out}")
        return EXIT_ERRORS if failed else 0
    request = Request(flags.text, picture, "--image" if picture is None else str(flags.image))
    prediction = instructor.predict(request, decoding, answers)
    found = {"image": None if flags.image is None else str(flags.image), "text": flags.text, **prediction.to_json()}
    print(json.dumps(found, ensure_ascii=False) if flags.json else prediction)
    if flags.draw:
        from ofa_jax.eval.instruct_drawing import save_prediction

        if missing := save_prediction(flags.draw, request, prediction, data_dir=instructor.config.data.dir):
            print(missing, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
