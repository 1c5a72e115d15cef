"""`ollama-metrics doctor`: each check against a made-up host, and all of them against real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from agent_process import AgentProcess
from ollama_process import OllamaProcess, model
from ports import free_port
from standin import NvmlStandIn

from ollama_metrics.checkup import (
    OK,
    PROBLEM,
    SKIPPED,
    WARNING,
    Agent,
    Finding,
    NoAnswer,
    Ollama,
    Said,
    User,
    ask_agent,
    ask_apart,
    ask_ollama,
    ask_program,
    ask_user,
    examine,
    legible,
)
from ollama_metrics.checkup_driver import (
    HANGS,
    Driver,
    Gpu,
    ask_driver,
    check_binding,
    check_gpus,
    check_nodes,
    check_persistence,
    check_versions,
    group_name,
)
from ollama_metrics.checkup_service import (
    Owner,
    Unit,
    ask_unit,
    check_agent_port,
    check_clock,
    check_cost,
    check_drain,
    check_ollama,
    check_ollama_port,
    check_unit,
    check_weight,
    clock_error_microseconds,
    owner,
)
from ollama_metrics.doctor_command import read_settings
from ollama_metrics.errors import CollectorError, ConfigError
from ollama_metrics.ollama_url import OllamaUrl
from ollama_metrics.tcp_connections import Connections

URL = OllamaUrl("127.0.0.1", 11434)
DOCUMENT = {
    "cpu_percent": 20.0,
    "ram_percent": 30,
    "gpu_count": 2,
    "gpu_avg_utilization_percent": 80.0,
    "gpu_avg_memory_percent": 70.0,
    "timestamp": 1000.0,
    "age_seconds": 0.5,
    "weight": 275.0,
    "status": "ok",
    "reasons": [],
    "drain": None,
}
AGENT, NO_AGENT = Agent(DOCUMENT, at=1000.5), Agent(None, "connection refused")
OLLAMA = Ollama(version="0.33.0", rtt_seconds=0.001)
DEAD = Ollama(error="connection refused")
WORKS = Driver("570.10", (Gpu(0, "A", True), Gpu(1, "B", True)))
NO_LIBRARY = Driver(failure="NoLibrary", error="it is not installed")
UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "NRestarts": "0",
    "StatusText": "ok, weight 43.5",
    "ActiveEnterTimestamp": "Monday",
    "UnitFileState": "enabled",
    "MainPID": "77",
}


def put(root: Path, path: str, text: str = "") -> Path:
    """A file below a made-up root."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def agent(**fields: Any) -> Agent:
    """An agent whose answer differs in these."""
    return Agent({**DOCUMENT, **fields})


def no_program(*_: str, **__: Any) -> Said:
    """As if nothing were installed."""
    return Said("", "timedatectl is not installed")


# -- findings ----------------------------------------------------------------------------------------------------------


def test_a_check_that_fails_by_itself_is_a_problem_and_the_others_go_on() -> None:
    """An exception of a check becomes a line of its own, which names it; the next check is made."""

    def broken() -> Finding:
        raise ZeroDivisionError("by \x1b[2J nothing")

    found = list(examine([("one", broken), ("two", lambda: Finding("two", OK, "well"))]))
    assert [(one.check, one.verdict) for one in found] == [("one", PROBLEM), ("two", OK)]
    assert "ZeroDivisionError: by ?[2J nothing" in found[0].text
    assert "the doctor itself" in found[0].text


@pytest.mark.parametrize("kind", [CollectorError, NoAnswer])
def test_what_is_not_told_is_skipped(kind: type[Exception]) -> None:
    """A table that may not be read, or a process apart that gave no answer, is no fault of the doctor's."""

    def untold() -> Finding:
        raise kind("the table cannot be read")

    (found,) = examine([("one", untold)])
    assert (found.verdict, found.text) == (SKIPPED, "the table cannot be read")


def test_no_control_character_gets_out_of_a_check() -> None:
    """Text, remedy and details of a finding are made legible, whoever wrote what is in them."""
    bad = "a\x1b]0;x\x07\nb\u202ec\udce4"
    (found,) = examine([("x", lambda: Finding("x", OK, bad, bad, (bad,)))])
    for text in (found.text, found.remedy, *found.details):
        assert text == "a?]0;x??b?c?"


def test_a_text_without_end_is_cut() -> None:
    """What an answer has is shown up to a bound."""
    assert len(legible("x" * 10_000)) == 600
    assert legible("x" * 600) == "x" * 600


