"""How the agent's cost grows with something that it shows: the figures that two measurements share.

All agents run at once; idle CPU is read over the same quiet windows, the cost of requests in turn
under wrk. The answer grows, too, so nginx (tuned: it copies bytes, sendfile does not) serves each
answer's bytes besides: what rises there is the price of the bytes alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from benchmarks.bench import Bench
from benchmarks.figures import Figures, Quantity
from benchmarks.http_load import CONNECTIONS, loaded
from benchmarks.server import Server

SETTLE = 3.0  # seconds

Agents = dict[str, Server]


class Growth:
    """The columns of one table; a row is an agent that shows so many."""

    def __init__(self) -> None:
        self.close = Quantity("new connection: CPU", "us/request")
        self.kept = Quantity("keep-alive: CPU", "us/request")
        self.nginx_close = Quantity("tuned nginx, same bytes, new connection", "us/request")
        self.nginx_kept = Quantity("tuned nginx, same bytes, keep-alive", "us/request")
        self.size = Quantity("answer", "bytes", 0)
        self.sampling = Quantity("idle CPU", "us/s", 0)
        self.rss = Quantity("RSS", "MiB", 2)

    @property
    def quantities(self) -> Sequence[Quantity]:
        return tuple(vars(self).values())

    def measure(self, bench: Bench, figures: Figures, agents: Agents) -> None:
        """All of the columns, for running agents by their rows."""
        self._sampling(bench, figures, agents)
        with self._twins(bench, agents) as nginx:
            self._requests(bench, figures, agents, nginx)
        for subject, server in agents.items():
            figures.record(self.rss, subject, server.memory().rss)

    def _sampling(self, bench: Bench, figures: Figures, agents: Agents) -> None:
        time.sleep(SETTLE)
        for turn in range(bench.pace.idle_windows):
            bench.progress(f"idle window {turn + 1} of {bench.pace.idle_windows}")
            began = time.monotonic()
            before = {subject: server.cpu_seconds() for subject, server in agents.items()}
            time.sleep(bench.pace.idle_window)
            for subject, server in agents.items():
                spent = server.cpu_seconds() - before[subject]
                figures.record(self.sampling, subject, spent / (time.monotonic() - began) * 1e6)

    @contextlib.contextmanager
    def _twins(self, bench: Bench, agents: Agents) -> Iterator[Agents]:
        """For each agent an nginx with the same bytes, if there is nginx here."""
        with contextlib.ExitStack() as stack:
            twins = {}
            for subject, server in agents.items():
                for name in bench.present("nginx, tuned"):
                    twins[subject] = stack.enter_context(bench.starting(name, server.body()))
                    twins[subject].first_answer()
            yield twins

    def _requests(self, bench: Bench, figures: Figures, agents: Agents, nginx: Agents) -> None:
        for subject, server in agents.items():
            figures.record(self.size, subject, len(server.body()))
        kinds = ((agents, self.close, self.kept), (nginx, self.nginx_close, self.nginx_kept))
        for turn in range(bench.pace.growth_rounds):
            bench.progress(f"requests, round {turn + 1} of {bench.pace.growth_rounds}")
            for subject in agents:
                for servers, close, kept in kinds:
                    for quantity, keep_alive in ((close, False), (kept, True)):
                        if subject in servers:
                            seconds = bench.pace.growth_seconds
                            cost, _ = loaded(servers[subject], seconds, CONNECTIONS, keep_alive)
                            figures.record(quantity, subject, cost)
