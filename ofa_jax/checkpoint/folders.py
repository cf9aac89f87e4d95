"""Folders of checkpoints: the names that say what they are, where a run has them, and how a damaged one is moved aside."""

from __future__ import annotations

from pathlib import Path

from ofa_jax.config.errors import DamagedError

COMMIT_MARKER = "commit_success.txt"
DAMAGED = ".damaged"  # behind the name of a folder that was moved aside
MOVE_AWAY = "; move it away to use an older one"  # the advice at the end of what `damaged` says
TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's, behind the name of a folder that is being written


def find_run(path: str | Path) -> tuple[Path, int | None]:
    """Returns (a run's folder, the step or None) for the path of a run, of its `checkpoints` folder or of one checkpoint."""
    path = Path(path)
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return path.parent.parent, int(path.name)
    return (path.parent if path.name == "checkpoints" else path), None


def damaged(folder: Path, reason: BaseException | str) -> DamagedError:
    """Returns the error that says what is wrong with the checkpoint in `folder`."""
    return DamagedError(f"{folder}: the checkpoint is damaged ({first_line(reason)}){MOVE_AWAY}")


def first_line(reason: BaseException | str) -> str:
    """Returns the first line of a text or of an error's, or the error's name where it says nothing."""
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:300]


def move_aside(folder: Path) -> Path:
    """Renames a checkpoint's folder so that nothing reads it as one, and returns its new path."""
    names = [f"{folder.name}{DAMAGED}", *(f"{folder.name}{DAMAGED}-{i}" for i in range(1, 100))]
    new = next(path for name in names if not (path := folder.with_name(name)).exists())
    return folder.rename(new)
