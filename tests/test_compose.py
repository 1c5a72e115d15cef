"""deploy/compose/: its form by the schema of Compose, and that its parts fit each other, the agent and other folders.

There is no engine: what the containers share is made with namespaces, and two real processes are put into them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from conftest import library, missing

from ollama_metrics import __version__
from ollama_metrics.fleet import AGENT_PORT

pytestmark = pytest.mark.deploy

jsonschema, _ = library("jsonschema"), library("check_jsonschema")

SHIPPED = Path(__file__).parents[1] / "deploy" / "compose"
PROMETHEUS, GRAFANA = SHIPPED.parent / "prometheus", SHIPPED.parent / "grafana"
COMPOSE, WITHOUT_GPU = SHIPPED / "compose.yaml", SHIPPED / "compose.cpu.yaml"
# ${NAME:-default}
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
RESET = object()
OLLAMA_PORT = 11434


class Loader(yaml.SafeLoader):
    """YAML as Compose reads it: with `!reset`, which takes away what the file before it has."""


Loader.add_constructor("!reset", lambda loader, node: RESET)


def read(path: Path, **values: str) -> dict[str, Any]:
    """A file of Compose's, its variables replaced by `values`, else by their defaults."""
    text = _VARIABLE.sub(lambda match: values.get(match[1], match[2]), path.read_text("utf-8"))
    assert "${" not in text
    document: dict[str, Any] = yaml.load(text, Loader)
    return document


def merged(first: Any, second: Any) -> Any:
    """What Compose makes of a file and the one that follows it, as far as mappings go."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return second
    both = {**first, **{key: merged(first.get(key), value) for key, value in second.items()}}
    return {key: value for key, value in both.items() if value is not RESET}


def with_gpus() -> dict[str, Any]:
    return read(COMPOSE)


def without_gpus() -> dict[str, Any]:
    whole: dict[str, Any] = merged(read(COMPOSE), read(WITHOUT_GPU))
    return whole


def services(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services by their names."""
    found: dict[str, dict[str, Any]] = document["services"]
    return found


BOTH = pytest.mark.parametrize("document", [with_gpus, without_gpus])


# -- the files -------------------------------------------------------------------------------------


@BOTH
def test_composes_schema_accepts_it(document: Callable[[], dict[str, Any]]) -> None:
    """The schema of the Compose specification accepts the file, alone and with the other; not with a key misspelt."""
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    validator = jsonschema.Draft201909Validator(schema)
    whole = document()
    assert [error.message for error in validator.iter_errors(whole)] == []
    services(whole)["agent"]["read-only"] = True
    assert list(validator.iter_errors(whole)) != []


def test_what_is_mounted_is_there_and_is_not_written() -> None:
    """Each file or folder of the checkout that a service gets exists, and is read-only to it."""
    for name, service in services(with_gpus()).items():
        for mount in service.get("volumes", []):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (SHIPPED / source).exists(), (name, source)
                assert rest.endswith(":ro"), (name, mount)
            else:
                assert source in with_gpus()["volumes"], (name, mount)
    agent = services(with_gpus())["agent"]["build"]
    assert (SHIPPED / agent["context"] / agent["dockerfile"]).is_file()


def test_images_are_of_one_version() -> None:
    """Each image has a tag that says which it is; the agent's is the package's version."""
    for service in services(with_gpus()).values():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), service["image"]
    assert services(with_gpus())["agent"]["image"] == f"ollama-metrics:{__version__}"


def test_each_variable_is_told_with_its_default() -> None:
    """`.env.example` has every variable of compose.yaml, commented out, with the default that it has there."""
    used = dict(_VARIABLE.findall(COMPOSE.read_text("utf-8")))
    lines = (SHIPPED / ".env.example").read_text("utf-8").splitlines()
    told = dict(line[1:].split("=", 1) for line in lines if re.match(r"#[A-Z_]+=", line))
    assert told.pop("COMPOSE_FILE").split(":") == [COMPOSE.name, WITHOUT_GPU.name]
    assert told == used
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_ports_are_open_to_this_host_alone() -> None:
    """Every published port is bound to loopback unless BIND says otherwise, and is what listens there."""
    published = {}
    for name, service in services(with_gpus()).items():
        for port in service.get("ports", []):
            address, outside, inside = port.rsplit(":", 2)
            assert (address, outside) == ("127.0.0.1", inside)
            published[int(inside)] = name
    assert published == {
        OLLAMA_PORT: "host",
        AGENT_PORT: "host",
        9090: "prometheus",
        9093: "alertmanager",
        3000: "grafana",
    }
    opened = services(read(COMPOSE, BIND="0.0.0.0"))
    assert f"0.0.0.0:{AGENT_PORT}:{AGENT_PORT}" in opened["host"]["ports"]


