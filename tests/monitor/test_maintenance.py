"""Notices of maintenance: which are an end, what becomes of them, and a server that does not answer."""

from __future__ import annotations

import signal
import socket
import threading

import pytest

from ofa_jax.monitor.maintenance import MaintenanceWatch, read_notice
from tests.monitor.metadata_server import metadata_server


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"preempted": "FALSE", "maintenance-event": "NONE"}, ""),
        ({"preempted": "FALSE", "maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE"}, ""),
        ({"preempted": "TRUE", "maintenance-event": "NONE"}, "preempted TRUE"),
        ({"preempted": "FALSE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}, "maintenance-event TERMINATE_ON_HOST_MAINTENANCE"),
        ({"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}, "maintenance-event TERMINATE_ON_HOST_MAINTENANCE"),
        ({}, ""),
    ],
)
def test_what_ends_a_machine_is_a_notice(answers: dict[str, str], expected: str):
    with metadata_server(answers) as server:
        assert read_notice(server) == expected


def test_a_notice_becomes_sigterm(capfd: pytest.CaptureFixture[str]):
    received = threading.Event()
    old = signal.signal(signal.SIGTERM, lambda number, frame: received.set())
    answers = {"preempted": "FALSE"}
    try:
        with metadata_server(answers) as server:
            watch = MaintenanceWatch(server, every_s=0.05)
            assert not received.wait(0.3)
            answers["preempted"] = "TRUE"
            assert received.wait(10)
            watch.close()
    finally:
        signal.signal(signal.SIGTERM, old)
    assert capfd.readouterr().err == "notice of maintenance: preempted TRUE; saving, as for SIGTERM\n"


def test_silence_of_the_server_is_told_once(capfd: pytest.CaptureFixture[str]):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{probe.getsockname()[1]}"
    watch = MaintenanceWatch(server, every_s=0.02)
    told = ""
    for _ in range(100):
        told += capfd.readouterr().err
        if told:
            break
        threading.Event().wait(0.05)
    threading.Event().wait(0.3)
    watch.close()
    assert (told + capfd.readouterr().err).count("does not answer") == 1


def test_nothing_is_asked_where_there_is_no_server():
    watch = MaintenanceWatch("")
    watch.close()
    watch.close()
