"""METEOR of captions (Denkowski and Lavie, Meteor Universal, WMT 2014), by its authors' own program, METEOR 1.5, which needs Java.

The program stays open for one call and is asked by lines (its option -stdio). "SCORE ||| reference ||| ... ||| text" is answered by 23
counts of how the text matches its best reference; "EVAL ||| counts ||| counts ..." by one score for each and then that of all together.
The score of all is a formula of the summed counts, not a mean, so a resample sums its examples' counts anew.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from ofa_jax.config.errors import ConfigError
from ofa_jax.metrics.measured import Measured, check_same_length
from ofa_jax.metrics.words import normalise

JAR_VARIABLE = "OFA_METEOR_JAR"

# Of METEOR 1.5 for English (its option -l en): alpha, beta, gamma, delta, and the weights of a word that matches exactly, by its
# stem, as a synonym, in a paraphrase.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_NUM_COUNTS = 23
_TOLERANCE = 1e-6  # between the program's score and the formula's, which differ in the last bits
_SEPARATOR = " ||| "


def _formula(counts: np.ndarray) -> np.ndarray:
    """The score, float64 [B], of summed counts [B, 23]: words of text and reference, function words of both, four numbers for each kind
    of match (content words of text and reference, function words of both), chunks, matched words of text and reference.

    Content words weigh delta, function words 1 - delta; precision and recall are weighed by alpha, and the penalty is
    gamma (chunks / matches)^beta. 0 where nothing matches.
    """
    lengths, function = counts[:, 0:2], counts[:, 2:4]
    matched = (counts[:, 4:20].reshape(-1, 4, 4) * _WEIGHTS[:, None]).sum(1)
    chunks, words = counts[:, 20], counts[:, 21:23]
    top = _DELTA * matched[:, 0:2] + (1 - _DELTA) * matched[:, 2:4]
    bottom = _DELTA * (lengths - function) + (1 - _DELTA) * function
    precision, recall = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0).T
    divisor = _ALPHA * precision + (1 - _ALPHA) * recall
    mean = np.divide(precision * recall, divisor, out=np.zeros_like(divisor), where=divisor > 0)
    matches = words.mean(1)
    fragments = np.divide(chunks, matches, out=np.zeros_like(matches), where=matches > 0)
    return mean * (1 - _GAMMA * fragments**_BETA)


def _without_whole(counts: np.ndarray) -> np.ndarray:
    """The counts of texts, float64 [n, 23], without the chunk of a text that matches its reference in one piece: it is not penalised, and
    the program leaves it out of sums too."""
    whole = (counts[:, 21:23] == counts[:, 0:2]).all(1) & (counts[:, 20] == 1)
    counts = counts.copy()
    counts[whole, 20] = 0
    return counts


def find_jar(jar: str | Path | None = None) -> Path:
    """Returns the program's file: `jar`, else what OFA_METEOR_JAR names, else the one that the package pycocoevalcap brings.

    One that is named and missing is a fault, and no other is taken in its place. Raises ConfigError.
    """
    named = jar if jar is not None else os.environ.get(JAR_VARIABLE)
    if named is None:
        package = importlib.util.find_spec("pycocoevalcap")
        folders = list(package.submodule_search_locations or []) if package else []
        named = Path(folders[0]) / "meteor" / "meteor-1.5.jar" if folders else "meteor-1.5.jar"
    if not Path(named).is_file():
        raise ConfigError(f"metric meteor: found no file {named}, expected meteor-1.5.jar ({JAR_VARIABLE} names it)")
    return Path(named).resolve()


class _Program:
    """METEOR, started and asked line by line; ended when the block is left."""

    def __init__(self, jar: Path, java: str, timeout_s: float) -> None:
        found = shutil.which(java)
        if found is None:
            raise ConfigError(
                f"metric meteor: found no program {java}, expected a Java runtime on the path: METEOR is a Java program; "
                "install one, or leave the metric out"
            )
        self._jar, self._timeout_s = jar, timeout_s
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed on leaving)
        self._process = subprocess.Popen(
            [found, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8",
        )  # fmt: skip

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, line: str, *, answers: int = 1) -> list[list[float]]:
        """Returns the numbers of each of `answers` lines. Raises ConfigError where other lines come, or none in time."""
        deadline = threading.Timer(self._timeout_s, self._process.kill)
        deadline.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            return [self._read(line) for _ in range(answers)]
        except BrokenPipeError:
            raise ConfigError(f"metric meteor: {self._end()}, expected numbers for {line[:80]!r}") from None
        finally:
            deadline.cancel()

    def _read(self, asked: str) -> list[float]:
        text = self._process.stdout.readline()
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if not numbers:
            found = f"found {text.strip()[:80]!r} from {self._jar}" if text else self._end()
            raise ConfigError(f"metric meteor: {found}, expected numbers for {asked[:80]!r}")
        return numbers

    def _end(self) -> str:
        self._process.kill()  # one that only closed its output would never end
        self._process.wait()
        self._errors.seek(0)
        said = " ".join(self._errors.read().split())[-200:] or "no error"
        return f"{self._jar} ended with {self._process.returncode} within {self._timeout_s:g} s and wrote {said}"


def meteor(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    jar: str | Path | None = None,
    java: str = "java",
    timeout_s: float = 600.0,
) -> Measured:
    """METEOR in [0, 1] of all examples together. `scores` are those of the single texts. Texts are compared as words of `split_words`,
    not of the PTB tokeniser, as all captioning metrics here.

    `jar` as in `find_jar`; `timeout_s` is for one answer, the first of which takes some ten seconds. Raises ConfigError, one sentence,
    where Java or the jar is missing or the program does not answer as METEOR 1.5 does, and ValueError where an example has no references.
    """
    check_same_length("meteor", predictions, references)
    for i, refs in enumerate(references):
        if not refs:
            raise ValueError(f"meteor: example {i}: found no references, expected at least one")
    path = find_jar(jar)
    with _Program(path, java, timeout_s) as program:
        rows = []
        for prediction, refs in zip(predictions, references, strict=True):
            line = _SEPARATOR.join(["SCORE", *(normalise(ref) for ref in refs), normalise(prediction)])
            rows += program.ask(line)
            if len(rows[-1]) != _NUM_COUNTS:
                raise ConfigError(f"metric meteor: found {len(rows[-1])} counts from {path}, expected the {_NUM_COUNTS} of METEOR 1.5")
        counts = _without_whole(np.array(rows, np.float64))
        written = [" ".join(str(value) for value in row) for row in rows]
        answers = program.ask(_SEPARATOR.join(["EVAL", *written]), answers=len(rows) + 1)
    scores, value = np.array([answer[0] for answer in answers[:-1]]), answers[-1][0]
    computed = np.append(_formula(counts), _formula(counts.sum(0, keepdims=True)))
    apart = np.abs(computed - np.append(scores, value))
    if apart.max() > _TOLERANCE:
        worst = int(apart.argmax())
        raise ConfigError(
            f"metric meteor: found a score of {np.append(scores, value)[worst]:.6f} from {path} where the formula of METEOR 1.5 gives "
            f"{computed[worst]:.6f}, expected the same: intervals are computed by it, so use meteor-1.5.jar"
        )

    def resample(times: np.ndarray) -> np.ndarray:
        return _formula(times @ counts)

    return Measured(value=value, scores=scores, resample=resample)
