"""GPUs through the real nvidia-ml-py, over the stand-in for the driver's library.

The library is found as the loader finds it, so each test reads in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from standin import UNSUPPORTED, NvmlStandIn

PROLOGUE = """
import json, os, sys
from dataclasses import asdict
from ollama_metrics.errors import CollectorError
from ollama_metrics.expectation import Expectation
from ollama_metrics.gpu_collector import GpuCollector
said = []
now = [0.0]
expectation = Expectation(
    None,
    os.path.join(os.path.dirname(os.environ["NVML_STANDIN_STATE"]), "remembered"),
    lambda level, sentence: said.append(sentence),
)
def make(processes_every=None):
    return GpuCollector(
        expectation,
        lambda level, sentence: said.append(sentence),
        clock=lambda: now[0],
        processes_every=processes_every,
    )
collector = make()
def collect():
    try:
        return asdict(collector.collect())
    except CollectorError as error:
        return {"failed": type(error).__name__, "why": str(error)}
def state(**keys):
    text = "".join(f"{key.replace('__', '.')}={value}\\n" for key, value in keys.items())
    with open(os.environ["NVML_STANDIN_STATE"] + ".new", "w") as file:
        file.write(text)
    os.replace(os.environ["NVML_STANDIN_STATE"] + ".new", os.environ["NVML_STANDIN_STATE"])
"""


def run(nvml: NvmlStandIn, script: str) -> Any:
    """What `script`, run after the prologue, leaves in `result`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROLOGUE + script + "\nprint(json.dumps(result))"],
        env={**os.environ, **nvml.environment()},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def collect(nvml: NvmlStandIn) -> Callable[[], Any]:
    """One reading in a fresh process."""
    return lambda: run(nvml, "result = collect()")


def test_every_reading_arrives_in_base_units(nvml: NvmlStandIn, collect: Any) -> None:
    """Each field of NVML comes out under its name, in bytes, watts, hertz, joules and ratios."""
    nvml.update(
        {
            "count": 2,
            "driver": "580.65.06",
            "cuda": 13000,
            "gpu1.name": "NVIDIA A40",
            "gpu1.utilization": 63,
            "gpu1.memory_total": 48 << 30,
            "gpu1.memory_used": 12 << 30,
            "gpu1.memory_reserved": 1 << 29,
            "gpu1.temperature": 71,
            "gpu1.power_mw": 150_000,
            "gpu1.power_limit_mw": 300_000,
            "gpu1.sm_clock": 1410,
            "gpu1.mem_clock": 7251,
            "gpu1.pstate": 2,
            "gpu1.throttle": 0x4 | 0x40,
            "gpu1.energy_mj": 5_000,
            "gpu1.ecc_corrected": 3,
            "gpu1.ecc_uncorrected": 1,
            "gpu1.pcie_gen": 4,
            "gpu1.pcie_width": 8,
            "gpu1.fan": 40,
            "gpu1.encoder": 5,
            "gpu1.decoder": 6,
        }
    )
    reading = collect()
    assert (reading["driver_version"], reading["cuda_version"]) == ("580.65.06", "13.0")
    assert [gpu["index"] for gpu in reading["gpus"]] == [0, 1]
    gpu = reading["gpus"][1]
    expected = {
        "name": "NVIDIA A40",
        "utilization_ratio": 0.63,
        "memory_total_bytes": 48 << 30,
        "memory_used_bytes": 12 << 30,
        "memory_reserved_bytes": 1 << 29,
        "memory_used_ratio": 0.25,
        "temperature_celsius": 71,
        "power_draw_watts": 150.0,
        "power_limit_watts": 300.0,
        "power_ratio": 0.5,
        "sm_clock_hertz": 1_410_000_000,
        "memory_clock_hertz": 7_251_000_000,
        "performance_state": 2,
        "throttle_reasons": ["software_power_cap", "hardware_thermal_slowdown"],
        "throttled_power": True,
        "throttled_thermal": True,
        "throttled_hardware": False,
        "energy_joules_total": 5.0,
        "ecc_corrected_errors_total": 3,
        "ecc_uncorrected_errors_total": 1,
        "pcie_link_generation": 4,
        "pcie_link_width": 8,
        "fan_speed_ratio": 0.4,
        "encoder_utilization_ratio": 0.05,
        "decoder_utilization_ratio": 0.06,
        "unified_memory": False,
        "mig_enabled": None,
    }
    assert {key: gpu[key] for key in expected} == expected


