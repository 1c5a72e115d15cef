"""What Prometheus gets: the page by every form of asking, its parsers, its linter, and itself as scraper.

`OLLAMA_METRICS_TEST_PROMETHEUS` may name more Prometheus binaries (their paths, apart by colons): each
test that scrapes then runs with every one of them, besides the installed one.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, NamedTuple

import balancer
import pytest
from agent_process import AgentProcess, Response
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_process import PrometheusProcess, scrape_job
from standin import UNSUPPORTED, NvmlStandIn

# As these releases send it, byte for byte.
ACCEPT = {
    "2.42": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "2.49.0": "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=2",
    "2.53": "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "3.5": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
}
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
JSON = "application/json; charset=utf-8"

HOSTILE_NAME = 'An "H100" \\ {gpu="0",x="y"} 1 \\n # EOF ü'
GPUS = {
    "count": 3,
    "gpu0.utilization": 61,
    "gpu0.temperature": 52,
    "gpu0.power_mw": 401_250,
    "gpu0.memory_used": 30 << 30,
    "gpu0.fan": 44,
    "gpu0.mig_mode": 0,
    "gpu0.ecc_corrected": 7,
    "gpu1.utilization": UNSUPPORTED,
    "gpu1.temperature": 53,
    "gpu1.mig_mode": 1,
    "gpu1.mig.count": 2,
    "gpu1.mig.1.memory_used": 3 << 30,
    "gpu2.name": HOSTILE_NAME,
    "gpu2.temperature": 54,
    "gpu2.memory_used": 5 << 30,
    **{
        f"gpu2.{field}": UNSUPPORTED
        for field in (
            *("utilization", "encoder", "decoder", "power_mw", "power_limit_mw", "energy_mj"),
            *("sm_clock", "mem_clock", "pstate", "throttle", "pcie_gen", "pcie_width", "fan"),
            *("ecc_corrected", "ecc_uncorrected"),
        )
    },
}
UUID = "GPU-0000000{0}-4d67-5e1f-9c2b-00000000000{0}"
# What GPU 0 must be seen as, in base units.
OF_GPU_0 = {
    "ollama_gpu_utilization_ratio": 0.61,
    "ollama_gpu_temperature_celsius": 52,
    "ollama_gpu_power_draw_watts": 401.25,
    "ollama_gpu_power_limit_watts": 700,
    "ollama_gpu_memory_used_bytes": 30 << 30,
    "ollama_gpu_memory_total_bytes": 85520809984,
    "ollama_gpu_sm_clock_hertz": 1.755e9,
    "ollama_gpu_fan_speed_ratio": 0.44,
    "ollama_gpu_energy_joules_total": 123456789.012,
    "ollama_gpu_ecc_corrected_errors_total": 7,
    "ollama_gpu_mig_enabled": 0,
}

Labels = frozenset  # of (name, value) pairs
Series = tuple  # of the name and Labels


@pytest.fixture
def agent(start_agent: Callable[..., AgentProcess], nvml: NvmlStandIn) -> AgentProcess:
    """The daemon over three GPUs: one that tells all, one in MIG mode, one that tells little and is named badly."""
    nvml.update(GPUS)
    return start_agent("--interval", "0.3", environment=nvml.environment())


def read(answer: Response) -> dict[Series, float]:
    """The samples of an exposition, by the parser that its Content-Type asks for; each may be there once."""
    assert answer.status == 200
    assert answer.headers["Vary"] == "Accept"
    body = answer.body.decode("utf-8")
    parser = {OPENMETRICS: parse_openmetrics, TEXT: parse_text}[answer.headers["Content-Type"]]
    samples = [sample for family in parser(body) for sample in family.samples]
    series = [(sample.name, Labels(sample.labels.items())) for sample in samples]
    assert [one for one, times in Counter(series).items() if times > 1] == []
    return dict(zip(series, (sample.value for sample in samples)))


def of_gpus(samples: dict[Series, float]) -> dict[Series, float]:
    """The series that come out of the driver; the stand-in's values stand still."""
    return {
        series: value for series, value in samples.items() if series[0].startswith("ollama_gpu_")
    }


def of_gpu(samples: dict[Series, float], index: int) -> dict[str, float]:
    """The series of one GPU by their names, without those of its MIG instances."""
    labels = {("gpu", str(index)), ("uuid", UUID.format(index))}
    return {name: value for (name, own), value in samples.items() if own == labels}


