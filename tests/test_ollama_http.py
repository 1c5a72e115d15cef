"""One question over HTTP: what it sends, how it reads each kind of answer, and what ends it."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Callable, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama_process import OllamaProcess
from ollama_standin import PROMPT

from ollama_metrics import __version__, ollama_http
from ollama_metrics.errors import OllamaAnswer, OllamaDown, OllamaError
from ollama_metrics.ollama_http import exchange
from ollama_metrics.ollama_url import OllamaUrl

SECRET = PROMPT.encode()
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = 0.3


class Server:
    """Answers each connection with the bytes of `answer` as they are, and closes it; a context manager.

    Each piece is sent by itself. With `reset` the connection is not closed but broken off, with `stay`
    it is left open after the answer.
    """

    def __init__(
        self,
        *answer: bytes,
        reset: bool = False,
        stay: bool = False,
        family: int = socket.AF_INET,
    ) -> None:
        self.answer: Sequence[bytes] = answer
        self.requests: list[bytes] = []
        self._reset, self._stay = reset, stay
        self._left_open: list[socket.socket] = []
        self._listener = socket.socket(family)
        self._listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self._listener.listen(16)
        self.port: int = self._listener.getsockname()[1]
        self.url = OllamaUrl(self._listener.getsockname()[0], self.port)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        for connection in self._left_open:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            try:
                self._answer(connection)
            except OSError:
                connection.close()  # the client has heard enough

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests.append(connection.recv(1 << 16))
        for piece in self.answer:
            connection.sendall(piece)
        if self._stay:
            self._left_open.append(connection)
            return
        if self._reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


@pytest.fixture(scope="module")
def ollama() -> Iterator[OllamaProcess]:
    with OllamaProcess() as process:
        yield process


@pytest.fixture
def url(ollama: OllamaProcess) -> Iterator[OllamaUrl]:
    yield OllamaUrl("127.0.0.1", ollama.port)
    ollama.fault("/api/ps", None)


def ask(*answer: bytes, most_bytes: int = 1000, reset: bool = False) -> bytes:
    """The body that is read from this answer."""
    with Server(*answer, reset=reset) as server:
        return exchange(server.url, "/x", seconds=10, most_bytes=most_bytes)[0]


def refusal(url: OllamaUrl, path: str = "/api/ps", seconds: float = 10.0) -> OllamaError:
    """The error that the question ends with; nothing of an answer is in it, or in what lies behind it."""
    with pytest.raises(OllamaError) as caught:
        exchange(url, path, seconds=seconds, most_bytes=1000)
    error: Optional[BaseException] = caught.value
    assert str(error).startswith(f"{url}{path}")
    while error is not None:
        assert SECRET.decode() not in f"{error}{vars(error)}"
        error = error.__cause__ or error.__context__
    return caught.value


def refused(*answer: bytes, reset: bool = False, seconds: float = 10.0) -> OllamaError:
    """The same for an answer in bytes."""
    with Server(*answer, reset=reset) as server:
        return refusal(server.url, seconds=seconds)


# -- the question ------------------------------------------------------------------------------------------------------


def test_a_get_is_one_head() -> None:
    """What is sent is the path behind the URL's own, the host by which Ollama knows itself, and who asks."""
    with Server(OK, b"Content-Length: 0\r\n\r\n") as server:
        exchange(OllamaUrl("127.0.0.1", server.port, "/prefix"), "/api/ps")
    assert server.requests == [
        b"GET /prefix/api/ps HTTP/1.1\r\n"
        b"Host: localhost:%d\r\n"
        b"User-Agent: ollama-metrics/%b\r\n"
        b"Connection: close\r\n\r\n" % (server.port, __version__.encode())
    ]


def test_a_post_has_its_body_with_it() -> None:
    """Head and body leave in one segment, with the body's type and length."""
    with Server(OK, b"\r\n") as server:
        exchange(server.url, "/api/show", body=b'{"model": "x"}')
    (request,) = server.requests
    head, _, body = request.partition(b"\r\n\r\n")
    assert body == b'{"model": "x"}'
    assert head.startswith(b"POST /api/show HTTP/1.1\r\n")
    assert b"\r\nContent-Type: application/json\r\nContent-Length: 14" in head


