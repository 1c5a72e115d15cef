"""The event loop: hands out what the application has rendered; knows HTTP and no metric.

One thread, one epoll. A poller sends the same head every time, so what a head asks for is remembered by its bytes,
and what an answer is by page: most requests cost a recv, two look-ups and a send. http.server judges every head that
has not been seen (request.py).

Nobody can hold it up. A request has to be complete `REQUEST_SECONDS` after its connection was accepted (or after its
first byte on a connection that goes on), and its answer taken in that time; heads are bounded, answers are sent one
at a time, connections are bounded and the oldest gives way. Nothing in here waits for anything but epoll.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from .request import LARGEST_HEAD, Request, parse, split_head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Hashable, Optional, Protocol, Sequence, Tuple

    from .listener import Listener

    class Application(Protocol):
        """What is served: pages, by keys that stay valid for as long as the program runs."""

        def page(self, method: str, target: str, accept: Optional[str]) -> Hashable:
            """The key of the page that a request asks for. Raises Refused."""

        def version(self) -> object:
            """An object that is another one as soon as pages have to be rendered again."""

        def render(self, page: Hashable) -> Answer:
            """The page as it is now."""

        def refusal(self, status: int, sentence: str) -> Answer:
            """The answer to a request that is refused."""


REQUEST_SECONDS = 10.0
# Longer than the 90 s after which Go's HTTP clients close, so that it is they who do.
IDLE_SECONDS = 100.0
GOODBYE_SECONDS = 0.5
MOST_CONNECTIONS = 4096
_MOST_HEADS, _LARGEST_REMEMBERED_HEAD = 256, 2048
_MOST_PAGES = 64
_MOST_DISCARDED = 1 << 20
_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_KEEP, _KEEP_1_0, _CLOSE = b"", b"Connection: keep-alive\r\n", b"Connection: close\r\n"


class Refused(Exception):
    """A request that gets an error of 400 to 499; `headers` are added to the answer."""

    def __init__(self, status: int, sentence: str, headers: Tuple[Tuple[str, str], ...] = ()) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Answer:
    """A rendered page."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self, status: int, content_type: str, body: bytes, headers: Tuple[Tuple[str, str], ...] = ()
    ) -> None:
        self.status, self.content_type, self.body, self.headers = status, content_type, body, headers

    def wire(self, connection: bytes, head_only: bool) -> bytes:
        """The answer as it is sent; `connection` is the Connection header's line or nothing."""
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Date: {_http_date(time.time())}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            "Cache-Control: no-store",
            "Vary: Accept",
            "X-Content-Type-Options: nosniff",
        ]
        lines += [f"{name}: {value}" for name, value in self.headers]
        head = "\r\n".join(lines).encode("ascii") + b"\r\n" + connection + b"\r\n"
        return head if head_only else head + self.body


class Counters:
    """What the loop has done so far; written by its thread, read by any."""

    __slots__ = ("connections", "evicted", "refused", "requests")

    def __init__(self) -> None:
        self.requests = self.refused = self.evicted = self.connections = 0


class _Plan:
    """What to do about one head: its page or its refusal, and what becomes of the connection."""

    __slots__ = ("body", "connection", "head_only", "page", "refused")

    def __init__(self, request: Request, page: Hashable, refused: Optional[Refused]) -> None:
        self.page, self.refused, self.body = page, refused, request.body
        self.head_only = request.method == "HEAD"
        self.connection = (_KEEP_1_0 if request.http_1_0 else _KEEP) if request.keep_alive else _CLOSE


