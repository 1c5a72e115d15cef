"""Polls many hosts at once, each exactly as an AIConnect-style balancer does. What asyncio is for is here alone.

A poll is one `GET <base URL>/metrics` of a Go client, and may take a few seconds from the look-up of
the name to the last byte. Everything that comes back is bounded: a host may be anybody's.
"""

from __future__ import annotations

import re
import socket

from .fleet_answer import Reading, decode
from .frozen import dataclass
from .ollama_url import OllamaUrl, parse_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from typing import Any, Optional, Union

    # getaddrinfo's family and socket address.
    SocketAddress = tuple[int, tuple[Any, ...]]
    Found = Union[tuple[SocketAddress, ...], OSError]

AGENT_PORT = 11435
MOST_BODY_BYTES = 4 << 20
# What a poll may need at a time: a socket for each of two address families.
FILES_PER_HOST = 2
_MOST_LINE, _MOST_HEADERS, _MOST_INTERIM = 1 << 16, 256, 5
_MOST_GZIP_MEMBERS = 16
# For how long Go's dialer tries one address family before it tries the other beside it.
_FALLBACK_SECONDS = 0.3
_STATUS_LINE = re.compile(rb"HTTP/(\d)\.(\d) +(\d{3})(?: .*)?", re.DOTALL)
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")


@dataclass(frozen=True)
class Target:
    """A host as the user wrote it, and the base URL that it stands for."""

    text: str
    url: OllamaUrl

    @property
    def request(self) -> bytes:
        """What Go's net/http sends for a GET without any header of its user's."""
        name, _, _ = self.url.host.partition("%")  # a zone means something on this host alone
        authority = str(OllamaUrl(name, self.url.port))[len("http://") :].removesuffix(":80")
        return (
            f"GET {self.url.path}/metrics HTTP/1.1\r\nHost: {authority}\r\n"
            "User-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n"
        ).encode("ascii")


@dataclass(frozen=True)
class Poll:
    """What came of a poll: a reading, or the error (a clause for a person) without one."""

    target: Target
    reading: Optional[Reading]
    error: str = ""


def parse_host(text: str) -> Target:
    """`host`, `host:port`, `[v6]:port` or an http URL. Raises ValueError with a clause for a person.

    Without a port a host is asked on the agent's, and a URL on http's own.
    """
    if text.lower().startswith("https:"):
        raise ValueError("https is not spoken here; give an http address, such as gpu1:11435")
    url = parse_url(text)
    if "://" not in text and url.port != parse_url(f"http://{text}").port:
        # The usual port depends on the scheme, and a port that is given does not.
        url = OllamaUrl(url.host, AGENT_PORT, url.path)
    return Target(text, url)


class Fleet:
    """Hosts to poll, time and again; to be closed."""

    def __init__(self, targets: Sequence[Target], timeout: float) -> None:
        import asyncio

        self._targets, self._timeout = tuple(targets), timeout
        self._loop = asyncio.new_event_loop()
        self._names = _Names(self._loop)

    def poll(self) -> list[Poll]:
        """Poll all hosts at once; in their order."""
        return self._loop.run_until_complete(self._poll_all())

    def close(self) -> None:
        """End it. What still looks up a name does so until it has it."""
        self._loop.close()

    async def _poll_all(self) -> list[Poll]:
        import asyncio

        polls = await asyncio.gather(*map(self._poll, self._targets))
        await asyncio.sleep(0)  # what was aborted is closed in the loop's next turn
        return polls

    async def _poll(self, target: Target) -> Poll:
        import asyncio

        conversation = _Conversation(target, self._names)
        try:
            body = await asyncio.wait_for(conversation.body(), self._timeout)
            return Poll(target, decode(body))
        except asyncio.TimeoutError:
            return Poll(target, None, f"{conversation.missing} within {self._timeout:g} s")
        except (OSError, EOFError, ValueError) as error:
            return Poll(target, None, _why(error, target))


