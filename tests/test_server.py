"""The event loop over real sockets: what it answers, whom it gives up, how it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_metrics.answer import Answer, Refused
from ollama_metrics.listener import Listener, adopt, listen
from ollama_metrics.option_values import Address
from ollama_metrics.request import LARGEST_BODY, LARGEST_HEAD
from ollama_metrics.server import Server

PATIENCE = 10.0
JSON = "application/json; charset=utf-8"
LARGE = bytes(range(256)) * (4 << 12)  # 4 MiB, many times what the sockets below hold
SOME = LARGE[:8192]
# So little that most of LARGE is still the server's when a client does not read.
SOCKET_BUFFER = 256 << 10


class Toy:
    """An application of a few pages; it counts how often each is rendered."""

    def __init__(self) -> None:
        self.generation: object = object()
        self.rendered: Counter[str] = Counter()
        self.held, self.release = threading.Event(), threading.Event()

    def page(self, method: str, target: str, accept: Optional[str]) -> str:
        if target.partition("?")[0] not in ("/", "/echo", "/some", "/large", "/hold"):
            raise Refused(404, "there is nothing here")
        if method not in ("GET", "HEAD"):
            raise Refused(405, "only GET and HEAD", (("Allow", "GET, HEAD"),))
        return target

    def version(self) -> object:
        return self.generation

    def render(self, page: Any) -> Answer:
        self.rendered[page] += 1
        if page == "/hold":  # holds the loop, so that several events can wait for it together
            self.held.set()
            assert self.release.wait(PATIENCE)
        body = {"/large": LARGE, "/some": SOME}.get(page)
        if body is None:
            body = page.partition("?")[2].encode("latin-1")
        return Answer(200, "text/plain; charset=utf-8", body)

    @staticmethod
    def refusal(status: int, sentence: str) -> Answer:
        return Answer(status, JSON, json.dumps({"error": sentence, "status": status}).encode())


class Reply(NamedTuple):
    """One answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection; every answer that it reads is checked for what all of them must have."""

    def __init__(self, address: tuple[str, int], buffer: Optional[int] = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect(address)
        self.reader = self.socket.makefile("rb")

    def close(self) -> None:
        self.reader.close()
        self.socket.close()

    def reset(self) -> None:
        """Go away as a crashed client does: with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, request: bytes, head: bool = False) -> Reply:
        self.send(request)
        return self.reply(head)

    def reply(self, head: bool = False) -> Reply:
        """The next answer."""
        lines = []
        while (line := self.reader.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines or not line:
            raise EOFError(f"the connection ended after {lines}")
        return self._checked(lines, head)

    def _checked(self, lines: list[bytes], head: bool) -> Reply:
        status_line = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]+\r\n", lines[0])
        assert status_line is not None, lines
        status = int(status_line.group(1))
        fields = [line.decode("ascii").rstrip("\r\n").split(": ", 1) for line in lines[1:]]
        headers = dict(fields)
        assert len(headers) == len(fields), "a header twice"
        body = b"" if head else self.reader.read(int(headers["Content-Length"]))
        assert head or len(body) == int(headers["Content-Length"]), "cut off"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Vary"] == "Accept"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert parsedate_to_datetime(headers["Date"]).tzinfo is not None
        if 400 <= status < 500 or status == 505:
            assert headers["Content-Type"] == JSON
            if not head:
                assert json.loads(body)["status"] == status
                assert json.loads(body)["error"]
        return Reply(status, headers, body)

    def ended(self) -> bool:
        """Whether the server ends the connection now, cleanly and without another byte."""
        return self.reader.read(1) == b""

    def gone(self) -> bool:
        """Whether the server ends the connection now, in whatever way."""
        try:
            return self.ended()
        except ConnectionResetError:
            return True

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes from the server for so long, not even its end."""
        return not select.select([self.socket], [], [], seconds)[0]


class Reluctant(socket.socket):
    """A socket, listening or accepted, that takes nothing at every other attempt to send."""

    attempts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        return Reluctant(fileno=accepted.detach()), address

    def send(self, *args: Any) -> int:
        self.attempts += 1
        if self.attempts % 2:
            raise BlockingIOError
        return super().send(*args)


class Serving:
    """A real server in a thread, over a toy; a context manager."""

    def __init__(
        self,
        application: Any = None,
        addresses: int = 1,
        small: bool = False,
        reluctant: bool = False,
        listeners: Optional[list[Listener]] = None,
        connections: Iterable[int] = (),
        **limits: Any,
    ) -> None:
        self.application = Toy() if application is None else application
        self.listeners = listeners or listen([Address("127.0.0.1", 0)] * addresses)
        if small:
            for listener in self.listeners:  # what is accepted inherits it
                listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        if reluctant:
            for listener in self.listeners:
                listener.socket = Reluctant(fileno=listener.socket.detach())
        self.addresses = [
            (listener.server_name, listener.server_port) for listener in self.listeners
        ]
        self.server = Server(self.listeners, self.application, **limits)
        self.server.adopt(connections)
        self.counters = self.server.counters
        self.error: Optional[BaseException] = None
        self.paused = False
        self.thread = threading.Thread(target=self._run)
        self._clients = ExitStack()
        self._probe: Optional[Client] = None

    def _run(self) -> None:
        try:
            self.paused = self.server.run()
        except BaseException as error:
            self.error = error

    def begin_pause(self) -> None:
        """Have the loop pause, from within as a renewal does it."""
        self.server.on_wake = self.server.pause
        self.server.wake()

    def pause(self) -> None:
        """The same, and wait until it has."""
        self.begin_pause()
        self.wait_for_pause()

    def wait_for_pause(self) -> None:
        self.thread.join(PATIENCE)
        assert self.error is None, repr(self.error)
        assert self.paused
        self.server.on_wake = lambda: None

    def resume(self) -> None:
        """Let a server that has paused go on."""
        self.paused = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def leave(self) -> tuple[list[Listener], list[int]]:
        """Pause and end: what is left is sockets, as of a program that is executed anew."""
        self.pause()
        listeners = [adopt(os.dup(one.fileno()), one.name) for one in self.listeners]
        connections = [os.dup(fd) for fd in self.server.connections]
        self.end()
        return listeners, connections

    def __enter__(self) -> Serving:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.application, Toy):
            self.application.release.set()
        self._clients.close()  # first, for the end waits for clients that are being answered
        self.end()

    def end(self) -> float:
        """Stop and wait for the end of `run`; how many seconds that took."""
        begun = time.monotonic()
        self.server.stop()
        if self.paused:
            self.resume()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the loop does not end"
        assert self.error is None, repr(self.error)
        return time.monotonic() - begun

    def client(self, listener: int = 0, buffer: Optional[int] = None) -> Client:
        client = Client(self.addresses[listener], buffer)
        self._clients.callback(client.close)
        return client

    def ask(self, request: bytes, head: bool = False) -> Reply:
        """One request on a connection of its own."""
        client = Client(self.addresses[0])
        with contextlib.closing(client):
            return client.ask(request, head)

    def turn(self) -> None:
        """Have the loop turn: what had arrived before is dealt with afterwards."""
        if self._probe is None:
            self._probe = self.client()
        assert self._probe.ask(get("/echo?turn")).body == b"turn"

    def turn_until(self, condition: Callable[[], bool]) -> None:
        """Have the loop turn, and so show that it answers, until something has happened."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it does not happen"
            self.turn()


