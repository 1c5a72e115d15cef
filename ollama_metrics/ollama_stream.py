"""One order to Ollama that it answers line by line, for as long as it gets on with it.

ollama_http.py reads a whole answer within one limit, as suits what is asked every five seconds. To
pull a model takes hours: here every line has a limit of its own. And this is for a person at a
terminal, who gets to read Ollama's own words of an error. The daemon never imports this: http.client
costs it megabytes.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import time

from . import __version__
from .errors import OllamaAnswer, OllamaDown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Callable, Optional

    from .ollama_url import OllamaUrl

_MOST_LINE_BYTES = 1 << 16
_MOST_ERROR_BYTES = 1 << 16
_MOST_WORDS = 300  # characters of an error, or of a status, that a person gets to read
_READ_BYTES = 1 << 14


def order(
    url: OllamaUrl,
    path: str,
    document: dict[str, Any],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """POST `document` to `path`: each line of the answer, a JSON object, as it comes.

    From connecting to the first line it may take `seconds`, and so long again to the next one that
    differs from the one before it. Raises OllamaDown where Ollama does not answer in time, or not to
    the end, and OllamaAnswer where its answer is an error, with Ollama's own words, or not Ollama's.
    """
    asked = f"{url}{path}"
    limit = _Limit(seconds, clock)
    try:
        connection = _connect(url, limit)
        # Both, and the answer first: one that is left to the end of the program complains there.
        answer = http.client.HTTPResponse(connection, method="POST")  # type: ignore[arg-type]
        try:
            connection.send(_request(url, path, json.dumps(document).encode("ascii")))
            answer.begin()
            if answer.status != 200:
                raise OllamaAnswer(
                    _words_of(answer.read(_MOST_ERROR_BYTES))
                    or f"{asked} answered {answer.status}",
                    answer.status,
                )
            yield from _documents(answer, asked, limit)
            return
        finally:
            answer.close()
            connection.close()
    except (socket.timeout, TimeoutError):  # two classes before Python 3.10
        why = f"nothing new within {seconds:g} s"
    except (http.client.IncompleteRead, http.client.RemoteDisconnected):
        why = "closed before the end of its answer"
    except http.client.HTTPException as error:
        raise OllamaAnswer(
            f"{asked} answered in something else than HTTP ({type(error).__name__})"
        ) from None
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else printable(str(error))
    raise OllamaDown(f"{asked}: {why}")


def printable(text: str) -> str:
    """What somebody else wrote, fit for a terminal: one line of some length, without control characters."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= _MOST_WORDS else f"{line[:_MOST_WORDS]}..."


class _Limit:
    """How long the next thing may take."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self.renew()

    def renew(self) -> None:
        """From now on."""
        self._until = self._clock() + self._seconds

    @property
    def left(self) -> float:
        """Seconds that are left. Raises socket.timeout where none are."""
        left = self._until - self._clock()
        if left <= 0:
            raise socket.timeout
        return left


class _Connection(io.RawIOBase):
    """A connection that is read within a limit, in the shape that http.client wants it."""

    def __init__(self, connected: socket.socket, limit: _Limit) -> None:
        self._socket, self._limit = connected, limit

    def makefile(self, *_: Any) -> io.BufferedReader:
        """What http.client reads from."""
        return io.BufferedReader(self, _READ_BYTES)

    def send(self, request: bytes) -> None:
        """Send all of it."""
        self._socket.settimeout(self._limit.left)
        self._socket.sendall(request)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive what is there, or wait for it."""
        self._socket.settimeout(self._limit.left)
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Close the connection, which is what ends a pull or a load that nobody waits for any more."""
        self._socket.close()
        super().close()


def _connect(url: OllamaUrl, limit: _Limit) -> _Connection:
    found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    for left, (family, kind, _, _, address) in zip(range(len(found), 0, -1), found):
        connected = socket.socket(family, kind)
        try:
            connected.settimeout(limit.left / left)  # each address has its share of the time
            connected.connect(address)
            return _Connection(connected, limit)
        except OSError:
            connected.close()
            if left == 1:
                raise
    raise OSError("the name has no address")


def _request(url: OllamaUrl, path: str, body: bytes) -> bytes:
    head = (
        f"POST {url.path}{path} HTTP/1.1\r\n"
        f"Host: {url.host_header}\r\n"
        f"User-Agent: ollama-metrics/{__version__}\r\n"
        "Connection: close\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def _documents(
    answer: http.client.HTTPResponse, asked: str, limit: _Limit
) -> Iterator[dict[str, Any]]:
    buffer, before = b"", b""
    while piece := answer.read1(_READ_BYTES):
        *lines, buffer = (buffer + piece).split(b"\n")
        if len(buffer) > _MOST_LINE_BYTES:
            raise OllamaAnswer(
                f"{asked} answered with a line of more than {_MOST_LINE_BYTES} bytes"
            )
        for line in lines:
            if line != before:  # Ollama repeats the last one while a download hangs
                limit.renew()
            before = line
            yield from _document(line, asked)
    yield from _document(buffer, asked)


def _document(line: bytes, asked: str) -> Iterator[dict[str, Any]]:
    if not line.strip():
        return
    found = _parsed(line)
    if found is None:
        raise OllamaAnswer(f"{asked} answered with what is no JSON object")
    if "error" in found:
        raise OllamaAnswer(printable(str(found["error"])) or f"{asked} answered an error")
    yield found


def _words_of(body: bytes) -> str:
    """What Ollama says in the body of an error; empty where it says nothing."""
    found = _parsed(body)
    error = found.get("error") if found is not None else None
    return printable(error) if isinstance(error, str) else ""


def _parsed(text: bytes) -> Optional[dict[str, Any]]:
    try:
        found = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
