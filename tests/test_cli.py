"""The command as a user has it: a process with arguments, signals, pipes and an exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from agent_process import AgentProcess
from ports import free_port
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus
from standin import NvmlStandIn

from ollama_metrics import __version__
from ollama_metrics.handover import Handover

COMMAND = (sys.executable, "-m", "ollama_metrics")
FAST = ("--interval", "0.1")
PATIENCE = 30.0
Starter = Callable[..., AgentProcess]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """This process's environment, without what would configure the agent, and with a home of its own."""
    unwanted = re.compile("OLLAMA_|COLUMNS$|STATE_DIRECTORY$|XDG_|JOURNAL_STREAM$|PYTHONWARNINGS$")
    inherited = {k: v for k, v in os.environ.items() if not unwanted.match(k)}
    return {**inherited, "HOME": str(tmp_path / "home")}


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(environment: Mapping[str, str]) -> Run:
    """Run the command to its end, with variables besides."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env={**environment, "PYTHONWARNINGS": "error", **variables},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn(environment: Mapping[str, str]) -> Iterator[Spawn]:
    """Start the command; killed with the test, should it still run."""
    with ExitStack() as stack:

        def spawn(
            *arguments: str, shell: str = 'exec "$@"', **variables: str
        ) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                ["/bin/sh", "-c", shell, "sh", *COMMAND, *arguments],
                env={**environment, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield spawn


def one_line(process: subprocess.CompletedProcess[str], code: int) -> str:
    """What a process that failed with `code` said: one line on standard error and nothing else."""
    assert process.returncode == code, process
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert process.stderr.endswith("\n")
    assert process.stderr.startswith("ollama-metrics: ")
    return process.stderr[:-1]


# -- help and version --------------------------------------------------------------------------------------------------


def test_version(run: Run) -> None:
    """--version is one line with the package's version."""
    process = run("--version")
    assert (process.returncode, process.stdout) == (0, f"ollama-metrics {__version__}\n")
    assert process.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        (["--help"], ""),
        (["once", "--help"], "200"),
        *[(["serve", "--help"], columns) for columns in ("80", "200", "1", "x", "\u00b2")],
    ],
)
def test_help_fits_80_columns(run: Run, arguments: list[str], columns: str) -> None:
    """Help is at most 80 columns wide whatever the terminal, and goes to standard output."""
    process = run(*arguments, COLUMNS=columns)
    assert process.returncode == 0
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]


def test_help_shows_commands_and_examples(run: Run) -> None:
    """The first page names each command and shows how they are used."""
    text = run("--help").stdout
    for part in (
        "serve",
        "check",
        "once",
        "--version",
        "examples:",
        "ollama-metrics serve --listen",
    ):
        assert part in text


def test_the_daemons_help_shows_every_option_and_default(run: Run) -> None:
    """`serve --help` has each option with its default, and tells of the environment."""
    text = " ".join(run("serve", "--help").stdout.split())
    for option, default in (
        ("--config FILE", "none"),
        ("--listen ADDR:PORT", "0.0.0.0:11435"),
        ("--interval SECONDS", "1"),
        ("--window SECONDS", "15"),
        ("--expected-gpus auto|N", "auto"),
        ("--state-dir DIR", "systemd's STATE_DIRECTORY"),
        ("--on-failure POLICY", "pessimistic"),
        ("--log-level LEVEL", "info"),
    ):
        assert option in text
        assert f"(default: {default}" in text
    assert "OLLAMA_METRICS_LOG_LEVEL" in text


