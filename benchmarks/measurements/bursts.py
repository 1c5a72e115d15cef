"""Many pollers at the same moment: 174, and 1,000, each connecting at once for one GET.

One round opens all connections at once and lets each ask once; the rounds go to the servers in
turn. Latency runs from a connection's own connect to the end of its answer, over all rounds; our
client is one thread of Python, whose own time is in the figures of every server alike. The
threaded peers listen with a backlog of 5, time out by the dozen, and get one round (in a quick
run none).
"""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.figures import Figures, Quantity
from benchmarks.http_load import percentile, scrape

TITLE = "Pollers at once"
SIZES = (174, 1_000)

FAILED = {size: Quantity(f"{size:,} at once: failed", "", 0) for size in SIZES}
ASKED = {size: Quantity(f"{size:,} at once: requests", "", 0) for size in SIZES}
P50 = {size: Quantity(f"{size:,} at once: p50", "ms", 2) for size in SIZES}
P99 = {size: Quantity(f"{size:,} at once: p99", "ms", 2) for size in SIZES}
QUANTITIES = tuple(column[size] for size in SIZES for column in (ASKED, FAILED, P50, P99))
THREADED = ("prometheus_client", "ThreadingHTTPServer")
PEERS = ("agent", "nginx", *THREADED)


def measure(bench: Bench, figures: Figures) -> None:
    with bench.serving(*PEERS) as servers:
        for size in SIZES:
            latencies: dict[str, list[float]] = {name: [] for name in servers}
            failures = dict.fromkeys(servers, 0)
            for turn in range(bench.pace.burst_rounds):
                bench.progress(f"{size:,} pollers, round {turn + 1} of {bench.pace.burst_rounds}")
                for name, server in servers.items():
                    if name in THREADED and turn >= bench.pace.threaded_burst_rounds:
                        continue
                    seen = scrape(server.port, size, size)
                    latencies[name] += seen.latencies
                    failures[name] += seen.failures
            for name in servers:
                asked = failures[name] + len(latencies[name])
                if not asked:
                    continue
                figures.record(ASKED[size], name, asked)
                figures.record(FAILED[size], name, failures[name])
                figures.record(P50[size], name, percentile(latencies[name], 50) * 1e3)
                figures.record(P99[size], name, percentile(latencies[name], 99) * 1e3)
