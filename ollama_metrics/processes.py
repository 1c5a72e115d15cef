"""Finds Ollama's processes in /proc: who has a socket, which children serve a model, in which cgroups.

Only what a process's folder tells is read, as any user of the same uid may; what the runners' ports
and blobs mean is not known here. Command lines are written by whoever started the process: they are
read up to a bound, as bytes, and only digests and numbers come out of them.

Files are those of the kernel's Documentation/filesystems/proc.rst and of proc(5).
"""

from __future__ import annotations

import os
import re
from itertools import islice

from .errors import CollectorError
from .ollama import Runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Optional

# A runner is the server's child, or that of a wrapper in between.
_DEEPEST = 3
# A listening socket is among the first that a server opens.
_MOST_DESCRIPTORS = 4096
_MOST_TASKS = 4096
_MOST_DESCENDANTS = 1024
_MOST_BYTES = 1 << 16
_MOST_PARALLEL = 1 << 16
_BLOB = re.compile(rb"sha256-[0-9a-f]{64}")
_OPTIONS = {
    b"--model": "blob",
    b"-m": "blob",
    b"--port": "port",
    b"--parallel": "parallel",
    b"-np": "parallel",
}


def owner_of(inodes: Collection[int], proc: str = "/proc") -> Optional[int]:
    """The process that has one of the sockets `inodes` open; None where none is seen to have it.

    Of several it is the oldest but process 1, which holds what it has passed on to a service. This
    looks at every descriptor that may be seen: it is for when the listener has changed. What another
    user's processes have open cannot be seen.

    Source: /proc/PID/fd/*. Raises CollectorError when there is no procfs.
    """
    wanted = {f"socket:[{inode}]" for inode in inodes}
    if not wanted:
        return None
    for pid in sorted(_pids(proc), key=lambda pid: (pid == 1, pid)):
        folder = f"{proc}/{pid}/fd"
        for name in _listed(folder, _MOST_DESCRIPTORS):
            try:
                if os.readlink(f"{folder}/{name}") in wanted:
                    return pid
            except OSError:
                continue  # closed meanwhile
    return None


def runners(pid: int, proc: str = "/proc") -> tuple[Runner, ...]:
    """The processes below the server process `pid` whose command line names a model's blob or a port.

    Source: /proc/PID/task/*/children where the kernel has them, else /proc/*/stat; /proc/PID/cmdline.
    Raises CollectorError when the server process cannot be seen; a child that has ended is left out.
    """
    if not os.path.isdir(f"{proc}/{pid}/task"):
        raise CollectorError(f"process {pid} cannot be seen in {proc}")
    by_parent = None if os.path.exists(f"{proc}/{pid}/task/{pid}/children") else _by_parent(proc)
    found: list[Runner] = []
    seen, level = {pid}, [pid]
    for _ in range(_DEEPEST):
        below: list[int] = []
        for parent in level:
            children = (
                by_parent.get(parent, ()) if by_parent is not None else _children(parent, proc)
            )
            for child in children:
                if child in seen or len(seen) > _MOST_DESCENDANTS:
                    continue
                seen.add(child)
                runner = _runner(child, proc)
                if runner is not None:
                    found.append(runner)
                if runner is None or runner.blob is None:  # else what is below is its own business
                    below.append(child)
        level = below
    return tuple(sorted(found, key=lambda runner: runner.pid))


def cgroup_paths(pid: int, proc: str = "/proc") -> dict[str, str]:
    """The cgroup of a process in each hierarchy: the path by controller, `""` for version 2.

    A path is below its hierarchy's mount and begins with a slash; `/..` leads out of what this
    process's cgroup namespace shows.

    Source: /proc/PID/cgroup. Raises CollectorError when it cannot be read.
    """
    path = f"{proc}/{pid}/cgroup"
    try:
        text = os.fsdecode(_read(path))
    except OSError as error:
        raise CollectorError(f"{path} cannot be read: {error.strerror}") from None
    paths = {}
    for line in text.split("\n"):
        _, colon, rest = line.partition(":")
        controllers, other, folder = rest.partition(":")
        if colon and other and folder.startswith("/"):
            for controller in controllers.split(","):
                paths[controller] = folder
    if not paths:
        raise CollectorError(f"{path} names no cgroup")
    return paths


# -- which processes there are -----------------------------------------------------------------------------------------


def _pids(proc: str) -> Iterator[int]:
    """Raises CollectorError when there is no procfs."""
    try:
        with os.scandir(proc) as entries:
            for entry in entries:
                if entry.name.isascii() and entry.name.isdigit():
                    yield int(entry.name)
    except OSError as error:
        raise CollectorError(f"{proc} cannot be read: {error.strerror}") from None


def _listed(folder: str, most: int) -> list[str]:
    """The first `most` names in a folder; none where it cannot be read, or no longer."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, most)]
    except OSError:
        return []


def _children(pid: int, proc: str) -> Iterator[int]:
    """A child belongs to the thread that has started it."""
    folder = f"{proc}/{pid}/task"
    for task in _listed(folder, _MOST_TASKS):
        try:
            words = _read(f"{folder}/{task}/children").split()
        except OSError:
            continue
        for word in words:
            number = _number(word, 1 << 22)
            if number:
                yield number


def _by_parent(proc: str) -> dict[int, list[int]]:
    """All processes that can be seen, by the one that has started them."""
    found: dict[int, list[int]] = {}
    for pid in _pids(proc):
        try:
            # "7 (name) S 1 ...": a name may hold anything, parentheses too.
            words = _read(f"{proc}/{pid}/stat").rpartition(b")")[2].split(None, 2)
        except OSError:
            continue
        parent = _number(words[1], 1 << 22) if len(words) > 1 else None
        if parent:
            found.setdefault(parent, []).append(pid)
    return found


# -- what one of them is -----------------------------------------------------------------------------------------------


def _runner(pid: int, proc: str) -> Optional[Runner]:
    try:
        words = _read(f"{proc}/{pid}/cmdline").split(b"\0")
    except OSError:
        return None
    blob: Optional[str] = None
    numbers: dict[str, Optional[int]] = {}
    rest = iter(words[1:])
    for word in rest:
        name, _, value = word.partition(b"=")
        option = _OPTIONS.get(name if name.startswith(b"--") else word)
        if option is None:
            continue
        if name == word:
            value = next(rest, b"")
        # The last one counts, as it does to the runner.
        if option == "blob":
            last = value.rpartition(b"/")[2]
            blob = last.decode() if _BLOB.fullmatch(last) else None
        else:
            numbers[option] = _number(value, 65535 if option == "port" else _MOST_PARALLEL)
    port = numbers.get("port")
    if blob is None and port is None:
        return None
    return Runner(pid, blob, port, numbers.get("parallel"))


def _number(text: bytes, most: int) -> Optional[int]:
    """A number from 1 to `most`."""
    if not text.isdigit() or len(text) > 10:
        return None
    number = int(text)
    return number if 1 <= number <= most else None


def _read(path: str) -> bytes:
    """The first bytes of a file. Raises OSError, also for what is no file that can be read at once."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = b""
        # procfs may give less than it has.
        while len(data) < _MOST_BYTES:
            more = os.read(fd, _MOST_BYTES - len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(fd)
