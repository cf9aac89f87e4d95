"""Two real processes of one job: they share the rows, agree with one process, go on from each other's checkpoint, and stop together."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from processes import command, learned, lines, run, run_together

from ofa_jax.monitor.exits import REASONS

STEPS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run by one process and by two."""
    folder = tmp_path_factory.mktemp("hosts")
    run(command("one", steps=STEPS), folder)
    results = run_together(command("two", steps=STEPS), folder, count=2)
    assert [code for code, _ in results] == [0, 0], results
    return folder, results


@pytest.mark.full
def test_two_processes_learn_what_one_does(runs):
    """Sums over rows are taken in another order, hence not the last bit; Adam's first steps amplify rounding."""
    folder, _ = runs
    one, two = (learned(folder / "runs" / name) for name in ("one", "two"))
    assert [line["step"] for line in two] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(two[0]["loss/total"], one[0]["loss/total"], rtol=1e-5)
    np.testing.assert_allclose([line["loss/total"] for line in two], [line["loss/total"] for line in one], rtol=1e-3)


@pytest.mark.full
def test_each_has_its_own_rows_and_only_the_first_writes_the_shared_files(runs):
    folder, results = runs
    digests = [[line["digest"] for line in lines(folder / "runs" / "two" / f"batches_{host}.jsonl")] for host in (0, 1)]
    assert len(digests[0]) == len(digests[1]) == STEPS
    assert len({*digests[0], *digests[1]}) == 2 * STEPS
    first, second = (output for _, output in results)
    assert "2 process(es)" in first and f"step {STEPS}/{STEPS}" in first
    assert "step " not in second.replace("fixtures", "")


@pytest.mark.full
def test_the_log_says_which_host_waits_most_for_its_data(runs):
    folder, _ = runs
    for line in lines(folder / "runs" / "two" / "metrics.jsonl"):
        if "loss/total" in line:
            assert 0 <= line["hosts/data_wait_ms/median"] <= line["hosts/data_wait_ms/most"] < 60_000 and line["hosts/last"] in (0, 1)


@pytest.mark.full
def test_one_process_goes_on_from_two(runs):
    folder, _ = runs
    said = run(command("two", steps=STEPS + 2), folder)
    assert f"going on from step {STEPS}" in said
    assert [line["step"] for line in learned(folder / "runs" / "two")] == list(range(1, STEPS + 3))


@pytest.mark.full
def test_a_run_that_diverges_ends_alike_on_both(tmp_path):
    """An absurd learning rate ruins the parameters at once. Both go back once, to the checkpoint behind the ruin, and both end."""
    flags = (
        "optimizer.learning_rate=1e30",
        "optimizer.warmup_fraction=0",
        "guard.max_in_a_row=2",
        "guard.rewinds=1",
        "checkpoint.every_steps=1",
    )
    results = run_together(command("wild", *(f"--config.{flag}" for flag in flags), steps=9), tmp_path, count=2)
    assert [code for code, _ in results] == [REASONS["nan"].code] * 2, results
    assert "rewind 1 of 1: from step 1 to 1, without data_step 1 to 2" in results[0][1]
    assert (
        "found 2 bad steps in a row (data_step 3 to 4" in results[0][1] and "found 2 bad steps in a row (data_step 3 to 4" in results[1][1]
    )
    first, second = (lines(tmp_path / "runs" / "wild" / name) for name in ("bad_steps.jsonl", "bad_steps_1.jsonl"))
    elements = [[line.pop("elements", None) for line in listed] for listed in (first, second)]
    assert first == second and [line["data_step"] for line in first] == [1, 2, 2, 3, 4]
    for one, two in zip(*elements, strict=True):
        assert (one is None and two is None) or all(a[-1][1] < b[0][0] for a, b in zip(one.values(), two.values(), strict=True))


def test_bad_records_of_one_host_stop_both_at_the_same_step(tmp_path):
    """Every second step is judged: 2 bad records of 40 rows at step 4 are too many, 4 of billions at step 6 are not."""
    program = str(Path(__file__).with_name("judge_program.py"))
    results = run_together([sys.executable, program, str(tmp_path)], tmp_path, count=2)
    rows = 2 * (4 * 5 + 2 * 2**31)
    for code, output in results:
        assert code == 0, output
        assert output.split("\n")[-2] == f"end 4 {rows}"
    stopped = [[line for line in output.splitlines() if line.startswith("stopped")] for _, output in results]
    assert stopped[0] == stopped[1] == ["stopped at 4: 2 of 40"]


@pytest.mark.full
def test_two_processes_say_the_held_out_loss_of_one_and_trace_each_for_itself(tmp_path):
    flags = ("--config.eval.loss_every_steps=2", "--config.monitor.trace_step=2")
    run(command("one", *flags, steps=8), tmp_path)
    results = run_together(command("two", *flags, steps=8), tmp_path, count=2)
    assert [code for code, _ in results] == [0, 0], results
    one, two = ([line for line in lines(tmp_path / "runs" / name / "metrics.jsonl") if "held_out/loss" in line] for name in ("one", "two"))
    assert [line["step"] for line in two] == [2, 4, 6, 8]
    names = [name for name in one[0] if name.startswith("held_out/")]
    assert len(names) == 4
    np.testing.assert_allclose([two[0][name] for name in names], [one[0][name] for name in names], rtol=1e-4)
    folder = tmp_path / "runs" / "two" / "traces" / "step_2"
    assert sorted(path.name for path in folder.iterdir()) == ["host_0", "host_1"]
