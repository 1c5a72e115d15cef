"""The dashboards of deploy/grafana/: their form, and every expression on a real Prometheus that scrapes live agents.

There is no Grafana in these tests. What it does to an expression, putting the chosen values in, is done by its rules.
"""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union

import ollama_standin
import pytest
import yaml
from agent_process import AgentProcess
from ollama_process import OllamaProcess, model
from prometheus_process import Found, PrometheusProcess
from standin import NvmlStandIn

from ollama_metrics.drain import DrainFile
from ollama_metrics.exposition_text import TABLES

pytestmark = pytest.mark.deploy
SHIPPED = Path(__file__).parents[1] / "deploy" / "grafana"
GENERATOR = SHIPPED / "generator" / "generate.py"
PROMETHEUS_CONFIG = SHIPPED.parent / "prometheus" / "prometheus.yml"
NAMES = ("fleet", "gpus", "host")
OTHERS = {"fleet": {"gpus", "host"}, "gpus": {"fleet", "host"}, "host": {"fleet", "gpus"}}
# Grafana's names of units, as far as they are used here.
UNITS = {
    *("none", "short", "percentunit", "bytes", "Bps", "pps", "reqps", "s", "celsius"),
    *("watt", "hertz"),
}
AS_OF_NOW = {"stat", "gauge", "table"}
OVER_TIME = {"timeseries", "state-timeline"}


def load(name: str) -> dict[str, Any]:
    """A dashboard, read strictly: no key twice, no NaN."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), pairs
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (SHIPPED / "dashboards" / f"{name}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    return loaded


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the headlines."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def strings(value: Any) -> Iterator[str]:
    """Every text anywhere in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)


# -- the files -------------------------------------------------------------------------------------


def test_the_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    """`make dashboards` would change nothing, and there is no file that it does not write."""
    subprocess.run([sys.executable, str(GENERATOR), str(tmp_path)], check=True, timeout=30)
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_text("utf-8") for path in (SHIPPED / "dashboards").iterdir()}
    assert shipped.keys() == {f"{name}.json" for name in NAMES}
    assert shipped == written


