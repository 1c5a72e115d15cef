"""The JSON document: its contract with balancers, its types, and goldens of literal readings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

import pytest
from goldens import AGENT, BUILD, FULL, NOTHING, NOW, VERDICT_FULL, VERDICT_NOTHING, check
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_metrics.agent import AgentStats
from ollama_metrics.exposition_json import render_json, to_document
from ollama_metrics.gpu import GpuReading, GpuSample
from ollama_metrics.snapshot import Snapshot
from ollama_metrics.verdict import Balance, Verdict

CONTRACT = [
    "cpu_percent",
    "ram_percent",
    "gpu_count",
    "gpu_avg_utilization_percent",
    "gpu_avg_memory_percent",
    "gpus",
    "timestamp",
]
GPU_CONTRACT = [
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


def rendered(
    snapshot: Snapshot = FULL,
    verdict: Verdict = VERDICT_FULL,
    window: float = 15.0,
    agent: AgentStats = AGENT,
    **options: Any,
) -> bytes:
    return render_json(snapshot, verdict, window, BUILD, agent, NOW, **options)


def strict(document: bytes) -> Any:
    """Decode as strictly as the balancer does: NaN and Infinity are no JSON, nor are repeated keys."""

    def constant(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    return json.loads(document, parse_constant=constant, object_pairs_hook=unique)


def test_the_golden_of_a_full_reading() -> None:
    """Literal readings become this document, byte for byte."""
    check("full.json", rendered(indent=2))


def test_the_golden_of_no_reading() -> None:
    """Before anything was read the document is this one, byte for byte."""
    check("nothing.json", rendered(NOTHING, VERDICT_NOTHING, agent=AgentStats(), indent=2))


def test_the_keys_begin_with_the_contract() -> None:
    """The first keys and their order are what balancers and dashboards were promised."""
    document = strict(rendered())
    assert list(document)[: len(CONTRACT)] == CONTRACT
    assert list(document["gpus"][0])[: len(GPU_CONTRACT)] == GPU_CONTRACT


def test_what_was_added_comes_after_the_contract() -> None:
    """Later keys keep their order too; a new one is appended here."""
    assert list(strict(rendered()))[len(CONTRACT) :] == [
        *("weight", "status", "reasons", "window_seconds", "age_seconds", "instant"),
        *("gpu_expected", "collectors", "agent", "window", "host", "driver"),
        *("ollama", "vram", "weight_components", "load", "drain", "network", "disks"),
    ]


@pytest.mark.parametrize(
    ("snapshot", "verdict"), [(FULL, VERDICT_FULL), (NOTHING, VERDICT_NOTHING)]
)
def test_the_balancers_types(snapshot: Snapshot, verdict: Verdict) -> None:
    """Counts are integers and percentages are floats, whatever the state; none is null."""
    document = strict(rendered(snapshot, verdict))
    assert type(document["gpu_count"]) is int
    assert type(document["gpu_expected"]) is int
    for key in ("cpu_percent", "ram_percent", "gpu_avg_utilization_percent", "weight"):
        assert type(document[key]) is float
    assert type(document["gpu_avg_memory_percent"]) is float
    assert type(document["gpus"]) is list
    assert type(document["status"]) is str
    assert all(type(reason) is str for reason in document["reasons"])


def test_the_types_of_a_gpu() -> None:
    """Memory in MiB, temperatures and clocks are integers; shares and watts are floats."""
    gpu = strict(rendered())["gpus"][0]
    for key in ("index", "memory_used_mb", "memory_total_mb", "temperature_c", "sm_clock_mhz"):
        assert type(gpu[key]) is int
    for key in ("utilization_percent", "memory_percent", "power_draw_w", "power_percent"):
        assert type(gpu[key]) is float
    assert gpu["throttle_reasons"] == ["software_power_cap", "software_thermal_slowdown"]


def test_the_document_agrees_with_the_verdict() -> None:
    """The five fields, the weight, the status and the reasons are the verdict's own."""
    document = strict(rendered())
    balance = VERDICT_FULL.balance
    for key in CONTRACT[:5]:
        assert document[key] == getattr(balance, key)
    assert document["weight"] == balance.weight == 31.2 + 25.0 + 1.5 * 57.0 + 1.5 * 49.7
    assert document["status"] == "degraded"
    assert document["reasons"] == list(VERDICT_FULL.reasons)
    assert document["timestamp"] == VERDICT_FULL.timestamp


def test_utilization_is_the_windows_and_the_instant_is_beside_it() -> None:
    """A GPU's utilization is the mean over the window; the last reading and the maximum stand apart."""
    gpu = strict(rendered())["gpus"][0]
    assert gpu["utilization_percent"] == 70.0
    assert gpu["utilization_instant_percent"] == 50.0
    assert gpu["utilization_max_percent"] == 90.0
    short = strict(rendered(window=0.5))["gpus"][0]
    assert (short["utilization_percent"], short["utilization_max_percent"]) == (50.0, 50.0)


