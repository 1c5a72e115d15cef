"""Connections are counted out of the kernel's own tables, of this machine's real sockets and of made-up answers."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, Optional

import pytest

from ollama_metrics.errors import CollectorError
from ollama_metrics.tcp_connections import Connections, ConnectionTable

PORT = 11434


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes the sockets of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["netlink", "proc"])
def table(request: pytest.FixtureRequest) -> ConnectionTable:
    """Each way of asking this machine's kernel."""
    if request.param == "netlink":
        return ConnectionTable(proc="/nonexistent")
    return ConnectionTable(open_netlink=refusing(errno.EPERM))


def refusing(number: int, asked: Optional[list[int]] = None) -> Callable[[], socket.socket]:
    def refuse() -> socket.socket:
        if asked is not None:
            asked.append(number)
        raise OSError(number, os.strerror(number))

    return refuse


def listen(
    stack: ExitStack, host: str = "127.0.0.1", dual: bool = False, port: int = 0
) -> tuple[socket.socket, int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")
    stack.enter_context(server)
    return server, server.getsockname()[1]


def connect(stack: ExitStack, server: socket.socket, host: str = "127.0.0.1") -> socket.socket:
    client = stack.enter_context(socket.create_connection((host, server.getsockname()[1])))
    stack.enter_context(server.accept()[0])
    return client


def inode(server: socket.socket) -> int:
    return os.fstat(server.fileno()).st_ino


# -- this machine's sockets --------------------------------------------------------------------------------------------


def test_connections_to_a_port_are_counted(table: ConnectionTable, stack: ExitStack) -> None:
    """A connection counts once, at the server's end, from when it is established until it is closed."""
    server, port = listen(stack)
    assert table.count(port) == Connections(0, (inode(server),))
    clients = [connect(stack, server) for _ in range(60)]
    assert table.count(port) == Connections(60, (inode(server),))
    clients[0].close()
    assert table.count(port).established == 59


def test_what_the_server_has_not_accepted_yet_counts(
    table: ConnectionTable, stack: ExitStack
) -> None:
    """A request that waits for the server to take it is in flight."""
    _, port = listen(stack)
    stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    assert table.count(port).established == 1


def test_ipv6_counts_and_so_does_ipv4_that_comes_to_it(
    table: ConnectionTable, stack: ExitStack
) -> None:
    """A server on `[::]` has its IPv4 clients in the kernel's table of IPv6: all of them are counted."""
    server, port = listen(stack, "::", dual=True)
    connect(stack, server, "::1")
    connect(stack, server, "127.0.0.1")
    assert table.count(port) == Connections(2, (inode(server),))


def test_a_server_with_a_socket_for_each_family_is_one(
    table: ConnectionTable, stack: ExitStack
) -> None:
    """With a listener of IPv4 and one of IPv6 on the port both have their connections counted."""
    four, port = listen(stack)
    six, _ = listen(stack, "::1", port=port)
    connect(stack, four)
    connect(stack, six, "::1")
    assert table.count(port) == Connections(2, tuple(sorted((inode(four), inode(six)))))


def test_other_ports_do_not_count(table: ConnectionTable, stack: ExitStack) -> None:
    """Neither another server's connections nor the clients' ends of one's own are counted."""
    server, port = listen(stack)
    other, _ = listen(stack)
    for _ in range(3):
        connect(stack, other)
    client = connect(stack, server)
    assert table.count(port).established == 1
    # The client's port has a connection, too, and nobody listens there.
    assert table.count(client.getsockname()[1]) == Connections(0, ())


def test_without_a_listener_it_says_so(table: ConnectionTable, stack: ExitStack) -> None:
    """Where nobody listens the listeners are empty: the server may be in another namespace."""
    server, port = listen(stack)
    connect(stack, server)
    server.close()
    assert table.count(port) == Connections(0, ())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_the_agents_own_connections_do_not_count(
    table: ConnectionTable, stack: ExitStack, host: str
) -> None:
    """A connection from one of the caller's own ports is left out, and only that."""
    server, port = listen(stack, host)
    clients = [connect(stack, server, host) for _ in range(3)]
    own = {client.getsockname()[1] for client in clients[:2]}
    assert table.count(port, own).established == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_own_connections_through_a_dual_stack_listener_do_not_count(
    table: ConnectionTable, stack: ExitStack, host: str
) -> None:
    """They are recognized where the kernel shows their IPv4 address as one of IPv6."""
    server, port = listen(stack, "::", dual=True)
    client = connect(stack, server, host)
    assert table.count(port, [client.getsockname()[1]]).established == 0


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_what_is_no_port_is_an_error(table: ConnectionTable, port: int) -> None:
    """Port 0 would ask the kernel for every socket there is."""
    with pytest.raises(CollectorError, match="is no TCP port"):
        table.count(port)


def test_both_ways_see_the_same(stack: ExitStack) -> None:
    """What netlink tells is what the text tells."""
    server, port = listen(stack)
    for _ in range(20):
        connect(stack, server)
    assert ConnectionTable().count(port) == ConnectionTable(
        open_netlink=refusing(errno.EPERM)
    ).count(port)


# -- a kernel that refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOSYS]
)
def test_a_refusal_is_remembered(stack: ExitStack, number: int) -> None:
    """Where netlink is forbidden or unknown the text is read instead, and netlink is not tried again."""
    asked: list[int] = []
    table = ConnectionTable(open_netlink=refusing(number, asked))
    server, port = listen(stack)
    connect(stack, server)
    for _ in range(3):
        assert table.count(port) == Connections(1, (inode(server),))
    assert asked == [number]
    assert not table.by_netlink


