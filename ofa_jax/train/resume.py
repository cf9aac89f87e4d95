"""Whether a stored run may go on under the config and the data at hand, and what a person must allow by name for it.

The same command resumes. A change is free where it decides where, how fast or how visibly a run goes; any other makes it another run,
which goes on only where the change is named: `--allow=optimizer.learning_rate,data.blocks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ofa_jax.checkpoint.about import About
from ofa_jax.config.errors import CheckpointError
from ofa_jax.config.render import leaves
from ofa_jax.config.schema import AnyRun

# What changes where or how fast a run goes, or what is reported, but not what is learned. A name ending in a dot covers all below it.
# The guard is free because a run that it ended goes on under another one.
FREE_FIELDS = (
    "name", "workdir", "log_every", "hang_s", "checkpoint.", "eval.", "monitor.", "mesh.", "guard",
    "data.dir", "data.num_workers", "data.prefetch", "data.max_reject_fraction", "data.reject_grace", "data.max_epochs",
    "data.write_digests",
    "vocab.path", "loss.logit_chunk", "optimizer.accumulate", "model.layers", "model.remat", "model.attention", "model.convolution",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that differs between the stored run and this one."""

    name: str  # a field's dotted path, or a fact outside the config: `tokenizer`, `data/<dataset>`
    then: str
    now: str
    free: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.then} -> {self.now}"

    @property
    def consent(self) -> str:
        """What --allow must name for it: the field, or the group where single fields are too many to name."""
        if self.name.startswith("data.blocks"):
            return "data.blocks"
        return "data" if self.name.startswith("data/") else self.name


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a resume says and keeps."""

    said: tuple[str, ...]  # sentences for the terminal
    consents: tuple[dict[str, Any], ...]  # all of the run, for its later checkpoints


def changes(stored: About, config: AnyRun, identity: dict[str, str]) -> list[Change]:
    """Returns everything that differs, in the order of the schema, facts outside the config last. A fact that an older format did not
    save is no change."""
    old, new = leaves(stored.config), leaves(config)
    # A base is known by its digest: it may have moved.
    always = ("steps",) if stored.base is None else ("steps", "init.checkpoint")
    found = []
    for field in [*old, *(name for name in new if name not in old)]:
        if old.get(field) != new.get(field):
            free = field in always or any(field == name or (name.endswith(".") and field.startswith(name)) for name in FREE_FIELDS)
            found.append(Change(field, old.get(field, "(none)"), new.get(field, "(none)"), free))
    for fact in sorted({*stored.identity, *identity}):
        then, now = stored.identity.get(fact), identity.get(fact)
        if then != now and not (then is None and _unsaid(stored, fact)):
            found.append(Change(fact, then or "(none)", now or "(none)", False))
    return found


def check_resume(stored: About, config: AnyRun, *, step: int, where: str, identity: dict[str, str], allow: Sequence[str] = ()) -> Verdict:
    """Returns what to say and what to keep when the run saved at `step` goes on under `config`.

    identity: facts outside the config, by name. allow: names of changes, or of groups of them (`optimizer` covers `optimizer.eps`,
    `data` the data itself too). where: the checkpoint, for the sentence. Raises `CheckpointError` that shows every change and the flag
    that would allow it. `steps` may change as long as it is not below `step`; the schedule follows the new value.
    """
    if config.steps < step:
        raise CheckpointError(f"steps: found {config.steps}, expected at least {step}, the step that {where} has reached")
    found = changes(stored, config, identity)
    free, others = [c for c in found if c.free], [c for c in found if not c.free]
    allowed = [c for c in others if any(c.name == name or c.name.startswith((f"{name}.", f"{name}/")) for name in allow)]
    missing = [c for c in others if c not in allowed]
    if any(c.name == "objective" for c in missing + allowed):
        raise CheckpointError(f"{where} is of another model: {'; '.join(map(str, others))}; give another --config.name to start a new run")
    if missing:
        flag = ",".join(dict.fromkeys([*allow, *(c.consent for c in missing)]))
        also = f" (free: {'; '.join(map(str, free))})" if free else ""
        raise CheckpointError(
            f"this would be another run than {where}: {'; '.join(map(str, missing))}{also}; give the old values to go on, another "
            f"--config.name to start a new run, or --allow={flag} if this is meant"
        )
    said = [f"changed, free: {change}" for change in free] + [f"changed, allowed: {change}" for change in allowed]
    unused = [name for name in allow if not any(c.name == name or c.name.startswith((f"{name}.", f"{name}/")) for c in allowed)]
    said += [f"--allow={name}: nothing of it changed" for name in unused]
    if stored.unsaid:
        unsaid = ", ".join(stored.unsaid)
        said.append(f"{where} has format {stored.format}, which does not say: {unsaid}; they are taken to be those of this run")
    consents = stored.consents
    if allowed:
        consents = (*consents, {"step": step, "changes": [str(change) for change in allowed]})
    return Verdict(tuple(said), consents)


def _unsaid(stored: About, fact: str) -> bool:
    return bool(stored.unsaid) and fact.startswith("data/")
