"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

import pytest
from agent_process import AgentProcess
from standin import NvmlStandIn


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Start the real daemon (AgentProcess's arguments, without the state directory); ended with the test."""
    with ExitStack() as stack:

        def start(*options: str, **kwargs: Any) -> AgentProcess:
            state_dir = kwargs.pop("state_dir", tmp_path / "state")
            return stack.enter_context(AgentProcess(state_dir, *options, **kwargs))

        yield start


@pytest.fixture
def nvml(tmp_path: Path) -> NvmlStandIn:
    """A stand-in for NVIDIA's library, with one healthy GPU until the test says otherwise."""
    if not NvmlStandIn.available():
        missing("gcc")
    return NvmlStandIn(tmp_path / "nvml")


def missing(component: str) -> None:
    """Skip the test for want of a component; fail it where all of them have to be there (CI)."""
    if os.environ.get("OLLAMA_METRICS_TEST_COMPONENTS") == "required":
        pytest.fail(f"{component} is not installed, and this run requires every component")
    pytest.skip(f"{component} is not installed")


@pytest.fixture
def component() -> Callable[[str], str]:
    """Find a program by name or path; the test is skipped without it (or fails, where it is required)."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
        if path is None:
            missing(name)
        assert path is not None
        return path

    return find