def test_an_error_that_may_pass_is_no_refusal() -> None:
    """Want of memory or of descriptors is told and netlink is tried again."""
    table = ConnectionTable(open_netlink=refusing(errno.EMFILE))
    with pytest.raises(CollectorError, match="Too many open files"):
        table.count(PORT)
    assert table.by_netlink


# -- answers that no kernel should give --------------------------------------------------------------------------------


SOCK_DIAG, ERROR, DONE, INTERRUPTED = 20, 2, 3, 0x10
LISTENING, ESTABLISHED, CLOSING = 10, 1, 8


def message(kind: int, sequence: int, body: bytes = b"\0\0\0\0", flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def entry(
    sequence: int,
    state: int,
    port: int = PORT,
    peer: int = 50000,
    remote: str = "192.0.2.1",
    flags: int = 2,
) -> bytes:
    body = struct.pack("=BBBB", socket.AF_INET, state, 0, 0) + struct.pack(">HH", port, peer)
    body += socket.inet_aton("192.0.2.9").ljust(16, b"\0")
    body += socket.inet_aton(remote).ljust(16, b"\0")
    body += struct.pack("=IIIIIIII", 0, 1, 2, 0, 0, 0, 0, 4711) + b"\x05\0\x08\0\0\0\0\0"
    return message(SOCK_DIAG, sequence, body, flags)


class Kernel:
    """The other end of a link, with its answers lying there in advance, each a datagram."""

    def __init__(self, stack: ExitStack, *answers: bytes) -> None:
        here, self.there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link = stack.enter_context(here)
        stack.enter_context(self.there)
        for answer in answers:
            self.there.send(answer)

    def table(self, proc: str = "/nonexistent", timeout: float = 2.0) -> ConnectionTable:
        return ConnectionTable(proc, lambda: self.link, timeout=timeout)


# The questions in their order: IPv4's listeners, its connections if there are any, IPv6's listeners.
LISTENER = entry(1, LISTENING) + message(DONE, 1)
NOTHING_IN_IPV6 = message(DONE, 3)


def test_answers_in_many_datagrams_are_one(stack: ExitStack) -> None:
    """Messages may come one by one or many in a datagram, with the end in one of its own."""
    connections = [entry(2, ESTABLISHED, peer=50000 + number) for number in range(5)]
    kernel = Kernel(
        stack,
        *(entry(1, LISTENING), message(DONE, 1)),
        *(b"".join(connections[:3]), b"".join(connections[3:]), message(DONE, 2)),
        NOTHING_IN_IPV6,
    )
    assert kernel.table().count(PORT) == Connections(5, (4711,))


def test_the_kernel_is_asked_for_one_port(stack: ExitStack) -> None:
    """The request names the local port, TCP and the state, as inet_diag.h has them: the kernel does the filtering."""
    kernel = Kernel(stack, LISTENER, message(DONE, 2), NOTHING_IN_IPV6)
    kernel.table().count(PORT)
    requests = [kernel.there.recv(4096) for _ in range(3)]
    assert [len(request) for request in requests] == [72] * 3
    found = [struct.unpack_from("=IHHII BBBxI", request) for request in requests]
    assert [(one[0], one[1], one[2] & 0x301) for one in found] == [(72, 20, 0x301)] * 3
    assert [(one[5], one[6], one[8]) for one in found] == [
        (socket.AF_INET, socket.IPPROTO_TCP, 1 << LISTENING),
        (socket.AF_INET, socket.IPPROTO_TCP, 1 << ESTABLISHED),
        (socket.AF_INET6, socket.IPPROTO_TCP, 1 << LISTENING),
    ]
    assert {request[24:] for request in requests} == {struct.pack(">H", PORT).ljust(48, b"\0")}


def test_a_kernel_that_does_not_filter_is_not_believed(stack: ExitStack) -> None:
    """A socket of another port or state in the answer does not count."""
    answer = entry(2, ESTABLISHED, port=PORT + 1) + entry(2, CLOSING) + entry(2, ESTABLISHED)
    kernel = Kernel(stack, LISTENER, answer + message(DONE, 2), NOTHING_IN_IPV6)
    assert kernel.table().count(PORT).established == 1


def test_another_hosts_connection_from_the_same_port_counts(stack: ExitStack) -> None:
    """A port of the caller's own is no reason to leave out a client elsewhere that happens to have the same."""
    answer = entry(2, ESTABLISHED, peer=50000, remote="198.51.100.7")
    answer += entry(2, ESTABLISHED, peer=50000, remote="192.0.2.9")  # the server's own address
    kernel = Kernel(stack, LISTENER, answer + message(DONE, 2), NOTHING_IN_IPV6)
    assert kernel.table().count(PORT, [50000]).established == 1


def test_an_interrupted_dump_is_asked_for_again(stack: ExitStack) -> None:
    """When the table changed under the kernel the dump is made anew, and what it had told does not count twice."""
    kernel = Kernel(
        stack,
        LISTENER,
        entry(2, ESTABLISHED, flags=2 | INTERRUPTED) + message(DONE, 2),
        entry(3, ESTABLISHED) + entry(3, ESTABLISHED) + message(DONE, 3),
        message(DONE, 4),
    )
    assert kernel.table().count(PORT).established == 2


def test_a_dump_that_is_interrupted_twice_is_an_error(stack: ExitStack) -> None:
    """Once is enough: the second interruption is told."""
    kernel = Kernel(
        stack,
        entry(1, LISTENING) + message(DONE, 1, flags=2 | INTERRUPTED),
        entry(2, LISTENING) + message(DONE, 2, flags=2 | INTERRUPTED),
    )
    with pytest.raises(CollectorError, match="changes too fast"):
        kernel.table().count(PORT)


def test_the_rest_of_another_answer_is_passed_over(stack: ExitStack) -> None:
    """Messages with another sequence number are of no concern, their end neither."""
    kernel = Kernel(
        stack,
        *(entry(9, LISTENING) + message(DONE, 9), LISTENER),
        *(entry(2, ESTABLISHED) + message(DONE, 2), NOTHING_IN_IPV6),
    )
    assert kernel.table().count(PORT) == Connections(1, (4711,))


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_an_error_of_the_kernels_is_told(stack: ExitStack, kind: int) -> None:
    """An error may come as a message of its own or as the end of a dump; it is no refusal, netlink goes on."""
    table = Kernel(stack, message(kind, 1, struct.pack("=i", -errno.ENOMEM) + bytes(16))).table()
    with pytest.raises(CollectorError, match="Cannot allocate memory"):
        table.count(PORT)
    assert table.by_netlink


def test_a_refusal_in_a_message_leads_to_the_text(stack: ExitStack, tmp_path: Path) -> None:
    """A kernel that has netlink and not this part of it (ENOENT) is asked by text from then on."""
    write(tmp_path, TCP_HEADER + line(1, PORT, 0, "0A", 99))
    kernel = Kernel(stack, message(ERROR, 1, struct.pack("=i", -errno.ENOENT) + bytes(16)))
    table = kernel.table(str(tmp_path))
    assert table.count(PORT) == Connections(0, (99,))
    assert not table.by_netlink


CUT_OFF = [
    entry(1, LISTENING)[:-30],
    entry(1, LISTENING) + b"\x10\0",
    entry(1, LISTENING) + message(DONE, 1)[:15],
    message(SOCK_DIAG, 1, bytes(40)),
    struct.pack("=IHHII", 0, SOCK_DIAG, 2, 1, 0),
    struct.pack("=IHHII", 15, DONE, 2, 1, 0),
    struct.pack("=IHHII", 0xFFFFFFFF, SOCK_DIAG, 2, 1, 0),
    b"\0",
    b"\xff" * 200,
    message(1, 1, bytes(65520)) + LISTENER,
]


@pytest.mark.parametrize("answer", CUT_OFF, ids=range(len(CUT_OFF)))
def test_an_answer_that_is_cut_off_is_an_error(stack: ExitStack, answer: bytes) -> None:
    """A message longer or shorter than it says, or than its kind is, or a datagram beyond the buffer: no count."""
    with pytest.raises(CollectorError, match="the answer is cut off"):
        Kernel(stack, answer, message(DONE, 1)).table().count(PORT)


def test_a_message_that_is_cut_off_is_not_completed_by_the_one_before(stack: ExitStack) -> None:
    """What the buffer still has of an earlier datagram is no part of a shorter one that follows."""
    kernel = Kernel(stack, LISTENER, entry(2, ESTABLISHED), entry(2, ESTABLISHED)[:50])
    with pytest.raises(CollectorError, match="the answer is cut off"):
        kernel.table().count(PORT)


def test_an_answer_that_does_not_come_is_an_error(stack: ExitStack) -> None:
    """The kernel is waited for up to the timeout."""
    with pytest.raises(CollectorError, match="timed out"):
        Kernel(stack).table(timeout=0.05).count(PORT)


def test_an_answer_that_does_not_end_is_an_error(stack: ExitStack) -> None:
    """However many messages come, the whole conversation has but the timeout."""
    times = iter([0.0, 0.5, 1.0, 1.5, 99.0])
    kernel = Kernel(stack, *[entry(1, LISTENING)] * 10)
    table = ConnectionTable("/nonexistent", lambda: kernel.link, clock=lambda: next(times))
    with pytest.raises(CollectorError, match="does not end"):
        table.count(PORT)


def test_a_link_that_ends_is_an_error(stack: ExitStack) -> None:
    """An empty answer is none."""
    kernel = Kernel(stack)
    kernel.there.shutdown(socket.SHUT_WR)
    with pytest.raises(CollectorError, match="the answer is empty"):
        kernel.table().count(PORT)


def test_links_are_closed(stack: ExitStack) -> None:
    """No descriptor is left of a count, nor of one that failed."""
    table = ConnectionTable()
    table.count(PORT)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        table.count(PORT)
    assert len(os.listdir("/proc/self/fd")) == before
    kernel = Kernel(stack, b"\0")
    with pytest.raises(CollectorError):
        kernel.table().count(PORT)
    assert kernel.link.fileno() == -1


def test_a_link_can_be_kept(stack: ExitStack) -> None:
    """One link answers count after count, each with what there is then, and takes one descriptor."""
    opened = []

    def open_netlink() -> socket.socket:
        opened.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4))
        return stack.enter_context(opened[-1])

    table = ConnectionTable("/nonexistent", open_netlink, keep=True)
    server, port = listen(stack)
    for number in range(5):
        assert table.count(port) == Connections(number, (inode(server),))
        assert table.count(PORT).established == 0
        connect(stack, server)
    assert len(opened) == 1


