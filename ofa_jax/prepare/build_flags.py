"""The flags of `launch/prepare.py build`, `pictures` and `classes`, and what they call."""

from __future__ import annotations

import argparse
import dataclasses

from ofa_jax.config.errors import ConfigError, nearest
from ofa_jax.config.fields import field_types, parse
from ofa_jax.config.load import read_config
from ofa_jax.config.schema import RunConfig, VocabConfig
from ofa_jax.data.length_classes import block_classes, block_usefulness
from ofa_jax.data.records import open_records
from ofa_jax.data.storage import as_path
from ofa_jax.prepare.evaluation_pictures import write_table
from ofa_jax.prepare.layouts.base import Layout, Progress
from ofa_jax.prepare.passes.build import build
from ofa_jax.prepare.passes.options import BuildOptions, Described
from ofa_jax.prepare.passes.runner import RunnerOptions
from ofa_jax.prepare.sets import DOWNSTREAM, LAYOUTS, SETS
from ofa_jax.tasks.table import ROWS

DATA_DIR = as_path("data/pretrain")
_PUBLIC = SETS | DOWNSTREAM


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds the commands to the parser of launch/prepare.py."""
    flags = commands.add_parser("build", help="a public data set, or your own files, as shards of records")
    flags.add_argument("name", help=f"a public set ({', '.join(_PUBLIC)}) or a layout ({', '.join(LAYOUTS)})")
    flags.add_argument("--source", required=True, help="folder or address (gs://, s3://) of the files as their makers publish them")
    flags.add_argument("--data_dir", type=as_path, default=DATA_DIR)
    flags.add_argument("--dataset", default="", help="name of what is made; of a public set its own")
    flags.add_argument("--row", choices=tuple(ROWS), help="row kind that will be drawn; of a public set its own")
    flags.add_argument("--option", action="append", default=[], metavar="FIELD=VALUE", help="a field of the layout")
    flags.add_argument("--licence", default="", help="of your own files, for the manifest")
    flags.add_argument("--against", action="append", default=[], metavar="DATASET/SPLIT", help="keep its pictures out (leakage filter)")
    flags.add_argument("--leak_bits", type=int, default=BuildOptions.leak_bits, help="bits of 256 that a copy's hash may differ by")
    flags.add_argument("--negatives", default="", help="folder of OFA's negative samples; the data set's own where none is named")
    flags.add_argument("--square_px", type=int, help="resize pictures to squares of this side; 0: not")
    flags.add_argument("--max_side_px", type=int, help="shrink larger pictures; 0: never")
    flags.add_argument("--shard_records", type=int, default=BuildOptions.max_shard_records, help="at most, in a shard")
    flags.add_argument("--keep_duplicates", action="store_true")
    flags.add_argument("--tokenizer", default="", help="a SentencePiece model, for token lengths; GPT-2's pieces where none is named")
    flags.add_argument("--runner", default="direct", help="Apache Beam's: direct (this machine), dataflow, flink, spark")
    flags.add_argument("--workers", type=int, default=1, help="processes of the direct runner")
    flags.add_argument("--beam", action="append", default=[], metavar="--OPTION=VALUE", help="an option of Beam")
    flags.add_argument("--rebuild", action="store_true", help="replace what is there")
    pictures = commands.add_parser("pictures", help="the table of an evaluation set's pictures, for --against")
    pictures.add_argument("--data_dir", type=as_path, default=DATA_DIR)
    pictures.add_argument("--dataset", required=True)
    pictures.add_argument("--split", required=True)
    classes = commands.add_parser("classes", help="length classes that fit the prepared data of a config")
    classes.add_argument("--config", required=True)
    classes.add_argument("--data_dir", type=as_path, help="instead of the config's data.dir")
    classes.add_argument("--multiple", type=int, default=4, help="lengths are multiples of this")


def run_build(args: argparse.Namespace, progress: Progress) -> None:
    """Runs `build`. Raises `ConfigError` for wrong flags, `DataError` as `passes.build.build` does."""
    options = build_options(args)
    runner = RunnerOptions(args.runner, args.workers, tuple(args.beam))
    build(options, data_dir=args.data_dir, runner=runner, rebuild=args.rebuild, progress=progress)


def build_options(args: argparse.Namespace) -> BuildOptions:
    """Returns what the flags of `build` say. Raises `ConfigError`."""
    known = _PUBLIC.get(args.name)
    if known is None and args.name not in LAYOUTS:
        raise ConfigError(f"build: found the name {args.name!r}; {nearest(args.name, [*_PUBLIC, *LAYOUTS])}")
    layout_class = known.layout if known else LAYOUTS[args.name]
    if known is None and not (args.dataset and (args.row or layout_class.KIND == "labelled_text")):
        raise ConfigError(f"build {args.name}: found no --dataset or no --row, expected both with a layout")
    fields = {"source": args.source, "dataset": args.dataset or args.name, **(known.fields if known else {})}
    layout = layout_class(**(fields | _layout_fields(layout_class, args.option)))
    licence = args.licence or (known.licence if known else "not stated")
    chosen = {name: value for name in ("square_px", "max_side_px") if (value := getattr(args, name)) is not None}
    if args.keep_duplicates:
        chosen["drop_duplicates"] = False
    row = known.row if known else ""
    return BuildOptions(
        layout=layout,
        row=args.row or (row if row in ROWS else ""),
        described=Described(known.page if known else args.source, licence, known.notes if known else ()),
        tokenizer=_tokenizer(args.tokenizer),
        max_shard_records=args.shard_records,
        against=tuple(args.against),
        leak_bits=args.leak_bits,
        negatives=args.negatives,
        **((known.build if known else {}) | chosen),
    )


def _tokenizer(path: str) -> VocabConfig:
    if not path:
        return VocabConfig()
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=path).get_piece_size()
    return VocabConfig(tokenizer="sentencepiece", path=path, num_text=pieces + 1)  # and MASK, which is no piece of the file


def _layout_fields(layout: type[Layout], options: list[str]) -> dict[str, object]:
    kinds = field_types(layout)
    found: dict[str, object] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or name not in kinds:
            raise ConfigError(f"--option {option}: found no field {name!r} of {layout.__name__}; {nearest(name, kinds)}")
        found[name] = parse(text, kinds[name], path=f"--option {name}")
    return found


def run_pictures(args: argparse.Namespace, progress: Progress) -> None:
    """Runs `pictures`."""
    write_table(args.data_dir, args.dataset, args.split, progress=progress)


def run_classes(args: argparse.Namespace, progress: Progress) -> None:
    """Runs `classes`: prints for every block that has length classes those with the same rows that fit the prepared data."""
    config = read_config(args.config)
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{args.config}: found a config without sequences, expected one of OFA")
    for block in config.data.blocks:
        if not block.classes:
            continue
        lengths = [
            open_records(args.data_dir or config.data.dir, line.dataset, line.split).sequence_lengths(line.row) for line in block.sources
        ]
        classes = block_classes(block, lengths, rows=[part.rows for part in block.classes], multiple=args.multiple)
        patches = block.num_patches or (block.image_px // config.model.resnet.stride) ** 2
        found = block_usefulness(dataclasses.replace(block, classes=classes), lengths, num_patches=patches)
        progress(f"{block.name}: {found.share:.3f} of all positions are of use, {found.text_share:.3f} of those of texts")
        for part in classes:
            progress(f"    LengthClass({part.rows}, {part.source_lens}, {part.target_lens}),")
