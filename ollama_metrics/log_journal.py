"""The journal of a unit as it grows: what a journalctl that runs beside says; never what was there before."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time

from .backoff import LONGEST_SECONDS, backed_off
from .errors import CollectorError
from .log_follower import MOST_BYTES, PIECE_BYTES, Lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Callable, Optional

_JOURNALCTL = ("/usr/bin/journalctl", "/bin/journalctl")
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "SYSTEMD_COLORS": "0"}
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; the fcntl module knows it since Python 3.10
_MOST_COMPLAINTS = 4  # pieces at once: it may complain as fast as they are read
_COMPLAINT_BYTES = 4096
_COMPLAINT_CHARACTERS = 200
_REFUSALS = (b"not seeing messages from other users", b"insufficient permissions")
_PATIENCE = 1.0
_PATIENTLY = (0, signal.SIGTERM, signal.SIGKILL)
# Lines of journalctl's own that versions before 251 begin with.
_JOURNALCTL_BEGINS = (b"-- Journal begins at ", b"-- Logs begin at ")
_SYSTEMCTL = ("/usr/bin/systemctl", "/bin/systemctl")
_ANSWER_SECONDS = 10.0


class _Journalctl:
    """One journalctl that runs, and the pipes that it writes to."""

    def __init__(self, program: str, unit: str) -> None:
        """Start it. Raises OSError."""
        self.ended = False
        self._lines, self._complaint = Lines(), b""
        self._begins = True
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            self._out, out = _pipe(undo, theirs)
            self._err, err = _pipe(undo, theirs)
            with contextlib.suppress(OSError):
                fcntl.fcntl(out, _F_SETPIPE_SZ, _PIPE_BYTES)
            # Not --quiet: it would be silent, too, about a journal that it may not read.
            options = ("--follow", "--lines=0", "--output=cat", "--no-pager", f"--unit={unit}")
            self._pid = _spawn(program, options, out, err)
            self._pipes = undo.pop_all()

    def read(self, most: int) -> Iterator[bytes]:
        """What it has written, whole lines of at most `most` bytes; sets `ended` at the end of it."""
        while most > 0:
            piece = _read(self._out)
            if not piece:
                self.ended = piece is not None
                break
            most -= len(piece)
            if self._begins and piece.startswith(_JOURNALCTL_BEGINS):
                piece = piece[piece.find(b"\n") + 1 :]
            self._begins = False
            yield self._lines.add(piece)
        for _ in range(_MOST_COMPLAINTS):
            piece = _read(self._err)
            if not piece:
                break
            self._complaint = (self._complaint + piece)[:_COMPLAINT_BYTES]

    @property
    def refused(self) -> bool:
        """Whether it has said that it may not read the system's journal. It goes on all the same."""
        return any(text in self._complaint for text in _REFUSALS)

    def why(self, status: Optional[int]) -> str:
        """Why there are no lines any more; `status` is what `end` gave."""
        if self.refused:
            return (
                "journalctl may not read the journal; add the service's user to the group"
                " systemd-journal and restart the agent"
            )
        said = self._complaint.strip().partition(b"\n")[0].decode("ascii", "replace")
        said = "".join(char for char in said[:_COMPLAINT_CHARACTERS] if char.isprintable())
        how = "" if status is None else f" with status {status}"
        return (
            f"journalctl ended{how}{': ' if said else ''}{said};"
            " requests are not counted until it has been started again"
        )

    def end(self) -> tuple[bytes, Optional[int]]:
        """End it and wait for that; a line that it had begun, and its exit status where one is known."""
        # Nobody is to read from a number that may be another file's by then.
        self._out = self._err = -1
        self._pipes.close()
        return self._lines.end(), _reaped(self._pid, at_once=not self.ended)


