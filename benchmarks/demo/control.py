"""How the commands that people try reach the demo that runs: a socket without a file, so nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import Callable

_MOST_BYTES = 256
_SECONDS = 5.0
MOST_DEMOS = 9  # of a user at once


def _address(number: int) -> str:
    return f"\0ollama-metrics-demo-{os.getuid()}-{number}"


class Control:
    """Takes commands; a context manager. `number` tells it from other demos of the same user."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        for self.number in range(1, MOST_DEMOS + 1):
            with contextlib.suppress(OSError):
                self._listener.bind(_address(self.number))
                break
        else:
            raise OSError(f"{MOST_DEMOS} demos run already")
        self._listener.listen()

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def serve(self, seconds: float, do: Callable[[str], str]) -> None:
        """Do what is asked for within this time; the answer is what `do` returns."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._listener], [], [], left)[0]:
                return
            with self._listener.accept()[0] as client, contextlib.suppress(OSError, ValueError):
                client.settimeout(1.0)
                if _user(client) in (0, os.getuid()):
                    client.sendall(do(client.recv(_MOST_BYTES).decode()).encode())


def _user(client: socket.socket) -> int:
    """Who is at the other end: any user of this machine can get to the socket."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


def tell(number: int, command: str) -> str:
    """What the demo of this number answers. Raises OSError where there is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_SECONDS)
        client.connect(_address(number))
        client.sendall(command.encode())
        return client.recv(4096).decode()
