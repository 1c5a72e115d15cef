"""The files of deploy/prometheus/ on the real promtool, amtool, Prometheus and Alertmanager, which page a webhook.

The faults are made through the stand-ins of NVML and Ollama; what the rules say of them is what a person would get.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from agent_process import AgentProcess
from ollama_process import OllamaProcess
from ports import free_port
from prometheus_process import PrometheusProcess
from standin import NvmlStandIn

from ollama_metrics.exposition_text import TABLES
from ollama_metrics.log_tally import ERROR_TYPES

pytestmark = pytest.mark.deploy
REPOSITORY = Path(__file__).parent.parent
SHIPPED = REPOSITORY / "deploy" / "prometheus"
UNIT_TESTS = sorted(path.name for path in (SHIPPED / "tests").glob("*.yml"))
ALWAYS = "OllamaWatchdog"  # fires whatever happens
SEVERITIES = {"critical": "on-call", "warning": "team", "info": "digest", "none": "heartbeat"}
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def load(name: str) -> Any:
    """One of the shipped files."""
    return yaml.safe_load((SHIPPED / name).read_text("utf-8"))


def rules(name: str) -> list[dict[str, Any]]:
    """The rules of a file, of all its groups."""
    return [rule for group in load(f"rules/{name}.yml")["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts")}
RECORDED = {rule["record"] for rule in rules("recording")}


def run(*command: str) -> str:
    """What a program says; it has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- the files --------------------------------------------------------------------------------------


@pytest.mark.component
def test_promtool_takes_the_configuration_and_the_rules(component: Callable[[str], str]) -> None:
    """`promtool check config`, which looks into the rules and the files of targets, has nothing to complain of."""
    said = run(component("promtool"), "check", "config", str(SHIPPED / "prometheus.yml"))
    assert said.count("SUCCESS") == 4, (
        said
    )  # the configuration, its list of rule files, and both of these
    assert not re.search("warn|fail|error", said, re.IGNORECASE), said


@pytest.mark.component
def test_amtool_takes_the_configuration(component: Callable[[str], str]) -> None:
    """`amtool check-config` accepts it, and an alert of each severity goes to its receiver."""
    shipped = str(SHIPPED / "alertmanager.yml")
    assert "SUCCESS" in run(component("amtool"), "check-config", shipped)
    used = {rule["labels"]["severity"] for rule in ALERTS.values()}
    test = ("config", "routes", "test", f"--config.file={shipped}", "instance=gpu1")
    routed = {one: run(component("amtool"), *test, f"severity={one}").split()[0] for one in used}
    assert routed == SEVERITIES


@pytest.mark.component
@pytest.mark.parametrize("name", UNIT_TESTS)
def test_the_rules_pass_their_unit_tests(component: Callable[[str], str], name: str) -> None:
    """`promtool test rules`, for each file of tests."""
    run(component("promtool"), "test", "rules", str(SHIPPED / "tests" / name))


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """By the unit tests' files: a series or alert that is expected, and an empty list of those of this name."""
    fires, silent = set(), set()
    for group in (group for name in UNIT_TESTS for group in load(f"tests/{name}")["tests"]):
        for test in group.get("promql_expr_test", ()):
            for sample in test["exp_samples"]:
                fires.update(re.findall(r'alertname="(\w+)"', sample["labels"]))
        for test in group.get("alert_rule_test", ()):
            (fires if test["exp_alerts"] else silent).add(test["alertname"])
    assert fires == set(ALERTS)
    assert silent == set(ALERTS) - {ALWAYS}


def _families() -> dict[str, set[str]]:
    """The names of the agent's series, each with the names of its labels."""
    known: dict[str, set[str]] = {"up": set()}
    for table in TABLES:
        labels = {name for name, _ in table.labels}
        for metric in table.metrics:
            family, own = table.family(metric), set(labels)
            if metric.kind == "state":
                own.add(metric.attribute)
            if metric.kind == "histogram":
                known[f"{family}_bucket"] = own | {"le"}
                known[f"{family}_count"] = known[f"{family}_sum"] = own
            elif metric.kind not in ("info", "detail"):
                known[family] = own
    return known


def _expressions() -> dict[str, str]:
    """Every expression of the rules, by the rule's name."""
    return {
        f"{rule.get('alert', rule.get('record'))} {number}": rule["expr"]
        for name in ("recording", "alerts")
        for number, rule in enumerate(rules(name))
    }


