"""The table's grammar, and a contract that every table of the package keeps."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from dataclasses import dataclass
from typing import Any, Optional

import pytest

import ollama_metrics
from ollama_metrics.agent import AgentBuild, AgentStats
from ollama_metrics.devices import Disk, NetworkInterface
from ollama_metrics.exposition_text import TABLES
from ollama_metrics.gpu import GpuReading, GpuSample, MigInstance
from ollama_metrics.host import HostSample
from ollama_metrics.metrics import (
    JSON_UNITS,
    Metric,
    Table,
    counter,
    detail,
    gauge,
    info,
    state,
)
from ollama_metrics.nvml_device import Device
from ollama_metrics.ollama import (
    CgroupUsage,
    ErrorCount,
    LogReading,
    Model,
    OllamaReading,
    RequestCount,
)
from ollama_metrics.placement import GpuShare, Placement, VideoMemory, VideoMemoryUse
from ollama_metrics.snapshot import CollectorHealth
from ollama_metrics.verdict import Verdict

SAMPLES = (
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
METRICS = [(Table(sample), metric) for sample in SAMPLES for metric in Table(sample).metrics]

BASE_UNITS = {"ratio", "bytes", "hertz", "celsius", "watts", "joules", "seconds"}
# What a name may not measure in, word by word.
OTHER_UNITS = set(
    re.findall(
        r"\w+",
        """percent kb mb gb tb kib mib gib kilobytes megabytes gigabytes khz mhz ghz ms us ns millis
        milliseconds microseconds minutes hours days mw kw milliwatts kelvin fahrenheit c w j s""",
    )
)

every_metric = pytest.mark.parametrize(
    ("table", "metric"),
    METRICS,
    ids=[f"{table.prefix}-{metric.attribute}" for table, metric in METRICS],
)


# -- the contract ------------------------------------------------------------------------------------------------------


def test_every_table_of_the_package_is_rendered() -> None:
    """Each dataclass that declares a metric is one of the tables that the text exposition renders."""
    modules = [
        importlib.import_module(f"ollama_metrics.{module.name}")
        for module in pkgutil.iter_modules(ollama_metrics.__path__)
        if module.name != "__main__"
    ]
    declared = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and any("metric" in field.metadata for field in dataclasses.fields(value))
    }
    assert declared == set(SAMPLES)
    assert [(t.prefix, t.metrics) for t in TABLES] == [
        (Table(sample).prefix, Table(sample).metrics) for sample in SAMPLES
    ]


@every_metric
def test_a_name_measures_in_base_units_and_says_so_at_its_end(table: Table, metric: Metric) -> None:
    """A unit in a metric's name is a base unit and its last word (`_total` may follow)."""
    words = metric.attribute.split("_")
    assert not OTHER_UNITS & set(words)
    if words[-1] == "total":
        words.pop()
    assert not BASE_UNITS & set(words[:-1])
    assert metric.unit == (words[-1] if words[-1] in BASE_UNITS else "")


@every_metric
def test_counters_and_only_counters_end_in_total(table: Table, metric: Metric) -> None:
    """`_total` ends the family of each counter and no other."""
    assert table.family(metric).endswith("_total") == (metric.kind == "counter")
    assert "total" not in metric.attribute.split("_")[:-1] or metric.attribute.endswith(
        "_total_bytes"
    )


@every_metric
def test_help_is_one_sentence(table: Table, metric: Metric) -> None:
    """A help text is one sentence with a capital, a full stop and nothing to escape."""
    assert re.fullmatch(r"[A-Z][^.\"\\\n]*\.", metric.help)


@pytest.mark.parametrize("table", TABLES, ids=[table.prefix for table in TABLES])
def test_titles_and_the_help_of_info_families_are_one_sentence(table: Table) -> None:
    """A sample class's docstring begins with one sentence, and its info family's help is one."""
    assert re.fullmatch(r"[A-Z][^\"\\\n]*\.", table.title)
    assert re.fullmatch(r"[A-Z][^.\"\\\n]*\.", table.info_help)


