"""Google Cloud's notice that a machine is about to be taken away, heard before the machine is gone.

A preempted machine has 30 seconds, and a process that was started by ssh or in a container hears of it by no signal. The machine's metadata
server does say so (https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice, and "preempted" on
https://cloud.google.com/compute/docs/instances/create-use-preemptible): it is asked every few seconds, and a notice becomes the SIGTERM
that the training loop knows. Other platforms send that signal themselves (Kubernetes, Slurm with `--signal=TERM@60`).
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

HOST_VARIABLE = "GCE_METADATA_HOST"  # Google's own libraries take another address of the server from it, too
ASK_EVERY_S = 5.0
_TIMEOUT_S = 3.0
_SERVER = "metadata.google.internal"
_PRODUCT = Path("/sys/class/dmi/id/product_name")  # by which Google's libraries tell its machines, without a network
_NOTICES = {"preempted": ("FALSE",), "maintenance-event": ("NONE", "MIGRATE_ON_HOST_MAINTENANCE")}  # name -> what is no end


def metadata_server(environ: Mapping[str, str] | None = None) -> str:
    """Returns host[:port] of this machine's metadata server: `GCE_METADATA_HOST`, or Google's on its machines; "" elsewhere."""
    if named := (os.environ if environ is None else environ).get(HOST_VARIABLE, ""):
        return named
    try:
        return _SERVER if _PRODUCT.read_text().strip().startswith("Google") else ""
    except OSError:  # no such table: not a machine of theirs
        return ""


def read_metadata(server: str, name: str) -> str | None:
    """Returns what the metadata server says of this machine's `name` (as "preempted", "attributes/tpu-env"), None where it has no such
    entry. Raises OSError where the server does not answer."""
    request = urllib.request.Request(f"http://{server}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return answer.read().decode().strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    except http.client.HTTPException as error:
        raise OSError(f"{name}: no whole answer ({error!r})") from error


def read_notice(server: str) -> str:
    """Returns the notice that this machine will end, as "name VALUE"; "" where there is none. Raises OSError where the server does not
    answer."""
    for name, harmless in _NOTICES.items():
        value = read_metadata(server, name)
        if value is None:  # a machine that knows no such notice
            continue
        if value not in harmless:
            return f"{name} {value}"
    return ""


class MaintenanceWatch:
    """Asks in a thread until it is closed; the first notice is printed and becomes a SIGTERM to this process."""

    def __init__(self, server: str, *, every_s: float = ASK_EVERY_S):
        """server: as `metadata_server` returns it; with "" nothing is asked."""
        self._server, self._every_s = server, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="maintenance", daemon=True)
        if server:
            self._thread.start()

    def close(self) -> None:
        """Ends the thread; safe to call more than once."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        silent = False
        while not self._stopping.is_set():
            try:
                notice = read_notice(self._server)
                silent = False
            except OSError as error:
                if not silent:
                    print(f"notices of maintenance: {self._server} does not answer ({error}); asking on", file=sys.stderr, flush=True)
                notice, silent = "", True
            if notice:
                print(f"notice of maintenance: {notice}; saving, as for SIGTERM", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._stopping.wait(self._every_s)
