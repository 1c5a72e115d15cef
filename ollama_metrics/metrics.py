"""The grammar of the one table: what a line of a sample's dataclass may say about its metric.

A sample's dataclass is the table. Each of its attributes is declared by one of the functions below
and from that one line come the typed attribute (base units), the JSON key, the Prometheus family
with HELP and TYPE, and the row of docs/METRICS.md:

    power_draw_watts: Optional[float] = gauge("Board power draw.")
    # attribute power_draw_watts, JSON power_draw_w, family ollama_gpu_power_draw_watts

The class says the rest in constants: `PREFIX` (what its families start with), `LABELS` (pairs of
label name and attribute) for the series of its instances, and `INFO` (the help of its `_info`
family). No I/O here, and no knowledge of any one metric.
"""

from __future__ import annotations

import dataclasses

from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

# Suffix of the attribute (base unit) -> suffix of its JSON key, factor, decimals kept (None: an
# integer).
JSON_UNITS: dict[str, tuple[str, float, Optional[int]]] = {
    "_ratio": ("_percent", 100.0, 1),
    "_bytes": ("_mb", 1 / (1 << 20), None),
    "_hertz": ("_mhz", 1e-6, None),
    "_celsius": ("_c", 1.0, None),
    "_watts": ("_w", 1.0, 1),
    "_joules_total": ("_j", 1.0, 1),
    "_bytes_total": ("_mb", 1 / (1 << 20), None),
    "_seconds_total": ("_seconds_total", 1.0, 2),
    "_seconds": ("_seconds", 1.0, 6),
}

SAME = "(as the attribute)"


@dataclass(frozen=True)
class Metric:
    """What one declared attribute is.

    `kind` is `gauge`, `counter`, `histogram` (its value a `Histogram`, which JSON leaves out), `info` (a
    text that becomes a label of the class's `_info` family), `state` (one of `states`: a series for
    each, 1 for the one that holds) or `detail` (JSON only). `read` takes the object that the class's
    collector reads from and returns the attribute's value; `json` is the JSON key or None.
    """

    kind: str
    help: str
    attribute: str = ""
    json: Optional[str] = SAME
    read: Optional[Callable[..., Any]] = None
    states: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The attribute's base unit as its name says it (`watts`), or an empty string."""
        for suffix in JSON_UNITS:
            if self.attribute.endswith(suffix):
                return suffix[1:].replace("_total", "")
        return ""

    def to_json(self, value: Any) -> Any:
        """Convert `value` (base units, None stays None) into the unit of the JSON key."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if self.json is not None and self.json.endswith("_ms"):
            return round(value * 1000, 3)
        for suffix, (_, factor, digits) in JSON_UNITS.items():
            if self.attribute.endswith(suffix):
                return round(value * factor, digits)
        return value


@dataclass(frozen=True)
class Histogram:
    """How many observations were at most as large as each of `bounds` (ascending), as Prometheus counts.

    `counts` are cumulative, one for each bound and a last one for all of them; `sum` is that of the
    observations.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


def _field(metric: Metric, required: bool = False) -> Any:
    if required:
        return dataclasses.field(metadata={"metric": metric})
    return dataclasses.field(default=None, metadata={"metric": metric})


def gauge(
    help: str, *, json: Optional[str] = SAME, read: Optional[Callable[..., Any]] = None
) -> Any:
    """Declare a value that goes up and down; `help` is one sentence."""
    return _field(Metric("gauge", help, json=json, read=read))


def counter(
    help: str, *, json: Optional[str] = SAME, read: Optional[Callable[..., Any]] = None
) -> Any:
    """Declare a value that only grows; the attribute's name ends in `_total`."""
    return _field(Metric("counter", help, json=json, read=read))


def histogram(help: str) -> Any:
    """Declare a distribution, a `Histogram`."""
    return _field(Metric("histogram", help, json=None))


def info(
    help: str,
    *,
    json: Optional[str] = SAME,
    read: Optional[Callable[..., Any]] = None,
    required: bool = False,
) -> Any:
    """Declare a text: a label of the class's `_info` family, a string in JSON."""
    return _field(Metric("info", help, json=json, read=read), required)


def state(help: str, states: tuple[str, ...], *, json: Optional[str] = SAME) -> Any:
    """Declare a text out of `states`: in Prometheus a series for each, 1 for the one that holds."""
    return _field(Metric("state", help, json=json, states=states), required=True)


def detail(
    help: str, *, json: Optional[str] = SAME, read: Optional[Callable[..., Any]] = None
) -> Any:
    """Declare a value that has no Prometheus family of its own (a list, an index)."""
    return _field(Metric("detail", help, json=json, read=read))


class Table:
    """The metrics of one sample class, in the order of its attributes."""

    def __init__(self, sample: type) -> None:
        self.prefix: str = sample.PREFIX  # type: ignore[attr-defined]
        self.labels: tuple[tuple[str, str], ...] = sample.LABELS  # type: ignore[attr-defined]
        self.title = (sample.__doc__ or "").split("\n", 1)[0]
        self.info_help: str = getattr(sample, "INFO", self.title)
        self.metrics = tuple(
            _named(field) for field in dataclasses.fields(sample) if "metric" in field.metadata
        )

    def family(self, metric: Metric) -> str:
        """The Prometheus family (with `_total` on a counter) of one of this table's metrics."""
        if metric.kind == "info":
            return f"{self.prefix}_info"
        return f"{self.prefix}_{metric.attribute}"

    def to_json(self, sample: Any) -> dict[str, Any]:
        """The sample as JSON keys and values, in the table's order."""
        return {
            m.json: m.to_json(getattr(sample, m.attribute))
            for m in self.metrics
            if m.json is not None
        }


def _named(field: dataclasses.Field[Any]) -> Metric:
    metric: Metric = field.metadata["metric"]
    key = metric.json
    if key is SAME:
        key = field.name
        for suffix, (replacement, _, _) in JSON_UNITS.items():
            if key.endswith(suffix):
                key = key[: -len(suffix)] + replacement
                break
    return dataclasses.replace(metric, attribute=field.name, json=key)
