"""install.sh --front nginx on a real systemd: Ollama moves behind nginx, stays when a step fails, and moves back.

What the front itself does with requests is in test_front.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Callable

import pytest
from installed import CHECKOUT, OLLAMA_UNIT, Host
from test_install import refused

pytestmark = [pytest.mark.booted, pytest.mark.timeout(300)]

Boot = Callable[..., AbstractContextManager[Host]]
FRONT = ("--front", "nginx")


@pytest.fixture
def host(booted_host: Boot, component: Callable[[str], str]) -> Iterator[Host]:
    """A machine with Ollama (its stand-in) on 11434 and without the agent."""
    component("nginx")
    with booted_host() as host:
        host.add_ollama()
        yield host


def ollama_answers(host: Host) -> bool:
    """Whether Ollama is where its clients look for it, and is itself: no front is in between."""
    return "/tests/ollama_standin.py" in owner(host, 11434) and bool(
        host.get("/api/version", 11434)
    )


def owner(host: Host, port: int) -> str:
    """The command line of the process that listens on a port."""
    return host.shell(
        f"for pid in $(ss -Hltnp 'sport = :{port}' | grep -o 'pid=[0-9]*' | cut -d = -f 2); do "
        "tr '\\0' ' ' < /proc/$pid/cmdline; done"
    )


def test_one_port_for_both_and_back(host: Host) -> None:
    """With the front 11434 answers for both, Ollama and agent are on loopback; uninstalled, all is as it was before."""
    before = host.snapshot()
    host.install(*FRONT)
    assert "nginx" in owner(host, 11434)
    assert host.get("/api/version", 11434)
    assert host.get("/metrics", 11434)["status"] == "ok"
    assert host.get("/health", 11434)["status"] == "ok"
    listening = host.shell("ss -Hltn | awk '{ print $4 }'").split()
    assert "127.0.0.1:11435" in listening
    assert "127.0.0.1:11436" in listening
    assert "0.0.0.0:11435" not in listening
    # An upgrade keeps it.
    host.install()
    assert host.get("/api/version", 11434)
    assert host.get("/metrics", 11434)["status"] == "ok"
    host.run("/opt/ollama-metrics/install.sh", "--uninstall", "--purge", timeout=120)
    host.wait(lambda: ollama_answers(host))
    assert host.changes(before) == []


def test_the_front_alone_is_taken_away(host: Host) -> None:
    """`--front none` puts Ollama back on its port and leaves the agent, on its own port for everybody."""
    host.install(*FRONT)
    assert host.setting("OLLAMA_METRICS_OLLAMA") == "http://127.0.0.1:11436"
    host.install("--front", "none")
    assert host.setting("OLLAMA_METRICS_OLLAMA") == "http://127.0.0.1:11434"
    assert ollama_answers(host)
    assert "0.0.0.0:11435" in host.shell("ss -Hltn | awk '{ print $4 }'").split()
    assert host.metrics()["status"] == "ok"


def test_where_ollama_is_expected_follows_the_front(host: Host) -> None:
    """Put on an installed agent, the front takes the expected Ollama with it, and so do an upgrade and its removal;
    uninstalled with the front, the settings name no Ollama any more."""

    def expected() -> tuple[Any, Any]:
        host.wait(lambda: host.metrics()["ollama"]["up"])
        ollama = host.metrics()["ollama"]
        assert ollama["expected"]
        return host.setting("OLLAMA_METRICS_OLLAMA"), ollama["url"]

    host.install()
    assert expected() == ("http://127.0.0.1:11434",) * 2
    host.install(*FRONT)
    assert expected() == ("http://127.0.0.1:11436",) * 2
    host.install("--front", "none")
    assert expected() == ("http://127.0.0.1:11434",) * 2
    host.install(*FRONT)
    host.install()
    assert expected() == ("http://127.0.0.1:11436",) * 2
    host.run("/opt/ollama-metrics/install.sh", "--uninstall", timeout=120)
    names = ("LISTEN", "OLLAMA", "OLLAMA_LOG")
    assert [host.setting(f"OLLAMA_METRICS_{name}") for name in names] == [None] * 3


def test_while_it_is_set_up_ollama_is_away_for_a_moment_only(host: Host) -> None:
    """Setting the front up under 50 polls a second of Ollama's own API, it is away for no longer than two restarts."""
    with host.polled(url="http://127.0.0.1:11434/api/version", kept=False) as polled:
        host.install(*FRONT)
    failed = len(polled.result["failed"])
    assert polled.result["polls"] - failed > 50
    assert failed < 50 * 10
    assert host.get("/api/version", 11434)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        # Ollama's address is pinned where a drop-in does not reach.
        (
            "echo OLLAMA_HOST=127.0.0.1:11434 > /etc/ollama.env; mkdir -p /etc/systemd/system/ollama.service.d; "
            "printf '[Service]\\nEnvironmentFile=/etc/ollama.env\\n' > /etc/systemd/system/ollama.service.d/own.conf; "
            "systemctl daemon-reload; systemctl restart ollama",
            "/etc/ollama.env sets OLLAMA_HOST",
        ),
        # Ollama's new port is somebody else's.
        ("systemd-run --unit=squatter -q python3 -m http.server --bind 127.0.0.1 11436", "11436"),
        # nginx has a configuration that it does not start with.
        ("echo 'nonsense;' > /etc/nginx/conf.d/own.conf", "nginx"),
        # There is no Ollama at all.
        (
            "systemctl disable -q --now ollama; rm /etc/systemd/system/ollama.service; systemctl daemon-reload",
            "ollama",
        ),
    ],
    ids=["pinned", "port", "nginx", "absent"],
)
def test_a_step_that_fails_leaves_ollama_where_it_was(host: Host, prepare: str, said: str) -> None:
    """Whatever step fails: one sentence, exit 1, Ollama on its port as before, and no file that was not there."""
    host.shell(prepare)
    absent = "rm /etc/systemd/system/ollama.service" in prepare
    if not absent:
        host.wait(lambda: ollama_answers(host))
    before = host.snapshot()
    sentence = refused(host.install(*FRONT, check=False))
    assert said in sentence
    if not absent:
        assert ollama_answers(host)
    assert host.changes(before) == []


