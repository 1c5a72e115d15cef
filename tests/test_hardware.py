"""The agent on a machine with NVIDIA GPUs: every field against nvidia-smi, its speed, and nothing that leaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from agent_process import AgentProcess
from hardware_report import NotComparable, Smi, differences, flat
from prometheus_client.parser import text_string_to_metric_families
from standin import NvmlStandIn

SAMPLES, WARM_UP = 2000, 200
REPORT = Path(__file__).with_name("hardware_report.py")

# NVML is looked at in a process of its own: a library that has been loaded stays loaded.
_COUNT = """
from ollama_metrics.errors import CollectorError
from ollama_metrics.nvml import Session
try:
    session = Session()
except CollectorError as error:
    raise SystemExit(str(error))
print(session.count)
session.close()
"""


@pytest.fixture(scope="module")
def gpu_count() -> int:
    """How many GPUs the driver has; the tests are skipped where there is none."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    count = int(done.stdout)
    if count == 0:
        pytest.skip("the NVIDIA driver has no GPU")
    return count


@pytest.fixture
def smi(gpu_count: int, component: Callable[[str], str]) -> Smi:
    """nvidia-smi, which comes with the driver."""
    component("nvidia-smi")
    return Smi()


@pytest.fixture
def agent(gpu_count: int, start_agent: Callable[..., AgentProcess]) -> AgentProcess:
    """The daemon on this machine's GPUs, reading them five times a second."""
    return start_agent("--interval", "0.2")