def get(target: str = "/", *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request, with a Host."""
    lines = [f"{method} {target} HTTP/{version}", "Host: loopback", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """Start servers (Serving's arguments); ended with the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Serving(*args, **kwargs))


@pytest.fixture(scope="module")
def shared() -> Iterator[Serving]:
    """A server for many tests that only ask."""
    with Serving() as serving:
        yield serving


@pytest.fixture
def client(shared: Serving) -> Iterator[Client]:
    """A connection to the shared server."""
    with contextlib.closing(Client(shared.addresses[0])) as client:
        yield client


# -- connections that go on, and those that do not -----------------------------------------------------------------


def test_an_http_1_1_connection_is_kept_alive(client: Client) -> None:
    """Request after request is answered on one connection, without a Connection header."""
    for number in range(20):
        reply = client.ask(get(f"/echo?{number}"))
        assert (reply.status, reply.body) == (200, b"%d" % number)
        assert "Connection" not in reply.headers


@pytest.mark.parametrize(
    ("version", "fields", "connection"),
    [
        ("1.0", [], "close"),
        ("1.0", ["Connection: keep-alive"], "keep-alive"),
        ("1.0", ["Connection: Keep-Alive"], "keep-alive"),
        ("1.1", [], None),
        ("1.1", ["Connection: close"], "close"),
        ("1.1", ["Connection: Close"], "close"),
        ("1.1", ["Connection: keep-alive"], None),
    ],
)
def test_a_connection_goes_on_as_the_client_asks(
    client: Client, version: str, fields: list[str], connection: Optional[str]
) -> None:
    """HTTP/1.0 closes unless it asks otherwise, 1.1 goes on unless it asks otherwise; the answer says which."""
    request = get("/echo?x", *fields, version=version)
    reply = client.ask(request)
    assert reply.body == b"x"
    assert reply.headers.get("Connection") == connection
    if connection == "close":
        assert client.ended()
    else:
        assert client.ask(request).body == b"x"


def test_pipelined_requests_are_answered_in_their_order(client: Client) -> None:
    """Hundreds of requests in one send get as many answers, in order."""
    client.send(b"".join(get(f"/echo?{number}") for number in range(600)))
    assert [client.reply().body for _ in range(600)] == [b"%d" % number for number in range(600)]


def test_pipelined_requests_for_large_answers_are_answered_in_their_order(
    serve: Callable[..., Serving],
) -> None:
    """What is pipelined behind an answer that is still being sent waits for it and is then answered."""
    client = serve(small=True).client()
    client.send(b"".join(get("/large") + get(f"/echo?{number}") for number in range(4)))
    for number in range(4):
        assert client.reply().body == LARGE
        assert client.reply().body == b"%d" % number


def test_a_pipeline_that_is_not_read_waits(serve: Callable[..., Serving]) -> None:
    """Answers that a client has not asked to read yet fill its buffers and then wait, all of them in order."""
    serving = serve(small=True)
    client = serving.client(buffer=SOCKET_BUFFER)
    client.send(get("/some") * 400)
    serving.turn()
    assert serving.counters.requests < 400
    for _ in range(400):
        assert client.reply().body == SOME


def test_an_answer_that_cannot_be_sent_at_all_waits(serve: Callable[..., Serving]) -> None:
    """Where the system takes no byte of an answer at first, it is sent later, in full and once."""
    client = serve(reluctant=True).client()
    for targets in (["/echo?a"], ["/large"], ["/echo?b"] * 3, ["/large", "/echo?c"]):
        client.send(b"".join(get(target) for target in targets))
        for target in targets:
            body = LARGE if target == "/large" else target[-1].encode()
            assert client.reply().body == body


def test_a_pipeline_ends_with_the_request_that_closes(client: Client) -> None:
    """What follows a request with `Connection: close` gets no answer."""
    client.send(get("/echo?1") + get("/echo?2", "Connection: close") + get("/echo?3"))
    assert [client.reply().body, client.reply().body] == [b"1", b"2"]
    assert client.ended()


def test_a_head_may_be_split_anywhere(shared: Serving, client: Client) -> None:
    """A head that arrives in two parts is answered, wherever it is cut."""
    request = get("/echo?split", "Accept: */*")
    for cut in range(1, len(request)):
        client.send(request[:cut])
        shared.turn()
        assert client.ask(request[cut:]).body == b"split"


def test_a_new_connections_head_may_be_split_anywhere(shared: Serving) -> None:
    """The same on a connection that has just been made, whose first bytes are read as it is accepted."""
    request = get("/echo?split")
    for cut in range(1, len(request)):
        with contextlib.closing(Client(shared.addresses[0])) as client:
            client.send(request[:cut])
            shared.turn()
            assert client.ask(request[cut:]).body == b"split"


def test_a_head_may_come_byte_by_byte(shared: Serving, client: Client) -> None:
    """Two requests in a row, one byte at a time, are answered once each."""
    for byte in get("/echo?1") + get("/echo?2"):
        client.send(bytes([byte]))
        shared.turn()
    assert [client.reply().body, client.reply().body] == [b"1", b"2"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /echo?x HTTP/1.1\nHost: x\n\n",
        b"GET /echo?x HTTP/1.1\r\nHost: x\n\r\n",
        b"GET /echo?x HTTP/1.1\nHost: x\r\n\n",
        b"\r\nGET /echo?x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\n\r\n\n\r\nGET /echo?x HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_line_ends_and_leading_empty_lines_are_taken_leniently(
    client: Client, request_bytes: bytes
) -> None:
    """LF alone ends a line, empty lines before a request are passed over: alone, in a row and pipelined."""
    assert client.ask(request_bytes).body == b"x"
    client.send(request_bytes * 3)
    assert [client.reply().body for _ in range(3)] == [b"x"] * 3


def test_an_empty_line_after_a_request_is_no_request(serve: Callable[..., Serving]) -> None:
    """A stray CRLF behind a request, or by itself, leaves the connection idle; it is not held to be a slow request."""
    serving = serve(request_seconds=0.1)
    together, alone = serving.client(), serving.client()
    assert together.ask(get("/echo?1") + b"\r\n").body == b"1"
    assert alone.ask(get("/echo?1")).body == b"1"
    alone.send(b"\r\n")
    assert together.silent(0.3)
    assert together.ask(get("/echo?2")).body == b"2"
    assert alone.ask(get("/echo?2")).body == b"2"


@pytest.mark.parametrize("target", ["/echo?body", "/nothing"])
def test_head_is_get_without_the_body(client: Client, target: str) -> None:
    """HEAD gets the status and headers of GET, Content-Length included, and no body; the connection goes on."""
    full = client.ask(get(target))
    head = client.ask(get(target, method="HEAD"), head=True)
    assert (head.status, head.headers) == (
        full.status,
        {**full.headers, "Date": head.headers["Date"]},
    )
    assert client.ask(get("/echo?next")).body == b"next"


def test_http_1_0_needs_no_host(client: Client) -> None:
    """An HTTP/1.0 request without Host is answered."""
    assert client.ask(b"GET /echo?x HTTP/1.0\r\n\r\n").body == b"x"


# -- refusals ------------------------------------------------------------------------------------------------------


def test_an_unknown_path_is_404_and_the_connection_goes_on(client: Client) -> None:
    """404 is no reason to close."""
    assert client.ask(get("/nothing")).status == 404
    assert client.ask(get("/echo?x")).body == b"x"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "BREW"])
