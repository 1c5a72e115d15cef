"""The NVIDIA driver, through nvidia-ml-py; the only importer of `pynvml`.

A `Session` is NVML between nvmlInit and nvmlShutdown with the devices that it found. One thread opens, reads and
closes it. Every error of the driver becomes one of four answers, by what a caller can do about it:

    NotReported     this device or driver cannot say that; not asked again in this session
    ReadingFailed   this one call failed; the next cycle asks again (NoPermission is one of its kinds)
    DeviceLost      the GPU is off the bus or wants a reset; the others go on
    NoDriver, DriverFailure (errors.py)   the session is over; open another, with back-off

Calls and codes are those of NVIDIA's NVML API Reference; `nvmlInit` is never called per sample, for without
persistence mode it wakes every GPU.
"""

from __future__ import annotations

import contextlib
import os

from .errors import DriverFailure, NoDriver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, List, Optional, Sequence, Set, Tuple, Union

LIBRARY = "libnvidia-ml.so.1"
# More than any machine holds; a driver that names more is not believed.
MOST_GPUS = 256

# NVML_ERROR_...: what each code means to us. What stands in no set is a ReadingFailed.
_NOT_REPORTED = {3, 13, 22, 25, 26}  # NOT_SUPPORTED FUNCTION_NOT_FOUND VGPU_ECC_N_S ARGUMENT_VERSION_M. DEPRECATED
_NO_PERMISSION = 4
_DEVICE_LOST = {15, 16, 28}  # GPU_IS_LOST RESET_REQUIRED GPU_NOT_FOUND
_NO_DRIVER = {9, 12}  # DRIVER_NOT_LOADED LIBRARY_NOT_FOUND
_UNINITIALIZED = 1
_VERSION_MISMATCH = 18  # LIB_RM_VERSION_MISMATCH

# Parts whose GPU memory is the host's RAM, by what NVML calls them.
_UNIFIED_NAMES = ("GB10", "THOR", "ORIN", "TEGRA", "XAVIER", "JETSON")

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


class NotReported(Exception):
    """The device or the driver does not have this reading."""


class ReadingFailed(Exception):
    """One call failed for a reason that may pass; the text is the driver's."""


class NoPermission(ReadingFailed):
    """The driver keeps this reading for root (the memory of a MIG parent, say)."""


class DeviceLost(Exception):
    """The device no longer answers; the text is the driver's."""


def load() -> ModuleType:
    """Load the driver's library and the binding.

    The library is looked for first: a host without one has no reason to hold the binding in memory (2.5 MB).

    Raises NoDriver when there is no library, DriverFailure when it or the binding cannot be used.
    """
    import ctypes

    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        if "No such file" in str(error):
            raise NoDriver(f"the NVIDIA driver's library {LIBRARY} is not installed") from None
        raise DriverFailure(f"the NVIDIA driver's library cannot be loaded: {error}") from None
    try:
        import pynvml
    except ImportError as error:
        raise DriverFailure(f"nvidia-ml-py is not installed ({error}); run: pip install nvidia-ml-py") from None
    if not hasattr(pynvml, "nvmlMemory_v2"):
        raise DriverFailure(
            "the module pynvml is an old package of another name; "
            "run: pip uninstall pynvml nvidia-ml-py3; pip install --force-reinstall nvidia-ml-py"
        )
    module: ModuleType = pynvml
    return module


class Session:
    """NVML, initialised: the driver's versions, and a `Device` or the reason of its loss for each index."""

    def __init__(self, host_memory_bytes: Optional[int] = None) -> None:
        """Open the session.

        `host_memory_bytes` is the host's RAM, by which a GPU that shares it is known.

        Raises NoDriver or DriverFailure; nothing is left open then.
        """
        self.nvml: Any = load()
        self._need("nvmlInit")
        try:
            self.driver_version: Optional[str] = self.maybe("nvmlSystemGetDriverVersion")
            self.nvml_version: Optional[str] = self.maybe("nvmlSystemGetNVMLVersion")
            cuda = self.maybe("nvmlSystemGetCudaDriverVersion")
            self.cuda_version = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None
            self.count = self.ask_count()
            memory = host_memory_bytes if host_memory_bytes is not None else _host_memory()
            self.devices: List[Union[Device, str]] = [self._device(index, memory) for index in range(self.count)]
        except BaseException:
            self.close()
            raise

    def ask_count(self) -> int:
        """How many GPUs the driver enumerates now. Raises NoDriver or DriverFailure."""
        count = int(self._need("nvmlDeviceGetCount"))
        if not 0 <= count <= MOST_GPUS:
            raise DriverFailure(f"the NVIDIA driver claims to have {count} GPUs")
        return count

    def close(self) -> None:
        """Shut NVML down; never raises, for a session that the driver has dropped has nothing left to close."""
        with contextlib.suppress(self.nvml.NVMLError):
            self.nvml.nvmlShutdown()

    def ask(self, name: str, *args: Any) -> Any:
        """Call the binding's function `name`; the driver's error becomes one of this module's answers."""
        function = getattr(self.nvml, name, None)
        if function is None:
            raise NotReported(f"this nvidia-ml-py has no {name}")
        try:
            return function(*args)
        except self.nvml.NVMLError as error:
            raise _answer(error.value, f"{str(error).rstrip('.')} (NVML error {error.value} from {name})") from None
        except UnicodeDecodeError:
            raise ReadingFailed(f"{name} answered bytes that are not text") from None

    def maybe(self, name: str, *args: Any) -> Any:
        """As `ask`, but None where the driver has no answer."""
        try:
            return self.ask(name, *args)
        except (DeviceLost, ReadingFailed, NotReported):
            return None

    def _need(self, name: str) -> Any:
        """As `ask`, for the functions on which the whole session depends."""
        try:
            return self.ask(name)
        except (DeviceLost, ReadingFailed, NotReported) as error:
            raise DriverFailure(f"the NVIDIA driver fails: {error}") from None

    def _device(self, index: int, host_memory: int) -> Union[Device, str]:
        try:
            return Device(self, self.ask("nvmlDeviceGetHandleByIndex", index), index, host_memory)
        except (DeviceLost, ReadingFailed, NotReported) as error:
            return str(error)


