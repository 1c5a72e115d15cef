"""A stand-in for Ollama's server: what of its HTTP API a proxy can do well or badly, at the pace that its client sets.

It runs alone on the standard library, `python ollama_standin.py --listen 127.0.0.1:11436`, or listens where
OLLAMA_HOST says, as Ollama does. Like Ollama it answers 403 to public names while it is bound to loopback, goes on
generating until the client leaves, and checks the digest of a blob (which it does not keep).

The `options` of /api/generate and /api/chat that it knows:

    num_predict   tokens to generate; -1 (default): until the client leaves
    load          seconds before the first token (default 0); null: until POST /standin/token
    pace          seconds between two tokens (default 0.02); null: one for each POST /standin/token

GET /standin tells what it has counted and the last requests; with a query, `GET /standin?running=174`, as soon as
each of those counts is so. /hangup closes the connection without an answer, as a crash does. Its own /metrics is
what nobody may reach through the front.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import ipaddress
import json
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, NamedTuple, Optional
from urllib.parse import parse_qsl

VERSION = "0.33.0"
MODEL = "llama3.2:latest"
OWN_METRICS = "ollama_own_metrics 1\n"

_JSON = "application/json; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"
_CHUNK = 1 << 20
_COUNTS = (
    "connections",  # with at least one request of Ollama's API
    *("running", "finished", "disconnected", "tokens"),  # generations
    *("received_bytes", "blobs", "broken_uploads"),  # uploads
)


class Request(NamedTuple):
    """The head of a request; header names in lower case."""

    method: str
    target: str
    version: str
    headers: dict[str, str]


class Signal:
    """Wakes all who wait for the next time that it fires."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def fire(self) -> None:
        self.next.set()
        self.next = asyncio.Event()


