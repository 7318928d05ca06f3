"""An S3-like server inside the test process that breaks requests on demand.

It knows GET with Range and If-Match, HEAD, PUT, DELETE, DeleteObjects, and ListObjectsV2 in one page; it checks no
signature. Faults are queued for each object and used up in order, so that a test decides exactly which request breaks,
and how. `wants_content_md5` and `weak_etags` are habits of real servers. `refuses` makes an outage.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

STALL_SECONDS = 60.0  # how long a stalled answer lasts at most; it ends at once when the server is closed
TRICKLE_SECONDS = 0.05  # between two bytes of an answer that trickles
ENV = {"AWS_ACCESS_KEY_ID": "fault", "AWS_SECRET_ACCESS_KEY": "fault-secret"}  # any credentials are accepted


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes:
        kind: `reset` sends `after` bytes of the body, then a TCP reset; `short` the same, then an orderly close;
            `stall` the same, then nothing; `trickle` the same, then a byte every 50 ms; `garbage` a body of the right
            length with wrong bytes from `after` on; `status` no body, but the HTTP status `status` with the S3 error
            code `code`; `length` a Content-Length that is `after` bytes too large (or too small, if negative), and
            then an orderly close.
        after: Bytes of the body that are sent before it happens.
        status: The HTTP status of a fault of that kind.
        code: The S3 error code of a fault of that kind.
        headers: More headers of a fault of that kind, by name.
        replace: The object's content from then on.
    """

    kind: Literal["reset", "short", "stall", "trickle", "garbage", "status", "length"]
    after: int = 0
    status: int = 503
    code: str = "SlowDown"
    headers: Mapping[str, str] = field(default_factory=dict)
    replace: bytes | None = None


def refuse_nothing(method: str, name: str) -> bool:
    """What a server refuses while all is well."""
    del method, name
    return False


@dataclass
class Request:
    """One request as the server saw it; `sent` counts bytes of the body."""

    method: str
    name: str
    range: str | None
    if_match: str | None
    connection: int
    headers: dict[str, str] = field(default_factory=dict)
    sent: int = 0


class FaultServer:
    """Serves `objects` ("bucket/key" to content) on a free port of 127.0.0.1 while the `with` block lasts.

    Args:
        objects: What it serves.
        certificate: Files of a certificate and its key, with which it speaks TLS.
    """

    def __init__(
        self, objects: Mapping[str, bytes] | None = None, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.objects = dict(objects or {})
        self.requests: list[Request] = []
        self.wants_content_md5 = False  # whether DeleteObjects is refused without it
        self.weak_etags = False  # whether etags are W/"...", which by the standard no If-Match matches
        self.refuses: Callable[[str, str], bool] = refuse_nothing  # by method and name: what gets a 503
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._queued: dict[str, list[Fault]] = defaultdict(list)
        self._always: dict[str, Fault] = {}
        self._connections: list[socket.socket] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"faults": self}))
        self._http.daemon_threads = True
        self._scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        for connection in self._connections:  # connections that are kept alive would go on answering
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    @property
    def endpoint_url(self) -> str:
        """The address of the server."""
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}"

    def inject_faults(self, name: str, *faults: Fault) -> None:
        """Break the next requests for a name: one fault each, in this order.

        Args:
            name: "bucket/key"; or "bucket" for its listing, "bucket?delete" for its DeleteObjects.
            faults: What happens.
        """
        with self._lock:
            self._queued[name].extend(faults)

    def inject_lasting_fault(self, name: str, fault: Fault) -> None:
        """Break every request for `name` that no queued fault breaks."""
        with self._lock:
            self._always[name] = fault

    def serve_objects(self, objects: Mapping[str, bytes]) -> None:
        """Serve these objects from now on, without faults, and forget the requests so far."""
        with self._lock:
            self.objects = dict(objects)
            self.requests = []
            self.wants_content_md5 = self.weak_etags = False
            self.refuses = refuse_nothing
            self._queued.clear()
            self._always.clear()

    def take_fault(self, name: str) -> Fault | None:
        """Take the next fault for a request for `name`; None if it is to succeed."""
        with self._lock:
            queued = self._queued[name]
            return queued.pop(0) if queued else self._always.get(name)

    def register_connection(self, connection: socket.socket) -> int:
        """Remember a new connection; returns its number."""
        with self._lock:
            self._connections.append(connection)
            return len(self._connections)


