"""The rings as JSON arrays: which readings are in them, when they were, and how many they can become."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_metrics.gpu import GpuReading, GpuSample
from ollama_metrics.history import render_history, to_document
from ollama_metrics.reference_history import HISTORY
from ollama_metrics.snapshot import CollectorHealth, Snapshot, State
from ollama_metrics.window import Span, add

NOW, UNIX = 1000.0, 1_800_000_000.0
Levels = Mapping[str, tuple[Optional[float], ...]]


def state(*readings: tuple[float, Levels], last_good: Any = None, step: float = 1.0) -> State[Any]:
    """A collector whose readings ended so many seconds before NOW, each standing for `step` seconds."""
    ring: tuple[Span, ...] = ()
    for ago, levels in readings:
        ring = add(ring, Span(NOW - ago - step, NOW - ago, levels))
    health = CollectorHealth("x", True, 0.001, UNIX, 0, 0)
    return State(health, NOW + 3, last_good, last_good, NOW, UNIX, ring)


def document(
    host: Optional[State[Any]] = None,
    gpu: Optional[State[Any]] = None,
    ollama: Optional[State[Any]] = None,
    seconds: float = 120.0,
) -> Any:
    snapshot = Snapshot(host or state(), gpu, 0, "", ollama)
    return to_document(snapshot, seconds, NOW, UNIX)


def host_readings(agos: Sequence[float]) -> State[Any]:
    return state(*((ago, {"": (0.25, 0.5)}) for ago in agos))


def gpus(*uuids: str) -> GpuReading:
    return GpuReading(tuple(GpuSample(index=i, uuid=uuid) for i, uuid in enumerate(uuids)))


def test_each_reading_is_an_entry() -> None:
    """CPU and RAM in percent with the seconds since each reading ended, the oldest first."""
    host = state((2.5, {"": (0.1, 0.5)}), (1.5, {"": (0.2, 0.5)}), (0.5, {"": (1.0, 0.512345)}))
    assert document(host) == {
        "timestamp": UNIX,
        "seconds": 120.0,
        "host": {
            "ago_seconds": [2.5, 1.5, 0.5],
            "cpu_percent": [10.0, 20.0, 100.0],
            "ram_percent": [50.0, 50.0, 51.2],
        },
        "gpu": None,
        "ollama": None,
    }


def test_only_what_ended_within_the_seconds_is_told() -> None:
    """Counted back from now and not from the newest reading: of a collector that is stuck it becomes less."""
    host = host_readings([70.0, 61.0, 60.0, 59.0, 30.0])
    assert document(host, seconds=60)["host"]["ago_seconds"] == [59.0, 30.0]
    assert document(host, seconds=10)["host"] == {
        "ago_seconds": [],
        "cpu_percent": [],
        "ram_percent": [],
    }


def test_a_gpu_has_its_index_and_its_uuid() -> None:
    """The GPUs in the order of their indices, each with columns as long as the times."""
    levels = {"GPU-a": (0.5, 0.25, None), "GPU-b": (None, 0.75, 0.1)}
    gpu = document(gpu=state((1.0, levels), last_good=gpus("GPU-a", "GPU-b")))["gpu"]
    assert gpu == {
        "ago_seconds": [1.0],
        "gpus": [
            {
                "index": 0,
                "uuid": "GPU-a",
                "utilization_percent": [50.0],
                "memory_percent": [25.0],
            },
            {
                "index": 1,
                "uuid": "GPU-b",
                "utilization_percent": [None],
                "memory_percent": [75.0],
            },
        ],
    }


def test_a_gpu_that_was_lost_is_told_as_long_as_its_readings_are() -> None:
    """It comes after those that answer, without an index, null where it was not read."""
    both, one = {"GPU-a": (0.5, 0.5), "GPU-b": (0.25, 0.5)}, {"GPU-b": (0.125, 0.5)}
    lost = state((3.0, both), (2.0, one), (1.0, one), last_good=gpus("GPU-b"))
    columns = {
        (gpu["index"], gpu["uuid"]): gpu["utilization_percent"]
        for gpu in document(gpu=lost)["gpu"]["gpus"]
    }
    assert list(columns.items()) == [
        ((0, "GPU-b"), [25.0, 12.5, 12.5]),
        ((None, "GPU-a"), [50.0, None, None]),
    ]
    assert [gpu["uuid"] for gpu in document(gpu=lost, seconds=2.5)["gpu"]["gpus"]] == ["GPU-b"]


def test_requests_in_flight() -> None:
    """A number where they were counted, null where they could not be."""
    ollama = state((2.0, {"": (3.0,)}), (1.0, {"": (None,)}))
    assert document(ollama=ollama)["ollama"] == {
        "ago_seconds": [2.0, 1.0],
        "in_flight": [3.0, None],
    }


def test_readings_that_come_fast_become_one() -> None:
    """Of a half second there is one entry, the mean of its readings by time, as of the last of them."""
    readings = [(0.5, {"": (0.0, 0.5)}), (0.3, {"": (1.0, 0.5)}), (0.2, {"": (0.8, None)})]
    columns = document(state(*readings, step=0.1))["host"]
    assert columns == {"ago_seconds": [0.2], "cpu_percent": [60.0], "ram_percent": [50.0]}


@pytest.mark.parametrize(("interval", "entries"), [(0.1, 241), (0.5, 241), (1.0, 120), (5.0, 24)])
def test_an_answer_is_bounded(interval: float, entries: int) -> None:
    """Two entries a second at most, whatever the interval; at a slower one each reading is there."""
    agos = [interval * number for number in range(int(120 / interval) - 1, -1, -1)]
    columns = document(host_readings(agos))["host"]
    assert {len(column) for column in columns.values()} <= {entries, entries - 1}


def test_sixteen_gpus_and_two_minutes_fit_into_forty_kilobytes() -> None:
    """What a page that is open asks for each second."""
    uuids = [f"GPU-7d5c1a1e-0b8f-4c55-9d0e-3c1f6a2b9e{number:02}" for number in range(16)]
    levels: Levels = dict.fromkeys(uuids, (0.987, 0.654, 0.321))
    agos = range(119, -1, -1)
    snapshot = Snapshot(
        host_readings([float(ago) for ago in agos]),
        state(*((float(ago), levels) for ago in agos), last_good=gpus(*uuids)),
        16,
        "",
    )
    assert len(render_history(snapshot, 120.0, NOW, UNIX)) < 40_000


levels = st.one_of(st.none(), st.floats(0, 1))


@settings(max_examples=80, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 130),
            st.dictionaries(
                st.sampled_from(["GPU-a", "GPU-b", "GPU-c"]), st.tuples(levels, levels)
            ),
        ),
        max_size=40,
    ),
    st.floats(1, 120),
)
def test_every_ring_becomes_columns(
    readings: list[tuple[float, dict[str, tuple[Optional[float], Optional[float]]]]], seconds: float
) -> None:
    """Columns are as long as their times, times fall and are within the seconds, values within those read."""
    ring = sorted(readings, key=lambda one: -one[0])
    snapshot = Snapshot(state(), state(*ring, last_good=gpus("GPU-b")), 1, "")
    told = json.loads(render_history(snapshot, seconds, NOW, UNIX))["gpu"]
    ago = told["ago_seconds"]
    assert ago == sorted(ago, reverse=True)
    assert all(0 <= one <= seconds + 0.01 for one in ago)
    assert len(ago) <= 2 * seconds + 1
    for gpu in told["gpus"]:
        for level, key in enumerate(("utilization_percent", "memory_percent")):
            read = [own[gpu["uuid"]][level] for _, own in ring if gpu["uuid"] in own]
            known = [100 * value for value in read if value is not None]
            assert len(gpu[key]) == len(ago)
            for value in gpu[key]:
                assert value is None or min(known) - 0.1 <= value <= max(known) + 0.1


def test_every_key_is_described_in_its_order() -> None:
    """docs/METRICS.md has a row for each number and list of a document, and no other."""

    def keys(value: Any, path: str = "") -> list[str]:
        if isinstance(value, dict):
            return [key for name, one in value.items() for key in keys(one, f"{path}.{name}")]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return keys(value[0], f"{path}[]")
        return [path[1:]]

    whole = document(
        host_readings([1.0]),
        state((1.0, {"GPU-a": (0.5, 0.5)}), last_good=gpus("GPU-a")),
        state((1.0, {"": (3.0,)})),
    )
    assert [key for key, _ in HISTORY] == keys(whole)
