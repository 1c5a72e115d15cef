"""The running daemon: what systemd hears of it, the sockets it passes, and what SIGHUP does to it and its clients."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest
from agent_process import AgentProcess
from notify_socket import Systemd
from ports import free_port
from standin import NvmlStandIn
from test_cli import answers
from test_renewal import ANEW, PATIENCE, REFUSED, children, eventually

import ollama_metrics
from ollama_metrics.config import HANDOVER_VARIABLE as VARIABLE
from ollama_metrics.handover import Handover

FAST = ("--interval", "0.1")
Starter = Callable[..., AgentProcess]


def count(agent: AgentProcess, words: str) -> int:
    """How many lines of its log have these words."""
    return sum(words in line for line in agent.log)


def status(pid: int, field: str, thread: Optional[int] = None) -> int:
    """A number of /proc/PID/status: signals are in hexadecimal, memory in kB."""
    text = Path(f"/proc/{pid}/task/{thread or pid}/status").read_text()
    found = re.search(rf"^{field}:\s*(\w+)", text, re.MULTILINE)
    assert found is not None
    return int(found.group(1), 16 if field.startswith("Sig") else 10)


def bit(number: int) -> int:
    return 1 << (number - 1)


def sockets(pid: int) -> set[str]:
    """The sockets that a process has open, by inode."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


# -- what systemd hears ------------------------------------------------------------------------------------------------


def test_ready_is_told_when_there_is_a_sample_and_a_port(
    start_agent: Starter, systemd: Systemd
) -> None:
    """At READY the port can be connected to and the agent has fresh readings; the status is the verdict."""
    port = free_port()
    agent = start_agent(
        *FAST, "--listen", f"127.0.0.1:{port}", listen=(), environment=systemd.environment
    )
    message = systemd.receive()
    agent.ports = [port]
    assert agent.get("/-/ready").status == 200
    assert message["READY"] == "1"
    assert re.match(r"ok, weight \d+(\.\d+)?(: |$)", message["STATUS"])


def test_a_driver_that_hangs_does_not_put_ready_off_for_long(
    start_agent: Starter, systemd: Systemd, nvml: NvmlStandIn
) -> None:
    """The wait for the GPUs is bounded: READY comes while the call still hangs, and says that the host is failing."""
    nvml.hang("nvmlInit")
    agent = start_agent(*FAST, environment={**systemd.environment, **nvml.environment()})
    assert systemd.wait_for_ready()["STATUS"].startswith("failing, weight 500: ")
    nvml.release()
    agent.wait_until(lambda document: document["status"] == "ok")


def test_a_hung_driver_is_no_matter_for_the_watchdog(
    start_agent: Starter, systemd: Systemd, nvml: NvmlStandIn
) -> None:
    """Signs of life go on with the verdict in them: to kill the process would not end the call."""
    environment = {**systemd.environment, **nvml.environment(), "WATCHDOG_USEC": "400000"}
    start_agent(*FAST, environment=environment)
    systemd.wait_for(lambda message: "WATCHDOG" in message)
    nvml.hang()
    for _ in range(3):
        message = systemd.wait_for(lambda message: message.get("STATUS", "").startswith("failing"))
        assert message["WATCHDOG"] == "1"


def test_the_watchdog_gets_as_long_as_samples_take(start_agent: Starter, systemd: Systemd) -> None:
    """An interval that is longer than the watchdog's time is told before the start is complete."""
    watchdog = {**systemd.environment, "WATCHDOG_USEC": "300000"}
    start_agent("--interval", "0.2", environment=watchdog)
    assert systemd.receive() == {"WATCHDOG_USEC": "800000"}
    assert systemd.receive()["READY"] == "1"


def test_the_watchdog_of_another_process_is_left_alone(
    start_agent: Starter, systemd: Systemd
) -> None:
    """With the process id of another in WATCHDOG_PID no time is asked for; the status is told all the same."""
    watchdog = {**systemd.environment, "WATCHDOG_USEC": "300000", "WATCHDOG_PID": "1"}
    start_agent("--interval", "0.2", environment=watchdog)
    assert systemd.receive()["READY"] == "1"
    assert systemd.receive()["STATUS"].startswith("ok, ")


