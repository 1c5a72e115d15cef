"""systemd's protocols for services, spoken to a real datagram socket and with real descriptors."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Optional

import pytest
from notify_socket import Systemd

from ollama_metrics import service_manager
from ollama_metrics.errors import ListenError
from ollama_metrics.service_manager import ServiceManager, passed_sockets

PID = 4711


# -- what is told ------------------------------------------------------------------------------------------------------


def test_what_systemd_is_told(systemd: Systemd) -> None:
    """Each message has the variables of sd_notify(3), and a status that `systemctl status` shows."""
    manager = ServiceManager(systemd.environment)
    assert manager.listens
    manager.ready("ok, weight 6")
    assert systemd.receive() == {"READY": "1", "STATUS": "ok, weight 6"}
    manager.alive("ok, weight 7")
    assert systemd.receive() == {"WATCHDOG": "1", "STATUS": "ok, weight 7"}
    manager.stopping()
    assert systemd.receive()["STOPPING"] == "1"


def test_a_reload_has_its_time_by_systemds_clock(systemd: Systemd) -> None:
    """RELOADING comes with CLOCK_MONOTONIC's microseconds, as sd_notify(3) demands."""
    before = time.clock_gettime(time.CLOCK_MONOTONIC)
    ServiceManager(systemd.environment).reloading()
    message = systemd.receive()
    after = time.clock_gettime(time.CLOCK_MONOTONIC)
    assert message["RELOADING"] == "1"
    assert before - 1e-6 <= int(message["MONOTONIC_USEC"]) / 1e6 <= after


def test_an_abstract_socket_is_one_too() -> None:
    """A name that begins with @ is an address of the kernel's own."""
    systemd = Systemd(f"@ollama-metrics-{os.getpid()}")
    try:
        ServiceManager(systemd.environment).ready("ok")
        assert systemd.receive()["READY"] == "1"
    finally:
        systemd.close()


@pytest.mark.parametrize(
    ("sentence", "status"),
    [
        ("failing: GPU 0\nREADY=1\nMAINPID=1", "failing: GPU 0?READY=1?MAINPID=1"),
        ("a\0b\x1b[2J\r\u2028c", "a?b?[2J??c"),
        ("weight 5, \u00b5\u4e2d\udcff", "weight 5, \u00b5\u4e2d?"),
        ("x" * 100_000, "x" * 500),
        ("", ""),
    ],
)
def test_the_status_is_one_short_line(systemd: Systemd, sentence: str, status: str) -> None:
    """Whatever a driver calls its GPUs, no line of it becomes a variable, and no message is too long to be sent."""
    manager = ServiceManager(systemd.environment)
    manager.ready(sentence)
    assert systemd.receive() == {"READY": "1", "STATUS": status}
    manager.alive(sentence)
    assert systemd.receive() == {"WATCHDOG": "1", "STATUS": status}


@pytest.mark.parametrize(
    ("address", "listens"),
    [
        (None, False),
        ("", False),
        ("relative", False),
        ("vsock:2:1234", False),
        ("/nonexistent/notify", True),
        ("/dev/null", True),
        ("/" + "x" * 200, True),
        ("@", True),
        ("@" + "x" * 200, True),
        ("/\udcff", True),
    ],
)
def test_nobody_at_the_socket_is_no_failure(address: Optional[str], listens: bool) -> None:
    """Without a socket, with one that is no systemd's, and with one that no socket can have, nothing happens."""
    manager = ServiceManager({} if address is None else {"NOTIFY_SOCKET": address})
    assert manager.listens is listens
    manager.ready("ok")
    manager.alive("ok")
    manager.reloading()
    manager.stopping()
    manager.extend_watchdog(1.0)


def test_a_full_socket_is_not_waited_for(systemd: Systemd) -> None:
    """What does not get through is dropped, but for READY, which goes with the next sign of life that does."""
    manager = ServiceManager(systemd.environment)
    systemd.fill()
    manager.ready("ok")
    manager.alive("ok")
    while systemd.receive() == {"X_FILL": "1"}:
        systemd.messages.pop()
        manager.alive("after")
    assert systemd.messages == [{"READY": "1", "WATCHDOG": "1", "STATUS": "after"}]
    manager.alive("once")
    systemd.wait_for(lambda message: message["STATUS"] == "once")
    assert [message.get("READY") for message in systemd.messages].count("1") == 1


