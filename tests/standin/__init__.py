"""A stand-in for NVIDIA's management library, to be loaded by the real ``pynvml`` binding.

``nvml.c`` says what the stand-in can play. The library is found through ``LD_LIBRARY_PATH``, which
the dynamic loader reads once, so it serves processes that a test starts with
`NvmlStandIn.environment`, not the process of the test.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import NamedTuple, Union

__all__ = ["SYMBOLS", "UNSUPPORTED", "Call", "NvmlStandIn", "NvmlStandInError"]

LIBRARY = "libnvidia-ml.so.1"
UNSUPPORTED = "unsupported"

Value = Union[int, str]

_SOURCE = Path(__file__).with_name("nvml.c")
_FLAGS = (
    "-std=gnu11 -shared -fPIC -O2 -pthread -fvisibility=hidden -Wall -Wextra -Werror "
    f"-Wl,-soname,{LIBRARY}"
).split()

SYMBOLS = frozenset(
    re.findall(r"^#ifndef WITHOUT_(\w+)$", _SOURCE.read_text("utf-8"), re.MULTILINE)
)
"""The C functions that the stand-in has."""

_ALIASES = {
    "nvmlInit": "nvmlInitWithFlags",
    "nvmlDeviceGetCount": "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex": "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetPciInfo": "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetTemperatureV1": "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetComputeRunningProcesses": "nvmlDeviceGetComputeRunningProcesses_v3",
}
"""Functions of pynvml that call a C function of another name."""

_FIELDS = re.compile(
    r"name|uuid|pci_bus_id|minor|utilization|memory_utilization|memory_total|memory_used"
    r"|memory_reserved|temperature|power_mw|power_limit_mw|sm_clock|mem_clock|pstate|throttle"
    r"|energy_mj|ecc_(un)?corrected(_aggregate)?|pcie_(gen|width)(_max)?|fan|encoder|decoder"
    r"|mig_mode|persistence|bus_type|architecture|memory_bus_width|processes|mig\.(count|max)"
    r"|mig\.\d+\.(name|uuid|memory_total|memory_used|memory_reserved|processes|absent)"
)
_PER_FUNCTION = re.compile(r"((?:gpu\d+\.)?(?:error|delay_ms)\.)([\w*]+)")

_compile_lock = threading.Lock()
_own_cache: Path | None = None


class NvmlStandInError(RuntimeError):
    """The stand-in cannot be built."""


class Call(NamedTuple):
    """One call that a process made of the stand-in."""

    function: str
    gpu: int | None = None
    mig: int | None = None


class NvmlStandIn:
    """A machine with as many NVIDIA GPUs as a test wants, in the state that it wants.

    Methods that change the state take effect at the next call of the library in any process, and
    in calls that hang. Functions may be named as pynvml or as the library names them.
    """

    def __init__(
        self, directory: Path, without: Sequence[str] = (), *, cache: Path | None = None
    ) -> None:
        """Build the library without the functions in ``without`` and start with one healthy GPU.

        ``cache`` is a folder for compiled libraries that may outlive this process; without it they
        live as long as the process.
        """
        compiled = _compiled(frozenset(map(_symbol, without)), cache)
        self.directory = directory
        self.library = directory / "lib" / LIBRARY
        self.state_file = directory / "state"
        self.calls_file = directory / "calls"
        self.library.parent.mkdir(parents=True)
        shutil.copy(compiled, self.library)
        self._lock = threading.Lock()
        self._state: dict[str, str] = {}
        self._driver_loaded = True
        self._stamp = 0
        self.update({"count": 1})

    @staticmethod
    def available() -> bool:
        """Whether there is a compiler to build the library with."""
        return shutil.which("gcc") is not None

    def environment(self) -> dict[str, str]:
        """What to add to the environment of a process that is to see these GPUs."""
        path = str(self.library.parent)
        present = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": f"{path}{os.pathsep}{present}" if present else path,
            "NVML_STANDIN_STATE": str(self.state_file),
            "NVML_STANDIN_CALLS": str(self.calls_file),
        }

    # The state

    def set(self, **values: Value) -> None:
        """Set keys that are Python names: ``set(count=2, init=18)``."""
        self.update(values)

    def update(self, values: Mapping[str, Value]) -> None:
        """Set keys, all at once for the processes that look."""
        lines = dict(starmap(_line, values.items()))
        with self._lock:
            self._state.update(lines)
            self._write()

    def remove(self, *keys: str) -> None:
        """Go back to the default for these keys."""
        with self._lock:
            for key in map(_key, keys):
                self._state.pop(key, None)
            self._write()

    def reset(self) -> None:
        """Go back to one healthy GPU with its driver loaded and nothing hanging."""
        with self._lock:
            self._driver_loaded = True
            self._state = {"count": "1"}
            self._write()

    def hang(self, function: str = "*", gpu: int | None = None) -> None:
        """Make calls of this function (``*``: of all) block, in addition to those that do."""
        key = "hang" if gpu is None else f"gpu{gpu}.hang"
        symbol = _symbol(function)
        with self._lock:
            functions = [name for name in self._state.get(key, "").split(",") if name]
            self._state[key] = ",".join(dict.fromkeys([*functions, symbol]))
            self._write()

    def release(self) -> None:
        """Let every hanging call go on."""
        with self._lock:
            self._drop(r"(gpu\d+\.)?hang")

    def lose(self, index: int) -> None:
        """Make one GPU fall off the bus."""
        self.update({f"gpu{index}.lost": 1})

    def restore(self, index: int | None = None) -> None:
        """Bring a lost GPU, or all of them, back."""
        with self._lock:
            self._drop(r"gpu\d+\.lost" if index is None else rf"gpu{index}\.lost")

    def unload_driver(self) -> None:
        """Remove the state file: the library is there, its driver is not."""
        with self._lock:
            self._driver_loaded = False
            self._write()

    def load_driver(self) -> None:
        """Undo `unload_driver`."""
        with self._lock:
            self._driver_loaded = True
            self._write()

    def remove_library(self) -> None:
        """Take the library away from processes that have not loaded it yet."""
        self.library.rename(self._away)

    def restore_library(self) -> None:
        """Undo `remove_library`."""
        self._away.rename(self.library)

    # What was called

    def records(self) -> list[Call]:
        """The calls made so far, in order."""
        try:
            text = self.calls_file.read_text("utf-8")
        except FileNotFoundError:
            return []
        return [_call(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def calls(self) -> list[str]:
        """The C functions called so far, in order."""
        return [call.function for call in self.records()]

    def forget_calls(self) -> None:
        """Start the list of calls anew."""
        self.calls_file.unlink(missing_ok=True)

    def wait_for_call(self, function: str, gpu: int | None = None, timeout: float = 10) -> Call:
        """Wait until a function has been called, whether it has returned or hangs."""
        symbol = _symbol(function)
        deadline = time.monotonic() + timeout
        while True:
            for call in self.records():
                if call.function == symbol and gpu in (None, call.gpu):
                    return call
            if time.monotonic() > deadline:
                raise TimeoutError(f"no call of {symbol} within {timeout} s")
            time.sleep(0.002)

    @property
    def _away(self) -> Path:
        return self.library.with_suffix(".away")

    def _drop(self, pattern: str) -> None:
        for key in [key for key in self._state if re.fullmatch(pattern, key)]:
            del self._state[key]
        self._write()

    def _write(self) -> None:
        if not self._driver_loaded:
            self.state_file.unlink(missing_ok=True)
            return
        temporary = self.state_file.with_suffix(".new")
        lines = [f"{key}={value}\n" for key, value in self._state.items()]
        temporary.write_text("".join(lines), "utf-8")
        # Clocks of file systems are coarse and inodes are used again: with a stamp of our own no
        # two states look alike.
        self._stamp = max(time.time_ns(), self._stamp + 1)
        os.utime(temporary, ns=(self._stamp, self._stamp))
        os.replace(temporary, self.state_file)


def _symbol(function: str) -> str:
    symbol = _ALIASES.get(function, function)
    if symbol != "*" and symbol not in SYMBOLS:
        raise ValueError(f"the stand-in has no function {function}")
    return symbol


def _key(key: str) -> str:
    """Check a key, for a typo in it would make a test pass for the wrong reason."""
    per_function = _PER_FUNCTION.fullmatch(key)
    if per_function:
        return per_function.group(1) + _symbol(per_function.group(2))
    if key in ("init", "count", "driver", "cuda", "nvml", "hang"):
        return key
    scope, _, name = key.partition(".")
    if re.fullmatch(r"gpu\d+", scope) and name in ("hang", "lost"):
        return key
    if re.fullmatch(r"gpu\d*", scope) and _FIELDS.fullmatch(name):
        return key
    raise ValueError(f"the stand-in has no key {key}")


def _line(key: str, value: Value) -> tuple[str, str]:
    text = str(int(value)) if isinstance(value, bool) else str(value)
    if "\n" in text or text != text.strip():
        raise ValueError(f"a state file cannot hold {text!r}")
    if key.endswith("hang"):
        text = ",".join(_symbol(name.strip()) for name in text.split(","))
    return _key(key), text


def _call(line: str) -> Call:
    function, _, place = line.strip().partition(" ")
    gpu, _, mig = place.partition(".")
    return Call(function, int(gpu) if gpu else None, int(mig) if mig else None)


def _compiled(without: frozenset[str], cache: Path | None) -> Path:
    """Compile the library, or find it compiled."""
    if "*" in without:
        raise ValueError("a library without any function")
    source = _SOURCE.read_bytes()
    command = [*_FLAGS, *(f"-DWITHOUT_{symbol}" for symbol in sorted(without))]
    digest = hashlib.sha256(source + "\0".join(command).encode()).hexdigest()[:32]
    with _compile_lock:
        folder = cache if cache is not None else _cache()
        target = folder / f"nvml-{digest}.so"
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(command, target)
    return target


def _compile(flags: Sequence[str], target: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NvmlStandInError("gcc is needed to build the stand-in for libnvidia-ml.so.1")
    # Several processes may share a cache: each compiles to a file of its own, the last one wins.
    temporary = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, *flags, "-o", str(temporary), str(_SOURCE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NvmlStandInError(f"gcc cannot compile {_SOURCE.name}:\n{done.stdout}")
    os.replace(temporary, target)


def _cache() -> Path:
    global _own_cache
    if _own_cache is None:
        _own_cache = Path(tempfile.mkdtemp(prefix="nvml-standin-"))
        atexit.register(shutil.rmtree, _own_cache, ignore_errors=True)
    return _own_cache