def _answer(code: int, what: str) -> Exception:
    if code in _NOT_REPORTED:
        return NotReported(what)
    if code == _NO_PERMISSION:
        return NoPermission(what)
    if code in _DEVICE_LOST:
        return DeviceLost(what)
    if code in _NO_DRIVER:
        return NoDriver(f"the NVIDIA driver is not loaded: {what}")
    if code == _VERSION_MISMATCH:
        return DriverFailure(f"the NVIDIA driver was updated under its library; reboot, or reload the module: {what}")
    if code == _UNINITIALIZED:
        return DriverFailure(f"the NVIDIA driver has dropped the agent's session: {what}")
    return ReadingFailed(what)


class Device:
    """One GPU of a session; its methods read it, in base units, raising this module's answers.

    `refresh` starts a new cycle: within one, a call that serves several readings is made once.
    """

    def __init__(self, session: Session, handle: Any, index: int, host_memory: int) -> None:
        self._session, self._handle = session, handle
        self._memory_answer: Any = None
        self._without: Set[str] = set()  # the newer names of calls that this driver has only by their older one
        self.index = index
        self.uuid: str = self._call("nvmlDeviceGetUUID")
        self.name: Optional[str] = session.maybe("nvmlDeviceGetName", handle)
        bus_id = getattr(session.maybe("nvmlDeviceGetPciInfo", handle), "busId", None)
        self.pci_bus_id: Optional[str] = bus_id.decode("ascii", "replace") if isinstance(bus_id, bytes) else bus_id
        self.unified_memory = any(part in (self.name or "").upper() for part in _UNIFIED_NAMES)
        if not self.unified_memory:
            # Some parts report the host's RAM as their own. A card of its own memory that is as large to a
            # thousandth does not happen by chance: a host's MemTotal is what firmware and kernel have left over.
            total = self._maybe_total()
            self.unified_memory = total is not None and abs(total - host_memory) <= host_memory // 1000

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
        newer, older = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
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

    def mig_instances(self) -> Sequence[Tuple[str, Optional[str], int, int]]:
        """UUID, name, total and used bytes of each MIG instance, by nvmlDeviceGetMigDeviceHandleByIndex."""
        found = []
        for slot in range(min(int(self._call("nvmlDeviceGetMaxMigDeviceCount")), 64)):
            try:
                handle = self._call("nvmlDeviceGetMigDeviceHandleByIndex", slot)
                total, used, _, _ = self._memory_of(handle)
                uuid = self._session.ask("nvmlDeviceGetUUID", handle)
            except (NotReported, ReadingFailed):
                continue  # an empty slot answers NOT_FOUND
            found.append((uuid, self._session.maybe("nvmlDeviceGetName", handle), total, used))
        return found

    def _memory(self) -> Tuple[int, int, int, Optional[int]]:
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
        answer: Tuple[int, int, int, Optional[int]] = self._memory_answer
        return answer

    def _memory_of(self, handle: Any) -> Tuple[int, int, int, Optional[int]]:
        reserved: Optional[int] = None
        try:
            if "nvmlDeviceGetMemoryInfo_v2" in self._without:
                raise NotReported("version 2")
            memory = self._session.ask("nvmlDeviceGetMemoryInfo", handle, self._session.nvml.nvmlMemory_v2)
            reserved = memory.reserved
        except NotReported:
            memory = self._session.ask("nvmlDeviceGetMemoryInfo", handle)
            self._without.add("nvmlDeviceGetMemoryInfo_v2")
        if not 0 <= memory.used <= memory.total or memory.total == 0:
            raise ReadingFailed(f"memory of {memory.used} bytes used out of {memory.total} makes no sense")
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


def _host_memory() -> int:
    """The kernel's MemTotal in bytes, as sysconf(3) counts it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
