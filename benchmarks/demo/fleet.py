"""The fleet: hosts, HAProxy, Prometheus and users, from the first process to the last."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Callable

from benchmarks.demo import shipped
from benchmarks.demo.children import Children, folder
from benchmarks.demo.control import Control
from benchmarks.demo.host import SMALL, Host
from benchmarks.demo.shipped import DEPLOY, Place

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UP_SECONDS = 50.0
_TICK_SECONDS = 0.5
_NETWORKS = range(11, 31)  # 127.0.N.0: hosts are .1, .2 and so on
_SHIFTS = (0, 10_000, 20_000)  # of the usual ports, where somebody listens on all addresses
_REQUESTS_PER_MINUTE = "100000"  # all users have one address here
_USERS_PER_HOST = 2
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"


class DemoFailed(Exception):
    """It cannot run; the text says why and what to do."""


def program(name: str) -> str | None:
    """Where it is; None where it is not installed."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def missing() -> list[str]:
    """The Debian packages without which there is no demo."""
    needed = {"gcc": program("gcc"), "haproxy": program("haproxy")}
    header = Path("/usr/include/stdio.h").exists()
    return [name for name, there in {**needed, "libc6-dev": header}.items() if not there]


class Fleet:
    """A context manager: its beginning returns when all is up, its end leaves nothing."""

    def __init__(self, hosts: int, load: bool) -> None:
        self._count, self._load = hosts, load
        self.hosts: list[Host] = []
        self.front = self.state = 0  # ports of HAProxy
        self.prometheus: int | None = None  # port, where it is there
        self.number = 0  # of this demo
        self._told: set[str] = set()
        self._before: dict[str, subprocess.Popen[bytes]] = {}  # what is before the hosts, by name
        self._stack = ExitStack()

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            self._control = stack.enter_context(Control())
            self.number = self._control.number
            self._folder = stack.enter_context(folder())
            self._children = Children()
            stack.callback(self._children.end)
            self._begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """Let time pass and do what is asked for, until a signal ends it."""
        before = time.monotonic()
        while True:
            self._control.serve(_TICK_SECONDS, self._do)
            now = time.monotonic()
            for host in self.hosts:
                host.pass_time(now - before)
            before = now
            for ended in self._ended():
                if ended not in self._told:
                    self._told.add(ended)
                    print(f"{ended} has ended; its log is in {self._folder}", flush=True)

    def _do(self, command: str) -> str:
        word, _, name = command.partition(" ")
        host = next((one for one in self.hosts if one.name == name), None)
        if host is None:
            return f"!there is no host {name}: {', '.join(one.name for one in self.hosts)}"
        deeds = {
            "lose-gpu": host.lose_gpu,
            "restore-gpu": host.restore_gpu,
            "kill-ollama": host.kill_ollama,
            "start-ollama": host.start_ollama,
        }
        return deeds[word]() if word in deeds else f"!nothing is called {word}"

    # -- beginning ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        places = _places(self._count)
        self.hosts = [Host(self._children, self._folder, place) for place in places]
        self._await(lambda: all(host.is_up() for host in self.hosts), "the hosts")
        self._start_haproxy(places)
        self._start_prometheus(places)
        self._await(lambda: _answers(self.front, "/health"), "HAProxy")
        if self.prometheus is not None:
            port = self.prometheus
            self._await(lambda: _answers(port, "/-/ready"), "Prometheus")
        if self._load:
            self._start_load()

    def _start_haproxy(self, places: Sequence[Place]) -> None:
        self.front, self.state = _free(11434, 11440), _free(8404, 8410)
        text = shipped.haproxy(
            (DEPLOY / "haproxy" / "haproxy.cfg").read_text("utf-8"),
            places,
            self.front,
            self.state,
            self._folder / "haproxy.sock",
        )
        config = self._folder / "haproxy.cfg"
        config.write_text(text, "utf-8")
        self._before["HAProxy"] = self._children.start(
            [str(program("haproxy")), "-db", "-f", str(config)],
            self._folder / "haproxy.log",
            {"OLLAMA_REQUESTS_PER_MINUTE": _REQUESTS_PER_MINUTE},
        )

    def _start_prometheus(self, places: Sequence[Place]) -> None:
        found = program("prometheus")
        if found is None:
            return
        place = self._folder / "prometheus"
        shutil.copytree(DEPLOY / "prometheus", place)
        config = place / "prometheus.yml"
        config.write_text(shipped.prometheus(config.read_text("utf-8")), "utf-8")
        shutil.rmtree(place / "targets", ignore_errors=True)  # an example's
        (place / "targets").mkdir()
        (place / "targets" / "demo.yml").write_text(shipped.targets(places), "utf-8")
        self.prometheus = _free(9090, 9100)
        self._before["Prometheus"] = self._children.start(
            [
                found,
                f"--config.file={config}",
                f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.prometheus}",
            ],
            self._folder / "prometheus.log",
        )

    def _start_load(self) -> None:
        users = _USERS_PER_HOST * self._count
        self._before["the load of the users"] = self._children.start(
            [
                *(sys.executable, "-m", "benchmarks.load", f"http://127.0.0.1:{self.front}"),
                *("--model", SMALL, "--users", str(users), "--think", "3", "--duration", "864000"),
            ],
            self._folder / "load.log",
        )

    def _await(self, true: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _UP_SECONDS
        while not true():
            ended = self._ended()
            if ended or time.monotonic() > until:
                late = f"not up within {_UP_SECONDS:g} s: {what}"
                raise DemoFailed(f"{ended[0]} has ended\n{self._logs()}" if ended else late)
            time.sleep(0.05)

    def _ended(self) -> list[str]:
        """What has ended by itself, or by somebody else."""
        ended = [f"the agent of {host.name}" for host in self.hosts if host.agent_has_ended]
        return ended + [name for name, one in self._before.items() if one.poll() is not None]

    def _logs(self) -> str:
        """The last lines of each log, for whoever has to find out why it did not come up."""
        lines = []
        for log in sorted(self._folder.rglob("*.log")):
            last = log.read_text("utf-8", "replace").splitlines()[-3:]
            lines += [f"{log.relative_to(self._folder)}: {line}" for line in last]
        return "\n".join(lines)


def _places(count: int) -> list[Place]:
    """Where so many hosts can be, for nobody listens there."""
    for shift in _SHIFTS:
        agent, check, ollama = 11435 + shift, 11437 + shift, 11500 + shift
        for network in _NETWORKS:
            places = [
                Place(f"gpu{one}", f"127.0.{network}.{one}", ollama + one, agent, check)
                for one in range(1, count + 1)
            ]
            # The Ollamas' ports are to be theirs alone, at any address.
            if all(
                _is_free(one.address, one.agent)
                and _is_free(one.address, one.agent_check)
                and _is_free("0.0.0.0", one.ollama)
                for one in places
            ):
                return places
    raise DemoFailed("the ports 11435, 11437 and 11501, and 21435 and so on, are taken everywhere")


def _free(usual: int, other: int) -> int:
    """A port of 127.0.0.1: the usual one or, if it is taken, the next free one from the other on."""
    for port in _ports(usual, other):
        if _is_free("127.0.0.1", port):
            return port
    raise DemoFailed(f"no port is free from {other} to {other + 1000}")


def _ports(usual: int, other: int) -> Iterator[int]:
    yield usual
    yield from range(other, other + 1000)


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # what was there may be in TIME_WAIT
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Ended(Exception):
    """A signal has ended the demo."""


def end(number: int, _frame: FrameType | None) -> None:
    """Raises Ended, once: a second Ctrl-C would leave half of it behind."""
    for ignored in ENDING:
        signal.signal(ignored, signal.SIG_IGN)
    raise Ended(number)


def shown(path: str) -> str:
    """A path as one would type it here."""
    here = os.path.relpath(path)
    return path if here.startswith("..") else here