# -- the watchdog ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}, 30.0),
        ({"WATCHDOG_USEC": "1"}, 1e-6),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({"WATCHDOG_PID": str(PID)}, None),
        *[
            ({"WATCHDOG_USEC": text}, None)
            for text in ("", "0", "-1", "+1", "1.5", "30s", "x", " 1", "\u0661", "9" * 30, "1\0")
        ],
    ],
)
def test_the_watchdogs_time(
    systemd: Systemd, variables: Mapping[str, str], seconds: Optional[float]
) -> None:
    """WATCHDOG_USEC counts if it is meant for this process and a number; without a socket there is no watchdog."""
    manager = ServiceManager({**systemd.environment, **variables}, PID)
    assert manager.watchdog_seconds == seconds
    assert ServiceManager(variables, PID).watchdog_seconds is None


def test_the_watchdog_is_only_ever_made_slower(systemd: Systemd) -> None:
    """WATCHDOG_USEC is sent where more time is needed than there is, and where there is a watchdog at all."""
    manager = ServiceManager({**systemd.environment, "WATCHDOG_USEC": "2000000"})
    manager.extend_watchdog(1.0)
    manager.extend_watchdog(2.5)
    manager.extend_watchdog(2.0)
    ServiceManager(systemd.environment).extend_watchdog(9.0)
    manager.stopping()
    assert systemd.receive() == {"WATCHDOG_USEC": "2500000"}
    assert "STOPPING" in systemd.receive()
    assert manager.watchdog_seconds == 2.5


# -- sockets that were passed ------------------------------------------------------------------------------------------


@pytest.fixture
def first_passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where the passed descriptors begin: two inheritable ones in a row, and none after them."""
    with socket.socket() as one:
        fds = [os.dup2(one.fileno(), 1000 + number) for number in range(2)]
        monkeypatch.setattr(service_manager, "_FIRST_PASSED", 1000)
        yield 1000
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("1", 1), ("2", 2), ("002", 2)])
def test_passed_sockets_are_counted_from_the_first_and_for_no_child(
    first_passed: int, text: str, count: int
) -> None:
    """LISTEN_FDS is how many there are; no child of this process inherits one and so holds the port."""
    assert os.get_inheritable(first_passed)
    fds = passed_sockets({"LISTEN_PID": str(PID), "LISTEN_FDS": text}, PID)
    assert fds == [first_passed, first_passed + 1][:count]
    assert not any(map(os.get_inheritable, fds))


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": ""},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "nonsense", "LISTEN_PID": "1"},
    ],
)
def test_the_sockets_of_another_process_are_none_of_ours(environ: Mapping[str, str]) -> None:
    """Without LISTEN_PID, and with another's, LISTEN_FDS is not even looked at."""
    assert passed_sockets(environ, PID) == []


@pytest.mark.parametrize("text", [None, "", "x", "-1", "+1", "1 ", "65", "\u0661", "9" * 30])
def test_a_count_that_makes_no_sense_is_an_error(text: Optional[str]) -> None:
    """What is no number of sockets is told as it was given."""
    environ = {"LISTEN_PID": str(PID), **({} if text is None else {"LISTEN_FDS": text})}
    with pytest.raises(ListenError) as caught:
        passed_sockets(environ, PID)
    assert str(caught.value).startswith(f"LISTEN_FDS is {text or ''!r}; ")


def test_a_passed_socket_that_is_not_open_is_an_error(first_passed: int) -> None:
    """More sockets than were passed is told with the first that is missing."""
    with pytest.raises(ListenError, match=rf"LISTEN_FDS is '3', and .* {first_passed + 2} is not"):
        passed_sockets({"LISTEN_PID": str(PID), "LISTEN_FDS": "3"}, PID)
