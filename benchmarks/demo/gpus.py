"""GPUs that follow the work: what they show, by what is loaded and how much is in flight. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

COUNT = 2  # of a host
NAME = "NVIDIA L4"
_TOTAL = 24 << 30
_EMPTY = 400 << 20  # what the driver has for itself
_LARGEST_ON_ONE = 20 << 30  # bytes of a model that is put on one GPU
_IDLE_WATTS, _MOST_WATTS = 16.0, 72.0
_IDLE_CELSIUS, _MOST_CELSIUS = 38.0, 79.0
_FILL_PER_SECOND = 12 << 30
_WARM_SECONDS = 15.0  # the time constant of the temperature


@dataclass
class Gpu:
    """One GPU; what moves slowly is kept."""

    memory: float = _EMPTY
    utilization: float = 0.0  # percent
    celsius: float = _IDLE_CELSIUS
    joules: float = 0.0

    @property
    def watts(self) -> float:
        return _IDLE_WATTS + (_MOST_WATTS - _IDLE_WATTS) * self.utilization / 100

    def pass_time(self, seconds: float, memory: float, utilization: float) -> None:
        """Let memory be filled, and warmth follow the power."""
        most = _FILL_PER_SECOND * seconds
        wanted = min(_TOTAL * 0.98, _EMPTY + memory)
        self.memory += max(-4 * most, min(most, wanted - self.memory))
        self.utilization += (utilization - self.utilization) * min(1.0, seconds)
        heat = (self.watts - _IDLE_WATTS) / (_MOST_WATTS - _IDLE_WATTS)
        target = _IDLE_CELSIUS + (_MOST_CELSIUS - _IDLE_CELSIUS) * heat
        self.celsius += (target - self.celsius) * min(1.0, seconds / _WARM_SECONDS)
        self.joules += self.watts * seconds


@dataclass
class Gpus:
    """Those of a host."""

    all: Sequence[Gpu] = field(default_factory=lambda: [Gpu() for _ in range(COUNT)])

    def pass_time(self, seconds: float, models: Sequence[int], in_flight: int) -> None:
        """`models` are the bytes of each that is loaded."""
        memory = [0.0] * COUNT
        for size in sorted(models, reverse=True):
            if size > _LARGEST_ON_ONE:
                memory = [used + size / COUNT for used in memory]
            else:
                memory[memory.index(min(memory))] += size
        for gpu, used in zip(self.all, memory):
            busy = min(97.0, 25.0 + 18.0 * in_flight) if used and in_flight else 0.0
            gpu.pass_time(seconds, used, busy)

    def state(self) -> dict[str, int | str]:
        """What the stand-in for NVIDIA's library is to show."""
        shown: dict[str, int | str] = {
            "count": COUNT,
            "gpu.name": NAME,
            "gpu.memory_total": _TOTAL,
            "gpu.power_limit_mw": round(_MOST_WATTS * 1000),
        }
        for number, gpu in enumerate(self.all):
            working = gpu.utilization > 5
            for name, value in (
                ("utilization", gpu.utilization),
                ("memory_utilization", gpu.utilization * 0.7),
                ("memory_used", gpu.memory),
                ("temperature", gpu.celsius),
                ("power_mw", gpu.watts * 1000),
                ("energy_mj", gpu.joules * 1000),
                ("sm_clock", 2040 if working else 210),
                ("mem_clock", 6251 if working else 405),
                ("pstate", 0 if working else 8),
            ):
                shown[f"gpu{number}.{name}"] = round(value)
        return shown