def test_an_end_is_told(start_agent: Starter, systemd: Systemd) -> None:
    """SIGTERM is STOPPING, and nothing after it."""
    agent = start_agent(*FAST, environment=systemd.environment)
    systemd.wait_for_ready()
    agent.process.terminate()
    systemd.wait_for(lambda message: message.get("STOPPING") == "1")
    assert agent.process.wait(PATIENCE) == 0


def test_a_reload_is_told_from_its_begin_to_its_end(start_agent: Starter, systemd: Systemd) -> None:
    """RELOADING comes from the program before, READY from the one after it, and signs of life go on."""
    agent = start_agent(*FAST, environment={**systemd.environment, "WATCHDOG_USEC": "400000"})
    systemd.wait_for_ready()
    agent.process.send_signal(signal.SIGHUP)
    reloading = systemd.wait_for(lambda message: "RELOADING" in message)
    assert reloading["MONOTONIC_USEC"].isdigit()
    assert systemd.receive()["READY"] == "1"
    assert systemd.receive()["WATCHDOG"] == "1"


def test_a_reload_that_is_refused_is_none_to_systemd(
    start_agent: Starter, systemd: Systemd, tmp_path: Path
) -> None:
    """With a bad configuration nothing reloads: only signs of life come."""
    settings = tmp_path / "settings"
    settings.write_text("")
    environment = {**systemd.environment, "WATCHDOG_USEC": "400000"}
    agent = start_agent(*FAST, "--config", str(settings), environment=environment)
    systemd.wait_for_ready()
    settings.write_text("nonsense")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_log(re.escape(REFUSED))
    agent.process.terminate()
    systemd.wait_for(lambda message: "STOPPING" in message)
    assert not [message for message in systemd.messages if "RELOADING" in message]


def test_a_systemd_that_takes_nothing_holds_nothing_up(
    start_agent: Starter, systemd: Systemd
) -> None:
    """With its socket full the agent starts, serves and reloads; what systemd waits for comes as soon as it can."""
    systemd.fill()
    agent = start_agent(*FAST, environment={**systemd.environment, "WATCHDOG_USEC": "400000"})
    assert agent.metrics()["status"] == "ok"
    agent.reload()
    systemd.wait_for_ready()


def test_a_systemd_that_is_not_there_is_no_matter(start_agent: Starter) -> None:
    """A socket that nobody receives from changes nothing; test_service_manager.py has the others."""
    agent = start_agent(*FAST, environment={"NOTIFY_SOCKET": "@nobody-listens"})
    assert agent.metrics()["status"] == "ok"


# -- sockets that systemd passes ---------------------------------------------------------------------------------------

# Does what systemd does between fork(2) and execve(2): the sockets stand from 3 on.
PASS = """
import fcntl, os, sys
pid, count = sys.argv[1:3]
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[3].split(",") if fd]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number)
os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=count or str(len(fds)))
os.execv(sys.argv[4], sys.argv[4:])
"""


def passing(*passed: socket.socket, pid: str = "", count: str = "") -> dict[str, Any]:
    """Arguments of `start_agent` for an agent that is passed these sockets."""
    fds = [one.fileno() for one in passed]
    wrapper = (sys.executable, "-c", PASS, pid, count, ",".join(map(str, fds)))
    return {"wrapper": wrapper, "pass_fds": fds}


def listening_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_passed_sockets_are_served_and_nothing_else(start_agent: Starter) -> None:
    """With sockets of systemd's the configured addresses have no effect; no child would inherit them."""
    mine = free_port()
    with listening_socket() as one, listening_socket() as two:
        agent = start_agent(*FAST, "--listen", f"127.0.0.1:{mine}", listen=(), **passing(one, two))
        for number, passed in enumerate((one, two)):
            port = passed.getsockname()[1]
            line = agent.wait_for_log(r"listening on http://127.0.0.1:(\d+) \(.*\)$", skip=number)
            assert line.group(0).endswith(f"127.0.0.1:{port} (127.0.0.1:{port}, passed by systemd)")
            assert answers(port)
        assert not answers(mine)
        for fd in (3, 4):
            flags = Path(f"/proc/{agent.pid}/fdinfo/{fd}").read_text()
            found = re.search(r"flags:\s*(\d+)", flags)
            assert found is not None
            assert int(found.group(1), 8) & os.O_CLOEXEC


