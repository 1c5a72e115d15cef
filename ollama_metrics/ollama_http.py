"""One question to Ollama over HTTP/1.1: bounded in time and in size, on a connection of its own.

http.client would cost the daemon megabytes. No connection is kept: one that stands would count as a
request in flight, and Ollama closes each after its answer. What a question or an answer means is not
known here. Source: RFC 9112.
"""

from __future__ import annotations

import os
import socket
import time

from . import __version__
from .errors import OllamaAnswer, OllamaDown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from .ollama_url import OllamaUrl

MOST_BYTES = 4 << 20
_MOST_HEAD_BYTES = 16 << 10  # of all heads of an answer, the interim ones included
_MOST_CHUNK_LINE_BYTES = 4096
_READ_BYTES = 1 << 14
_HEX = b"0123456789abcdefABCDEF"


def exchange(
    url: OllamaUrl,
    path: str,
    *,
    body: Optional[bytes] = None,
    seconds: float = 5.0,
    most_bytes: int = MOST_BYTES,
    clock: Callable[[], float] = time.monotonic,
    look_up: Callable[..., Any] = socket.getaddrinfo,
    opened: Optional[Callable[[socket.socket], None]] = None,
) -> tuple[bytes, float]:
    """GET `path`, or POST the JSON `body` to it: the body of a 200 answer, and the seconds that it took.

    `seconds` is the limit for the whole of it, from connecting to the last byte of at most
    `most_bytes`. Looking up a host that is a name comes before that: `look_up` takes what the system's
    resolver takes. Redirects are not followed. `opened` gets each socket before it connects and
    when it has: another thread that shuts it down ends the question, and so does an OSError of `opened`.

    Raises OllamaDown where nobody answers in full, OllamaAnswer for any answer that is no 200 or no
    HTTP. Their texts have the address and a reason, and no word of what was answered: it may be private.
    """
    asked = f"{url}{path}"
    head = (
        f"{'GET' if body is None else 'POST'} {url.path}{path} HTTP/1.1\r\n"
        f"Host: {url.host_header}\r\n"
        f"User-Agent: ollama-metrics/{__version__}\r\n"
        "Connection: close\r\n"
    )
    if body is None:
        request = f"{head}\r\n".encode("ascii")
    else:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode("ascii") + body
    try:
        addresses = _addresses(url, look_up)
        begun = clock()
        reader = _Reader(asked, begun + seconds, clock, opened)
        try:
            reader.connect(addresses)
            reader.send(request)
            return reader.answer(most_bytes), clock() - begun
        finally:
            reader.close()
    except (socket.timeout, TimeoutError):  # two classes before Python 3.10
        why = f"no answer within {round(seconds, 1):g} s"
    except OSError as error:
        why = _reason(error)
    # Raised here, and not while the other is handled: an exception keeps the one before it alive.
    raise OllamaDown(f"{asked}: {why}")


