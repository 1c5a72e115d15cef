"""The example of docs/METRICS.md: literal samples, rendered by the agent's own code."""

from __future__ import annotations

from .agent import AgentBuild, AgentStats
from .devices import DeviceReading, Disk, NetworkInterface
from .exposition_json import render_json
from .gpu import GpuReading, GpuSample
from .host import HostSample
from .ollama import Model, OllamaReading, Part
from .policy import PESSIMISTIC
from .snapshot import CollectorHealth, Snapshot, State
from .verdict import judge
from .window import Span

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def example() -> bytes:
    """The document of a healthy host with one GPU, as the agent renders it."""
    now = 100.0
    host = HostSample(
        cpu_ratio=0.2,
        memory_used_ratio=0.3,
        memory_total_bytes=256 << 30,
        memory_available_bytes=179 << 30,
        cpus=64.0,
        cpu_busy_seconds_total=123456.0,
        container_limited=False,
    )
    gpu = GpuSample(
        index=0,
        name="NVIDIA H100 80GB HBM3",
        uuid="GPU-7d5c1a1e-0b8f-4c55-9d0e-3c1f6a2b9e10",
        pci_bus_id="00000000:18:00.0",
        utilization_ratio=0.8,
        memory_used_bytes=57 << 30,
        memory_total_bytes=80 << 30,
        memory_used_ratio=0.7125,
        memory_free_bytes=22 << 30,
        memory_reserved_bytes=1 << 30,
        temperature_celsius=61,
        power_draw_watts=512.3,
        power_limit_watts=700.0,
        power_ratio=0.7319,
        unified_memory=False,
        throttle_reasons=("software_power_cap",),
        mig_enabled=False,
    )
    reading = GpuReading(
        gpus=(gpu,),
        enumerated=1,
        driver_version="580.65.06",
        cuda_version="13.0",
        nvml_version="13.580.65.06",
    )
    model = Model(
        name="llama3.1:70b",
        family="llama",
        parameter_size="70.6B",
        quantization="Q4_K_M",
        size_bytes=57 << 30,
        vram_bytes=57 << 30,
        gpu_ratio=1.0,
        context_length=8192,
    )
    ollama = OllamaReading(
        url="http://127.0.0.1:11434",
        up=True,
        expected=True,
        version="0.33.0",
        rtt_seconds=0.0011,
        active_requests=3,
        slots=4,
        slots_busy=3,
        models_loaded=1,
        models=(model,),
        seen=True,
        parts=(Part(CollectorHealth("ollama", True, 0.0011, 1.8e9, 0, 0), now - 2),),
    )
    devices = DeviceReading(
        (NetworkInterface("eno1", 184 << 30, 931 << 30, 0, 0, 12, 0),),
        (Disk("nvme0n1", 412 << 30, 96 << 30),),
    )
    snapshot = Snapshot(
        _state("host", host, now),
        _state("gpu", reading, now),
        1,
        "",
        _state("ollama", ollama, now),
        True,
        devices=_state("devices", devices, now),
    )
    verdict = judge(snapshot, 15.0, PESSIMISTIC, now)
    build = AgentBuild("0.1.0", "3.9.25")
    stats = AgentStats(
        uptime_seconds=86400.0,
        requests_total=2880,
        requests_refused_total=0,
        connections=1,
        connections_evicted_total=0,
    )
    return render_json(snapshot, verdict, 15.0, build, stats, now, indent=2)


def _state(name: str, sample: Any, now: float) -> State[Any]:
    read_at, timestamp = now - 0.4, 1_800_000_000.0
    return State(
        health=CollectorHealth(
            collector=name,
            success=True,
            duration_seconds=0.0004,
            last_success_timestamp_seconds=timestamp,
            consecutive_failures=0,
            failures_total=0,
        ),
        overdue_at=now + 2.6,
        sample=sample,
        last_good=sample,
        read_at=read_at,
        read_timestamp=timestamp,
        ring=(Span(read_at - 1, read_at, sample.levels()),),
    )