def test_a_connection_that_came_before_the_agent_is_answered(start_agent: Starter) -> None:
    """Who has connected to systemd's socket while nobody served gets the answer when somebody does."""
    with (
        listening_socket() as passed,
        contextlib.closing(socket.create_connection(passed.getsockname())) as client,
    ):
        client.settimeout(PATIENCE)
        client.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
        start_agent(*FAST, listen=(), **passing(passed))
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_passed_sockets_stay_over_a_reload(start_agent: Starter, tmp_path: Path) -> None:
    """They are served after SIGHUP as before, with a new configuration, and whatever that says of addresses."""
    settings = tmp_path / "settings"
    settings.write_text("")
    with listening_socket() as passed:
        agent = start_agent(*FAST, "--config", str(settings), listen=(), **passing(passed))
        agent.wait_for_log("listening on")
        agent.ports = [passed.getsockname()[1]]
        settings.write_text(
            f"OLLAMA_METRICS_LISTEN=127.0.0.1:{agent.port}\nOLLAMA_METRICS_WINDOW=30\n"
        )
        agent.reload()
        assert agent.metrics()["window_seconds"] == 30
    assert count(agent, "passed by systemd") == 2


def test_sockets_that_are_passed_to_another_are_not_served(start_agent: Starter) -> None:
    """With another's process id in LISTEN_PID the agent binds what it is configured to."""
    with listening_socket() as passed:
        agent = start_agent(*FAST, **passing(passed, pid="1"))
        assert agent.port != passed.getsockname()[1]
        assert agent.metrics()["status"] == "ok"


@pytest.mark.parametrize(
    ("make", "count", "why"),
    [
        (
            socket.socket,
            "",
            "the socket 3 that was passed is not a listening TCP socket; in ollama",
        ),
        (listening_socket, "40", "LISTEN_FDS is '40', and file descriptor "),
    ],
    ids=["not listening", "too many"],
)
def test_what_cannot_be_served_ends_the_agent(
    start_agent: Starter, make: Callable[[], socket.socket], count: str, why: str
) -> None:
    """A wrong ollama-metrics.socket is one line that says so, and exit 1."""
    with make() as passed:
        agent = start_agent(
            *FAST, "--log-level", "error", listen=(), **passing(passed, count=count)
        )
        assert agent.process.wait(PATIENCE) == 1
    agent.wait_for_log(re.escape(f"ollama-metrics: {why}"))
    assert len(agent.log) == 1


# -- SIGHUP ------------------------------------------------------------------------------------------------------------


class Hammer:
    """Clients that ask without a pause, each time on a new connection."""

    def __init__(self, port: int, count: int = 3) -> None:
        self._port, self._ended = port, threading.Event()
        self.answered, self.failures = 0, list[str]()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                assert answers(self._port), "no answer"
                self.answered += 1
            except Exception as error:
                self.failures.append(repr(error))
            self._ended.wait(0.001)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


