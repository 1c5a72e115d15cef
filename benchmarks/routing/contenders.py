"""Who is compared: each contender's name and how it is built for a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from benchmarks.routing import balancers
from benchmarks.routing.balancers import Balancer, Front
from benchmarks.routing.hosts import Fleet
from benchmarks.routing.sensors import Sensor, Signal

SAMPLE = Signal("newest sample")
MEANS = tuple(Signal(f"mean of {seconds} s", float(seconds)) for seconds in (5, 15, 30, 60))
QUEUE_AWARE = Signal("mean of 15 s, --queue-aware", 15.0, queue_aware=True)
EXACT = Signal("the exact wait", exact=True)
SIGNALS = (SAMPLE, *MEANS, QUEUE_AWARE, EXACT)
AGENT_WINDOWS = (1.0, 15.0, 30.0)  # besides the default


@dataclass(frozen=True)
class Contender:
    """A balancer with its settings. Lowest weight has a signal and an interval, HAProxy a front."""

    key: str
    name: str
    kind: str
    signal: Signal = SAMPLE
    interval: float = 30.0
    front: Optional[Front] = None

    def build(
        self,
        fleet: Fleet,
        found: list[Sensor],
        until: float,
        health: bool = True,
    ) -> Balancer:
        if self.kind == "oracle":
            return balancers.Oracle(fleet)
        if self.kind == "shortest queue":
            return balancers.ShortestQueue(fleet)
        if self.kind == "round robin":
            return balancers.RoundRobin(fleet)
        if self.kind == "lowest weight":
            return balancers.LowestWeight(fleet, found, self.signal, self.interval, until)
        assert self.front is not None
        return balancers.LeastConnections(fleet, found, self.front, until, health)

    @property
    def asks_agents(self) -> bool:
        """Whether it goes by what is told of the hosts."""
        return self.kind == "lowest weight" or (
            self.front is not None and self.front.agent_inter is not None
        )


def _lowest(signal: Signal, interval: float) -> Contender:
    name = f"lowest weight, {interval:g} s poll, {signal.name}"
    return Contender(f"lw{interval:g}-{signal.name}", name, "lowest weight", signal, interval)


ORACLE = Contender("oracle", "oracle: first token soonest", "oracle")
SHORTEST = Contender("shortest", "oracle: shortest queue", "shortest queue")
SHIPPED = Contender(
    "haproxy", "HAProxy as shipped, agent-check every 2 s", "haproxy", front=Front()
)
SHIPPED_5 = Contender(
    "haproxy-5s",
    "HAProxy as shipped, agent-check every 5 s",
    "haproxy",
    front=Front(agent_inter=5.0),
)
NO_AGENT = Contender(
    "haproxy-no-agent",
    "HAProxy as shipped, no agent-check",
    "haproxy",
    front=Front(agent_inter=None),
)
WINDOWS = tuple(
    Contender(
        f"haproxy-window-{window:g}",
        f"HAProxy as shipped, --agent-check-window {window:g}",
        "haproxy",
        front=Front(agent_window=window),
    )
    for window in AGENT_WINDOWS
)
BY_SPEED = Contender(
    "haproxy-by-speed",
    "HAProxy as shipped, `weight` by the GPU's speed",
    "haproxy",
    front=Front(weights_by_speed=True),
)
LEAST = Contender(
    "leastconn",
    "least connections alone",
    "haproxy",
    front=Front(maxconn=False, agent_inter=None),
)
ROUND_ROBIN = Contender("round-robin", "round robin", "round robin")
LOWEST = tuple(_lowest(signal, interval) for interval in (30.0, 5.0) for signal in SIGNALS)
CONTENDERS = (
    ORACLE,
    SHORTEST,
    SHIPPED,
    SHIPPED_5,
    NO_AGENT,
    BY_SPEED,
    *WINDOWS,
    LEAST,
    ROUND_ROBIN,
    *LOWEST,
)
# What tells little more there and takes as long as all the rest.
_NOT_AT_MANY_HOSTS = {one.key for one in WINDOWS} | {
    one.key for one in LOWEST if one.signal not in (MEANS[1], QUEUE_AWARE)
}
MANY_HOSTS = 100


def contenders(hosts: int) -> list[Contender]:
    """Who is compared at so many hosts."""
    return [one for one in CONTENDERS if hosts < MANY_HOSTS or one.key not in _NOT_AT_MANY_HOSTS]
