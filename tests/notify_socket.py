"""The socket at which systemd hears of its services, without systemd."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from typing import Callable

PATIENCE = 30.0
Message = Mapping[str, str]


class Systemd:
    """Receives what services tell.

    `messages` are those that were received, each with its variables by name; a message that is not
    lines of NAME=VALUE with no name twice fails the test.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.messages: list[Message] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a service of this systemd has in its environment."""
        return {"NOTIFY_SOCKET": self.address}

    def close(self) -> None:
        self._socket.close()

    def receive(self, patience: float = PATIENCE) -> Message:
        """The next message."""
        self._socket.settimeout(patience)
        text = self._socket.recv(65536).decode("utf-8")
        pairs = [line.split("=", 1) for line in text.split("\n")]
        message = dict(pairs)
        assert len(message) == len(pairs), text
        self.messages.append(message)
        return message

    def wait_for(self, true_of: Callable[[Message], bool]) -> Message:
        """The next message that is so."""
        deadline = time.monotonic() + PATIENCE
        while not true_of(message := self.receive()):
            assert time.monotonic() < deadline, self.messages
        return message

    def wait_for_ready(self) -> Message:
        """The next message that tells that the service is ready."""
        return self.wait_for(lambda message: message.get("READY") == "1")

    def fill(self) -> None:
        """Have the socket take nothing more until something is received."""
        full = False
        while not full:  # a sender may only have so much on the way
            full = True
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while sender.sendto(b"X_FILL=1", self._socket.getsockname()):
                        full = False