def test_the_generator_takes_no_option(tmp_path: Path) -> None:
    """What it does not know it refuses, and writes nothing."""
    done = subprocess.run(
        [sys.executable, str(GENERATOR), "--check"], capture_output=True, text=True, timeout=30,
        check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "usage:" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_every_dashboard_has(name: str) -> None:
    """Refresh, time range, tags, schema; a uid that a link can name; the verdict or the hosts at the top left."""
    dashboard = load(name)
    assert dashboard["uid"] == f"ollama-{name}"
    assert dashboard["id"] is None
    assert dashboard["title"].startswith("Ollama: ")
    assert dashboard["tags"] == ["ollama", "monitoring"]
    assert dashboard["refresh"] == "10s"
    assert dashboard["time"] == {"from": "now-1h", "to": "now"}
    assert 38 <= dashboard["schemaVersion"] <= 42
    assert dashboard["description"]
    first = min(
        dashboard["panels"], key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"])
    )
    assert first["title"] in ("Verdict", "Hosts by verdict", "GPUs lost")
    assert "Verdict over time" in [panel["title"] for panel in panels(dashboard)]


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_an_id_of_their_own_and_lie_beside_each_other(name: str) -> None:
    """No id or title twice, no panel over another or beyond the edge, and no hole in a line of panels."""
    listed = load(name)["panels"]
    named = [panel["id"] for panel in listed] + [panel["title"] for panel in panels(load(name))]
    assert [one for one, times in Counter(named).items() if times > 1] == []
    assert all(isinstance(panel["id"], int) and panel["id"] > 0 for panel in listed)
    cells = {
        panel["id"]: {
            (x, y)
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        }
        for panel in listed
    }
    assert [(a, b) for a, b in combinations(cells, 2) if cells[a] & cells[b]] == []
    covered = set().union(*cells.values())
    assert covered == {(x, y) for x in range(24) for y in range(max(y for _, y in covered) + 1)}
    for panel in panels({"panels": listed}):
        least = {"table": 7, "timeseries": 7}.get(panel["type"], 4)
        assert panel["gridPos"]["h"] >= least, panel["title"]
        assert panel["gridPos"]["w"] >= (6 if panel["type"] in OVER_TIME else 3), panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_what_every_panel_has(name: str) -> None:
    """A title, a description, a unit, a text for no data; each query a letter, a legend, the chosen data source."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(load(name)):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["type"] in AS_OF_NOW | OVER_TIME, panel
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == source
        assert defaults["unit"] in UNITS, panel["title"]
        assert defaults["noValue"], panel["title"]
        assert defaults["noValue"] != "0", panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + index) for index in range(len(letters))] != []
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]
            assert target["datasource"] == source
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]
        units = [
            one["value"]
            for override in panel["fieldConfig"]["overrides"]
            for one in override["properties"]
            if one["id"] == "unit"
        ]
        assert set(units) <= UNITS, panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_overrides_are_of_fields_that_there_are(name: str) -> None:
    """An override names a legend or a column of its panel; one for a name that was changed would be lost in silence."""
    for panel in panels(load(name)):
        fields = {target["legendFormat"] for target in panel["targets"]}
        for step in panel.get("transformations", ()):
            fields |= set(step["options"].get("renameByName", {}).values())
        for override in panel["fieldConfig"]["overrides"]:
            wanted = override["matcher"]["options"]
            if override["matcher"]["id"] == "byRegexp":
                matched = [field for field in fields if re.search(wanted.strip("/"), field)]
            else:
                matched = [field for field in fields if field == wanted]
            assert matched, (panel["title"], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_old_is_shown_as_if_it_were_of_now(name: str) -> None:
    """A number is asked for as of now, no line is drawn over a gap, and no legend has a last value."""
    for panel in panels(load(name)):
        asked = {(target["instant"], target["range"]) for target in panel["targets"]}
        if panel["type"] in AS_OF_NOW:
            assert asked == {(True, False)}, panel["title"]
            continue
        assert asked == {(False, True)}, panel["title"]
        assert panel["fieldConfig"]["defaults"]["custom"]["spanNulls"] is False, panel["title"]
        assert not any("last" in calc for calc in panel["options"]["legend"].get("calcs", ()))


@pytest.mark.parametrize("name", NAMES)
def test_no_zero_is_made_of_nothing(name: str) -> None:
    """No expression gives a number where there is no series: `or vector(0)` and the like would make the broken calm."""
    for panel in panels(load(name)):
        for target in panel["targets"]:
            assert not re.search(r"\b(vector|absent|absent_over_time)\b", target["expr"]), target


def test_thresholds_are_those_of_the_alerts() -> None:
    """85 °C, 90 % of a GPU's memory and of Ollama's limit, 95 % of the host's, 5 % failed, 60 s at p95."""

    def highest(name: str, title: str, field: str = "") -> float:
        (found,) = (panel for panel in panels(load(name)) if panel["title"] == title)
        thresholds = found["fieldConfig"]["defaults"]["thresholds"]
        for override in found["fieldConfig"]["overrides"]:
            if override["matcher"]["options"] == field:
                thresholds = {one["id"]: one["value"] for one in override["properties"]}[
                    "thresholds"
                ]
        return float(thresholds["steps"][-1]["value"])

    assert highest("gpus", "Temperature") == highest("gpus", "Hottest") == 85
    assert highest("gpus", "Memory used, share") == highest("gpus", "Memory, mean") == 0.9
    assert highest("host", "Memory in use") == 0.9
    assert highest("host", "Memory in use", "host") == 0.95
    assert highest("host", "Failed") == highest("fleet", "Failed") == 0.05
    assert highest("host", "p95 latency") == highest("host", "Response time") == 60


@pytest.mark.parametrize("name", NAMES)
def test_each_dashboard_leads_to_the_other_two(name: str) -> None:
    """By the links at its top, which keep time and data source; no link of any panel leads elsewhere."""
    dashboard = load(name)
    known = {f"ollama-{other}" for other in NAMES}
    for link in dashboard["links"]:
        assert link["type"] == "link"
        assert link["keepTime"] is True
        assert "var-datasource=${datasource}" in link["url"]
    led_to = {re.match(r"/d/([\w-]+)\?", link["url"])[1] for link in dashboard["links"]}  # type: ignore[index]
    assert led_to == {f"ollama-{other}" for other in OTHERS[name]}
    for text in strings(dashboard["panels"]):
        if "/d/" in text:
            found = re.match(r"/d/([\w-]+)\?var-datasource=", text)
            assert found is not None, text
            assert found[1] in known, text
            assert "${__url_time_range}" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_that_is_named_is_there(name: str) -> None:
    """Nothing in a dashboard names a variable that it does not have and that is not Grafana's own."""
    dashboard = load(name)
    own = [one["name"] for one in dashboard["templating"]["list"]]
    assert own[:3] == ["datasource", "job", "instance"]
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    assert dashboard["templating"]["list"][0]["query"] == "prometheus"
    for text in strings([dashboard["panels"], dashboard["links"]]):
        for used in re.findall(r"\$\{?(\w+)", text):
            assert used in own or used.startswith("__"), text
    # Only of several values Grafana makes a regular expression: `[::1]:11435` by itself is none.
    for variable in dashboard["templating"]["list"][1:]:
        assert variable["datasource"]["uid"] == "${datasource}"
        operator = "=~" if variable["multi"] else "="
        uses = re.findall(
            rf'(\w+)(=~?)"\${variable["name"]}"', " ".join(strings(dashboard["panels"]))
        )
        assert set(uses) == {(variable["name"], operator)}


@pytest.mark.parametrize("name", NAMES)
def test_every_series_that_is_named_is_one_of_the_agents(name: str) -> None:
    """No expression and no variable names a family that the agent does not serve, whatever hosts have."""
    families = {table.family(metric) for table in TABLES for metric in table.metrics}
    families |= {f"{table.prefix}_info" for table in TABLES}
    families |= {f"{one}_{part}" for one in tuple(families) for part in ("bucket", "count", "sum")}
    dashboard = load(name)
    texts = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    texts += [
        one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"
    ]
    named = {found for text in texts for found in re.findall(r"\bollama_\w+", text)}
    assert named - families == set()


# -- provisioning ----------------------------------------------------------------------------------


def provisioned(kind: str, name: str) -> Any:
    """A file of deploy/grafana/provisioning/."""
    return yaml.safe_load((SHIPPED / "provisioning" / kind / name).read_text("utf-8"))


def test_the_data_source_is_of_the_dashboards_type_and_of_prometheus_interval() -> None:
    """Its type is the one that the dashboards list, its interval that of deploy/prometheus: else rates are empty."""
    document = provisioned("datasources", "prometheus.yml")
    assert document["apiVersion"] == 1
    (source,) = document["datasources"]
    assert source["type"] == load("host")["templating"]["list"][0]["query"]
    prometheus = yaml.safe_load(PROMETHEUS_CONFIG.read_text("utf-8"))
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    assert source["url"].startswith("http")


def test_the_readme_copies_the_dashboards_to_where_they_are_looked_for() -> None:
    """The README's commands name files that are there, and the folder that the provider reads."""
    document = provisioned("dashboards", "ollama.yml")
    assert document["apiVersion"] == 1
    (provider,) = document["providers"]
    assert provider["type"] == "file"
    readme = (SHIPPED / "README.md").read_text("utf-8")
    (commands,) = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    path = provider["options"]["path"]
    assert f"install -d {path}\n" in commands
    assert f"cp dashboards/*.json {path}/\n" in commands
    for source in re.findall(r"^cp (\S+)", commands, re.MULTILINE):
        assert list(SHIPPED.glob(source)), source
    for name in NAMES:
        assert load(name)["title"] in readme


# -- on a real Prometheus --------------------------------------------------------------------------

JOB = "ollama-metrics"
# What else may stand in a name: dots, a port, an IPv6 address. Nothing answers for DOWN, an Ollama for STRANGE.
WELL, DRAINED, FAILING, DOWN, STRANGE = HOSTS = (
    *("gpu1.example.com:11435", "gpu2", "[::1]:11435", "gpu4", "gpu5"),
)
GIB = 1 << 30
GPUS = {
    "count": 2,
    "gpu0.utilization": 83,
    "gpu0.temperature": 71,
    "gpu0.power_mw": 640_000,
    "gpu0.memory_used": 41 * GIB,
    "gpu0.throttle": 0x4,  # a power cap
    "gpu1.utilization": 97,
    "gpu1.temperature": 88,
    "gpu1.memory_used": 77 * GIB,
    "gpu1.throttle": 0x40 | 0x8,  # heat, and the hardware's slowdown
}
CGROUP = {
    "cgroup.controllers": "cpu io memory\n",
    "ollama.service/memory.current": f"{12 * GIB}\n",
    "ollama.service/memory.max": f"{16 * GIB}\n",
    "ollama.service/memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
    "ollama.service/cpu.stat": "usage_usec 12500000\nnr_periods 400\nnr_throttled 25\nthrottled_usec 1500000\n",
    "ollama.service/io.stat": "8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252\n",
}
# Runs the agent with cgroups in a folder; the options that are left are Python's own and those of the agent.
WITH_CGROUPS = """
import runpy, sys
from ollama_metrics import ollama_cgroup
ollama_cgroup._MOUNT = sys.argv[1].lstrip("/")
sys.argv[:] = sys.argv[4:]
runpy.run_module("ollama_metrics", run_name="__main__", alter_sys=True)
"""
# Ollama with a runner, its own child, that is said to serve the slots of the model; it ends with its standard input.
WITH_RUNNER = """
import subprocess, sys
import ollama_standin
runners = []
class WithRunner(ollama_standin.LlamaServerStandIn):
    async def listen(self, host, port):
        server = await super().listen(host, port)
        port = server.sockets[0].getsockname()[1]
        weights = "/models/blobs/sha256-" + ollama_standin.WEIGHTS
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        command += ["--model", weights, "--port", str(port)]
        runners.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        print("runner", runners[0].pid, file=sys.stderr, flush=True)
        return server
ollama_standin.LlamaServerStandIn = WithRunner
ollama_standin.main()
"""
ACCESS = '[GIN] 2026/11/20 - 10:11:12 | {} |  1.5s |  127.0.0.1 | POST     "/api/chat"\n'
REFUSED, FAILED = (400, 403, 404, 405, 499), (500, 503, 504)
STATUSES = (*(200,) * 6, *REFUSED, *FAILED)
REQUESTS = "".join(map(ACCESS.format, STATUSES))


class Fleet(NamedTuple):
    """Five hosts of which one is well, and the Prometheus that scrapes them.

    All questions are about the moment at which the last of it was seen, however late they are asked.
    """

    prometheus: PrometheusProcess
    seen_at: float
    served: frozenset[str]  # the families that the agent of the host that is well has


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ExitStack, list[Fleet]]]:
    """What is kept running for all tests of this file."""
    with ExitStack() as stack:
        yield stack, []


