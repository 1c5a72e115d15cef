"""The CPU time of all CPUs together, from the first line of /proc/stat.

psutil.cpu_times reads the same line, opening a file, a buffer and a named tuple for it each time. Once a
second, in memory that has gone cold since, that was the largest part of an idle agent's CPU; one read of a
file that stays open takes well under half of it (CONTRIBUTING.md).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# "cpu  " and ten numbers of at most 20 digits.
_MOST_LINE = 256


class CpuTimes:
    """Reads the counters; `proc` is where procfs is mounted. For one thread."""

    def __init__(self, proc: str = "/proc") -> None:
        self._path = os.path.join(proc, "stat")
        self._file: Optional[int] = None
        self._ticks = float(os.sysconf("SC_CLK_TCK"))

    def read(self) -> tuple[float, float]:
        """Busy seconds, and busy and idle ones, since boot, summed over all CPUs.

        Guests' time is in user and nice already (Documentation/filesystems/proc.rst), and waiting for
        a disk is idle. Raises OSError, and ValueError where the line is not the kernel's.
        """
        try:
            text = self._beginning()
        except OSError:
            # In a system container the file is lxcfs's, and fails for ever once lxcfs was restarted.
            self.close()
            text = self._beginning()
        line, newline, _ = text.partition(b"\n")
        fields = line.split()
        if not newline or len(fields) < 9 or fields[0] != b"cpu":
            raise ValueError(f"{self._path} does not begin with the times of all CPUs")
        user, nice, system, idle, waiting, irq, softirq, steal = map(int, fields[1:9])
        busy = user + nice + system + irq + softirq + steal
        return busy / self._ticks, (busy + idle + waiting) / self._ticks

    def _beginning(self) -> bytes:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._file, _MOST_LINE, 0)

    def close(self) -> None:
        """Give the file back; the next `read` opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()
