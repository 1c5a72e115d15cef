"""Ollama's log as it grows, a file through its rotations; never what was there before. log_journal.py has the journal.

A follower hands out what has come since it was last asked, as blocks of whole lines, without
waiting and with a bound on how much at once. What the lines say is not known here
(`log_tally.py`), and nothing of them is in any error.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from .errors import CollectorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Callable, Optional, Protocol

    class Follower(Protocol):
        """A log that is followed, by one thread."""

        def read(self) -> Iterator[bytes]:
            """Blocks of whole lines. Raises CollectorError, also after blocks that are to be counted."""

        def close(self) -> None:
            """Let go of the log, and of what was started for it. May be called twice."""


MOST_BYTES = 32 << 20
"""How much one call of `read` reads; the rest is left for the next."""

LONGEST_LINE = 65536
"""Bytes of a line that are kept; the rest of a longer one is dropped, so that it counts as one line."""

ROTATED_SECONDS = 60.0
"""How long a file that was rotated away must not have grown before it is let go."""

PIECE_BYTES = 65536
_TAIL = 64
_MOST_LEAVING = 8


class Lines:
    """Whole lines out of pieces that end anywhere."""

    def __init__(self) -> None:
        self._begun = b""
        self._dropping = False

    def add(self, piece: bytes) -> bytes:
        """The lines that are whole with this piece, which is of at most `PIECE_BYTES` bytes."""
        if self._dropping:
            end = piece.find(b"\n") + 1
            if not end:
                return b""
            piece, self._dropping = piece[end:], False
        end = piece.rfind(b"\n") + 1
        block = self._begun + piece[:end] if end else b""
        self._begun = piece[end:] if end else self._begun + piece
        if len(self._begun) > LONGEST_LINE:
            block += self._begun[:LONGEST_LINE] + b"\n"
            self._begun, self._dropping = b"", True
        return block

    def end(self) -> bytes:
        """A last line that got no newline, with one; what comes next begins a line."""
        block = self._begun + b"\n" if self._begun else b""
        self._begun, self._dropping = b"", False
        return block


class _OpenFile:
    """A file that is open, and how far it was read."""

    def __init__(self, fd: int, status: os.stat_result, position: int, now: float) -> None:
        self._fd, self._position = fd, position
        self.identity = (status.st_dev, status.st_ino)
        self.grew_at, self.took = now, 0
        self._lines = Lines()
        # What stands before the position: where it does no more, the file was written anew.
        self._tail = os.pread(fd, _TAIL, max(0, position - _TAIL)) if position else b""

    def read(self, most: int, now: float) -> Iterator[bytes]:
        """Lines up to the end of the file; `took` is how many bytes that were, at most `most`. Raises OSError."""
        self.took = 0
        if self._was_truncated():
            self._position, self._tail = 0, b""
            yield self._lines.end()
        with contextlib.suppress(OSError):
            # A writer that does not append goes on where it was when the file was truncated. Before
            # that there is nothing but zeros then, maybe gigabytes of them.
            self._position = max(self._position, os.lseek(self._fd, self._position, os.SEEK_DATA))
        while self.took < most:
            piece = os.pread(self._fd, min(PIECE_BYTES, most - self.took), self._position)
            if not piece:
                break
            self.took += len(piece)
            self._position += len(piece)
            self._tail = (self._tail + piece[-_TAIL:])[-_TAIL:]
            self.grew_at = now
            yield self._lines.add(piece)

    def close(self) -> bytes:
        """Close it; gives a line that was begun in it and not ended."""
        os.close(self._fd)
        return self._lines.end()

    def _was_truncated(self) -> bool:
        if os.fstat(self._fd).st_size < self._position:
            return True
        return self._tail != os.pread(self._fd, len(self._tail), self._position - len(self._tail))


class FileFollower:
    """Follows the file at `path`, whatever file is there.

    It starts at the end of the file that is there at the first `read`; one that is put there later
    is read from its beginning. A file that was renamed or removed is read on until it has not grown
    for `ROTATED_SECONDS`, one that was truncated is read from its beginning. A file that comes and
    is rotated away between two reads is not seen.
    """

    def __init__(
        self, path: str, clock: Callable[[], float] = time.monotonic, most: int = MOST_BYTES
    ) -> None:
        self.path = path
        self._clock, self._most = clock, most
        self._from_start = False
        self._file: Optional[_OpenFile] = None
        self._leaving: list[_OpenFile] = []

    def read(self) -> Iterator[bytes]:
        """Blocks of whole lines that came since the last call.

        Raises CollectorError, after all that could be read in spite of it.
        """
        now, left, problem = self._clock(), self._most, ""
        there: Optional[tuple[int, int]] = None
        # Before the reading: what is written into a file until it is seen to be another is read, too.
        try:
            status = os.stat(self.path)
            there = status.st_dev, status.st_ino
        except OSError as error:
            problem = self._why(error)
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                self._from_start = True
        reading = [*self._leaving]
        if self._file:
            reading.append(self._file)
        if there and not (self._file and self._file.identity == there):
            try:
                opened = self._open(now)
            except OSError as error:
                problem = self._why(error)
            except CollectorError as error:
                problem = str(error)
            else:
                if self._file:
                    self._file.grew_at = now
                    self._leaving.append(self._file)
                self._file = opened
                reading.append(opened)
        for file in reading:
            try:
                for block in file.read(left, now):
                    if block:
                        yield block
            except OSError as error:
                if file is self._file:
                    problem = self._why(error)
            left -= file.took
        for file in self._leaving[:]:
            if now - file.grew_at >= ROTATED_SECONDS or len(self._leaving) > _MOST_LEAVING:
                self._leaving.remove(file)
                block = file.close()
                if block:
                    yield block
        if problem:
            raise CollectorError(problem)

    def close(self) -> None:
        """Close all files; a read after that would start at the end again."""
        for file in (*self._leaving, *([self._file] if self._file else [])):
            file.close()
        self._file, self._leaving, self._from_start = None, [], False

    def _open(self, now: float) -> _OpenFile:
        self._check(os.stat(self.path))  # before it is opened, for that alone is an act on a device
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            self._check(status)
            opened = _OpenFile(fd, status, 0 if self._from_start else status.st_size, now)
        except BaseException:
            os.close(fd)
            raise
        self._from_start = True
        return opened

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise CollectorError(
                f"{self.path} is no regular file; name the file that Ollama's log is written to"
            )

    def _why(self, error: OSError) -> str:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return f"{self.path} does not exist; name the file that Ollama's log is written to"
        if isinstance(error, PermissionError):
            return (
                f"{self.path} may not be read; give the service's user the right to read it"
                " and to enter the folders above it"
            )
        return f"{self.path} cannot be read ({error.strerror}); see to the file or its file system"
