"""The front of deploy/nginx/ as an operator installs it: the real nginx, the real agent, a stand-in for Ollama."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import balancer
import ollama_standin
import pytest
from agent_process import PATIENCE, AgentProcess, Response
from ports import free_port

from ollama_metrics.tcp_connections import ConnectionTable

pytestmark = pytest.mark.component

SHIPPED = Path(__file__).parent.parent / "deploy" / "nginx"
MIB = 1 << 20
# The front's ports as they are shipped, which each test replaces by free ones.
FRONT, AGENT, OLLAMA = "11434", "11435", "11436"
# What the packaged nginx.conf of Debian and Rocky say, but the paths: our files have to bear it.
# One worker with Debian's number of connections is the narrowest that a host may have.
NGINX_CONF = """
{user}
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 768; }}
http {{
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    access_log access.log;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 65;
    types_hash_max_size 4096;
    default_type application/octet-stream;
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;
    gzip on;
    gzip_min_length 1;
    gzip_types application/json application/x-ndjson text/plain;
    include conf.d/*.conf;
    server {{ listen 127.0.0.1:{default} default_server; server_name _; return 404; }}
}}
"""


class Certificate(NamedTuple):
    """The paths of a certificate for the addresses of loopback, and of its key."""

    file: Path
    key: Path


class Ollama:
    """The stand-in in a process of its own; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, ollama_standin.__file__, "--listen", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        listening = re.search(r"127\.0\.0\.1:(\d+)", self._process.stderr.readline())
        assert listening is not None
        self.port = int(listening[1])

    def __enter__(self) -> Ollama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, if it runs."""
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def tell(self, **counts: int) -> Any:
        """What it has counted, as soon as those of `counts` are so."""
        query = "&".join(f"{name}={count}" for name, count in counts.items())
        try:
            return ask(self.connection(), f"/standin?{query}").json
        except socket.timeout:
            raise AssertionError(
                f"never {counts}: {ask(self.connection(), '/standin').json}"
            ) from None

    def targets(self) -> list[str]:
        """The targets of the requests that it has got."""
        return [request["target"] for request in self.tell()["requests"]]

    def token(self) -> None:
        """Let each generation that waits have one more token."""
        assert ask(self.connection(), "/standin/token", "POST").status == 200

    def connection(self) -> http.client.HTTPConnection:
        """A connection, past the front."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE / 3)


class Front:
    """nginx with our files where the installer puts them; a context manager that starts and ends it.

    Nothing may be in nginx's log that it thinks worth a warning.
    """

    def __init__(
        self, nginx: str, folder: Path, agent: int, ollama: int, certificate: Optional[Certificate]
    ) -> None:
        self.folder, self._nginx, self.certificate = folder, nginx, certificate
        self.host = "127.0.0.2" if certificate else "127.0.0.1"
        self.port = free_port()
        for name in ("conf.d", "ollama-metrics", "temp"):
            (folder / name).mkdir(parents=True)
        own = folder / "ollama-metrics"
        shutil.copy(SHIPPED / "ollama-metrics.conf", folder / "conf.d")
        shutil.copy(SHIPPED / "allow.conf", own)
        shutil.copy(
            SHIPPED / ("listen-tls.conf" if certificate else "listen.conf"), own / "listen.conf"
        )
        if certificate:
            (own / "server.crt").symlink_to(certificate.file)
            (own / "server.key").symlink_to(certificate.key)
            if _version(nginx) >= (1, 25, 1):
                (command,) = re.findall(
                    r"^# +(sed .+)", (own / "listen.conf").read_text(), re.MULTILINE
                )
                subprocess.run(command, shell=True, check=True, cwd=own)
        if not Path("/proc/net/if_inet6").exists():
            self.edit("ollama-metrics/listen.conf", r"^listen \[::.*\n", "")
        self.edit("ollama-metrics/listen.conf", rf"^(listen .*)\b{FRONT}\b", rf"\g<1>{self.port}")
        self.edit("conf.d/ollama-metrics.conf", rf"\b127.0.0.1:{AGENT}\b", f"127.0.0.1:{agent}")
        self.edit("conf.d/ollama-metrics.conf", rf"\b127.0.0.1:{OLLAMA}\b", f"127.0.0.1:{ollama}")
        # Without this its workers are nobody's, to whom pytest's folders are closed.
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(NGINX_CONF.format(user=user, default=free_port()))
        self._process: Optional[subprocess.Popen[bytes]] = None

    def edit(self, name: str, pattern: str, by: str) -> None:
        """Change every line of an installed file that matches."""
        path = self.folder / name
        text, changes = re.subn(pattern, by, path.read_text(), flags=re.MULTILINE)
        assert changes, f"{pattern} is nowhere in {name}"
        path.write_text(text)

    def test(self) -> str:
        """What `nginx -t` says."""
        result = subprocess.run([*self._command(), "-t"], stderr=subprocess.PIPE, text=True)
        assert result.returncode == 0, result.stderr
        return result.stderr

    def __enter__(self) -> Front:
        self._process = subprocess.Popen([*self._command(), "-g", "daemon off;"])
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except ConnectionRefusedError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                threading.Event().wait(0.005)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()
        assert re.findall(r".*\[(?:warn|crit|alert|emerg)\].*", self.log()) == []

    def reload(self) -> None:
        """What `systemctl reload nginx` does; returns when the old workers accept no connection any more."""
        assert self._process is not None
        master = self._process.pid
        workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            title = Path(f"/proc/{worker}/cmdline")
            while title.exists() and b"shutting down" not in title.read_bytes():
                assert time.monotonic() < deadline, self.log()
                threading.Event().wait(0.005)

    def log(self) -> str:
        """Its error log."""
        return (self.folder / "error.log").read_text()

    def connection(self, source: Optional[str] = None) -> http.client.HTTPConnection:
        """A connection as a client has it, with TLS where the front has it."""
        local = (source, 0) if source else None
        if self.certificate is None:
            return http.client.HTTPConnection(
                self.host, self.port, timeout=PATIENCE / 3, source_address=local, blocksize=MIB
            )
        context = ssl.create_default_context(cafile=str(self.certificate.file))
        return http.client.HTTPSConnection(
            self.host,
            self.port,
            timeout=PATIENCE / 3,
            source_address=local,
            blocksize=MIB,
            context=context,
        )

    def curl(self, *arguments: str, target: str) -> subprocess.Popen[bytes]:
        """curl, on its way to a target by HTTP/2."""
        assert self.certificate is not None
        url = f"https://{self.host}:{self.port}{target}"
        options = [
            "--silent",
            "--show-error",
            "--no-buffer",
            "--http2",
            "--cacert",
            str(self.certificate.file),
        ]
        return subprocess.Popen(
            ["curl", *options, *arguments, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def _command(self) -> list[str]:
        folder = str(self.folder)
        return [
            self._nginx,
            "-p",
            folder,
            "-c",
            f"{folder}/nginx.conf",
            "-e",
            f"{folder}/error.log",
        ]


def ask(
    connection: http.client.HTTPConnection,
    target: str,
    method: str = "GET",
    body: Any = None,
    **headers: str,
) -> Response:
    """One request on a connection, which is closed then; header names with `_` for `-`."""
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        chunked = named.get("Transfer-Encoding") == "chunked"
        connection.request(method, target, body, named, encode_chunked=chunked)
        answer = connection.getresponse()
        return Response(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()


class Generation:
    """A generation that a client has asked for; `options` are the stand-in's. A context manager: the client leaves."""

    def __init__(self, connection: http.client.HTTPConnection, **options: Any) -> None:
        self._connection = connection
        body = json.dumps({"model": ollama_standin.MODEL, "options": options})
        # gzip, as clients offer it: what comes must be plain all the same.
        connection.request("POST", "/api/generate", body, {"Accept-Encoding": "gzip"})
        self._answer: Optional[http.client.HTTPResponse] = None

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def token(self) -> str:
        """The next token; empty at the end."""
        if self._answer is None:
            self._answer = self._connection.getresponse()
            assert self._answer.status == 200
        return _token(self._answer.readline())

    def leave(self) -> None:
        """Close the connection."""
        if self._answer is not None:
            self._answer.close()
        self._connection.close()


class GenerationOverHttp2:
    """The same by HTTP/2, which is curl's."""

    def __init__(self, front: Front, **options: Any) -> None:
        body = json.dumps({"model": ollama_standin.MODEL, "options": options})
        self._curl = front.curl("--data", body, target="/api/generate")

    def token(self) -> str:
        """The next token; empty at the end."""
        assert self._curl.stdout is not None
        return _token(self._curl.stdout.readline())

    def leave(self) -> None:
        """End curl as a client ends that is killed."""
        self._curl.kill()
        self._curl.communicate()


def _token(line: bytes) -> str:
    document = json.loads(line)
    assert document["done"] == (document["response"] == "")
    return str(document["response"]).strip()


def _version(nginx: str) -> tuple[int, ...]:
    said = subprocess.run([nginx, "-v"], stderr=subprocess.PIPE, text=True, check=True).stderr
    return tuple(map(int, re.findall(r"\d+", said)[:3]))


# -- what runs -------------------------------------------------------------------------------------


def make_certificate(folder: Path) -> Certificate:
    """A certificate that signs itself."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=front"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,IP:127.0.0.2"]
    command += ["-keyout", str(made.key), "-out", str(made.file)]
    subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """A healthy agent, which no test of this file harms."""
    with AgentProcess(tmp_path_factory.mktemp("agent"), "--expected-gpus", "0") as process:
        yield process


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    """Ollama, which has not been asked for anything yet."""
    with Ollama() as process:
        yield process


@pytest.fixture
def install(
    component: Callable[[str], str], tmp_path: Path, agent: AgentProcess, ollama: Ollama
) -> Callable[..., Front]:
    """Install a front, plain or with TLS; it is not started yet."""

    def make(tls: bool = False, agent_port: Optional[int] = None) -> Front:
        certificate = None
        if tls:
            component("openssl")
            component("curl")
            certificate = make_certificate(tmp_path)
        port = agent.port if agent_port is None else agent_port
        return Front(component("nginx"), tmp_path / "nginx", port, ollama.port, certificate)

    return make


@pytest.fixture
def start(install: Callable[..., Front]) -> Iterator[Callable[..., Front]]:
    """Install a front and start it; ended with the test."""
    with ExitStack() as stack:
        yield lambda **kwargs: stack.enter_context(install(**kwargs))


@pytest.fixture
def plain(start: Callable[..., Front]) -> Front:
    """The front as it is shipped."""
    return start()


@pytest.fixture
def tls(start: Callable[..., Front]) -> Front:
    """The front with TLS."""
    return start(tls=True)


@pytest.fixture(params=["plain", "tls"])
def front(request: pytest.FixtureRequest, start: Callable[..., Front]) -> Front:
    """Either."""
    return start(tls=request.param == "tls")


# -- the configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_nginx_has_nothing_to_say_about_it(install: Callable[..., Front], tls: bool) -> None:
    """`nginx -t` accepts it beside a default server, without a warning."""
    syntax, result = install(tls=tls).test().splitlines()
    assert syntax.endswith("syntax is ok")
    assert result.endswith("test is successful")


def test_the_shipped_addresses() -> None:
    """The front has Ollama's own port, and the drop-in moves Ollama to where the front looks for it."""
    front = (SHIPPED / "ollama-metrics.conf").read_text()
    servers = re.findall(r"^ +server (\S+);", front, re.MULTILINE)
    assert servers == [f"127.0.0.1:{OLLAMA}", f"127.0.0.1:{AGENT}"]
    (drop_in,) = (SHIPPED / "ollama.service.d").iterdir()
    (moved,) = re.findall(r"^Environment=OLLAMA_HOST=(\S+)$", drop_in.read_text(), re.MULTILINE)
    assert ollama_standin.address(moved) == ("127.0.0.1", int(OLLAMA))
    for name in ("listen.conf", "listen-tls.conf"):
        listen = re.findall(r"^listen (\S+:)?(\d+)\b", (SHIPPED / name).read_text(), re.MULTILINE)
        assert {port for _, port in listen} == {FRONT}


def test_the_drop_in_outlasts_an_operators_own() -> None:
    """Ollama's manual has OLLAMA_HOST put into override.conf: ours is read after it, so Ollama moves."""
    (drop_in,) = (SHIPPED / "ollama.service.d").iterdir()
    assert drop_in.name > "override.conf"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="the kernel has no IPv6")
def test_ipv6_is_served_and_can_be_left_out(install: Callable[..., Front], ollama: Ollama) -> None:
    """The front answers on ::1 as on 127.0.0.1; without the [::] lines it is a front for IPv4 alone."""
    six = install()
    with six:
        assert ask(http.client.HTTPConnection("::1", six.port), "/api/version").status == 200
        assert balancer.poll(six.port, "::1").gpu_count == 0
    six.edit("ollama-metrics/listen.conf", r"^listen \[::.*\n", "")
    with six:
        assert ask(six.connection(), "/api/version").status == 200
        with pytest.raises(ConnectionRefusedError):
            ask(http.client.HTTPConnection("::1", six.port), "/api/version")


# -- who answers what ------------------------------------------------------------------------------


def test_metrics_and_health_are_the_agents(front: Front, ollama: Ollama) -> None:
    """/metrics, with queries and by HEAD, and /health are answered by the agent; Ollama sees nothing of it."""
    document = ask(front.connection(), "/metrics").json
    assert (document["status"], document["window_seconds"]) == ("ok", 15)
    assert ask(front.connection(), "/metrics?window=60").json["window_seconds"] == 60
    assert b"\n# EOF\n" in ask(front.connection(), "/metrics?format=openmetrics").body
    accepted = ask(front.connection(), "/metrics", Accept="text/plain;version=0.0.4")
    assert accepted.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    head = ask(front.connection(), "/metrics", "HEAD")
    assert (head.status, head.body, int(head.headers["Content-Length"]) > 500) == (200, b"", True)
    refused = ask(front.connection(), "/metrics", "POST", b"x")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert ask(front.connection(), "/health").json == {"status": "ok", "reasons": []}
    assert "cpu_percent" in ask(front.connection(), "/history?seconds=5").json["host"]
    # Whether the agent has it is the agent's affair.
    assert (
        ask(front.connection(), "/health/ollama")
        .headers["Content-Type"]
        .startswith("application/json")
    )
    assert ollama.targets() == []


def test_a_balancer_polls_through_the_front(plain: Front) -> None:
    """The balancer, which offers gzip, reads the agent's numbers where it sends its inference."""
    assert 0 <= balancer.poll(plain.port).weight < 500


@pytest.mark.parametrize(
    "target",
    [
        *("/", "/api/version", "/api/tags?x=1&y=%20", "/v1/models/library%2Fllama3.2:latest"),
        *("/metrics/", "/metricsx", "/Metrics", "/metrics%0A", "/metrics;x", "/api/metrics"),
        *("/health/", "/healthz", "/health/foo", "/health/ollama/", "/-/ready"),
    ],
)
def test_everything_else_is_ollamas(plain: Front, ollama: Ollama, target: str) -> None:
    """What is not exactly one of the agent's paths is handed to Ollama, byte for byte as it was asked for."""
    direct = ask(ollama.connection(), target)
    answer = ask(plain.connection(), target)
    assert (answer.status, answer.body) == (direct.status, direct.body)
    assert ollama.targets() == [target, target]


@pytest.mark.parametrize(
    "target", ["/metrics", "/metrics?window=60", "//metrics", "/%6detrics", "/x/../metrics"]
)
def test_ollamas_own_metrics_are_never_served(plain: Front, ollama: Ollama, target: str) -> None:
    """In whatever way /metrics is spelled, what Ollama has there does not come out."""
    assert ask(ollama.connection(), "/metrics").body.decode() == ollama_standin.OWN_METRICS
    for method in ("GET", "POST"):
        assert b"ollama_own" not in ask(plain.connection(), target, method).body
    assert ollama.targets() == ["/metrics"]


def test_ollama_is_asked_as_localhost(plain: Front, ollama: Ollama) -> None:
    """A public name, which Ollama on loopback refuses, gets through; Ollama learns the client's address."""
    public = {"Host": "gpu7.example.com:11434"}
    assert ask(ollama.connection(), "/api/version", **public).status == 403
    assert ask(plain.connection("127.0.0.3"), "/api/version", **public).status == 200
    headers = ollama.tell()["requests"][-1]["headers"]
    assert (headers["host"], headers["x-forwarded-for"]) == ("localhost", "127.0.0.3")


def test_no_connection_to_ollama_outlives_its_request(front: Front, ollama: Ollama) -> None:
    """Once requests have ended, no connection to Ollama is left, though their clients keep theirs to the front."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(front.connection())) for _ in range(3)]
        for client in clients:
            for method, target, body in (
                ("GET", "/api/version", None),
                ("POST", "/api/generate", '{"options": {"num_predict": 2, "pace": 0}}'),
            ):
                client.request(method, target, body)
                answer = client.getresponse()
                assert (answer.status, bool(answer.read())) == (200, True)
        assert all(client.sock for client in clients)
        # nginx lets go of it a moment after the client has its answer.
        deadline = time.monotonic() + PATIENCE / 3
        while left := ConnectionTable().count(ollama.port).established:
            assert time.monotonic() < deadline, f"{left} connections are left"
            threading.Event().wait(0.005)
    # Asked to close, Ollama does so itself: nginx cannot keep what is closed, whatever its version keeps by default.
    assert {request["headers"]["connection"] for request in ollama.tell()["requests"]} == {"close"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_is_sent_twice(plain: Front, ollama: Ollama, method: str) -> None:
    """When Ollama closes a connection without an answer, the client gets the error, and Ollama is not asked again."""
    assert ask(plain.connection(), "/api/version").status == 200
    assert ask(plain.connection(), "/hangup", method).status == 502
    assert ollama.targets() == ["/api/version", "/hangup"]


# -- streaming -------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "tls", "http2"])
def streaming(
    request: pytest.FixtureRequest, start: Callable[..., Front]
) -> Iterator[Callable[..., Any]]:
    """Start a generation through the front, by each way that there is; its client has left after the test."""
    front = start(tls=request.param != "plain")
    with ExitStack() as stack:

        def begin(**options: Any) -> Any:
            generation: Any
            if request.param == "http2":
                generation = GenerationOverHttp2(front, **options)
            else:
                generation = Generation(front.connection(), **options)
            stack.callback(generation.leave)
            return generation

        yield begin


def test_each_token_arrives_before_the_next_is_generated(
    streaming: Callable[..., Any], ollama: Ollama
) -> None:
    """A token is with the client while Ollama has not begun with the next one, and is not compressed."""
    generation = streaming(num_predict=5, pace=None)
    for index in range(5):
        assert generation.token() == str(index)
        assert ollama.tell(tokens=index + 1)["running"] == 1
        ollama.token()
    assert generation.token() == ""
    ollama.tell(finished=1, running=0)


def test_the_first_byte_comes_as_soon_as_ollamas_own(front: Front, ollama: Ollama) -> None:
    """The front adds less than 50 ms to the time that a client waits for the first token."""

    def first_token(connection: http.client.HTTPConnection) -> float:
        connection.connect()
        began = time.monotonic()
        with Generation(connection, num_predict=1, pace=0) as generation:
            assert generation.token() == "0"
            return time.monotonic() - began

    rounds = range(15)
    times = [(first_token(ollama.connection()), first_token(front.connection())) for _ in rounds]
    direct, through = (statistics.median(column) for column in zip(*times))
    assert through - direct < 0.05


@pytest.mark.parametrize("phase", ["loading", "streaming", "silent"])
def test_a_client_that_leaves_ends_its_generation(
    streaming: Callable[..., Any], ollama: Ollama, phase: str
) -> None:
    """Whether the first token is still to come, tokens come, or none does: Ollama learns that the client left."""
    generation = streaming(
        load=None if phase == "loading" else 0, pace=0.005 if phase == "streaming" else None
    )
    ollama.tell(running=1)
    if phase != "loading":
        assert generation.token() == "0"
    generation.leave()
    told = ollama.tell(running=0)
    assert (told["disconnected"], told["finished"]) == (1, 0)


def test_closing_only_the_sending_half_is_leaving(plain: Front, ollama: Ollama) -> None:
    """A client that says it will send no more ends its generation, as it does when it talks to Ollama itself."""
    for number, port in enumerate((ollama.port, plain.port), start=1):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE / 3)
        with Generation(connection, pace=None) as generation:
            assert generation.token() == "0"
            connection.sock.shutdown(socket.SHUT_WR)
            ollama.tell(running=0, disconnected=number)


def test_a_client_that_vanishes_is_looked_for(plain: Front, ollama: Ollama) -> None:
    """While no token comes, the kernel asks once a minute whether a client is there: who lost power cannot say so."""
    with Generation(connection := plain.connection(), pace=None) as generation:
        assert generation.token() == "0"
        client = f"0100007F:{connection.sock.getsockname()[1]:04X}"
        # local and remote address, then timer and the ticks until it fires; 02 is keepalive's.
        row = rf"0100007F:{plain.port:04X} {client} 01 \S+ (\d\d):(\S+)"
        found = re.search(row, Path("/proc/net/tcp").read_text())
        assert found is not None
        assert found[1] == "02"
        assert int(found[2], 16) / os.sysconf("SC_CLK_TCK") <= 60


def test_174_clients_stream_at_once(plain: Front, ollama: Ollama) -> None:
    """With nginx's packaged limits 174 clients have their streams open together, get each token, and none fails."""
    number = 174
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Generation(plain.connection(), num_predict=3, pace=None))
            for _ in range(number)
        ]
        for token in range(3):
            assert [client.token() for client in clients] == [str(token)] * number
            assert ollama.tell(tokens=number * (token + 1))["running"] == number
            assert balancer.poll(plain.port).gpu_count == 0
            ollama.token()
        assert [client.token() for client in clients] == [""] * number
    ollama.tell(running=0, finished=number, disconnected=0)


def test_174_streams_by_http2(tls: Front, ollama: Ollama) -> None:
    """By HTTP/2, with many streams to a connection, 174 are open together and none fails."""
    number = 174
    body = json.dumps({"options": {"num_predict": 1, "pace": None}})
    curl = tls.curl(
        *("--parallel", "--parallel-max", "300", "--data", body, "--output", "/dev/null"),
        *("--write-out", "%{http_code} %{http_version}\n"),
        target=f"/api/generate?[1-{number}]",
    )
    try:
        ollama.tell(running=number, tokens=number)
        ollama.token()
        said, _ = curl.communicate(timeout=PATIENCE)
    finally:
        curl.kill()
    assert said.decode().splitlines() == ["200 2"] * number


def test_one_connection_carries_as_many_streams_as_ollama_queues(tls: Front) -> None:
    """In its first frame nginx grants an HTTP/2 connection 512 streams, and not its own 128."""
    with secured(tls, alpn="h2") as client, client.makefile("rb") as frames:
        assert client.selected_alpn_protocol() == "h2"
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        head = frames.read(9)
        settings = dict(struct.iter_unpack("!HI", frames.read(int.from_bytes(head[:3], "big"))))
    assert (head[3], settings[3]) == (4, 512)


# -- uploads ---------------------------------------------------------------------------------------


def test_a_gigabyte_goes_straight_through(plain: Front, ollama: Ollama) -> None:
    """Of an upload of 1 GiB Ollama has each byte that the client has sent, and nginx keeps none of it on disk."""
    size, block = 1 << 30, bytes(MIB)
    zeros = "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14"

    def parts() -> Iterator[bytes]:
        for _ in range(size // 2 // MIB):
            yield block
        assert ollama.tell(received_bytes=size // 2)["blobs"] == 0
        assert list((plain.folder / "temp").iterdir()) == []
        for _ in range(size // 2 // MIB):
            yield block

    target = f"/api/blobs/sha256:{zeros}"
    assert ask(plain.connection(), target, "POST", parts(), Content_Length=str(size)).status == 201
    ollama.tell(received_bytes=size, blobs=1)


def test_an_upload_in_chunks_arrives_as_it_is_sent(front: Front, ollama: Ollama) -> None:
    """An upload whose length is not known in advance goes straight through, too."""
    block = os.urandom(MIB)
    digest = hashlib.sha256(block * 8).hexdigest()

    def parts() -> Iterator[bytes]:
        for number in range(8):
            yield block
            ollama.tell(received_bytes=MIB * (number + 1))

    answer = ask(
        front.connection(),
        f"/api/blobs/sha256:{digest}",
        "POST",
        parts(),
        Transfer_Encoding="chunked",
    )
    assert answer.status == 201
    assert ollama.tell(blobs=1)["requests"][-1]["headers"]["transfer-encoding"] == "chunked"


def test_an_upload_by_http2_arrives_as_it_is_sent(tls: Front, ollama: Ollama) -> None:
    """By HTTP/2 an upload goes straight through, too."""
    block = os.urandom(MIB)
    digest = hashlib.sha256(block * 8).hexdigest()
    options = (
        "--request",
        "POST",
        "--upload-file",
        "-",
        "--write-out",
        "%{http_code} %{http_version}",
    )
    curl = tls.curl(*options, target=f"/api/blobs/sha256:{digest}")
    assert curl.stdin is not None
    try:
        for number in range(8):
            curl.stdin.write(block)
            curl.stdin.flush()
            ollama.tell(received_bytes=MIB * (number + 1))
        said, _ = curl.communicate(timeout=PATIENCE)
    finally:
        curl.kill()
    assert said == b"201 2"


def test_a_client_that_waits_for_100_continue_gets_it(plain: Front, ollama: Ollama) -> None:
    """nginx tells a client to go on with its body by itself; Ollama is not asked for it."""
    digest = hashlib.sha256(b"body").hexdigest()
    head = f"POST /api/blobs/sha256:{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", plain.port), timeout=PATIENCE) as client:
        client.sendall(head.encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"body")
        assert client.recv(1000).startswith(b"HTTP/1.1 201 ")
    assert "expect" not in ollama.tell()["requests"][-1]["headers"]


def test_a_client_that_leaves_breaks_its_upload_off(front: Front, ollama: Ollama) -> None:
    """Ollama learns at once that the rest of an upload will not come."""
    connection = front.connection()
    connection.putrequest("POST", "/api/blobs/sha256:00")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders(bytes(MIB))
    ollama.tell(received_bytes=MIB)
    connection.close()
    ollama.tell(broken_uploads=1)


# -- when one of the two is gone -------------------------------------------------------------------


def test_a_dead_agent_is_an_error_while_ollama_goes_on(
    start: Callable[..., Front], start_agent: Callable[..., AgentProcess], ollama: Ollama
) -> None:
    """When the agent has died, its paths are 502 in good time, and not Ollama's; a generation does not notice."""
    agent = start_agent("--expected-gpus", "0")
    front = start(agent_port=agent.port)
    with Generation(front.connection(), num_predict=2, pace=None) as generation:
        assert generation.token() == "0"
        assert ask(front.connection(), "/metrics").status == 200
        agent.close()
        with pytest.raises(balancer.PollFailed, match="status 502"):
            balancer.poll(front.port)
        for target in ("/metrics?window=60", "/health", "/health/ollama"):
            assert ask(front.connection(), target).status == 502
        ollama.token()
        assert generation.token() == "1"
    assert ask(front.connection(), "/api/version").status == 200
    assert ollama.targets() == ["/api/generate", "/api/version"]


def test_a_stuck_agent_is_an_error_before_the_balancer_gives_up(
    start: Callable[..., Front], start_agent: Callable[..., AgentProcess]
) -> None:
    """A balancer waits five seconds: an agent that does not answer is a 504 before that."""
    agent = start_agent("--expected-gpus", "0")
    front = start(agent_port=agent.port)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        with pytest.raises(balancer.PollFailed, match="status 504"):
            balancer.poll(front.port)
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    balancer.poll(front.port)  # and an answer again, once it is back


def test_a_dead_ollama_is_an_error_while_the_agent_goes_on(plain: Front, ollama: Ollama) -> None:
    """Without Ollama its paths are 502, for a large upload as well, and /metrics goes on."""
    assert ask(plain.connection(), "/api/version").status == 200
    with Generation(plain.connection(), pace=None) as generation:
        assert generation.token() == "0"
        ollama.close()
        with pytest.raises((http.client.IncompleteRead, json.JSONDecodeError)):
            generation.token()
    assert ask(plain.connection(), "/api/version").status == 502
    assert ask(plain.connection(), "/api/blobs/sha256:00", "POST", bytes(16 * MIB)).status == 502
    assert balancer.poll(plain.port).gpu_count == 0


# -- TLS -------------------------------------------------------------------------------------------


def test_http2_is_negotiated_and_has_the_same_routes(tls: Front, ollama: Ollama) -> None:
    """By ALPN a client gets HTTP/2, and there /metrics is the agent's and all else Ollama's."""
    answers = {}
    for target in ("/metrics", "/health", "/api/version", "/metrics/"):
        curl = tls.curl("--write-out", "\n%{http_code} %{http_version}", target=target)
        answers[target] = curl.communicate(timeout=PATIENCE)[0].decode().rsplit("\n", 1)
    assert {target: how for target, (_, how) in answers.items()} == {
        **dict.fromkeys(("/metrics", "/health", "/api/version"), "200 2"),
        "/metrics/": "404 2",
    }
    assert json.loads(answers["/metrics"][0])["status"] == "ok"
    assert ollama.targets() == ["/api/version", "/metrics/"]


def secured(
    front: Front,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ciphers: str = "ALL",
    alpn: str = "http/1.1",
) -> ssl.SSLSocket:
    """A connection by this version of TLS, of a client that would agree to any weakness."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols([alpn])
    with socket.create_connection((front.host, front.port), timeout=PATIENCE) as connection:
        return context.wrap_socket(connection)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_before_1_2_is_refused(tls: Front) -> None:
    """TLS 1.2 and 1.3 are spoken; 1.1 is refused, whatever http{} says."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with secured(tls, version) as client:
            assert client.version() == version.name.replace("_", ".")
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        secured(tls, ssl.TLSVersion.TLSv1_1)


def test_a_weak_cipher_is_refused(tls: Front) -> None:
    """By TLS 1.2 a client gets a cipher that keeps the past secret; one that knows no such cipher is refused."""
    with secured(tls, ssl.TLSVersion.TLSv1_2) as client:
        cipher = (client.cipher() or [""])[0]
        assert re.fullmatch(r"ECDHE-ECDSA-(AES\d+-GCM-SHA\d+|CHACHA20-POLY1305)", cipher)
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        secured(tls, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384")


def test_with_tls_only_the_host_itself_gets_in_without(tls: Front) -> None:
    """Beside TLS for all others, `ollama list` goes on working on 127.0.0.1, where it looks; elsewhere it is a 400."""
    assert ask(http.client.HTTPConnection("127.0.0.1", tls.port), "/api/version").status == 200
    assert balancer.poll(tls.port).gpu_count == 0
    refused = ask(http.client.HTTPConnection("127.0.0.2", tls.port), "/api/version")
    assert (refused.status, b"HTTPS port" in refused.body) == (400, True)


def test_a_renewed_certificate_breaks_no_stream(
    tls: Front, ollama: Ollama, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After a reload new clients see the new certificate, and a stream that began before goes on to its end."""
    assert tls.certificate is not None
    with Generation(tls.connection(), num_predict=2, pace=None) as generation:
        assert generation.token() == "0"
        # By a rename: nginx 1.27.4 and newer keep a file that is the same by inode and second.
        renewed = make_certificate(tmp_path_factory.mktemp("renewed"))
        renewed.file.replace(tls.certificate.file)
        renewed.key.replace(tls.certificate.key)
        tls.reload()
        served = ssl.get_server_certificate((tls.host, tls.port))
        assert served == tls.certificate.file.read_text()
        ollama.token()
        assert generation.token() == "1"
        ollama.token()
        assert generation.token() == ""
    ollama.tell(finished=1, disconnected=0)


# -- the allow-list --------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_allow_list_lets_in_whom_it_names(
    install: Callable[..., Front], ollama: Ollama, tls: bool
) -> None:
    """Whom allow.conf does not name gets 403 for Ollama and metrics alike, and neither hears of it."""
    limited = install(tls=tls)
    limited.edit("ollama-metrics/allow.conf", "^allow all;", "allow 127.0.0.1;\ndeny all;")
    with limited:
        for target in ("/metrics", "/health", "/api/version"):
            assert ask(limited.connection("127.0.0.1"), target).status == 200
            assert ask(limited.connection("127.0.0.2"), target).status == 403
        assert ask(limited.connection("127.0.0.2"), "/api/generate", "POST", b"{}").status == 403
    assert ollama.targets() == ["/api/version"]