def once(*options: str) -> str:
    """What `ollama-metrics once` prints."""
    command = [sys.executable, "-m", "ollama_metrics", "once", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stderr == ""
    return done.stdout


def compare(smi: Smi, read: Callable[[], Any], attempts: int = 8) -> Any:
    """Compare all fields of all GPUs; returns the last document.

    nvidia-smi is asked between two readings of ours. A GPU that just then wakes up or falls asleep is
    between states for all of them, so a comparison that fails is made again, some times.
    """
    found: dict[str, list[str]] = {}
    for _ in range(attempts):
        before, theirs, after = read(), smi.gpus(), read()
        ours = [
            {gpu["uuid"]: flat(gpu) for gpu in document["gpus"]} for document in (before, after)
        ]
        assert ours[0].keys() == theirs.keys() == ours[1].keys()
        found = {uuid: differences(ours[0][uuid], theirs[uuid], ours[1][uuid]) for uuid in theirs}
        if not any(found.values()):
            return after
    raise AssertionError(f"nvidia-smi says otherwise: {found}")


def fresh(agent: AgentProcess) -> Any:
    """A document whose sample is younger than the call."""
    now = time.time()
    return agent.wait_until(lambda document: document["timestamp"] > now)


@pytest.mark.gpu
def test_once_says_of_every_gpu_what_nvidia_smi_says(smi: Smi, gpu_count: int) -> None:
    """Each field of each GPU in `once` is nvidia-smi's, null where that has no value, and the versions are the same."""
    document = compare(smi, lambda: json.loads(once()), attempts=4)
    assert document["gpu_count"] == len(document["gpus"]) == gpu_count
    assert document["driver"]["version"] == smi.driver_version
    if smi.cuda_version is not None:
        assert document["driver"]["cuda_version"] == smi.cuda_version


@pytest.mark.gpu
def test_the_daemon_says_of_every_gpu_what_nvidia_smi_says(agent: AgentProcess, smi: Smi) -> None:
    """Each field of each GPU on /metrics is nvidia-smi's of the same second, null where that has no value."""
    document = compare(smi, lambda: fresh(agent))
    assert document["driver"]["version"] == smi.driver_version


@pytest.mark.gpu
def test_the_mig_instances_are_those_of_nvidia_smi(agent: AgentProcess, smi: Smi) -> None:
    """The MIG instances, none on most machines, are those that nvidia-smi lists, each within its GPU's memory."""
    gpus = agent.metrics()["gpus"]
    instances = [instance for gpu in gpus for instance in gpu["mig_instances"]]
    assert {instance["uuid"] for instance in instances} == smi.mig_uuids()
    for gpu in gpus:
        assert gpu["mig_instances"] == [] or gpu["mig_enabled"]
        for instance in gpu["mig_instances"]:
            assert 0 <= instance["memory_used_mb"] <= instance["memory_total_mb"]


@pytest.mark.gpu
def test_a_healthy_machine_is_judged_healthy(agent: AgentProcess, gpu_count: int) -> None:
    """The verdict is ok, all GPUs count, the weight is below a failing host's, and /health says 200."""
    document = fresh(agent)
    assert document["status"] == "ok", document["reasons"]
    assert document["gpu_count"] == document["gpu_expected"] == gpu_count
    assert 0 < document["weight"] < 500
    assert document["collectors"]["gpu"]["success"] is True
    assert agent.get("/health").status == 200


@pytest.mark.gpu
def test_the_prometheus_text_has_every_gpu(agent: AgentProcess) -> None:
    """In Prometheus' text each GPU has what JSON has of it: the same memory, and no series for what is null."""
    gpus = {gpu["uuid"]: gpu for gpu in fresh(agent)["gpus"]}
    text = agent.get("/metrics?format=prometheus").body.decode()
    samples = {
        (sample.name, sample.labels.get("uuid")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for uuid, gpu in gpus.items():
        total = samples.get(("ollama_gpu_memory_total_bytes", uuid))
        assert (total is None) == (gpu["memory_total_mb"] is None)
        assert total is None or round(total / 2**20) == gpu["memory_total_mb"]
        for family, key in (
            ("utilization_ratio", "utilization_instant_percent"),
            ("temperature_celsius", "temperature_c"),
            ("power_draw_watts", "power_draw_w"),
            ("energy_joules_total", "energy_j"),
            ("ecc_corrected_errors_total", "ecc_corrected"),
            ("fan_speed_ratio", "fan_speed_percent"),
            ("mig_enabled", "mig_enabled"),
        ):
            assert ((f"ollama_gpu_{family}", uuid) in samples) == (gpu[key] is not None), key


@pytest.mark.gpu
def test_the_energy_counter_grows_as_the_power_draw_says(agent: AgentProcess) -> None:
    """Over three seconds each GPU uses between half and double of what its power draw lets expect."""
    seen = [fresh(agent)]
    while seen[-1]["timestamp"] < seen[0]["timestamp"] + 3:
        seen.append(fresh(agent))
    seconds = seen[-1]["timestamp"] - seen[0]["timestamp"]
    for readings in zip(*(document["gpus"] for document in seen)):
        if readings[0]["energy_j"] is None or readings[0]["power_draw_w"] is None:
            continue
        watts = (readings[-1]["energy_j"] - readings[0]["energy_j"]) / seconds
        drawn = [reading["power_draw_w"] for reading in readings]
        assert min(drawn) / 2 <= watts <= max(drawn) * 2


@pytest.mark.gpu
def test_fifty_polls_each_take_less_than_a_second(agent: AgentProcess) -> None:
    """While the driver is read, 50 polls over five seconds are all answered within a second, and none by a failure."""
    slowest = 0.0
    for _ in range(50):
        begun = time.monotonic()
        answer = agent.get()
        slowest = max(slowest, time.monotonic() - begun)
        assert answer.status == 200
        assert answer.json["status"] == "ok"
        time.sleep(0.1)
    assert slowest < 1


_LEAK = """
import json, os, sys, psutil
from ollama_metrics.expectation import Expectation
from ollama_metrics.gpu_collector import GpuCollector
def log(level, sentence):
    print(level, sentence, file=sys.stderr)
collector = GpuCollector(Expectation(None, None, log), log)
def state():
    return len(os.listdir("/proc/self/fd")), psutil.Process().memory_info().rss
def sample(times):
    for _ in range(times):
        assert collector.collect().gpus
    return state()
warm, samples = map(int, sys.argv[1:])
print(json.dumps([sample(warm), sample(samples)]))
"""


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_two_thousand_samples_leak_nothing(gpu_count: int) -> None:
    """After 2,000 samples of all GPUs as many files are open as before, and RSS has grown by 2 MB at most."""
    done = subprocess.run(
        [sys.executable, "-c", _LEAK, str(WARM_UP), str(SAMPLES)],
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (files_before, rss_before), (files_after, rss_after) = json.loads(done.stdout)
    assert files_after == files_before
    assert rss_after - rss_before <= 2_000_000


# -- the page that is written from such a machine; these run anywhere ------------------------------


@pytest.mark.parametrize("lacking", ["driver", "GPUs", "nvidia-smi"])
def test_the_report_needs_a_gpu_and_says_so(
    nvml: NvmlStandIn, tmp_path: Path, lacking: str
) -> None:
    """Without driver, GPU or nvidia-smi no page is printed; it ends with 1 and one line that names what is lacking."""
    if lacking == "driver":
        nvml.unload_driver()
    elif lacking == "GPUs":
        nvml.set(count=0)
    done = subprocess.run(
        [sys.executable, str(REPORT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **nvml.environment(), "PATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    said = {"driver": "driver is not loaded", "GPUs": "no GPU", "nvidia-smi": "not installed"}
    assert said[lacking] in line


GPU: dict[str, Any] = {
    "memory_used_mb": 1000,
    "temperature_c": 50,
    "power_draw_w": 300.0,
    "uuid": "GPU-1",
    "fan_speed_percent": None,
    "mig_enabled": False,
    "ecc_corrected": 7,
}


@pytest.mark.parametrize(
    ("theirs", "differ"),
    [
        (GPU, []),
        ({"memory_used_mb": 1064.0, "temperature_c": 53.0, "power_draw_w": 345.0}, []),
        ({"memory_used_mb": 1065.0}, ["memory_used_mb"]),
        ({"temperature_c": 54.0}, ["temperature_c"]),
        ({"power_draw_w": 360.0}, ["power_draw_w"]),
        ({"uuid": "GPU-2"}, ["uuid"]),
        ({"fan_speed_percent": 0.0}, ["fan_speed_percent"]),
        ({"temperature_c": None}, ["temperature_c"]),
        ({"mig_enabled": None}, ["mig_enabled"]),
        ({"ecc_corrected": 8}, ["ecc_corrected"]),
    ],
)
def test_what_counts_as_another_value(theirs: dict[str, Any], differ: list[str]) -> None:
    """The comparison is exact where it should be, and lets a moving value move by its tolerance only."""
    found = differences(GPU, theirs, GPU)
    assert [one.split(":")[0] for one in found] == differ


def test_a_moving_value_may_lie_between_two_readings() -> None:
    """What nvidia-smi says may lie between the reading before it and the one after it, but not beyond."""
    later = {**GPU, "memory_used_mb": 9000}
    assert differences(GPU, {"memory_used_mb": 5000.0}, later) == []
    assert len(differences(GPU, {"memory_used_mb": 9100.0}, later)) == 1


def test_without_nvidia_smi_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without nvidia-smi is told from one where it disagrees."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotComparable, match="not installed"):
        Smi()