def test_ollama_is_asked_on_loopback(url: OllamaUrl) -> None:
    """The stand-in answers, and the time that it took comes along."""
    body, seconds = exchange(url, "/api/version")
    assert body == b'{"version": "0.33.0"}'
    assert 0 < seconds < 5


def test_the_connection_is_not_kept(ollama: OllamaProcess, url: OllamaUrl) -> None:
    """Each question is a connection of its own: none is left open that would count as a request in flight."""
    before = ollama.tell()["connections"]
    for _ in range(3):
        exchange(url, "/api/version")
    assert ollama.tell()["connections"] == before + 3


def test_a_name_is_looked_up(ollama: OllamaProcess) -> None:
    """localhost is where Ollama listens on loopback."""
    url = OllamaUrl("localhost", ollama.port)
    assert exchange(url, "/api/version")[0] == b'{"version": "0.33.0"}'


class Names:
    """A resolver that knows one name and its addresses on this host."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        self._addresses = addresses
        self.asked: list[bytes] = []

    def look_up(self, host: bytes, port: int, **options: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        assert options == {"type": socket.SOCK_STREAM}
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in self._addresses]


@contextmanager
def closed_port() -> Iterator[tuple[str, int]]:
    """An address where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()


@contextmanager
def full_port() -> Iterator[tuple[str, int]]:
    """An address that answers no attempt to connect: whoever listens there has a full queue."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.mark.parametrize("other", [closed_port, full_port])
def test_a_name_is_tried_at_each_of_its_addresses(
    other: Callable[[], AbstractContextManager[tuple[str, int]]],
) -> None:
    """One that refuses and one that does not answer leave time for the next."""
    with other() as first, Server(OK, b"Content-Length: 2\r\n\r\nok") as server:
        names = Names(first, ("127.0.0.1", server.port))
        url = OllamaUrl("gpu.example", 11434)
        assert exchange(url, "/x", seconds=2, look_up=names.look_up)[0] == b"ok"
    assert names.asked == [b"gpu.example"]


def test_a_name_whose_addresses_all_refuse_is_down() -> None:
    """The reason is that of the last address, the address in it the name."""
    with closed_port() as one, closed_port() as other:
        names = Names(one, other)
        with pytest.raises(OllamaDown, match=r"^http://gpu\.example:1/x: connection refused$"):
            exchange(OllamaUrl("gpu.example", 1), "/x", look_up=names.look_up)


def test_an_address_is_not_looked_up() -> None:
    """No resolver can hold up what needs none."""
    names = Names()
    with Server(OK, b"Content-Length: 2\r\n\r\nok") as server:
        assert exchange(server.url, "/x", look_up=names.look_up)[0] == b"ok"
    assert names.asked == []


def test_ipv6_addresses_are_asked() -> None:
    """An IPv6 address is connected to without a look-up."""
    try:
        server = Server(OK, b"\r\nok", family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        assert exchange(OllamaUrl("::1", server.port), "/x")[0] == b"ok"


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        [OK + b"Content-Length: 4\r\n\r\nbody"],
        [OK + b"content-LENGTH:4  \r\n\r\nbodyguard"],
        [b"HTTP/1.0 200 OK\r\n\r\nbody"],
        [b"HTTP/1.1 200\r\n\r\nbody"],
        [b"HTTP/1.1 200 \r\n\r\n", b"bo", b"dy"],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"],
        [OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\nb\r\n003;x=y\r\nody\r\n0\r\nA: b\r\n\r\n"],
        [OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 4\r\n\r\nbody"],
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 x\r\n\r\n" + OK + b"\r\nbody"],
        [OK + b"X: " + b"y" * 16000 + b"\r\n\r\nbody"],
    ],
)
def test_an_answer_is_read_however_its_end_is_told(answer: Sequence[bytes]) -> None:
    """By its length, in chunks or by closing; interim answers are passed over."""
    assert ask(*answer) == b"body"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 4\r\n\r\nbody",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\nbody",
    ],
)
def test_an_answer_may_come_a_byte_at_a_time(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part of an answer has to arrive whole."""
    monkeypatch.setattr(ollama_http, "_READ_BYTES", 1)
    assert ask(answer) == b"body"


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000,
        OK + b"\r\n" + b"x" * 300_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"3\r\nxxx\r\n" * 100_000 + b"0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n493e0\r\n" + b"x" * 300_000 + b"\r\n0\r\n\r\n",
    ],
)
def test_an_answer_may_be_larger_than_what_is_received_at_once(answer: bytes) -> None:
    """It comes whole up to the limit, and not at all with one byte more."""
    assert ask(answer, most_bytes=300_000) == b"x" * 300_000
    with pytest.raises(OllamaAnswer, match="more than 299999 bytes"):
        ask(answer, most_bytes=299_999)


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 400, 401, 404, 429, 500, 503, 999])
def test_another_status_is_told_and_its_body_is_not(status: int) -> None:
    """The error has the status as a number; a redirect is not followed."""
    head = b"HTTP/1.1 %d %b\r\nLocation: http://127.0.0.1:1/%b\r\n\r\n" % (status, SECRET, SECRET)
    error = refused(head + b'{"error": "' + SECRET + b'"}')
    assert isinstance(error, OllamaAnswer)
    assert error.status == status
    assert str(error).endswith(f"/api/ps answered {status}")


