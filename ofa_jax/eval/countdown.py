"""Says from time to time how much of a known amount of work is done, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

SAY_EVERY_S = 5.0


class Countdown:
    """Call it once a unit. Work that is done within `SAY_EVERY_S` says nothing, and nothing is said of the last unit."""

    def __init__(self, what: str, total: int, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic):
        """Says "`what`: 1,024 of 3,072, 98 a second, about 21 s left" to `say`. `clock` gives seconds."""
        self._what, self._total, self._say, self._clock = what, total, say, clock
        self._done = 0
        self._began: float | None = None  # at the first unit: what comes before (opening files, say) is no part of the rate
        self._said = 0.0

    def __call__(self) -> None:
        """Counts one unit."""
        now = self._clock()
        if self._began is None:
            self._began = self._said = now
        else:
            self._done += 1  # units since the first
        if now - self._said >= SAY_EVERY_S and self._done + 1 < self._total:
            self._said, rate = now, self._done / (now - self._began)
            left = (self._total - self._done - 1) / rate
            self._say(
                f"{self._what}: {self._done + 1:,} of {self._total:,}, {rate:.{0 if rate >= 10 else 1}f} a second, about {left:.0f} s left"
            )
