"""The quarantine: records that could not be used are listed in a file, counted, and stop the run when they are too many.

Only content errors (`RecordError`) come here. Workers are processes, so rejects travel inside the `Batch` and are listed where the
batches are consumed, once, in the order of the data steps.

Every record comes in its turn once an epoch of its mixture line, and there it is listed and counted. One that is met before or after its
turn, as a replacement of another, is not: so the list has each damaged record once an epoch, and the counted share is that of the rows.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from pathlib import Path

from ofa_jax.config.errors import DataError
from ofa_jax.data.batch import Reject


class Quarantine:
    """Lists and counts the rejects of one host, and applies the stop rule."""

    def __init__(self, path: str | Path, *, max_fraction: float, grace: int):
        """Rejects are appended to the JSON-lines file `path`; its folder is made when the first one is written.

        Args:
          max_fraction: rejects over rows drawn above which the run stops (`DataConfig.max_reject_fraction`).
          grace: number of rows that must have been drawn before the rule applies (`DataConfig.reject_grace`).
        """
        self._path = Path(path)
        self._max_fraction, self._grace = max_fraction, grace
        self._rows = 0
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def rows(self) -> int:
        """Rows drawn so far on this host, in this process."""
        return self._rows

    @property
    def rejected(self) -> int:
        """Rows whose record was rejected so far on this host, in this process."""
        return sum(self._counts.values())

    def counts(self) -> dict[tuple[str, str], int]:
        """Rejects by (dataset, reason)."""
        return dict(self._counts)

    def add(self, rejects: Sequence[Reject], *, data_step: int, rows: int) -> None:
        """Notes one batch: `rows` rows were drawn on this host; of `rejects`, those that came in their turn count.

        Each line of the file is one reject with the fields of `Reject` and the `data_step`, by which lines that a resumed run
        writes again can be told. Raises DataError when the file cannot be written.
        """
        self._rows += rows
        rejects = [reject for reject in rejects if not reject.retry]
        if not rejects:
            return
        self._counts.update((reject.dataset, reject.reason) for reject in rejects)
        lines = "".join(json.dumps({"data_step": data_step, **reject._asdict()}, ensure_ascii=False) + "\n" for reject in rejects)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            raise DataError(f"the list of rejected records {self._path} cannot be written: {error}") from error

    def judge(self, *, rejected: int | None = None, rows: int | None = None) -> None:
        """Raises DataError when more than `max_fraction` of the rows were rejected, once `grace` rows were drawn.

        `rejected` and `rows` default to this host's counts; with several hosts pass the sums over all of them, so that every host
        stops at the same step.
        """
        rejected = self.rejected if rejected is None else rejected
        rows = self._rows if rows is None else rows
        if rows < self._grace or rejected <= self._max_fraction * rows:
            return
        commonest = ""
        if self._counts:
            (dataset, reason), count = max(self._counts.items(), key=lambda item: (item[1], item[0]))
            commonest = f"; the commonest reason is {reason} in dataset {dataset} ({count} records)"
        raise DataError(
            f"{rejected} of {rows} rows drawn were rejected, which is more than data.max_reject_fraction {self._max_fraction:g}"
            f"{commonest}; all are listed in {self._path}"
        )
