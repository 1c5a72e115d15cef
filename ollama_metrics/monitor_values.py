"""What `OllamaGPUMonitor` hands out: dictionaries with their keys and units, and the text of a status; no I/O.

For type checkers each is a TypedDict. While a program runs they are plain dictionaries, and these names
stand for `dict`: nothing here needs the module `typing`.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Optional, TypedDict

    from .gpu import GpuReading, GpuSample
    from .ollama import Model
    from .placement import Placement

    class GpuStatus(TypedDict):
        """One GPU that answers. None is what the device or its driver does not report."""

        gpu_id: int  # NVML's index
        uuid: str
        name: Optional[str]
        memory_unit: str  # of the next three
        total_memory: Optional[float]
        used_memory: Optional[float]
        free_memory: Optional[float]
        used_memory_ratio: Optional[float]  # 0 to 1
        utilization_ratio: Optional[float]  # 0 to 1
        temperature_celsius: Optional[int]
        power_draw_watts: Optional[float]
        power_limit_watts: Optional[float]

    class OllamaProcess(TypedDict):
        """One model that Ollama has loaded."""

        name: str
        digest: Optional[str]
        family: Optional[str]
        parameter_size: Optional[str]
        quantization: Optional[str]
        memory_unit: str  # of the next two
        total_memory: float  # that the loaded model takes, wherever it sits
        gpu_memory: float  # the part of it on GPUs
        gpu_ratio: Optional[float]  # 0 to 1
        context_length: Optional[int]
        expires_timestamp: Optional[float]  # Unix seconds

    class GpuUsage(TypedDict):
        """What a model has of one GPU."""

        gpu_id: int
        uuid: str
        name: Optional[str]
        used_memory: Optional[float]  # in the model's memory_unit

    class ModelGpuUsage(TypedDict):
        """Where one loaded model sits."""

        model: str
        memory_unit: str
        total_memory: float
        gpu_memory: float
        gpu_ratio: Optional[float]  # 0 to 1
        cpu_ratio: Optional[float]  # 0 to 1
        gpus: list[GpuUsage]
        unknown: Optional[str]  # why `gpus` is not known, or not in full

    class LostGpu(TypedDict):
        """A GPU that is there and does not answer, or that was there before."""

        label: str
        reason: str

    class MonitorStatus(TypedDict):
        """All of it. A list is None where its source failed: `error` says why."""

        timestamp: float  # Unix seconds
        memory_unit: str
        gpus: Optional[list[GpuStatus]]
        lost_gpus: Optional[list[LostGpu]]
        processes: Optional[list[OllamaProcess]]
        model_gpu_usage: Optional[list[ModelGpuUsage]]
        error: Optional[str]

else:
    GpuStatus = OllamaProcess = GpuUsage = ModelGpuUsage = LostGpu = MonitorStatus = dict

# Bits of each unit; as elsewhere with memory, a kilobyte has 1024 bytes.
BITS = {"b": 1, "B": 8, "KB": 8 << 10, "MB": 8 << 20, "GB": 8 << 30, "TB": 8 << 40}


def converted(value: float, source: str, target: str) -> float:
    """`value` in another unit. Raises ValueError for a unit that is not in `BITS`."""
    for unit in (source, target):
        known_unit(unit)
    return value * BITS[source] / BITS[target]


def known_unit(unit: object) -> str:
    """The unit as it is. Raises ValueError for one that is not in `BITS`."""
    if not isinstance(unit, str) or unit not in BITS:
        raise ValueError(f"{unit!r} is no unit of memory; there are {', '.join(BITS)}")
    return unit


def gpu_entries(reading: GpuReading, unit: str) -> list[GpuStatus]:
    """The GPUs that answer."""
    return [
        {
            "gpu_id": gpu.index,
            "uuid": gpu.uuid,
            "name": gpu.name,
            "memory_unit": unit,
            "total_memory": _maybe(gpu.memory_total_bytes, unit),
            "used_memory": _maybe(gpu.memory_used_bytes, unit),
            "free_memory": _maybe(gpu.memory_free_bytes, unit),
            "used_memory_ratio": gpu.memory_used_ratio,
            "utilization_ratio": gpu.utilization_ratio,
            "temperature_celsius": gpu.temperature_celsius,
            "power_draw_watts": gpu.power_draw_watts,
            "power_limit_watts": gpu.power_limit_watts,
        }
        for gpu in reading.gpus
    ]


def lost_entries(reading: GpuReading) -> list[LostGpu]:
    """The GPUs that do not answer."""
    return [{"label": gpu.label, "reason": gpu.reason} for gpu in reading.lost]


def process_entries(models: Iterable[Model], unit: str) -> list[OllamaProcess]:
    """The loaded models."""
    return [
        {
            "name": model.name,
            "digest": model.digest,
            "family": model.family,
            "parameter_size": model.parameter_size,
            "quantization": model.quantization,
            "memory_unit": unit,
            "total_memory": converted(model.size_bytes, "B", unit),
            "gpu_memory": converted(model.vram_bytes, "B", unit),
            "gpu_ratio": model.gpu_ratio,
            "context_length": model.context_length,
            "expires_timestamp": model.expires_timestamp_seconds,
        }
        for model in models
    ]


def usage_entries(
    models: Sequence[Model],
    placements: Sequence[Placement],
    gpus: Iterable[GpuSample],
    unit: str,
) -> list[ModelGpuUsage]:
    """The loaded models with the placement of each."""
    names = {gpu.uuid: gpu.name for gpu in gpus}
    return [
        {
            "model": model.name,
            "memory_unit": unit,
            "total_memory": converted(model.size_bytes, "B", unit),
            "gpu_memory": converted(model.vram_bytes, "B", unit),
            "gpu_ratio": model.gpu_ratio,
            "cpu_ratio": placement.cpu_ratio,
            "gpus": [
                {
                    "gpu_id": share.gpu,
                    "uuid": share.uuid,
                    "name": names.get(share.uuid),
                    "used_memory": _maybe(share.gpu_memory_bytes, unit),
                }
                for share in placement.gpus
            ],
            "unknown": placement.unknown,
        }
        for model, placement in zip(models, placements)
    ]


def empty_status(unit: str) -> MonitorStatus:
    """One in which nothing is known yet."""
    return {
        "timestamp": time.time(),
        "memory_unit": unit,
        "gpus": None,
        "lost_gpus": None,
        "processes": None,
        "model_gpu_usage": None,
        "error": None,
    }


def text(status: MonitorStatus, include_gpu: bool, include_timestamp: bool) -> str:
    """The status for a person, some lines without a final newline."""
    lines = []
    if include_timestamp:
        when = time.localtime(status["timestamp"])
        lines.append(time.strftime("%Y-%m-%d %H:%M:%S %z", when))
    if status["error"] is not None:
        lines.append(f"Error: {status['error']}")
    placed = {usage["model"]: usage for usage in status["model_gpu_usage"] or ()}
    if status["processes"] is not None:
        lines.append(f"Models loaded: {len(status['processes'])}")
        shown = placed if include_gpu else {}
        lines += [f"  {_process(process, shown)}" for process in status["processes"]]
    if not include_gpu:
        return "\n".join(lines)
    if status["gpus"] is not None:
        lines.append(f"GPUs: {len(status['gpus'])}")
        lines += [f"  {_gpu(gpu)}" for gpu in status["gpus"]]
    lines += [f"  {gpu['label']}: lost, {gpu['reason']}" for gpu in status["lost_gpus"] or ()]
    return "\n".join(lines)


def _process(process: OllamaProcess, placed: Mapping[str, ModelGpuUsage]) -> str:
    unit = process["memory_unit"]
    parts = [f"{process['name']}: {process['total_memory']:.1f} {unit}"]
    if process["gpu_ratio"] is not None:
        parts.append(f"{process['gpu_ratio']:.0%} on GPUs")
    usage = placed.get(process["name"])
    for share in usage["gpus"] if usage is not None else ():
        used = share["used_memory"]
        amount = "" if used is None else f" {used:.1f} {unit}"
        parts.append(f"GPU {share['gpu_id']}{amount}")
    if usage is not None and usage["unknown"] is not None:
        parts.append(f"where is not known: {usage['unknown']}")
    return ", ".join(parts)


def _gpu(gpu: GpuStatus) -> str:
    unit, used, total = gpu["memory_unit"], gpu["used_memory"], gpu["total_memory"]
    parts = []
    if used is not None and total is not None:
        parts.append(f"{used:.1f} of {total:.1f} {unit}")
    if gpu["used_memory_ratio"] is not None:
        parts.append(f"{gpu['used_memory_ratio']:.0%} of its memory")
    if gpu["utilization_ratio"] is not None:
        parts.append(f"{gpu['utilization_ratio']:.0%} busy")
    if gpu["temperature_celsius"] is not None:
        parts.append(f"{gpu['temperature_celsius']} degrees")
    if gpu["power_draw_watts"] is not None:
        parts.append(f"{gpu['power_draw_watts']:.0f} W")
    name = gpu["name"] or gpu["uuid"]
    return f"GPU {gpu['gpu_id']} ({name}): {', '.join(parts) or 'reports nothing'}"


def _maybe(value: Optional[int], unit: str) -> Optional[float]:
    return None if value is None else converted(value, "B", unit)
