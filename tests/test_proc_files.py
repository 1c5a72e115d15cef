"""CPU times and memory: against psutil, against scripted lines, and against files that are none."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ollama_metrics import proc_files
from ollama_metrics.proc_files import CpuTimes, MemoryInfo

TICKS = os.sysconf("SC_CLK_TCK")
# Steal and waiting for a disk are estimates, which the kernel takes back now and then.
JITTER = 1.0


class Files:
    """Sees what is opened and closed; those that are `dead` cannot be read, and tell it when they are closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.dead: list[int] = []
        self.close_fails = False
        self._open, self._close, self._pread = os.open, os.close, os.pread
        # By the module's own name for it, for other threads open files as well.
        names = {**vars(os), "open": self.open, "close": self.close, "pread": self.pread}
        monkeypatch.setattr(proc_files, "os", SimpleNamespace(**names))

    def open(self, path: str, flags: int) -> int:
        # Numbers are not used again: they are those of copies above all others.
        file = self._open(path, flags)
        self.opened.append(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 500 + len(self.opened)))
        self._close(file)
        return self.opened[-1]

    def close(self, file: int) -> None:
        self.closed.append(file)
        self._close(file)
        if file in self.dead and self.close_fails:
            raise OSError(107, "Transport endpoint is not connected")

    def pread(self, file: int, size: int, offset: int) -> bytes:
        if file in self.dead:
            raise OSError(107, "Transport endpoint is not connected")
        return self._pread(file, size, offset)


def by_psutil() -> tuple[float, float]:
    """Busy seconds, and all of them, as psutil tells the parts."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return busy, busy + times.idle + times.iowait


def test_the_times_are_psutils() -> None:
    """A reading lies between one of psutil's before it and one after it, busy and in all."""
    times = CpuTimes()
    before, own, after = by_psutil(), times.read(), by_psutil()
    for first, here, last in zip(before, own, after):
        assert first - JITTER <= here <= last + JITTER
    assert own[1] > own[0] > 0


def test_what_counts_as_busy(tmp_path: Path) -> None:
    """Idle and waiting for a disk are not busy; guests' time is not counted a second time."""
    (tmp_path / "stat").write_text("cpu  1 20 300 4000 50000 600000 7000000 80000000 5 6\ncpu0 9\n")
    busy = 1 + 20 + 300 + 600000 + 7000000 + 80000000
    assert CpuTimes(str(tmp_path)).read() == (busy / TICKS, (busy + 4000 + 50000) / TICKS)


def test_each_reading_is_a_new_one_of_one_open_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file says now is what is read, by one descriptor, which goes with its reader."""
    files = Files(monkeypatch)
    stat = tmp_path / "stat"
    times = CpuTimes(str(tmp_path))
    totals = []
    for busy in (100, 250, 975):
        stat.write_text(f"cpu  {busy} 0 0 0 0 0 0 0 0 0\n")
        totals.append(times.read()[1] * TICKS)
    assert totals == [100, 250, 975]
    assert (len(files.opened), files.closed) == (1, [])
    del times
    assert files.closed == files.opened


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "cpu  1 2 3 4 5 6 7 8 9 10",  # cut off: who knows how long the last number was
        "cpu  1 2 3 4 5 6 7\n",
        "cpu0 1 2 3 4 5 6 7 8 9 10\ncpu  1 2 3 4 5 6 7 8 9 10\n",
        "cpu  1 2 three 4 5 6 7 8 9 10\n",
        "cpu  1 2 3 4 5 6 7 8.5 9 10\n",
        f"cpu  {'9' * 300} 2 3 4 5 6 7 8 9 10\n",
        "intr 1 2 3 4 5 6 7 8 9 10\n",
    ],
)
def test_a_line_of_another_kind_is_an_error(tmp_path: Path, text: str) -> None:
    """What is not the kernel's line is a ValueError, never a number."""
    (tmp_path / "stat").write_text(text)
    with pytest.raises(ValueError):
        CpuTimes(str(tmp_path)).read()


def test_memory_is_psutils() -> None:
    """The size is psutil's, and what is available lies about where psutil sees it before and after."""
    before, own, after = psutil.virtual_memory(), MemoryInfo().read(), psutil.virtual_memory()
    assert own[0] == before.total
    lowest, highest = sorted((before.available, after.available))
    assert lowest - own[0] / 50 <= own[1] <= highest + own[0] / 50


def test_memory_of_a_scripted_file(tmp_path: Path) -> None:
    """In kibibytes there, in bytes here."""
    text = "MemTotal:       1000 kB\nMemFree:  100 kB\nMemAvailable:    400 kB\nBuffers: 7 kB\n"
    (tmp_path / "meminfo").write_text(text)
    assert MemoryInfo(str(tmp_path)).read() == (1024000, 409600)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400",
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB",  # cut off, for all that is known
        "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 400 kB\nCached: 7 kB\n",  # before Linux 3.14
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 1001 kB\nBuffers: 7 kB\n",
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: -1 kB\nBuffers: 7 kB\n",
        "MemTotal: 0 kB\nMemFree: 0 kB\nMemAvailable: 0 kB\nBuffers: 7 kB\n",
        "MemTotal: 1000 kB\nMemFree: 900 kB\nMemAvailable: 0 kB\nBuffers: 7 kB\n",
        "MemTotal: 1000 MB\nMemFree: 100 MB\nMemAvailable: 400 MB\nBuffers: 7 MB\n",
        "MemTotal: many kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 7 kB\n",
        f"MemTotal: {'9' * 300} kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nBuffers: 7 kB\n",
    ],
)
def test_memory_of_another_kind_is_an_error(tmp_path: Path, text: str) -> None:
    """What is not the kernel's, or cannot be, is a ValueError, never a number."""
    (tmp_path / "meminfo").write_text(text)
    with pytest.raises(ValueError):
        MemoryInfo(str(tmp_path)).read()


@pytest.mark.parametrize("close_fails", [False, True])
def test_an_open_file_that_fails_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, close_fails: bool
) -> None:
    """As after a restart of lxcfs, when closing fails, too: the same reading opens it anew, and nothing is seen."""
    (tmp_path / "stat").write_text("cpu  100 0 0 100 0 0 0 0 0 0\n")
    files = Files(monkeypatch)
    times = CpuTimes(str(tmp_path))
    assert times.read() == (100 / TICKS, 200 / TICKS)
    files.dead, files.close_fails = list(files.opened), close_fails
    for _ in range(3):
        assert times.read() == (100 / TICKS, 200 / TICKS)
    assert len(files.opened) == 2
    assert files.closed == files.opened[:1]


def test_a_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs readings until there is one again, and no more than the one descriptor."""
    files = Files(monkeypatch)
    stat = tmp_path / "stat"
    times = CpuTimes(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        times.read()
    stat.mkdir()
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            times.read()
    assert len(files.opened) - len(files.closed) <= 1
    stat.rmdir()
    stat.write_text("cpu  100 0 0 100 0 0 0 0 0 0\n")
    assert times.read() == (100 / TICKS, 200 / TICKS)


def test_a_file_that_says_nothing_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beginning that makes no sense may be that of the open file alone."""
    files = Files(monkeypatch)
    (tmp_path / "stat").write_text("")
    (tmp_path / "meminfo").write_text("")
    for reader in (CpuTimes(str(tmp_path)), MemoryInfo(str(tmp_path))):
        with pytest.raises(ValueError):
            reader.read()
    assert files.closed == files.opened
    assert len(files.closed) == 2
