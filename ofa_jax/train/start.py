"""The state that a run starts from: drawn, taken from another run, or the newest checkpoint of its own that is whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ofa_jax.checkpoint.about import versions
from ofa_jax.checkpoint.base import Base
from ofa_jax.checkpoint.manager import CheckpointManager
from ofa_jax.config.errors import CheckpointError, DamagedError
from ofa_jax.config.schema import AnyRun
from ofa_jax.parallel import hosts
from ofa_jax.parallel.rules import key_path_parts
from ofa_jax.train.initial import take_parameters
from ofa_jax.train.light import base_of_resumed, new_base
from ofa_jax.train.resume import check_resume
from ofa_jax.train.saving import CheckpointEvents
from ofa_jax.train.state import TrainState, init_state, state_shardings, with_shardings

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins or goes on with."""

    state: TrainState
    consents: tuple[dict[str, Any], ...]  # given to the run so far
    base: Base | None  # to which its checkpoints leave what stays as it is; None: they hold everything


def start_state(
    config: AnyRun,
    manager: CheckpointManager,
    *,
    identity: dict[str, str],
    mesh: Mesh,
    abstract: TrainState,
    allow: Sequence[str],
    events: CheckpointEvents,
    say: Say,
) -> Start:
    """Returns the state and what its checkpoints have to say.

    A damaged checkpoint is moved aside, said, and the one before is taken; all processes take the same. Raises `CheckpointError` where
    the run in the folder is another one (`check_resume`), where no checkpoint is whole though there were some, and for what is wrong with
    the base of a checkpoint that holds only what is trained: an older one has the same.
    """
    for name in manager.incomplete:
        say(f"checkpoints: {name} was cut off while it was written; ignored and deleted")
    for name in manager.unmarked:
        problem = "its marker of completion is missing"
        _report_damage(manager.directory / name, problem, f"{name}.damaged", step=int(name), events=events, say=say)
    # The first process's list: on a shared disk another may still see what the first has moved.
    steps = json.loads(hosts.gather(json.dumps(manager.steps()).encode())[0])
    for step in reversed(steps):
        problem = manager.damage(step)
        if not problem:
            start, problem = _restored(config, manager, step, identity=identity, mesh=mesh, abstract=abstract, allow=allow, say=say)
            if start is not None:
                say(f"going on from step {step} of {manager.directory}")
                return start
        moved = manager.move_aside(step)
        _report_damage(manager.directory / str(step), problem, moved.name, step=step, events=events, say=say)
    if moved_aside := manager.moved_aside():
        raise CheckpointError(
            f"{manager.directory}: found no whole checkpoint, only damaged ones ({', '.join(moved_aside)}), expected one to go on from; "
            "bring one back from a copy, or give another --config.name to start a new run"
        )
    say("starting at step 0")
    base = new_base(config, abstract)
    state = init_state(config, mesh)
    if config.init.checkpoint:
        state, said = take_parameters(config, state, step=None if base is None else base.step)
        say(said)
    if base is not None:
        say(f"checkpoints hold what is trained; {_of_all(base, abstract)} are left to {base}")
    return Start(state, (), base)


def _restored(
    config: AnyRun,
    manager: CheckpointManager,
    step: int,
    *,
    identity: dict[str, str],
    mesh: Mesh,
    abstract: TrainState,
    allow: Sequence[str],
    say: Say,
) -> tuple[Start | None, str]:
    """Returns (the start, "") or, where the files of the checkpoint cannot be read, (None, what is wrong)."""
    where = f"checkpoint {manager.directory / str(step)}"
    stored = manager.about(step)
    verdict = check_resume(stored, config, step=step, where=where, identity=identity, allow=allow)
    for sentence in verdict.said:
        say(sentence)
    here = versions()
    other = [f"{name} {version} (here {here.get(name)})" for name, version in stored.versions.items() if here.get(name) != version]
    if other:
        say(f"{where} was written with {', '.join(other)}")
    missing = manager.missing_parts(abstract, step=step)
    fill: dict[str, Any] = {}
    if missing:
        drawn = init_state(config, mesh)
        fill = {part: getattr(drawn, part) for part in missing}
        del drawn
        values = {part: "the parameters as they are" if part == "ema" else "its initial values" for part in missing}
        say(f"{where} lacks a part of the state, filled in: {', '.join(f'{part} with {value}' for part, value in values.items())}")
    problem = ""
    state: Any = None
    try:
        without = ("ema",) if abstract.ema is None else ()
        state = restore_state(config, manager, step, mesh=mesh, abstract=abstract, fill=fill, without=without)
    except DamagedError as error:
        problem = str(error)
    problem = next((text for text in map(bytes.decode, hosts.gather(problem.encode())) if text), "")
    if problem:
        return None, problem
    if "ema" in missing:
        state = dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.params))  # one buffer cannot be donated twice
    base = base_of_resumed(config, stored.base, state, where=where, say=say)
    return Start(state, verdict.consents, base), ""


def restore_state(
    config: AnyRun,
    manager: CheckpointManager,
    step: int,
    *,
    mesh: Mesh,
    abstract: TrainState,
    fill: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
) -> TrainState:
    """Returns the saved state of `step`, placed for the mesh. Checkpoints from before moments of frozen parameters were left out hold them
    still; they are not read. Raises as `CheckpointManager.restore`."""
    wanted = with_shardings(abstract, state_shardings(config, mesh))
    spare = ("opt_state",) if config.optimizer.frozen or config.optimizer.trained else ()
    return manager.restore(wanted, step=step, fill=fill, without=without, spare=spare)


def _of_all(base: Base, abstract: TrainState) -> str:
    """How many of the parameters a base has."""
    sizes = {"/".join(key_path_parts(path)): leaf.size for path, leaf in jax.tree_util.tree_flatten_with_path(abstract.params)[0]}
    return f"{sum(sizes[name] for name in base.params):,} of {sum(sizes.values()):,} parameters"


def _report_damage(folder: Path, problem: str, moved: str, *, step: int, events: CheckpointEvents, say: Say) -> None:
    say(f"WARNING: {folder}: the checkpoint is damaged ({problem}); moved aside as {moved}, the one before is used")
    events.write("damaged", step=step, problem=problem, moved_to=moved)
