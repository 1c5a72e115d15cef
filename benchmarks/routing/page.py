"""docs/ROUTING.md: what to set, whether the goals are met, the tables, the plots, and the model behind them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Callable, Optional

from benchmarks.routing import balancers, cells, faults, workload
from benchmarks.routing.contenders import (
    BY_SPEED,
    CONTENDERS,
    EXACT,
    LEAST,
    LOWEST,
    MEANS,
    NO_AGENT,
    ORACLE,
    QUEUE_AWARE,
    ROUND_ROBIN,
    SAMPLE,
    SHIPPED,
    SHIPPED_5,
    SHORTEST,
    WINDOWS,
    Contender,
)
from benchmarks.routing.faults import FAULTS, SETUPS
from benchmarks.routing.plots import Series, bars, dots
from benchmarks.routing.sensors import MODEL_MEMORY, NOISE, Signal
from benchmarks.routing.study import CELLS, Cell, Ratio, Study

PLOTS = "routing"
Rows = list[list[str]]
AVERAGE, WORST = 1.05, 1.15  # of HAProxy's mean wait over the oracle's
LOST = 0.01  # of a plain exporter's
HELPS = 0.95  # of the wait, and less: what is worth a setting

MEAN_15 = MEANS[1]


@dataclass(frozen=True)
class Goal:
    """What is asked, what was seen."""

    what: str
    measured: str
    met: bool


def _lowest(interval: float, signal: Signal) -> Contender:
    return next(one for one in LOWEST if one.interval == interval and one.signal == signal)


def _cells(study: Study, contender: Contender) -> list[Cell]:
    return [cell for cell in CELLS if study.has(cell, contender)]


def _average(study: Study, contender: Contender, base: Contender = ORACLE) -> float:
    found = _cells(study, contender)
    return statistics.fmean(study.ratio(cell, contender, base).value for cell in found)


def _average_error(study: Study, contender: Contender, base: Contender) -> float:
    """The standard error of the average: the cells' replications are independent of each other."""
    found = [study.ratio(cell, contender, base).error for cell in _cells(study, contender)]
    return math.sqrt(sum(one * one for one in found)) / len(found)


def _worst(study: Study, contender: Contender, base: Contender = ORACLE) -> tuple[Cell, Ratio]:
    found = _cells(study, contender)
    cell = max(found, key=lambda one: study.ratio(one, contender, base).value)
    return cell, study.ratio(cell, contender, base)


def _geometric(study: Study, ours: Contender, base: Contender) -> float:
    """How many times the base's mean wait, over the cells that both have."""
    both = [cell for cell in _cells(study, ours) if study.has(cell, base)]
    logs = [math.log(study.ratio(cell, ours, base).value) for cell in both]
    return math.exp(statistics.fmean(logs))


def _compared(study: Study, ours: Contender, base: Contender) -> Ratio:
    """The same with its standard error."""
    both = [cell for cell in _cells(study, ours) if study.has(cell, base)]
    ratios = [study.ratio(cell, ours, base) for cell in both]
    relative = math.sqrt(sum((one.error / one.value) ** 2 for one in ratios)) / len(ratios)
    value = _geometric(study, ours, base)
    return Ratio(value, value * relative)


# --- goals -------------------------------------------------------------------------------------------


def goals(study: Study) -> list[Goal]:
    found = []
    for base, who in (
        (SHORTEST, "the oracle that joins the shortest queue"),
        (ORACLE, "the oracle that knows each GPU's speed as well"),
    ):
        average = _average(study, SHIPPED, base)
        cell, worst = _worst(study, SHIPPED, base)
        found.append(
            Goal(
                f"HAProxy as shipped: mean wait <= {AVERAGE}x of {who}, averaged over the cells",
                f"{average:.3f}x ±{_average_error(study, SHIPPED, base):.3f}",
                average <= AVERAGE,
            )
        )
        found.append(
            Goal(
                f"the same: no cell above {WORST}x",
                f"{worst.value:.3f}x ±{worst.error:.3f} ({_cell(cell)})",
                worst.value <= WORST,
            )
        )
    for plain, safe, name in (
        ("lw30-False", "lw30-True", "lowest weight, 30 s poll"),
        ("lw5-False", "lw5-True", "lowest weight, 5 s poll"),
        ("plain", "shipped", "HAProxy: shipped and fail-safe against leastconn and plain"),
        ("plain", "fenced", "HAProxy: leastconn and agent-check alone, fail-safe against plain"),
    ):
        ours = study.total("dead", safe, lambda one: one.lost)
        theirs = study.total("dead", plain, lambda one: one.lost)
        found.append(
            Goal(
                f"{name}: loses to a dead Ollama <= {LOST:.0%} of what a plain exporter loses",
                f"{ours:,.0f} of {theirs:,.0f}, {ours / theirs:.2%} (with what was there as it died: "
                f"{_lost_in_all(study, safe) / _lost_in_all(study, plain):.2%})",
                ours <= LOST * theirs,
            )
        )
    return found


