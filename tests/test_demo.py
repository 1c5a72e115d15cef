"""The demo: it comes up, what it tells people to try does what it says, and nothing of it is left."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Optional
from urllib.request import urlopen

import pytest

from benchmarks.demo import shipped
from benchmarks.demo.gpus import Gpus
from benchmarks.demo.shipped import Place, ShippedFileChanged

pytestmark = pytest.mark.deploy
REPOSITORY = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "benchmarks.demo"]
PATIENCE = 40.0
PLACES = [Place(f"gpu{n}", f"127.0.99.{n}", 11500 + n, 12435, 12437) for n in (1, 2, 3, 4)]


def until(true: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What it returns, as soon as that is true."""
    deadline = time.monotonic() + patience
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        threading.Event().wait(0.1)
    return found


def get(url: str) -> str:
    with urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


class Demo:
    """One that runs; a context manager that ends it."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, *options],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.lines: list[str] = []
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                return
        self._process.wait()
        raise AssertionError(f"it did not come up: {self.lines}")

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end(signal.SIGTERM)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def end(self, number: signal.Signals) -> int:
        """Send a signal; its exit code."""
        self._process.send_signal(number)
        return self._process.wait(PATIENCE)

    @property
    def seconds(self) -> float:
        """How long it took to come up, as it says itself."""
        found = re.search(r"up in ([\d.]+) s", "\n".join(self.lines))
        assert found
        return float(found[1])

    def url(self, name: str) -> str:
        """What it tells people to open for this."""
        line = next(line for line in self.lines if line.strip().startswith("http") and name in line)
        return line.split()[0]

    def command(self, about: str) -> str:
        """What it tells people to type for this: the line after that comment."""
        number = next(i for i, line in enumerate(self.lines) if f"# {about}" in line)
        return self.lines[number + 1].strip()

    def do(self, about: str, code: int = 0) -> str:
        """Type it; its output."""
        done = subprocess.run(
            self.command(about), shell=True, cwd=REPOSITORY,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    # -- what is seen ------------------------------------------------------------------------------

    def metrics(self, name: str) -> Any:
        """A host's own answer."""
        return json.loads(get(f"{self.url(name)}metrics"))

    def rank(self) -> dict[str, str]:
        """The status of each host by `rank`, with the hosts of the printed command."""
        words = shlex.split(self.command("what a balancer sees"))
        hosts = words[words.index("1") + 1 :]
        command = [*words[: words.index("--watch")], "--json", *hosts]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
        by_host = {one["host"]: one["status"] for one in json.loads(done.stdout)}
        return {f"gpu{number}": by_host[host] for number, host in enumerate(hosts, 1)}

    def haproxy(self) -> dict[str, str]:
        """The status of each host by HAProxy."""
        rows = csv.DictReader(io.StringIO(get(f"{self.url('HAProxy')};csv").lstrip("# ")))
        return {
            row["svname"]: row["status"]
            for row in rows
            if row["pxname"] == "ollama" and row["svname"].startswith("gpu")
        }

    def sees(self, name: str, status: Optional[str], haproxy: str) -> None:
        """Return when both say this of the host."""
        until(
            lambda: self.rank()[name] == status and self.haproxy()[name].startswith(haproxy),
            f"{name} {status} and {haproxy}: {self.rank()} {self.haproxy()}",
        )


