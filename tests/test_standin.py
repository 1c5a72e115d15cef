"""The stand-in for NVIDIA's library does what a real one does, seen through the real binding."""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from standin import SYMBOLS, UNSUPPORTED, Call, NvmlStandIn, NvmlStandInError

pynvml = pytest.importorskip("pynvml")
pytestmark = pytest.mark.skipif(not NvmlStandIn.available(), reason="no gcc for the stand-in")

# Evaluates what it reads: a line "!EXPRESSION" at once, a line "&EXPRESSION" in a thread. It dies
# by itself should a test leave it hanging.
DRIVER = """
import ctypes, faulthandler, json, os, sys, threading, time
from pynvml import *
import pynvml

faulthandler.dump_traceback_later(120, exit=True)
printing = threading.Lock()

def plain(value):
    if isinstance(value, ctypes.Structure):
        return {name: getattr(value, name) for name, *_ in value._fields_}
    if isinstance(value, pynvml.nvmlFriendlyObject):
        return vars(value)
    return None

def gpu(index):
    return nvmlDeviceGetHandleByIndex(index)

def resident_pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def mig(index, slot):
    return nvmlDeviceGetMigDeviceHandleByIndex(gpu(index), slot)

def answer(kind, expression):
    try:
        value = eval(expression, globals())
    except NVMLError as error:
        value = type(error).__name__
    with printing:
        print(json.dumps([kind, value], default=plain), flush=True)

for line in sys.stdin:
    if line[0] == "&":
        threading.Thread(target=answer, args=("&", line[1:]), daemon=True).start()
    else:
        answer("!", line[1:])
"""


class Child:
    """A process that has loaded pynvml and finds the stand-in."""

    def __init__(self, standin: NvmlStandIn, flags: str = "-Werror") -> None:
        self._process = subprocess.Popen(
            [sys.executable, flags, "-c", DRIVER],
            env={**os.environ, **standin.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.finished: list[Any] = []

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, expression: str) -> Any:
        """The value of an expression, or the name of the NVML error that it raised."""
        newer = "nvmlDeviceGetTemperatureV"
        if newer in expression and not hasattr(pynvml, newer):
            pytest.skip("this version of nvidia-ml-py does not know the function yet")
        self._send("!", expression)
        return self._receive("!")

    def start(self, expression: str) -> None:
        """Evaluate an expression in a thread."""
        self._send("&", expression)

    def finish(self) -> Any:
        """The value of the expression that was started, as soon as it is there."""
        return self.finished.pop(0) if self.finished else self._receive("&")

    def _send(self, kind: str, expression: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind}{expression}\n")
        self._process.stdin.flush()

    def _receive(self, wanted: str) -> Any:
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            assert line, "the child is gone"
            kind, value = json.loads(line)
            if kind == wanted:
                return value
            self.finished.append(value)


Build = Callable[..., NvmlStandIn]
Start = Callable[[NvmlStandIn], Child]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def standin(tmp_path: Path, cache: Path) -> NvmlStandIn:
    return NvmlStandIn(tmp_path / "nvml", cache=cache)


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda standin: stack.enter_context(Child(standin))


@pytest.fixture
def child(standin: NvmlStandIn, start: Start) -> Child:
    """A process that has called nvmlInit."""
    process = start(standin)
    assert process.ask("nvmlInit()") is None
    return process


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, cache: Path
) -> Iterator[tuple[NvmlStandIn, Child]]:
    standin = NvmlStandIn(tmp_path_factory.mktemp("shared"), cache=cache)
    with Child(standin) as child:
        assert child.ask("nvmlInit()") is None
        yield standin, child


@pytest.fixture
def machine(shared: tuple[NvmlStandIn, Child]) -> tuple[NvmlStandIn, Child]:
    """A process that has called nvmlInit, which tests share that only look at values."""
    shared[0].reset()
    return shared


# Values

GIB = 1024**3