@every_metric
def test_names_are_prometheus_names(table: Table, metric: Metric) -> None:
    """Families and labels match Prometheus's grammar, in lower case and in this project's namespace."""
    assert re.fullmatch(r"ollama(_[a-z0-9]+)+", table.family(metric))
    for name, _ in table.labels:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)


def test_families_are_unique() -> None:
    """No two metrics share a family, but for the texts of one class that share its info family."""
    families = [table.family(metric) for table, metric in METRICS if metric.kind != "detail"]
    infos = [name for name in families if name.endswith("_info")]
    others = [name for name in families if not name.endswith("_info")]
    assert len(others) == len(set(others))
    assert not set(others) & set(infos)
    assert sorted(set(infos)) == [
        "ollama_agent_build_info",
        "ollama_gpu_driver_info",
        "ollama_gpu_info",
        "ollama_info",
        "ollama_model_info",
    ]


def test_openmetrics_families_are_unique() -> None:
    """Without `_total` and `_info`, as OpenMetrics names them, families are still unique."""
    names = {
        re.sub(r"_(total|info)$", "", table.family(metric))
        for table, metric in METRICS
        if metric.kind not in ("detail", "info")
    }
    plain = [m for _, m in METRICS if m.kind not in ("detail", "info")]
    assert len(names) == len(plain)
    assert not names & {table.prefix for table in TABLES if _has_info(table)}


@pytest.mark.parametrize("table", TABLES, ids=[table.prefix for table in TABLES])
def test_json_keys_are_unique_within_a_table(table: Table) -> None:
    """No two metrics of a sample share a JSON key; keys are snake_case and carry no base unit that JSON converts."""
    keys = [metric.json for metric in table.metrics if metric.json is not None]
    assert len(keys) == len(set(keys))
    for key in keys:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", key)
        assert not {"ratio", "bytes", "hertz", "celsius", "watts", "joules"} & set(key.split("_"))


@every_metric
def test_what_prometheus_gets_is_a_number(table: Table, metric: Metric) -> None:
    """A gauge or counter is declared int, float or bool, a text is declared str."""
    sample = next(s for s in SAMPLES if Table(s).metrics == table.metrics)
    annotation = sample.__dataclass_fields__[metric.attribute].type
    kind = re.sub(r"Optional\[(.*)\]", r"\1", str(annotation))
    if metric.kind in ("gauge", "counter"):
        assert kind in ("int", "float", "bool")
    elif metric.kind in ("info", "state"):
        assert kind == "str"


def test_labels_are_attributes_and_few() -> None:
    """A series is told apart by what there are few of on a host, and by nothing else."""
    for sample in SAMPLES:
        table = Table(sample)
        assert {name for name, _ in table.labels} <= {
            *("gpu", "uuid", "collector", "model", "interface", "device"),
            *("method", "endpoint", "status", "error_type"),
        }
        for _, attribute in table.labels:
            assert attribute in sample.__dataclass_fields__


def test_gpu_readers_are_methods_of_the_device() -> None:
    """What reads a GPU's metric is the method of `Device` of the same name."""
    readers = [metric for metric in Table(GpuSample).metrics if metric.read is not None]
    assert len(readers) > 15
    for metric in readers:
        assert metric.read is getattr(Device, metric.attribute)


def test_the_balancers_gpu_keys_come_first_and_in_order() -> None:
    """An entry of `gpus` begins with the ten keys of the contract."""
    keys = [metric.json for metric in Table(GpuSample).metrics]
    assert keys[:10] == [
        "index",
        "name",
        "utilization_percent",
        "memory_used_mb",
        "memory_total_mb",
        "memory_percent",
        "temperature_c",
        "power_draw_w",
        "power_limit_w",
        "power_percent",
    ]


def _has_info(table: Table) -> bool:
    return any(metric.kind == "info" for metric in table.metrics)