class Kept:
    """A client that keeps its connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.connection.connect()
        self.socket = self.connection.sock

    def ask(self) -> int:
        self.connection.request("GET", "/metrics")
        answer = self.connection.getresponse()
        answer.read()
        assert self.connection.sock is self.socket, "the connection was closed"
        return answer.status


class Holding(NamedTuple):
    """What a process has."""

    files: int
    threads: int
    memory_kb: int
    children: set[int]


def holding(pid: int) -> Holding:
    return Holding(
        len(os.listdir(f"/proc/{pid}/fd")),
        status(pid, "Threads"),
        status(pid, "VmRSS"),
        children(pid),
    )


class Reloaded(NamedTuple):
    """An agent before, between and after reloads, and what its clients saw."""

    agent: AgentProcess
    hammer: Hammer
    kept: list[int]
    held: list[Holding]


RELOADS = 4


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reloaded]:
    """Several reloads of an agent, one after the other, under clients."""
    with AgentProcess(tmp_path_factory.mktemp("state"), *FAST) as agent:
        with contextlib.ExitStack() as stack:
            hammer = Hammer(agent.port)
            stack.callback(hammer.end)
            kept = [Kept(agent.port) for _ in range(3)]
            for client in kept:
                stack.callback(client.connection.close)
            agent.reload()  # from then on each image is the successor of one
            answered = [client.ask() for client in kept]
            held = [holding(agent.pid)]
            for _ in range(RELOADS - 1):
                agent.reload()
                answered.append(kept[0].ask())
                held.append(holding(agent.pid))
            answered += [client.ask() for client in kept]
        agent.wait_until(lambda d: d["agent"]["connections"] <= 1)
        yield Reloaded(agent, hammer, answered, held)


def test_a_reload_refuses_and_resets_no_connection(reloaded: Reloaded) -> None:
    """Clients that connect, ask and close all the while get every answer."""
    assert reloaded.hammer.failures == []
    assert reloaded.hammer.answered > 20 * RELOADS


def test_a_connection_that_is_kept_goes_on_over_reloads(reloaded: Reloaded) -> None:
    """It is answered before and after, also one that was idle all the while, and never closed."""
    assert reloaded.kept == [200] * len(reloaded.kept)


def test_a_reload_is_a_new_program_in_the_same_process(reloaded: Reloaded) -> None:
    """The process id stays, so systemd sees one service; the log says what was done and why."""
    agent = reloaded.agent
    assert agent.process.poll() is None
    assert count(agent, f"SIGHUP: {ANEW}") == RELOADS
    assert {line for line in agent.log if "listening on" in line} == {
        f"ollama-metrics: listening on http://127.0.0.1:{agent.port} (127.0.0.1:{agent.port})"
    }


def test_a_reload_leaves_nothing_behind(reloaded: Reloaded) -> None:
    """Files, threads and memory are after many reloads what they were after one; no child is left, dead or alive."""
    first, *_, last = reloaded.held
    clients = 8  # the connections of those that hammer come and go
    assert last.files <= first.files + clients
    assert last.threads == first.threads
    assert last.memory_kb < first.memory_kb * 1.2
    assert [held.children for held in reloaded.held] == [set()] * RELOADS


def test_no_signal_is_blocked_in_the_end(reloaded: Reloaded) -> None:
    """The main thread takes SIGHUP, SIGTERM and SIGINT, and it alone: no other would hand them to the next image."""
    pid = reloaded.agent.pid
    taken = bit(signal.SIGHUP) | bit(signal.SIGTERM) | bit(signal.SIGINT)
    others = {int(task) for task in os.listdir(f"/proc/{pid}/task")} - {pid}
    assert len(others) == 3  # the samplers of the host, its devices and its GPUs
    assert status(pid, "SigBlk") & taken == 0
    assert [status(pid, "SigBlk", task) & taken for task in others] == [taken] * 3


def test_the_new_configuration_is_in_force(start_agent: Starter, tmp_path: Path) -> None:
    """A file that was changed counts after SIGHUP: a socket that stays is kept, a new one bound, another closed."""
    settings = tmp_path / "settings"
    first, second, third = (f"127.0.0.1:{free_port()}" for _ in range(3))

    def write(window: int, interval: float, *addresses: str) -> None:
        settings.write_text(
            f"OLLAMA_METRICS_WINDOW={window}\nOLLAMA_METRICS_INTERVAL={interval}\n"
            f"OLLAMA_METRICS_LISTEN={' '.join(addresses)}\n"
        )

    def port(address: str) -> int:
        return int(address.rpartition(":")[2])

    write(20, 0.1, first, second)
    agent = start_agent("--config", str(settings), listen=())
    agent.wait_for_log("listening", skip=1)
    agent.ports = [port(second)]
    assert agent.metrics()["window_seconds"] == 20
    assert agent.get("/metrics?window=0.1").status == 200
    write(30, 0.2, third, second)
    agent.reload()
    agent.wait_for_log("listening", skip=3)
    document = agent.metrics()
    assert document["window_seconds"] == 30
    assert agent.get("/metrics?window=0.1").status == 400  # it is shorter than the interval by now
    assert (answers(port(second)), answers(port(third))) == (True, True)
    assert not answers(port(first))


def test_a_socket_that_stays_is_the_same_one(start_agent: Starter) -> None:
    """It is not bound anew: the kernel's socket is the same before and after, also of a port that was picked."""
    agent = start_agent(*FAST, listen=("127.0.0.1:0", "127.0.0.2:0"))

    def listening() -> set[str]:
        table = Path("/proc/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in table]
        return {
            row[9] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets(agent.pid)
        }

    before = listening()
    assert len(before) == 2
    agent.reload()
    assert listening() == before


def test_a_bad_configuration_leaves_everything_as_it_was(
    start_agent: Starter, tmp_path: Path
) -> None:
    """A mistake, no file at all and a port in use are a line in the log each, and a later good file is taken."""
    settings = tmp_path / "settings"
    settings.write_text("OLLAMA_METRICS_WINDOW=20\n")
    agent = start_agent(*FAST, "--config", str(settings))
    client = Kept(agent.port)

    def refused(why: str) -> None:
        lines = count(agent, "error: ")
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_log(re.escape(REFUSED) + why)
        assert count(agent, "error: ") == lines + 1
        assert agent.metrics()["window_seconds"] == 20
        assert client.ask() == 200
        assert not children(agent.pid)

    with contextlib.closing(client.connection):
        settings.write_text("OLLAMA_METRICS_WINDOW=soon\n")
        refused("OLLAMA_METRICS_WINDOW in .*/settings: 'soon' is not usable")
        settings.unlink()
        refused("--config: '.*/settings' is not usable; it cannot be read")
        settings.write_text("OLLAMA_METRICS_WINDOW=30\n")
        agent.reload()
        assert agent.metrics()["window_seconds"] == 30


def test_a_new_port_that_is_in_use_leaves_everything_as_it_was(
    start_agent: Starter, tmp_path: Path
) -> None:
    """Whether an address can be had is seen before the sockets that are there are given up."""
    settings = tmp_path / "settings"
    mine = free_port()
    settings.write_text(f"OLLAMA_METRICS_LISTEN=127.0.0.1:{mine}\n")
    agent = start_agent(*FAST, "--config", str(settings), listen=())
    agent.wait_for_log("listening")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        theirs = holder.getsockname()[1]
        settings.write_text(f"OLLAMA_METRICS_LISTEN=127.0.0.1:{theirs}\n")
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_log(f"{REFUSED}cannot listen on 127.0.0.1:{theirs}: the port is in use")
    assert answers(mine)
    assert count(agent, ANEW) == 0
    agent.reload()
    assert (answers(mine), answers(theirs)) == (False, True)


def test_twenty_signals_in_a_row_are_one_reload_or_some(start_agent: Starter) -> None:
    """However many come while the program is checked or executed anew, the last one counts and none does harm."""
    agent = start_agent(*FAST)
    for _ in range(20):
        agent.process.send_signal(signal.SIGHUP)
        threading.Event().wait(0.01)
    agent.wait_for_log(ANEW)
    eventually(
        lambda: not children(agent.pid) and count(agent, "listening on") == count(agent, ANEW) + 1,
        "it does not come to rest",
    )
    assert agent.metrics()["status"] == "ok"


def test_a_signal_during_the_pause_leaves_no_child(start_agent: Starter) -> None:
    """SIGHUP while a slow request is waited for, before the program is executed anew, is another reload at most."""
    agent = start_agent(*FAST)
    with contextlib.closing(socket.create_connection(("127.0.0.1", agent.port))) as slow:
        slow.sendall(b"GET /metr")
        agent.wait_until(lambda d: d["agent"]["connections"] >= 1)
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: children(agent.pid), "no check begins")
        eventually(lambda: not children(agent.pid), "the check does not end")
        agent.process.send_signal(signal.SIGHUP)
        agent.wait_for_log("listening on", skip=1)
    assert not children(agent.pid)
    assert agent.metrics()["status"] == "ok"