def test_health_is_asked_where_the_service_listens() -> None:
    """Each service that serves has a health check on its own port; the agent's is the image's."""
    for name, port in (("prometheus", 9090), ("alertmanager", 9093), ("grafana", 3000)):
        assert f"http://127.0.0.1:{port}/" in services(with_gpus())[name]["healthcheck"]["test"][-1]
    assert services(with_gpus())["ollama"]["healthcheck"]["test"] == ["CMD", "ollama", "list"]
    agent = services(with_gpus())["agent"]
    assert "healthcheck" not in agent
    assert (
        "OLLAMA_METRICS_LISTEN" not in agent["environment"]
    )  # the image's check asks the default port


# -- Ollama and the agent --------------------------------------------------------------------------


@BOTH
def test_the_agent_sees_ollama_and_the_host(document: Callable[[], dict[str, Any]]) -> None:
    """Both are in the network and processes of a third, alike in user and rights; nothing limits the agent's container.

    With a limit it would tell of its own container instead of the host's CPU and RAM.
    """
    found = services(document())
    agent, ollama = found["agent"], found["ollama"]
    for service in (agent, ollama):
        assert service["network_mode"] == service["pid"] == "service:host"
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
    assert (agent["user"], ollama.get("user", "0:0")) == ("0:0", "0:0")  # Ollama's image is root's
    assert agent["cgroup"] == "host"
    assert "limits" not in agent.get("deploy", {}).get("resources", {})
    assert not {"mem_limit", "cpus", "cpuset", "cpu_quota", "mem_reservation"} & agent.keys()
    shared = {mount.split(":")[0] for mount in ollama["volumes"]} & {
        mount.split(":")[0] for mount in agent["volumes"]
    }
    assert shared == {"ollama-log"}
    log = agent["environment"]["OLLAMA_METRICS_OLLAMA_LOG"].partition("file:")[2]
    script = (SHIPPED / "ollama-serve.sh").read_text("utf-8")
    assert log in script
    assert f"state:{agent['environment']['OLLAMA_METRICS_STATE_DIR']}" in agent["volumes"]


@BOTH
def test_ollama_has_limits(document: Callable[[], dict[str, Any]]) -> None:
    """Of CPUs and memory, by default and as they are set."""
    limits = services(document())["ollama"]["deploy"]["resources"]["limits"]
    assert limits == {"cpus": 4, "memory": "16g"}
    other = services(read(COMPOSE, OLLAMA_CPUS="12", OLLAMA_MEMORY="64g"))["ollama"]
    assert other["deploy"]["resources"]["limits"] == {"cpus": 12, "memory": "64g"}


def test_without_a_gpu_none_is_asked_for() -> None:
    """The second file takes every device away, and has the agent leave GPUs alone."""

    def devices(document: dict[str, Any]) -> dict[str, Any]:
        return {
            name: service["deploy"]["resources"]["reservations"]["devices"]
            for name, service in services(document).items()
            if service.get("deploy", {}).get("resources", {}).get("reservations")
        }

    asked = devices(with_gpus())
    assert {name: device["capabilities"] for name, (device,) in asked.items()} == {
        "ollama": ["gpu"],
        "agent": ["utility"],
    }
    assert devices(without_gpus()) == {}
    agents = [services(document())["agent"] for document in (with_gpus, without_gpus)]
    expected = [agent["environment"]["OLLAMA_METRICS_EXPECTED_GPUS"] for agent in agents]
    assert expected == ["auto", "0"]


