"""Start: from the spawn of the process to its first 200, in turn, round by round.

A first start of each, which may still compile files, is not counted. The agent waits for a true
CPU interval before it binds its port, by design; "besides that interval" has it subtracted.
"""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.figures import Figures, Quantity

TITLE = "Start to the first good answer"
START = Quantity("first answer after", "ms", 0)
START_NET = Quantity("besides the first CPU interval", "ms", 0)
QUANTITIES = (START, START_NET)
PEERS = ("agent", "agent, Ollama", "agent, agent-check", "prometheus_client")


def measure(bench: Bench, figures: Figures) -> None:
    figures.note([f"The agent's first CPU interval is taken as {bench.first_interval:g} s."])
    for turn in range(-1, bench.pace.start_rounds):
        bench.progress(f"round {turn + 1} of {bench.pace.start_rounds}" if turn >= 0 else "warm-up")
        for name in bench.present(*PEERS):
            with bench.starting(name) as server:
                seconds = server.first_answer()
            if turn >= 0:
                waited = bench.first_interval if name.startswith("agent") else 0.0
                figures.record(START, name, seconds * 1e3)
                figures.record(START_NET, name, (seconds - waited) * 1e3)
