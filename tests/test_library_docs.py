"""docs/LIBRARY.md, carried out: each of its Python blocks is run as it is written, over the stand-ins."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ollama_process import OllamaProcess
from standin import NvmlStandIn

from ollama_metrics import OllamaGPUMonitor

PAGE = (Path(__file__).parents[1] / "docs" / "LIBRARY.md").read_text("utf-8")


def blocks() -> list[Any]:
    """The Python blocks with the section that each is in."""
    found: list[Any] = []
    section = ""
    for match in re.finditer(r"^##? (.*)$|^```python\n((?:.*\n)*?)```$", PAGE, re.MULTILINE):
        if match[1]:
            section = match[1]
        else:
            found.append(pytest.param(match[2], id=f"{section} {len(found)}"))
    return found


@pytest.fixture
def ollama() -> Iterator[OllamaProcess]:
    with OllamaProcess() as process:
        yield process


def run(block: str, nvml: NvmlStandIn, **environment: str) -> str:
    """What a program says that is the block."""
    done = subprocess.run(
        [sys.executable, "-c", block],
        env={**os.environ, **nvml.environment(), **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("block", blocks())
def test_a_block_runs(block: str, nvml: NvmlStandIn, ollama: OllamaProcess) -> None:
    """It ends well and complains of nothing, with two GPUs and an Ollama that has a model loaded."""
    if "import ollama\n" in block:
        pytest.importorskip("ollama")
    nvml.set(count=2)
    said = run(block, nvml, OLLAMA_HOST=ollama.url)
    assert bool(said) == ("print" in block)
    assert "Error" not in said


@pytest.mark.parametrize(
    "block", [block for block in blocks() if "except OllamaDown" in block.values[0]]
)
def test_a_block_that_expects_a_failure_runs(
    block: str, nvml: NvmlStandIn, ollama: OllamaProcess
) -> None:
    """The blocks that catch an error do so where Ollama is dead."""
    ollama.kill()
    assert "connection refused" in run(block, nvml, OLLAMA_HOST=ollama.url)


def test_the_page_shows_each_method() -> None:
    """Each public method is called in a block, and named with its arguments as they are."""
    code = "".join(block.values[0] for block in blocks())
    for name, method in inspect.getmembers(OllamaGPUMonitor, callable):
        if name.startswith("_"):
            continue
        assert f".{name}(" in code, name
        for argument in inspect.signature(method).parameters:
            if argument != "self" and not name.startswith("async_"):
                assert re.search(rf"\b{name}\([^)]*\b{argument}\b", PAGE), (name, argument)
    for argument in inspect.signature(OllamaGPUMonitor).parameters:
        assert f"| `{argument}` |" in PAGE, argument


def test_the_page_shows_each_key(nvml: NvmlStandIn, ollama: OllamaProcess) -> None:
    """Each key that is handed out is in the table of its dictionary, and no other is."""
    script = """
import json
from ollama_metrics import OllamaGPUMonitor
with OllamaGPUMonitor() as monitor:
    print(json.dumps([*monitor.get_gpu_status()[0], "", *monitor.get_ollama_processes()[0], "",
                      *monitor.get_model_gpu_usage()[0], "", *monitor.to_dict()]))
"""
    said = run(script, nvml, OLLAMA_HOST=ollama.url)
    handed_out = [re.findall(r'"(\w+)"', part) for part in said.replace('"", ', '""').split('""')]
    tables = re.findall(r"^\| key of .*\n\| --- .*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    shown = [
        [key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1])]
        for table in tables
    ]
    assert [sorted(keys) for keys in shown] == [sorted(keys) for keys in handed_out]


def test_the_page_was_found() -> None:
    """The page has blocks, in most of its sections."""
    assert len(blocks()) > 10
