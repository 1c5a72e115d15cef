"""CPU time and memory of the whole host, from the beginning of /proc/stat and of /proc/meminfo.

psutil reads the same lines, by a file, a buffer and objects for all the others each time. Every second, in
memory that has gone cold since, that was most of an idle agent's CPU; one read of a file that stays open
takes a third of it (CONTRIBUTING.md). What is not as the kernel writes it is left to psutil.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# "cpu  " and ten numbers of at most 20 digits; three lines of meminfo have 84 characters.
_BEGINNING = 256


class ProcFile:
    """The beginning of a file in procfs that is read again and again, and stays open. For one thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: Optional[int] = None

    def read(self) -> bytes:
        """The first 256 bytes as they are now. Raises OSError."""
        try:
            return self._read()
        except OSError:
            if self._file is None:
                raise
            # In a system container the file is lxcfs's, and fails for ever once lxcfs was restarted.
            self.close()
            return self._read()

    def _read(self) -> bytes:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._file, _BEGINNING, 0)

    def close(self) -> None:
        """Give the file back; the next `read` opens it again."""
        file, self._file = self._file, None
        if file is not None:
            try:
                os.close(file)
            except OSError:
                pass  # lxcfs is told of the end, and may be gone; the number is free all the same

    def __del__(self) -> None:
        self.close()


class CpuTimes:
    """The counters of /proc/stat; `proc` is where procfs is mounted."""

    def __init__(self, proc: str = "/proc") -> None:
        self._stat = ProcFile(os.path.join(proc, "stat"))
        self._ticks = float(os.sysconf("SC_CLK_TCK"))

    def read(self) -> tuple[float, float]:
        """Busy seconds, and busy and idle ones, since boot, summed over all CPUs.

        Guests' time is in user and nice already (Documentation/filesystems/proc.rst), and waiting for
        a disk is idle. Raises OSError, and ValueError where the line is not the kernel's.
        """
        line, newline, _ = self._stat.read().partition(b"\n")
        fields = line.split()
        if not newline or len(fields) < 9 or fields[0] != b"cpu":
            self._stat.close()  # lxcfs has room for what there was to say when the file was opened
            raise ValueError(f"{self._stat.path} does not begin with the times of all CPUs")
        user, nice, system, idle, waiting, irq, softirq, steal = map(int, fields[1:9])
        busy = user + nice + system + irq + softirq + steal
        return busy / self._ticks, (busy + idle + waiting) / self._ticks


class MemoryInfo:
    """The memory of /proc/meminfo; `proc` is where procfs is mounted."""

    def __init__(self, proc: str = "/proc") -> None:
        self._meminfo = ProcFile(os.path.join(proc, "meminfo"))

    def read(self) -> tuple[int, int]:
        """Bytes of memory, and those that new work can have without swapping.

        Raises OSError, and ValueError where the lines are not the kernel's, or what is available cannot
        be: more than there is, or nothing, as kernels and containers say by mistake.
        """
        fields = self._meminfo.read().split(None, 9)
        if len(fields) < 10 or fields[::3][:3] != [b"MemTotal:", b"MemFree:", b"MemAvailable:"]:
            self._meminfo.close()
            raise ValueError(f"{self._meminfo.path} does not begin with what memory there is")
        total, available = int(fields[1]) << 10, int(fields[7]) << 10
        if not 0 < available <= total or fields[2:9:3] != [b"kB"] * 3:
            raise ValueError(f"{self._meminfo.path} says {available} of {total} bytes")
        return total, available
