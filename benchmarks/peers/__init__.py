"""The catalogue: the agent and the servers that it is measured against, and how each is started."""

from __future__ import annotations

import importlib.util
import shutil
import string
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

HERE = Path(__file__).parent
SYSTEM_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Place:
    """What a server is given: a folder of its own, a free port, the agent's answer, an Ollama's URL."""

    folder: Path
    port: int
    body: bytes
    ollama: str = ""


@dataclass(frozen=True)
class Peer:
    """One server, and how it is started in a place."""

    name: str
    what: str
    missing: Callable[[], str | None]
    command: Callable[[Place], list[str]]
    picks_its_port: bool = False
    needs_ollama: bool = False


def program(name: str) -> str | None:
    """Where `name` is, also in the folders of daemons that a user's PATH leaves out."""
    return shutil.which(name) or shutil.which(name, path=SYSTEM_PATHS)


def missing_program(name: str, package: str) -> Callable[[], str | None]:
    def look() -> str | None:
        return None if program(name) else f"{name} is missing: apt-get install {package}"

    return look


def missing_modules(*names: str) -> Callable[[], str | None]:
    def look() -> str | None:
        lacking = [name for name in names if importlib.util.find_spec(name) is None]
        if not lacking:
            return None
        packages = " ".join("python3-" + name.replace("_", "-") for name in lacking)
        return (
            f"this Python lacks {', '.join(lacking)}: pip install it, or apt-get install {packages}"
        )

    return look


def agent(place: Place, *ollama: str) -> list[str]:
    state = place.folder / "state"
    state.mkdir()
    where = ["--listen", "127.0.0.1:0", "--state-dir", str(state)]
    return [sys.executable, "-I", "-m", "ollama_metrics", "serve", *where, *ollama]


def agent_alone(place: Place) -> list[str]:
    return agent(place, "--ollama", "none")


def agent_with_ollama(place: Place) -> list[str]:
    log = place.folder / "ollama.log"
    log.touch()
    return agent(place, "--ollama", place.ollama, "--ollama-log", f"file:{log}")


def agent_with_check(place: Place) -> list[str]:
    return agent(place, "--ollama", "none", "--agent-check", "127.0.0.1:0")


AS_SHIPPED = "sendfile on; tcp_nopush on;"  # what Debian's nginx.conf says
TUNED = "sendfile off; open_file_cache max=16; open_file_cache_valid 1h;"  # no open(), one write


def nginx(place: Place, transfer: str = AS_SHIPPED) -> list[str]:
    folder = place.folder
    folder.chmod(0o755)  # a worker of nginx started by root runs as another user
    (folder / "metrics").write_bytes(place.body)
    template = string.Template((HERE / "nginx.conf").read_text())
    configuration = folder / "nginx.conf"
    configuration.write_text(template.substitute(port=place.port, folder=folder, transfer=transfer))
    return [str(program("nginx")), "-p", str(folder), "-e", "stderr", "-c", str(configuration)]


def nginx_tuned(place: Place) -> list[str]:
    return nginx(place, TUNED)


def prometheus_client(place: Place) -> list[str]:
    return [
        sys.executable,
        "-I",
        str(HERE / "prometheus_client_server.py"),
        "--port",
        str(place.port),
    ]


def prometheus_client_sampling(place: Place) -> list[str]:
    return [*prometheus_client(place), "--sample-every", "1"]


def node_exporter(place: Place) -> list[str]:
    collectors = ["--collector.disable-defaults", "--collector.cpu", "--collector.meminfo"]
    listen = f"--web.listen-address=127.0.0.1:{place.port}"
    return [str(program("prometheus-node-exporter")), listen, *collectors]


def threading_server(place: Place) -> list[str]:
    return [sys.executable, "-I", str(HERE / "threading_server.py"), "--port", str(place.port)]


_NGINX = missing_program("nginx", "nginx-light")
_PROMETHEUS_CLIENT = missing_modules("prometheus_client", "psutil")

CATALOGUE: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "agent",
            "python -m ollama_metrics serve --ollama none: no collector for Ollama",
            missing_modules("ollama_metrics"),
            agent_alone,
            picks_its_port=True,
        ),
        Peer(
            "agent, Ollama",
            "the same with --ollama URL --ollama-log FILE: a stand-in for Ollama, asked every 5 s,"
            " with one model",
            missing_modules("ollama_metrics"),
            agent_with_ollama,
            picks_its_port=True,
            needs_ollama=True,
        ),
        Peer(
            "agent, agent-check",
            "the first with --agent-check",
            missing_modules("ollama_metrics"),
            agent_with_check,
            picks_its_port=True,
        ),
        Peer(
            "agent, page",
            "the first, with its live page open in a browser: two questions a second",
            missing_modules("ollama_metrics"),
            agent_alone,
            picks_its_port=True,
        ),
        Peer(
            "nginx",
            "the agent's own bytes as a static file, as Debian ships it, 1 worker, no access log",
            _NGINX,
            nginx,
        ),
        Peer(
            "nginx, tuned",
            "the same, tuned for one small file; for information, no goal is judged by it",
            _NGINX,
            nginx_tuned,
        ),
        Peer(
            "prometheus_client",
            "start_http_server with a psutil collector of CPU and RAM, read at each scrape",
            _PROMETHEUS_CLIENT,
            prometheus_client,
        ),
        Peer(
            "prometheus_client, sampling",
            "the same, but a thread reads CPU and RAM once a second",
            _PROMETHEUS_CLIENT,
            prometheus_client_sampling,
        ),
        Peer(
            "node_exporter",
            "Debian's, cpu and meminfo collectors only",
            missing_program("prometheus-node-exporter", "prometheus-node-exporter"),
            node_exporter,
        ),
        Peer(
            "ThreadingHTTPServer",
            "a thread per connection, psutil and json per request, HTTP/1.1",
            missing_modules("psutil"),
            threading_server,
        ),
    )
}