# --- tables ------------------------------------------------------------------------------------------


def _cell(cell: Cell) -> str:
    return f"{cell[0]} hosts, {cell[1]:.0%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(ratio: Ratio) -> str:
    return f"{_number(ratio.value)} ±{_number(ratio.error)}"


def _table(study: Study, show: Callable[[Cell, Contender], str]) -> Rows:
    rows = [["", *(_cell(cell) for cell in CELLS)]]
    for contender in CONTENDERS:
        shown = [show(cell, contender) if study.has(cell, contender) else "-" for cell in CELLS]
        rows.append([contender.name, *shown])
    return rows


def _waits(study: Study) -> Rows:
    def show(cell: Cell, contender: Contender) -> str:
        if contender is ORACLE:
            return f"{_number(study.mean(cell, contender))} s"
        return _ratio(study.ratio(cell, contender))

    return _table(study, show)


def _tails(study: Study) -> Rows:
    def show(cell: Cell, contender: Contender) -> str:
        if contender is ORACLE:
            return f"{_number(study.p99(cell, contender))} s"
        return _ratio(study.p99_ratio(cell, contender))

    return _table(study, show)


def _shares(study: Study, of: Callable[[cells.Run], float]) -> Rows:
    return _table(study, lambda cell, contender: f"{study.share(cell, contender, of):.1%}")


def _queues(study: Study) -> Rows:
    rows = [["", *(_cell(cell) for cell in CELLS)]]
    longest = [max(run.longest_queue for run in study.runs[cell, SHIPPED.key]) for cell in CELLS]
    beyond = [study.share(cell, SHIPPED, lambda run: run.refusable) for cell in CELLS]
    rows.append(["longest queue of all, requests", *(f"{one:,}" for one in longest)])
    rows.append(
        ["the same, for each host", *(f"{n / cell[0]:.1f}" for n, cell in zip(longest, CELLS))]
    )
    rows.append(
        [
            f"requests that came upon {balancers.HAPROXY_MAX_QUEUE} others",
            *(f"{one:.1%}" for one in beyond),
        ]
    )
    return rows


def _fault_rows(study: Study, fault: str) -> Rows:
    rows = [
        [
            "",
            "requests",
            "offered to the broken host",
            "lost there",
            "lost as it broke",
            "mean wait, s",
            "over a minute",
        ]
    ]
    for setup in SETUPS:
        count = study.total(fault, setup.key, lambda one: one.requests)
        sent = study.total(fault, setup.key, lambda one: one.sent)
        lost = study.total(fault, setup.key, lambda one: one.lost)
        running = study.total(fault, setup.key, lambda one: one.lost_running)
        late = study.total(fault, setup.key, lambda one: one.late)
        mean = study.fault_mean(fault, setup.key)
        rows.append(
            [
                setup.name,
                f"{count:,.0f}",
                f"{sent:,.0f} ({sent / count:.1%})",
                f"{lost:,.0f}",
                f"{running:,.0f}",
                "-" if mean is None else _number(mean),
                f"{late / count:.1%}",
            ]
        )
    return rows


def _piped(rows: Rows) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:], ""]


# --- what is said ------------------------------------------------------------------------------------


def _times(value: float) -> str:
    return f"{value:.2f}x"