def test_a_count_on_a_kept_link_hears_its_own_answers_alone(stack: ExitStack) -> None:
    """The numbers of the questions go on, so that no answer to an earlier count is taken for a later one's."""
    kernel = Kernel(stack, LISTENER, entry(2, ESTABLISHED) + message(DONE, 2), NOTHING_IN_IPV6)
    for answer in (
        *(LISTENER, entry(4, LISTENING) + message(DONE, 4)),
        *(entry(2, ESTABLISHED) + message(DONE, 2), message(DONE, 5), message(DONE, 6)),
    ):
        kernel.there.send(answer)
    table = ConnectionTable("/nonexistent", lambda: kernel.link, keep=True)
    assert table.count(PORT).established == 1
    assert table.count(PORT) == Connections(0, (4711,))


def test_a_kept_link_that_fails_is_replaced(stack: ExitStack) -> None:
    """A count that fails closes its link, and the next one has a new one."""
    first = Kernel(stack, LISTENER, message(DONE, 2), NOTHING_IN_IPV6, b"\0")
    second = Kernel(stack, LISTENER, entry(2, ESTABLISHED) + message(DONE, 2), NOTHING_IN_IPV6)
    links = iter([first.link, second.link])
    table = ConnectionTable("/nonexistent", lambda: next(links), keep=True)
    assert table.count(PORT).established == 0
    with pytest.raises(CollectorError, match="cut off"):
        table.count(PORT)
    assert first.link.fileno() == -1
    assert table.count(PORT).established == 1


