"""Where measured numbers go: `metrics.jsonl`, one JSON object a line, and TensorBoard events.

Both continue a curve on resume without doubling it: lines beyond the restored step are dropped, since those steps run again.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ofa_jax.config.errors import ConfigError

Number = int | float

_log = logging.getLogger(__name__)


class JsonLines:
    """Appends measurements to a file of JSON lines. Each line is written whole and flushed, so a killed run loses none."""

    def __init__(self, path: Path, *, step: int, by: str = "step"):
        """Opens `path` for a run that goes on from `step`: lines of later steps, and a last line cut off by a kill, are dropped.

        `last` is the newest line that stays, or None. by: the field that `step` is compared with.
        """
        self.path = path
        self.last: dict[str, Number] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                _log.warning("%s line %d: found no JSON (a write that was cut off), dropped", path, number)
                continue
            if record[by] <= step:
                kept.append(line)
                self.last = record
        if len(kept) != len(lines) or not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line; `record` must have the field `by`. A number that is not finite becomes null, which JSON can hold."""
        finite = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in record.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Writes the same numbers as TensorBoard scalars, below `folder`.

    It writes in the training thread, as the thread of tensorboardX's own writer ends on a full disk without a word, and a full queue
    before it then stops the run for ever.
    """

    def __init__(self, folder: Path, *, step: int):
        """Opens a new event file; TensorBoard hides earlier events of steps beyond `step`. Raises OSError, as `write` does."""
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step + 1, file_version="brain.Event:2"))
        self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
        self._writer.flush()

    def write(self, record: Mapping[str, Number]) -> None:
        """Adds every entry but "step" and "data_step" as a scalar at `record["step"]`."""
        step, now = int(record["step"]), time.time()
        for name, value in record.items():
            if name not in ("step", "data_step"):
                self._writer.write_event(Event(wall_time=now, step=step, summary=scalar(name, value)))
        self._writer.flush()

    def close(self) -> None:
        """Writes what is buffered and closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """Writes the same numbers to a project of Weights & Biases, whose package is no dependency of this one.

    Account, server and offline mode are that package's own business (`wandb login`, `WANDB_MODE=offline`, ...); its files lie in
    `<folder>/wandb`. A resumed run goes on in the same curve; steps that it makes again are there twice, as nothing can be taken back.
    """

    def __init__(self, project: str, *, run: str, folder: Path, about: Mapping[str, str]):
        """about: the config, shown beside the curves. Raises ConfigError where the package is missing."""
        try:
            wandb = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            found = f"monitor.wandb: found {project}, but the package wandb cannot be imported ({error})"
            raise ConfigError(f"{found}; expected `pip install wandb`, or --config.monitor.wandb= for none") from error
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "wandb_id.txt"
        name = known.read_text(encoding="utf-8").strip() if known.exists() else secrets.token_hex(4)
        known.write_text(name + "\n", encoding="utf-8")
        self._run = wandb.init(project=project, name=run, id=name, resume="allow", dir=str(folder), config=dict(about))
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, Number]) -> None:
        """Adds every entry of the record; its "step" is the axis."""
        self._run.log(dict(record))

    def close(self) -> None:
        """Waits for what is still on its way and ends the run there."""
        self._run.finish()
