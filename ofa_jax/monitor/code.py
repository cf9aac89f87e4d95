"""Which program this is: a digest of its own files, and the commit that they are of."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_TIMEOUT_S = 10.0


def code_digest() -> str:
    """Returns a short digest of this program's own Python files."""
    hasher = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        hasher.update(f"{path.relative_to(_PACKAGE)}\n".encode() + path.read_bytes())
    return hasher.hexdigest()[:12]


def commit() -> str:
    """Returns the commit that the program's folder is of, with `+changes` behind it where tracked files differ from it; an empty text where
    the folder is no clone of its own, or git is not installed."""
    root = _PACKAGE.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        return ""
    head = _git(root, "rev-parse", "HEAD")
    return f"{head}{'+changes' if _git(root, 'status', '--porcelain', '--untracked-files=no') else ''}" if head else ""


def _git(root: Path, *words: str) -> str:
    """What git says, nothing where it cannot (a folder of another user, or without a commit)."""
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
