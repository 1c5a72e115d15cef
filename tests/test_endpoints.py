"""What is served under which path, from readings that the test makes up, over a real socket where that matters."""

from __future__ import annotations

import base64
import gc
import hashlib
import importlib.util
import json
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Optional, Union

import pytest
from agent_process import AgentProcess
from test_negotiation import FIREFOX, PROMETHEUS
from test_server import Reply, Serving, get

import ollama_metrics
from ollama_metrics.answer import Refused
from ollama_metrics.endpoints import Endpoints
from ollama_metrics.errors import CollectorError
from ollama_metrics.expectation import Expectation
from ollama_metrics.gpu import GpuReading, GpuSample
from ollama_metrics.host import HostSample
from ollama_metrics.index_page import ENDPOINTS
from ollama_metrics.ollama import OllamaReading
from ollama_metrics.ollama_expectation import OllamaExpectation
from ollama_metrics.plans import Plans
from ollama_metrics.sampler import Sampler

PATHS = ("/", "/metrics", "/history", "/health", "/health/ollama", "/-/ready", "/-/healthy")
JSON = "application/json; charset=utf-8"
LIVE_PAGE = Path(ollama_metrics.__file__).with_name("live_page.html")
NASTY = '<script>alert("x")</script> & more'


def host_sample(cpu: float = 0.25) -> HostSample:
    return HostSample(
        cpu_ratio=cpu,
        memory_used_ratio=0.5,
        memory_total_bytes=1 << 34,
        memory_available_bytes=1 << 33,
        cpus=4.0,
        cpu_busy_seconds_total=1000.0,
        container_limited=False,
    )


def gpu_reading(present: int, enumerated: int) -> GpuReading:
    gpus = tuple(
        GpuSample(index=index, uuid=f"GPU-{index}", utilization_ratio=0.5, memory_used_ratio=0.5)
        for index in range(present)
    )
    return GpuReading(gpus=gpus, enumerated=enumerated)


