"""Evaluates a checkpoint: `python launch/eval.py --config=configs/quickstart.py [--checkpoint=DIR] [--step=N] [--sets=a,b] [--no-report]`.

Writes eval.json, predictions.jsonl and report.html into the run's folder (`workdir`, or DIR where it is given), prints the table of
results against baselines. Exit codes: 0 done, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import CheckpointError, ConfigError, UserError

EXIT_MISTAKE = 2


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    from ofa_jax.data.records import RecordError

    traceback = "--traceback" in argv
    try:
        return _evaluate([word for word in argv if word != "--traceback"])
    except (UserError, RecordError) as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_MISTAKE


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected --config=FILE [--checkpoint=DIR] [--step=N] [--sets=a,b] [--no-report]")

    parser = Parser(prog="launch/eval.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--checkpoint", help="a run's folder, its checkpoints folder or one checkpoint")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--sets", default="", help="names of eval.sets, separated by commas; default: all")
    parser.add_argument("--no-report", action="store_true", help="no report.html")
    return parser.parse_args(argv[1:])


def _find_run(checkpoint: str | None, default: Path, step: int | None) -> tuple[Path, int | None]:
    """The run's folder and the step that --checkpoint and --step name."""
    if checkpoint is None:
        return default, step
    from ofa_jax.checkpoint.manager import find_run

    folder, named = find_run(checkpoint)
    if step is not None and named not in (None, step):
        raise ConfigError(f"--step: found {step}, expected {named} as in --checkpoint={checkpoint}, or neither")
    return folder, step if named is None else named


def _evaluate(argv: list[str]) -> int:
    from ofa_jax.config.check import check
    from ofa_jax.config.load import load_config

    config, rest = load_config(argv)
    flags = _parse(rest)
    check(config)
    if config.objective != "ofa":
        raise ConfigError(f"objective: found {config.objective}, expected ofa: only the whole model has tasks to be evaluated on")

    import jax

    from ofa_jax.checkpoint.manager import CheckpointManager
    from ofa_jax.eval.runner import chosen_sets, evaluate, format_table, write_results
    from ofa_jax.parallel import hosts
    from ofa_jax.train.loop import run_folder

    sets = chosen_sets(config, [name for name in flags.sets.split(",") if name])
    folder, step = _find_run(flags.checkpoint, run_folder(config), flags.step)
    manager = CheckpointManager(folder, read_only=True)
    if not manager.steps():
        raise CheckpointError(
            f"{manager.directory}: found no complete checkpoint; run python launch/train.py with the same --config first, or name another "
            "run's folder with --checkpoint"
        )
    if config.precision == "f64":
        jax.config.update("jax_enable_x64", True)
    hosts.use_compilation_cache()

    from ofa_jax.data.records import open_records
    from ofa_jax.data.transforms.image import transform
    from ofa_jax.models import ofa
    from ofa_jax.tasks.negatives import load_negatives
    from ofa_jax.tasks.rows import RowBuilder
    from ofa_jax.vocab.tokenizer import load_tokenizer

    progress = logging.getLogger("ofa_jax.eval")
    progress.setLevel(logging.INFO)
    progress.propagate = False  # the root logger's prefix would drown the line
    progress.addHandler(logging.StreamHandler(sys.stderr))
    start = time.perf_counter()
    try:
        tokenizer = load_tokenizer(config.vocab)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    negatives = {name: load_negatives(config.data.dir, name) for name in sorted({s.dataset for s in sets})}
    precision = config.precision
    graphdef, abstract = jax.eval_shape(lambda: ofa.create(config.model, config.vocab, jax.random.key(0), precision=precision))
    abstract_stats = jax.eval_shape(lambda: ofa.init_stats(config.model, precision=precision))
    restored = manager.restore_params(abstract, abstract_stats, step=step)
    evaluation = evaluate(
        config,
        graphdef=graphdef,
        params=restored.params,
        stats=restored.stats,
        tokenizer=tokenizer,
        build_row=RowBuilder(config.vocab, tokenizer, negatives, transform, train=False),
        open_source=lambda source: open_records(config.data.dir, source.dataset, source.split),
        sets=sets,
        with_pictures=not flags.no_report,
    )
    write_results(evaluation, folder)
    print(format_table(evaluation.results))
    seconds = time.perf_counter() - start
    checkpoint = f"step {restored.step:,}" + (" (averaged weights)" if restored.averaged else "")
    print(f"{checkpoint}; {len(evaluation.predictions):,} examples in {seconds:.0f} s")
    if not flags.no_report:
        from ofa_jax.eval.report import write_report

        facts = {
            "checkpoint": checkpoint,
            "parameters": f"{ofa.num_params(abstract, config.vocab):,}",
            "evaluated in": f"{seconds:.0f} s on {jax.devices()[0].device_kind}",
        }
        print(f"report: {write_report(folder, config, facts=facts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
