"""A cell: one number of hosts at one load. A run is one balancer over one replication of it."""

from __future__ import annotations

import statistics
from collections.abc import Generator
from dataclasses import dataclass

import simpy
from simpy.events import Event

from benchmarks.routing.balancers import Balancer
from benchmarks.routing.contenders import Contender
from benchmarks.routing.hosts import Fleet
from benchmarks.routing.sensors import sensors
from benchmarks.routing.workload import SLOTS, Place, Request, requests

LOADS = (0.50, 0.70, 0.85)
# Hosts -> replications and seconds of arrivals in each, the first 300 of which do not count.
SIZES = {4: (12, 2100.0), 32: (8, 1200.0), 256: (4, 700.0)}


@dataclass(frozen=True)
class Run:
    """What one replication came to."""

    requests: int
    mean: float  # seconds to the first token
    p99: float
    queued: float  # seconds to a slot, mean
    overtaxed: float  # share given to a full host while another had a free slot
    refusable: (
        float  # share that came upon 512 others in the queue, where Ollama and HAProxy answer 503
    )
    longest_queue: int  # before HAProxy's servers, at any time


def run(contender: Contender, place: Place, seed: str) -> Run:
    """The same seed gives every contender the same requests, hosts and noise."""
    env = simpy.Environment()
    fleet = Fleet(env, place.speeds, SLOTS)
    told = sensors(fleet, seed, place.seconds) if contender.asks_agents else []
    balancer = contender.build(fleet, told, place.seconds, health=False)
    arrived = requests(place, seed)
    arrivals(env, balancer, arrived)
    env.run()
    counted = [one for one in arrived if one.arrived >= place.warmup]
    return summary(counted, getattr(balancer, "longest_queue", 0))


def arrivals(env: simpy.Environment, balancer: Balancer, arrived: list[Request]) -> None:
    """Has each request come at its time."""

    def process() -> Generator[Event, None, None]:
        for request in arrived:
            yield env.timeout(max(0.0, request.arrived - env.now))
            balancer.place(request)

    env.process(process())


def summary(counted: list[Request], longest_queue: int = 0) -> Run:
    waits = sorted(one.first - one.arrived for one in counted)
    return Run(
        requests=len(waits),
        mean=statistics.fmean(waits),
        p99=waits[int(0.99 * (len(waits) - 1))],
        queued=statistics.fmean(one.started - one.arrived for one in counted),
        overtaxed=statistics.fmean(one.overtaxed for one in counted),
        refusable=statistics.fmean(one.refusable for one in counted),
        longest_queue=longest_queue,
    )