FIELDS: list[tuple[str, int | str, str, Any, Any]] = [
    # key, value, what is called, what it answers with that value, and by default
    ("name", "NVIDIA L4", "nvmlDeviceGetName(gpu(0))", "NVIDIA L4", "NVIDIA H100 80GB HBM3"),
    (
        "uuid",
        "GPU-11111111-2222-3333-4444-555555555555",
        "nvmlDeviceGetUUID(gpu(0))",
        "GPU-11111111-2222-3333-4444-555555555555",
        "GPU-00000000-4d67-5e1f-9c2b-000000000000",
    ),
    (
        "pci_bus_id",
        "0000:af:1f.0",
        "nvmlDeviceGetPciInfo(gpu(0)).busId",
        "00000000:AF:1F.0",
        "00000000:10:00.0",
    ),
    ("minor", 5, "nvmlDeviceGetMinorNumber(gpu(0))", 5, 0),
    ("utilization", 99, "nvmlDeviceGetUtilizationRates(gpu(0)).gpu", 99, 37),
    ("memory_utilization", 3, "nvmlDeviceGetUtilizationRates(gpu(0)).memory", 3, 12),
    ("memory_total", 96 * GIB, "nvmlDeviceGetMemoryInfo(gpu(0)).total", 96 * GIB, 85520809984),
    (
        "memory_used",
        GIB,
        "nvmlDeviceGetMemoryInfo(gpu(0), nvmlMemory_v2).used",
        GIB,
        20 * GIB,
    ),
    (
        "memory_reserved",
        GIB,
        "nvmlDeviceGetMemoryInfo(gpu(0), nvmlMemory_v2).reserved",
        GIB,
        657457152,
    ),
    ("temperature", 81, "nvmlDeviceGetTemperature(gpu(0), NVML_TEMPERATURE_GPU)", 81, 45),
    ("temperature", 82, "nvmlDeviceGetTemperatureV(gpu(0), NVML_TEMPERATURE_GPU)", 82, 45),
    ("power_mw", 71234, "nvmlDeviceGetPowerUsage(gpu(0))", 71234, 312500),
    ("power_limit_mw", 350000, "nvmlDeviceGetEnforcedPowerLimit(gpu(0))", 350000, 700000),
    ("sm_clock", 210, "nvmlDeviceGetClockInfo(gpu(0), NVML_CLOCK_SM)", 210, 1755),
    ("mem_clock", 405, "nvmlDeviceGetClockInfo(gpu(0), NVML_CLOCK_MEM)", 405, 2619),
    ("pstate", 8, "nvmlDeviceGetPerformanceState(gpu(0))", 8, 0),
    ("throttle", "0x24", "nvmlDeviceGetCurrentClocksThrottleReasons(gpu(0))", 0x24, 0),
    ("throttle", 68, "nvmlDeviceGetCurrentClocksEventReasons(gpu(0))", 68, 0),
    (
        "energy_mj",
        2**63,
        "nvmlDeviceGetTotalEnergyConsumption(gpu(0))",
        2**63,
        123456789012,
    ),
    ("ecc_corrected", 7, "nvmlDeviceGetTotalEccErrors(gpu(0), 0, NVML_VOLATILE_ECC)", 7, 0),
    ("ecc_corrected", 7, "nvmlDeviceGetTotalEccErrors(gpu(0), 0, NVML_AGGREGATE_ECC)", 7, 0),
    ("ecc_corrected_aggregate", 9, "nvmlDeviceGetTotalEccErrors(gpu(0), 0, 1)", 9, 0),
    ("ecc_uncorrected", 2, "nvmlDeviceGetTotalEccErrors(gpu(0), 1, NVML_VOLATILE_ECC)", 2, 0),
    ("ecc_uncorrected_aggregate", 3, "nvmlDeviceGetTotalEccErrors(gpu(0), 1, 1)", 3, 0),
    ("pcie_gen", 1, "nvmlDeviceGetCurrPcieLinkGeneration(gpu(0))", 1, 5),
    ("pcie_gen_max", 4, "nvmlDeviceGetMaxPcieLinkGeneration(gpu(0))", 4, 5),
    ("pcie_width", 8, "nvmlDeviceGetCurrPcieLinkWidth(gpu(0))", 8, 16),
    ("pcie_width_max", 4, "nvmlDeviceGetMaxPcieLinkWidth(gpu(0))", 4, 16),
    ("fan", 30, "nvmlDeviceGetFanSpeed(gpu(0))", 30, "NVMLError_NotSupported"),
    ("encoder", 44, "nvmlDeviceGetEncoderUtilization(gpu(0))[0]", 44, 0),
    ("decoder", 55, "nvmlDeviceGetDecoderUtilization(gpu(0))[0]", 55, 0),
    ("mig_mode", 0, "nvmlDeviceGetMigMode(gpu(0))", [0, 0], "NVMLError_NotSupported"),
    ("persistence", 0, "nvmlDeviceGetPersistenceMode(gpu(0))", 0, 1),
    ("bus_type", 1, "nvmlDeviceGetBusType(gpu(0))", 1, 2),
    ("architecture", 8, "nvmlDeviceGetArchitecture(gpu(0))", 8, 9),
    ("memory_bus_width", 192, "nvmlDeviceGetMemoryBusWidth(gpu(0))", 192, 5120),
    (
        "processes",
        "4711:1024",
        "[p.pid for p in nvmlDeviceGetComputeRunningProcesses(gpu(0))]",
        [4711],
        [],
    ),
]

each_field = pytest.mark.parametrize(
    ("field", "value", "call", "answer", "default"),
    FIELDS,
    ids=[f"{key}-{re.findall('nvml[A-Z][A-Za-z]+', call)[0]}" for key, _, call, _, _ in FIELDS],
)


@each_field
def test_field(
    machine: tuple[NvmlStandIn, Child],
    field: str,
    value: int | str,
    call: str,
    answer: Any,
    default: Any,
) -> None:
    """A value is the GPU's own, else the one of all GPUs, else that of a plausible H100."""
    standin, child = machine
    assert child.ask(call) == default
    standin.update({f"gpu.{field}": value})
    assert child.ask(call) == answer
    standin.update({f"gpu0.{field}": value, f"gpu.{field}": UNSUPPORTED})
    assert child.ask(call) == answer


@each_field
def test_unsupported_field(
    machine: tuple[NvmlStandIn, Child],
    field: str,
    value: int | str,
    call: str,
    answer: Any,
    default: Any,
) -> None:
    """Any value may be one that the GPU does not have."""
    standin, child = machine
    standin.update({f"gpu0.{field}": UNSUPPORTED})
    assert child.ask(call) == "NVMLError_NotSupported"


def test_value_that_is_no_number(machine: tuple[NvmlStandIn, Child]) -> None:
    """A value that the stand-in cannot read is an error that a test notices, not a zero."""
    standin, child = machine
    standin.update({"gpu0.temperature": "warm"})
    assert child.ask("nvmlDeviceGetTemperature(gpu(0), 0)") == "NVMLError_Unknown"


