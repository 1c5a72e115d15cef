"""systemd's two protocols for services: what it is told (sd_notify) and the sockets that it passes.

Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Elsewhere the variables are not set,
and nothing in here does anything.
"""

from __future__ import annotations

import os
import socket
import time

from .errors import ListenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

_FIRST_PASSED = 3  # SD_LISTEN_FDS_START
_MOST_PASSED = 64
_LONGEST_STATUS = 500


class ServiceManager:
    """Tells systemd how this service is; never waits for it and never fails for it.

    `watchdog_seconds` is how long systemd waits for a sign of life, None when it does not.
    """

    def __init__(self, environ: Mapping[str, str], pid: Optional[int] = None) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        pid = os.getpid() if pid is None else pid
        self.watchdog_seconds: Optional[float] = None
        # The watchdog of another process is none of ours: WATCHDOG_PID.
        if self._address and environ.get("WATCHDOG_PID", str(pid)) == str(pid):
            self.watchdog_seconds = _microseconds(environ.get("WATCHDOG_USEC", ""))
        self._unsent: tuple[str, ...] = ()

    @property
    def listens(self) -> bool:
        """Whether there is a service manager that wants to be told."""
        return self._address[:1] in ("/", "@")

    def ready(self, status: str) -> None:
        """The service has started, or is there again after `reloading`."""
        # Without it the start would time out: what does not get through goes with the next sign of life.
        self._unsent = () if self._send("READY=1", _status(status)) else ("READY=1",)

    def reloading(self) -> None:
        """The service reads its configuration anew; `ready` ends that."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=reading the configuration anew")

    def stopping(self) -> None:
        """The service has begun to end."""
        self._send("STOPPING=1", "STATUS=ending")

    def alive(self, status: str) -> None:
        """A sign of life for the watchdog, with the line that `systemctl status` shows."""
        if self._send(*self._unsent, "WATCHDOG=1", _status(status)):
            self._unsent = ()

    def extend_watchdog(self, seconds: float) -> None:
        """Have the watchdog wait for `seconds` at least."""
        if self.watchdog_seconds is not None and self.watchdog_seconds < seconds:
            self.watchdog_seconds = seconds
            self._send(f"WATCHDOG_USEC={int(seconds * 1e6)}")

    def _send(self, *lines: str) -> bool:
        """Whether it was taken, or nobody wants to know."""
        if not self.listens:
            return True
        # An abstract name begins with @ for the eye and with NUL for the kernel: unix(7).
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode("utf-8", "replace"), address)
        except OSError:
            return False  # a full queue or no systemd: the next sign of life is soon
        return True


def passed_sockets(environ: Mapping[str, str], pid: Optional[int] = None) -> list[int]:
    """The file descriptors that systemd has passed to this process (`ollama-metrics.socket`), in order.

    Raises ListenError when the variables that tell of them make no sense.
    """
    if environ.get("LISTEN_PID", "") != str(os.getpid() if pid is None else pid):
        return []
    text = environ.get("LISTEN_FDS", "")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= _MOST_PASSED):
        raise ListenError(f"LISTEN_FDS is {text!r}; at most {_MOST_PASSED} sockets can be passed")
    fds = list(range(_FIRST_PASSED, _FIRST_PASSED + int(text)))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)  # no child is to hold the port
        except OSError:
            raise ListenError(
                f"LISTEN_FDS is {text!r}, and file descriptor {fd} is not open"
            ) from None
    return fds


def _microseconds(text: str) -> Optional[float]:
    """Seconds from WATCHDOG_USEC; None for what is no positive number."""
    return (
        int(text) / 1e6
        if text.isascii() and text.isdigit() and 0 < len(text) < 16 and int(text)
        else None
    )


def _status(sentence: str) -> str:
    """One line: in a message each line is a variable of its own."""
    return "STATUS=" + "".join(c if c.isprintable() else "?" for c in sentence[:_LONGEST_STATUS])
