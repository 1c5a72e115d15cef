"""The goals: what is compared with what, within one run, and whether it was met.

Knows the limits and where the figures are; holds no measured figure itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from benchmarks.figures import Figures, Quantity
from benchmarks.growth import Growth
from benchmarks.measurements import (
    bursts,
    gpu_growth,
    idle,
    model_growth,
    poller_growth,
    request_cost,
    resident_memory,
    slow_siege,
    startup,
)

FLAT = 1.25  # what "flat" and "linear" leave to noise
# The goals of a whole agent hold with and without what it does besides: key and text of each.
AGENTS = {
    "agent": ("", ""),
    "agent, Ollama": ("-ollama", "; with Ollama"),
    "agent, agent-check": ("-agent-check", "; with agent-check"),
}
# Nor is it idle, with the live page open in a browser, but whatever else is promised holds.
SERVING = {**AGENTS, "agent, page": ("-page", "; with the page open")}


@dataclass(frozen=True)
class Outcome:
    """How a goal stands: the figures that it rests on, and the ratio that is judged."""

    measured: str
    judged: str
    met: bool


Judge = Callable[[Figures], Optional[Outcome]]


@dataclass(frozen=True)
class Goal:
    """One row. `judge` answers None where a figure is lacking."""

    key: str
    what: str
    aim: str
    judge: Judge


def _pair(figures: Figures, quantity: Quantity, *who: str) -> tuple[float, float, str] | None:
    """The two subjects' medians and a text that shows them."""
    first, second = (figures.median(quantity, name) for name in who)
    if first is None or second is None:
        return None
    texts = (f"{quantity.show(v)} ({name})" for v, name in zip((first, second), who))
    return first, second, f"{' vs '.join(texts)} {quantity.unit}"


def at_most(quantity: Quantity, who: str, peer: str, limit: float) -> Judge:
    """`who` needs at most `limit` times what `peer` needs."""

    def judge(figures: Figures) -> Outcome | None:
        pair = _pair(figures, quantity, who, peer)
        if pair is None or pair[1] <= 0:
            return None
        ratio = pair[0] / pair[1]
        return Outcome(pair[2], f"{ratio:.2f}x", ratio <= limit)

    return judge


def times_better(quantity: Quantity, who: str, peer: str, factor: float) -> Judge:
    """`peer` needs at least `factor` times what `who` needs."""

    def judge(figures: Figures) -> Outcome | None:
        pair = _pair(figures, quantity, who, peer)
        if pair is None or pair[0] <= 0:
            return None
        ratio = pair[1] / pair[0]
        return Outcome(pair[2], f"{ratio:.1f}x better", ratio >= factor)

    return judge


def within(quantity: Quantity, limit: float, who: str = "agent") -> Judge:
    """The agent's own value is at most `limit`, in the quantity's unit."""

    def judge(figures: Figures) -> Outcome | None:
        value = figures.median(quantity, who)
        if value is None:
            return None
        text = f"{quantity.show(value)} {quantity.unit}".strip()
        return Outcome(text, "-", value <= limit)

    return judge


def flat_besides_bytes(quantity: Quantity, nginx: Quantity, few: str, many: str) -> Judge:
    """From `few` to `many` a request costs no more, besides what the longer answer costs nginx
    (the tuned one, which copies the bytes as the agent must; sendfile does not)."""

    def judge(figures: Figures) -> Outcome | None:
        agent = _pair(figures, quantity, few, many)
        floor = _pair(figures, nginx, few, many)
        if agent is None or floor is None:
            return None
        price_of_bytes = max(0.0, floor[1] - floor[0])
        ratio = (agent[1] - price_of_bytes) / agent[0]
        measured = f"{agent[2]}, {agent[1] / agent[0]:.2f}x with the bytes; tuned nginx: {floor[2]}"
        return Outcome(measured, f"{ratio:.2f}x", ratio <= FLAT)

    return judge


def linear_sampling(figures: Figures) -> Outcome | None:
    """Each GPU from the 9th to the 16th costs no more than each from the 2nd to the 8th."""
    one, eight, sixteen = (
        figures.median(gpu_growth.GROWTH.sampling, gpu_growth.subject(count))
        for count in (1, 8, 16)
    )
    if one is None or eight is None or sixteen is None:
        return None
    early, late = (eight - one) / 7, (sixteen - eight) / 8
    measured = f"{one:.0f} (1), {eight:.0f} (8), {sixteen:.0f} (16 GPUs) us/s"
    if early <= 0:
        return Outcome(measured, f"{early:.0f}, then {late:.0f} us/s a GPU", late <= 0)
    return Outcome(measured, f"{late / early:.2f}x", late <= early * FLAT)


def _burst_goals() -> list[Goal]:
    goals = []
    for size in bursts.SIZES:
        what = f"{size:,} pollers at once"
        failed, p99 = bursts.FAILED[size], bursts.P99[size]
        goals.append(Goal(f"burst-{size}-failed", what, "no failed request", within(failed, 0)))
        slowest = at_most(p99, "agent", "nginx", 2.0)
        goals.append(Goal(f"burst-{size}-p99", what, "p99 <= 2x nginx", slowest))
    return goals


