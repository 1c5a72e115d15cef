"""What a balancer must be told, and why: a pure function of a snapshot, a policy and the clock.

The rule behind all of it: whatever is broken looks idle, and the lowest weight wins; so whatever is
broken must look busy. This is the only place where what a balancer gets (`Balance`) parts from what
was measured; Prometheus gets what was measured.

    what                                            status     the five balancer fields, policy `pessimistic`
    ----------------------------------------------  ---------  ------------------------------------------------------
    CPU and RAM not read, or for 3 intervals        failing    100, 100, max(1, GPUs expected), 100, 100
    no GPU answers where GPUs are expected          failing    the same
    the driver is there and fails, hangs, or names
    no GPU                                          failing    the same, also where no GPU was ever seen
    Ollama is expected and has not answered three
    checks in a row, or is not checked any more     failing    the same, under `last-good`, too
    Ollama is expected, has not answered since the
    agent started, and may still be booting         degraded   as saturated: the weight just below 500
    the operator has drained the host               draining   as failing; a host that is both is failing
    some GPUs lost                                  degraded   as measured, each lost GPU counting as 100 and 100
    GPUs work and models sit on the CPU             degraded   as measured, the GPUs' headroom less the models' share
                                                               on the CPU: 100 and 100 where all of it is there
    Ollama is slow, or answers with errors          degraded   as measured
    a reading that a GPU does not report            ok         a stand-in, named in the reasons (`_stand_ins`)
    no GPU expected and no driver                   ok         CPU and RAM alone, gpu_count 0
    no Ollama expected and none there               ok         as measured, with a reason that says so
    all is well                                     ok         as measured, the weight below 500 in any case

Policy `error` gives the same numbers, and the server answers 503 with them; `last-good` gives the
last numbers that were good for at most two minutes, then the pessimistic ones. Not so for a dead
Ollama: its host's numbers are fresh, and idle. What is said of Ollama is judged in `ollama_health.py`.
"""

from __future__ import annotations

from dataclasses import field, replace

from .frozen import dataclass
from .metrics import gauge, state
from .ollama_health import OllamaHealth, judge_ollama
from .policy import LAST_GOOD, LAST_GOOD_SECONDS
from .weight import (
    DEFAULT,
    PESSIMISTIC_BALANCE,
    SATURATED_BALANCE,
    Balance,
    Weighting,
    bounded,
    with_queue,
)
from .window import stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any, Optional

    from .gpu import GpuReading, GpuSample
    from .host import HostSample
    from .ollama import OllamaReading
    from .snapshot import Snapshot, State
    from .window import Stat

OK, DEGRADED, FAILING, DRAINING = "ok", "degraded", "failing", "draining"
# Whose host is to get no request.
OUT_OF_ROTATION = (FAILING, DRAINING)
# A stand-in for what is not reported is never 0: nothing known is not the same as nothing to do.
_LEAST_STAND_IN = 0.01


@dataclass(frozen=True)
class Verdict:
    """What is told of a host.

    `drained`: the operator wants it so, whatever else is the matter. `waiting`: nothing is to come before
    its Ollama has answered.

    `age_seconds` is the age of the oldest reading behind the numbers, `timestamp` its Unix time
    (None before any). `kept` tells that the numbers are the last good ones of a failing host.
    """

    PREFIX = "ollama_host"
    LABELS = ()

    status: str = state(
        "The agent's verdict on the host: 1 for the one that holds.",
        (OK, DEGRADED, FAILING, DRAINING),
    )
    gpu_devices: int = gauge("GPUs that answer.")
    gpu_devices_expected: int = gauge("GPUs that the host should have, by setting or by memory.")
    reasons: tuple[str, ...] = ()
    balance: Balance = PESSIMISTIC_BALANCE
    components: Mapping[str, float] = field(default_factory=dict)
    kept: bool = False
    drained: bool = False
    waiting: bool = False
    age_seconds: Optional[float] = None
    timestamp: Optional[float] = None
    weight: float = gauge(
        "What a balancer weighs the host by: the lowest gets the next request, a failing or draining host the highest."
    )
    load_ratio: float = gauge(
        "The weight over the most that a host of this kind can have.", json="load"
    )

    @property
    def summary(self) -> str:
        """A line for a person: `ok, weight 43.5`, or `failing, weight 500: GPU 0 ... is lost`."""
        why = "; ".join(self.reasons)
        return f"{self.status}, weight {self.weight:g}{why and ': '}{why}"