def test_an_ollama_that_does_not_come_back_is_put_back(host: Host) -> None:
    """An Ollama that fails to start on its new port is started on its old one again."""
    host.write(
        "/etc/systemd/system/ollama.service",
        OLLAMA_UNIT.format(python=host.python, checkout=CHECKOUT).replace(
            "ExecStart=",
            "ExecStartPre=/bin/sh -c 'test \"$OLLAMA_HOST\" != 127.0.0.1:11436'\nExecStart=",
        ),
    )
    host.shell("systemctl daemon-reload; systemctl restart ollama")
    host.wait(lambda: ollama_answers(host))
    before = host.snapshot()
    assert "ollama.service" in refused(host.install(*FRONT, "--timeout", "8", check=False))
    host.wait(lambda: ollama_answers(host))
    assert host.changes(before) == []


def test_tls_and_who_is_let_in(host: Host) -> None:
    """With a certificate the front speaks TLS and HTTP/2 to others; with --front-allow only those are let in."""
    host.shell(
        "ip address add 198.51.100.7/32 dev lo; ip address add 198.51.100.8/32 dev lo; "
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout /srv/key -out /srv/crt 2>&1"
    )
    host.install(
        *FRONT, "--tls-cert", "/srv/crt", "--tls-key", "/srv/key", "--front-allow", "198.51.100.7"
    )

    def ask(source: str) -> tuple[str, Any]:
        out = host.shell(
            f"curl -sk --interface {source} -w '\\n%{{http_code}} %{{http_version}}' https://198.51.100.7:11434/api/version"
        )
        body, _, code = out.rpartition("\n")
        return code, json.loads(body) if code.startswith("200") else None

    assert ask("198.51.100.7")[0] == "200 2"
    assert ask("198.51.100.7")[1]["version"]
    assert ask("198.51.100.8")[0].startswith("403")
    # On the host itself Ollama's own command goes on working, without TLS.
    assert host.get("/api/version", 11434)
