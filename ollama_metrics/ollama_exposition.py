"""What both renderers show of Ollama: the rows of its tables, and the document's `ollama` and `vram`; pure."""

from __future__ import annotations

from .metrics import Table
from .ollama import CgroupUsage, ErrorCount, LogReading, Model, OllamaReading, RequestCount
from .placement import (
    GpuShare,
    Placement,
    VideoMemory,
    VideoMemoryUse,
    place,
    room,
    used_by,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Optional

    from .gpu import GpuSample
    from .snapshot import CollectorHealth, Snapshot

SAMPLES = (
    OllamaReading,
    Model,
    Placement,
    GpuShare,
    VideoMemory,
    VideoMemoryUse,
    RequestCount,
    LogReading,
    ErrorCount,
    CgroupUsage,
)
_READING, _MODEL, _CGROUP, _ROOM = map(Table, (OllamaReading, Model, CgroupUsage, VideoMemory))
_LOG, _COUNT = Table(LogReading), Table(RequestCount)


def health(snapshot: Snapshot) -> tuple[CollectorHealth, ...]:
    """How the collector's parts go, or the collector itself where it gives no reading."""
    state = snapshot.ollama
    if state is None:
        return ()
    if state.sample is None:
        return (state.health,)
    return tuple(part.health for part in state.sample.parts)


def rows(snapshot: Snapshot) -> tuple[Sequence[Any], ...]:
    """The rows of each of SAMPLES, of what was read in the last cycle."""
    gpus = _gpus(snapshot)
    space = room(gpus)
    reading: Optional[OllamaReading] = snapshot.ollama.sample if snapshot.ollama else None
    if reading is None:
        return ((), (), (), (), (space,) if space else (), (), (), (), (), ())
    # A Prometheus is told only what was read just now.
    models = reading.models if _fresh(reading, "ollama_models") else ()
    placements = place(models, dict(reading.blobs), reading.runners, gpus)
    log = reading.log if _fresh(reading, "ollama_log") else None
    cgroup = reading.cgroup if _fresh(reading, "ollama_cgroup") else None
    return (
        (reading,),
        models,
        placements,
        [share for placement in placements for share in placement.gpus],
        (space,) if space else (),
        used_by(reading.runners, gpus),
        log.requests if log else (),
        (log,) if log else (),
        log.errors if log else (),
        (cgroup,) if cgroup else (),
    )


def to_documents(
    snapshot: Snapshot, window: float, now: float
) -> tuple[Optional[dict[str, Any]], Optional[dict[str, Any]]]:
    """The values of the document's keys `ollama` and `vram`; None where there is nothing to be told."""
    gpus = _gpus(snapshot)
    space = room(gpus)
    vram = _ROOM.to_json(space) if space is not None else None
    reading: Optional[OllamaReading] = snapshot.ollama.sample if snapshot.ollama else None
    if reading is None:
        return None, vram
    placements = place(reading.models, dict(reading.blobs), reading.runners, gpus)
    if vram is not None:
        vram["ollama"] = [
            {"gpu": one.gpu, "uuid": one.uuid, "used_mb": _mb(one.used_bytes)}
            for one in used_by(reading.runners, gpus)
        ]
    return {
        **_READING.to_json(reading),
        "models": [
            {**_MODEL.to_json(model), "placement": _placement(placement)}
            for model, placement in zip(reading.models, placements)
        ],
        "requests": _requests(reading.log, window, now),
        "cgroup": _CGROUP.to_json(reading.cgroup) if reading.cgroup is not None else None,
    }, vram


def _gpus(snapshot: Snapshot) -> tuple[GpuSample, ...]:
    reading = snapshot.gpu.sample if snapshot.gpu is not None else None
    return reading.gpus if reading is not None else ()


def _fresh(reading: OllamaReading, name: str) -> bool:
    return any(part.health.success for part in reading.parts if part.health.collector == name)


def _placement(placement: Placement) -> dict[str, Any]:
    return {
        "gpus": [
            {"gpu": share.gpu, "uuid": share.uuid, "used_mb": _mb(share.gpu_memory_bytes)}
            for share in placement.gpus
        ],
        "cpu_percent": round(100 * placement.cpu_ratio, 1)
        if placement.cpu_ratio is not None
        else None,
        "unknown": placement.unknown,
    }


def _requests(log: Optional[LogReading], window: float, now: float) -> Optional[dict[str, Any]]:
    if log is None:
        return None
    from .log_tally import request_stats

    stats = request_stats(log.spans, now, window)
    return {
        "count": stats.requests,
        "rate_per_second": round(stats.rate_per_second, 3),
        "error_percent": round(100 * stats.error_ratio, 1)
        if stats.error_ratio is not None
        else None,
        "p50_seconds": _rounded(stats.p50_seconds),
        "p95_seconds": _rounded(stats.p95_seconds),
        "p99_seconds": _rounded(stats.p99_seconds),
        **_LOG.to_json(log),
        "by_status": [
            {
                "method": one.method,
                "endpoint": one.endpoint,
                "status": one.status,
                **_COUNT.to_json(one),
            }
            for one in log.requests
        ],
        "errors": {one.error_type: one.errors_total for one in log.errors},
    }


def _rounded(seconds: Optional[float]) -> Optional[float]:
    return round(seconds, 3) if seconds is not None else None


def _mb(size: Optional[int]) -> Optional[int]:
    return round(size / (1 << 20)) if size is not None else None