def judge(
    snapshot: Snapshot,
    window: float,
    on_failure: str,
    now: float,
    ignored: Collection[str] = (),
    weighting: Weighting = DEFAULT,
    queue_aware: bool = False,
) -> Verdict:
    """The verdict at monotonic time `now`, utilization averaged over the last `window` seconds.

    `ignored` are the rules about Ollama that do not count (policy.OLLAMA_RULES). `queue_aware` has the
    requests in flight in the GPUs' utilization.
    """
    host, gpu = snapshot.host, snapshot.gpu
    ollama = judge_ollama(snapshot, window, now, ignored)
    unmeasured = _host_trouble(host, now) + _gpu_trouble(snapshot, now)
    broken = unmeasured + ollama.broken
    reading: Optional[GpuReading] = gpu.sample if gpu is not None else None
    present = len(reading.gpus) if reading is not None else 0
    known: Optional[GpuReading] = gpu.last_good if gpu is not None else None
    expected = max(snapshot.gpus_expected, known.enumerated if known is not None else 0)
    # The age of an answer is that of the oldest reading that it rests on.
    read = [(s.read_at, s.read_timestamp) for s in _relied_on(snapshot) if s.read_at is not None]
    read_at, timestamp = min(read) if read else (None, None)
    age = max(0.0, now - read_at) if read_at is not None else None
    lost: tuple[str, ...] = ()
    if reading is not None and present < expected and not broken:
        named = (
            "; ".join(f"{one.label}: {one.reason}" for one in reading.lost[:4])
            or "not named by the driver"
        )
        lost = (
            f"{expected - present} of {expected} GPUs lost ({named}); {snapshot.gpus_expected_by}",
        )

    queue: Optional[OllamaReading] = snapshot.ollama.sample if snapshot.ollama is not None else None
    in_flight = queue.active_requests if queue is not None else None
    drained = () if snapshot.drain is None else (snapshot.drain.sentence,)

    def measured() -> tuple[Balance, tuple[str, ...]]:
        balance, notes = _measured(host, gpu, expected, window, ollama)
        return (with_queue(balance, in_flight, _slots(queue)) if queue_aware else balance), notes

    def verdict(status: str, reasons: tuple[str, ...], balance: Balance, kept: bool) -> Verdict:
        out = status in OUT_OF_ROTATION and not kept
        weight = weighting.weight(balance, in_flight, out)
        load = weighting.load(balance, in_flight, out)
        if ollama.waiting and not out:
            weight, load = weighting.saturated, 1.0
        return Verdict(
            status=status,
            gpu_devices=present,
            gpu_devices_expected=expected,
            reasons=reasons,
            balance=balance,
            components=weighting.components(balance, in_flight),
            kept=kept,
            drained=bool(drained),
            age_seconds=age,
            timestamp=timestamp,
            waiting=ollama.waiting,
            weight=weight,
            load_ratio=load,
        )

    if not broken and host.sample is not None:
        balance, notes = measured()
        if reading is not None and reading.absence and not expected:
            notes = (f"no GPU: {reading.absence}", *notes)
        if in_flight is None and (queue_aware or weighting.in_flight):
            notes = (*notes, "requests in flight are not known, and count as any number of them")
        if ollama.waiting:
            balance = replace(SATURATED_BALANCE, gpu_count=max(1, balance.gpu_count))
        worse = lost + ollama.degraded
        if snapshot.drain is not None:
            drained_balance = replace(PESSIMISTIC_BALANCE, gpu_count=max(1, balance.gpu_count))
            return verdict(DRAINING, drained + worse, drained_balance, kept=False)
        reasons = (*worse, *notes, *ollama.notes)
        return verdict(DEGRADED if worse else OK, reasons, balance, kept=False)
    if (
        on_failure == LAST_GOOD
        and not ollama.broken
        and not ollama.waiting
        and not drained
        and _was_good(snapshot)
        and age is not None
        and age <= LAST_GOOD_SECONDS
    ):
        balance, _ = measured()
        reasons = (*broken, f"the numbers are {age:.0f} s old")
        return verdict(FAILING, reasons, balance, kept=True)
    worst = replace(PESSIMISTIC_BALANCE, gpu_count=max(1, expected))
    return verdict(FAILING, broken + drained, worst, kept=False)


def _relied_on(snapshot: Snapshot) -> tuple[State[Any], ...]:
    """The states whose readings an answer rests on; not GPUs where none was ever seen."""
    if snapshot.gpu is None or (
        snapshot.gpu.last_good is not None and snapshot.gpu.last_good.absence
    ):
        return (snapshot.host,)
    return snapshot.host, snapshot.gpu


def _was_good(snapshot: Snapshot) -> bool:
    """Whether there are last good numbers: a driver that fails now must have shown its GPUs before."""
    host, gpu = snapshot.host, snapshot.gpu
    if host.last_good is None or gpu is None:
        return host.last_good is not None
    return gpu.last_good is not None and (gpu.sample is not None or not gpu.last_good.absence)


def _host_trouble(host: State[HostSample], now: float) -> tuple[str, ...]:
    if now > host.overdue_at:
        return (f"CPU and RAM have not been read for {_since(host, now)}: the sampler is stuck",)
    if host.sample is None:
        return (f"CPU and RAM cannot be read: {host.health.error}",)
    return ()