class _Conversation:
    """One poll. `missing` says what it waits for."""

    def __init__(self, target: Target, names: _Names) -> None:
        self._target, self._names = target, names
        self.missing = "its name was not looked up"

    async def body(self) -> bytes:
        """The body of an answer with status 200. Raises OSError, EOFError and ValueError."""
        import asyncio

        url = self._target.url
        addresses = await self._names.addresses(url.host, url.port)
        self.missing = "no connection"
        connection = await _dial(addresses)
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=_MOST_LINE)
        except BaseException:
            connection.close()
            raise
        try:
            writer.write(self._target.request)
            self.missing = "connected, but no answer"
            return await self._answer(reader)
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        for _ in range(_MOST_INTERIM + 1):
            line = _STATUS_LINE.fullmatch(await _line(reader))
            self.missing = "no end of its answer"
            if line is None:
                raise ValueError("it does not answer in HTTP")
            old, status = (line[1], line[2]) < (b"1", b"1"), int(line[3])
            headers = await _headers(reader)
            if status == 101 or not 100 <= status < 200:
                break
        if 300 <= status < 400:
            raise ValueError(f"HTTP status {status}: give the address that it redirects to")
        if status != 200:
            raise ValueError(f"HTTP status {status}")
        body = await _framed(reader, headers, chunks_known=not old)
        gzipped = headers.get(b"content-encoding", b"").lower() == b"gzip"
        return _gunzip(body) if gzipped else body


# -- connections -------------------------------------------------------------------------------------------------------


class _Names:
    """Looks names up, each in a thread of its own: a resolver that hangs holds up no other name."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._under_way: dict[str, asyncio.Future[Found]] = {}

    async def addresses(self, host: str, port: int) -> tuple[SocketAddress, ...]:
        """Where a host can be connected to, the preferred address first. Raises OSError."""
        import asyncio

        try:
            found: Found = _addresses(host, socket.AI_NUMERICHOST)
        except OSError:
            future = self._under_way.get(host)
            if future is None:
                future = self._under_way[host] = self._loop.create_future()
                self._start(host, future)
            # Others wait for the same name, and the next poll may do so.
            found = await asyncio.shield(future)
        if isinstance(found, OSError):
            raise found
        return tuple((family, (address[0], port, *address[2:])) for family, address in found)

    def _start(self, host: str, future: asyncio.Future[Found]) -> None:
        # At its end Python waits for a threading.Thread that is no daemon, and for every thread of
        # an executor; for these it does not.
        import _thread

        def deliver(found: Found) -> None:
            del self._under_way[host]
            future.set_result(found)

        def look_up() -> None:
            found: Found
            try:
                found = _addresses(host, 0)
            except OSError as error:
                found = error
            try:
                self._loop.call_soon_threadsafe(deliver, found)
            except RuntimeError:
                pass  # nobody waits any more: the loop is closed

        try:
            _thread.start_new_thread(look_up, ())
        except RuntimeError as error:
            deliver(OSError(f"its name cannot be looked up: {error}"))


def _addresses(host: str, flags: int) -> tuple[SocketAddress, ...]:
    # As bytes: for a str Python loads its whole IDNA machinery. It is ASCII.
    found = socket.getaddrinfo(host.encode("ascii"), 0, type=socket.SOCK_STREAM, flags=flags)
    return tuple((family, address) for family, _, _, _, address in found)


async def _dial(addresses: Sequence[SocketAddress]) -> socket.socket:
    """A connection, made as Go's dialer does: the other family is tried, too, when the first one takes its time."""
    import asyncio

    first_family = addresses[0][0]
    groups = [
        [address for address in addresses if (address[0] == first_family) is same]
        for same in (True, False)
    ]
    tries = [asyncio.ensure_future(_connect(groups[0]))]
    winner = None
    try:
        await asyncio.wait(tries, timeout=_FALLBACK_SECONDS if groups[1] else None)
        if groups[1] and not (tries[0].done() and tries[0].exception() is None):
            tries.append(asyncio.ensure_future(_connect(groups[1])))
        pending = set(tries)
        while pending and winner is None:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            winner = next((one for one in done if one.exception() is None), None)
    finally:
        for one in tries:
            one.cancel()
        for result in await asyncio.gather(*tries, return_exceptions=True):
            if isinstance(result, socket.socket) and (
                winner is None or result is not winner.result()
            ):
                result.close()
    return (winner or tries[0]).result()


