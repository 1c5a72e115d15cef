"""The limits of the container that the agent runs in, and its use of them; cgroup v1 and v2.

Which limit counts: the one on the *root of the cgroup tree as it is mounted here*. In a container
that root is the container's own cgroup (its runtime mounts it so), on a host it is the machine's,
which has no limit. A systemd service on a host sits below that root, so its own MemoryMax never
counts: the service answers for the host. Only a container that was given the host's whole tree
(Docker's `--cgroupns=host` on v2) has to be found by its path.

Files are those of the kernel's Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/{memory,cpuacct,cpusets}.rst.
"""

from __future__ import annotations

import os

from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# Files that Docker and Podman leave in every container.
CONTAINER_MARKS = (".dockerenv", "run/.containerenv")
# The kernel writes "no limit" of v1 as the largest multiple of the page size in 63 bits.
V1_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Limits:
    """What the container may use; None where it has no limit. Bytes and CPUs (1.5 is one and a half)."""

    memory_bytes: Optional[int] = None
    cpus: Optional[float] = None


class Cgroup:
    """A reader of one cgroup's files; `root` is the file system's root, a folder of fixtures in tests."""

    def __init__(self, root: str = "/", cpus: Optional[int] = None) -> None:
        self._root = root
        self._cpus = cpus if cpus is not None else os.cpu_count() or 1
        mount = os.path.join(root, "sys/fs/cgroup")
        self.v2 = os.path.exists(os.path.join(mount, "cgroup.controllers"))
        if self.v2:
            self._memory = self._cpu = self._cpuset = mount
            if self._in_container_with_host_tree():
                self._memory = self._cpu = self._cpuset = mount + self._own_path()
        else:
            self._memory, self._cpuset = (
                os.path.join(mount, "memory"),
                os.path.join(mount, "cpuset"),
            )
            self._cpu = os.path.join(mount, "cpu")

    def limits(self) -> Limits:
        """The limits as they are now: they may be changed while a container runs."""
        if self.v2:
            memory = parse_number(read_file(self._memory, "memory.max"))
            quota, _, period = read_file(self._cpu, "cpu.max").partition(" ")
        else:
            memory = parse_number(read_file(self._memory, "memory.limit_in_bytes"))
            if memory is not None and memory >= V1_UNLIMITED:
                memory = None
            quota, period = (
                read_file(self._cpu, f"cpu.cfs_{name}_us") for name in ("quota", "period")
            )
        cpus: Optional[float] = None
        microseconds, per = parse_number(quota), parse_number(period)
        if microseconds and per:
            cpus = microseconds / per
        allowed = _count(
            read_file(self._cpuset, "cpuset.cpus.effective" if self.v2 else "cpuset.cpus")
        )
        if allowed and allowed < self._cpus:
            cpus = min(cpus, allowed) if cpus else float(allowed)
        if cpus is not None and cpus >= self._cpus:
            cpus = None
        return Limits(memory, cpus)

    def memory_available(self, limit: int) -> int:
        """Bytes of `limit` still to be had, by the meaning that MemAvailable has for a host.

        The page cache and reclaimable slabs count as available, for the kernel drops them before it
        kills.

        Raises OSError or ValueError when the kernel's files cannot be read.
        """
        name = "memory.current" if self.v2 else "memory.usage_in_bytes"
        with open(os.path.join(self._memory, name), encoding="utf-8") as file:
            used = int(file.read())
        stat = self._stat()
        prefix = "" if self.v2 else "total_"
        cache = sum(stat.get(prefix + key, 0) for key in ("inactive_file", "active_file"))
        cache += stat.get("slab_reclaimable", 0)
        return min(limit, max(0, limit - used + cache))

    def cpu_seconds(self) -> float:
        """CPU seconds that the container has used since it started.

        Raises OSError or ValueError when the kernel's files cannot be read.
        """
        if self.v2:
            with open(os.path.join(self._cpu, "cpu.stat"), encoding="utf-8") as file:
                for line in file:
                    if line.startswith("usage_usec "):
                        return int(line.split()[1]) / 1e6
            raise ValueError("cpu.stat has no usage_usec")
        with open(
            os.path.join(self._root, "sys/fs/cgroup/cpuacct/cpuacct.usage"), encoding="utf-8"
        ) as file:
            return int(file.read()) / 1e9

    def _stat(self) -> dict[str, int]:
        with open(os.path.join(self._memory, "memory.stat"), encoding="utf-8") as file:
            pairs = (line.split() for line in file)
            return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}

    def _in_container_with_host_tree(self) -> bool:
        return any(
            os.path.exists(os.path.join(self._root, mark)) for mark in CONTAINER_MARKS
        ) and not os.path.exists(os.path.join(self._memory, "memory.max"))

    def _own_path(self) -> str:
        for line in read_file(os.path.join(self._root, "proc/self"), "cgroup").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" and not controllers and ".." not in path:
                return path.rstrip("/")
        return ""


def read_file(folder: str, name: str) -> str:
    """What a file of the kernel's holds, in its first 64 kB; nothing where it cannot be read."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            return file.read(65536).strip()
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return ""


def parse_number(text: str) -> Optional[int]:
    """The number in `text`; None for `max`, nothing, nonsense, and what the kernel's 64 bits cannot hold."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if 0 <= number < 1 << 64 else None


def _count(cpu_list: str) -> int:
    """How many CPUs a list such as `0-3,8` names; 0 where it names none or cannot be read."""
    total = 0
    for part in cpu_list.split(","):
        first, _, last = part.partition("-")
        low, high = parse_number(first), parse_number(last or first)
        if low is None or high is None or high < low:
            return 0
        total += high - low + 1
    return total