@pytest.fixture
def fleet(
    running: tuple[ExitStack, list[Fleet]],
    component: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Fleet:
    """The fleet, started once; no test changes it."""
    stack, started = running
    binary = component("prometheus")
    component("gcc")
    if not started:
        started.append(_start(stack, binary, tmp_path_factory.mktemp("fleet")))
    return started[0]


def _start(stack: ExitStack, binary: str, folder: Path) -> Fleet:
    def machine(
        name: str, gpus: Mapping[str, Union[int, str]], *options: str, **kwargs: Any
    ) -> AgentProcess:
        nvml = NvmlStandIn(folder / f"{name}-nvml")
        nvml.update(gpus)
        agent = AgentProcess(
            folder / name,
            *("--interval", "0.5", "--ollama-interval", "1", "--ollama-grace", "0", *options),
            environment=nvml.environment(),
            **kwargs,
        )
        return stack.enter_context(agent)

    for name, text in CGROUP.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    logs = [folder / f"{name}.log" for name in ("well", "drained")]
    for log in logs:
        log.touch()
    DrainFile(str(folder / "drained")).begin("a new disk", None)
    busy, resting, dead = (
        _ollama_with_runner(stack, folder),
        *(stack.enter_context(OllamaProcess()) for _ in range(2)),
    )
    runner = int(busy.wait_for_log(r"^runner (\d+)$")[1])
    busy.models([model(ollama_standin.MODEL, 5 * GIB, 5 * GIB), model("tiny:1b", GIB, 0)])
    busy.slots(busy=1, total=4)
    stack.enter_context(socket.create_connection(("127.0.0.1", busy.port)))
    dead.kill()
    well = machine(
        "well",
        {**GPUS, "gpu0.processes": f"{runner}:{5 * GIB}"},
        *("--ollama", busy.url, "--ollama-log", f"file:{logs[0]}"),
        *("--ollama-cgroup", "/ollama.service", "--ollama-ignore", "on-cpu"),
        wrapper=(sys.executable, "-c", WITH_CGROUPS, str(folder / "cgroup")),
    )
    drained = machine(
        "drained",
        {"gpu0.utilization": 0},
        *("--ollama", resting.url, "--ollama-log", f"file:{logs[1]}"),
    )
    failing = machine("failing", {}, "--expected-gpus", "2", "--ollama", dead.url)
    nobody = stack.enter_context(socket.socket())  # has its port to itself, and refuses
    nobody.bind(("127.0.0.1", 0))
    ports = dict(
        zip(
            HOSTS,
            (well.port, drained.port, failing.port, nobody.getsockname()[1], resting.port),
        )
    )
    prometheus = stack.enter_context(
        PrometheusProcess(
            binary,
            folder / "prometheus",
            {
                "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
                "scrape_configs": [
                    {
                        "job_name": JOB,
                        "static_configs": [
                            {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}}
                            for name, port in ports.items()
                        ],
                    }
                ],
            },
        )
    )
    # The first requests make the series, the next ones their rates.
    for requests in (0, len(STATUSES)):
        prometheus.wait_for(
            f"ollama_request_duration_seconds_count == {requests}", lambda found: len(found) == 2
        )
        prometheus.wait_for("ollama_slots and on (instance) ollama_model_gpu_memory_bytes")
        prometheus.wait_for("ollama_cgroup_memory_limit_bytes")
        prometheus.wait_for('ollama_host_status{status="failing"} == 1')
        for log in logs:
            with log.open("a") as file:
                file.write(REQUESTS)
    prometheus.wait_for(
        f"ollama_request_duration_seconds_count == {2 * len(STATUSES)}",
        lambda found: len(found) == 2,
    )
    page = well.get("/metrics?format=prometheus").body.decode()
    families = re.findall(r"^# TYPE (\S+)", page, re.MULTILINE)
    return Fleet(prometheus, time.time(), frozenset(families))


