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

What is loaded is set with POST /standin/models, a list of entries for /api/ps. An entry's key `weights` is not shown
there: it is the digest, 64 hexadecimal digits, of the blob that POST /api/show names in the model's `modelfile`.

POST /standin/library {NAME: {...}} says which models there are, by their whole names. Then another one is answered
with 404, what is not in memory is loaded first, and it is kept for `keep_alive` or five minutes; a request for
/api/generate or /api/chat that has no more than a model (and `keep_alive`) only loads it. Without a library every name
will do, and there is neither /api/pull nor /api/embed. Of a model:

    size       bytes (default: those of llama3.2)
    here       whether it is on disk (default true); else /api/pull brings it
    load       seconds until it is in memory (default 0)
    pull       seconds that a pull takes (default 0); null: a piece of it for each POST /standin/token
    pace       for the option that has this name
    tokens     for the option `num_predict`
    embedding  whether it only embeds (default false)

POST /standin/fault {"path": "/api/ps", "kind": KIND, "times": N} breaks what is asked for at that path ("*": at every
path but its own controls) N times, or until it is mended with the kind null:

    status    answers `status`, with {"error": ...} or what is given as for `body`
    body      answers 200 with `body`, or with the bytes of `base64`
    hang      never answers
    trickle   answers a byte each 50 ms, forever
    huge      answers 10 MB of JSON
    close     closes the connection without an answer
    redirect  answers 302 to `location` (default /api/version)

With `--llama-server ADDR:PORT` it has a second listener that answers as the runner of a loaded model does: /health and
/slots, set with POST /standin/slots {"busy": 1, "total": 4} at either of the two. With `--access-log` it writes
Ollama's line for each answered request.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import ipaddress
import json
import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import Any, NamedTuple, Optional, Union
from urllib.parse import parse_qsl

VERSION = "0.33.0"
MODEL = "llama3.2:latest"
OWN_METRICS = "ollama_own_metrics 1\n"
WEIGHTS = "dde5aa3fc5ffc17176b5e8bdc82f587b24b2678c6c66101bf7da77af9f7ccdff"  # of MODEL
PROMPT = "A private prompt."  # what a system prompt or a slot holds: nobody may repeat it

