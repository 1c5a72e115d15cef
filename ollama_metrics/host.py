"""CPU and RAM of the host, or of the container that the agent runs in.

`HostCollector.collect` is called by one thread, about once a second; memory, which is a level, is read
every time only while it moves.
"""

from __future__ import annotations

import os
import time

import psutil

from .cgroup import Cgroup, Limits
from .errors import CollectorError
from .frozen import dataclass
from .metrics import counter, gauge
from .proc_files import CpuTimes, MemoryInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Callable, Optional

    from .window import Levels

# A container's limits can be changed while it runs; they are looked up again this often.
_LIMITS_SECONDS = 30.0
# Memory that stands still is read again this often, for that costs as much as the CPU's times; it
# stands still while two readings differ by no more than this share of it.
_MEMORY_SECONDS = 5.0
_STANDS_STILL_RATIO = 0.002
# By so much may the busy time fall on a machine that runs on: steal and guest time are estimates.
_JITTER_SECONDS = 1.0


@dataclass(frozen=True)
class HostSample:
    """One reading of CPU and RAM.

    Source: /proc/stat and /proc/meminfo (see proc_files.py), by psutil where they are not as the kernel
    writes them; in a container with a limit, its cgroup's files (see cgroup.py).
    """

    PREFIX = "ollama_host"
    LABELS = ()

    cpu_ratio: float = gauge(
        "Share of the CPU time that was busy since the reading before.", json=None
    )
    memory_used_ratio: float = gauge(
        "Share of the memory that is not available to new work.", json=None
    )
    memory_total_bytes: int = gauge(
        "Memory of the host, or the container's limit.", json="ram_total_mb"
    )
    memory_available_bytes: int = gauge(
        "Memory that new work can have without swapping.", json="ram_available_mb"
    )
    cpus: float = gauge(
        "CPUs that the percentage is of; a fraction where a container's quota is one."
    )
    cpu_busy_seconds_total: float = counter(
        "CPU seconds used since boot (a container: since it started).", json=None
    )
    container_limited: bool = gauge(
        "Whether a container's limits stand in for the host's capacity."
    )

    def levels(self) -> Mapping[str, Levels]:
        """CPU and memory as ratios, for the ring."""
        return {"": (self.cpu_ratio, self.memory_used_ratio)}


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, how many of them are available, and whether a container's limit says so."""

    size: int
    available: int
    limited: bool

    @property
    def used_ratio(self) -> float:
        """The share that is not available."""
        return _clamp((self.size - self.available) / self.size)


class HostCollector:
    """Takes `HostSample`s; owns the counters of the reading before."""

    def __init__(
        self,
        cgroup: Optional[Cgroup] = None,
        clock: Callable[[], float] = time.monotonic,
        proc: str = "/proc",
    ) -> None:
        self._cgroup = cgroup if cgroup is not None else Cgroup()
        self._cpu_times, self._memory_info = CpuTimes(proc), MemoryInfo(proc)
        self._clock = clock
        self._limits = Limits()
        self._host_cpus = 1.0
        self._limits_at = float("-inf")
        self._before: Optional[tuple[float, float]] = None
        self._memory: Optional[Memory] = None
        self._memory_at = float("-inf")  # when it is to be read again
        self.pause = 0.0

    def prime(self) -> None:
        """Read the counters once, so that the first `collect` has an interval to speak of."""
        try:
            self._refresh_limits()
            self._before = self._counters()
        except (OSError, ValueError, psutil.Error) as error:
            raise CollectorError(f"CPU counters cannot be read: {error}") from error

    def collect(self) -> HostSample:
        """One reading; its CPU share is over the time since the last `collect` or `prime`.

        Raises CollectorError when the kernel's files cannot be read, or no time has passed.
        """
        if self._before is None:
            self.prime()
            raise CollectorError("the first CPU interval has only begun")
        try:
            return self._collect(self._before)
        except (OSError, ValueError, psutil.Error) as error:
            raise CollectorError(f"CPU and memory cannot be read: {error}") from error

    def _collect(self, before: tuple[float, float]) -> HostSample:
        limits = self._limits
        busy, total = self._counters()
        if total == before[1]:
            raise CollectorError("the CPU counters stood still since the reading before")
        self._before = busy, total
        if total < before[1] or busy < before[0] - _JITTER_SECONDS:
            # A container runtime was restarted, or the machine moved: what follows counts anew.
            raise CollectorError("the CPU counters went back; a new CPU interval has begun")
        memory = self._memory_now()
        sample = HostSample(
            cpu_ratio=_clamp((busy - before[0]) / (total - before[1])),
            memory_used_ratio=memory.used_ratio,
            memory_total_bytes=memory.size,
            memory_available_bytes=memory.available,
            cpus=limits.cpus if limits.cpus is not None else self._host_cpus,
            cpu_busy_seconds_total=busy,
            container_limited=memory.limited or limits.cpus is not None,
        )
        self._refresh_limits()
        if self._limits.cpus != limits.cpus:
            # Another CPU limit counts other things: the next interval begins with counters of its own.
            self._before = None
            self._before = self._counters()
        return sample

    def _memory_now(self) -> Memory:
        """The last reading where it is recent and memory stood still before it, else a new one."""
        before, now = self._memory, self._clock()
        if before is not None and now < self._memory_at:
            return before
        memory = self._memory = self._read_memory()
        still = (
            before is not None
            and abs(memory.used_ratio - before.used_ratio) <= _STANDS_STILL_RATIO
            and memory.size == before.size
        )
        # Half a second less, for a cycle may begin a little earlier than the fifth one before.
        self._memory_at = now + _MEMORY_SECONDS - 0.5 if still else now
        return memory

    def _read_memory(self) -> Memory:
        try:
            total, available = self._memory_info.read()
        except ValueError:
            memory = psutil.virtual_memory()
            total, available = memory.total, memory.available
        limit = self._limits.memory_bytes
        if limit is None or not 0 < limit < total:
            return Memory(total, available, False)
        return Memory(limit, min(available, self._cgroup.memory_available(limit)), True)

    def _refresh_limits(self) -> None:
        now = self._clock()
        if now - self._limits_at >= _LIMITS_SECONDS:
            limits = self._cgroup.limits()
            if limits.memory_bytes != self._limits.memory_bytes:
                self._memory_at = now  # the share is of another size
            self._limits, self._limits_at = limits, now
            self._host_cpus = float(os.cpu_count() or 1)  # the C library reads a file to tell

    def _counters(self) -> tuple[float, float]:
        """Busy and available CPU seconds, both ever growing: the container's where its CPUs are limited."""
        cpus = self._limits.cpus
        if cpus is not None:
            return self._cgroup.cpu_seconds(), self._clock() * cpus
        try:
            return self._cpu_times.read()
        except ValueError:
            times = psutil.cpu_times()
        idle = times.idle + times.iowait
        busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
        return busy, busy + idle


def _clamp(ratio: float) -> float:
    return min(1.0, max(0.0, ratio))
