"""CPU time of servers that nobody asks: percent of a core, all at once over the same quiet windows.

The agent samples once a second by default; so does the prometheus_client peer here, in a thread.
Ollama is asked every 5 s, which is once in each window.
"""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.figures import Figures, Quantity

TITLE = "Idle CPU"
SETTLE = 3.0  # seconds between the last request and the first window

IDLE_CPU = Quantity("idle CPU", "% of a core", 4)
IDLE_COST = Quantity("CPU", "us/s", 0)
QUANTITIES = (IDLE_CPU, IDLE_COST)
PEERS = (
    "agent",
    "agent, Ollama",
    "prometheus_client, sampling",
    "nginx",
    "node_exporter",
    "ThreadingHTTPServer",
)


def measure(bench: Bench, figures: Figures) -> None:
    with bench.serving(*PEERS) as servers:
        time.sleep(SETTLE)
        for turn in range(bench.pace.idle_windows):
            bench.progress(
                f"window {turn + 1} of {bench.pace.idle_windows}, {bench.pace.idle_window:g} s"
            )
            began = time.monotonic()
            before = {name: server.cpu_seconds() for name, server in servers.items()}
            time.sleep(bench.pace.idle_window)
            for name, server in servers.items():
                spent = server.cpu_seconds() - before[name]
                rate = spent / (time.monotonic() - began)
                figures.record(IDLE_CPU, name, rate * 100)
                figures.record(IDLE_COST, name, rate * 1e6)
