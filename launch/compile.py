"""Compiles a run's programs for devices that are not here, and says whether they fit and what the run comes to.

    python launch/compile.py --config=configs/ofa_large.py --topology=v5p:4x4x4 [--slices=2] [--config.a.b=value ...]

Prints a chip's memory, the step's operations, every collective, and seconds, hours and rates at the hardware's published best (files of
configs/hardware), then what generation takes; nothing is trained and no parameter is made. TPUs need libtpu (`make tpu-env`), and no chip;
`--topology=cpu:8` compiles for CPU devices of this machine, GPUs are compiled for on one alone (launch/doctor.py --compile).

  --slices=N           so many such slices, joined by their hosts' network
  --search[=N]         proposes mesh, rows, micro-batches and remat: compiles what is judged best until N (default 1) fit
  --skip_decoding      the training step alone
  --rows_core_s=R      rows a second that a core of a host makes (default 230)
  --row_kb=K           of a record in storage (default 60)
  --json=FILE          all numbers
  --hlo=FILE           the compiled step, as XLA prints it

What suits the hardware (model.layers, .remat, .attention, .convolution, mesh) is taken from its file; a --config.... flag wins.
Compiling takes minutes; JAX_OPTIMIZATION_LEVEL=O0 takes less and gives the same memory and collectives, but code whose own prices (the
column "compiler") are ten times as long.

Exit codes: 0 it fits with a tenth of the memory to spare, 1 it does not, 2 a mistake told in one sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.errors import ConfigError, UserError

EXIT_DOES_NOT_FIT, EXIT_MISTAKE = 1, 2


def main(argv: list[str]) -> int:
    """Runs the command line `argv` (its first element is the program) and returns the exit code."""
    if "--help" in argv:
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        return _compile([word for word in argv if word != "--traceback"])
    except UserError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        largest = getattr(error, "largest", None)
        for line in largest or ():
            print(f"  {line}", file=sys.stderr)
        return EXIT_MISTAKE if largest is None else EXIT_DOES_NOT_FIT


def _parse(argv: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"command line: {message}; expected --config=FILE --topology=NAME:SHAPE [--slices=N] [--search]")

    parser = Parser(prog="launch/compile.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--search", type=int, nargs="?", const=1, default=0)
    parser.add_argument("--skip_decoding", action="store_true")
    parser.add_argument("--rows_core_s", type=float, default=230.0)
    parser.add_argument("--row_kb", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hlo", type=Path)
    flags = parser.parse_args(argv[1:])
    for name in ("rows_core_s", "row_kb"):
        if not getattr(flags, name) > 0:
            raise ConfigError(f"command line: --{name}: found {getattr(flags, name):g}, expected more than 0")
    for name in ("json", "hlo"):
        file = getattr(flags, name)
        if file and not file.absolute().parent.is_dir():
            raise ConfigError(f"command line: --{name}: found no folder {file.absolute().parent}, expected one for the file")
    return flags


def _compile(argv: list[str]) -> int:
    from ofa_jax.config.check import check
    from ofa_jax.config.hardware import parse_topology, suited
    from ofa_jax.config.load import override, read_config, split_config
    from ofa_jax.config.schema import RunConfig

    spec, overrides, rest = split_config(argv)
    flags = _parse(rest)
    if not spec:
        raise ConfigError("--config: found none, expected --config=configs/<name>.py[:arg]")
    topology = parse_topology(flags.topology, slices=flags.slices)
    config = read_config(spec)
    if not isinstance(config, RunConfig):
        raise ConfigError(f"--config: found the run {config.name} of a {config.objective}, expected one of an OFA model")
    config = override(suited(config, topology.hardware, num_devices=topology.chips), overrides)
    if not flags.search:
        check(config, topology.chips)

    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is run
    if topology.hardware.platform == "cpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={topology.chips}"
    from ofa_jax.pods.devices import describe
    from ofa_jax.pods.estimate import advise, estimate, table
    from ofa_jax.pods.program import compile_train_step
    from ofa_jax.tasks.table import TASKS

    devices, rates = describe(topology), {"rows_core_s": flags.rows_core_s, "row_bytes": flags.row_kb * 1e3}
    if flags.search:
        from ofa_jax.pods.search import search

        found = search(config, topology, devices, num_tasks=len(TASKS), wanted=flags.search, **rates)
    else:
        print(f"compiling {config.name} for {topology.text}: minutes", file=sys.stderr, flush=True)
        compiled = compile_train_step(config, topology, devices, num_tasks=len(TASKS))
        found = estimate(config, topology, compiled, **rates)
        if not flags.skip_decoding:
            from ofa_jax.pods.decoding import compile_decoding

            found = dataclasses.replace(found, decoding=compile_decoding(config, topology, devices))
        if flags.hlo:
            flags.hlo.write_text(compiled.text, encoding="utf-8")
    print(table(found))
    if flags.json:
        flags.json.write_text(json.dumps(found.to_dict(), indent=2, default=dataclasses.asdict) + "\n", encoding="utf-8")
    if found.fits:
        return 0
    print(advise(found), file=sys.stderr)
    return EXIT_DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main(sys.argv))
