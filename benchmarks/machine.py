"""What the figures were taken on: the machine, and the versions of everything that took part."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import program
from benchmarks.process import Cores

Facts = dict[str, str]


def machine(cores: Cores) -> Facts:
    """CPU model, cores, memory, kernel and how they were shared out."""
    model = _first(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo")) or platform.machine()
    kib = _first(r"^MemTotal:\s+(\d+) kB$", _read("/proc/meminfo"))
    system = _first(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"))
    split = f"servers on core {cores.server}, load on core {cores.load}"
    if cores.shared:
        split = "one core only: servers and load share it, so rates and latencies tell little"
    return {
        "CPU": f"{model}, {os.cpu_count()} cores",
        "memory": f"{int(kib) / 1024 / 1024:.1f} GiB" if kib else "unknown",
        "system": system or "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "cores": split,
        "load average before the run": f"{os.getloadavg()[0]:.2f}",
    }


def versions() -> Facts:
    """What ran, as each program says it itself."""
    agent = [sys.executable, "-I", "-m", "ollama_metrics", "--version"]
    found = {
        "agent": _said(agent, r"(\d+\.\d\S*)"),
        "Python": platform.python_version(),
        "psutil": _distribution("psutil"),
        "prometheus_client": _distribution("prometheus_client"),
        "nginx": _said([program("nginx"), "-v"], r"nginx/(\S+)"),
        "node_exporter": _said(
            [program("prometheus-node-exporter"), "--version"], r"version (\S+)"
        ),
        "wrk": _said([program("wrk"), "-v"], r"wrk (\S+)"),
    }
    return {name: version or "not found" for name, version in found.items()}


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1).strip() if found else None


def _distribution(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _said(command: Sequence[str | None], pattern: str) -> str | None:
    if command[0] is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            [part for part in command if part is not None],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=10,
        )
        return _first(pattern, said.stdout)
    return None
