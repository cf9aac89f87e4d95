"""Errors that a user can mend: launch scripts print their one sentence and exit, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A fault outside the code. `str()` is one sentence that names the field, what was found and what was expected."""


class ConfigError(UserError):
    """A wrong flag, config file or combination of fields."""


class DataError(UserError):
    """Data that is missing, damaged or of another version than the config says. (One bad record is a `RecordError` instead.)"""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete or of another model."""


class DamagedError(CheckpointError):
    """A checkpoint whose files are not what was saved. An older one may be whole."""


class FailedSaveError(CheckpointError):
    """A save that failed. Its other threads may wait for ever and cannot be ended: who catches this leaves the process by `os._exit`."""


class HungSaveError(FailedSaveError):
    """A save that was not done by its deadline."""


class ConvertError(UserError):
    """Another program's file of weights that is missing, damaged, unsafe or of unknown format, or a state that cannot be written as one."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns the part of a sentence that helps with an unknown `word`: the nearest option, or all of them when none is near."""
    options = list(options)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(options)}"