def test_another_method_is_405_with_allow(client: Client, method: str) -> None:
    """Whatever is not GET or HEAD gets 405 and is told what is allowed; without a body the connection goes on."""
    reply = client.ask(get("/echo", "Content-Length: 0", method=method))
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert client.ask(get("/echo?x")).body == b"x"


@pytest.mark.parametrize(
    "framing", [f"Content-Length: {LARGEST_BODY}", "Transfer-Encoding: chunked"]
)
def test_a_body_is_read_to_its_end(shared: Serving, client: Client, framing: str) -> None:
    """A POST with a body that is still being sent after the answer sees that answer and a clean end, no reset."""
    client.send(get("/echo", framing, method="POST"))
    shared.turn()
    for _ in range(16):
        client.send(b"b" * (LARGEST_BODY // 16))
        shared.turn()
    reply = client.reply()
    assert (reply.status, reply.headers["Connection"]) == (405, "close")
    assert client.ended()
    client.send(b"still at it")
    shared.turn()
    client.send(b"and no reset")


def test_a_body_without_end_is_not_read_for_ever(serve: Callable[..., Serving]) -> None:
    """A client that never ends its body is given up after a megabyte."""
    serving = serve()
    client = serving.client()
    assert client.ask(get("/echo", "Transfer-Encoding: chunked", method="POST")).status == 405
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sent < 4 << 20:
            client.send(bytes(1 << 16))
            sent += 1 << 16
            serving.turn()
    assert 1 << 20 <= sent < 4 << 20
    assert serving.counters.connections == 1  # the one that turns


GARBAGE = [
    b"garbage\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /\r\n\r\n",  # HTTP/0.9
    b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
    b"GET / HTTP/x\r\nHost: x\r\n\r\n",
    b"GET / FTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / a b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",  # no Host
    b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: \xb2\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", GARBAGE)
def test_what_cannot_be_read_is_400_and_the_end(
    shared: Serving, client: Client, request_bytes: bytes
) -> None:
    """A head that cannot be read gets 400 and a clean end, whatever the client goes on sending."""
    client.send(request_bytes)
    shared.turn()
    client.send(b"more of the same")
    reply = client.reply()
    assert (reply.status, reply.headers["Connection"]) == (400, "close")
    assert client.ended()


def test_a_refused_head_has_no_body_either(client: Client) -> None:
    """HEAD that is refused for its head gets no body."""
    reply = client.ask(get("/", "Content-Length: x", method="HEAD"), head=True)
    assert reply.status == 400
    assert client.ended()


@pytest.mark.parametrize("length", [LARGEST_BODY + 1, 10**11, 10**30])
def test_too_large_a_body_is_413(shared: Serving, client: Client, length: int) -> None:
    """A body that is announced as too large is refused before it comes; what comes of it is no reset."""
    client.send(get("/echo", f"Content-Length: {length}", method="POST"))
    shared.turn()
    client.send(bytes(100_000))
    reply = client.reply()
    assert (reply.status, reply.headers["Connection"]) == (413, "close")
    assert client.ended()


def test_the_largest_head_is_answered(client: Client) -> None:
    """A head of exactly the largest size is answered."""
    frame = len(get("/echo?x", "X: "))
    request = get("/echo?x", "X: " + "x" * (LARGEST_HEAD - frame))
    assert len(request) == LARGEST_HEAD
    assert client.ask(request).body == b"x"
    client.send(request * 2)
    assert [client.reply().body, client.reply().body] == [b"x", b"x"]


@pytest.mark.parametrize("first", [1, 4095, LARGEST_HEAD - 1, LARGEST_HEAD])
def test_one_byte_more_is_too_large(shared: Serving, client: Client, first: int) -> None:
    """A head of one byte more than the largest is refused, wherever its packets are cut."""
    frame = len(get("/echo?x", "X: "))
    request = get("/echo?x", "X: " + "x" * (LARGEST_HEAD + 1 - frame))
    client.send(request[:first])
    shared.turn()
    client.send(request[first:])
    assert client.reply().status == 431
    assert client.ended()


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/echo?x", "X: " + "x" * LARGEST_HEAD),
        b"x" * (LARGEST_HEAD + 1),
        b"x" * 200_000,
        get("/" + "x" * 200_000),
        get("/", *(f"X-{number}: 1" for number in range(101))),
        get("/", "X: " + "x" * LARGEST_HEAD, *(f"X-{number}: 1" for number in range(10_000))),
    ],
    ids=["header", "line without end", "endless line", "target", "101 headers", "10,000 headers"],
)
def test_too_large_a_head_is_431(client: Client, request_bytes: bytes) -> None:
    """A head with too many bytes or too many headers is refused, also where it never ends; no reset."""
    with contextlib.suppress(BrokenPipeError):
        client.send(request_bytes)
    reply = client.reply()
    assert (reply.status, reply.headers["Connection"]) == (431, "close")
    assert client.ended()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (get("/", *(f"X-{number}: 1" for number in range(101)), method="POST"), 431),
    ],
)
def test_what_follows_a_refused_head_is_no_reset(
    shared: Serving, client: Client, request_bytes: bytes, status: int
) -> None:
    """A client that goes on after a head that was refused sees the answer and a clean end."""
    client.send(request_bytes)
    shared.turn()
    client.send(b"SM\r\n\r\n" + bytes(9))
    shared.turn()
    client.send(bytes(9))
    assert client.reply().status == status
    assert client.ended()


