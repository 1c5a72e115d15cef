"""What a request's head asks for, and where it ends."""

from __future__ import annotations

import io
import time
from typing import Optional

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollama_metrics.request import LARGEST_BODY, LARGEST_HEAD, Request, parse, split_head


def head(*lines: str) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def error(request: Request) -> Optional[int]:
    return request.error[0] if request.error is not None else None


# -- where a head ends ---------------------------------------------------------------------------------------------


def by_lines(data: bytes) -> tuple[Optional[bytes], bytes]:
    """`split_head`, line by line: a head ends with its first empty line."""
    reader = io.BytesIO(data)
    while (line := reader.readline()).endswith(b"\n"):
        if line in (b"\n", b"\r\n"):
            return data[: reader.tell()], data[reader.tell() :]
    return None, data


@settings(max_examples=250, deadline=None, database=None)
@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"b: c"]), max_size=14).map(b"".join))
@example(b"a\n\r\n\r\nb")
@example(b"a\r\n\n\r\nb")
@example(b"a\n\n\r\n\r\nb")
@example(b"a\r\n\r")
def test_a_head_ends_with_its_first_empty_line(data: bytes) -> None:
    """The head and what follows are those that reading line by line finds, whatever mixture of line ends."""
    data = data.lstrip(b"\r\n")  # as the event loop does it
    assert split_head(data) == by_lines(data)


@settings(deadline=None, database=None)
@given(st.binary(max_size=200))
def test_nothing_is_lost_by_splitting(data: bytes) -> None:
    """Head and rest together are what came in."""
    first, rest = split_head(data)
    assert (first or b"") + rest == data


# -- what it asks for ----------------------------------------------------------------------------------------------


def test_a_request_is_read() -> None:
    """Method, target and Accept are as the client sent them."""
    assert parse(
        head("GET /metrics?window=30 HTTP/1.1", "Host: x", "Accept: text/html", "ACCEPT: */*;q=0.1")
    ) == Request("GET", "/metrics?window=30", "text/html,*/*;q=0.1", keep_alive=True)
    assert parse(head("HEAD / HTTP/1.0")) == Request("HEAD", "/", http_1_0=True)


@pytest.mark.parametrize(
    ("first", "field", "keep_alive"),
    [
        ("GET / HTTP/1.1", "X: y", True),
        ("GET / HTTP/1.1", "Connection: close", False),
        ("GET / HTTP/1.0", "X: y", False),
        ("GET / HTTP/1.0", "Connection: keep-alive", True),
        ("GET / HTTP/1.1", "Content-Length: 0", True),
        ("GET / HTTP/1.1", "Content-Length: 1", False),
        ("POST / HTTP/1.1", "Transfer-Encoding: chunked", False),
        ("POST / HTTP/1.1", "Expect: 100-continue", True),
    ],
)
def test_whether_the_connection_goes_on(first: str, field: str, keep_alive: bool) -> None:
    """A connection ends where the client says so, and behind every body: bodies are not told apart from requests."""
    request = parse(head(first, "Host: x", field))
    assert request.error is None
    assert request.keep_alive is keep_alive
    assert request.body is (not keep_alive and not field.startswith(("X", "Connection")))


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (head("GET /"), 400),
        (head("GET / HTTP/0.9", "Host: x"), 400),
        (head("GET / HTTP/1.1"), 400),
        (head("GET / HTTP/1.1", "Host: x", "host: x"), 400),
        (head("GET / HTTP/1.0", "Host: x", "Host: y"), 400),
        (head("GET / HTTP/2.0", "Host: x"), 505),
        (head("GET / HTTP/1.1", "Host: x", *(f"X-{n}: y" for n in range(100))), 431),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: 1", "Content-Length: 2"), 400),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: 1, 1"), 400),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: -1"), 400),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: 0x10"), 400),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: 1_0"), 400),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: \xb9"), 400),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: "), 400),
        (head("GET / HTTP/1.1", "Host: x", f"Content-Length: {LARGEST_BODY + 1}"), 413),
        (head("GET / HTTP/1.1", "Host: x", "Content-Length: " + "9" * 9999), 413),
        (b"\r\n", 400),
        (b"", 400),
    ],
)
def test_what_is_refused(text: bytes, status: int) -> None:
    """A head that cannot be obeyed is refused with the status for it; what follows it counts as a body."""
    request = parse(text)
    assert error(request) == status
    assert not request.keep_alive
    assert request.body