# -- questions with a time limit ---------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> str:
    """A program of the name `tool` in a folder; returns the folder."""
    file = put(folder, "tool", f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(folder)


def test_a_program_says_what_it_says(tmp_path: Path) -> None:
    """Its output is the answer, with the arguments passed on and in a plain environment."""
    folder = script(tmp_path, 'echo "$1 $LC_ALL"')
    assert ask_program("tool", "a b", folders=(folder,)) == Said("a b C.UTF-8\n")


def test_a_program_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Nothing waits longer than the limit, and the program is killed, whatever it ignores."""
    folder = script(tmp_path, f"trap '' TERM INT; echo $$ > {tmp_path}/pid; exec sleep 60")
    begun = time.monotonic()
    said = ask_program("tool", seconds=0.5, folders=(folder,))
    assert said.problem == "no answer within 0.5 s"
    assert time.monotonic() - begun < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_keeps_its_output_open_is_given_up(tmp_path: Path) -> None:
    """Its end is not enough: a grandchild may hold the output, and is not waited for."""
    folder = script(tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid")
    begun = time.monotonic()
    assert ask_program("tool", seconds=0.5, folders=(folder,)).problem == "no answer within 0.5 s"
    assert time.monotonic() - begun < 10
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_program_that_does_not_end_its_answer_is_stopped(tmp_path: Path) -> None:
    """Output is read up to a bound."""
    folder = script(tmp_path, "exec yes")
    said = ask_program("tool", seconds=20.0, folders=(folder,))
    assert said == Said("", "the answer does not end")


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    """The status and the first line are the problem."""
    folder = script(tmp_path, "echo no bus >&2; echo more; exit 3")
    problem = ask_program("tool", folders=(folder,)).problem
    assert problem == "tool ended with status 3: no bus"


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    """No folder has it: that is the problem."""
    assert ask_program("tool", folders=(str(tmp_path),)).problem == "tool is not installed"


def test_a_question_apart_that_crashes_is_no_answer() -> None:
    """An exception in the other process is its last line here."""
    with pytest.raises(NoAnswer, match="TypeError"):
        ask_apart("checkup", "legible", 7, seconds=20)


def test_a_question_apart_is_answered() -> None:
    """Arguments and the value come through."""
    assert ask_apart("checkup", "legible", "a\nb", seconds=20) == "a?b"


# -- settings ----------------------------------------------------------------------------------------------------------


def test_settings_are_those_of_the_service(tmp_path: Path) -> None:
    """The default file is read where it is there; variables of the shell win, and are named."""
    file = put(tmp_path, "environment", "OLLAMA_METRICS_WINDOW=30\nOLLAMA_METRICS_INTERVAL=2\n")
    config, found = read_settings(None, {"OLLAMA_METRICS_INTERVAL": "3"}, str(file))
    assert (config.window, config.interval) == (30, 3)
    assert found.verdict == OK
    assert "2 set; OLLAMA_METRICS_INTERVAL of this shell" in found.text


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    """No default file is no problem."""
    config, found = read_settings(None, {}, str(tmp_path / "none"))
    assert (found.verdict, config.window) == (OK, 15)


def test_settings_that_serve_would_refuse_are_a_problem(tmp_path: Path) -> None:
    """A misspelt name is a problem that names file and line, and the defaults go on."""
    file = put(tmp_path, "environment", "OLLAMA_METRICS_WINDO=30\n")
    config, found = read_settings(str(file), {})
    assert (found.verdict, config.window) == (PROBLEM, 15)
    assert "line 1" in found.text
    assert "reload" in found.remedy
    assert "the defaults" in found.remedy


def test_settings_that_this_user_may_not_read_are_skipped(tmp_path: Path) -> None:
    """That says nothing about the service's user; root sees more."""
    file = put(tmp_path, "environment", "OLLAMA_METRICS_WINDOW=30\n")
    config, found = read_settings(None, {}, str(file), lambda _: False)
    assert (found.verdict, found.hidden, config.window) == (SKIPPED, True, 15)
    assert "may not be read" in found.text


def test_settings_of_the_shell_that_are_wrong_are_a_problem(tmp_path: Path) -> None:
    """What is wrong may be in the environment as well."""
    found = read_settings(None, {"OLLAMA_METRICS_INTERVAL": "x"}, str(tmp_path / "none"))[1]
    assert found.verdict == PROBLEM
    assert "OLLAMA_METRICS_INTERVAL" in found.text


def test_a_file_that_was_named_and_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    """That is the user's, not the host's."""
    with pytest.raises(ConfigError):
        read_settings(str(tmp_path / "none"), {})


# -- ports -------------------------------------------------------------------------------------------------------------


def test_the_owner_of_a_port_is_named(tmp_path: Path) -> None:
    """By its descriptors and its name in /proc; the kernel's table says which socket listens."""
    put(tmp_path, "40/comm", "ollama\n")
    (tmp_path / "40" / "fd").mkdir()
    (tmp_path / "40" / "fd" / "3").symlink_to("socket:[99]")
    assert owner(7, str(tmp_path), lambda _: Connections(0, (99,))) == Owner(True, 40, "ollama")
    assert owner(7, str(tmp_path), lambda _: Connections(0, (98,))) == Owner(True)
    assert owner(7, str(tmp_path), lambda _: Connections(0, ())) == Owner(False)


def test_the_owner_of_a_real_port_is_this_process() -> None:
    """The same by the kernel's own tables."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert owner(server.getsockname()[1]).pid == os.getpid()


@pytest.mark.parametrize(
    ("who", "answer", "main_pid", "verdict", "says"),
    [
        (Owner(True, 77, "python"), AGENT, 77, OK, "the agent, python (77)"),
        (Owner(True, 77, "python"), AGENT, None, OK, "the agent"),
        (Owner(True, 78, "python"), AGENT, 77, WARNING, "not the service's process 77"),
        (Owner(True, 9, "caddy"), NO_AGENT, 77, PROBLEM, "caddy (9) listens, and does not answer"),
        (Owner(False), NO_AGENT, None, PROBLEM, "nobody listens"),
        (Owner(True), AGENT, 77, OK, "cannot be seen"),
    ],
)
def test_the_agents_port(
    who: Owner, answer: Agent, main_pid: Optional[int], verdict: str, says: str
) -> None:
    """It is well where the agent answers and is the service's; each other case says who is there."""
    found = check_agent_port(11435, who, answer, main_pid, True)
    assert (found.check, found.verdict) == ("port 11435", verdict)
    assert says in found.text
    assert bool(found.remedy) == (verdict != OK)
    assert not found.hidden


def test_who_is_not_root_is_told_that_root_sees_more() -> None:
    """An owner that cannot be seen is marked, unless root is who looks."""
    assert check_agent_port(1, Owner(True), AGENT, None, False).hidden
    assert check_ollama_port(1, Owner(True), OLLAMA, NO_AGENT, True, False).hidden
    assert not check_ollama_port(1, Owner(True), OLLAMA, NO_AGENT, True, True).hidden


@pytest.mark.parametrize(
    ("who", "ollama", "through", "needed", "verdict", "says"),
    [
        (Owner(True, 7, "ollama"), OLLAMA, NO_AGENT, True, OK, "ollama (7)"),
        (Owner(True, 8, "docker-proxy"), OLLAMA, NO_AGENT, True, OK, "Ollama answers through it"),
        (Owner(True, 9, "nginx"), OLLAMA, AGENT, False, OK, "the agent behind it"),
        (Owner(True, 9, "nginx"), OLLAMA, NO_AGENT, False, WARNING, "its /metrics not"),
        (Owner(True, 9, "nginx"), DEAD, AGENT, False, WARNING, "Ollama does not answer there"),
        (Owner(True, 9, "caddy"), DEAD, NO_AGENT, True, PROBLEM, "caddy (9) listens"),
        (Owner(False), DEAD, NO_AGENT, True, PROBLEM, "nobody listens"),
        (Owner(False), DEAD, NO_AGENT, False, OK, "nobody has to"),
    ],
)
def test_ollamas_port(
    who: Owner, ollama: Ollama, through: Agent, needed: bool, verdict: str, says: str
) -> None:
    """It is well where Ollama answers, by itself or behind something; nginx has to lead to the agent, too."""
    found = check_ollama_port(11434, who, ollama, through, needed, True)
    assert (found.verdict, says in found.text) == (verdict, True), found
    assert bool(found.remedy) == (verdict != OK)


# -- Ollama ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ollama", "expected", "gpus", "meant", "verdict", "says"),
    [
        (OLLAMA, True, 1, False, OK, "no model is loaded"),
        (DEAD, True, 1, False, PROBLEM, "connection refused"),
        (DEAD, False, 1, False, WARNING, "none is expected"),
        (Ollama(version="1", models=(("m", 1.0),)), True, 1, False, OK, "m 100 % on GPUs"),
        (Ollama(version="1", models=(("m", 0.4),)), True, 1, False, WARNING, "m 40 % on GPUs"),
        (Ollama(version="1", models=(("m", 0.4),)), True, 0, False, OK, "m 40 % on GPUs"),
        (Ollama(version="1", models=(("m", 0.4),)), True, 1, True, OK, "m 40 % on GPUs"),
        (Ollama(version="1", rtt_seconds=3.0), True, 1, False, WARNING, "slow"),
        (Ollama(version="1", error="no list"), True, 1, False, WARNING, "1, but no list"),
    ],
)
def test_ollama(
    ollama: Ollama, expected: bool, gpus: int, meant: bool, verdict: str, says: str
) -> None:
    """Dead is a problem where it is expected; slow, half an answer and models beside working GPUs are warnings."""
    found = check_ollama(URL, ollama, expected, gpus, meant)
    assert (found.verdict, says in found.text) == (verdict, True), found
    assert bool(found.remedy) == (verdict != OK)


