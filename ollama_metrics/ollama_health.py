"""What Ollama's state says about the host, a part of the verdict: a pure function of snapshot, rules and clock."""

from __future__ import annotations

from .frozen import dataclass
from .policy import (
    DOWN,
    ERRORS,
    OLLAMA_CHECKS,
    OLLAMA_ERROR_RATIO,
    OLLAMA_ERROR_REQUESTS,
    OLLAMA_SLOW_SECONDS,
    ON_CPU,
    SLOW,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .ollama import Model, OllamaReading
    from .snapshot import Snapshot, State


@dataclass(frozen=True)
class OllamaHealth:
    """Why the host is failing, why it is degraded, and what else is to be known, in sentences.

    `waiting`: Ollama is expected and may still be starting. `share_on_cpu` is how much of the loaded
    models sits on the CPU while GPUs work (0-1).
    """

    broken: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    waiting: bool = False
    share_on_cpu: float = 0.0


def judge_ollama(
    snapshot: Snapshot, window: float, now: float, ignored: Collection[str]
) -> OllamaHealth:
    """The judgement at monotonic time `now`; `ignored` are rules that do not count (policy.OLLAMA_RULES)."""
    state = snapshot.ollama
    if state is None:
        return OllamaHealth()
    down = DOWN not in ignored
    reading = state.sample
    if now > state.overdue_at or reading is None:
        if not snapshot.ollama_expected or not down:
            return OllamaHealth(notes=("Ollama is not being checked",))
        if now <= state.overdue_at and not state.health.consecutive_failures:
            return OllamaHealth(degraded=("Ollama has not been checked yet",), waiting=True)
        why = state.health.error if now <= state.overdue_at else "the collector is stuck"
        return OllamaHealth(broken=(f"Ollama is not checked any more: {why}",))
    if not reading.up:
        return _not_up(reading, now, down)
    degraded: list[str] = []
    if SLOW not in ignored and (reading.rtt_seconds or 0.0) > OLLAMA_SLOW_SECONDS:
        degraded.append(f"Ollama took {reading.rtt_seconds:.1f} s to answer a check")
    if ERRORS not in ignored and reading.log is not None:
        from .log_tally import request_stats

        requests = request_stats(reading.log.spans, now, window)
        if (
            requests.requests >= OLLAMA_ERROR_REQUESTS
            and (requests.error_ratio or 0.0) > OLLAMA_ERROR_RATIO
        ):
            degraded.append(
                f"Ollama failed {requests.failed} of {requests.requests} requests in {window:g} s"
            )
    taken = 0.0
    # The last good reading, for where the numbers of before stand the models did, too.
    gpu = snapshot.gpu.last_good if snapshot.gpu is not None else None
    if ON_CPU not in ignored and gpu is not None and gpu.gpus:
        taken = share_on_cpu(reading.models)
        there = [model for model in reading.models if (model.gpu_ratio or 0.0) < 1.0]
        if taken:
            named = ", ".join(
                f"{model.name} {100 * (1 - (model.gpu_ratio or 0.0)):.0f} %" for model in there[:4]
            )
            degraded.append(f"models sit on the CPU of a host whose GPUs work: {named}")
    return OllamaHealth(degraded=tuple(degraded), share_on_cpu=taken)


def _not_up(reading: OllamaReading, now: float, down: bool) -> OllamaHealth:
    if not reading.expected:
        return OllamaHealth(
            notes=(f"no Ollama answers at {reading.url}, and none is expected here",)
        )
    why = f"Ollama does not answer: {reading.error}"
    if not down:
        return OllamaHealth(notes=(why,))
    if not reading.seen and (now < reading.waits_until or reading.failures < OLLAMA_CHECKS):
        left = max(0.0, reading.waits_until - now)
        return OllamaHealth(
            degraded=(f"{why}; it may be starting, waited for {left:.0f} s more",), waiting=True
        )
    if reading.failures >= OLLAMA_CHECKS:
        return OllamaHealth(broken=(f"{why} ({reading.failures} checks in a row)",))
    return OllamaHealth(notes=(why,))


def answers(state: State[OllamaReading], now: float) -> bool:
    """Whether Ollama answered the last check, and is still being checked."""
    return now <= state.overdue_at and state.sample is not None and state.sample.up


def share_on_cpu(models: Iterable[Model]) -> float:
    """The share of all loaded models' bytes that sits on the CPU, 0 with none loaded."""
    size = on_gpus = 0
    for model in models:
        size += model.size_bytes
        on_gpus += min(model.vram_bytes, model.size_bytes)
    return 1 - on_gpus / size if size else 0.0
