"""The daemon's log: a line each on standard error, for the journal or a person.

`logging` would be 0.6 MB of a 15 MB process that says a handful of things in its life; what needs
to log is handed a `log(level, sentence)` and knows no more.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional, TextIO

# Levels, the most urgent first, with their numbers in syslog(3); journald understands the latter
# before a line.
LEVELS = {"error": 3, "warning": 4, "info": 6, "debug": 7}


class Log:
    """Writes lines of `level` and more urgent ones to `stream`.

    Under systemd (JOURNAL_STREAM in `environ`) each line begins with its priority, elsewhere with
    its level's name.
    """

    def __init__(
        self,
        level: str = "info",
        stream: Optional[TextIO] = None,
        environ: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._most = LEVELS[level]
        self._stream = stream if stream is not None else sys.stderr
        self._journal = "JOURNAL_STREAM" in (environ or {})

    def __call__(self, level: str, sentence: str) -> None:
        """Write one line; what would break it in two is replaced. Never raises for a stream that is gone."""
        number = LEVELS[level]
        if number > self._most:
            return
        line = "".join(character if character.isprintable() else "?" for character in sentence)
        prefix = (
            f"<{number}>"
            if self._journal
            else f"ollama-metrics: {'' if number == 6 else level + ': '}"
        )
        try:
            self._stream.write(f"{prefix}{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads the log any more; serving matters more