def advice(study: Study) -> str:
    """What an operator should set."""
    poll = _geometric(study, _lowest(30.0, MEAN_15), _lowest(5.0, MEAN_15))
    against = _geometric(study, _lowest(30.0, MEAN_15), SHIPPED)
    aware = _geometric(study, _lowest(30.0, QUEUE_AWARE), _lowest(30.0, MEAN_15))
    aware_5 = _geometric(study, _lowest(5.0, QUEUE_AWARE), _lowest(5.0, MEAN_15))
    queue = max(
        run.longest_queue / cell[0] for cell in CELLS for run in study.runs[cell, SHIPPED.key]
    )
    helps = min(aware, aware_5) < HELPS
    fits = int(balancers.HAPROXY_MAX_QUEUE / queue) if queue else 0
    return (
        f"**What to set.** Put HAProxy with deploy/haproxy/haproxy.cfg in front: `balance leastconn`, each "
        f"server's `maxconn` = its Ollama's parallel slots, so that requests wait in one queue for whichever "
        f"slot is free next. Its mean wait for the first token is {_times(_average(study, SHIPPED))} the "
        f"oracle's; that of lowest weight at a 30 s poll is {against:,.0f} times HAProxy's. Where GPUs differ, "
        f"give each `server` a `weight` in proportion to its speed (100 the middle one): "
        f"{_times(_average(study, BY_SPEED))} instead. Keep `agent-inter 2s`: 5 s waits no longer "
        f"({_times(_geometric(study, SHIPPED_5, SHIPPED))}), but fences a broken host off later. Set the "
        f"front's `OLLAMA_MAX_QUEUE` by the number of hosts: up to {math.ceil(queue)} for each waited in the "
        f"bursts simulated, and the shipped {balancers.HAPROXY_MAX_QUEUE} is enough for {fits}; its `maxconn` "
        f"has to be above that. With a lowest-weight balancer, make its poll as short as it allows: at 5 s the "
        f"wait is {1 / poll:.2f} of that at 30 s, more than any signal is worth. Leave `--window` at 15 and "
        f"`--agent-check-window` at 5. "
        + (
            "Switch `--queue-aware` on for a lowest-weight balancer"
            if helps
            else "Leave `--queue-aware` off: it does a lowest-weight balancer no good"
        )
        + f" ({_times(aware)} the wait at a 30 s poll, {_times(aware_5)} at 5 s), and HAProxy counts its "
        f"connections itself."
    )


def _defaults(study: Study) -> list[str]:
    rows = [["lowest weight: mean wait over that with a mean of 15 s", "30 s poll", "5 s poll"]]
    for signal in (SAMPLE, *MEANS, QUEUE_AWARE, EXACT):
        shown = [
            _ratio(_compared(study, _lowest(interval, signal), _lowest(interval, MEAN_15)))
            for interval in (30.0, 5.0)
        ]
        rows.append([signal.name, *shown])
    agents = [["HAProxy: mean wait over that with the shipped agent-check", ""]]
    agents += [
        [one.name, _ratio(_compared(study, one, SHIPPED))]
        for one in (SHIPPED_5, NO_AGENT, *WINDOWS)
    ]
    said = " ".join(_windows(study, interval) for interval in (30.0, 5.0))
    spread = max(
        abs(_geometric(study, one, SHIPPED) - 1.0) for one in (SHIPPED_5, NO_AGENT, *WINDOWS)
    )
    return [
        *_piped(rows),
        *_piped(agents),
        f"`--window` (what differs does so by more than two standard errors): {said} A window has "
        f"to be short against the poll's interval and long against one noisy "
        f"reading; 15 s is both, and stays.",
        "",
        _queue_aware(study),
        "",
        f"`--agent-check-window 5` makes no difference to the wait: with any window, with another interval or "
        f"with no agent at all it is within {spread:.1%} of the shipped one's. `maxconn` and the one queue "
        f"do the work. The weight may therefore as well follow quickly; what the agent is needed for is the "
        f"fence below.",
        "",
    ]


def _windows(study: Study, interval: float) -> str:
    """Which windows are seen to be better or worse than 15 s: by more than two standard errors."""
    better: list[str] = []
    worse: list[str] = []
    for signal in (SAMPLE, *MEANS):
        ratio = _compared(study, _lowest(interval, signal), _lowest(interval, MEAN_15))
        if abs(ratio.value - 1.0) > 2.0 * ratio.error:
            shown = f"the {signal.name} ({_times(ratio.value)})"
            (better if ratio.value < 1.0 else worse).append(shown)
    parts = [
        f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} {how} than the mean of 15 s"
        for found, how in ((better, "better"), (worse, "worse"))
        if found
    ]
    said = " and ".join(parts) or "no window can be told from the mean of 15 s"
    return f"At a {interval:g} s poll {said}."


