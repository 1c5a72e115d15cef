"""The stand-in for Ollama that the tests have, in a process of its own on the core that makes the load."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"


@contextlib.contextmanager
def stand_in(models: int = 1) -> Iterator[str]:
    """The URL of one that answers with that many loaded models, each half on a GPU."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))  # its modules import each other by name
    tests = importlib.import_module("ollama_process")
    with tests.OllamaProcess() as ollama:
        names = [f"model-{number}:8b" for number in range(models)]
        ollama.models([tests.model(name, size=8 << 30, size_vram=4 << 30) for name in names])
        yield ollama.url