FIELDS = {
    "utilization": ["utilization_ratio"],
    "memory_total": [
        "memory_total_bytes",
        "memory_used_bytes",
        "memory_free_bytes",
        "memory_used_ratio",
    ],
    "temperature": ["temperature_celsius"],
    "power_mw": ["power_draw_watts", "power_ratio"],
    "power_limit_mw": ["power_limit_watts", "power_ratio"],
    "sm_clock": ["sm_clock_hertz"],
    "mem_clock": ["memory_clock_hertz"],
    "pstate": ["performance_state"],
    "throttle": ["throttle_reasons", "throttled_power"],
    "energy_mj": ["energy_joules_total"],
    "ecc_corrected": ["ecc_corrected_errors_total"],
    "ecc_uncorrected": ["ecc_uncorrected_errors_total"],
    "pcie_gen": ["pcie_link_generation"],
    "pcie_width": ["pcie_link_width"],
    "fan": ["fan_speed_ratio"],
    "encoder": ["encoder_utilization_ratio"],
    "decoder": ["decoder_utilization_ratio"],
}


def test_what_a_device_does_not_report_is_none_and_asked_for_once(nvml: NvmlStandIn) -> None:
    """With every reading unsupported all are None, nothing is logged, and a second cycle asks for none of them."""
    nvml.update({f"gpu0.{field}": UNSUPPORTED for field in FIELDS})
    before_and_after = run(
        nvml,
        """
calls = os.environ["NVML_STANDIN_CALLS"]
first = collect()
asked = os.path.getsize(calls)
second = collect()
with open(calls) as file:
    file.seek(asked)
    again = sorted({line.split()[0] for line in file})
result = [first["gpus"][0], second["gpus"][0], again, said]
""",
    )
    first, second, again, said = before_and_after
    for names in FIELDS.values():
        for name in names:
            assert first[name] is None, name
    assert second == first
    assert again == ["nvmlDeviceGetCount_v2"]
    assert said == []


def test_an_old_driver_is_read_by_its_older_calls(tmp_path: Path) -> None:
    """Without the newer functions memory, temperature and throttle reasons come from the older ones."""
    if not NvmlStandIn.available():
        pytest.skip("gcc is not installed")
    without = (
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetMigMode",
    )
    nvml = NvmlStandIn(tmp_path / "old", without=without)
    nvml.update({"gpu0.memory_used": 10 << 30, "gpu0.memory_reserved": 1 << 30, "gpu0.throttle": 8})
    gpu = run(nvml, "collect(); result = collect()")["gpus"][0]
    assert gpu["memory_used_bytes"] == 11 << 30, "version 1 counts the driver's reserve as used"
    assert gpu["memory_reserved_bytes"] is None
    assert gpu["temperature_celsius"] == 45
    assert gpu["throttled_hardware"] is True
    assert gpu["energy_joules_total"] is None
    assert gpu["mig_enabled"] is None


def test_mig_instances_are_listed_with_their_memory(nvml: NvmlStandIn, collect: Any) -> None:
    """A GPU in MIG mode has no utilization, its own memory and its instances with theirs; empty slots are passed."""
    nvml.update(
        {
            "gpu0.mig_mode": 1,
            "gpu0.mig.max": 7,
            "gpu0.mig.count": 3,
            "gpu0.mig.1.absent": 1,
            "gpu0.mig.0.memory_total": 40 << 30,
            "gpu0.mig.0.memory_used": 10 << 30,
            "gpu0.mig.2.memory_total": 20 << 30,
            "gpu0.mig.2.memory_used": 1 << 30,
        }
    )
    gpu = collect()["gpus"][0]
    assert gpu["mig_enabled"] is True
    assert gpu["utilization_ratio"] is None
    memory = [(one["memory_total_bytes"], one["memory_used_bytes"]) for one in gpu["mig_instances"]]
    assert memory == [(40 << 30, 10 << 30), (20 << 30, 1 << 30)]
    assert all(one["uuid"].startswith("MIG-") for one in gpu["mig_instances"])


