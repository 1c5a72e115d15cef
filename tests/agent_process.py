"""The real daemon in a process of its own, on a port of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

PATIENCE = 30.0


class Response(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class AgentProcess:
    """`ollama-metrics serve`, started with `options` and `environment` besides those given here.

    `wrapper` is a command before it that executes it, `popen` are arguments of subprocess.Popen.

    The constructor returns when the agent listens on every address of `listen`; use it as a
    context manager.
    """

    def __init__(
        self,
        state_dir: Path,
        *options: str,
        environment: Optional[Mapping[str, str]] = None,
        listen: Sequence[str] = ("127.0.0.1:0",),
        wrapper: Sequence[str] = (),
        **popen: Any,
    ) -> None:
        command = [*wrapper, sys.executable, "-m", "ollama_metrics", "serve"]
        command += ["--state-dir", str(state_dir)]
        # Whatever listens on Ollama's port of the machine that runs the tests is none of theirs.
        if "--ollama" not in options:
            command += ["--ollama", "none"]
        for address in listen:
            command += ["--listen", address]
        # No variable of the machine that runs the tests may configure the agent.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
        self.process = subprocess.Popen(
            [*command, *options],
            env={**inherited, **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
            # Nor a terminal of it, which gives SIGHUP another meaning.
            start_new_session=True,
            **popen,
        )
        self.log: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ports: list[int] = []
        try:
            for _ in listen:
                line = self.wait_for_log(r"listening on http://\S+:(\d+)", skip=len(self.ports))
                self.ports.append(int(line.group(1)))
        except BaseException:
            self.close()
            raise

    @property
    def port(self) -> int:
        """The (first) port."""
        return self.ports[0]

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the daemon, by force where it does not end by itself (a hanging driver may hold it)."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def get(
        self, target: str = "/metrics", method: str = "GET", timeout: float = 10.0, **headers: str
    ) -> Response:
        """One request on a connection of its own; header names with `_` for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, headers=named)
            answer = connection.getresponse()
            return Response(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def metrics(self, target: str = "/metrics") -> Any:
        """The JSON document."""
        return self.get(target).json

    def wait_until(self, true_of: Callable[[Any], bool], patience: float = PATIENCE) -> Any:
        """Poll /metrics until `true_of` its document; returns the document. Fails with the last one."""
        deadline = time.monotonic() + patience
        while True:
            document = self.metrics()
            if true_of(document):
                return document
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience} s; last: {document}")
            self._pause()

    def wait_for_log(
        self, pattern: str, skip: int = 0, patience: float = PATIENCE
    ) -> re.Match[str]:
        """The match of `pattern` in the log line that has it (after `skip` of them), as soon as it is there."""
        deadline = time.monotonic() + patience
        with self._news:
            while True:
                found = [match for line in self.log if (match := re.search(pattern, line))]
                if len(found) > skip:
                    return found[skip]
                if self.process.poll() is not None and not self._reader.is_alive():
                    raise AssertionError(
                        f"the agent ended with {self.process.returncode}: {self.log}"
                    )
                self._news.wait(min(0.5, max(0.0, deadline - time.monotonic())))
                if time.monotonic() > deadline:
                    raise AssertionError(f"no log line matches {pattern!r}: {self.log}")

    def reload(self) -> None:
        """Send SIGHUP; returns when the program that was executed anew listens."""
        listening = sum("listening on" in line for line in self.log)
        self.process.send_signal(signal.SIGHUP)
        self.wait_for_log("listening on", skip=listening)

    @staticmethod
    def _pause() -> None:
        threading.Event().wait(0.02)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.log.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()
