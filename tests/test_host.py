"""CPU and RAM: shares against scripted counters, and against what the kernel tells the test itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

import psutil
import pytest

from ollama_metrics.cgroup import Cgroup
from ollama_metrics.errors import CollectorError
from ollama_metrics.host import HostCollector, HostSample
from ollama_metrics.proc_files import MemoryInfo

GIB = 1 << 30
HOST_RAM = psutil.virtual_memory().total
CGROUP = "sys/fs/cgroup"
TICKS = os.sysconf("SC_CLK_TCK")


class Container:
    """A folder with the files of a v2 container of an eight-CPU host, its counters, and a clock."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.now = 1000.0
        self.used = 0.0
        self.write("cgroup.controllers", "cpu memory")
        self.write("cpuset.cpus.effective", "0-7")
        self.limit(memory=str(GIB), cpu="150000 100000")
        self.memory(current=GIB // 2)
        self.run(0.0, 0.0)

    def write(self, name: str, text: str) -> None:
        path = self._root / CGROUP / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def remove(self, name: str) -> None:
        (self._root / CGROUP / name).unlink()

    def limit(self, memory: str = "max", cpu: str = "max 100000") -> None:
        self.write("memory.max", memory)
        self.write("cpu.max", cpu)

    def memory(self, current: int, **stat: int) -> None:
        self.write("memory.current", str(current))
        self.write("memory.stat", "\n".join(f"{name} {value}" for name, value in stat.items()))

    def run(self, seconds: float, cpu_seconds: float) -> None:
        """Let time pass, of which the container uses so many CPU seconds."""
        self.now += seconds
        self.used += cpu_seconds
        self.write("cpu.stat", f"usage_usec {round(self.used * 1e6)}")

    def collector(self, primed: bool = True) -> HostCollector:
        collector = HostCollector(Cgroup(str(self._root), cpus=8), clock=lambda: self.now)
        if primed:
            collector.prime()
        return collector


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


# -- the CPU's share ---------------------------------------------------------------------------------------------------


def test_the_first_reading_has_a_true_interval(container: Container) -> None:
    """After `prime`, the first `collect` is about the time between the two."""
    collector = container.collector()
    container.run(2.0, cpu_seconds=1.5)
    sample = collector.collect()
    assert sample.cpu_ratio == pytest.approx(1.5 / (2.0 * 1.5))
    assert sample.cpus == 1.5
    assert sample.cpu_busy_seconds_total == 1.5
    assert sample.container_limited is True


def test_without_prime_the_first_collect_only_begins_an_interval(container: Container) -> None:
    """An unprimed collector's first `collect` is an error rather than a share that was never measured."""
    collector = container.collector(primed=False)
    with pytest.raises(CollectorError, match="only begun"):
        collector.collect()
    container.run(1.0, cpu_seconds=0.75)
    assert collector.collect().cpu_ratio == pytest.approx(0.5)


def test_each_reading_is_about_the_time_since_the_one_before(container: Container) -> None:
    """The CPU's share follows a scripted counter interval by interval."""
    collector = container.collector()
    shares = []
    for seconds, used in ((1.0, 1.5), (1.0, 0.0), (0.5, 0.375), (4.0, 1.5)):
        container.run(seconds, used)
        shares.append(collector.collect().cpu_ratio)
    assert shares == pytest.approx([1.0, 0.0, 0.5, 0.25])


@pytest.mark.parametrize(("used", "share"), [(9.0, 1.0), (-0.01, 0.0)])
def test_a_share_stays_a_share(container: Container, used: float, share: float) -> None:
    """A burst above the quota is 1, a counter that fell by a tick is 0."""
    collector = container.collector()
    container.run(1.0, 5.0)
    collector.collect()
    container.run(1.0, used)
    assert collector.collect().cpu_ratio == share


def test_counters_that_start_anew_cost_one_reading(container: Container) -> None:
    """After a fall of the counters one reading fails, and the next one is about the time since the fall."""
    collector = container.collector()
    container.run(1.0, 500.0)
    collector.collect()
    container.run(1.0, -499.0)
    with pytest.raises(CollectorError, match="went back"):
        collector.collect()
    container.run(1.0, 0.75)
    assert collector.collect().cpu_ratio == 0.5


def test_no_time_is_no_reading(container: Container) -> None:
    """Two readings at the same time are an error, and the next one is about the whole time since the good one."""
    collector = container.collector()
    container.run(1.0, 0.3)
    collector.collect()
    with pytest.raises(CollectorError, match="stood still"):
        collector.collect()
    container.run(1.0, 1.5)
    assert collector.collect().cpu_ratio == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["cpu.stat", "memory.current", "memory.stat"])