# -- the slow and the silent ---------------------------------------------------------------------------------------


def test_an_incomplete_head_is_408(serve: Callable[..., Serving]) -> None:
    """A head that is not complete in time gets 408, on a new connection and on one that goes on."""
    serving = serve(request_seconds=0.2)
    fresh, used = serving.client(), serving.client()
    assert used.ask(get("/echo?x")).body == b"x"
    begun = time.monotonic()
    for client in (fresh, used):
        client.send(b"GET /echo?x HTTP/1.1\r\nHo")
    for client in (fresh, used):
        reply = client.reply()
        assert (reply.status, reply.headers["Connection"]) == (408, "close")
        assert client.ended()
    assert 0.15 < time.monotonic() - begun < 2


def test_a_connection_that_never_sends_is_closed_without_a_word(
    serve: Callable[..., Serving],
) -> None:
    """Without a request there is nothing to answer: the connection ends after the request's deadline."""
    serving = serve(request_seconds=0.2)
    silent, empty = serving.client(), serving.client()
    empty.send(b"\r\n\r\n")
    begun = time.monotonic()
    assert silent.ended()
    assert empty.ended()
    assert 0.15 < time.monotonic() - begun < 2


def test_a_slow_writer_is_evicted(serve: Callable[..., Serving]) -> None:
    """One byte at a time does not put the deadline off: it is one on the whole request."""
    serving = serve(request_seconds=0.3)
    client = serving.client()
    client.send(b"GET /echo?")
    begun = time.monotonic()
    while client.silent(0.01):
        client.send(b"x")
        assert time.monotonic() - begun < PATIENCE
    assert client.reply().status == 408
    assert 0.2 < time.monotonic() - begun < 2
    assert serving.end() < 1
    assert serving.counters.evicted == 1


def test_the_next_request_has_a_deadline_of_its_own(serve: Callable[..., Serving]) -> None:
    """A request that begins in the packet that completes a slow one has all of its own time."""
    serving = serve(request_seconds=0.5)
    client = serving.client()
    request = get("/echo?x")
    client.send(request[:10])
    assert client.silent(0.3)
    assert client.ask(request[10:] + request[:10]).body == b"x"
    assert client.silent(0.3)
    assert client.ask(request[10:]).body == b"x"


def test_waiting_costs_nothing(serve: Callable[..., Serving]) -> None:
    """Connections that are idle, half a request, half an answer or behind their last answer keep no processor busy."""
    serving = serve(small=True)
    idle, used, incomplete, stuck, discarding = (serving.client() for _ in range(5))
    used.send(get("/large"))
    assert used.reply().body == LARGE
    incomplete.send(b"GET /")
    stuck.send(get("/large"))
    assert discarding.ask(get("/echo", "Content-Length: 5", method="POST")).status == 405
    serving.turn()
    before = time.process_time()
    assert idle.silent(0.25)
    assert time.process_time() - before < 0.1
    assert serving.counters.connections == 6


def test_an_idle_connection_outlives_the_requests_deadline(serve: Callable[..., Serving]) -> None:
    """Between two requests a connection has longer than a request, and the next one has all of its time."""
    serving = serve(request_seconds=0.2, idle_seconds=30.0)
    client = serving.client()
    assert client.ask(get("/echo?1")).body == b"1"
    assert client.silent(0.3)
    client.send(b"GET /echo?2")
    assert client.silent(0.05)
    assert client.ask(b" HTTP/1.1\r\nHost: x\r\n\r\n").body == b"2"