def test_a_request_in_parts_is_answered_over_a_reload(start_agent: Starter) -> None:
    """Who is in the middle of a request when SIGHUP comes gets the answer, and may ask again on the same connection."""
    agent = start_agent(*FAST)
    with contextlib.closing(socket.create_connection(("127.0.0.1", agent.port))) as client:
        client.settimeout(PATIENCE)
        client.sendall(b"GET /-/healthy HT")
        agent.wait_until(lambda d: d["agent"]["connections"] >= 1)
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: children(agent.pid), "no check begins")
        eventually(lambda: not children(agent.pid), "the check does not end")
        client.sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        client.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        agent.wait_for_log("listening on", skip=1)


def test_a_signal_while_the_agent_starts_is_a_reload_afterwards(
    start_agent: Starter, nvml: NvmlStandIn
) -> None:
    """SIGHUP does not end a start, and is not lost: the configuration may have been read before it was changed."""
    nvml.hang("nvmlInit")
    options = ("--interval", "0.2", "--listen", "127.0.0.1:0")
    agent = start_agent(*options, environment=nvml.environment(), listen=())
    nvml.wait_for_call("nvmlInit")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_log(f"SIGHUP: {ANEW}")
    assert count(agent, "listening on") == 1


def test_a_reload_while_a_driver_call_hangs(start_agent: Starter, nvml: NvmlStandIn) -> None:
    """A call that waits for its device in vain ends with the program that made it; the next one asks again."""
    agent = start_agent(*FAST, environment=nvml.environment())
    nvml.hang()
    agent.wait_until(lambda document: document["status"] == "failing")
    nvml.forget_calls()
    agent.process.send_signal(signal.SIGHUP)
    nvml.wait_for_call("nvmlInit")
    nvml.release()
    agent.wait_for_log("listening on", skip=1)
    agent.wait_until(lambda document: document["status"] == "ok" and document["gpu_count"] == 1)


