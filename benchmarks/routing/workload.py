"""The requests and the hosts: every parameter of the model, and the arrivals that follow from a seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

# Lengths are lognormal: the median in tokens and the standard deviation of the logarithm.
PROMPT_MEDIAN, PROMPT_SIGMA = 800.0, 1.0
OUTPUT_MEDIAN, OUTPUT_SIGMA = 150.0, 1.0
# What a host of speed 1 does for a single request, in tokens a second.
PROMPT_RATE, OUTPUT_RATE = 1500.0, 45.0
# Each further busy slot slows all slots of a host down by this much: 4 slots yield 2.5 times one.
SLOWDOWN = 0.2
SLOTS = 4
# GPUs of several generations stand side by side.
SPEEDS = (1.0, 0.6, 1.0, 1.8)
# A Markov-modulated Poisson process: its two rates over the mean rate, and how long each holds.
QUIET_RATE, QUIET_SECONDS = 0.6, 90.0
BURST_RATE, BURST_SECONDS = 2.2, 30.0


class Request:
    """One request: its work in seconds of a slot that is alone on a host of speed 1, and what became of it."""

    __slots__ = (
        "arrived",
        "first",
        "host",
        "lost",
        "overtaxed",
        "placed",
        "prompt_work",
        "refusable",
        "started",
        "token_work",
    )

    def __init__(self, arrived: float, prompt_work: float, token_work: float) -> None:
        self.arrived = arrived
        self.prompt_work = prompt_work
        self.token_work = token_work
        self.placed = math.nan  # when a host took it
        self.started = math.nan  # when it got a slot
        self.first = math.nan  # when its first token came
        self.host = -1
        self.lost = False
        self.overtaxed = False  # given to a full host while another had a free slot
        self.refusable = False  # given to a host whose queue Ollama would not have let grow so long


@dataclass(frozen=True)
class Place:
    """A cell's hosts and how long requests arrive at them; waits count from `warmup` on."""

    hosts: int
    load: float
    seconds: float
    warmup: float = 300.0

    @property
    def speeds(self) -> list[float]:
        return [SPEEDS[index % len(SPEEDS)] for index in range(self.hosts)]

    @property
    def rate(self) -> float:
        """Requests a second that keep the hosts' slots busy for `load` of the time, on the mean."""
        prompt = PROMPT_MEDIAN * math.exp(PROMPT_SIGMA**2 / 2) / PROMPT_RATE
        output = OUTPUT_MEDIAN * math.exp(OUTPUT_SIGMA**2 / 2) / OUTPUT_RATE
        return self.load * sum(self.speeds) * SLOTS * share(SLOTS) / (prompt + output)


def share(busy: int) -> float:
    """How fast each of `busy` slots is, over one that is alone."""
    return 1.0 / (1.0 + SLOWDOWN * (busy - 1)) if busy > 1 else 1.0


def requests(place: Place, seed: str) -> list[Request]:
    """The arrivals of one replication: the same ones for every balancer that gets this seed."""
    draw = random.Random(f"requests {seed}")
    found: list[Request] = []
    now = 0.0
    calm = QUIET_SECONDS / (QUIET_SECONDS + BURST_SECONDS)
    bursting = draw.random() >= calm
    while now < place.seconds:
        until = now + draw.expovariate(1.0 / (BURST_SECONDS if bursting else QUIET_SECONDS))
        rate = place.rate * (BURST_RATE if bursting else QUIET_RATE)
        while True:
            now += draw.expovariate(rate)
            if now >= until:
                break
            prompt = draw.lognormvariate(math.log(PROMPT_MEDIAN), PROMPT_SIGMA) / PROMPT_RATE
            output = draw.lognormvariate(math.log(OUTPUT_MEDIAN), OUTPUT_SIGMA) / OUTPUT_RATE
            found.append(Request(now, prompt, output))
        now = until  # a Poisson process has no memory
        bursting = not bursting
    return [request for request in found if request.arrived < place.seconds]
