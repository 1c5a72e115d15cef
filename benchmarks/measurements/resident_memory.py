"""Resident memory at the start and after an exact number of scrapes (10,000 in a full run).

Each server is fresh. Start is one second after its first good answer. Then our own client makes
exactly that many scrapes, each on a new connection, 8 at once, and the memory is read again a
second later. RSS is the sum over the process tree (nginx: master and worker); PSS and USS say how
much of it is shared with other processes.
"""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.browser import page_open
from benchmarks.figures import Figures, Quantity
from benchmarks.http_load import scrape

TITLE = "Resident memory"
AT_ONCE = 8
SETTLE = 1.0  # seconds

START_RSS = Quantity("RSS at start", "MiB", 2)
END_RSS = Quantity("RSS after the scrapes", "MiB", 2)
GROWTH = Quantity("growth", "MiB", 2)
END_PSS = Quantity("PSS", "MiB", 2)
END_USS = Quantity("USS", "MiB", 2)
SCRAPES = Quantity("good scrapes", "", 0)
FAILED = Quantity("failed", "", 0)
QUANTITIES = (START_RSS, END_RSS, GROWTH, END_PSS, END_USS, SCRAPES, FAILED)
PEERS = (
    "agent",
    "agent, Ollama",
    "agent, agent-check",
    "agent, page",
    "nginx",
    "prometheus_client",
    "node_exporter",
    "ThreadingHTTPServer",
)


def measure(bench: Bench, figures: Figures) -> None:
    with bench.serving(*PEERS) as servers, page_open(servers["agent, page"]):
        time.sleep(SETTLE)
        for name, server in servers.items():
            bench.progress(f"{bench.pace.scrapes:,} scrapes of {name}")
            start = server.memory()
            seen = scrape(server.port, bench.pace.scrapes, AT_ONCE)
            time.sleep(SETTLE)
            end = server.memory()
            figures.record(START_RSS, name, start.rss)
            figures.record(END_RSS, name, end.rss)
            figures.record(GROWTH, name, end.rss - start.rss)
            figures.record(END_PSS, name, end.pss)
            figures.record(END_USS, name, end.uss)
            figures.record(SCRAPES, name, len(seen.latencies))
            figures.record(FAILED, name, seen.failures)
