"""A host of the demo: the stand-ins for Ollama and for its GPUs, and the real agent."""

from __future__ import annotations

import http.client
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.demo.children import Children
from benchmarks.demo.gpus import COUNT, Gpus
from benchmarks.demo.shipped import Place
from benchmarks.ollama import TESTS

SMALL, LARGE, DISTANT = "llama3.2:latest", "llama3.1:70b", "qwen3:14b"
_LIBRARY: dict[str, dict[str, Any]] = {
    SMALL: {"size": 3_825_819_519, "load": 1, "tokens": 60, "pace": 0.05},
    LARGE: {"size": 42_520_413_916, "load": 4, "tokens": 60, "pace": 0.15},
    DISTANT: {
        "size": 9_276_198_565,
        "load": 2,
        "tokens": 60,
        "pace": 0.08,
        "here": False,
        "pull": 4,
    },
}
_ANSWER_SECONDS = 0.5


class Host:
    """One host. Everything of it is in a folder below `folder`."""

    def __init__(self, children: Children, folder: Path, place: Place) -> None:
        self.name, self._place = place.name, place
        self._children, self._folder = children, folder / place.name
        self._folder.mkdir()
        if str(TESTS) not in sys.path:
            sys.path.append(str(TESTS))  # its modules import each other by name
        standin = importlib.import_module("standin")
        self._nvml = standin.NvmlStandIn(self._folder / "nvml", cache=folder / "compiled")
        self._gpus, self._lost, self._prepared = Gpus(), 0, False
        self._nvml.update(self._gpus.state())
        self.settings = self._folder / "environment"  # of the agent, in the form of the service's
        self.settings.write_text(
            f"OLLAMA_METRICS_LISTEN={self.agent}\n"
            f"OLLAMA_METRICS_AGENT_CHECK={place.address}:{place.agent_check}\n"
            f"OLLAMA_METRICS_OLLAMA={self.ollama_url}\n"
            f"OLLAMA_METRICS_EXPECTED_GPUS={COUNT}\n"
            f"OLLAMA_METRICS_STATE_DIR={self._folder / 'state'}\n"
        )
        self._ollama = self._start_ollama()
        self._agent = children.start(
            [sys.executable, "-m", "ollama_metrics", "serve", "--config", str(self.settings)],
            self._folder / "agent.log",
            self._nvml.environment(),
        )

    @property
    def ollama_url(self) -> str:
        return f"http://{self._place.address}:{self._place.ollama}"

    @property
    def agent(self) -> str:
        """The agent's address and port."""
        return f"{self._place.address}:{self._place.agent}"

    @property
    def agent_has_ended(self) -> bool:
        """Nothing here ends it."""
        return self._agent.poll() is not None

    # -- what it does ------------------------------------------------------------------------------

    def is_up(self) -> bool:
        """Whether Ollama and the agent answer; the first time Ollama gets its models."""
        try:
            if not self._prepared:
                self._prepare()
            _ask(f"http://{self.agent}/metrics")
            return True
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def pass_time(self, seconds: float) -> None:
        """Let the GPUs follow what Ollama does."""
        sizes: list[int] = []
        in_flight = 0
        try:
            if not self._prepared:
                self._prepare()
            loaded = _ask(f"{self.ollama_url}/api/ps")
            sizes = [model["size"] for model in loaded["models"]]
            in_flight = _ask(f"{self.ollama_url}/standin")["running"]
        except (OSError, http.client.HTTPException, ValueError):
            pass  # it is dead, and has given its memory back
        self._gpus.pass_time(seconds, sizes, in_flight)
        self._nvml.update(self._gpus.state())

    def lose_gpu(self) -> str:
        """One more falls off the bus, the last one first."""
        if self._lost == COUNT:
            return f"{self.name} has no GPU any more"
        self._lost += 1
        self._nvml.lose(COUNT - self._lost)
        return f"GPU {COUNT - self._lost} of {self.name} has fallen off the bus"

    def restore_gpu(self) -> str:
        """All are back."""
        self._lost = 0
        self._nvml.restore()
        return f"{self.name} has all its GPUs"

    def kill_ollama(self) -> str:
        """As a crash does."""
        self._ollama.kill()
        self._ollama.wait()
        return f"Ollama on {self.name} is dead"

    def start_ollama(self) -> str:
        """Start it, unless it runs."""
        if self._ollama.poll() is None:
            return f"Ollama on {self.name} runs"
        self._prepared = False
        self._ollama = self._start_ollama()
        return f"Ollama on {self.name} starts"

    def _start_ollama(self) -> subprocess.Popen[bytes]:
        return self._children.start(
            [sys.executable, str(TESTS / "ollama_standin.py"), "--listen", self.ollama_url],
            self._folder / "ollama.log",
        )

    def _prepare(self) -> None:
        """Tell Ollama which models there are."""
        for path, document in (
            ("/standin/models", []),
            ("/standin/library", _LIBRARY),
        ):
            _ask(f"{self.ollama_url}{path}", document)
        self._prepared = True


def _ask(url: str, document: Any = None) -> Any:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_ANSWER_SECONDS)
    try:
        if document is None:
            connection.request("GET", parts.path)
        else:
            connection.request("POST", parts.path, json.dumps(document))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
