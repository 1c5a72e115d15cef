"""The event loop: hands out what the application has rendered; knows HTTP and no metric.

One thread, one epoll. A poller sends the same head every time, so what a head asks for is
remembered by its bytes, and what an answer is by page: most requests cost a recv, two look-ups and
a send. http.server judges every head that has not been seen (request.py).

Nobody can hold it up. A request has to be complete `REQUEST_SECONDS` after its connection was
accepted (or after its first byte on a connection that goes on), and its answer taken in that time;
heads are bounded, answers are sent one at a time, connections are bounded and the oldest gives way.
Nothing in here waits for anything but epoll.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time

from .connection import Connection, Counters
from .plans import CLOSE, Plans, refuse
from .request import LARGEST_HEAD, split_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable

    from .listener import Listener
    from .plans import Application, Plan

REQUEST_SECONDS = 10.0
# Longer than the 90 s after which Go's HTTP clients close, so that it is they who do.
IDLE_SECONDS = 100.0
GOODBYE_SECONDS = 0.5
MOST_CONNECTIONS = 4096
_MOST_DISCARDED = 1 << 20
# Read and waited for at once: larger ones cost more to allocate than they save.
_RECEIVE, _EVENTS = 4096, 64
_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Server:
    """Serves `application` on `listeners` until `stop`; `run` is to be called once, by one thread."""

    def __init__(
        self,
        listeners: Sequence[Listener],
        application: Application,
        most_connections: int = MOST_CONNECTIONS,
        request_seconds: float = REQUEST_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self._application, self._clock = application, clock
        self._most, self._request_seconds, self._idle_seconds = (
            most_connections,
            request_seconds,
            idle_seconds,
        )
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._connections: dict[int, Connection] = {}
        # fd -> deadline, each in the order of its deadlines, for those of one kind are all equally
        # long.
        self._busy: dict[int, float] = {}
        self._idle: dict[int, float] = {}
        # Connections with a request received that waits for its turn, by fd.
        self._ready: dict[int, Connection] = {}
        self._plans = Plans(application)
        self._now = clock()  # as of the last event: deadlines need no better
        self._epoll = select.epoll()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._stopping = False
        for fd in (*self._listeners, self._woken.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    @property
    def wakeup_fd(self) -> int:
        """A file descriptor for signal.set_wakeup_fd: a byte written to it wakes the loop."""
        return self._waker.fileno()

    def stop(self) -> None:
        """End `run` soon: no new connection, what is being answered is finished within half a second.

        May be called from any thread and from a signal's handler.
        """
        self._stopping = True
        try:
            self._waker.send(b"\0")
        except OSError:
            pass  # full: it is awake already; closed: it has ended

    def run(self) -> None:
        """Serve until `stop`, then close every socket."""
        try:
            while not self._stopping:
                self._turn()
            self._say_goodbye()
        finally:
            self._close_all()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self, most: float = -1) -> None:
        """Wait for events until the first deadline, at most `most` seconds (-1: for ever), and deal with them."""
        timeout = most
        if self._busy or self._idle:
            self._now = now = self._clock()
            first = min(queue[next(iter(queue))] for queue in (self._busy, self._idle) if queue)
            if first <= now:
                self._evict_late(now)
                return
            timeout = first - now if most < 0 else min(most, first - now)
        if self._ready:
            timeout = 0
        connections, ready = self._connections, self._ready
        events = self._epoll.poll(timeout, _EVENTS)
        self._now = self._clock()
        for fd, event in events:
            connection = connections.get(fd)
            if connection is not None:
                if connection.unsent is not None:
                    self._writable(connection)
                elif fd not in ready:
                    self._readable(connection)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
            elif event & select.EPOLLIN and fd == self._woken.fileno():
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
        if ready:
            self._ready = {}
            for connection in ready.values():
                if connections.get(connection.fd) is connection and connection.unsent is None:
                    self._feed(connection, connection.received)

    def _say_goodbye(self) -> None:
        """Answer what has arrived, send what is being sent, then leave."""
        self._plans.close_connections()
        for listener in self._listeners.values():
            for _ in range(self._most):
                if not self._accept(listener):
                    break
            self._epoll.unregister(listener.fileno())
            listener.server_close()
        self._listeners.clear()
        for connection in list(self._connections.values()):
            if connection.unsent is None and connection.fd not in self._ready:
                self._readable(connection)
        for fd in list(self._idle):
            self._close(self._connections[fd])
        deadline = self._clock() + GOODBYE_SECONDS
        while self._connections and (left := deadline - self._clock()) > 0:
            self._turn(left)
            for fd in list(self._idle):
                self._close(self._connections[fd])

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        for listener in self._listeners.values():
            listener.server_close()
        self._epoll.close()
        self._woken.close()
        self._waker.close()

    # -- connections ---------------------------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> bool:
        """Take one connection and answer what has come with it; False when there is none to be had."""
        try:
            sock, _ = listener.socket.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if (
                error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
                and not self._evict_oldest()
            ):
                time.sleep(0.01)  # nothing to give up: better late than spinning
                return False
            return True  # ECONNABORTED and its like: the client has gone again
        try:
            data = sock.recv(_RECEIVE, _DONTWAIT)
        except BlockingIOError:
            data = None
        except OSError:
            sock.close()
            return True
        if data == b"":
            sock.close()
            return True
        if len(self._connections) >= self._most:
            self._evict_oldest()
        connection = Connection(sock)
        if data is None:
            self._expect(connection)
        elif self._feed(connection, data):
            return True
        self._watch(connection)
        return True

    def _watch(self, connection: Connection) -> None:
        """Wait for a new connection by epoll."""
        fd = connection.fd
        events = select.EPOLLIN if connection.unsent is None else select.EPOLLOUT
        try:
            self._epoll.register(fd, events)
        except OSError:
            self._forget(connection)
            connection.socket.close()
            return
        self._connections[fd] = connection
        self.counters.connections = len(self._connections)

    def _close(self, connection: Connection) -> None:
        self._forget(connection)
        connection.socket.close()

    def _forget(self, connection: Connection) -> None:
        fd = connection.fd
        self._busy.pop(fd, None)
        self._idle.pop(fd, None)
        self._ready.pop(fd, None)
        if self._connections.pop(fd, None) is not None:
            self.counters.connections = len(self._connections)

    def _evict_late(self, now: float) -> None:
        for queue in (self._busy, self._idle):
            while queue:
                fd = next(iter(queue))
                if queue[fd] > now:
                    break
                connection = self._connections[fd]
                if connection.received and connection.unsent is None and connection.discarding < 0:
                    self._refuse_late(connection)
                self.counters.evicted += queue is self._busy
                self._close(connection)

    def _refuse_late(self, connection: Connection) -> None:
        answer = self._application.refusal(
            408, f"the request was not complete within {self._request_seconds:g} s"
        )
        self.counters.requests += 1
        self.counters.refused += 1
        try:
            connection.socket.send(answer.wire(CLOSE, head_only=False), _DONTWAIT)
        except OSError:
            pass  # too slow to take even that

    def _evict_oldest(self) -> bool:
        """Close the connection that has been idle for longest, else the one that has been busy for longest."""
        for queue in (self._idle, self._busy):
            if queue:
                self._close(self._connections[next(iter(queue))])
                self.counters.evicted += 1
                return True
        return False

    # -- requests ------------------------------------------------------------------------------------------------

    def _readable(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE, _DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        if not data:
            self._close(connection)
        elif connection.discarding >= 0:
            connection.discarding += len(data)
            if connection.discarding > _MOST_DISCARDED:
                self._close(connection)
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
                    if data or connection.fd not in self._idle:  # an empty line is no request
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
            self._close(connection)
            return True
        if sent < len(wire):
            connection.unsent = memoryview(wire)[sent:]
            connection.answering = plan
            self._expect(connection)
            if connection.fd in self._connections:
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
            self._close(connection)
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
        self._busy.pop(fd, None)  # the next request has a deadline of its own
        data = connection.received
        if data:
            connection.received = data = data.lstrip(b"\r\n")
        if data:
            self._expect(connection)
            self._ready[fd] = connection
        else:
            self._idle.pop(fd, None)
            self._idle[fd] = self._now + self._idle_seconds

    def _ended(self, connection: Connection, plan: Plan) -> bool:
        """Whether this was the connection's last answer. It is closed then; with the client still sending, later."""
        if plan.keep_alive and not self._stopping:
            return False
        if not plan.body:
            self._close(connection)
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
        """Something has to happen within the request's deadline, which runs from when it first had to."""
        fd = connection.fd
        if fd not in self._busy:
            self._idle.pop(fd, None)
            self._busy[fd] = self._now + self._request_seconds
