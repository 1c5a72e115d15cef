"""`rank`: what a balancer takes from whatever a host answers, and a table of it that nobody can forge."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gzip
import json
import math
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Optional

import balancer
import pytest
from agent_process import AgentProcess
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ports import free_port

from ollama_metrics import fleet, rank_command
from ollama_metrics.drain import DrainFile
from ollama_metrics.fleet import Fleet, Poll, parse_host
from ollama_metrics.fleet_answer import FIELDS, Reading, decode, legible
from ollama_metrics.rank_table import cells, clip, render, rows_of

COMMAND = (sys.executable, "-m", "ollama_metrics", "rank")
PATIENCE = 30.0
GOOD = {
    "cpu_percent": 20.0,
    "ram_percent": 30.0,
    "gpu_count": 2,
    "gpu_avg_utilization_percent": 80.0,
    "gpu_avg_memory_percent": 70.0,
}
# U+009B begins a sequence as ESC [ does, U+202E turns a line around.
HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \u202edrawkcab \r\n\x00 \u0336\u0336 \ud800 forged"
HOSTILE_JSON = json.dumps(HOSTILE)


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole HTTP answer."""
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def document(**more: Any) -> bytes:
    return answer(json.dumps({**GOOD, **more}).encode())


class Hosts:
    """Hosts on loopback, each a port, in an event loop of their own; each answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.AbstractServer] = []

    def add(
        self,
        said: Any,
        hangs: bool = False,
        drip: float = 0.0,
        host: str = "127.0.0.1",
    ) -> str:
        """A host's address. `said` may be a function of the address that was connected to."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                text = said(writer.get_extra_info("sockname")[0]) if callable(said) else said
                if drip:
                    for byte in text:
                        writer.write(bytes([byte]))
                        await asyncio.sleep(drip)
                writer.write(b"" if drip else text)
                if hangs:
                    await reader.read()
            except (OSError, EOFError):
                pass  # the client has had enough
            finally:
                writer.close()

        async def start() -> int:
            server = await asyncio.start_server(serve, host, 0, backlog=1024)
            self._servers.append(server)
            port: int = server.sockets[0].getsockname()[1]
            return port

        port = asyncio.run_coroutine_threadsafe(start(), self._loop).result(PATIENCE)
        return f"127.0.0.1:{port}"

    def silent(self, backlog: int = 1024, host: str = "127.0.0.1") -> str:
        """A host that takes connections, as many as `backlog`, and never says a word."""
        listening = socket.create_server((host, 0), backlog=backlog)
        self._sockets.append(listening)
        return f"127.0.0.1:{listening.getsockname()[1]}"

    def unreachable(self) -> str:
        """A host that does not even take a connection."""
        address = self.silent(backlog=0)
        host, port = address.split(":")
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((host, int(port)))
            self._sockets.append(filler)
        return address

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        for one in self._sockets:
            one.close()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with contextlib.closing(Hosts()) as hosts:
        yield hosts


def poll(*names: str, timeout: float = 5.0) -> list[Poll]:
    with contextlib.closing(Fleet([parse_host(name) for name in names], timeout)) as fleet:
        return fleet.poll()


def run(
    *arguments: str, shell: str = 'exec "$@"', **popen: Any
) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        ["/bin/sh", "-c", shell, "sh", *COMMAND, *arguments],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        **{"text": True, "errors": "strict", **popen},
    )


def environment(**more: str) -> dict[str, str]:
    unwanted = re.compile("OLLAMA_|COLUMNS$|NO_COLOR$|TERM$")
    inherited = {name: value for name, value in os.environ.items() if not unwanted.match(name)}
    return {**inherited, "PYTHONWARNINGS": "error", "PYTHONUTF8": "1", "TERM": "xterm", **more}


# -- decoding ----------------------------------------------------------------------------------------------------------