def _gpu_trouble(snapshot: Snapshot, now: float) -> tuple[str, ...]:
    """Why the GPUs cannot be weighed at all; losing some of them is not that."""
    gpu = snapshot.gpu
    if gpu is None:
        return ()
    expected = snapshot.gpus_expected
    should = f"; {expected} expected, {snapshot.gpus_expected_by}" if expected else ""
    if now > gpu.overdue_at:
        # No word of how to expect fewer: a hang is no card that was taken out.
        return (f"the GPUs have not been read for {_since(gpu, now)}: a driver call hangs",)
    if gpu.sample is None:
        if gpu.health.consecutive_failures == 0:
            # The first cycle is still under way. It is bound to end or to be overdue; until then
            # nothing is known.
            return (f"the GPUs have not been read yet{should}",)
        return (f"the GPUs cannot be read: {gpu.health.error}{should}",)
    return ()


def _since(state: State[Any], now: float) -> str:
    return (
        f"{now - state.read_at:.0f} s" if state.read_at is not None else "as long as the agent runs"
    )


def _measured(
    host: State[HostSample],
    gpu: Optional[State[GpuReading]],
    expected: int,
    window: float,
    ollama: OllamaHealth,
) -> tuple[Balance, tuple[str, ...]]:
    """The fields out of the last good readings, and the stand-ins that were needed.

    Utilization is the mean over the window; memory is as last read: it is a level, not a noise, and
    a model that has just been loaded is there in full.
    """
    sample = host.last_good
    assert sample is not None
    cpu = stats(host.ring, window)[""][0].mean
    cpu = sample.cpu_ratio if cpu is None else cpu
    notes: list[str] = []
    utilization: list[float] = []
    memory: list[float] = []
    if gpu is not None and gpu.last_good is not None:
        over_window = stats(gpu.ring, window)
        for one in gpu.last_good.gpus:
            used, full, note = _stand_ins(one, over_window.get(one.uuid), cpu)
            utilization.append(used)
            memory.append(full)
            if note:
                notes.append(note)
    # What models have on the CPU, GPUs do not serve: so much less of them is to be had.
    taken = ollama.share_on_cpu
    utilization = [used + (1 - used) * taken for used in utilization]
    memory = [full + (1 - full) * taken for full in memory]
    count = max(expected, len(utilization))
    lost = count - len(utilization)
    balance = Balance(
        cpu_percent=_percent(cpu),
        ram_percent=_percent(sample.memory_used_ratio),
        gpu_count=count,
        gpu_avg_utilization_percent=_percent((sum(utilization) + lost) / count) if count else 0.0,
        gpu_avg_memory_percent=_percent((sum(memory) + lost) / count) if count else 0.0,
    )
    return bounded(balance), tuple(notes)


def _slots(reading: Optional[OllamaReading]) -> Optional[int]:
    """How many requests Ollama serves at once, as far as its runners tell."""
    if reading is None:
        return None
    parallel = sum(runner.parallel or 0 for runner in reading.runners or ())
    return reading.slots or parallel or None


def _stand_ins(
    gpu: GpuSample, levels: Optional[tuple[Stat, ...]], cpu: float
) -> tuple[float, float, str]:
    """A GPU's utilization and memory as ratios; what it does not report is replaced by what is known of it.

    Utilization (not reported in MIG mode): power draw over its limit, else memory in use, else the
    CPU. Memory (not reported by parts that use the host's RAM, which is counted already): that of
    the MIG instances, else utilization or its stand-in, so that the weight keeps its range and RAM
    is not counted twice.
    """
    utilization, power = (
        (levels[0].mean, levels[2].mean) if levels else (gpu.utilization_ratio, gpu.power_ratio)
    )
    memory = gpu.memory_used_ratio
    instances = gpu.mig_instances
    if any(not one.memory_total_bytes or one.memory_used_bytes is None for one in instances):
        instances = ()  # the sum of those that can be read would be a guess
    notes = []
    if memory is None and instances:
        memory = sum(one.memory_used_bytes or 0 for one in instances) / sum(
            one.memory_total_bytes or 0 for one in instances
        )
        notes.append("the memory of its MIG instances stands in for its own")
    if utilization is None:
        for level, name in ((power, "power draw"), (memory, "memory in use"), (cpu, "the CPU")):
            if level is not None:
                utilization = max(_LEAST_STAND_IN, level)
                notes.append(f"{name} stands in for utilization")
                break
    assert utilization is not None
    if memory is None:
        memory = max(_LEAST_STAND_IN, utilization)
        notes.append("utilization stands in for memory")
    why = (
        "in MIG mode"
        if gpu.mig_enabled
        else "it uses the host's RAM"
        if gpu.unified_memory
        else "not reported"
    )
    return utilization, memory, f"GPU {gpu.index}: {', '.join(notes)} ({why})" if notes else ""


def _percent(ratio: float) -> float:
    return round(100 * min(1.0, max(0.0, ratio)), 1)
