"""A request's head, judged by http.server's own handler: what it asks for, and whether the connection goes on."""

from __future__ import annotations

import io
import re
from http.server import BaseHTTPRequestHandler

from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

# A head larger than this is refused with 431, a body with 413: nothing that is asked here needs
# either.
LARGEST_HEAD = 16 * 1024
LARGEST_BODY = 16 * 1024
_END = re.compile(rb"\n\r?\n")


@dataclass(frozen=True)
class Request:
    """A parsed head.

    `error` is (status, sentence) when the head is refused. `keep_alive` tells whether the
    connection goes on after the answer; `http_1_0` that the client has to be told so. `body` tells
    that a body follows.
    """

    method: str = ""
    target: str = ""
    accept: Optional[str] = None
    keep_alive: bool = False
    http_1_0: bool = False
    body: bool = False
    error: Optional[tuple[int, str]] = None


def split_head(data: bytes) -> tuple[Optional[bytes], bytes]:
    """The first complete head in `data`, with its empty line, and what follows it; (None, data) when there is none.

    Lines end in CRLF, or in LF alone as RFC 9112, section 2.2, lets a server accept.
    """
    end = _END.search(data)
    return (data[: end.end()], data[end.end() :]) if end is not None else (None, data)


class _Judge(BaseHTTPRequestHandler):
    """BaseHTTPRequestHandler's parsing without its socket: it reads a head from memory and sends nothing."""

    protocol_version = "HTTP/1.1"

    def __init__(self, head: bytes) -> None:
        self.refusal: Optional[tuple[int, str]] = None
        self.rfile = io.BufferedReader(io.BytesIO(head))
        self.raw_requestline = self.rfile.readline(LARGEST_HEAD + 1)
        self.command = ""
        self.accepted = self.parse_request()

    def send_error(
        self, code: int, message: Optional[str] = None, explain: Optional[str] = None
    ) -> None:
        """Keep what the base class wants to refuse the request with."""
        self.refusal = (int(code), str(message or explain or "the request cannot be read"))

    def handle_expect_100(self) -> bool:
        """No interim answer: the final one comes at once, whatever the body."""
        return True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a client's mistakes are counted, not written down."""


def parse(head: bytes) -> Request:
    """Judge a complete head (`split_head`'s); never raises."""
    judge = _Judge(head)

    def refused(status: int, sentence: str) -> Request:
        # What follows such a head cannot be told apart from a body.
        return Request(method=judge.command or "", body=True, error=(status, sentence))

    if not judge.accepted:
        code, text = judge.refusal or (400, "an empty request")
        # The words of the base class quote what the client sent, which is for nobody to see again.
        return refused(
            code, "the request line or its headers cannot be read" if code == 400 else text
        )
    if judge.request_version == "HTTP/0.9":
        return refused(400, "the request line has no HTTP version")
    headers = judge.headers
    http_1_0 = judge.request_version == "HTTP/1.0"
    hosts = len(headers.get_all("Host", []))
    if hosts > 1 or not (hosts or http_1_0):
        return refused(400, "an HTTP/1.1 request needs a Host header, and one only")
    lengths = {value.strip() for value in headers.get_all("Content-Length", [])}
    body = bool(lengths - {"0"}) or "Transfer-Encoding" in headers
    if len(lengths) > 1 or not all(length.isascii() and length.isdigit() for length in lengths):
        return refused(400, "the Content-Length is not one number")
    if any(len(length) > 12 or int(length) > LARGEST_BODY for length in lengths):
        return refused(413, f"a body may not be larger than {LARGEST_BODY} bytes")
    accept = headers.get_all("Accept")
    return Request(
        method=judge.command,
        target=_origin_form(judge.path),
        accept=",".join(accept) if accept else None,
        keep_alive=not judge.close_connection and not body,
        http_1_0=http_1_0,
        body=body,
    )


def _origin_form(target: str) -> str:
    """The path and query of a target, which clients of a proxy send with scheme and host before it.

    Source: RFC 9112, section 3.2.2, which makes every server accept that form.
    """
    if target[:7].lower() == "http://":
        _, slash, path = target[7:].partition("/")
        return slash + path or "/"
    return target