# -- the page ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ACCEPT)
def test_every_release_of_prometheus_gets_openmetrics_that_the_strict_parser_takes(
    agent: AgentProcess, release: str
) -> None:
    """Each Accept header that a Prometheus sends is answered in OpenMetrics, ended by # EOF, with all three GPUs."""
    answer = agent.get(
        Accept=ACCEPT[release],
        Accept_Encoding="gzip",
        X_Prometheus_Scrape_Timeout_Seconds="1",
        User_Agent=f"Prometheus/{release}",
    )
    assert answer.headers["Content-Type"] == OPENMETRICS
    assert answer.body.endswith(b"\n# EOF\n")
    samples = read(answer)
    seen = of_gpu(samples, 0)
    assert {name: seen[name] for name in OF_GPU_0} == OF_GPU_0
    assert of_gpu(samples, 1)
    assert of_gpu(samples, 2)


@pytest.mark.parametrize(
    ("target", "accept"),
    [
        ("/metrics", "text/plain;version=0.0.4"),
        ("/metrics", "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"),
        ("/metrics?format=prometheus", ACCEPT["3.5"]),
    ],
)
def test_the_text_format_has_the_same_series_and_values_as_openmetrics(
    agent: AgentProcess, target: str, accept: str
) -> None:
    """Who asks for text 0.0.4 gets it; it has OpenMetrics' series, of the GPUs with the same values."""
    answer = agent.get(target, Accept=accept)
    assert answer.headers["Content-Type"] == TEXT
    text, other = read(answer), read(agent.get("/metrics?format=openmetrics"))
    assert text.keys() == other.keys()
    assert of_gpus(text) == of_gpus(other)
    assert {name: of_gpu(text, 0)[name] for name in OF_GPU_0} == OF_GPU_0


@pytest.mark.component
def test_promtool_has_nothing_to_say(agent: AgentProcess, component: Callable[[str], str]) -> None:
    """promtool's linter of names, units and help texts is silent about the text page."""
    page = agent.get("/metrics?format=prometheus").body
    assert _promtool(component, page) == (0, b"")


@pytest.mark.component
def test_promtool_would_speak_up(agent: AgentProcess, component: Callable[[str], str]) -> None:
    """The linter is not silent by nature: the same page with a counter of a bad name is complained of."""
    page = agent.get("/metrics?format=prometheus").body
    code, said = _promtool(component, page.replace(b"gpu_energy_joules_total", b"gpu_energy_mj"))
    assert code != 0
    assert b"ollama_gpu_energy_mj" in said