def test_the_memory_of_a_mig_parent_may_need_a_permission(nvml: NvmlStandIn) -> None:
    """No permission for a vital reading is told once in the log and makes it None; the GPU is not lost for it."""
    nvml.update(
        {"gpu0.mig_mode": 1, "gpu0.mig.count": 1, "gpu0.error.nvmlDeviceGetMemoryInfo_v2": 4}
    )
    reading, said = run(nvml, "collect(); result = [collect(), said]")
    assert reading["gpus"][0]["memory_used_bytes"] is None
    assert len(reading["gpus"]) == 1
    assert [sentence for sentence in said if "memory_used_bytes" in sentence] == [
        "memory_used_bytes of GPU 0 cannot be read: "
        "Insufficient Permissions (NVML error 4 from nvmlDeviceGetMemoryInfo)"
    ]


@pytest.mark.parametrize(
    "state",
    [
        {"gpu0.name": "NVIDIA GB10", "gpu0.memory_total": UNSUPPORTED},
        {"gpu0.name": "NVIDIA Thor"},
        {"gpu0.memory_total": "HOST", "gpu0.memory_reserved": 0},
    ],
    ids=["GB10 reports none", "Thor, by its name", "one that reports the host's RAM"],
)
def test_unified_memory_is_not_counted_again(nvml: NvmlStandIn, collect: Any, state: Any) -> None:
    """A part that uses the host's RAM reports no memory of its own, however its driver puts it."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    nvml.update({key: ram if value == "HOST" else value for key, value in state.items()})
    nvml.update({"gpu0.memory_used": min(ram // 2, 1 << 30)})
    gpu = collect()["gpus"][0]
    assert gpu["unified_memory"] is True
    assert gpu["memory_used_bytes"] is None
    assert gpu["memory_used_ratio"] is None
    assert gpu["utilization_ratio"] == 0.37


def test_a_card_of_about_the_hosts_memory_is_not_unified(nvml: NvmlStandIn, collect: Any) -> None:
    """A board whose memory differs from the host's RAM by a hundredth is a board with memory."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    nvml.update(
        {
            "gpu0.memory_total": ram + ram // 100,
            "gpu0.memory_used": 1 << 20,
            "gpu0.memory_reserved": 0,
        }
    )
    gpu = collect()["gpus"][0]
    assert gpu["unified_memory"] is False
    assert gpu["memory_used_bytes"] == 1 << 20


@pytest.mark.parametrize("code", [15, 16, 28])
def test_a_gpu_that_is_lost_leaves_the_others_readable(
    nvml: NvmlStandIn, collect: Any, code: int
) -> None:
    """GPU is lost, wants a reset or is not found: it is in `lost` with the driver's words, the rest is read."""
    nvml.update({"count": 3, "gpu1.error.nvmlDeviceGetUtilizationRates": code})
    reading = collect()
    assert [gpu["index"] for gpu in reading["gpus"]] == [0, 2]
    assert len(reading["lost"]) == 1
    assert reading["lost"][0]["label"].startswith("GPU 1 (NVIDIA H100")
    assert f"NVML error {code}" in reading["lost"][0]["reason"]


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo_v2"]
)
def test_a_vital_reading_that_fails_makes_the_gpu_lost(
    nvml: NvmlStandIn, collect: Any, function: str
) -> None:
    """An unknown error of utilization or memory is no "not reported": such a GPU cannot be weighed."""
    nvml.update({"count": 2, f"gpu0.error.{function}": 999})
    reading = collect()
    assert [gpu["index"] for gpu in reading["gpus"]] == [1]
    assert "NVML error 999" in reading["lost"][0]["reason"]