class _Systemctl:
    """One question to systemd that is on its way: whether it knows a unit."""

    def __init__(self, program: str, unit: str) -> None:
        """Ask. Raises OSError."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            self._out, out = _pipe(undo, theirs)
            options = ("show", "--property=LoadState", "--value", unit)
            self._pid = _spawn(program, options, out)
            self._pipes = undo.pop_all()

    def answer(self) -> Optional[bytes]:
        """What it has said, nothing where it cannot tell; None while it has not made up its mind."""
        said = _read(self._out)
        if said is not None:
            self.end(at_once=False)
            return said.strip()
        return None

    def end(self, at_once: bool = True) -> None:
        """End it and wait for that."""
        self._out = -1
        self._pipes.close()
        _reaped(self._pid, at_once)


class JournalFollower:
    """Follows the journal of `unit` through a journalctl of its own, which starts with the first `read`.

    A unit that does not exist has no lines, as one that is idle: systemd is asked once whether it
    knows the unit, and while it does not and no line has come, that is an error.

    When that ends it is started again with back-off; what is logged meanwhile is not counted, and
    the error says so. It ends by itself when the agent is gone, since nobody reads its output then.
    A program that is executed in the agent's place would inherit it as a child: `close` comes first.
    """

    def __init__(
        self,
        unit: str,
        programs: Sequence[str] = _JOURNALCTL,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_BYTES,
        systemctl: Sequence[str] = _SYSTEMCTL,
    ) -> None:
        self.unit = unit
        self._programs, self._clock, self._most = programs, clock, most
        self._running: Optional[_Journalctl] = None
        self._systemctl, self._asked = systemctl, False
        self._asking: Optional[_Systemctl] = None
        self._answer_until = 0.0
        self._unknown = False
        self._backoff = self._again_at = self._started_at = 0.0
        self._problem = ""

    def read(self) -> Iterator[bytes]:
        """Blocks of whole lines that came since the last call.

        Raises CollectorError, after all that could be read in spite of it.
        """
        if self._running is None:
            if self._clock() < self._again_at:
                raise CollectorError(self._problem)
            self._running = self._start()
            self._ask()
        running = self._running
        for block in running.read(self._most):
            if block:
                self._know()
                yield block
        if not running.ended and not running.refused:
            self._look()
            return
        self._running = None
        block, status = running.end()
        if block:
            yield block
        if self._clock() - self._started_at > LONGEST_SECONDS:
            self._backoff = 0.0
        raise self._failure(running.why(status))

    def close(self) -> None:
        """End journalctl and wait for that, two seconds at most unless it has ended by itself."""
        if self._running is not None:
            self._running.end()
            self._running = None
        self._know()
        self._asked = False

    def _ask(self) -> None:
        """Ask systemd for the unit, unless it was asked before."""
        if self._asked:
            return
        self._asked = True
        for program in self._systemctl:
            try:
                self._asking = _Systemctl(program, self.unit)
            except OSError:
                continue  # without a systemctl, or a process to be had, nothing is said
            self._answer_until = self._clock() + _ANSWER_SECONDS
            return

    def _look(self) -> None:
        """Raise CollectorError where systemd has answered that it knows no such unit."""
        if self._asking is not None:
            answer = self._asking.answer()
            if answer is not None:
                self._asking, self._unknown = None, answer == b"not-found"
            elif self._clock() >= self._answer_until:
                self._know()
        if self._unknown:
            raise CollectorError(
                f"no unit of that name is known to systemd: {self.unit}; name the unit that Ollama runs as"
            )

    def _know(self) -> None:
        """It has a line, and so it exists, whatever systemd says; or systemd is not waited for any longer."""
        self._unknown = False
        if self._asking is not None:
            self._asking.end()
            self._asking = None

    def _start(self) -> _Journalctl:
        problem = "journalctl is not installed; follow a file instead (file:/PATH)"
        for program in self._programs:
            try:
                self._started_at = self._clock()
                return _Journalctl(program, self.unit)
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = f"{program} cannot be started ({error.strerror}); follow a file instead (file:/PATH)"
        raise self._failure(problem)

    def _failure(self, problem: str) -> CollectorError:
        self._problem = problem
        self._backoff = backed_off(self._backoff)
        self._again_at = self._clock() + self._backoff
        return CollectorError(problem)


def _spawn(program: str, options: Sequence[str], out: int, err: Optional[int] = None) -> int:
    """Start a program that inherits nothing but these descriptors; its process id. Raises OSError."""
    null = "/dev/null"
    return os.posix_spawn(
        program,
        [os.path.basename(program), *options],
        _ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_OPEN, 2, null, os.O_WRONLY, 0)
            if err is None
            else (os.POSIX_SPAWN_DUP2, err, 2),
            (os.POSIX_SPAWN_OPEN, 0, null, os.O_RDONLY, 0),
        ],
        # A sampler's thread blocks signals, Python has some ignored, and whoever started the agent may
        # have had any: that is inherited.
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _pipe(undo: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe's two ends: ours, which never waits, and the child's."""
    ours, child = os.pipe()
    undo.callback(os.close, ours)
    theirs.callback(os.close, child)
    os.set_blocking(ours, False)
    return ours, child


def _read(fd: int) -> Optional[bytes]:
    """What a pipe holds; nothing at its end or where it was closed, None where there is nothing yet."""
    try:
        return os.read(fd, PIECE_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _reaped(pid: int, at_once: bool) -> Optional[int]:
    """The exit status of a child that is ended unless it ends by itself; None where it cannot be had."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL) if at_once else _PATIENTLY:
        try:
            if signal_number:
                os.kill(pid, signal_number)
            until = time.monotonic() + _PATIENCE
            while True:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    return os.waitstatus_to_exitcode(status)
                if time.monotonic() >= until:
                    break
                time.sleep(0.002)
        except (ChildProcessError, ProcessLookupError):
            return None
    return None
