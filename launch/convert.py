"""Moves weights between ofa_jax and other programs' files.

python launch/convert.py import SOURCE --out=runs/NAME [--ema] [--bpe=DIR] [--config=FILE [--grow]]   OFA's weights: fairseq .pt,
                                                                               HF-style folder, safetensors, .npz
python launch/convert.py import SOURCE --out=runs/NAME --config=FILE --part=bart|resnet [--bpe=DIR]   first weights of one part
python launch/convert.py import SOURCE --out=runs/NAME --part=vqgan            a VQGAN of taming-transformers
python launch/convert.py export RUN --out=PATH [--layout=hf|fairseq|npz|taming] a run's newest checkpoint for other programs
python launch/convert.py whole RUN --out=runs/NAME                             a whole checkpoint of one of what was trained alone
python launch/convert.py describe PATH                                         what any checkpoint is
python launch/convert.py diff-config A B                                       what differs between two configs, files or runs
python launch/convert.py verify --config=FILE[:arg] --state=S.npz --inputs=I.npz --expected=E.npz [--tolerance=1e-4]

`--config.a.b=value` changes a field of the config; init.checkpoint is where the base of a run with checkpoint.content=trained lies now.
`verify` takes the config from the weights where --config is not given.
Exit codes: 0 done, 1 `verify` found a difference beyond the tolerance (or `diff-config` any), 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError

if TYPE_CHECKING:
    from ofa_jax.config.schema import AnyRun

EXIT_DIFFERS, EXIT_MISTAKE = 1, 2


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    traceback = "--traceback" in argv
    try:
        return _run([word for word in argv if word != "--traceback"])
    except UserError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE


def _parse(words: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; python launch/convert.py --help shows the commands")

    parser = Parser(prog="launch/convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    take = commands.add_parser("import")
    take.add_argument("source", type=Path)
    take.add_argument("--out", type=Path, required=True, help="folder of the new run")
    take.add_argument("--part", choices=("ofa", "bart", "resnet", "vqgan"), default="ofa")
    take.add_argument("--ema", action="store_true", help="the averaged weights of a fairseq file")
    take.add_argument("--grow", action="store_true", help="draw the rows that tables lack for --config")
    take.add_argument("--bpe", type=Path, help="OFA's dict.txt or its folder")
    give = commands.add_parser("export")
    for command in (give, commands.add_parser("whole")):
        command.add_argument("checkpoint", type=Path)
        command.add_argument("--out", type=Path, required=True)
    give.add_argument("--layout", choices=("hf", "fairseq", "npz", "taming"), help="hf, or taming for a VQGAN, where not given")
    commands.add_parser("describe").add_argument("path", type=Path)
    diff = commands.add_parser("diff-config")
    diff.add_argument("a")
    diff.add_argument("b")
    check = commands.add_parser("verify")
    for name in ("--state", "--inputs", "--expected"):
        check.add_argument(name, type=Path, required=True)
    check.add_argument("--tolerance", type=float, default=1e-4)
    return parser.parse_args(words)


def _run(argv: list[str]) -> int:
    from ofa_jax.config.load import load_config, split_config

    spec, overrides, rest = split_config(argv)
    flags = _parse(rest[1:])
    if flags.command == "diff-config":
        return _diff(flags.a, flags.b)

    import jax

    from ofa_jax.config.load import override
    from ofa_jax.convert import transfer, vqgan_files
    from ofa_jax.parallel import hosts

    hosts.use_compilation_cache()
    jax.config.update("jax_default_matmul_precision", "highest")
    say = functools.partial(print, flush=True)
    changed = functools.partial(override, overrides=overrides)
    given = load_config(argv)[0] if spec else None
    if flags.command == "import" and flags.part == "vqgan":
        vqgan_files.import_vqgan(flags.source, flags.out, progress=say)
    elif flags.command == "import" and flags.part == "ofa":
        transfer.import_ofa(
            flags.source, flags.out, ema=flags.ema, grow=flags.grow, bpe=flags.bpe, config=given, override=changed, progress=say
        )
    elif flags.command == "import":
        config = given or load_config(argv)[0]  # without --config it says what is missing
        transfer.import_part(flags.part, flags.source, flags.out, config=config, bpe=flags.bpe, progress=say)
    elif flags.command == "export":
        transfer.export(flags.checkpoint, flags.out, layout=flags.layout, override=changed, progress=say)
    elif flags.command == "whole":
        transfer.write_whole(flags.checkpoint, flags.out, override=changed, progress=say)
    elif flags.command == "describe":
        say(transfer.describe(flags.path))
    else:
        found = transfer.verify_files(flags.state, flags.inputs, flags.expected, config=given, override=changed, progress=say)
        return _verify(flags, found)
    return 0


def _verify(flags: argparse.Namespace, comparisons: list) -> int:
    width = max(len(c.name) for c in comparisons)
    for c in comparisons:
        verdict = "ok" if c.error <= flags.tolerance else "DIFFERS"
        print(f"{c.name:{width}}  {'x'.join(map(str, c.shape)):>16}  error {c.error:.2e}  {verdict}{'  ' + c.note if c.note else ''}")
    wrong = [c for c in comparisons if not c.error <= flags.tolerance]
    if wrong:
        print(f"first difference: {wrong[0].name}, error {wrong[0].error:.2e}, tolerance {flags.tolerance:.0e}")
        return EXIT_DIFFERS
    print(f"all {len(comparisons)} arrays agree within {flags.tolerance:.0e} of their spread")
    return 0


def _diff(a: str, b: str) -> int:
    from ofa_jax.config.load import read_config
    from ofa_jax.config.render import diff

    def config_of(text: str) -> AnyRun:
        if ".py" in text:
            return read_config(text)
        from ofa_jax.checkpoint.folders import find_run
        from ofa_jax.checkpoint.manager import CheckpointManager

        folder, step = find_run(text)
        return CheckpointManager(folder, read_only=True).run_config(step)

    lines = diff(config_of(a), config_of(b))
    print("\n".join(lines) or "the configs are equal")
    return EXIT_DIFFERS if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
