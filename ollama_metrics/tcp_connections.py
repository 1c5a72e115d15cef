"""Counts the TCP connections to a port of this host, from the kernel's own tables.

Only sockets of this network namespace are seen: a server in a container's own namespace shows
neither listener nor connection here. What a connection is for, and whose process has it, is not
known here.

Asked by NETLINK_SOCK_DIAG (include/uapi/linux/{netlink,sock_diag,inet_diag}.h), where the kernel picks
out the port; where that is refused, read from /proc/net/tcp and tcp6
(Documentation/networking/proc_net_tcp.rst), which has every socket as text.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import sys
import time

from .errors import CollectorError
from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Callable, Optional

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_END = 1 << 16  # beside the flags, which have 16 bits
_ESTABLISHED, _LISTEN = 1, 10

# struct nlmsghdr: length, type, flags, sequence, port id.
_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2: family, protocol, extensions, padding, states; then struct inet_diag_sockid.
_REQUEST = struct.Struct("=BBBxI")
_SOCKID_SIZE = 48
# struct nlmsghdr and struct inet_diag_msg: length, type, flags, sequence | state and the id's ports,
# local and remote (in the network's order, read in the host's).
_MESSAGE = struct.Struct("=IHHI5xB2xHH")
_MESSAGE_SIZE = 88
_LOCAL_AT, _REMOTE_AT, _INODE_AT = 24, 40, 84
_INODE = struct.Struct("=I")
_ERROR = struct.Struct("=i")

# The kernel fills at most as much at a time as was ever asked for, before that at most 8 kB (netlink_dump).
_DATAGRAM = 1 << 14
_BLOCK = 1 << 16  # of text
# More than a million sockets as text.
_MOST_TEXT = 256 << 20
_LONGEST_LINE = 4096
# What says that the way is closed for good: sandboxes, seccomp, gVisor, a kernel without inet_diag.
_REFUSALS = frozenset(
    (
        *(errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOENT, errno.EOPNOTSUPP),
        *(errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.ECONNREFUSED),
    )
)
_TABLE = "the kernel's table of TCP sockets"
_CUT_OFF = f"{_TABLE} cannot be read: the answer is cut off"
_LOOPBACK = b"\x7f"
_MAPPED_LOOPBACK = b"\0" * 10 + b"\xff\xff" + _LOOPBACK


def _open_netlink() -> socket.socket:
    # Not in socket's constants of every system that the type checker knows.
    family = getattr(socket, "AF_NETLINK", 16)
    link = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    try:
        link.connect((0, 0))  # the kernel, and nobody else's messages
    except BaseException:
        link.close()
        raise
    return link


@dataclass(frozen=True)
class Connections:
    """The connections to a port: how many are established, and the inodes of the sockets that listen.

    Without a listener in this network namespace `listeners` is empty, and `established` says nothing
    about a server that may be in another one.
    """

    established: int
    listeners: tuple[int, ...]


class ConnectionTable:
    """Reads the kernel's table of TCP sockets; remembers when netlink is refused to this process.

    `proc` is where procfs is mounted, `open_netlink` makes the socket to the kernel, which has
    `timeout` seconds for its answers. With `keep` that socket serves count after count: to open and
    close one is a quarter of what a count costs.
    """

    def __init__(
        self,
        proc: str = "/proc",
        open_netlink: Callable[[], socket.socket] = _open_netlink,
        clock: Callable[[], float] = time.monotonic,
        timeout: float = 2.0,
        keep: bool = False,
    ) -> None:
        self._proc, self._open, self._clock, self._timeout = proc, open_netlink, clock, timeout
        self._keep = keep
        self._kept: Optional[_Conversation] = None
        self.by_netlink = True

    def count(self, port: int, own_ports: Collection[int] = ()) -> Connections:
        """The connections that were made to local port `port` (1 to 65535), IPv4 and IPv6.

        Left out are those that come from this very host and from one of `own_ports`, the local
        ports of the caller's own connections.

        Raises CollectorError when the kernel's answer cannot be had or makes no sense.
        """
        if not 0 < port < 65536:
            raise CollectorError(f"{port} is no TCP port")
        if self.by_netlink:
            try:
                return self._ask(port, own_ports)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise CollectorError(f"{_TABLE} cannot be read: {error}") from None
                self.by_netlink = False
        return _read(self._proc, port, own_ports)

    def _ask(self, port: int, own_ports: Collection[int]) -> Connections:
        conversation, self._kept = self._kept, None
        if conversation is None:
            conversation = _Conversation(self._open(), self._timeout, self._clock)
        try:
            found = conversation.total(port, own_ports)
            if self._keep:  # one that failed may have answers on their way
                self._kept = conversation
            return found
        finally:
            if self._kept is None:
                conversation.close()


# -- the tables by netlink ---------------------------------------------------------------------------------------------


class _Conversation:
    """Dumps that are asked for on one link to the kernel, a count's within `timeout` seconds; for one thread."""

    def __init__(self, link: socket.socket, timeout: float, clock: Callable[[], float]) -> None:
        link.settimeout(timeout)
        self._link, self._timeout, self._clock = link, timeout, clock
        self._sequence = 0
        # The last message can be read as a whole one wherever the answer ends.
        self._buffer = bytearray(_DATAGRAM + _MESSAGE_SIZE)
        self._room = memoryview(self._buffer)[:_DATAGRAM]

    def close(self) -> None:
        """Give the link back."""
        self._link.close()

    def total(self, port: int, own_ports: Collection[int]) -> Connections:
        """Both families. Raises OSError where the kernel names an error, and CollectorError."""
        self._end = self._clock() + self._timeout
        self._port = port
        # As _MESSAGE reads them.
        self._local = _swapped(port)
        self._own = frozenset(_swapped(own) for own in own_ports if 0 < own < 65536)
        established = 0
        listeners: set[int] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            # A connection is of its listener's family. Listeners have a small table of their own; the
            # other one has a row for each of some 100,000 hashes, which is most of what this costs.
            inodes = self._ask(family, _LISTEN).listeners
            if inodes:
                listeners.update(inodes)
                established += self._ask(family, _ESTABLISHED).established
        return Connections(established, tuple(sorted(listeners)))

    def _ask(self, family: int, state: int) -> Connections:
        """The sockets of one family in one state."""
        for _ in range(2):
            self._sequence += 1
            self._link.send(_request(family, state, self._port, self._sequence))
            established, listeners, flags = 0, [], 0
            while not flags & _END:
                size = self._receive()
                more, inodes, seen = self._read(size, state)
                established += more
                listeners += inodes
                flags |= seen
            # The kernel's table changed under an interrupted dump, which may lack sockets.
            if not flags & _NLM_F_DUMP_INTR:
                return Connections(established, tuple(listeners))
        raise CollectorError(f"{_TABLE} changes too fast to be read")

    def _receive(self) -> int:
        if self._clock() > self._end:
            raise CollectorError(f"{_TABLE} does not end")
        size, _, flags, _ = self._link.recvmsg_into([self._room])
        if flags & socket.MSG_TRUNC:
            raise CollectorError(_CUT_OFF)
        if not size:
            raise CollectorError(f"{_TABLE} cannot be read: the answer is empty")
        return size

    def _read(self, size: int, state: int) -> tuple[int, list[int], int]:
        """The messages in the buffer's first `size` bytes: established, listeners' inodes, flags."""
        at = established = seen = 0
        inodes: list[int] = []
        buffer, local, own, sequence = self._buffer, self._local, self._own, self._sequence
        unpack = _MESSAGE.unpack_from
        while at < size:
            length, kind, flags, number, status, source, peer = unpack(buffer, at)
            if not _HEADER.size <= length <= size - at:
                raise CollectorError(_CUT_OFF)
            if number != sequence:
                pass  # the rest of a dump that was given up
            elif kind == _SOCK_DIAG_BY_FAMILY:
                if length < _MESSAGE_SIZE:
                    raise CollectorError(_CUT_OFF)
                if source == local and status == state:
                    if status == _LISTEN:
                        inodes += _INODE.unpack_from(buffer, at + _INODE_AT)
                    elif peer not in own or not _is_own_host(buffer, at):
                        established += 1
                seen |= flags
            elif kind in (_NLMSG_ERROR, _NLMSG_DONE):
                # Both begin with an error's number, which an old kernel's DONE does not have.
                code = _ERROR.unpack_from(buffer, at + _HEADER.size)[0] if length >= 20 else 0
                if code < 0:
                    raise OSError(-code, os.strerror(-code))
                seen |= flags | _END
            at += length + 3 & ~3
        return established, inodes, seen