def _queue_aware(study: Study) -> str:
    at = {
        interval: (
            _geometric(study, _lowest(interval, QUEUE_AWARE), _lowest(interval, MEAN_15)),
            _geometric(study, _lowest(interval, EXACT), _lowest(interval, MEAN_15)),
        )
        for interval in (30.0, 5.0)
    }
    said = " and ".join(
        f"{_times(aware)} the wait at a {interval:g} s poll (the exact wait: {_times(exact)})"
        for interval, (aware, exact) in at.items()
    )
    text = f"`--queue-aware` comes to {said}."
    if min(aware for aware, _ in at.values()) >= HELPS:
        text += (
            " It does not help: which host is the lightest is right at the poll, and what tips the scale "
            "afterwards is that all requests go there until the next one."
        )
    return text


def _by_load(study: Study) -> str:
    parts = []
    for load in cells.LOADS:
        here = [cell for cell in CELLS if cell[1] == load]
        first = statistics.fmean(study.ratio(cell, SHIPPED).value for cell in here)
        speed = statistics.fmean(study.ratio(cell, BY_SPEED).value for cell in here)
        parts.append(f"{_times(first)} at {load:.0%} load ({_times(speed)} with weights by speed)")
    prompt = workload.PROMPT_MEDIAN * math.exp(workload.PROMPT_SIGMA**2 / 2) / workload.PROMPT_RATE
    return (
        f"The distance from the oracle that knows the GPUs' speeds is {', '.join(parts)}. It is no queueing: "
        f"while slots are free, a wait is the reading of the prompt ({prompt / max(workload.SPEEDS):.1f} s on "
        f"the fastest GPU, {prompt / min(workload.SPEEDS):.1f} s on the slowest, when alone), and `leastconn` "
        f"gives to idle servers in turn whatever their weight. The fewer requests wait for slots, the more of "
        f"the mean that is. The oracle that joins the shortest queue does not look at speeds either."
    )


def _lost_in_all(study: Study, setup: str) -> float:
    return study.total("dead", setup, lambda one: one.lost + one.lost_running)


def _faults(study: Study) -> list[str]:
    lines = [
        f"{faults.HOSTS} hosts at {faults.LOAD:.0%} load; one breaks after {faults.FAULT_AT / 60:.0f} minutes "
        f"and stays so for {faults.FAULT_SECONDS / 60:.0f}, while the others' load rises to "
        f"{faults.LOAD * faults.HOSTS / (faults.HOSTS - 1):.0%}. {faults.REPLICATIONS['dead']} replications of "
        f"the dead Ollama, {faults.OTHER_REPLICATIONS} of each other fault; each host is the broken one "
        f"equally often. Counted are requests from the fault on. Both agents average over 15 s; the fail-safe "
        f"one is the agent, which tells of what it has noticed after three checks; the plain one tells "
        f"psutil's and NVML's numbers. The mean wait is that of requests that got a token, so it flatters who "
        f"loses many.",
        "",
        f"![Requests lost to a dead Ollama]({PLOTS}/faults.svg)",
        "",
    ]
    for fault in FAULTS:
        lines += [
            f"### {fault.name[0].upper()}{fault.name[1:]}",
            "",
            *_piped(_fault_rows(study, fault.key)),
        ]
        lines += [_said_of_fault(study, fault.key), ""]
    return lines


