"""Where a model sits: what is joined, and each missing link."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_metrics.gpu import GpuSample
from ollama_metrics.ollama import Model, Runner
from ollama_metrics.placement import VideoMemory, place, room, used_by

BLOB, OTHER = "sha256-" + "a" * 64, "sha256-" + "b" * 64
ONE = Model("one:1b", size_bytes=100, vram_bytes=100, gpu_ratio=1.0)
HALF = Model("half:7b", size_bytes=200, vram_bytes=100, gpu_ratio=0.5)
ON_CPU = Model("cpu:1b", size_bytes=100, vram_bytes=0, gpu_ratio=0.0)


def gpu(index: int, *processes: Any, free: Optional[int] = 10, silent: bool = False) -> GpuSample:
    return GpuSample(
        index=index,
        uuid=f"GPU-{index}",
        memory_free_bytes=free,
        processes=None if silent else processes,
    )


def test_a_model_on_two_gpus() -> None:
    """The runner's process is on two GPUs' lists: both are named, with the bytes on each."""
    gpus = (gpu(0, (7, 60), (8, 1)), gpu(1), gpu(2, (7, 40)))
    (placement,) = place((ONE,), {"one:1b": BLOB}, (Runner(7, BLOB), Runner(8, OTHER)), gpus)
    assert [(s.gpu, s.uuid, s.gpu_memory_bytes) for s in placement.gpus] == [
        (0, "GPU-0", 60),
        (2, "GPU-2", 40),
    ]
    assert (placement.cpu_ratio, placement.placement_known, placement.unknown) == (0, True, None)


def test_a_model_partly_on_the_cpu() -> None:
    """Ollama's own shares tell what the CPU has; the driver tells where the rest is."""
    (placement,) = place((HALF,), {"half:7b": BLOB}, (Runner(7, BLOB),), (gpu(0, (7, 120)),))
    assert (placement.cpu_ratio, placement.gpus[0].gpu_memory_bytes) == (0.5, 120)


def test_a_model_on_the_cpu_needs_no_runner() -> None:
    """What has no byte of GPU memory is on no GPU: that is known without any other source."""
    (placement,) = place((ON_CPU,), {}, None, None)
    assert (placement.gpus, placement.cpu_ratio, placement.placement_known) == ((), 1.0, True)


RUNNER = (Runner(7, BLOB),)
KNOWN = {"one:1b": BLOB}
HERE = (gpu(0, (7, 60)),)


@pytest.mark.parametrize(
    ("blobs", "runners", "gpus", "why"),
    [
        (KNOWN, RUNNER, None, "no GPU can be read"),
        (KNOWN, RUNNER, (), "no GPU can be read"),
        (KNOWN, None, HERE, "cannot see Ollama's processes"),
        ({}, RUNNER, HERE, "what weights"),
        (KNOWN, (), HERE, "no process"),
        (KNOWN, (Runner(7, OTHER),), HERE, "no process"),
        (KNOWN, (Runner(7, BLOB), Runner(8, BLOB)), HERE, "the same weights"),
        (KNOWN, RUNNER, (gpu(0, silent=True),), "GPU 0 does not tell"),
        (KNOWN, RUNNER, (gpu(0, (7, 60)), gpu(1, silent=True)), "GPU 1 does not tell"),
        (KNOWN, RUNNER, (gpu(0, (9, 60)),), "process 7 is on no GPU"),
    ],
)
def test_a_missing_link_is_told_and_not_guessed(
    blobs: Any, runners: Any, gpus: Any, why: str
) -> None:
    """Whatever link is missing: no GPU is named, and the reason says which."""
    (placement,) = place((ONE,), blobs, runners, gpus)
    assert placement.gpus == ()
    assert not placement.placement_known
    assert why in (placement.unknown or "")


def test_two_models_of_the_same_weights_are_told_apart_by_nobody() -> None:
    """Two names for the same weights: which of them a runner serves is unknown for both."""
    twin = Model("twin:1b", size_bytes=100, vram_bytes=100, gpu_ratio=1.0)
    placements = place((ONE, twin), {**KNOWN, "twin:1b": BLOB}, RUNNER, HERE)
    assert [one.placement_known for one in placements] == [False, False]


def test_a_driver_that_tells_processes_and_no_bytes() -> None:
    """The GPUs are named, that their bytes are not known is said."""
    (placement,) = place((ONE,), KNOWN, RUNNER, (gpu(0, (7, None)),))
    assert [share.gpu for share in placement.gpus] == [0]
    assert not placement.placement_known
    assert used_by(RUNNER, (gpu(0, (7, None)),)) == ()


def test_what_is_left_of_the_gpus() -> None:
    """The room is the sum and the largest of what is free; not known where one GPU's is not."""
    assert room((gpu(0, free=10), gpu(1, free=30))) == VideoMemory(40, 30)
    assert room((gpu(0, free=10), gpu(1, free=None))) == VideoMemory(None, None)
    assert room(()) is None


def test_what_ollamas_runners_use_of_each_gpu() -> None:
    """Only runners count, all of them, and a GPU without any has 0."""
    gpus = (gpu(0, (7, 60), (8, 5), (99, 1000)), gpu(1), gpu(2, silent=True))
    used = used_by((Runner(7), Runner(8)), gpus)
    assert [(one.gpu, one.used_bytes) for one in used] == [(0, 65), (1, 0)]
    assert used_by(None, gpus) == ()


blobs = st.sampled_from([BLOB, OTHER, None])


@given(
    models=st.lists(
        st.tuples(st.sampled_from("abc"), blobs, st.integers(0, 9), st.integers(0, 9)), max_size=4
    ),
    runners=st.one_of(st.none(), st.lists(st.tuples(st.integers(1, 4), blobs), max_size=4)),
    lists=st.lists(
        st.one_of(
            st.none(),
            st.lists(
                st.tuples(st.integers(1, 4), st.one_of(st.none(), st.integers(0, 9))), max_size=4
            ),
        ),
        max_size=3,
    ),
)
def test_every_model_has_a_placement_that_is_whole(models: Any, runners: Any, lists: Any) -> None:
    """Whatever is known: a placement for each model; the known have bytes on each GPU, the others a reason."""
    loaded = [
        Model(
            name, size_bytes=size, vram_bytes=vram, gpu_ratio=min(1, vram / size) if size else None
        )
        for name, _, size, vram in models
    ]
    gpus = [gpu(i, *(one or ()), silent=one is None) for i, one in enumerate(lists)]
    placements = place(
        loaded,
        {name: blob for name, blob, _, _ in models if blob},
        None if runners is None else [Runner(pid, blob) for pid, blob in runners],
        gpus,
    )
    assert [placement.model for placement in placements] == [one.name for one in loaded]
    for placement in placements:
        assert placement.placement_known == (placement.unknown is None)
        if placement.placement_known:
            assert None not in [share.gpu_memory_bytes for share in placement.gpus]
