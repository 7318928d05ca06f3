"""The explorer's server: on loopback alone, for whoever has its token, with one page and what that asks for.

A request is answered only if it names this machine as its host, so that no web page can reach the server under a name
of its own, and brings the token, which is in the address that the command prints and in no log.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socketserver
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from ali_dist.errors import InputError
from ali_dist.exploration import request_parts as parts
from ali_dist.exploration.explorer import Answer, Explorer
from ali_dist.exploration.page import Page
from ali_dist.exploration.pictures import MOST_BYTES

HOST = "127.0.0.1"
TOKEN_HEADER = "X-Ali-Token"
CONDITION_HEADER = "X-Ali-Condition"
MOST_JSON_BYTES = 1_000_000
_OWN_NAMES = (HOST, "localhost")
_QUIET_SECONDS = 30.0  # after which a connection that says nothing is closed
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class ExplorerServer(ThreadingHTTPServer):
    """Serves an explorer on 127.0.0.1 until it is closed.

    Args:
        explorer: What answers.
        page: The page.
        port: Where it listens; 0: any free port.

    Attributes:
        token: What every request has to bring.
        routes: The function that answers, by path; each is given the handler's body and its condition header.

    Raises:
        OSError: The port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, explorer: Explorer, page: Page, port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        self.page = page
        self.routes: dict[str, Callable[[bytes, str], Answer]] = _make_routes(explorer)
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        """Bind as any TCP server: HTTPServer would ask the name service for its name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        """The page's address, with the token."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that hang up; other errors are mistakes of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _make_routes(explorer: Explorer) -> dict[str, Callable[[bytes, str], Answer]]:
    model = explorer.model

    def walk(body: bytes, _: str) -> Answer:
        asked = parts.parse_json(body)
        first, last = (parts.parse_point(model, asked.get(key), key) for key in ("first", "last"))
        return explorer.walk(first, last, parts.parse_steps(asked), spherical=asked.get("spherical") is True)

    def encode(body: bytes, condition: str) -> Answer:
        asked = parts.parse_json(f'{{"c": {condition or "null"}}}'.encode())
        return explorer.encode_picture(body, parts.parse_condition(model, asked))

    return {
        "/decode": lambda body, _: explorer.decode(parts.parse_point(model, parts.parse_json(body))),
        "/draw": lambda body, _: explorer.draw(),
        "/encode": encode,
        "/image": lambda body, _: explorer.show_image(parts.parse_place(parts.parse_json(body))),
        "/neighbors": lambda body, _: explorer.neighbors(parts.parse_point(model, parts.parse_json(body))),
        "/walk": walk,
    }


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; the connection is closed after it."""

    server: ExplorerServer
    timeout = _QUIET_SECONDS
    server_version, sys_version = "ali_dist", ""

    def parse_request(self) -> bool:
        """Refuse a request of any method before anything is made of it."""
        if not super().parse_request():
            return False
        self._place, _, self._query = self.path.partition("?")
        if self._is_for_us() and self._has_token():
            return True
        self.close_connection = True
        self._send_json(HTTPStatus.FORBIDDEN, {"error": "Open the address that the command printed, token and all."})
        return False

    def do_GET(self) -> None:  # noqa: N802  (named by the library)
        if self._place != "/":
            return self._send_json(HTTPStatus.NOT_FOUND, {"error": "There is one page, at /."})
        page = self.server.page
        return self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.content, page.policy)

    def do_POST(self) -> None:  # noqa: N802  (named by the library)
        answer = self.server.routes.get(self._place)
        if answer is None:
            return self._send_json(HTTPStatus.NOT_FOUND, {"error": "There is nothing at this path."})
        most = MOST_BYTES if self._place == "/encode" else MOST_JSON_BYTES
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self._send_json(HTTPStatus.LENGTH_REQUIRED, {"error": "The request does not say its length."})
        if len(length) > 12 or int(length) > most:
            sentence = f"The request has {length[:12]} bytes, but at most {most:,} are taken: reduce it."
            return self._send_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": sentence})
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return self._send_json(HTTPStatus.BAD_REQUEST, {"error": "The request was cut short: send it again."})
        return self._send_json(*self._compute(answer, body))

    def _compute(self, answer: Callable[[bytes, str], Answer], body: bytes) -> tuple[HTTPStatus, Answer]:
        try:
            return HTTPStatus.OK, answer(body, self.headers.get(CONDITION_HEADER, ""))
        except InputError as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except FloatingPointError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
        except Exception:  # noqa: BLE001  (a mistake of ours: the page says so, and the terminal shows it)
            traceback.print_exc()
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "This went wrong; the terminal says where."}

    def _is_for_us(self) -> bool:
        """Whether the request names this machine; any port, because a tunnel may have another one."""
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and hosts[0].partition(":")[0].lower() in _OWN_NAMES

    def _has_token(self) -> bool:
        given = self.headers.get(TOKEN_HEADER) or parse_qs(self._query).get("token", [""])[0]
        return hmac.compare_digest(given.encode(errors="replace"), self.server.token.encode())

    def _send_json(self, status: HTTPStatus, answer: Answer) -> None:
        self._send(status, "application/json", json.dumps(answer).encode(), "default-src 'none'")

    def _send(self, status: HTTPStatus, kind: str, content: bytes, policy: str) -> None:
        self.send_response(status)
        headers = {**_HEADERS, "Content-Type": kind, "Content-Security-Policy": policy}
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  (named by the library)
        """Log nothing: addresses hold the token."""