def test_another_reading_that_fails_is_none_and_logged_once(nvml: NvmlStandIn) -> None:
    """An unknown error of the temperature costs the temperature, one line in the log, and is asked for again."""
    nvml.update(
        {"gpu0.error.nvmlDeviceGetTemperatureV": 999, "gpu0.error.nvmlDeviceGetTemperature": 999}
    )
    reading, said, later = run(
        nvml,
        """
collect(); reading = collect()
logged = list(said)
state(count=1)
result = [reading, logged, collect()]
""",
    )
    assert reading["gpus"][0]["temperature_celsius"] is None
    assert len(said) == 1
    assert later["gpus"][0]["temperature_celsius"] == 45


def test_a_gpu_that_cannot_even_be_opened_is_lost(nvml: NvmlStandIn, collect: Any) -> None:
    """A GPU whose handle is refused counts among those that the driver names, and is lost."""
    nvml.update({"count": 2, "gpu1.error.nvmlDeviceGetHandleByIndex": 4})
    reading = collect()
    assert reading["enumerated"] == 2
    assert [gpu["index"] for gpu in reading["gpus"]] == [0]
    assert "Insufficient Permissions" in reading["lost"][0]["reason"]


@pytest.mark.parametrize(
    ("code", "failed", "word"),
    [(9, "NoDriver", "not loaded"), (18, "DriverReplaced", "updated"), (4, "DriverFailure", "Permissions"),
     (999, "DriverFailure", "Unknown"), (1, "DriverFailure", "dropped")],
)  # fmt: skip
def test_each_way_in_which_the_driver_fails_as_a_whole(
    nvml: NvmlStandIn, code: int, failed: str, word: str
) -> None:
    """After a good reading, an error of the whole driver is a failure with the driver's words; then it heals.

    Only a mismatch of driver and library is one that another process would not have.
    """
    before, broken, after, replaced = run(
        nvml,
        f"""
before = collect()
state(count=1, error__nvmlDeviceGetCount_v2={code}, init={code})
broken = [collect(), collect()]
replaced = [collector.driver_replaced]
state(count=1)
result = [before, broken, collect(), [*replaced, collector.driver_replaced]]
""",
    )
    assert len(before["gpus"]) == len(after["gpus"]) == 1
    assert replaced == [failed == "DriverReplaced", False]
    for one in broken:
        assert one["failed"] == failed
        assert word in one["why"]


def test_a_host_without_a_driver_has_nothing_to_fail(nvml: NvmlStandIn) -> None:
    """Where no GPU was ever seen, a missing driver is an absence with a reason; the wait grows to 30 s."""
    nvml.unload_driver()
    absence, pauses = run(
        nvml, "result = [collect(), [collect() and collector.pause for _ in range(7)]]"
    )
    assert absence["gpus"] == []
    assert "not loaded" in absence["absence"]
    assert pauses == [2, 4, 8, 16, 30, 30, 30]


def test_a_host_without_a_library_is_looked_at_every_30_seconds(nvml: NvmlStandIn) -> None:
    """A library has to be installed by somebody: the pause is the longest from the first cycle on."""
    nvml.remove_library()
    assert run(nvml, "collect(); result = collector.pause") == 30


def test_a_driver_that_starts_late_is_found(nvml: NvmlStandIn) -> None:
    """NVML that comes up after the agent is read from then on, and the pause between cycles is over."""
    nvml.unload_driver()
    late, pause = run(nvml, "collect(); state(count=2); result = [collect(), collector.pause]")
    assert len(late["gpus"]) == 2
    assert pause == 0


def test_a_library_that_is_installed_late_is_found(nvml: NvmlStandIn) -> None:
    """dlopen is tried again by each cycle: an installation needs no restart of the agent."""
    nvml.remove_library()
    hidden = [path for path in nvml.library.parent.iterdir() if path != nvml.library]
    assert len(hidden) == 1
    first, then = run(
        nvml,
        f"first = collect(); os.rename({str(hidden[0])!r}, {str(nvml.library)!r}); result = [first, collect()]",
    )
    assert "not installed" in first["absence"]
    assert len(then["gpus"]) == 1


