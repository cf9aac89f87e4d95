"""A small Google Cloud Storage on 127.0.0.1, for tests: enough of the JSON API that gcsfs works against it, and faults on request.

    with ObjectStore() as store:
        store.put_folder(tmp_path / "data", "gs://bucket/data")
        store.faults = [Fault(status=503, every=5)]
        subprocess.run(command, env=os.environ | store.environment)

Objects lie in memory. The API: https://cloud.google.com/storage/docs/json_api/v1.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import socket
import struct
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

_UPLOAD = "/upload/storage/v1/"
_DOWNLOAD = "/download/storage/v1/"
_PLAIN = "/storage/v1/"


@dataclasses.dataclass
class Fault:
    """What happens to every `every`-th request that it concerns: an error, half a body, or a wait before the answer."""

    status: int = 0  # the answer, and nothing is done
    reset: bool = False  # half of the answer's body, then the connection is reset
    stall_s: float = 0.0  # the answer comes this late
    every: int = 1
    of: str = ""  # concerns requests whose bucket/name holds this
    media: bool = False  # concerns downloads of bytes alone
    times: int | None = None  # as often as this, then no more
    seen: int = 0  # requests that it concerned
    struck: int = 0  # of these, those it happened to


@dataclasses.dataclass(frozen=True)
class Request:
    """One request, as the store saw it."""

    method: str
    place: str  # bucket/name, or the bucket
    media: bool
    range: str | None


@dataclasses.dataclass(frozen=True)
class _Stored:
    data: bytes
    generation: int
    time: str
    content_type: str


class ObjectStore:
    """Use it as a context manager. Objects go by their address ("gs://bucket/name")."""

    def __init__(self, *, latency_s: float = 0.0, page_size: int = 1000):
        """latency_s: every answer comes this late. page_size: most names of a page of a listing."""
        self.latency_s, self.page_size = latency_s, page_size
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.most_at_once = 0  # requests that were under way together
        self.gather = 0  # the first answers wait until so many requests are under way together, at most half a minute
        self._objects: dict[str, dict[str, _Stored]] = {}
        self._uploads: dict[str, tuple[str, str, str, dict[str, str], bytearray]] = {}
        self._lock = threading.RLock()
        self._gathered = threading.Event()  # what `gather` waits for
        self._under_way = 0
        self._numbers = itertools.count(int(time.time() * 1e6))
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.close_connections()
        self._thread.join()

    @property
    def url(self) -> str:
        """http://127.0.0.1:port."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What sends gcsfs here, in this process (before it is first used) and in others: no account is looked for, and no gRPC."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "FSSPEC_GS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
        }

    def make_bucket(self, bucket: str) -> None:
        """Makes an empty bucket where there is none."""
        with self._lock:
            self._objects.setdefault(bucket, {})

    def put(self, address: str, data: bytes) -> None:
        """Stores an object, and makes its bucket."""
        bucket, name = split_address(address)
        self.make_bucket(bucket)
        self.store(bucket, name, data)

    def put_folder(self, folder: Path, address: str) -> None:
        """Stores every file below a local folder."""
        for path in sorted(filter(Path.is_file, folder.rglob("*"))):
            self.put(f"{address.rstrip('/')}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def get(self, address: str) -> bytes:
        """Returns an object's bytes. Raises KeyError."""
        bucket, name = split_address(address)
        return self._objects[bucket][name].data

    def generation(self, address: str) -> int:
        """Returns the number of an object's version, another one after each time it is written. Raises KeyError."""
        bucket, name = split_address(address)
        return self._objects[bucket][name].generation

    def remove(self, address: str) -> None:
        """Removes an object. Raises KeyError."""
        bucket, name = split_address(address)
        with self._lock:
            del self._objects[bucket][name]

    def names(self, address: str) -> list[str]:
        """Returns the names below a folder's address, relative to it, sorted."""
        bucket, prefix = split_address(address.rstrip("/") + "/")
        return sorted(name.removeprefix(prefix) for name in self._objects.get(bucket, {}) if name.startswith(prefix))

    def fetch_folder(self, address: str, folder: Path) -> None:
        """Writes every object below a folder's address to a local folder."""
        for name in self.names(address):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.get(f"{address.rstrip('/')}/{name}"))

    # What the request handler asks.

    def store(self, bucket: str, name: str, data: bytes, content_type: str = "application/octet-stream") -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self._lock:
            self._objects[bucket][name] = _Stored(bytes(data), next(self._numbers), now, content_type)
            return self.resource(bucket, name)

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        found = self._objects[bucket][name]
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{found.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(found.generation),
            "metageneration": "1",
            "contentType": found.content_type,
            "size": str(len(found.data)),
            "crc32c": base64.b64encode(google_crc32c.Checksum(found.data).digest()).decode(),
            "md5Hash": base64.b64encode(hashlib.md5(found.data).digest()).decode(),
            "etag": str(found.generation),
            "timeCreated": found.time,
            "updated": found.time,
            "storageClass": "STANDARD",
        }

    def begin(self, request: Request) -> Fault:
        """Counts a request and returns what is to happen to it."""
        with self._lock:
            self.requests.append(request)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            if self._under_way >= self.gather:
                self._gathered.set()
            happens = Fault(stall_s=self.latency_s)
            for fault in self.faults:
                if fault.of not in request.place or (fault.media and not request.media):
                    continue
                fault.seen += 1
                if fault.seen % fault.every == 0 and (fault.times is None or fault.struck < fault.times):
                    fault.struck += 1
                    happens.status = happens.status or fault.status
                    happens.reset = happens.reset or fault.reset
                    happens.stall_s += fault.stall_s
        self._gathered.wait(30)
        return happens

    def end(self) -> None:
        with self._lock:
            self._under_way -= 1