# What json.NewDecoder(body).Decode(&fields) of Go 1.26 gave for these, None for an error.
GO = [
    (b"{}", (0, 0, 0, 0, 0)),
    (b"null", (0, 0, 0, 0, 0)),
    (b" null x", (0, 0, 0, 0, 0)),
    (b"[]", None),
    (b"1", None),
    (b'"a"', None),
    (b"true", None),
    (b"", None),
    (b"   ", None),
    (b"\xef\xbb\xbf{}", None),
    (b"\x0b{}", None),
    (b"\xc2\xa0{}", None),
    (b"# HELP cpu_percent\ncpu_percent 5\n", None),
    (b'{"cpu_percent":5}garbage', (5, 0, 0, 0, 0)),
    (b'{"cpu_percent":5}\xff', (5, 0, 0, 0, 0)),
    (b'{"cpu_percent":5}{"cpu_percent":6}', (5, 0, 0, 0, 0)),
    (b'{"cpu_percent":"5"}', None),
    (b'{"cpu_percent":true}', None),
    (b'{"cpu_percent":{}}', None),
    (b'{"cpu_percent":[]}', None),
    (b'{"cpu_percent":null}', (0, 0, 0, 0, 0)),
    (b'{"cpu_percent":NaN}', None),
    (b'{"x":NaN}', None),
    (b'{"x":-Infinity}', None),
    (b'{"cpu_percent":5,"cpu_percent":6}', (6, 0, 0, 0, 0)),
    (b'{"cpu_percent":5,"cpu_percent":null}', (5, 0, 0, 0, 0)),
    (b'{"cpu_percent":"x","cpu_percent":5}', None),
    (b'{"CPU_Percent":7}', (7, 0, 0, 0, 0)),
    (b'{"cpu_percent":5,"CPU_PERCENT":7}', (7, 0, 0, 0, 0)),
    (b'{"CPU_PERCENT":7,"cpu_percent":5}', (5, 0, 0, 0, 0)),
    (b'{"cpu\\u005fpercent":3}', (3, 0, 0, 0, 0)),
    (b'{"x":{"cpu_percent":9}}', (0, 0, 0, 0, 0)),
    (b'{"gpu_count":2}', (0, 0, 2, 0, 0)),
    (b'{"gpu_count":2.0}', None),
    (b'{"gpu_count":2e0}', None),
    (b'{"gpu_count":01}', None),
    (b'{"gpu_count":-0}', (0, 0, 0, 0, 0)),
    (b'{"gpu_count":-1,"gpu_avg_memory_percent":50}', (0, 0, -1, 0, 50)),
    (b'{"gpu_count":true}', None),
    (b'{"gpu_count":9223372036854775807}', (0, 0, 9223372036854775807, 0, 0)),
    (b'{"gpu_count":9223372036854775808}', None),
    (b'{"gpu_count":-9223372036854775808}', (0, 0, -9223372036854775808, 0, 0)),
    (b'{"gpu_count":-9223372036854775809}', None),
    (b'{"cpu_percent":1e400}', None),
    (b'{"x":1e400}', (0, 0, 0, 0, 0)),
    (b'{"cpu_percent":1e-400}', (0, 0, 0, 0, 0)),
    (b'{"cpu_percent":' + b"1" * 400 + b"}", None),
    (b'{"x":' + b"1" * 5000 + b"}", (0, 0, 0, 0, 0)),
    (b'{"cpu_percent":1.}', None),
    (b'{"cpu_percent":+1}', None),
    (b'{"cpu_percent":1E1}', (10, 0, 0, 0, 0)),
    (b'{"x":"\xff","cpu_percent":4}', (4, 0, 0, 0, 0)),
    (b'{"x":\xff}', None),
    (b'{"x":"\\ud800"}', (0, 0, 0, 0, 0)),
    (b'{"x":"a\tb"}', None),
    (b'{"cpu_percent":5,}', None),
    (b"{'cpu_percent':5}", None),
    (b'{"cpu_percent":5', None),
    (b'{"a":' + b"[" * 900 + b"]" * 900 + b',"cpu_percent":2}', (2, 0, 0, 0, 0)),
    (b'{"a":' + b"[" * 20000 + b"]" * 20000 + b"}", None),
]


def five(reading: Reading) -> tuple[float, ...]:
    return tuple(getattr(reading, name) for name in FIELDS)


@pytest.mark.parametrize(("body", "expected"), GO)
def test_a_body_is_decoded_as_go_decodes_it(
    body: bytes, expected: Optional[tuple[float, ...]]
) -> None:
    """Each odd body gives the numbers that Go's decoder gives, or fails where that fails."""
    if expected is None:
        with pytest.raises(ValueError):
            decode(body)
    else:
        assert five(decode(body)) == expected