def _promtool(component: Callable[[str], str], page: bytes) -> tuple[int, bytes]:
    done = subprocess.run(
        [component("promtool"), "check", "metrics"],
        input=page,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("format", ["prometheus", "openmetrics"])
def test_a_name_of_quotes_backslashes_and_braces_arrives_as_it_is(
    agent: AgentProcess, format: str
) -> None:
    """A product name full of the formats' own signs is one label, unchanged, in both of them."""
    samples = read(agent.get(f"/metrics?format={format}"))
    names = {
        dict(labels)["gpu"]: dict(labels)["name"]
        for name, labels in samples
        if name == "ollama_gpu_info"
    }
    assert names["2"] == HOSTILE_NAME
    assert names.keys() == {"0", "1", "2"}


@pytest.mark.parametrize("format", ["prometheus", "openmetrics"])
def test_what_a_gpu_does_not_report_is_no_series(agent: AgentProcess, format: str) -> None:
    """Of a GPU that reports little just that is served; there is no NaN, no infinity and no zero in its place."""
    samples = read(agent.get(f"/metrics?format={format}"))
    assert of_gpu(samples, 2) == {
        "ollama_gpu_memory_used_bytes": 5 << 30,
        "ollama_gpu_memory_total_bytes": 85520809984,
        "ollama_gpu_memory_free_bytes": 85520809984 - (5 << 30) - 657457152,
        "ollama_gpu_memory_reserved_bytes": 657457152,
        "ollama_gpu_memory_used_ratio": (5 << 30) / 85520809984,
        "ollama_gpu_temperature_celsius": 54,
        "ollama_gpu_unified_memory": 0,
    }
    assert [series for series, value in samples.items() if not math.isfinite(value)] == []


def test_mig_instances_are_series_of_their_own(agent: AgentProcess) -> None:
    """Each MIG instance has its memory under its own UUID and its GPU's index; the GPU has no utilization."""
    samples = read(agent.get("/metrics?format=openmetrics"))
    used = {
        dict(labels)["uuid"]: (dict(labels)["gpu"], value)
        for (name, labels), value in samples.items()
        if name == "ollama_gpu_mig_memory_used_bytes"
    }
    assert used == {
        "MIG-00000001-0000-5e1f-9c2b-000000000001": ("1", 1 << 30),
        "MIG-00000001-0001-5e1f-9c2b-000000000001": ("1", 3 << 30),
    }
    assert of_gpu(samples, 1)["ollama_gpu_mig_enabled"] == 1
    assert "ollama_gpu_utilization_ratio" not in of_gpu(samples, 1)


def test_a_client_without_an_accept_header_gets_json(agent: AgentProcess) -> None:
    """The barest request, of HTTP/1.0 and without any header, is answered in JSON."""
    with socket.create_connection(("127.0.0.1", agent.port), 10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    assert f"content-type: {JSON}".encode() in head.lower()
    assert json.loads(body)["gpu_count"] == 3


def test_a_go_client_that_takes_gzip_gets_json(agent: AgentProcess) -> None:
    """A Go-http-client with Accept-Encoding gzip gets plain JSON that decodes into the balancer's types."""
    answer = agent.get(User_Agent="Go-http-client/1.1", Accept_Encoding="gzip")
    assert answer.headers["Content-Type"] == JSON
    assert "Content-Encoding" not in answer.headers
    assert balancer.poll(agent.port).gpu_count == 3


@pytest.mark.component
def test_curl_gets_json(agent: AgentProcess, component: Callable[[str], str]) -> None:
    """curl, which accepts */*, gets JSON; with --compressed it can read it too."""
    for options in ([], ["--compressed"]):
        done = subprocess.run(
            [
                *(component("curl"), "-sS", "-w", "\n%{http_code} %{content_type}", *options),
                f"http://127.0.0.1:{agent.port}/metrics",
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        body, _, told = done.stdout.rpartition("\n")
        assert told == f"200 {JSON}"
        assert json.loads(body)["gpu_count"] == 3


# -- a real Prometheus ------------------------------------------------------------------------------

# Complaints about a scrape are warnings in its log, `level=warn`, since 3.0 `level=WARN`.
COMPLAINT = re.compile(
    r"level=(warn|error)|duplicate|out[- ]of[- ]order|\berr(or)?\b", re.IGNORECASE
)
# A job for each format; OpenMetrics is what it asks for by itself.
JOBS = ("openmetrics", "prometheus")
BAD_PAGE = b"# TYPE twice gauge\ntwice 1\ntwice 2\n"
BINARIES = [
    "prometheus",
    *filter(None, os.environ.get("OLLAMA_METRICS_TEST_PROMETHEUS", "").split(":")),
]


class Prometheus(PrometheusProcess):
    """A Prometheus that scrapes the agent each second, once in each format, and an exporter of duplicates."""

    def __init__(self, binary: str, folder: Path, agent_port: int, bad_port: int) -> None:
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                scrape_job(JOBS[0], agent_port),
                scrape_job(JOBS[1], agent_port, format="prometheus"),
                scrape_job("twice", bad_port),
            ],
        }
        super().__init__(binary, folder, configuration)

    def complaints(self, about: tuple[str, ...] = JOBS) -> list[str]:
        """The lines of its log that tell of trouble, but not those about jobs not asked about."""
        others = [f"scrape_pool={job}" for job in (*JOBS, "twice") if job not in about]
        return [
            line
            for line in self.log().splitlines()
            if COMPLAINT.search(line) and not any(other in line for other in others)
        ]

    def served_twice(self, job: str) -> float:
        """How many of the samples of a scrape it has not kept as a series of their own; no version tells of all."""
        (found,) = self.query(
            f'scrape_samples_scraped{{job="{job}"}}'
            f' - on (job) count by (job) ({{__name__!~"up|scrape_.+",job="{job}"}})'
        )
        return found.value

    def value(self, job: str, name: str, matcher: str = "") -> float:
        """The value of the one series of that name."""
        (found,) = self.query(f'{name}{{job="{job}",{matcher}}}')
        return found.value

    def history(self, matcher: str) -> dict[Series, set[float]]:
        """Every value that each series of the agent has ever had."""
        selector = f'{{job!="twice",{matcher}}}[10m]'
        history: dict[Series, set[float]] = {}
        for one in self.api("query", query=selector)["result"]:
            values = {float(value) for _, value in one["values"]}
            history.setdefault(_series(one["metric"]), set()).update(values)
        return history

    def gpu_series(self, job: str) -> dict[Series, float]:
        """The series of GPUs and driver that are there now, without the labels of the scrape."""
        found = self.query(f'{{__name__=~"ollama_gpu_.+",job="{job}"}}')
        return {_series(labels): value for labels, value in found}

    def wait_for_status(self, status: str) -> None:
        """Wait until both jobs have seen the host in this state, and in no other."""
        states = "on (job) sum by (job) (ollama_host_status) == 1"
        expression = f'ollama_host_status{{status="{status}"}} == 1 and {states}'
        self.wait_until(f"in state {status}", lambda: len(self.query(expression)) == len(JOBS))


def _series(labels: dict[str, str]) -> Series:
    own = {
        name: value for name, value in labels.items() if name not in ("__name__", "job", "instance")
    }
    return labels["__name__"], Labels(own.items())


@contextmanager
def bad_exporter() -> Iterator[int]:
    """Serve a page with one series twice; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", TEXT)
            self.send_header("Content-Length", str(len(BAD_PAGE)))
            self.end_headers()
            self.wfile.write(BAD_PAGE)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class Scraped(NamedTuple):
    """An agent over the three GPUs, and the Prometheus that scrapes it."""

    nvml: NvmlStandIn
    agent: AgentProcess
    prometheus: Prometheus


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ExitStack, dict[str, Scraped]]]:
    """What is kept running for all tests of this file: a Prometheus looks for its first target only after 5 s."""
    with ExitStack() as stack:
        yield stack, {}


@pytest.fixture(params=BINARIES)
def scraped(
    request: pytest.FixtureRequest,
    component: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    running: tuple[ExitStack, dict[str, Scraped]],
) -> Iterator[Scraped]:
    """A healthy host that has been scraped already; made whole again after the test."""
    stack, kept = running
    component("gcc")
    binary = component(request.param)
    if binary not in kept:
        folder = tmp_path_factory.mktemp("scraped")
        nvml = NvmlStandIn(folder / "nvml")
        nvml.update(GPUS)
        agent = stack.enter_context(
            AgentProcess(folder / "state", "--interval", "0.3", environment=nvml.environment())
        )
        bad_port = stack.enter_context(bad_exporter())
        server = Prometheus(binary, folder, agent.port, bad_port)
        stack.callback(server.close)
        kept[binary] = Scraped(nvml, agent, server)
    kept[binary].prometheus.wait_for_status("ok")
    yield kept[binary]
    kept[binary].nvml.restore()
    kept[binary].nvml.release()
    kept[binary].nvml.load_driver()


@pytest.mark.component
def test_prometheus_stores_every_gpu_series_as_served(scraped: Scraped) -> None:
    """A Prometheus finds the target up in both formats and has each GPU series as it is served, bad name and all."""
    _, agent, prometheus = scraped
    served = of_gpus(read(agent.get("/metrics?format=prometheus")))
    assert ("name", HOSTILE_NAME) in {label for _, labels in served for label in labels}
    for job in JOBS:
        assert prometheus.gpu_series(job) == served, job
        assert prometheus.value(job, "up") == 1
    targets = prometheus.api("targets", state="active")["activeTargets"]
    own = [one for one in targets if one["labels"]["job"] in JOBS]
    assert [(one["health"], one["lastError"]) for one in own] == [("up", "")] * len(JOBS)


@pytest.mark.component
@pytest.mark.parametrize(
    ("family", "kind", "unit"),
    [
        ("ollama_gpu_power_draw_watts", "gauge", "watts"),
        ("ollama_gpu_energy_joules", "counter", "joules"),
        ("ollama_gpu", "info", ""),
        ("ollama_host_cpu_ratio", "gauge", "ratio"),
    ],
)
def test_prometheus_learns_types_and_units(
    scraped: Scraped, family: str, kind: str, unit: str
) -> None:
    """From OpenMetrics a Prometheus takes each family's type and unit."""
    known = scraped.prometheus.api(
        "targets/metadata", metric=family, match_target='{job="openmetrics"}'
    )
    assert [(one["type"], one["unit"]) for one in known] == [(kind, unit)]


@pytest.mark.component
def test_prometheus_has_no_complaint_after_several_scrapes(scraped: Scraped) -> None:
    """Over repeated scrapes no sample is refused, none comes twice, and the log has no word about them."""
    prometheus = scraped.prometheus
    scrapes = "count_over_time(up{job!='twice'}[10m])"
    prometheus.wait_until(
        "scraped four times",
        lambda: [one.value >= 4 for one in prometheus.query(scrapes)] == [True] * 2,
    )
    _never_down(prometheus)
    assert [prometheus.served_twice(job) for job in JOBS] == [0, 0]
    assert prometheus.complaints() == []


@pytest.mark.component
def test_a_series_that_is_served_twice_would_be_noticed(scraped: Scraped) -> None:
    """What the test above relies on: a page with duplicates is up all the same, is counted, and told of since 2.52."""
    prometheus = scraped.prometheus
    prometheus.wait_until("scraped", lambda: len(prometheus.query('up{job="twice"} == 1')) == 1)
    assert prometheus.served_twice("twice") == 1
    if prometheus.version() >= (2, 52):
        prometheus.wait_until("complaining", lambda: bool(prometheus.complaints(about=("twice",))))


@pytest.mark.component
def test_a_lost_gpu_is_gone_from_prometheus_and_comes_back(scraped: Scraped) -> None:
    """A lost GPU takes its series with it and degrades the host; the others stay, and nothing is made up meanwhile."""
    nvml, agent, prometheus = scraped
    before = prometheus.gpu_series("openmetrics")
    nvml.lose(0)
    prometheus.wait_for_status("degraded")
    left = {series: value for series, value in before.items() if ("gpu", "0") not in series[1]}
    assert 0 < len(left) < len(before)
    for job in JOBS:
        assert prometheus.gpu_series(job) == left, job
        assert prometheus.value(job, "ollama_host_gpu_devices") == 2
        assert prometheus.value(job, "ollama_host_gpu_devices_expected") == 3
    # A balancer gets a number for it all the same.
    assert balancer.poll(agent.port).gpu_count == 3
    nvml.restore(0)
    prometheus.wait_for_status("ok")
    for job in JOBS:
        assert prometheus.gpu_series(job) == before, job
    _nothing_made_up(prometheus, before)


@pytest.mark.component
@pytest.mark.parametrize("trouble", ["gone", "hanging"])
def test_without_nvml_prometheus_has_no_gpu_series_while_json_says_500(
    scraped: Scraped, trouble: str
) -> None:
    """With the driver gone or hanging a balancer reads 500, and Prometheus a failing host without any GPU series."""
    nvml, agent, prometheus = scraped
    before = prometheus.gpu_series("openmetrics")
    if trouble == "gone":
        nvml.unload_driver()
    else:
        nvml.hang()
    prometheus.wait_for_status("failing")
    document = agent.metrics()
    assert (document["weight"], document["gpu_count"]) == (500.0, 3)
    assert balancer.poll(agent.port).weight == 500
    for job in JOBS:
        assert prometheus.gpu_series(job) == {}, job
        assert prometheus.value(job, "ollama_host_gpu_devices") == 0
        assert prometheus.value(job, "ollama_agent_collector_success", 'collector="gpu"') == 0
        assert prometheus.value(job, "ollama_agent_collector_success", 'collector="host"') == 1
        # The host's memory is served as it is, and not as the balancer's 100.
        measured = document["instant"]["ram_percent"] / 100
        stored = prometheus.value(job, "ollama_host_memory_used_ratio")
        assert stored == pytest.approx(measured, abs=0.05)
    nvml.load_driver()
    nvml.release()
    prometheus.wait_for_status("ok")
    for job in JOBS:
        assert prometheus.gpu_series(job) == before, job
    _nothing_made_up(prometheus, before)


def _nothing_made_up(prometheus: Prometheus, scripted: dict[Series, float]) -> None:
    """No GPU series ever had a value but the scripted one, and no scrape failed or was complained of."""
    history = prometheus.history('__name__=~"ollama_gpu_.+"')
    assert history == {series: {value} for series, value in scripted.items()}
    _never_down(prometheus)
    assert prometheus.complaints() == []


def _never_down(prometheus: Prometheus) -> None:
    assert prometheus.history('__name__="up"') == {("up", Labels()): {1.0}}
