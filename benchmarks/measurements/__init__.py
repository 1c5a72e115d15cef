"""The measurements, in the order of a run. Each module's docstring says how it measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from benchmarks.bench import Bench
from benchmarks.figures import Figures, Quantity
from benchmarks.measurements import (
    bursts,
    gpu_growth,
    idle,
    model_growth,
    poller_growth,
    request_cost,
    resident_memory,
    slow_siege,
    startup,
)


@dataclass(frozen=True)
class Measurement:
    """A module of this package: TITLE, QUANTITIES, its docstring and measure(bench, figures)."""

    name: str
    module: ModuleType

    @property
    def title(self) -> str:
        return str(self.module.TITLE)

    @property
    def quantities(self) -> Sequence[Quantity]:
        found: Sequence[Quantity] = self.module.QUANTITIES
        return found

    @property
    def how(self) -> str:
        return (self.module.__doc__ or "").strip()

    def measure(self, bench: Bench, figures: Figures) -> None:
        self.module.measure(bench, figures)


MEASUREMENTS: dict[str, Measurement] = {
    module.__name__.rsplit(".", 1)[1]: Measurement(module.__name__.rsplit(".", 1)[1], module)
    for module in (
        # First: the others leave sockets in TIME_WAIT by ten thousands, and to count connections
        # the kernel walks over all of them.
        idle,
        request_cost,
        resident_memory,
        bursts,
        slow_siege,
        startup,
        gpu_growth,
        model_growth,
        poller_growth,
    )
}
