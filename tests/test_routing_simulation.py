"""The simulation of balancers: it agrees with what theory knows, repeats itself, and shows what it is there for."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from ollama_metrics.config import Config

simpy = pytest.importorskip("simpy")

from benchmarks.routing import balancers, cells, faults  # noqa: E402
from benchmarks.routing.balancers import Front, LeastConnections  # noqa: E402
from benchmarks.routing.contenders import (  # noqa: E402
    CONTENDERS,
    LEAST,
    LOWEST,
    ORACLE,
    ROUND_ROBIN,
    SHIPPED,
)
from benchmarks.routing.faults import FAULTS, SETUPS  # noqa: E402
from benchmarks.routing.hosts import Fleet, Host  # noqa: E402
from benchmarks.routing.plots import Series, dots  # noqa: E402
from benchmarks.routing.workload import Place, Request, requests  # noqa: E402

SMALL = Place(hosts=4, load=0.7, seconds=900.0)


def constant(_busy: int) -> float:
    return 1.0


def poisson(count: int, rate: float, mean: float) -> list[Request]:
    """Arrivals without bursts, exponential work: what M/M/c is about."""
    draw = random.Random("Erlang")
    now, found = 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        found.append(Request(now, 0.0, draw.expovariate(1.0 / mean)))
    return found


def erlang_wait(arrived: list[Request], servers: int) -> float:
    """The mean wait in M/M/c by Erlang's C formula, of the arrivals' own rate and mean work."""
    mean = sum(one.token_work for one in arrived) / len(arrived)
    offered = len(arrived) / arrived[-1].arrived * mean
    below = sum(offered**k / math.factorial(k) for k in range(servers))
    full = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return full / (below + full) * mean / (servers - offered)


def test_a_host_is_an_m_m_c_queue() -> None:
    """With slots that do not slow each other down, the mean wait is Erlang's, within 5 %."""
    slots = 4
    env = simpy.Environment()
    fleet = Fleet(env, [], slots)
    host = Host(fleet, 0, 1.0, slots, constant)
    fleet.hosts, fleet.with_room = [host], 1
    arrived = poisson(40_000, 0.7, 4.0)
    balancer = LeastConnections(
        fleet, [], Front(maxconn=False, agent_inter=None), 0.0, health=False
    )
    cells.arrivals(env, balancer, arrived)
    env.run()
    measured = sum(one.started - one.arrived for one in arrived) / len(arrived)
    assert measured == pytest.approx(erlang_wait(arrived, slots), rel=0.05)


def test_one_queue_before_several_hosts_is_an_m_m_c_queue() -> None:
    """HAProxy's maxconn with one queue makes 4 hosts of 1 slot what 1 host of 4 slots is."""
    env = simpy.Environment()
    fleet = Fleet(env, [1.0] * 4, 1)
    arrived = poisson(40_000, 0.7, 4.0)
    balancer = LeastConnections(fleet, [], Front(agent_inter=None), 0.0, health=False)
    cells.arrivals(env, balancer, arrived)
    env.run()
    measured = sum(one.started - one.arrived for one in arrived) / len(arrived)
    assert measured == pytest.approx(erlang_wait(arrived, 4), rel=0.05)


def test_littles_law() -> None:
    """The mean number of requests in a host is the rate of arrivals times their mean time in it."""
    env = simpy.Environment()
    fleet = Fleet(env, [1.0], 4)
    host = fleet.hosts[0]
    arrived = poisson(20_000, 0.25, 6.0)
    ended: dict[int, float] = {}
    area, changed, inside = 0.0, 0.0, 0

    def count(by: int) -> None:
        nonlocal area, changed, inside
        area += inside * (env.now - changed)
        changed, inside = env.now, inside + by

    def done(_host: Host, request: Request) -> None:
        count(-1)
        ended[id(request)] = env.now

    class Counting:
        def place(self, request: Request) -> None:
            count(1)
            host.accept(request)

    host.on_done = done
    cells.arrivals(env, Counting(), arrived)
    env.run()
    times = [ended[id(one)] - one.arrived for one in arrived]
    assert host.in_flight == 0
    assert area == pytest.approx(sum(times), rel=1e-9)
    assert all(one.arrived <= one.started <= one.first <= ended[id(one)] for one in arrived)


def test_slots_share_a_gpu() -> None:
    """Two requests at once are each slower by a fifth; the first token comes when its prompt is read."""
    env = simpy.Environment()
    fleet = Fleet(env, [2.0], 2)
    ended: list[float] = []
    fleet.hosts[0].on_done = lambda _host, _request: ended.append(env.now)
    pair = [Request(0.0, 1.0, 9.0), Request(0.0, 2.0, 8.0)]
    for one in pair:
        fleet.hosts[0].accept(one)
    env.run()
    assert [one.first for one in pair] == pytest.approx([0.6, 1.2])
    assert ended == pytest.approx([6.0, 6.0])