def test_more_and_fewer_gpus_than_before(nvml: NvmlStandIn) -> None:
    """A count that changes is followed at once; the most ever seen is expected, and the missing one is named."""
    more, fewer, none, expected = run(
        nvml,
        """
collect()
state(count=4)
more = collect()
state(count=3)
fewer = collect()
state(count=0)
result = [more, fewer, collect(), expectation.count]
""",
    )
    assert len(more["gpus"]) == 4
    assert len(fewer["gpus"]) == 3
    assert [gpu["label"].split()[1] for gpu in fewer["lost"]] == ["3"]
    assert none["failed"] == "DriverFailure"
    assert expected == 4


def test_a_lost_gpu_is_looked_for_with_back_off(nvml: NvmlStandIn) -> None:
    """As long as a GPU is lost NVML is initialised anew after 1, 2, 4 ... s, not in every cycle."""
    nvml.update({"count": 2, "gpu1.error.nvmlDeviceGetUtilizationRates": 15})
    initialised = run(
        nvml,
        """
times = []
for second in range(100):
    now[0] = float(second)
    with open(os.environ["NVML_STANDIN_CALLS"], "a"): pass
    size = os.path.getsize(os.environ["NVML_STANDIN_CALLS"])
    collect()
    with open(os.environ["NVML_STANDIN_CALLS"]) as file:
        file.seek(size)
        if "nvmlInitWithFlags" in file.read():
            times.append(second)
result = times
""",
    )
    assert initialised[0] == 0
    gaps = [b - a for a, b in zip(initialised, initialised[1:])]
    assert len(gaps) >= 4
    assert all(later >= 2 * gap for gap, later in zip(gaps[1:], gaps[2:]))


def test_ten_thousand_losses_and_returns_leak_nothing(nvml: NvmlStandIn) -> None:
    """10,000 cycles of the driver going and coming leave no file descriptor and no memory behind."""
    fds, megabytes, sessions = run(
        nvml,
        """
import gc, resource
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
path = os.environ["NVML_STANDIN_STATE"]
os.environ.pop("NVML_STANDIN_CALLS")
def cycles(count):
    sessions = 0
    for number in range(count):
        kind = number % 4
        if kind == 0: state(count=2)
        elif kind == 1: state(count=2, error__nvmlDeviceGetCount_v2=1)
        elif kind == 2: state(count=2, gpu1__lost=1)
        else: state(count=1 + number % 3)
        now[0] += 40
        sessions += "gpus" in collect()
    return sessions
cycles(500)
gc.collect()
fds, memory = len(os.listdir("/proc/self/fd")), rss()
sessions = cycles(10_000)
gc.collect()
result = [len(os.listdir("/proc/self/fd")) - fds, (rss() - memory) / 1e6, sessions]
""",
    )
    assert fds == 0
    assert megabytes < 1
    assert sessions > 5_000


def test_absurd_answers_of_the_driver_are_refused(nvml: NvmlStandIn, collect: Any) -> None:
    """More memory used than there is makes no number; it makes the GPU one that cannot be weighed."""
    nvml.update({"count": 2, "gpu0.memory_total": 1 << 30, "gpu0.memory_used": 1 << 40})
    reading = collect()
    assert [gpu["index"] for gpu in reading["gpus"]] == [1]
    assert "makes no sense" in reading["lost"][0]["reason"]


def test_a_name_that_is_no_text_is_no_name(nvml: NvmlStandIn, collect: Any) -> None:
    """Bytes that are not UTF-8 in a GPU's name cost the name and nothing else."""
    path = nvml.state_file
    path.write_bytes(path.read_bytes() + b"gpu0.name=\xff\xfe bad\n")
    gpu = collect()["gpus"][0]
    assert gpu["name"] is None
    assert gpu["utilization_ratio"] == 0.37