class Scripted:
    """A collector that gives what it is told to, or raises it."""

    pause = 0.0

    def __init__(self, outcome: Any) -> None:
        self.outcome: Union[Any, Exception] = outcome

    def collect(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Host:
    """An agent's endpoints over samplers that turn when the test says so, on a clock that goes when it says so."""

    def __init__(
        self,
        gpu: Any = None,
        expected: int = 0,
        on_failure: str = "pessimistic",
        interval: float = 1.0,
        ollama: Any = None,
        ignored: tuple[str, ...] = (),
        **more: Any,
    ) -> None:
        self.now = 1000.0

        def clock() -> float:
            return self.now

        def log(level: str, sentence: str) -> None:
            pass

        self.logged: list[str] = []

        self.collector = Scripted(host_sample())
        self.sampler = Sampler("host", self.collector, interval, log, clock, clock)
        self.gpu_collector = Scripted(gpu)
        self.gpu_sampler = None
        if gpu is not None:
            self.gpu_sampler = Sampler("gpu", self.gpu_collector, interval, log, clock, clock)
        self.ollama_collector = Scripted(ollama)
        self.ollama_sampler = None
        if ollama is not None:
            self.ollama_sampler = Sampler(
                "ollama", self.ollama_collector, interval, log, clock, clock
            )
        self.endpoints = Endpoints(
            self.sampler,
            self.gpu_sampler,
            Expectation(expected, None, log),
            interval=interval,
            window=15.0,
            on_failure=on_failure,
            log=lambda level, sentence: self.logged.append(sentence),
            clock=clock,
            wall=clock,
            ollama=self.ollama_sampler,
            ollama_expectation=OllamaExpectation("url", True, None, log) if ollama else None,
            ollama_ignore=ignored,
            **more,
        )

    def cycle(self) -> Host:
        """Let every collector take a reading, a second after the last."""
        self.now += 1.0
        self.sampler.cycle()
        if self.gpu_sampler is not None:
            self.gpu_sampler.cycle()
        if self.ollama_sampler is not None:
            self.ollama_sampler.cycle()
        return self


Ask = Callable[..., Reply]


@pytest.fixture
def serve() -> Iterator[Callable[[Host], Ask]]:
    """Serve a host; gives a function that asks (target, header lines, method=) and checks what HEAD says of GET."""
    with ExitStack() as stack:

        def start(host: Host) -> Ask:
            serving = stack.enter_context(Serving(host.endpoints))
            host.endpoints.counters = serving.counters
            client = serving.client()

            def ask(target: str, *fields: str, method: str = "GET") -> Reply:
                return client.ask(get(target, *fields, method=method), head=method == "HEAD")

            return ask

        yield start


# -- health and readiness ------------------------------------------------------------------------------------------


def test_a_healthy_host(serve: Callable[[Host], Ask]) -> None:
    """With fresh readings everything is 200."""
    ask = serve(Host().cycle())
    health, ready, healthy = ask("/health"), ask("/-/ready"), ask("/-/healthy")
    assert (health.status, json.loads(health.body)) == (200, {"status": "ok", "reasons": []})
    assert (ready.status, json.loads(ready.body)) == (200, {"ready": True})
    assert (healthy.status, json.loads(healthy.body)) == (200, {"healthy": True})
    assert {reply.headers["Content-Type"] for reply in (health, ready, healthy)} == {JSON}


def test_a_failing_host_is_unhealthy_with_the_reasons(serve: Callable[[Host], Ask]) -> None:
    """/health is 503 and says why; /-/healthy is about the agent alone and stays 200."""
    host = Host()
    host.collector.outcome = CollectorError("/proc/stat is gone")
    ask = serve(host.cycle())
    reply = ask("/health")
    assert reply.status == 503
    document = json.loads(reply.body)
    assert document["status"] == "failing"
    assert any("/proc/stat is gone" in reason for reason in document["reasons"])
    assert ask("/-/ready").status == 503
    assert ask("/-/healthy").status == 200


def test_a_degraded_host_is_healthy_with_the_reasons(serve: Callable[[Host], Ask]) -> None:
    """A host that lost one of two GPUs can work: /health is 200 and names the loss."""
    ask = serve(Host(gpu_reading(1, 2), expected=2).cycle())
    reply = ask("/health")
    assert reply.status == 200
    document = json.loads(reply.body)
    assert document["status"] == "degraded"
    assert document["reasons"][0].startswith("1 of 2 GPUs lost")


def test_readiness_follows_the_host_sampler(serve: Callable[[Host], Ask]) -> None:
    """/-/ready is 503 before the first reading, 200 while they come, 503 once the sampler is stuck, 200 afterwards."""
    host = Host()
    ask = serve(host)
    reply = ask("/-/ready")
    assert reply.status == 503
    assert json.loads(reply.body)["ready"] is False
    assert ask("/health").status == 503
    host.cycle()
    assert ask("/-/ready").status == 200
    host.now += 2.9
    assert ask("/-/ready").status == 200
    host.now += 0.3  # three intervals, seen within a quarter of a second
    assert ask("/-/ready").status == 503
    assert ask("/health").status == 503
    assert "stuck" in json.loads(ask("/health").body)["reasons"][0]
    assert ask("/-/healthy").status == 200
    host.cycle()
    assert ask("/-/ready").status == 200


def test_readiness_does_not_wait_for_the_gpus(serve: Callable[[Host], Ask]) -> None:
    """GPUs that fail make a host unhealthy, not the agent unready."""
    host = Host(gpu_reading(2, 2), expected=2)
    host.gpu_collector.outcome = CollectorError("the driver is broken")
    ask = serve(host.cycle())
    assert ask("/-/ready").status == 200
    assert ask("/health").status == 503


# -- Ollama ------------------------------------------------------------------------------------------------------------


def answering(**changes: Any) -> OllamaReading:
    reading = {"url": "http://127.0.0.1:11434", "up": True, "expected": True, "version": "0.33.0"}
    return OllamaReading(**{**reading, "seen": True, **changes})


def silent(failures: int, **changes: Any) -> OllamaReading:
    return answering(up=False, version=None, failures=failures, error="it refuses", **changes)


def test_an_ollama_that_answers(serve: Callable[[Host], Ask]) -> None:
    """/health/ollama is 200 and names the version, in JSON."""
    reply = serve(Host(ollama=answering()).cycle())("/health/ollama")
    assert (reply.status, reply.headers["Content-Type"]) == (200, JSON)
    assert json.loads(reply.body) == {"up": True, "version": "0.33.0"}


def test_an_ollama_that_does_not_answer(serve: Callable[[Host], Ask]) -> None:
    """From its first failed check on it is 503 with the reason, long before the host is failing; then 200 again."""
    host = Host(ollama=answering())
    ask = serve(host.cycle())
    host.ollama_collector.outcome = silent(failures=1)
    host.cycle()
    reply = ask("/health/ollama")
    assert reply.status == 503
    assert json.loads(reply.body) == {"up": False, "error": "it refuses"}
    assert ask("/health").status == 200
    host.ollama_collector.outcome = silent(failures=3)
    host.cycle()
    assert [ask(path).status for path in ("/health/ollama", "/health")] == [503, 503]
    host.ollama_collector.outcome = answering()
    host.cycle()
    assert [ask(path).status for path in ("/health/ollama", "/health")] == [200, 200]


def test_an_ollama_that_is_ignored_is_still_told(serve: Callable[[Host], Ask]) -> None:
    """What does not count in the verdict counts here: the path is about Ollama alone."""
    host = Host(ollama=silent(failures=9), ignored=("down",))
    ask = serve(host.cycle())
    assert [ask(path).status for path in ("/health/ollama", "/health")] == [503, 200]


def test_a_host_that_fails_with_an_ollama_that_answers(serve: Callable[[Host], Ask]) -> None:
    """The other way round the path is 200 while the host is failing."""
    host = Host(ollama=answering())
    host.collector.outcome = CollectorError("broken")
    ask = serve(host.cycle())
    assert [ask(path).status for path in ("/health/ollama", "/health")] == [200, 503]


def test_an_ollama_that_is_not_checked_any_more(serve: Callable[[Host], Ask]) -> None:
    """Before the first check, once the checks are stuck, and where they break, the path is 503 with a reason."""
    host = Host(ollama=answering())
    ask = serve(host)
    reply = ask("/health/ollama")
    assert (reply.status, json.loads(reply.body)["up"]) == (503, False)
    host.cycle()
    assert ask("/health/ollama").status == 200
    host.now += 3600.0
    reply = ask("/health/ollama")
    assert reply.status == 503
    assert json.loads(reply.body)["error"].startswith("stuck: ")
    host.ollama_collector.outcome = ZeroDivisionError(NASTY)
    reply = serve(host.cycle())("/health/ollama")
    assert reply.status == 503
    assert "ZeroDivisionError" in json.loads(reply.body)["error"]


def test_an_ollama_that_is_left_alone(serve: Callable[[Host], Ask]) -> None:
    """With `--ollama none` it is 503 and says why."""
    reply = serve(Host().cycle())("/health/ollama")
    assert reply.status == 503
    assert "--ollama none" in json.loads(reply.body)["error"]


# -- the page ------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The links of a page, its tags and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_index_as_text(serve: Callable[[Host], Ask]) -> None:
    """/ names every endpoint and how the host is, as text for curl."""
    ask = serve(Host().cycle())
    reply = ask("/", "Accept: */*")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    text = reply.body.decode()
    assert "This host is ok, weight 75.\n" in text
    for path, what in ENDPOINTS:
        assert f"{path} " in text
        assert what in text


def test_curl_gets_text(serve: Callable[[Host], Ask]) -> None:
    """Who does not name HTML gets text, also of a failing host, with what a driver says as it was said."""
    host = Host()
    host.collector.outcome = CollectorError(NASTY)
    ask = serve(host.cycle())
    for fields in ((), ("Accept: */*",), ("Accept: application/json",)):
        reply = ask("/", *fields)
        assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert "This host is failing, weight 500.\n" in reply.body.decode()
        assert NASTY in reply.body.decode()


def test_a_browser_gets_the_live_page(serve: Callable[[Host], Ask]) -> None:
    """It is the file of the package, the same for every host, below 40 kB, and nothing in it is from elsewhere."""
    reply, other = (serve(host)("/", f"Accept: {FIREFOX}") for host in (Host().cycle(), Host()))
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert reply.body == other.body == LIVE_PAGE.read_bytes()
    assert len(reply.body) < 40_000
    assert not Links(reply.body).tags & {
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "meter",
    }
    addresses = set(re.findall(rb"https?://[\w./-]+", reply.body))
    assert addresses <= {b"http://www.w3.org/2000/svg", b"http://THIS-HOST"}
    assert b"innerHTML" not in reply.body
    assert re.search(rb"<noscript>.*curl.*</noscript>", reply.body, re.DOTALL)


def test_every_link_of_the_page_leads_somewhere(serve: Callable[[Host], Ask]) -> None:
    """Relative ones, so that they hold below a proxy's prefix; a browser is not led back to the page by them."""
    ask = serve(Host().cycle())
    links = [link for link in Links(ask("/", f"Accept: {FIREFOX}").body).links if link != "data:,"]
    assert len(links) >= 5
    for link in links:
        assert not link.startswith("/")
        there = ask(f"/{link}", f"Accept: {FIREFOX}")
        # This one leaves Ollama alone, and so cannot say that it answers.
        assert there.status == (503 if link == "health/ollama" else 200)
        assert not there.headers["Content-Type"].startswith("text/html")


def test_nothing_but_the_pages_own_script_runs(serve: Callable[[Host], Ask]) -> None:
    """The policy allows by their hashes one script and one style, and requests to the agent; nothing else."""
    reply = serve(Host().cycle())("/", "Accept: text/html")
    policy = dict(
        one.strip().split(" ", 1) for one in reply.headers["Content-Security-Policy"].split(";")
    )
    for element, directive in ((b"script", "script-src"), (b"style", "style-src")):
        (inline,) = re.findall(rb"<%s>(.*?)</%s>" % (element, element), reply.body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline).digest()).decode()
        assert policy.pop(directive) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",  # its icon, which shows the status
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert not re.search(rb"\s(on\w+|style)=", reply.body)  # which no hash allows
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("modules", [("_sha2", "_sha256"), ()], ids=["hashlib", "own"])
def test_every_python_can_make_the_policy(
    serve: Callable[[Host], Ask], monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...]
) -> None:
    """With a SHA-256 of its own or, as some distributions have it, with OpenSSL's alone."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    style = LIVE_PAGE.read_bytes().partition(b"<style>")[2].partition(b"</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
    policy = serve(Host().cycle())("/", "Accept: text/html").headers["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'; " in policy


def test_the_page_is_installed_with_the_package() -> None:
    """Whatever in the package is no module is named in pyproject.toml, else an installed agent would lack it."""
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    named = re.search(r"^ollama_metrics = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    assert named is not None
    files = {path.name for path in LIVE_PAGE.parent.iterdir() if path.is_file()}
    assert {name for name in files if not name.endswith(".py")} == set(
        re.findall(r'"(.+?)"', named[1])
    )


def test_a_package_that_has_lost_the_page(
    serve: Callable[[Host], Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser is told that the agent fails, and the log says why; all else is as ever."""
    host = Host().cycle()
    ask = serve(host)
    monkeypatch.setattr("ollama_metrics.index_page.LIVE_PAGE", "/nowhere/live_page.html")
    assert ask("/", "Accept: text/html").status == 500
    assert "/nowhere/live_page.html" in host.logged[-1]
    assert [ask(path).status for path in ("/", "/metrics", "/health")] == [200, 200, 200]