def test_versions(machine: tuple[NvmlStandIn, Child]) -> None:
    """The versions of the driver, of NVML and of CUDA can be given."""
    standin, child = machine
    everything = (
        "[nvmlSystemGetDriverVersion(), nvmlSystemGetNVMLVersion(), "
        "nvmlSystemGetCudaDriverVersion(), nvmlSystemGetCudaDriverVersion_v2()]"
    )
    assert child.ask(everything) == ["550.54.15", "12.550.54.15", 12040, 12040]
    standin.set(driver="610.1", nvml="13.610.1", cuda=13010)
    assert child.ask(everything) == ["610.1", "13.610.1", 13010, 13010]


@pytest.mark.parametrize("count", [0, 1, 64])
def test_count(machine: tuple[NvmlStandIn, Child], count: int) -> None:
    """There are as many GPUs as said, each with an index, a UUID and an address of its own."""
    standin, child = machine
    standin.set(count=count)
    assert child.ask("nvmlDeviceGetCount()") == count
    assert child.ask(f"nvmlDeviceGetHandleByIndex({count})") == "NVMLError_InvalidArgument"
    gpus = child.ask(
        "[[nvmlDeviceGetIndex(h), nvmlDeviceGetMinorNumber(h), nvmlDeviceGetUUID(h), "
        f"nvmlDeviceGetPciInfo(h).busId] for h in map(gpu, range({count}))]"
    )
    assert [gpu[:2] for gpu in gpus] == [[index, index] for index in range(count)]
    assert len({gpu[2] for gpu in gpus}) == len({gpu[3] for gpu in gpus}) == count
    for gpu in gpus:
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", gpu[2])
        assert re.fullmatch(r"0{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0", gpu[3])


def test_pci_info(machine: tuple[NvmlStandIn, Child]) -> None:
    """The parts of a PCI address agree with its text, in both of its lengths."""
    standin, child = machine
    standin.update({"gpu0.pci_bus_id": "00010000:3B:02.0"})
    info = child.ask("nvmlDeviceGetPciInfo(gpu(0))")
    assert info["busId"] == "00010000:3B:02.0"
    assert info["busIdLegacy"] == "0000:3B:02.0"
    assert (info["domain"], info["bus"], info["device"]) == (0x10000, 0x3B, 2)
    assert info["pciDeviceId"] & 0xFFFF == 0x10DE


def test_memory_versions(machine: tuple[NvmlStandIn, Child]) -> None:
    """The first version counts what is reserved as used; the second has it apart."""
    standin, child = machine
    standin.update({"gpu.memory_total": 1000, "gpu.memory_used": 300, "gpu.memory_reserved": 50})
    first = child.ask("nvmlDeviceGetMemoryInfo(gpu(0))")
    assert first == {"total": 1000, "free": 650, "used": 350}
    second = child.ask("nvmlDeviceGetMemoryInfo(gpu(0), nvmlMemory_v2)")
    assert second.pop("version") == 0x02000028
    assert second == {"total": 1000, "reserved": 50, "free": 650, "used": 300}


def test_memory_version_mismatch(machine: tuple[NvmlStandIn, Child]) -> None:
    """The second version wants to be told which version of the structure it is given."""
    _, child = machine
    wrong = child.ask("nvmlDeviceGetMemoryInfo(gpu(0), 2)")
    assert wrong == "NVMLError_ArgumentVersionMismatch"


def test_unreserved_memory(machine: tuple[NvmlStandIn, Child]) -> None:
    """A GPU that cannot say what is reserved answers the first version only."""
    standin, child = machine
    standin.update({"gpu0.memory_reserved": UNSUPPORTED, "gpu0.memory_used": 300})
    assert child.ask("nvmlDeviceGetMemoryInfo(gpu(0)).used") == 300
    second = child.ask("nvmlDeviceGetMemoryInfo(gpu(0), nvmlMemory_v2)")
    assert second == "NVMLError_NotSupported"


def test_processes(machine: tuple[NvmlStandIn, Child]) -> None:
    """Processes have a number and memory, and the memory may be unknown."""
    standin, child = machine
    standin.update({"gpu0.processes": f"100:{GIB},200:unsupported,300:5"})
    processes = child.ask("nvmlDeviceGetComputeRunningProcesses(gpu(0))")
    assert [(p["pid"], p["usedGpuMemory"]) for p in processes] == [
        (100, GIB),
        (200, None),
        (300, 5),
    ]


def test_handle_by_uuid(machine: tuple[NvmlStandIn, Child]) -> None:
    """A GPU, and a MIG device, can be found by its UUID; another UUID is not found."""
    standin, child = machine
    standin.update({"count": 3, "gpu2.mig_mode": 1, "gpu2.mig.count": 1, "gpu1.uuid": "GPU-mine"})
    found = "nvmlDeviceGetUUID(nvmlDeviceGetHandleByUUID({}))"
    assert child.ask(found.format("'GPU-mine'")) == "GPU-mine"
    assert child.ask("nvmlDeviceGetIndex(nvmlDeviceGetHandleByUUID('GPU-mine'))") == 1
    assert child.ask(found.format("nvmlDeviceGetUUID(mig(2, 0))")).startswith("MIG-")
    assert child.ask(found.format("'GPU-other'")) == "NVMLError_NotFound"


