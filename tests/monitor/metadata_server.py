"""A metadata server of a machine on 127.0.0.1, for tests: its answers are what the test puts there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_FOLDER = "/computeMetadata/v1/instance/"


@contextlib.contextmanager
def metadata_server(answers: dict[str, str]) -> Iterator[str]:
    """Yields host:port of a server that answers by name from `answers`, which may change, and with 404 for other names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            value = answers.get(self.path.removeprefix(_FOLDER))
            told = self.headers["Metadata-Flavor"] == "Google"  # without it the real server refuses
            self.send_response(404 if value is None else 200 if told else 403)
            self.end_headers()
            self.wfile.write((value or "").encode() if told else b"")

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