def test_an_idle_connection_is_closed_in_the_end(serve: Callable[..., Serving]) -> None:
    """A connection that has been idle for too long is closed without a word; that is no eviction."""
    serving = serve(idle_seconds=0.2)
    client = serving.client()
    assert client.ask(get("/echo?1")).body == b"1"
    assert client.ended()
    serving.end()
    assert serving.counters.evicted == 0


def test_a_slow_reader_is_evicted_and_nobody_else_waits(serve: Callable[..., Serving]) -> None:
    """A client that takes nothing of a large answer is given up at the deadline, others are answered meanwhile."""
    serving = serve(small=True, request_seconds=0.3)
    client = serving.client(buffer=SOCKET_BUFFER)
    client.send(get("/large"))
    begun, slowest = time.monotonic(), 0.0
    while serving.counters.evicted == 0:
        asked = time.monotonic()
        serving.turn()
        slowest = max(slowest, time.monotonic() - asked)
        assert time.monotonic() - begun < PATIENCE
    assert 0.25 < time.monotonic() - begun < 2
    assert slowest < 0.2
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := client.socket.recv(1 << 16):
            received += len(piece)
    assert received < len(LARGE)


def test_a_slow_reader_that_reads_gets_every_byte(serve: Callable[..., Serving]) -> None:
    """A large answer arrives whole at a client that takes it in small pieces, and the connection goes on."""
    serving = serve(small=True)
    client = serving.client(buffer=SOCKET_BUFFER)
    client.send(get("/large"))
    serving.turn()
    received = b""
    while not received.endswith(LARGE[-256:]) or len(received) < len(LARGE):
        received += client.socket.recv(9_999)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == LARGE
    assert client.ask(get("/echo?x")).body == b"x"


def test_each_answer_of_a_pipeline_has_a_deadline_of_its_own(
    serve: Callable[..., Serving],
) -> None:
    """Several large answers in a row may take longer together than one request may."""
    serving = serve(small=True, request_seconds=0.5)
    client = serving.client(buffer=SOCKET_BUFFER)
    client.send(get("/large") * 4)
    begun = time.monotonic()
    for _ in range(4):
        time.sleep(0.2)  # the client's own pace
        assert client.reply().body == LARGE
    assert time.monotonic() - begun > 0.75
    serving.end()
    assert serving.counters.evicted == 0


def test_the_oldest_idle_connection_gives_way(serve: Callable[..., Serving]) -> None:
    """At the cap a new connection takes the place of the one that has been idle for longest."""
    serving = serve(most_connections=4)
    clients = [serving.client() for _ in range(4)]
    for client in clients:
        assert client.ask(get("/echo?x")).body == b"x"
    assert clients[0].ask(get("/echo?again")).body == b"again"
    new = serving.client()
    assert new.ask(get("/echo?new")).body == b"new"
    assert clients[1].ended()
    for client in (clients[0], clients[2], clients[3], new):
        assert client.ask(get("/echo?still")).body == b"still"
    serving.end()
    assert serving.counters.evicted == 1


def test_an_idle_connection_gives_way_before_a_busy_one(serve: Callable[..., Serving]) -> None:
    """A request under way is given up only where nobody is idle, and then the oldest."""
    serving = serve(most_connections=3)
    busy = [serving.client(), serving.client()]
    idle = serving.client()
    assert idle.ask(get("/echo?x")).body == b"x"  # the loop has seen the other two
    for client in busy:
        client.send(b"GET /echo?late HTTP/1.1\r\n")
    third = serving.client()
    third.send(b"GET /echo?late HTTP/1.1\r\n")
    assert idle.ended()
    new = serving.client()
    assert new.ask(get("/echo?new")).body == b"new"
    assert busy[0].gone()
    for client in (busy[1], third):
        assert client.ask(b"Host: x\r\n\r\n").body == b"late"


def test_an_event_for_a_connection_that_gave_way_harms_no_other(
    serve: Callable[..., Serving],
) -> None:
    """An event that waits while its connection is evicted and its number given to another does nothing to that one."""
    serving = serve(addresses=2, most_connections=2)
    toy = serving.application
    oldest = serving.client()
    assert oldest.ask(get("/echo?x")).body == b"x"
    holding = serving.client()
    holding.send(get("/hold"))
    assert toy.held.wait(PATIENCE)
    # Three events for one wait: the first takes `oldest`'s place, the second its file descriptor.
    first, second = serving.client(0), serving.client(1)
    with contextlib.suppress(OSError):
        oldest.send(get("/echo?lost"))
    toy.release.set()
    assert holding.reply().status == 200
    assert oldest.gone()
    assert second.ask(get("/echo?second")).body == b"second"
    assert first.ask(get("/echo?first")).body == b"first"


def test_a_storm_over_the_cap_gets_no_wrong_answer(serve: Callable[..., Serving]) -> None:
    """With far more clients than connections, each gets its own answer or is given up; nobody gets another's."""
    serving = serve(most_connections=5)
    answered, wrong = [], []

    def storm(name: int) -> None:
        for number in range(30):
            client = Client(serving.addresses[0])
            with contextlib.closing(client), contextlib.suppress(EOFError, OSError):
                for part in range(3):
                    mine = f"{name}-{number}-{part}"
                    body = client.ask(get(f"/echo?{mine}")).body
                    (answered if body == mine.encode() else wrong).append(body)

    threads = [threading.Thread(target=storm, args=(name,)) for name in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(answered) > 12
    assert serving.counters.connections <= 5
    assert serving.ask(get("/echo?x")).body == b"x"


# -- clients that go away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"", b"GET /ec", get("/echo?x"), get("/large"), get("/large") * 3]
)
def test_a_client_that_resets_is_forgotten(serve: Callable[..., Serving], sent: bytes) -> None:
    """Resets before, within and after a request cost nothing but their own connection."""
    serving = serve(small=True)
    for known in (True, False) * 10:
        client = serving.client(buffer=SOCKET_BUFFER)
        client.send(sent)
        if known:
            serving.turn()
        client.reset()
    serving.turn_until(lambda: serving.counters.connections == 1)


