"""CPU time of servers that nobody asks: percent of a core, all at once over the same quiet windows.

The agent samples once a second by default; so does the prometheus_client peer here, in a thread.
The agent reads memory every 5 s while it stands still, looks at Ollama every 5 s, at its cgroup every 15 s,
and at interfaces and disks every 30 s: each window is as long. One agent more is asked by its
agent-check every 2 s, as HAProxy does, and one has a browser on its live page: that is not idle, and no
goal is judged by them.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.browser import page_open
from benchmarks.figures import Figures, Quantity
from benchmarks.server import HOST, Server, Servers

TITLE = "Idle CPU"
ASK_EVERY = 2.0  # seconds: HAProxy's default
ASKED = "agent, agent-check asked every 2 s"
WINDOW = 30.0  # seconds: the longest time between two things that the agent does
SETTLE = 3.0  # seconds between the last request and the first window

IDLE_CPU = Quantity("idle CPU", "% of a core", 4)
IDLE_COST = Quantity("CPU", "us/s", 0)
QUANTITIES = (IDLE_CPU, IDLE_COST)
PEERS = (
    "agent",
    "agent, Ollama",
    "agent, agent-check",
    "agent, page",
    "prometheus_client, sampling",
    "nginx",
    "node_exporter",
    "ThreadingHTTPServer",
)


@contextlib.contextmanager
def asking(server: Server) -> Iterator[None]:
    """Asks an agent-check as HAProxy does, from a thread of this process."""
    found = re.search(rf"agent-check on {re.escape(HOST)}:(\d+)", server.log())
    assert found is not None
    port, ended = int(found.group(1)), threading.Event()

    def ask() -> None:
        while not ended.wait(ASK_EVERY):
            with socket.create_connection((HOST, port), timeout=ASK_EVERY) as client:
                assert client.recv(256).startswith(b"ready up ")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure(bench: Bench, figures: Figures) -> None:
    with bench.serving(*PEERS) as servers, bench.starting("agent, agent-check") as asked:
        asked.first_answer()
        with asking(asked), page_open(servers["agent, page"]):
            watch(bench, figures, {**servers, ASKED: asked})


def watch(bench: Bench, figures: Figures, servers: Servers) -> None:
    """The windows, for all servers at once."""
    time.sleep(SETTLE)
    for turn in range(bench.pace.rest_windows):
        bench.progress(f"window {turn + 1} of {bench.pace.rest_windows}, {WINDOW:g} s")
        began = time.monotonic()
        before = {name: server.cpu_seconds() for name, server in servers.items()}
        time.sleep(WINDOW)
        for name, server in servers.items():
            spent = server.cpu_seconds() - before[name]
            rate = spent / (time.monotonic() - began)
            figures.record(IDLE_CPU, name, rate * 100)
            figures.record(IDLE_COST, name, rate * 1e6)