def test_the_wrong_binding_is_told_apart(tmp_path: Path, nvml: NvmlStandIn) -> None:
    """An old package that has taken the name pynvml is a failure that says how to get rid of it."""
    (tmp_path / "pynvml.py").write_text("def nvmlInit(): pass\n")
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + "print(json.dumps(collect()))"],
        env={**os.environ, **nvml.environment(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["failed"] == "DriverFailure"
    assert "pip uninstall pynvml" in answer["why"]


def test_a_driver_without_a_gpu_is_a_failure(nvml: NvmlStandIn, collect: Any) -> None:
    """A module that is loaded and names no GPU had one to be loaded for: that is no host without GPUs."""
    nvml.set(count=0)
    answer = collect()
    assert answer["failed"] == "DriverFailure"
    assert "the driver names none" in answer["why"]


def traces_below(folder: Path) -> bool:
    """What nvml.traces says of a root at `folder`, in an environment that names no folder of libraries."""
    code = f"from ollama_metrics.nvml import traces; print(traces({str(folder)!r} + '/'))"
    kept = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "LD_PRELOAD")}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, check=True)
    return {b"True": True, b"False": False}[done.stdout.strip()]


@pytest.fixture
def bare_root(tmp_path: Path) -> Path:
    """A root whose loader has a cache of libraries, none of them NVIDIA's."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ld.so.cache").write_bytes(b"\0libnvidia-ml.so.\0libm.so.6\0" * 5000)
    return tmp_path


def test_a_host_without_a_trace_of_nvidia_loads_nothing(bare_root: Path) -> None:
    """No driver, no such library in the loader's folders or cache: not even ctypes is imported to look for it."""
    assert not traces_below(bare_root)
    code = (
        "import sys; from ollama_metrics import nvml; nvml.traces = lambda: False\n"
        "try: nvml.load()\n"
        "except nvml.NoLibrary as error: print('ctypes' in sys.modules, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False the NVIDIA driver's library libnvidia-ml.so.1 is not")


@pytest.mark.parametrize(
    "trace",
    [
        *("proc/driver/nvidia", "sys/module/nvidia", "dev/nvidiactl", "dev/dxg"),
        *("usr/lib64/libnvidia-ml.so.1", "lib/libnvidia-ml.so.1"),
        f"usr/lib/{os.uname().machine}-linux-gnu/libnvidia-ml.so.1",
    ],
)
def test_any_trace_of_nvidia_has_the_loader_asked(bare_root: Path, trace: str) -> None:
    """A driver's module, device or library, even a link that leads nowhere, is reason enough to ask the loader."""
    (bare_root / trace).parent.mkdir(parents=True, exist_ok=True)
    (bare_root / trace).symlink_to("nowhere")
    assert traces_below(bare_root)


def test_the_loaders_cache_is_searched_to_its_end(bare_root: Path) -> None:
    """A library that only the cache knows is found wherever in it, also across two pieces; no cache leaves it open."""
    cache = bare_root / "etc/ld.so.cache"
    for before in (0, (1 << 14) - 5, 3 * (1 << 14) - 16, 200_001):
        cache.write_bytes(b"x" * before + b"libnvidia-ml.so.1\0" + b"y" * 99)
        assert traces_below(bare_root), before
    cache.unlink()
    assert traces_below(bare_root)


def test_a_library_whose_dependency_is_missing_is_a_failure(
    nvml: NvmlStandIn, collect: Any
) -> None:
    """libnvidia-ml.so.1 that is there and cannot be loaded is not "not installed"."""
    nvml.library.unlink()
    source = nvml.library.with_name("needs.c")
    source.write_text("extern int nowhere(void); int nvmlX(void) { return nowhere(); }\n")
    absent = nvml.library.with_name("libabsent.so.1")
    stub = nvml.library.with_name("stub.c")
    stub.write_text("int nowhere(void) { return 1; }\n")
    shared = ["gcc", "-shared", "-fPIC"]
    subprocess.run([*shared, "-o", absent, stub, "-Wl,-soname,libabsent.so.1"], check=True)
    subprocess.run([*shared, "-o", nvml.library, source, absent], check=True)
    absent.unlink()
    answer = collect()
    assert answer["failed"] == "DriverFailure"
    assert "libabsent.so.1" in answer["why"]


