"""Clients that hold on to a server: some send nothing, some a byte a second, one polls."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Callable

from benchmarks.process import open_files
from benchmarks.server import HOST, PATH, get

TRICKLE = f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\nX-Padding: ".encode() + b"a" * 600


@dataclass
class Siege:
    """What the slow clients saw: seconds from connect to the server's close, and who is left."""

    lifetimes: list[float] = field(default_factory=list)
    still_open: int = 0


class Poller(threading.Thread):
    """Scrapes every `every` seconds until stopped; latencies in seconds."""

    def __init__(self, port: int, every: float) -> None:
        super().__init__(name="poller", daemon=True)
        self._port = port
        self._every = every
        self._stopped = threading.Event()
        self.latencies: list[float] = []
        self.failures = 0

    def run(self) -> None:
        while not self._stopped.wait(self._every):
            asked = time.perf_counter()
            try:
                good = get(self._port, timeout=2.0)[0] == 200
            except (OSError, http.client.HTTPException):
                good = False
            if good:
                self.latencies.append(time.perf_counter() - asked)
            else:
                self.failures += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def besiege(
    port: int, idle: int, writers: int, seconds: float, each_second: Callable[[], None]
) -> Siege:
    """Holds `idle` + `writers` connections until the server has closed all, or for `seconds`."""
    siege = Siege()
    opened: dict[int, float] = {}
    sockets: dict[int, socket.socket] = {}
    trickling: list[int] = []
    with open_files(idle + writers), select.epoll() as poll:
        try:
            for number in range(idle + writers):
                fresh = socket.create_connection((HOST, port), timeout=5.0)
                fresh.setblocking(False)
                sockets[fresh.fileno()] = fresh
                opened[fresh.fileno()] = time.monotonic()
                poll.register(fresh, select.EPOLLIN)
                if number >= idle:
                    trickling.append(fresh.fileno())
            began = time.monotonic()
            turn = 0
            while sockets and time.monotonic() - began < seconds:
                for descriptor, _ in poll.poll(max(0.0, began + turn - time.monotonic())):
                    if _closed(sockets[descriptor]):
                        siege.lifetimes.append(time.monotonic() - opened[descriptor])
                        sockets.pop(descriptor).close()
                if time.monotonic() >= began + turn:
                    for descriptor in trickling:
                        if descriptor in sockets:
                            with contextlib.suppress(OSError):
                                sockets[descriptor].send(TRICKLE[turn : turn + 1])
                    turn += 1
                    each_second()
            siege.still_open = len(sockets)
        finally:
            for left in sockets.values():
                left.close()
    return siege


def _closed(connection: socket.socket) -> bool:
    """Reads a farewell (a 408) if there is one; True at the end of the stream or a reset."""
    try:
        return not connection.recv(65536)
    except BlockingIOError:
        return False
    except OSError:
        return True
