"""All checks in their order, on every host of a run; the first host prints each line as soon as all hosts have answered.

Every stage ends with a gathering of its findings, so a host that fails in a stage still meets the others at its end.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax

from ofa_jax.checkpoint.folders import find_run
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.debug import datasets_of, uses_fixtures
from ofa_jax.config.errors import UserError
from ofa_jax.config.hardware import Hardware, hardware_of
from ofa_jax.config.load import run_folder
from ofa_jax.config.render import config_hash
from ofa_jax.config.schema import AnyRun, RunConfig, VQGANRunConfig
from ofa_jax.doctor import agreement, attention, datasets, folders, layout, memory, pace, versions
from ofa_jax.doctor.report import Finding, Report, failure, from_bytes, lines, to_bytes
from ofa_jax.monitor.heartbeat import Heartbeat
from ofa_jax.parallel import hosts
from ofa_jax.pods.program import checkpoint_bytes
from ofa_jax.prepare import fixtures
from ofa_jax.tasks.table import TASK_NAMES
from ofa_jax.train.light import new_base
from ofa_jax.train.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for beside the config."""

    requirements: Path
    seconds: float = 5.0  # of each measurement
    chip: Hardware | None = None  # that the run is for; None: what is here
    devices: int = 0  # that the run is for; 0: those that are here
    mfu: float = 0.4  # share of the peak that a step is predicted with
    step_s: float = 0.0  # of a step, where it is known
    compile: bool = False

    @property
    def elsewhere(self) -> bool:
        """Whether the run is for other devices than those that are here."""
        return self.chip is not None or self.devices > 0


@contextmanager
def joined(config: AnyRun, *, deadline_s: float, give_up: Callable[[str], None], say: Callable[[str], None]) -> Iterator[Heartbeat]:
    """Joins the hosts, and watches them while the block runs: when one is lost, or stops answering, `give_up` is called with a sentence
    that names it, in a thread of its own; it is expected to end the process. Leaves no file behind.

    say: as of `hosts.start`. Raises as that does, `HangError` where a host does not come.

    The hosts find each other's heartbeats in a folder beside the run's; where that cannot be made, the sentence says which was used.
    """
    host, num_hosts = hosts.place()
    folder = run_folder(config) / "doctor"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f".{host}").touch()
        (folder / f".{host}").unlink()
    except OSError:  # what is wrong with it is told by the check of workdir
        made = [folder := Path(tempfile.mkdtemp(prefix="ofa_jax-doctor-"))]
    watch = Heartbeat(folder, host=host, num_hosts=num_hosts, deadline_s=deadline_s, on_hang=give_up)
    try:
        hosts.start(deadline_s=deadline_s, on_loss=give_up, say=say, waits_by="--join_s=SECONDS")
        yield watch
        watch.close()
        hosts.gather(b"closed")  # the folder is empty now for the host that made it
    finally:
        watch.close()
        _remove(made)


def _remove(made: Sequence[Path]) -> None:
    """Removes folders that are empty now, the inner ones first."""
    for path in made:
        try:
            path.rmdir()
        except FileNotFoundError:
            continue  # another host made it too, and was first
        except OSError:
            return  # something lies there: stacks of a hang, or what others have written meanwhile


@dataclasses.dataclass
class _Examination:
    """Findings so far, and how a stage is run."""

    report: Report
    say: Callable[[str], None]
    enter: Callable[[int, str], None]
    count: int = 0

    def stage(self, check: str, run: Callable[[], list[Finding]]) -> list[Finding]:
        """Runs one check here, gathers what all hosts found, prints it and returns this host's findings."""
        self.count += 1
        self.enter(self.count, check)
        try:
            own = run()
        except (UserError, OSError) as error:
            own = [failure(check, error)]
        own = [dataclasses.replace(finding, host=hosts.index()) for finding in own]
        together = [finding for found in hosts.gather(to_bytes(own)) for finding in from_bytes(found)]
        self.report.findings += together
        if hosts.is_first():
            for line in lines(together, num_hosts=hosts.count()):
                self.say(line)
        return own