def test_the_installed_command_is_the_module(run: Run, environment: Mapping[str, str]) -> None:
    """`ollama-metrics` says and does what `python -m ollama_metrics` does."""
    script = Path(sys.executable).with_name("ollama-metrics")
    for arguments in (["--version"], ["serve", "--help"], ["serve", "--interval", "x"]):
        process = subprocess.run(
            [str(script), *arguments], env=environment, capture_output=True, text=True, check=False
        )
        module = run(*arguments)
        assert (process.returncode, process.stdout, process.stderr) == (
            module.returncode,
            module.stdout,
            module.stderr,
        )


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["serve", "--nonsense"], ["--nonsense"]),
        (["serve", "--nonsense\nforged: line"], ["--nonsense"]),
        (["serve", "--int", "1"], ["--int"]),
        (["serve", "--interval"], ["--interval", "expected one argument"]),
        (["serve", "more"], ["more"]),
        (["start"], ["start", "serve", "once"]),
        ([], ["COMMAND"]),
        (["once", "--format", "xml"], ["--format", "'xml'", "json", "prometheus", "openmetrics"]),
        (["once", "--listen", "0.0.0.0:1"], ["--listen"]),
        (["check", "--format", "json"], ["--format"]),
        (["check", "--interval", "soon"], ["--interval", "'soon'", "seconds from 0.1 to 60"]),
        (["serve", "--config", "/nowhere"], ["--config", "'/nowhere'", "No such file"]),
        (["once", "--config", ""], ["--config", "''", "path of a file"]),
        (["once", "--interval", "0"], ["--interval", "'0'", "0.1 to 60"]),
        (["serve", "--interval", "soon"], ["--interval", "'soon'", "seconds from 0.1 to 60"]),
        (["serve", "--listen", "0.0.0.0:65536"], ["--listen", "'0.0.0.0:65536'", "0 to 65535"]),
        (["serve", "--listen", "localhost"], ["--listen", "'localhost'", "ADDR:PORT"]),
        (["serve", "--listen", "[::1:80"], ["--listen", "'[::1:80'", "[::]:11435"]),
        (["serve", "--expected-gpus", "-1"], ["--expected-gpus", "'-1'", "auto or a number"]),
        (["serve", "--on-failure", "hope"], ["--on-failure", "'hope'", "pessimistic, error"]),
        (["serve", "--log-level", "loud"], ["--log-level", "'loud'", "warning, info"]),
        (
            ["serve", "--window", "1", "--interval", "2"],
            ["--window", "'1'", "at least the interval, 2"],
        ),
    ],
)
def test_a_mistake_is_exit_2_and_one_line(run: Run, arguments: list[str], parts: list[str]) -> None:
    """A wrong call ends in exit 2 and one line that names what was wrong and what would do."""
    line = one_line(run(*arguments), code=2)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("OLLAMA_METRICS_INTERVAL", "soon", "seconds from 0.1 to 60"),
        ("OLLAMA_METRICS_LISTEN", "0.0.0.0:99999", "0 to 65535"),
        ("OLLAMA_METRICS_LISTEN", ",", "ADDR:PORT"),
        ("OLLAMA_METRICS_WINDOW", "0.5", "at least the interval"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    run: Run, variable: str, value: str, accepted: str
) -> None:
    """A wrong variable ends in exit 2 and one line that names it."""
    line = one_line(run("serve", **{variable: value}), code=2)
    assert line.startswith(f"ollama-metrics: {variable}: {value!r} ")
    assert accepted in line


def test_a_port_in_use_is_exit_1_and_names_the_address(run: Run) -> None:
    """Where somebody listens already the daemon ends with the address and a way out."""
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        line = one_line(run("serve", "--log-level", "error", "--listen", address, *FAST), code=1)
    assert f"cannot listen on {address}: the port is in use" in line
    assert "Ollama" not in line


def test_ollamas_own_port_in_use_is_called_so(run: Run) -> None:
    """11434 in use is told to be Ollama's."""
    with ExitStack() as stack:
        try:
            stack.enter_context(closing(socket.create_server(("127.0.0.1", 11434))))
        except OSError:
            pass  # Ollama itself is running here: all the better
        line = one_line(
            run("serve", "--listen", "127.0.0.1:11434", *FAST, OLLAMA_METRICS_LOG_LEVEL="error"),
            code=1,
        )
    assert "127.0.0.1:11434" in line
    assert "11434 is Ollama's own port" in line


@pytest.mark.parametrize(
    ("address", "part"),
    [("192.0.2.1:0", "no such address"), (f"{'x' * 64}:80", f"'{'x' * 64}' is not known")],
)
def test_an_address_that_is_not_here_is_exit_1(run: Run, address: str, part: str) -> None:
    """An address that this host does not have ends in exit 1 and one line that names it."""
    line = one_line(run("serve", "--log-level", "error", "--listen", address, *FAST), code=1)
    assert f"cannot listen on {address}: " in line
    assert part in line


# -- check -------------------------------------------------------------------------------------------------------------


def test_a_check_says_that_all_is_well(run: Run, tmp_path: Path) -> None:
    """`check` prints one line, ends with 0, and has left no trace, not even the state directory."""
    process = run("check", "--state-dir", str(tmp_path / "state"), "--window", "30")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "ollama-metrics: the configuration is usable\n"
    assert list(tmp_path.iterdir()) == []


def test_a_check_takes_the_options_of_the_daemon(run: Run) -> None:
    """Whatever `serve` can be called with can be checked."""
    options = [set(re.findall(r"--[a-z-]+", run(name, "--help").stdout)) for name in COMMANDS]
    assert options[0] == options[1]
    assert "--listen" in options[0]


COMMANDS = ("serve", "check")


@pytest.mark.parametrize("arguments", [["--window", "0.5"], ["--listen", "nonsense"], ["more"]])
def test_a_check_finds_what_the_daemon_would(run: Run, arguments: list[str]) -> None:
    """A mistake is exit 2 and the line that `serve` would end with."""
    line, same = (one_line(run(name, *arguments), code=2) for name in COMMANDS)
    assert line.replace("check", "serve") == same


