"""What a server costs, read from the kernel: CPU time, memory and threads of its process tree.

Knows nothing of HTTP. Owns no process: server.py starts and ends them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
MIB = 1024.0  # smaps_rollup counts in KiB


@dataclass(frozen=True)
class Memory:
    """Memory of a process tree in MiB (source: /proc/PID/smaps_rollup).

    `rss` is the quantity that VmRSS names, but walked page by page: VmRSS itself is an estimate
    since Linux 6.2, off by up to some hundred KiB. Pages that two processes share count twice
    in `rss`, in shares in `pss`, and not at all in `uss`.
    """

    rss: float
    pss: float
    uss: float


def tree(pid: int) -> list[int]:
    """`pid` and all its living descendants (source: /proc/PID/task/TID/children)."""
    found = [pid]
    for parent in found:
        for children in (PROC / str(parent) / "task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in children.read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """User and system CPU time of the tree so far, in seconds with nanosecond resolution.

    Source: the kernel's CPU clock of each process (what clock_getcpuclockid(3) names). It is the
    sum of /proc/PID/task/*/schedstat plus the threads that have ended, of which a server with a
    thread per connection has thousands.
    """
    total = 0.0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime(((~member) << 3) | 2)
    return total


def memory(pid: int) -> Memory:
    """Memory of the tree now."""
    sums = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for member in tree(pid):
        for line in (PROC / str(member) / "smaps_rollup").read_text().splitlines():
            name = line.split(":")[0]
            if name in sums:
                sums[name] += int(line.split()[1])
    private = sums["Private_Clean"] + sums["Private_Dirty"]
    return Memory(rss=sums["Rss"] / MIB, pss=sums["Pss"] / MIB, uss=private / MIB)


def threads(pid: int) -> int:
    """Number of threads in the tree now."""
    return sum(len(os.listdir(PROC / str(member) / "task")) for member in tree(pid))


@dataclass(frozen=True)
class Cores:
    """Which core serves and which one makes the load; the same one where there is only one."""

    server: int
    load: int

    @classmethod
    def choose(cls) -> Cores:
        usable = sorted(os.sched_getaffinity(0))
        return cls(server=usable[0], load=usable[1] if len(usable) > 1 else usable[0])

    @property
    def shared(self) -> bool:
        return self.server == self.load


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Runs this thread, and what it starts meanwhile, on `core` alone."""
    before: set[int] = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def open_files(count: int) -> Iterator[None]:
    """Lets this process hold `count` connections; servers start outside, with the usual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 64
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise OSError(f"{count} connections need {wanted} open files; the hard limit is {hard}")
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        wanted = soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