@BOTH
def test_serve_takes_the_settings(document: Callable[[], dict[str, Any]]) -> None:
    """`check` accepts the agent's variables, with the image's command."""
    agent = services(document())["agent"]
    assert "command" not in agent
    assert "entrypoint" not in agent
    done = subprocess.run(
        [sys.executable, "-m", "ollama_metrics", "check"],
        env={"PATH": os.environ["PATH"], **agent["environment"]},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# The first process of new namespaces: Ollama's script and the agent without a capability, both on their own ports.
_NAMESPACES = """\
ip link set lo up
without="setpriv --bounding-set -all --inh-caps -all --ambient-caps -all --no-new-privs"
$without env PATH="$1:$PATH" OLLAMA_HOST=0.0.0.0:11434 OLLAMA_LOG_FILE="$2/ollama.log" bash "$3" >/dev/null 2>&1 &
$without "$4" -m ollama_metrics serve --listen 127.0.0.1:11435 --state-dir "$2" \\
    --ollama http://127.0.0.1:11434 --ollama-log "file:$2/ollama.log" --ollama-interval 1 >/dev/null 2>&1 &
exec $without "$4" -c "$5" "$6"
"""
# Prints the agent's document when it has seen a request, and when Ollama, told by its process id, has crashed.
_OBSERVER = """\
import json, os, signal, socket, sys, time
from urllib.request import Request, urlopen

def until(true_of):
    deadline = time.monotonic() + 20
    while True:
        try:
            document = json.load(urlopen("http://127.0.0.1:11435/metrics", timeout=5))
        except OSError:
            document = None
        if document is not None and true_of(document):
            print(json.dumps(document))
            return
        if time.monotonic() > deadline:
            sys.exit(f"never so: {document}")
        time.sleep(0.05)

until(lambda document: document["ollama"]["up"] and document["ollama"]["requests"])
body = json.dumps({"model": "llama3.2", "options": {"num_predict": 1}}).encode()
urlopen(Request("http://127.0.0.1:11434/api/generate", data=body), timeout=10).read()
with socket.create_connection(("127.0.0.1", 11434), 10):
    until(lambda document: document["ollama"]["in_flight"] == 1 and document["ollama"]["requests"]["count"])
(ollama,) = (
    int(pid) for pid in os.listdir("/proc")
    if pid.isdigit() and sys.argv[1].encode() in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")[:2]
)
os.kill(ollama, signal.SIGKILL)
until(lambda document: document["status"] == "failing")
"""


@pytest.mark.component
def test_what_the_agent_sees_of_ollama(component: Callable[[str], str], tmp_path: Path) -> None:
    """In one network and one space of processes, as one user without a capability, it sees connections and processes.

    Requests come out of the file that ollama-serve.sh writes. When Ollama crashes the agent is there to say so.
    """
    unshare = [component("unshare"), "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    component("setpriv")
    component("ip")
    if (
        os.geteuid()
        or subprocess.run(
            [*unshare, "true"], capture_output=True, check=False, timeout=10
        ).returncode
    ):
        missing("the right to make namespaces (root)")
    standin = Path(__file__).with_name("ollama_standin.py")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "ollama").write_text(
        f'#!/bin/sh\n[ "$1" = serve ] && exec {sys.executable} {standin} --access-log\n'
    )
    (tools / "ollama").chmod(0o755)
    done = subprocess.run(
        [
            *unshare, "sh", "-euc", _NAMESPACES, "sh",
            *(str(tools), str(tmp_path), str(SHIPPED / "ollama-serve.sh")),
            *(sys.executable, _OBSERVER, str(standin)),
        ],
        capture_output=True, text=True, timeout=50, check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, working, crashed = map(json.loads, done.stdout.splitlines())
    assert working["ollama"]["requests"]["count"] == 1
    for part in ("ollama_connections", "ollama_processes", "ollama_log"):
        assert working["collectors"][part]["success"], working["collectors"][part]
    assert crashed["weight"] == 500
    assert "Ollama does not answer" in crashed["reasons"][0]


# -- the other services ----------------------------------------------------------------------------


def test_prometheus_scrapes_the_agent() -> None:
    """By the job that the rules and dashboards know, at the name and port of the network that it is in."""
    (job,) = yaml.safe_load((SHIPPED / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    (fleets,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["job_name"] == fleets["job_name"]
    (target,) = job["static_configs"]
    found = services(with_gpus())
    (alias,) = found["host"]["networks"]["default"]["aliases"]
    assert target["targets"] == [f"{alias}:{AGENT_PORT}"]
    assert target["labels"]["instance"]
    text = (SHIPPED / "prometheus.yml").read_text("utf-8")
    assert yaml.safe_load(text)["alerting"]["alertmanagers"] == [
        {"static_configs": [{"targets": ["alertmanager:9093"]}]}
    ]


@pytest.mark.component
def test_promtool_accepts_what_prometheus_gets(
    component: Callable[[str], str], tmp_path: Path
) -> None:
    """The configuration and the rules, each where the container has it."""
    for mount in services(with_gpus())["prometheus"]["volumes"]:
        source, target = mount.split(":")[:2]
        if source.startswith("."):
            place = tmp_path / target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (SHIPPED / source).is_dir() else shutil.copy
            copy(SHIPPED / source, place)
    (config,) = (
        option.partition("=")[2]
        for option in services(with_gpus())["prometheus"]["command"]
        if option.startswith("--config.file=")
    )
    done = subprocess.run(
        [component("promtool"), "check", "config", str(tmp_path / config.lstrip("/"))],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_grafana_is_provisioned_as_it_is_shipped() -> None:
    """Its data source is that of deploy/grafana with Prometheus' name here; the dashboards are where it looks."""
    shipped = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    here = yaml.safe_load((SHIPPED / "grafana-datasource.yml").read_text("utf-8"))
    (source,) = shipped["datasources"]
    assert here == {**shipped, "datasources": [{**source, "url": "http://prometheus:9090"}]}
    (providers,) = (GRAFANA / "provisioning" / "dashboards").glob("*.yml")
    (provider,) = yaml.safe_load(providers.read_text("utf-8"))["providers"]
    mounts = services(with_gpus())["grafana"]["volumes"]
    assert f"../grafana/dashboards:{provider['options']['path']}:ro" in mounts
