"""Says in the log when the verdict on the host changes, and why."""

from __future__ import annotations

from .verdict import OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

    from .verdict import Verdict


class StatusLog:
    """Logs each change of the verdict's status, once; `note` is to be called by one thread, now and then."""

    def __init__(self, judge: Callable[[], Verdict], log: Callable[[str, str], None]) -> None:
        self._judge, self._log = judge, log
        self._status: Optional[str] = None

    def note(self) -> None:
        """Look at the verdict, and log it when it is another one than before."""
        verdict = self._judge()
        if verdict.status != self._status:
            level = "info" if verdict.status == OK else "warning"
            why = "; ".join(verdict.reasons)
            weight = f"{verdict.balance.weight:g}"
            self._log(level, f"status: {verdict.status}, weight {weight}{why and ': '}{why}")
            self._status = verdict.status
