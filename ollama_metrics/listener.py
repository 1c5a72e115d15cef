"""Sockets to listen on: one `http.server.HTTPServer` for each address."""

from __future__ import annotations

import errno
import os
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer

from .config import Address
from .errors import ListenError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

OLLAMA_PORT = 11434
BACKLOG = 1024


class Listener(HTTPServer):
    """A bound and listening socket; how it is served is the event loop's business."""

    request_queue_size = BACKLOG
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, family: int, resolved: Any, v6_only: bool) -> None:
        self.address_family = family
        self._v6_only = v6_only
        # getaddrinfo's socket address: of IPv6 it has the scope, too (fe80::1%eth0).
        super().__init__(resolved, BaseHTTPRequestHandler)

    def server_bind(self) -> None:
        """Bind, without the look-up of the host's own name that HTTPServer does (it can take seconds)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it: an answer is one send, and a pipelined one must not wait for
        # an ACK.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self._v6_only))
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )
        self.socket.setblocking(False)

    @property
    def bound(self) -> Address:
        """The address with the port that it really has."""
        return Address(self.server_name, self.server_port)

    @property
    def url(self) -> str:
        """A URL that reaches this listener from its own host."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.server_name, self.server_name)
        return f"http://{Address(host, self.server_port)}"


def listen(addresses: Sequence[Address]) -> list[Listener]:
    """Listen on every address; all or none.

    `::` serves IPv4 too where the system allows, unless an IPv4 address has the same port.

    Raises ListenError, whose text names the address.
    """
    listeners: list[Listener] = []
    try:
        for address in addresses:
            v6_only = any(
                ":" not in other.host and other.port == address.port != 0 for other in addresses
            )
            listeners.append(_listen(address, v6_only))
    except BaseException:
        for listener in listeners:
            listener.server_close()
        raise
    return listeners


def _listen(address: Address, v6_only: bool) -> Listener:
    try:
        # As bytes, where that will do: for a str Python loads its whole IDNA machinery, 1 MB.
        host = address.host.encode() if address.host.isascii() else address.host
        found = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ListenError(
            f"cannot listen on {address}: the name {address.host!r} is not known ({error})"
        ) from None
    family, _, _, _, resolved = found[0]
    try:
        return Listener(family, resolved, v6_only)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {_reason(error, address.port)}") from None


def _reason(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        if port == OLLAMA_PORT:
            return f"the port is in use; {OLLAMA_PORT} is Ollama's own port, choose another (11435 is the default)"
        return f"the port is in use; `ss -ltnp 'sport = :{port}'` shows by whom, --listen chooses another"
    if error.errno == errno.EACCES:
        return "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this host has no such address; `ip address` shows those that it has"
    return os.strerror(error.errno) if error.errno else str(error)


def open_files_for(connections: int) -> int:
    """Raise the soft limit of open files as far as `connections` need and the hard limit allows.

    Returns how many connections there is room for.
    """
    import resource

    reserve = 64  # standard streams, libraries, the driver's devices
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + reserve
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (
        connections if soft == resource.RLIM_INFINITY else max(16, min(connections, soft - reserve))
    )
