"""Says in the log when the verdict on the host changes, and why."""

from __future__ import annotations

import time

from .verdict import OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

    from .sampler import Sampler
    from .verdict import Verdict


# What makes a host degraded (a slow Ollama, failing requests) reaches the log within this time; what
# breaks it at once.
_JUDGE_SECONDS = 15.0


class StatusLog:
    """Logs each change of the verdict's status, once; `note` is called by one thread, after each sample."""

    def __init__(
        self,
        host: Sampler,
        gpu: Optional[Sampler],
        judge: Callable[[], Verdict],
        log: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
        ollama: Optional[Sampler] = None,
        drain: Callable[[], object] = lambda: None,
    ) -> None:
        self._host, self._gpu, self._judge, self._log, self._clock = host, gpu, judge, log, clock
        self._ollama, self._drain = ollama, drain
        self._seen: object = None
        self._judge_at = float("-inf")
        self._status: Optional[str] = None

    def note(self) -> None:
        """Look at the verdict, and log it when it is another one than before."""
        gpu = self._gpu.state if self._gpu is not None else None
        ollama = self._ollama.state if self._ollama is not None else None
        answers = None
        if ollama is not None:
            reading = ollama.sample
            answers = (ollama.health.success, reading and (reading.up, reading.failures))
        seen = (self._host.state.health.success, gpu, answers, self._drain())
        now = self._clock()
        overdue = (gpu is not None and now > gpu.overdue_at) or (
            ollama is not None and now > ollama.overdue_at
        )
        if seen == self._seen and now < self._judge_at and not overdue:
            return  # nothing that breaks a host: to judge is a third of a sample's cost
        self._seen, self._judge_at = seen, now + _JUDGE_SECONDS
        try:
            verdict = self._judge()
        except Exception as error:
            # A fault of the agent's own: whoever asks for the verdict gets 500, and the sampler whose
            # thread this is goes on.
            fault = f"the verdict fails: {type(error).__name__}: {error}"
            if fault != self._status:
                self._log("error", fault)
                self._status = fault
            return
        if verdict.status != self._status:
            level = "info" if verdict.status == OK else "warning"
            self._log(level, f"status: {verdict.summary}")
            self._status = verdict.status
