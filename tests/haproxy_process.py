"""The real HAProxy with the shipped configuration, and hosts for its pool, each on a loopback address of its own."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Callable, NamedTuple, Optional

import ollama_standin
from ollama_process import PATIENCE, OllamaProcess
from ports import free_port

SHIPPED = Path(__file__).parent.parent / "deploy" / "haproxy" / "haproxy.cfg"
SERVERS = ("gpu1", "gpu2", "gpu3")
HOSTS = ("127.0.11.1", "127.0.11.2", "127.0.11.3")  # in place of the shipped addresses
POOL, OTHERS = "ollama", "ollama_others"  # the backends


class Ports(NamedTuple):
    """Those of every host, as the shipped file has them in common."""

    ollama: int
    agent: int
    agent_check: int


def free_ports() -> Ports:
    """Three that nobody uses."""
    return Ports(free_port(), free_port(), free_port())


# -- hosts -----------------------------------------------------------------------------------------


class Ollama(OllamaProcess):
    """The stand-in on an address of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        super().__init__(port)

    def token(self) -> None:
        """Let each generation that waits have one more token."""
        self._ask("POST", "/standin/token")

    def targets(self) -> list[str]:
        """The targets of the last requests that it has got."""
        return [request["target"] for request in self.tell()["requests"]]

    def _start(self) -> None:
        listened = sum("Listening on" in line for line in self.log)
        self._process = subprocess.Popen(
            [sys.executable, ollama_standin.__file__, "--listen", f"{self.host}:{self.port}"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        try:
            self.wait_for_log("Listening on", skip=listened)
        except BaseException:
            self.kill()
            raise

    def _ask(self, method: str, target: str, body: Optional[str] = None) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE / 3)
        try:
            connection.request(method, target, body)
            return json.loads(connection.getresponse().read())
        except socket.timeout:
            raise AssertionError(f"{target}: it never came to that") from None
        finally:
            connection.close()


class ScriptedAgent:
    """An agent that says what a test wants it to; a context manager.

    `line` is what an agent-check gets, `healthy` what /health/ollama answers.
    """

    def __init__(self, host: str, ports: Ports) -> None:
        self.line, self.healthy = "ready up 100%", True
        agent = self

        class Health(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path == "/health/ollama"
                self.send_response(200 if known and agent.healthy else 503 if known else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Check(BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(agent.line.encode() + b"\n")

        ThreadingTCPServer.allow_reuse_address = True
        self._servers = [
            ThreadingHTTPServer((host, ports.agent), Health),
            ThreadingTCPServer((host, ports.agent_check), Check),
        ]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> ScriptedAgent:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class Pool:
    """Hosts with Ollama and a scripted agent, as many as the shipped file has; a context manager."""

    def __init__(self) -> None:
        self.ports = free_ports()
        with ExitStack() as stack:
            self.agents = [stack.enter_context(ScriptedAgent(host, self.ports)) for host in HOSTS]
            with ThreadPoolExecutor() as together:
                started = together.map(Ollama, HOSTS, [self.ports.ollama] * len(HOSTS))
                self.ollamas = [stack.enter_context(ollama) for ollama in started]
            self._stack = stack.pop_all()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, count: str) -> list[int]:
        """What each Ollama has counted so far of one thing."""
        return [ollama.tell()[count] for ollama in self.ollamas]

    def token(self) -> None:
        """A token for every generation that waits for one, on all hosts."""
        for ollama in self.ollamas:
            ollama.token()


# -- HAProxy ---------------------------------------------------------------------------------------


class HAProxy:
    """HAProxy with the shipped configuration for the hosts of `HOSTS`; a context manager that starts and ends it.

    `environment` is what /etc/default/haproxy may set.
    """

    def __init__(
        self,
        program: str,
        folder: Path,
        ports: Ports,
        environment: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._program, self.folder = program, folder
        folder.mkdir(parents=True)
        self.config, self._socket = folder / "haproxy.cfg", folder / "socket"
        self.config.write_text(SHIPPED.read_text())
        self.port, self.state_port = free_port(), free_port()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
        self._environment = {**inherited, **(environment or {})}
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.edit(r"^(    bind ):11434$", rf"\g<1>0.0.0.0:{self.port}")
        self.edit(r"^(    bind 127\.0\.0\.1):8404$", rf"\g<1>:{self.state_port}")
        self.edit(r"/run/haproxy/admin\.sock", str(self._socket))
        # A line of the log that another thread is just writing one beside is dropped, and tests count lines.
        self.edit(r"^(    maxconn 4096)$", r"\g<1>\n    nbthread 1")
        self.edit(r"(connect port) 11435\b", rf"\g<1> {ports.agent}")
        self.edit(r"(agent-port) 11437\b", rf"\g<1> {ports.agent_check}")
        for server, shipped, host in zip(SERVERS, ("11", "12", "13"), HOSTS):
            address = rf"^(    server {server} )192\.0\.2\.{shipped}:11434\b"
            self.edit(address, rf"\g<1>{host}:{ports.ollama}", times=2)
        if os.geteuid() != 0:
            self.edit(r"^    (chroot|user|group) .*\n", "", times=3)

    def edit(self, pattern: str, by: str, times: int = 1) -> None:
        """Change what matches in the installed file; it has to match so many times."""
        text, changes = re.subn(pattern, by, self.config.read_text(), flags=re.MULTILINE)
        assert changes == times, f"{pattern} is {changes} times in the file"
        self.config.write_text(text)

    def check(self) -> str:
        """What `haproxy -c` says of it, on either stream."""
        command = [self._program, "-c", "-q", "-f", str(self.config)]
        done = subprocess.run(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def __enter__(self) -> HAProxy:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._program, "-db", "-f", str(self.config)],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.command("show version")
                return self
            except OSError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                threading.Event().wait(0.005)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text()

    # -- its own state -----------------------------------------------------------------------------

    def command(self, text: str) -> str:
        """What the runtime API answers."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self._socket))
            client.sendall(text.encode() + b"\n")
            with client.makefile() as answer:
                return answer.read()

    def stat(self, server: str = "BACKEND", backend: str = POOL) -> dict[str, str]:
        """A row of `show stat`."""
        text = self.command("show stat").lstrip("# ")
        for row in csv.DictReader(io.StringIO(text)):
            if (row["pxname"], row["svname"]) == (backend, server):
                return row
        raise AssertionError(f"no {backend}/{server}: {text}")

    def statuses(self, backend: str = POOL) -> list[str]:
        """That of each server, as the stats page shows it."""
        return [self.stat(server, backend)["status"] for server in SERVERS]

    def wait_until(
        self, true: Callable[[], Any], patience: float = PATIENCE / 3, what: str = ""
    ) -> float:
        """Seconds until it is so."""
        began = time.monotonic()
        while not true():
            if time.monotonic() > began + patience:
                state = [self.stat(server) for server in ("BACKEND", *SERVERS)]
                shown = [{key: row[key] for key in _SHOWN} for row in state]
                raise AssertionError(f"not within {patience} s {what}: {shown}\n{self.log()}")
            threading.Event().wait(0.01)
        return time.monotonic() - began

    def wait_for_checks(self) -> None:
        """Return when each agent and each health check have had their first answer."""

        def checked() -> bool:
            rows = [self.stat(server) for server in SERVERS]
            return all(_done(row["check_status"]) and _done(row["agent_status"]) for row in rows)

        self.wait_until(checked, what="that all was checked")

    # -- clients -----------------------------------------------------------------------------------

    def connection(self, client: str = "127.0.0.1") -> http.client.HTTPConnection:
        """A connection of the client with this address."""
        return http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=PATIENCE / 3, source_address=(client, 0)
        )


_SHOWN = (
    *("svname", "status", "check_status", "last_chk", "agent_status", "last_agt"),
    *("weight", "qcur", "scur"),
)


def _done(status: str) -> bool:
    return bool(status) and not status.startswith("* ") and status not in ("INI", "UNK")


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The sentence of an error, in Ollama's shape."""
        assert self.headers["content-type"] == "application/json", self
        return str(json.loads(self.body)["error"])


def ask(
    connection: http.client.HTTPConnection,
    target: str,
    method: str = "GET",
    body: Optional[str] = None,
    headers: Optional[Mapping[str, str]] = None,
) -> Answer:
    """One request on a connection, which is closed then."""
    try:
        connection.request(method, target, body, dict(headers or {}))
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, named, answer.read())
    finally:
        connection.close()


class Generation:
    """A generation that a client has asked for, `options` are the stand-in's; in a thread until it has ended.

    `tokens` are those that have come, `failure` is why it did not come to its end.
    """

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        target: str = "/api/generate",
        headers: Optional[Mapping[str, str]] = None,
        **options: Any,
    ) -> None:
        self.tokens: list[str] = []
        self.status = 0
        self.failure: Optional[BaseException] = None
        self._finished = False
        self._connection = connection
        self._changed = threading.Condition()
        connection.connect()
        self._socket = connection.sock
        body = json.dumps({"model": ollama_standin.MODEL, "options": options})
        self._thread = threading.Thread(
            target=self._run, args=(target, body, dict(headers or {})), daemon=True
        )
        self._thread.start()

    def leave(self) -> None:
        """The client closes its connection."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)

    def wait(self, patience: float = PATIENCE / 3) -> Generation:
        """Return when it has ended."""
        self._thread.join(patience)
        assert not self._thread.is_alive(), (self.status, self.tokens)
        return self

    @property
    def served(self) -> bool:
        """Whether it has come to its end."""
        return self.status == 200 and self._finished

    @property
    def ended(self) -> bool:
        """Whether it has ended in whatever way."""
        return not self._thread.is_alive()

    def wait_for_token(self, number: int) -> str:
        """The token of this number, as soon as it is there."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self.tokens) > number or self.failure, PATIENCE / 3
            ):
                raise AssertionError(f"token {number} does not come: {self.tokens}")
        assert self.failure is None, self.failure
        return self.tokens[number]

    def _run(self, target: str, body: str, headers: dict[str, str]) -> None:
        try:
            self._connection.request("POST", target, body, headers)
            answer = self._connection.getresponse()
            self.status = answer.status
            while not self._finished:
                document = json.loads(answer.readline())
                with self._changed:
                    if answer.status != 200 or document["done"]:
                        self._finished = True
                    else:
                        self.tokens.append(document["response"].strip())
                    self._changed.notify_all()
            answer.read()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            with self._changed:
                self.failure = error
                self._changed.notify_all()
        finally:
            self._connection.close()


def finish(generations: Sequence[Generation], hosts: Sequence[Ollama]) -> None:
    """Give tokens on these hosts until each generation has ended."""
    deadline = time.monotonic() + PATIENCE / 2
    for generation in generations:
        while not generation.ended:
            assert time.monotonic() < deadline, "generations go on"
            for host in hosts:
                host.token()
            threading.Event().wait(0.005)