@pytest.mark.parametrize(
    "call",
    [
        "nvmlDeviceGetTemperature(gpu(0), 1)",
        "nvmlDeviceGetTemperatureV(gpu(0), 1)",
        "nvmlDeviceGetClockInfo(gpu(0), 9)",
        "nvmlDeviceGetTotalEccErrors(gpu(0), 2, 0)",
        "nvmlDeviceGetTotalEccErrors(gpu(0), 0, 2)",
        "nvmlDeviceGetName(c_nvmlDevice_t())",
        "nvmlDeviceGetPowerUsage(ctypes.cast(4096, c_nvmlDevice_t))",
    ],
)
def test_invalid_argument(machine: tuple[NvmlStandIn, Child], call: str) -> None:
    """Sensors, clocks and counters that are none, and handles that are none, are refused."""
    assert machine[1].ask(call) == "NVMLError_InvalidArgument"


def test_error_string(machine: tuple[NvmlStandIn, Child]) -> None:
    """Every error has a text, even with the driver gone."""
    standin, child = machine
    standin.unload_driver()
    assert child.ask("nvmlErrorString(18)") == "Driver/library version mismatch"
    texts = child.ask("[nvmlErrorString(code) for code in [*range(30), 999]]")
    assert len(set(texts)) == 31


# MIG


def test_mig_devices(machine: tuple[NvmlStandIn, Child]) -> None:
    """MIG devices have names, UUIDs and memory of their own."""
    standin, child = machine
    standin.update(
        {
            "gpu0.mig_mode": 1,
            "gpu0.mig.count": 2,
            "gpu0.mig.1.name": "NVIDIA H100 MIG 3g.40gb",
            "gpu0.mig.1.uuid": "MIG-mine",
            "gpu0.mig.1.memory_total": 40 * GIB,
            "gpu0.mig.1.memory_used": 7 * GIB,
            "gpu0.mig.1.processes": "77:88",
        }
    )
    assert child.ask("nvmlDeviceGetMigMode(gpu(0))") == [1, 1]
    assert child.ask("nvmlDeviceGetMaxMigDeviceCount(gpu(0))") == 7
    assert child.ask("nvmlDeviceGetName(mig(0, 0))") == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert child.ask("nvmlDeviceGetUUID(mig(0, 0))").startswith("MIG-")
    assert child.ask("nvmlDeviceGetName(mig(0, 1))") == "NVIDIA H100 MIG 3g.40gb"
    assert child.ask("nvmlDeviceGetUUID(mig(0, 1))") == "MIG-mine"
    assert child.ask("nvmlDeviceGetIndex(mig(0, 1))") == 1
    memory = {"total": 40 * GIB, "free": 33 * GIB, "used": 7 * GIB}
    assert child.ask("nvmlDeviceGetMemoryInfo(mig(0, 1))") == memory
    processes = child.ask("nvmlDeviceGetComputeRunningProcesses(mig(0, 1))")
    assert [(p["pid"], p["gpuInstanceId"]) for p in processes] == [(77, 1)]
    assert child.ask("nvmlDeviceGetTemperature(mig(0, 1), 0)") == "NVMLError_NotSupported"


def test_mig_slots(machine: tuple[NvmlStandIn, Child]) -> None:
    """A slot without a MIG device is not found, and there may be gaps between devices."""
    standin, child = machine
    standin.update({"gpu0.mig_mode": 1, "gpu0.mig.count": 3, "gpu0.mig.1.absent": 1})
    slots = [child.ask(f"mig(0, {slot})") for slot in range(8)]
    missing, invalid = "NVMLError_NotFound", "NVMLError_InvalidArgument"
    assert slots == [None, missing, None, missing, missing, missing, missing, invalid]
    standin.update({"gpu0.mig.max": 3})
    assert child.ask("nvmlDeviceGetMaxMigDeviceCount(gpu(0))") == 3


def test_mig_device_that_is_destroyed(machine: tuple[NvmlStandIn, Child]) -> None:
    """The handle of a MIG device is good for as long as the device is there."""
    standin, child = machine
    standin.update({"gpu0.mig_mode": 1, "gpu0.mig.count": 1})
    assert child.ask("(device := mig(0, 0)) and None") is None
    assert child.ask("nvmlDeviceGetName(device)").endswith("MIG 1g.10gb")
    standin.update({"gpu0.mig.count": 0})
    assert child.ask("nvmlDeviceGetName(device)") == "NVMLError_InvalidArgument"


@pytest.mark.parametrize(
    ("mode", "error"), [(-1, "NVMLError_NotSupported"), (0, "NVMLError_NotFound")]
)
def test_no_mig(machine: tuple[NvmlStandIn, Child], mode: int, error: str) -> None:
    """Without MIG there are no slots."""
    standin, child = machine
    standin.update({"gpu0.mig_mode": mode, "gpu0.mig.count": 1})
    assert child.ask("nvmlDeviceGetMaxMigDeviceCount(gpu(0))") == 0
    assert child.ask("mig(0, 0)") == error


def test_parent_of_mig(machine: tuple[NvmlStandIn, Child]) -> None:
    """Under MIG a GPU knows its memory but not its utilization, unless a test says that it does."""
    standin, child = machine
    standin.update({"gpu0.mig_mode": 1})
    for function in ("UtilizationRates", "EncoderUtilization", "DecoderUtilization"):
        assert child.ask(f"nvmlDeviceGet{function}(gpu(0))") == "NVMLError_NotSupported"
    assert child.ask("nvmlDeviceGetMemoryInfo(gpu(0)).total") == 85520809984
    standin.update({"gpu0.utilization": 5})
    assert child.ask("nvmlDeviceGetUtilizationRates(gpu(0)).gpu") == 5


