"""What every measurement is handed: how long to measure, which cores, and servers on demand."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.ollama import stand_in
from benchmarks.peers import CATALOGUE, Place
from benchmarks.process import Cores
from benchmarks.server import Server, Servers, free_port


@dataclass(frozen=True)
class Pace:
    """How thorough a run is. Times in seconds."""

    cost_rounds: int
    cost_seconds: int
    scrapes: int
    idle_windows: int
    idle_window: float
    rest_windows: int
    burst_rounds: int
    threaded_burst_rounds: int
    start_rounds: int
    growth_rounds: int
    growth_seconds: int


FULL = Pace(
    cost_rounds=7,
    cost_seconds=2,
    scrapes=10_000,
    idle_windows=8,
    idle_window=5.0,
    rest_windows=4,
    burst_rounds=15,
    threaded_burst_rounds=1,
    start_rounds=7,
    growth_rounds=4,
    growth_seconds=1,
)
QUICK = Pace(
    cost_rounds=1,
    cost_seconds=1,
    scrapes=1_000,
    idle_windows=2,
    idle_window=4.0,
    rest_windows=1,
    burst_rounds=3,
    threaded_burst_rounds=0,
    start_rounds=2,
    growth_rounds=1,
    growth_seconds=1,
)


@dataclass
class Bench:
    """One run. `deadline` and `first_interval` are the agent's own constants, in seconds."""

    pace: Pace
    deadline: float
    first_interval: float
    cores: Cores = field(default_factory=Cores.choose)
    missing: dict[str, str] = field(default_factory=dict)
    _title: str = ""

    def begin(self, title: str) -> None:
        self._title = title
        self.progress("")

    def progress(self, step: str) -> None:
        """One line on standard error, so that the wait has a face."""
        print(f"  {self._title}{': ' if step else ''}{step}", file=sys.stderr, flush=True)

    def present(self, *names: str) -> Sequence[str]:
        """Those of `names` that this machine has."""
        return [name for name in names if name not in self.missing]

    @contextlib.contextmanager
    def starting(
        self,
        name: str,
        body: bytes = b"",
        environment: Mapping[str, str] | None = None,
        models: int = 1,
    ) -> Iterator[Server]:
        """A server just spawned on its core; ended, and its folder removed, on the way out.

        One that needs an Ollama is given one, with `models` loaded.
        """
        peer = CATALOGUE[name]
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-"))
            ollama = stack.enter_context(stand_in(models)) if peer.needs_ollama else ""
            folder = Path(temporary)
            port = free_port()
            server = Server(
                name,
                peer.command(Place(folder, port, body, ollama)),
                0 if peer.picks_its_port else port,
                folder / "server.log",
                self.cores.server,
                environment,
            )
            try:
                yield server
            finally:
                server.stop()

    @contextlib.contextmanager
    def serving(self, *names: str) -> Iterator[Servers]:
        """The named servers, all answering, by name; nginx has the agent's answer."""
        with contextlib.ExitStack() as stack:
            servers: Servers = {}
            body = b""
            for name in self.present(*sorted(names, key=lambda name: name != "agent")):
                servers[name] = stack.enter_context(self.starting(name, body))
                servers[name].first_answer()
                if name == "agent":
                    body = servers[name].body()
            yield servers
