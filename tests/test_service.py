"""The installed service under a real systemd: its start, its sandbox, and what it does when something breaks it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import missing
from installed import Host
from standin import NvmlStandIn

pytestmark = [pytest.mark.booted, pytest.mark.timeout(180)]

SERVICE = "ollama-metrics"


@pytest.fixture(scope="module")
def host(booted_host: Any) -> Iterator[Host]:
    """A machine with this checkout freshly installed; what a test changes in it, it puts back."""
    with booted_host() as host:
        host.install()
        yield host


@contextmanager
def drop_in(host: Host, text: str, unit: str = f"{SERVICE}.service") -> Iterator[None]:
    """The unit with a drop-in, for as long as the context lasts; the service is restarted both times."""
    folder = f"/run/systemd/system/{unit}.d"
    host.write(f"{folder}/test.conf", text)
    host.shell("systemctl daemon-reload")
    try:
        yield
    finally:
        host.shell(f"rm {folder}/test.conf; systemctl daemon-reload; systemctl restart {SERVICE}")


# -- a start that can be relied upon -----------------------------------------------------------------------------------


def test_it_runs_as_the_service_user_and_answers(host: Host) -> None:
    """Once installed the service is active and enabled, runs as `ollama` and answers with this host's numbers."""
    assert host.shell(f"systemctl is-active {SERVICE}") == "active"
    assert host.shell(f"systemctl is-enabled {SERVICE}") == "enabled"
    assert host.shell(f"ps -o user= -p {host.pid}") == "ollama"
    document = host.metrics()
    assert document["status"] == "ok"
    assert document["ram_percent"] > 0


def test_the_status_line_tells_the_weight(host: Host) -> None:
    """`systemctl status` shows the verdict and the weight that a balancer would compute."""
    assert re.match(r"ok, weight [0-9.]+: no GPU", host.shown("StatusText"))


def test_the_journal_has_levels_and_the_services_name(host: Host) -> None:
    """What the agent logs is in the journal under its own name, each line with its priority."""
    text = host.shell(f"journalctl -u {SERVICE} -t {SERVICE} -o json --no-pager")
    lines = [json.loads(line) for line in text.splitlines()]
    found = [line for line in lines if line["MESSAGE"].startswith("listening on")]
    assert found
    assert found[0]["PRIORITY"] == "6"


def test_it_runs_compiled_and_isolated(host: Host) -> None:
    """The service's Python finds compiled modules, and nothing of the environment or of a user's folder leads it."""
    command = host.shell(f"tr '\\0' ' ' < /proc/{host.pid}/cmdline")
    assert command.startswith("/opt/ollama-metrics/current/bin/python -I ")
    site = "/opt/ollama-metrics/current/lib/python3*/site-packages"
    sources = host.shell(f"cd {site} && ls ollama_metrics/*.py psutil/*.py pynvml.py").split()
    compiled = host.shell(
        f"cd {site} && ls ollama_metrics/__pycache__/*.pyc psutil/__pycache__/*.pyc __pycache__/pynvml*.pyc"
    ).split()
    assert len(compiled) == len(sources)


# -- the sandbox -------------------------------------------------------------------------------------------------------


def test_verify_has_nothing_to_say(host: Host) -> None:
    """systemd-analyze verify is silent about the installed units (its exit code would be 0 even for a bad key)."""
    units = f"{SERVICE}.service {SERVICE}.socket"
    assert host.shell(f"systemd-analyze verify {units} 2>&1") == ""


def test_exposure(host: Host) -> None:
    """systemd-analyze security puts the exposure at 1.5 or less."""
    text = host.shell(f"systemd-analyze security --no-pager {SERVICE} | tail -n 1")
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert match
    assert float(match[1]) <= 1.5


def test_the_process_has_no_privilege(host: Host) -> None:
    """The running process has no capability, cannot gain one, and is under a seccomp filter."""
    status = dict(
        line.split(":\t", 1)
        for line in host.shell(f"cat /proc/{host.pid}/status").splitlines()
        if ":\t" in line
    )
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_gpus_stay_reachable_and_nothing_else_is(host: Host) -> None:
    """Within the sandbox NVIDIA's device nodes can be opened (no driver is behind them here, hence ENXIO), also after
    a daemon-reload; another device of the host cannot (EPERM)."""
    host.shell(
        "mknod -m 666 /dev/nvidiactl c 195 255; mknod -m 666 /dev/nvidia0 c 195 0; mknod -m 666 /dev/kmsg2 c 1 11"
    )
    host.shell(f"systemctl restart {SERVICE}")
    nodes = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kmsg2", "/dev/null")
    expected = ["ENXIO", "ENXIO", "EPERM", "opened"]
    assert [host.opened_in_sandbox(node) for node in nodes] == expected
    host.shell("systemctl daemon-reload")
    assert [host.opened_in_sandbox(node) for node in nodes] == expected


