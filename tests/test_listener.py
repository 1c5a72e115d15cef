"""Where the agent listens, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import resource
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Callable

import pytest
from conftest import missing
from test_server import Toy

from ollama_metrics.errors import ListenError
from ollama_metrics.listener import OLLAMA_PORT, PASSED, Listener, adopt, listen, open_files_for
from ollama_metrics.option_values import Address
from ollama_metrics.server import Server


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def ipv6() -> None:
    if not has_ipv6():
        missing("IPv6")


@pytest.fixture
def listening() -> Iterator[Callable[..., list[Listener]]]:
    """`listen` on (host, port) pairs; closed with the test."""
    with ExitStack() as stack:

        def start(*addresses: tuple[str, int]) -> list[Listener]:
            listeners = listen([Address(host, port) for host, port in addresses])
            for listener in listeners:
                stack.callback(listener.server_close)
            return listeners

        yield start


@pytest.fixture
def port() -> int:
    """A port that is free for now, on IPv4 and IPv6."""
    with socket.socket(socket.AF_INET6 if has_ipv6() else socket.AF_INET) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def reached(listeners: list[Listener], host: str, port: int) -> Listener:
    """The one of `listeners` that a connection to host and port arrives at. Raises OSError."""
    with socket.create_connection((host, port), timeout=5):
        ready, _, _ = select.select(listeners, [], [], 5)
        assert len(ready) == 1
        accepted, _ = ready[0].socket.accept()
        accepted.close()
        return ready[0]


# -- where it listens ----------------------------------------------------------------------------------------------


def test_any_free_port(listening: Callable[..., list[Listener]]) -> None:
    """Port 0 is any free one; the listener knows which, and a URL that leads to it."""
    (listener,) = listening(("127.0.0.1", 0))
    assert listener.server_port > 0
    assert listener.bound == Address("127.0.0.1", listener.server_port)
    assert listener.url == f"http://127.0.0.1:{listener.server_port}"
    assert reached([listener], "127.0.0.1", listener.server_port) is listener


def test_a_name_is_resolved(listening: Callable[..., list[Listener]]) -> None:
    """A host may be given by its name."""
    (listener,) = listening(("localhost", 0))
    assert listener.bound.host in ("127.0.0.1", "::1")


def test_all_of_ipv4(listening: Callable[..., list[Listener]]) -> None:
    """0.0.0.0 is every IPv4 address; its URL is one that can be used."""
    (listener,) = listening(("0.0.0.0", 0))
    assert listener.url == f"http://127.0.0.1:{listener.server_port}"
    assert reached([listener], "127.0.0.2", listener.server_port) is listener


def test_ipv6(ipv6: None, listening: Callable[..., list[Listener]]) -> None:
    """An IPv6 address is listened on, and written in brackets."""
    (listener,) = listening(("::1", 0))
    assert listener.url == f"http://[::1]:{listener.server_port}"
    assert reached([listener], "::1", listener.server_port) is listener
    with pytest.raises(ConnectionRefusedError):
        reached([listener], "127.0.0.1", listener.server_port)


def test_all_of_ipv6_serves_ipv4_too(ipv6: None, listening: Callable[..., list[Listener]]) -> None:
    """`::` alone is reached over IPv6 and over IPv4."""
    (listener,) = listening(("::", 0))
    assert listener.url == f"http://[::1]:{listener.server_port}"
    assert reached([listener], "::1", listener.server_port) is listener
    assert reached([listener], "127.0.0.1", listener.server_port) is listener


@pytest.mark.parametrize("ipv4_first", [True, False])
def test_both_on_one_port(
    ipv6: None, listening: Callable[..., list[Listener]], port: int, ipv4_first: bool
) -> None:
    """`::` and 0.0.0.0 on one port share it, in either order: each gets its own kind."""
    addresses = [("0.0.0.0", port), ("::", port)]
    listeners = listening(*(addresses if ipv4_first else addresses[::-1]))
    four, six = listeners if ipv4_first else listeners[::-1]
    assert reached(listeners, "127.0.0.1", port) is four
    assert reached(listeners, "::1", port) is six


def test_a_server_on_several_listeners(
    ipv6: None, listening: Callable[..., list[Listener]]
) -> None:
    """Dual-stack and further listeners are all served by one loop."""
    listeners = listening(("::", 0), ("127.0.0.1", 0))
    server = Server(listeners, Toy())
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for host, listener in (("::1", 0), ("127.0.0.1", 0), ("127.0.0.1", 1)):
            connection = http.client.HTTPConnection(
                host, listeners[listener].server_port, timeout=5
            )
            with contextlib.closing(connection):
                connection.request("GET", "/echo?x")
                assert connection.getresponse().read() == b"x"
    finally:
        server.stop()
        thread.join(5)
    assert not thread.is_alive()


def test_a_port_can_be_used_again_at_once(listening: Callable[..., list[Listener]]) -> None:
    """A restart need not wait for the connections of the agent before to be forgotten."""
    (listener,) = listening(("127.0.0.1", 0))
    port = listener.server_port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        accepted, _ = listener.socket.accept()
        accepted.close()  # the side that closes first is the one to keep TIME_WAIT
        assert client.recv(1) == b""
    listener.server_close()
    (again,) = listening(("127.0.0.1", port))
    assert again.server_port == port


# -- on sockets of others ------------------------------------------------------------------------------------------


@pytest.fixture
def adopting() -> Iterator[Callable[[socket.socket, str], Listener]]:
    """`adopt` a copy of a socket; closed with the test."""
    with ExitStack() as stack:

        def start(sock: socket.socket, name: str) -> Listener:
            listener = adopt(os.dup(sock.fileno()), name)
            stack.callback(listener.server_close)
            return listener

        yield start


def test_a_passed_socket_is_served_as_it_is(
    adopting: Callable[[socket.socket, str], Listener],
) -> None:
    """A socket that systemd bound is a listener like one of our own, and says whose it is."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        listener = adopting(passed, PASSED)
        port = passed.getsockname()[1]
        assert listener.bound == Address("127.0.0.1", port)
        assert listener.description == f"127.0.0.1:{port}, passed by systemd"
        assert not listener.socket.getblocking()
        assert listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert reached([listener], "127.0.0.1", port) is listener


