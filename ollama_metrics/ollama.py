"""The values of a reading of Ollama: does it answer, what is loaded, how busy is it; tables, no I/O.

`OllamaReading` is what one cycle of `ollama_collector.py` gives. Its parts (the models, the log, the
cgroup...) are read by themselves: one that fails keeps its last good value, and its health says since
when.
"""

from __future__ import annotations

from .frozen import dataclass
from .metrics import counter, detail, gauge, histogram, info

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

    from .metrics import Histogram
    from .snapshot import CollectorHealth
    from .window import Levels


@dataclass(frozen=True)
class Model:
    """One model that Ollama has loaded.

    Source: Ollama's GET /api/ps.
    """

    PREFIX = "ollama_model"
    LABELS = (("model", "name"),)
    INFO = "Which model this is."

    name: str = detail("Name and tag of the model.")
    digest: Optional[str] = info("Digest of the model's manifest.")
    family: Optional[str] = info("Family of the model.")
    parameter_size: Optional[str] = info("Number of parameters, as Ollama puts it.")
    quantization: Optional[str] = info("Quantization of the model.")
    size_bytes: int = gauge("Memory that the loaded model takes, wherever it sits.")
    vram_bytes: int = gauge("Memory of GPUs that the loaded model takes.")
    gpu_ratio: Optional[float] = gauge("Share of the loaded model that sits on GPUs.")
    context_length: Optional[int] = gauge("Tokens of context that the model was loaded for.")
    expires_timestamp_seconds: Optional[float] = gauge(
        "Unix time at which Ollama unloads the model if nobody asks for it.",
        json="expires_timestamp",
    )


@dataclass(frozen=True)
class Runner:
    """A process of Ollama's that serves one model.

    `blob` is the digest of the model's weights as its command line names them (`sha256-...`, without
    the folder), `port` its own loopback port, `parallel` the slots that it was started with.
    """

    pid: int
    blob: Optional[str] = None
    port: Optional[int] = None
    parallel: Optional[int] = None


@dataclass(frozen=True)
class CgroupUsage:
    """What the cgroup that Ollama runs in has used.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
    """

    PREFIX = "ollama_cgroup"
    LABELS = ()

    path: Optional[str] = detail("The cgroup's path below the mount of its hierarchy.")
    memory_used_bytes: Optional[int] = gauge(
        "Memory that Ollama's cgroup uses, page cache included."
    )
    memory_limit_bytes: Optional[int] = gauge("Memory limit of Ollama's cgroup, if it has one.")
    cpu_seconds_total: Optional[float] = counter("CPU seconds that Ollama's cgroup has used.")
    throttled_periods_total: Optional[int] = counter(
        "Periods in which a CPU quota held Ollama's cgroup back."
    )
    throttled_seconds_total: Optional[float] = counter(
        "Time for which a CPU quota held Ollama's cgroup back."
    )
    oom_kills_total: Optional[int] = counter(
        "Processes of Ollama's cgroup that the kernel killed for want of memory."
    )
    io_read_bytes_total: Optional[int] = counter(
        "Bytes that Ollama's cgroup has read from disks.",
    )
    io_written_bytes_total: Optional[int] = counter(
        "Bytes that Ollama's cgroup has written to disks.",
    )


@dataclass(frozen=True)
class RequestCount:
    """Requests with one method, endpoint and status.

    Source: Ollama's access log.
    """

    PREFIX = "ollama"
    LABELS = (("method", "method"), ("endpoint", "endpoint"), ("status", "status"))

    method: str
    endpoint: str
    status: str
    requests_total: int = counter("Requests that Ollama has answered since the agent started.")


@dataclass(frozen=True)
class ErrorCount:
    """Errors of one kind.

    Source: Ollama's log.
    """

    PREFIX = "ollama"
    LABELS = (("error_type", "error_type"),)

    error_type: str
    errors_total: int = counter("Errors in Ollama's log since the agent started.")


@dataclass(frozen=True)
class RequestSpan:
    """The inference requests that were logged between two readings.

    `durations` counts them by the logarithmic step of their duration (log_tally.step), so that
    quantiles of any window come at a bounded size. Times are monotonic seconds.
    """

    start: float
    end: float
    requests: int
    failed: int
    durations: Mapping[int, int]


@dataclass(frozen=True)
class LogReading:
    """What has been read out of Ollama's log since the agent started.

    Source: Ollama's log, followed from its end.
    """

    PREFIX = "ollama"
    LABELS = ()

    request_duration_seconds: Optional[Histogram] = histogram(
        "Time that Ollama took to answer, without the requests by which monitors look whether it is up."
    )
    model_loads_total: int = counter("Models whose loading Ollama has announced.")
    model_load_seconds_total: float = counter("Time that loading those models took.")
    model_load_last_seconds: Optional[float] = gauge("Time that the last such loading took.")
    log_lines_total: int = counter("Lines of Ollama's log that were read.")
    log_lines_unparsed_total: int = counter(
        "Lines that begin like one of the access log and do not go on so."
    )
    requests: tuple[RequestCount, ...] = ()
    errors: tuple[ErrorCount, ...] = ()
    spans: tuple[RequestSpan, ...] = ()


@dataclass(frozen=True)
class Part:
    """One part of a reading: how its own reading goes, and when its value was last read (monotonic seconds)."""

    health: CollectorHealth
    read_at: Optional[float] = None


@dataclass(frozen=True)
class OllamaReading:
    """Ollama as it was last seen."""

    PREFIX = "ollama"
    LABELS = ()
    INFO = "Which Ollama this is."

    url: str = detail("Where Ollama is looked for.")
    up: bool = gauge("Whether Ollama answered the last check.")
    expected: bool = gauge("Whether an Ollama is expected on this host, by setting or by memory.")
    version: Optional[str] = info("Version of Ollama.")
    rtt_seconds: Optional[float] = gauge(
        "Round-trip time of the last check that Ollama answered.", json="rtt_ms"
    )
    active_requests: Optional[int] = gauge(
        "Connections that are established to Ollama's port, without the agent's own.",
        json="in_flight",
    )
    slots: Optional[int] = gauge("Requests that the loaded runners can work on at once.")
    slots_busy: Optional[int] = gauge("Requests that the loaded runners work on.")
    models_loaded: Optional[int] = gauge("Models that are loaded.", json=None)
    models: tuple[Model, ...] = ()
    blobs: tuple[tuple[str, str], ...] = ()  # (model name, digest of its weights) as far as known
    runners: Optional[tuple[Runner, ...]] = None  # None: its processes cannot be seen
    log: Optional[LogReading] = None  # None: no log is followed
    cgroup: Optional[CgroupUsage] = None
    failures: int = 0  # checks in a row that were not answered
    error: str = ""  # why the last one was not
    seen: bool = False  # it has answered since the agent started
    waits_until: float = 0.0  # monotonic seconds until which a host that boots is waited for
    parts: tuple[Part, ...] = ()

    def levels(self) -> Mapping[str, Levels]:
        """The requests in flight, for the ring."""
        count = self.active_requests
        return {"": (float(count) if count is not None else None,)}
