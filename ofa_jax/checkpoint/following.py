"""One save, from the call that begins it until it is on disk, and the thread that waits for it."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

_FINALIZER = "save_finalize"  # Orbax's name of the thread that ends a save
_SURE_S = 1.0  # an exception that a thread handles for so long is not one that it expected


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
        self._suspect: tuple[BaseException | None, float] = (None, 0.0)

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

    def failing(self) -> BaseException | None:
        """Returns what the save of this process, one of several, has failed with, though it has not ended, or None; to be asked again and
        again. Orbax keeps the exception until all processes have come to a barrier, where the others do not come: it ends when that
        times out, behind the deadline of the save."""
        handled = sys._current_exceptions()
        threads = [thread.ident or 0 for thread in threading.enumerate() if thread.name == _FINALIZER]
        found: Any = next((handled[ident] for ident in threads if handled.get(ident) is not None), None)
        error = found[1] if isinstance(found, tuple) else found  # Python 3.11 gives type, value, traceback
        now = time.monotonic()
        if error is None or error is not self._suspect[0]:
            self._suspect = (error, now)
        return error if error is not None and now - self._suspect[1] >= _SURE_S else None

    def join(self, timeout_s: float) -> None:
        """Waits for the end, at most so long."""
        if self._thread is not None:
            self._thread.join(max(timeout_s, 0.0))
