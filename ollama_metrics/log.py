"""The daemon's log: a line each on standard error, for the journal or a person.

`logging` would be 0.6 MB of a 15 MB process that says a handful of things in its life; what needs
to log is handed a `log(level, sentence)` and knows no more.
"""

from __future__ import annotations

import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional, TextIO

# Levels, the most urgent first, with their numbers in syslog(3); journald understands the latter
# before a line.
LEVELS = {"error": 3, "warning": 4, "info": 6, "debug": 7}

# A pipe that can be written to takes PIPE_BUF bytes (4096) without blocking: pipe(7).
_LONGEST = 1000


class Log:
    """Writes lines of `level` and more urgent ones to `stream`.

    Where `stream` is the journal's (JOURNAL_STREAM in `environ`, systemd.exec(5)) each line begins
    with its priority, elsewhere with its level's name.
    """

    def __init__(
        self,
        level: str = "info",
        stream: Optional[TextIO] = None,
        environ: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._most = LEVELS[level]
        # None in a process that was started with standard error closed.
        self._stream: Optional[TextIO] = stream if stream is not None else sys.stderr
        self._journal = _name(self._stream) == (environ or {}).get("JOURNAL_STREAM", "")

    def __call__(self, level: str, sentence: str) -> None:
        """Write one line; what would break it in two is replaced. Never raises for a stream that is gone."""
        number = LEVELS[level]
        if number > self._most or self._stream is None:
            return
        line = "".join(
            character if character.isprintable() else "?" for character in sentence[:_LONGEST]
        )
        prefix = (
            f"<{number}>"
            if self._journal
            else f"ollama-metrics: {'' if number == 6 else level + ': '}"
        )
        text = f"{prefix}{line}\n"
        try:
            fd = self._stream.fileno()
        except (OSError, ValueError):
            fd = -1  # no file behind it
        try:
            if fd < 0:
                self._stream.write(text)
            elif select.select([], [fd], [], 0)[1]:
                # Past the stream's buffer: what fails in there fails again when Python ends. And
                # not where it would block (Ctrl-S, a pager, a stuck log shipper).
                os.write(fd, text.encode("utf-8", "replace"))
        except (OSError, ValueError):
            pass  # nobody reads the log any more; serving matters more


def _name(stream: Optional[TextIO]) -> Optional[str]:
    """A stream's device and inode as JOURNAL_STREAM names them: what inherits that variable may write elsewhere."""
    try:
        status = os.fstat(stream.fileno()) if stream is not None else None
    except (OSError, ValueError):
        return None
    return f"{status.st_dev}:{status.st_ino}" if status is not None else None
