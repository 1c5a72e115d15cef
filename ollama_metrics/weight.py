"""The weight that a balancer gives a host, of what it is made, and the load that unlike hosts are compared by.

Pure functions of a `Balance`, the five fields that a balancer reads. With the coefficients that are
the default the weight is the AIConnect-style balancer's own: it computes it from the fields itself, so
other coefficients and a capacity only count for readers of `weight`.
"""

from __future__ import annotations

from dataclasses import replace

from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

# What a host that works, or may yet, stays below the weight of a failing one by.
_LEAST_DISTANCE = 0.1
# The weight of a failing host at the balancer's own coefficients, and never less: hosts of a pool may
# have unlike ones.
_HIGHEST = 500.0


@dataclass(frozen=True)
class Balance:
    """The five fields that a balancer reads, by their JSON keys: percent with one decimal and an integer.

    Source: the balancer's own decoding, which fails on a float count and on anything that is not a
    number.
    """

    cpu_percent: float
    ram_percent: float
    gpu_count: int
    gpu_avg_utilization_percent: float
    gpu_avg_memory_percent: float

    @property
    def weight(self) -> float:
        """The balancer's own formula over these fields: 0 to 500, to 200 without GPUs; the lowest wins."""
        return DEFAULT.total(self)


# What a host gets of which nothing is known.
PESSIMISTIC_BALANCE = Balance(100.0, 100.0, 1, 100.0, 100.0)
# What a host gets at most that is not dead.
SATURATED_BALANCE = Balance(99.9, 100.0, 1, 100.0, 100.0)


@dataclass(frozen=True)
class Weighting:
    """How much each field counts, per percent, and each request in flight; `capacity` divides the sum."""

    cpu: float = 1.0
    ram: float = 1.0
    gpu_util: float = 1.5
    gpu_mem: float = 1.5
    in_flight: float = 0.0
    capacity: float = 1.0

    @property
    def highest(self) -> float:
        """The weight of a failing host, which no other reaches: 500, or more with larger coefficients."""
        return max(_HIGHEST, round(100 * (self.cpu + self.ram + self.gpu_util + self.gpu_mem), 2))

    @property
    def saturated(self) -> float:
        """The highest weight of a host that is not broken."""
        return round(self.highest - _LEAST_DISTANCE, 2)

    def components(self, balance: Balance, in_flight: Optional[int] = 0) -> dict[str, float]:
        """What each field adds to the weight, before capacity and bound; an unknown in-flight count nothing."""
        gpus = balance.gpu_count > 0
        return {
            "cpu": round(self.cpu * balance.cpu_percent, 2),
            "ram": round(self.ram * balance.ram_percent, 2),
            "gpu_util": round(self.gpu_util * balance.gpu_avg_utilization_percent * gpus, 2),
            "gpu_mem": round(self.gpu_mem * balance.gpu_avg_memory_percent * gpus, 2),
            "in_flight": round(self.in_flight * (in_flight or 0), 2),
        }

    def total(self, balance: Balance, in_flight: Optional[int] = 0) -> float:
        """The sum of the components."""
        return round(sum(self.components(balance, in_flight).values()), 2)

    def weight(self, balance: Balance, in_flight: Optional[int], broken: bool) -> float:
        """0 to `highest`; the lowest wins. A broken host has the highest, whatever its capacity.

        Where requests in flight count and are not known, it is just below: what is not known is not idle.
        """
        if broken:
            return self.highest
        if in_flight is None and self.in_flight:
            return self.saturated
        total = self.total(balance, in_flight) / self.capacity
        return round(min(total, self.saturated), 2)

    def load(self, balance: Balance, in_flight: Optional[int], broken: bool) -> float:
        """The share (0-1) of the most that this kind of host can weigh, with GPUs or without.

        Capacity plays no part: it is how much a host can do, and this how much of that is taken.
        """
        if broken:
            return 1.0
        most = self.cpu + self.ram
        if balance.gpu_count > 0:
            most += self.gpu_util + self.gpu_mem
        return round(min(1.0, self.total(balance, in_flight) / (100 * most)), 4)


DEFAULT = Weighting()
COEFFICIENTS = ("cpu", "ram", "gpu_util", "gpu_mem", "in_flight")


def bounded(balance: Balance) -> Balance:
    """The same, but for a host as busy as a dead one: saturated is not dead, and stays below."""
    if balance.weight < DEFAULT.highest:
        return balance
    return replace(SATURATED_BALANCE, gpu_count=balance.gpu_count)


def queue_share(in_flight: int, slots: int) -> float:
    """How much of a host its queue takes, 0 to just below 1: a half when as many wait or run as it has slots.

    Bounded, so that no queue makes a host look dead, and rising all the way, so that of two queues the
    longer one is always worse.
    """
    return in_flight / (in_flight + max(1, slots))


def with_queue(balance: Balance, in_flight: Optional[int], slots: Optional[int]) -> Balance:
    """`balance` with the queue in its GPU utilization: half of that field is the utilization's, half the queue's.

    Of two hosts whose GPUs are full, the one with the shorter queue is the lighter one. On a host without
    GPUs, whose utilization no balancer reads, the CPU's field is shared so. An unknown count is as bad
    as any queue: what is not known is not idle.
    """
    share = queue_share(in_flight, slots or 1) if in_flight is not None else 1.0
    if balance.gpu_count > 0:
        used = balance.gpu_avg_utilization_percent
        return bounded(replace(balance, gpu_avg_utilization_percent=_halved(used, share)))
    return bounded(replace(balance, cpu_percent=_halved(balance.cpu_percent, share)))


def _halved(percent: float, share: float) -> float:
    return round(percent / 2 + 50 * share, 1)
