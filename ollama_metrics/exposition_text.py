"""A snapshot as Prometheus text 0.0.4 or OpenMetrics 1.0; pure.

Only what was measured: a reading that is not there is a series that is not there, and a verdict's
made-up numbers never appear. Formats: prometheus.io/docs/instrumenting/exposition_formats and the
OpenMetrics specification 1.0.
"""

from __future__ import annotations

import math

from .agent import AgentBuild, AgentStats
from .devices import Disk, NetworkInterface
from .gpu import GpuReading, GpuSample, MigInstance
from .host import HostSample
from .metrics import Histogram, Table
from .ollama_exposition import SAMPLES as OLLAMA_SAMPLES
from .ollama_exposition import health as ollama_health
from .ollama_exposition import rows as ollama_rows
from .snapshot import CollectorHealth
from .verdict import Verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .metrics import Metric
    from .snapshot import Snapshot

CONTENT_TYPES = {
    "prometheus": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
TABLES = tuple(
    Table(sample)
    for sample in (
        Verdict,
        HostSample,
        NetworkInterface,
        Disk,
        GpuSample,
        MigInstance,
        GpuReading,
        CollectorHealth,
        AgentBuild,
        AgentStats,
        *OLLAMA_SAMPLES,
    )
)


def render_text(
    snapshot: Snapshot,
    verdict: Verdict,
    build: AgentBuild,
    agent: AgentStats,
    openmetrics: bool = False,
) -> bytes:
    """All families, UTF-8; with `openmetrics` in that format and ended by `# EOF`."""
    reading: Any = snapshot.gpu.sample if snapshot.gpu is not None else None
    gpus = reading.gpus if reading is not None else ()
    devices = snapshot.devices.sample if snapshot.devices is not None else None
    health = [
        snapshot.host.health,
        *([snapshot.devices.health] if snapshot.devices is not None else []),
        *([snapshot.gpu.health] if snapshot.gpu is not None else []),
        *ollama_health(snapshot),
    ]
    samples: tuple[Sequence[Any], ...] = (
        (verdict,),
        (snapshot.host.sample,) if snapshot.host.sample is not None else (),
        devices.interfaces if devices is not None else (),
        devices.disks if devices is not None else (),
        gpus,
        [instance for gpu in gpus for instance in gpu.mig_instances],
        (reading,) if reading is not None and reading.driver_version else (),
        health,
        (build,),
        (agent,),
        *ollama_rows(snapshot),
    )
    lines: list[str] = []
    for table, rows in zip(TABLES, samples):
        if rows:
            _families(lines, table, rows, openmetrics)
    if openmetrics:
        lines.append("# EOF")
    lines.append("")
    return "\n".join(lines).encode()


def _families(lines: list[str], table: Table, rows: Sequence[Any], openmetrics: bool) -> None:
    labels = [
        {name: str(getattr(row, attribute)) for name, attribute in table.labels} for row in rows
    ]
    texts = [metric for metric in table.metrics if metric.kind == "info"]
    if texts:
        family = f"{table.prefix}_info"
        name = table.prefix if openmetrics else family
        lines.append(f"# HELP {name} {_escaped_help(table.info_help)}")
        lines.append(f"# TYPE {name} {'info' if openmetrics else 'gauge'}")
        for row, own in zip(rows, labels):
            known = {metric.attribute: getattr(row, metric.attribute) for metric in texts}
            lines.append(
                f"{family}{_labels({**own, **{k: v for k, v in known.items() if v is not None}})} 1"
            )
    for metric in table.metrics:
        if metric.kind not in ("gauge", "counter", "state", "histogram"):
            continue
        series = [
            line for row, own in zip(rows, labels) for line in _series(table, metric, row, own)
        ]
        if series:
            lines.extend(_head(table, metric, openmetrics))
            lines.extend(series)


def _head(table: Table, metric: Metric, openmetrics: bool) -> list[str]:
    name, kind = table.family(metric), "gauge" if metric.kind == "state" else metric.kind
    if openmetrics and kind == "counter":
        name = name[: -len("_total")]
    lines = [f"# HELP {name} {_escaped_help(metric.help)}", f"# TYPE {name} {kind}"]
    if openmetrics and metric.unit and name.endswith(f"_{metric.unit}"):
        lines.append(f"# UNIT {name} {metric.unit}")
    return lines


def _series(table: Table, metric: Metric, row: Any, labels: dict[str, str]) -> list[str]:
    value = getattr(row, metric.attribute)
    family = table.family(metric)
    if metric.kind == "state":
        return [
            f"{family}{_labels({**labels, metric.attribute: one})} {int(one == value)}"
            for one in metric.states
        ]
    if isinstance(value, Histogram):
        return _histogram(family, labels, value)
    if value is None or not math.isfinite(value):
        return []
    return [
        f"{family}{_labels(labels)} {int(value) if isinstance(value, (bool, int)) else repr(value)}"
    ]


def _histogram(family: str, labels: dict[str, str], value: Histogram) -> list[str]:
    bounds = [*map(repr, map(float, value.bounds)), "+Inf"]
    lines = [
        f"{family}_bucket{_labels({**labels, 'le': bound})} {count}"
        for bound, count in zip(bounds, value.counts)
    ]
    lines.append(f"{family}_sum{_labels(labels)} {value.sum!r}")
    lines.append(f"{family}_count{_labels(labels)} {value.counts[-1]}")
    return lines


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return (
        "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}"
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
