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
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import balancer
import pytest
from agent_process import AgentProcess, Response
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
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
    """Who asks for text 0.0.4 gets it; it says what OpenMetrics says, of the agent's own counters by the names alone."""
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

# Complaints: about a scrape they are warnings, `level=warn` until 2.54 and `level=WARN` since 3.0.
COMPLAINT = re.compile(
    r"level=(warn|error)|duplicate|out[- ]of[- ]order|\berr(or)?\b", re.IGNORECASE
)
FORMATS = ("openmetrics", "prometheus")  # a job each; OpenMetrics is what it asks for by itself


class Found(NamedTuple):
    """One series of an answer to a query."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """A Prometheus that scrapes `port` each second, once in each format; `address` is its own."""

    def __init__(self, binary: str, folder: Path, port: int) -> None:
        self.port, self.log_file = _free_port(), folder / "prometheus.log"
        self._folder, self._binary = folder, binary
        jobs = [
            {
                "job_name": format,
                "params": {} if format == FORMATS[0] else {"format": [format]},
                "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
            }
            for format in FORMATS
        ]
        times = {"scrape_interval": "1s", "scrape_timeout": "1s"}
        (folder / "prometheus.yml").write_text(  # JSON is YAML
            json.dumps({"global": times, "scrape_configs": jobs})
        )

    @contextmanager
    def running(self) -> Iterator[Prometheus]:
        """Run it; it is ended by its pid."""
        with self.log_file.open("wb") as log:
            process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )
        try:
            yield self
            assert process.poll() is None, self.log()
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text("utf-8", "replace")

    def complaints(self) -> list[str]:
        """The lines of its log that tell of trouble."""
        return [line for line in self.log().splitlines() if COMPLAINT.search(line)]

    def api(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Found]:
        """The series that an expression gives now."""
        result = self.api("query", query=expression)["result"]
        return [Found(one["metric"], float(one["value"][1])) for one in result]

    def history(self, selector: str) -> dict[Series, set[float]]:
        """Every value that each series of a selector has ever had."""
        result = self.api("query", query=f"{selector}[10m]")["result"]
        return {
            _series(one["metric"]): {float(value) for _, value in one["values"]} for one in result
        }

    def gpu_series(self, job: str) -> dict[Series, float]:
        """The series of GPUs and driver that are there now, without the labels of the scrape."""
        return {
            _series(labels): value
            for labels, value in self.query(f'{{__name__=~"ollama_gpu_.+",job="{job}"}}')
        }

    def wait_until(self, what: str, true_now: Callable[[], bool], patience: float = 15.0) -> None:
        """Ask until something is true."""
        deadline = time.monotonic() + patience
        while True:
            try:
                if true_now():
                    return
            except (HTTPError, URLError, ConnectionError):
                pass  # it has only begun to start
            assert time.monotonic() < deadline, f"never {what}; log:\n{self.log()}"
            threading.Event().wait(0.05)

    def wait_for_status(self, status: str) -> None:
        """Wait until both jobs have seen the host in this state, and no other."""
        expression = f'ollama_host_status{{status="{status}"}} == 1 and on (job) sum by (job) (ollama_host_status) == 1'
        self.wait_until(f"in state {status}", lambda: len(self.query(expression)) == len(FORMATS))


def _series(labels: dict[str, str]) -> Series:
    own = Labels((k, v) for k, v in labels.items() if k not in ("__name__", "job", "instance"))
    return labels["__name__"], own


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


BINARIES = [
    "prometheus",
    *filter(None, os.environ.get("OLLAMA_METRICS_TEST_PROMETHEUS", "").split(":")),
]


@pytest.fixture(params=BINARIES)
def prometheus(
    request: pytest.FixtureRequest, component: Callable[[str], str], tmp_path: Path
) -> Callable[[int], Prometheus]:
    """Make a Prometheus (not yet running) for the agent on a port."""
    binary = component(request.param)
    return lambda port: Prometheus(binary, tmp_path, port)


@pytest.mark.component
def test_prometheus_scrapes_every_value_and_has_no_complaint(
    agent: AgentProcess, prometheus: Callable[[int], Prometheus]
) -> None:
    """A Prometheus finds the target up in both formats, stores each GPU series as served, and logs nothing about it."""
    with prometheus(agent.port).running() as server:
        server.wait_for_status("ok")
        served = of_gpus(read(agent.get("/metrics?format=prometheus")))
        for job in FORMATS:
            assert server.gpu_series(job) == served, job
        # Some more scrapes, for what goes wrong only from the second on.
        server.wait_until(
            "scraped three times",
            lambda: (
                [one.value >= 3 for one in server.query("count_over_time(up[10m])")] == [True] * 2
            ),
        )
        assert {value for values in server.history("up").values() for value in values} == {1.0}
        targets = server.api("targets", state="active")["activeTargets"]
        assert {(one["health"], one["lastError"]) for one in targets} == {("up", "")}
        for name, kind, unit in (
            ("ollama_gpu_power_draw_watts", "gauge", "watts"),
            ("ollama_gpu_energy_joules", "counter", "joules"),
            ("ollama_gpu", "info", ""),
        ):
            known = [
                (one["type"], one["unit"])
                for one in server.api(
                    "targets/metadata", metric=name, match_target='{job="openmetrics"}'
                )
            ]
            assert known == [(kind, unit)], name
        assert server.query("sum by (job) (rate(ollama_agent_requests_total[10m])) > 0")
        assert server.complaints() == []


@pytest.mark.component
def test_a_lost_gpu_is_gone_from_prometheus_and_comes_back(
    agent: AgentProcess, nvml: NvmlStandIn, prometheus: Callable[[int], Prometheus]
) -> None:
    """A GPU that is lost takes its series with it, the host is degraded, the others stay; nothing is made up meanwhile."""
    with prometheus(agent.port).running() as server:
        server.wait_for_status("ok")
        before = server.gpu_series("openmetrics")
        nvml.lose(0)
        server.wait_for_status("degraded")
        left = {s: v for s, v in before.items() if ("gpu", "0") not in s[1]}
        assert 0 < len(left) < len(before)
        for job in FORMATS:
            assert server.gpu_series(job) == left, job
            assert _one(server, "ollama_host_gpu_devices", job) == 2
            assert _one(server, "ollama_host_gpu_devices_expected", job) == 3
        # To the balancer the lost one counts as full, which the others are not.
        assert agent.metrics()["gpu_avg_utilization_percent"] > 30
        nvml.restore(0)
        server.wait_for_status("ok")
        for job in FORMATS:
            assert server.gpu_series(job) == before, job
        _nothing_made_up(server, before)
        assert server.complaints() == []


@pytest.mark.component
def test_without_nvml_prometheus_has_no_gpu_series_while_json_says_500(
    agent: AgentProcess, nvml: NvmlStandIn, prometheus: Callable[[int], Prometheus]
) -> None:
    """With the driver gone a balancer reads the weight 500, and Prometheus a failing host without any GPU series."""
    with prometheus(agent.port).running() as server:
        server.wait_for_status("ok")
        before = server.gpu_series("openmetrics")
        nvml.unload_driver()
        server.wait_for_status("failing")
        document = agent.metrics()
        assert (document["weight"], document["gpu_count"]) == (500.0, 3)
        assert balancer.poll(agent.port).weight == 500
        for job in FORMATS:
            assert server.gpu_series(job) == {}, job
            assert _one(server, "ollama_host_gpu_devices", job) == 0
            assert _one(server, 'ollama_agent_collector_success{collector="gpu"}', job) == 0
            assert _one(server, 'ollama_agent_collector_success{collector="host"}', job) == 1
            # The memory of the host is served as it is, not as the balancer's 100.
            served = document["instant"]["ram_percent"] / 100
            assert _one(server, "ollama_host_memory_used_ratio", job) == pytest.approx(
                served, abs=0.05
            )
        nvml.load_driver()
        server.wait_for_status("ok")
        assert server.gpu_series("openmetrics") == before
        _nothing_made_up(server, before)
        assert server.complaints() == []


def _one(server: Prometheus, selector: str, job: str) -> float:
    selector = selector[:-1] + "," if selector.endswith("}") else selector + "{"
    (found,) = server.query(f'{selector}job="{job}"}}')
    return found.value


def _nothing_made_up(server: Prometheus, scripted: dict[Series, float]) -> None:
    """No GPU series ever had a value but the scripted one, and the target was up all the time."""
    history = server.history('{__name__=~"ollama_gpu_.+"}')
    assert history == {series: {value} for series, value in scripted.items()}
    assert {value for values in server.history("up").values() for value in values} == {1.0}


@pytest.mark.component
def test_a_series_that_is_served_twice_is_complained_of(
    prometheus: Callable[[int], Prometheus],
) -> None:
    """The log that the tests above read is where Prometheus tells of duplicates, and `complaints` finds them there."""
    page = b"# TYPE twice gauge\ntwice 1\ntwice 2\n"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", TEXT)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as exporter:
        thread = threading.Thread(target=exporter.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with prometheus(exporter.server_port).running() as server:
                server.wait_until("complaining", lambda: bool(server.complaints()))
                assert {one.value for one in server.query("up")} == {1.0}
        finally:
            exporter.shutdown()
            thread.join()