# -- the grammar -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kettle:
    """One reading of a kettle.

    More about kettles.
    """

    PREFIX = "ollama_kettle"
    LABELS = (("place", "place"),)

    place: str
    power_draw_watts: Optional[float] = gauge("Power draw.")
    fill_ratio: Optional[float] = gauge("How full it is.", json="level")
    boils_total: Optional[int] = counter("Times that it boiled.", json=None)
    maker: Optional[str] = info("Who made it.")
    parts: Optional[tuple[str, ...]] = detail("What it is made of.")
    not_a_metric: int = 0


@dataclass(frozen=True)
class Light:
    """A light."""

    PREFIX = "ollama_light"
    LABELS = ()

    colour: str = state("The light's colour.", ("red", "green"))


def test_one_line_declares_attribute_key_and_family() -> None:
    """From a line of the dataclass come the attribute, the JSON key and the family."""
    table = Table(Kettle)
    power = table.metrics[0]
    assert (power.attribute, power.json, power.unit) == (
        "power_draw_watts",
        "power_draw_w",
        "watts",
    )
    assert table.family(power) == "ollama_kettle_power_draw_watts"
    assert table.title == table.info_help == "One reading of a kettle."


def test_an_attribute_without_a_declaration_is_no_metric() -> None:
    """Plain attributes of a sample are neither rendered nor in the table."""
    assert [m.attribute for m in Table(Kettle).metrics] == [
        "power_draw_watts",
        "fill_ratio",
        "boils_total",
        "maker",
        "parts",
    ]


def test_texts_share_the_info_family() -> None:
    """An `info` is a label of the class's `_info` family."""
    table = Table(Kettle)
    assert table.family(table.metrics[3]) == "ollama_kettle_info"


def test_to_json_keeps_the_order_leaves_out_and_converts() -> None:
    """JSON has the table's order, no metric whose key is None, converted units, and null for None."""
    kettle = Kettle("kitchen", 1999.96, 0.256, 7, None, ("lid",))
    assert list(Table(Kettle).to_json(kettle).items()) == [
        ("power_draw_w", 2000.0),
        ("level", 25.6),
        ("maker", None),
        ("parts", ("lid",)),
    ]
    assert set(Table(Kettle).to_json(Kettle("hall")).values()) == {None}


def test_a_state_is_its_word_in_json() -> None:
    """A state is a string in JSON and knows what else it could be."""
    table = Table(Light)
    assert table.to_json(Light("green")) == {"colour": "green"}
    assert table.metrics[0].states == ("red", "green")


def test_a_state_must_be_given() -> None:
    """A state has no default: a sample without it cannot be made."""
    with pytest.raises(TypeError):
        Light()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("attribute", "value", "key", "json"),
    [
        ("x_ratio", 0.12345, "x_percent", 12.3),
        ("x_ratio", 1.0, "x_percent", 100.0),
        ("x_bytes", 3 * (1 << 20) + 600_000, "x_mb", 4),
        ("x_hertz", 1_980_000_000, "x_mhz", 1980),
        ("x_celsius", 41, "x_c", 41),
        ("x_watts", 250.06, "x_w", 250.1),
        ("x_joules_total", 12.34, "x_j", 12.3),
        ("x_seconds_total", 1.239, "x_seconds_total", 1.24),
        ("x_seconds", 0.12345678, "x_seconds", 0.123457),
        ("x", 1.23456789, "x", 1.23456789),
        ("x", True, "x", True),
        ("x_ratio", None, "x_percent", None),
        ("x", "text", "x", "text"),
    ],
)
def test_units_of_json(attribute: str, value: Any, key: str, json: Any) -> None:
    """Each base unit has one unit in JSON, with a fixed number of decimals and integers where JSON has them."""
    sample = dataclasses.make_dataclass(
        "Sample", [(attribute, object, gauge("A value."))], namespace={"PREFIX": "p", "LABELS": ()}
    )
    metric = Table(sample).metrics[0]
    assert metric.json == key
    converted = metric.to_json(value)
    assert converted == json
    assert type(converted) is type(json)


def test_every_convertible_unit_is_a_base_unit() -> None:
    """JSON converts base units and nothing else."""
    assert {suffix[1:].replace("_total", "") for suffix in JSON_UNITS} == BASE_UNITS