def refereed(body: bytes) -> Optional[balancer.Poll]:
    try:
        return balancer.decode(body)
    except balancer.PollFailed:
        return None


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 40), 1 << 40),  # of larger ones the referee makes no float64
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "x"]), values), st.sampled_from(["", " x", "{"]))
@example({"gpu_count": 2.0}, "")
@example({"x": math.nan}, "")
def test_it_agrees_with_the_referee(fields: dict[str, Any], tail: str) -> None:
    """Whatever types an object's five fields have, the referee takes the same numbers and weighs the same, or fails."""
    body = (json.dumps(fields) + tail).encode()
    expected = refereed(body)
    if expected is None:
        with pytest.raises(ValueError):
            decode(body)
    else:
        assert five(decode(body)) == tuple(expected)
        assert decode(body).weight == expected.weight


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.one_of(values, st.text()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.dictionaries(
                    st.sampled_from(["status", "reasons", "ollama", "in_flight", "weight"])
                    | st.sampled_from(["age_seconds", *FIELDS]),
                    inner,
                    max_size=6,
                ),
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
@example(b'{"age_seconds":1e999,"weight":-1e999,"ollama":{"in_flight":1e999}}')
def test_no_body_is_more_than_a_failed_poll(body: bytes) -> None:
    """Any bytes give a reading that can be shown, or a ValueError of one printable line."""
    error, (row,) = "", rows_of(polled("no reading"))
    try:
        (row,) = rows_of(polled(decode(body)))
    except ValueError as caught:
        error = str(caught)
    assert error.isprintable()
    assert all(line.isprintable() for line in render([row], 80))
    json.loads(rank_command.to_json([row], None), parse_constant=pytest.fail)


def test_the_agents_own_keys() -> None:
    """Status, reasons, age, requests in flight and weight are read where they make sense, and else unknown."""
    own = decode(
        b'{"status":"ok","reasons":["a","b"],"age_seconds":0.5,"weight":7.5,"ollama":{"in_flight":3}}'
    )
    assert (own.status, own.reasons, own.age_seconds) == ("ok", ("a", "b"), 0.5)
    assert (own.said_weight, own.in_flight) == (7.5, 3)
    for strange in (
        b"{}",
        b'{"status":1,"reasons":"a","age_seconds":"1","weight":true,"ollama":{"in_flight":"3"}}',
        b'{"status":"","reasons":{"a":1},"age_seconds":-1,"weight":[],"ollama":[["in_flight",1]]}',
        b'{"reasons":[1,null],"age_seconds":1e999,"ollama":{"in_flight":-1}}',
    ):
        own = decode(strange)
        assert (own.status, own.reasons, own.age_seconds) == (None, (), None)
        assert (own.said_weight, own.in_flight) == (None, None)


# -- hosts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("gpu1", "http://gpu1:11435"),
        ("gpu1:8080", "http://gpu1:8080"),
        ("gpu1:80", "http://gpu1:80"),
        ("gpu1:11434", "http://gpu1:11434"),
        ("10.0.0.7", "http://10.0.0.7:11435"),
        ("[2001:db8::7]", "http://[2001:db8::7]:11435"),
        ("[2001:db8::7]:8080", "http://[2001:db8::7]:8080"),
        ("2001:db8::7", "http://[2001:db8::7]:11435"),
        ("http://gpu1", "http://gpu1:80"),
        ("HTTP://gpu1:8080/agent/", "http://gpu1:8080/agent"),
    ],
)
def test_a_host_is_asked_on_the_agents_port(text: str, url: str) -> None:
    """A host without a port means 11435, a URL without one 80; what is given is kept."""
    assert str(parse_host(text).url) == url


@pytest.mark.parametrize(
    "text", ["", "a b", "a\x1b[2J", "a:0", "a:99999", "https://a", "ftp://a", "a?b", "1.2.3", "u@h"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    """Anything else is refused with a printable clause."""
    with pytest.raises(ValueError) as caught:
        parse_host(text)
    assert str(caught.value).isprintable()


def test_the_request_is_gos(hosts: Hosts) -> None:
    """What is sent is to the byte what Go's client sends: no Accept, gzip offered."""
    address = hosts.add(document())
    poll(address, f"http://{address}/agent/")
    rest = "User-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n"
    assert sorted(hosts.requests) == [
        f"GET /agent/metrics HTTP/1.1\r\nHost: {address}\r\n{rest}".encode(),
        f"GET /metrics HTTP/1.1\r\nHost: {address}\r\n{rest}".encode(),
    ]


def test_the_host_header_of_addresses() -> None:
    """An IPv6 address has its brackets there and no zone, and http's own port is left out."""
    for text, header in (
        ("[fe80::1%eth0]:11435", b"[fe80::1]:11435"),
        ("http://gpu1", b"gpu1"),
        ("gpu1:80", b"gpu1"),
    ):
        assert b"\r\nHost: " + header + b"\r\n" in parse_host(text).request


BODY = json.dumps(GOOD).encode()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [
        answer(BODY),
        answer(BODY).replace(b"\r\n", b"\n"),
        b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
        b"HTTP/1.1 200\r\n\r\n" + BODY,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(BODY),
        CHUNKED + b"5;x=y\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n\r\n",
        answer(gzip.compress(BODY, mtime=0), "Content-Encoding: GZIP"),
        answer(gzip.compress(BODY[:9], mtime=0) + gzip.compress(BODY[9:], mtime=0), "content-encoding: gzip"),
        answer(BODY, "Content-Type: text/plain"),
        answer(BODY) + b"HTTP/1.1 500 Not asked for\r\n\r\n",
        answer(BODY, f"Content-Length: {len(BODY)}"),
    ],
)  # fmt: skip
def test_an_answer_is_read(hosts: Hosts, said: bytes) -> None:
    """A body is found in every framing and coding that Go's client takes."""
    (one,) = poll(hosts.add(said))
    assert one.error == ""
    assert one.reading is not None
    assert five(one.reading) == tuple(GOOD.values())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", "closed before the end"),
        (b"SSH-2.0-OpenSSH\r\n", "not answer in HTTP"),
        (b"HTTP/1.1 200OK\r\n\r\n{}", "not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n{}", "not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"x" * 200_000, "a line of it has no end"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n{}", "more than 256 headers"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + answer(BODY), "HTTP status 100"),
        (answer(BODY, status="503 Service Unavailable"), "HTTP status 503"),
        (answer(BODY, "Location: http://x/", status="302 Found"), "302: give the address"),
        (answer(BODY)[:-1], "closed before the end"),
        (CHUNKED + b"5\r\n{}", "closed before the end"),
        (CHUNKED + b"-5\r\n{}\r\n0\r\n\r\n", "no size"),
        (CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n", "longer than it says"),
        (CHUNKED + b"fffffffff\r\n", "longer than 4 MB"),
        (CHUNKED + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 5, "longer than 4 MB"),
        (CHUNKED.replace(b"Chunked", b"gzip") + BODY, "encoded for transfer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}", "no length"),
        (answer(BODY, "Content-Length: 1"), "no length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}", "longer than 4 MB"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (5 << 20), "longer than 4 MB"),
        (
            answer(gzip.compress(b" " * (50 << 20), mtime=0), "Content-Encoding: gzip"),
            "longer than 4 MB",
        ),
        (answer(BODY, "Content-Encoding: gzip"), "no gzip"),
        (answer(gzip.compress(BODY, mtime=0)[:-9], "Content-Encoding: gzip"), "no end"),
        (answer(gzip.compress(b"", mtime=0) * 40, "Content-Encoding: gzip"), "empty"),
        (answer(HOSTILE_JSON.encode()), "no JSON object"),
        (answer(b"\x1b[2J\x07# HELP"), "it begins with '[2J # HELP'"),
        (answer(b'{"gpu_count":' + HOSTILE_JSON.encode() + b"}"), "only an integer"),
    ],
)
def test_an_answer_that_is_none_is_said_in_words(hosts: Hosts, said: bytes, error: str) -> None:
    """Each answer that a balancer cannot use gives an error that says why, in one short printable line."""
    (one,) = poll(hosts.add(said))
    assert one.reading is None
    assert error in one.error
    assert one.error.isprintable()
    assert len(one.error) < 120