def test_a_file_that_is_gone_is_a_failure_and_heals(container: Container, name: str) -> None:
    """A counter that cannot be read fails the reading, and the readings come back with it."""
    collector = container.collector()
    container.run(1.0, 0.1)
    collector.collect()
    container.run(1.0, 0.1)
    container.remove(name)
    with pytest.raises(CollectorError, match="cannot be read"):
        collector.collect()
    container.memory(current=GIB // 4)
    container.run(1.0, 0.75)
    assert 0 < collector.collect().cpu_ratio <= 1


def test_prime_fails_with_a_sentence(container: Container) -> None:
    """Counters that cannot be read at the start are a CollectorError too."""
    container.remove("cpu.stat")
    with pytest.raises(CollectorError, match="CPU counters cannot be read"):
        container.collector()


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_is_a_share_of_the_limit(container: Container) -> None:
    """With a limit, size and availability are the container's."""
    collector = container.collector()
    container.memory(current=GIB * 3 // 4)
    container.run(1.0, 0.1)
    sample = collector.collect()
    assert sample.memory_total_bytes == GIB
    assert sample.memory_available_bytes == GIB // 4
    assert sample.memory_used_ratio == 0.75


def test_page_cache_is_not_use(container: Container) -> None:
    """A container full of page cache has its memory available."""
    collector = container.collector()
    container.memory(current=GIB, inactive_file=GIB // 2, active_file=GIB // 4, anon=GIB // 4)
    container.run(1.0, 0.1)
    assert collector.collect().memory_used_ratio == 0.25


@pytest.mark.parametrize("limit", ["max", str(HOST_RAM), str(HOST_RAM * 8), "0", "nonsense", ""])
def test_a_memory_limit_that_limits_nothing_leaves_the_hosts(
    container: Container, limit: str
) -> None:
    """No limit, one above the host's RAM and nonsense leave the host's memory."""
    container.limit(memory=limit, cpu="150000 100000")
    collector = container.collector()
    container.run(1.0, 0.1)
    sample = collector.collect()
    assert sample.memory_total_bytes == HOST_RAM
    assert sample.container_limited  # by its CPU quota


def test_a_container_cannot_have_more_than_the_host_has_left(container: Container) -> None:
    """What is available to a container is at most what is available on its host."""
    limit = HOST_RAM - 4096
    container.limit(memory=str(limit), cpu="150000 100000")
    container.memory(current=0)
    collector = container.collector()
    container.run(1.0, 0.1)
    sample = collector.collect()
    assert sample.memory_total_bytes == limit
    assert sample.memory_available_bytes < limit - 4096


# -- limits that change ------------------------------------------------------------------------------------------------


def test_a_changed_limit_is_noticed_within_half_a_minute_without_losing_a_reading(
    container: Container,
) -> None:
    """Limits raised while running take effect after 30 s at most; no reading fails for it, and none mixes the two."""
    collector = container.collector()
    container.run(10.0, 7.5)
    assert collector.collect().cpu_ratio == pytest.approx(0.5)
    container.limit(memory=str(2 * GIB), cpu="300000 100000")
    seen = []
    for _ in range(30):
        container.run(1.0, 0.75)
        sample = collector.collect()
        seen.append((sample.cpus, round(sample.cpu_ratio, 6), sample.memory_total_bytes // GIB))
    before, after = (1.5, 0.5, 1), (3.0, 0.25, 2)
    assert seen[0] == before
    assert seen[-1] == after
    assert set(seen) == {before, after}


def test_a_cpu_limit_that_goes_leaves_the_hosts_cpus(container: Container) -> None:
    """When a container's quota is taken away, the readings go on with the host's counters."""
    collector = container.collector()
    container.limit()
    container.run(30.0, 1.0)
    assert collector.collect().cpus == 1.5
    container.run(1.0, 0.1)
    await_ticks()
    sample = collector.collect()
    assert sample.cpus == float(os.cpu_count() or 1)
    assert not sample.container_limited
    assert 0 <= sample.cpu_ratio <= 1


# -- the real thing ----------------------------------------------------------------------------------------------------


def proc_stat() -> tuple[int, int]:
    """Busy and idle ticks of all CPUs since boot; guests' time is in user and nice already."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, first[1:9])
    return user + nice + system + irq + softirq + steal, idle + iowait


def await_ticks(ticks: int = 1) -> None:
    """Wait until the kernel's CPU counters, a hundred ticks a second for each CPU, have moved on."""
    until = sum(proc_stat()) + ticks
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while sum(proc_stat()) < until:
        assert time.monotonic() < deadline, "the kernel's CPU counters stand still"
        pause.wait(0.005)


@pytest.fixture
def unlimited(tmp_path: Path) -> HostCollector:
    """A collector of this machine, whatever container the tests run in."""
    return HostCollector(Cgroup(str(tmp_path)))


def test_cpu_is_within_two_points_of_proc_stat_under_load(unlimited: HostCollector) -> None:
    """While the test burns CPU, the share is that of /proc/stat over the same time."""
    cpus = os.cpu_count() or 1
    with ExitStack() as stack:
        for _ in range(max(1, cpus // 2)):
            burner = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
            stack.callback(burner.wait)
            stack.callback(burner.kill)
        start = proc_stat()
        unlimited.prime()
        await_ticks(100 * cpus)
        sample = unlimited.collect()
        end = proc_stat()
    busy, idle = end[0] - start[0], end[1] - start[1]
    assert 100 * sample.cpu_ratio == pytest.approx(100 * busy / (busy + idle), abs=2.0)
    assert sample.cpu_ratio > 0.3
    assert sample.cpus == float(cpus)
    assert sample.container_limited is False


def test_ram_is_within_one_point_of_free(
    unlimited: HostCollector, component: Callable[[str], str]
) -> None:
    """The share of memory in use is what `free` calls total less available."""
    free = component("free")
    unlimited.prime()
    await_ticks()
    sample = unlimited.collect()
    output = subprocess.run([free, "-b"], stdout=subprocess.PIPE, text=True, check=True).stdout
    columns, values = (line.split() for line in output.splitlines()[:2])
    memory = dict(zip(columns, map(int, values[1:])))
    used = 100 * (memory["total"] - memory["available"]) / memory["total"]
    assert 100 * sample.memory_used_ratio == pytest.approx(used, abs=1.0)
    assert sample.memory_total_bytes == memory["total"]


def test_what_is_not_as_the_kernel_writes_it_is_left_to_psutil(tmp_path: Path) -> None:
    """In a procfs of another make the readings are psutil's of this machine's."""
    (tmp_path / "stat").write_text("cpu0 1 2 3\n")
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemFree: 4 kB\nBuffers: 2 kB\n")
    collector = HostCollector(Cgroup(str(tmp_path)), proc=str(tmp_path))
    collector.prime()
    await_ticks()
    sample = collector.collect()
    assert sample.memory_total_bytes == HOST_RAM
    assert sample.cpu_busy_seconds_total == pytest.approx(proc_stat()[0] / TICKS, abs=2.0)


def test_a_procfs_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    """Files that cannot be read are no reading, and no number is made up."""
    collector = HostCollector(Cgroup(str(tmp_path)), proc=str(tmp_path))
    with pytest.raises(CollectorError, match="CPU counters cannot be read"):
        collector.prime()


def test_the_busy_counter_only_grows(unlimited: HostCollector) -> None:
    """Busy CPU seconds never go down from one reading to the next."""
    unlimited.prime()
    samples: list[HostSample] = []
    for _ in range(3):
        await_ticks()
        samples.append(unlimited.collect())
    totals = [sample.cpu_busy_seconds_total for sample in samples]
    assert totals == sorted(totals)


def test_the_ring_gets_cpu_and_memory() -> None:
    """A sample's levels are CPU and memory, in this order, under the host's one name."""
    sample = HostSample(0.25, 0.5, 8, 4, 2.0, 1.0, False)
    assert sample.levels() == {"": (0.25, 0.5)}


# -- memory that stands still ------------------------------------------------------------------------------------------


class Meminfo:
    """Plays /proc/meminfo, and counts how often it is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total, self.available, self.asked = 100 * GIB, 50 * GIB, 0
        monkeypatch.setattr(MemoryInfo, "read", lambda _: self.read())

    def read(self) -> tuple[int, int]:
        self.asked += 1
        return self.total, self.available


def seconds(container: Container, collector: HostCollector, count: int) -> list[float]:
    """The memory's share in so many readings, one a second."""
    shares = []
    for _ in range(count):
        container.run(1.0, 0.1)
        shares.append(collector.collect().memory_used_ratio)
    return shares


def test_memory_that_stands_still_is_read_every_five_seconds(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third reading is the second's: from then on one in five asks, and what has changed is seen by it."""
    container.limit(cpu="150000 100000")
    meminfo = Meminfo(monkeypatch)
    collector = container.collector()
    assert seconds(container, collector, 12) == [0.5] * 12
    assert meminfo.asked == 4
    meminfo.available = 10 * GIB
    assert seconds(container, collector, 5)[-1] == 0.9


def test_memory_that_moves_is_read_every_time(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By more than two thousandths from one reading to the next."""
    container.limit(cpu="150000 100000")
    meminfo = Meminfo(monkeypatch)
    collector = container.collector()
    for step in range(1, 10):
        meminfo.available = 50 * GIB - step * GIB // 4
        (share,) = seconds(container, collector, 1)
        assert share == pytest.approx(0.5 + step / 400)
    assert meminfo.asked == 9


def test_another_memory_limit_is_not_shared_with_the_reading_before(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading after a container's limit was found to be another one has the share of that one."""
    Meminfo(monkeypatch)
    collector = container.collector()
    assert seconds(container, collector, 29)[-1] == 0.5
    container.limit(memory=str(2 * GIB), cpu="150000 100000")
    assert seconds(container, collector, 2) == [0.5, 0.25]