def test_the_rules_and_their_tests_name_only_what_the_agent_serves() -> None:
    """Each series, and each label in a matcher of it, is in the agent's table or is recorded; each record is known."""
    known = {**_families(), **{name: set[str]() for name in RECORDED}}
    texts = _expressions()
    for name in UNIT_TESTS:
        for group in load(f"tests/{name}")["tests"]:
            for one in group["input_series"]:
                texts[f"{name}: {group['name']}: {one['series']}"] = one["series"]
    for where, text in texts.items():
        bare = QUOTED.sub('""', text)
        for series in re.findall(r"\b(?:ollama_\w+|\w+:\w+:\w+)\b", bare):
            assert series in known, where
        for series, matchers in re.findall(r"\b(up|ollama_\w+)\{([^}]*)\}", bare):
            named = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
            assert named <= known[series] | {"job", "instance", "pool"}, where


def test_the_rules_name_only_values_that_there_are() -> None:
    """States, kinds of errors, collectors and jobs in a matcher are those that the agent and prometheus.yml have."""
    (states,) = (m.states for table in TABLES for m in table.metrics if m.kind == "state")
    source = "".join(path.read_text() for path in (REPOSITORY / "ollama_metrics").glob("*.py"))
    collectors = set(re.findall(r'"(host|gpu|ollama(?:_\w+)?)"', source))
    jobs = {job["job_name"] for job in load("prometheus.yml")["scrape_configs"]}
    there = {
        "status": set(states),
        "error_type": set(ERROR_TYPES),
        "collector": collectors,
        "job": jobs,
    }
    seen = set()
    for where, text in _expressions().items():
        for label, pattern in re.findall(r'(\w+)=~?"([^"]*)"', text):
            for choice in _choices(pattern):
                assert choice in there[label], where
            seen.add(label)
    assert seen == set(there)


def _choices(pattern: str) -> list[str]:
    """What a pattern of alternatives matches: `a|b`, `a_(b|c)`."""
    prefix, _, rest = pattern.partition("(")
    return [prefix + one for one in rest.rstrip(")").split("|")] if rest else prefix.split("|")


