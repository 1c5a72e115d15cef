"""What a process leaves to the program that is executed anew in it: sockets, and when that was done.

It goes through one environment variable, for all that survives execve(2) are file descriptors and
the environment.
"""

from __future__ import annotations

import json
import os

from .config import HANDOVER_VARIABLE
from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional


@dataclass(frozen=True)
class Handover:
    """Sockets by file descriptor.

    `pid` is the process whose they are. `listeners` are (name, file descriptor), the name as in
    `Listener.name`. `driver_renewals` counts how often in a row the program was executed anew for
    the driver, `driver_renewed_at` is when last, by the monotonic clock. `gpus_seen` is the most GPUs
    ever seen, which may have found no state directory to be remembered in. `ollama_failures` is how
    many checks in a row Ollama has not answered, None where it never did at `ollama_url`.
    """

    pid: int
    listeners: tuple[tuple[str, int], ...] = ()
    connections: tuple[int, ...] = ()
    driver_renewals: int = 0
    driver_renewed_at: Optional[float] = None
    gpus_seen: int = 0
    ollama_url: Optional[str] = None
    ollama_failures: Optional[int] = None

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """`environ` with this in it."""
        return {**environ, HANDOVER_VARIABLE: json.dumps(vars(self))}


def handed_over(environ: Mapping[str, str], *pids: int) -> Optional[Handover]:
    """What was left to this process, or to its child, by one of `pids`; None if nothing was.

    A variable that is not whole is none: it was not this program that wrote it.
    """
    try:
        fields = json.loads(environ[HANDOVER_VARIABLE])
        found = Handover(
            int(fields["pid"]),
            tuple((str(name), int(fd)) for name, fd in fields["listeners"]),
            tuple(int(fd) for fd in fields["connections"]),
            int(fields["driver_renewals"]),
            None if fields["driver_renewed_at"] is None else float(fields["driver_renewed_at"]),
            int(fields["gpus_seen"]),
            # Not in what earlier versions leave.
            None if fields.get("ollama_url") is None else str(fields["ollama_url"]),
            None if fields.get("ollama_failures") is None else int(fields["ollama_failures"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return found if found.pid in pids else None


def close_all_but(kept: set[int]) -> None:
    """Have execve(2) close every file descriptor but the standard streams and `kept`, which it is to leave open.

    Python's own are closed anyway; a driver's library may have opened others.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2:
            try:
                os.set_inheritable(fd, fd in kept)
            except OSError:
                pass  # the listing's own, closed by now
