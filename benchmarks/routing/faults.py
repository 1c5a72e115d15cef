"""Faults: one host of eight breaks, and what the others' requests come to under an agent and an exporter.

A fail-safe agent notices after as many checks as the real one takes. A plain exporter tells psutil's and
NVML's numbers as they are: those of a dead host fall to idle, and a refused connection is a fast answer.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Generator
from dataclasses import dataclass
from typing import Callable

import simpy
from simpy.events import Event

from benchmarks.routing.balancers import Front
from benchmarks.routing.cells import arrivals
from benchmarks.routing.contenders import MEANS, Contender
from benchmarks.routing.hosts import Fleet, Host
from benchmarks.routing.sensors import SAMPLE_SECONDS, Sensor, sensors
from benchmarks.routing.workload import SLOTS, Place, requests

HOSTS, LOAD = 8, 0.70
REPLICATIONS = {
    "dead": 40
}  # a host that is nobody's target at its death loses little: many are needed
OTHER_REPLICATIONS = 16
FAULT_AT, FAULT_SECONDS = 300.0, 600.0  # the first is put off by up to a poll's interval
# Ollama is checked every 5 s, a failing one every second; three failures in a row are a dead one.
CHECK_SECONDS, RECHECK_SECONDS, CHECKS = 5.0, 1.0, 3
# A drained host's Ollama is stopped so much later, and stays away.
DRAIN_SECONDS = 300.0
CPU_SPEED = 0.05  # of a host that works without its GPU, over the same with it
FOREIGN_SPEED = 0.25  # of a host whose GPU works for somebody else, too

MEAN_15 = MEANS[1]


@dataclass(frozen=True)
class Fault:
    """What happens to a host, and after how many seconds a fail-safe agent tells of it (None: never)."""

    key: str
    name: str
    strike: Callable[[Host, Sensor], None]
    noticed_after: Callable[[float, Sensor], float]
    drains: bool = False


def _checks(now: float, sensor: Sensor) -> float:
    """From a death to the third check that fails."""
    return (sensor.check_phase - now) % CHECK_SECONDS + (CHECKS - 1) * RECHECK_SECONDS


def _samples(now: float, _sensor: Sensor) -> float:
    """To the third reading that fails."""
    return (
        math.floor(now / SAMPLE_SECONDS + 1) * SAMPLE_SECONDS - now + (CHECKS - 1) * SAMPLE_SECONDS
    )


def _next_sample(now: float, _sensor: Sensor) -> float:
    return math.floor(now / SAMPLE_SECONDS + 1) * SAMPLE_SECONDS - now


def _never(_now: float, _sensor: Sensor) -> float:
    return math.inf


def _die(host: Host, _sensor: Sensor) -> None:
    host.die()


def _lose_gpu(host: Host, sensor: Sensor) -> None:
    sensor.gpu_lost = True
    host.lose_running()
    host.change_speed(CPU_SPEED)


def _hang(_host: Host, sensor: Sensor) -> None:
    sensor.hung = True


def _overload(host: Host, sensor: Sensor) -> None:
    sensor.foreign_load = True
    host.change_speed(FOREIGN_SPEED)


def _nothing(_host: Host, _sensor: Sensor) -> None:
    """What follows is the operator's."""


FAULTS = (
    Fault("dead", "Ollama dies", _die, _checks),
    Fault("gpu", "the GPU is lost, Ollama goes on with the CPU", _lose_gpu, _samples),
    Fault("hang", "the agent's sampler hangs, Ollama is well", _hang, _samples),
    Fault(
        "drain", "the host is drained, and stopped 5 minutes later", _nothing, _next_sample, True
    ),
    Fault("overload", "somebody else's work takes 3/4 of the GPU", _overload, _never),
)


@dataclass(frozen=True)
class Setup:
    """A balancer, and whether the agents that it asks are fail-safe ones."""

    key: str
    name: str
    contender: Contender
    fail_safe: bool


def _lowest(interval: float, fail_safe: bool) -> Setup:
    who = "fail-safe agent" if fail_safe else "plain exporter"
    name = f"lowest weight, {interval:g} s poll"
    contender = Contender("", name, "lowest weight", MEAN_15, interval)
    return Setup(f"lw{interval:g}-{fail_safe}", f"{name}, {who}", contender, fail_safe)


def _haproxy(key: str, name: str, front: Front, fail_safe: bool) -> Setup:
    return Setup(key, name, Contender(key, name, "haproxy", front=front), fail_safe)


SETUPS = (
    _lowest(30.0, fail_safe=False),
    _lowest(30.0, fail_safe=True),
    _lowest(5.0, fail_safe=False),
    _lowest(5.0, fail_safe=True),
    _haproxy(
        "plain",
        "leastconn, plain exporter's numbers as weights, no checks, no redispatch",
        Front(check=False, redispatch=False, breaker=False),
        fail_safe=False,
    ),
    _haproxy(
        "fenced",
        "the same with a fail-safe agent",
        Front(check=False, redispatch=False, breaker=False),
        fail_safe=True,
    ),
    _haproxy(
        "unfenced",
        "HAProxy as shipped, but for the agent",
        Front(agent_inter=None),
        fail_safe=False,
    ),
    _haproxy("shipped", "HAProxy as shipped, fail-safe agent", Front(), fail_safe=True),
)


@dataclass(frozen=True)
class Outcome:
    """What became of the requests that came from the fault on."""

    requests: int
    sent: int  # offered to the broken host after the fault, at the first try or a later one
    lost: int  # ended with an error, of those that came or were placed after the fault
    lost_running: int  # ended with an error because they were there when it broke
    served: int  # got a first token, of those that came after the fault
    mean: float  # seconds to it, of the same
    late: int  # waited longer than a minute for it, of the same


def run(fault: Fault, setup: Setup, replication: int) -> Outcome:
    """One replication: the same requests, host and moment for every setup."""
    seed = f"fault {fault.key} {replication}"
    draw = random.Random(seed)
    at = FAULT_AT + draw.uniform(0.0, 30.0)
    place = Place(HOSTS, LOAD, at + FAULT_SECONDS)
    env = simpy.Environment()
    fleet = Fleet(env, place.speeds, SLOTS)
    told = sensors(fleet, seed, place.seconds, setup.fail_safe)
    balancer = setup.contender.build(fleet, told, place.seconds)
    broken = replication % HOSTS
    host, sensor = fleet.hosts[broken], told[broken]

    def happen() -> Generator[Event, None, None]:
        yield env.timeout(at)
        host.offered = set()
        fault.strike(host, sensor)
        after = fault.noticed_after(env.now, sensor)
        if setup.fail_safe and after < math.inf:
            yield env.timeout(after)
            sensor.failing, sensor.draining = not fault.drains, fault.drains
        if fault.drains:
            yield env.timeout(at + DRAIN_SECONDS - env.now)
            host.die()

    env.process(happen())
    arrived = requests(place, seed)
    arrivals(env, balancer, arrived)
    env.run()

    later = [one for one in arrived if one.arrived >= at]
    served = [one.first - one.arrived for one in later if not one.lost and one.first == one.first]
    lost = [one for one in arrived if one.lost]
    running = sum(1 for one in lost if one.placed < at)
    return Outcome(
        requests=len(later),
        sent=len(host.offered or ()),
        lost=len(lost) - running,
        lost_running=running,
        served=len(served),
        mean=statistics.fmean(served) if served else math.nan,
        late=sum(1 for wait in served if wait > 60.0),
    )
