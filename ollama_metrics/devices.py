"""What the host's network interfaces and disks have moved: counters, read by a sampler of their own.

For graphs alone: no verdict depends on it, and no answer waits for it, whatever a disk hangs in. Only what
is there in hardware counts, for what is virtual counts the same bytes again (docs/METRICS.md):

- an interface that has a device behind it in sysfs (no bridge, bond, VLAN or tunnel). In a container's
  network namespace there is none: every interface but loopback counts there, and what is told is the
  container's.
- a block device that has one (no partition, loop device, RAM disk, RAID or logical volume).
"""

from __future__ import annotations

import os

import psutil

from .errors import CollectorError
from .frozen import dataclass
from .metrics import counter, detail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Optional

    from .window import Levels

# Prometheus asks every 15 s as a rule, and looks at rates over a minute and more.
SECONDS = 30.0
# Of each kind: a host with more has virtual ones that look like hardware, and labels are to be few.
_MOST = 64


@dataclass(frozen=True)
class NetworkInterface:
    """What one network interface has moved.

    Source: psutil over /proc/net/dev.
    """

    PREFIX = "ollama_host_network"
    LABELS = (("interface", "interface"),)

    interface: str = detail("Name of the interface.")
    receive_bytes_total: int = counter("Bytes received.")
    transmit_bytes_total: int = counter("Bytes sent.")
    receive_errors_total: int = counter(
        "Packets that were received with an error.", json="receive_errors"
    )
    transmit_errors_total: int = counter(
        "Packets that could not be sent for an error.", json="transmit_errors"
    )
    receive_dropped_total: int = counter(
        "Packets that were received and dropped.", json="receive_dropped"
    )
    transmit_dropped_total: int = counter(
        "Packets that were dropped instead of sent.", json="transmit_dropped"
    )


@dataclass(frozen=True)
class Disk:
    """What one block device has moved.

    Source: psutil over /proc/diskstats; errors: ioerr_cnt in sysfs, which only SCSI and SATA disks have.
    """

    PREFIX = "ollama_host_disk"
    LABELS = (("device", "device"),)

    device: str = detail("Name of the block device.")
    read_bytes_total: int = counter("Bytes read.")
    written_bytes_total: int = counter("Bytes written.")
    errors_total: Optional[int] = counter("Requests that ended in an error.", json="errors")


@dataclass(frozen=True)
class DeviceReading:
    """All of the host's interfaces and disks, by name."""

    interfaces: tuple[NetworkInterface, ...] = ()
    disks: tuple[Disk, ...] = ()

    def levels(self) -> Mapping[str, Levels]:
        """Nothing for the ring: these are counters."""
        return {}


class DeviceCollector:
    """Takes `DeviceReading`s; `sys` is where sysfs is mounted."""

    def __init__(self, sys: str = "/sys") -> None:
        self._sys = sys
        self._known: dict[str, tuple[set[str], list[str]]] = {}  # of a kind: all names, hardware's
        self.pause = 0.0

    def collect(self) -> DeviceReading:
        """One reading. Raises CollectorError when the kernel's files cannot be read."""
        try:
            network = psutil.net_io_counters(pernic=True, nowrap=False) or {}
            disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        except (OSError, ValueError, RuntimeError, NotImplementedError, psutil.Error) as error:
            raise CollectorError(f"network and disk counters cannot be read: {error}") from error
        return DeviceReading(
            tuple(
                NetworkInterface(
                    interface=name,
                    receive_bytes_total=network[name].bytes_recv,
                    transmit_bytes_total=network[name].bytes_sent,
                    receive_errors_total=network[name].errin,
                    transmit_errors_total=network[name].errout,
                    receive_dropped_total=network[name].dropin,
                    transmit_dropped_total=network[name].dropout,
                )
                for name in self._interfaces(network)
            ),
            tuple(
                Disk(
                    device=name,
                    read_bytes_total=disks[name].read_bytes,
                    written_bytes_total=disks[name].write_bytes,
                    errors_total=self._disk_errors(name),
                )
                for name in self._hardware("block", disks)
            ),
        )

    def _interfaces(self, names: Iterable[str]) -> list[str]:
        hardware = self._hardware("class/net", names)
        return hardware or sorted(name for name in names if name != "lo")[:_MOST]

    def _hardware(self, kind: str, names: Iterable[str]) -> list[str]:
        """Those of the names that have a device behind them; sysfs is asked when they are other names."""
        named = set(names)
        before = self._known.get(kind)
        if before is not None and before[0] == named:
            return before[1]
        hardware = sorted(
            name
            for name in named
            # A / in a name (cciss/c0d0) is a ! there.
            if os.path.exists(f"{self._sys}/{kind}/{name.replace('/', '!')}/device")
        )[:_MOST]
        if hardware:  # none at all may be sysfs's fault, and is looked for again
            self._known[kind] = named, hardware
        return hardware

    def _disk_errors(self, name: str) -> Optional[int]:
        try:
            with open(f"{self._sys}/block/{name.replace('/', '!')}/device/ioerr_cnt", "rb") as file:
                return int(file.read(64), 16)
        except (OSError, ValueError):
            return None
