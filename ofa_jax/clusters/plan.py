"""What is to be done on a cluster, as a list of steps: shown word for word, or done in order.

Every command line of `launch/pods` makes such a list by pure functions. `--dry_run` prints it, as a shell would take it.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ofa_jax.config.errors import UserError

_INSTALL = {
    "gcloud": "the Google Cloud CLI: https://cloud.google.com/sdk/docs/install",
    "kubectl": "Kubernetes' command line: gcloud components install kubectl",
    "xpk": "XPK: pip install xpk",
    "git": "git, which tells the files of this checkout",
    "sbatch": "Slurm's commands: run this on a login node of the cluster",
    "squeue": "Slurm's commands: run this on a login node of the cluster",
    "scancel": "Slurm's commands: run this on a login node of the cluster",
}


class CommandError(UserError):
    """A program of the cluster that said no. Its own message stands above."""

    def __init__(self, sentence: str, code: int):
        super().__init__(sentence)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Command:
    """A program to run, with its words."""

    argv: tuple[str, ...]
    why: str

    @property
    def text(self) -> str:
        """The command as a shell takes it."""
        return shlex.join(self.argv)

    def do(self) -> None:
        """Runs it with its output passed through. Raises CommandError for another exit code than 0, UserError for a missing program."""
        try:
            code = subprocess.run(self.argv, check=False).returncode
        except FileNotFoundError as error:
            raise UserError(_not_found(self.argv[0])) from error
        if code:
            words = " ".join(word for word in self.argv[:5] if not word.startswith("-"))
            raise CommandError(f"{words}: found exit code {code}, expected 0; its own message is above", code)


@dataclasses.dataclass(frozen=True)
class Written:
    """A file to write on this machine."""

    path: Path
    content: str
    why: str

    @property
    def text(self) -> str:
        """The file as a shell would write it."""
        return f"cat > {shlex.quote(near(self.path))} <<'END'\n{self.content}END"

    def do(self) -> None:
        """Writes the file, and its folder where there is none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.content, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Packed:
    """An archive of the checkout to write on this machine: the files that git tracks or would track, as they lie there now."""

    root: Path
    path: Path
    why: str

    @property
    def text(self) -> str:
        """The archive as a shell would write it."""
        root, path = shlex.quote(near(self.root)), shlex.quote(near(self.path))
        listed = f"git -C {root} ls-files -z --cached --others --exclude-standard"
        return f"{listed} | tar --null --ignore-failed-read -C {root} -T - -czf {path}"

    def do(self) -> None:
        """Writes the archive. Raises UserError where the folder is no checkout."""
        try:
            found = subprocess.run(
                ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise UserError(_not_found("git")) from error
        if found.returncode:
            raise UserError(f"{self.root}: found no git checkout, expected one to copy ({found.stderr.strip()})")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(self.path, "w:gz") as archive:
            for name in sorted(set(filter(None, found.stdout.split("\0")))):
                if (self.root / name).is_file():  # a file that was deleted is still listed, until that is committed
                    archive.add(self.root / name, arcname=name, recursive=False)


Step = Command | Written | Packed


def near(path: Path) -> str:
    """Returns the path as one types it here: relative below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def show(steps: Iterable[Step]) -> str:
    """Returns the steps as a shell script: a comment that says why, then the command itself."""
    return "\n".join(f"# {step.why}\n{step.text}" for step in steps)


def perform(steps: Sequence[Step], *, dry_run: bool, say: Callable[[str], None]) -> None:
    """Does the steps in order and says why before each; with dry_run prints them and does nothing. Raises as `Command.do` does."""
    if dry_run:
        say(show(steps))
        return
    for step in steps:
        say(f"# {step.why}")
        step.do()


def ask(argv: Sequence[str], *, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Returns how the program ended and what it said, whatever its exit code; 124 where it said nothing in time and was ended. Raises
    UserError where there is no such program."""
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # what it starts (gcloud's ssh to a machine that is gone) is ended with it
        )
    except FileNotFoundError as error:
        raise UserError(_not_found(argv[0])) from error
    try:
        said, complained = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return subprocess.CompletedProcess(list(argv), 124, "", f"error: no answer in {timeout_s:g} s")
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, said, complained)


def complaint(found: subprocess.CompletedProcess[str]) -> str:
    """Returns the line of what a program said that tells what was wrong: the first one with ERROR, else the last."""
    lines = [line for line in found.stderr.splitlines() if line.strip()] or [f"exit code {found.returncode}"]
    return next((line for line in lines if line.lower().startswith("error")), lines[-1])


def _not_found(program: str) -> str:
    return f"{program}: found no such program on the path, expected {_INSTALL.get(program, 'it to be installed')}"
