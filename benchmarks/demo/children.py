"""Processes that end with this one, whatever ends it, and a folder that is gone then."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_END_SECONDS = 3.0
# Reads until its standard input ends, which it does when the demo does, and be it by SIGKILL.
_JANITOR = 'cat >/dev/null; for n in 1 2 3 4 5; do rm -rf -- "$1" && exit; sleep 0.2; done'


class Children:
    """Starts processes; all of them from one thread, for they end with the thread that has started them."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []
        self._libc = ctypes.CDLL(None)

    def start(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one that writes to a log; SIGKILL ends it when this process has ended."""
        parent, prctl = os.getpid(), self._libc.prctl

        def end_with_parent() -> None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            if os.getppid() != parent:  # it had ended before that
                os._exit(1)

        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env={**inherited(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for this process alone: it ends them in order.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._all.append(child)
        return child

    def end(self) -> None:
        """End all, by force where they do not end by themselves."""
        for child in self._all:
            if child.poll() is None:
                child.terminate()
                child.send_signal(signal.SIGCONT)  # somebody may have stopped it
        until = time.monotonic() + _END_SECONDS
        for child in self._all:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def inherited() -> dict[str, str]:
    """The environment without what would configure an agent or an Ollama."""
    return {name: text for name, text in os.environ.items() if not name.startswith("OLLAMA_")}


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder, which is removed at the end, and also when this process is killed."""
    path = tempfile.mkdtemp(prefix="ollama-metrics-demo-")
    with subprocess.Popen(
        ["sh", "-c", _JANITOR, "sh", path], stdin=subprocess.PIPE, start_new_session=True
    ) as janitor:
        try:
            yield Path(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            assert janitor.stdin is not None
            janitor.stdin.close()
