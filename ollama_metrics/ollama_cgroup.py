"""What the cgroup that Ollama runs in has used, cgroup v1 and v2.

Which cgroup that is comes from outside: from its process (`processes.cgroup_paths`) or from a setting.
A kernel without a controller has no files of it: what they would tell is None.

Files are those of the kernel's Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/{memory,cpuacct,blkio-controller}.rst, Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import os

from .cgroup import V1_UNLIMITED, parse_number, read_file
from .errors import CollectorError
from .ollama import CgroupUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

_MOUNT = "sys/fs/cgroup"
# The hierarchies of v1 that are read, by what their folders are called.
_CONTROLLERS = ("memory", "cpu", "cpuacct", "blkio")


def fixed(text: str) -> dict[str, str]:
    """The paths for `usage` out of a setting: one and the same in every hierarchy.

    The path is one below a hierarchy's mount, `/system.slice/ollama.service` or without the first
    slash, or one of the file system below /sys/fs/cgroup (in v1 with the controller's folder).

    Raises ValueError when it is no such path or leads upwards.
    """
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") and parts[:3] == _MOUNT.split("/"):
        parts = parts[3:]
        # v1 mounts a hierarchy in a folder with the name of its controllers.
        if parts and set(parts[0].split(",")) <= {*_CONTROLLERS, "unified", "systemd"}:
            parts = parts[1:]
    if ".." in parts or "\0" in text or not text:
        raise ValueError(text)
    path = "/" + "/".join(parts)
    return dict.fromkeys(("", *_CONTROLLERS), path)


def usage(paths: Mapping[str, str], root: str = "/") -> CgroupUsage:
    """What a cgroup has used; `paths` has its path in each hierarchy, by controller, `""` for v2.

    A controller is read in its hierarchy of v1 where there is one, else in v2. Bytes from and to
    disks are summed over the devices; where devices are stacked (LVM, md) the kernel may count a
    transfer on each layer.

    `root` is the root of the file system. Raises CollectorError when there is no file of it at all,
    or when it is outside of the cgroup namespace.
    """
    group = _Group(paths, root)
    memory = _memory(group)
    seconds, stat, throttled = _cpu(group)
    received, written = _io(group)
    if not group.found:
        raise CollectorError(f"no file of the cgroup {group.name} can be read in {group.mount}")
    return CgroupUsage(
        path=group.name,
        memory_used_bytes=memory[0],
        memory_limit_bytes=memory[1],
        cpu_seconds_total=seconds,
        throttled_periods_total=stat.get("nr_throttled"),
        throttled_seconds_total=throttled,
        oom_kills_total=memory[2].get("oom_kill"),
        io_read_bytes_total=received,
        io_written_bytes_total=written,
    )


class _Group:
    """Where the files of one cgroup are. `found`: there was one; `name`: its path, for a person."""

    def __init__(self, paths: Mapping[str, str], root: str) -> None:
        for path in paths.values():
            # Such is the path of a process whose cgroup is outside of this one's namespace.
            if ".." in path.split("/"):
                raise CollectorError(f"the cgroup {_printable(path)} cannot be seen from here")
        self.mount = os.path.join(root, _MOUNT)
        self.found = False
        self._paths = paths
        self._unified = os.path.exists(os.path.join(self.mount, "cgroup.controllers"))
        own = self._place("memory")[1]
        self.name = _printable(own or next(iter(paths.values()), "/"))

    def is_v2(self, controller: str) -> bool:
        """Whether a controller is to be read in v2."""
        return (
            self._unified
            or controller not in self._paths
            or not os.path.isdir(os.path.join(self.mount, controller))
        )

    def read(self, controller: str, *names: str) -> Optional[str]:
        """The first of a controller's files that is there; None where none is."""
        mount, path = self._place(controller)
        for name in names if path is not None else ():
            folder = f"{mount}{path}"
            text = read_file(folder, name)
            if text or os.path.exists(os.path.join(folder, name)):
                self.found = True
                return text
        return None

    def _place(self, controller: str) -> tuple[str, Optional[str]]:
        """The mount of the hierarchy that has a controller, and the cgroup's path below it."""
        if not self.is_v2(controller):
            return os.path.join(self.mount, controller), self._paths[controller]
        mount = self.mount if self._unified else os.path.join(self.mount, "unified")
        return mount, self._paths.get("")


def _memory(group: _Group) -> tuple[Optional[int], Optional[int], dict[str, int]]:
    """Bytes used, the limit, the counts of events."""
    if group.is_v2("memory"):
        names = ("memory.current", "memory.max", "memory.events")
    else:
        names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control")
    used, limit, events = (group.read("memory", name) or "" for name in names)
    most = parse_number(limit)
    if most is not None and most >= V1_UNLIMITED:
        most = None
    return parse_number(used), most, _pairs(events)


def _cpu(group: _Group) -> tuple[Optional[float], dict[str, int], Optional[float]]:
    """CPU seconds, all of cpu.stat, seconds throttled."""
    stat = _pairs(group.read("cpu", "cpu.stat") or "")
    if group.is_v2("cpu"):
        throttled = _seconds(stat.get("throttled_usec"), 1e6)
    else:
        throttled = _seconds(stat.get("throttled_time"), 1e9)
    if group.is_v2("cpuacct"):
        used = _pairs(group.read("cpuacct", "cpu.stat") or "").get("usage_usec")
        return _seconds(used, 1e6), stat, throttled
    used = parse_number(group.read("cpuacct", "cpuacct.usage") or "")
    return _seconds(used, 1e9), stat, throttled


def _io(group: _Group) -> tuple[Optional[int], Optional[int]]:
    """Bytes read from disks, and written to them."""
    if group.is_v2("blkio"):
        # "8:0 rbytes=90112 wbytes=0 rios=3 ...", a line for each device that was used.
        text = group.read("blkio", "io.stat")
        words = [word.partition("=") for word in (text or "").split()]
        kinds = ("rbytes", "wbytes")
        found = [(key, value) for key, _, value in words]
    else:
        # "8:0 Read 90112", a line for each device and kind, and "Total 90112".
        name = "blkio.throttle.io_service_bytes"
        text = group.read("blkio", f"{name}_recursive", name)
        lines = [line.split() for line in (text or "").splitlines()]
        kinds = ("Read", "Write")
        found = [(line[1], line[2]) for line in lines if len(line) == 3]
    if text is None:
        return None, None
    received, written = (
        sum(parse_number(value) or 0 for key, value in found if key == kind) for kind in kinds
    )
    return received, written


def _pairs(text: str) -> dict[str, int]:
    """The numbers of a file whose lines are `key number`."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        number = parse_number(value)
        if number is not None:
            found[key] = number
    return found


def _seconds(units: Optional[int], per_second: float) -> Optional[float]:
    return units / per_second if units is not None else None


def _printable(path: str) -> str:
    """A path as text for a page: what is not UTF-8 or has no glyph is shown as a question mark."""
    text = path[:4096].encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
