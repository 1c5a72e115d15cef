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
from benchmarks.figures import Figures, Quantity
from benchmarks.measurements.request_cost import CONNECTIONS, loaded
from benchmarks.server import Server, ServerFailed

TITLE = "Growth with the GPUs"
COUNTS = (0, 1, 8, 16)
DISCOVERY = 10.0  # seconds for the agent to show its GPUs
SETTLE = 3.0  # seconds

CLOSE_CPU = Quantity("new connection: CPU", "us/request")
KEPT_CPU = Quantity("keep-alive: CPU", "us/request")
NGINX_CLOSE_CPU = Quantity("tuned nginx, same bytes, new connection", "us/request")
NGINX_KEPT_CPU = Quantity("tuned nginx, same bytes, keep-alive", "us/request")
BYTES = Quantity("answer", "bytes", 0)
SAMPLING = Quantity("idle CPU", "us/s", 0)
RSS = Quantity("RSS", "MiB", 2)
QUANTITIES = (CLOSE_CPU, KEPT_CPU, NGINX_CLOSE_CPU, NGINX_KEPT_CPU, BYTES, SAMPLING, RSS)


def subject(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def measure(bench: Bench, figures: Figures) -> None:
    if shutil.which("gcc") is None:
        figures.note(["Growth with the GPUs was skipped: gcc is missing: apt-get install gcc."])
        return
    with contextlib.ExitStack() as stack:
        agents = {n: stack.enter_context(agent_with(bench, n)) for n in COUNTS}
        measure_sampling(bench, figures, agents)
        measure_requests(bench, figures, agents, stack)


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


def measure_sampling(bench: Bench, figures: Figures, agents: dict[int, Server]) -> None:
    time.sleep(SETTLE)
    for turn in range(bench.pace.idle_windows):
        bench.progress(f"idle window {turn + 1} of {bench.pace.idle_windows}")
        began = time.monotonic()
        before = {count: server.cpu_seconds() for count, server in agents.items()}
        time.sleep(bench.pace.idle_window)
        for count, server in agents.items():
            spent = server.cpu_seconds() - before[count]
            figures.record(SAMPLING, subject(count), spent / (time.monotonic() - began) * 1e6)


def measure_requests(
    bench: Bench, figures: Figures, agents: dict[int, Server], stack: contextlib.ExitStack
) -> None:
    servers: list[tuple[int, Server, Quantity, Quantity]] = []
    for count, server in agents.items():
        body = server.body()
        figures.record(BYTES, subject(count), len(body))
        servers.append((count, server, CLOSE_CPU, KEPT_CPU))
        for name in bench.present("nginx, tuned"):
            nginx = stack.enter_context(bench.starting(name, body))
            nginx.first_answer()
            servers.append((count, nginx, NGINX_CLOSE_CPU, NGINX_KEPT_CPU))
    for turn in range(bench.pace.growth_rounds):
        bench.progress(f"requests, round {turn + 1} of {bench.pace.growth_rounds}")
        for count, server, close, kept in servers:
            for quantity, keep_alive in ((close, False), (kept, True)):
                cost, _ = loaded(server, bench.pace.growth_seconds, CONNECTIONS, keep_alive)
                figures.record(quantity, subject(count), cost)
    for count, server in agents.items():
        figures.record(RSS, subject(count), server.memory().rss)
