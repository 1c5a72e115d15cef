"""A booted machine with this checkout in it, and what tests do to an installed agent."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional

from machine import Machine

SERVICE = "ollama-metrics"
CHECKOUT = "/srv/checkout"
CONFIG = "/etc/ollama-metrics/environment"
WHEELHOUSE = "/srv/wheelhouse"
PATIENCE = 60.0

OLLAMA_UNIT = """\
[Service]
ExecStart={python} {checkout}/tests/ollama_standin.py
Restart=always
[Install]
WantedBy=multi-user.target
"""

# Every file and folder that an installer could touch: path, type, mode, owner, target, size; of /etc what is
# in it, too. Left out is what systemd, dpkg, useradd (its backups) and the clock write by themselves; systemd
# removes empty folders of links.
_SNAPSHOT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /work -o -path /root \
    -o -path /var/log -o -path /var/tmp -o -path /var/cache -o -path /srv \
    -o -path /var/lib/systemd -o -path /var/lib/dpkg -o -path '/etc/systemd/*.wants' -empty \
    -o -path '/etc/*-' \) -prune \
    -o -type d -printf '%p\t%y %m %u:%g\n' -o -printf '%p\t%y %m %u:%g %l %s\n'
find /etc -type f -not -name '*-' -not -name .pwd.lock -exec md5sum {} + | sed -E 's/^(\S+)  (.*)/\2\t\1/'
"""

_OPEN = """
import errno, os, sys
try:
    os.close(os.open(sys.argv[1], os.O_RDWR))
    print("opened")
except OSError as error:
    print(errno.errorcode[error.errno])
"""

# Joins the cgroup of a process (argv[1]) and takes memory until it is killed; the kernel's OOM killer is
# not to choose it first.
_FILL = """
import os, sys
open("/proc/self/oom_score_adj", "w").write("-1000")
for line in open(f"/proc/{sys.argv[1]}/cgroup"):
    number, controllers, path = line.strip().split(":", 2)
    if controllers in ("", "memory"):
        folder = "/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup"
        try:
            open(f"{folder}{path}/cgroup.procs", "w").write(str(os.getpid()))
        except OSError:
            pass
held = []
while True:
    held.append(bytearray(b"x" * (1 << 20)))
"""


class Polled:
    """What a poller that runs beside found; `result` is there once it has ended."""

    result: dict[str, Any]


