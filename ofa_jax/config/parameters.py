"""Which parameters of a model a config speaks of, by paths and patterns of paths, and which of them learn."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from ofa_jax.config.schema import OptimizerConfig


def is_named(path: Sequence[str], entries: Sequence[str]) -> bool:
    """Returns whether one of `entries` names the parameter that lies at `path` in the model.

    An entry names what lies below it too: `resnet`, `encoder/layers/ffn`. In a part, `*`, `?` and `[abc]` stand for letters
    (`*/layers/self_attention`); `**` stands for any number of parts (`**/*norm`).
    """

    def matches(pattern: Sequence[str], path: Sequence[str]) -> bool:
        if not pattern:
            return True
        if pattern[0] == "**":
            return any(matches(pattern[1:], path[start:]) for start in range(len(path)))
        return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and matches(pattern[1:], path[1:])

    return any(matches(entry.split("/"), path) for entry in entries)


def stays(path: Sequence[str], config: OptimizerConfig) -> bool:
    """Returns whether the parameter at `path` stays as it is: one that `frozen` names, or that `trained` does not where it names any."""
    return is_named(path, config.frozen) or (bool(config.trained) and not is_named(path, config.trained))


def part_stays(part: str, config: OptimizerConfig) -> bool:
    """Returns whether a whole part of the model (`resnet`) stays as it is, as far as the entries say by themselves: one that begins with a
    pattern may name something of any part."""
    begins = [entry.split("/")[0] for entry in config.trained]
    return part in config.frozen or (bool(begins) and not any(fnmatch.fnmatchcase(part, "*" if name == "**" else name) for name in begins))
