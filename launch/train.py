"""Trains a model: `python launch/train.py --config=configs/quickstart.py [--config.a.b=value ...] [--allow=FIELD,...] [--traceback]`.

The same command goes on from the newest checkpoint of the run's folder; on a pod it runs on every host. What would make it another run
(a learning rate, the data) is refused unless --allow names it. Exit codes: 0 done, 2 a mistake told in one sentence, 65 data, 70 a bug,
71 out of memory, 74 checkpoints, 75 preempted (SIGTERM or SIGINT; saved, run it again to go on), 76 losses that are not finite, 77 a hang
(ofa_jax/monitor/exits.py). `lives_<host>.jsonl` in the run's folder has every start and end.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from traceback import print_exc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ofa_jax.config.check import check
from ofa_jax.config.errors import ConfigError, FailedSaveError, UserError
from ofa_jax.config.load import load_run, run_folder
from ofa_jax.config.schema import VQGANRunConfig
from ofa_jax.monitor.exits import REASONS, Life, end_as_hang, end_at_once, is_of_the_disk, reason_of
from ofa_jax.monitor.heartbeat import Heartbeat
from ofa_jax.parallel.huge_pages import start_with_huge_pages


def main(argv: list[str], life: Life | None = None) -> int:
    """Runs the command line `argv` (its first element is the program), notes it in `life`, and returns the exit code."""
    traceback = "--traceback" in argv
    life = life or Life()
    try:
        reason = _train([word for word in argv if word != "--traceback"], life)
        return life.end(reason)
    except BaseException as error:
        reason = reason_of(error)
        if life.began and reason in ("hang", "bug"):
            from ofa_jax.parallel import hosts

            if said := hosts.lost(wait_s=3.0):  # the cause; the error is what came of it
                end_as_hang(life, said)
        code = life.end(reason, f"{type(error).__name__}: {error}"[:2_000])
        if traceback or isinstance(error, SystemExit):
            raise
        if isinstance(error, UserError | KeyboardInterrupt) or is_of_the_disk(error):
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        else:
            print_exc()
        if life.began:
            print(f"ended: {reason} ({code}) at step {life.step}: {REASONS[reason].means}", file=sys.stderr, flush=True)
        if isinstance(error, FailedSaveError) or reason == "hang":
            sys.stdout.flush()
            os._exit(code)  # Python would wait for the threads of the save, JAX for the host that is lost
        return code


def _train(argv: list[str], life: Life) -> str:
    """Trains and returns why it ended, a name of `REASONS`."""
    config, rest = load_run(argv)
    allow = [name for word in rest[1:] if word.startswith("--allow=") for name in word.removeprefix("--allow=").split(",") if name]
    if others := [word for word in rest[1:] if not word.startswith("--allow=")]:
        raise ConfigError(f"command line: found {others[0]}, expected --config=..., --config.a.b=value, --allow=... or --traceback")
    check(config)  # before anything slow is imported or started

    import jax

    from ofa_jax.parallel import hosts

    if config.precision == "f64":
        jax.config.update("jax_enable_x64", True)
    hosts.use_compilation_cache()
    workdir, cluster = run_folder(config), hosts.find_cluster()
    say, on_hang = functools.partial(print, flush=True), functools.partial(end_as_hang, life)
    facts = {"jax": jax.__version__, "cluster": cluster.kind, "processes": cluster.count, "command": argv}
    if (said := life.begin(workdir, host=cluster.index, facts=facts)) and cluster.index == 0:
        say(said)
    if cluster.count == 1:
        say(str(cluster))
    heartbeat = Heartbeat(workdir, host=cluster.index, num_hosts=cluster.count, deadline_s=config.hang_s, on_hang=on_hang)
    try:
        hosts.start(deadline_s=config.hang_s, on_loss=on_hang, say=say, waits_by="--config.hang_s=SECONDS")
        heartbeat.enter(0, "start")
        return _train_on_hosts(argv, life, heartbeat, allow)
    finally:
        heartbeat.close()


def _train_on_hosts(argv: list[str], life: Life, heartbeat: Heartbeat, allow: list[str]) -> str:
    """What follows once the hosts have found each other: the config is that of their devices."""
    from ofa_jax.config.debug import datasets_of, uses_fixtures
    from ofa_jax.data.quarantine import Quarantine
    from ofa_jax.data.usage import Usage
    from ofa_jax.eval.rewards import rewarder_of
    from ofa_jax.parallel import hosts
    from ofa_jax.parallel.machine import load_here
    from ofa_jax.tasks.table import TASK_NAMES
    from ofa_jax.tasks.training_data import training_pipeline
    from ofa_jax.train.hooks import Evaluate, Hook, StopOnRejects, WriteDigests
    from ofa_jax.train.loop import train
    from ofa_jax.train.reporting import host_hooks, reporting_hooks

    config = load_here(argv)
    if uses_fixtures(config):
        from ofa_jax.prepare import fixtures

        for _ in hosts.one_after_another():
            print(f"fixtures: {fixtures.write(config.data.dir, datasets=datasets_of(config))}")
    workdir = run_folder(config)
    quarantine = Quarantine(
        workdir / f"rejects_{hosts.index()}.jsonl", max_fraction=config.data.max_reject_fraction, grace=config.data.reject_grace
    )
    pipeline, identity = training_pipeline(config, host=hosts.index(), num_hosts=hosts.count(), quarantine=quarantine)
    task_names = () if isinstance(config, VQGANRunConfig) else TASK_NAMES
    hooks: list[Hook] = host_hooks(config, workdir, life, heartbeat)
    if hosts.is_first():
        usage = Usage(config.data, pipeline.members())
        hooks += reporting_hooks(config, workdir, usage, task_names=task_names, num_hosts=hosts.count())
    if hosts.count() > 1:
        hooks.append(StopOnRejects(quarantine, every_steps=config.log_every))
    if config.data.write_digests:
        hooks.append(WriteDigests(workdir, host=hosts.index()))
    if isinstance(config, VQGANRunConfig) and config.eval.dataset:
        from ofa_jax.eval import reconstructions

        hooks.append(Evaluate(reconstructions.in_loop(config, workdir), every_steps=config.eval.every_steps))
    elif not isinstance(config, VQGANRunConfig) and config.eval.every_steps:
        from ofa_jax.eval.in_loop import in_loop

        hooks.append(Evaluate(in_loop(config), every_steps=config.eval.every_steps))
    if not isinstance(config, VQGANRunConfig) and config.eval.loss_every_steps:
        from ofa_jax.tasks.training_data import held_out_pipeline
        from ofa_jax.train.held_out import HeldOutLoss

        held_out, source, without = held_out_pipeline(config, host=hosts.index(), num_hosts=hosts.count())
        if without and hosts.is_first():
            print(f"no held-out records of: {', '.join(without)}")
        hooks.append(Evaluate(HeldOutLoss(held_out, source, task_names=task_names), every_steps=config.eval.loss_every_steps))
    try:
        result = train(config, pipeline, hooks, task_names=task_names, identity=identity, allow=allow, rewarder=rewarder_of(config))
    finally:
        pipeline.close()
    life.step = result.step
    return "preempted" if result.stopped else "done"


if __name__ == "__main__":
    start_with_huge_pages()
    this_life = Life()
    end_at_once(this_life)
    sys.exit(main(sys.argv, this_life))
