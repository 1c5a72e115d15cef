"""Takes one `OllamaReading` a cycle: asks Ollama, the kernel and Ollama's log, each part by itself.

`OllamaCollector.collect` is called by one thread, its own. No part that fails harms another: it keeps
its last good value for two minutes and its health says what is wrong. It never stands in the way of a
request: all it does to Ollama is three small questions, one after another, every few seconds.
"""

from __future__ import annotations

import time
from dataclasses import replace

from .errors import CollectorError, OllamaError
from .ollama import OllamaReading, Part
from .ollama_api import OllamaApi, slots
from .snapshot import CollectorHealth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from .log_follower import Follower
    from .log_tally import LogTally
    from .ollama import CgroupUsage, LogReading, Model, Runner
    from .ollama_expectation import OllamaExpectation
    from .ollama_processes import OllamaProcesses
    from .ollama_url import OllamaUrl

# The cgroup's figures are for graphs, and cost a file each.
_CGROUP_SECONDS = 15.0
# What a part has read is shown for as long after its last good reading.
_KEEP_SECONDS = 120.0
# While an expected Ollama does not answer it is asked again this soon.
AGAIN_SECONDS = 1.0
# A question to Ollama, and one to a runner of its; all runners are asked within the second.
ANSWER_SECONDS = 5.0
_SLOTS_SECONDS = 1.0
# The longest that a cycle takes: the checks, the models, the weights of one new model, the slots.
CYCLE_SECONDS = 3 * ANSWER_SECONDS + 2 * _SLOTS_SECONDS


class ReadInPart(CollectorError):
    """A part that failed after it had read something: `value` is what is known of it now."""

    def __init__(self, sentence: str, value: Any) -> None:
        super().__init__(sentence)
        self.value = value


class OllamaLog:
    """Ollama's log and what was counted of it; `follower` gives the new lines, `tally` counts them."""

    def __init__(self, follower: Follower, tally: LogTally) -> None:
        self._follower, self._tally = follower, tally

    def read(self, now: float) -> LogReading:
        """What has been counted until now, the new lines included.

        Raises CollectorError, and ReadInPart where there were new lines in spite of it.
        """
        counted = False
        try:
            for block in self._follower.read():
                self._tally.lines(block)
                counted = True
        except CollectorError as error:
            if not counted:
                raise
            raise ReadInPart(str(error), self._tally.reading(now)) from None
        return self._tally.reading(now)

    def close(self) -> None:
        """End what runs beside; the next `read` begins it again."""
        self._follower.close()