def test_each_alert_tells_what_to_do() -> None:
    """Each has a severity, texts, a first action, a chapter that exists, and a line with its severity in README.md."""
    readme = (SHIPPED / "README.md").read_text()
    for name, rule in ALERTS.items():
        severity, texts = rule["labels"]["severity"], rule["annotations"]
        assert severity in SEVERITIES, name
        assert set(texts) == {"summary", "description", "action", "chapter"}, name
        assert all(texts.values()), name
        page, _, anchor = texts["chapter"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (REPOSITORY / page).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
        assert not anchor or anchor in anchors, name
        assert re.search(rf"^\| `{name}` \| {severity} \|", readme, re.MULTILINE), name


def test_the_readme_names_what_is_recorded() -> None:
    """Dashboards and scalers find every recorded name in README.md, and none that is not there."""
    readme = (SHIPPED / "README.md").read_text()
    assert set(re.findall(r"\b(?:instance|fleet):\w+:\w+\b", readme)) == RECORDED


@pytest.mark.component
def test_no_text_of_an_alert_fails_to_be_filled_in(
    component: Callable[[str], str], tmp_path: Path
) -> None:
    """With any labels and value all texts can be rendered, and name the host where the alert has one."""
    labels = {"instance": "gpu1", "job": "ollama-metrics", "gpu": "0", "uuid": "GPU-1"}
    labels.update(model="llama3.1:70b", collector="gpu", error_type="busy")
    fleet = {"OllamaNoHostLeft", ALWAYS}
    anything = [{"alert": r["alert"], "expr": "any_host", "labels": r["labels"],
                 "annotations": r["annotations"]} for r in ALERTS.values()]  # fmt: skip
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "a", "rules": anything}]})
    )
    told = ",".join(f'{name}="{value}"' for name, value in labels.items())
    test = {
        "rule_files": ["rules.yml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": f"any_host{{{told}}}", "values": "0.951x5"}],
                "alert_rule_test": [
                    {"eval_time": "2m", "alertname": name, "exp_alerts": []} for name in ALERTS
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    command = [component("promtool"), "test", "rules", str(tmp_path / "test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    got = dict(re.findall(r'Labels:\{alertname="(\w+)".*\n *Annotations:(.+)', said))
    assert set(got) == set(ALERTS), said
    for name, text in got.items():
        assert not re.search("<error|no value|%!|NaN", text), text
        summary = re.search(r'summary="([^"]*)', text)
        assert summary is not None, text
        assert ("gpu1" in summary[1]) == (name not in fleet), text


# -- a fault, and the message about it -----------------------------------------------------------------


class Webhook:
    """Where Alertmanager sends its messages: what has come so far, by the receiver in the path; a context manager."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._come: list[tuple[str, dict[str, Any]]] = []
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with webhook._news:
                    webhook._come += [(self.path.strip("/"), one) for one in body["alerts"]]
                    webhook._news.notify_all()
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def __enter__(self) -> Webhook:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def mark(self) -> int:
        """How many have come so far."""
        with self._news:
            return len(self._come)

    def alerts(self, receiver: str) -> set[str]:
        """The names of all alerts that have come for a receiver."""
        with self._news:
            return {one["labels"]["alertname"] for to, one in self._come if to == receiver}

    def wait_for(
        self,
        receiver: str,
        alert: str,
        instance: str,
        status: str,
        since: int,
        patience: float = 20.0,
    ) -> dict[str, Any]:
        """The first such alert that came after the mark `since`, as soon as it is there."""

        def found() -> list[dict[str, Any]]:
            wanted = (receiver, alert, instance, status)
            return [
                one
                for to, one in self._come[since:]
                if wanted
                == (
                    to,
                    one["labels"]["alertname"],
                    one["labels"].get("instance", ""),
                    one["status"],
                )
            ]

        with self._news:
            assert self._news.wait_for(found, patience), (
                f"no {alert}, {status}, of {instance} for {receiver}; there came "
                f"{[(to, one['labels'], one['status']) for to, one in self._come[since:]]}"
            )
            return found()[0]


class Alertmanager:
    """The real one with a configuration, on a port of its own; a context manager."""

    def __init__(self, binary: str, folder: Path, configuration: Any) -> None:
        folder.mkdir()
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(configuration))
        self.port, self._log = free_port(), folder / "alertmanager.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={folder / 'alertmanager.yml'}",
                    f"--storage.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )

    def __enter__(self) -> Alertmanager:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def states(self, instance: str) -> dict[str, str]:
        """Of each alert of a host: `active`, or `suppressed` by another one."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/api/v2/alerts", timeout=10) as answer:
                alerts = json.load(answer)
        except (URLError, ConnectionError):
            assert self._process.poll() is None, self._log.read_text("utf-8", "replace")
            return {}
        return {
            one["labels"]["alertname"]: one["status"]["state"]
            for one in alerts
            if one["labels"].get("instance") == instance
        }


class Watched(NamedTuple):
    """Two hosts, one of them with all that can fail, under the shipped rules."""

    nvml: NvmlStandIn
    ollama: OllamaProcess
    other: AgentProcess
    prometheus: PrometheusProcess
    alertmanager: Alertmanager
    webhook: Webhook


# Named by prometheus.yml's relabelling (its address without the port), and by a file of targets.
HOST, OTHER = "127.0.0.1", "gpu2.example.com"
# OllamaReadingStale's `for` is what keeps it silent over the first readings, and is as good as none here.
TROUBLE = 'ALERTS{alertstate="firing",severity=~"critical|warning",alertname!="OllamaReadingStale"}'


def install(folder: Path, port: int, other_port: int, alertmanager_port: int) -> Any:
    """Copy the shipped files, with the tests' hosts and faster clocks; gives prometheus.yml.

    Scrapes and evaluations come each second, `for` is a second and `keep_firing_for` is none. Expressions,
    ranges, labels and texts are as they are shipped.
    """
    shutil.copytree(SHIPPED, folder)
    alerts = load("rules/alerts.yml")
    for rule in (rule for group in alerts["groups"] for rule in group["rules"]):
        rule.pop("keep_firing_for", None)
        if "for" in rule:
            rule["for"] = "1s"
    (folder / "rules" / "alerts.yml").write_text(yaml.safe_dump(alerts))
    configuration = load("prometheus.yml")
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["global"].update(every)
    (job,) = configuration["scrape_configs"]
    (static,) = job["static_configs"]
    static["targets"] = [f"127.0.0.1:{port}"]
    targets = [{"targets": [f"127.0.0.1:{other_port}"], "labels": {"instance": OTHER}}]
    for path in (folder / "targets").iterdir():
        path.write_text(yaml.safe_dump(targets))
    (manager,) = configuration["alerting"]["alertmanagers"]
    manager["static_configs"][0]["targets"] = [f"127.0.0.1:{alertmanager_port}"]
    return configuration


def hastened(webhook: Webhook) -> Any:
    """The shipped alertmanager.yml with the test's webhook, sending at once."""
    configuration = load("alertmanager.yml")
    for route in (configuration["route"], *configuration["route"]["routes"]):
        route.update(group_wait="0s", group_interval="1s")
    for receiver in configuration["receivers"]:
        (hook,) = receiver["webhook_configs"]
        assert hook["url"].endswith(f"/{receiver['name']}")
        hook["url"] = f"{webhook.url}/{receiver['name']}"
    return configuration


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ExitStack, list[Watched]]]:
    """What is kept running for all tests of this file: a Prometheus looks for its first target only after 5 s."""
    with ExitStack() as stack:
        yield stack, []


