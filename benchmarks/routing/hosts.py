"""A host: slots that share its GPU, a FIFO queue before them, a prompt phase and a token phase.

A host has a clock of its own, the work that each busy slot has done since the beginning. It runs at the
speed of one slot, so a request's phases end at points of that clock that are known when it starts, however
often the speed changes in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Callable

import simpy
from simpy.events import Event, Timeout

from benchmarks.routing.workload import Request, share

# Ollama answers 503 where more wait (OLLAMA_MAX_QUEUE). The model lets them wait and counts them.
MAX_QUEUE = 512

Shares = Callable[[int], float]


def every(
    env: simpy.Environment,
    first: float,
    interval: float,
    until: float,
    act: Callable[[float], None],
) -> None:
    """Calls `act` with the time at `first` and every `interval` from then on."""

    def process() -> Generator[Event, None, None]:
        yield env.timeout(first)
        while env.now <= until:
            act(env.now)
            yield env.timeout(interval)

    env.process(process())


class Fleet:
    """The hosts, and how many of them have a free slot."""

    def __init__(self, env: simpy.Environment, speeds: list[float], slots: int) -> None:
        self.env = env
        self.with_room = len(speeds)
        self.hosts = [Host(self, index, speed, slots) for index, speed in enumerate(speeds)]


class Host:
    """Takes requests and tells `on_done` of each that has ended, well or not."""

    def __init__(
        self, fleet: Fleet, index: int, speed: float, slots: int, shares: Shares = share
    ) -> None:
        self.fleet = fleet
        self.env = fleet.env
        self.index = index
        self.slots = slots
        self.up = True
        self.offered: set[int] | None = None  # the requests offered to it, where that is asked for
        self.queue: deque[Request] = deque()
        self.on_done: Callable[[Host, Request], None] = lambda _host, _request: None
        self._shares = [0.0, *(shares(busy) for busy in range(1, slots + 1))]
        self.speed = speed
        self._rate = 0.0
        self._work = 0.0  # the host's own clock
        self._updated = 0.0
        self._numbers = count()
        self._running: list[tuple[float, int, Request]] = []  # by the end of their tokens
        self._prompts: list[tuple[float, int, Request]] = []  # by the end of their prompt
        self._slot_ends = [
            0.0
        ] * slots  # when each slot has done all it was given, on the own clock
        self._timer: Event | None = None

    @property
    def busy(self) -> int:
        return len(self._running)

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self.queue)

    def accept(self, request: Request) -> bool:
        """Takes a request; False where nobody listens any more."""
        if self.offered is not None:
            self.offered.add(id(request))
        if not self.up:
            return False
        self._advance()
        now = self.env.now
        request.host, request.placed = self.index, now
        start = max(self._work, self._slot_ends[0])
        heapreplace(self._slot_ends, start + request.prompt_work + request.token_work)
        if self.busy < self.slots:
            self._start(request)
            self._schedule()
        else:
            request.overtaxed = self.fleet.with_room > 0
            request.refusable = len(self.queue) >= MAX_QUEUE
            self.queue.append(request)
        return True

    def expected_wait(self, now: float, prompt_work: float) -> float:
        """Seconds to the first token of a request that came now, exact while no other changes the speed."""
        if not self.up:
            return float("inf")
        busy = len(self._running)
        if busy < self.slots:
            return prompt_work / (self.speed * self._shares[busy + 1])
        queued = self._slot_ends[0] - self._work - self._rate * (now - self._updated)
        return (max(0.0, queued) + prompt_work) / self._rate

    def change_speed(self, factor: float) -> None:
        self._advance()
        self.speed *= factor
        self._schedule()

    def lose_running(self) -> None:
        """What is in a slot ends with an error; what waits goes on."""
        self._advance()
        lost = [request for _, _, request in self._running]
        self._running.clear()
        self._prompts.clear()
        self._slot_ends = [self._work] * self.slots
        waiting, self.queue = self.queue, deque()
        if len(lost) == self.slots:
            self.fleet.with_room += 1
        for request in waiting:
            self._replan(request)
        self._schedule()
        self._tell_lost(lost)

    def die(self) -> None:
        """What runs or waits ends with an error, and nobody listens any more."""
        self._advance()
        lost = [request for _, _, request in self._running] + list(self.queue)
        if self.up and self.busy < self.slots:
            self.fleet.with_room -= 1
        self.up = False
        self._running.clear()
        self._prompts.clear()
        self.queue.clear()
        self._schedule()
        self._tell_lost(lost)

    def _tell_lost(self, lost: list[Request]) -> None:
        for request in lost:
            request.lost = True
        for request in lost:
            self.on_done(self, request)

    def _replan(self, request: Request) -> None:
        start = max(self._work, self._slot_ends[0])
        heapreplace(self._slot_ends, start + request.prompt_work + request.token_work)
        if self.busy < self.slots:
            self._start(request)
        else:
            self.queue.append(request)

    def _start(self, request: Request) -> None:
        request.started = self.env.now
        number = next(self._numbers)
        first = self._work + request.prompt_work
        heappush(self._prompts, (first, number, request))
        heappush(self._running, (first + request.token_work, number, request))
        if self.busy == self.slots:
            self.fleet.with_room -= 1

    def _advance(self) -> None:
        now = self.env.now
        if self._running:
            self._reach(self._work + self._rate * (now - self._updated))
        self._updated = now

    def _reach(self, work: float) -> None:
        """Moves the own clock on, and notes whose first token came on the way."""
        prompts = self._prompts
        while prompts and prompts[0][0] <= work:
            first, _, request = heappop(prompts)
            request.first = self._updated + max(0.0, first - self._work) / self._rate
        self._work = work

    def _schedule(self) -> None:
        """Awaits the next end; an end that was awaited before and comes no more is not told apart here."""
        busy = self.busy
        self._rate = self.speed * self._shares[busy]
        if not busy:
            self._timer = None
            return
        left = max(0.0, self._running[0][0] - self._work)
        self._timer = timer = Timeout(self.env, left / self._rate)
        assert timer.callbacks is not None
        timer.callbacks.append(self._on_timer)

    def _on_timer(self, event: Event) -> None:
        if event is not self._timer:
            return  # the speed has changed since
        now = self.env.now
        self._reach(self._running[0][0])
        self._updated = now
        _, _, request = heappop(self._running)
        if self.busy == self.slots - 1:
            self.fleet.with_room += 1
        if self.queue:
            self._start(self.queue.popleft())
        self._schedule()
        self.on_done(self, request)