async def _connect(addresses: Sequence[SocketAddress]) -> socket.socket:
    """A connection to the first of these addresses that takes one. Raises the first one's OSError."""
    import asyncio

    first: Optional[OSError] = None
    for family, address in addresses:
        connection = None
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, address)
            return connection
        except OSError as error:
            first = first or error
            if connection is not None:
                connection.close()
        except BaseException:
            if connection is not None:
                connection.close()
            raise
    assert first is not None
    raise first


# -- HTTP --------------------------------------------------------------------------------------------------------------


async def _line(reader: asyncio.StreamReader) -> bytes:
    """A line without its end. Raises EOFError and, for one that is too long, ValueError."""
    try:
        line = await reader.readline()
    except ValueError:
        raise ValueError("it does not answer in HTTP: a line of it has no end") from None
    if not line.endswith(b"\n"):
        raise EOFError
    return line[:-1].removesuffix(b"\r")


async def _headers(reader: asyncio.StreamReader) -> dict[bytes, bytes]:
    """Values by lower-case name; those of a name that comes twice joined by commas."""
    headers: dict[bytes, bytes] = {}
    for _ in range(_MOST_HEADERS):
        line = await _line(reader)
        if not line:
            return headers
        name, colon, value = line.partition(b":")
        if not colon or not name.strip():
            raise ValueError("it does not answer in HTTP: a header has no name")
        name, value = name.lower(), value.strip()
        headers[name] = headers[name] + b"," + value if name in headers else value
    raise ValueError(f"its answer has more than {_MOST_HEADERS} headers")


async def _framed(
    reader: asyncio.StreamReader, headers: dict[bytes, bytes], chunks_known: bool
) -> bytes:
    """The body, whole."""
    coding = headers.get(b"transfer-encoding")
    if coding is not None and chunks_known:
        if coding.lower() != b"chunked":
            raise ValueError("its answer is encoded for transfer in a way that Go does not know")
        return await _chunks(reader)
    lengths = {length.strip() for length in headers.get(b"content-length", b"").split(b",")}
    if lengths == {b""}:
        body = bytearray()
        while piece := await reader.read(_MOST_LINE):
            body += piece
            _bounded(len(body))
        return bytes(body)
    length = lengths.pop()
    if lengths or not length.isdigit() or len(length) > 18:
        raise ValueError("its answer has a Content-Length that is no length")
    _bounded(int(length))
    return await reader.readexactly(int(length))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        size, _, _ = (await _line(reader)).partition(b";")
        size = size.strip()
        if not _SIZE.fullmatch(size):
            raise ValueError("a chunk of its answer has no size")
        if not int(size, 16):
            await _headers(reader)  # trailers
            return bytes(body)
        _bounded(len(body) + int(size, 16))
        body += await reader.readexactly(int(size, 16))
        if await _line(reader):
            raise ValueError("a chunk of its answer is longer than it says")


def _gunzip(body: bytes) -> bytes:
    import zlib

    text = b""
    for _ in range(_MOST_GZIP_MEMBERS):
        engine = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            text += engine.decompress(body, MOST_BODY_BYTES + 1 - len(text))
        except zlib.error:
            raise ValueError("its answer is no gzip, though it says so") from None
        _bounded(len(text))
        if not engine.eof:
            raise ValueError("its gzip has no end")
        body = engine.unused_data
        if not body.startswith(b"\x1f\x8b"):
            break
    return text


def _bounded(length: int) -> None:
    if length > MOST_BODY_BYTES:
        raise ValueError(f"its answer is longer than {MOST_BODY_BYTES >> 20} MB")


def _why(error: Exception, target: Target) -> str:
    """An error as a clause for a person."""
    if isinstance(error, EOFError):
        return "the connection was closed before the end of an answer"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on port {target.url.port} (refused)"
    if isinstance(error, ConnectionError):
        return "the connection broke before the end of an answer"
    if isinstance(error, socket.gaierror):
        return f"its name is not known ({error.strerror})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
