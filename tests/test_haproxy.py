"""The front of deploy/haproxy/ on the real HAProxy: stand-ins for Ollama, scripted agents and real ones."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Callable

import pytest
from agent_process import AgentProcess
from haproxy_process import (
    HOSTS,
    OTHERS,
    SERVERS,
    SHIPPED,
    Answer,
    Generation,
    HAProxy,
    Ollama,
    Pool,
    Ports,
    ask,
    finish,
    free_ports,
)
from prometheus_client.parser import text_string_to_metric_families
from standin import NvmlStandIn

from ollama_metrics.tcp_connections import ConnectionTable

pytestmark = pytest.mark.component

AGENT_INTERVAL = 2.0
SLOTS = 4  # of each host, as the file has it
MANY = 174
DOWN, DRAINED = "DOWN (agent)", "DRAIN (agent)"


def client(number: int) -> str:
    """The address of a client; each has a limit of its own."""
    return f"127.0.{20 + number // 250}.{1 + number % 250}"


def generate(front: HAProxy, number: int = 0, target: str = "/api/generate") -> Answer:
    """A request that Ollama answers at once."""
    return ask(front.connection(client(number)), target, "POST", '{"options": {"num_predict": 0}}')


def up(front: HAProxy) -> list[bool]:
    """Which hosts are up; HAProxy says `UP 1/2` where a single failure would end that, as before the first check."""
    return [status.partition(" ")[0] == "UP" for status in front.statuses()]


def requests(front: HAProxy) -> list[tuple[str, str, str]]:
    """Of each request for inference in the log: its host, its status, and how it ended (`--`: well)."""
    return re.findall(r" ollama/(\S+) \S+ (\d+) \d+ - - (..)-- ", front.log())


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Three hosts that are well and have not been asked for anything yet."""
    with Pool() as hosts:
        yield hosts


@pytest.fixture
def install(component: Callable[[str], str], tmp_path: Path) -> Callable[..., HAProxy]:
    """Install the shipped file for hosts with these ports; it is not started yet."""

    def make(ports: Ports, **environment: str) -> HAProxy:
        return HAProxy(component("haproxy"), tmp_path / "haproxy", ports, environment)

    return make


@pytest.fixture
def start(install: Callable[..., HAProxy], pool: Pool) -> Iterator[Callable[..., HAProxy]]:
    """Install it for the pool, change it and start it; ended with the test."""
    with ExitStack() as stack:

        def begin(*changes: tuple[str, str], **environment: str) -> HAProxy:
            front = install(pool.ports, **environment)
            for pattern, by in changes:
                front.edit(pattern, by, times=front.config.read_text().count(pattern))
            return stack.enter_context(front)

        yield begin


@pytest.fixture
def front(start: Callable[..., HAProxy]) -> HAProxy:
    """The front as it is shipped, before the first checks."""
    return start()


@pytest.fixture
def checked(front: HAProxy) -> HAProxy:
    """The same, once all hosts have been checked."""
    front.wait_for_checks()
    assert front.statuses() == ["UP"] * 3
    return front


# -- the configuration -----------------------------------------------------------------------------


