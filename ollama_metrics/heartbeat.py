"""The sign of life that systemd's watchdog waits for, with the verdict for `systemctl status`.

It takes two threads: the host's sampler says when it is due and wakes the event loop, and the loop
sends it. When either is stuck nothing is sent, and systemd starts the service anew. The GPU's
sampler has no part in it: a driver call that hangs cannot be ended, not even by killing the process,
and the verdict fences the host off already.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .service_manager import ServiceManager
    from .verdict import Verdict

# How often systemd hears of the weight, if no watchdog wants to hear more often.
_STATUS_SECONDS = 5.0
# Signs of life that may be lost before the watchdog acts.
_SPARE = 3.0


class Heartbeat:
    """`sampled` is called by the host's sampler after each sample, `beat` by the event loop when it was woken."""

    def __init__(
        self,
        manager: ServiceManager,
        interval: float,
        judge: Callable[[], Verdict],
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Samples are no closer together than this; the watchdog must not be quicker than they are.
        manager.extend_watchdog((_SPARE + 1) * interval)
        self._manager, self._judge, self._wake, self._clock = manager, judge, wake, clock
        watchdog = manager.watchdog_seconds
        self._every = (
            _STATUS_SECONDS if watchdog is None else min(_STATUS_SECONDS, watchdog / (_SPARE + 1))
        )
        self._due_at = clock()
        self._due = False

    def sampled(self) -> None:
        """There is a new sample; have the loop send a sign of life if one is due."""
        if self._clock() >= self._due_at:
            self._due = True
            self._wake()

    def beat(self) -> None:
        """Send the sign of life that is due, if one is."""
        if self._due:
            self._due = False
            self._due_at = self._clock() + self._every
            self._manager.alive(status_line(self._judge))


def status_line(judge: Callable[[], Verdict]) -> str:
    """The verdict in a line."""
    try:
        return judge().summary
    except Exception as error:  # the agent's own fault, which /metrics tells, too
        return f"the verdict fails: {type(error).__name__}"