def test_a_403_says_what_it_is_for() -> None:
    """Ollama answers it to a Host header that it does not know."""
    error = refused(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    assert "answered 403" in str(error)
    assert "Host header" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x15\x03\x01\x00\x02\x02\x46",
            b"\xff\n",
            b"HTTP/2.0 200 OK",
        ),
        *(b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1  200\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"),
        *(b"HTTP/1.x 200 OK\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 \r\n\r\n", b"\r\n\r\n"),
        *(b"HTTP/1.1 20\r\n\r\n", b"HTTP/1.1 -20 x\r\n\r\n", b"http/1.1 200 OK\r\n\r\n"),
    ],
)
def test_what_is_no_http_is_an_answer_that_makes_no_sense(answer: bytes) -> None:
    """Another protocol on the port is told from a server that is away."""
    error = refused(answer + SECRET)
    assert isinstance(error, OllamaAnswer)
    assert str(error).endswith("answered in something else than HTTP")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OK + b"X: " + b"y" * 17000 + b"\r\n\r\n", "a head that does not end"),
        (OK + b"X: " + b"y" * 300_000, "a head that does not end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, "a head that does not end"),
        (OK + b"Content-Length: -1\r\n\r\n", "a length that is none"),
        (OK + b"Content-Length: +1\r\n\r\n", "a length that is none"),
        (OK + b"Content-Length: 0x10\r\n\r\n", "a length that is none"),
        (OK + b"Content-Length: 1, 1\r\n\r\n", "a length that is none"),
        (OK + b"Content-Length:\r\n\r\n", "a length that is none"),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", "a length that is none"),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "two ends"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "an encoding"),
        (OK + b"Content-Length: 1001\r\n\r\n", "more than 1000 bytes"),
        (OK + b"Content-Length: 999999999999999999\r\n\r\n", "more than 1000 bytes"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(answer: bytes, reason: str) -> None:
    """Each with its reason, as soon as it is seen."""
    error = refused(answer)
    assert isinstance(error, OllamaAnswer)
    assert reason in str(error)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        (b"\r\n", "without a size"),
        (b"-1\r\n", "without a size"),
        (b"+1\r\nx\r\n", "without a size"),
        (b"1_0\r\n", "without a size"),
        (b"x\r\n", "without a size"),
        (b"0" * 17 + b"\r\n", "without a size"),
        (b"1;" + b"x" * 5000, "without a size"),
        (b"f" * 16 + b"\r\n", "more than 1000 bytes"),
        (b"3e9\r\n", "more than 1000 bytes"),
        (b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n", "more than 1000 bytes"),
        (b"1\r\nxyz\r\n", "do not end"),
    ],
)
def test_chunks_that_make_no_sense_are_refused(chunks: bytes, reason: str) -> None:
    """A size is up to 16 hexadecimal digits, and what it announces ends where it says."""
    error = refused(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert isinstance(error, OllamaAnswer)
    assert reason in str(error)


# -- no answer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed without an answer"),
        (b"HTTP", "closed before the end of its answer"),
        (OK, "closed before the end of its answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed without an answer"),
        (OK + b"Content-Length: 4\r\n\r\nbod", "closed before the end of its answer"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", "closed before the end of its answer"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbod", "closed before the end of its answer"),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n",
            "closed before the end of its answer",
        ),
    ],
)
def test_an_answer_that_breaks_off_is_none(answer: bytes, reason: str) -> None:
    """A connection that is closed early is a server that is away: to ask again may help."""
    error = refused(answer)
    assert isinstance(error, OllamaDown)
    assert str(error).endswith(reason)