def test_what_takes_too_long_says_what_was_missing(hosts: Hosts) -> None:
    """The time is for all of a poll, however much comes meanwhile; the error says how far it got."""
    said = document()
    polls = poll(
        hosts.unreachable(),
        hosts.silent(),
        hosts.add(said[:-1], hangs=True),
        hosts.add(said, drip=0.05),
        timeout=1.0,
    )
    assert [one.error for one in polls] == [
        "no connection within 1 s",
        "connected, but no answer within 1 s",
        "no end of its answer within 1 s",
        "no end of its answer within 1 s",
    ]


def test_nobody_listens() -> None:
    """A refused connection names the port."""
    port = free_port()
    (one,) = poll(f"127.0.0.1:{port}")
    assert one.error == f"nothing listens on port {port} (refused)"


def test_an_answer_may_be_followed_by_silence(hosts: Hosts) -> None:
    """A connection that stays open after the body, as HTTP/1.1 has it, is not waited for."""
    (one,) = poll(hosts.add(document(), hangs=True))
    assert one.reading is not None


def test_a_name_that_hangs_holds_up_no_other(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs costs its own host the poll and nobody else; it is asked once for a name."""
    ask = socket.getaddrinfo
    ended, asked = threading.Event(), []

    def getaddrinfo(host: Any, port: int, flags: int = 0, **kwargs: Any) -> Any:
        if flags:
            return ask(host, port, flags=flags, **kwargs)
        asked.append(host)
        if host == b"slow":
            ended.wait(PATIENCE)
        if host in (b"slow", b"unknown"):
            raise socket.gaierror(-2, "Name or service not known")
        return ask("127.0.0.1", port, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = hosts.add(document()).split(":")[1]
    names = ["slow:1", "slow:2", "unknown", f"fine:{port}"]
    with contextlib.closing(Fleet([parse_host(name) for name in names], 0.5)) as one:
        for _ in range(2):
            polls = one.poll()
            assert [poll.error for poll in polls] == [
                "its name was not looked up within 0.5 s",
                "its name was not looked up within 0.5 s",
                "its name is not known (Name or service not known)",
                "",
            ]
        assert asked.count(b"slow") == 1
        ended.set()


@pytest.mark.parametrize("first", ["refuses", "hangs"])
def test_a_host_with_two_families_is_reached_by_either(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """As with Go, an IPv6 address that refuses or hangs does not keep the IPv4 address from being tried."""
    port = int(hosts.add(document()).split(":")[1])
    connect = fleet._connect

    async def connecting(addresses: Sequence[Any]) -> socket.socket:
        if addresses[0][0] == socket.AF_INET6 and first == "hangs":
            await asyncio.sleep(PATIENCE)
        return await connect(addresses)

    both = (
        (socket.AF_INET6, ("::1", 0, 0, 0)),
        (socket.AF_INET, ("127.0.0.1", 0)),
    )
    monkeypatch.setattr(fleet, "_addresses", lambda _host, _flags: both)
    monkeypatch.setattr(fleet, "_connect", connecting)
    (one,) = poll(f"two:{port}", timeout=10.0)
    assert one.error == ""


# -- order and notes ---------------------------------------------------------------------------------------------------


def reading(cpu: float = 0.0, **more: Any) -> Reading:
    return Reading(cpu, 0.0, 0, 0.0, 0.0, **more)


def polled(*results: Any) -> list[Poll]:
    """Polls of h0, h1, ...: of readings or of errors."""
    return [
        Poll(parse_host(f"h{number}"), None, result)
        if isinstance(result, str)
        else Poll(parse_host(f"h{number}"), result)
        for number, result in enumerate(results)
    ]


def test_the_lowest_weight_is_next_and_errors_are_last() -> None:
    """Hosts stand by weight, those without one at the end in their order, and the first gets the next request."""
    rows = rows_of(polled("refused", reading(9), reading(3), "hangs", reading(5)))
    assert [row.poll.target.text for row in rows] == ["h2", "h4", "h1", "h0", "h3"]
    assert [row.next for row in rows] == [True, False, False, False, False]
    assert not any(row.next for row in rows_of(polled("refused", "hangs")))


def test_a_weight_that_is_no_number_is_never_next() -> None:
    """Fields whose sum is not finite sort behind every other weight, and JSON has null for it."""
    huge = Reading(1.7e308, 1.7e308, 1, -1.7e308, -1.7e308)
    assert math.isnan(huge.weight)
    rows = rows_of(polled(huge, reading(1e300)))
    assert [row.poll.target.text for row in rows] == ["h1", "h0"]
    assert json.loads(rank_command.to_json(rows, None))[1]["weight"] is None
    assert max(map(len, render(rows, 80))) <= 80


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 100.0]), min_size=1, max_size=8))
def test_the_next_one_is_the_referees(weights: list[float]) -> None:
    """Of hosts that all answer, the marked one is whom the referee picks, ties and all."""
    polls = polled(*map(reading, weights))
    picked = balancer.pick(
        {f"h{number}": balancer.Poll(cpu, 0.0, 0, 0.0, 0.0) for number, cpu in enumerate(weights)}
    )
    assert rows_of(polls)[0].poll.target.text == picked


def notes_of(*results: Any) -> list[str]:
    return [note for row in rows_of(polled(*results)) for note in row.notes]


@pytest.mark.parametrize("status", ["failing", "draining"])
def test_a_host_that_is_out_and_next_is_warned_of(status: str) -> None:
    """A failing or draining host that gets the next request is told, and whether there is a better one."""
    (note,) = notes_of(reading(5, status="ok"), reading(1, status=status))
    assert note == f"{status}, and yet the next request goes to it"
    (note,) = notes_of(reading(5, status="failing"), reading(1, status=status))
    assert "no host that answers is ok" in note
    assert notes_of(reading(5, status=status), reading(1, status="ok")) == []


def test_a_weight_that_the_fields_do_not_give_is_said() -> None:
    """The agent's own weight is compared with that of its fields, rounding aside."""
    assert notes_of(reading(5, said_weight=5.04)) == []
    (note,) = notes_of(reading(5, said_weight=2.5))
    assert "calls its weight 2.50, and its five fields give 5.00" in note
    assert notes_of(reading(math.inf, said_weight=2.5))


def test_fields_that_are_missing_are_said() -> None:
    """A host without CPU or RAM, or with GPUs and without their numbers, counts as idle, which is told."""
    assert notes_of(decode(b'{"cpu_percent":1,"ram_percent":1}')) == []
    (note,) = notes_of(decode(b'{"cpu_percent":1}'))
    assert note == "without ram_percent, for which the balancer takes 0"
    (note,) = notes_of(decode(b'{"cpu_percent":1,"ram_percent":1,"gpu_count":1}'))
    assert "gpu_avg_utilization_percent and gpu_avg_memory_percent" in note


@pytest.mark.parametrize("cpu", [-1.0, 501.0])
def test_a_weight_that_no_percentages_give_is_said(cpu: float) -> None:
    """A weight below 0, which always wins, or above 500 is told."""
    (note,) = notes_of(reading(cpu))
    assert "not within 0 to 500" in note


def test_what_a_balancer_does_with_a_failed_poll_is_said_once() -> None:
    """Hosts whose polls failed are named together, with the two polls for which their last weight stands."""
    lines = render(rows_of(polled("a", "b", "c", "d", "e", "f", reading(1))), None)
    (line,) = (line for line in lines if "two more polls" in line)
    assert line.startswith("h0, h1, h2, h3 and 2 more: the poll failed: a balancer keeps the last")


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table() -> None:
    """The columns stand under their names, an error across them, and the whole is summed up."""
    full = Reading(
        20.0, 30.0, 2, 80.0, 70.0, (), "degraded", ("1 of 4 lost", "and more"), 0.41, 3, 275.0
    )
    lines = render(rows_of(polled("nothing listens", full, reading(7.5))), 80)
    assert lines[:6] == [
        "  HOST  WEIGHT  STATUS     AGE  GPUS  REQS  REASONS",
        "> h2      7.50  -            -     0     -  -",
        "  h1    275.00  degraded  0.4s     2     3  1 of 4 lost; and more",
        "  h0         -  nothing listens",
        "",
        "3 hosts, 2 usable answers",
    ]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=60),
            st.builds(
                reading,
                cpu=st.floats(allow_nan=False, allow_infinity=False),
                status=st.none() | st.text(max_size=20).map(lambda text: legible(text, 16)),
                reasons=st.lists(st.text()).map(
                    lambda texts: tuple(legible(text, 300) for text in texts)
                ),
                age_seconds=st.none() | st.floats(min_value=0, allow_infinity=False),
                in_flight=st.none() | st.integers(0, 10**9),
            ),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(40, 200),
    st.integers(5, 30),
)
def test_no_line_is_wider_than_the_terminal(results: list[Any], width: int, height: int) -> None:
    """Whatever hosts say, each line fits the terminal's columns, and all of them its lines."""
    results = [legible(one, 100) if isinstance(one, str) else one for one in results]
    lines = render(rows_of(polled(*results)), width, height)
    assert max(map(cells, lines)) <= width
    assert len(lines) <= height
    assert all(line.isprintable() for line in lines)


