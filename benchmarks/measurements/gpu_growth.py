"""Growth with the GPUs: the cost of a request and of sampling with 0, 1, 8 and 16 of them.

The GPUs are a stand-in for NVML's library, compiled from C, that the agent loads through the real
bindings. All agents run at once; idle CPU is read over the same quiet windows, the cost of
requests in turn under wrk. The answer grows with every GPU, so nginx (tuned: it copies bytes,
sendfile does not) serves each answer's bytes too: what rises there is the price of the bytes
alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figures
from benchmarks.growth import Growth
from benchmarks.server import Server, ServerFailed

TITLE = "Growth with the GPUs"
COUNTS = (0, 1, 8, 16)
DISCOVERY = 10.0  # seconds for the agent to show its GPUs

GROWTH = Growth()
QUANTITIES = GROWTH.quantities


def subject(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def measure(bench: Bench, figures: Figures) -> None:
    if shutil.which("gcc") is None:
        figures.note(["Growth with the GPUs was skipped: gcc is missing: apt-get install gcc."])
        return
    with contextlib.ExitStack() as stack:
        agents = {subject(n): stack.enter_context(agent_with(bench, n)) for n in COUNTS}
        GROWTH.measure(bench, figures, agents)


@contextlib.contextmanager
def agent_with(bench: Bench, count: int) -> Iterator[Server]:
    """An agent that sees `count` GPUs (the tests' stand-in, compiled into a folder of its own)."""
    stand_in = importlib.import_module("tests.standin").NvmlStandIn
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as place:
        bench.progress(f"an agent with {subject(count)}")
        nvml = stand_in(Path(place))
        if count:
            nvml.update({"count": count})
        else:
            nvml.unload_driver()  # a driver without a GPU is a failure, and looks busy
        environment = dict(nvml.environment())
        environment.pop("NVML_STANDIN_CALLS", None)  # writing down every call is for tests
        with bench.starting("agent", environment=environment) as server:
            server.first_answer()
            until = time.monotonic() + DISCOVERY
            while json.loads(server.body())["gpu_count"] != count:
                if time.monotonic() > until:
                    raise ServerFailed(f"the agent never showed {subject(count)}: {server.log()}")
                time.sleep(0.1)
            yield server
