"""The live page open in a browser, as far as the agent notices: what its script asks, each second."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator

from benchmarks.server import HOST, Server

EVERY = 1.0  # seconds
PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
TARGETS = ("/metrics?format=json", "/history")


@contextlib.contextmanager
def page_open(server: Server) -> Iterator[None]:
    """Open the page of `server`, and have it redraw in a thread of this process."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=5)
    ended = threading.Event()

    def ask(target: str) -> bytes:
        connection.request("GET", target, headers=PAGE if target == "/" else {})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (target, answer.status)
        return body

    def redraw() -> None:
        while not ended.wait(EVERY):
            for target in TARGETS:
                ask(target)

    assert b"<html" in ask("/")
    for target in TARGETS:
        ask(target)
    thread = threading.Thread(target=redraw)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        connection.close()