def test_a_connection_that_is_reset_is_no_answer() -> None:
    """A process that was killed resets its connections."""
    error = refused(OK + b"Content-Length: 4\r\n\r\nbo", reset=True)
    assert isinstance(error, OllamaDown)
    assert "connection reset" in str(error) or "closed before the end" in str(error)


def test_a_port_where_nobody_listens_refuses() -> None:
    """The reason is one clause for a person, behind what was asked."""
    with closed_port() as (host, port):
        url = OllamaUrl(host, port)
        error = refusal(url)
    assert isinstance(error, OllamaDown)
    assert str(error) == f"{url}/api/ps: connection refused"


def test_a_connection_to_itself_is_a_port_where_nobody_listens() -> None:
    """Linux may connect an ephemeral port to itself; what comes back is the question."""
    with Server(b"GET /api/ps HTTP/1.1\r\nHost: localhost\r\n\r\n") as server:
        error = refusal(server.url)
    assert isinstance(error, OllamaDown)
    assert str(error).endswith("connection refused")


def test_a_name_that_nobody_knows_is_told_as_such() -> None:
    """The resolver's reason is in the text."""
    error = refusal(OllamaUrl("name.invalid", 11434))
    assert isinstance(error, OllamaDown)
    assert "cannot be looked up" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 2",
        OK,
        OK + b"\r\n" + SECRET,
        OK + b"Content-Length: 900\r\n\r\n" + SECRET,
        OK + b"Transfer-Encoding: chunked\r\n\r\n99\r\n" + SECRET,
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_an_answer_that_stops_is_waited_for_no_longer_than_told(answer: bytes) -> None:
    """Wherever it stops, the question ends with what it was given in time."""
    with Server(answer, stay=True) as server:
        error = refusal(server.url, seconds=SHORT)
    assert isinstance(error, OllamaDown)
    assert str(error).endswith("no answer within 0.3 s")


def test_connecting_counts_as_waiting() -> None:
    """A server whose queue is full takes no connection, and the question ends all the same."""
    with full_port() as (host, port):
        error = refusal(OllamaUrl(host, port), seconds=SHORT)
    assert isinstance(error, OllamaDown)
    assert str(error).endswith("no answer within 0.3 s")


def test_the_time_is_for_the_whole_and_not_for_each_piece(
    ollama: OllamaProcess, url: OllamaUrl
) -> None:
    """An answer that trickles forever, each byte of it in time, ends with the time for all of it."""
    ollama.fault("/api/ps", "trickle")
    error = refusal(url, seconds=SHORT)
    assert isinstance(error, OllamaDown)
    assert str(error).endswith("no answer within 0.3 s")


def test_time_is_what_the_clock_says() -> None:
    """The round trip is counted from connecting to the last byte, and the limit by the same clock."""
    with Server(OK, b"Content-Length: 0\r\n\r\n") as server:
        readings = itertools.count(100)
        calls: list[float] = []

        def clock() -> float:
            calls.append(next(readings))
            return calls[-1]

        assert exchange(server.url, "/x", seconds=1000, clock=clock)[1] == calls[-1] - 100
        assert len(calls) > 3
        with pytest.raises(OllamaDown, match="no answer within 3 s"):
            exchange(server.url, "/x", seconds=3, clock=clock)


@pytest.mark.parametrize(
    ("kind", "more", "kind_of_error", "reason"),
    [
        ("status", {"status": 500}, OllamaAnswer, "answered 500"),
        ("status", {"status": 403}, OllamaAnswer, "answered 403: "),
        ("redirect", {}, OllamaAnswer, "answered 302"),
        ("close", {}, OllamaDown, "closed without an answer"),
        ("hang", {}, OllamaDown, "no answer within 0.3 s"),
        ("huge", {}, OllamaAnswer, "more than 1000 bytes"),
    ],
)
def test_each_fault_of_a_server_has_its_reason(
    ollama: OllamaProcess,
    url: OllamaUrl,
    kind: str,
    more: dict[str, Any],
    kind_of_error: type[OllamaError],
    reason: str,
) -> None:
    """And the next question is answered again; no connection is left open."""
    ollama.fault("/api/ps", kind, times=1, **more)
    open_before = os.listdir("/proc/self/fd")
    error = refusal(url, seconds=SHORT if kind == "hang" else 10)
    assert len(os.listdir("/proc/self/fd")) == len(open_before)
    assert type(error) is kind_of_error
    assert reason in str(error)
    assert exchange(url, "/api/ps")[0].startswith(b'{"models": [')