def test_the_window_is_told_and_used() -> None:
    """`window` holds the means and maxima of what was measured over the window asked for."""
    document = strict(rendered(window=2.0))
    assert document["window_seconds"] == 2.0
    assert document["window"]["cpu_mean_percent"] == 31.1  # (0.5 + 0.123) / 2, half to even
    assert document["window"]["cpu_max_percent"] == 50.0
    assert document["window"]["gpu_utilization_mean_percent"] == 70.0
    assert strict(rendered(window=120.0))["window"]["cpu_max_percent"] == 90.0


def test_the_instant_is_unaveraged() -> None:
    """`instant` has the last reading as it was, a GPU that does not report a value left out of the mean."""
    assert strict(rendered())["instant"] == {
        "cpu_percent": 12.3,
        "ram_percent": 25.0,
        "gpu_avg_utilization_percent": 50.0,
        "gpu_avg_memory_percent": 24.3,
    }


def test_what_is_not_reported_is_null() -> None:
    """A device that does not report a value has the key with null, never 0, "N/A" or no key."""
    reported, split = strict(rendered())["gpus"]
    assert list(split) == list(reported)
    nulls = {key for key, value in split.items() if value is None}
    assert {"utilization_percent", "temperature_c", "power_draw_w", "fan_speed_percent"} <= nulls
    assert (split["memory_used_mb"], split["memory_percent"]) == (0, 0.0)
    assert not [key for key, value in reported.items() if value is None]


def test_what_is_not_known_is_null_or_empty() -> None:
    """Without a reading there are no GPUs, no host, no driver and no age, and the keys are the same."""
    document = strict(rendered(NOTHING, VERDICT_NOTHING, agent=AgentStats()))
    assert list(document) == list(strict(rendered()))
    for key in ("timestamp", "age_seconds", "host", "driver"):
        assert document[key] is None
    assert document["gpus"] == []
    assert set(document["instant"].values()) == set(document["window"].values()) == {None}
    assert (document["cpu_percent"], document["weight"]) == (100.0, 500.0)


def test_collectors_tell_how_they_do() -> None:
    """Each collector's health is under its name, with its age and whether it is stuck."""
    host = strict(rendered())["collectors"]["host"]
    assert host == {
        "success": True,
        "duration_seconds": 0.00015,
        "last_success_timestamp": 1_800_003_600.125,
        "consecutive_failures": 0,
        "failures_total": 1,
        "error": None,
        "stuck": False,
        "age_seconds": 0.25,
    }
    late = render_json(FULL, VERDICT_FULL, 15.0, BUILD, AGENT, now=5002.95)
    collectors = strict(late)["collectors"]
    assert (collectors["host"]["stuck"], collectors["gpu"]["stuck"]) == (False, True)
    assert list(strict(rendered(NOTHING, VERDICT_NOTHING))["collectors"]) == ["host"]


def test_one_line_unless_asked_otherwise() -> None:
    """The daemon's document is one line without blanks, ended by a newline, in ASCII."""
    document = rendered()
    assert document.count(b"\n") == 1
    assert document.endswith(b"}\n")
    assert b'": ' not in document
    assert document.isascii()
    assert strict(document) == strict(rendered(indent=2))


def balanced(**fields: float) -> Verdict:
    values: Mapping[str, float] = dict.fromkeys(CONTRACT[:5], 1.0)
    return replace(VERDICT_FULL, balance=Balance(**{**values, **fields}))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_can_never_come_out(value: float) -> None:
    """What is not a number is an error here rather than a document that no balancer can read."""
    with pytest.raises(ValueError):
        rendered(verdict=balanced(cpu_percent=value))
    with pytest.raises(ValueError):
        rendered(verdict=replace(VERDICT_FULL, age_seconds=value))


@given(
    name=st.text() | st.none(),
    utilization=st.floats(0, 1) | st.none(),
    used=st.integers(0, 1 << 50) | st.none(),
    watts=st.floats(0, 1e4) | st.none(),
)
@settings(max_examples=100, deadline=None)
def test_whatever_a_gpu_reports_is_json(name: Any, utilization: Any, used: Any, watts: Any) -> None:
    """Any name and any values of a GPU make a document that a strict decoder reads back."""
    gpu = GpuSample(
        index=0,
        name=name,
        uuid="GPU-x",
        utilization_ratio=utilization,
        memory_used_bytes=used,
        power_draw_watts=watts,
    )
    assert FULL.gpu is not None
    state = replace(FULL.gpu, sample=GpuReading(gpus=(gpu,)), ring=())
    (entry,) = strict(rendered(replace(FULL, gpu=state)))["gpus"]
    assert entry["name"] == name
    assert (entry["utilization_percent"] is None) == (utilization is None)
    assert entry["memory_used_mb"] == (None if used is None else round(used / (1 << 20)))


def test_the_document_is_there_as_values_too() -> None:
    """`to_document` is what is rendered, for who wants values."""
    document = to_document(FULL, VERDICT_FULL, 15.0, BUILD, AGENT, NOW)
    assert json.loads(json.dumps(document)) == strict(rendered())
