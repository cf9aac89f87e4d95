"""The file of a closed set of answers: one answer a line, in UTF-8."""

from __future__ import annotations

from ofa_jax.config.errors import DataError
from ofa_jax.data.storage import read_bytes


def read_closed_set(path: str) -> frozenset[str]:
    """Returns the answers of a file, without the spaces around them; empty lines are none. Raises `DataError` when there is no answer, or
    no UTF-8."""
    try:
        answers = frozenset(line.strip() for line in read_bytes(path).decode("utf-8").splitlines()) - {""}
    except UnicodeDecodeError:
        raise DataError(f"{path}: found bytes that are no UTF-8, expected one answer a line") from None
    if not answers:
        raise DataError(f"{path}: found no answer, expected one a line")
    return answers
