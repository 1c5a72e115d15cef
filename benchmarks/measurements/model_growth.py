"""Growth with the models: the cost of a request and of sampling with 0, 1, 16 and 64 loaded ones.

Each agent has a stand-in for Ollama of its own, which it asks every 5 s. All agents run at once;
idle CPU is read over the same quiet windows, the cost of requests in turn under wrk. nginx serves
each answer's bytes too, as with the GPUs.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.growth import Growth
from benchmarks.server import Server, ServerFailed

TITLE = "Growth with the models"
COUNTS = (0, 1, 16, 64)
DISCOVERY = 10.0  # seconds for the agent to show its models

GROWTH = Growth()
QUANTITIES = GROWTH.quantities


def subject(count: int) -> str:
    return f"{count} model{'' if count == 1 else 's'}"


def measure(bench: Bench, figures: Figures) -> None:
    with contextlib.ExitStack() as stack:
        agents = {subject(n): stack.enter_context(agent_with(bench, n)) for n in COUNTS}
        GROWTH.measure(bench, figures, agents)


@contextlib.contextmanager
def agent_with(bench: Bench, count: int) -> Iterator[Server]:
    """An agent whose Ollama has `count` models loaded."""
    bench.progress(f"an agent with {subject(count)}")
    with bench.starting("agent, Ollama", models=count) as server:
        server.first_answer()
        until = time.monotonic() + DISCOVERY
        while len((json.loads(server.body())["ollama"] or {}).get("models") or ()) != count:
            if time.monotonic() > until:
                raise ServerFailed(f"the agent never showed {subject(count)}: {server.log()}")
            time.sleep(0.1)
        yield server