class OllamaCollector:
    """Takes `OllamaReading`s.

    `expectation` learns when Ollama answers; `interval` is how many seconds lie between two checks and
    `grace` for how many an expected Ollama may be starting. `processes` finds Ollama's connections,
    processes and cgroup; None where `url` is not this host's. `log` is read, if there is one, by every
    cycle. `failures` is how many checks in a row a program before this one has seen fail in the same
    process, None where it never saw Ollama answer. `say(level, sentence)` hears when a part of an Ollama
    that answers cannot be read any more, and when it can again.
    """

    def __init__(
        self,
        url: OllamaUrl,
        expectation: OllamaExpectation,
        interval: float = 5.0,
        grace: float = 60.0,
        ask_slots: bool = True,
        processes: Optional[OllamaProcesses] = None,
        log: Optional[OllamaLog] = None,
        failures: Optional[int] = None,
        say: Callable[[str, str], object] = lambda _level, _sentence: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.url, self._expectation, self._interval = str(url), expectation, interval
        self._ask_slots, self._processes, self._log = ask_slots, processes, log
        self._clock, self._wall, self._say = clock, wall, say
        self._told: set[str] = set()  # the parts of which it was said that they cannot be read
        self._cgroup_at = float("-inf")
        self._api = OllamaApi(url, ANSWER_SECONDS)
        self._waits_until = clock() + grace
        self._version: Optional[str] = None
        self._parts: dict[str, Part] = {}
        self._values: dict[str, Any] = {}
        self._weights: dict[tuple[str, Optional[str]], Optional[str]] = {}
        self.pause = 0.0
        self.seen = failures is not None
        self.failures = failures or 0

    def collect(self) -> OllamaReading:
        """One reading; raises nothing that is foreseen."""
        rtt: Optional[float] = None
        answer = self._part("ollama", self._api.version)
        error = self._parts["ollama"].health.error or ""
        up = not error
        if up:
            self._version, rtt = answer
            self.seen, self.failures = True, 0
            self._expectation.saw()
        else:
            self.failures += 1
        models: tuple[Model, ...] = ()
        if up or self.seen:
            models = self._part("ollama_models", self._models, up) or ()
        processes: Optional[OllamaProcesses] = self._processes
        active: Optional[int] = None
        runners: Optional[tuple[Runner, ...]] = None
        cgroup: Optional[CgroupUsage] = None
        if processes is not None and (up or self.seen):
            active = self._fresh("ollama_connections", processes.connections)
            runners = self._fresh("ollama_processes", processes.runners)
            if processes.has_cgroup:
                cgroup = self._cgroup(processes)
        slots = None
        if self._ask_slots and up and any(runner.port is not None for runner in runners or ()):
            slots = self._fresh("ollama_slots", lambda: self._slots(runners or ()))
        else:
            self._parts.pop("ollama_slots", None)
        log: Optional[LogReading] = None
        if self._log is not None:
            follow = self._log.read
            log = self._part("ollama_log", lambda: follow(self._clock()))
        # A dead Ollama is looked at often; one that was never there, and one that is well, are not.
        self.pause = AGAIN_SECONDS if self._expectation.expected and not up else self._interval
        self._tell(up)
        return OllamaReading(
            url=self.url,
            up=up,
            expected=self._expectation.expected,
            version=self._version if up else None,
            rtt_seconds=rtt,
            active_requests=active,
            slots_busy=slots[0] if slots else None,
            slots=slots[1] if slots else None,
            models_loaded=len(models) if up and self._is_fresh("ollama_models") else None,
            models=models,
            blobs=self._blobs(models),
            runners=runners,
            log=log,
            cgroup=cgroup,
            failures=self.failures,
            error=error,
            seen=self.seen,
            waits_until=self._waits_until,
            parts=tuple(self._parts.values()),
        )

    # -- the parts -----------------------------------------------------------------------------------------------

    def _models(self) -> tuple[Model, ...]:
        models = self._api.models()
        known = {(model.name, model.digest): None for model in models}
        self._weights = {key: blob for key, blob in self._weights.items() if key in known}
        for model in models:
            key = model.name, model.digest
            if model.vram_bytes and key not in self._weights and self._processes is not None:
                # One a cycle: loading models is slow, and so may this answer be.
                try:
                    self._weights[key] = self._api.weights_of(model.name)
                except OllamaError:
                    pass  # its placement is unknown until the next cycle asks again
                break
        return models

    def _cgroup(self, processes: OllamaProcesses) -> Optional[CgroupUsage]:
        if "ollama_cgroup" in self._values and self._clock() - self._cgroup_at < _CGROUP_SECONDS:
            value: CgroupUsage = self._values["ollama_cgroup"]
            return value
        usage: Optional[CgroupUsage] = self._part("ollama_cgroup", processes.cgroup)
        if self._is_fresh("ollama_cgroup"):
            self._cgroup_at = self._clock()
        return usage

    def _blobs(self, models: tuple[Model, ...]) -> tuple[tuple[str, str], ...]:
        found = ((model.name, self._weights.get((model.name, model.digest))) for model in models)
        return tuple((name, blob) for name, blob in found if blob is not None)

    def _slots(self, runners: tuple[Runner, ...]) -> Optional[tuple[int, int]]:
        """Busy and all slots of the runners that tell them."""
        busy = total = 0
        until = self._clock() + _SLOTS_SECONDS
        failure: Optional[OllamaError] = None
        for runner in runners:
            left = until - self._clock()
            if runner.port is None:
                continue
            if left <= 0:
                break
            try:
                one = slots(runner.port, left)
            except OllamaError as error:
                failure = error
                continue
            busy, total = busy + one[0], total + one[1]
        if failure is not None:
            raise failure  # a sum without that runner would be too small
        return busy, total

    # -- their health --------------------------------------------------------------------------------------------

    def _fresh(self, name: str, read: Callable[[], Any]) -> Any:
        """What `read` gives now, None where it fails: an old count of what changes all the time is worth nothing."""
        value = self._part(name, read)
        return value if self._is_fresh(name) else None

    def _tell(self, up: bool) -> None:
        """Say which parts have failed since the last cycle, and which are back. Of Ollama itself the verdict speaks."""
        for name, part in self._parts.items():
            if part.health.success and name in self._told:
                self._told.remove(name)
                self._say("info", f"{name}: readings are back")
            elif up and not part.health.success and name not in self._told and name != "ollama":
                self._told.add(name)
                self._say("warning", f"{name}: {part.health.error}")

    def _is_fresh(self, name: str) -> bool:
        return self._parts[name].health.success

    def _part(self, name: str, read: Callable[[], Any], ask: bool = True) -> Any:
        """What `read` gives, else what it last gave for some time; its health is kept.

        Without `ask` it counts as failed: what is to be asked does not answer.
        """
        begun = self._clock()
        before = self._parts.get(name) or Part(CollectorHealth(name, False, None, None, 0, 0))
        try:
            if not ask:
                raise CollectorError("Ollama does not answer")
            value = read()
        except Exception as error:
            why = str(error) if isinstance(error, CollectorError) else f"unexpected {error!r}"
            health = replace(
                before.health,
                success=False,
                duration_seconds=self._clock() - begun,
                consecutive_failures=before.health.consecutive_failures + 1,
                failures_total=before.health.failures_total + 1,
                error=why,
            )
            if isinstance(error, ReadInPart):
                before = replace(before, read_at=self._clock())
                self._values[name] = error.value
            self._parts[name] = replace(before, health=health)
            if before.read_at is None or begun - before.read_at > _KEEP_SECONDS:
                self._values.pop(name, None)
            return self._values.get(name)
        now = self._clock()
        self._parts[name] = Part(
            CollectorHealth(name, True, now - begun, self._wall(), 0, before.health.failures_total),
            read_at=now,
        )
        self._values[name] = value
        return value