def test_wide_characters_count_twice() -> None:
    """East Asian characters take two columns, and none is cut in half."""
    assert cells("漢字") == 4
    assert clip("漢字漢字漢字", 8) == "漢字..."
    assert clip("abcdef", 5) == "ab..."
    assert clip("abcdef", 6) == "abcdef"


def test_colour_is_never_the_only_sign() -> None:
    """With colours the table says what it says without them."""
    rows = rows_of(polled("refused", reading(1, status="failing"), reading(2, status="ok")))
    coloured = render(rows, 100, colour=True)
    assert "\x1b[31m" in "".join(coloured)
    assert [re.sub("\x1b\\[[0-9]*m", "", line) for line in coloured] == render(rows, 100)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_real_agent(start_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    """An agent shows with its status and age, and the exit code is 0; drained it weighs 500, and it still is 0."""
    agent = start_agent("--interval", "0.1", "--expected-gpus", "0")
    name = f"127.0.0.1:{agent.port}"
    process = run(name)
    assert (process.returncode, process.stderr) == (0, "")
    assert re.search(
        rf"^> {re.escape(name)} +\d+\.\d\d  ok +\d\.\ds +0 +-$", process.stdout, re.MULTILINE
    ), process.stdout
    DrainFile(str(tmp_path / "state")).begin("kernel \x1b[31mupdate", None)
    agent.wait_until(lambda document: document["status"] == "draining")
    process = run("--json", name)
    assert process.returncode == 0
    (entry,) = json.loads(process.stdout)
    assert (entry["weight"], entry["status"], entry["next"]) == (500, "draining", True)
    assert "kernel" in entry["reasons"][0]
    assert "the next request goes to it" in entry["notes"][0]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["ok", "degraded"], 0),
        (["ok", "draining"], 0),
        ([None], 0),
        (["ok", "failing"], 1),
        (["ok", "silent"], 1),
    ],
)
def test_the_exit_code(hosts: Hosts, statuses: list[Optional[str]], code: int) -> None:
    """0 when all answer and none is failing, 1 otherwise; draining is what somebody wanted."""
    names = [
        hosts.silent() if status == "silent" else hosts.add(document(status=status))
        for status in statuses
    ]
    for option in ((), ("--json",)):
        assert run("--timeout", "0.5", *option, *names).returncode == code


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["HOST", "at least one host", "--file"]),
        (["a b"], ["HOST", "'a b'", "spaces"]),
        (["https://gpu1"], ["'https://gpu1'", "such as gpu1:11435"]),
        (["--timeout", "0", "gpu1"], ["--timeout", "'0'", "seconds from 0.1 to 60"]),
        (["--timeout", "nan", "gpu1"], ["--timeout", "'nan'"]),
        (["gpu1", "--watch", "1e9"], ["--watch", "'1e9'", "seconds from 0.1 to 3600"]),
        (["gpu1", "--watch", "2s"], ["--watch", "'2s'", "seconds from 0.1 to 3600"]),
        (["gpu1", "--watch", ""], ["--watch", "''", "seconds from 0.1 to 3600"]),
        (["--file", "/nowhere"], ["--file", "'/nowhere'", "No such file"]),
        (["--file", "/"], ["--file", "'/'", "cannot be read"]),
        (["--file", "/dev/null"], ["--file", "no host in it"]),
        (["--file", "/dev/zero"], ["--file", "larger than 1 MB"]),
        (["--file", sys.executable], ["--file", "UTF-8"]),
        (["--nonsense"], ["--nonsense"]),
    ],
)  # fmt: skip
def test_a_mistake_is_exit_2_and_one_line(arguments: list[str], parts: list[str]) -> None:
    """A wrong call ends in exit 2 and one line that names what was wrong and what would do."""
    process = run(*arguments)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("ollama-metrics: ")
    assert process.stderr.count("\n") == 1
    for part in parts:
        assert part in process.stderr


