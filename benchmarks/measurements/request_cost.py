"""CPU time per request under full load, with a new connection each time and with keep-alive.

All servers run at once on one core and are loaded in turn, round by round, by wrk with 16
connections on the other core. Cost = CPU time of the server's process tree during the load /
requests that wrk counted. What the server does besides (its sampling) is in there and not
subtracted: the idle CPU below, as the same percentage of the cost. Latencies are those of a
saturated server. wrk takes a close that the answer did not announce for an error.
"""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.browser import page_open
from benchmarks.figures import Figures, Quantity
from benchmarks.http_load import CONNECTIONS, loaded

TITLE = "Cost of a request"

CLOSE_CPU = Quantity("new connection: CPU", "us/request")
CLOSE_RATE = Quantity("requests", "1/s", 0)
CLOSE_P50 = Quantity("p50", "ms", 2)
CLOSE_P99 = Quantity("p99", "ms", 2)
KEPT_CPU = Quantity("keep-alive: CPU", "us/request")
KEPT_RATE = Quantity("keep-alive: requests", "1/s", 0)
KEPT_P50 = Quantity("keep-alive: p50", "ms", 2)
KEPT_P99 = Quantity("keep-alive: p99", "ms", 2)
ERRORS = Quantity("errors", "", 0)
QUANTITIES = (
    CLOSE_CPU,
    CLOSE_RATE,
    CLOSE_P50,
    CLOSE_P99,
    KEPT_CPU,
    KEPT_RATE,
    KEPT_P50,
    KEPT_P99,
    ERRORS,
)
PEERS = (
    "agent",
    "agent, Ollama",
    "agent, agent-check",
    "agent, page",
    "nginx",
    "nginx, tuned",
    "prometheus_client",
    "node_exporter",
    "ThreadingHTTPServer",
)


def measure(bench: Bench, figures: Figures) -> None:
    with bench.serving(*PEERS) as servers, page_open(servers["agent, page"]):
        keep_alive = {name: server.keeps_alive() for name, server in servers.items()}
        figures.note(
            f"{name} closes the connection after each answer, so it has no keep-alive figures."
            for name, keeps in keep_alive.items()
            if not keeps
        )
        for turn in range(bench.pace.cost_rounds):
            for name, server in servers.items():
                bench.progress(f"round {turn + 1} of {bench.pace.cost_rounds}, {name}")
                cost, rate = loaded(server, bench.pace.cost_seconds, CONNECTIONS, False)
                errors = rate.errors
                figures.record(CLOSE_CPU, name, cost)
                figures.record(CLOSE_RATE, name, rate.per_second)
                figures.record(CLOSE_P50, name, rate.p50 * 1e3)
                figures.record(CLOSE_P99, name, rate.p99 * 1e3)
                if keep_alive[name]:
                    cost, rate = loaded(server, bench.pace.cost_seconds, CONNECTIONS, True)
                    errors += rate.errors
                    figures.record(KEPT_CPU, name, cost)
                    figures.record(KEPT_RATE, name, rate.per_second)
                    figures.record(KEPT_P50, name, rate.p50 * 1e3)
                    figures.record(KEPT_P99, name, rate.p99 * 1e3)
                figures.record(ERRORS, name, errors)