_JSON = "application/json; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"
_CHUNK = 1 << 20
_COUNTS = (
    "connections",  # with at least one request of Ollama's API
    *("running", "finished", "disconnected", "tokens"),  # generations
    *("received_bytes", "blobs", "broken_uploads"),  # uploads
    *("loads", "pulls"),  # of models, begun
)
_KEPT_SECONDS = 300.0  # OLLAMA_KEEP_ALIVE's default
_PULL_PIECES = 20


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
        self.status = 0  # of the answer that was begun last; 0: none yet
        self.began = 0.0  # monotonic seconds

    @property
    def peer(self) -> str:
        """The client's address."""
        return str(self._writer.get_extra_info("peername")[0])

    async def read_request(self) -> Request:
        """The next request's head. Raises IncompleteReadError when there is none."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.status, self.began = 0, time.monotonic()
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

    async def answer(self, status: int, body: Union[str, bytes] = "", kind: str = _JSON) -> None:
        """A whole answer."""
        encoded = body.encode() if isinstance(body, str) else body
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

    async def redirect(self, location: str) -> None:
        """An answer that sends the client elsewhere."""
        self._head(302, _TEXT, f"Location: {location}\r\nContent-Length: 0")
        await self._writer.drain()

    async def trickle(self) -> None:
        """An answer that goes on until the client leaves; each byte of it could belong to a document."""
        self._head(200, _JSON, "Transfer-Encoding: chunked")
        while not self._writer.is_closing():
            self._writer.write(b"1\r\n \r\n")
            await self._writer.drain()
            await asyncio.sleep(0.05)

    def _head(self, status: int, kind: str, length: str) -> None:
        self.status = status
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


@dataclass
class Fault:
    """What goes wrong at one path; `times` is how often it still will, None: until it is mended."""

    kind: str
    times: Optional[int]
    more: dict[str, Any]


class Faults:
    """What is broken: the servers of a process have them in common."""

    def __init__(self) -> None:
        self._of: dict[str, Fault] = {}

    def set(self, path: str, kind: Optional[str], times: Optional[int] = None, **more: Any) -> None:
        """Break what is asked for at `path`, or mend it."""
        self._of.pop(path, None)
        if kind is not None:
            self._of[path] = Fault(kind, times, more)

    def at(self, path: str) -> bool:
        """Whether something is broken at `path`."""
        return path in self._of or "*" in self._of

    async def happen(self, connection: Connection, path: str) -> bool:
        """Let what is broken at `path` happen; whether the connection goes on."""
        key = path if path in self._of else "*"
        fault = self._of[key]
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                del self._of[key]
        await self._happen(connection, fault.kind, fault.more)
        return fault.kind not in ("hang", "trickle", "close")

    @staticmethod
    async def _happen(connection: Connection, kind: str, more: dict[str, Any]) -> None:
        if kind in ("status", "body"):
            body = more.get("body", json.dumps({"error": f"broken on purpose: {PROMPT}"}))
            if "base64" in more:
                body = base64.b64decode(more["base64"])
            await connection.answer(more.get("status", 200), body)
        elif kind == "hang":
            await connection.wait_for_end()
        elif kind == "trickle":
            await connection.trickle()
        elif kind == "huge":
            await connection.answer(200, json.dumps({"models": [], "padding": "x" * 10_000_000}))
        elif kind == "redirect":
            await connection.redirect(more.get("location", "/api/version"))
        else:
            assert kind == "close", kind


class Slots:
    """What the runners of a process work on."""

    busy, total = 0, 1


class LlamaServerStandIn:
    """The server of a loaded model, as far as it tells of itself; construct it inside a running event loop."""

    def __init__(self, slots: Slots, faults: Faults) -> None:
        self._slots, self._faults = slots, faults

    async def listen(self, host: str, port: int) -> asyncio.base_events.Server:
        """Start to serve on an address."""
        server = await asyncio.start_server(self._serve, host, port)
        address = server.sockets[0].getsockname()
        print(f"llama-server listens on {address[0]}:{address[1]}", file=sys.stderr, flush=True)
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            while True:
                request = await connection.read_request()
                body = b"".join([part async for part in connection.body()])
                path, goes_on = request.target, True
                if not path.startswith("/standin") and self._faults.at(path):
                    goes_on = await self._faults.happen(connection, path)
                else:
                    await self._answer(connection, path, body)
                if not goes_on or not connection.persistent:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            connection.close()

    async def _answer(self, connection: Connection, path: str, body: bytes) -> None:
        if path == "/health":
            await connection.answer(200, json.dumps({"status": "ok"}))
        elif path == "/slots":
            slots = [_slot(index, index < self._slots.busy) for index in range(self._slots.total)]
            await connection.answer(200, json.dumps(slots))
        elif path == "/standin/slots":
            asked = json.loads(body)
            self._slots.busy, self._slots.total = asked["busy"], asked["total"]
            await connection.answer_json(200)
        else:
            error = {"code": 404, "message": "File Not Found", "type": "not_found_error"}
            await connection.answer_json(404, error=error)


def _slot(index: int, busy: bool) -> dict[str, Any]:
    """What llama-server tells of a slot; some versions tell the prompt, too."""
    told: dict[str, Any] = {"id": index, "n_ctx": 4096, "speculative": False, "is_processing": busy}
    if busy:
        told["id_task"] = index + 100
        told["params"] = {"temperature": 0.8, "stop": ["</s>"], "is_processing": not busy}
        told["prompt"] = PROMPT
        told["next_token"] = [{"has_next_token": True, "n_decoded": 12}]
    return told


class OllamaStandIn:
    """The server; construct it inside a running event loop."""

    def __init__(self, access_log: bool = False) -> None:
        self.slots, self.faults = Slots(), Faults()
        self._access_log = access_log
        self._models: list[Any] = [MODEL_IN_MEMORY]
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._requests: deque[Request] = deque(maxlen=100)
        self._changed, self._token = Signal(), Signal()
        self._on_loopback = True
        self._library: dict[str, dict[str, Any]] = {}
        self._until: dict[
            str, float
        ] = {}  # when what was loaded on request is unloaded, monotonic seconds
        self._loading: dict[str, asyncio.Task[None]] = {}

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
                goes_on = await self._answer(connection, request)
                self._log(connection)
                if not goes_on or not connection.persistent:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            connection.close()

    async def _answer(self, connection: Connection, request: Request) -> bool:
        """Answer; whether the connection goes on."""
        path, _, query = request.target.partition("?")
        if self._on_loopback and not _allowed(request.headers.get("host", "")):
            await connection.answer(403)
            return True
        if not path.startswith("/standin") and self.faults.at(path):
            async for _ in connection.body():
                pass
            return await self.faults.happen(connection, path)
        if path.startswith("/api/blobs/sha256:") and request.method == "POST":
            await self._take_blob(connection, path.rpartition(":")[2])
        else:
            body = b"".join([part async for part in connection.body()])
            await self._answer_small(connection, request.method, path, query, body)
        return True

    def _log(self, connection: Connection) -> None:
        """Ollama's line of an answered request."""
        request = connection.request
        if not self._access_log or not connection.status or request.target.startswith("/standin"):
            return
        when = datetime.now().strftime("%Y/%m/%d - %H:%M:%S")
        took = go_duration(time.monotonic() - connection.began)
        what = f'{request.method:<7}  "{request.target}"'
        line = f"[GIN] {when} | {connection.status:3} | {took:>13} | {connection.peer:>15} | {what}"
        print(line, file=sys.stderr, flush=True)

    async def _answer_small(
        self, connection: Connection, method: str, path: str, query: str, body: bytes
    ) -> None:
        route = ("GET" if method == "HEAD" else method, path)
        if route == ("GET", "/"):
            await connection.answer(200, "Ollama is running", _TEXT)
        elif route == ("GET", "/api/version"):
            await connection.answer_json(200, version=VERSION)
        elif route == ("GET", "/api/ps"):
            self._unload()
            await connection.answer_json(200, models=[_shown(entry) for entry in self._models])
        elif route == ("POST", "/api/show"):
            await self._show(connection, json.loads(body))
        elif route == ("GET", "/api/tags"):
            here = [self._on_disk(name) for name, one in self._library.items() if _here(one)]
            await connection.answer_json(200, models=here if self._library else [_MODEL_ON_DISK])
        elif route == ("GET", "/metrics"):
            await connection.answer(200, OWN_METRICS, _TEXT)
        elif route in (("POST", "/api/generate"), ("POST", "/api/chat")):
            asked = json.loads(body)
            if await self._has(connection, asked.get("model"), path):
                if asked.keys() <= {"model", "keep_alive", "stream"} and asked.get("model"):
                    await self._load_only(connection, asked, chat=path == "/api/chat")
                else:
                    await self._generate(connection, asked, chat=path == "/api/chat")
        elif route == ("POST", "/api/embed") and self._library:
            await self._embed(connection, json.loads(body))
        elif route == ("POST", "/api/pull") and self._library:
            await self._pull(connection, json.loads(body))
        elif route == ("GET", "/standin"):
            await self._tell(connection, {name: int(value) for name, value in parse_qsl(query)})
        elif route == ("POST", "/standin/models"):
            self._models = json.loads(body)
            self._until.clear()
            await connection.answer_json(200)
        elif route == ("POST", "/standin/library"):
            self._library = json.loads(body)
            await connection.answer_json(200)
        elif route == ("POST", "/standin/slots"):
            asked = json.loads(body)
            self.slots.busy, self.slots.total = asked["busy"], asked["total"]
            await connection.answer_json(200)
        elif route == ("POST", "/standin/fault"):
            self.faults.set(**json.loads(body))
            await connection.answer_json(200)
        elif route == ("POST", "/standin/token"):
            self._token.fire()
            await connection.answer_json(200)
        else:
            await connection.answer(404, "404 page not found", _TEXT)

    async def _show(self, connection: Connection, asked: dict[str, Any]) -> None:
        name = asked.get("model")
        for entry in self._models:
            if isinstance(entry, dict) and entry.get("name") == name:
                await connection.answer_json(200, **_description(entry))
                return
        await connection.answer_json(404, error=f"model '{name}' not found")

    # -- models ------------------------------------------------------------------------------------

    def _on_disk(self, name: str) -> dict[str, Any]:
        """An entry of /api/tags."""
        size = self._library[name].get("size", _MODEL["size"])
        digest = hashlib.sha256(name.encode()).hexdigest()
        return {**_MODEL_ON_DISK, "name": name, "model": name, "size": size, "digest": digest}

    async def _has(self, connection: Connection, model: Any, path: str) -> bool:
        """Whether there is this model and it can do that; else it was answered why not."""
        if not self._library or model is None:
            return True
        entry = self._library.get(whole_name(model), {"here": False})
        if not _here(entry):
            await connection.answer_json(404, error=f"model '{model}' not found")
        elif entry.get("embedding") and path != "/api/embed":
            what = path.rpartition("/")[2]
            await connection.answer_json(400, error=f'"{model}" does not support {what}')
        else:
            return True
        return False

    async def _load(self, asked: dict[str, Any], left: Optional[asyncio.Future[None]]) -> bool:
        """Have what is asked for in memory, and keep it; False when the client left meanwhile."""
        if not asked.get("model") or not self._library:
            return True
        name = whole_name(asked["model"])
        self._unload()
        if name not in self._in_memory():
            if name not in self._loading:
                self._loading[name] = asyncio.ensure_future(self._bring(name))
            waiting = {self._loading[name], *([left] if left is not None else [])}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if left is not None and left.done():
                return False
        self._keep(name, asked)
        return True

    async def _bring(self, name: str) -> None:
        self._count(loads=1)
        try:
            await asyncio.sleep(self._library[name].get("load", 0))
            size = self._library[name].get("size", _MODEL["size"])
            entry = {**MODEL_IN_MEMORY, **self._on_disk(name), "size": size, "size_vram": size}
            del entry["modified_at"]
            self._models = [*self._models, entry]
        finally:
            del self._loading[name]

    def _in_memory(self) -> list[str]:
        return [entry["name"] for entry in self._models if isinstance(entry, dict)]

    def _keep(self, name: str, asked: dict[str, Any]) -> None:
        seconds = _go_seconds(asked.get("keep_alive", _KEPT_SECONDS))
        self._until[name] = time.monotonic() + seconds if seconds >= 0 else float("inf")
        for entry in self._models:
            if isinstance(entry, dict) and entry["name"] == name and seconds >= 0:
                end = datetime.now(timezone.utc) + timedelta(seconds=seconds)
                entry["expires_at"] = end.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            elif isinstance(entry, dict) and entry["name"] == name:
                entry["expires_at"] = MODEL_IN_MEMORY["expires_at"]

    def _unload(self) -> None:
        """Forget what nobody has asked for in its time."""
        over = [name for name, until in self._until.items() if until <= time.monotonic()]
        if over and not self._counts["running"]:
            for name in over:
                del self._until[name]
            self._models = [
                entry
                for entry in self._models
                if not (isinstance(entry, dict) and entry["name"] in over)
            ]

    async def _load_only(self, connection: Connection, asked: dict[str, Any], chat: bool) -> None:
        name = whole_name(asked["model"])
        if _go_seconds(asked.get("keep_alive", _KEPT_SECONDS)) == 0:
            self._until[name], reason = time.monotonic(), "unload"
            self._unload()
        else:
            await self._load(asked, None)
            reason = "load"
        done = _piece("", chat, asked["model"])
        await connection.answer_json(200, **done, done=True, done_reason=reason)

    async def _embed(self, connection: Connection, asked: dict[str, Any]) -> None:
        if not await self._has(connection, asked.get("model"), "/api/embed"):
            return
        began = time.monotonic()
        await self._load(asked, None)
        took = _nanoseconds(total_duration=time.monotonic() - began)
        model = asked.get("model", MODEL)
        await connection.answer_json(200, model=model, embeddings=[[0.25, -0.5]], **took)

    async def _pull(self, connection: Connection, asked: dict[str, Any]) -> None:
        name = whole_name(str(asked.get("model") or asked.get("name")))
        entry = self._library.get(name)
        self._count(pulls=1)
        connection.begin_stream()
        await connection.write_line(status="pulling manifest")
        if entry is None:
            await connection.write_line(error="pull model manifest: file does not exist")
            await connection.end_stream()
            return
        size, digest = entry.get("size", _MODEL["size"]), hashlib.sha256(name.encode()).hexdigest()
        layer = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size}
        pieces = 0 if _here(entry) else _PULL_PIECES
        for piece in range(pieces):
            done = {"completed": size * piece // pieces} if piece else {}
            gate, seconds = self._token.next, entry.get("pull", 0)
            await connection.write_line(**layer, **done)
            await (gate.wait() if seconds is None else asyncio.sleep(seconds / pieces))
        await connection.write_line(**layer, completed=size)
        entry["here"] = True
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            await connection.write_line(status=status)
        await connection.end_stream()

    # -- generating --------------------------------------------------------------------------------

    async def _generate(self, connection: Connection, asked: dict[str, Any], chat: bool) -> None:
        self._count(running=1)
        left = asyncio.ensure_future(connection.wait_for_end())
        how = "disconnected"
        try:
            if await self._tokens(connection, asked, chat, left):
                how = "finished"
            elif not connection.status:
                connection.status = 499  # nobody gets it, and it is logged
        finally:
            left.cancel()
            await asyncio.wait({left})  # else it would still be reading when the next request is
            self._count(running=-1, **{how: 1})

    async def _tokens(
        self, connection: Connection, asked: dict[str, Any], chat: bool, left: asyncio.Future[None]
    ) -> bool:
        """Generate and send; False when the client left before the end."""
        known = self._library.get(whole_name(str(asked.get("model"))), {})
        options = {"num_predict": known.get("tokens", -1), "pace": known.get("pace", 0.02)}
        options.update(asked.get("options", {}))
        model, began = asked.get("model", MODEL), time.monotonic()
        wanted, stream = options["num_predict"], asked.get("stream", True)
        if not await self._load(asked, left):
            return False
        if not await self._pause(options.get("load", 0), self._token.next, left):
            return False
        loaded = time.monotonic()
        if stream:
            connection.begin_stream()
        done = 0
        while done != wanted:
            # Taken before the client can see this token, and ask for the next.
            gate = self._token.next
            if stream:
                await connection.write_line(**_piece(f"{done} ", chat, model), done=False)
            done += 1
            self._count(tokens=1)
            if not await self._pause(options["pace"], gate, left):
                return False
        ended = time.monotonic()
        last = {
            "done": True,
            "done_reason": "stop",
            "eval_count": done,
            "prompt_eval_count": 11,
            **_nanoseconds(
                total_duration=ended - began,
                load_duration=loaded - began,
                prompt_eval_duration=0.001,
                eval_duration=ended - loaded,
            ),
        }
        if stream:
            await connection.write_line(**_piece("", chat, model), **last)
            await connection.end_stream()
        else:
            text = "".join(f"{index} " for index in range(done))
            await connection.answer_json(200, **_piece(text, chat, model), **last)
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
MODEL_IN_MEMORY: dict[str, Any] = {
    **_MODEL,
    "size_vram": 3_825_819_519,
    "expires_at": "2318-12-01T10:11:12.123456789+01:00",
    "context_length": 4096,
}


def _shown(entry: Any) -> Any:
    """An entry of /api/ps as it is answered."""
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if key != "weights"}


