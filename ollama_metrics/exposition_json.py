"""A snapshot and its verdict as the JSON document that balancers read; pure.

The first keys, their order, types and units are a contract (docs/METRICS.md); what is new only ever
comes after them.
"""

from __future__ import annotations

import json

from .agent import AgentBuild, AgentStats
from .devices import Disk, NetworkInterface
from .gpu import GpuReading, GpuSample, MigInstance
from .host import HostSample
from .metrics import Table
from .ollama_exposition import to_documents as to_ollama_documents
from .snapshot import CollectorHealth
from .window import stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Optional

    from .drain import Drain
    from .ollama import OllamaReading
    from .snapshot import Snapshot, State
    from .verdict import Verdict
    from .window import Stat

_HOST, _GPU, _MIG = Table(HostSample), Table(GpuSample), Table(MigInstance)
_DRIVER, _HEALTH = Table(GpuReading), Table(CollectorHealth)
_INTERFACE, _DISK = Table(NetworkInterface), Table(Disk)
_BUILD, _STATS = Table(AgentBuild), Table(AgentStats)


def render_json(
    snapshot: Snapshot,
    verdict: Verdict,
    window: float,
    build: AgentBuild,
    agent: AgentStats,
    now: float,
    indent: Optional[int] = None,
) -> bytes:
    """The document, UTF-8 with a final newline. `now` is monotonic; never contains NaN or Infinity."""
    document = to_document(snapshot, verdict, window, build, agent, now)
    separators = (",", ":") if indent is None else None
    return (
        json.dumps(document, allow_nan=False, indent=indent, separators=separators).encode("ascii")
        + b"\n"
    )


def to_document(
    snapshot: Snapshot,
    verdict: Verdict,
    window: float,
    build: AgentBuild,
    agent: AgentStats,
    now: float,
) -> dict[str, Any]:
    """The document as Python values; None becomes null: "not reported", or "not known now"."""
    balance = verdict.balance
    host: Optional[HostSample] = _shown(snapshot.host, verdict.kept)
    reading: Optional[GpuReading] = (
        _shown(snapshot.gpu, verdict.kept) if snapshot.gpu is not None else None
    )
    gpus = reading.gpus if reading is not None else ()
    host_stats = stats(snapshot.host.ring, window).get("") if host is not None else None
    gpu_stats = stats(snapshot.gpu.ring, window) if snapshot.gpu is not None else {}
    states = [
        state for state in (snapshot.host, snapshot.devices, snapshot.gpu) if state is not None
    ]
    devices = snapshot.devices.sample if snapshot.devices is not None else None
    ollama, vram = to_ollama_documents(snapshot, window, now)
    return {
        **vars(balance),
        "gpus": [_gpu(gpu, gpu_stats.get(gpu.uuid)) for gpu in gpus],
        "timestamp": _rounded(verdict.timestamp),
        "weight": verdict.weight,
        "status": verdict.status,
        "reasons": list(verdict.reasons),
        "window_seconds": window,
        "age_seconds": _rounded(verdict.age_seconds),
        "instant": _instant(host, gpus),
        "gpu_expected": verdict.gpu_devices_expected,
        "collectors": {
            **{state.health.collector: _health(state, now) for state in states},
            **_ollama_health(snapshot.ollama, now),
        },
        "agent": {**_BUILD.to_json(build), **_STATS.to_json(agent)},
        "window": _window(
            host_stats, [gpu_stats[gpu.uuid] for gpu in gpus if gpu.uuid in gpu_stats]
        ),
        "host": _HOST.to_json(host) if host is not None else None,
        "driver": _DRIVER.to_json(reading)
        if reading is not None and reading.driver_version
        else None,
        "ollama": ollama,
        "vram": vram,
        "weight_components": dict(verdict.components),
        "load": verdict.load_ratio,
        "drain": _drain(snapshot.drain),
        "network": [_INTERFACE.to_json(one) for one in devices.interfaces] if devices else None,
        "disks": [_DISK.to_json(one) for one in devices.disks] if devices else None,
    }