def test_a_real_ollama_is_asked() -> None:
    """Version, and each model's share of GPU memory, of the stand-in; dead, the reason."""
    with OllamaProcess() as server:
        server.models([model("one", 4 << 30, 1 << 30), model("two")])
        url = OllamaUrl("127.0.0.1", server.port)
        told = ask_ollama(url, 10.0)
        assert (told.local, told.version, told.error) == (True, "0.33.0", "")
        assert told.models == (("one", 0.25), ("two", 1.0))
        server.kill()
        assert "connection refused" in ask_ollama(url, 10.0).error


def test_an_ollama_that_hangs_does_not_hang_the_doctor() -> None:
    """It has its seconds, and no more."""
    with OllamaProcess() as server:
        server.pause()
        begun = time.monotonic()
        told = ask_ollama(OllamaUrl("127.0.0.1", server.port), 0.5)
        assert "no answer within 0.5 s" in told.error
        assert time.monotonic() - begun < 10


def test_an_address_elsewhere_is_not_of_this_host() -> None:
    """Whose port is looked at depends on it."""
    assert not ask_ollama(OllamaUrl("192.0.2.1", 11434), 0.2).local


# -- the agent's answer ------------------------------------------------------------------------------------------------


def served(answer: bytes) -> Agent:
    """What is made of an answer of somebody on the agent's port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pid = os.fork()
        if pid == 0:
            connection = server.accept()[0]
            connection.recv(4096)
            connection.sendall(answer)
            connection.close()
            os._exit(0)
        try:
            return ask_agent(OllamaUrl("127.0.0.1", server.getsockname()[1]), 10.0)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def page(status: bytes, document: object) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return b"HTTP/1.0 %s\r\n\r\n%s" % (status, body)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside pytest-timeout's thread
def test_the_agents_answer_is_taken_whatever_its_status() -> None:
    """With the policy `error` a failing host's page has the status 503, and its reasons all the same."""
    told = served(page(b"503 No", {**DOCUMENT, "status": "failing"}))
    assert told.document is not None
    assert abs(told.at - time.time()) < 60


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "document",
    [
        {**DOCUMENT, "gpu_count": 2.0},
        {**DOCUMENT, "cpu_percent": None},
        {**DOCUMENT, "cpu_percent": True},
        {key: value for key, value in DOCUMENT.items() if key != "status"},
        [],
        b"<html>",
        {**DOCUMENT, "cpu_percent": float("nan")},
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_is_not_the_agents_answer_is_none(document: object) -> None:
    """Fields that a balancer would not decode, and what is no such JSON, are somebody else's."""
    told = served(page(b"200 OK", document))
    assert told.document is None
    assert "something else" in told.error


def test_weights_are_what_a_balancer_computes() -> None:
    """consumers.md's first example: 275."""
    found = check_weight(AGENT)
    assert (found.verdict, found.text.split()[0]) == (OK, "275")


@pytest.mark.parametrize(
    ("answer", "verdict", "says"),
    [
        (agent(status="degraded", reasons=["GPU 1 is lost"]), WARNING, "degraded: GPU 1 is lost"),
        (agent(status="failing", reasons=["a", "b"]), PROBLEM, "failing: a; b"),
        (agent(status="draining"), WARNING, "draining"),
        (agent(weight=137.5), OK, "`weight` 137.5"),
        (agent(reasons=7, weight=None), OK, "275 of 500"),
        (NO_AGENT, PROBLEM, "unknown: connection refused"),
    ],
)
def test_the_weight_has_its_status_and_reasons(answer: Agent, verdict: str, says: str) -> None:
    """Failing is a problem, degraded and draining are warnings, each with its reasons."""
    found = check_weight(answer)
    assert (found.verdict, says in found.text) == (verdict, True), found
    assert bool(found.remedy) == (verdict != OK)


def test_a_drained_host_is_said() -> None:
    """Why, since when and until when, and how to end it."""
    drain = {"reason": "new fans", "since": 0, "until": None}
    found = check_drain(agent(drain=drain))
    assert (found.verdict, found.remedy) == (WARNING, "ollama-metrics resume")
    assert found.text == "drained since 1970-01-01T00:00:00Z: new fans"
    found = check_drain(agent(drain={**drain, "until": 60}))
    assert "until 1970-01-01T00:01:00Z" in found.text


def test_a_host_that_is_not_drained_is_well() -> None:
    """And where the agent does not answer, nobody knows."""
    assert check_drain(AGENT).verdict == OK
    assert check_drain(NO_AGENT).verdict == SKIPPED
    assert check_drain(agent(drain="x" * 9)).verdict == WARNING  # of another version


# -- the unit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "verdict", "says"),
    [
        ({}, OK, "active (running) since Monday"),
        ({"NRestarts": "3"}, WARNING, "since Monday, restarted 3 times"),
        ({"NRestarts": "1"}, WARNING, "restarted 1 time by"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, PROBLEM, "auto-restart"),
        ({"ActiveState": "activating", "SubState": "start"}, WARNING, "(start): ok, weight 43.5"),
        ({"ActiveState": "failed", "Result": "exit-code"}, PROBLEM, "exit-code"),
        ({"ActiveState": "inactive", "SubState": "dead"}, PROBLEM, "inactive (dead)"),
        ({"ActiveState": "reloading", "SubState": "reload"}, OK, "reloading"),
        ({"PrivateDevices": "yes"}, PROBLEM, "hides every GPU"),
        ({"UnitFileState": "disabled"}, WARNING, "next boot"),
        ({"LoadState": "not-found"}, SKIPPED, "not-found"),
    ],
)
def test_the_unit(changes: Mapping[str, str], verdict: str, says: str) -> None:
    """What runs is well; what fails, ended, or cannot see GPUs is a problem; restarts are a warning."""
    found = check_unit(Unit({**UNIT, **changes}))
    assert (found.verdict, says in found.text) == (verdict, True), found
    assert bool(found.remedy) == (verdict != OK)