def _swapped(port: int) -> int:
    """A port as the host reads the two bytes that the network has."""
    return int.from_bytes(port.to_bytes(2, "big"), sys.byteorder)


def _request(family: int, state: int, port: int, sequence: int) -> bytes:
    """A request for a dump of one family's TCP sockets that have this state and this local port."""
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << state)
    body += port.to_bytes(2, "big").ljust(_SOCKID_SIZE, b"\0")
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, sequence, 0)
    return header + body


def _is_own_host(message: bytearray, at: int) -> bool:
    # Of IPv4 only the first four bytes are set.
    size = 4 if message[at + _HEADER.size] == socket.AF_INET else 16
    local, remote = at + _LOCAL_AT, at + _REMOTE_AT
    return _is_same_host(
        bytes(message[local : local + size]), bytes(message[remote : remote + size])
    )


def _is_same_host(local: bytes, remote: bytes) -> bool:
    """Whether a peer's address is this host's own; addresses of 4 or 16 bytes in the network's order."""
    # What goes to an address of the host's own comes from the same one, or from 127.0.0.1.
    return remote == local or remote.startswith(_LOOPBACK if len(remote) == 4 else _MAPPED_LOOPBACK)


# -- the tables as text ------------------------------------------------------------------------------------------------


def _read(proc: str, port: int, own_ports: Collection[int]) -> Connections:
    # "   1: 0100007F:2CAA 0100007F:D5C4 01 ...": number, local and remote address and port, state.
    wanted = re.compile(
        rb"^ *\d+: ([0-9A-F]+):%04X ([0-9A-F]+):([0-9A-F]{4}) (01|0A) (.*)$" % port, re.MULTILINE
    )
    own = {b"%04X" % own for own in own_ports}
    established = 0
    listeners: set[int] = set()
    for name in ("tcp", "tcp6"):
        path = os.path.join(proc, "net", name)
        count = 0
        inodes: set[int] = set()
        try:
            for block in _lines(path):
                for local, remote, peer, state, rest in wanted.findall(block):
                    if state == b"0A":
                        inodes.add(int(rest.split()[5]))
                    elif peer not in own or not _is_same_host(_address(local), _address(remote)):
                        count += 1
        except FileNotFoundError:
            if name == "tcp":
                raise CollectorError(f"{_TABLE} cannot be read: there is no {path}") from None
            # A kernel without IPv6.
        except (OSError, ValueError, IndexError) as error:
            raise CollectorError(f"{path} cannot be read: {error}") from None
        if inodes:  # a connection is of its listener's family
            established, listeners = established + count, listeners | inodes
    return Connections(established, tuple(sorted(listeners)))


def _lines(path: str) -> Iterator[bytes]:
    """A file in blocks of whole lines. Raises OSError, and ValueError when it does not end."""
    rest, left = b"", _MOST_TEXT
    with open(path, "rb") as file:
        while block := file.read(min(_BLOCK, left)):
            left -= len(block)
            whole, newline, tail = block.rpartition(b"\n")
            if newline:
                yield rest + whole
                rest = b""
            rest += tail
            if len(rest) > _LONGEST_LINE:
                raise ValueError("a line is longer than any of that table")
    if not left:
        raise ValueError("it does not end")


def _address(text: bytes) -> bytes:
    """An address of the table in the network's order: there it is in words of the host's."""
    words = bytes.fromhex(text.decode())
    return b"".join(
        int.from_bytes(words[at : at + 4], "big").to_bytes(4, sys.byteorder)
        for at in range(0, len(words), 4)
    )
