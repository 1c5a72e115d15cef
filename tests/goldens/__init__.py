"""Literal readings, and the documents that they have to become, byte for byte.

`OLLAMA_METRICS_UPDATE_GOLDENS=1` makes the tests write the documents instead of comparing them;
look at the difference before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

from ollama_metrics.agent import AgentBuild, AgentStats
from ollama_metrics.devices import DeviceReading, Disk, NetworkInterface
from ollama_metrics.gpu import GpuReading, GpuSample, LostGpu, MigInstance
from ollama_metrics.host import HostSample
from ollama_metrics.metrics import Histogram
from ollama_metrics.ollama import (
    CgroupUsage,
    ErrorCount,
    LogReading,
    Model,
    OllamaReading,
    Part,
    RequestCount,
    RequestSpan,
    Runner,
)
from ollama_metrics.snapshot import CollectorHealth, Snapshot, State
from ollama_metrics.verdict import Balance, Verdict
from ollama_metrics.window import Span

__all__ = [
    "AGENT",
    "BUILD",
    "FULL",
    "NOTHING",
    "NOW",
    "VERDICT_FULL",
    "VERDICT_NOTHING",
    "check",
]

FOLDER = Path(__file__).parent
MIB = 1 << 20
NOW = 5000.25

BUILD = AgentBuild(version="1.2.3", python="3.9.2")
AGENT = AgentStats(
    uptime_seconds=3600.5,
    start_time_seconds=1_800_000_000.25,
    requests_total=12345,
    requests_refused_total=7,
    connections=3,
    connections_evicted_total=2,
)

# Everything that a GPU can report.
H200 = GpuSample(
    index=0,
    name="NVIDIA H200",
    utilization_ratio=0.5,
    memory_used_bytes=70_000 * MIB,
    memory_total_bytes=143_771 * MIB,
    memory_used_ratio=70_000 / 143_771,
    temperature_celsius=41,
    power_draw_watts=350.456,
    power_limit_watts=700.0,
    power_ratio=350.456 / 700.0,
    uuid="GPU-00000000-1111-2222-3333-444444444444",
    pci_bus_id="00000000:1B:00.0",
    memory_free_bytes=73_161 * MIB,
    memory_reserved_bytes=610 * MIB,
    unified_memory=False,
    sm_clock_hertz=1_980_000_000,
    memory_clock_hertz=3_201_000_000,
    performance_state=0,
    throttle_reasons=("software_power_cap", "software_thermal_slowdown"),
    throttled_power=True,
    throttled_thermal=True,
    throttled_hardware=False,
    energy_joules_total=123456.789,
    ecc_corrected_errors_total=3,
    ecc_uncorrected_errors_total=0,
    pcie_link_generation=5,
    pcie_link_width=16,
    fan_speed_ratio=0.0,
    encoder_utilization_ratio=0.01,
    decoder_utilization_ratio=0.02,
    mig_enabled=False,
    processes=((4242, 20_000 * MIB), (1, None)),
)
# In MIG mode hardly anything is reported; and a name that wants escaping.
SPLIT = GpuSample(
    index=1,
    name='A "special" \\ edition\nA100 \u00b5',
    memory_used_bytes=0,
    memory_total_bytes=40_960 * MIB,
    memory_used_ratio=0.0,
    memory_free_bytes=40_960 * MIB,
    uuid="GPU-55555555-6666-7777-8888-999999999999",
    mig_enabled=True,
    mig_instances=(
        MigInstance("1", "MIG-a", "1g.5gb", 4864 * MIB, 12 * MIB),
        MigInstance("1", "MIG-b", None, None, None),
    ),
    processes=(),
)
HOST = HostSample(
    cpu_ratio=0.123,
    memory_used_ratio=0.25,
    memory_total_bytes=64 << 30,
    memory_available_bytes=48 << 30,
    cpus=1.5,
    cpu_busy_seconds_total=98765.25,
    container_limited=True,
)
READING = GpuReading(
    gpus=(H200, SPLIT),
    lost=(LostGpu("GPU 2", "fell off the bus"),),
    enumerated=3,
    driver_version="550.54.15",
    cuda_version="12.4",
    nvml_version="12.550.54.15",
)

BLOB = "sha256-" + "7" * 64
LOG = LogReading(
    request_duration_seconds=Histogram((0.01, 0.25, 10.0), (1, 3, 4, 5), 615.25),
    model_loads_total=2,
    model_load_seconds_total=32.3,
    model_load_last_seconds=2.34,
    log_lines_total=99,
    log_lines_unparsed_total=1,
    requests=(
        RequestCount("POST", "/api/chat", "200", 4),
        RequestCount("GET", "other", "404", 1),
    ),
    errors=(ErrorCount("not_found", 1),),
    spans=(RequestSpan(4990.0, 4995.0, 4, 1, {0: 3, 100: 1}),),
)
# Everything that Ollama and the kernel can tell of it; one model on a GPU, one that cannot be placed.
OLLAMA = OllamaReading(
    url="http://127.0.0.1:11434",
    up=True,
    expected=True,
    version="0.33.0",
    rtt_seconds=0.00125,
    active_requests=5,
    slots=4,
    slots_busy=3,
    models_loaded=2,
    models=(
        Model(
            name="llama3.2:latest",
            digest="a80c4f17",
            family="llama",
            parameter_size="3.2B",
            quantization="Q4_K_M",
            size_bytes=20_000 * MIB,
            vram_bytes=20_000 * MIB,
            gpu_ratio=1.0,
            context_length=4096,
            expires_timestamp_seconds=1_800_004_000.5,
        ),
        Model(name='say "b":1b', size_bytes=400 * MIB, vram_bytes=100 * MIB, gpu_ratio=0.25),
    ),
    blobs=(("llama3.2:latest", BLOB),),
    runners=(Runner(4242, BLOB, 40001, 4),),
    log=LOG,
    cgroup=CgroupUsage(
        path="/system.slice/ollama.service",
        memory_used_bytes=3 << 30,
        memory_limit_bytes=64 << 30,
        cpu_seconds_total=123.5,
        throttled_periods_total=2,
        throttled_seconds_total=0.25,
        oom_kills_total=1,
        io_read_bytes_total=20 << 30,
        io_written_bytes_total=4096,
    ),
    seen=True,
    parts=tuple(
        Part(CollectorHealth(name, True, 0.001, 1_800_003_599.0, 0, 0), 4998.5)
        for name in ("ollama", "ollama_models", "ollama_log", "ollama_cgroup")
    ),
)

# Two GPUs of three answer, and one of these hardly says a thing.
DEVICES = DeviceReading(
    (NetworkInterface("eno1", 123456789012, 98765432109, 1, 2, 3, 4),),
    (Disk("nvme0n1", 5 << 40, 7 << 30), Disk("sda", 1 << 30, 0, 31)),
)
FULL = Snapshot(
    host=State(
        health=CollectorHealth(
            collector="host",
            success=True,
            duration_seconds=0.00015,
            last_success_timestamp_seconds=1_800_003_600.125,
            consecutive_failures=0,
            failures_total=1,
        ),
        overdue_at=5003.0,
        sample=HOST,
        last_good=HOST,
        read_at=5000.0,
        read_timestamp=1_800_003_600.125,
        ring=(
            Span(4980.0, 4998.0, {"": (0.9, 0.9)}),
            Span(4998.0, 4999.0, {"": (0.5, 0.25)}),
            Span(4999.0, 5000.0, {"": (0.123, 0.25)}),
        ),
    ),
    gpu=State(
        health=CollectorHealth(
            collector="gpu",
            success=True,
            duration_seconds=0.0125,
            last_success_timestamp_seconds=1_800_003_600.0,
            consecutive_failures=0,
            failures_total=0,
        ),
        overdue_at=5002.9,
        sample=READING,
        last_good=READING,
        read_at=4999.9,
        read_timestamp=1_800_003_600.0,
        ring=(
            Span(4998.9, 4999.4, {H200.uuid: (0.9, 0.4, 0.75)}),
            Span(4999.4, 4999.9, {H200.uuid: H200.levels(), SPLIT.uuid: SPLIT.levels()}),
        ),
    ),
    gpus_expected=3,
    gpus_expected_by="by memory",
    ollama=State(
        health=CollectorHealth("ollama", True, 0.004, 1_800_003_599.0, 0, 0),
        overdue_at=5020.0,
        sample=OLLAMA,
        last_good=OLLAMA,
        read_at=4998.5,
        read_timestamp=1_800_003_599.0,
    ),
    ollama_expected=True,
    devices=State(
        health=CollectorHealth(
            collector="devices",
            success=True,
            duration_seconds=0.0004,
            last_success_timestamp_seconds=1_800_003_590.0,
            consecutive_failures=0,
            failures_total=0,
        ),
        overdue_at=5035.0,
        sample=DEVICES,
        last_good=DEVICES,
        read_at=4990.0,
        read_timestamp=1_800_003_590.0,
    ),
)
VERDICT_FULL = Verdict(
    status="degraded",
    gpu_devices=2,
    gpu_devices_expected=3,
    reasons=("1 of 3 GPUs lost (GPU 2: fell off the bus); by memory", "GPU 1: \u00b5"),
    balance=Balance(31.2, 25.0, 3, 57.0, 49.7),
    components={"cpu": 31.2, "ram": 25.0, "gpu_util": 85.5, "gpu_mem": 74.55, "in_flight": 0.0},
    age_seconds=0.35,
    timestamp=1_800_003_600.0,
    weight=216.25,
    load_ratio=0.4325,
)

# Nothing was ever read.
NOTHING = Snapshot(
    host=State(
        health=CollectorHealth(
            collector="host",
            success=False,
            consecutive_failures=2,
            failures_total=2,
            error="CPU and memory cannot be read",
        ),
        overdue_at=5003.0,
    ),
    gpu=None,
    gpus_expected=0,
    gpus_expected_by="",
)
VERDICT_NOTHING = Verdict(
    status="failing",
    gpu_devices=0,
    gpu_devices_expected=0,
    reasons=("CPU and RAM cannot be read: CPU and memory cannot be read",),
    components={"cpu": 100.0, "ram": 100.0, "gpu_util": 150.0, "gpu_mem": 150.0, "in_flight": 0.0},
    weight=500.0,
    load_ratio=1.0,
)


def check(name: str, document: bytes) -> None:
    """Compare with the golden of this name, or write it when told to."""
    path = FOLDER / name
    if os.environ.get("OLLAMA_METRICS_UPDATE_GOLDENS") == "1":
        path.write_bytes(document)
    assert document == path.read_bytes()
