"""The event loop: hands out what the application has rendered; knows HTTP and no metric.

One thread, one epoll. http.server judges every head that has not been seen (request.py).

Nobody can hold it up. A request has to be complete `REQUEST_SECONDS` after its connection was
accepted (or after its first byte on a connection that goes on), and its answer taken in that time;
heads are bounded, answers are sent one at a time, connections are bounded and the oldest gives way.
Nothing in here waits for anything but epoll.
"""

from __future__ import annotations

import errno
import select
import socket
import time

from .conversations import Conversations
from .deadlines import Deadlines
from .waker import Waker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Callable

    from .connection import Counters
    from .listener import Listener
    from .plans import Application

REQUEST_SECONDS = 10.0
# Longer than the 90 s after which Go's HTTP clients close, so that it is they who do.
IDLE_SECONDS = 100.0
GOODBYE_SECONDS = 0.5
MOST_CONNECTIONS = 4096
# Waited for at once: more cost more to allocate than they save.
_EVENTS = 64


class Server:
    """Serves `application` on `listeners`; one thread calls `run`.

    `tellers` are listeners whose clients are told the line that their function returns, and no HTTP.
    `on_wake` is called by the loop whenever `wake` or a signal has woken it.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        application: Application,
        most_connections: int = MOST_CONNECTIONS,
        request_seconds: float = REQUEST_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        on_wake: Callable[[], object] = lambda: None,
        tellers: Sequence[tuple[Listener, Callable[[], bytes]]] = (),
    ) -> None:
        self._clock, self.on_wake = clock, on_wake
        self._most = most_connections
        every = (*listeners, *(listener for listener, _ in tellers))
        self._listeners = {listener.fileno(): listener for listener in every}
        self._tell = {listener.fileno(): tell for listener, tell in tellers}
        self._deadlines = Deadlines(request_seconds, idle_seconds)
        self._epoll = select.epoll()
        self._conversations = Conversations(
            self._epoll, application, self._deadlines, most_connections, clock()
        )
        self._waker = Waker()
        self._stopping = self._pausing = False
        for fd in (*self._listeners, self._waker.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    @property
    def counters(self) -> Counters:
        """What has been served so far."""
        return self._conversations.counters

    @property
    def wakeup_fd(self) -> int:
        """A file descriptor for signal.set_wakeup_fd: a byte written to it wakes the loop."""
        return self._waker.wakeup_fd

    @property
    def connections(self) -> list[int]:
        """The file descriptors of all connections."""
        return list(self._conversations.open)

    def wake(self) -> None:
        """Have the loop call `on_wake`; may be called from any thread and from a signal's handler."""
        self._waker.wake()

    def stop(self) -> None:
        """End `run` soon: no new connection, what is being answered is finished within half a second.

        May be called from any thread and from a signal's handler.
        """
        self._stopping = True
        self.wake()

    def pause(self) -> None:
        """End `run` soon with every socket open and no request begun. To be called within the loop (`on_wake`)."""
        self._pausing = True

    def adopt(self, fds: Iterable[int]) -> None:
        """Go on serving connections that were open when another server paused."""
        for fd in fds:
            try:
                sock = socket.socket(fileno=fd)
            except OSError:
                continue  # no socket (any more)
            self._conversations.adopt(sock)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def run(self) -> bool:
        """Serve until `stop`, then close every socket; or until `pause`, after which it is to be called again.

        Returns whether it has paused.
        """
        paused = False
        try:
            while not self._stopping:
                if self._pausing:
                    self._pausing = False
                    self._finish_requests()
                    paused = not self._stopping
                    if paused:
                        return True
                else:
                    self._turn()
            self._say_goodbye()
            return False
        finally:
            if not paused:
                self._close_all()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self, most: float = -1) -> None:
        """Wait for events until the first deadline, at most `most` seconds (-1: for ever), and deal with them."""
        conversations = self._conversations
        timeout = most
        first = self._deadlines.first()
        if first is not None:
            conversations.now = now = self._clock()
            if first <= now:
                conversations.evict_late(now)
                return
            timeout = first - now if most < 0 else min(most, first - now)
        if conversations.ready:
            timeout = 0
        connections = conversations.open
        events = self._epoll.poll(timeout, _EVENTS)
        conversations.now = self._clock()
        for fd, event in events:
            connection = connections.get(fd)
            if connection is not None:
                conversations.event(connection)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
            elif event & select.EPOLLIN and fd == self._waker.fileno():
                self._waker.clear()
                self.on_wake()
        if conversations.ready:
            conversations.take_turns()

    def _accept(self, listener: Listener) -> bool:
        """Take one connection; False when there is none to be had."""
        try:
            sock, _ = listener.socket.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if (
                error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
                and not self._conversations.evict_oldest()
            ):
                time.sleep(0.01)  # nothing to give up: better late than spinning
                return False
            return True  # ECONNABORTED and its like: the client has gone again
        tell = self._tell.get(listener.fileno())
        if tell is None:
            self._conversations.begin(sock)
        else:
            self._conversations.tell(sock, tell())
        return True

    def _say_goodbye(self) -> None:
        """Answer what has arrived, send what is being sent, then leave."""
        self._conversations.end()
        for listener in self._listeners.values():
            for _ in range(self._most):
                if not self._accept(listener):
                    break
            self._epoll.unregister(listener.fileno())
            listener.server_close()
        self._listeners.clear()
        self._conversations.take_what_has_arrived()
        self._conversations.close_idle()
        deadline = self._clock() + GOODBYE_SECONDS
        while self._conversations.open and (left := deadline - self._clock()) > 0:
            self._turn(left)
            self._conversations.close_idle()

    def _finish_requests(self) -> None:
        """Leave no connection in the middle of a request: what is not complete in half a second is closed."""
        deadline = self._clock() + GOODBYE_SECONDS
        while (begun := self._conversations.begun()) and not self._stopping:
            left = deadline - self._clock()
            if left <= 0:
                for connection in begun:
                    self._conversations.close(connection)
                return
            self._turn(left)

    def _close_all(self) -> None:
        for connection in list(self._conversations.open.values()):
            self._conversations.close(connection)
        for listener in self._listeners.values():
            listener.server_close()
        self._epoll.close()
        self._waker.close()
