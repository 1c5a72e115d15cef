"""The balancers: each gives every request to a host, knowing what its kind knows and no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Optional, Protocol

from simpy.events import Event, Timeout

from benchmarks.routing.hosts import Fleet, Host, every
from benchmarks.routing.sensors import Sensor, Signal
from benchmarks.routing.workload import Request

# --- what deploy/haproxy/haproxy.cfg says ------------------------------------------------------------

HAPROXY_WEIGHT = 100  # `weight` of each server; the agent's percentage is of it
HAPROXY_MAXCONN_IS_SLOTS = True  # `maxconn` of each server: Ollama's parallel slots
HAPROXY_AGENT_INTER = 2.0  # `agent-inter`, seconds
HAPROXY_RETRIES = 3  # `retries`, of requests that no server has taken
HAPROXY_REDISPATCH = True  # `option redispatch 1`: each retry at another server, at once
# `inter`, `fastinter`, `fall`, `rise` of the health check.
HAPROXY_INTER, HAPROXY_FASTINTER, HAPROXY_FALL, HAPROXY_RISE = 2.0, 0.5, 2, 10
# `observe layer7 error-limit 10 on-error mark-down`. Only refused connections are counted here.
HAPROXY_ERROR_LIMIT = 10
HAPROXY_MAX_QUEUE = 512  # OLLAMA_MAX_QUEUE; the model lets all wait, and counts those beyond
# Without `option redispatch` HAProxy asks the same server again after this many seconds.
HAPROXY_RETRY_SECONDS = 1.0
# `--agent-check-window`, by default.
AGENT_CHECK_WINDOW = 5.0

# Constants of HAProxy's source: the scale of a weight within it, and the highest weight.
_WEIGHT_SCALE = 16
_HIGHEST_WEIGHT = 256 * _WEIGHT_SCALE


class Balancer(Protocol):
    """What a run asks of a balancer."""

    def place(self, request: Request) -> None:
        """Gives a request to a host, or marks it lost."""


def _give(host: Host, request: Request) -> None:
    request.host = host.index
    request.placed = host.env.now
    request.lost = not host.accept(request)


class RoundRobin:
    """One host after the other."""

    def __init__(self, fleet: Fleet) -> None:
        self._hosts = fleet.hosts
        self._next = 0

    def place(self, request: Request) -> None:
        host = self._hosts[self._next]
        self._next = (self._next + 1) % len(self._hosts)
        _give(host, request)


class Oracle:
    """The host where this request gets its first token soonest: all that is left to do is known."""

    def __init__(self, fleet: Fleet) -> None:
        self._hosts = fleet.hosts

    def place(self, request: Request) -> None:
        now, work = request.arrived, request.prompt_work
        best, least = self._hosts[0], float("inf")
        for host in self._hosts:
            wait = host.expected_wait(now, work)
            if wait < least:
                best, least = host, wait
        _give(best, request)


class ShortestQueue:
    """The host where a slot is free soonest, exactly known; among free ones the one with most free slots."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def place(self, request: Request) -> None:
        now, hosts = request.arrived, self._fleet.hosts
        if self._fleet.with_room:
            best = min((host for host in hosts if host.up), key=_busy)
        else:
            best = min(hosts, key=lambda host: host.expected_wait(now, 0.0))
        _give(best, request)


def _busy(host: Host) -> int:
    return host.busy


class LowestWeight:
    """The AIConnect-style balancer: the lowest weight at a poll gets everything until the next one."""

    def __init__(
        self,
        fleet: Fleet,
        sensors: list[Sensor],
        signal: Signal,
        interval: float,
        until: float,
    ) -> None:
        self._sensors = sensors
        self._signal = signal
        self._target = fleet.hosts[0]
        every(fleet.env, 0.0, interval, until, self._poll)

    def _poll(self, _now: float) -> None:
        signal = self._signal
        self._target = min(self._sensors, key=lambda sensor: sensor.weight(signal)).host

    def place(self, request: Request) -> None:
        _give(self._target, request)


class Server:
    """A host as HAProxy sees it. `entry` is its place in the tree of servers, None when it is in none."""

    __slots__ = (
        "agent_up",
        "check_up",
        "draining",
        "entry",
        "errors",
        "host",
        "inflight",
        "uweight",
        "weight",
    )

    def __init__(self, host: Host, weight: int) -> None:
        self.host = host
        self.inflight = 0
        self.weight = self.uweight = weight
        self.agent_up = self.check_up = True
        self.draining = False
        self.errors = 0  # in a row
        self.entry: Optional[tuple[int, int, int]] = None

    @property
    def usable(self) -> bool:
        return self.agent_up and self.check_up and not self.draining and self.uweight > 0

    @property
    def key(self) -> int:
        """How HAProxy sorts servers under leastconn: the lowest first, an idle one whatever its weight."""
        if not self.inflight:
            return 0
        return (self.inflight + 1) * _HIGHEST_WEIGHT // (self.uweight * _WEIGHT_SCALE)


@dataclass(frozen=True)
class Front:
    """A configuration of HAProxy, as shipped but for what is said otherwise; None leaves the agent out."""

    maxconn: bool = HAPROXY_MAXCONN_IS_SLOTS
    agent_inter: Optional[float] = HAPROXY_AGENT_INTER
    agent_window: float = AGENT_CHECK_WINDOW
    check: bool = (
        True  # that Ollama's port accepts; what else is checked tells of no fault that is modelled
    )
    redispatch: bool = HAPROXY_REDISPATCH
    breaker: bool = True
    weights_by_speed: bool = False  # `weight` of each server in proportion to its GPU's speed