@pytest.fixture
def watched(
    component: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    running: tuple[ExitStack, list[Watched]],
) -> Watched:
    """Both hosts are well, and no alert that anybody would be told of fires."""
    stack, kept = running
    binary, manager = component("prometheus"), component("prometheus-alertmanager")
    component("gcc")
    if not kept:
        folder = tmp_path_factory.mktemp("watched")
        nvml = NvmlStandIn(folder / "nvml")
        nvml.set(count=2)
        ollama = stack.enter_context(OllamaProcess())
        options = ("--interval", "0.3", "--ollama", ollama.url, "--ollama-interval", "1")
        agent = stack.enter_context(
            AgentProcess(
                folder / "state",
                *options,
                *("--ollama-cgroup", "none"),
                environment=nvml.environment(),
            )
        )
        other = stack.enter_context(AgentProcess(folder / "other"))
        webhook = stack.enter_context(Webhook())
        alertmanager = stack.enter_context(
            Alertmanager(manager, folder / "alertmanager", hastened(webhook))
        )
        configuration = install(folder / "files", agent.port, other.port, alertmanager.port)
        configuration = yaml.safe_dump(configuration)
        # What fires before Prometheus has looked for Alertmanager, after 5 s, would be told a minute later.
        again = "--rules.alert.resend-delay=1s"
        prometheus = PrometheusProcess(binary, folder / "files", configuration, again)
        stack.enter_context(prometheus)
        kept.append(Watched(nvml, ollama, other, prometheus, alertmanager, webhook))
    prometheus = kept[0].prometheus
    prometheus.wait_for('up{job="ollama-metrics"}', lambda found: len(found) == 2)
    prometheus.wait_for(f'ollama_up{{instance="{HOST}"}} == 1')
    prometheus.wait_for(TROUBLE, lambda found: not found)
    return kept[0]


@pytest.mark.component
def test_a_lost_gpu_is_told_of_and_so_is_its_return(watched: Watched) -> None:
    """The team gets one message that names the host and says what to do, and another one after the GPU is back."""
    since = watched.webhook.mark()
    watched.nvml.lose(0)
    alert = watched.webhook.wait_for("team", "OllamaGpuLost", HOST, "firing", since)
    assert alert["annotations"]["summary"] == f"{HOST} has lost 1 GPU"
    assert alert["annotations"]["action"].startswith("`nvidia-smi` and `dmesg")
    assert (alert["labels"]["severity"], alert["labels"]["pool"]) == ("warning", "main")
    watched.nvml.restore()
    watched.webhook.wait_for("team", "OllamaGpuLost", HOST, "resolved", since)


@pytest.mark.component
def test_a_killed_ollama_wakes_a_person_once(watched: Watched) -> None:
    """The page is the failing host's and says that Ollama does not answer; OllamaDown is held back by it; both end."""
    since = watched.webhook.mark()
    watched.ollama.kill()
    page = watched.webhook.wait_for("on-call", "OllamaHostFailing", HOST, "firing", since)
    assert page["annotations"]["description"] == (
        f"The agent of {HOST} says that the host cannot work. Ollama does not answer."
    )
    states: dict[str, str] = {}
    watched.prometheus.wait_until(
        lambda: f"OllamaDown is held back, but {states}",
        lambda: _now(states, watched).get("OllamaDown") == "suppressed",
    )
    assert states["OllamaHostFailing"] == "active"
    watched.ollama.restart()
    watched.webhook.wait_for("on-call", "OllamaHostFailing", HOST, "resolved", since)
    watched.prometheus.wait_for(TROUBLE, lambda found: not found)


def _now(states: dict[str, str], watched: Watched) -> dict[str, str]:
    states.clear()
    states.update(watched.alertmanager.states(HOST))
    return states


@pytest.mark.component
def test_a_dead_agent_wakes_a_person(
    watched: Watched, running: tuple[ExitStack, list[Watched]], tmp_path: Path
) -> None:
    """A host whose agent has ended is paged by the name that its file of targets has, until an agent answers again."""
    since = watched.webhook.mark()
    watched.other.close()
    page = watched.webhook.wait_for("on-call", "OllamaAgentDown", OTHER, "firing", since)
    assert page["annotations"]["summary"] == f"{OTHER}: the agent does not answer"
    again = AgentProcess(tmp_path / "state", listen=(f"127.0.0.1:{watched.other.port}",))
    running[0].enter_context(again)
    running[1][0] = watched._replace(other=again)
    watched.webhook.wait_for("on-call", "OllamaAgentDown", OTHER, "resolved", since)


@pytest.mark.component
def test_the_heart_beats(watched: Watched) -> None:
    """The alert that always fires has its own receiver, which hears of nothing else."""
    watched.webhook.wait_for("heartbeat", ALWAYS, "", "firing", 0)
    assert watched.webhook.alerts("heartbeat") == {ALWAYS}