@pytest.mark.parametrize("field", ["utilization", "memory_total"])
def test_a_vital_reading_that_is_no_longer_reported_is_a_lost_gpu(
    nvml: NvmlStandIn, field: str
) -> None:
    """Utilization or memory that stops being reported makes the GPU lost until a new session asks anew."""
    nvml.set(count=2)
    before, lost, after, back = run(
        nvml,
        f"""
before = collect()
state(count=2, gpu0__{field}="unsupported")
lost = collect()
for _ in range(3):
    now[0] += 3
    after = collect()
state(count=2)
now[0] += 61
collect(); back = collect()
result = [before, lost, after, back]
""",
    )
    assert len(before["gpus"]) == 2
    assert [gpu["index"] for gpu in lost["gpus"]] == [1]
    assert [gpu["index"] for gpu in after["gpus"]] == [0, 1], "a new session: not reported"
    name = "utilization_ratio" if field == "utilization" else "memory_used_ratio"
    assert after["gpus"][0][name] is None
    assert back["gpus"][0][name] is not None, "asked again a minute later"


def test_gpus_that_were_missing_from_the_start_are_looked_for(nvml: NvmlStandIn) -> None:
    """A new session is opened from time to time while fewer GPUs are there than are remembered."""
    nvml.set(count=2)
    initialised = run(
        nvml,
        """
expectation.count = 4
for second in range(20):
    now[0] = float(second)
    collect()
with open(os.environ["NVML_STANDIN_CALLS"]) as file:
    result = sum("nvmlInitWithFlags" in line for line in file)
""",
    )
    assert 3 <= initialised <= 6


def test_gpus_of_the_same_uuid_are_told_apart(nvml: NvmlStandIn, collect: Any) -> None:
    """Two GPUs that claim one UUID keep readings of their own."""
    nvml.update({"count": 2, "gpu.uuid": "GPU-same", "gpu0.utilization": 90, "gpu1.utilization": 0})
    gpus = collect()["gpus"]
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-same", "GPU-same#1"]
    assert [gpu["utilization_ratio"] for gpu in gpus] == [0.9, 0.0]


def test_a_gpu_without_a_uuid_goes_by_its_bus_id(nvml: NvmlStandIn, collect: Any) -> None:
    """A GPU that does not report its UUID is read all the same."""
    nvml.update({"gpu0.uuid": UNSUPPORTED, "gpu0.pci_bus_id": "00000000:3B:00.0"})
    assert collect()["gpus"][0]["uuid"] == "00000000:3B:00.0"


def test_a_part_is_unified_by_its_whole_name(nvml: NvmlStandIn, collect: Any) -> None:
    """GB102 is not GB10."""
    nvml.update({"gpu0.name": "NVIDIA GB102"})
    assert collect()["gpus"][0]["unified_memory"] is False


def test_a_mig_instance_that_cannot_be_read_is_listed_without_memory(
    nvml: NvmlStandIn, collect: Any
) -> None:
    """An instance that is there and does not tell its memory has none in the list, and is in it."""
    nvml.update(
        {
            "gpu0.mig_mode": 1,
            "gpu0.mig.count": 2,
            "gpu0.mig.0.memory_total": 40 << 30,
            "gpu0.mig.0.memory_used": 1 << 30,
            "gpu0.mig.1.memory_total": UNSUPPORTED,
        }
    )
    instances = collect()["gpus"][0]["mig_instances"]
    assert [one["memory_used_bytes"] for one in instances] == [1 << 30, None]


# -- the processes on a GPU ----------------------------------------------------------------------------------------


ASKED = "nvmlDeviceGetComputeRunningProcesses_v3"
PROCESSES = """
collector = make(processes_every=10.0)
def processes():
    return [gpu["processes"] for gpu in collect()["gpus"]]
"""