def test_the_load_is_what_it_says() -> None:
    """The work that arrives is the load times what the hosts can do, over a long time."""
    place = Place(hosts=4, load=0.7, seconds=100_000.0)
    arrived = requests(place, "long")
    assert len(arrived) / place.seconds == pytest.approx(place.rate, rel=0.08)


def test_the_same_seed_gives_the_same_figures() -> None:
    """A run follows from its seed alone; another seed gives others."""
    first = cells.run(SHIPPED, SMALL, "one")
    assert cells.run(SHIPPED, SMALL, "one") == first
    assert cells.run(SHIPPED, SMALL, "two") != first


def test_nobody_beats_the_oracle() -> None:
    """No balancer has a shorter mean wait than the oracle, beyond 2 %."""
    best = cells.run(ORACLE, SMALL, "one").mean
    for contender in CONTENDERS:
        assert cells.run(contender, SMALL, "one").mean >= 0.98 * best, contender.name


def test_what_is_known_to_be_worse_is_worse() -> None:
    """Round robin and lowest weight wait for hosts that are full while others are free; maxconn never does."""
    shipped = cells.run(SHIPPED, SMALL, "one")
    assert shipped.overtaxed == 0
    assert cells.run(LEAST, SMALL, "one").mean < cells.run(ROUND_ROBIN, SMALL, "one").mean
    for contender in (ROUND_ROBIN, LOWEST[0]):
        run = cells.run(contender, SMALL, "one")
        assert run.overtaxed > 0.1
        assert run.mean > 1.5 * shipped.mean


def outcome(fault: str, setup: str, replication: int = 1) -> faults.Outcome:
    return faults.run(
        next(one for one in FAULTS if one.key == fault),
        next(one for one in SETUPS if one.key == setup),
        replication,
    )


def test_a_dead_host_under_a_plain_exporter_draws_the_requests() -> None:
    """Most requests go where nobody listens, for its numbers are those of an idle host."""
    plain = outcome("dead", "lw30-False")
    assert plain.lost > 0.8 * plain.requests


@pytest.mark.parametrize("setup", ["lw30-True", "lw5-True", "shipped"])
def test_a_dead_host_under_a_fail_safe_agent_does_not(setup: str) -> None:
    """What is lost is lost before the agent has noticed."""
    assert outcome("dead", setup).lost <= 0.02 * outcome("dead", setup).requests


def test_a_drained_host_under_a_fail_safe_agent_gets_next_to_nothing() -> None:
    """HAProxy knows within two agent intervals; without an agent it goes on to the end."""
    assert outcome("drain", "shipped").sent <= 10
    assert outcome("drain", "shipped").lost == 0
    assert outcome("drain", "unfenced").sent > 50


def test_what_is_simulated_is_the_shipped_front() -> None:
    """The constants are those of deploy/haproxy/haproxy.cfg."""
    path = Path(__file__).parent.parent / "deploy" / "haproxy" / "haproxy.cfg"
    text = " ".join(
        line.strip() for line in path.read_text().splitlines() if not line.strip().startswith("#")
    )
    inter, fast = balancers.HAPROXY_INTER, 1000 * balancers.HAPROXY_FASTINTER
    for setting in (
        "balance leastconn",
        f"agent-inter {balancers.HAPROXY_AGENT_INTER:g}s",
        f"check inter {inter:g}s fastinter {fast:g}ms",
        f"fall {balancers.HAPROXY_FALL} rise {balancers.HAPROXY_RISE}",
        f"weight {balancers.HAPROXY_WEIGHT}",
        f"retries {balancers.HAPROXY_RETRIES}",
        "option redispatch 1",
        f"error-limit {balancers.HAPROXY_ERROR_LIMIT} on-error mark-down",
        f"OLLAMA_MAX_QUEUE {balancers.HAPROXY_MAX_QUEUE}",
        "maxconn 4",
    ):
        assert f"{setting} " in f"{text} ", setting


def test_the_agents_window_is_the_default() -> None:
    """What is simulated as the default is the default."""
    assert Config().agent_check_window == balancers.AGENT_CHECK_WINDOW


def test_a_plot_is_the_same_each_time() -> None:
    """No date, no random identifier; a value that is not there is no dot."""
    series = [Series("a", [1.0, 20.0]), Series("b", [None, 3.0])]
    plot = dots("title & more", "axis", ["x", "y"], series)
    assert plot == dots("title & more", "axis", ["x", "y"], series)
    assert plot.count('r="4.5"') == 3 + len(series)