def test_hosts_of_a_file_come_after_those_named(hosts: Hosts, tmp_path: Path) -> None:
    """--file has one host a line, comments and blank lines aside; - is standard input; a bad line is named."""
    names = [hosts.add(document()) for _ in range(3)]
    file = tmp_path / "hosts"
    text = f"\ufeff# pool\n{names[1]}   # rack 2\r\n\n  {names[2]}\n"
    file.write_text(text, "utf-8")
    for process in (
        run("--json", "--file", str(file), names[0]),
        run("--json", "--file", "-", names[0], input=text),
    ):
        assert [entry["host"] for entry in json.loads(process.stdout)] == names
    process = run("--file", "-", input="gpu1\n\ngpu 2\n")
    assert process.returncode == 2
    assert "--file, line 3: 'gpu 2'" in process.stderr


def test_help_has_examples_and_exit_codes() -> None:
    """`rank --help` shows every option, examples and the exit codes, within 80 columns."""
    process = run("--help")
    assert process.returncode == 0
    assert max(map(len, process.stdout.splitlines())) <= 80
    for part in ("--file", "--watch", "--json", "--timeout", "examples:", "Exit codes: 0", "11435"):
        assert part in process.stdout


def test_json_for_scripts(hosts: Hosts) -> None:
    """--json is one array in the table's order, with everything that the table says and nothing a terminal obeys."""
    bad, good = (
        hosts.add(document(gpu_count=1.5)),
        hosts.add(document(status="ok", reasons=[f"a\x7f {HOSTILE}"], ollama={"in_flight": 3})),
    )
    process = run("--json", bad, good)
    first, second = json.loads(process.stdout)
    assert (first["host"], first["next"], first["weight"]) == (good, True, 275.0)
    assert (first["status"], first["in_flight"], first["gpu_count"]) == ("ok", 3, 2)
    assert first["error"] is None
    assert (second["host"], second["next"], second["weight"]) == (bad, False, None)
    assert second["error"] == "gpu_count is 1.5, and the balancer takes only an integer"
    assert second["url"] == f"http://{bad}/metrics"
    assert process.stdout.replace("\n", "").isprintable()