# -- the tables as text ------------------------------------------------------------------------------------------------

TCP_HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(number: int, port: int, peer: int, state: str, socket_inode: int = 5) -> str:
    text = f"{number:4d}: 0100007F:{port:04X} 090200C0:{peer:04X} {state} 00000000:00000000 00:00000000 00000000"
    return f"{text}  1000        0 {socket_inode} 1 0000000000000000 100 0 0 10 0".ljust(149) + "\n"


def write(proc: Path, tcp: Optional[str], tcp6: Optional[str] = None) -> None:
    (proc / "net").mkdir(exist_ok=True)
    for name, text in (("tcp", tcp), ("tcp6", tcp6)):
        if text is not None:
            (proc / "net" / name).write_text(text)


def by_text(proc: Path) -> ConnectionTable:
    return ConnectionTable(str(proc), refusing(errno.EPERM))


def test_a_long_table_is_read_to_its_end(tmp_path: Path) -> None:
    """Lines that lie across the blocks in which the file is read are counted like all others."""
    lines = [line(number, PORT if number % 2 else 80, number, "01") for number in range(1, 4000)]
    write(tmp_path, TCP_HEADER + line(0, PORT, 0, "0A", 77) + "".join(lines))
    assert by_text(tmp_path).count(PORT) == Connections(2000, (77,))