def test_a_half_closed_client_gets_its_answer(serve: Callable[..., Serving]) -> None:
    """A client that has said all it has to say is answered in full, small, large and pipelined, then closed."""
    serving = serve(small=True)
    for request, bodies in (
        (get("/echo?x"), [b"x"]),
        (get("/large"), [LARGE]),
        (get("/large") + get("/echo?x") + get("/large"), [LARGE, b"x", LARGE]),
    ):
        for known in (True, False):
            client = serving.client()
            if known:
                assert client.ask(get("/echo?first")).body == b"first"
            client.send(request)
            client.socket.shutdown(socket.SHUT_WR)
            assert [client.reply().body for _ in bodies] == bodies
            assert client.ended()


def test_a_half_closed_client_with_half_a_request_is_closed(
    shared: Serving, client: Client
) -> None:
    """Half a request that will never be whole ends at once."""
    client.send(b"GET /echo?x HTTP/1.1\r\n")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.ended()


# -- out of file descriptors ---------------------------------------------------------------------------------------

FEW_FILES = """
import os, resource, sys, time
from test_server import Serving

with Serving() as serving:
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, used + 12))
    print(serving.addresses[0][1], flush=True)
    files = []
    for line in sys.stdin:
        if line == "fill\\n":
            try:
                while True:
                    files.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                print(len(files), flush=True)
        elif line == "free\\n":
            while files:
                os.close(files.pop())
            print("free", flush=True)
        elif line == "cpu\\n":
            print(time.process_time(), flush=True)
        elif line == "evicted\\n":
            print(serving.counters.evicted, flush=True)
        elif line == "connections\\n":
            print(serving.counters.connections, flush=True)
        elif line == "end\\n":
            print(serving.end(), flush=True)
"""


class FewFiles:
    """A server in a process that may open only a dozen files more."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here), str(here.parent)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", FEW_FILES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self.process.stdout is not None
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def __enter__(self) -> FewFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def do(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


def test_without_file_descriptors_the_server_lives_on() -> None:
    """Out of files, connections give way to new ones; with none to give up the loop waits, idle, and ends in time."""
    with FewFiles() as few, ExitStack() as stack:

        def client() -> Client:
            client = Client(few.address)
            stack.callback(client.close)
            return client

        clients = [client() for _ in range(40)]
        for one in clients[::-1]:  # all are answered in the end, or gave way
            with contextlib.suppress(EOFError, OSError):
                assert one.ask(get("/echo?x")).body == b"x"
        assert client().ask(get("/echo?y")).body == b"y"
        assert int(few.do("evicted")) >= 20
        stack.close()

        deadline = time.monotonic() + PATIENCE
        while few.do("connections") != "0":
            assert time.monotonic() < deadline, "it does not notice that all clients have gone"
        assert int(few.do("fill")) > 0
        waiting = client()
        waiting.send(get("/echo?z"))
        before = float(few.do("cpu"))
        assert waiting.silent(0.3)
        assert float(few.do("cpu")) - before < 0.1
        assert few.do("free") == "free"
        assert waiting.reply().body == b"z"
        waiting.close()

        few.do("fill")
        client().send(get("/echo?z"))
        assert float(few.do("end")) < 1


# -- the end -------------------------------------------------------------------------------------------------------


def open_sockets() -> set[str]:
    """What this process has open of what a server opens."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{fd}")
            if what.startswith(("socket:", "anon_inode:[eventpoll]")):
                found.add(f"{fd} {what}")
    return found


def test_after_the_end_nothing_is_open(serve: Callable[..., Serving]) -> None:
    """Once `run` has returned there is no file descriptor left, idle connections have ended and none is accepted."""
    before = open_sockets()
    serving = serve()
    idle, incomplete, discarding = (serving.client() for _ in range(3))
    assert idle.ask(get("/echo?x")).body == b"x"
    incomplete.send(b"GET /")
    assert discarding.ask(get("/echo", "Content-Length: 5", method="POST")).status == 405
    serving.turn()
    assert serving.end() < 1
    assert idle.ended()
    assert incomplete.gone()
    assert discarding.ended()
    with socket.socket() as late:
        assert late.connect_ex(serving.addresses[0]) == errno.ECONNREFUSED
    assert serving.counters.connections == 0
    for client in (idle, incomplete, discarding):
        client.close()
    assert serving._probe is not None
    serving._probe.close()
    assert open_sockets() <= before
    serving.server.stop()  # once more does no harm


def test_with_only_idle_connections_the_end_comes_at_once(serve: Callable[..., Serving]) -> None:
    """Nobody is waited for who is not being answered."""
    serving = serve()
    clients = [serving.client() for _ in range(20)]
    for client in clients:
        assert client.ask(get("/echo?x")).body == b"x"
    assert serving.end() < 0.3
    assert all(client.ended() for client in clients)


def test_an_answer_on_its_way_is_finished(serve: Callable[..., Serving]) -> None:
    """Who is taking a large answer when the end comes gets all of it; who takes nothing is not waited for."""
    serving = serve(small=True)
    taking, stuck = serving.client(), serving.client(buffer=SOCKET_BUFFER)
    for client in (taking, stuck):
        client.send(get("/large"))
    assert taking.reader.readline().startswith(b"HTTP/1.1 200 ")
    serving.turn()
    begun = time.monotonic()
    serving.server.stop()
    while taking.reader.readline() != b"\r\n":
        pass
    assert taking.reader.read(len(LARGE)) == LARGE
    assert taking.ended()
    serving.end()
    assert time.monotonic() - begun < 1


def test_what_has_arrived_before_the_end_is_answered(serve: Callable[..., Serving]) -> None:
    """Requests on idle and on not yet accepted connections are answered, with `Connection: close`."""
    serving = serve()
    known = serving.client()
    assert known.ask(get("/echo?x")).body == b"x"
    holding = serving.client()
    holding.send(get("/hold"))
    assert serving.application.held.wait(PATIENCE)
    new = [serving.client() for _ in range(10)]
    for client in (known, *new):
        client.send(get("/echo?last"))
    serving.server.stop()
    serving.application.release.set()
    for client in (known, *new):
        reply = client.reply()
        assert (reply.body, reply.headers["Connection"]) == (b"last", "close")
        assert client.ended()
    assert serving.end() < 1


