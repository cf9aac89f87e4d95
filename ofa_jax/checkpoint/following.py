"""One save, from the call that begins it until it is on disk, and the thread that waits for it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Saved:
    """A save that is done."""

    step: int
    blocked_s: float  # that training waited for: an earlier save, the copy of the state, Orbax's preparations
    save_s: float  # from the call until the checkpoint is on disk and what it replaces is deleted


class Save:
    """A save under way: a thread waits for it and keeps how it ended, so that nobody else has to."""

    def __init__(self, step: int, metadata: Mapping[str, Any], began: float):
        """began: the monotonic clock's time of the call."""
        self.step, self.metadata, self.began = step, metadata, began
        self.blocked_s = 0.0
        self.ended: float | None = None  # by the monotonic clock
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def follow(self, begin: Callable[[], Any]) -> None:
        """Calls `begin`, which returns Orbax's answer, and waits for it, in a thread that does not keep the process when it hangs."""

        def wait() -> None:
            try:
                begin().result()
            except BaseException as error:  # noqa: BLE001 -- raised in the training thread, by whoever asks
                self.error = error
            self.ended = time.monotonic()

        self._thread = threading.Thread(target=wait, name=f"save {self.step}", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits for the end, at most so long."""
        if self._thread is not None:
            self._thread.join(max(timeout_s, 0.0))
