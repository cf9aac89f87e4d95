"""The roll call over real connections, each process a thread: who is missing, refused or lost is named on all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ofa_jax.config.errors import UserError
from ofa_jax.monitor.exits import HangError
from ofa_jax.parallel import roll_call
from ofa_jax.parallel.cluster import Cluster
from ofa_jax.parallel.roll_call import Line

OWN = socket.gethostname()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cluster(index: int, count: int, port: int) -> Cluster:
    return Cluster("plain environment", ("JAX_PROCESS_ID",), index, count, f"127.0.0.1:{port}", {3: "node3"})


def call_all(clusters: list[Cluster], *, deadline_s: float, heard: list[str] | None = None) -> list[Line | Exception]:
    """What each process of the roll call comes to. heard: takes what process 0 says while it waits."""
    found: list[Line | Exception] = [RuntimeError("it did not end")] * len(clusters)

    def call(place: int) -> None:
        one = clusters[place]
        try:
            found[place] = roll_call.call(
                one,
                deadline_s=deadline_s,
                say=(lambda line: None) if heard is None else heard.append,
                bind=one.coordinator,
                waits_by="--config.hang_s=SECONDS",
            )
        except (UserError, HangError) as error:
            found[place] = error

    threads = [threading.Thread(target=call, args=(place,), daemon=True) for place in range(len(clusters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@contextlib.contextmanager
def joined(count: int, *, deadline_s: float = 20.0) -> Iterator[tuple[list[Line], list[list[str]]]]:
    """Lines of `count` processes that all came, and what each is told of losses."""
    port = free_port()
    lines = call_all([cluster(index, count, port) for index in range(count)], deadline_s=deadline_s)
    assert all(isinstance(line, Line) for line in lines), lines
    told: list[list[str]] = [[] for _ in lines]
    for line, heard in zip(lines, told, strict=True):
        line.watch(heard.append)
    try:
        yield lines, told
    finally:
        for line in lines:
            line.close()


def test_all_that_come_know_each_other():
    began = time.monotonic()
    with joined(4) as (lines, told):
        assert [line.index for line in lines] == [0, 1, 2, 3] and all(line.names == (OWN,) * 4 for line in lines)
        assert lines[1].host(3) == f"host 3 ({OWN})"
        for line in lines:
            line.farewell("done")
    assert told == [[], [], [], []] and time.monotonic() - began < 10


def test_a_missing_host_is_named_on_all_that_came_within_the_deadline(monkeypatch):
    monkeypatch.setattr(roll_call, "SAY_AFTER_S", 0.5)
    port, began = free_port(), time.monotonic()
    heard: list[str] = []
    found = call_all([cluster(index, 4, port) for index in (0, 1, 2)], deadline_s=1.5, heard=heard)
    assert [words.split(";")[0] for words in heard] == ["waiting for host 3 (node3) of 4"]
    assert 1.4 < time.monotonic() - began < 5
    said = (
        f"host 3 (node3) of 4 did not come within 1.5 s: start the same command there, look at its output where it runs, and let it reach "
        f"127.0.0.1:{port} of this run; --config.hang_s=SECONDS waits longer"
    )
    assert [(type(error), str(error)) for error in found] == [(HangError, said)] * 3


def test_a_missing_first_host_is_named_by_each_of_the_others():
    port = free_port()
    found = call_all([cluster(index, 3, port) for index in (1, 2)], deadline_s=1.0)
    for error in found:
        assert isinstance(error, HangError)
        assert str(error).startswith(
            f"host 0 of 3 did not answer at 127.0.0.1:{port} within 1 s (Connection refused): start the same command"
        )


def test_another_program_at_the_port_is_told_within_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        [found] = call_all([cluster(1, 2, port)], deadline_s=1.0)
    assert (
        isinstance(found, HangError)
        and "(it listens, but says nothing)" in str(found)
        and "another program may hold the port" in str(found)
    )


def test_a_port_in_use_is_one_sentence(monkeypatch):
    monkeypatch.setattr(roll_call, "_IN_USE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        [found] = call_all([cluster(0, 2, port)], deadline_s=20)
    assert isinstance(found, UserError) and not isinstance(found, HangError)
    assert str(found).startswith(f"port {port} of the coordinator: found it in use on this machine, expected a free one: give another")
    assert f"(ss -ltnp 'sport = :{port}' names it)" in str(found)


def test_an_address_of_another_machine_is_one_sentence():
    with pytest.raises(UserError, match="cannot be listened at .* expected an address of this machine, as this is process 0"):
        roll_call.call(cluster(0, 2, 1), deadline_s=1, say=lambda line: None, bind="192.0.2.1:29999")  # of documentation, RFC 5737


def test_an_index_that_is_there_twice_and_another_count_are_refused():
    port = free_port()
    found = call_all([cluster(0, 3, port), cluster(1, 3, port), cluster(1, 3, port), cluster(2, 4, port)], deadline_s=2)
    first, *ones, other = found
    assert isinstance(first, HangError) and str(first).startswith("host 2 of 3 did not come") and "refused was: process " in str(first)
    assert sorted(type(error).__name__ for error in ones) == ["HangError", "UserError"]
    refused = next(error for error in ones if not isinstance(error, HangError))
    assert (
        str(refused)
        == f"process index 1: found it on {OWN} and on {OWN}, expected an index of its own for every process (set by JAX_PROCESS_ID)"
    )
    assert str(other) == f"process 2 on {OWN}: found it started as one of 4, expected 3, as process 0 was: start all alike"


def test_strangers_at_the_port_change_nothing():
    port = free_port()
    found: list = []
    thread = threading.Thread(target=lambda: found.extend(call_all([cluster(0, 2, port)], deadline_s=20)))
    thread.start()
    strangers = []
    for content in (b"GET / HTTP/1.1\r\n\r\n", b'{"index": "x"}\n', b"[1]\n", b"\xff\xfe\n", b""):
        while True:
            try:
                strangers.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                break
            except OSError:
                time.sleep(0.05)
        strangers[-1].sendall(content)
    found += call_all([cluster(1, 2, port)], deadline_s=20)
    thread.join(20)
    assert len(found) == 2 and all(isinstance(line, Line) for line in found)
    for one in [*strangers, *found]:
        one.close()


def wait_for(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("not in four seconds")


@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_whose_connection_closes_is_lost_and_named_on_all_others(victim: int):
    with joined(3) as (lines, told):
        lines[victim]._silent.set()  # it does nothing any more
        for peer in lines[victim]._peers.values():
            peer.socket.shutdown(socket.SHUT_RDWR)  # what the kernel does for a process that is killed
        others = [index for index in range(3) if index != victim]
        wait_for(lambda: all(told[index] for index in others))
        for index in others:
            assert told[index] == [
                f"host {victim} ({OWN}) of 3 is lost: connection closed without a word (was it killed, or its machine?); the same command "
                "on all hosts goes on from the newest checkpoint"
            ]
            assert lines[index].lost(0) == told[index][0]


def test_the_last_error_of_a_host_is_printed_on_the_others_and_ends_them_after_a_while(capsys):
    with joined(3, deadline_s=0.5) as (lines, told):
        lines[2].farewell("data", "DataError: shard 7 is gone")
        wait_for(lambda: told[0] and told[1])
        said = f"host 2 ({OWN}) of 3 ended: data (65): DataError: shard 7 is gone"
        assert told == [[said], [said], []]
        assert capsys.readouterr().err == f"{said}\n" * 2


def test_a_host_that_is_done_or_was_stopped_is_not_missed():
    with joined(3) as (lines, told):
        lines[1].farewell("done")
        lines[2].farewell("preempted")
        for line in lines[1:]:
            line.close()
        time.sleep(0.3)
        assert told == [[], [], []] and lines[0].lost(0) == ""