def _ollama_with_runner(stack: ExitStack, folder: Path) -> OllamaProcess:
    script = folder / "with_runner.py"
    script.write_text(WITH_RUNNER, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(ollama_standin.__file__).parent))
        patch.setattr(ollama_standin, "__file__", str(script))
        ollama = OllamaProcess(0, "--llama-server", "127.0.0.1:0")
    return stack.enter_context(ollama)


# -- what Grafana does to expressions


Chosen = Mapping[str, Union[str, Sequence[str]]]
TIMES = {"$__rate_interval": "10s", "$__range": "1m"}


def filled(text: str, chosen: Chosen) -> str:
    """An expression with the chosen values in it: one as it is, several as a regular expression in a string."""

    def value(found: re.Match[str]) -> str:
        picked = chosen[found[1]]
        if isinstance(picked, str):
            return picked.replace("\\", "\\\\")
        escaped = [re.sub(r"[$^*{}\[\]'+?.()|]", r"\\\\\g<0>", one) for one in picked]
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"

    for name, time_range in TIMES.items():
        text = text.replace(name, time_range)
    return re.sub(r"\$(\w+)", value, text)


def options(fleet: Fleet, name: str) -> dict[str, list[str]]:
    """The values that each variable of a dashboard has to choose from, if everything is chosen before it."""
    known: dict[str, list[str]] = {}
    for variable in load(name)["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert found is not None, variable["query"]
        series = fleet.prometheus.api("series", **{"match[]": filled(found[1], known)})
        known[variable["name"]] = sorted({one[found[2]] for one in series})
    return known


def chosen(fleet: Fleet, name: str, host: str = WELL) -> Chosen:
    """Everything; of what takes a single value, this host."""
    values = options(fleet, name)
    return {
        one["name"]: values[one["name"]] if one["multi"] else host
        for one in load(name)["templating"]["list"][1:]
    }


def ask(fleet: Fleet, target: Mapping[str, Any], chosen: Chosen) -> list[Found]:
    """The series of a query that have a number; if it is asked for over time, then over two seconds: the last one."""
    expression, now = filled(target["expr"], chosen), fleet.seen_at
    if target["instant"]:
        found = fleet.prometheus.query(expression, now)
    else:
        data = fleet.prometheus.api(
            "query_range", query=expression, start=str(now - 2), end=str(now), step="1"
        )
        found = [Found(one["metric"], float(one["values"][-1][1])) for one in data["result"]]
    return [one for one in found if math.isfinite(one.value)]


def panel(name: str, title: str) -> dict[str, Any]:
    """The panel of this title."""
    (found,) = (one for one in panels(load(name)) if one["title"] == title)
    return found


def numbers(
    fleet: Fleet, name: str, title: str, chosen: Chosen, label: str = "instance"
) -> dict[str, dict[str, float]]:
    """What a panel shows: by its legends, the number of each value of a label."""
    return {
        target["legendFormat"]: {
            one.labels.get(label, ""): one.value for one in ask(fleet, target, chosen)
        }
        for target in panel(name, title)["targets"]
    }


@pytest.mark.component
@pytest.mark.parametrize("name", NAMES)
def test_every_variable_has_values(fleet: Fleet, name: str) -> None:
    """The job, all five hosts, those without an agent among them, and the GPUs that answer."""
    expected = {"job": [JOB], "instance": sorted(HOSTS), "gpu": ["0", "1"]}
    values = options(fleet, name)
    assert values == {key: expected[key] for key in values}
    assert ("gpu" in values) == (name == "gpus")


@pytest.mark.component
@pytest.mark.parametrize("name", NAMES)
def test_every_expression_gives_data(fleet: Fleet, name: str) -> None:
    """Every query of every panel has a number for a host that is well; a label that its legend names is there.

    Except that a machine may have no network card and no disk of its own, as a container has none.
    """
    picked, empty, nameless = chosen(fleet, name), [], []
    for one in panels(load(name)):
        for target in one["targets"]:
            found = ask(fleet, target, picked)
            where = (one["title"], target["legendFormat"], filled(target["expr"], picked))
            hardware = re.search(r"\bollama_host_(?:network|disk)_\w+", target["expr"])
            if not found and not (hardware and hardware[0] not in fleet.served):
                empty.append(where)
            labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            for step in one.get("transformations", ()):
                labels += [
                    key
                    for key in step["options"].get("renameByName", ())
                    if not key.startswith("Value")
                ]
            if any(label not in series.labels for series in found for label in labels):
                nameless.append(where)
    assert empty == []
    assert nameless == []


@pytest.mark.component
def test_each_host_has_its_verdict(fleet: Fleet) -> None:
    """Well, drained, failing, down and strange are told apart, in the table as in the bars over time."""
    words = {WELL: "ok", DRAINED: "draining", FAILING: "FAILING", DOWN: "AGENT DOWN"}
    words[STRANGE] = "NO VERDICT"
    for title, legend in (("Hosts", "Verdict"), ("Verdict over time", "{{instance}}")):
        found = panel("fleet", title)
        (target,) = (one for one in found["targets"] if one["legendFormat"] == legend)
        mapped = codes(found)
        shown = {
            one.labels["instance"]: mapped[str(int(one.value))]
            for one in ask(fleet, target, chosen(fleet, "fleet"))
        }
        assert shown == words, title


def codes(found: Mapping[str, Any]) -> dict[str, str]:
    """The words of a panel's numbers, or of its column Verdict."""
    mappings = found["fieldConfig"]["defaults"]["mappings"]
    for override in found["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == "Verdict":
            mappings = {one["id"]: one["value"] for one in override["properties"]}["mappings"]
    (mapping,) = mappings
    return {number: meaning["text"] for number, meaning in mapping["options"].items()}


@pytest.mark.component
@pytest.mark.parametrize(("host", "verdict"), [(DOWN, 5), (STRANGE, 4)], ids=["down", "strange"])
def test_of_a_host_without_an_agent_nothing_is_shown_but_that(
    fleet: Fleet, host: str, verdict: int
) -> None:
    """No panel of its dashboard has a number, calm as it may be, except for the verdict."""
    picked = chosen(fleet, "host", host)
    shown = {
        one["title"]: [series.value for series in found]
        for one in panels(load("host"))
        for target in one["targets"]
        if (found := ask(fleet, target, picked))
    }
    assert shown == {"Verdict": [verdict], "Verdict over time": [verdict]}


@pytest.mark.component
def test_a_failing_host_is_seen_as_one(fleet: Fleet) -> None:
    """Its Ollama is DOWN, a GPU of two is lost, its weight is the highest; of Ollama there are no numbers."""
    picked = chosen(fleet, "host", FAILING)

    def values(title: str) -> list[float]:
        found = numbers(fleet, "host", title, picked)
        return [value for one in found.values() for value in one.values()]

    assert codes(panel("host", "Verdict"))[str(int(values("Verdict")[0]))] == "FAILING"
    assert codes(panel("host", "Ollama"))[str(int(values("Ollama")[0]))] == "DOWN"
    assert values("GPUs lost") == [1]
    assert values("Weight") == [500]
    for title in (
        "In flight, and slots",
        "p95 latency",
        "Failed",
        "Total requests",
        "Response time",
    ):
        assert values(title) == [], title


@pytest.mark.component
def test_the_fleets_numbers_are_those_of_its_hosts(fleet: Fleet) -> None:
    """One host of each kind is counted as such; the shares of the requests are a whole; both throttled GPUs say why."""
    picked = chosen(fleet, "fleet")
    counted = numbers(fleet, "fleet", "Hosts by verdict", picked)
    expected = {"ok": 1, "degraded": 0, "FAILING": 1, "draining": 1, "AGENT DOWN": 1}
    assert counted == {verdict: {"": number} for verdict, number in expected.items()}
    (drains,) = numbers(fleet, "fleet", "Drains", picked).values()
    assert drains == {WELL: 0, DRAINED: 1, FAILING: 0}
    (placed,) = numbers(fleet, "fleet", "Where they sit", picked, "gpu").values()
    assert placed == {"0": 5 * GIB}
    (on_cpu,) = (
        found
        for legend, found in numbers(fleet, "fleet", "Models", picked, "model").items()
        if legend == "On the CPU"
    )
    assert on_cpu["tiny:1b"] == 1
    throttling = panel("gpus", "Throttling")
    words = {
        one.labels["gpu"]: codes(throttling)[str(int(one.value))]
        for one in ask(fleet, throttling["targets"][0], chosen(fleet, "gpus"))
        if one.labels["instance"] == WELL
    }
    assert words == {"0": "power", "1": "HARDWARE, HEAT"}


@pytest.mark.component
def test_requests_are_shared_out_and_told_by_how_they_ended(fleet: Fleet) -> None:
    """Two hosts that serve alike share the requests; each status counts as good, as refused or as failed."""
    picked = chosen(fleet, "fleet")
    ended = numbers(fleet, "fleet", "Requests: good against failed", picked)
    good, refused, failed = (ended[legend][""] for legend in ("good", "refused", "failed"))
    assert good > 0
    assert refused / good == pytest.approx(len(REFUSED) / 6)
    assert failed / good == pytest.approx(len(FAILED) / 6)
    (shares,) = numbers(fleet, "fleet", "Share of the requests", picked).values()
    assert min(shares[WELL], shares[DRAINED]) > 0.2
    assert sum(shares.values()) == pytest.approx(1)
    (share,) = numbers(fleet, "fleet", "Failed", picked)["failed"].values()
    assert share == pytest.approx(len(FAILED) / len(STATUSES))