def split_address(address: str) -> tuple[str, str]:
    """Returns bucket and name of gs://bucket/name."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    return bucket, name


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a stalled answer must not hold up the end of a test
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], store: ObjectStore):
        super().__init__(address, _Handler)
        self.store = store
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Ends the connections that clients keep open, and with each the thread that waits for its next request."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it went away meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to report."""


class _Answer(Exception):
    """An error as an answer."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else small answers wait for the acknowledgement of their headers
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def _serve(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        base = next((base for base in (_UPLOAD, _DOWNLOAD, _PLAIN) if url.path.startswith(base)), None)
        parts = [unquote(part) for part in url.path.removeprefix(base or "/").rstrip("/").split("/")]
        named = parts[3] if len(parts) > 3 else query.get("name", query.get("prefix", ""))
        place = "/".join(part for part in (parts[1] if len(parts) > 1 else "", named) if part)
        media = base == _DOWNLOAD or (query.get("alt") == "media")
        store = self.server.store
        fault = store.begin(Request(self.command, place, media, self.headers.get("Range")))
        try:
            time.sleep(fault.stall_s)
            if fault.status:
                raise _Answer(fault.status, "as the test wishes")
            if base is None or parts[0] != "b":
                raise _Answer(404, f"no such method: {self.path}")
            if base == _UPLOAD:
                self._upload(parts[1], query, body, fault)
            elif len(parts) < 4:
                self._bucket(parts, query, body, fault)
            else:
                self._object(parts[1], parts[3], parts[4:], query, media, fault)
        except _Answer as error:
            self._send_json(error.status, {"error": {"code": error.status, "message": str(error)}})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            store.end()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _bucket(self, parts: list[str], query: dict[str, str], body: bytes, fault: Fault) -> None:
        store = self.server.store
        buckets = store._objects
        match self.command, parts:
            case "GET", ["b"]:
                self._send_json(200, {"kind": "storage#buckets", "items": [_about(bucket) for bucket in sorted(buckets)]}, fault)
            case "POST", ["b"]:
                bucket = json.loads(body)["name"]
                if bucket in buckets:
                    raise _Answer(409, f"bucket {bucket} is there already")
                store.make_bucket(bucket)
                self._send_json(200, _about(bucket), fault)
            case _, [_, bucket, *_] if bucket not in buckets:
                raise _Answer(404, f"no bucket {bucket}")
            case "GET", [_, bucket]:
                self._send_json(200, _about(bucket), fault)
            case "GET", [_, bucket, "o"]:
                self._send_json(200, self._listing(bucket, query), fault)
            case "DELETE", [_, bucket]:
                if buckets[bucket]:
                    raise _Answer(409, f"bucket {bucket} is not empty")
                del buckets[bucket]
                self._send(204, b"")
            case _:
                raise _Answer(404, f"no such method: {self.command} {self.path}")

    def _listing(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        store = self.server.store
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, stop = query.get("startOffset", ""), query.get("endOffset", "")
        after = base64.urlsafe_b64decode(query["pageToken"]).decode() if "pageToken" in query else ""
        limit = min(int(query.get("maxResults", store.page_size)), store.page_size)
        with store._lock:
            names = sorted(name for name in store._objects[bucket] if name.startswith(prefix) and name >= first)
            entries = []  # names, and the folders of those behind a delimiter
            for name in names:
                if stop and name >= stop:
                    break
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                entry = prefix + head + found if found else name
                if entry > after and entry not in entries[-1:]:
                    entries.append(entry)
            page = entries[:limit]
            answer: dict[str, Any] = {"kind": "storage#objects"}
            folders = [entry for entry in page if delimiter and entry[len(prefix) :].endswith(delimiter)]
            if folders:
                answer["prefixes"] = folders
            if items := [store.resource(bucket, entry) for entry in page if entry not in folders]:
                answer["items"] = items
        if len(entries) > limit:
            answer["nextPageToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
        return answer

    def _object(self, bucket: str, name: str, rest: list[str], query: dict[str, str], media: bool, fault: Fault) -> None:
        store = self.server.store
        if self.command == "POST" and rest[:1] in (["rewriteTo"], ["copyTo"], ["moveTo"]):
            target, new = (bucket, rest[2]) if rest[0] == "moveTo" else (rest[2], rest[4])
            with store._lock:
                self._check(target, new, query)
                found = self._found(bucket, name)
                resource = store.store(target, new, found.data, found.content_type)
                if rest[0] == "moveTo":
                    del store._objects[bucket][name]
            size = resource["size"]
            rewritten = {"kind": "storage#rewriteResponse", "done": True, "objectSize": size, "totalBytesRewritten": size}
            self._send_json(200, rewritten | {"resource": resource} if rest[0] == "rewriteTo" else resource, fault)
            return
        with store._lock:
            found = self._found(bucket, name)
            self._check(bucket, name, query)
            if self.command == "DELETE":
                del store._objects[bucket][name]
            resource = store.resource(bucket, name) if self.command == "GET" and not media else {}
        if self.command == "DELETE":
            self._send(204, b"")
        elif self.command in ("GET", "HEAD") and media:
            self._send_media(found, fault)
        elif self.command == "GET":
            self._send_json(200, resource, fault)
        else:
            raise _Answer(404, f"no such method: {self.command} {self.path}")

    def _found(self, bucket: str, name: str) -> _Stored:
        found = self.server.store._objects.get(bucket, {}).get(name)
        if found is None:
            raise _Answer(404, f"No such object: {bucket}/{name}")
        return found

    def _check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """The conditions of a request: the generation that an object must have, 0 for none."""
        found = self.server.store._objects.get(bucket, {}).get(name)
        generation = str(found.generation if found else 0)
        if query.get("ifGenerationMatch", generation) != generation:
            raise _Answer(412, f"{bucket}/{name} has generation {generation}")
        if query.get("ifGenerationNotMatch") == generation:
            raise _Answer(304 if self.command == "GET" else 412, f"{bucket}/{name} has generation {generation}")

    def _upload(self, bucket: str, query: dict[str, str], body: bytes, fault: Fault) -> None:
        store = self.server.store
        if bucket not in store._objects:
            raise _Answer(404, f"no bucket {bucket}")
        kind, content_type = query.get("uploadType"), self.headers.get("Content-Type", "")
        if kind == "media":
            self._finish(bucket, query["name"], content_type, query, body, fault)
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)"?', content_type)
            assert boundary, content_type
            about, data = (part.split(b"\n", 1)[1] for part in body.split(b"--" + boundary[1].encode())[1:3])
            fields = json.loads(_after_headers(about)[1])
            kind_of_data, data = _after_headers(data)
            name, data = query.get("name") or fields["name"], data.removesuffix(b"\n").removesuffix(b"\r")
            self._finish(bucket, name, kind_of_data, query, data, fault)
        elif kind == "resumable" and "upload_id" not in query:
            number, name = str(next(store._numbers)), query.get("name") or json.loads(body)["name"]
            about = self.headers.get("X-Upload-Content-Type", "application/octet-stream")
            store._uploads[number] = (bucket, name, about, query, bytearray())
            self._send(200, b"", {"Location": f"{store.url}{_UPLOAD}b/{bucket}/o?uploadType=resumable&upload_id={number}"})
        elif kind == "resumable" and query["upload_id"] in store._uploads:
            self._resume(query["upload_id"], body, fault)
        else:
            raise _Answer(404, f"no such upload: {self.path}")

    def _resume(self, number: str, body: bytes, fault: Fault) -> None:
        store = self.server.store
        bucket, name, content_type, query, data = store._uploads[number]
        if self.command == "DELETE":
            del store._uploads[number]
            self._send(499, b"")
            return
        said = self.headers.get("Content-Range")
        found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", said) if said else None
        if said and not found:
            raise _Answer(400, f"invalid Content-Range: {said}")
        start, total = (found[1], found[2]) if found else ("0", str(len(body)))
        if start is not None:
            if int(start) > len(data):
                raise _Answer(503, f"{len(data)} bytes have come, these begin at {start}")
            data[int(start) :] = body  # what came before is sent again after an answer that got lost
        if total != "*" and int(total) == len(data):
            del store._uploads[number]
            self._finish(bucket, name, content_type, query, bytes(data), fault)
        else:
            self._send(308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {})

    def _finish(self, bucket: str, name: str, content_type: str, query: dict[str, str], data: bytes, fault: Fault) -> None:
        store = self.server.store
        with store._lock:
            self._check(bucket, name, query)
            resource = store.store(bucket, name, data, content_type)
        self._send_json(200, resource, fault)

    def _send_media(self, found: _Stored, fault: Fault) -> None:
        size, status, data = len(found.data), 200, found.data
        headers = {"Content-Type": found.content_type, "X-Goog-Generation": str(found.generation), "ETag": f'"{found.generation}"'}
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
            if first >= size:
                raise _Answer(416, f"range {wanted[0]} of {size} bytes is not satisfiable")
            status, data = 206, found.data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send(status, data, headers, fault)

    def _send_json(self, status: int, content: dict[str, Any], fault: Fault | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json; charset=UTF-8"}, fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD" or status in (204, 304):
            return
        if fault is not None and fault.reset:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # makes closing a reset
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(body)


def _about(bucket: str) -> dict[str, Any]:
    return {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US", "storageClass": "STANDARD"}


def _after_headers(part: bytes) -> tuple[str, bytes]:
    """Returns content type and body of one part of a multipart body, whose lines end in \\n or \\r\\n."""
    head, body = re.split(rb"\r?\n\r?\n", part, maxsplit=1)
    kind = re.search(rb"(?i)content-type: *([^\r\n]+)", head)
    return (kind[1].decode() if kind else "application/octet-stream"), body
