"""The stand-in for Ollama in a process of its own, on a loopback port of its own, to be broken and mended at will."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Optional

import ollama_standin

PATIENCE = 30.0


class OllamaProcess:
    """The stand-in, started with `options` (ollama_standin.py tells them); a context manager.

    The constructor returns when it listens: on `port`, or on one that is free. What is set with
    `models`, `slots` and `fault` is gone after `restart`, as with any server.
    """

    def __init__(self, port: int = 0, *options: str) -> None:
        self._options = options
        self.log: list[str] = []  # the lines of its standard error, of every process that it had
        self.port = port
        self.slots_port = 0  # of its llama-server, with the option --llama-server 127.0.0.1:0
        self._news = threading.Condition()
        self._start()

    @property
    def url(self) -> str:
        """Where it is, as `--ollama` takes it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id; another one after `restart`."""
        return self._process.pid

    def __enter__(self) -> OllamaProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # -- the process -------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End it as a crash does: its port refuses from now on. Nothing happens if it has ended."""
        self._process.kill()  # also one that is paused
        self._process.wait()
        self._reader.join(5)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def pause(self) -> None:
        """Let it hang: the kernel still takes connections for it, and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """A new process on the same ports; it listens when this returns."""
        self.kill()
        self._start()

    # -- what it answers -----------------------------------------------------------------------------------------------

    def models(self, entries: Sequence[dict[str, Any]]) -> None:
        """What is loaded: entries of /api/ps as they are to be answered.

        An entry's key `weights`, 64 hexadecimal digits, is not shown there: it is the blob that
        POST /api/show names for it. `model()` makes a whole entry.
        """
        self._control("/standin/models", list(entries))

    def library(self, models: dict[str, dict[str, Any]]) -> None:
        """Which models there are, by name, and what is so of each; ollama_standin.py tells what can be."""
        self._control("/standin/library", models)

    def token(self) -> None:
        """Let each generation and each pull that waits go one step further."""
        self._ask("POST", "/standin/token")

    def slots(self, busy: int, total: int) -> None:
        """What its llama-server says at /slots."""
        self._control("/standin/slots", {"busy": busy, "total": total})

    def fault(
        self,
        path: str,
        kind: Optional[str],
        times: Optional[int] = None,
        body: Optional[bytes] = None,
        **more: Any,
    ) -> None:
        """Break what is asked for at `path` ("*": everything), `times` times or until `kind` None mends it.

        Kinds: `status` (with `status`), `body` (with `body`), `hang`, `trickle`, `huge`, `close`,
        `redirect`; ollama_standin.py tells what each does.
        """
        if body is not None:
            more["base64"] = base64.b64encode(body).decode()
        self._control("/standin/fault", {"path": path, "kind": kind, "times": times, **more})

    def tell(self, **counts: int) -> Any:
        """What it has counted and the last requests, as soon as those of `counts` are so."""
        query = "&".join(f"{name}={count}" for name, count in counts.items())
        return self._ask("GET", f"/standin?{query}")

    def wait_for_log(
        self, pattern: str, skip: int = 0, patience: float = PATIENCE
    ) -> re.Match[str]:
        """The match of `pattern` in the line of `log` that has it (after `skip` of them), as soon as it is there."""
        deadline = time.monotonic() + patience
        with self._news:
            while True:
                found = [match for line in self.log if (match := re.search(pattern, line))]
                if len(found) > skip:
                    return found[skip]
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    raise AssertionError(f"no line with {pattern!r}: {self.log}")
                self._news.wait(min(left, 0.5))

    # -- how ---------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        listened = sum("Listening on" in line for line in self.log)
        slotted = sum("llama-server listens on" in line for line in self.log)
        options = list(self._options)
        if self.slots_port:
            options[options.index("--llama-server") + 1] = f"127.0.0.1:{self.slots_port}"
        command = [sys.executable, ollama_standin.__file__, "--listen", f"127.0.0.1:{self.port}"]
        self._process = subprocess.Popen(
            [*command, *options], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        try:
            line = self.wait_for_log(r"Listening on 127\.0\.0\.1:(\d+)", skip=listened)
            self.port = int(line[1])
            if "--llama-server" in options:
                line = self.wait_for_log(r"llama-server listens on \S+:(\d+)", skip=slotted)
                self.slots_port = int(line[1])
        except BaseException:
            self.kill()
            raise

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._news:
                self.log.append(line.rstrip("\n"))
                self._news.notify_all()

    def _control(self, target: str, document: Any) -> None:
        self._ask("POST", target, json.dumps(document))

    def _ask(self, method: str, target: str, body: Optional[str] = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, target, body)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, (target, answer.status, text)
            return json.loads(text)
        finally:
            connection.close()


def model(name: str, size: int = 4 << 30, size_vram: int = 4 << 30, **more: Any) -> dict[str, Any]:
    """An entry for `OllamaProcess.models`: like Ollama's, with a key of `more` for each that is to differ."""
    return {
        **ollama_standin.MODEL_IN_MEMORY,
        "name": name,
        "model": name,
        "size": size,
        "size_vram": size_vram,
        **more,
    }
