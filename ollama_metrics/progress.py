"""How far something that takes long has got: a bar on a terminal, now and then a line for everything else."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Callable, Optional, TextIO

_REDRAWN_SECONDS = 0.1
_STEP_PERCENT = 10
_BAR = 24  # characters
_NARROWEST, _USUAL = 20, 79


class Progress:
    """Writes to `stream`; None, or one that nobody reads any more, is written nothing to."""

    def __init__(
        self,
        stream: Optional[TextIO],
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = stream is not None and stream.isatty() and environ.get("TERM") != "dumb"
        self._what = ""
        self._drawn = self._open = (
            False  # whether there is a line of `_what`, and whether it is to go on
        )
        self._begun, self._first, self._drawn_at, self._told = 0.0, 0, 0.0, 0

    def tell(self, what: str, done: Optional[int] = None, total: Optional[int] = None) -> None:
        """What is being done now, and how many bytes of it are done, where that is known."""
        now = self._clock()
        if what != self._what:
            self.end()
            self._what, self._begun, self._first = what, now, done or 0
            self._drawn, self._told = False, 0
        if total is None or total <= 0:
            if not self._drawn:
                self._draw(what)
            return
        done = min(done or 0, total)
        percent = 100 * done // total
        if self._terminal:
            if self._drawn and done < total and now - self._drawn_at < _REDRAWN_SECONDS:
                return
            self._drawn_at = now
        elif self._drawn and (self._told == 100 or percent < min(100, self._told + _STEP_PERCENT)):
            return
        self._told = percent if percent == 100 else percent - percent % _STEP_PERCENT
        self._draw(self._line(what, done, total, now - self._begun))

    def end(self) -> None:
        """What comes next begins on a line of its own."""
        if self._open:
            self._write("\n")
        self._open = False

    def _line(self, what: str, done: int, total: int, seconds: float) -> str:
        parts = [what]
        if self._terminal:
            filled = _BAR * done // total
            parts.append(f"[{'#' * filled}{'.' * (_BAR - filled)}]")
        parts += [f"{100 * done // total:3} %", f"{size(done)} of {size(total)}"]
        since = done - self._first
        if since > 0 and seconds >= 1:
            parts.append(f"{size(round(since / seconds))}/s")
            if done < total:
                parts.append(f"{span((total - done) * seconds / since)} left")
        return "  ".join(parts)

    def _draw(self, line: str) -> None:
        self._drawn = True
        if not self._terminal:
            self._write(f"{line}\n")
            return
        self._write(f"\r{line[: self._width()]}\x1b[K")
        self._open = True

    def _width(self) -> int:
        assert self._stream is not None
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        # The last column stays free: what a terminal does after writing there is its own affair.
        return max(_NARROWEST, (columns or _USUAL + 1) - 1)

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:  # nobody reads it: that ends no pull
            self._stream = None


def size(count: int) -> str:
    """Bytes as Ollama writes them, in powers of 1000: 512 B, 1.7 MB, 40 GB."""
    for unit, bytes in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= bytes:
            number = count / bytes
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return f"{count} B"


def span(seconds: float) -> str:
    """A time for a person: 0.4 s, 12 s, 3m05s, 2h10m."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
