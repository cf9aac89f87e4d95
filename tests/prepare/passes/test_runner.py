"""A pass over units: what fails in a worker is tried again, and only what stays undone is an error."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from ofa_jax.config.errors import DataError
from ofa_jax.prepare.passes import runner
from ofa_jax.prepare.passes.runner import RunnerOptions, Unit, run_pass


def fail_at_first(name: str, *, folder: Path, fail: int) -> None:
    """Fails `fail` times, then writes the unit's file. Every call leaves a mark: calls may be in several processes."""
    calls = len(list(folder.glob(f"{name}.call*")))
    (folder / f"{name}.call{calls}").touch()
    if name.startswith("good"):
        fail = 0
    if calls < fail:
        raise DataError(f"{name}: found no luck, expected some")
    (folder / name).touch()


def run(folder: Path, names: list[str], *, fail: int, workers: int = 1) -> list[str]:
    said: list[str] = []
    run_pass(
        "set: index",
        [Unit(name, name, name) for name in names],
        functools.partial(fail_at_first, folder=folder, fail=fail),
        folder=folder,
        options=RunnerOptions(workers=workers),
        progress=said.append,
    )
    return said


def test_a_unit_that_succeeds_at_its_second_try_is_done(tmp_path: Path) -> None:
    said = run(tmp_path, ["bad", "good"], fail=1)
    assert (tmp_path / "bad").exists() and (tmp_path / "good").exists()
    assert "set: index: bad failed in a worker, done at the second try" in said
    assert said[-1].startswith("set: index: 2 in ")


def test_only_units_that_stay_undone_are_errors(tmp_path: Path) -> None:
    (tmp_path / "late.call0").touch()  # has failed once more than "bad", so that its second try succeeds
    with pytest.raises(DataError, match=r"^set: index: 1 of 3 failed; bad: bad: found no luck, expected some$"):
        run(tmp_path, ["bad", "good", "late"], fail=2)
    assert (tmp_path / "late").exists()


def test_many_units_that_fail_by_chance_are_spread_over_workers_again(tmp_path: Path) -> None:
    """As when a store was away for a minute: one process must not do the work of all."""
    names = [f"bad{number:02d}" for number in range(3 * runner._MOST_TOLD)]
    said = run(tmp_path, names, fail=1)
    assert all((tmp_path / name).exists() for name in names)
    assert f"set: index: {2 * runner._MOST_TOLD} that failed go to workers once more" in said


def test_of_many_errors_some_are_told_and_all_are_counted(tmp_path: Path) -> None:
    names = [f"bad{number:02d}" for number in range(runner._MOST_TOLD + 2)]
    with pytest.raises(DataError, match=rf"^set: index: {len(names)} of {len(names)} failed; bad00: .*bad04: [^;]*; 2 more$"):
        run(tmp_path, names, fail=9)
