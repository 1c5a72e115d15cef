"""Wakes an event loop from another thread or from a signal's handler."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A pair of sockets: a byte written to `wakeup_fd` makes `fileno` readable."""

    def __init__(self) -> None:
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def fileno(self) -> int:
        """What the loop waits for."""
        return self._woken.fileno()

    @property
    def wakeup_fd(self) -> int:
        """For signal.set_wakeup_fd."""
        return self._waker.fileno()

    def wake(self) -> None:
        """Wake the loop."""
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # full: it is awake already; closed: it has ended

    def clear(self) -> None:
        """The loop is awake."""
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def close(self) -> None:
        """Give both sockets back."""
        self._woken.close()
        self._waker.close()
