"""HAProxy's agent-check: one line about this host, for whoever connects.

An idle server sorts first under most of HAProxy's balancing, whatever its weight: only `down` and
`drain` keep requests away. What was said in one category stands until the agent takes it back in the
same one, so each line names administration (ready, drain) and operation (up, down) both. Source:
HAProxy's configuration manual, agent-check.
"""

from __future__ import annotations

from .verdict import DRAINING, FAILING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from .verdict import Verdict

# The weight's percentage stays as it was while the load is no further from it than this, in points.
HYSTERESIS = 3.0
_LEAST_PERCENT = 1  # HAProxy takes 0 % for drain
_MOST_REASON = 200


class Headroom:
    """What is left of a host, in whole percent: 1 to 100; small changes of the load change nothing."""

    def __init__(self) -> None:
        self._shown: Optional[int] = None

    def percent(self, load: float) -> int:
        """The percentage to tell for a load of 0 to 1."""
        exact = 100.0 * (1.0 - load)
        if self._shown is None or abs(exact - self._shown) > HYSTERESIS:
            self._shown = min(100, max(_LEAST_PERCENT, round(exact)))
        return self._shown


def line(verdict: Verdict, headroom: Headroom) -> bytes:
    """The line for a verdict; its reasons stand behind `#` where HAProxy shows them.

    A host that waits for its Ollama is down: 1 % would be no fence.
    """
    if verdict.status == FAILING or verdict.waiting:
        administration = "drain" if verdict.drained else "ready"
        return f"{administration} down #{_reason(verdict)}\n".encode("ascii")
    if verdict.status == DRAINING:
        return b"drain up\n"
    return f"ready up {headroom.percent(verdict.load_ratio)}%\n".encode("ascii")


def _reason(verdict: Verdict) -> str:
    text = "; ".join(verdict.reasons)[: 4 * _MOST_REASON]
    shown = "".join(char if " " <= char <= "~" else "?" for char in text)
    return shown[:_MOST_REASON] or "failing"
