"""What the samplers publish: immutable values, data and health kept apart.

A `State` is everything that one collector's thread has to say; it is swapped in whole, by its one
writer, and readers take no lock. A `Snapshot` is the two states together with what is expected of
the host: all that the verdict and the renderers get to see.
"""

from __future__ import annotations

from dataclasses import replace

from .frozen import dataclass
from .metrics import counter, detail, gauge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Generic, Optional, Protocol, TypeVar

    from .devices import DeviceReading
    from .drain import Drain
    from .gpu import GpuReading
    from .host import HostSample
    from .ollama import OllamaReading
    from .window import Levels, Span

    class Sample(Protocol):
        """What a collector returns: a value that names the levels which its ring keeps."""

        def levels(self) -> Mapping[str, Levels]:
            """Levels (0-1, None where not reported) by the name of their source."""

    S = TypeVar("S", bound=Sample)
else:
    S = None

    class Generic:
        """typing's, for as much of it as a running program needs: 0.4 MB less."""

        def __class_getitem__(cls, item):
            """Any parameter will do."""
            return cls


@dataclass(frozen=True)
class CollectorHealth:
    """How a collector's own work goes."""

    PREFIX = "ollama_agent_collector"
    LABELS = (("collector", "collector"),)

    collector: str
    success: bool = gauge("Whether the collector's last cycle gave a reading.")
    duration_seconds: Optional[float] = gauge("How long the collector's last finished cycle took.")
    last_success_timestamp_seconds: Optional[float] = gauge(
        "Unix time of the collector's last good reading.", json="last_success_timestamp"
    )
    consecutive_failures: int = gauge("Cycles in a row that failed.")
    failures_total: int = counter("Cycles that failed since the agent started.")
    error: Optional[str] = detail("Why the last cycle failed, in a sentence.")


@dataclass(frozen=True)
class State(Generic[S]):
    """One collector's readings and health as of the end of its last cycle.

    `sample` is None when that cycle failed (or none has ended yet), `last_good` the last one that
    did not, read at `read_at`; `overdue_at` is when to stop believing that the collector still
    turns. Times are monotonic seconds; `read_timestamp` is `read_at` as Unix seconds. `ring` holds
    the good readings of the last two minutes.
    """

    health: CollectorHealth
    overdue_at: float
    sample: Optional[S] = None
    last_good: Optional[S] = None
    read_at: Optional[float] = None
    read_timestamp: Optional[float] = None
    ring: tuple[Span, ...] = ()

    def as_of(self, now: float) -> State[S]:
        """This state as it is to be seen at `now`: once it is overdue it has no sample and no success."""
        if now <= self.overdue_at:
            return self
        health = replace(self.health, success=False, error="stuck: a cycle has not ended in time")
        return replace(self, sample=None, health=health)


@dataclass(frozen=True)
class Snapshot:
    """One moment of the host: what its collectors last said, and what should be there.

    `gpu` is None where GPUs are not looked at (`--expected-gpus 0`), `ollama` where Ollama is not
    (`--ollama none`), `devices` where nobody looks at interfaces and disks. `gpus_expected_by` tells a
    person where the expectation comes from and how to change it. `drain` is the operator's word that
    no request is to come.
    """

    host: State[HostSample]
    gpu: Optional[State[GpuReading]]
    gpus_expected: int
    gpus_expected_by: str
    ollama: Optional[State[OllamaReading]] = None
    ollama_expected: bool = False
    drain: Optional[Drain] = None
    devices: Optional[State[DeviceReading]] = None