@pytest.mark.parametrize("lengths", [["7", "7"], [" 7 "], [str(LARGEST_BODY)]])
def test_a_body_of_one_length_is_not_refused(lengths: list[str]) -> None:
    """The same length twice is one length."""
    request = parse(head("POST / HTTP/1.1", "Host: x", *(f"Content-Length: {n}" for n in lengths)))
    assert request.error is None
    assert request.body


def test_a_refused_request_keeps_its_method() -> None:
    """A HEAD request stays one when it is refused: its answer has no body."""
    assert parse(head("HEAD / HTTP/1.1")).method == "HEAD"


@pytest.mark.parametrize(
    "text",
    [
        head("GET / secret HTTP/1.1"),
        head("secret"),
        head("GET / HTTP/secret"),
        head("GET / secret/1.1"),
        head("GET /", "secret: secret"),
        head("GET / HTTP/1.1", "Content-Length: secret", "Host: secret"),
        head("GET / HTTP/1.1", "Host: x", *(f"secret-{n}: secret" for n in range(101))),
    ],
)
def test_a_refusal_does_not_quote_the_client(text: bytes) -> None:
    """What a client sent by mistake, a password say, does not come back in the error."""
    request = parse(text)
    assert request.error is not None
    assert "secret" not in request.error[1]


LINES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"GET / HTTP/1.1",
            b"GET //x HTTP/1.0",
            b"GET / HTTP/1.1.1",
            b"GET / HTTP/\xb2.1",
            b"GET / HTTP/99999999999.1",
            b"Host: x",
            b"Content-Length: 3",
            b"Content-Length: \xb2",
            b"Content-Type: multipart/form-data; boundary=x",
            b"Transfer-Encoding: \xff",
            b"Connection: close, \x00",
            b"Accept: =?utf-8?q?x?=",
            b" folded",
            b"Expect: 100-continue",
        ]
    ),
)


@settings(max_examples=250, deadline=None, database=None)
@given(st.lists(LINES, max_size=8), st.sampled_from([b"\r\n", b"\n", b"\r"]))
def test_no_head_is_too_strange(lines: list[bytes], end: bytes) -> None:
    """Whatever its lines, a head becomes a request or a refusal with a status that HTTP has; never an exception."""
    request = parse(end.join(lines) + end + end)
    assert error(request) in (None, 400, 413, 431, 505)
    assert request.error is not None or request.method


@settings(deadline=None, database=None)
@given(st.binary(max_size=400))
def test_no_bytes_are_too_strange(data: bytes) -> None:
    """The same for bytes without any form."""
    assert error(parse(data)) in (None, 400, 413, 431, 505)


def test_the_largest_heads_are_judged_quickly() -> None:
    """Heads of the largest size, made to be awkward, are judged in no time."""
    begun = time.perf_counter()
    for filling in (b"a", b":", b" ", b"\r", b"a:b\n", b"\n ", b"9", b'";=', b"\xff"):
        start = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: "
        parse(start + filling * (LARGEST_HEAD // len(filling)) + b"\r\n\r\n")
        split_head(filling * (LARGEST_HEAD // len(filling)))
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://host:1/metrics?window=5", "/metrics?window=5"),
        ("HTTP://host/health", "/health"),
        ("http://host", "/"),
        ("/http://host/metrics", "/http://host/metrics"),
    ],
)
def test_a_target_with_scheme_and_host_is_its_path(target: str, path: str) -> None:
    """The absolute form that clients of a proxy send is taken for the path and query in it."""
    assert parse(f"GET {target} HTTP/1.1\r\nHost: host\r\n\r\n".encode()).target == path
