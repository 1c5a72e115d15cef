"""The load: wrk for rates, and an epoll client of our own where the count must be exact."""

from __future__ import annotations

import errno
import re
import select
import socket
import subprocess
import time
from dataclasses import dataclass

from benchmarks.process import open_files
from benchmarks.server import HOST, PATH, Server

REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
CONNECTIONS = 16
TIMEOUT = 5.0  # seconds without a single event before what is still open counts as failed

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_REQUESTS = re.compile(r"(\d+) requests in")
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_REFUSED = re.compile(r"Non-2xx or 3xx responses: (\d+)")


class LoadFailed(Exception):
    """The load generator did not give a usable figure."""


@dataclass(frozen=True)
class Rate:
    """What wrk saw: whole requests, requests per second, latencies in seconds, all errors."""

    requests: int
    per_second: float
    p50: float
    p99: float
    errors: int


def wrk(port: int, seconds: int, connections: int, keep_alive: bool) -> Rate:
    """Asks as fast as the server answers, from one thread."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if not keep_alive:
        command += ["-H", "Connection: close"]
    with open_files(connections):
        done = subprocess.run(
            [*command, f"http://{HOST}:{port}{PATH}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds + 30,
        )
    requests, rate = _REQUESTS.search(done.stdout), _RATE.search(done.stdout)
    if requests is None or rate is None or int(requests.group(1)) == 0:
        raise LoadFailed(f"wrk gave no figure: {done.stdout.strip()}")
    errors = 0
    for found in (_ERRORS.search(done.stdout), _REFUSED.search(done.stdout)):
        errors += sum(int(count) for count in found.groups()) if found else 0
    return Rate(
        requests=int(requests.group(1)),
        per_second=float(rate.group(1)),
        p50=_percentile(done.stdout, 50),
        p99=_percentile(done.stdout, 99),
        errors=errors,
    )


def _percentile(text: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    return float(found.group(1)) * _SECONDS[found.group(2)] if found else float("nan")


@dataclass(frozen=True)
class Scrapes:
    """Outcome of an exact number of scrapes; latencies in seconds, connect to end of answer."""

    latencies: list[float]
    failures: int


class _Scrape:
    """One GET on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.started = time.perf_counter()
        self.received = bytearray()
        self.asked = False
        status = self.socket.connect_ex((HOST, port))
        if status not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(status, "connect")

    def advance(self) -> bool:
        """Sends or reads what can be now; True once the server has closed."""
        if not self.asked:
            self.socket.send(REQUEST)
            self.asked = True
            return False
        piece = self.socket.recv(65536)
        self.received += piece
        return not piece

    def good(self) -> bool:
        """A 200 whose body is as long as announced (or of unannounced length)."""
        head, _, body = bytes(self.received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
        whole = length is None or int(length.group(1)) == len(body)
        return head[:5] == b"HTTP/" and head[8:13] == b" 200 " and whole


def scrape(port: int, count: int, at_once: int) -> Scrapes:
    """Exactly `count` GETs, each on a new connection, `at_once` of them open at any moment."""
    latencies: list[float] = []
    failures = started = 0
    running: dict[int, _Scrape] = {}
    with open_files(at_once), select.epoll() as poll:
        while started < count or running:
            while started < count and len(running) < at_once:
                started += 1
                try:
                    fresh = _Scrape(port)
                except OSError:
                    failures += 1
                    continue
                running[fresh.socket.fileno()] = fresh
                poll.register(fresh.socket, select.EPOLLOUT)
            events = poll.poll(TIMEOUT)
            if not events:
                failures += len(running)
                break
            for descriptor, _ in events:
                current = running[descriptor]
                try:
                    ended = current.advance()
                except OSError:
                    ended, current.received = True, bytearray()
                if not ended:
                    poll.modify(descriptor, select.EPOLLIN)
                    continue
                if current.good():
                    latencies.append(time.perf_counter() - current.started)
                else:
                    failures += 1
                del running[descriptor]
                current.socket.close()
        for unanswered in running.values():
            unanswered.socket.close()
    return Scrapes(latencies, failures + count - started)


def percentile(values: list[float], percent: float) -> float:
    """Nearest-rank percentile; NaN of nothing."""
    ranked = sorted(values)
    if not ranked:
        return float("nan")
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100.0))]


def loaded(server: Server, seconds: int, connections: int, keep_alive: bool) -> tuple[float, Rate]:
    """CPU microseconds per request, and what wrk saw."""
    before = server.cpu_seconds()
    rate = wrk(server.port, seconds, connections, keep_alive)
    return (server.cpu_seconds() - before) / rate.requests * 1e6, rate
