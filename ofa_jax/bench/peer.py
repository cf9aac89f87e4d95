"""Another program on the same work, in an environment of its own, and what came of it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ofa_jax.config.errors import UserError

_SCRIPTS = Path(__file__).resolve().parents[2] / "tests" / "parity"


def run_peer(python: str, script: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `script` of tests/parity, run by the interpreter `python`, answers to `setting`; both are JSON in files, whose paths are
    its arguments.

    Raises `UserError` as `call_peer` does.
    """
    with tempfile.TemporaryDirectory(prefix="ofa_jax-") as folder:
        asked, answer = Path(folder) / "setting.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(dict(setting)), encoding="utf-8")
        call_peer(python, script, [str(asked), str(answer)])
        return json.loads(answer.read_text(encoding="utf-8"))


def call_peer(python: str, script: str, arguments: Sequence[str]) -> None:
    """Runs `script` of tests/parity by the interpreter `python`. Raises `UserError` with its last line where it fails, or cannot start."""
    try:
        done = subprocess.run([python, str(_SCRIPTS / script), *arguments], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--peer: found {python}, which cannot be started ({error}), expected the Python of an environment") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise UserError(f"--peer: {python} {script} ended with {done.returncode}: {said}")