def test_the_processes_of_each_gpu_are_listed(nvml: NvmlStandIn) -> None:
    """Each with its memory in bytes, None where the driver does not tell; a GPU without any has an empty list."""
    nvml.update(
        {
            "count": 3,
            "gpu0.processes": f"4711:{5 << 30},4712:unsupported",
            "gpu1.processes": f"4711:{1 << 30}",
        }
    )
    assert run(nvml, f"{PROCESSES}result = processes()") == [
        [[4711, 5 << 30], [4712, None]],
        [[4711, 1 << 30]],
        [],
    ]


def test_without_an_interval_no_processes_are_asked_for(nvml: NvmlStandIn) -> None:
    """None, and no call: who does not place models does not pay for it."""
    nvml.update({"gpu0.processes": "4711:1"})
    assert run(nvml, "result = collect()['gpus'][0]['processes']") is None
    assert ASKED not in nvml.calls()


def test_processes_are_asked_for_every_so_often(nvml: NvmlStandIn) -> None:
    """Within the interval the last answer stands, also an empty one; with an interval of 0 each cycle asks."""
    result = run(
        nvml,
        PROCESSES
        + """
result = []
for number in range(4):
    result.append(processes())
    state(count=1, gpu0__processes=f"{number + 1}:1")
    now[0] += 4.9
collector = make(processes_every=0.0)
result.append(processes())
state(count=1, gpu0__processes="9:1")
result.append(processes())
""",
    )
    assert result == [[[]], [[]], [[]], [[[3, 1]]], [[[4, 1]]], [[[9, 1]]]]


def test_a_gpu_that_does_not_tell_its_processes(nvml: NvmlStandIn) -> None:
    """Its processes are None and not empty; the others' are told, and it is not asked again in the session."""
    nvml.update({"count": 2, "gpu0.processes": UNSUPPORTED, "gpu1.processes": "4711:1"})
    result = run(nvml, f"{PROCESSES}result = [processes()]\nnow[0] += 10\nresult += [processes()]")
    assert result == [[None, [[4711, 1]]]] * 2
    asked = [call.gpu for call in nvml.records() if call.function == ASKED]
    assert asked.count(0) == 1
    assert asked.count(1) >= 2


def test_processes_that_cannot_be_read_cost_nothing_else(nvml: NvmlStandIn) -> None:
    """An error is None, one line in the log, and asked again after the interval; the GPU is not lost for it."""
    nvml.update({f"gpu0.error.{ASKED}": 999, "gpu0.processes": "4711:1"})
    failed, logged, mended, told = run(
        nvml,
        PROCESSES
        + """
first, again = collect(), processes()
assert first["lost"] == () and first["gpus"][0]["utilization_ratio"] is not None, first
logged = list(said)
state(count=1, gpu0__processes="4711:1")
early = processes()
now[0] += 10
result = [[first["gpus"][0]["processes"], *again, *early], logged, processes(), said]
""",
    )
    assert failed == [None] * 3
    assert mended == [[[4711, 1]]]
    assert len(logged) == len(told) == 1
    assert logged[0].startswith("processes of GPU 0 cannot be read: ")


def test_a_driver_without_the_call_tells_no_processes(tmp_path: Path) -> None:
    """A driver too old for version 3 of the call costs nothing but the processes."""
    if not NvmlStandIn.available():
        pytest.skip("gcc is not installed")
    nvml = NvmlStandIn(tmp_path / "old", without=(ASKED,))
    assert run(nvml, f"{PROCESSES}result = [processes(), processes(), said]") == [
        [None],
        [None],
        [],
    ]


def test_processes_are_bounded(nvml: NvmlStandIn) -> None:
    """However many a driver names, 1024 are kept."""
    nvml.update({"gpu0.processes": ",".join(f"{pid}:1" for pid in range(1, 1500))})
    (found,) = run(nvml, f"{PROCESSES}result = processes()")
    assert len(found) == 1024
    assert found[:2] == [[1, 1], [2, 1]]