# -- the history ---------------------------------------------------------------------------------------------------


def test_the_history_of_two_minutes(serve: Callable[[Host], Ask]) -> None:
    """Without a query it is all that is kept, as of now; Ollama and GPUs that are not looked at are null."""
    host = Host()
    for cpu in (0.1, 0.2, 0.3):
        host.collector.outcome = host_sample(cpu)
        host.cycle()
    reply = serve(host)("/history")
    assert (reply.status, reply.headers["Content-Type"]) == (200, JSON)
    assert json.loads(reply.body) == {
        "timestamp": host.now,
        "seconds": 120.0,
        "host": {
            "ago_seconds": [2.0, 1.0, 0.0],
            "cpu_percent": [10.0, 20.0, 30.0],
            "ram_percent": [50.0, 50.0, 50.0],
        },
        "gpu": None,
        "ollama": None,
    }


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("seconds=1", 1.0),
        ("seconds=120", 120.0),
        ("seconds=2.1", 3.0),
        ("unknown=1&seconds=60&other", 60.0),
        ("window=x", 120.0),
        ("", 120.0),
    ],
)
def test_a_shorter_history(serve: Callable[[Host], Ask], query: str, seconds: float) -> None:
    """From one second to two minutes, in whole seconds; unknown parameters are passed over."""
    assert json.loads(serve(Host().cycle())(f"/history?{query}").body)["seconds"] == seconds