class Connection:
    """A client's connection: reads requests, writes answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.request = Request("", "", "", {})

    async def read_request(self) -> Request:
        """The next request's head. Raises IncompleteReadError when there is none."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, version = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.request = Request(method, target, version, headers)
        return self.request

    @property
    def persistent(self) -> bool:
        """Whether another request may follow."""
        return (
            self.request.version == "HTTP/1.1"
            and self.request.headers.get("connection", "").lower() != "close"
        )

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body as it arrives. Raises IncompleteReadError when it breaks off."""
        headers = self.request.headers
        if headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() != "chunked":
            async for part in self._read(int(headers.get("content-length", 0))):
                yield part
            return
        while size := int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            async for part in self._read(size):
                yield part
            await self._reader.readuntil(b"\r\n")
        while await self._reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers

    async def _read(self, size: int) -> AsyncIterator[bytes]:
        while size:
            part = await self._reader.read(min(size, _CHUNK))
            if not part:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(part)
            yield part

    async def answer(self, status: int, body: str = "", kind: str = _JSON) -> None:
        """A whole answer."""
        encoded = body.encode()
        self._head(status, kind, f"Content-Length: {len(encoded)}")
        if self.request.method != "HEAD":
            self._writer.write(encoded)
        await self._writer.drain()

    async def answer_json(self, status: int, **fields: Any) -> None:
        """A whole answer, a JSON object."""
        await self.answer(status, json.dumps(fields))

    def begin_stream(self) -> None:
        """The head of an answer that write_line() goes on with, and end_stream() ends."""
        self._head(200, "application/x-ndjson", "Transfer-Encoding: chunked")

    async def write_line(self, **fields: Any) -> None:
        """A line of NDJSON, on its way at once."""
        line = json.dumps(fields).encode() + b"\n"
        self._writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        await self._writer.drain()

    async def end_stream(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def _head(self, status: int, kind: str, length: str) -> None:
        phrase = HTTPStatus(status).phrase
        head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\n{length}\r\n\r\n"
        self._writer.write(head.encode())

    async def wait_for_end(self) -> None:
        """Return when the client has closed the connection; it may not say anything more before that."""
        try:
            await self._reader.read(1)
        except ConnectionError:
            pass

    def close(self) -> None:
        self._writer.close()


class OllamaStandIn:
    """The server; construct it inside a running event loop."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._requests: deque[Request] = deque(maxlen=100)
        self._changed, self._token = Signal(), Signal()
        self._on_loopback = True

    async def listen(self, host: str, port: int) -> asyncio.base_events.Server:
        """Start to serve on an address."""
        server = await asyncio.start_server(self._serve, host, port, backlog=1024, limit=_CHUNK)
        address = server.sockets[0].getsockname()
        self._on_loopback = ipaddress.ip_address(address[0]).is_loopback
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"Listening on {shown}:{address[1]} (version {VERSION})", file=sys.stderr, flush=True)
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, known = Connection(reader, writer), False
        try:
            while True:
                request = await connection.read_request()
                if not request.target.startswith("/standin"):
                    self._requests.append(request)
                    self._count(connections=0 if known else 1)
                    known = True
                if request.target == "/hangup":
                    break
                await self._answer(connection, request)
                if not connection.persistent:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            connection.close()

    async def _answer(self, connection: Connection, request: Request) -> None:
        path, _, query = request.target.partition("?")
        if self._on_loopback and not _allowed(request.headers.get("host", "")):
            await connection.answer(403)
        elif path.startswith("/api/blobs/sha256:") and request.method == "POST":
            await self._take_blob(connection, path.rpartition(":")[2])
        else:
            body = b"".join([part async for part in connection.body()])
            await self._answer_small(connection, request.method, path, query, body)

    async def _answer_small(
        self, connection: Connection, method: str, path: str, query: str, body: bytes
    ) -> None:
        route = ("GET" if method == "HEAD" else method, path)
        if route == ("GET", "/"):
            await connection.answer(200, "Ollama is running", _TEXT)
        elif route == ("GET", "/api/version"):
            await connection.answer_json(200, version=VERSION)
        elif route == ("GET", "/api/ps"):
            await connection.answer_json(200, models=[_MODEL_IN_MEMORY])
        elif route == ("GET", "/api/tags"):
            await connection.answer_json(200, models=[_MODEL_ON_DISK])
        elif route == ("GET", "/metrics"):
            await connection.answer(200, OWN_METRICS, _TEXT)
        elif route in (("POST", "/api/generate"), ("POST", "/api/chat")):
            await self._generate(connection, json.loads(body), chat=path == "/api/chat")
        elif route == ("GET", "/standin"):
            await self._tell(connection, {name: int(value) for name, value in parse_qsl(query)})
        elif route == ("POST", "/standin/token"):
            self._token.fire()
            await connection.answer_json(200)
        else:
            await connection.answer(404, "404 page not found", _TEXT)

    async def _generate(self, connection: Connection, asked: dict[str, Any], chat: bool) -> None:
        self._count(running=1)
        left = asyncio.ensure_future(connection.wait_for_end())
        how = "disconnected"
        try:
            if await self._tokens(connection, asked, chat, left):
                how = "finished"
        finally:
            left.cancel()
            await asyncio.wait({left})  # else it would still be reading when the next request is
            self._count(running=-1, **{how: 1})

    async def _tokens(
        self, connection: Connection, asked: dict[str, Any], chat: bool, left: asyncio.Future[None]
    ) -> bool:
        """Generate and send; False when the client left before the end."""
        options = asked.get("options", {})
        wanted, stream = options.get("num_predict", -1), asked.get("stream", True)
        if not await self._pause(options.get("load", 0), self._token.next, left):
            return False
        if stream:
            connection.begin_stream()
        done = 0
        while done != wanted:
            # Taken before the client can see this token, and ask for the next.
            gate = self._token.next
            if stream:
                await connection.write_line(**_piece(f"{done} ", chat), done=False)
            done += 1
            self._count(tokens=1)
            if not await self._pause(options.get("pace", 0.02), gate, left):
                return False
        last = {"done": True, "done_reason": "stop", "eval_count": done}
        if stream:
            await connection.write_line(**_piece("", chat), **last)
            await connection.end_stream()
        else:
            text = "".join(f"{index} " for index in range(done))
            await connection.answer_json(200, **_piece(text, chat), **last)
        return True

    @staticmethod
    async def _pause(
        seconds: Optional[float], gate: asyncio.Event, left: asyncio.Future[None]
    ) -> bool:
        """Wait for the time or the gate; False when the client left meanwhile."""
        waiting = gate.wait() if seconds is None else asyncio.sleep(seconds)
        pause: asyncio.Future[Any] = asyncio.ensure_future(waiting)
        await asyncio.wait({pause, left}, return_when=asyncio.FIRST_COMPLETED)
        pause.cancel()
        return not left.done()

    async def _take_blob(self, connection: Connection, digest: str) -> None:
        found = hashlib.sha256()
        try:
            async for part in connection.body():
                found.update(part)
                self._count(received_bytes=len(part))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._count(broken_uploads=1)
            raise
        if found.hexdigest() != digest:
            error = f'digest mismatch, expected "sha256:{digest}", got "sha256:{found.hexdigest()}"'
            await connection.answer_json(400, error=error)
            return
        self._count(blobs=1)
        await connection.answer(201)

    async def _tell(self, connection: Connection, wanted: dict[str, int]) -> None:
        while not wanted.items() <= self._counts.items():
            await self._changed.next.wait()
        requests = [request._asdict() for request in self._requests]
        await connection.answer_json(200, **self._counts, requests=requests)

    def _count(self, **changes: int) -> None:
        for name, change in changes.items():
            self._counts[name] += change
        self._changed.fire()