def test_only_its_own_folder_is_writable(host: Host) -> None:
    """Of the host's files the service can write its state and nothing else."""
    writable = host.in_sandbox(
        "sh", "-c", "for d in / /etc /opt/ollama-metrics /usr /home /root /var /var/lib/ollama-metrics; do "
        "if touch $d/x 2>/dev/null; then echo $d; fi; done"
    )  # fmt: skip
    assert writable == "/var/lib/ollama-metrics"


# -- what breaks it ----------------------------------------------------------------------------------------------------


def test_killed_it_comes_back(host: Host) -> None:
    """After a SIGKILL another process answers."""
    before = host.pid
    host.shell(f"kill -KILL {before}")
    host.wait_for_another_process(before)
    assert host.metrics()["status"] == "ok"


def test_a_stopped_process_is_replaced_by_the_watchdog(host: Host) -> None:
    """A process that is stuck (SIGSTOP) is ended by systemd's watchdog, and another one answers."""
    with drop_in(host, "[Service]\nWatchdogSec=2\n"):
        host.shell(f"systemctl restart {SERVICE}")
        before = host.pid
        host.shell(f"kill -STOP {before}")
        host.wait_for_another_process(before)
        assert host.metrics()["status"] == "ok"
        journal = host.journal(SERVICE)
        assert "Watchdog timeout" in journal
        # The last words: where each thread was.
        assert "server.py" in journal
        assert "sampler.py" in journal


def test_the_watchdog_leaves_a_healthy_process_alone(host: Host) -> None:
    """With a watchdog of a second the service lives on over many of them."""
    with drop_in(host, "[Service]\nWatchdogSec=1\n"):
        host.shell(f"systemctl restart {SERVICE}")
        before = host.pid
        host.wait(lambda: int(host.metrics()["agent"]["uptime_seconds"]) >= 5)
        assert host.pid == before


def test_out_of_memory_it_comes_back(host: Host) -> None:
    """When MemoryMax is exhausted and the kernel kills the agent, another process answers."""
    before = host.pid
    # The agent alone may be killed; what takes the memory may not.
    host.shell(f"echo 1000 > /proc/{before}/oom_score_adj")
    host.fill_memory_of(before)
    host.wait_for_another_process(before)
    assert host.metrics()["status"] == "ok"
    assert re.search(r"oom-kill|status=9/KILL", host.journal(SERVICE))