def _addresses(url: OllamaUrl, look_up: Callable[..., Any]) -> list[tuple[int, Any]]:
    """(family, address) of each address of the host. Raises OSError."""
    if ":" not in url.host and not url.host.strip("0123456789."):
        return [(socket.AF_INET, (url.host, url.port))]
    if ":" in url.host and "%" not in url.host:
        return [(socket.AF_INET6, (url.host, url.port))]
    # As bytes: for a text the codec for international names would be loaded, a megabyte.
    found = look_up(url.host.encode("ascii"), url.port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name cannot be looked up ({error.strerror})"
    if error.errno is None:
        return str(error)
    return os.strerror(error.errno).lower()


class _Reader:
    """A connection, and what was received on it and not yet read. Raises OSError besides what is named."""

    def __init__(
        self,
        asked: str,
        until: float,
        clock: Callable[[], float],
        opened: Optional[Callable[[socket.socket], None]],
    ) -> None:
        self._asked, self._until, self._clock, self._opened = asked, until, clock, opened
        self._socket: Optional[socket.socket] = None
        self._request = b""
        self._buffer = bytearray()

    def close(self) -> None:
        """Give the connection back, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def connect(self, addresses: list[tuple[int, Any]]) -> None:
        """Connect to the first address that takes it; each gets its share of the time."""
        for left, (family, address) in zip(range(len(addresses), 0, -1), addresses):
            self.close()
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM)
                if self._opened is not None:
                    self._opened(self._socket)
                self._socket.settimeout(self._left() / left)
                self._socket.connect(address)
                if self._opened is not None:  # before it connects it cannot be shut down
                    self._opened(self._socket)
                return
            except OSError:
                if left == 1:
                    raise

    def send(self, request: bytes) -> None:
        """Send it in one go: there is nothing for Nagle's algorithm to hold back."""
        assert self._socket is not None
        self._request = request
        self._socket.settimeout(self._left())
        self._socket.sendall(request)

    def answer(self, most: int) -> bytes:
        """The body of a 200 answer. Raises OllamaDown and OllamaAnswer."""
        head = self._head()
        status = self._status(head)
        most_head = _MOST_HEAD_BYTES
        while 100 <= status < 200:  # interim; the answer is still to come
            most_head -= len(head)
            head = self._head(most_head)
            status = self._status(head)
        if status != 200:
            hint = ": it refuses the Host header that the agent sends" if status == 403 else ""
            raise OllamaAnswer(f"{self._asked} answered {status}{hint}", status)
        coding = self._field(head, b"\r\ntransfer-encoding:")
        if coding == b"chunked":
            return self._chunks(most)
        if coding is not None:
            raise self._strange("in an encoding that it was not asked for")
        length = self._field(head, b"\r\ncontent-length:")
        if length is None:
            return self._rest(most)
        if not length.isdigit() or len(length) > 18:
            raise self._strange("with a length that is none")
        if int(length) > most:
            raise self._too_large(most)
        self._receive_until(int(length))
        return bytes(self._buffer[: int(length)])

    # -- the head ------------------------------------------------------------------------------------------------

    def _head(self, most: int = _MOST_HEAD_BYTES) -> bytes:
        """The next head, without the empty line at its end, in lower case."""
        buffer, searched = self._buffer, 0
        while (end := buffer.find(b"\r\n\r\n", searched)) < 0 and len(buffer) <= most:
            searched = max(0, len(buffer) - 3)
            if not self._receive():
                how = "before the end of its answer" if buffer else "without an answer"
                raise OllamaDown(f"{self._asked}: closed {how}")
            if not b"HTTP/1.".startswith(buffer[:7]):
                raise self._not_http()
        if not 0 <= end <= most:
            raise self._strange("with a head that does not end")
        head = bytes(buffer[:end]).lower()
        del buffer[: end + 4]
        return head

    def _status(self, head: bytes) -> int:
        """The number in the first line, `HTTP/1.1 200 OK`."""
        digits = head[9:12]
        if (
            not head.startswith(b"http/1.")
            or not head[7:8].isdigit()
            or not (len(digits) == 3 and digits.isdigit())
            or head[8:9] + head[12:13] not in (b"  ", b" \r", b" ")
        ):
            raise self._not_http()
        return int(digits)

    def _field(self, head: bytes, start: bytes) -> Optional[bytes]:
        """The value of the header field whose line begins so; None where there is none."""
        at = head.find(start)
        if at < 0:
            return None
        if head.find(start, at + 1) >= 0:
            raise self._strange("with two ends")
        at += len(start)
        end = head.find(b"\r\n", at)
        return head[at : end if end >= 0 else len(head)].strip()

    # -- the body ------------------------------------------------------------------------------------------------

    def _rest(self, most: int) -> bytes:
        """All until the connection is closed."""
        while len(self._buffer) <= most:
            if not self._receive():
                return bytes(self._buffer)
        raise self._too_large(most)

    def _chunks(self, most: int) -> bytes:
        """All until the chunk of size 0; what may follow it is of no use."""
        buffer, body, at = self._buffer, bytearray(), 0
        while True:
            while (end := buffer.find(b"\r\n", at)) < 0:
                if len(buffer) - at > _MOST_CHUNK_LINE_BYTES:
                    raise self._strange("in chunks without a size")
                self._receive_until(len(buffer) + 1)
            digits = bytes(buffer[at:end]).partition(b";")[0].strip()
            if not digits or digits.strip(_HEX) or len(digits) > 16:
                raise self._strange("in chunks without a size")
            size = int(digits, 16)
            if size == 0:
                return bytes(body)
            if len(body) + size > most:
                raise self._too_large(most)
            begin, at = end + 2, end + 2 + size + 2
            self._receive_until(at)
            if buffer[at - 2 : at] != b"\r\n":
                raise self._strange("in chunks that do not end")
            body += buffer[begin : at - 2]
            if at > _READ_BYTES:  # seldom: what is left is moved to the front
                del buffer[:at]
                at = 0

    # -- receiving -----------------------------------------------------------------------------------------------

    def _receive_until(self, size: int) -> None:
        while len(self._buffer) < size:
            if not self._receive():
                raise OllamaDown(f"{self._asked}: closed before the end of its answer")

    def _receive(self) -> bool:
        """Add what is there to the buffer; False where the other side has closed."""
        assert self._socket is not None
        self._socket.settimeout(self._left())
        piece = self._socket.recv(_READ_BYTES)
        self._buffer += piece
        return bool(piece)

    def _left(self) -> float:
        left = self._until - self._clock()
        if left <= 0:
            raise socket.timeout
        return left

    # -- what is wrong -------------------------------------------------------------------------------------------

    def _not_http(self) -> Exception:
        if self._request.startswith(self._buffer[:7]):
            # TCP connects a port to itself where nobody listens and chance picked it for our end.
            return OllamaDown(f"{self._asked}: connection refused")
        return self._strange("in something else than HTTP")

    def _strange(self, how: str) -> OllamaAnswer:
        return OllamaAnswer(f"{self._asked} answered {how}")

    def _too_large(self, most: int) -> OllamaAnswer:
        return OllamaAnswer(f"{self._asked} answered more than {most} bytes")
