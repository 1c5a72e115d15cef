"""Network interfaces and disks: which of them count, and that the counts are the kernel's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import psutil
import pytest
from agent_process import AgentProcess

from ollama_metrics.devices import DeviceCollector
from ollama_metrics.errors import CollectorError

SECTOR = 512  # bytes, whatever the disk's own are (Documentation/admin-guide/iostats.rst)


class Traffic(NamedTuple):
    """What psutil tells of an interface."""

    bytes_sent: int = 2
    bytes_recv: int = 1
    packets_sent: int = 0
    packets_recv: int = 0
    errin: int = 3
    errout: int = 4
    dropin: int = 5
    dropout: int = 6


class Io(NamedTuple):
    """What psutil tells of a disk."""

    read_bytes: int = 7
    write_bytes: int = 8


def told(
    monkeypatch: pytest.MonkeyPatch,
    network: Optional[dict[str, Any]],
    disks: Optional[dict[str, Any]],
) -> None:
    """Have psutil tell these."""
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: network)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: disks)


def sysfs(root: Path, *devices: str) -> str:
    """A sysfs in which these have hardware behind them (`class/net/eno1`)."""
    for name in devices:
        (root / name / "device").mkdir(parents=True)
    return str(root)


def test_only_what_is_hardware_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bridge, a bond, loopback, a partition and a logical volume move the same bytes again."""
    network = dict.fromkeys(("lo", "br0", "eno2", "eno1", "bond0", "veth12"), Traffic())
    told(monkeypatch, network, dict.fromkeys(("sda", "sda1", "dm-0", "md0", "loop0"), Io()))
    sys = sysfs(tmp_path, "class/net/eno1", "class/net/eno2", "block/sda")
    reading = DeviceCollector(sys).collect()
    assert [one.interface for one in reading.interfaces] == ["eno1", "eno2"]
    assert [one.device for one in reading.disks] == ["sda"]
    eno1, sda = reading.interfaces[0], reading.disks[0]
    assert (eno1.receive_bytes_total, eno1.transmit_bytes_total) == (1, 2)
    assert (eno1.receive_errors_total, eno1.transmit_errors_total) == (3, 4)
    assert (eno1.receive_dropped_total, eno1.transmit_dropped_total) == (5, 6)
    assert (sda.read_bytes_total, sda.written_bytes_total, sda.errors_total) == (7, 8, None)


def test_in_a_container_every_interface_but_loopback_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no hardware in its namespace."""
    told(monkeypatch, dict.fromkeys(("lo", "eth0"), Traffic()), None)
    reading = DeviceCollector(sysfs(tmp_path)).collect()
    assert [one.interface for one in reading.interfaces] == ["eth0"]
    assert reading.disks == ()


@pytest.mark.parametrize(
    ("text", "errors"), [("0x0\n", 0), ("0x1f\n", 31), ("nonsense", None), ("", None)]
)
def test_a_scsi_disk_tells_its_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, errors: Optional[int]
) -> None:
    """In hexadecimal, as the kernel writes it; what is no number is not reported."""
    told(monkeypatch, {}, {"sda": Io()})
    sys = sysfs(tmp_path, "block/sda")
    (tmp_path / "block/sda/device/ioerr_cnt").write_text(text)
    assert DeviceCollector(sys).collect().disks[0].errors_total == errors


def test_a_host_with_very_many_shows_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels stay few: the first 64 by name."""
    told(monkeypatch, {f"veth{number:03}": Traffic() for number in range(500)}, None)
    reading = DeviceCollector(sysfs(tmp_path)).collect()
    assert len(reading.interfaces) == 64
    assert reading.interfaces[0].interface == "veth000"


def test_what_comes_and_goes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware that is plugged in shows in the next reading, and what is pulled out no more."""
    sys = sysfs(tmp_path, "class/net/eno1", "class/net/enx2")
    collector = DeviceCollector(sys)
    shown = []
    for names in (("eno1", "veth0"), ("eno1", "enx2", "veth0"), ("enx2", "veth1")):
        told(monkeypatch, dict.fromkeys(names, Traffic()), None)
        shown.append([one.interface for one in collector.collect().interfaces])
    assert shown == [["eno1"], ["eno1", "enx2"], ["enx2"]]


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), NotImplementedError("format")])
def test_what_cannot_be_read_is_a_failure_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A sandbox that hides the files, a kernel whose format nobody knows."""

    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(psutil, "disk_io_counters", fail)
    with pytest.raises(CollectorError, match="network and disk counters cannot be read"):
        DeviceCollector().collect()


def test_the_counts_are_the_kernels() -> None:
    """Between two readings of /proc/net/dev and /proc/diskstats by the test itself, which only grow."""
    before = kernel()
    reading = DeviceCollector().collect()
    after = kernel()
    assert reading.interfaces
    for one in reading.interfaces:
        received = f"{one.interface} received"
        assert before[received] <= one.receive_bytes_total <= after[received]
        sent = f"{one.interface} sent"
        assert before[sent] <= one.transmit_bytes_total <= after[sent]
    for disk in reading.disks:
        name = f"{disk.device} read"
        assert before[name] <= disk.read_bytes_total <= after[name]
        name = f"{disk.device} written"
        assert before[name] <= disk.written_bytes_total <= after[name]


def kernel() -> dict[str, int]:
    """Bytes by interface or disk, and direction (proc(5))."""
    counts = {}
    for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        numbers = rest.split()
        counts[f"{name.strip()} received"] = int(numbers[0])
        counts[f"{name.strip()} sent"] = int(numbers[8])
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        counts[f"{fields[2]} read"] = int(fields[5]) * SECTOR
        counts[f"{fields[2]} written"] = int(fields[9]) * SECTOR
    return counts


def test_the_agent_serves_them(start_agent: Callable[..., AgentProcess]) -> None:
    """In JSON and as families with their labels, and the collector's health beside the others'."""
    agent = start_agent()
    document = agent.metrics()
    assert document["collectors"]["devices"]["success"]
    assert document["network"]
    assert {"interface", "receive_mb", "transmit_mb"} <= set(document["network"][0])
    assert isinstance(document["disks"], list)
    name = document["network"][0]["interface"]
    text = agent.get("/metrics?format=prometheus").body.decode()
    assert f'ollama_host_network_receive_bytes_total{{interface="{name}"}} ' in text