def test_a_busy_port_is_told_in_the_journal(host: Host) -> None:
    """With its port taken the service says so in one line that names the remedy, and starts once the port is free."""
    host.shell(f"systemctl stop {SERVICE}")
    with host.popen(
        "/usr/bin/python3", "-c",
        "import socket; s = socket.create_server(('0.0.0.0', 11435)); print('taken', flush=True); input()",
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "taken\n"
        assert host.run("systemctl", "start", SERVICE, check=False).returncode != 0
        other.stdin.close()
    said = "cannot listen on 0.0.0.0:11435: the port is in use; `ss -ltnp 'sport = :11435'` shows by whom"
    assert said in host.journal(SERVICE)
    host.wait_until_ready()


# -- nobody is turned away ---------------------------------------------------------------------------------------------


def test_a_reload_turns_nobody_away(host: Host) -> None:
    """Under 50 polls a second five reloads fail no poll and close no kept connection; the process stays the same."""
    before = host.pid
    with host.polled() as polled:
        for _ in range(5):
            host.renew(lambda: host.shell(f"systemctl reload {SERVICE}"))
    assert polled.result["failed"] == []
    assert polled.result["polls"] > 100
    assert polled.result["kept_connections"] == 1
    assert host.pid == before


def test_a_bad_configuration_is_refused_and_the_old_one_goes_on(host: Host) -> None:
    """`systemctl reload` fails on a bad setting and the journal says where it is; the agent goes on as it was."""
    before = host.pid
    path = "/etc/ollama-metrics/environment"
    text = host.read(path)
    try:
        host.write(path, text + "OLLAMA_METRICS_WINDOW=soon\n")
        assert host.run("systemctl", "reload", SERVICE, check=False).returncode != 0
        assert f"OLLAMA_METRICS_WINDOW in {path}: 'soon' is not usable" in host.journal(SERVICE)
        assert host.pid == before
        assert host.metrics()["window_seconds"] == 15
        host.write(path, text + "OLLAMA_METRICS_WINDOW=30\n")
        host.renew(lambda: host.shell(f"systemctl reload {SERVICE}"))
        assert host.metrics()["window_seconds"] == 30
    finally:
        host.write(path, text)
        host.renew(lambda: host.shell(f"systemctl reload {SERVICE}"))


def test_with_the_socket_unit_a_restart_turns_nobody_away(host: Host) -> None:
    """With ollama-metrics.socket systemd holds the port: restarts and a SIGKILL under 50 polls a second fail no poll
    that was not being answered at that moment."""
    host.shell(f"systemctl stop {SERVICE}; systemctl start {SERVICE}.socket {SERVICE}")
    try:
        assert "passed by systemd" in host.journal(SERVICE)
        with host.polled(kept=False) as polled:
            for _ in range(3):
                before = host.pid
                host.shell(f"systemctl restart {SERVICE}")
                host.wait_for_another_process(before)
        assert polled.result["failed"] == []
        assert polled.result["polls"] > 50
    finally:
        host.shell(f"systemctl stop {SERVICE}.socket {SERVICE}; systemctl start {SERVICE}")


# -- the driver --------------------------------------------------------------------------------------------------------


@pytest.fixture
def driver(host: Host) -> Iterator[NvmlStandIn]:
    """The stand-in for NVIDIA's library, with two healthy GPUs, as the service's own."""
    if not NvmlStandIn.available():
        missing("gcc")
    folder = "/opt/nvml"  # programs and libraries come from /opt and /usr alone
    host.shell(f"rm -rf {folder}; mkdir {folder}")
    inside = host.machine.path(folder)
    driver = NvmlStandIn(inside)
    driver.set(count=2)
    variables = {
        name: value.replace(str(inside), folder)
        for name, value in driver.environment().items()
        if name in ("LD_LIBRARY_PATH", "NVML_STANDIN_STATE")
    }
    host.shell(f"chmod -R a+rX {folder}")
    lines = "".join(f'Environment="{name}={value}"\n' for name, value in variables.items())
    with drop_in(host, f"[Service]\n{lines}WatchdogSec=4\n"):
        host.shell(f"systemctl restart {SERVICE}")
        yield driver
        driver.reset()
        host.shell("rm -f /var/lib/ollama-metrics/gpus-expected")


def test_gpus_are_read_in_the_sandbox(host: Host, driver: NvmlStandIn) -> None:
    """The real binding loads the driver's library within the sandbox and reads both GPUs."""
    document = host.metrics()
    assert (document["status"], document["gpu_count"], len(document["gpus"])) == ("ok", 2, 2)


def test_a_driver_that_hangs_does_not_restart_the_service(host: Host, driver: NvmlStandIn) -> None:
    """While a driver call hangs the host is failing, and the watchdog leaves the process alone; so it goes on after."""
    before = host.pid
    driver.hang()
    host.wait(lambda: host.metrics()["status"] == "failing")
    assert host.metrics()["weight"] == 500
    uptime = host.metrics()["agent"]["uptime_seconds"]
    host.wait(lambda: host.metrics()["agent"]["uptime_seconds"] > uptime + 6)
    assert host.metrics()["status"] == "failing"
    assert re.match("failing, weight 500: ", host.shown("StatusText"))
    driver.release()
    host.wait(lambda: host.metrics()["status"] == "ok")
    assert host.pid == before


def test_an_updated_driver_renews_the_agent(host: Host, driver: NvmlStandIn) -> None:
    """When library and kernel module differ the agent executes itself anew, once; the pid stays, no poll fails."""
    before = host.pid
    with host.polled() as polled:
        # 18: NVML_ERROR_LIB_RM_VERSION_MISMATCH
        host.renew(lambda: driver.update({"init": 18, "error.nvmlDeviceGetCount": 18}))
        driver.remove("init", "error.nvmlDeviceGetCount")
        host.wait(lambda: host.metrics()["status"] == "ok")
    assert polled.result["failed"] == []
    assert host.pid == before
    said = host.journal(SERVICE)
    assert (
        said.count("the NVIDIA driver was updated under this process: the program is executed anew")
        == 1
    )


# -- Ollama ------------------------------------------------------------------------------------------------------------

OLLAMA = """\
[Service]
User=ollama
Group=ollama
ExecStart=
ExecStart=/bin/sh -c '{python} -c "import time; time.sleep(1e6)" runner --model /x/{blob} --port 41234 & \
    echo a line of the log; exec {python} {standin}'
"""
BLOB = "sha256-" + "3f" * 32

# What the agent finds out about Ollama, and one line of what journalctl follows.
PROBE = """
import json, subprocess
from ollama_metrics.ollama_cgroup import usage
from ollama_metrics.processes import cgroup_paths, owner_of, runners
from ollama_metrics.tcp_connections import ConnectionTable
table = ConnectionTable()
found = table.count(11434)
pid = owner_of(found.listeners)
runner = [(one.blob, one.port) for one in runners(pid)] if pid else None
cgroup = usage(cgroup_paths(pid)).path if pid else None
command = ["journalctl", "--follow", "--lines=all", "--output=cat", "--unit=ollama.service"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as journal:
    line = next((line for line in journal.stdout if "a line of the log" in line), "")
    journal.kill()
print(json.dumps([table.by_netlink, found.established, pid, runner, cgroup, line.strip()]))
"""
CONNECT = """
import socket, sys
held = [socket.create_connection(('127.0.0.1', 11434)) for _ in range(3)]
print(len(held), flush=True)
sys.stdin.read()
"""


@contextmanager
def ollama(host: Host) -> Iterator[None]:
    """A stand-in for Ollama with a runner, both of the user `ollama` as Ollama's own unit has it."""
    standin = "/srv/checkout/tests/ollama_standin.py"
    text = OLLAMA.format(python=host.python, blob=BLOB, standin=standin)
    units = "/etc/systemd/system/ollama.service"
    host.write(f"{units}.d/test.conf", text)
    try:
        host.add_ollama()
        yield
    finally:
        host.shell(
            f"systemctl disable --now ollama; rm -r {units} {units}.d; systemctl daemon-reload"
        )


def probed(host: Host, *more: str) -> Any:
    """What PROBE prints in the sandbox of the shipped unit, with `more` lines for its section."""
    text = host.read(f"/etc/systemd/system/{SERVICE}.service")
    text = re.sub(r"(?m)^(ExecStart|ExecReload|Restart|WatchdogSec)=.*\n", "", text)
    text = text.replace("Type=notify", "Type=oneshot")
    python = "/opt/ollama-metrics/current/bin/python"
    command = (
        *(f"ExecStart={python} -I /srv/probe.py", "StandardError=journal"),
        "StandardOutput=truncate:/run/probe.json",
    )
    text = text.replace("[Install]", "\n".join((*more, *command, "", "[Install]")))
    host.write("/srv/probe.py", PROBE)
    host.write("/run/systemd/system/probe.service", text)
    host.shell("systemctl daemon-reload; systemctl start probe")
    found = json.loads(host.read("/run/probe.json"))
    host.shell("rm /run/systemd/system/probe.service /run/probe.json /srv/probe.py")
    return found


def test_ollama_is_seen_from_within_the_sandbox(host: Host) -> None:
    """In the sandbox Ollama's connections (by netlink), process, runner, cgroup and journal can be read; without the
    one or other of what was relaxed for that the process is not seen, the journal not read, the text read instead."""
    with ollama(host):
        pid = int(host.shown("MainPID", "ollama"))
        with host.popen(host.python, "-c", CONNECT) as held:
            assert held.stdout.readline() == "3\n"
            found = probed(host)
            assert found == [
                *(True, 3, pid, [[BLOB, 41234]]),
                *("/system.slice/ollama.service", "a line of the log"),
            ]
            found = probed(host, "PrivateUsers=yes")
            assert found[:4] == [True, 3, None, None]
            assert probed(host, "SupplementaryGroups=")[5] == ""
            found = probed(host, "RestrictAddressFamilies=~AF_NETLINK")
            assert found[:3] == [False, 3, pid]
