"""Polls a URL at a fixed rate until its standard input ends, then prints what became of it as JSON.

Standard library only: it runs wherever there is a Python, in a booted machine for one. Each poll has a
connection of its own and five seconds, as a balancer's; besides, unless --no-kept is given, one connection
is kept and used for ten polls a second.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 5.0
KEPT_PER_SECOND = 10.0


class Poller:
    """What was polled so far: `run` polls until `end` is set."""

    def __init__(self, url: str, per_second: float, kept: bool = True) -> None:
        self.host = urlsplit(url).netloc
        self.target = urlsplit(url).path
        self.interval, self.kept = 1 / per_second, kept
        self.end = threading.Event()
        self.lock = threading.Lock()
        self.polls = self.kept_polls = self.kept_connections = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    def run(self) -> None:
        with ThreadPoolExecutor(512) as pool:
            if self.kept:
                pool.submit(self._keep_polling)
            due = time.monotonic()
            while not self.end.wait(max(0.0, due - time.monotonic())):
                pool.submit(self._poll_once)
                due += self.interval

    def result(self) -> dict[str, Any]:
        return {
            "polls": self.polls,
            "kept_polls": self.kept_polls,
            "kept_connections": self.kept_connections,
            "slowest": round(self.slowest, 3),
            "failed": self.failed,
        }

    def _poll_once(self) -> None:
        begun = time.monotonic()
        error = ""
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)
        try:
            error = self._ask(connection)
        finally:
            connection.close()
        with self.lock:
            self.polls += 1
            self.slowest = max(self.slowest, time.monotonic() - begun)
            if error:
                self.failed.append(error)

    def _keep_polling(self) -> None:
        """One connection for all; that the server closes it between two requests would be a failure, too."""
        connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT)
        while not self.end.wait(1 / KEPT_PER_SECOND):
            if connection.sock is None:
                self.kept_connections += 1
            error = self._ask(connection)
            with self.lock:
                self.kept_polls += 1
                if error:
                    self.failed.append(f"kept: {error}")
                    connection.close()
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> str:
        """What went wrong, or nothing."""
        try:
            connection.request("GET", self.target)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                return f"status {answer.status}: {body[:200]!r}"
            json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}"
        return ""


def main() -> None:
    poller = Poller(sys.argv[1], float(sys.argv[2]), "--no-kept" not in sys.argv[3:])
    thread = threading.Thread(target=poller.run)
    thread.start()
    sys.stdin.read()
    poller.end.set()
    thread.join()
    print(json.dumps(poller.result()))


if __name__ == "__main__":
    main()
