"""Hosts that differ are told by name, and clocks by how far they are apart."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ofa_jax.doctor.agreement import check_clocks, check_devices, clock_rounds, compare


def test_every_fact_that_differs_is_named():
    first = {"config": "a1", "packages": {"jax": "1", "numpy": "2"}}
    second = {"config": "b2", "packages": {"jax": "1", "numpy": "3", "grain": "1"}}
    assert [one.status for one in compare([first, first], check="hosts")] == ["ok"]
    found = compare([first, first, second], check="hosts")
    assert [one.text.split(";")[0] for one in found] == [
        "config: found b2 on host 2, expected a1 as on host 0",
        "packages numpy: found 3 on host 2, expected 2 as on host 0",
        "packages grain: found 1 on host 2, expected nothing as on host 0",
    ]
    assert all(one.status == "FAIL" for one in found)


def test_clocks_are_compared_by_the_median_of_the_rounds():
    rounds = 1e9 + np.arange(7.0)[:, None] + np.zeros((7, 3))
    rounds[:, 2] -= 1.5
    rounds[3, 1] += 60.0  # one late exit from a barrier is no skew
    [found] = check_clocks(rounds)
    assert found.status == "WARN" and found.found == "the clock of host 0 is 1.5 s ahead of that of host 2"
    assert found.numbers == {"skew_s": pytest.approx(1.5)}
    rounds[:, 2] += 1.0
    assert check_clocks(rounds)[0].status == "ok"
    assert check_clocks(clock_rounds())[0].found == "one host, nothing to compare"


def test_devices_multiply_and_missing_processes_are_told():
    [found] = check_devices(1)
    assert found.status == "ok" and found.numbers["devices"] == len(jax.devices())
    [found] = check_devices(2)
    assert found.status == "FAIL" and "1 process(es) joined, expected 2" in found.text
