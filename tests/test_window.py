"""Means and maxima over windows, against the integral of a scripted signal."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_metrics.window import LONGEST_SECONDS, Span, Stat, add, stats

# Times are eighths of a second and levels 64ths: floats hold them, their products and their sums
# exactly, so that a mean has to be equal and not just near.
TICK = Fraction(1, 8)


class Step(NamedTuple):
    """A part of a step signal: ticks without a reading, then ticks at a level (None: not reported)."""

    gap: int
    ticks: int
    level: Optional[int]


steps = st.lists(
    st.builds(
        Step,
        gap=st.one_of(st.just(0), st.integers(0, 200)),
        ticks=st.integers(0, 160),
        level=st.one_of(st.none(), st.integers(0, 64)),
    ),
    min_size=1,
    max_size=40,
)


def ring_of(script: list[Step], begin: int = 0) -> tuple[Span, ...]:
    ring: tuple[Span, ...] = ()
    now = begin
    for gap, ticks, level in script:
        start, now = now + gap, now + gap + ticks
        value = None if level is None else level / 64
        ring = add(ring, Span(float(start * TICK), float(now * TICK), {"": (value,)}))
    return ring


def integral(script: list[Step], window: int) -> tuple[Optional[Fraction], Optional[Fraction]]:
    """Mean and maximum over the signal's last `window` ticks, by looking at every tick by itself."""
    cells: list[Optional[Fraction]] = []
    for gap, ticks, level in script:
        cells += [None] * gap
        cells += [None if level is None else Fraction(level, 64)] * ticks
    known = [cell for cell in cells[-window:] if cell is not None]
    return (sum(known, Fraction()) / len(known), max(known)) if known else (None, None)


@given(script=steps, window=st.integers(1, 960), begin=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_mean_and_maximum_are_those_of_the_signal(
    script: list[Step], window: int, begin: int
) -> None:
    """Mean and maximum over any window are exactly the signal's over that time; gaps weigh nothing."""
    mean, maximum = integral(script, window)
    (stat,) = stats(ring_of(script, begin), float(window * TICK))[""]
    assert stat.mean == (None if mean is None else float(mean))
    assert stat.maximum == (None if maximum is None else float(maximum))


@given(script=steps)
@settings(max_examples=50, deadline=None)
def test_the_ring_reaches_back_two_minutes_and_no_further(script: list[Step]) -> None:
    """Nothing that ended 120 s ago or earlier is kept, and nothing later is lost."""
    ring = ring_of(script)
    horizon = ring[-1].end - LONGEST_SECONDS
    assert all(span.end > horizon for span in ring)
    now, later = 0, 0
    for gap, ticks, _ in script:
        now += gap + ticks
        later += now * TICK > horizon
    assert len(ring) == later


def test_a_ring_does_not_grow_for_ever() -> None:
    """A reading a second leaves 120 readings in the ring, however long the agent runs."""
    ring: tuple[Span, ...] = ()
    for second in range(1000):
        ring = add(ring, Span(second, second + 1, {"": (0.5,)}))
    assert len(ring) == 120
    assert ring[0].start == 880


def test_adding_gives_a_new_ring() -> None:
    """A reader's ring never changes under it: `add` returns another tuple and leaves the old one."""
    before = add((), Span(0, 1, {"": (0.1,)}))
    after = add(before, Span(1, 2, {"": (0.2,)}))
    assert len(before) == 1
    assert len(after) == 2
    assert after is not before


def test_an_empty_ring_has_no_statistics() -> None:
    """Before the first reading there is nothing to tell."""
    assert stats((), 15.0) == {}


def test_a_reading_that_began_before_the_window_counts_for_its_part_in_it() -> None:
    """A span across the window's begin weighs as much as lies inside."""
    ring = (Span(0, 10, {"": (1.0,)}), Span(10, 12, {"": (0.0,)}))
    assert stats(ring, 4)[""] == (Stat(0.5, 1.0),)
    assert stats(ring, 2)[""] == (Stat(0.0, 0.0),)


def test_a_source_that_was_away_is_averaged_over_its_own_readings() -> None:
    """A GPU that was lost for a while is averaged over the readings that have it, another one over all."""
    ring = (
        Span(0, 1, {"a": (0.2,), "b": (0.5,)}),
        Span(1, 2, {"b": (0.5,)}),
        Span(2, 3, {"b": (0.5,)}),
        Span(3, 4, {"a": (0.6,), "b": (1.0,)}),
    )
    result = stats(ring, 10)
    assert result["a"][0].mean == pytest.approx(0.4)
    assert result["a"][0].maximum == 0.6
    assert result["b"][0].mean == pytest.approx(0.625)


def test_a_source_that_is_gone_is_not_told_of() -> None:
    """The result holds the sources of the newest reading only."""
    ring = (Span(0, 1, {"a": (0.2,), "b": (0.5,)}), Span(1, 2, {"b": (0.5,)}))
    assert set(stats(ring, 10)) == {"b"}


def test_a_level_that_is_not_reported_has_no_mean() -> None:
    """None is not 0: a level that was never reported has neither mean nor maximum, the others have."""
    ring = (Span(0, 1, {"a": (None, 0.5)}), Span(1, 2, {"a": (None, 0.7)}))
    assert stats(ring, 10)["a"] == (Stat(None, None), Stat(pytest.approx(0.6), 0.7))


def test_an_idle_source_is_zero_and_not_absent() -> None:
    """A level of 0 throughout is a mean and a maximum of 0."""
    assert stats((Span(0, 1, {"": (0.0,)}),), 10)[""] == (Stat(0.0, 0.0),)
