"""Ports for servers that cannot pick one themselves; tests run beside each other, and none is given out twice."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _MOST_WORKERS = 20_000, 16


def _unused() -> Iterator[int]:
    """Ports that are of this worker of pytest-xdist alone, each once, and that nobody uses now.

    They are below those that the kernel gives to connections: none can take one meanwhile.
    """
    end = min(int(_EPHEMERAL.read_text().split()[0]), 32_768)
    share = (end - _FIRST) // _MOST_WORKERS
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _MOST_WORKERS
    # Not the same ones in each run: of the last one some are still in TIME_WAIT.
    # Far apart for neighbouring process ids, which runs beside each other have.
    start = os.getpid() * 53
    for number in range(share):
        port = _FIRST + worker * share + (start + number) % share
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_ports = _unused()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses and that this function has not given out before."""
    return next(_ports)