def test_a_stop_before_the_start_is_no_start(serve: Callable[..., Serving]) -> None:
    """`run` after `stop` returns at once."""
    serving = Serving()
    serving.server.stop()
    with serving:
        serving.thread.join(1)
        assert not serving.thread.is_alive()


def test_a_byte_on_the_wakeup_descriptor_is_harmless(shared: Serving) -> None:
    """What signal.set_wakeup_fd writes wakes the loop, which goes on."""
    for _ in range(3):
        os.write(shared.server.wakeup_fd, b"\x0f" * 100)
        shared.turn()


# -- what is counted and what is remembered ------------------------------------------------------------------------


def test_the_counters_are_exact(serve: Callable[..., Serving]) -> None:
    """Requests, refusals, evictions and open connections are counted one by one."""
    serving = serve(request_seconds=0.3, idle_seconds=30.0)
    counters = serving.counters
    client, late, silent = (serving.client() for _ in range(3))
    late.send(b"GET")
    for number in range(5):
        assert client.ask(get(f"/echo?{number}")).status == 200
    client.send(get("/echo?x") * 10)
    for _ in range(10):
        client.reply()
    assert (counters.requests, counters.refused, counters.connections) == (15, 0, 3)
    assert client.ask(get("/nothing")).status == 404
    assert client.ask(get("/", method="PUT")).status == 405
    assert client.ask(get("/nothing", method="HEAD"), head=True).status == 404
    assert serving.ask(b"garbage\r\n\r\n").status == 400
    assert serving.ask(get("/echo?x", "Connection: close")).status == 200
    assert late.reply().status == 408
    assert late.ended()
    assert silent.ended()
    assert client.ask(get("/echo?x")).status == 200
    serving.end()
    assert counters.requests == 15 + 3 + 1 + 1 + 1 + 1
    assert counters.refused == 3 + 1 + 1
    assert counters.evicted == 2
    assert counters.connections == 0


def test_many_clients_at_once_are_counted_exactly(serve: Callable[..., Serving]) -> None:
    """Requests from several threads are all answered and all counted."""
    serving = serve()

    def ask() -> None:
        with contextlib.closing(Client(serving.addresses[0])) as client:
            for _ in range(50):
                assert client.ask(get("/echo?x")).body == b"x"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    serving.end()
    assert serving.counters.requests == 400


def test_an_answer_is_rendered_once_per_version(serve: Callable[..., Serving]) -> None:
    """However many clients with however different heads ask, a page is rendered once, and again for a new version."""
    serving = serve()
    toy = serving.application
    clients = [serving.client() for _ in range(20)]
    for version in range(1, 4):
        for round in range(3):
            for number, client in enumerate(clients):
                agent = f"User-Agent: {number}-{round % 2}"
                assert client.ask(get("/echo?page", agent)).status == 200
        assert toy.rendered["/echo?page"] == version
        toy.generation = object()
    assert serving.ask(get("/echo?page")).status == 200
    assert toy.rendered["/echo?page"] == 4


# -- a pause, and another server after it --------------------------------------------------------------------------


def test_a_wake_is_the_loops_to_answer(serve: Callable[..., Serving]) -> None:
    """`on_wake` is called by the loop's own thread, once or more for whatever woke it, and the loop goes on."""
    serving = serve()
    called: list[threading.Thread] = []
    serving.server.on_wake = lambda: called.append(threading.current_thread())
    serving.server.wake()
    serving.turn_until(lambda: bool(called))
    assert set(called) == {serving.thread}


def test_a_pause_ends_nothing(serve: Callable[..., Serving]) -> None:
    """While a server pauses its connections stay open, new ones are not refused, and all are answered afterwards."""
    serving = serve()
    used, silent = serving.client(), serving.client()
    assert used.ask(get("/echo?1")).body == b"1"
    serving.turn()
    serving.pause()
    assert len(serving.server.connections) == 3
    new = serving.client()
    for client in (used, silent, new):
        client.send(get("/echo?2"))
    assert used.silent(0.05)
    serving.resume()
    for client in (used, silent, new):
        assert client.reply().body == b"2"


def test_another_server_goes_on_with_the_connections(serve: Callable[..., Serving]) -> None:
    """What was sent while nobody served is answered by the next server, on connections old and new, without a reset."""
    before = serve()
    used, silent, idle = before.client(), before.client(), before.client()
    for client in (used, idle):
        assert client.ask(get("/echo?1")).body == b"1"
    before.turn()
    listeners, connections = before.leave()
    assert len(connections) == 4
    new = before.client()
    for client in (used, silent, new):
        client.send(get("/echo?2"))
    after = serve(listeners=listeners, connections=connections)
    for client in (used, silent, new):
        assert client.reply().body == b"2"
    assert after.counters.connections == 5
    assert idle.ask(get("/echo?3")).body == b"3"
    used.close()
    after.turn_until(lambda: after.counters.connections == 5)  # but for the one that turns it


def test_a_connection_that_went_on_is_closed_when_it_is_idle_for_too_long(
    serve: Callable[..., Serving],
) -> None:
    """The next server knows nothing of how long it had been idle, and gives it all of its time once more."""
    before = serve()
    client = before.client()
    assert client.ask(get("/echo?1")).body == b"1"
    listeners, connections = before.leave()
    after = serve(listeners=listeners, connections=connections, idle_seconds=0.2)
    assert client.ended()
    assert after.counters.evicted == 0