def test_a_passed_ipv6_socket_is_served_too(
    ipv6: None, adopting: Callable[[socket.socket, str], Listener]
) -> None:
    """Its address is written in brackets."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as passed:
        listener = adopting(passed, "[::1]:0")
        assert listener.description == f"[::1]:{passed.getsockname()[1]}"
        assert listener.url == f"http://[::1]:{passed.getsockname()[1]}"


def make_unbound() -> socket.socket:
    return socket.socket()


def make_bound() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


def make_datagram() -> socket.socket:
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(("127.0.0.1", 0))
    return datagram


def make_accepted() -> socket.socket:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        return server.accept()[0]


def make_unix() -> socket.socket:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind("")  # an abstract name of the kernel's choice
    unix.listen()
    return unix


@pytest.mark.parametrize(
    "make", [make_unbound, make_bound, make_datagram, make_accepted, make_unix]
)
def test_a_socket_that_does_not_listen_for_tcp_is_refused(
    make: Callable[[], socket.socket],
) -> None:
    """What a wrong ollama-metrics.socket passes is told with what it should say, and closed."""
    with make() as wrong:
        fd = os.dup(wrong.fileno())
        with pytest.raises(ListenError) as caught:
            adopt(fd, PASSED)
    assert str(caught.value).startswith(f"the socket {fd} that was passed is not a listening TCP ")
    assert "ListenStream=PORT" in str(caught.value)
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_descriptor_that_is_no_socket_is_refused() -> None:
    """A file in the place of a socket is told as such."""
    with open("/dev/null") as file, pytest.raises(ListenError, match=r"passed is no socket \("):
        adopt(file.fileno(), PASSED)


def test_a_socket_that_listens_already_is_not_bound_again(
    listening: Callable[..., list[Listener]], port: int
) -> None:
    """Of the addresses those that were inherited are served as they are, in their order, and the others bound."""
    (kept,) = listening(("127.0.0.1", port))
    addresses = [Address("127.0.0.2", 0), Address("127.0.0.1", port)]
    fd = os.dup(kept.fileno())
    listeners = listen(addresses, [("127.0.0.1:1", 999), (kept.name, fd)])
    try:
        assert [listener.name for listener in listeners] == ["127.0.0.2:0", f"127.0.0.1:{port}"]
        assert listeners[1].fileno() == fd
        assert listeners[0].fileno() not in (fd, 999)
    finally:
        for listener in listeners:
            listener.server_close()


def test_each_inherited_socket_of_port_0_is_another(
    listening: Callable[..., list[Listener]],
) -> None:
    """Two addresses that are the same until a port is picked keep a socket each, and a third gets a new one."""
    addresses = [("127.0.0.1", 0)] * 2
    before = listening(*addresses)
    fds = [os.dup(listener.fileno()) for listener in before]
    inherited = [(listener.name, fd) for listener, fd in zip(before, fds)]
    listeners = listen([Address(*address) for address in [*addresses, addresses[0]]], inherited)
    try:
        assert [listener.fileno() for listener in listeners[:2]] == fds
        assert len({listener.server_port for listener in listeners}) == 3
    finally:
        for listener in listeners:
            listener.server_close()


# -- where it cannot -----------------------------------------------------------------------------------------------


def refusal(*addresses: tuple[str, int]) -> str:
    with pytest.raises(ListenError) as caught:
        listen([Address(host, port) for host, port in addresses])
    return str(caught.value)


def test_a_port_in_use(listening: Callable[..., list[Listener]]) -> None:
    """The message names the address and how to see who has the port."""
    (listener,) = listening(("127.0.0.1", 0))
    port = listener.server_port
    message = refusal(("127.0.0.1", port))
    assert message.startswith(f"cannot listen on 127.0.0.1:{port}: the port is in use; ")
    assert f"ss -ltnp 'sport = :{port}'" in message
    assert "Ollama" not in message


def test_ollamas_port_in_use() -> None:
    """Who gives Ollama's own port is told so."""
    with socket.socket() as blocker:
        with contextlib.suppress(OSError):  # it may be in use already: as well
            blocker.bind(("127.0.0.1", OLLAMA_PORT))
            blocker.listen()
        message = refusal(("127.0.0.1", 11434))
    assert message.startswith("cannot listen on 127.0.0.1:11434: the port is in use; ")
    assert "Ollama's own port" in message
    assert "11435" in message