class _Handler(BaseHTTPRequestHandler):
    faults: FaultServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = self.faults.register_connection(self.connection)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing: requests are recorded instead."""

    def do_PUT(self) -> None:  # noqa: N802
        content = self.rfile.read(int(self.headers["Content-Length"]))
        fault, request = self._begin()
        if fault is not None and fault.kind == "status":
            self._refuse(fault.status, fault.code, fault.headers)
            return
        self.faults.objects[request.name] = content
        self._answer(200, b"", request, None)

    def do_DELETE(self) -> None:  # noqa: N802
        fault, request = self._begin()
        if fault is not None:
            self._refuse(fault.status, fault.code, fault.headers)
            return
        self.faults.objects.pop(request.name, None)
        self._answer(204, b"", request, None)

    def do_POST(self) -> None:  # noqa: N802
        """Answer DeleteObjects, the one POST that there is."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        fault, request = self._begin("?delete")
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        if fault is not None and fault.status != 200:
            self._refuse(fault.status, fault.code, fault.headers)
        elif self.faults.wants_content_md5 and self.headers.get("Content-MD5") != digest:
            self._refuse(400, "InvalidRequest")
        else:
            keys = [unescape(key) for key in re.findall("<Key>(.*?)</Key>", content.decode())]
            errors = ""
            for key in keys:
                if fault is None:
                    self.faults.objects.pop(f"{request.name.removesuffix('?delete')}/{key}", None)
                else:
                    errors += f"<Error><Key>{escape(key)}</Key><Code>{fault.code}</Code></Error>"
            self._answer(200, f"<DeleteResult>{errors}</DeleteResult>".encode(), request, None)

    def do_HEAD(self) -> None:  # noqa: N802
        self._serve()

    def do_GET(self) -> None:  # noqa: N802
        self._serve()

    def _begin(self, suffix: str = "") -> tuple[Fault | None, Request]:
        name = unquote(urlsplit(self.path).path).strip("/") + suffix
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, name, headers.get("range"), headers.get("if-match"), self.number, headers)
        self.faults.requests.append(request)
        if self.faults.refuses(self.command, name):
            return Fault("status"), request
        return self.faults.take_fault(name), request

    def _serve(self) -> None:
        fault, request = self._begin()
        content = self.faults.objects.get(request.name)
        if fault is not None and fault.replace is not None:
            self.faults.objects[request.name] = fault.replace
        if fault is not None and fault.kind == "status":
            self._refuse(fault.status, fault.code, fault.headers)
        elif "/" not in request.name:
            self._answer(200, self._listing(request.name), request, fault)
        elif content is None:
            self._refuse(404, "NoSuchKey")
        elif request.if_match not in (None, _etag(content)) or (request.if_match and self.faults.weak_etags):
            self._refuse(412, "PreconditionFailed")
        else:
            self._send_range(content, request, fault)

    def _send_range(self, content: bytes, request: Request, fault: Fault | None) -> None:
        headers = {"ETag": self._etag(content)}
        if request.range is None:
            self._answer(200, content, request, fault, headers)
            return
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1, len(content))
        if start >= len(content):
            self._refuse(416, "InvalidRange")
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._answer(206, content[start:stop], request, fault, headers)

    def _answer(
        self, status: int, body: bytes, request: Request, fault: Fault | None, headers: Mapping[str, str] = {}
    ) -> None:
        self.send_response(status)
        lie = fault.after if fault is not None and fault.kind == "length" else 0
        for name, value in {**headers, "Content-Length": str(len(body) + lie)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        whole = body
        if fault is not None and fault.kind != "length":
            intact = body[: fault.after]
            body = intact + bytes(255 - b for b in body[fault.after :]) if fault.kind == "garbage" else intact
        request.sent = len(body)  # before it is sent, so that tests see it as soon as the client does
        self.wfile.write(body)
        if fault is not None and fault.kind == "trickle":
            self._trickle(whole[fault.after :])
        if fault is not None and fault.kind != "garbage":
            self._break_off(fault)

    def _trickle(self, rest: bytes) -> None:
        with suppress(OSError):  # the client has had enough
            for value in rest:
                self.wfile.write(bytes([value]))
                if self.faults.closing.wait(TRICKLE_SECONDS):
                    return

    def _break_off(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.kind == "stall":
            self.faults.closing.wait(STALL_SECONDS)
        if fault.kind == "reset":  # closing with a linger time of 0 sends RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            with suppress(OSError):  # the client has closed it already
                self.connection.shutdown(socket.SHUT_RDWR)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] = {}) -> None:
        body = f"<Error><Code>{code}</Code><Message>{HTTPStatus(status).phrase}</Message></Error>".encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/xml", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _etag(self, content: bytes) -> str:
        return ("W/" if self.faults.weak_etags else "") + _etag(content)

    def _listing(self, bucket: str) -> bytes:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        items = "".join(
            f"<Contents><Key>{escape(name.removeprefix(f'{bucket}/'))}</Key><Size>{len(content)}</Size>"
            f"<ETag>{escape(self._etag(content))}</ETag></Contents>"
            for name, content in sorted(self.faults.objects.items())
            if name.startswith(f"{bucket}/{prefix}")
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
