"""Slow clients: 1,000 connections that send nothing and 50 that send a byte a second, at the agent.

Meanwhile a poller scrapes ten times a second. Threads and memory are read before, and once a
second until the server has closed the last slow connection (or 5 s past its deadline). A
connection's life runs from its connect to the server's close, as its client sees both.
"""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.figures import Figures, Quantity
from benchmarks.http_load import percentile
from benchmarks.process import Memory
from benchmarks.slow_clients import Poller, besiege

TITLE = "Slow clients"
IDLE = 1_000
WRITERS = 50
PATIENCE = 5.0  # seconds past the deadline
POLL_EVERY = 0.1  # seconds

POLLS = Quantity("polls", "", 0)
FAILED_POLLS = Quantity("failed polls", "", 0)
P99 = Quantity("poll p99", "ms", 2)
THREADS = Quantity("threads before", "", 0)
THREADS_ADDED = Quantity("threads added at most", "", 0)
GROWTH = Quantity("RSS growth at most", "MiB", 2)
EVICTED = Quantity("evicted", "", 0)
LEFT = Quantity("never evicted", "", 0)
LONGEST = Quantity("longest life", "s", 2)
OVERTIME = Quantity("longest life past the deadline", "s", 2)
QUANTITIES = (
    POLLS,
    FAILED_POLLS,
    P99,
    THREADS,
    THREADS_ADDED,
    GROWTH,
    EVICTED,
    LEFT,
    LONGEST,
    OVERTIME,
)


def measure(bench: Bench, figures: Figures) -> None:
    with bench.serving("agent") as servers:
        server = servers["agent"]
        poller = Poller(server.port, POLL_EVERY)
        threads: list[int] = [server.threads()]
        memory: list[Memory] = [server.memory()]

        def look() -> None:
            threads.append(server.threads())
            memory.append(server.memory())

        bench.progress(f"{IDLE:,} idle connections and {WRITERS} slow writers")
        poller.start()
        try:
            limit = bench.deadline + PATIENCE
            siege = besiege(server.port, IDLE, WRITERS, limit, look)
        finally:
            poller.stop()
        look()
        longest = max(siege.lifetimes, default=0.0) if not siege.still_open else float("inf")
        figures.record(POLLS, "agent", len(poller.latencies) + poller.failures)
        figures.record(FAILED_POLLS, "agent", poller.failures)
        figures.record(P99, "agent", percentile(poller.latencies, 99) * 1e3)
        figures.record(THREADS, "agent", threads[0])
        figures.record(THREADS_ADDED, "agent", max(threads) - threads[0])
        figures.record(GROWTH, "agent", max(m.rss for m in memory) - memory[0].rss)
        figures.record(EVICTED, "agent", len(siege.lifetimes))
        figures.record(LEFT, "agent", siege.still_open)
        figures.record(LONGEST, "agent", longest)
        figures.record(OVERTIME, "agent", longest - bench.deadline)
