"""The operator's word that no request is to come to this host: a file in the agent's state directory.

Whoever may write there may drain the host, and nobody by the network. The file outlives restarts; one
with an end counts until then. A file that is there and cannot be understood drains the host, too: what
is broken must not look idle.
"""

from __future__ import annotations

import json
import math
import os
import time

from .frozen import dataclass
from .notes import read_note, write_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

NAME = "drain"
NO_REASON = "no reason given"
_MOST_REASON = 200
# A file that is not there is asked for with an error to tell why this often.
_ABSENT_SECONDS = 5.0


@dataclass(frozen=True)
class Drain:
    """Why the host is drained, since when and until when, in Unix seconds; None: until it is resumed."""

    reason: str
    since: Optional[float]
    until: Optional[float]

    @property
    def sentence(self) -> str:
        """For a person."""
        if self.until is None:
            return f"drained: {self.reason}"
        return f"drained until {when(self.until)}: {self.reason}"


def when(unix_seconds: float) -> str:
    """A moment as a person reads it: RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_seconds))


class DrainFile:
    """The file in `state_dir`, or no file ever where that is None.

    One thread calls `look`, which reads the file and may hang where its file system does; any may ask
    `current`. `wall` gives Unix seconds, `clock` monotonic ones.
    """

    def __init__(
        self,
        state_dir: Optional[str],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = os.path.join(state_dir, NAME) if state_dir is not None else None
        self._wall, self._clock = wall, clock
        self._mark: object = None
        self._absent_until = float("-inf")
        self._said: Optional[Drain] = None

    @property
    def current(self) -> Optional[Drain]:
        """The drain that holds now, by the last look."""
        drain = self._said
        if drain is None or (drain.until is not None and drain.until <= self._wall()):
            return None
        return drain

    def look(self) -> Optional[Drain]:
        """Look whether the file has changed, and read it then; returns the drain that holds now."""
        if self.path is not None and not self._is_still_absent(self.path):
            try:
                self._said = self._changed(self.path)
            except (FileNotFoundError, NotADirectoryError):
                self._mark = self._said = None
                self._absent_until = self._clock() + _ABSENT_SECONDS
            except OSError as error:
                # It is there, and the next look may have better luck.
                self._mark, self._absent_until = None, float("-inf")
                self._said = Drain(f"{self.path} cannot be read ({error.strerror})", None, None)
        return self.current

    def _is_still_absent(self, path: str) -> bool:
        """Whether the file was not there and is not; a look that is to be had each second, at half the price.

        access(2) does not tell a file that is not there from one that cannot be asked for, or from a
        link that leads nowhere: that is for the next whole look.
        """
        return (
            self._mark is None
            and self._clock() < self._absent_until
            and not os.access(path, os.F_OK)
        )

    def _changed(self, path: str) -> Optional[Drain]:
        seen = os.lstat(path)  # a link is something else than a file: it drains, wherever it leads
        mark = (seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size)
        if mark != self._mark:
            drain = _parsed(path)
            self._mark = mark
            return drain
        return self._said

    def begin(self, reason: str, until: Optional[float]) -> Drain:
        """Drain the host from now on, whether it is drained already or not. Raises OSError."""
        if self.path is None:
            raise OSError("there is no state directory")
        drain = Drain(legible(reason) or NO_REASON, round(self._wall(), 3), until)
        text = json.dumps({"reason": drain.reason, "since": drain.since, "until": drain.until})
        write_note(self.path, f"{text}\n")
        return drain

    def end(self) -> bool:
        """End the drain; whether there was one. Raises OSError."""
        if self.path is None:
            return False
        try:
            os.unlink(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def _parsed(path: str) -> Drain:
    """What the file says; a drain, too, where that makes no sense. Raises OSError."""
    try:
        document = json.loads(read_note(path))
        if not isinstance(document, dict):
            raise ValueError("it is no object")
        return Drain(
            legible(document["reason"]), _seconds(document["since"]), _seconds(document["until"])
        )
    except (ValueError, KeyError, OverflowError, RecursionError) as error:
        return Drain(f"{path} cannot be understood ({type(error).__name__})", None, None)


def legible(reason: Any) -> str:
    """A reason as it is shown in logs, pages and a balancer's line: one line, and not too long."""
    if not isinstance(reason, str):
        raise ValueError("the reason is no text")
    shown = "".join(char if char.isprintable() else " " for char in reason[: 4 * _MOST_REASON])
    return " ".join(shown.split())[:_MOST_REASON]


def _seconds(value: Any) -> Optional[float]:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a time is no number")
    # What no clock can show is no time (gmtime fails beyond the year 9999).
    if not math.isfinite(value) or not 0 <= value < 253402300800:
        raise ValueError("a time is out of range")
    return float(value)