def test_haproxy_has_nothing_to_say_about_it(
    component: Callable[[str], str], install: Callable[..., HAProxy]
) -> None:
    """`haproxy -c` accepts the shipped file, and the one with a test's ports, without a word."""
    command = [component("haproxy"), "-c", "-q", "-dW", "-f", str(SHIPPED)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert install(free_ports()).check() == ""


def test_both_backends_have_the_same_hosts() -> None:
    """Whoever adds a host to one backend of the shipped file has it in the other, by name and address."""
    lines = [line.split() for line in SHIPPED.read_text().splitlines()]
    servers = [words[1:3] for words in lines if words[:1] == ["server"]]
    assert servers[:3] == servers[3:]


# -- streaming and load ----------------------------------------------------------------------------


def test_174_clients_stream_at_once(start: Callable[..., HAProxy], pool: Pool) -> None:
    """With slots for all, 174 streams are open together, and each has its token before the next one is generated."""
    front = start((f" maxconn {SLOTS}\n", f" maxconn {MANY // 3}\n"))
    streams = [
        Generation(front.connection(client(number)), num_predict=3, pace=None)
        for number in range(MANY)
    ]
    for token in range(3):
        assert {stream.wait_for_token(token) for stream in streams} == {str(token)}
        assert pool.tell("tokens") == [MANY // 3 * (token + 1)] * 3
        pool.token()
    assert all(stream.wait().served for stream in streams)
    assert pool.tell("finished") == [MANY // 3] * 3


def test_174_clients_share_the_slots(front: HAProxy, pool: Pool) -> None:
    """With 4 slots on each host 12 of 174 clients stream, the others wait their turn here, and none fails."""
    streams = [
        Generation(front.connection(client(number)), num_predict=2, pace=None)
        for number in range(MANY)
    ]
    for ollama in pool.ollamas:
        ollama.tell(running=SLOTS)
    front.wait_until(lambda: front.stat()["qcur"] == str(MANY - 3 * SLOTS))
    finish(streams, pool.ollamas)
    assert {(stream.served, *stream.tokens) for stream in streams} == {(True, "0", "1")}
    assert sum(pool.tell("finished")) == MANY
    assert [front.stat(server)["smax"] for server in SERVERS] == [str(SLOTS)] * 3


def test_killing_a_host_fails_its_own_requests_alone(front: HAProxy, pool: Pool) -> None:
    """When a host dies under load, its 4 streams break off, and all are served that it was not handed.

    A dying process' connections close a moment before its listener: what goes there meanwhile is lost, too, for
    whether it was begun is not known. The breaker ends that after ten.
    """
    streams = [
        Generation(front.connection(client(number)), num_predict=1, pace=None)
        for number in range(MANY)
    ]
    front.wait_until(lambda: sum(len(stream.tokens) for stream in streams) == 3 * SLOTS)
    pool.ollamas[1].kill()
    finish(streams, [pool.ollamas[0], pool.ollamas[2]])
    front.wait_until(lambda: len(requests(front)) == MANY)
    ends = Counter(requests(front))
    broken = ends.pop(("gpu2", "200", "SD"))
    unanswered = ends.pop(("gpu2", "502", "SH"), 0)
    assert set(ends) == {("gpu1", "200", "--"), ("gpu3", "200", "--")}
    assert (broken, unanswered <= 10) == (SLOTS, True)
    served = sum(stream.served for stream in streams)
    assert served == MANY - broken - unanswered
    # No other host has begun anew what was lost.
    assert pool.ollamas[0].tell()["finished"] + pool.ollamas[2].tell()["finished"] == served
    front.wait_until(lambda: up(front) == [True, False, True])


def test_draining_a_host_fails_nothing(front: HAProxy, pool: Pool) -> None:
    """A host that is drained under load ends what it has begun and gets nothing more; no client notices."""
    streams = [
        Generation(front.connection(client(number)), num_predict=1, pace=None)
        for number in range(MANY)
    ]
    for ollama in pool.ollamas:
        ollama.tell(tokens=SLOTS)
    pool.agents[2].line = "drain up"
    took = front.wait_until(lambda: front.statuses()[2] == DRAINED)
    assert took < 2 * AGENT_INTERVAL
    finish(streams, pool.ollamas)
    assert all(stream.served for stream in streams)
    assert pool.ollamas[2].tell()["finished"] == SLOTS


def test_no_connection_to_ollama_outlives_its_request(front: HAProxy, pool: Pool) -> None:
    """Clients keep their connections; none to a host is left, which its agent would take for a request in flight."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(closing(front.connection(client(number)))) for number in range(3)
        ]
        for one in clients:
            for method, target in (("GET", "/api/version"), ("POST", "/api/generate")):
                one.request(method, target, '{"options": {"num_predict": 2, "pace": 0}}')
                answer = one.getresponse()
                assert (answer.status, bool(answer.read())) == (200, True)
        assert all(one.sock for one in clients)
        front.wait_until(lambda: ConnectionTable().count(pool.ports.ollama).established == 0)


def test_ollama_is_asked_as_localhost(front: HAProxy, pool: Pool) -> None:
    """A public name, which Ollama on loopback refuses, gets through; Ollama learns the client's address."""
    public = {"Host": "ollama.example.com"}
    assert ask(front.connection(client(7)), "/api/version", headers=public).status == 200
    (headers,) = (r["headers"] for one in pool.ollamas for r in one.tell()["requests"])
    assert (headers["host"], headers["x-forwarded-for"]) == ("localhost", client(7))


# -- who leaves ------------------------------------------------------------------------------------


def fill(front: HAProxy, pool: Pool) -> list[Generation]:
    """Take every slot; each generation waits for a token."""
    streams = [
        Generation(front.connection(client(number)), pace=None) for number in range(3 * SLOTS)
    ]
    for ollama in pool.ollamas:
        ollama.tell(running=SLOTS)
    for stream in streams:
        assert stream.wait_for_token(0) == "0"
    return streams


def queued(front: HAProxy, number: int) -> None:
    """Return when so many wait for a slot."""
    front.wait_until(lambda: front.stat()["qcur"] == str(number), what=f"{number} queued")


def test_a_client_that_leaves_frees_its_slot(front: HAProxy, pool: Pool) -> None:
    """A client that leaves ends its generation, and the next in line has the slot; who leaves the line gets none."""
    streams = fill(front, pool)
    impatient = Generation(front.connection(client(50)), target="/api/chat", num_predict=0)
    queued(front, 1)
    patient = Generation(front.connection(client(51)), num_predict=0)
    queued(front, 2)
    impatient.leave()
    queued(front, 1)
    streams[0].leave()
    assert patient.wait().served
    front.wait_until(lambda: sum(pool.tell("disconnected")) == 1)
    assert "/api/chat" not in {target for one in pool.ollamas for target in one.targets()}
    assert sum(pool.tell("running")) == 3 * SLOTS - 1


def test_what_takes_no_slot_waits_for_none(front: HAProxy, pool: Pool) -> None:
    """A list of models and an upload are answered while every slot is taken."""
    fill(front, pool)
    assert ask(front.connection(client(50)), "/api/tags").status == 200
    upload = "/api/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert ask(front.connection(client(50)), upload, "POST", "").status == 201
    assert pool.tell("running") == [SLOTS] * 3


# -- the queue -------------------------------------------------------------------------------------


def test_chats_are_served_before_embeddings_and_these_before_batches(
    front: HAProxy, pool: Pool
) -> None:
    """The queue is served by class and then by age: by path, or by a header that says batch or interactive."""
    streams = fill(front, pool)
    batch, person = {"X-Ollama-Priority": "batch"}, {"X-Ollama-Priority": "interactive"}
    asked: Sequence[tuple[str, dict[str, str]]] = [
        ("/api/chat", batch),
        ("/v1/embeddings", {}),
        ("/api/generate", {}),
        ("/v1/chat/completions", {}),
        ("/api/embed", person),
    ]
    waiting = []
    for number, (target, headers) in enumerate(asked, start=1):
        connection = front.connection(client(50 + number))
        waiting.append(Generation(connection, target, headers, num_predict=0))
        queued(front, number)
    streams[0].leave()  # one slot, through which they all go, one after the other
    for one in waiting:
        one.wait()
    served = [target for one in pool.ollamas for target in one.targets()[SLOTS:]]
    chats = ["/api/generate", "/v1/chat/completions", "/api/embed"]
    assert served == [*chats, "/v1/embeddings", "/api/chat"]


def test_the_queue_is_bounded(start: Callable[..., HAProxy], pool: Pool) -> None:
    """What exceeds the maximal number of pending requests is refused at once, in Ollama's own words."""
    front = start(OLLAMA_MAX_QUEUE="2")
    fill(front, pool)
    for number in (1, 2):
        Generation(front.connection(client(50 + number)), num_predict=0)
        queued(front, number)
    refused = generate(front, 60)
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert refused.error == "server busy, please try again.  maximum pending requests exceeded"


def test_waiting_ends(start: Callable[..., HAProxy], pool: Pool) -> None:
    """A request that gets no slot in time is answered with an error that a client understands; no host has seen it."""
    front = start(OLLAMA_QUEUE_TIMEOUT="100ms")
    fill(front, pool)
    refused = generate(front, 60, "/api/chat")
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert refused.error == "no Ollama host is free to take the request, please try again"
    assert "/api/chat" not in {target for one in pool.ollamas for target in one.targets()}
    queue_time = re.compile(r" ollama/<NOSRV> 0/(\d+)/-1/-1/")  # milliseconds
    front.wait_until(lambda: queue_time.search(front.log()))
    assert [100 <= int(waited) < 1000 for waited in queue_time.findall(front.log())] == [True]


# -- the limit -------------------------------------------------------------------------------------


def test_a_client_has_60_requests_a_minute(front: HAProxy, pool: Pool) -> None:
    """The 61st request of an address in a minute is a 429 that says when to come again; others are let in."""
    answers = [generate(front, 1) for _ in range(61)]
    assert [answer.status for answer in answers] == [200] * 60 + [429]
    assert answers[-1].headers["retry-after"] == "60"
    assert answers[-1].error == "more than 60 requests in a minute, please try again later"
    assert generate(front, 2).status == 200
    assert sum(pool.tell("finished")) == 61


def test_the_limit_is_set_in_one_place(start: Callable[..., HAProxy]) -> None:
    """The limit comes from the environment, as /etc/default/haproxy sets it, and counts for every path."""
    front = start(OLLAMA_REQUESTS_PER_MINUTE="2")
    answers = [ask(front.connection(client(1)), "/api/tags") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert "more than 2 requests" in answers[-1].error


# -- what is tried again, and what is not ----------------------------------------------------------


def test_a_refused_connection_is_tried_elsewhere(front: HAProxy, pool: Pool) -> None:
    """Requests for a host that has just died are served by the others, before any check has noticed it."""
    front.wait_until(lambda: front.stat("gpu1")["check_status"] == "L7OK")
    pool.ollamas[0].kill()
    assert [generate(front, number).status for number in range(9)] == [200] * 9
    assert int(front.stat("gpu1")["wredis"]) >= 1


def test_a_request_that_may_have_begun_is_not_repeated(front: HAProxy, pool: Pool) -> None:
    """A POST is sent once: when its host closes without an answer, and when it dies in the midst of its stream."""
    for ollama in pool.ollamas:
        ollama.fault("/api/chat", "close")
    broken = generate(front, target="/api/chat")
    assert (broken.status, broken.error) == (502, "the Ollama host broke off before it answered")
    assert [one.targets() for one in pool.ollamas].count(["/api/chat"]) == 1
    stream = Generation(front.connection(), pace=None)
    assert stream.wait_for_token(0) == "0"
    running = pool.tell("running")
    pool.ollamas[running.index(1)].kill()
    assert not stream.wait().served
    others = [one for one, count in zip(pool.ollamas, running) if not count]
    assert "/api/generate" not in {target for one in others for target in one.targets()}


def test_a_host_whose_own_queue_is_full_is_passed_over(front: HAProxy, pool: Pool) -> None:
    """Ollama's 503, which it says before it has begun, is another host's request, and is not counted as an error."""
    pool.ollamas[0].fault("/api/generate", "status", status=503)
    assert [generate(front, number).status for number in range(30)] == [200] * 30
    assert pool.ollamas[0].targets().count("/api/generate") >= 10
    assert front.stat("gpu1")["hanafail"] == "0"
    assert {status[:2] for status in front.statuses()} == {
        "UP"
    }  # or UP 1/2, before the first check


# -- the circuit breaker ---------------------------------------------------------------------------


def test_a_host_that_only_fails_is_taken_out(front: HAProxy, pool: Pool) -> None:
    """After ten errors in a row a host gets nothing for 5 s, though it passes every check."""
    pool.ollamas[0].fault("/api/generate", "status", status=500)
    answers = [generate(front, number).status for number in range(60)]
    assert Counter(answers) == {500: 10, 200: 50}
    assert up(front) == [False, True, True]
    assert front.stat("gpu1")["last_chk"].startswith("Detected 10 consecutive errors")
    assert front.wait_until(lambda: all(up(front))) > 4


def test_what_a_client_does_wrong_takes_no_host_out(front: HAProxy, pool: Pool) -> None:
    """A model that is not there, or a request that makes no sense, is no error of a host."""
    for status in (400, 404, 429, 501):
        for ollama in pool.ollamas:
            ollama.fault("/api/generate", "status", status=status)
        assert {generate(front, number).status for number in range(36)} == {status}
        assert [front.stat(server)["hanafail"] for server in SERVERS] == ["0"] * 3
    assert all(up(front))


# -- what the agent says ---------------------------------------------------------------------------


def test_no_request_reaches_a_host_that_is_failing_or_draining(
    checked: HAProxy, pool: Pool
) -> None:
    """Down, drained or without a health check: a host gets nothing, of whatever path, until it is well again."""
    pool.agents[0].line = "ready down #GPU 0 is lost"
    pool.agents[1].line = "drain up"
    took = checked.wait_until(lambda: checked.statuses() == [DOWN, DRAINED, "UP"])
    assert took < 2 * AGENT_INTERVAL
    assert checked.stat("gpu1")["last_agt"] == "via agent : down (GPU 0 is lost)"
    assert checked.statuses(OTHERS) == [DOWN, DRAINED, "UP"]
    for number in range(30):
        assert generate(checked, number).status == 200
        assert ask(checked.connection(client(number)), "/api/tags").status == 200
    assert [len(one.targets()) for one in pool.ollamas] == [0, 0, 60]
    pool.agents[0].line = pool.agents[1].line = "ready up 62%"
    took = checked.wait_until(lambda: checked.statuses() == ["UP"] * 3)
    assert took < 2 * AGENT_INTERVAL
    assert [checked.stat(server)["weight"] for server in SERVERS] == ["62", "62", "100"]
    assert {generate(checked, number).status for number in range(9)} == {200}
    assert min(len(one.targets()) for one in pool.ollamas) > 0


def test_without_hosts_the_front_says_so(front: HAProxy, pool: Pool) -> None:
    """/health of the front is 200 while a host is up and 503 when none is, and so is a request."""
    assert ask(front.connection(), "/health").status == 200
    for agent in pool.agents:
        agent.healthy = False
    front.wait_until(lambda: front.statuses() == ["DOWN"] * 3)
    assert "/health/ollama" in front.stat("gpu1")["last_chk"]
    assert ask(front.connection(), "/health").status == 503
    assert "no Ollama host is free" in generate(front).error


# -- real agents -----------------------------------------------------------------------------------


class RealHosts:
    """Three hosts with the real agent, each with a GPU of the stand-in's and an Ollama; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.ports = free_ports()
        self.gpus = [NvmlStandIn(folder / f"nvml{number}") for number in range(3)]
        with ExitStack() as stack:
            self.ollamas = [stack.enter_context(Ollama(host, self.ports.ollama)) for host in HOSTS]
            self.states = [folder / f"state{number}" for number in range(3)]
            with ThreadPoolExecutor(3) as together:
                started = together.map(self._agent, self.states, HOSTS, self.gpus)
                self.agents = [stack.enter_context(agent) for agent in started]
            self._stack = stack.pop_all()

    def _agent(self, state: Path, host: str, gpu: NvmlStandIn) -> AgentProcess:
        agent = AgentProcess(
            state,
            *("--ollama", f"http://{host}:{self.ports.ollama}"),
            *("--agent-check", f"{host}:{self.ports.agent_check}"),
            listen=("127.0.0.1:0", f"{host}:{self.ports.agent}"),
            environment=gpu.environment(),
        )
        agent.wait_for_log("agent-check on")
        return agent

    def __enter__(self) -> RealHosts:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def headroom(self) -> list[float]:
        """What each agent says is left of its host."""
        return [1 - agent.metrics("/metrics?window=5")["load"] for agent in self.agents]


@pytest.fixture
def hosts(component: Callable[[str], str], tmp_path: Path) -> Iterator[RealHosts]:
    """Three hosts with real agents."""
    component("gcc")
    with RealHosts(tmp_path) as running:
        yield running


def drain(command: str, state: Path, agent: AgentProcess) -> None:
    """Run `ollama-metrics drain` or `resume` for the agent that has this state directory."""
    words = [sys.executable, "-m", "ollama_metrics", command, "--state-dir", str(state)]
    environment = {**os.environ, "OLLAMA_METRICS_LISTEN": f"127.0.0.1:{agent.port}"}
    subprocess.run(words, check=True, capture_output=True, env=environment)


def test_what_happens_to_a_host_shows_within_two_agent_intervals(
    install: Callable[..., HAProxy], hosts: RealHosts
) -> None:
    """A lost GPU, a dead Ollama and a drain show in HAProxy's own state within 4 s, and so does the resume."""
    with install(hosts.ports) as front:
        front.wait_until(
            lambda: [front.stat(one)["last_agt"] for one in SERVERS] == ["via agent : up"] * 3
        )
        front.wait_for_checks()
        assert front.statuses() == ["UP"] * 3

        hosts.gpus[0].lose(0)
        hosts.ollamas[1].kill()
        drain("drain", hosts.states[2], hosts.agents[2])
        faults = [DOWN, "DOWN", DRAINED]
        front.wait_until(lambda: front.statuses() == faults, 2 * AGENT_INTERVAL)
        assert "no GPU answers" in front.stat("gpu1")["last_agt"]
        assert "Connection refused" in front.stat("gpu2")["last_chk"]

        hosts.gpus[0].restore(0)
        hosts.ollamas[1].restart()
        drain("resume", hosts.states[2], hosts.agents[2])
        front.wait_until(lambda: front.statuses()[2] == "UP", 2 * AGENT_INTERVAL)
        assert generate(front).status == 200
        # The agent looks for a lost GPU ever more rarely, and Ollama has to be well for 5 s.
        front.wait_until(lambda: front.statuses() == ["UP"] * 3, 15)


def test_a_busy_host_gets_its_share(install: Callable[..., HAProxy], hosts: RealHosts) -> None:
    """Under `balance roundrobin` a host whose GPU is busy gets requests by its headroom, within 20 %."""
    front = install(hosts.ports)
    front.edit("balance leastconn", "balance roundrobin")
    for gpu, percent, used in zip(hosts.gpus, (5, 90, 5), (4, 60, 4)):
        gpu.update({"gpu0.utilization": percent, "gpu0.memory_used": used << 30})
    with front:

        def settled() -> bool:
            weights = [int(front.stat(one)["weight"]) for one in SERVERS]
            wanted = [100 * left for left in hosts.headroom()]
            return all(abs(weight - want) <= 4 for weight, want in zip(weights, wanted))

        front.wait_until(settled, 20)
        before = hosts.headroom()
        for number in range(300):
            assert generate(front, number).status == 200
        after = hosts.headroom()
        left = [(one + other) / 2 for one, other in zip(before, after)]
        served = [one.tell()["finished"] for one in hosts.ollamas]
        assert sum(served) == 300
        for got, headroom in zip(served, left):
            assert got / 300 == pytest.approx(headroom / sum(left), rel=0.2)
        assert served[1] < 0.7 * served[0], (served, left)


# -- its own state ---------------------------------------------------------------------------------


def test_prometheus_and_people_see_its_state(front: HAProxy) -> None:
    """On loopback there are metrics that Prometheus' own parser reads, and a page for people; clients reach neither."""

    def state(target: str) -> Answer:
        return ask(http.client.HTTPConnection("127.0.0.1", front.state_port, timeout=10), target)

    families = {
        one.name: one for one in text_string_to_metric_families(state("/metrics").body.decode())
    }
    weights = {
        sample.labels["server"]
        for sample in families["haproxy_server_weight"].samples
        if sample.labels["proxy"] == "ollama"
    }
    assert weights == set(SERVERS)
    page = state("/").body.decode()
    assert "Statistics Report" in page
    assert all(f">{server}<" in page for server in SERVERS)
    assert "agent of each host" in ask(front.connection(), "/metrics").error


def test_prompts_are_not_logged(front: HAProxy) -> None:
    """The log names client, path, host and times of each request, and nothing of its body."""
    body = json.dumps({"prompt": "a secret", "options": {"num_predict": 0}})
    assert ask(front.connection(client(3)), "/api/generate", "POST", body).status == 200
    front.wait_until(lambda: "/api/generate" in front.log())
    assert client(3) in front.log()
    assert "secret" not in front.log()