def test_a_server_that_hangs_is_down_and_back_when_it_goes_on(ollama: OllamaProcess) -> None:
    """A stopped process takes connections and says nothing."""
    url = OllamaUrl("127.0.0.1", ollama.port)
    ollama.pause()
    try:
        assert isinstance(refusal(url, seconds=SHORT), OllamaDown)
    finally:
        ollama.resume()
    assert exchange(url, "/api/version")[0] == b'{"version": "0.33.0"}'


# -- anything ----------------------------------------------------------------------------------------------------------

PARTS = st.sampled_from(
    [
        *(
            OK,
            b"HTTP/1.1 100 C\r\n\r\n",
            b"HTTP/1.0 204 x\r\n",
            b"HTTP/1.1 ",
            b"Content-Length: 3\r\n",
        ),
        *(
            b"Transfer-Encoding: chunked\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"3\r\nabc\r\n",
            b"0\r\n",
            b"abc",
        ),
        *(b"Content-Length: ", b"7;", b"\0", b"200", b":", b" ", b"ffffffff\r\n", b"-"),
    ]
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@settings(max_examples=200, deadline=None)
@given(answer=st.lists(PARTS | st.binary(max_size=20), max_size=12))
def test_any_bytes_are_an_answer_or_an_error_of_ours(server: Server, answer: list[bytes]) -> None:
    """Whatever a server sends, nothing else is raised and nothing more than the limit comes back."""
    server.answer = [b"".join(answer)]
    try:
        body, _ = exchange(server.url, "/x", seconds=10, most_bytes=50)
    except OllamaError:
        return
    assert len(body) <= 50


# -- ended from outside ------------------------------------------------------------------------------------------------


class Asking(threading.Thread):
    """Asks in a thread; `sockets` are those that it has opened, `error` is what it ended with."""

    def __init__(self, url: OllamaUrl) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.sockets: list[socket.socket] = []
        self.opened = threading.Event()
        self.error: Optional[OllamaError] = None
        self.start()

    def run(self) -> None:
        try:
            exchange(self._url, "/x", seconds=60, opened=self._note)
        except OllamaError as error:
            self.error = error

    def _note(self, one: socket.socket) -> None:
        self.sockets.append(one)
        self.opened.set()

    def shut_down(self) -> OllamaError:
        """Shut its socket down as soon as that can be done, and give the error that it ends with."""
        assert self.opened.wait(10)
        while self.is_alive():
            try:
                self.sockets[-1].shutdown(socket.SHUT_RDWR)
                break
            except OSError:  # it is not connecting yet
                self.join(0.01)
        self.join(10)
        assert self.error is not None
        return self.error


@pytest.mark.parametrize("answer", [b"", OK + b"Content-Length: 9\r\n\r\n1"])
def test_another_thread_may_end_a_question(answer: bytes) -> None:
    """A socket that is shut down ends the question that waits for an answer or for the rest of one, and is closed."""
    with Server(answer, stay=True) as server:
        asking = Asking(server.url)
        while not server.requests:
            asking.join(0.01)
        assert "closed" in str(asking.shut_down())
        assert {one.fileno() for one in asking.sockets} == {-1}


def test_another_thread_may_end_a_connect() -> None:
    """So does a question whose connection nobody takes: the queue of the listener is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        asking = Asking(OllamaUrl("127.0.0.1", listener.getsockname()[1]))
        assert isinstance(asking.shut_down(), OllamaDown)


def test_who_is_told_of_a_socket_may_refuse_it() -> None:
    """An OSError of `opened` ends the question before anything is sent, also when the socket has connected."""
    for times in (1, 2):
        told: list[bool] = []

        def refuse(one: socket.socket, told: list[bool] = told, times: int = times) -> None:
            told.append(one.getsockname()[1] != 0)
            if len(told) == times:
                raise OSError("not any more")

        with Server(OK) as server, pytest.raises(OllamaDown, match="/x: not any more"):
            exchange(server.url, "/x", opened=refuse)
        assert told == [False, True][:times]
        assert b"".join(server.requests) == b""
