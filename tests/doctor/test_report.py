"""Findings of several hosts become lines: what is alike is said once, failures by host, else the host that is worst off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ofa_jax.doctor.report import Finding, Report, failure, from_bytes, lines, to_bytes


def test_findings_go_from_host_to_host():
    findings = [Finding("disk", "FAIL", "1 GB free", "2 GB", "make room", {"free_bytes": 1e9}, measure=1e9, host=3)]
    assert from_bytes(to_bytes(findings)) == findings


def test_what_is_alike_is_said_once_and_failures_by_host():
    alike = [Finding("mesh", "ok", "fits", host=host) for host in range(3)]
    assert lines(alike, num_hosts=3) == ["ok    mesh      fits"]
    mixed = [Finding("disk", "ok", "9 GB free"), *(Finding("disk", "FAIL", f"{h} GB free", "5 GB", "make room", host=h) for h in (1, 2))]
    assert lines(mixed, num_hosts=3) == [f"FAIL  disk      {h} GB free, expected 5 GB; make room [host {h}]" for h in (1, 2)]
    many = [Finding("disk", "FAIL", f"{h} GB free", host=h) for h in range(20)]
    assert len(lines(many, num_hosts=20)) == 9 and lines(many, num_hosts=20)[-1].endswith("and 12 more, in the JSON report")


def test_the_host_that_is_worst_off_stands_for_all():
    rates = [Finding("data", "ok", f"{rate} MB/s", measure=rate, host=host) for host, rate in enumerate((300.0, 20.0, 100.0))]
    assert lines(rates, num_hosts=3) == ["ok    data      20.0 MB/s [host 1, the worst of 3]"]
    warned = [*rates[:2], Finding("data", "WARN", "slow", measure=100.0, host=2)]
    assert lines(warned, num_hosts=3) == ["WARN  data      slow [host 2, the worst of 3]"]


def test_a_report_counts_each_check_once_and_is_json():
    report = Report(
        {"config": "c"}, [Finding("a", "ok", ""), Finding("a", "WARN", "", host=1), Finding("b", "FAIL", "x"), Finding("b", "ok", "")]
    )
    assert report.failed and report.summary() == "0 ok, 1 WARN, 1 FAIL"
    read = json.loads(report.to_json())
    assert read["config"] == "c" and [one["status"] for one in read["findings"]] == ["ok", "WARN", "FAIL", "ok"]


def test_an_error_of_the_system_is_a_sentence():
    with pytest.raises(OSError) as caught:
        Path("/proc/none/such").read_bytes()
    assert failure("data", caught.value).text == "/proc/none/such: No such file or directory"