def _drain(drain: Optional[Drain]) -> Optional[dict[str, Any]]:
    """Why, and until when (Unix seconds, null: until it is ended), no request is to come."""
    if drain is None:
        return None
    return {"reason": drain.reason, "since": drain.since, "until": drain.until}


def _shown(state: State[Any], kept: bool) -> Any:
    """The readings behind the numbers: the last good ones where the policy keeps those."""
    return state.last_good if kept else state.sample


def _gpu(gpu: GpuSample, levels: Optional[tuple[Stat, ...]]) -> dict[str, Any]:
    """One entry of `gpus`: what the device reports, its utilization averaged over the window."""
    entry = _GPU.to_json(gpu)
    entry["utilization_instant_percent"] = entry["utilization_percent"]
    entry["utilization_max_percent"] = _percent(levels[0].maximum) if levels else None
    if levels:
        entry["utilization_percent"] = _percent(levels[0].mean)
    entry["mig_instances"] = [_MIG.to_json(instance) for instance in gpu.mig_instances]
    return entry


def _instant(host: Optional[HostSample], gpus: tuple[GpuSample, ...]) -> dict[str, Any]:
    """The last reading by itself, unaveraged and without any stand-in."""
    return {
        "cpu_percent": _percent(host.cpu_ratio) if host is not None else None,
        "ram_percent": _percent(host.memory_used_ratio) if host is not None else None,
        "gpu_avg_utilization_percent": _percent(_mean(gpu.utilization_ratio for gpu in gpus)),
        "gpu_avg_memory_percent": _percent(_mean(gpu.memory_used_ratio for gpu in gpus)),
    }


def _window(host: Optional[tuple[Stat, ...]], gpus: list[tuple[Stat, ...]]) -> dict[str, Any]:
    """Means over the window, and the highest utilization within it, of what is measured."""
    utilization, memory = [gpu[0] for gpu in gpus], [gpu[1] for gpu in gpus]
    peaks = [stat.maximum for stat in utilization if stat.maximum is not None]
    return {
        "cpu_mean_percent": _percent(host[0].mean) if host else None,
        "cpu_max_percent": _percent(host[0].maximum) if host else None,
        "ram_mean_percent": _percent(host[1].mean) if host else None,
        "gpu_utilization_mean_percent": _percent(_mean(stat.mean for stat in utilization)),
        "gpu_utilization_max_percent": _percent(max(peaks)) if peaks else None,
        "gpu_memory_mean_percent": _percent(_mean(stat.mean for stat in memory)),
    }


def _health(state: State[Any], now: float) -> dict[str, Any]:
    entry = _HEALTH.to_json(state.health)
    entry["stuck"] = now > state.overdue_at
    entry["age_seconds"] = (
        round(max(0.0, now - state.read_at), 3) if state.read_at is not None else None
    )
    return entry


def _ollama_health(state: Optional[State[OllamaReading]], now: float) -> dict[str, Any]:
    """The health of each part, which are read one by one and grow old one by one."""
    if state is None:
        return {}
    if state.sample is None:
        return {state.health.collector: _health(state, now)}
    entries = {}
    for part in state.sample.parts:
        entry = _HEALTH.to_json(part.health)
        entry["stuck"] = now > state.overdue_at
        entry["age_seconds"] = (
            round(max(0.0, now - part.read_at), 3) if part.read_at is not None else None
        )
        entries[part.health.collector] = entry
    return entries


def _mean(values: Iterable[Optional[float]]) -> Optional[float]:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(ratio: Optional[float]) -> Optional[float]:
    return round(100 * ratio, 1) if ratio is not None else None


def _rounded(seconds: Optional[float]) -> Optional[float]:
    return round(seconds, 3) if seconds is not None else None
