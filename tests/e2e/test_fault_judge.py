"""The judge of the fault suite finds what must not be: a suite that cannot fail shows nothing."""

from __future__ import annotations

import dataclasses

import pytest
from fault_judge import LifeRecord, faults_of_batches, faults_of_life, faults_of_parameters, steps_by_layout

STEPS = 10
WHOLE = {step: f"whole {step}" for step in range(STEPS)}
HALVES = [{step: f"half {host} {step}" for step in range(STEPS)} for host in (0, 1)]
EXPECTED = {1: [WHOLE], 2: HALVES}


def batches(of: list[dict[int, str]], first: int, until: int) -> list[dict[str, str]]:
    return [{str(step): digest[step] for step in range(first, until)} for digest in of]


KILLED = LifeRecord(
    0, 0, 1, 1, 0, [], after=[3], aimed="save", signal="SIGKILL", hosts=[0], hit="save", codes=[-9], restored=0, last_batch=5,
    batches=batches([WHOLE], 0, 3), end_steps=[None],
)  # fmt: skip
STOPPED = LifeRecord(
    0, 1, 2, 1, 3, [3], after=[3, 7], aimed="step", signal="SIGTERM", hosts=[1], hit="step", codes=[75, 75], restored=3, last_batch=6,
    batches=batches(HALVES, 3, 7), end_steps=[7, 7],
)  # fmt: skip
EARLY = LifeRecord(
    0, 2, 1, 4, 7, [3, 7], after=[3, 7], aimed="restore", signal="SIGTERM", hosts=[0], hit="restore", codes=[75], end_steps=[0],
)  # fmt: skip
FINISHED = LifeRecord(
    0, 3, 1, 1, 7, [3, 7], after=[7, 10], codes=[0], restored=7, last_batch=9, batches=batches([WHOLE], 7, 10), end_steps=[10]
)  # fmt: skip
LIVES = [KILLED, STOPPED, EARLY, FINISHED]


def of(life: LifeRecord, **changes: object) -> list[str]:
    return faults_of_life(dataclasses.replace(life, **changes), steps=STEPS)


def of_batches(*lives: LifeRecord) -> list[str]:
    return faults_of_batches(lives, steps=STEPS, expected=EXPECTED)


def test_a_run_that_lost_nothing_has_no_faults():
    assert [of(life) for life in LIVES] == [[], [], [], []]
    assert of_batches(*LIVES) == []
    assert steps_by_layout(LIVES) == {"1 x 1": 6, "2 x 1": 4}


@pytest.mark.parametrize(
    ("life", "changes", "words"),
    [
        (KILLED, {"restored": 3}, "went on from step 3, expected 0"),
        (STOPPED, {"restored": 0}, "went on from step 0, expected 3, the newest committed checkpoint"),
        (STOPPED, {"after": []}, "the newest checkpoint is 0 behind it, 3 before it"),
        (KILLED, {"said_damaged": True}, "found damaged"),
        (KILLED, {"codes": [0]}, "exit codes [0], expected -9"),
        (STOPPED, {"codes": [75, -6]}, "exit codes [75, -6], expected 75 of all"),
        (STOPPED, {"after": [3, 6]}, "saved step 6, expected 7, the steps that were made"),
        (STOPPED, {"end_steps": [7, 6]}, "ended at steps [7, 6], expected 7"),
        (EARLY, {"codes": [-15]}, "exit codes [-15], expected 75"),
        (FINISHED, {"codes": [70], "after": [7]}, "exit codes [70] at step 7, expected 0 at step 10"),
        (FINISHED, {"after": [7, 9]}, "at step 9, expected 0 at step 10"),
        (STOPPED, {"after": [7, 10], "codes": [75, 70]}, "exit codes [75, 70], expected 0 or 75"),
    ],
)
def test_what_a_life_must_not_do(life: LifeRecord, changes: dict[str, object], words: str):
    assert any(words in sentence for sentence in of(life, **changes))


def test_a_batch_that_is_lost_or_another_is_found():
    lost = dataclasses.replace(FINISHED, start=8)  # nobody trained on batch 7
    assert "batch 7 of process 0 is None, expected half 0 7" in of_batches(KILLED, STOPPED, lost)[0]
    assert of_batches(STOPPED, FINISHED)[-1].endswith("[3, 4, 5, 6, 7, 8, 9], expected 0 to 9, each once")
    assert of_batches(KILLED, STOPPED, dataclasses.replace(FINISHED, after=[7, 9]))[-1].endswith("expected 0 to 9, each once")
    other = dataclasses.replace(STOPPED, batches=[STOPPED.batches[0], STOPPED.batches[0]])
    assert "batch 3 of process 1 is half 0 3, expected half 1 3" in of_batches(KILLED, other, FINISHED)[0]
    missing = dataclasses.replace(FINISHED, batches=[])
    assert "batch 7 of process 0 is None" in of_batches(KILLED, STOPPED, missing)[0]


def test_parameters_are_the_same_to_the_bit_or_within_the_tolerance():
    assert faults_of_parameters(0, {"bitwise": True, "parameters": 0.0}, bitwise=True) == []
    assert "to the last bit" in faults_of_parameters(0, {"bitwise": False, "parameters": 1e-12}, bitwise=True)[0]
    assert faults_of_parameters(0, {"bitwise": False, "parameters": 9e-7}, bitwise=False) == []
    assert "differ by 2.0e-06" in faults_of_parameters(0, {"bitwise": False, "parameters": 2e-6}, bitwise=False)[0]
    assert faults_of_parameters(0, {"bitwise": False, "parameters": float("nan")}, bitwise=False) != []