# Failures


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (9, "NVMLError_DriverNotLoaded"),
        (18, "NVMLError_LibRmVersionMismatch"),
        (999, "NVMLError_Unknown"),
    ],
)
def test_init_code(standin: NvmlStandIn, start: Start, code: int, error: str) -> None:
    """Initialisation fails as told, a driver of another version than the library included."""
    child = start(standin)
    standin.set(init=code)
    assert child.ask("nvmlInit()") == error
    assert child.ask("nvmlDeviceGetCount()") == "NVMLError_Uninitialized"
    standin.remove("init")
    assert child.ask("nvmlInit()") is None
    assert child.ask("nvmlDeviceGetCount()") == 1


def test_driver_that_comes_and_goes(standin: NvmlStandIn, start: Start) -> None:
    """Without a state file the driver is not loaded, neither at initialisation nor later."""
    standin.unload_driver()
    child = start(standin)
    assert child.ask("nvmlInit()") == "NVMLError_DriverNotLoaded"
    standin.load_driver()
    assert child.ask("nvmlInit()") is None
    assert child.ask("(device := gpu(0)) and None") is None
    standin.unload_driver()
    standin.set(count=5)
    assert child.ask("nvmlDeviceGetCount()") == "NVMLError_DriverNotLoaded"
    assert child.ask("gpu(0)") == "NVMLError_DriverNotLoaded"
    assert child.ask("nvmlDeviceGetName(device)") == "NVMLError_DriverNotLoaded"
    standin.load_driver()
    assert child.ask("nvmlDeviceGetCount()") == 5
    standin.state_file.unlink()
    standin.state_file.mkdir()
    assert child.ask("nvmlSystemGetDriverVersion()") == "NVMLError_DriverNotLoaded"
    assert child.ask("nvmlShutdown()") is None


def test_library_that_starts_late(standin: NvmlStandIn, start: Start) -> None:
    """A process that found no library finds it at the next initialisation."""
    if ctypes.util.find_library("nvidia-ml"):
        pytest.skip("a real library is installed, which would be found in its place")
    standin.remove_library()
    child = start(standin)
    assert child.ask("nvmlInit()") == "NVMLError_LibraryNotFound"
    standin.restore_library()
    assert child.ask("nvmlInit()") is None
    standin.remove_library()
    assert child.ask("nvmlDeviceGetCount()") == 1


def test_error_of_a_function(machine: tuple[NvmlStandIn, Child]) -> None:
    """A function fails as told for all GPUs, or otherwise for one; others are not concerned."""
    standin, child = machine
    standin.update(
        {
            "count": 3,
            "error.nvmlDeviceGetPowerUsage": 4,
            "gpu1.error.nvmlDeviceGetPowerUsage": 999,
            "gpu2.error.nvmlDeviceGetPowerUsage": 0,
        }
    )
    powers = [child.ask(f"nvmlDeviceGetPowerUsage(gpu({index}))") for index in range(3)]
    assert powers == ["NVMLError_NoPermission", "NVMLError_Unknown", 312500]
    assert child.ask("nvmlDeviceGetTemperature(gpu(0), 0)") == 45
    standin.remove("error.nvmlDeviceGetPowerUsage")
    assert child.ask("nvmlDeviceGetPowerUsage(gpu(0))") == 312500


def test_error_of_every_function(machine: tuple[NvmlStandIn, Child]) -> None:
    """Every function fails as told."""
    standin, child = machine
    standin.update({"error.*": 17})
    for call in ("nvmlInit()", "nvmlDeviceGetCount()", "gpu(0)", "nvmlSystemGetDriverVersion()"):
        assert child.ask(call) == "NVMLError_OperatingSystem"


def test_error_by_the_name_in_pynvml(machine: tuple[NvmlStandIn, Child]) -> None:
    """Where pynvml names a function otherwise than the library, both names will do."""
    standin, child = machine
    standin.update({"error.nvmlDeviceGetCount": 999, "gpu0.error.nvmlDeviceGetHandleByIndex": 4})
    assert child.ask("nvmlDeviceGetCount()") == "NVMLError_Unknown"
    assert child.ask("gpu(0)") == "NVMLError_NoPermission"


@pytest.mark.parametrize("call", [call for _, _, call, _, _ in FIELDS])
def test_lost_gpu(machine: tuple[NvmlStandIn, Child], call: str) -> None:
    """A lost GPU says so in every call, until it is back; the others do not notice."""
    standin, child = machine
    standin.update({"count": 2, "gpu.fan": 1, "gpu.mig_mode": 0})
    assert child.ask("(lost := gpu(0)) and (well := gpu(1)) and None") is None
    on_lost, on_well = call.replace("gpu(0)", "lost"), call.replace("gpu(0)", "well")
    before = child.ask(on_lost), child.ask(on_well)
    standin.lose(0)
    assert child.ask(on_lost) == "NVMLError_GpuIsLost"
    assert child.ask("gpu(0)") == "NVMLError_GpuIsLost"
    assert child.ask(on_well) == before[1]
    assert child.ask("nvmlDeviceGetCount()") == 2
    standin.restore()
    assert (child.ask(on_lost), child.ask(on_well)) == before