_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "3.2B",
    "quantization_level": "Q4_K_M",
}
_MODEL = {
    "name": MODEL,
    "model": MODEL,
    "size": 3_825_819_519,
    "digest": "a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72",
    "details": _DETAILS,
}
_MODEL_ON_DISK = {**_MODEL, "modified_at": "2026-11-20T10:11:12.123456789+01:00"}
_MODEL_IN_MEMORY = {
    **_MODEL,
    "size_vram": 3_825_819_519,
    "expires_at": "2318-12-01T10:11:12.123456789+01:00",
    "context_length": 4096,
}


def _piece(text: str, chat: bool) -> dict[str, Any]:
    """The fields of a part of an answer that name the text."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    said = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
    return {"model": MODEL, "created_at": now, **said}


def _allowed(host: str) -> bool:
    """Whether Ollama answers to this Host header while it is bound to loopback (its allowedHostsMiddleware)."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        known = ("", "localhost", socket.gethostname().lower())
        return name in known or name.endswith((".localhost", ".local", ".internal"))
    # Python's is_private has more networks than Go's IsPrivate; an address of the host's own is left out.
    private = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
    return (
        address.is_loopback
        or address.is_unspecified
        or any(address in ipaddress.ip_network(network) for network in private)
    )


def address(text: str) -> tuple[str, int]:
    """Host and port from what OLLAMA_HOST may hold: HOST, HOST:PORT or :PORT, maybe after http://."""
    text = text.strip().rpartition("//")[2].rstrip("/")
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        host, port = text, "11434"
    return host.strip("[]") or "127.0.0.1", int(port)


async def serve(host: str, port: int) -> None:
    """Serve until ended by a signal."""
    server = await OllamaStandIn().listen(host, port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A stand-in for Ollama's server.")
    parser.add_argument("--listen", metavar="ADDR:PORT", help="default: what OLLAMA_HOST says")
    listen = parser.parse_args().listen or os.environ.get("OLLAMA_HOST", "")
    try:
        asyncio.run(serve(*address(listen)))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