class LeastConnections:
    """HAProxy's `balance leastconn`: one queue for all servers where each has a `maxconn`.

    Equals take turns: the one that has had its place in the tree for longest comes first.
    """

    def __init__(
        self,
        fleet: Fleet,
        sensors: list[Sensor],
        front: Front,
        until: float,
        health: bool = True,
    ) -> None:
        """`health`: whether hosts are checked at all, which tells nothing where none is ever ill."""
        self._env = fleet.env
        self._front = front
        self._signal = Signal("agent-check", front.agent_window)
        by_speed = front.weights_by_speed
        self._servers = [
            Server(host, round(HAPROXY_WEIGHT * host.speed) if by_speed else HAPROXY_WEIGHT)
            for host in fleet.hosts
        ]
        self._queue: deque[Request] = deque()
        self._tree: list[tuple[int, int, int]] = []
        self._moves = 0
        self.longest_queue = 0
        for host, server in zip(fleet.hosts, self._servers):
            host.on_done = self._done
            self._reposition(server)
        if front.agent_inter is not None:
            for index, sensor in enumerate(sensors):
                phase = front.agent_inter * (index + 1) / len(sensors)
                self._check_agent(sensor, phase, front.agent_inter, until)
        if front.check and health:
            for index, server in enumerate(self._servers):
                phase = HAPROXY_INTER * (index + 0.5) / len(self._servers)
                self._env.process(self._check_health(server, phase, until))

    def place(self, request: Request, avoided: Optional[Server] = None, retries: int = 0) -> None:
        server = self._best(avoided)
        if server is None:
            request.refusable = len(self._queue) >= HAPROXY_MAX_QUEUE
            self._queue.append(request)
            self.longest_queue = max(self.longest_queue, len(self._queue))
        else:
            self._connect(server, request, retries)

    def _connect(self, server: Server, request: Request, retries: int) -> None:
        request.host = server.host.index
        request.placed = self._env.now
        server.inflight += 1
        self._reposition(server)
        if server.host.accept(request):
            return
        again = Timeout(
            self._env, 0.0 if self._front.redispatch else HAPROXY_RETRIES * HAPROXY_RETRY_SECONDS
        )
        assert again.callbacks is not None
        again.callbacks.append(lambda _event: self._refused(server, request, retries))

    def _refused(self, server: Server, request: Request, retries: int) -> None:
        server.inflight -= 1
        server.errors += 1
        if self._front.breaker and server.errors >= HAPROXY_ERROR_LIMIT:
            server.check_up = False
        self._reposition(server)
        if not self._front.redispatch or retries == HAPROXY_RETRIES:
            request.lost = True
        else:
            self.place(request, server, retries + 1)
        self._serve_queue(server)

    def _done(self, host: Host, request: Request) -> None:
        server = self._servers[host.index]
        if not request.lost:
            server.errors = 0
        server.inflight -= 1
        self._reposition(server)
        self._serve_queue(server)

    def _serve_queue(self, server: Server) -> None:
        while self._queue and self._has_room(server):
            self._connect(server, self._queue.popleft(), 0)

    def _has_room(self, server: Server) -> bool:
        full = self._front.maxconn and server.inflight >= server.host.slots
        return server.usable and not full

    def _best(self, avoided: Optional[Server]) -> Optional[Server]:
        """The first of the tree; the avoided one if there is no other."""
        tree = self._tree
        aside = None
        while tree:
            entry = tree[0]
            server = self._servers[entry[2]]
            if server.entry != entry:
                heappop(tree)  # it has moved since
            elif server is avoided:
                aside = heappop(tree)
            else:
                break
        best = self._servers[tree[0][2]] if tree else None
        if aside is not None:
            heappush(tree, aside)
        return best if best is not None or aside is None else avoided

    def _reposition(self, server: Server, anew: bool = False) -> None:
        """Puts a server where its connections and weight say; it keeps its turn where they say the same."""
        if not self._has_room(server):
            server.entry = None
            return
        key = server.key
        if server.entry is not None and server.entry[0] == key and not anew:
            return
        self._moves += 1
        server.entry = (key, self._moves, server.host.index)
        heappush(self._tree, server.entry)

    def _check_agent(self, sensor: Sensor, phase: float, interval: float, until: float) -> None:
        server = self._servers[sensor.host.index]
        signal = self._signal

        def check(_now: float) -> None:
            before = server.usable, server.uweight
            for word in sensor.line(signal).split("#")[0].split():
                if word.endswith("%"):
                    server.uweight = server.weight * int(word[:-1]) // 100
                elif word in ("up", "down"):
                    server.agent_up = word == "up"
                else:
                    server.draining = word == "drain"
            if before != (server.usable, server.uweight):
                self._reposition(server, anew=True)
                self._serve_queue(server)

        every(self._env, phase, interval, until, check)

    def _check_health(
        self, server: Server, phase: float, until: float
    ) -> Generator[Event, None, None]:
        against = 0  # checks in a row that do not agree with the server's state
        yield self._env.timeout(phase)
        while self._env.now <= until:
            well = server.host.up
            against = against + 1 if well != server.check_up else 0
            if against == (HAPROXY_FALL if server.check_up else HAPROXY_RISE):
                against = 0
                server.check_up = well
                server.errors = 0
                self._reposition(server, anew=True)
                self._serve_queue(server)
            yield self._env.timeout(HAPROXY_FASTINTER if against else HAPROXY_INTER)
