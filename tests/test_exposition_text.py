"""Prometheus text and OpenMetrics: goldens, both of prometheus_client's parsers, and hostile names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from goldens import AGENT, BUILD, FULL, NOTHING, VERDICT_FULL, VERDICT_NOTHING, check
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from ollama_metrics.agent import AgentStats
from ollama_metrics.exposition_text import TABLES, render_text
from ollama_metrics.gpu import GpuReading, GpuSample, MigInstance
from ollama_metrics.snapshot import Snapshot
from ollama_metrics.verdict import Verdict

FORMATS = {"prometheus": (False, parse_prometheus), "openmetrics": (True, parse_openmetrics)}
both_formats = pytest.mark.parametrize("format", FORMATS)


def rendered(
    format: str,
    snapshot: Snapshot = FULL,
    verdict: Verdict = VERDICT_FULL,
    agent: AgentStats = AGENT,
) -> str:
    return render_text(snapshot, verdict, BUILD, agent, openmetrics=FORMATS[format][0]).decode()


def series(format: str, text: str) -> dict[tuple[str, Any], float]:
    """Every sample by its name and labels, as prometheus_client's parser of the format reads it."""
    found: dict[tuple[str, Any], float] = {}
    for family in FORMATS[format][1](text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(found: dict[tuple[str, Any], float], name: str, /, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def names(text: str) -> set[str]:
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


@both_formats
def test_the_golden_of_a_full_reading(format: str) -> None:
    """Literal readings become this text, byte for byte."""
    check(f"full.{format}.txt", rendered(format).encode())


@both_formats
def test_the_golden_of_no_reading(format: str) -> None:
    """Before anything was read the text is this one, byte for byte."""
    text = rendered(format, NOTHING, VERDICT_NOTHING, AgentStats())
    check(f"nothing.{format}.txt", text.encode())


@both_formats
def test_a_parser_reads_the_right_values(format: str) -> None:
    """prometheus_client's parser accepts the text and finds each value in base units."""
    found = series(format, rendered(format))
    gpu = {"gpu": "0", "uuid": "GPU-00000000-1111-2222-3333-444444444444"}
    assert value(found, "ollama_host_cpu_ratio") == 0.123
    assert value(found, "ollama_host_memory_total_bytes") == 64 << 30
    assert value(found, "ollama_host_cpu_busy_seconds_total") == 98765.25
    assert value(found, "ollama_host_container_limited") == 1
    assert value(found, "ollama_gpu_utilization_ratio", **gpu) == 0.5
    assert value(found, "ollama_gpu_memory_used_bytes", **gpu) == 70_000 << 20
    assert value(found, "ollama_gpu_power_draw_watts", **gpu) == 350.456
    assert value(found, "ollama_gpu_sm_clock_hertz", **gpu) == 1.98e9
    assert value(found, "ollama_gpu_energy_joules_total", **gpu) == 123456.789
    assert value(found, "ollama_gpu_throttled_hardware", **gpu) == 0
    assert value(found, "ollama_agent_collector_success", collector="gpu") == 1
    assert value(found, "ollama_agent_requests_total") == 12345
    assert value(found, "ollama_agent_build_info", version="1.2.3", python="3.9.2") == 1
    driver = {"driver_version": "550.54.15", "cuda_version": "12.4", "nvml_version": "12.550.54.15"}
    assert value(found, "ollama_gpu_driver_info", **driver) == 1
    info = {**gpu, "name": "NVIDIA H200", "pci_bus_id": "00000000:1B:00.0"}
    assert value(found, "ollama_gpu_info", **info) == 1


@both_formats
def test_a_state_is_a_series_for_each_of_its_values(format: str) -> None:
    """Of the verdict's four words one series is 1 and the others are 0."""
    found = series(format, rendered(format))
    states = {
        dict(labels)["status"]: number
        for (name, labels), number in found.items()
        if name == "ollama_host_status"
    }
    assert states == {"ok": 0, "degraded": 1, "failing": 0, "draining": 0}


@both_formats
def test_both_formats_say_the_same(format: str) -> None:
    """The samples of the two formats are the same by name, labels and value."""
    other = "openmetrics" if format == "prometheus" else "prometheus"
    assert series(format, rendered(format)) == series(other, rendered(other))


@both_formats
def test_what_is_not_reported_is_not_there(format: str) -> None:
    """A value that a GPU does not report is an absent series, and the GPU's others are there."""
    found = series(format, rendered(format))
    split = {
        name
        for name, labels in found
        if ("uuid", "GPU-55555555-6666-7777-8888-999999999999") in labels
    }
    assert split == {
        "ollama_gpu_info",
        "ollama_gpu_memory_used_bytes",
        "ollama_gpu_memory_total_bytes",
        "ollama_gpu_memory_used_ratio",
        "ollama_gpu_memory_free_bytes",
        "ollama_gpu_mig_enabled",
        "ollama_vram_used_bytes",
    }
    assert value(found, "ollama_gpu_mig_memory_used_bytes", gpu="1", uuid="MIG-a") == 12 << 20
    assert (
        "ollama_gpu_mig_memory_used_bytes",
        frozenset({"gpu": "1", "uuid": "MIG-b"}.items()),
    ) not in found


@both_formats
def test_what_was_not_measured_is_not_there(format: str) -> None:
    """Without a reading no made-up one appears: the verdict and its weight, the collectors' health and the build."""
    text = rendered(format, NOTHING, VERDICT_NOTHING, AgentStats())
    assert names(text) == {
        "ollama_host_status",
        "ollama_host_gpu_devices",
        "ollama_host_gpu_devices_expected",
        "ollama_host_weight",
        "ollama_host_load_ratio",
        "ollama_agent_collector_success",
        "ollama_agent_collector_consecutive_failures",
        "ollama_agent_collector_failures_total",
        "ollama_agent_build_info",
    }
    assert series(format, text)[("ollama_host_status", frozenset({("status", "failing")}))] == 1


@both_formats
def test_a_pessimistic_verdict_leaves_what_was_measured(format: str) -> None:
    """A balancer's 100 percent never shows: the series are the readings, whatever the verdict made of them."""
    made_up = replace(VERDICT_FULL, status="failing")
    found = series(format, rendered(format, verdict=made_up))
    assert value(found, "ollama_host_cpu_ratio") == 0.123
    assert value(found, "ollama_host_status", status="failing") == 1


@both_formats
def test_families_are_announced_once_and_stand_together(format: str) -> None:
    """Each family has one HELP and one TYPE, right before its samples, and comes once."""
    lines = rendered(format).splitlines()
    announced: list[str] = []
    current = ""
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            announced.append(current)
            assert lines[number + 1].startswith(f"# TYPE {current} ")
        elif line.startswith("# TYPE "):
            assert lines[number - 1].startswith(f"# HELP {line.split(' ')[2]} ")
        elif line.startswith("# UNIT "):
            assert format == "openmetrics"
            assert lines[number - 1].startswith(f"# TYPE {current} ")
        elif not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            suffixes = ("", "_total", "_info") if format == "openmetrics" else ("",)
            if f"# TYPE {current} histogram" in lines:
                suffixes = ("_bucket", "_sum", "_count")
            assert name in {current + suffix for suffix in suffixes}
    assert len(announced) == len(set(announced))


@both_formats
def test_types_are_right(format: str) -> None:
    """Counters are counters and texts are info (a gauge in Prometheus's format, which has none)."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", rendered(format), re.MULTILINE))
    total = "_total" if format == "prometheus" else ""
    for table in TABLES:
        for metric in table.metrics:
            family = table.family(metric)
            if metric.kind == "counter":
                assert kinds.pop(family[: -len("_total")] + total) == "counter"
            elif metric.kind == "histogram":
                assert kinds.pop(family) == "histogram"
            elif metric.kind in ("gauge", "state"):
                assert kinds.pop(family) == "gauge"
    suffix, kind = ("_info", "gauge") if format == "prometheus" else ("", "info")
    assert kinds == {
        f"ollama{subject}{suffix}": kind
        for subject in ("_gpu", "_gpu_driver", "_agent_build", "", "_model")
    }


def test_openmetrics_names_units() -> None:
    """A family whose name ends in a unit says so, and no other does."""
    units = dict(re.findall(r"^# UNIT (\S+) (\S+)$", rendered("openmetrics"), re.MULTILINE))
    assert units["ollama_gpu_energy_joules"] == "joules"
    assert units["ollama_host_memory_used_ratio"] == "ratio"
    assert "ollama_host_cpus" not in units
    assert all(name.endswith(f"_{unit}") for name, unit in units.items())
    assert "# UNIT" not in rendered("prometheus")


@pytest.mark.parametrize(
    ("snapshot", "verdict"), [(FULL, VERDICT_FULL), (NOTHING, VERDICT_NOTHING)]
)
def test_openmetrics_ends_with_eof(snapshot: Snapshot, verdict: Verdict) -> None:
    """`# EOF` and a newline are the end of OpenMetrics, and are not in Prometheus's format."""
    text = rendered("openmetrics", snapshot, verdict)
    assert text.endswith("\n# EOF\n")
    assert text.count("# EOF") == 1
    assert "# EOF" not in rendered("prometheus", snapshot, verdict)
    assert rendered("prometheus", snapshot, verdict).endswith("\n")


@both_formats
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_not_there(format: str, number: float) -> None:
    """NaN and infinities are absent series too."""
    assert FULL.gpu is not None
    gpu = GpuSample(index=0, uuid="x", utilization_ratio=number, power_draw_watts=1.0)
    state = replace(FULL.gpu, sample=GpuReading(gpus=(gpu,)))
    text = rendered(format, replace(FULL, gpu=state))
    assert "ollama_gpu_utilization_ratio" not in text
    assert "ollama_gpu_power_draw_watts" in text


@both_formats
def test_numbers_are_exact(format: str) -> None:
    """Integers are written in full and floats so that they read back the same."""
    assert FULL.gpu is not None
    gpu = GpuSample(
        index=0,
        uuid="x",
        utilization_ratio=0.1 + 0.2,
        memory_used_bytes=(1 << 53) - 1,
        energy_joules_total=1e22,
    )
    state = replace(FULL.gpu, sample=GpuReading(gpus=(gpu,)))
    text = rendered(format, replace(FULL, gpu=state))
    assert '{gpu="0",uuid="x"} 9007199254740991\n' in text
    found = series(format, text)
    assert value(found, "ollama_gpu_utilization_ratio", gpu="0", uuid="x") == 0.1 + 0.2
    assert value(found, "ollama_gpu_energy_joules_total", gpu="0", uuid="x") == 1e22


# What UTF-8 can carry; a driver's text is decoded before it gets here, so it holds no half characters.
texts = st.text(st.characters(blacklist_categories=("Cs",)))


@both_formats
@given(name=texts, uuid=texts, version=texts.filter(bool), instance=texts)
@example(name='\\"', uuid="\\n\n", version='"} 1\nforged 1', instance="a\\")
@example(name="\r", uuid="\x85\u2028", version="{}", instance=',le="1"')
@settings(max_examples=100, deadline=None)
def test_any_text_survives(format: str, name: str, uuid: str, version: str, instance: str) -> None:
    """Whatever a driver calls its GPUs, the labels read back the same and no line is forged."""
    gpu = GpuSample(
        index=0,
        name=name,
        uuid=uuid,
        utilization_ratio=0.5,
        mig_instances=(MigInstance("0", instance, None, 1, None),),
    )
    assert FULL.gpu is not None
    state = replace(FULL.gpu, sample=GpuReading(gpus=(gpu,), driver_version=version))
    text = rendered(format, replace(FULL, gpu=state))
    found = series(format, text)
    assert value(found, "ollama_gpu_utilization_ratio", gpu="0", uuid=uuid) == 0.5
    assert value(found, "ollama_gpu_info", gpu="0", uuid=uuid, name=name) == 1
    assert value(found, "ollama_gpu_driver_info", driver_version=version) == 1
    assert value(found, "ollama_gpu_mig_memory_total_bytes", gpu="0", uuid=instance) == 1
    assert not {key for key, _ in found if not key.startswith("ollama_")}


@both_formats
def test_gpus_that_share_a_uuid_are_no_duplicates(format: str) -> None:
    """Two GPUs of the same UUID (a broken driver's) are still two series each."""
    assert FULL.gpu is not None
    gpus = tuple(GpuSample(index=i, uuid="same", name="x", utilization_ratio=0.5) for i in (0, 1))
    state = replace(FULL.gpu, sample=GpuReading(gpus=gpus))
    found = series(format, rendered(format, replace(FULL, gpu=state)))
    assert len([1 for name, _ in found if name == "ollama_gpu_utilization_ratio"]) == 2