def test_a_unit_that_is_disabled_and_ended_is_to_be_enabled() -> None:
    """The remedy is the one that lasts."""
    changes = {"ActiveState": "inactive", "UnitFileState": "disabled"}
    assert check_unit(Unit({**UNIT, **changes})).remedy.startswith("systemctl enable --now")


def test_systemd_is_asked_where_it_runs(tmp_path: Path) -> None:
    """Its properties by name; without it, or where it does not answer, the check is skipped with the reason."""
    asked: list[Sequence[str]] = []

    def program(*words: str, seconds: float) -> Said:
        asked.append(words)
        return Said("ActiveState=active\nLoadState=loaded\nMainPID=12\nStatusText=a=b\nOther=1\n")

    assert "does not run" in check_unit(ask_unit(program, 1.0, f"{tmp_path}/")).text
    assert not asked
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    unit = ask_unit(program, 1.0, f"{tmp_path}/")
    assert asked[0][:3] == ("systemctl", "show", "ollama-metrics.service")
    assert unit.main_pid == 12
    assert unit.properties["StatusText"] == "a=b"
    assert "Other" not in unit.properties
    hung = ask_unit(lambda *_, **__: Said("", "no answer within 1 s"), 1.0, f"{tmp_path}/")
    found = check_unit(hung)
    assert (found.verdict, found.text, hung.main_pid) == (SKIPPED, "no answer within 1 s", None)


# -- what it costs -----------------------------------------------------------------------------------------------------


def process(proc: Path, rss_kb: int, ticks: int, age: float) -> None:
    """Process 7, which has used so much and is so old."""
    hertz = os.sysconf("SC_CLK_TCK")
    put(proc, "7/status", f"Name:\tx\nVmRSS:\t {rss_kb} kB\n")
    started = int((100_000 - age) * hertz)
    put(proc, "7/stat", f"7 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 3 0 {started} 1 1\n")
    put(proc, "uptime", "100000.00 1.00\n")


@pytest.mark.parametrize(
    ("rss_kb", "seconds", "age", "verdict", "says"),
    [
        (20_000, 7.2, 7200, OK, "20.5 MB of memory, 0.1 % of a CPU since its start 2 h ago"),
        (200_000, 7.2, 7200, WARNING, "204.8 MB"),
        (20_000, 720, 7200, WARNING, "10 % of a CPU"),
        (20_000, 5, 10, OK, "50 % of a CPU since its start 10 s ago"),
    ],
)
def test_the_cost(
    tmp_path: Path, rss_kb: int, seconds: float, age: float, verdict: str, says: str
) -> None:
    """Memory, and the share of a CPU over the process's life; much of either is a warning, but for its first minute."""
    process(tmp_path, rss_kb, int(seconds * os.sysconf("SC_CLK_TCK")), age)
    found = check_cost(7, True, str(tmp_path))
    assert (found.verdict, says in found.text) == (verdict, True), found


def test_a_process_that_cannot_be_seen_has_no_cost(tmp_path: Path) -> None:
    """Root would see it, if there is one."""
    assert check_cost(None, False).hidden
    assert not check_cost(None, True).hidden
    put(tmp_path, "uptime", "100000.00 1.00\n")
    assert check_cost(8, False, str(tmp_path)).verdict == SKIPPED