def examine(config: AnyRun, options: Options, *, say: Callable[[str], None], enter: Callable[[int, str], None]) -> Report:
    """Returns what all checks found on all hosts, after `joined`. say: takes each line, in the first process. enter: is told of each
    stage, its number and name, when it begins.

    Raises `ConfigError` for a requirements file that cannot be read. Whatever else is wrong is a finding.
    """
    packages = versions.installed(versions.read_pins(options.requirements))
    num_devices = options.devices or jax.device_count()
    kind = options.chip.title if options.chip else jax.local_devices()[0].device_kind
    chip = options.chip or hardware_of(jax.local_devices()[0].device_kind)
    facts = {"config": config.name, "config_hash": config_hash(config), "devices": num_devices, "kind": kind, "hosts": hosts.count()}
    seen = _Examination(Report(facts), say, enter)

    seen.stage("versions", lambda: versions.check_versions(options.requirements))
    seen.stage("devices", lambda: agreement.check_devices(hosts.place()[1]))
    all_facts = agreement.gather_facts(agreement.facts(config, packages))
    seen.stage("hosts", lambda: agreement.compare(all_facts, check="hosts"))
    rounds = agreement.clock_rounds()
    seen.stage("clocks", lambda: agreement.check_clocks(rounds))
    fits = all(finding.status == "ok" for finding in seen.stage("mesh", lambda: layout.check_layout(config, num_devices)))
    material, data_opens, read_mb_s = _examine_data(seen, config, options)
    size = checkpoint_bytes(config)
    seen.stage("workdir", lambda: folders.check_workdir(config, checkpoint_bytes=size, seconds=options.seconds))
    seen.stage("disk", lambda: folders.check_room(config, checkpoint_bytes=size))
    seen.stage("start", lambda: _check_start(config))
    if fits:
        state = memory.state_bytes(config, num_devices)
        seen.stage("memory", lambda: _check_memory(config, options, state, num_devices))
        if not options.elsewhere:
            seen.stage("host", lambda: memory.check_host_memory(config, state, on_cpu=jax.local_devices()[0].platform == "cpu"))
    else:
        seen.stage("memory", lambda: [Finding("memory", "WARN", "not checked, because the mesh does not fit")])
    if isinstance(config, RunConfig) and config.objective == "ofa" and config.model.attention != "reference" and not options.elsewhere:
        seen.stage("attention", lambda: attention.check_attention(config))
    step = pace.predict_step(config, chip, kind=kind, num_devices=num_devices, mfu=options.mfu, step_s=options.step_s)
    if not data_opens:
        found = f"not measured, because the data does not open; {pace.describe(config, step)}"
        seen.stage("pace", lambda: [Finding("pace", "WARN", found, numbers={"step_s": step.seconds})])
        return seen.report

    def measured() -> list[Finding]:
        rate = pace.measure(config, host=hosts.index(), num_hosts=hosts.count(), seconds=options.seconds)
        return pace.check_pace(
            config,
            rate,
            step,
            num_hosts=hosts.count(),
            here=not options.elsewhere,
            read_mb_s=read_mb_s,
            step_bytes=datasets.bytes_a_step(config, material),
        )

    seen.stage("pace", measured)
    return seen.report


def _examine_data(seen: _Examination, config: AnyRun, options: Options) -> tuple[datasets.Material, bool, float | None]:
    """Returns (what was found, whether all of it opens on every host, megabytes a second of reading shards here)."""
    if uses_fixtures(config):
        for _ in hosts.one_after_another():
            fixtures.write(config.data.dir, datasets=datasets_of(config))
    material = datasets.Material({}, [], {}, {})

    def look() -> list[Finding]:
        nonlocal material
        material, found = datasets.look(config)
        return found

    opens = all(finding.status == "ok" for finding in seen.stage("datasets", look))
    opens = not any(hosts.sums(not opens))
    if hosts.count() > 1:
        all_facts = agreement.gather_facts({"data": material.identity})
        seen.stage("same data", lambda: agreement.compare(all_facts, check="same data"))
    [read] = seen.stage("data", lambda: folders.check_data_folder(config, material.shards, seconds=options.seconds))
    rate = read.numbers.get("read_mb_s")
    return material, opens, rate if isinstance(rate, float) else None


def _check_start(config: AnyRun) -> list[Finding]:
    """What the run would begin with: its newest checkpoint, another run's, or nothing. Raises `CheckpointError` where that is missing, or
    what its checkpoints leave to another one."""
    manager = CheckpointManager(run_folder(config), read_only=True, base=config.init.checkpoint)
    cut_off = (*manager.incomplete, *manager.unmarked)
    if cut_off:
        found = f"{manager.directory}: {', '.join(cut_off)} cut off while written, or without the marker of completion"
        return [Finding("start", "WARN", found, advice="the run deletes or moves them aside when it starts")]
    if steps := manager.steps():
        base = manager.find_base()
        return [Finding("start", "ok", f"goes on from step {steps[-1]} of {manager.directory}" + (f", over {base}" if base else ""))]
    if not config.init.checkpoint:
        return [Finding("start", "ok", f"at step 0, from drawn parameters: {manager.directory} has no checkpoint")]
    folder, step = find_run(config.init.checkpoint)
    there = CheckpointManager(folder, read_only=True).steps()
    if not there or (step is not None and step not in there):
        advice = "train that run first, or give --config.init.checkpoint= to start from drawn parameters"
        return [Finding("start", "FAIL", f"init.checkpoint: found no complete checkpoint at {config.init.checkpoint}", "one", advice)]
    new_base(config, abstract_state(config))
    parts = ", ".join(config.init.parts) or "all parts"
    return [Finding("start", "ok", f"at step 0, with {parts} from step {step or there[-1]} of {folder}")]


def _check_memory(config: AnyRun, options: Options, state: memory.StateBytes, num_devices: int) -> list[Finding]:
    compiled = None
    if options.compile:
        try:
            compiled = memory.compiled_bytes(config, num_tasks=0 if isinstance(config, VQGANRunConfig) else len(TASK_NAMES))
        except jax.errors.JaxRuntimeError as error:
            found = memory.out_of_memory(error)
            if found is None:
                raise
            return [found]
    if options.chip is not None:
        limit: float | None = options.chip.program_bytes
        of = options.chip.title
    else:
        limit, of = memory.device_limit()
    on_device = memory.batch_bytes(config) / layout.batch_shards(config, num_devices)
    return memory.check_device_memory(state, limit, of, compiled=compiled, num_batch_bytes=on_device)