def _description(entry: dict[str, Any]) -> dict[str, Any]:
    """What /api/show answers of a model."""
    blobs = "/usr/share/ollama/.ollama/models/blobs"
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {entry['name']}",
        "",
        f"FROM {blobs}/sha256-{entry.get('weights', WEIGHTS)}",
        f'SYSTEM """{PROMPT}"""',
        "PARAMETER stop <|eot_id|>",
        "",
    ]
    return {
        "license": "a license",
        "modelfile": "\n".join(lines),
        "parameters": "stop    <|eot_id|>",
        "template": "{{ .Prompt }}",
        "system": PROMPT,
        "details": entry.get("details"),
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
        "capabilities": ["completion"],
        "modified_at": _MODEL_ON_DISK["modified_at"],
    }


def go_duration(seconds: float) -> str:
    """A duration as Go prints it, above a minute to the second as in Ollama's log: 812.4µs, 35.1ms, 2m3s."""
    nanoseconds = round(seconds * 1e9)
    if nanoseconds >= 60 * 10**9:
        minutes, rest = divmod(nanoseconds // 10**9, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size:
            whole, rest = divmod(nanoseconds, size)
            digits = str(size + rest)[1:].rstrip("0")
            return f"{whole}.{digits}{unit}" if digits else f"{whole}{unit}"
    return f"{nanoseconds}ns" if nanoseconds else "0s"


def whole_name(model: str) -> str:
    """A model's name with its tag."""
    return model if ":" in model else f"{model}:latest"


def _here(entry: dict[str, Any]) -> bool:
    """Whether a model of the library is on disk."""
    return bool(entry.get("here", True))


def _nanoseconds(**seconds: float) -> dict[str, int]:
    """Durations as Ollama answers them: what is zero is left out."""
    return {name: round(one * 1e9) for name, one in seconds.items() if round(one * 1e9)}


def _go_seconds(duration: Union[str, float]) -> float:
    """Seconds of a `keep_alive`: a number of them, or a duration as Go reads it, such as 1h30m."""
    if not isinstance(duration, str):
        return float(duration)
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    parts = re.findall(r"([0-9.]+)(h|ms|m|s|us|ns)", duration)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    return -seconds if duration.startswith("-") else seconds


def _piece(text: str, chat: bool, model: str) -> dict[str, Any]:
    """The fields of a part of an answer that name the text."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    said = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
    return {"model": model, "created_at": now, **said}


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


async def serve(
    listen: tuple[str, int], llama_server: Optional[tuple[str, int]], access_log: bool
) -> None:
    """Serve until ended by a signal."""
    stand_in = OllamaStandIn(access_log)
    server = await stand_in.listen(*listen)
    if llama_server is not None:
        runner = LlamaServerStandIn(stand_in.slots, stand_in.faults)
        # Held here, for else it would be collected.
        server_of_runner = await runner.listen(*llama_server)
        await server_of_runner.start_serving()
    async with server:
        await server.serve_forever()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A stand-in for Ollama's server.")
    parser.add_argument("--listen", metavar="ADDR:PORT", help="default: what OLLAMA_HOST says")
    parser.add_argument("--llama-server", metavar="ADDR:PORT", help="listen as a runner, too")
    parser.add_argument("--access-log", action="store_true", help="write Ollama's access log")
    options = parser.parse_args()
    listen = address(options.listen or os.environ.get("OLLAMA_HOST", ""))
    llama_server = address(options.llama_server) if options.llama_server else None
    try:
        asyncio.run(serve(listen, llama_server, options.access_log))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
