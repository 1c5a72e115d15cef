"""What is remembered of requests and answers, and that it stays little; what an answer looks like on the wire."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, Optional

import pytest

from ollama_metrics.answer import Answer, Refused
from ollama_metrics.plans import CLOSE, KEEP, KEEP_1_0, Plans, refuse

MEGABYTE = 1 << 20


class Pages:
    """An application whose pages are as large as one says; it counts how often each is rendered."""

    def __init__(self, size: int = 10) -> None:
        self.size = size
        self.rendered: Counter[str] = Counter()

    def page(self, method: str, target: str, accept: Optional[str]) -> str:
        if target.startswith("/nothing"):
            raise Refused(404, "nothing here", (("X-Why", "because"),))
        return target

    def version(self) -> object:
        raise AssertionError("that is for the event loop to ask")

    def render(self, page: Any) -> Answer:
        self.rendered[page] += 1
        return Answer(200, "text/plain", bytes(self.size))

    def refusal(self, status: int, sentence: str) -> Answer:
        self.rendered[str(status)] += 1
        return Answer(status, "text/plain", sentence.encode())


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: x", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.fixture
def memory() -> Iterator[None]:
    """Measure memory without the cyclic garbage collector's help."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


def test_a_plan_is_made_once_for_a_head() -> None:
    """The plan for a head is found by its bytes; another head has another, for the same answer."""
    pages = Pages()
    plans = Plans(pages)
    head, other = get("/a"), get("/a", "User-Agent: x")
    plan = plans.make(head)
    assert plans.known[head] is plan
    version = object()
    wire = plans.render(plan, version)
    assert (plan.wire, plan.version) == (wire, version)
    assert plans.render(plans.make(other), version) is wire
    assert pages.rendered["/a"] == 1


def test_a_large_answer_is_not_kept_by_each_head_that_asks_for_it() -> None:
    """It is shared by all within one version, and with the next one it is gone: 256 heads would keep megabytes."""
    pages = Pages(size=20_000)
    plans = Plans(pages)
    version = object()
    asked = [plans.make(get("/a", f"X: {number}")) for number in range(3)]
    assert len({id(plans.render(plan, version)) for plan in asked}) == 1
    assert pages.rendered["/a"] == 1
    assert [plan.wire for plan in asked] == [b""] * 3


def test_a_new_version_is_rendered_anew() -> None:
    """An answer is as good as its version."""
    pages = Pages()
    plans = Plans(pages)
    plan = plans.make(get("/a"))
    for times in (1, 2, 3):
        version = object()
        plans.render(plan, version)
        plans.render(plan, version)
        assert pages.rendered["/a"] == times


def test_the_answers_to_one_page_differ_in_their_frame_only() -> None:
    """Closing, HTTP/1.0 and HEAD have wires of their own."""
    plans, version = Plans(Pages()), object()
    wires = [
        plans.render(plans.make(head), version)
        for head in (
            get("/a"),
            get("/a", "Connection: close"),
            get("/a", "Connection: keep-alive", version="1.0"),
            get("/a", method="HEAD"),
        )
    ]
    assert len(set(wires)) == 4
    assert b"\r\nConnection:" not in wires[0]
    assert b"\r\nConnection: close\r\n" in wires[1]
    assert b"\r\nConnection: keep-alive\r\n" in wires[2]
    assert wires[0].startswith(wires[3])
    assert wires[0][len(wires[3]) :] == bytes(10)


def test_a_refusal_has_its_own_headers_each_time_once() -> None:
    """The headers of a refusal are in its answer, however often it is rendered."""
    plans = Plans(Pages())
    plan = plans.make(get("/nothing"))
    for _ in range(3):
        wire = plans.render(plan, object())
        assert wire.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert wire.count(b"X-Why: because\r\n") == 1


@pytest.mark.parametrize("target", ["/{}", "/nothing/{}"], ids=["found", "refused"])
def test_the_memory_of_heads_is_bounded(memory: None, target: str) -> None:
    """Thousands of different heads, each with a page or a refusal, do not add up."""
    plans = Plans(Pages())
    version = object()
    for number in range(1200):
        head = get(target.format(number), "X: " + "x" * 1900)
        plans.render(plans.make(head), version)
        assert len(plans.known) <= 256
    assert tracemalloc.get_traced_memory()[1] < 1.5 * MEGABYTE


