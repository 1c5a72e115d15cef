"""An HTTP answer: a rendered page, or the refusal of a request, and the bytes that go over the wire."""

from __future__ import annotations

import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler


class Refused(Exception):
    """A request that is answered with an error of the client's; `headers` are added to the answer."""

    def __init__(
        self, status: int, sentence: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Answer:
    """A rendered page."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self, status: int, content_type: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.status, self.content_type, self.body, self.headers = (
            status,
            content_type,
            body,
            headers,
        )

    def wire(self, connection: bytes, head_only: bool) -> bytes:
        """The answer as it is sent; `connection` is the Connection header's line or nothing."""
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Date: {_http_date(time.time())}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "Vary: Accept",
            "X-Content-Type-Options: nosniff",
        ]
        lines += [f"{name}: {value}" for name, value in self.headers]
        head = "\r\n".join(lines).encode("ascii") + b"\r\n" + connection + b"\r\n"
        return head if head_only else head + self.body


def _http_date(timestamp: float) -> str:
    """RFC 9110's date; email.utils can do it too, but needs the datetime module for it."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(timestamp)
    names = BaseHTTPRequestHandler
    day_and_month = f"{names.weekdayname[weekday]}, {day:02d} {names.monthname[month]}"
    return f"{day_and_month} {year:04d} {hour:02d}:{minute:02d}:{second:02d} GMT"
