"""The machine in which the service is tested keeps what it promises: it is real, and it is alone."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import missing
from machine import Machine, MachineError, why_not

pytestmark = pytest.mark.booted


@pytest.fixture(autouse=True)
def bootable() -> None:
    reason = why_not()
    if reason is not None:
        missing(f"a bootable systemd ({reason})")


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as booted:
        yield booted


def service(machine: Machine, name: str, *lines: str) -> None:
    """Install a unit whose [Service] section has these lines."""
    unit = "\n".join(["[Service]", *lines, ""])
    machine.path(f"/etc/systemd/system/{name}.service").write_text(unit)
    machine.run("systemctl", "daemon-reload")


def show(machine: Machine, name: str, what: str) -> str:
    return machine.run("systemctl", "show", name, f"--property={what}", "--value").stdout.strip()


def test_no_unit_has_failed_and_none_of_the_hosts_services_runs(machine: Machine) -> None:
    """A machine comes up whole, with the journal and nothing else, whatever the host has enabled."""
    listed = machine.run(
        "systemctl",
        "list-units",
        "--plain",
        "--no-legend",
        "--type=service",
        "--state=active,failed",
    ).stdout
    units = [line.split()[0] for line in listed.splitlines()]
    assert units == [
        "systemd-journald.service",
        "systemd-tmpfiles-setup.service",
        "systemd-user-sessions.service",
    ]


def test_a_unit_is_active_when_it_says_so(machine: Machine) -> None:
    """Type=notify is waited for: one that reports is started, one that never does has failed."""
    service(
        *(machine, "reports", "Type=notify", "NotifyAccess=all"),
        "ExecStart=/bin/sh -c 'systemd-notify --ready --status=weighing && exec sleep infinity'",
    )
    service(
        *(machine, "silent", "Type=notify", "TimeoutStartSec=200ms"), "ExecStart=sleep infinity"
    )
    machine.run("systemctl", "start", "reports")
    assert show(machine, "reports", "StatusText") == "weighing"
    with pytest.raises(MachineError, match="timeout was exceeded"):
        machine.run("systemctl", "start", "silent")
    assert "start operation timed out" in machine.journal("silent")


def test_a_killed_service_returns(machine: Machine) -> None:
    """Restart=always starts anew what was killed."""
    service(
        *(machine, "stays", "Type=notify", "NotifyAccess=all", "Restart=always"),
        "ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep infinity'",
        # Opens when the first of both has ended and the second is there.
        "ExecStartPost=/bin/sh -c 'echo $MAINPID >/run/started'",
    )
    machine.run("mkfifo", "/run/started")
    machine.run("systemctl", "start", "--no-block", "stays")
    first = machine.run("cat", "/run/started").stdout
    machine.run("kill", "-9", first.strip())
    second = machine.run("cat", "/run/started").stdout
    assert second != first
    assert show(machine, "stays", "NRestarts") == "1"


def test_a_service_is_held_to_its_memory(machine: Machine) -> None:
    """MemoryMax kills what takes more, and not what takes less."""
    takes_64_mib = "ExecStart=dd if=/dev/zero of=/dev/null bs=64M count=1"
    service(machine, "large", "Type=oneshot", "MemoryMax=256M", takes_64_mib)
    service(machine, "small", "Type=oneshot", "MemoryMax=16M", "MemorySwapMax=0", takes_64_mib)
    machine.run("systemctl", "start", "large")
    machine.run("systemctl", "start", "small", check=False)
    assert show(machine, "large", "Result") == "success"
    assert show(machine, "small", "ExecMainStatus") == f"{signal.SIGKILL:d}"


def test_a_service_opens_the_devices_that_it_may(machine: Machine) -> None:
    """DevicePolicy=closed refuses a node that was made with mknod, and DeviceAllow gives it back."""
    opens_it = ("Type=oneshot", "DevicePolicy=closed", "ExecStart=/bin/sh -c ': </dev/spare'")
    machine.run("mknod", "/dev/spare", "c", "1", "11")
    service(machine, "shut", *opens_it)
    service(machine, "open", *opens_it, "DeviceAllow=/dev/spare r")
    machine.run("systemctl", "start", "open")
    with pytest.raises(MachineError):
        machine.run("systemctl", "start", "shut")
    assert "cannot open /dev/spare: Operation not permitted" in machine.journal("shut")


def test_the_sandbox_is_the_kernels(machine: Machine) -> None:
    """ProtectSystem, SystemCallFilter, CapabilityBoundingSet and TasksMax hold."""
    service(
        *(machine, "boxed", "Type=oneshot", "ProtectSystem=strict", "TasksMax=2"),
        *("SystemCallFilter=~uname", "SystemCallErrorNumber=ENOANO", "CapabilityBoundingSet="),
        "ExecStart=-touch /etc/touched",
        "ExecStart=-uname",
        "ExecStart=grep CapEff /proc/self/status",
        "ExecStart=-/bin/sh -c 'sleep 9 & sleep 9'",
    )
    machine.run("systemctl", "start", "boxed")
    journal = machine.journal("boxed")
    assert "'/etc/touched': Read-only file system" in journal
    assert "uname: cannot get system name: No anode" in journal
    assert "CapEff:\t0000000000000000" in journal
    assert "Cannot fork" in journal


def test_nothing_that_is_written_reaches_the_host(machine: Machine) -> None:
    """Files of the host can be written, made and removed in the machine, and are as before on the host."""
    program, made = Path("/usr/bin/yes"), Path("/etc/made-in-the-machine")
    before = program.stat()
    machine.run("rm", program)
    machine.run("touch", made)
    machine.path("/etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    assert machine.path(made).exists()
    assert not machine.path(program).exists()
    assert program.stat() == before
    assert not made.exists()
    assert len(Path("/etc/passwd").read_text().splitlines()) > 1


def test_the_kernel_of_the_host_stays_as_it_is(machine: Machine) -> None:
    """Clock and settings of the kernel that are not the machine's own cannot be changed there."""
    for change in (
        "date --set=@0",
        "echo 1 >/proc/sys/vm/swappiness",
        "echo 1 >/sys/kernel/profiling",
    ):
        assert machine.shell(change, check=False).returncode != 0, change
    machine.shell("echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start")


