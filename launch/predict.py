"""Follows instructions that you type, on any picture or without one.

python launch/predict.py --checkpoint=RUN [--image=FILE] --text="what color is the shape?" [--output=box|objects|codes] [--draw=O.png]
python launch/predict.py --checkpoint=RUN --jsonl=IN.jsonl --out=OUT.jsonl         lines {"image": ..., "text": ...}; images by IN's folder
python launch/predict.py --checkpoint=RUN --folder=DIR --text=... --out=OUT.jsonl  every picture of a folder
python launch/predict.py --checkpoint=RUN --serve [--port=N]                       a page in the browser, for this machine alone

The text is used exactly as typed, but for one leading space that is added where there is none, because OFA's instructions begin with
one; <mask>, <bin_i> and <code_i> in it are the tokens of these names. The config is that of the checkpoint; --config.a.b=value changes
a field (--config.eval.image_px=256, source_len, target_len). Boxes are pixels of the picture as it is stored. Codes fill in the
picture's middle, which the model then does not see; they are drawn where data.dir has a VQGAN (vqgan.npz) or a patch codebook
(codebook.npz). The same batch command goes on where a killed one stopped. The page ends with Ctrl-C; without --port it is at 7860, or
at any free port where that is taken.
Exit codes: 0 done, 1 some lines of a batch have an error, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

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


def _predict(argv: list[str]) -> int:
    from ofa_jax.config.load import split_config
    from ofa_jax.eval.instruct_flags import parse_flags, setting_of

    spec, overrides, rest = split_config(argv)
    flags = parse_flags(rest[1:], description=__doc__)
    if spec:
        raise ConfigError(f"--config: found {spec}, expected none: the config is that of the checkpoint, --config.a.b=value changes it")

    from ofa_jax.eval import instruct_files as files
    from ofa_jax.eval.instruct import Instructor, Request
    from ofa_jax.parallel import hosts

    load = functools.partial(Instructor.load, flags.checkpoint, step=flags.step, overrides=overrides)
    if flags.serve:
        from ofa_jax.eval import page

        hosts.use_compilation_cache()
        page.serve(functools.partial(load, batch_rows=1), run=flags.checkpoint, port=flags.port)
        return 0
    setting = setting_of(flags)
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
    how: dict[str, Any] = {"setting": setting, "output": flags.output, "answers": answers, "hypotheses": flags.hypotheses}
    if lines is not None:
        say = functools.partial(print, file=sys.stderr)
        failed = files.write_predictions(instructor, lines, flags.out, **how, progress=say)
        left_out = f"; {others} files of other kinds in {flags.folder} were left out" if others else ""
        print(f"{flags.out}: {len(lines):,} lines, {failed:,} with an error{left_out}")
        return EXIT_ERRORS if failed else 0
    request = Request(flags.text, picture, "--image" if picture is None else str(flags.image))
    prediction = instructor.predict(request, **how)
    found = {"image": None if flags.image is None else str(flags.image), "text": flags.text, **prediction.to_json()}
    print(json.dumps(found, ensure_ascii=False) if flags.json else prediction)
    if flags.draw:
        from ofa_jax.eval.instruct_drawing import save_prediction

        if missing := save_prediction(flags.draw, request, prediction, data_dir=instructor.config.data.dir):
            print(missing, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
