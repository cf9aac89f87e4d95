"""What is said of work in progress: seldom, with an estimate, and nothing of work that is done at once."""

from __future__ import annotations

from ofa_jax.eval.countdown import SAY_EVERY_S, Countdown


def said_of(seconds: list[float]) -> list[str]:
    """What is said of units that end at `seconds`."""
    said: list[str] = []
    clock = iter(seconds)
    count = Countdown("rows", len(seconds), said.append, clock=lambda: next(clock))
    for _ in seconds:
        count()
    return said


def test_quick_work_says_nothing():
    assert said_of([100.0 + i * SAY_EVERY_S / 50 for i in range(50)]) == []
    assert said_of([3.0]) == []


def test_slow_work_says_how_long_the_rest_takes():
    assert said_of([100.0 + i for i in range(13)]) == [
        "rows: 6 of 13, 1.0 a second, about 7 s left",
        "rows: 11 of 13, 1.0 a second, about 2 s left",
    ]
    assert said_of([100.0 + i / 200 for i in range(2_000)]) == ["rows: 1,001 of 2,000, 200 a second, about 5 s left"]
    assert said_of([0.0, 20.0]) == []  # the last unit: what follows says that all is done


def test_the_rate_is_that_of_the_units_not_of_what_came_before_them():
    assert said_of([1_000.0, 1_010.0, 1_020.0, 1_030.0])[0] == "rows: 2 of 4, 0.1 a second, about 20 s left"
