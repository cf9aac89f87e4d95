"""Which checkpoints stay by their score. (The newest, and those of every n-th step, are kept by Orbax's own policies.)"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def best_steps(scores: Mapping[int, float | None], count: int, *, lowest: bool) -> set[int]:
    """Returns the steps of the `count` best scores; of equal ones the newer. A step without a finite score is none of them."""
    found = [(-score if lowest else score, step) for step, score in scores.items() if score is not None and math.isfinite(score)]
    return {step for _, step in sorted(found, reverse=True)[:count]}


@dataclasses.dataclass(frozen=True)
class BestOf:
    """A preservation policy, as Orbax asks for one. Orbax's `BestN` knows only the scores that this process has seen; after a restart
    it would keep every older checkpoint, or none."""

    count: int
    lowest: bool
    score: Callable[[int], float | None]  # of a step; None: it has none

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each checkpoint (it has a `step`) whether it is one of the best."""
        del context
        best = best_steps({info.step: self.score(info.step) for info in checkpoints}, self.count, lowest=self.lowest)
        return [info.step in best for info in checkpoints]