def test_no_control_character_reaches_the_output(hosts: Hosts) -> None:
    """Escape sequences in status, reasons and bodies are gone from the table, in whatever encoding."""
    name = hosts.add(document(status=HOSTILE, reasons=[HOSTILE, "漢字"]))
    bad = hosts.add(answer(HOSTILE_JSON.encode()))
    for shell in ('exec "$@"', 'unset PYTHONUTF8; PYTHONIOENCODING=ascii exec "$@"'):
        process = run(name, bad, shell=shell)
        assert process.stderr == ""
        assert "forged" in process.stdout
        assert process.stdout.replace("\n", "").isprintable()
        assert "\u202e" not in process.stdout


def test_500_hosts_half_of_which_hang(hosts: Hosts) -> None:
    """500 hosts are polled at once: those that answer are all read while as many hang."""
    # All of 127.0.0.0/8 is this host: each address is a host of its own here.
    port = hosts.add(
        lambda address: document(
            cpu_percent=float(address.rpartition(".")[2]), weight=None, status="ok"
        ),
        host="0.0.0.0",
    ).split(":")[1]
    hanging = hosts.silent(host="0.0.0.0").split(":")[1]
    names = [f"127.0.1.{number}:{port}" for number in range(250, 0, -1)]
    names += [f"127.0.2.{number}:{hanging}" for number in range(1, 251)]
    process = run("--json", "--file", "-", "--timeout", "3", input="\n".join(names))
    assert process.returncode == 1
    rows = json.loads(process.stdout)
    assert [row["host"] for row in rows[:250]] == names[249::-1]
    assert [row["host"] for row in rows[250:]] == names[250:]
    # How many connections wait to be accepted is the kernel's to say.
    assert {row["error"] for row in rows[250:]} <= {
        "connected, but no answer within 3 s",
        "no connection within 3 s",
    }


