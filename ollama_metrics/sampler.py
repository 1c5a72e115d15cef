"""One collector on its own clock and its own thread, publishing an immutable `State` at the end of each cycle.

`Sampler.state` is replaced whole by the sampler's thread and by nobody else; readers take it
without a lock. A cycle that fails or never ends harms no other sampler. A failing collector is
asked again with back-off.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from dataclasses import replace

from .backoff import LONGEST_SECONDS, backed_off
from .errors import CollectorError
from .snapshot import CollectorHealth, State
from .window import Span, add

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Protocol

    class Collector(Protocol):
        """What a sampler drives, from one thread."""

        @property
        def pause(self) -> float:
            """Least seconds until the next cycle, for a collector that has nothing to collect; else 0."""

        def collect(self) -> Any:
            """Take one reading. Raises CollectorError."""


# A reading whose predecessor is older than this many intervals stands for one interval only: the
# gap weighs nothing.
_GAP_INTERVALS = 2.0
# A collector that has not finished a cycle for this many intervals is stuck.
STUCK_INTERVALS = 3.0
# Python's handlers run in the main thread, which blocks these while the program is executed anew: one
# that another thread took meanwhile would be lost.
MAIN_THREADS_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


class Sampler:
    """Drives one collector.

    `interval` is in seconds; `clock` is monotonic, `wall` gives Unix seconds. `log(level,
    sentence)` hears of each change between failing and not failing. `after` is called by the thread after each cycle.
    `patience` is how many seconds a cycle may take, beyond three intervals, before it counts as stuck.
    """

    def __init__(
        self,
        name: str,
        collector: Collector,
        interval: float,
        log: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        after: Callable[[], object] = lambda: None,
        longest_backoff: float = LONGEST_SECONDS,
        patience: float = 0.0,
    ) -> None:
        self.name = name
        self._collector, self._interval, self._log = collector, interval, log
        self._clock, self._wall, self._after = clock, wall, after
        self._backoff, self._longest_backoff = 0.0, longest_backoff
        self._slack = (STUCK_INTERVALS - 1) * interval + patience
        self._end: Optional[int] = None  # of a pipe; what is written there ends the thread
        self._has_ended = False
        self.first = threading.Event()
        """Set when the first cycle has ended, well or not."""
        self.state: State[Any] = State(
            health=CollectorHealth(
                collector=name,
                success=False,
                consecutive_failures=0,
                failures_total=0,
                error="no reading has ended yet",
            ),
            overdue_at=clock() + interval + self._slack,
        )

    def start(self, first_after: float = 0.0) -> None:
        """Start the thread; its first cycle begins `first_after` seconds from now."""
        # A driver call that hangs cannot be interrupted: a daemon thread does not keep the process
        # from ending.
        ended, self._end = os.pipe()
        threading.Thread(
            target=self._run, args=(ended, first_after), name=f"{self.name}-sampler", daemon=True
        ).start()

    def stop(self) -> None:
        """Ask the thread that was started to end; does not wait for it. May be called more than once."""
        end, self._end = self._end, None
        if end is not None:
            os.write(end, b"\0")  # a child that was forked may hold this end open, too
            os.close(end)

    def _run(self, ended: int, first_after: float) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_THREADS_SIGNALS)
        # Of the waits that can be ended the cheapest to wake up from (CONTRIBUTING.md).
        stop = select.poll()
        stop.register(ended, select.POLLIN)
        due = self._clock() + first_after
        while not stop.poll(max(0.0, due - self._clock()) * 1000):
            begun = self._clock()
            wait = self.cycle()
            self._after()
            # A cycle that took longer than its interval is followed by the next at once, none is
            # made up for.
            due = max(begun + wait, self._clock())
        os.close(ended)

    def cycle(self) -> float:
        """Take one reading and publish it; returns the seconds from this cycle's begin to the next one's."""
        before = self.state
        begun = self._clock()
        try:
            sample = self._collector.collect()
            levels = sample.levels()
        except CollectorError as error:
            return self._failed(before, begun, str(error))
        except Exception as error:
            return self._failed(before, begun, f"unexpected {type(error).__name__}: {error}")
        now = self._clock()
        if before.health.consecutive_failures:
            self._log("info", f"{self.name}: readings are back")
        self._backoff = 0.0
        start = before.ring[-1].end if before.ring else now - self._interval
        if now - start > _GAP_INTERVALS * self._interval:
            start = now - self._interval
        wait = max(self._interval, self._collector.pause)
        wall = self._wall()
        self._publish(
            State(
                health=CollectorHealth(
                    collector=self.name,
                    success=True,
                    duration_seconds=now - begun,
                    last_success_timestamp_seconds=wall,
                    consecutive_failures=0,
                    failures_total=before.health.failures_total,
                ),
                overdue_at=now + wait + self._slack,
                sample=sample,
                last_good=sample,
                read_at=now,
                read_timestamp=wall,
                ring=add(before.ring, Span(start, now, levels)),
            )
        )
        return wait

    def _failed(self, before: State[Any], begun: float, why: str) -> float:
        now = self._clock()
        self._backoff = backed_off(self._backoff, self._longest_backoff)
        # From the failure on, for a call may take long to fail; from the begin where that is later.
        wait = max(self._interval, now - begun + self._backoff)
        if why != before.health.error or not before.health.consecutive_failures:
            self._log("error", f"{self.name}: {why}")
        health = replace(
            before.health,
            success=False,
            duration_seconds=now - begun,
            consecutive_failures=before.health.consecutive_failures + 1,
            failures_total=before.health.failures_total + 1,
            error=why,
        )
        overdue_at = begun + wait + self._slack
        self._publish(replace(before, health=health, overdue_at=overdue_at, sample=None))
        return wait

    def _publish(self, state: State[Any]) -> None:
        self.state = state
        if not self._has_ended:  # to set the event costs as much as all of the rest of this
            self._has_ended = True
            self.first.set()
