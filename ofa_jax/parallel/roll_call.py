"""The roll call before a run on several hosts, and the line between them that stays open while it runs.

Before JAX is started, process 0 listens at the coordinator's address, where JAX's own service is to listen later, and every other process
says its index and the name of its machine there. So a port in use, two processes of one index and a host that does not come are told in one
sentence, by index and name, on every host that did come. JAX's own start would end in a wordless time-out, or an abort of its C++ side.
It needs no folder that the hosts share, and no interface of JAX that is not public.

The connections stay open. The kernel closes those of a process that is killed, at once, and keep-alive packets find a machine that is gone;
process 0 tells all others. A process that ends by itself says why beforehand: its last error is printed on the other hosts, and so on the
terminal that shows process 0. Messages are lines of JSON.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ofa_jax.config.errors import UserError
from ofa_jax.monitor.exits import REASONS, HangError
from ofa_jax.parallel.cluster import Cluster

SAY_AFTER_S, SAY_EVERY_S = 10.0, 30.0  # what process 0 waits for is said
_RETRY_S = 0.25  # between two tries to reach process 0
_IN_USE_S = 3.0  # a process 0 that was killed just now may still hold its port
_SEND_S = 5.0
_LONGEST = 2**16  # bytes of a message
_GRACE_S = 60.0  # hosts that end for one reason end within it; those that wait for one that ended are ended then
_KEEP_ALIVE_S = 120.0  # without an answer, after which a machine is gone; the deadline where that is shorter
_HARMLESS = ("done", "preempted")


@dataclasses.dataclass
class _Peer:
    """One connection, and what has come of the next message."""

    socket: socket.socket
    host: int = -1  # its index, once it said so
    name: str = ""
    gone: str = ""  # why nothing more comes
    waiting: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # messages that came, for whoever listens next
    _buffer: bytes = b""

    def read(self) -> list[dict[str, Any]]:
        """Returns the messages that have come; at the end of the connection, `gone` says why. Call when something has come."""
        try:
            content = self.socket.recv(_LONGEST)
        except (TimeoutError, InterruptedError):
            return []
        except OSError as error:
            self.gone = "no answer" if error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH) else "connection closed without a word"
            return []
        if not content:
            self.gone = "connection closed without a word"
        *lines, self._buffer = (self._buffer + content).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if len(self._buffer) > _LONGEST or not all(isinstance(message, dict) for message in messages):
            self.gone = "no message of this program"
            return []
        return messages

    def send(self, **message: Any) -> None:
        """Sends a message. That the other side is gone is noticed where it is read."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.gone = self.gone or "connection closed without a word"