def test_open_files(hosts: Hosts) -> None:
    """The soft limit of open files is raised as far as needed; where the hard one is too low, it is said what to do."""
    port = hosts.add(document(), host="0.0.0.0").split(":")[1]
    names = [f"127.0.1.{number}:{port}" for number in range(1, 101)]
    process = run(*names, shell='ulimit -Sn 32; exec "$@"')
    assert (process.returncode, process.stderr) == (0, "")
    assert "100 hosts, 100 usable answers" in process.stdout
    process = run(*names, shell='ulimit -n 128; exec "$@"')
    assert (process.returncode, process.stdout) == (2, "")
    assert "'100 hosts' is not usable" in process.stderr
    assert "ulimit -Hn" in process.stderr


def test_a_reader_that_goes_away_ends_it(hosts: Hosts) -> None:
    """`| head` ends a --watch without a complaint; a full disk is one."""
    name = hosts.add(document())
    process = run("--watch", "0.1", name, shell='"$@" | head -n 1')
    assert (process.stdout.count("\n"), process.stderr) == (1, "")
    process = run(name, shell='exec "$@" > /dev/full')
    assert process.returncode == 1
    assert process.stderr == "ollama-metrics: cannot write: No space left on device\n"
    process = run(name, shell='exec "$@" >&-')
    assert process.returncode == 1
    assert "standard output is closed" in process.stderr


# -- --watch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True])
def test_watch_without_a_terminal(hosts: Hosts, as_json: bool) -> None:
    """Into a pipe --watch prints one table after another, or an array a line, until SIGINT, which is exit code 130."""
    name = hosts.add(document(status="failing"))
    options = ["--json"] if as_json else []
    with subprocess.Popen(
        [*COMMAND, *options, "--watch", name],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines: list[str] = []
        rows = 0
        while rows < 2:
            lines.append(process.stdout.readline())
            assert lines[-1] or process.poll() is None
            rows += name in lines[-1] and (as_json or lines[-1].startswith(">"))
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=PATIENCE)
        assert (process.returncode, rest[1]) == (130, "")
    if as_json:
        assert [json.loads(line)[0]["host"] for line in lines] == [name, name]
    else:
        assert "every 2 s" in lines[0]
        assert "\x1b" not in "".join(lines)
        assert len(hosts.requests) >= 2


class Terminal:
    """The command on a terminal of its own."""

    def __init__(
        self, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.fd, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment(**variables), stdout=other, stderr=other,
            stdin=other, start_new_session=True,
        )  # fmt: skip
        os.close(other)
        self.text = ""

    def read(self, until: Callable[[str], bool] = lambda _: False) -> str:
        """All that is shown until it is so, or to the end."""
        deadline = time.monotonic() + PATIENCE
        while not until(self.text):
            assert select.select([self.fd], [], [], deadline - time.monotonic())[0], self.text
            try:
                piece = os.read(self.fd, 1 << 16)
            except OSError:  # the other side is closed
                break
            self.text += piece.decode()
        return self.text

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def test_watch_on_a_terminal_draws_over_what_was_there(hosts: Hosts) -> None:
    """A terminal is cleared once; each table is then written over the last one, and fits; SIGINT is 130."""
    names = [hosts.add(document(status="ok", reasons=["漢" * 90])) for _ in range(30)]
    with Terminal("--watch", "0.1", *names) as terminal:
        text = terminal.read(lambda text: text.count("\x1b[J") >= 3)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(PATIENCE) == 130
    cleared, *frames = text.split("\x1b[H")[1:]
    assert cleared == "\x1b[2Jasking 30 hosts ...\r\n"
    assert "\x1b[2J" not in "".join(frames)
    for frame in frames[:3]:
        assert frame.endswith("\x1b[J")
        lines = frame[: -len("\x1b[J")].split("\x1b[K\r\n")[:-1]
        plain = [re.sub("\x1b\\[[0-9]*m", "", line) for line in lines]
        assert "every 0.1 s" in plain[0]
        assert plain[2].startswith("> ")
        assert any(re.fullmatch(r"  and \d+ more", line) for line in plain)
        assert max(map(cells, plain)) < 80
        assert len(plain) < 24
        assert all(line.isprintable() for line in plain)


def test_colours_are_for_terminals(hosts: Hosts) -> None:
    """A terminal gets colours, but none with NO_COLOR and none where it is dumb; a hostile reason adds none."""
    name = hosts.add(document(status="failing", reasons=[HOSTILE]))
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        with Terminal(name, variables=variables) as terminal:
            text = terminal.read()
            assert terminal.process.wait(PATIENCE) == 1
        assert ("\x1b[31mfailing\x1b[0m" in text) is coloured
        plain = re.sub("\x1b\\[(31|1|0)m", "", text).replace("\r\n", "")
        assert "[2J" in plain
        assert plain.isprintable()


def test_watch_may_stand_before_the_hosts(hosts: Hosts) -> None:
    """`--watch HOST` takes the host for one, and polls every two seconds."""
    first, second = hosts.add(document()), hosts.add(document())
    with Terminal("--watch", first, second) as terminal:
        text = terminal.read(lambda text: "\x1b[J" in text)
    assert "every 2 s" in text
    assert text.index(first) < text.index(second)