def test_only_established_ones_count_in_the_text(tmp_path: Path) -> None:
    """Those that are being opened or closed, and those that are over, do not count."""
    states = [f"{number:02X}" for number in range(1, 13) if number != LISTENING]
    lines = [line(number, PORT, 1, state) for number, state in enumerate(states)]
    write(tmp_path, TCP_HEADER + line(0, PORT, 0, "0A") + "".join(lines))
    assert by_text(tmp_path).count(PORT).established == 1


def test_a_kernel_without_ipv6_has_no_second_table(tmp_path: Path) -> None:
    """Without tcp6 the first table is all there is."""
    write(tmp_path, TCP_HEADER + line(0, PORT, 0, "0A") + line(1, PORT, 1, "01"))
    assert by_text(tmp_path).count(PORT).established == 1


def test_without_any_table_it_is_an_error(tmp_path: Path) -> None:
    """No procfs is no zero."""
    with pytest.raises(CollectorError, match=r"there is no .*/net/tcp"):
        by_text(tmp_path).count(PORT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense\n" * 50,
        "\0" * 3000 + "\n",
        line(1, PORT, 1, "01").rstrip("\n"),
        "   0: 0100007F:2CAA\n",
        "   0: :2CAA : 0A\n",
    ],
)
def test_nonsense_in_the_text_counts_for_nothing(tmp_path: Path, text: str) -> None:
    """Lines that are no sockets, and one without an end, are passed over."""
    write(tmp_path, TCP_HEADER + text)
    assert by_text(tmp_path).count(PORT) == Connections(0, ())


@pytest.mark.parametrize(
    "text",
    ["   0: 0100007F:2CAA 00000000:0000 0A x\n", line(0, PORT, 0, "0A", 5).replace(" 5 ", " x ")],
)
def test_a_listener_without_an_inode_is_an_error(tmp_path: Path, text: str) -> None:
    """A line that is a listener's up to where it matters is no reason to say that nobody listens."""
    write(tmp_path, TCP_HEADER + text)
    with pytest.raises(CollectorError, match="cannot be read"):
        by_text(tmp_path).count(PORT)


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    """A line longer than any of the kernel's ends the reading."""
    write(tmp_path, TCP_HEADER + "x" * 200_000)
    with pytest.raises(CollectorError, match="a line is longer"):
        by_text(tmp_path).count(PORT)
