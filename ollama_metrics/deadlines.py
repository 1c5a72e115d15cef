"""By when each connection has to have done something; knows them by their file descriptors and closes none."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional


class Deadlines:
    """Two queues, each in the order of its deadlines, for those of one kind are all equally long.

    In `busy` a request or the taking of its answer is awaited, in `idle` nothing that has begun. A
    connection is in one of them at most.
    """

    def __init__(self, busy_seconds: float, idle_seconds: float) -> None:
        self.busy_seconds, self.idle_seconds = busy_seconds, idle_seconds
        self.busy: dict[int, float] = {}
        self.idle: dict[int, float] = {}

    def expect(self, fd: int, now: float) -> None:
        """Something has to happen within the request's deadline, which runs from when it first had to."""
        if fd not in self.busy:
            self.idle.pop(fd, None)
            self.busy[fd] = now + self.busy_seconds

    def met(self, fd: int) -> None:
        """What was awaited has happened; the next request has a deadline of its own."""
        self.busy.pop(fd, None)

    def rest(self, fd: int, now: float) -> None:
        """Nothing is awaited for now."""
        self.busy.pop(fd, None)
        self.idle.pop(fd, None)
        self.idle[fd] = now + self.idle_seconds

    def forget(self, fd: int) -> None:
        """The connection is no more."""
        self.busy.pop(fd, None)
        self.idle.pop(fd, None)

    def first(self) -> Optional[float]:
        """The next deadline, if there is any."""
        return min(
            (queue[next(iter(queue))] for queue in (self.busy, self.idle) if queue), default=None
        )

    def late(self, now: float) -> list[tuple[int, bool]]:
        """Those whose deadline has passed, and whether they were busy."""
        found = []
        for queue in (self.busy, self.idle):
            for fd, deadline in queue.items():
                if deadline > now:
                    break
                found.append((fd, queue is self.busy))
        return found

    def oldest(self) -> Optional[int]:
        """The connection that has been idle for longest, else the one that has been busy for longest."""
        for queue in (self.idle, self.busy):
            if queue:
                return next(iter(queue))
        return None
