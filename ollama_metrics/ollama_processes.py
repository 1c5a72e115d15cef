"""Ollama as the kernel sees it from this host: connections to its port, its runners, its cgroup.

Ollama's process is found by the socket that listens on its port; that is a scan over all processes and
done only when the socket is another one. Files: proc(5).
"""

from __future__ import annotations

import socket
import time

from .errors import CollectorError
from .ollama_cgroup import fixed, usage
from .processes import cgroup_paths, owner_of, runners
from .tcp_connections import ConnectionTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Callable, Optional

    from .ollama import CgroupUsage, Runner


# Whose a socket is that this process may not know is asked again after this long.
_SEEK_AGAIN_SECONDS = 60.0


def is_of_this_host(host: str) -> bool:
    """Whether an address, or the first one of a name, is one of this network namespace's: one can be bound to it.

    A name is looked up, which can take as long as the resolver does.
    """
    try:
        # As bytes, for a text would be encoded by the idna codec, which costs a quarter of a megabyte.
        name = host.encode("ascii")
        family, kind, _, _, address = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as one:
            one.bind(address)
    except (OSError, UnicodeError):
        return False
    return True


class OllamaProcesses:
    """What listens on a port of this network namespace, and what belongs to it.

    `cgroup` is `auto`, `none` or the path of the cgroup to read instead of the process's own. With `keep`
    a socket to the kernel stays open. Each method raises CollectorError; `connections` is to be called
    first in a cycle.
    """

    def __init__(
        self,
        port: int,
        cgroup: str = "auto",
        proc: str = "/proc",
        root: str = "/",
        clock: Callable[[], float] = time.monotonic,
        keep: bool = False,
    ) -> None:
        self._clock = clock
        self._seek_at = 0.0
        self._port, self._proc, self._root = port, proc, root
        self._table = ConnectionTable(proc, keep=keep)
        self.has_cgroup = cgroup != "none"
        self._fixed: Optional[Mapping[str, str]] = (
            fixed(cgroup) if cgroup not in ("auto", "none") else None
        )
        self._listeners: tuple[int, ...] = ()
        self._pid: Optional[int] = None

    def connections(self) -> int:
        """Connections that are established to the port. Cheap: no process is looked at."""
        found = self._table.count(self._port)
        if found.listeners != self._listeners:
            self._listeners, self._pid, self._seek_at = found.listeners, None, 0.0
        if not found.listeners:
            raise CollectorError(
                f"nothing listens on port {self._port} in this network namespace: a proxy or a container"
                " holds Ollama's connections"
            )
        return found.established

    def runners(self) -> tuple[Runner, ...]:
        """Ollama's processes that serve a model."""
        try:
            return runners(self._owner(), self._proc)
        except CollectorError:
            self._pid = None  # it may have left its socket to another process
            raise

    def cgroup(self) -> CgroupUsage:
        """What Ollama's cgroup has used."""
        if self._fixed is not None:
            return usage(self._fixed, self._root)
        return usage(cgroup_paths(self._owner(), self._proc), self._root)

    def _owner(self) -> int:
        if self._pid is None:
            if not self._listeners:
                raise CollectorError(f"nothing listens on port {self._port} here")
            if self._clock() >= self._seek_at:
                self._seek_at = self._clock() + _SEEK_AGAIN_SECONDS
                self._pid = owner_of(self._listeners, self._proc)
        if self._pid is None:
            raise CollectorError(
                f"whose port {self._port} is cannot be seen: run the agent as Ollama's user"
            )
        return self._pid