class Host:
    """A booted machine as an operator has it: a checkout, a wheelhouse, and no network but its own."""

    def __init__(self, machine: Machine, checkout: Path, wheelhouse: Path, python: str) -> None:
        self.machine = machine
        self.python = python
        self.copy(checkout, CHECKOUT)
        self.copy(wheelhouse, WHEELHOUSE)

    def copy(self, source: Path, target: str) -> None:
        """A folder of the host's, into the machine."""
        self.machine.run("mkdir", "-p", target)
        inside = str(self.machine.path(target))
        subprocess.run(["cp", "-a", f"{source}/.", inside], check=True, timeout=60)
        self.machine.run("chmod", "755", target)  # a temporary folder is its owner's alone

    # -- commands ------------------------------------------------------------------------------------------------

    def shell(self, script: str, **options: Any) -> str:
        """What a shell script prints; fails where any of its commands does."""
        return self.machine.shell(script, **options).stdout.strip()

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.machine.run(*argv, **options)

    @contextmanager
    def popen(self, *argv: str) -> Iterator[Any]:
        """A process that runs beside, with pipes; ended with the context."""
        process = self.machine.popen(
            *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with process:
            try:
                yield process
            finally:
                if not process.stdin.closed:
                    process.stdin.close()
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise

    def read(self, path: str) -> str:
        return self.machine.path(path).read_text("utf-8")

    def write(self, path: str, text: str) -> None:
        target = self.machine.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")

    def journal(self, unit: str) -> str:
        return self.shell(f"journalctl --sync; journalctl -u {unit} -o cat --no-pager")

    def snapshot(self) -> set[tuple[str, str]]:
        """All files and folders that an installer could touch: (path, what it is) of each."""
        lines = self.shell(_SNAPSHOT).splitlines()
        return {(path, what) for path, _, what in (line.rpartition("\t") for line in lines)}

    def changes(self, before: set[tuple[str, str]]) -> list[tuple[str, str]]:
        """What is otherwise than in an earlier snapshot; not what another program changed in the root below the
        machine meanwhile (a log that this very test run is written to, say)."""
        different = self.snapshot() ^ before
        return sorted(
            (path, what) for path, what in different if not self.machine.changed_below(path)
        )

    # -- the installer -------------------------------------------------------------------------------------------

    def install(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run this checkout's installer, without a network."""
        return self.run(
            f"{CHECKOUT}/install.sh", "--wheelhouse", WHEELHOUSE, *options, check=check, timeout=180
        )

    def setting(self, name: str) -> Optional[str]:
        """The value that the installed settings have for a name; None where it is commented out."""
        found = re.findall(rf"^{name}='(.*)'$", self.read(CONFIG), re.MULTILINE)
        assert len(found) <= 1, found
        return found[0] if found else None

    def add_ollama(self, *options: str) -> None:
        """A stand-in for Ollama as the unit `ollama.service`, on 11434 as Ollama is."""
        unit = OLLAMA_UNIT.format(python=self.python, checkout=CHECKOUT)
        unit = unit.replace("ollama_standin.py", " ".join(("ollama_standin.py", *options)))
        self.write("/etc/systemd/system/ollama.service", unit)
        self.shell("systemctl daemon-reload; systemctl enable --now ollama")
        self.wait(lambda: self.get("/api/version", 11434))

    # -- the service ---------------------------------------------------------------------------------------------

    def shown(self, name: str, unit: str = SERVICE) -> str:
        return self.shell(f"systemctl show -p {name} --value {unit}")

    @property
    def pid(self) -> int:
        return int(self.shown("MainPID"))

    def get(self, target: str, port: int = 11435) -> Any:
        """An answer's JSON; None while there is none."""
        process = self.run(
            "curl", "-sf", "--max-time", "5", f"http://127.0.0.1:{port}{target}", check=False
        )
        return json.loads(process.stdout) if process.returncode == 0 else None

    def metrics(self) -> Any:
        document = self.get("/metrics")
        assert document is not None, self.journal(SERVICE)
        return document

    def wait(self, happened: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Ask until the answer is true; returns it."""
        deadline = time.monotonic() + patience
        while not (answer := happened()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {patience} s; journal: {self.journal(SERVICE)}")
            time.sleep(0.05)
        return answer

    def wait_until_ready(self) -> None:
        self.wait(lambda: self.get("/-/ready"))

    def wait_for_another_process(self, before: int) -> None:
        self.wait(lambda: self.pid not in (0, before) and self.get("/-/ready"))

    def renew(self, act: Callable[[], object]) -> None:
        """Do something that executes the program anew, and wait until that has happened."""
        pid, before = self.pid, self._began()
        act()
        self.wait(lambda: self._began() > before and self.get("/-/ready"))
        assert self.pid == pid

    def _began(self) -> float:
        """Since when the program that answers runs."""
        document = self.get("/metrics")
        return (
            float(document["timestamp"] - document["agent"]["uptime_seconds"]) if document else 0.0
        )

    @contextmanager
    def polled(
        self, url: str = "http://127.0.0.1:11435/metrics", per_second: int = 50, kept: bool = True
    ) -> Iterator[Polled]:
        """Poll a URL meanwhile."""
        polled = Polled()
        arguments = [
            url,
            str(per_second),
            *(() if kept else ("--no-kept",)),
        ]
        process = self.machine.popen(
            self.python, f"{CHECKOUT}/tests/poller.py", *arguments,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            try:
                yield polled
                out, _ = process.communicate(timeout=PATIENCE)
            except BaseException:
                process.kill()
                raise
        polled.result = json.loads(out)

    # -- the sandbox ---------------------------------------------------------------------------------------------

    def in_sandbox(self, *argv: str) -> str:
        """What a command prints that has the running agent's cgroup, mounts and user."""
        script = f"""
            for folder in /sys/fs/cgroup/devices /sys/fs/cgroup; do
                group=$folder/system.slice/{SERVICE}.service/cgroup.procs
                if [ -e $group ]; then echo $$ > $group; fi
            done
            exec nsenter --target {self.pid} --mount setpriv --reuid ollama --regid ollama --clear-groups "$@"
        """
        return self.run("sh", "-ec", script, "sh", *argv).stdout.strip()

    def opened_in_sandbox(self, node: str) -> str:
        """`opened`, or the name of the error."""
        return self.in_sandbox("/opt/ollama-metrics/current/bin/python", "-I", "-c", _OPEN, node)

    def fill_memory_of(self, pid: int, command: Optional[str] = None) -> None:
        """Take all memory that the service of a process may have."""
        self.run(command or self.python, "-c", _FILL, str(pid), check=False, timeout=PATIENCE)
