"""Which host is named, and when none is."""

from __future__ import annotations

import time

from ofa_jax.train.stragglers import Stragglers, find_straggler


def test_a_host_whose_data_comes_late_is_named():
    said = find_straggler([3.0, 2.0, 150.0, 4.0], step_ms=600.0)
    assert said.startswith("straggler: host 2 waits 150 ms a step for its batches, the median of 4 hosts is 4 ms of a step of 600 ms;")


def test_small_and_common_waits_are_no_stragglers():
    assert find_straggler([3.0, 2.0, 50.0, 4.0], step_ms=600.0) == ""
    assert find_straggler([300.0, 310.0, 320.0, 305.0], step_ms=600.0) == ""  # all hosts wait alike: that is the data, not a host


def test_waits_of_an_interval_are_logged_by_step_and_begin_anew():
    told: list[str] = []
    hook = Stragglers(say=told.append)
    for step in range(2):
        hook.phase(step, "data")
        time.sleep(0.05)
        hook.phase(step, "step")
    found = hook.numbers(1)
    assert 50 <= found["hosts/data_wait_ms/most"] == found["hosts/data_wait_ms/median"] < 500 and found["hosts/last"] == 0
    assert hook.numbers(2)["hosts/data_wait_ms/most"] == 0 and not told