def _cost_goals(who: str) -> list[Goal]:
    close, kept = request_cost.CLOSE_CPU, request_cost.KEPT_CPU
    key, note = SERVING[who]
    new = f"CPU per request, new connection each time{note}"
    return [
        Goal(f"close-nginx{key}", new, "<= 1.5x nginx", at_most(close, who, "nginx", 1.5)),
        Goal(
            f"close-prometheus-client{key}",
            new,
            ">= 15x better than prometheus_client",
            times_better(close, who, "prometheus_client", 15.0),
        ),
        Goal(
            f"keep-alive-nginx{key}",
            f"CPU per request, keep-alive{note}",
            "<= 1.0x nginx",
            at_most(kept, who, "nginx", 1.0),
        ),
    ]


def _memory_goals(who: str) -> list[Goal]:
    rss, growth = resident_memory.END_RSS, resident_memory.GROWTH
    key, note = SERVING[who]
    what = f"RSS after the scrapes, no GPU{note}"
    exporter = at_most(rss, who, "node_exporter", 0.75)
    client = at_most(rss, who, "prometheus_client", 0.65)
    return [
        Goal(f"rss-node-exporter{key}", what, "<= 0.75x node_exporter", exporter),
        Goal(f"rss-prometheus-client{key}", what, "<= 0.65x prometheus_client", client),
        Goal(f"rss-growth{key}", what, "growth <= 0.5 MB", within(growth, 0.5, who)),
    ]


def _idle_goals(who: str) -> list[Goal]:
    key, note = AGENTS[who]
    what = f"idle CPU at a 1 s interval, no GPU{note}"
    peer = "prometheus_client, sampling"
    ratio = at_most(idle.IDLE_CPU, who, peer, 0.8)
    return [
        Goal(f"idle-core{key}", what, "<= 0.05 % of a core", within(idle.IDLE_CPU, 0.05, who)),
        Goal(f"idle-prometheus-client{key}", what, "<= 0.8x prometheus_client + psutil", ratio),
    ]


def _siege_goals() -> list[Goal]:
    what = f"{slow_siege.IDLE:,} idle + {slow_siege.WRITERS} slow writers"
    limits: Sequence[tuple[str, str, Quantity, float]] = (
        ("siege-polls", "no failed poll", slow_siege.FAILED_POLLS, 0),
        ("siege-threads", "constant threads", slow_siege.THREADS_ADDED, 0),
        ("siege-memory", "<= 1 MB growth", slow_siege.GROWTH, 1.0),
        ("siege-eviction", "all evicted by the deadline + 1 s", slow_siege.OVERTIME, 1.0),
    )
    return [Goal(key, what, aim, within(column, limit)) for key, aim, column, limit in limits]


def _start_goals(who: str) -> list[Goal]:
    key, note = AGENTS[who]
    return [
        Goal(
            f"start{key}",
            f"start to the first good answer{note}",
            "<= 0.6x prometheus_client, besides the first CPU interval",
            at_most(startup.START_NET, who, "prometheus_client", 0.6),
        )
    ]


def _flat_goals(name: str, growth: Growth, few: str, many: str) -> list[Goal]:
    aim = f"<= {FLAT:g}x from {few} to {many}, besides the price of the bytes"
    close = flat_besides_bytes(growth.close, growth.nginx_close, few, many)
    kept = flat_besides_bytes(growth.kept, growth.nginx_kept, few, many)
    return [
        Goal(f"flat-{name}-close", "growth: cost per new-connection request", aim, close),
        Goal(f"flat-{name}-keep-alive", "growth: cost per keep-alive request", aim, kept),
    ]


def _growth_goals() -> list[Goal]:
    few, many = (poller_growth.subject(count) for count in (16, 1_000))
    crowd = at_most(poller_growth.CLOSE_CPU, many, few, FLAT)
    return [
        *_flat_goals("gpus", gpu_growth.GROWTH, *map(gpu_growth.subject, (1, 16))),
        *_flat_goals("models", model_growth.GROWTH, *map(model_growth.subject, (1, 16))),
        Goal(
            "flat-pollers",
            "growth: cost per new-connection request",
            f"<= {FLAT:g}x from 16 to 1,000 pollers",
            crowd,
        ),
        Goal(
            "linear-gpus",
            "growth: sampling cost",
            f"a GPU beyond the 8th costs <= {FLAT:g}x one before",
            linear_sampling,
        ),
    ]


GOALS: Sequence[Goal] = (
    *(
        goal
        for goals, agents in (
            (_cost_goals, SERVING),
            (_memory_goals, SERVING),
            (_idle_goals, AGENTS),
            (_start_goals, AGENTS),
        )
        for who in agents
        for goal in goals(who)
    ),
    *_burst_goals(),
    *_siege_goals(),
    *_growth_goals(),
)
