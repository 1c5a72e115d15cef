"""What the agent serves under which path: the application behind the event loop.

Takes the samplers' states as they are, composes a snapshot, has it judged and rendered. Everything
that a request can ask for is one of few pages; each is rendered once for a snapshot, however many
clients ask.
"""

from __future__ import annotations

import json
import sys
import time

from . import __version__
from .agent import AgentBuild, AgentStats
from .agent_check import Headroom, line
from .answer import Answer, Refused
from .exposition_json import render_json
from .exposition_text import CONTENT_TYPES, render_text
from .index_page import live_page, text_page
from .negotiation import negotiate
from .policy import ERROR
from .queries import as_seconds, parameters
from .snapshot import Snapshot
from .verdict import FAILING, OUT_OF_ROTATION, judge
from .weight import DEFAULT, PESSIMISTIC_BALANCE
from .window import LONGEST_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

    from .connection import Counters
    from .drain import DrainFile
    from .expectation import Expectation
    from .ollama_expectation import OllamaExpectation
    from .sampler import Sampler
    from .snapshot import State
    from .verdict import Verdict
    from .weight import Weighting

    Page = tuple[Any, ...]

JSON = "application/json; charset=utf-8"
# Between two snapshots only ages change, and what is stuck comes to be seen as such: often enough.
_STALE_SECONDS = 0.25

_PATHS = ("/", "/metrics", "/history", "/health", "/health/ollama", "/-/ready", "/-/healthy")


