"""The ring of recent readings, and the mean and the maximum over any part of it.

A ring is an immutable tuple of `Span`s, oldest first; adding to it gives a new tuple, so that a
reader who holds one needs no lock. A reading stands for the time since the one before it (CPU time
is an exact mean over that time; NVML's utilization covers its last fraction), so means are weighted
by time and a gap in the readings weighs nothing.
"""

from __future__ import annotations

from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

    Levels = tuple[Optional[float], ...]

LONGEST_SECONDS = 120.0


@dataclass(frozen=True)
class Span:
    """One reading: the time that it stands for (monotonic seconds) and its levels by the name of what was read."""

    start: float
    end: float
    levels: Mapping[str, Levels]


@dataclass(frozen=True)
class Stat:
    """Time-weighted mean and maximum of one level over a window; None where nothing was read."""

    mean: Optional[float]
    maximum: Optional[float]


def add(ring: tuple[Span, ...], span: Span) -> tuple[Span, ...]:
    """A new ring that ends with `span` and reaches back just far enough for the longest window."""
    horizon = span.end - LONGEST_SECONDS
    first = 0
    while first < len(ring) and ring[first].end <= horizon:
        first += 1
    return (*ring[first:], span)


def stats(ring: tuple[Span, ...], seconds: float) -> dict[str, tuple[Stat, ...]]:
    """Mean and maximum of every level over the last `seconds` of the ring, which end with its newest reading.

    A source that is not in a reading (a GPU that was lost for a while) is averaged over the
    readings that have it; the result holds only the sources of the newest reading.
    """
    if not ring:
        return {}
    begin = ring[-1].end - seconds
    newest = ring[-1].levels
    # name -> per level [sum of value * seconds, sum of seconds, maximum]
    sums = {name: [[0.0, 0.0, -1.0] for _ in levels] for name, levels in newest.items()}
    for span in reversed(ring):
        if span.end <= begin:
            break
        weight = span.end - max(span.start, begin)
        if weight <= 0:
            continue  # it stands for no time at all
        for name, levels in span.levels.items():
            cells = sums.get(name)
            if cells is None:
                continue
            for cell, value in zip(cells, levels):
                if value is not None:
                    cell[0] += value * weight
                    cell[1] += weight
                    if value > cell[2]:
                        cell[2] = value
    return {
        name: tuple(
            Stat(total / weight, top) if weight else Stat(None, None)
            for total, weight, top in cells
        )
        for name, cells in sums.items()
    }