def left_of(folder: str) -> list[str]:
    """The processes whose command line or environment has this folder in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in text:
            found.append(f"{process.name}: {text[:80]!r}")
    return found


def folder_of(demo: Demo) -> str:
    found = re.search(r"/\S+?/ollama-metrics-demo-\w+", demo.command("drain"))
    assert found
    return found[0]


@pytest.fixture
def needed(component: Callable[[str], str]) -> None:
    """What the demo itself asks for."""
    for name in ("gcc", "haproxy", "prometheus"):
        component(name)


@pytest.fixture
def demo(needed: None) -> Iterator[Demo]:
    with Demo() as running:
        yield running


@pytest.mark.component
@pytest.mark.timeout(120)
def test_what_it_tells_people_to_try(demo: Demo) -> None:
    """It is up within a minute, each printed command has its effect, and Ctrl-C leaves nothing of it."""
    assert demo.seconds < 60
    folder = folder_of(demo)
    assert set(demo.rank()) == {"gpu1", "gpu2", "gpu3"}
    until(lambda: set(demo.haproxy().values()) == {"UP"}, "all are up")
    until(lambda: _scraped(demo) == {"gpu1", "gpu2", "gpu3"}, "Prometheus has all hosts")
    assert '"done": true' in demo.do("ask through HAProxy")
    # The users' work shows.
    until(lambda: demo.metrics("gpu1")["gpus"][0]["utilization_percent"] > 5, "it works")

    before = _memory(demo)
    assert "loaded in" in demo.do("load a large model")
    until(lambda: _memory(demo) > before + 30_000, "the memory fills")
    pulled = demo.do("pull one to gpu2")
    assert "100 %" in pulled
    assert "qwen3:14b: loaded in" in pulled

    demo.do("lose a GPU")
    demo.sees("gpu2", "degraded", "UP")
    demo.do("lose a GPU")
    demo.do("let Ollama die")
    demo.do("drain gpu3")
    demo.sees("gpu2", "failing", "DOWN")
    demo.sees("gpu1", "failing", "DOWN")
    demo.sees("gpu3", "draining", "DRAIN")
    demo.do("bring all of them back")
    demo.do("start it again")
    demo.do("put it back")
    for name in ("gpu1", "gpu2", "gpu3"):
        demo.sees(name, "ok", "UP")

    assert demo.end(signal.SIGINT) == 0
    assert not Path(folder).exists()
    assert left_of(folder) == []


@pytest.mark.component
def test_two_at_once_and_one_is_killed(needed: None) -> None:
    """A second one has other ports and is told apart by its commands; of a killed one nothing is left either."""
    with Demo("--no-load", "--hosts", "1") as first, Demo("--no-load", "--hosts", "2") as second:
        assert first.url("gpu1") != second.url("gpu1")
        second.do("lose a GPU")
        until(lambda: second.rank()["gpu2"] == "degraded", "the second one has lost it")
        assert first.rank() == {"gpu1": "ok"}
        folder = folder_of(first)
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: not Path(folder).exists(), "the folder is gone")
        until(lambda: left_of(folder) == [], f"all have ended: {left_of(folder)}")
        assert second.rank()["gpu1"] == "ok"
        assert second.end(signal.SIGTERM) == 0


def test_without_its_packages_it_names_them(tmp_path: Path) -> None:
    """With nothing in the PATH it says in one line what to install, and exits with 1."""
    code = (
        "import benchmarks.demo.fleet as fleet, benchmarks.demo.__main__ as demo, sys; "
        "fleet._SBIN = '/nowhere'; sys.exit(demo.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": str(tmp_path)}, cwd=REPOSITORY, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        r"the demo needs Debian packages: apt-get install gcc haproxy( libc6-dev)? prometheus\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    "options", [["lose-gpu"], ["lose-gpu", "gpu1", "--demo", "9"], ["fly", "gpu1"], ["--hosts", "0"]], ids=" ".join
)  # fmt: skip
def test_a_command_that_cannot_be_done(options: Sequence[str]) -> None:
    """Bad usage is exit code 2, and where no demo runs it is 1 with the way to one."""
    done = subprocess.run(
        [*COMMAND, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == (1 if "--demo" in options else 2)
    assert done.returncode == 2 or "make demo" in done.stderr


# -- the parts -------------------------------------------------------------------------------------


def test_gpus_follow_the_work() -> None:
    """A model fills one GPU, or both if it is large; requests make it work, draw power and grow warm."""
    gpus = Gpus()
    idle = gpus.state()
    for _ in range(20):
        gpus.pass_time(0.5, [4 << 30], 3)
    busy = gpus.state()
    for name in ("utilization", "memory_used", "power_mw", "temperature", "energy_mj", "sm_clock"):
        assert int(busy[f"gpu0.{name}"]) > int(idle[f"gpu0.{name}"])
    assert busy["gpu1.memory_used"] == idle["gpu1.memory_used"]
    for _ in range(20):
        gpus.pass_time(0.5, [40 << 30], 0)
    assert gpus.state()["gpu0.memory_used"] == gpus.state()["gpu1.memory_used"] > 18 << 30
    for _ in range(200):
        gpus.pass_time(0.5, [], 0)
    after = gpus.state()
    assert after["gpu0.memory_used"] == idle["gpu0.memory_used"]
    assert (after["gpu0.utilization"], after["gpu0.temperature"]) == (0, idle["gpu0.temperature"])


def test_gpus_stay_within_what_there_can_be() -> None:
    """However much is asked of them."""
    gpus = Gpus()
    for _ in range(400):
        gpus.pass_time(0.5, [900 << 30, 900 << 30], 500)
    state = {name: int(value) for name, value in gpus.state().items() if "name" not in name}
    for gpu in ("gpu0", "gpu1"):
        assert state[f"{gpu}.memory_used"] < state["gpu.memory_total"]
        assert state[f"{gpu}.utilization"] <= 100
        assert state[f"{gpu}.power_mw"] <= state["gpu.power_limit_mw"]
        assert state[f"{gpu}.temperature"] < 85


def test_the_shipped_configurations_can_be_adapted() -> None:
    """Both have what the demo changes; of HAProxy's both backends have all hosts, of Prometheus' no example is left."""
    text = (shipped.DEPLOY / "haproxy" / "haproxy.cfg").read_text("utf-8")
    adapted = shipped.haproxy(text, PLACES, 18000, 18001, Path("/run/x"))
    for one in PLACES:
        assert adapted.count(f"    server {one.name} {one.address}:{one.ollama} ") == 2
    assert "192.0.2." not in adapted
    assert "maxconn 4\n" in adapted
    text = (shipped.DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    adapted = shipped.prometheus(text)
    assert "example.com:11435" not in adapted
    assert "targets/*.yml" in adapted
    with pytest.raises(ShippedFileChanged):
        shipped.prometheus(adapted)


def _memory(demo: Demo) -> float:
    return sum(float(gpu["memory_used_mb"]) for gpu in demo.metrics("gpu1")["gpus"])


def _scraped(demo: Demo) -> set[str]:
    url = f"{demo.url('Prometheus')}api/v1/query?query=ollama_host_status"
    return {one["metric"]["instance"] for one in json.loads(get(url))["data"]["result"]}