@pytest.mark.parametrize("name", ["x" * 64, "\xe4" * 64, "no\0name"])
def test_an_unknown_name(name: str) -> None:
    """The message names the name that nobody knows."""
    message = refusal((name, 0))
    assert message.startswith(f"cannot listen on {name}:0: the name {name!r} is not known (")


def test_an_address_of_another_host() -> None:
    """An address that this host does not have is told apart from one that is in use."""
    message = refusal(("192.0.2.1", 0))  # RFC 5737: nobody has it
    assert message.startswith("cannot listen on 192.0.2.1:0: this host has no such address; ")


def test_a_port_that_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what a low port needs."""

    def denied(*_: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ollama_metrics.listener.bind", denied)
    assert "ports below 1024 need root or CAP_NET_BIND_SERVICE" in refusal(("127.0.0.1", 80))


def test_another_reason_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no sentence of its own is said in the system's words."""

    def failing(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "x")

    monkeypatch.setattr("ollama_metrics.listener.bind", failing)
    message = refusal(("::1", 1))
    assert message == "cannot listen on [::1]:1: Address family not supported by protocol"


def test_all_or_none(listening: Callable[..., list[Listener]], port: int) -> None:
    """Where one address cannot be had, none is listened on."""
    (taken,) = listening(("127.0.0.1", 0))
    refusal(("127.0.0.1", port), ("127.0.0.1", taken.server_port))
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    (listener,) = listening(("127.0.0.1", port))
    assert listener.server_port == port


# -- how many connections there is room for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "wanted", "room", "after"),
    [
        ((1024, 4096), 4096, 4032, (4096, 4096)),
        ((1024, 1 << 20), 4096, 4096, (4160, 1 << 20)),
        ((1 << 20, 1 << 20), 4096, 4096, None),
        ((1024, resource.RLIM_INFINITY), 4096, 4096, (4160, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 4096, 4096, None),
        ((256, 256), 4096, 192, (256, 256)),
        ((70, 70), 4096, 16, (70, 70)),
        ((1024, 1024), 100, 100, None),
    ],
)
def test_room_for_connections(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    wanted: int,
    room: int,
    after: tuple[int, int],
) -> None:
    """The soft limit is raised as far as needed and allowed; the answer leaves files for everything else."""
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, values: set_to.append(values))
    assert open_files_for(wanted) == room
    assert set_to == ([after] if after else [])