def test_lost_parent_of_mig(machine: tuple[NvmlStandIn, Child]) -> None:
    """A lost GPU takes its MIG devices with it, and cannot be found by UUID either."""
    standin, child = machine
    standin.update({"count": 2, "gpu1.mig_mode": 1, "gpu1.mig.count": 1, "gpu1.uuid": "GPU-x"})
    assert child.ask("(device := mig(1, 0)) and None") is None
    standin.lose(0)
    standin.lose(1)
    assert child.ask("nvmlDeviceGetMemoryInfo(device)") == "NVMLError_GpuIsLost"
    assert child.ask("nvmlDeviceGetHandleByUUID('GPU-x')") == "NVMLError_GpuIsLost"
    standin.restore(1)
    assert child.ask("nvmlDeviceGetHandleByUUID('GPU-x')") is None
    assert child.ask("gpu(0)") == "NVMLError_GpuIsLost"


def test_removed_gpu(machine: tuple[NvmlStandIn, Child]) -> None:
    """The handle of a GPU that is no more counted is that of a lost one."""
    standin, child = machine
    standin.set(count=2)
    assert child.ask("(device := gpu(1)) and None") is None
    standin.set(count=1)
    assert child.ask("nvmlDeviceGetName(device)") == "NVMLError_GpuIsLost"


# Initialisation and handles

NEEDING_INITIALISATION = [
    "nvmlShutdown()",
    "nvmlDeviceGetCount()",
    "nvmlDeviceGetHandleByIndex(0)",
    "nvmlDeviceGetHandleByUUID('GPU-x')",
    "nvmlSystemGetDriverVersion()",
    "nvmlSystemGetNVMLVersion()",
    "nvmlSystemGetCudaDriverVersion()",
    "nvmlDeviceGetName(device)",
    "nvmlDeviceGetMemoryInfo(device, nvmlMemory_v2)",
]


def test_initialisation_is_counted(child: Child) -> None:
    """The library is shut down when each initialisation has been undone, and not before."""
    assert child.ask("(device := gpu(0)) and None") is None
    assert child.ask("nvmlInit()") is None
    assert child.ask("nvmlShutdown()") is None
    assert child.ask("nvmlDeviceGetName(device)") == "NVIDIA H100 80GB HBM3"
    assert child.ask("nvmlShutdown()") is None
    for call in NEEDING_INITIALISATION:
        assert child.ask(call) == "NVMLError_Uninitialized"


def test_before_initialisation(standin: NvmlStandIn, start: Start) -> None:
    """The library itself refuses calls before initialisation, and not only the binding."""
    child = start(standin)
    assert child.ask("pynvml._LoadNvmlLibrary()") is None
    assert child.ask("(device := c_nvmlDevice_t()) and None") is None
    for call in NEEDING_INITIALISATION:
        assert child.ask(call) == "NVMLError_Uninitialized"
    assert "nvmlDeviceGetCount_v2" in standin.calls()


def test_stale_handle(child: Child) -> None:
    """A handle from before the last full shutdown is refused, even if its GPU is there again."""
    assert child.ask("(old := gpu(0)) and None") is None
    assert child.ask("nvmlShutdown()") is None
    assert child.ask("nvmlInit()") is None
    assert child.ask("nvmlDeviceGetName(old)") == "NVMLError_InvalidArgument"
    assert child.ask("nvmlDeviceGetName(gpu(0))") == "NVIDIA H100 80GB HBM3"
    assert child.ask("nvmlDeviceGetName(old)") == "NVMLError_InvalidArgument"


def test_many_cycles(standin: NvmlStandIn, child: Child) -> None:
    """Initialising 10,000 times, with a state that changes, leaks neither files nor memory."""
    assert child.ask("(path := os.environ['NVML_STANDIN_STATE']) and None") is None
    cycle = "[nvmlInit(), nvmlDeviceGetCount(), nvmlShutdown(), os.utime(path, ns=(n, n))][1]"
    footprint = "[len(os.listdir('/proc/self/fd')), resident_pages()]"
    assert child.ask(f"sum({cycle} for n in range(1000))") == 1000
    files, pages = child.ask(footprint)
    assert child.ask(f"sum({cycle} for n in range(10000))") == 10000
    files_after, pages_after = child.ask(footprint)
    assert files_after == files
    assert (pages_after - pages) * os.sysconf("SC_PAGE_SIZE") < 256 * 1024
    assert standin.calls().count("nvmlShutdown") == 11000


# Calls that hang or are slow


def test_hang_and_release(standin: NvmlStandIn, child: Child) -> None:
    """A call hangs until released, then goes on as the state then says; other threads go on."""
    assert child.ask("(device := gpu(0)) and None") is None
    standin.hang("nvmlDeviceGetPowerUsage")
    child.start("nvmlDeviceGetPowerUsage(device)")
    assert standin.wait_for_call("nvmlDeviceGetPowerUsage") == ("nvmlDeviceGetPowerUsage", 0, None)
    for _ in range(100):
        assert child.ask("nvmlDeviceGetTemperature(device, 0)") == 45
    standin.update({"gpu0.power_mw": 1234})
    assert child.ask("nvmlDeviceGetCount()") == 1
    assert child.finished == []
    standin.release()
    assert child.finish() == 1234