# -- its end -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be changed; of its use see `running`."""
    source = Path(ollama_metrics.__file__).parent
    copy = tmp_path / "package" / "ollama_metrics"
    shutil.copytree(source, copy)
    return copy


def running(package: Path) -> dict[str, Any]:
    """Arguments of `start_agent` for an agent that runs from this copy."""
    folder = package.parent
    return {"environment": {"PYTHONPATH": str(folder)}, "cwd": folder.parent}


def change(package: Path, module: str, *changes: tuple[str, str]) -> None:
    """Replace parts of a module's text."""
    path = package / f"{module}.py"
    text = path.read_text("utf-8")
    for before, after in changes:
        assert text.count(before) == 1
        text = text.replace(before, after)
    path.write_text(text, "utf-8")


def test_an_end_during_a_check_ends_it(start_agent: Starter, package: Path) -> None:
    """SIGTERM while a check hangs: exit 0, and neither the child nor the port is left."""
    agent = start_agent(*FAST, **running(package))
    (package / "endpoints.py").write_text("import time\ntime.sleep(600)\n")
    agent.process.send_signal(signal.SIGHUP)
    eventually(lambda: children(agent.pid), "no check begins")
    agent.process.terminate()
    assert agent.process.wait(PATIENCE) == 0
    with contextlib.closing(socket.create_server(("127.0.0.1", agent.port))):
        pass