def test_a_long_head_is_not_remembered(memory: None) -> None:
    """A head of more than two kilobytes is judged each time, whether it is refused or not."""
    plans = Plans(Pages())
    for number in range(400):
        for target in ("/{}", "/nothing/{}"):
            plans.make(get(target.format(number), "X: " + "x" * 12_000))
    assert plans.known == {}
    assert tracemalloc.get_traced_memory()[1] < MEGABYTE


def test_the_memory_of_pages_is_bounded(memory: None) -> None:
    """Thousands of different pages of one version do not add up, nor do thousands of versions of one page."""
    plans = Plans(Pages(100_000))
    version = object()
    for number in range(1000):
        plans.render(plans.make(get(f"/{number}")), version)
    plan = plans.make(get("/a"))
    for _ in range(1000):
        plans.render(plan, object())
    # 256 plans with an answer each are what may be kept.
    assert tracemalloc.get_traced_memory()[1] < 40 * MEGABYTE


def test_at_the_end_every_connection_is_closed() -> None:
    """Once connections are to be closed every answer says so, those to known heads too."""
    plans = Plans(Pages())
    heads = [get("/a"), get("/a", "Connection: keep-alive", version="1.0"), get("/nothing")]
    assert all(plans.make(head).keep_alive for head in heads)
    plans.close_connections()
    assert plans.known == {}
    for head in heads:
        plan = plans.make(head)
        assert not plan.keep_alive
        assert b"\r\nConnection: close\r\n" in plans.render(plan, object())
    assert plans.known == {}


def test_a_refusal_without_a_request_closes() -> None:
    """What could not be read ends the connection, and what follows is taken for a body."""
    plan = refuse(431, "too large")
    assert plan.body
    assert not plan.keep_alive
    assert not plan.head_only


# -- on the wire ---------------------------------------------------------------------------------------------------


def test_an_answer_on_the_wire() -> None:
    """An answer has its status line, its headers, those that every answer has, an empty line and its body."""
    before = int(time.time())
    wire = Answer(405, "text/plain", b"body\r\n\r\n", (("Allow", "GET"),)).wire(CLOSE, False)
    head, _, body = wire.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert lines[0] == "HTTP/1.1 405 Method Not Allowed"
    fields = dict(line.split(": ", 1) for line in lines[1:])
    date = parsedate_to_datetime(fields.pop("Date")).timestamp()
    assert before <= date <= time.time()
    assert fields == {
        "Content-Type": "text/plain",
        "Content-Length": "8",
        "Cache-Control": "no-store",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
        "Allow": "GET",
        "Connection": "close",
    }
    assert body == b"body\r\n\r\n"


def test_an_answer_to_head_on_the_wire() -> None:
    """HEAD ends after the empty line, with the length of the body that is not there."""
    answer = Answer(200, "text/plain", b"four")
    wire = answer.wire(KEEP, True)
    assert wire.endswith(b"\r\n\r\n")
    assert b"\r\nContent-Length: 4\r\n" in wire
    assert answer.wire(KEEP_1_0, True).endswith(b"\r\nConnection: keep-alive\r\n\r\n")


@pytest.mark.parametrize(
    ("timestamp", "date"),
    [
        (784111777.9, "Sun, 06 Nov 1994 08:49:37 GMT"),  # RFC 9110's own example
        (0.0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (1709210096.0, "Thu, 29 Feb 2024 12:34:56 GMT"),
    ],
)
def test_the_date_is_http_s(monkeypatch: pytest.MonkeyPatch, timestamp: float, date: str) -> None:
    """The Date header has RFC 9110's form, in GMT."""
    monkeypatch.setattr("ollama_metrics.answer.time.time", lambda: timestamp)
    assert f"\r\nDate: {date}\r\n".encode() in Answer(200, "text/plain", b"").wire(KEEP, False)