@pytest.mark.parametrize(
    "query",
    [
        *(f"seconds={value}" for value in ("0", "0.9", "121", "-1", "nan", "inf", "x", "", "1_0")),
        "seconds",
        "seconds=10&seconds=10",
        "seconds=" + "9" * 10_000,
        "&".join(f"x{number}=1" for number in range(17)),
    ],
)
def test_a_history_that_makes_no_sense_is_400(serve: Callable[[Host], Ask], query: str) -> None:
    """A value that cannot be used is refused, and not passed over."""
    assert serve(Host().cycle())(f"/history?{query}").status == 400


def test_the_refusal_of_a_history_says_what_is_accepted(serve: Callable[[Host], Ask]) -> None:
    """A sentence each for a value that cannot be, and for one that is given twice."""
    ask = serve(Host().cycle())
    errors = [
        json.loads(ask(f"/history?{q}").body)["error"] for q in ("seconds=0", "seconds=1&" * 2)
    ]
    assert errors == ["seconds: give seconds from 1 to 120", "seconds may be given once"]


def test_the_history_is_rendered_once_for_a_snapshot(
    serve: Callable[[Host], Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many clients ask, and in whatever spelling; anew when there is another reading."""
    rendered: list[float] = []

    def render(snapshot: Any, seconds: float, now: float, timestamp: float) -> bytes:
        rendered.append(seconds)
        return b"{}"

    monkeypatch.setattr("ollama_metrics.history.render_history", render)
    host = Host().cycle()
    ask = serve(host)
    for query in ("?seconds=30", "?seconds=29.5", "?x=1&seconds=30", "?seconds=30"):
        ask(f"/history{query}", "X-Client: other")
    assert rendered == [30.0]
    host.cycle()
    ask("/history?seconds=30")
    assert rendered == [30.0, 30.0]


def test_all_histories_together_are_bounded() -> None:
    """Of 120 lengths each is one page, whatever the spelling."""
    page = Host().endpoints.page
    pages = {
        page("GET", f"/history?seconds={1 + number / 100:.2f}", None) for number in range(11_900)
    }
    assert len(pages) == 120


@pytest.mark.parametrize("fields", [[], ["Accept: text/html"]])
@pytest.mark.parametrize("working", [True, False])
@pytest.mark.parametrize(
    "target", [*PATHS, "/metrics?format=openmetrics", "/metrics?window=x", "/x"]
)
def test_head_of_everything(
    serve: Callable[[Host], Ask], target: str, working: bool, fields: list[str]
) -> None:
    """HEAD has the status and headers of GET on every path, and no body."""
    ask = serve(Host().cycle() if working else Host())
    full = ask(target, *fields)
    head = ask(target, *fields, method="HEAD")
    assert head.status == full.status
    assert {**head.headers, "Date": ""} == {**full.headers, "Date": ""}
    assert ask("/-/healthy").status == 200  # the connection goes on behind it


@pytest.mark.parametrize("target", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(serve: Callable[[Host], Ask], target: str, method: str) -> None:
    """Every path answers 405 and says what is allowed."""
    reply = serve(Host().cycle())(target, method=method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "target", ["/metric", "/metrics/", "/METRICS", "/health/", "/-/", "*", "/%2e"]
)
def test_other_paths_are_not_found(serve: Callable[[Host], Ask], target: str) -> None:
    """A path is one of those that there are, to the letter."""
    assert serve(Host().cycle())(target).status == 404


# -- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", PROMETHEUS)
def test_prometheus_gets_openmetrics(serve: Callable[[Host], Ask], version: str) -> None:
    """Each Prometheus gets a document that ends as OpenMetrics must."""
    reply = serve(Host().cycle())(
        "/metrics", f"Accept: {PROMETHEUS[version]}", "Accept-Encoding: gzip"
    )
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert reply.body.endswith(b"# EOF\n")
    assert "Content-Encoding" not in reply.headers


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip"],
        ["User-Agent: curl/8.5.0", "Accept: */*"],
        ["Accept: application/json"],
        ["Accept: application/json, text/plain, */*", "User-Agent: axios/1.7.2"],
    ],
    ids=["bare", "Go", "curl", "json", "axios"],
)
def test_balancers_get_json(serve: Callable[[Host], Ask], fields: list[str]) -> None:
    """Who names no format gets the document that balancers decode."""
    reply = serve(Host().cycle())("/metrics", *fields)
    assert (reply.status, reply.headers["Content-Type"]) == (200, JSON)
    document = json.loads(reply.body)
    assert (document["cpu_percent"], document["ram_percent"], document["weight"]) == (
        25.0,
        50.0,
        75.0,
    )


def test_a_browser_at_metrics_gets_the_page(serve: Callable[[Host], Ask]) -> None:
    """A browser that is led to /metrics gets the same page as at /."""
    ask = serve(Host().cycle())
    assert ask("/metrics", f"Accept: {FIREFOX}").body == ask("/", f"Accept: {FIREFOX}").body


@pytest.mark.parametrize("accept", ["*/*", FIREFOX, PROMETHEUS["3.5"], "application/json"])
def test_the_format_in_the_query_wins(serve: Callable[[Host], Ask], accept: str) -> None:
    """`?format=` is stronger than whatever the client accepts."""
    ask = serve(Host().cycle())
    for format, content_type in (
        ("json", JSON),
        ("prometheus", "text/plain; version=0.0.4; charset=utf-8"),
        ("openmetrics", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ):
        reply = ask(f"/metrics?format={format}", f"Accept: {accept}")
        assert (reply.status, reply.headers["Content-Type"]) == (200, content_type)


@pytest.mark.parametrize(
    "query",
    [
        *(
            f"window={value}"
            for value in (
                "abc",
                "nan",
                "inf",
                "-inf",
                "0",
                "-1",
                "121",
                "120.01",
                "0.99",
                "",
                "1e9",
            )
        ),
        "window=1+5",
        "window=15,5",
        "window=" + "9" * 10_000,
        "window=0000000000000000030",
        "window=30&window=30",
        "window",
        "format=xml",
        "format=html",
        "format=",
        "format=JSON",
        "format=json&format=json",
        "window=30&format=json&window=40",
        "&".join(f"x{number}=1" for number in range(17)),
    ],
)
def test_a_query_that_makes_no_sense_is_400(serve: Callable[[Host], Ask], query: str) -> None:
    """A value that cannot be used is refused and not passed over; the connection goes on."""
    ask = serve(Host().cycle())
    assert ask(f"/metrics?{query}").status == 400
    assert ask("/metrics").status == 200


def test_the_refusal_of_a_window_says_what_is_accepted(serve: Callable[[Host], Ask]) -> None:
    """The sentence names the least window, which is the interval, and the longest."""
    error = json.loads(serve(Host(interval=2.0).cycle())("/metrics?window=1").body)["error"]
    assert error == "window: give seconds from 2 (the sampling interval) to 120"


@pytest.mark.parametrize(
    ("query", "window"),
    [
        ("", 15.0),
        ("window=1", 1.0),
        ("window=120", 120.0),
        ("window=7.5", 8.0),
        ("window=%33%30", 30.0),
        ("window=30.0049", 31.0),
        ("unknown=1&window=60&other", 60.0),
        ("format=json&window=60", 60.0),
    ],
)
def test_a_window_is_served(serve: Callable[[Host], Ask], query: str, window: float) -> None:
    """From the interval to two minutes every window is served, in whole seconds; unknown parameters are passed over."""
    assert json.loads(serve(Host().cycle())(f"/metrics?{query}").body)["window_seconds"] == window


def test_a_window_is_averaged_over(serve: Callable[[Host], Ask]) -> None:
    """The numbers are those of the window that was asked for."""
    host = Host()
    for cpu in (1.0, 1.0, 0.0, 0.5):
        host.collector.outcome = host_sample(cpu)
        host.cycle()
    ask = serve(host)
    means = [json.loads(ask(f"/metrics?window={w}").body)["cpu_percent"] for w in (1, 2, 3, 4)]
    assert means == [50.0, 25.0, 50.0, 62.5]


@pytest.mark.parametrize(
    ("on_failure", "status"), [("pessimistic", 200), ("error", 503), ("last-good", 200)]
)
def test_the_status_of_failing_metrics_is_the_policys(
    serve: Callable[[Host], Ask], on_failure: str, status: int
) -> None:
    """Only policy `error` answers 503, to balancers; Prometheus is always answered 200."""
    host = Host(on_failure=on_failure)
    host.collector.outcome = CollectorError("broken")
    ask = serve(host.cycle())
    reply = ask("/metrics")
    assert reply.status == status
    assert json.loads(reply.body)["weight"] == 500
    assert ask("/metrics?format=openmetrics").status == 200


@pytest.mark.parametrize(("on_failure", "status"), [("pessimistic", 200), ("error", 503)])
def test_an_agent_that_cannot_render_looks_busy(
    serve: Callable[[Host], Ask],
    monkeypatch: pytest.MonkeyPatch,
    on_failure: str,
    status: int,
) -> None:
    """A bug in the agent itself gives balancers the highest weight, all others a 500, and the log one line."""

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(NASTY)

    host = Host(on_failure=on_failure).cycle()
    ask = serve(host)
    monkeypatch.setattr("ollama_metrics.endpoints.render_json", broken)
    monkeypatch.setattr("ollama_metrics.endpoints.render_text", broken)
    for _ in range(3):
        host.now += 0.3
        reply = ask("/metrics")
        assert reply.status == status
        document = json.loads(reply.body)
        assert (document["weight"], document["gpu_count"]) == (500, 1)
        assert document["status"] == "failing"
        assert document["reasons"] == ["the agent itself fails; its log says why"]
    assert ask("/metrics?format=openmetrics").status == 500
    assert ask("/-/healthy").status == 200
    assert ask("/health").status == 200
    assert host.logged == [f"the agent itself fails: ZeroDivisionError: {NASTY}"]


# -- versions ------------------------------------------------------------------------------------------------------


def test_a_version_lasts_until_there_is_something_new() -> None:
    """A version is good until a sampler has published, and for a quarter of a second at most."""
    host = Host(gpu_reading(1, 1), expected=1).cycle()
    assert host.gpu_sampler is not None
    version = host.endpoints.version()
    host.now += 0.24
    assert host.endpoints.version() is version
    host.now += 0.02
    second = host.endpoints.version()
    assert second is not version
    host.sampler.cycle()
    third = host.endpoints.version()
    assert third is not second
    host.gpu_sampler.cycle()
    fourth = host.endpoints.version()
    assert fourth is not third
    assert host.endpoints.version() is fourth


def test_what_is_new_is_served_at_once(serve: Callable[[Host], Ask]) -> None:
    """The first answer after a reading has it, on a connection whose request has been seen before."""
    host = Host()
    ask = serve(host)
    for cpu in (0.1, 0.2, 0.3):
        host.collector.outcome = host_sample(cpu)
        host.cycle()
        assert json.loads(ask("/metrics").body)["instant"]["cpu_percent"] == 100 * cpu


def test_the_agent_tells_exactly_what_it_has_served(serve: Callable[[Host], Ask]) -> None:
    """The counters in the document are those of the event loop when it was rendered."""
    host = Host().cycle()
    ask = serve(host)
    for number in range(5):
        host.now += 0.3
        agent = json.loads(ask("/metrics").body)["agent"]
        assert agent["requests_total"] == 2 * number
        assert agent["requests_refused_total"] == number
        assert agent["connections"] == (1 if number else agent["connections"])
        assert ask("/nothing").status == 404
    host.now += 0.3
    lines = ask("/metrics?format=prometheus").body.decode().splitlines()
    assert "ollama_agent_requests_total 10" in lines
    assert "ollama_agent_requests_refused_total 5" in lines


def test_many_windows_do_not_add_up() -> None:
    """Asking for one window after the other leaves no more behind than asking for a few."""
    host = Host().cycle()
    plans = Plans(host.endpoints)
    version = host.endpoints.version()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(600):
            target = f"/metrics?window={1 + number / 100:.2f}"
            plans.render(plans.make(get(target)), version)
            assert len(plans.known) <= 256
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # 256 answers of 1.5 kB and their heads; all of them would be 2 MB.
    assert held < 1.5 * (1 << 20)


def test_many_verdicts_do_not_add_up() -> None:
    """A verdict is kept for few windows."""
    host = Host().cycle()
    host.endpoints.version()
    tracemalloc.start()
    try:
        for number in range(1500):
            host.endpoints.verdict(1 + number / 100)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 250_000
    assert host.endpoints.verdict(15.0) is host.endpoints.verdict(15.0)


def test_pages_are_keys() -> None:
    """Requests for the same thing are one page, whatever their spelling; what is refused has no page."""
    page = Host().endpoints.page
    assert page("GET", "/metrics", None) == page("HEAD", "/metrics?x=1", "*/*")
    assert page("GET", "/metrics", None) == page("GET", "/metrics?window=15", "application/json")
    assert page("GET", "/metrics?window=29.3", None) == page("GET", "/metrics?window=30.0", None)
    assert page("GET", "/metrics", "text/html") == page("GET", "/", "text/html")
    with pytest.raises(Refused):
        page("GET", "/metrics?window=x", None)


# -- the real daemon -----------------------------------------------------------------------------------------------


def test_the_running_agent(start_agent: Callable[..., AgentProcess]) -> None:
    """The daemon serves all of it: every path, HEAD, the formats and its own refusals."""
    agent = start_agent("--expected-gpus", "0", "--interval", "0.2")
    for path in PATHS:
        full, head = agent.get(path), agent.get(path, method="HEAD")
        status = 503 if path == "/health/ollama" else 200  # it is told to leave Ollama alone
        assert (full.status, head.status, head.body) == (status, status, b"")
        assert full.headers["Cache-Control"] == "no-store"
    assert agent.get("/health").json["status"] == "ok"
    assert agent.get("/-/ready").json == {"ready": True}
    assert agent.get(Accept=PROMETHEUS["3.5"]).body.endswith(b"# EOF\n")
    assert agent.get("/", Accept=FIREFOX).body.startswith(b"<!doctype html>")
    assert agent.get("/metrics?window=0.1").status == 400
    assert agent.get("/metrics?window=0.2").status == 200
    assert agent.get("/metrics", method="POST", Content_Length="3").status == 405
    assert agent.get("/x").json["status"] == 404
    document = agent.wait_until(lambda d: d["agent"]["requests_total"] >= 17)
    assert document["agent"]["requests_refused_total"] == 3


@pytest.mark.skipif(
    not any(map(importlib.util.find_spec, ("_sha2", "_sha256"))),
    reason="SHA-256 is OpenSSL's alone",
)
def test_a_look_at_the_page_costs_no_megabytes(start_agent: Callable[..., AgentProcess]) -> None:
    """The daemon has not loaded OpenSSL's library for it, which would stay in its memory."""
    agent = start_agent("--expected-gpus", "0", "--interval", "0.2")
    assert "sha256-" in agent.get("/", Accept=FIREFOX).headers["Content-Security-Policy"]
    assert "libcrypto" not in Path(f"/proc/{agent.pid}/maps").read_text()


# -- HAProxy and ORCA ------------------------------------------------------------------------------------------------


def test_the_agent_checks_line_is_made_once_a_snapshot() -> None:
    """Who asks between two samples is handed the same bytes; after a failed sample they say down."""
    host = Host(interval=0.1).cycle()
    first = host.endpoints.agent_check_line()
    assert first.startswith(b"ready up ")
    assert host.endpoints.agent_check_line() is first
    host.collector.outcome = CollectorError("no /proc")
    host.cycle()
    assert (
        host.endpoints.agent_check_line() == b"ready down #CPU and RAM cannot be read: no /proc\n"
    )


def test_an_agent_that_cannot_judge_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the agent's own is no reason to send requests: down, and the fault in the log."""
    host = Host().cycle()

    def fault(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("ollama_metrics.endpoints.judge", fault)
    assert host.endpoints.agent_check_line() == b"ready down #the agent itself fails\n"
    assert "ZeroDivisionError" in host.logged[-1]


def test_orcas_header_is_there_when_it_is_asked_for(serve: Callable[[Host], Ask]) -> None:
    """Ratios in ORCA's text form on each format of /metrics, all 1 for a failing host; without --orca none."""
    assert "endpoint-load-metrics" not in serve(Host().cycle())("/metrics").headers
    host = Host(orca=True).cycle()
    ask = serve(host)
    for target in ("/metrics", "/metrics?format=prometheus", "/metrics?format=openmetrics"):
        told = ask(target).headers["endpoint-load-metrics"]
        kind, _, pairs = told.partition(" ")
        values = dict(pair.split("=") for pair in pairs.split(", "))
        assert kind == "TEXT"
        assert list(values) == ["cpu_utilization", "mem_utilization", "application_utilization"]
        assert all(0 <= float(value) < 1 for value in values.values())
    host.collector.outcome = CollectorError("no /proc")
    host.cycle()
    told = ask("/metrics").headers["endpoint-load-metrics"]
    assert (
        told == "TEXT cpu_utilization=1.000, mem_utilization=1.000, application_utilization=1.000"
    )