def test_hang_of_one_gpu(standin: NvmlStandIn, child: Child) -> None:
    """A function hangs for one GPU, found by handle, by index and by UUID, not for another."""
    standin.set(count=2)
    assert child.ask("(device := gpu(1)) and None") is None
    assert child.ask("(uuid := nvmlDeviceGetUUID(device)) and None") is None
    standin.forget_calls()
    standin.hang(gpu=1)
    calls = {
        "nvmlDeviceGetName(device)": "nvmlDeviceGetName",
        "gpu(1)": "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetHandleByUUID(uuid)": "nvmlDeviceGetHandleByUUID",
    }
    for call, function in calls.items():
        child.start(call)
        standin.wait_for_call(function, gpu=1)
    assert child.ask("nvmlDeviceGetName(gpu(0))") == "NVIDIA H100 80GB HBM3"
    assert child.finished == []
    standin.release()
    finished = [child.finish() for _ in calls]
    assert sorted(map(str, finished)) == ["NVIDIA H100 80GB HBM3", "None", "None"]


@pytest.mark.parametrize("function", ["nvmlInit", "*"])
def test_hang_at_initialisation(standin: NvmlStandIn, start: Start, function: str) -> None:
    """Initialisation can hang too."""
    child = start(standin)
    standin.hang(function)
    child.start("nvmlInit()")
    standin.wait_for_call("nvmlInit")
    assert child.ask("nvmlErrorString(0)") == "Success"
    assert child.finished == []
    standin.release()
    assert child.finish() is None
    assert child.ask("nvmlDeviceGetCount()") == 1


def test_hang_of_several_functions(standin: NvmlStandIn, child: Child) -> None:
    """Functions that hang add up, and only they hang."""
    standin.hang("nvmlDeviceGetCount")
    standin.hang("nvmlSystemGetDriverVersion")
    child.start("nvmlDeviceGetCount()")
    standin.wait_for_call("nvmlDeviceGetCount")
    child.start("nvmlSystemGetDriverVersion()")
    standin.wait_for_call("nvmlSystemGetDriverVersion")
    assert child.ask("nvmlSystemGetNVMLVersion()") == "12.550.54.15"
    assert child.finished == []
    standin.update({"hang": "nvmlSystemGetDriverVersion"})
    assert child.finish() == 1
    standin.release()
    assert child.finish() == "550.54.15"


def test_shutdown_under_a_hanging_call(standin: NvmlStandIn, child: Child) -> None:
    """A call that comes back after the library was shut down and started again is refused."""
    assert child.ask("(device := gpu(0)) and None") is None
    standin.hang("nvmlDeviceGetName")
    child.start("nvmlDeviceGetName(device)")
    standin.wait_for_call("nvmlDeviceGetName")
    assert child.ask("nvmlShutdown()") is None
    assert child.ask("nvmlInit()") is None
    standin.release()
    assert child.finish() == "NVMLError_InvalidArgument"


def test_slow_call(standin: NvmlStandIn, child: Child) -> None:
    """A slow call takes the time it is told to."""
    standin.update({"delay_ms.nvmlDeviceGetCount": 120, "gpu0.delay_ms.nvmlDeviceGetName": 80})
    timed = "[time.monotonic(), {}, time.monotonic()]"
    for call, answer, least in [
        ("nvmlDeviceGetCount()", 1, 0.12),
        ("nvmlDeviceGetName(gpu(0))", "NVIDIA H100 80GB HBM3", 0.08),
    ]:
        begin, value, end = child.ask(timed.format(call))
        assert value == answer
        assert least <= end - begin < least + 2


# The state file


def test_every_change_is_seen(standin: NvmlStandIn, child: Child) -> None:
    """Each of many states in quick succession, all of the same size, is seen at the next call."""
    for value in [*range(10, 100)] * 3:
        standin.update({"gpu0.utilization": value - 1})
        standin.update({"gpu0.utilization": value})
        assert child.ask("nvmlDeviceGetUtilizationRates(gpu(0)).gpu") == value


