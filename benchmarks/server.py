"""One server under test: starts it on its core, waits for a good answer, ends it by its pid."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import process

HOST = "127.0.0.1"
PATH = "/metrics"
LISTENING = re.compile(rf"listening on http://{re.escape(HOST)}:(\d+)")
GLANCE = 0.001  # seconds between two looks at a server that is starting


class ServerFailed(Exception):
    """A server ended or never answered; the message quotes the end of its log."""


def free_port() -> int:
    """A TCP port that nobody on HOST listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def get(port: int, timeout: float = 5.0) -> tuple[int, bytes]:
    """Status and body of one GET on a connection of its own."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", PATH, headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Server:
    """A running server. `port` is 0 as long as one that picks its own has not logged it."""

    def __init__(
        self,
        name: str,
        command: list[str],
        port: int,
        log: Path,
        core: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self._log = log
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_METRICS_")}
        kept.update(environment or {})
        with process.pinned(core), log.open("wb") as output:
            self.started = time.monotonic()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=kept
            )
        self.pid = self._process.pid

    def first_answer(self, timeout: float = 20.0) -> float:
        """Seconds from the start of the process to its first 200."""
        while time.monotonic() - self.started < timeout:
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.name} ended ({self._process.returncode}): {self.log()}")
            if self.port == 0:
                logged = LISTENING.search(self.log())
                self.port = int(logged.group(1)) if logged else 0
            if self.port:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if get(self.port)[0] == 200:
                        return time.monotonic() - self.started
            time.sleep(GLANCE)
        raise ServerFailed(f"{self.name} gave no good answer within {timeout:g} s: {self.log()}")

    def log(self) -> str:
        """The end of what the server has written."""
        return self._log.read_text(errors="replace")[-2000:].strip()

    def body(self) -> bytes:
        """What the server answers now."""
        status, body = get(self.port)
        if status != 200:
            raise ServerFailed(f"{self.name} answered {status}")
        return body

    def keeps_alive(self) -> bool:
        """Whether a connection stays open after an answer to a plain HTTP/1.1 request."""
        with socket.create_connection((HOST, self.port), timeout=5.0) as connection:
            connection.sendall(f"GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            connection.recv(65536)
            connection.settimeout(0.3)
            try:
                while connection.recv(65536):
                    pass
            except socket.timeout:
                return True
            except OSError:
                return False
            return False

    def cpu_seconds(self) -> float:
        return process.cpu_seconds(self.pid)

    def memory(self) -> process.Memory:
        return process.memory(self.pid)

    def threads(self) -> int:
        return process.threads(self.pid)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what is left of the tree after 5 s."""
        members = process.tree(self.pid)
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            self._process.wait()


Servers = dict[str, Server]