def test_hidden_paths_are_not_in_the_machine() -> None:
    """`hide` takes files and whole folders away, and only there."""
    hidden = ["/usr/bin/yes", "/usr/share/zoneinfo"]
    with Machine(hide=hidden) as machine:
        assert not any(machine.path(path).exists() for path in hidden)
    assert all(Path(path).exists() for path in hidden)


def test_two_machines_are_strangers(machine: Machine) -> None:
    """One machine reaches neither the other's files, processes nor network, nor the host's."""
    serve = "import socket; s = socket.create_server(('127.0.0.1', 9)); print('up', flush=True); s.accept()"
    call = "import socket; socket.create_connection(('127.0.0.1', 9), 5)"
    with Machine() as other:
        other.path("/tmp/here").touch()
        with other.popen("python3", "-c", serve, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
            refused = machine.run("python3", "-c", call, check=False)
            assert "ConnectionRefusedError" in refused.stderr
            assert "python3" not in machine.run("ps", "-e").stdout
            assert not machine.path("/tmp/here").exists()
            with pytest.raises(ConnectionRefusedError):
                exec(call)
            other.run("python3", "-c", call)


def traces(machine: str) -> list[object]:
    """What is left on the host of a machine: processes of ours, mounts, cgroups."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        *psutil.Process().children(recursive=True),
        *(line for line in mounts if "ollama-metrics-machine" in line),
        *(path for path, _, _ in os.walk("/sys/fs/cgroup") if machine in path),
    ]


def cgroups(pid: int) -> str:
    """What is in the names of a machine's cgroups, and of no other's."""
    found = re.search(r"ollama-metrics-machine-\w+", Path(f"/proc/{pid}/cgroup").read_text())
    assert found
    return found[0]


def test_a_machine_leaves_nothing_behind() -> None:
    """After the end no process, mount or cgroup of it is left on the host, whatever it was doing."""
    with Machine() as machine:
        name = cgroups(machine.pid)
        service(
            machine, "stubborn", "ExecStart=/bin/sh -c 'trap : TERM; while :; do sleep 1; done'"
        )
        machine.run("systemctl", "start", "stubborn")
        poller = machine.popen("sleep", "infinity")
        assert len(traces(name)) > 2
    poller.wait()
    assert traces(name) == []


def test_a_machine_ends_with_the_process_that_booted_it() -> None:
    """Killed with SIGKILL, its owner takes it along; the cgroups that are left go when the next one boots."""
    owner = (
        "from machine import Machine\n"
        "with Machine() as machine:\n"
        "    print(machine.pid, flush=True)\n"
        "    machine.run('sleep', 'infinity', timeout=600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", owner], cwd=Path(__file__).parent, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        name, first = cgroups(pid), os.pidfd_open(pid)
        process.kill()
    ended, _, _ = select.select([first], [], [], 10)
    os.close(first)
    assert ended
    deadline = time.monotonic() + 20
    # The kernel, or a machine of somebody else's that removes them, too, may not have finished yet.
    while traces(name) and time.monotonic() < deadline:
        with Machine():
            pass
    assert traces(name) == []


def test_a_machine_that_does_not_boot_tells_why() -> None:
    """What was said on the console is in the error, and nothing is left behind."""
    with (
        pytest.raises(MachineError, match=r"(?s)ended while it booted.*/lib/systemd/systemd"),
        Machine(hide=["/lib/systemd/systemd"]),
    ):
        pass
    assert psutil.Process().children() == []


def test_commands_start_with_a_clean_environment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the environment of the tests nor their folder is handed on; what is asked for is."""
    monkeypatch.setenv("OLLAMA_METRICS_LISTEN", "nonsense")
    told = machine.run("sh", "-c", "env; pwd; umask", env={"ASKED": "for"}, cwd="/usr").stdout
    assert "OLLAMA" not in told
    assert "ASKED=for" in told
    assert told.endswith("/usr\n0022\n")
    assert machine.run("cat", input="fed\n").stdout == "fed\n"


def test_a_command_that_fails_tells_why(machine: Machine) -> None:
    """The error has what the command said on both streams; one that takes too long is ended with its children."""
    with pytest.raises(MachineError, match=r"(?s)ended with 3\n.*out.*err"):
        machine.shell("echo out; echo err >&2; exit 3")
    with pytest.raises(MachineError, match=r"(?s)took over 1 s\nbegun"):
        machine.shell("echo begun; sleep 600 & sleep 600", timeout=1)
    assert "sleep" not in machine.run("ps", "-e").stdout


def test_what_runs_beside_can_be_signalled(machine: Machine) -> None:
    """A signal to `popen`'s process goes to the command in the machine, and its return code is returned."""
    script = "trap 'echo ended; exit 7' TERM; echo begun; while :; do sleep 0.01; done"
    with machine.popen("bash", "-c", script, stdout=subprocess.PIPE) as beside:
        assert beside.stdout is not None
        assert beside.stdout.readline() == "begun\n"
        beside.terminate()
        assert beside.stdout.read() == "ended\n"
    assert beside.returncode == 7
    killed = machine.popen("sleep", "infinity")
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