def _said_of_fault(study: Study, fault: str) -> str:
    def part(setup: str, of: Callable[[faults.Outcome], float]) -> str:
        count = study.total(fault, setup, lambda one: one.requests)
        return f"{study.total(fault, setup, of) / count:.1%}"

    def mean(setup: str) -> str:
        value = study.fault_mean(fault, setup)
        return "no" if value is None else f"{_number(value)} s of"

    if fault == "dead":
        lowest = _lost_in_all(study, "lw30-True") / _lost_in_all(study, "lw30-False")
        haproxy = _lost_in_all(study, "shipped") / _lost_in_all(study, "plain")
        return (
            f"Under lowest weight a plain exporter makes the dead host a black hole: it loses "
            f"{part('lw30-False', lambda one: one.lost)} of all requests, a fail-safe agent "
            f"{part('lw30-True', lambda one: one.lost)}. What ran or waited on the host as it died is lost under "
            f"either; with it, the fail-safe one loses {lowest:.1%} of what the plain one does under lowest "
            f"weight, whose queues are long, and {haproxy:.1%} under HAProxy. HAProxy as shipped does not need "
            f"the agent for this fault: its own check and its circuit breaker see a refused connection first."
        )
    if fault == "gpu":
        return (
            f"The plain exporter's `gpu_count` falls to 0, which takes up to 300 points off the weight: "
            f"{part('lw30-False', lambda one: one.sent)} of the requests go to the host whose CPU does a "
            f"GPU's work, and wait {_number(study.fault_mean(fault, 'lw30-False') or 0.0)} s on the mean. Under "
            f"HAProxy `maxconn` alone keeps most away, for its slots stay busy: "
            f"{part('unfenced', lambda one: one.sent)} without the agent, "
            f"{part('shipped', lambda one: one.sent)} with it."
        )
    if fault == "hang":
        return (
            f"The price of the rule that broken looks busy. Ollama is well here and only what is known of it is "
            f"not, so a fence costs one host of {faults.HOSTS}: under HAProxy {mean('shipped')} wait with it, "
            f"{mean('unfenced')} wait without. Under lowest weight, where old numbers draw "
            f"{part('lw30-False', lambda one: one.sent)} of the requests, it pays: {mean('lw30-True')} wait "
            f"instead of {_number(study.fault_mean(fault, 'lw30-False') or 0.0)} s."
        )
    if fault == "drain":
        return (
            f"Nobody but the agent knows of a drain. HAProxy as shipped loses "
            f"{study.total(fault, 'unfenced', lambda one: one.lost + one.lost_running):,.0f} requests without it "
            f"and {study.total(fault, 'shipped', lambda one: one.lost + one.lost_running):,.0f} with it, for the "
            f"price of the host's capacity five minutes earlier."
        )
    return (
        "An agent makes no difference here, and need not: the GPU is measured as busy by both. Lowest weight "
        "stays away by the weight, HAProxy because its slots stay busy."
    )


def _model(study: Study) -> list[str]:
    sizes = "; ".join(
        f"{hosts} hosts: {count} replications of {seconds:,.0f} s, the first 300 s not counted"
        for hosts, (count, seconds) in cells.SIZES.items()
    )
    prompt = workload.PROMPT_MEDIAN * math.exp(workload.PROMPT_SIGMA**2 / 2)
    output = workload.OUTPUT_MEDIAN * math.exp(workload.OUTPUT_SIGMA**2 / 2)
    aggregate = workload.SLOTS * workload.share(workload.SLOTS)
    return [
        f"- Arrivals: Poisson at {workload.QUIET_RATE} of the mean rate for {workload.QUIET_SECONDS:.0f} s and "
        f"{workload.BURST_RATE} of it for {workload.BURST_SECONDS:.0f} s, in turn, both durations exponential.",
        f"- Lengths: lognormal; prompts median {workload.PROMPT_MEDIAN:.0f}, mean {prompt:,.0f} tokens; answers "
        f"median {workload.OUTPUT_MEDIAN:.0f}, mean {output:.0f}.",
        f"- Hosts: {workload.SLOTS} slots each; speeds {', '.join(f'{one:g}' for one in workload.SPEEDS)} in "
        f"turn. A request alone on a host of speed 1: {workload.PROMPT_RATE:,.0f} prompt tokens and "
        f"{workload.OUTPUT_RATE:.0f} answer tokens a second; each further busy slot slows all by "
        f"{workload.SLOWDOWN:.0%} of that time, so {workload.SLOTS} yield {aggregate:.1f} times one. A FIFO queue.",
        "- Load: the work that arrives over what all slots can do when all are busy.",
        f"- Readings, once a second: utilization is busy slots over slots, with a normal error of "
        f"{NOISE:.0%}; memory by the loaded model ({', '.join(f'{one:.0%}' for one in MODEL_MEMORY)}); RAM "
        "25 to 50 %; CPU 2 to 8 %, and 12 points more when all slots are busy.",
        "- The weight, its means, `--queue-aware` and HAProxy's line are computed by the agent's own code.",
        f"- {sizes}. Arrivals end there, and all that waits is served. Under lowest weight with many hosts no "
        "steady state is reached: those figures grow with the time simulated.",
        "- All contenders of a cell get the same requests, hosts and noise; ± is the standard error of the "
        "ratio (jackknife over the replications).",
        f"- HAProxy: the key of `leastconn` as in its source, in integers, equals in turn; weight "
        f"{balancers.HAPROXY_WEIGHT}, agent-inter {balancers.HAPROXY_AGENT_INTER:g} s, check inter "
        f"{balancers.HAPROXY_INTER:g} s, fastinter {balancers.HAPROXY_FASTINTER:g} s, fall "
        f"{balancers.HAPROXY_FALL}, retries {balancers.HAPROXY_RETRIES}, redispatch 1, error-limit "
        f"{balancers.HAPROXY_ERROR_LIMIT}. Priorities, the limit per client and `timeout queue` are left out.",
        "- No queue is bounded, so that waits compare; who would have been refused is counted. No client "
        "gives up, and no prompt cache makes one host better for a conversation than another.",
        "",
    ]