class _Connection:
    """A connection that has to be waited for. `received` is an incomplete head, `unsent` what the client is yet to
    take; `discarding` counts what it sends although it has had its last answer (-1: it has not)."""

    __slots__ = ("closing", "discarding", "fd", "received", "socket", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.socket, self.fd = sock, sock.fileno()
        self.received = b""
        self.unsent: Optional[memoryview] = None
        self.closing: Optional[_Plan] = None
        self.discarding = -1


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
        self._most, self._request_seconds, self._idle_seconds = most_connections, request_seconds, idle_seconds
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._connections: Dict[int, _Connection] = {}
        # fd -> deadline, each in the order of its deadlines, for those of one kind are all equally long.
        self._busy: Dict[int, float] = {}
        self._idle: Dict[int, float] = {}
        self._plans: Dict[bytes, _Plan] = {}
        self._wires: Dict[Tuple[Hashable, bytes, bool], bytes] = {}
        self._version: object = None
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
                self._turn(self._patience())
            self._say_goodbye()
        finally:
            self._close_all()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """Seconds until the first deadline; -1 (for ever) when nobody has one."""
        first = -1.0
        for queue in (self._busy, self._idle):
            if queue:
                deadline = queue[next(iter(queue))]
                if first < 0 or deadline < first:
                    first = deadline
        return max(0.0, first - self._clock()) if first >= 0 else -1

    def _turn(self, timeout: float) -> None:
        connections = self._connections
        for fd, event in self._epoll.poll(timeout, 512):
            connection = connections.get(fd)
            if connection is not None:
                if connection.unsent is not None:
                    self._writable(connection)
                else:
                    self._readable(connection)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
            elif event & select.EPOLLIN:
                try:
                    self._woken.recv(4096)
                except BlockingIOError:
                    pass  # somebody was quicker
        if self._busy or self._idle:
            self._evict_late(self._clock())

    def _say_goodbye(self) -> None:
        """Answer what has arrived, send what is being sent, then leave."""
        self._plans.clear()  # answers from here on say that the connection closes
        for listener in self._listeners.values():
            for _ in range(self._most):
                if not self._accept(listener):
                    break
            self._epoll.unregister(listener.fileno())
            listener.server_close()
        self._listeners.clear()
        for connection in list(self._connections.values()):
            if connection.unsent is None:
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
        """Take one connection and, where its request is there already, answer it at once; False when there is none."""
        try:
            sock, _ = listener.socket.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) and not self._evict_oldest():
                time.sleep(0.01)  # nothing to give up: better late than spinning
            return True  # ECONNABORTED and its like: the client has gone again
        try:
            data = sock.recv(LARGEST_HEAD, _DONTWAIT)
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
        connection = _Connection(sock)
        if data is None:
            self._expect(connection)
        elif self._feed(connection, data):
            return True
        self._watch(connection)
        return True

    def _watch(self, connection: _Connection) -> None:
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

    def _close(self, connection: _Connection) -> None:
        self._forget(connection)
        connection.socket.close()

    def _forget(self, connection: _Connection) -> None:
        fd = connection.fd
        self._busy.pop(fd, None)
        self._idle.pop(fd, None)
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

    def _refuse_late(self, connection: _Connection) -> None:
        answer = self._application.refusal(408, f"the request was not complete within {self._request_seconds:g} s")
        self.counters.requests += 1
        self.counters.refused += 1
        try:
            connection.socket.send(answer.wire(_CLOSE, head_only=False), _DONTWAIT)
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

    def _readable(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(LARGEST_HEAD, _DONTWAIT)
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

    def _feed(self, connection: _Connection, data: bytes) -> bool:
        """Answer every complete request in `data`, one after the other; True when the connection has been closed."""
        while True:
            plan = self._plans.get(data)
            if plan is not None:
                rest = b""
            else:
                # RFC 9112, section 2.2: empty lines before a request line are to be ignored.
                data = data.lstrip(b"\r\n")
                head, rest = split_head(data)
                if head is None or len(head) > LARGEST_HEAD:
                    if len(data) < LARGEST_HEAD:
                        connection.received = data
                        self._expect(connection)
                        return False
                    plan = self._refuse(431, f"a request's head may not be larger than {LARGEST_HEAD} bytes")
                else:
                    plan = self._plans.get(head) or self._plan(head)
            wire = self._wire(plan)
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
                connection.closing = plan
                self._expect(connection)
                if connection.fd in self._connections:
                    self._epoll.modify(connection.fd, select.EPOLLOUT)
                return False
            if self._ended(connection, plan):
                return connection.discarding < 0
            if not rest:
                self._rest(connection)
                return False
            self._busy.pop(connection.fd, None)  # the next request has a deadline of its own
            data = rest

    def _writable(self, connection: _Connection) -> None:
        assert connection.unsent is not None
        assert connection.closing is not None
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
        plan, connection.unsent, connection.closing = connection.closing, None, None
        self._epoll.modify(connection.fd, select.EPOLLIN)
        if not self._ended(connection, plan):
            data, connection.received = connection.received, b""
            if data:
                self._feed(connection, data)
            else:
                self._rest(connection)

    def _ended(self, connection: _Connection, plan: _Plan) -> bool:
        """Whether this was the connection's last answer. It is closed then; with the client still sending, later."""
        if plan.connection is not _CLOSE and not self._stopping:
            return False
        if not plan.body:
            self._close(connection)
            return True
        # To close with unread data would be a reset, which can destroy the answer before the client has read it.
        connection.discarding, connection.received = 0, b""
        self._expect(connection)
        try:
            connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client has gone; reading will tell
        return True

    def _expect(self, connection: _Connection) -> None:
        """Something has to happen within the request's deadline, which runs from when it first had to."""
        fd = connection.fd
        if fd not in self._busy:
            self._idle.pop(fd, None)
            self._busy[fd] = self._clock() + self._request_seconds

    def _rest(self, connection: _Connection) -> None:
        """The connection stays open for another request."""
        fd = connection.fd
        connection.received = b""
        self._busy.pop(fd, None)
        self._idle.pop(fd, None)
        self._idle[fd] = self._clock() + self._idle_seconds

    # -- answers -------------------------------------------------------------------------------------------------

    def _plan(self, head: bytes) -> _Plan:
        request = parse(head)
        if request.error is not None:
            plan = self._refuse(*request.error, request)
        else:
            try:
                plan = _Plan(request, self._application.page(request.method, request.target, request.accept), None)
            except Refused as refused:
                plan = _Plan(request, None, refused)
        if self._stopping:
            plan.connection = _CLOSE
        elif len(head) <= _LARGEST_REMEMBERED_HEAD:
            if len(self._plans) >= _MOST_HEADS:
                self._plans.clear()
            self._plans[head] = plan
        return plan

    @staticmethod
    def _refuse(status: int, sentence: str, request: Optional[Request] = None) -> _Plan:
        # What follows a head that cannot be read cannot be told apart from a body.
        body = Request(body=True) if request is None or status == 400 else request
        return _Plan(body, None, Refused(status, sentence))

    def _wire(self, plan: _Plan) -> bytes:
        version = self._application.version()
        if version is not self._version:
            self._wires.clear()
            self._version = version
        if plan.refused is not None:
            refused = plan.refused
            answer = self._application.refusal(refused.status, refused.sentence)
            answer.headers += refused.headers
            return answer.wire(plan.connection, plan.head_only)
        key = (plan.page, plan.connection, plan.head_only)
        wire = self._wires.get(key)
        if wire is None:
            if len(self._wires) >= _MOST_PAGES:
                self._wires.clear()
            wire = self._wires[key] = self._application.render(plan.page).wire(plan.connection, plan.head_only)
        return wire


def _http_date(timestamp: float) -> str:
    """RFC 9110's date; email.utils can do it too, but needs the datetime module for it."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(timestamp)
    names = BaseHTTPRequestHandler
    day_and_month = f"{names.weekdayname[weekday]}, {day:02d} {names.monthname[month]}"
    return f"{day_and_month} {year:04d} {hour:02d}:{minute:02d}:{second:02d} GMT"


def open_files_for(connections: int) -> int:
    """Raise the soft limit of open files as far as `connections` need and the hard limit allows.

    Returns how many connections there is room for.
    """
    import resource

    reserve = 64  # standard streams, libraries, the driver's devices
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + reserve
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(16, min(connections, soft - reserve))