def test_an_end_is_not_lost_between_two_programs(start_agent: Starter, tmp_path: Path) -> None:
    """SIGTERM in the moment in which the program is executed anew ends the next one: exit 0."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nexecve = os.execve\n"
        "os.execve = lambda *words: (time.sleep(0.3), execve(*words))\n"
    )
    agent = start_agent(*FAST, environment={"PYTHONPATH": str(tmp_path)})
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_log(ANEW)
    agent.process.terminate()
    assert agent.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("status_log", f"{REFUSED}RuntimeError: broken"),
        (
            "renewal",
            "error: not reloaded, this program cannot be read any more: RuntimeError: broken",
        ),
    ],
)
def test_a_program_that_is_broken_is_not_executed(
    start_agent: Starter, package: Path, module: str, line: str
) -> None:
    """What would not start is a line in the log, whichever module it is that the running agent has no need of."""
    agent = start_agent(*FAST, **running(package))
    whole = (package / f"{module}.py").read_text("utf-8")
    (package / f"{module}.py").write_text("raise RuntimeError('broken')\n")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_log(re.escape(line))
    assert count(agent, "error: ") == 1
    assert agent.metrics()["status"] == "ok"
    (package / f"{module}.py").write_text(whole)
    agent.reload()


def test_a_check_that_never_ends_is_no_reload(start_agent: Starter, package: Path) -> None:
    """After some time it is killed, the log says so, and the agent goes on."""
    change(package, "renewal", ("CHECK_SECONDS = 20.0", "CHECK_SECONDS = 0.3"))
    agent = start_agent(*FAST, **running(package))
    (package / "endpoints.py").write_text("import time\ntime.sleep(600)\n")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_for_log(re.escape(REFUSED) + ".* took too long")
    assert not children(agent.pid)
    assert agent.metrics()["status"] == "ok"


def test_a_reload_starts_the_version_that_is_there_now(
    start_agent: Starter, package: Path, tmp_path: Path
) -> None:
    """The running version is one of a piece though a link leads to another by now; SIGHUP goes over to that."""
    other = tmp_path / "other" / "ollama_metrics"
    shutil.copytree(package, other)
    change(other, "__init__", (f'"{ollama_metrics.__version__}"', '"99.9"'))
    change(other, "renewal", (ANEW, "99.9 executes the program anew"))
    current, new = tmp_path / "current", tmp_path / "new"
    current.symlink_to(package.parent)
    agent = start_agent(*FAST, environment={"PYTHONPATH": str(current)}, cwd=tmp_path)
    new.symlink_to(other.parent)
    new.replace(current)
    assert agent.metrics()["agent"]["version"] == ollama_metrics.__version__
    agent.reload()
    assert count(agent, ANEW) == 1
    assert agent.metrics()["agent"]["version"] == "99.9"
    agent.reload()
    assert count(agent, "99.9 executes the program anew") == 1


# -- where SIGHUP means something else ---------------------------------------------------------------------------------


def test_with_a_terminal_sighup_is_the_end(start_agent: Starter) -> None:
    """An agent that was started from a terminal ends when that is closed, as every program does."""
    leader, terminal = os.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, leader)
        stack.callback(os.close, terminal)
        code = f"""if 1:
            import fcntl, os, sys
            fcntl.ioctl({terminal}, {termios.TIOCSCTTY}, 0)
            os.execv(sys.argv[1], sys.argv[1:])
        """
        wrapper = (sys.executable, "-c", code)
        agent = start_agent(*FAST, wrapper=wrapper, pass_fds=(terminal,))
        agent.process.send_signal(signal.SIGHUP)
        assert agent.process.wait(PATIENCE) == -signal.SIGHUP


def test_what_nohup_has_ignored_stays_ignored(start_agent: Starter) -> None:
    """Under nohup(1) SIGHUP is neither an end nor a reload."""
    agent = start_agent(*FAST, wrapper=("nohup",), stdout=subprocess.DEVNULL)
    assert status(agent.pid, "SigIgn") & bit(signal.SIGHUP)
    assert not status(agent.pid, "SigCgt") & bit(signal.SIGHUP)


def test_closed_standard_streams_are_no_hindrance(start_agent: Starter) -> None:
    """No socket takes the place of a stream that the agent was started without, where it would be lost."""
    shell = ("/bin/sh", "-c", 'exec "$@" <&- >&-', "sh")
    agent = start_agent(*FAST, wrapper=shell)
    agent.reload()
    assert agent.metrics()["status"] == "ok"


def test_what_another_process_left_is_not_ours(start_agent: Starter) -> None:
    """An inherited variable changes nothing; test_handover.py has those that make no sense."""
    left = Handover(1, (("127.0.0.1:0", 0),), (1, 2))
    agent = start_agent(*FAST, environment=left.environment({}))
    assert agent.metrics()["agent"]["connections"] <= 1


EMBEDDING = """
import sys
print("started", file=sys.stderr, flush=True)
from ollama_metrics.cli import main
sys.exit(main(sys.argv[4:]))
"""


def test_a_program_that_has_the_agent_in_it_is_its_own(
    start_agent: Starter, nvml: NvmlStandIn
) -> None:
    """Where `main` is called with arguments SIGHUP is left alone, and no driver makes that program start anew."""
    nvml.update({"init": 18})
    wrapper = (sys.executable, "-c", EMBEDDING)
    agent = start_agent(*FAST, wrapper=wrapper, environment=nvml.environment())
    assert not status(agent.pid, "SigCgt") & bit(signal.SIGHUP)
    agent.wait_until(lambda d: d["collectors"]["gpu"]["consecutive_failures"] >= 2)
    assert count(agent, "started") == 1
    assert count(agent, ANEW) == 0


# -- a driver that was replaced ----------------------------------------------------------------------------------------

# What the process before had loaded does not match the driver, what the next one loads does.
NEXT_LIBRARY = """
import os
if {variable!r} in os.environ:
    os.environ["NVML_STANDIN_STATE"] = {state!r}
