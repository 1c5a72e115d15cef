"""Growth with the pollers: the agent's cost per request with 1, 16, 174 and 1,000 connections.

wrk keeps that many connections busy, in turn, round by round; the cost is counted as in the cost
of a request.
"""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.figures import Figures, Quantity
from benchmarks.http_load import loaded

TITLE = "Growth with the pollers"
COUNTS = (1, 16, 174, 1_000)

CLOSE_CPU = Quantity("new connection", "CPU us/request")
KEPT_CPU = Quantity("keep-alive", "CPU us/request")
QUANTITIES = (CLOSE_CPU, KEPT_CPU)


def subject(count: int) -> str:
    return f"{count:,} poller{'' if count == 1 else 's'}"


def measure(bench: Bench, figures: Figures) -> None:
    with bench.serving("agent") as servers:
        for turn in range(bench.pace.growth_rounds):
            bench.progress(f"round {turn + 1} of {bench.pace.growth_rounds}")
            for count in COUNTS:
                for quantity, keep_alive in ((CLOSE_CPU, False), (KEPT_CPU, True)):
                    seconds = bench.pace.growth_seconds
                    cost, _ = loaded(servers["agent"], seconds, count, keep_alive)
                    figures.record(quantity, subject(count), cost)