def markdown(study: Study) -> str:
    """The page."""
    rows = [["goal", "measured", "verdict"]]
    rows += [[one.what, one.measured, "met" if one.met else "MISSED"] for one in goals(study)]
    lines = [
        "# Routing",
        "",
        "Generated by `make simulate`; do not edit.",
        "",
        advice(study),
        "",
        "## Goals",
        "",
        *_piped(rows),
        _by_load(study),
        "",
        "Of the requests lost to a dead Ollama, those count that were offered to it after its death: what ran "
        "or waited there is lost whatever an agent says, and told apart below.",
        "",
        "## Mean wait for the first token",
        "",
        "The oracle's in seconds, all others' in ratio to it. The oracle gives each request to the host where "
        "its first token comes soonest, knowing all work left and each GPU's speed; the second oracle only "
        "knows when a slot is free, and takes the host with most free slots where several have one.",
        "",
        f"![Mean wait over the oracle's]({PLOTS}/mean-wait.svg)",
        "",
        *_piped(_waits(study)),
        "## 99th percentile of the same",
        "",
        *_piped(_tails(study)),
        "## Requests for overloaded hosts",
        "",
        "The share of requests given to a host with no free slot while another had one. (The oracle does so "
        "where waiting for a fast GPU is shorter than a slow one's prompt.)",
        "",
        *_piped(_shares(study, lambda run: run.overtaxed)),
        "## HAProxy's queue",
        "",
        f"The shipped front answers 503 where {balancers.HAPROXY_MAX_QUEUE} requests wait, for all hosts "
        "together. The model lets all wait, and this is what they would have met:",
        "",
        *_piped(_queues(study)),
        "## Do the defaults follow?",
        "",
        "Geometric means over the cells that have both.",
        "",
        *_defaults(study),
        "## What faults cost",
        "",
        *_faults(study),
        "## The model",
        "",
        *_model(study),
    ]
    return "\n".join(lines).rstrip() + "\n"


def plots(study: Study) -> dict[str, str]:
    """The page's plots by file name."""
    shown = (
        SHORTEST,
        SHIPPED,
        BY_SPEED,
        NO_AGENT,
        LEAST,
        ROUND_ROBIN,
        _lowest(5.0, MEAN_15),
        _lowest(5.0, QUEUE_AWARE),
        _lowest(30.0, SAMPLE),
        _lowest(30.0, MEAN_15),
        _lowest(30.0, QUEUE_AWARE),
    )

    def value(cell: Cell, contender: Contender) -> Optional[float]:
        return study.ratio(cell, contender).value if study.has(cell, contender) else None

    waits = dots(
        "Mean wait for the first token at 70 % load",
        "times the oracle's (logarithmic)",
        [one.name for one in shown],
        [
            Series(f"{hosts} hosts", [value((hosts, 0.70), one) for one in shown])
            for hosts in cells.SIZES
        ],
    )
    lost = []
    for setup in SETUPS:
        count = study.total("dead", setup.key, lambda one: one.requests)
        lost.append(100 * study.total("dead", setup.key, lambda one: one.lost) / count)
    short = [
        f"{'HAProxy' if 'lw' not in setup.key else f'poll {setup.contender.interval:g} s'}, {label}"
        for setup, label in zip(
            SETUPS,
            (
                "plain exporter",
                "fail-safe agent",
                "plain exporter",
                "fail-safe agent",
                "plain, no checks",
                "fail-safe agent, no checks",
                "as shipped, no agent",
                "as shipped, fail-safe agent",
            ),
        )
    ]
    faulty = bars(
        "Requests lost to a dead Ollama, one host of eight, ten minutes",
        "% of the requests from the fault on",
        short,
        [Series("lost there", [*lost])],
        100.0,
    )
    return {"mean-wait.svg": waits, "faults.svg": faulty}
