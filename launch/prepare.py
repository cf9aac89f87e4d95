"""Prepares data.

python launch/prepare.py quickstart [--data_dir=data/quickstart] [--rebuild]    everything the quickstart learns from
python launch/prepare.py fixtures   [--data_dir=data/fixtures] [--rebuild]      tiny datasets for `:debug` runs
python launch/prepare.py tokenizer  [--data_dir=data/quickstart] [--num_text=2000]   its tokeniser alone
python launch/prepare.py codes --vqgan=RUN --dataset=NAME [--data_dir=data/quickstart] [--image_px=256] [--area=central|whole]
                               [--precision=f32|bf16] [--rows=64] [--rebuild]   image codes of a finished dataset, on every device of
                                                                                every host; the same command goes on where it was killed
python launch/prepare.py build NAME --source=DIR [--data_dir=data/pretrain] [--against=DATASET/SPLIT] [--workers=1] [--runner=direct]
                                                                                a public data set, or your own files, as shards of records
python launch/prepare.py pictures --dataset=NAME --split=NAME                   pictures of an evaluation set, for --against
python launch/prepare.py classes --config=FILE                                  length classes that fit the prepared data
python launch/prepare.py frequencies --dataset=NAME [--split=train]             words of its captions, for CIDEr as a reward
python launch/prepare.py answers --dataset=NAME [--split=train] [--most=N]      its different answers, one a line: a closed set
python launch/prepare.py verify     [--data_dir=data/quickstart]                compares every shard with its manifest
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ofa_jax.config.errors import UserError
from ofa_jax.data.storage import as_path, exists, is_remote, local_copy
from ofa_jax.data.storing import names_in, written_whole
from ofa_jax.monitor.exits import reason_of, tell_end
from ofa_jax.parallel.huge_pages import start_with_huge_pages
from ofa_jax.prepare import answers, build_flags, fixtures, frequencies, manifest, quickstart


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
    codes = commands.add_parser("codes")
    codes.add_argument("--vqgan", type=Path, required=True, help="a run of ours: trained, or imported by launch/convert.py")
    codes.add_argument("--data_dir", type=as_path, default=as_path("data/quickstart"))
    codes.add_argument("--dataset", required=True)
    codes.add_argument("--image_px", type=int, default=256, help="side of the square that pictures are resized to")
    codes.add_argument("--area", choices=("central", "whole"), default="central", help="its central half-side square, or all of it")
    codes.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="of the encoder")
    codes.add_argument("--rows", type=int, default=64, help="pictures at a time on each device")
    codes.add_argument("--rebuild", action="store_true", help="replace codes that are there")
    build_flags.add_commands(commands)
    frequencies.add_command(commands)
    answers.add_command(commands)
    verify = commands.add_parser("verify")
    verify.add_argument("--data_dir", type=as_path, default=as_path("data/quickstart"))
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
        elif args.command == "codes":
            _codes(args, progress)
        elif args.command in _RUN:
            _RUN[args.command](args, progress)
        else:
            folders = [args.data_dir / name for name in sorted(names_in(args.data_dir))]
            faults = [fault for folder in folders if exists(folder / "manifest.json") for fault in manifest.verify(folder)]
            progress("\n".join(faults) or f"every shard below {args.data_dir} is as its manifest says")
            return 1 if faults else 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        tell_end(reason_of(error), f"{type(error).__name__}: {error}")
        return 1
    return 0


_RUN = {
    "build": build_flags.run_build,
    "pictures": build_flags.run_pictures,
    "classes": build_flags.run_classes,
    "frequencies": frequencies.run,
    "answers": answers.run,
}


def _codes(args: argparse.Namespace, progress: Callable[[str], None]) -> None:
    import jax
    from jax.experimental import multihost_utils

    from ofa_jax.config.schema import MeshConfig
    from ofa_jax.convert.vqgan_files import describe_model, restore_vqgan
    from ofa_jax.models.vqgan_codec import CODEC_FILE, Codec, check_codec_file, codec_digest, keep_codec_file, save_codec_file
    from ofa_jax.parallel import hosts
    from ofa_jax.parallel.mesh import make_mesh
    from ofa_jax.prepare.codes import CodeOptions, check_one_vqgan, write_codes

    hosts.use_compilation_cache()
    hosts.start(say=progress)
    model, params, said = restore_vqgan(args.vqgan)
    progress(f"{describe_model(model)}, from {said}")
    check_one_vqgan(args.data_dir, args.dataset, codec_digest(model, params), args.area)
    if hosts.is_first():
        path = args.data_dir / CODEC_FILE
        if not is_remote(path):
            keep_codec_file(args.data_dir, model, params, rebuild=args.rebuild)
        elif exists(path) and not args.rebuild:
            check_codec_file(local_copy(path), model, params, name=str(path))
        else:
            with written_whole(path) as local:
                save_codec_file(local, model, params)
    devices = jax.local_devices()  # shards are shared out over hosts, the pictures of one over its host's devices
    rows = args.rows * len(devices)
    codec = Codec(model, params, rows=rows, precision=args.precision, mesh=make_mesh(MeshConfig(), devices=devices))
    write_codes(
        args.data_dir,
        args.dataset,
        codec.encode,
        CodeOptions(codec_digest(model, params), model.num_codes, model.stride, args.image_px, args.area, args.precision),
        batch=rows,
        host=hosts.index(),
        num_hosts=hosts.count(),
        rebuild=args.rebuild,
        wait_for_others=multihost_utils.sync_global_devices,
        progress=progress,
    )


if __name__ == "__main__":
    start_with_huge_pages()
    sys.exit(main(sys.argv[1:]))
