"""What a published row pins, resolved: the config of its run, one set, one way to decode and one metric, and the checkpoint's digest."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ofa_jax.config.check import check
from ofa_jax.config.errors import ConfigError
from ofa_jax.config.load import override, read_config
from ofa_jax.config.published import DATA, ROWS, Figure, PublishedRow, find_row
from ofa_jax.config.schema import EvalSetConfig, RunConfig
from ofa_jax.eval.collect import block_for, task_of
from ofa_jax.eval.scoring import METRICS

ROOT = Path(__file__).resolve().parents[2]
DEBUG = "debug"  # behind a row's name: on the generated fixtures
# Leaves of the config that a row leaves open: where things lie, how they are read and laid out, and to how many digits they are computed.
FREE = (
    "data.dir", "data.num_workers", "data.prefetch", "workdir", "mesh", "eval.batch_rows", "vocab.path", "init.checkpoint", "hang_s",
    "precision",
)  # fmt: skip
_FIXTURE_METRICS = {"vqa_accuracy": "accuracy", "": "accuracy"}  # the fixtures' questions have one answer each
_SHORTEST_DIGEST = 12  # digits: as many as sentences show


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A row, ready to be evaluated."""

    row: PublishedRow
    name: str  # as it was asked for: the row's, and `:debug`
    config: RunConfig  # evaluates one set in one way
    metric: str  # empty: the answers are written for a leaderboard
    given: tuple[tuple[str, str], ...]  # what the command line changed of the config, all of it free

    @property
    def eval_set(self) -> EvalSetConfig:
        return self.config.eval.sets[0]

    @property
    def is_debug(self) -> bool:
        return self.name != self.row.name

    @property
    def decode(self) -> str:
        """The way to decode, as `--decode` has it."""
        return self.config.eval.decode[0] if self.config.eval.decode else "greedy"


def pin(name: str, overrides: Sequence[tuple[str, str]] = ()) -> Pinned:
    """Returns what `--reproduce=name` evaluates. `name`: a row's, `:debug` behind it takes the fixtures. overrides: (path, text) of leaves.

    Raises ConfigError for an unknown row, one that a command alone cannot give, a leaf that the row pins, and for a row that is not
    what its config says.
    """
    row_name, colon, variant = name.partition(":")
    if colon and variant != DEBUG:
        raise ConfigError(f"--reproduce={name}: found {variant!r} behind the colon, expected {DEBUG}")
    row = find_row(row_name)
    if row.needs:
        raise ConfigError(f"--reproduce={name}: found a row that no command here gives alone, expected another: it needs {row.needs}")
    for path, text in overrides:
        if not any(path == free or path.startswith(f"{free}.") for free in FREE):
            raise ConfigError(
                f"--config.{path}={text}: found it with --reproduce={name}, which pins it, expected nothing but {', '.join(FREE)}; "
                f"--config={row.config}:{row.arg} evaluates in any other way"
            )
    config = read_config(f"{ROOT / row.config}:{row.arg}{',' + DEBUG if colon else ''}")
    assert isinstance(config, RunConfig), row.config
    config = override(config, overrides)
    eval_set, decode, metric = _on_fixtures(row, config) if colon else (row.eval_set, row.decode.replace(DATA, config.data.dir), row.metric)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, sets=(eval_set,), decode=(decode,) if decode else ()))
    check(config)
    if not colon:
        _agree(row, config)
    return Pinned(row, name, config, metric, tuple(overrides))


def _on_fixtures(row: PublishedRow, config: RunConfig) -> tuple[EvalSetConfig, str, str]:
    """The set, the way to decode and the metric of a row on the fixtures: files of answers are those of other data."""
    eval_set = next(one for one in config.eval.sets if one.task == row.eval_set.task)
    return eval_set, "" if DATA in row.decode else row.decode, _FIXTURE_METRICS.get(row.metric, row.metric)


def _agree(row: PublishedRow, config: RunConfig) -> None:
    """Raises ConfigError where tasks, metrics and configs have become others than the row says."""
    block, task = block_for(config, row.eval_set)[1], task_of(row.eval_set)
    if (block.image_px, task.prompt) != (row.image_px, row.prompt):
        raise ConfigError(
            f"--reproduce={row.name}: found {block.image_px} px and the prompt {task.prompt} in {row.config}, expected "
            f"{row.image_px} px and {row.prompt}, as published"
        )
    if row.metric and row.metric not in METRICS:
        raise ConfigError(f"--reproduce={row.name}: found the metric {row.metric}, expected one of {', '.join(METRICS)}")


def wanted_digest(pinned: Pinned, text: str) -> tuple[str, str]:
    """Returns (the digits that the checkpoint's digest must begin with, who pins them), both empty where nobody does.

    text: of --digest: at least twelve digits, or a JSON file that has them by row, {"refcoco/large/testA": "0123..."}; the results of an
    earlier reproduction are such a file. Raises ConfigError for anything else, and where the row pins another digest.
    """
    found, who = ("", "") if not text else _read_digest(pinned.name, text)
    own = pinned.row.digest if not pinned.is_debug else ""
    if own and found and not own.startswith(found):
        raise ConfigError(f"--digest={text}: found {found} for {pinned.name}, expected {own}, which the row itself pins")
    return (own, "the row") if own else (found, who)


def _read_digest(name: str, text: str) -> tuple[str, str]:
    path = Path(text)
    if not path.is_file():
        return _checked(text, f"--digest={text}"), "--digest"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--digest={text}: found what is no JSON ({error}), expected digests by row") from error
    if not isinstance(content, dict) or name not in content:
        rows = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"--digest={text}: found {rows or 'nothing'}, expected the row {name} among them")
    kept = content[name]
    if isinstance(kept, dict):  # a file of results
        kept = kept.get("checkpoint", {}).get("digest", "")
    return _checked(kept, f"--digest={text}: {name}"), text


def _checked(digest: object, where: str) -> str:
    if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_DIGEST},64}}", digest):
        raise ConfigError(
            f"{where}: found {digest!r}, expected a file that is there or {_SHORTEST_DIGEST} to 64 digits 0-9a-f of a checkpoint's digest"
        )
    return digest


def list_rows() -> str:
    """Returns all rows as lines: name, what was published and by whom, the band, the set and the way to decode."""
    header = ("row", "published", "band", "unit", "set", "decode")
    rows = [header]
    for row in ROWS.values():
        low, high = row.band
        band = "" if row.needs else f"{low:g} .. {high:g}"
        where, decode = f"{row.eval_set.dataset}/{row.eval_set.split}", row.decode.replace(DATA, "DATA")
        rows.append((row.name, " ".join(map(_short, row.figures)), band, row.unit, where, decode))
    widths = [max(len(row[c]) for row in rows) for c in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([
        *lines, "",
        "published: of README's table; r what README says of a released checkpoint, v of another recipe, i somebody else's evaluation,",
        "? the paper's from memory, unverified. Without a band: a number that needs networks, and no command here gives.",
        "Labels of test-dev and test-std are not public: the file of answers is written, and the leaderboard has the number.",
    ])  # fmt: skip


_MARKS = {"table": "", "released": "r", "variant": "v", "independent": "i", "unverified": "?"}


def _short(figure: Figure) -> str:
    return f"{figure.value:g}{_MARKS[figure.kind]}"