def test_stamps(standin: NvmlStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two states have the same stamp, even while the clock stands still."""
    first = standin.state_file.stat().st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: first)
    for later in range(1, 10):
        standin.set(count=1)
        assert standin.state_file.stat().st_mtime_ns == first + later


def test_states_are_whole(standin: NvmlStandIn, child: Child) -> None:
    """Threads see values of one state together, and never a state that is half written."""
    standin.update({"gpu0.utilization": 0, "gpu0.memory_utilization": 0})
    for _ in range(4):
        child.start(
            "[u.gpu - u.memory for n in range(5000)"
            " for u in [nvmlDeviceGetUtilizationRates(gpu(0))]].count(0)"
        )
    written = 0
    while len(child.finished) < 4:
        written += 1
        standin.update({"gpu0.utilization": written, "gpu0.memory_utilization": written})
        child.ask("None")
    assert written > 10
    assert child.finished == [5000] * 4


def test_file_by_hand(standin: NvmlStandIn, child: Child) -> None:
    """The file may hold comments, blanks and keys given twice, and need not be replaced whole."""
    standin.state_file.write_text(
        "# count=9\n\n  count = 3 \r\nno key\n=5\ncount=4\ngpu0.name = A = B\n  # gpu0.name=C",
        "utf-8",
    )
    assert child.ask("nvmlDeviceGetCount()") == 4
    assert child.ask("nvmlDeviceGetName(gpu(0))") == "A = B"
    with standin.state_file.open("a", encoding="utf-8") as file:
        file.write("\ncount=6")
    assert child.ask("nvmlDeviceGetCount()") == 6


# The calls that were made


def test_calls(standin: NvmlStandIn, child: Child) -> None:
    """Each call is noted with its GPU and its MIG slot, until forgotten."""
    standin.update({"gpu0.mig_mode": 1, "gpu0.mig.count": 2})
    standin.forget_calls()
    assert standin.calls() == []
    child.ask("nvmlDeviceGetCount()")
    child.ask("nvmlDeviceGetName(mig(0, 1))")
    assert standin.records() == [
        Call("nvmlDeviceGetCount_v2"),
        Call("nvmlDeviceGetHandleByIndex_v2", 0),
        Call("nvmlDeviceGetMigDeviceHandleByIndex", 0),
        Call("nvmlDeviceGetName", 0, 1),
    ]
    assert standin.calls()[-1] == "nvmlDeviceGetName"
    standin.forget_calls()
    assert standin.calls() == []


def test_call_that_does_not_come(standin: NvmlStandIn) -> None:
    """Waiting for a call has an end."""
    with pytest.raises(TimeoutError, match="nvmlDeviceGetName"):
        standin.wait_for_call("nvmlDeviceGetName", timeout=0.01)


# Building


def test_old_driver(tmp_path: Path, cache: Path, start: Start) -> None:
    """A function left out is one that an old driver does not have; the others work."""
    without = [
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetComputeRunningProcesses_v3",
    ]
    child = start(NvmlStandIn(tmp_path / "old", without, cache=cache))
    assert child.ask("nvmlInit()") is None
    for call in [
        "nvmlDeviceGetMemoryInfo(gpu(0), nvmlMemory_v2)",
        "nvmlDeviceGetCurrentClocksEventReasons(gpu(0))",
        "nvmlDeviceGetComputeRunningProcesses_v3(gpu(0))",
    ]:
        assert child.ask(call) == "NVMLError_FunctionNotFound"
    assert child.ask("nvmlDeviceGetMemoryInfo(gpu(0)).total") == 85520809984
    assert child.ask("nvmlDeviceGetCurrentClocksThrottleReasons(gpu(0))") == 0
    assert child.ask("nvmlDeviceGetTemperature(gpu(0), 0)") == 45
    missing = child.ask("nvmlDeviceGetTemperatureV(gpu(0), 0)")
    assert missing == "NVMLError_FunctionNotFound"


def test_any_function_can_be_left_out(tmp_path: Path, cache: Path, standin: NvmlStandIn) -> None:
    """The library has the functions it is said to have, and each can be left out."""
    source = Path(cast(str, sys.modules["standin"].__file__)).with_name("nvml.c").read_text("utf-8")
    assert set(re.findall(r"^EXPORT .*?(\w+)\(", source, re.MULTILINE)) == SYMBOLS
    empty = NvmlStandIn(tmp_path / "empty", sorted(SYMBOLS), cache=cache)
    code = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL('libnvidia-ml.so.1')\n"
        "print(sum(hasattr(library, name) for name in sys.argv[1:]))"
    )
    for library, functions in [(standin, len(SYMBOLS)), (empty, 0)]:
        done = subprocess.run(
            [sys.executable, "-c", code, *SYMBOLS],
            env={**os.environ, **library.environment()},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == functions


def test_compiled_once(tmp_path: Path) -> None:
    """A library is compiled once for each set of functions left out."""
    cache = tmp_path / "cache"
    first = NvmlStandIn(tmp_path / "1", ["nvmlDeviceGetCount", "nvmlShutdown"], cache=cache)
    (compiled,) = cache.iterdir()
    stamp = compiled.stat().st_mtime_ns
    second = NvmlStandIn(tmp_path / "2", ["nvmlShutdown", "nvmlDeviceGetCount_v2"], cache=cache)
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [stamp]
    assert first.library != second.library
    assert first.library.read_bytes() == second.library.read_bytes()


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gcc the stand-in is not available, and says why."""
    assert NvmlStandIn.available()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not NvmlStandIn.available()
    with pytest.raises(NvmlStandInError, match="gcc is needed"):
        NvmlStandIn(tmp_path / "nvml", cache=tmp_path / "cache")


def test_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler complains about is in the error, and nothing broken is kept."""
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n", "utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NvmlStandInError, match="no such thing"):
        NvmlStandIn(tmp_path / "nvml", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_environment(standin: NvmlStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library comes before those on the library path that is there already."""
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert standin.environment() == {
        "LD_LIBRARY_PATH": str(standin.library.parent),
        "NVML_STANDIN_STATE": str(standin.state_file),
        "NVML_STANDIN_CALLS": str(standin.calls_file),
    }
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    assert standin.environment()["LD_LIBRARY_PATH"] == f"{standin.library.parent}:/elsewhere"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("counts", 1),
        ("gpu0.temprature", 1),
        ("gpu.lost", 1),
        ("gpu0.mig.x.name", "x"),
        ("error.nvmlDeviceGetNothing", 1),
        ("hang", "nvmlDeviceGetCount,nvmlNothing"),
        ("driver", "a\nb"),
    ],
)
def test_mistakes(standin: NvmlStandIn, key: str, value: int | str) -> None:
    """A key, a function or a value that the stand-in does not know is refused, not ignored."""
    before = standin.state_file.read_text("utf-8")
    with pytest.raises(ValueError, match=r"the stand-in has no|cannot hold"):
        standin.update({key: value})
    assert standin.state_file.read_text("utf-8") == before


def test_function_that_is_none(tmp_path: Path, standin: NvmlStandIn) -> None:
    """A function that the stand-in does not have can neither hang nor be left out."""
    with pytest.raises(ValueError, match="nvmlNothing"):
        standin.hang("nvmlNothing")
    with pytest.raises(ValueError, match="nvmlNothing"):
        NvmlStandIn(tmp_path / "x", ["nvmlNothing"])
