"""Every open connection: its request, its answer and its deadline; on whose turn it is the event loop decides.

A poller sends the same head every time, so what a head asks for is remembered by its bytes, and
what an answer is by page: most requests cost a recv, two look-ups and a send.
"""

from __future__ import annotations

import select
import socket

from .connection import Connection, Counters
from .deadlines import Deadlines
from .plans import CLOSE, Plans, refuse
from .request import LARGEST_HEAD, split_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from .plans import Application, Plan

_MOST_DISCARDED = 1 << 20
# Larger ones cost more to allocate than they save.
_RECEIVE = 4096
_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Conversations:
    """The connections by file descriptor, watched by `epoll`; used by the loop's thread alone.

    At most `most` are open, the oldest gives way. `now` is the loop's clock as of its last event.
    """

    def __init__(
        self,
        epoll: select.epoll,
        application: Application,
        deadlines: Deadlines,
        most: int,
        now: float,
    ) -> None:
        self.counters = Counters()
        self.deadlines = deadlines
        self.now = now
        self.open: dict[int, Connection] = {}
        # Those with a request received that waits for its turn.
        self.ready: dict[int, Connection] = {}
        self._epoll, self._application, self._most = epoll, application, most
        self._plans = Plans(application)
        self._ending = False

    def begin(self, sock: socket.socket) -> None:
        """A connection was accepted: answer at once what has come with it."""
        data: Optional[bytes]
        try:
            data = sock.recv(_RECEIVE, _DONTWAIT)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            sock.close()
            return
        if len(self.open) >= self._most:
            self.evict_oldest()
        connection = Connection(sock)
        if data is None:
            self._expect(connection)
        elif self._feed(connection, data):
            return
        self._watch(connection)

    def tell(self, sock: socket.socket, line: bytes) -> None:
        """A connection that is told a line, whatever it says itself."""
        try:
            sock.send(line, _DONTWAIT)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        if len(self.open) >= self._most:
            self.evict_oldest()
        connection = Connection(sock)
        # Closed when the client has closed: with something of it unread that would be a reset.
        connection.discarding = 0
        self._expect(connection)
        self._watch(connection)

    def adopt(self, sock: socket.socket) -> None:
        """Go on with a connection that had been between two requests elsewhere."""
        sock.setblocking(False)
        # execve took it along; a child that tries a configuration is not to have it.
        sock.set_inheritable(False)
        connection = Connection(sock)
        self.deadlines.rest(connection.fd, self.now)
        self._watch(connection)

    def event(self, connection: Connection) -> None:
        """The kernel has something for it, or room."""
        if connection.unsent is not None:
            self._writable(connection)
        elif connection.fd not in self.ready:
            self._readable(connection)

    def take_turns(self) -> None:
        """Answer one request of each connection that has one waiting."""
        ready, self.ready = self.ready, {}
        for connection in ready.values():
            if self.open.get(connection.fd) is connection and connection.unsent is None:
                self._feed(connection, connection.received)

    def end(self) -> None:
        """From now on each answer is its connection's last."""
        self._ending = True
        self._plans.close_connections()

    def take_what_has_arrived(self) -> None:
        """Answer what the kernel has received already, event or no event."""
        for connection in list(self.open.values()):
            if connection.unsent is None and connection.fd not in self.ready:
                self._readable(connection)

    def close_idle(self) -> None:
        """Close what is between two requests."""
        for fd in list(self.deadlines.idle):
            self.close(self.open[fd])

    def begun(self) -> list[Connection]:
        """Those in the middle of a request or an answer."""
        return [connection for connection in self.open.values() if connection.in_a_request]

    def _watch(self, connection: Connection) -> None:
        """Wait for a new connection by epoll."""
        fd = connection.fd
        events = select.EPOLLIN if connection.unsent is None else select.EPOLLOUT
        try:
            self._epoll.register(fd, events)
        except OSError:
            self.close(connection)
            return
        self.open[fd] = connection
        self.counters.connections = len(self.open)

    def close(self, connection: Connection) -> None:
        """Close one and forget it."""
        connection.socket.close()
        fd = connection.fd
        self.deadlines.forget(fd)
        self.ready.pop(fd, None)
        if self.open.pop(fd, None) is not None:
            self.counters.connections = len(self.open)

    def evict_late(self, now: float) -> None:
        """Close those whose deadline has passed."""
        for fd, was_busy in self.deadlines.late(now):
            connection = self.open[fd]
            if connection.received and connection.unsent is None and connection.discarding < 0:
                self._refuse_late(connection)
            self.counters.evicted += was_busy
            self.close(connection)

    def _refuse_late(self, connection: Connection) -> None:
        answer = self._application.refusal(
            408, f"the request was not complete within {self.deadlines.busy_seconds:g} s"
        )
        self.counters.requests += 1
        self.counters.refused += 1
        try:
            connection.socket.send(answer.wire(CLOSE, head_only=False), _DONTWAIT)
        except OSError:
            pass  # too slow to take even that

    def evict_oldest(self) -> bool:
        """Close the connection that has been idle for longest, else the one that has been busy for longest."""
        fd = self.deadlines.oldest()
        if fd is None:
            return False
        self.close(self.open[fd])
        self.counters.evicted += 1
        return True

    # -- requests ------------------------------------------------------------------------------------------------

    def _readable(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE, _DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)
        elif connection.discarding >= 0:
            connection.discarding += len(data)
            if connection.discarding > _MOST_DISCARDED:
                self.close(connection)
        else:
            self._feed(connection, connection.received + data if connection.received else data)

    def _feed(self, connection: Connection, data: bytes) -> bool:
        """Answer the first request in `data`, if it is complete; True when the connection has been closed.

        One request and no more: what a client has sent in advance waits for its turn, so that
        nobody gets more of the loop than one answer at a time.
        """
        plans = self._plans
        plan = plans.known.get(data)
        if plan is not None:
            rest = b""
        else:
            # RFC 9112, section 2.2: empty lines before a request line are to be ignored.
            data = data.lstrip(b"\r\n")
            head, rest = split_head(data)
            if head is None or len(head) > LARGEST_HEAD:
                if len(data) < LARGEST_HEAD:
                    connection.received = data
                    # An empty line is no request.
                    if data or connection.fd not in self.deadlines.idle:
                        self._expect(connection)
                    return False
                plan = refuse(431, f"a request's head may not exceed {LARGEST_HEAD} bytes")
            else:
                plan = plans.known.get(head) or plans.make(head)
        version = self._application.version()
        wire = plan.wire if plan.version is version else plans.render(plan, version)
        self.counters.requests += 1
        if plan.refused is not None:
            self.counters.refused += 1
        connection.received = rest
        try:
            sent = connection.socket.send(wire, _DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(connection)
            return True
        if sent < len(wire):
            connection.unsent = memoryview(wire)[sent:]
            connection.answering = plan
            self._expect(connection)
            if connection.fd in self.open:
                self._epoll.modify(connection.fd, select.EPOLLOUT)
            return False
        if self._ended(connection, plan):
            return connection.discarding < 0
        self._go_on(connection)
        return False

    def _writable(self, connection: Connection) -> None:
        assert connection.unsent is not None
        assert connection.answering is not None
        try:
            sent = connection.socket.send(connection.unsent, _DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self.close(connection)
            return
        connection.unsent = connection.unsent[sent:]
        if connection.unsent:
            return
        plan, connection.unsent, connection.answering = connection.answering, None, None
        self._epoll.modify(connection.fd, select.EPOLLIN)
        if not self._ended(connection, plan):
            self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        """An answer has been taken and the connection stays: for what has been received, or for what may come."""
        fd = connection.fd
        data = connection.received
        if data:
            connection.received = data = data.lstrip(b"\r\n")
        if data:
            self.deadlines.met(fd)
            self._expect(connection)
            self.ready[fd] = connection
        else:
            self.deadlines.rest(fd, self.now)

    def _ended(self, connection: Connection, plan: Plan) -> bool:
        """Whether this was the connection's last answer. It is closed then; with the client still sending, later."""
        if plan.keep_alive and not self._ending:
            return False
        if not plan.body:
            self.close(connection)
            return True
        # To close with unread data would be a reset, which can destroy the answer before the client
        # has read it.
        connection.discarding, connection.received = 0, b""
        self._expect(connection)
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has gone; reading will tell
        return True

    def _expect(self, connection: Connection) -> None:
        self.deadlines.expect(connection.fd, self.now)