class Endpoints:
    """The application: pages by key, rendered from the samplers' latest states.

    `gpu` is None where GPUs are not looked at. `counters` is the event loop's, once there is one.
    """

    def __init__(
        self,
        host: Sampler,
        gpu: Optional[Sampler],
        expectation: Expectation,
        *,
        interval: float,
        window: float,
        on_failure: str,
        log: Callable[[str, str], None] = lambda _level, _sentence: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        ollama: Optional[Sampler] = None,
        ollama_expectation: Optional[OllamaExpectation] = None,
        ollama_ignore: tuple[str, ...] = (),
        weighting: Weighting = DEFAULT,
        queue_aware: bool = False,
        drains: Optional[DrainFile] = None,
        agent_check_window: float = 5.0,
        orca: bool = False,
        devices: Optional[Sampler] = None,
    ) -> None:
        self._host, self._gpu, self._expectation = host, gpu, expectation
        self._devices = devices
        self._ollama, self._ollama_expectation = ollama, ollama_expectation
        self._ollama_ignore, self._weighting, self._queue_aware = (
            ollama_ignore,
            weighting,
            queue_aware,
        )
        self._drains, self._orca = drains, orca
        self._agent_check_window, self._headroom = agent_check_window, Headroom()
        self._line: tuple[object, bytes] = (None, b"")
        self._interval, self._window, self._on_failure = interval, window, on_failure
        self._log, self._clock, self._wall = log, clock, wall
        self._own_failure = ""
        self._started, self._started_timestamp = clock(), wall()
        self._build = AgentBuild(__version__, ".".join(map(str, sys.version_info[:3])))
        self.counters: Optional[Counters] = None
        self._host_seen: Optional[State[Any]] = None
        self._gpu_seen: Optional[State[Any]] = None
        self._ollama_seen: Optional[State[Any]] = None
        self._snapshot = self._compose()
        self._stale_at = float("-inf")
        self._verdicts: dict[float, Verdict] = {}

    # -- what the event loop calls -------------------------------------------------------------------------------

    def version(self) -> object:
        """The latest snapshot: another object when a sampler has published, or after a quarter of a second."""
        if (
            self._host.state is self._host_seen
            and (self._gpu is None or self._gpu.state is self._gpu_seen)
            and (self._ollama is None or self._ollama.state is self._ollama_seen)
            and self._clock() < self._stale_at
        ):
            return self._snapshot
        self._host_seen = self._host.state
        self._gpu_seen = self._gpu.state if self._gpu is not None else None
        self._ollama_seen = self._ollama.state if self._ollama is not None else None
        self._snapshot = snapshot = self._compose()
        self._stale_at = self._clock() + _STALE_SECONDS
        self._verdicts.clear()
        return snapshot

    def page(self, method: str, target: str, accept: Optional[str]) -> Page:
        """The page that a request asks for. Raises Refused: 404, 405, 400."""
        path, _, query = target.partition("?")
        known = path in _PATHS
        if not known:
            raise Refused(404, "there is nothing here; / names what there is")
        if method not in ("GET", "HEAD"):
            raise Refused(405, "only GET and HEAD are answered", (("Allow", "GET, HEAD"),))
        if path == "/metrics":
            return self._metrics_page(query, accept)
        if path == "/history":
            asked = parameters(query, "seconds").get("seconds", f"{LONGEST_SECONDS:g}")
            return (path, as_seconds("seconds", asked, 1.0, LONGEST_SECONDS))
        if path == "/":
            return ("index", negotiate(accept) == "html")
        return (path,)

    def render(self, page: Any) -> Answer:
        """A page as it is now; never raises.

        An agent that cannot render is broken, and what is broken must look busy: a balancer gets
        the highest weight then, all others a 500.
        """
        try:
            answer = self._render(page)
            self._own_failure = ""
            return answer
        except Exception as error:
            self._say_own_failure(error)
            if page[:2] != ("metrics", "json"):
                return _json(500, error="the agent itself fails; its log says why", status=500)
            balance = PESSIMISTIC_BALANCE
            code = 503 if self._on_failure == ERROR else 200
            return _json(
                code,
                **vars(balance),
                gpus=[],
                timestamp=None,
                weight=self._weighting.highest,
                status=FAILING,
                reasons=["the agent itself fails; its log says why"],
            )

    def _render(self, page: Any) -> Answer:
        if page[0] == "metrics":
            return self._metrics(page[1], page[2])
        if page[0] == "index":
            return live_page() if page[1] else text_page(self.verdict(self._window))
        if page[0] == "/history":
            return self._history(page[1])
        if page[0] == "/health":
            verdict = self.verdict(self._window)
            return _json(
                503 if verdict.status in OUT_OF_ROTATION else 200,
                status=verdict.status,
                reasons=verdict.reasons,
            )
        if page[0] == "/health/ollama":
            return self._ollama_health()
        if page[0] == "/-/ready":
            fresh = (
                self._snapshot.host.sample is not None
                and self._clock() <= self._snapshot.host.overdue_at
            )
            return (
                _json(200, ready=True)
                if fresh
                else _json(503, ready=False, error="there is no fresh reading")
            )
        return _json(200, healthy=True)

    def agent_check_line(self) -> bytes:
        """What HAProxy's agent-check is told now; never raises. Made once for each snapshot."""
        try:
            version = self.version()
            if self._line[0] is not version:
                said = line(self.verdict(self._agent_check_window), self._headroom)
                self._line = version, said
            return self._line[1]
        except Exception as error:
            self._say_own_failure(error)
            return b"ready down #the agent itself fails\n"

    def _say_own_failure(self, error: Exception) -> None:
        """Once, until another one comes or a page succeeds."""
        why = f"the agent itself fails: {type(error).__name__}: {error}"
        if why != self._own_failure:
            self._own_failure = why
            self._log("error", why)

    @staticmethod
    def refusal(status: int, sentence: str) -> Answer:
        """The answer to a request that is refused."""
        return _json(status, error=sentence, status=status)

    def judge_now(self) -> Verdict:
        """The verdict on the samplers' states as they are now; may be called by any thread."""
        return self._judge(self._compose(), self._window)

    # -- pages ---------------------------------------------------------------------------------------------------

    def verdict(self, window: float) -> Verdict:
        """The verdict on the latest snapshot, judged once for each window."""
        verdict = self._verdicts.get(window)
        if verdict is None:
            if len(self._verdicts) >= 128:
                self._verdicts.clear()
            verdict = self._verdicts[window] = self._judge(self._snapshot, window)
        return verdict

    def _judge(self, snapshot: Snapshot, window: float) -> Verdict:
        return judge(
            snapshot,
            window,
            self._on_failure,
            self._clock(),
            self._ollama_ignore,
            self._weighting,
            self._queue_aware,
        )

    def document(
        self, format: str, window: Optional[float] = None, indent: Optional[int] = None
    ) -> bytes:
        """The metrics in one of the formats `json`, `prometheus` and `openmetrics`."""
        window = self._window if window is None else window
        verdict = self.verdict(window)
        if format == "json":
            return render_json(
                self._snapshot,
                verdict,
                window,
                self._build,
                self._stats(),
                self._clock(),
                indent=indent,
            )
        return render_text(
            self._snapshot, verdict, self._build, self._stats(), openmetrics=format == "openmetrics"
        )

    def _compose(self) -> Snapshot:
        now = self._clock()
        return Snapshot(
            self._host.state.as_of(now),
            self._gpu.state.as_of(now) if self._gpu is not None else None,
            self._expectation.count,
            self._expectation.how_to_change,
            self._ollama.state.as_of(now) if self._ollama is not None else None,
            self._ollama_expectation is not None and self._ollama_expectation.expected,
            self._drains.current if self._drains is not None else None,
            self._devices.state.as_of(now) if self._devices is not None else None,
        )

    def _stats(self) -> AgentStats:
        counters = self.counters
        if counters is None:
            return AgentStats()
        return AgentStats(
            uptime_seconds=self._clock() - self._started,
            start_time_seconds=self._started_timestamp,
            requests_total=counters.requests,
            requests_refused_total=counters.refused,
            connections=counters.connections,
            connections_evicted_total=counters.evicted,
        )

    def _metrics_page(self, query: str, accept: Optional[str]) -> Page:
        asked = parameters(query, "window", "format")
        window, format = self._window, asked.get("format")
        if "window" in asked:
            why = " (the sampling interval)"
            window = as_seconds("window", asked["window"], self._interval, LONGEST_SECONDS, why)
        if format not in (None, "json", *CONTENT_TYPES):
            raise Refused(400, "format: give json, prometheus or openmetrics")
        format = format or negotiate(accept)
        if format == "html":
            return ("index", True)
        # Only JSON has averages: every window is one and the same page of the others.
        return ("metrics", format, window if format == "json" else self._window)

    def _metrics(self, format: str, window: float) -> Answer:
        body = self.document(format, window)
        headers = (("endpoint-load-metrics", orca(self.verdict(window))),) if self._orca else ()
        if format != "json":
            return Answer(200, CONTENT_TYPES[format], body, headers)
        failed = self._on_failure == ERROR and self.verdict(window).status == FAILING
        return Answer(503 if failed else 200, JSON, body, headers)

    def _history(self, seconds: float) -> Answer:
        from .history import render_history

        return Answer(
            200, JSON, render_history(self._snapshot, seconds, self._clock(), self._wall())
        )

    def _ollama_health(self) -> Answer:
        from .ollama_health import answers

        state = self._snapshot.ollama
        if state is None:
            return _json(
                503, up=False, error="the agent was told to leave Ollama alone (--ollama none)"
            )
        reading = state.sample
        if answers(state, self._clock()):
            return _json(200, up=True, version=reading.version if reading is not None else None)
        why = reading.error if reading is not None else state.health.error
        return _json(503, up=False, error=why or "Ollama is not checked any more")


def orca(verdict: Verdict) -> str:
    """The value of ORCA's header for HTTP, in its text form: ratios, 1 for a host that is to get nothing.

    Source: the Open Request Cost Aggregation proposal, cncf/xds, and Envoy's load report.
    """
    balance = verdict.balance
    return (
        f"TEXT cpu_utilization={balance.cpu_percent / 100:.3f}, "
        f"mem_utilization={balance.ram_percent / 100:.3f}, "
        f"application_utilization={verdict.load_ratio:.3f}"
    )


def _json(code: int, /, **fields: Any) -> Answer:
    return Answer(code, JSON, json.dumps(fields).encode("ascii") + b"\n")
