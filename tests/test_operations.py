"""docs/OPERATIONS.md, carried out: each of its commands is run as it is written, in its order, on a booted machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installed import CHECKOUT, WHEELHOUSE, Host

pytestmark = pytest.mark.timeout(300)
booted = pytest.mark.booted

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "OPERATIONS.md").read_text("utf-8")
BLOCKS = re.findall(r"^## .*|^### .*|^```sh\n(?:.*\n)*?```", PAGE, re.MULTILINE)
# The package index is a folder here; what it has besides the wheelhouse is what building a wheel takes.
ENVIRONMENT = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"{WHEELHOUSE} /srv/build-wheels"}


def commands() -> list[tuple[str, str]]:
    """(section, block of commands), in the page's order."""
    found, section = [], ""
    for block in BLOCKS:
        if block.startswith("#"):
            section = block.strip("# ")
        else:
            found.append((section, block[len("```sh\n") : -len("```")]))
    return found


@pytest.fixture(scope="module")
def host(booted_host: Any, build_wheels: Path) -> Iterator[Host]:
    """A machine with Ollama's stand-in as its ollama.service, and this checkout, not yet installed."""
    with booted_host() as host:
        host.copy(build_wheels, "/srv/build-wheels")
        host.add_ollama()
        yield host


@booted
@pytest.mark.parametrize(("section", "block"), commands())
def test_the_commands_do_what_they_say(host: Host, section: str, block: str) -> None:
    """Each block ends well; and after it, wherever something was installed, the agent answers."""
    said = host.shell(block, cwd=CHECKOUT, env=ENVIRONMENT, timeout=240)
    if "--dry-run" not in block:
        assert host.metrics()["status"] == "ok", said


def test_the_page_was_found() -> None:
    """The page has commands, in most of its sections."""
    assert len(commands()) > 12
    assert {
        "Installing",
        "Upgrading, and going back",
        "One port for Ollama and the agent",
        "Ollama",
    } <= {section for section, _ in commands()}


def sentences_of(module: str) -> list[str]:
    """The sentences in a module's strings, an f-string cut at its values; not docstrings, not help of metrics."""
    tree = ast.parse((REPOSITORY / "ollama_metrics" / f"{module}.py").read_text("utf-8"))
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            left_out.add(node.value)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("gauge", "detail"):
            left_out.update(ast.walk(node))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out
    ]
    return [text for text in texts if len(text.split()) >= 3]


@pytest.mark.parametrize(
    "module",
    [
        *("ollama_health", "ollama_collector", "ollama_processes", "ollama_expectation"),
        *("log_follower", "log_journal", "placement"),
    ],
)
def test_each_sentence_about_ollama_is_in_the_page(module: str) -> None:
    """What the agent can say of Ollama stands in the tables of docs/OPERATIONS.md, with what to do."""
    rows = re.findall(
        r"^\| (`.*?) \|", PAGE[PAGE.index("### What it says of Ollama") :], re.MULTILINE
    )
    told = " ".join(rows)
    assert sentences_of(module)
    for sentence in sentences_of(module):
        assert sentence.strip(" ;:,()") in told


@booted
def test_the_drop_in_for_addresses(host: Host) -> None:
    """The firewall drop-in, as it is written, lets this host in and no other address; for the socket unit, too."""
    match = re.search(r"^```ini\n((?:.*\n)*?)```", PAGE, re.MULTILINE)
    assert match
    folder = "/run/systemd/system/ollama-metrics"
    url = "http://198.51.100.7:11435/-/ready"
    ask = ("curl", "-s", "--max-time", "2", url)
    restart = (
        "systemctl daemon-reload; systemctl stop ollama-metrics ollama-metrics.socket; "
        "systemctl start ollama-metrics.socket ollama-metrics"
    )
    host.shell(f"ip address add 198.51.100.7/32 dev lo; {restart}")
    assert host.run(*ask).stdout == '{"ready": true}\n'
    host.write(f"{folder}.service.d/addresses.conf", match[1])
    host.write(f"{folder}.socket.d/addresses.conf", match[1].replace("[Service]", "[Socket]"))
    try:
        host.shell(restart)
        host.wait_until_ready()
        assert host.run(*ask, check=False).returncode == 28
        host.shell(
            "systemctl disable --now ollama-metrics.socket; systemctl restart ollama-metrics"
        )
        host.wait_until_ready()
        assert host.run(*ask, check=False).returncode == 28
    finally:
        host.shell(
            f"rm {folder}.*.d/addresses.conf; ip address del 198.51.100.7/32 dev lo; "
            "systemctl daemon-reload; systemctl restart ollama-metrics"
        )
    host.wait_until_ready()


@booted
def test_without_proc_the_host_is_failing(host: Host) -> None:
    """With ProcSubset=pid the service says that CPU or RAM cannot be read, and looks as busy as can be: never CPU 0."""
    folder = "/run/systemd/system/ollama-metrics.service.d"
    host.write(f"{folder}/proc.conf", "[Service]\nProcSubset=pid\nWatchdogSec=4\n")
    host.shell("systemctl daemon-reload; systemctl restart ollama-metrics")
    try:
        pid = host.pid
        host.wait(lambda: host.metrics()["agent"]["uptime_seconds"] > 6)
        document = host.metrics()
        assert document["status"] == "failing"
        assert document["weight"] == 500
        # The watchdog does not take it for stuck.
        assert host.pid == pid
    finally:
        host.shell(
            f"rm {folder}/proc.conf; systemctl daemon-reload; systemctl restart ollama-metrics"
        )
    host.wait_until_ready()