def test_a_check_binds_nothing(run: Run) -> None:
    """A port in use is no mistake: it is in use by the agent whose configuration is checked."""
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        assert run("check", "--listen", address).returncode == 0


def test_a_check_for_a_daemon_binds(run: Run) -> None:
    """To the process that asks before it executes the program anew, and to no other, it says whether it can listen."""
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        for pid, code in ((os.getpid(), 1), (1, 0)):
            process = run("check", "--listen", address, **Handover(pid).environment({}))
            assert process.returncode == code
        line = one_line(
            run("check", "--listen", address, **Handover(os.getpid()).environment({})), 1
        )
        assert f"cannot listen on {address}: the port is in use" in line


# -- once --------------------------------------------------------------------------------------------------------------


def test_once_prints_json(run: Run) -> None:
    """`once` prints the JSON document, indented for a person, and nothing else."""
    process = run("once", *FAST)
    assert (process.returncode, process.stderr) == (0, "")
    document = json.loads(process.stdout)
    assert next(iter(document)) == "cpu_percent"
    assert document["status"] == "ok"
    assert process.stdout.startswith('{\n  "cpu_percent"')


def test_once_prints_prometheus_text(run: Run) -> None:
    """`once --format prometheus` is what prometheus_client's parser reads."""
    process = run("once", "--format", "prometheus", *FAST)
    assert (process.returncode, process.stderr) == (0, "")
    families = {family.name: family for family in parse_prometheus(process.stdout)}
    assert 0 < families["ollama_host_memory_used_ratio"].samples[0].value < 1


def test_once_prints_openmetrics(run: Run) -> None:
    """`once --format openmetrics` is what the OpenMetrics parser reads."""
    process = run("once", "--format", "openmetrics", *FAST)
    assert (process.returncode, process.stderr) == (0, "")
    families = {family.name: family for family in parse_openmetrics(process.stdout)}
    assert families["ollama_agent_build"].samples[0].labels["version"] == __version__


def test_once_sees_gpus_and_leaves_no_trace(run: Run, nvml: NvmlStandIn, tmp_path: Path) -> None:
    """One reading has the GPUs in it, and nothing is written for it."""
    nvml.set(count=2)
    document = json.loads(run("once", *FAST, **nvml.environment()).stdout)
    assert document["gpu_count"] == 2
    assert len(document["gpus"]) == 2
    assert not (tmp_path / "home").exists()


def test_a_reader_that_leaves_is_no_error(spawn: Spawn) -> None:
    """`once | head -1` ends without a word when the pipe is closed before anything was written."""
    process = spawn("once", *FAST)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""


def test_a_full_disk_is_one_line(environment: Mapping[str, str]) -> None:
    """A reading that cannot be written ends in exit 1 and one line."""
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [*COMMAND, "once", *FAST],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr == "ollama-metrics: cannot write: No space left on device\n"


def test_a_closed_standard_output_is_one_line(spawn: Spawn) -> None:
    """So does one for which there is no standard output at all."""
    process = spawn("once", *FAST, shell='exec "$@" >&-')
    assert process.stderr is not None
    assert process.wait(PATIENCE) == 1
    assert process.stderr.read() == "ollama-metrics: cannot write: standard output is closed\n"


def test_control_c_ends_once_without_a_traceback(spawn: Spawn, nvml: NvmlStandIn) -> None:
    """SIGINT while a reading is waited for ends it as a shell expects: 130, without a traceback."""
    nvml.hang("nvmlInit")
    process = spawn("once", **nvml.environment())
    assert process.stderr is not None
    nvml.wait_for_call("nvmlInit")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert process.stderr.read() == ""


# -- the daemon --------------------------------------------------------------------------------------------------------


def ends_within_a_second(process: Any, number: int) -> None:
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0
    assert time.monotonic() - begun < 1.0


both_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@both_signals
def test_a_signal_ends_the_daemon(start_agent: Starter, number: int) -> None:
    """SIGTERM and SIGINT end the daemon with exit 0 within a second, with a line in the log."""
    agent = start_agent(*FAST)
    ends_within_a_second(agent.process, number)
    agent.wait_for_log(f"ended by {signal.Signals(number).name}")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", agent.port)).close()


@both_signals
def test_clients_do_not_hold_the_daemon_up(start_agent: Starter, number: int) -> None:
    """Clients that are idle, in the middle of a request or kept alive do not delay the end."""
    agent = start_agent(*FAST)
    with ExitStack() as stack:
        for sent in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
            client = socket.create_connection(("127.0.0.1", agent.port))
            stack.enter_context(closing(client))
            client.sendall(sent)
        assert client.recv(1 << 20).startswith(b"HTTP/1.1 200 ")
        agent.wait_until(lambda document: document["agent"]["connections"] >= 3)
        ends_within_a_second(agent.process, number)


