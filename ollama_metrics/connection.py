"""What the event loop knows of one connection, and what it has counted over all of them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Optional

    from .plans import Plan


class Counters:
    """What the loop has done so far; written by its thread, read by any."""

    __slots__ = ("connections", "evicted", "refused", "requests")

    def __init__(self) -> None:
        self.requests = self.refused = self.evicted = self.connections = 0


class Connection:
    """A connection that has to be waited for.

    `received` is an incomplete head, `unsent` what the client is yet to take of `answering`;
    `discarding` counts what it sends although it has had its last answer (-1: it has not).
    """

    __slots__ = ("answering", "discarding", "fd", "received", "socket", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.socket, self.fd = sock, sock.fileno()
        self.received = b""
        self.unsent: Optional[memoryview] = None
        self.answering: Optional[Plan] = None
        self.discarding = -1

    @property
    def in_a_request(self) -> bool:
        """Whether something of a request or of its answer is held here, and not by the kernel."""
        return bool(self.received) or self.unsent is not None or self.discarding >= 0
