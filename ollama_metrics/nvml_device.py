"""One GPU, as NVML tells of it: every reading a method, in base units.

Calls are those of NVIDIA's NVML API Reference, by the names that nvidia-ml-py gives them.
"""

from __future__ import annotations

import contextlib

from .errors import NotReported, ReadingFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional, Protocol

    class Session(Protocol):
        """What a device asks through: `nvml.Session`."""

        nvml: Any

        def ask(self, name: str, *args: Any) -> Any:
            """Call the binding's function `name`."""

        def maybe(self, name: str, *args: Any) -> Any:
            """As `ask`, but None where the driver has no answer."""


# Parts whose GPU memory is the host's RAM, by what NVML calls them.
_UNIFIED_NAMES = ("GB10", "THOR", "ORIN", "TEGRA", "XAVIER", "JETSON")

# More than a GPU has contexts for.
_MOST_PROCESSES = 1024

# Bits of nvmlDeviceGetCurrentClocksEventReasons, nvml.h: nvmlClocksEventReason...
THROTTLE_REASONS = (
    (0x001, "gpu_idle"),
    (0x002, "applications_clocks_setting"),
    (0x004, "software_power_cap"),
    (0x008, "hardware_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "software_thermal_slowdown"),
    (0x040, "hardware_thermal_slowdown"),
    (0x080, "hardware_power_brake"),
    (0x100, "display_clock_setting"),
)


class Device:
    """One GPU of a session; its methods read it, in base units, raising the answers of errors.py.

    `refresh` starts a new cycle: within one, a call that serves several readings is made once.
    """

    def __init__(self, session: Session, handle: Any, index: int, host_memory: int) -> None:
        self._session, self._handle = session, handle
        self._memory_answer: Any = None
        self._without: set[str] = (
            set()
        )  # the newer names of calls that this driver has only by their older one
        self.index = index
        self.name: Optional[str] = session.maybe("nvmlDeviceGetName", handle)
        bus_id = getattr(session.maybe("nvmlDeviceGetPciInfo", handle), "busId", None)
        self.pci_bus_id: Optional[str] = (
            bus_id.decode("ascii", "replace") if isinstance(bus_id, bytes) else bus_id
        )
        # What has no UUID is told apart by where it sits.
        self.uuid: str = (
            session.maybe("nvmlDeviceGetUUID", handle) or self.pci_bus_id or f"index-{index}"
        )
        words = (self.name or "").upper().replace("-", " ").split()
        self.unified_memory = any(part in words for part in _UNIFIED_NAMES)
        if not self.unified_memory:
            # Some parts report the host's RAM as their own. A card of its own memory that is as
            # large to a thousandth does not happen by chance: a host's MemTotal is what firmware
            # and kernel have left over.
            total = self._maybe_total()
            self.unified_memory = (
                total is not None and abs(total - host_memory) <= host_memory // 1000
            )

    def refresh(self) -> None:
        """Begin a new cycle: forget what the last one read."""
        self._memory_answer = None

    def utilization_ratio(self) -> float:
        """nvmlDeviceGetUtilizationRates().gpu: share of the driver's last sample period with a kernel running."""
        return float(self._call("nvmlDeviceGetUtilizationRates").gpu) / 100

    def memory_total_bytes(self) -> int:
        """nvmlDeviceGetMemoryInfo, version 2 where the driver has it."""
        return int(self._memory()[0])

    def memory_used_bytes(self) -> int:
        """As memory_total_bytes; without the driver's reserve where version 2 tells it apart."""
        return int(self._memory()[1])

    def memory_free_bytes(self) -> int:
        """As memory_total_bytes."""
        return int(self._memory()[2])

    def memory_reserved_bytes(self) -> int:
        """As memory_total_bytes; not reported by version 1, which counts it as used."""
        reserved = self._memory()[3]
        if reserved is None:
            raise NotReported("the driver does not tell reserved memory apart")
        return int(reserved)

    def temperature_celsius(self) -> int:
        """nvmlDeviceGetTemperatureV, or nvmlDeviceGetTemperature of older drivers: the GPU's own sensor."""
        return int(self._newest("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature", 0))

    def power_draw_watts(self) -> float:
        """nvmlDeviceGetPowerUsage, mW: the board, memory included."""
        return float(self._call("nvmlDeviceGetPowerUsage")) / 1000

    def power_limit_watts(self) -> float:
        """nvmlDeviceGetEnforcedPowerLimit, mW: the lowest of all limits in force."""
        return float(self._call("nvmlDeviceGetEnforcedPowerLimit")) / 1000

    def sm_clock_hertz(self) -> int:
        """nvmlDeviceGetClockInfo(NVML_CLOCK_SM), MHz."""
        return int(self._call("nvmlDeviceGetClockInfo", 1)) * 1_000_000

    def memory_clock_hertz(self) -> int:
        """nvmlDeviceGetClockInfo(NVML_CLOCK_MEM), MHz."""
        return int(self._call("nvmlDeviceGetClockInfo", 2)) * 1_000_000

    def performance_state(self) -> int:
        """nvmlDeviceGetPerformanceState; 32 is NVML's "unknown"."""
        state = int(self._call("nvmlDeviceGetPerformanceState"))
        if not 0 <= state <= 15:
            raise NotReported(f"performance state {state}")
        return state

    def throttle_bits(self) -> int:
        """nvmlDeviceGetCurrentClocksEventReasons, by its older name before driver 535."""
        newer, older = (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        )
        return int(self._newest(newer, older))

    def energy_joules_total(self) -> float:
        """nvmlDeviceGetTotalEnergyConsumption, mJ since the driver was loaded."""
        return float(self._call("nvmlDeviceGetTotalEnergyConsumption")) / 1000

    def ecc_corrected_errors_total(self) -> int:
        """nvmlDeviceGetTotalEccErrors(CORRECTED, VOLATILE): since the driver was loaded."""
        return int(self._call("nvmlDeviceGetTotalEccErrors", 0, 0))

    def ecc_uncorrected_errors_total(self) -> int:
        """nvmlDeviceGetTotalEccErrors(UNCORRECTED, VOLATILE): since the driver was loaded."""
        return int(self._call("nvmlDeviceGetTotalEccErrors", 1, 0))

    def pcie_link_generation(self) -> int:
        """nvmlDeviceGetCurrPcieLinkGeneration; it falls when the GPU idles."""
        return int(self._call("nvmlDeviceGetCurrPcieLinkGeneration"))

    def pcie_link_width(self) -> int:
        """nvmlDeviceGetCurrPcieLinkWidth, lanes."""
        return int(self._call("nvmlDeviceGetCurrPcieLinkWidth"))

    def fan_speed_ratio(self) -> float:
        """nvmlDeviceGetFanSpeed: share of the full speed that is asked for; can pass 1."""
        return float(self._call("nvmlDeviceGetFanSpeed")) / 100

    def encoder_utilization_ratio(self) -> float:
        """nvmlDeviceGetEncoderUtilization."""
        return float(self._call("nvmlDeviceGetEncoderUtilization")[0]) / 100

    def decoder_utilization_ratio(self) -> float:
        """nvmlDeviceGetDecoderUtilization."""
        return float(self._call("nvmlDeviceGetDecoderUtilization")[0]) / 100

    def mig_enabled(self) -> bool:
        """nvmlDeviceGetMigMode: whether the GPU is split into instances now."""
        return bool(self._call("nvmlDeviceGetMigMode")[0] == 1)

    def mig_instances(self) -> Sequence[tuple[str, Optional[str], Optional[int], Optional[int]]]:
        """UUID, name, total and used bytes of each MIG instance, by nvmlDeviceGetMigDeviceHandleByIndex.

        Bytes are None where an instance is there and cannot be read.
        """
        found = []
        for slot in range(min(int(self._call("nvmlDeviceGetMaxMigDeviceCount")), 64)):
            try:
                handle = self._call("nvmlDeviceGetMigDeviceHandleByIndex", slot)
            except (NotReported, ReadingFailed):
                continue  # an empty slot answers NOT_FOUND
            total: Optional[int] = None
            used: Optional[int] = None
            with contextlib.suppress(NotReported, ReadingFailed):
                total, used, _, _ = self._memory_of(handle)
            uuid = self._session.maybe("nvmlDeviceGetUUID", handle) or f"{self.uuid}/{slot}"
            found.append((uuid, self._session.maybe("nvmlDeviceGetName", handle), total, used))
        return found

    def processes(self) -> tuple[tuple[int, Optional[int]], ...]:
        """nvmlDeviceGetComputeRunningProcesses, version 3: (pid, bytes used or None) of each."""
        found = self._call("nvmlDeviceGetComputeRunningProcesses_v3")
        return tuple((int(one.pid), one.usedGpuMemory) for one in found[:_MOST_PROCESSES])

    def _memory(self) -> tuple[int, int, int, Optional[int]]:
        """Total, used, free and reserved bytes; one call a cycle, whatever its answer."""
        if self._memory_answer is None:
            try:
                if self.unified_memory:
                    raise NotReported("its memory is the host's RAM, which is counted there")
                self._memory_answer = self._memory_of(self._handle)
            except (NotReported, ReadingFailed) as error:
                self._memory_answer = error
        if isinstance(self._memory_answer, Exception):
            raise self._memory_answer
        answer: tuple[int, int, int, Optional[int]] = self._memory_answer
        return answer

    def _memory_of(self, handle: Any) -> tuple[int, int, int, Optional[int]]:
        reserved: Optional[int] = None
        try:
            if "nvmlDeviceGetMemoryInfo_v2" in self._without:
                raise NotReported("version 2")
            memory = self._session.ask(
                "nvmlDeviceGetMemoryInfo", handle, self._session.nvml.nvmlMemory_v2
            )
            reserved = memory.reserved
        except NotReported:
            memory = self._session.ask("nvmlDeviceGetMemoryInfo", handle)
            self._without.add("nvmlDeviceGetMemoryInfo_v2")
        if not 0 <= memory.used <= memory.total or memory.total == 0:
            raise ReadingFailed(
                f"memory of {memory.used} bytes used out of {memory.total} makes no sense"
            )
        return memory.total, memory.used, memory.free, reserved

    def _maybe_total(self) -> Optional[int]:
        try:
            return self._memory_of(self._handle)[0]
        except (NotReported, ReadingFailed):
            return None  # to be silent about memory is not yet to share it: MIG parents need a permission

    def _newest(self, newer: str, older: str, *args: Any) -> Any:
        """The newer of two calls, or the older one where binding or driver lack it."""
        if newer not in self._without:
            try:
                return self._call(newer, *args)
            except NotReported:
                answer = self._call(older, *args)
                self._without.add(newer)
                return answer
        return self._call(older, *args)

    def _call(self, name: str, *args: Any) -> Any:
        return self._session.ask(name, self._handle, *args)
