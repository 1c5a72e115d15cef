"""What is told of a host: its readings, modelled, and what the agent's own code makes of them.

Imported and not rewritten: the ring and its means (window.py), the weight, its bound and the queue's part in
it (weight.py), HAProxy's line (agent_check.py).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from benchmarks.routing.hosts import Fleet, Host, every
from ollama_metrics import agent_check, weight, window
from ollama_metrics.verdict import DRAINING, FAILING, OK, Verdict

SAMPLE_SECONDS = 1.0  # the agent's interval
NOISE = 0.05  # standard deviation of a reading of utilization
MODEL_MEMORY = (0.55, 0.70, 0.85)  # what the loaded model takes of the GPU
IDLE_MEMORY = 0.02


@dataclass(frozen=True)
class Signal:
    """What lowest weight goes by. A window of one interval is the newest reading alone."""

    name: str
    window: float = SAMPLE_SECONDS
    queue_aware: bool = False
    exact: bool = False


class Sensor:
    """The agent or exporter of one host. A fail-safe one tells of what it has noticed; a plain one of numbers."""

    def __init__(self, host: Host, draw: random.Random, fail_safe: bool) -> None:
        self.host = host
        self.fail_safe = fail_safe
        self.check_phase = draw.uniform(0.0, 5.0)  # of the checks of Ollama
        # What is wrong with the host, set by faults.py.
        self.gpu_lost = False
        self.foreign_load = False
        self.hung = False
        self.failing = self.draining = False  # as the agent has noticed
        self._ram = draw.uniform(0.25, 0.50)
        self._memory = draw.choice(MODEL_MEMORY)
        self._idle_cpu = draw.uniform(0.02, 0.08)
        self._ring: tuple[window.Span, ...] = ()
        self._fresh: list[tuple[float, float, float]] = []  # read, but not asked for yet
        self._headroom = agent_check.Headroom()

    @property
    def out(self) -> bool:
        """Whether the agent wants no requests for its host, as far as it has noticed."""
        return self.failing or self.draining

    def sample(self, now: float, noise: float) -> None:
        """One reading. A sampler that hangs leaves what was read before."""
        if self.hung:
            return
        busy = self.host.busy / self.host.slots
        cpu = self._idle_cpu + 0.12 * busy
        used = 1.0 if self.foreign_load else min(1.0, max(0.0, busy + NOISE * noise))
        if self.gpu_lost and busy:
            cpu, used = 1.0, 0.0  # the CPU does the GPU's work
        self._fresh.append((now, cpu, used))

    def balance(self, signal: Signal) -> weight.Balance:
        """The five fields of a host that is not noticed to be broken."""
        # Those before the window would be in no mean, so the ring is spared them.
        for now, cpu, used in self._fresh[-math.ceil(signal.window / SAMPLE_SECONDS) - 1 :]:
            levels = {"cpu": (cpu,), "gpu": (used,)}
            self._ring = window.add(self._ring, window.Span(now - SAMPLE_SECONDS, now, levels))
        self._fresh.clear()
        means = window.stats(self._ring, signal.window)
        cpu, used = (means[name][0].mean or 0.0 if means else 0.0 for name in ("cpu", "gpu"))
        memory = 0.97 if self.foreign_load else self._memory if self.host.up else IDLE_MEMORY
        gone = self.gpu_lost
        measured = weight.Balance(
            cpu_percent=round(100 * cpu, 1),
            ram_percent=round(100 * self._ram, 1),
            gpu_count=0 if gone else 1,
            gpu_avg_utilization_percent=0.0 if gone else round(100 * used, 1),
            gpu_avg_memory_percent=0.0 if gone else round(100 * memory, 1),
        )
        if signal.queue_aware:
            return weight.with_queue(measured, self.host.in_flight, self.host.slots)
        return weight.bounded(measured)

    def weight(self, signal: Signal) -> float:
        """What lowest weight computes from the five fields."""
        if self.out:
            return weight.PESSIMISTIC_BALANCE.weight
        if signal.exact:
            wait = self.host.expected_wait(self.host.env.now, 0.0)
            return wait if math.isfinite(wait) else weight.PESSIMISTIC_BALANCE.weight
        return self.balance(signal).weight

    def line(self, signal: Signal) -> str:
        """What HAProxy's agent-check reads."""
        balance = self.balance(signal)
        status = FAILING if self.failing else DRAINING if self.draining else OK
        verdict = Verdict(
            status=status,
            gpu_devices=balance.gpu_count,
            gpu_devices_expected=balance.gpu_count,
            balance=balance,
            weight=balance.weight,
            load_ratio=weight.DEFAULT.load(balance, None, status != OK),
            drained=self.draining,
        )
        return agent_check.line(verdict, self._headroom).decode("ascii")


def sensors(fleet: Fleet, seed: str, until: float, fail_safe: bool = True) -> list[Sensor]:
    """One for each host; traits and noise are the same for every balancer that gets this seed."""
    draw = random.Random(f"traits {seed}")
    found = [Sensor(host, draw, fail_safe) for host in fleet.hosts]
    noise = random.Random(f"noise {seed}")

    def tick(now: float) -> None:
        for sensor in found:
            sensor.sample(now, noise.gauss(0.0, 1.0))

    every(fleet.env, SAMPLE_SECONDS, SAMPLE_SECONDS, until, tick)
    return found
