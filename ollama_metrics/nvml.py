"""The NVIDIA driver, through nvidia-ml-py; the only importer of `pynvml`.

A `Session` is NVML between nvmlInit and nvmlShutdown with the devices that it found. One thread
opens, reads and closes it. Every error of the driver becomes one of four answers, by what a caller
can do about it:

    NotReported     this device or driver cannot say that; not asked again in this session
    ReadingFailed   this one call failed; the next cycle asks again (NoPermission is one of its kinds)
    DeviceLost      the GPU is off the bus or wants a reset; the others go on
    NoDriver, DriverFailure (errors.py)   the session is over; open another, with back-off

Calls and codes are those of NVIDIA's NVML API Reference; `nvmlInit` is never called per sample, for
without persistence mode it wakes every GPU.
"""

from __future__ import annotations

import contextlib
import os

from .errors import (
    DeviceLost,
    DriverFailure,
    DriverReplaced,
    NoDriver,
    NoLibrary,
    NoPermission,
    NotReported,
    ReadingFailed,
)
from .expectation import MOST_GPUS
from .nvml_device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Optional, Union

LIBRARY = "libnvidia-ml.so.1"
# The driver's module, its devices, and Windows' GPUs in its subsystem for Linux.
_DRIVERS_TRACES = ("proc/driver/nvidia", "sys/module/nvidia", "dev/nvidiactl", "dev/dxg")
_CACHE_PIECE_BYTES = 1 << 14
# NVML_ERROR_...: what each code means to us. What stands in no set is a ReadingFailed.
# NOT_SUPPORTED FUNCTION_NOT_FOUND VGPU_ECC_NOT_SUPPORTED ARGUMENT_VERSION_MISMATCH DEPRECATED
_NOT_REPORTED = {3, 13, 22, 25, 26}
_NO_PERMISSION = 4
_DEVICE_LOST = {15, 16, 28}  # GPU_IS_LOST RESET_REQUIRED GPU_NOT_FOUND
_NO_DRIVER = {9, 12}  # DRIVER_NOT_LOADED LIBRARY_NOT_FOUND
_UNINITIALIZED = 1
_VERSION_MISMATCH = 18  # LIB_RM_VERSION_MISMATCH


def traces(root: str = "/") -> bool:
    """Whether the dynamic loader might find the driver's library, or a driver is there: in doubt, yes.

    Source: what ld.so(8) looks through, and what the driver's module puts into procfs, sysfs and /dev.
    """
    if os.environ.get("LD_LIBRARY_PATH") or os.environ.get("LD_PRELOAD"):
        return True
    if any(os.path.lexists(f"{root}{path}") for path in _DRIVERS_TRACES):
        return True
    machine = os.uname().machine
    folders = [
        f"{top}{folder}" for top in ("", "usr/", "usr/local/") for folder in ("lib", "lib64")
    ]
    folders += [f"{top}lib/{machine}-linux-gnu" for top in ("", "usr/")]
    if any(os.path.lexists(f"{root}{folder}/{LIBRARY}") for folder in folders):
        return True
    named, before = LIBRARY.encode("ascii"), b""
    try:
        with open(f"{root}etc/ld.so.cache", "rb", buffering=0) as cache:
            while piece := cache.read(_CACHE_PIECE_BYTES):
                if named in before + piece:
                    return True
                before = piece[-len(named) :]
    except OSError:
        return True  # another loader than glibc's, or it may not be read: only the loader knows
    return False


def load() -> ModuleType:
    """Load the driver's library and the binding.

    The library is looked for first: a host without one has no reason to hold the binding in memory
    (2.5 MB), and one without any trace of it not even ctypes (0.4 MB).

    Raises NoLibrary when there is none, DriverFailure when it or the binding cannot be used.
    """
    if not traces():
        raise NoLibrary(f"the NVIDIA driver's library {LIBRARY} is not installed")

    import ctypes

    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        # Not so when it is there and a library that it needs is missing.
        if str(error).startswith(
            (f"{LIBRARY}: cannot open", f"Error loading shared library {LIBRARY}:")
        ):
            raise NoLibrary(f"the NVIDIA driver's library {LIBRARY} is not installed") from None
        raise DriverFailure(f"the NVIDIA driver's library cannot be loaded: {error}") from None
    try:
        import pynvml
    except ImportError as error:
        raise DriverFailure(
            f"nvidia-ml-py is not installed ({error}); run: pip install nvidia-ml-py"
        ) from None
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
            self.devices: list[Union[Device, str]] = [
                self._device(index, memory) for index in range(self.count)
            ]
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
            raise _answer(
                error.value, f"{str(error).rstrip('.')} (NVML error {error.value} from {name})"
            ) from None
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
        return DriverReplaced(
            f"the NVIDIA driver was updated under its library; reboot, or reload the module: {what}"
        )
    if code == _UNINITIALIZED:
        return DriverFailure(f"the NVIDIA driver has dropped the agent's session: {what}")
    return ReadingFailed(what)


def _host_memory() -> int:
    """The kernel's MemTotal in bytes, as sysconf(3) counts it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
