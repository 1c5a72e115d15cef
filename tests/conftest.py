"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable

import machine
import pytest
from agent_process import AgentProcess
from installed import Host
from notify_socket import Systemd
from standin import NvmlStandIn

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _signals_are_not_ignored() -> None:
    """Whoever started the tests may have had these ignored (nohup, a shell's &); each daemon would inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """The socket to which NOTIFY_SOCKET leads."""
    socket = Systemd(str(tmp_path / "notify"))
    yield socket
    socket.close()


def missing(component: str) -> None:
    """Skip the test for want of a component; fail it where all of them have to be there (CI)."""
    if os.environ.get("OLLAMA_METRICS_TEST_COMPONENTS") == "required":
        pytest.fail(f"{component} is not installed, and this run requires every component")
    pytest.skip(f"{component} is not installed", allow_module_level=True)


def library(name: str) -> Any:
    """A module out of pyproject.toml's extra `components`; without it the tests of the file are skipped, as above."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return missing(f"{name} (pip install '.[components]')")


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


@pytest.fixture
def analyze(component: Callable[[str], str]) -> str:
    """systemd-analyze, of a systemd that knows every key of our units (its older ones ignore some)."""
    program = component("systemd-analyze")
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    if int(said.stdout.split()[1]) < 252:
        pytest.skip("this systemd is older than some of the keys")
    return program


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout as a user would have it: what is tracked or could be, and nothing that was built."""
    target = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=REPOSITORY, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (REPOSITORY / name).exists():  # not so when its removal is yet to be committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name, follow_symlinks=False)
    return target


@pytest.fixture(scope="session")
def wheelhouse(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheelhouse` fills, for hosts without a network."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    subprocess.run(
        ["make", "-s", "wheelhouse", f"WHEELHOUSE={folder}", "PYTHON=/usr/bin/python3"],
        cwd=checkout, check=True, timeout=300,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def build_wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip needs besides the wheelhouse to install a checkout."""
    folder = tmp_path_factory.mktemp("build-wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    subprocess.run([*pip, "--dest", str(folder), "setuptools>=77"], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def booted_host(checkout: Path, wheelhouse: Path) -> Callable[..., AbstractContextManager[Host]]:
    """Boot a machine (machine.Machine's arguments) with the checkout and the wheelhouse in it."""
    why_not = machine.why_not()
    if why_not:
        missing(f"a bootable systemd ({why_not})")

    @contextmanager
    def boot(**options: Any) -> Iterator[Host]:
        with machine.Machine(**options) as booted:
            yield Host(booted, checkout, wheelhouse, "/usr/bin/python3")

    return boot