"""
MISMATCH = {"init": 18, "error.nvmlDeviceGetCount": 18}
UPDATED = f"the NVIDIA driver was updated under this process: {ANEW}"


def test_after_an_update_of_the_driver_the_agent_renews_itself(
    start_agent: Starter, nvml: NvmlStandIn, tmp_path: Path
) -> None:
    """The library that is loaded can only be left behind with the program: the same process, and all is well again."""
    nvml.set(count=2)
    environment = nvml.environment()
    updated = tmp_path / "updated"
    shutil.copy(environment["NVML_STANDIN_STATE"], updated)
    (tmp_path / "sitecustomize.py").write_text(
        NEXT_LIBRARY.format(variable=VARIABLE, state=str(updated))
    )
    environment["PYTHONPATH"] = str(tmp_path)
    agent = start_agent(*FAST, environment=environment)
    agent.wait_until(lambda d: d["status"] == "ok" and d["gpu_count"] == 2)
    nvml.update(MISMATCH)
    agent.wait_for_log(UPDATED)
    agent.wait_until(lambda d: d["status"] == "ok" and d["gpu_count"] == 2)
    assert agent.process.poll() is None
    assert count(agent, ANEW) == 1


def test_a_reload_does_not_forget_the_gpus(
    start_agent: Starter, nvml: NvmlStandIn, tmp_path: Path
) -> None:
    """A host that has lost its driver stays failing over a reload, also where no state directory remembers its GPUs."""
    (tmp_path / "file").touch()
    nvml.set(count=2)
    agent = start_agent(
        *FAST, environment=nvml.environment(), state_dir=tmp_path / "file" / "state"
    )
    agent.wait_until(lambda d: d["status"] == "ok" and d["gpu_count"] == 2)
    nvml.unload_driver()
    agent.wait_until(lambda d: d["status"] == "failing")
    agent.reload()
    document = agent.metrics()
    assert (document["status"], document["weight"], document["gpu_count"]) == ("failing", 500, 2)


def test_a_renewal_in_vain_is_not_repeated_at_once(start_agent: Starter, nvml: NvmlStandIn) -> None:
    """A mismatch that stays is told as it is; the program is executed anew once, and then not for a minute."""
    agent = start_agent(*FAST, environment=nvml.environment())
    nvml.update(MISMATCH)
    agent.wait_for_log(UPDATED)
    agent.wait_until(lambda d: d["collectors"]["gpu"]["consecutive_failures"] >= 2)
    document = agent.metrics()
    assert (document["status"], document["weight"]) == ("failing", 500)
    assert "updated under its library" in " ".join(document["reasons"])
    assert count(agent, ANEW) == 1