@both_signals
def test_a_driver_call_that_hangs_does_not_hold_the_daemon_up(
    start_agent: Starter, nvml: NvmlStandIn, number: int
) -> None:
    """The daemon ends within a second also while the driver does not answer."""
    agent = start_agent(*FAST, environment=nvml.environment())
    nvml.hang()
    agent.wait_until(lambda document: document["status"] == "failing")
    ends_within_a_second(agent.process, number)


@both_signals
def test_a_signal_while_starting_ends_it_too(spawn: Spawn, nvml: NvmlStandIn, number: int) -> None:
    """A daemon that waits for its first readings ends within a second, with exit 0, and never listens."""
    nvml.hang("nvmlInit")
    process = spawn(
        *("serve", "--interval", "20", "--window", "60", "--listen", "127.0.0.1:0"),
        **nvml.environment(),
    )
    assert process.stderr is not None
    nvml.wait_for_call("nvmlInit")
    ends_within_a_second(process, number)
    assert "listening" not in process.stderr.read()


def test_a_driver_that_hangs_at_the_start_is_not_waited_for_long(
    start_agent: Starter, nvml: NvmlStandIn
) -> None:
    """With a long interval too the daemon soon serves a failing host instead of refusing connections."""
    nvml.hang("nvmlInit")
    begun = time.monotonic()
    agent = start_agent("--interval", "20", "--window", "60", environment=nvml.environment())
    assert time.monotonic() - begun < 6.0
    assert agent.metrics()["weight"] == 500


def test_a_port_that_the_system_picks_is_named(start_agent: Starter) -> None:
    """With port 0 the log has the URL of the port that was picked."""
    agent = start_agent(*FAST)
    (line,) = (line for line in agent.log if "listening" in line)
    url = f"http://127.0.0.1:{agent.port}"
    assert line == f"ollama-metrics: listening on {url} (127.0.0.1:{agent.port})"
    assert agent.port != 0
    assert agent.get("/-/healthy").status == 200


def test_several_addresses_are_all_served(start_agent: Starter) -> None:
    """--listen may be repeated, and each address answers."""
    agent = start_agent(*FAST, listen=("127.0.0.1:0", "127.0.0.2:0"))
    for host, port in zip(("127.0.0.1", "127.0.0.2"), agent.ports):
        with closing(socket.create_connection((host, port))) as client:
            client.sendall(b"GET /-/healthy HTTP/1.0\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_the_environment_configures_the_daemon(spawn: Spawn) -> None:
    """A daemon without any option does what its variables say."""
    process = spawn(
        "serve",
        OLLAMA_METRICS_LISTEN="127.0.0.1:0",
        OLLAMA_METRICS_INTERVAL="0.1",
        OLLAMA_METRICS_EXPECTED_GPUS="0",
    )
    assert process.stderr is not None
    assert listening_port(process.stderr)
    ends_within_a_second(process, signal.SIGTERM)


def listening_port(lines: Any) -> Optional[int]:
    for line in lines:
        match = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
        if match:
            return int(match.group(1))
    return None


def answers(port: int) -> bool:
    try:
        with closing(socket.create_connection(("127.0.0.1", port))) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    except ConnectionRefusedError:
        return False


def test_a_daemon_without_standard_error_serves(spawn: Spawn) -> None:
    """Started with its standard error closed the daemon serves, and ends as it should."""
    port = free_port()
    process = spawn("serve", "--listen", f"127.0.0.1:{port}", *FAST, shell='exec "$@" 2>&-')
    deadline = time.monotonic() + PATIENCE
    while not answers(port):
        assert process.poll() is None
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    ends_within_a_second(process, signal.SIGTERM)


def test_a_daemon_whose_log_nobody_reads_any_more_serves(spawn: Spawn, nvml: NvmlStandIn) -> None:
    """When the reader of its log has gone the daemon goes on, also when it has something to say."""
    process = spawn("serve", "--listen", "127.0.0.1:0", *FAST, **nvml.environment())
    assert process.stderr is not None
    port = listening_port(process.stderr)
    assert port is not None
    process.stderr.close()
    process.stderr = None
    nvml.unload_driver()
    deadline = time.monotonic() + PATIENCE
    while not failing(port):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    nvml.load_driver()
    ends_within_a_second(process, signal.SIGTERM)


def failing(port: int) -> bool:
    with closing(socket.create_connection(("127.0.0.1", port))) as client:
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        return b" 503 " in client.recv(1 << 16).split(b"\r\n")[0]
