"""How long to wait before trying again what has just failed."""

from __future__ import annotations

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0


def backed_off(seconds: float, longest: float = LONGEST_SECONDS) -> float:
    """The wait that follows one of `seconds` (0: the first): doubled, from 1 s up to `longest`."""
    return min(longest, max(FIRST_SECONDS, seconds * 2))