def test_the_cost_of_a_real_process() -> None:
    """This process has some megabytes, and has used a CPU."""
    found = check_cost(os.getpid(), True)
    assert float(found.text.split()[0]) > 5
    assert " % of a CPU" in found.text


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_kept_is_well() -> None:
    """The kernel's own estimate of its error says so, as it does to systemd."""
    assert check_clock(AGENT, no_program, lambda: 2500).verdict == OK


def test_a_clock_that_nobody_keeps_is_a_warning() -> None:
    """An error of 16 s is the kernel's word for that."""
    found = check_clock(AGENT, no_program, lambda: 16_000_000)
    assert (found.verdict, "set-ntp" in found.remedy) == (WARNING, True)


@pytest.mark.parametrize("at", [990.0, 1010.0])
def test_an_agent_with_another_time_is_a_warning(at: float) -> None:
    """Its timestamp and the age of that make the present, within 5 s."""
    found = check_clock(Agent(DOCUMENT, at=at), no_program, lambda: 2500)
    assert (found.verdict, "timestamp" in found.text) == (WARNING, True)


def test_the_agents_time_is_that_of_its_answer(start_agent: Callable[..., AgentProcess]) -> None:
    """However long the other checks take: a real agent's clock is this host's."""
    own = ask_agent(OllamaUrl("127.0.0.1", start_agent().port), 10.0)
    assert own.document is not None
    assert abs(own.at - own.document["timestamp"] - own.document["age_seconds"]) < 2


@pytest.mark.parametrize(("said", "verdict"), [("yes", OK), ("no", WARNING), ("?", SKIPPED)])
def test_timedatectl_is_asked_where_the_kernel_does_not_say(said: str, verdict: str) -> None:
    """A sandbox may refuse adjtimex, and no C library need have it."""

    def refused() -> Optional[int]:
        raise AttributeError("adjtimex")

    for ask in (refused, lambda: None):
        answer = Said(f"NTPSynchronized={said}\n")
        assert check_clock(NO_AGENT, lambda *_, answer=answer: answer, ask).verdict == verdict


def test_the_kernel_is_really_asked() -> None:
    """adjtimex(2) gives an error of some microseconds, the same one as the C library's own program would."""
    error = clock_error_microseconds()
    assert error is None or 0 <= error <= 16_000_000 * 10


# -- the driver's versions ---------------------------------------------------------------------------------------------

NVRM = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.10  Release Build  (x@y)\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)


