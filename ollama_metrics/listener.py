"""Sockets to listen on: one `http.server.HTTPServer` for each address."""

from __future__ import annotations

import errno
import os
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseServer

from .errors import ListenError
from .option_values import Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

OLLAMA_PORT = 11434
BACKLOG = 1024
# The name of a socket that systemd bound.
PASSED = "passed"


class Listener(HTTPServer):
    """A bound and listening socket; how it is served is the event loop's business.

    `name` tells a later process of this service which one it is: the address as it was configured,
    or PASSED for one that systemd bound.
    """

    def __init__(self, listening: socket.socket, name: str) -> None:
        # No address is given to HTTPServer: it would make and bind a socket of its own.
        BaseServer.__init__(self, listening.getsockname(), BaseHTTPRequestHandler)
        self.socket, self.name = listening, name
        # Accepted sockets inherit it: an answer is one send, and a pipelined one must not wait for
        # an ACK.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )

    @property
    def bound(self) -> Address:
        """The address with the port that it really has."""
        return Address(self.server_name, self.server_port)

    @property
    def description(self) -> str:
        """The address that it really has, and whose socket it is if not this program's."""
        return f"{self.bound}, passed by systemd" if self.name == PASSED else str(self.bound)

    @property
    def url(self) -> str:
        """A URL that reaches this listener from its own host."""
        return f"http://{self.bound.from_here}"


def listen(
    addresses: Sequence[Address], inherited: Sequence[tuple[str, int]] = ()
) -> list[Listener]:
    """Listen on every address; all or none.

    `::` serves IPv4 too where the system allows, unless an IPv4 address has the same port.
    `inherited` are addresses with the file descriptors of sockets that listen there already.

    Raises ListenError, whose text names the address.
    """
    listeners: list[Listener] = []
    left = list(inherited)
    try:
        for address in addresses:
            # Port 0 may be among them more than once.
            found = next((pair for pair in left if pair[0] == str(address)), None)
            v6_only = any(
                ":" not in other.host and other.port == address.port != 0 for other in addresses
            )
            if found is None:
                listeners.append(_listen(address, v6_only))
            else:
                left.remove(found)
                listeners.append(adopt(found[1], found[0]))
    except BaseException:
        for listener in listeners:
            listener.server_close()
        raise
    return listeners


def adopt(fd: int, name: str) -> Listener:
    """Serve on a socket that another has bound: systemd, or this process before it was executed anew.

    Raises ListenError when it is no listening TCP socket.
    """
    try:
        listening = socket.socket(fileno=fd)
        kinds = (
            listening.family in (socket.AF_INET, socket.AF_INET6),
            listening.type == socket.SOCK_STREAM,
        )
        accepts = listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(
            f"the file descriptor {fd} that was passed is no socket ({error})"
        ) from None
    if not all(kinds) or not accepts:
        listening.close()
        raise ListenError(
            f"the socket {fd} that was passed is not a listening TCP socket; "
            "in ollama-metrics.socket use ListenStream=PORT or ADDR:PORT and no Accept=yes"
        )
    return Listener(listening, name)


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
    # getaddrinfo's socket address: of IPv6 it has the scope, too (fe80::1%eth0).
    family, _, _, _, resolved = found[0]
    try:
        return Listener(bind(family, resolved, v6_only), str(address))
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {_reason(error, address.port)}") from None


def bind(family: int, resolved: Any, v6_only: bool) -> socket.socket:
    """A listening socket. Raises OSError."""
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6_only))
        listening.bind(resolved)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


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