def test_a_request_that_has_begun_is_answered_before_the_pause(
    serve: Callable[..., Serving],
) -> None:
    """Who has sent a part of a request may send the rest of it, and others are answered meanwhile."""
    serving = serve()
    client = serving.client()
    client.send(get("/echo?1")[:10])
    serving.turn()
    serving.begin_pause()
    serving.turn()
    assert serving.ask(get("/echo?new")).body == b"new"
    assert client.ask(get("/echo?1")[10:]).body == b"1"
    serving.wait_for_pause()
    assert client.silent(0.05)
    serving.resume()
    assert client.ask(get("/echo?2")).body == b"2"


def test_a_pipeline_is_answered_across_a_pause(serve: Callable[..., Serving]) -> None:
    """Of requests that were sent in one go none is lost and none is answered twice, whoever answers it."""
    before = serve()
    client = before.client()
    client.send(b"".join(get(f"/echo?{number}") for number in range(600)))
    listeners, connections = before.leave()
    serve(listeners=listeners, connections=connections)
    assert [client.reply().body for _ in range(600)] == [b"%d" % number for number in range(600)]


def test_an_answer_is_taken_before_the_pause(serve: Callable[..., Serving]) -> None:
    """A client that is reading a large answer gets all of it, and its connection goes on."""
    before = serve(small=True)
    client = before.client(buffer=SOCKET_BUFFER)
    client.send(get("/large"))
    before.turn()
    before.begin_pause()
    assert client.reply().body == LARGE
    listeners, connections = before.leave()
    serve(listeners=listeners, connections=connections)
    assert client.ask(get("/echo?2")).body == b"2"


def test_a_slow_client_is_not_waited_for_long(serve: Callable[..., Serving]) -> None:
    """A request that does not come to its end, and an answer that nobody takes, are given up after half a second."""
    serving = serve(small=True)
    slow, stuck, idle = serving.client(), serving.client(buffer=SOCKET_BUFFER), serving.client()
    assert idle.ask(get("/echo?1")).body == b"1"
    slow.send(b"GET /echo?")
    stuck.send(get("/large"))
    serving.turn()
    begun = time.monotonic()
    serving.pause()
    assert time.monotonic() - begun > 0.4
    assert slow.gone()
    assert idle.silent(0.05)
    serving.resume()
    assert idle.ask(get("/echo?2")).body == b"2"
    with pytest.raises((AssertionError, ConnectionResetError)):
        stuck.reply()


def test_an_end_is_stronger_than_a_pause(serve: Callable[..., Serving]) -> None:
    """A server that is stopped while it is about to pause says goodbye and closes everything."""
    serving = serve()
    client = serving.client()
    client.send(b"GET /echo?")
    serving.turn()
    serving.begin_pause()
    serving.turn()
    serving.server.stop()
    serving.thread.join(PATIENCE)
    assert not serving.paused
    assert client.gone()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(serving.addresses[0]).close()


def test_a_paused_server_that_is_stopped_answers_what_has_arrived(
    serve: Callable[..., Serving],
) -> None:
    """A stop that comes when the loop has paused already waits for the next `run`, which says goodbye."""
    serving = serve()
    client = serving.client()
    assert client.ask(get("/echo?1")).body == b"1"
    serving.pause()
    client.send(get("/echo?2"))
    serving.end()
    assert client.reply().headers["Connection"] == "close"
    assert client.ended()


def test_what_is_no_socket_is_no_connection(serve: Callable[..., Serving]) -> None:
    """Descriptors that are files, or closed by now, are passed over."""
    with open("/dev/null") as file:
        serving = serve(connections=[file.fileno(), 10**6])
        assert serving.counters.connections == 0
        assert serving.ask(get("/echo?x")).body == b"x"


# -- anything at all -----------------------------------------------------------------------------------------------

VALID = (
    get("/echo?a"),
    get("/echo?b", "Accept: */*", "User-Agent: x"),
    get("/nothing"),
    get("/echo", "Content-Length: 3", method="POST") + b"abc",
    get("/echo?c", "Connection: keep-alive", version="1.0"),
    get("/echo?d", "Connection: close"),
    b"\r\nGET /echo?e HTTP/1.1\nHost: x\n\n",
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Some valid requests in a row, damaged here and there."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        data[at:end] = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b":", b"\x80"]),
                st.just(bytes(data[at:end]) * 2),
            )
        )
    return bytes(data)


def everything(client: Client) -> list[Reply]:
    """All answers until the server ends the connection; each of them is checked."""
    replies = []
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            replies.append(client.reply())
    return replies


@settings(max_examples=150, deadline=None, database=None)
@given(data=st.one_of(st.binary(max_size=300), mutated()))
def test_no_bytes_harm_the_server(shared: Serving, data: bytes) -> None:
    """Whatever is sent gets proper answers or none, the connection ends, and the next client is answered."""
    with contextlib.closing(Client(shared.addresses[0])) as client:
        with contextlib.suppress(OSError):  # refused and closed before all was sent
            client.send(data)
            client.socket.shutdown(socket.SHUT_WR)
        everything(client)
    shared.turn()
    assert shared.thread.is_alive()


@settings(max_examples=100, deadline=None, database=None)
@given(
    numbers=st.lists(st.integers(0, 999), min_size=1, max_size=20),
    cuts=st.sets(st.integers(1, 700), max_size=12),
    turning=st.booleans(),
)
def test_however_a_stream_is_cut_its_answers_are_the_same(
    shared: Serving, numbers: list[int], cuts: set[int], turning: bool
) -> None:
    """How requests are spread over packets makes no difference to the answers and their order."""
    stream = b"".join(get(f"/echo?{number}") for number in numbers)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    with contextlib.closing(Client(shared.addresses[0])) as client:
        for begin, end in zip(edges, edges[1:]):
            client.send(stream[begin:end])
            if turning:
                shared.turn()
        client.socket.shutdown(socket.SHUT_WR)
        assert [reply.body for reply in everything(client)] == [b"%d" % one for one in numbers]


def test_nothing_is_left_of_all_that(shared: Serving) -> None:
    """After every test that used the shared server only the connection that turns it is open."""
    shared.turn_until(lambda: shared.counters.connections == 1)