def driver_root(root: Path, module: str = "", library: str = "", bus: bool = False) -> str:
    """A made-up root with a kernel module, a library and a GPU on the bus."""
    root.mkdir(exist_ok=True)
    if module:
        put(root, "sys/module/nvidia/version", f"{module}\n")
    if library:
        put(root, f"usr/lib64/libnvidia-ml.so.{library}")
        (root / "usr/lib64/libnvidia-ml.so.1").symlink_to(f"libnvidia-ml.so.{library}")
    if bus:
        put(root, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
        put(root, "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
        put(root, "sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
        put(root, "sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")  # its sound
    return f"{root}/"


@pytest.mark.parametrize(
    ("module", "library", "bus", "driver", "expected", "verdict", "says"),
    [
        ("570.10", "570.10", True, WORKS, None, OK, "570.10, module and library fit"),
        ("", "570.10", False, WORKS, None, OK, "570.10"),  # Windows' subsystem for Linux
        (
            *("570.10", "575.3.2", True, Driver(failure="DriverFailure")),
            *(None, PROBLEM, "module 570.10, and the library is of 575.3.2"),
        ),
        ("570.10", "", True, Driver(failure="DriverReplaced"), None, PROBLEM, "is not that of"),
        ("", "570.10", True, Driver(failure="DriverReplaced"), None, PROBLEM, "is not that of"),
        ("", "570.10", True, Driver(failure=HANGS), None, SKIPPED, "cannot be seen"),
        ("570.10", "575.3", True, Driver(failure=HANGS), None, PROBLEM, "was updated"),
        ("570.10", "570.10", True, Driver(failure=HANGS), None, OK, "570.10, module and library"),
        ("570.10", "", True, NO_LIBRARY, None, PROBLEM, "libnvidia-ml.so.1 is not installed"),
        ("", "570.10", True, Driver(failure="NoDriver"), None, PROBLEM, "for 1 GPU"),
        ("", "570.10", False, Driver(failure="NoDriver"), None, WARNING, "not loaded"),
        ("", "570.10", False, Driver(failure="NoDriver"), 2, PROBLEM, "for 2 GPUs"),
        ("", "", True, NO_LIBRARY, None, PROBLEM, "there is no NVIDIA driver"),
        ("", "", False, NO_LIBRARY, 4, PROBLEM, "for 4 GPUs"),
        ("", "", False, NO_LIBRARY, None, SKIPPED, "no NVIDIA GPU here"),
    ],
)
def test_module_and_library(
    tmp_path: Path,
    module: str,
    library: str,
    bus: bool,
    driver: Driver,
    expected: Optional[int],
    verdict: str,
    says: str,
) -> None:
    """They have to be of one version, and there where a GPU is on the bus or expected."""
    root = driver_root(tmp_path / "root", module, library, bus)
    found = check_versions(driver, expected, root)
    assert (found.verdict, says in found.text) == (verdict, True), found
    assert bool(found.remedy) == (verdict in (WARNING, PROBLEM))


def test_the_modules_version_is_also_in_procfs(tmp_path: Path) -> None:
    """Not the compiler's, which stands in the next line."""
    put(tmp_path, "proc/driver/nvidia/version", NVRM)
    found = check_versions(Driver(failure=HANGS), None, f"{tmp_path}/")
    assert "570.10" in found.text


def test_the_library_is_looked_for_where_the_shell_says(tmp_path: Path) -> None:
    """LD_LIBRARY_PATH comes first, and is told in the details."""
    root = driver_root(tmp_path, "570.10")
    put(tmp_path, "opt/cuda/libnvidia-ml.so.575.3")
    (tmp_path / "opt/cuda/libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.575.3")
    found = check_versions(Driver(failure="DriverFailure"), None, root, "/opt/cuda")
    assert "575.3" in found.text
    assert any("libnvidia-ml.so.575.3" in line for line in found.details)


# -- GPUs and persistence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "expected", "verdict", "says"),
    [
        (WORKS, None, OK, "2 answer: A, B"),
        (WORKS, 2, OK, "2 answer"),
        (WORKS, 4, PROBLEM, "2 of 4"),
        (Driver("1", (Gpu(0, "A", True), Gpu(1, "", None, "lost"))), 2, PROBLEM, "GPU 1: lost"),
        (Driver("1"), None, PROBLEM, "names none"),
        (Driver(failure=HANGS, error="no answer within 1 s"), None, PROBLEM, "the driver hangs"),
        (Driver(failure="DriverFailure", error="unknown"), None, PROBLEM, "unknown"),
        (Driver(failure="DriverReplaced", error="mismatch"), None, PROBLEM, "mismatch"),
        (NO_LIBRARY, None, SKIPPED, "not installed"),
        (NO_LIBRARY, 2, PROBLEM, "2 are expected"),
    ],
)
def test_the_gpus(driver: Driver, expected: Optional[int], verdict: str, says: str) -> None:
    """Each has to answer, and all that are expected; a driver that hangs or fails is a problem, none is not."""
    found = check_gpus(driver, expected)
    assert (found.verdict, says in found.text) == (verdict, True), found
    assert bool(found.remedy) == (verdict == PROBLEM)


@pytest.mark.parametrize(
    ("modes", "verdict", "says"),
    [
        ((True, True), OK, "on for all"),
        ((True, False), WARNING, "off on GPU 1:"),
        ((None, None), SKIPPED, "does not say"),
        ((True, None), OK, "on for all"),
        ((), SKIPPED, "no GPU answers"),
    ],
)
def test_persistence(modes: Sequence[Optional[bool]], verdict: str, says: str) -> None:
    """A GPU without it is a warning; one that does not report it is none."""
    gpus = tuple(Gpu(index, "", mode) for index, mode in enumerate(modes))
    found = check_persistence(Driver("1", gpus))
    assert (found.verdict, says in found.text) == (verdict, True), found
    assert ("nvidia-persistenced" in found.remedy) == (verdict == WARNING)


def test_the_driver_is_asked_through_the_binding(nvml: NvmlStandIn) -> None:
    """Version, names, persistence and what is lost, of the stand-in for NVIDIA's library."""
    nvml.update({"count": 3, "driver": "570.10", "gpu1.persistence": 0, "gpu.name": "NVIDIA X"})
    nvml.lose(2)
    driver = ask_driver(30.0, {**os.environ, **nvml.environment()})
    assert (driver.version, driver.works) == ("570.10", True)
    assert driver.gpus[:2] == (Gpu(0, "NVIDIA X", True), Gpu(1, "NVIDIA X", False))
    assert "lost" in driver.gpus[2].lost


@pytest.mark.parametrize(
    ("init", "failure"), [(18, "DriverReplaced"), (9, "NoDriver"), (999, "DriverFailure")]
)
def test_a_driver_that_fails_says_how(nvml: NvmlStandIn, init: int, failure: str) -> None:
    """NVML's codes are told apart as they are for the agent."""
    nvml.set(init=init)
    driver = ask_driver(30.0, {**os.environ, **nvml.environment()})
    assert (driver.failure, str(init) in driver.error) == (failure, True)


def test_a_driver_that_hangs_does_not_hang_the_doctor(nvml: NvmlStandIn) -> None:
    """After its seconds it is said to hang, and its process is gone."""
    nvml.hang("nvmlInit")
    begun = time.monotonic()
    driver = ask_driver(1.0, {**os.environ, **nvml.environment()})
    assert (driver.failure, driver.error) == (HANGS, "no answer within 1 s")
    assert time.monotonic() - begun < 10
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("crashes", [True, False])
def test_a_library_that_cannot_be_used_is_a_failure(
    tmp_path: Path, component: Callable[[str], str], crashes: bool
) -> None:
    """One that ends the process that loads it, and one that is no library, are not taken for a working driver."""
    library = put(tmp_path, "libnvidia-ml.so.1", "no library")
    if crashes:
        source = put(
            tmp_path, "crash.c", "__attribute__((constructor)) void f(void) { __builtin_trap(); }"
        )
        command = [component("gcc"), "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True, timeout=60)
    driver = ask_driver(30.0, {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)})
    assert not driver.works
    assert ("signal" in driver.error) == crashes
    assert check_gpus(driver, None).verdict == PROBLEM


# -- device nodes ------------------------------------------------------------------------------------------------------


# Whose the nodes are: somebody else's than root's where the tests may give files away.
OWNER = (4242, 4343) if os.getuid() == 0 else (os.getuid(), os.getgid())


def nodes(root: Path, mode: int, *names: str) -> str:
    """Nodes of this mode."""
    for name in names or ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        node = put(root, f"dev/{name}")
        node.chmod(mode)
        os.chown(node, *OWNER)
    return f"{root}/"


OTHER = User("ollama", OWNER[0] + 1, (OWNER[1] + 1,))
MEMBER = User("ollama", OWNER[0] + 1, (OWNER[1] + 1, OWNER[1]))
ITSELF = User("ollama", OWNER[0], (OWNER[1],))


@pytest.mark.parametrize(
    ("mode", "user", "verdict"),
    [
        (0o666, OTHER, OK),
        (0o660, OTHER, PROBLEM),
        (0o664, OTHER, PROBLEM),
        (0o662, OTHER, PROBLEM),
        (0o660, MEMBER, OK),
        (0o606, MEMBER, PROBLEM),
        (0o600, MEMBER, PROBLEM),
        (0o600, ITSELF, OK),
        (0o066, ITSELF, PROBLEM),
        (0o000, User("root", 0, (0,)), OK),
    ],
)
def test_device_nodes(tmp_path: Path, mode: int, user: User, verdict: str) -> None:
    """The part of the mode that is the user's has to have read and write, and no other counts."""
    found = check_nodes(user, nodes(tmp_path, mode), lambda _: "video", lambda _: False)
    assert (found.verdict, "the user" in found.text) == (verdict, True), found
    assert "modeset" not in found.text


def test_the_remedy_is_the_group_where_the_group_may(tmp_path: Path) -> None:
    """Else the driver's own option for the nodes' mode."""
    asked: list[int] = []

    def name_of(gid: int) -> str:
        asked.append(gid)
        return "video"

    found = check_nodes(OTHER, nodes(tmp_path, 0o660), name_of, lambda _: False)
    assert found.remedy.startswith("usermod -a -G video ollama")
    assert asked == [OWNER[1]]
    found = check_nodes(OTHER, nodes(tmp_path, 0o600), name_of, lambda _: False)
    assert "NVreg_DeviceFileMode=0666" in found.remedy
    assert "chmod 0666 /dev/nvidia-uvm /dev/nvidia0 /dev/nvidiactl" in found.remedy


def test_a_group_is_named_by_its_number() -> None:
    """As /etc/group has it; a number that it does not have stays one."""
    assert group_name(0) == "root"
    assert group_name(4_000_000) == "4000000"


def test_an_access_list_is_not_guessed_at(tmp_path: Path) -> None:
    """Where a node has one, its mode is not all: a warning, and how to try."""
    found = check_nodes(OTHER, nodes(tmp_path, 0o660), acl=lambda _: True)
    assert (found.verdict, found.remedy) == (WARNING, "runuser -u ollama -- nvidia-smi -L")


def test_nodes_that_are_missing(tmp_path: Path) -> None:
    """None at all beside a loaded module is a problem, without nvidia-uvm CUDA does not work, no driver needs none."""
    (tmp_path / "dev").mkdir()
    assert check_nodes(OTHER, f"{tmp_path}/").verdict == SKIPPED
    put(tmp_path, "sys/module/nvidia/version", "570.10\n")
    found = check_nodes(OTHER, f"{tmp_path}/")
    assert (found.verdict, "nvidia-modprobe" in found.remedy) == (PROBLEM, True)
    found = check_nodes(OTHER, nodes(tmp_path, 0o666, "nvidia0", "nvidiactl"))
    assert (found.verdict, "/dev/nvidia-uvm" in found.text) == (WARNING, True)
    assert check_nodes(OTHER, f"{tmp_path}/nowhere/").verdict == SKIPPED


def test_users_are_those_of_the_database() -> None:
    """Number and groups, and those that the unit adds; None for a name that is nobody's."""
    root = ask_user("root", ["daemon", "no-such-group"], 20.0)
    assert root is not None
    assert (root.uid, 0 in root.gids, 1 in root.gids) == (0, True, True)
    assert ask_user("no such user", [], 20.0) is None


# -- the binding -------------------------------------------------------------------------------------------------------


def installed(site: Path, name: str, version: str, *files: str) -> None:
    """A distribution that has installed these files."""
    put(site, f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n")
    put(site, f"{name}-{version}.dist-info/RECORD", "".join(f"{file},,\n" for file in files))


def test_the_right_binding(tmp_path: Path) -> None:
    """nvidia-ml-py's, with what the agent needs of it."""
    put(tmp_path, "pynvml.py", "nvmlMemory_v2 = 1\nraise SystemExit('it is not imported')\n")
    installed(tmp_path, "nvidia_ml_py", "13.1", "pynvml.py")
    found = check_binding(True, [str(tmp_path)])
    assert (found.verdict, found.text) == (OK, "of nvidia-ml-py 13.1")


@pytest.mark.parametrize("file", ["pynvml.py", "pynvml/__init__.py"])
@pytest.mark.parametrize("package", ["pynvml", "nvidia-ml-py3"])
def test_an_old_binding_is_a_problem(tmp_path: Path, package: str, file: str) -> None:
    """One without nvmlMemory_v2, as a file or a folder; its packages are named and to be removed."""
    put(tmp_path, file, "old = 1\n")
    installed(tmp_path, package, "8.0", file)
    found = check_binding(True, [str(tmp_path)])
    assert found.verdict == PROBLEM
    assert f"pip uninstall -y {package};" in found.remedy
    assert "--force-reinstall nvidia-ml-py" in found.remedy


def test_a_binding_with_two_owners_is_a_warning(tmp_path: Path) -> None:
    """It may be overwritten by the other one's next version."""
    put(tmp_path, "pynvml.py", "nvmlMemory_v2 = 1\n")
    installed(tmp_path, "nvidia_ml_py", "13.1", "pynvml.py")
    installed(tmp_path, "nvidia-ml-py3", "7.352", "pynvml.py")
    found = check_binding(True, [str(tmp_path)])
    assert (found.verdict, "nvidia-ml-py3" in found.text) == (WARNING, True)


@pytest.mark.parametrize(("here", "verdict"), [(True, PROBLEM), (False, WARNING)])
def test_a_binding_that_is_missing(tmp_path: Path, here: bool, verdict: str) -> None:
    """It matters where there is a driver."""
    assert check_binding(here, [str(tmp_path)]).verdict == verdict


def test_the_tests_own_binding_is_right() -> None:
    """The one that is installed here is found as the others are."""
    found = check_binding(True)
    assert (found.verdict, found.text) == (OK, f"of nvidia-ml-py {version('nvidia-ml-py')}")


# -- the command -------------------------------------------------------------------------------------------------------


def doctor(
    *options: str, environment: Optional[Mapping[str, str]] = None
) -> subprocess.CompletedProcess[str]:
    """`ollama-metrics doctor`, with no variable of who runs the tests."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
    return subprocess.run(
        [sys.executable, "-m", "ollama_metrics", "doctor", *options],
        env={**inherited, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def by_check(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The checks of a JSON document by their names."""
    return {check["check"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_whole_host(start_agent: Callable[..., AgentProcess], nvml: NvmlStandIn) -> None:
    """The real agent, Ollama's stand-in and NVML's: who listens, what it says, what it costs; all is well."""
    nvml.update({"count": 2, "driver": "570.10", "gpu1.persistence": 0})
    with OllamaProcess() as server:
        server.models([model("one", 4 << 30, 1 << 30)])
        own = start_agent("--ollama", server.url, environment=nvml.environment())
        own.wait_until(lambda document: bool((document["ollama"] or {}).get("models")))
        environment = {
            **nvml.environment(),
            "OLLAMA_METRICS_LISTEN": f"127.0.0.1:{own.port}",
            "OLLAMA_METRICS_OLLAMA": server.url,
        }
        done = doctor("--json", "--user", "root", environment=environment)
        assert (done.returncode, done.stderr) == (0, "")
        found = by_check(done)
        assert f"({own.pid})" in found[f"port {own.port}"]["text"]
        assert f"({server.pid})" in found[f"port {server.port}"]["text"]
        assert found["Ollama"]["verdict"] == WARNING
        assert "one 25 % on GPUs" in found["Ollama"]["text"]
        assert found["GPUs"]["verdict"] == OK
        assert "off on GPU 1:" in found["persistence"]["text"]
        assert found["weight"]["verdict"] == WARNING
        assert "models sit on the CPU" in found["weight"]["text"]
        assert " MB of memory" in found["cost"]["text"]
        assert json.loads(done.stdout)["verdict"] == WARNING

        server.kill()
        done = doctor("--json", "--user", "root", environment=environment)
        found = by_check(done)
        assert done.returncode == 1
        assert found["Ollama"]["verdict"] == found[f"port {server.port}"]["verdict"] == PROBLEM


def test_a_drained_agent(start_agent: Callable[..., AgentProcess], tmp_path: Path) -> None:
    """A drain is seen in the agent's answer, with its reason."""
    own = start_agent()
    put(tmp_path, "state/drain", '{"reason": "new fans", "since": 1, "until": null}')
    own.wait_until(lambda document: document["drain"] is not None)
    listen = {"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{own.port}", "OLLAMA_METRICS_OLLAMA": "none"}
    done = doctor("--json", environment=listen)
    assert done.returncode == 0
    found = by_check(done)
    assert (found["drain"]["verdict"], "new fans" in found["drain"]["text"]) == (WARNING, True)
    assert "500 of 500" in found["weight"]["text"]
    assert found["Ollama"]["verdict"] == SKIPPED


def test_a_hanging_driver_does_not_hang_the_command(nvml: NvmlStandIn) -> None:
    """All other checks are there, the GPUs are a problem, and it takes the driver's seconds."""
    nvml.hang("*")
    begun = time.monotonic()
    listen = {"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{free_port()}", **nvml.environment()}
    done = doctor("--json", "--timeout", "1", environment=listen)
    assert time.monotonic() - begun < 30
    found = by_check(done)
    assert "the driver hangs" in found["GPUs"]["text"]
    assert {"clock", "cost", "pynvml", "weight"} <= set(found)
    assert done.returncode == 1


def test_lines_for_a_person() -> None:
    """A label, the check and what was found, the remedy below it, a summary; no colour into a pipe."""
    port = free_port()
    done = doctor("--verbose", environment={"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{port}"})
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if f"port {port}" in line)
    assert lines[at].startswith(f"FAIL  port {port}    nobody listens")
    assert lines[at + 1].startswith(" " * 20 + "-> systemctl start")
    assert "skipped." in done.stdout
    assert " problem" in done.stdout
    assert "pynvml.py of nvidia-ml-py" in done.stdout
    assert "\x1b" not in done.stdout
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals(variables: Mapping[str, str], coloured: bool) -> None:
    """And for those that want it; the word is there in any case."""
    ours, theirs = os.openpty()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OLLAMA_", "NO_COLOR"))}
    listen = {"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
    with subprocess.Popen(
        [sys.executable, "-m", "ollama_metrics", "doctor"],
        env={**inherited, "TERM": "xterm", **listen, **variables},
        stdout=theirs,
    ) as process:
        os.close(theirs)
        text = b""
        with open(ours, "rb", buffering=0) as terminal:
            try:
                while piece := terminal.read(4096):
                    text += piece
            except OSError:
                pass  # its end
        process.wait(30)
    assert (b"\x1b[1;31mFAIL\x1b[0m" in text) == coloured
    assert b"FAIL" in text
    assert (b"\x1b" in text) == coloured


@pytest.mark.parametrize(
    "options",
    [
        ("--user", "no-such-user"),
        ("--timeout", "0"),
        ("--timeout", "x"),
        ("--timeout", "nan"),
        ("--config", "/no/such/file"),
        ("--nothing",),
    ],
)
def test_a_mistake_is_a_line_and_the_exit_code_2(options: Sequence[str]) -> None:
    """Nothing is looked at then."""
    done = doctor(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ollama-metrics: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_has_had_enough_is_no_failure() -> None:
    """`| head -n 1` leaves no traceback."""
    listen = {"OLLAMA_METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
    with subprocess.Popen(
        [sys.executable, "-m", "ollama_metrics", "doctor"],
        env={**inherited, **listen},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_help_has_the_exit_codes() -> None:
    """What a script needs to know."""
    done = doctor("--help")
    assert "Exit codes: 0 nothing is wrong" in done.stdout
    assert done.returncode == 0