def _prepare(connection: socket.socket, deadline_s: float) -> _Peer:
    """Makes a connection tell within the deadline that the other machine is gone."""
    connection.settimeout(_SEND_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    silent_s = max(int(min(deadline_s, _KEEP_ALIVE_S)), 2)
    for name, value in (("TCP_KEEPIDLE", silent_s // 2), ("TCP_KEEPINTVL", max(silent_s // 8, 1)), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return _Peer(connection)


class Line:
    """The open connections of one process to the others, and a thread that listens to them."""

    def __init__(self, index: int, names: Sequence[str], peers: Sequence[_Peer], *, deadline_s: float):
        """names: of all hosts. peers: of process 0 all others, of the others process 0."""
        self.index, self.names = index, tuple(names)
        self._peers, self._grace_s = {peer.host: peer for peer in peers}, min(deadline_s, _GRACE_S)
        self._on_loss: Callable[[str], None] = lambda said: None
        self._ended: dict[int, str] = {}
        self._said = ""  # of the first host that was lost, or failed
        self._known, self._silent = threading.Event(), threading.Event()
        self._sending = threading.RLock()  # a handler of signals may interrupt whoever sends
        self._thread = threading.Thread(target=self._listen, name="hosts", daemon=True)

    def host(self, index: int) -> str:
        """Returns "host 2 (node7)"."""
        return f"host {index} ({self.names[index]})" if self.names[index] else f"host {index}"

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Begins to listen. on_loss: called in the listening thread with a sentence that names the host, at once for one that is lost,
        after a minute (or the deadline) for one that failed; it is expected to end the process."""
        self._on_loss = on_loss
        self._thread.start()

    def lost(self, wait_s: float) -> str:
        """Returns a sentence on the first host that was lost or failed, "" where none is known to be after `wait_s`."""
        self._known.wait(wait_s)
        return self._said

    def farewell(self, reason: str, said: str = "") -> None:
        """Tells the others that this process ends: `reason` of `monitor.exits.REASONS`, and its last words. Only the first counts."""
        with self._sending:
            if not self._silent.is_set():
                self._silent.set()
                for peer in self._peers.values():
                    peer.send(event="ended", host=self.index, reason=reason, said=said[:2_000])

    def close(self) -> None:
        """Closes the connections and ends the thread."""
        self._silent.set()
        for peer in self._peers.values():
            try:
                peer.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other side was first
        if self._thread.is_alive():
            self._thread.join()
        for peer in self._peers.values():
            peer.socket.close()

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers.values():
                selector.register(peer.socket, selectors.EVENT_READ, peer)
                for message in peer.waiting:
                    self._hear(message)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = key.data
                    for message in peer.read():
                        self._hear(message)
                    if peer.gone:
                        selector.unregister(peer.socket)
                        if peer.host not in self._ended:
                            self._lose(peer.host, peer.gone)

    def _hear(self, message: dict[str, Any]) -> None:
        host = int(message["host"])
        if message["event"] == "lost":
            self._lose(host, message["said"])
            return
        self._relay(host, message)
        reason, said = str(message["reason"]), str(message["said"])
        self._ended[host] = reason
        if reason in _HARMLESS or self._known.is_set() or self._silent.is_set():
            return
        code = REASONS[reason].code if reason in REASONS else "?"
        self._said = f"{self.host(host)} of {len(self.names)} ended: {reason} ({code})" + (f": {said}" if said else "")
        self._known.set()
        print(self._said, file=sys.stderr, flush=True)
        late = threading.Timer(self._grace_s, self._end)
        late.daemon = True
        late.start()

    def _lose(self, host: int, why: str) -> None:
        if self._silent.is_set() or self._known.is_set():
            return  # this process ends itself, or another host was the first
        self._said = (
            f"{self.host(host)} of {len(self.names)} is lost: {why} (was it killed, or its machine?); the same command on all hosts goes "
            "on from the newest checkpoint"
        )
        self._known.set()
        self._relay(host, {"event": "lost", "host": host, "said": why})
        self._end()

    def _relay(self, about: int, message: dict[str, Any]) -> None:
        """Process 0 tells the others what it heard of one."""
        if self.index == 0:
            with self._sending:
                for peer in self._peers.values():
                    if peer.host != about and not peer.gone:
                        peer.send(**message)

    def _end(self) -> None:
        if not self._silent.is_set():
            self._on_loss(self._said)


def call(cluster: Cluster, *, deadline_s: float, say: Callable[[str], None], bind: str = "", waits_by: str = "") -> Line:
    """Waits until all processes of `cluster` are there, and returns the line between them, not listening yet.

    say: is told by process 0 for whom it waits. bind: host:port that process 0 listens at; "" is the coordinator's port on all addresses.
    waits_by: the flag that sets the deadline, for the sentence.

    Raises `HangError` that names who is missing at the deadline, on every host that came; `UserError` where the port is in use, or a
    process of the same index was there before.
    """
    own = socket.gethostname()
    if cluster.index == 0:
        return _listen_for_all(cluster, own, deadline_s, say, bind, waits_by)
    return _report_to_first(cluster, own, deadline_s, waits_by)


def _server(address: str, count: int) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if host in ("", "::") and socket.has_dualstack_ipv6():
        return socket.create_server(("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=count)
    host = "" if host == "::" else host
    return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=count)


def _listen_at(address: str, count: int) -> socket.socket:
    port = address.rpartition(":")[2]
    until = time.monotonic() + _IN_USE_S
    while True:
        try:
            return _server(address, count)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                time.sleep(_RETRY_S)
                continue
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} of the coordinator: found it in use on this machine, expected a free one: give another (the end of "
                    f"JAX_COORDINATOR_ADDRESS, or JAX_COORDINATOR_PORT) on all hosts, or end the program that holds it "
                    f"(ss -ltnp 'sport = :{port}' names it)"
                ) from error
            raise UserError(
                f"coordinator's address {address}: cannot be listened at ({error.strerror}), expected an address of this machine, as this "
                "is process 0"
            ) from error


def _listen_for_all(cluster: Cluster, own: str, deadline_s: float, say: Callable[[str], None], bind: str, waits_by: str) -> Line:
    """Process 0: hears the others, tells them all that all are there, or who is not."""
    began, say_at_s = time.monotonic(), SAY_AFTER_S
    come: dict[int, _Peer] = {}
    refused = ""
    with _listen_at(bind or f":{cluster.coordinator.rpartition(':')[2]}", cluster.count) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(come) < cluster.count - 1:
            waited_s = time.monotonic() - began
            missing = [index for index in range(1, cluster.count) if index not in come]
            if waited_s > deadline_s:
                said = _missing(cluster, missing, deadline_s, refused, waits_by)
                for peer in come.values():
                    peer.send(event="over", said=said)
                raise HangError(said)
            if waited_s > say_at_s:
                say_at_s = waited_s + SAY_EVERY_S
                say(f"waiting for {_listed(cluster, missing)} of {cluster.count}; {deadline_s - waited_s:.0f} s left")
            for key, _ in selector.select(min(deadline_s - waited_s, 1.0) + 0.01):
                if key.data is None:
                    connection, _ = server.accept()
                    selector.register(connection, selectors.EVENT_READ, _prepare(connection, deadline_s))
                    continue
                peer = key.data
                for message in peer.read():
                    if said := _admit(cluster, peer, message, come):
                        refused = said
                        peer.send(event="refused", said=said)
                if peer.gone:
                    selector.unregister(peer.socket)
                    peer.socket.close()
                    if come.get(peer.host) is peer:
                        del come[peer.host]  # it may come again
        names = [own, *(come[index].name for index in range(1, cluster.count))]
    for peer in come.values():
        peer.send(event="all", names=names)
    return Line(0, names, list(come.values()), deadline_s=deadline_s)


def _admit(cluster: Cluster, peer: _Peer, message: dict[str, Any], come: dict[int, _Peer]) -> str:
    """Takes in a process that said who it is; returns a sentence where it is refused."""
    index, count, name = (message.get(key) for key in ("index", "count", "name"))
    if not isinstance(index, int) or not isinstance(count, int):
        return "found a message that is not of this program, expected a process of the same run"
    if count != cluster.count:
        return f"process {index} on {name}: found it started as one of {count}, expected {cluster.count}, as process 0 was: start all alike"
    if not 0 < index < count or index in come:
        other = f" and on {come[index].name}" if index in come else ", where the coordinator is"
        return (
            f"process index {index}: found it on {name}{other}, expected an index of its own for every process (set by "
            f"{', '.join(cluster.told_by)})"
        )
    peer.host, peer.name = index, str(name)
    come[index] = peer
    peer.send(event="heard")
    return ""


def _listed(cluster: Cluster, missing: Sequence[int]) -> str:
    named = [f"host {index}" + (f" ({cluster.names[index]})" if index in cluster.names else "") for index in missing]
    return ", ".join(named[:20]) + (f" and {len(named) - 20} more" if len(named) > 20 else "")


def _missing(cluster: Cluster, missing: Sequence[int], deadline_s: float, refused: str, waits_by: str) -> str:
    longer = f"; {waits_by} waits longer" if waits_by else ""
    return (
        f"{_listed(cluster, missing)} of {cluster.count} did not come within {deadline_s:g} s: start the same command there, look at its "
        f"output where it runs, and let it reach {cluster.coordinator} of this run{longer}"
        + (f"; refused was: {refused}" if refused else "")
    )


def _report_to_first(cluster: Cluster, own: str, deadline_s: float, waits_by: str) -> Line:
    """Every other process: tells the first one that it is there, and waits for its word."""
    host, _, port = cluster.coordinator.rpartition(":")
    until, found = time.monotonic() + deadline_s, "nothing there"
    while time.monotonic() < until:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=max(min(until - time.monotonic(), _SEND_S), 0.1))
        except OSError as error:
            found = error.strerror or str(error)
            time.sleep(_RETRY_S)
            continue
        if connection.getsockname() == connection.getpeername():  # where nobody listens, a machine may connect to itself
            connection.close()
            continue
        peer = _prepare(connection, deadline_s)
        peer.host = 0
        peer.send(index=cluster.index, count=cluster.count, name=own)
        line, found = _await_word(cluster, peer, until, deadline_s)
        if line is not None:
            return line
        connection.close()
        time.sleep(_RETRY_S)
    longer = f"; {waits_by} waits longer" if waits_by else ""
    named = f" ({cluster.names[0]})" if 0 in cluster.names else ""
    raise HangError(
        f"host 0{named} of {cluster.count} did not answer at {cluster.coordinator} within {deadline_s:g} s ({found}): start the same "
        f"command there, look at its output where it runs (another program may hold the port), and let this host reach it{longer}"
    )


def _await_word(cluster: Cluster, peer: _Peer, until: float, deadline_s: float) -> tuple[Line | None, str]:
    """Returns the line once all are there; or (None, what was found) where it is not process 0 that listens, or not yet."""
    heard = False
    while time.monotonic() < until:
        peer.socket.settimeout(max(until - time.monotonic(), 0.01))
        peer.waiting = peer.read()
        while peer.waiting:
            message = peer.waiting.pop(0)
            event, said = message.get("event"), str(message.get("said", ""))
            if event == "heard":
                # It began to wait before it heard this one, so its verdict comes within as long again.
                heard, until = True, time.monotonic() + deadline_s + _SEND_S
            elif event == "over":
                raise HangError(said)
            elif event == "refused":
                raise UserError(said)
            elif event == "all":
                peer.socket.settimeout(_SEND_S)
                return Line(cluster.index, message["names"], [peer], deadline_s=deadline_s), ""
        if peer.gone:
            if heard:
                raise HangError(
                    f"host 0 of {cluster.count} ended while it waited for the others: its output says why; the same command on all hosts "
                    "starts anew"
                )
            return None, peer.gone
    return None, "it listens, but says nothing"
