"""A systemd of its own, booted as PID 1 in namespaces of its own.

Nothing is simulated: what the units ask for (notification, watchdog, sandbox, limits) is enforced by systemd and the
kernel. The machine is a throw-away copy of a root file system, alone on a network that is its loopback. What is done
inside the namespaces is in `machine/boot`, what the host has to do is here. However this process ends, the machine
ends with it; if it was killed, empty cgroup folders stay behind until the next machine boots.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import psutil

__all__ = ["Command", "Machine", "MachineError", "why_not"]

ENVIRONMENT = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
"""All that a command in the machine has in its environment, unless it is given more."""

BOOTING = 30.0
COMMAND = 60.0
ENDING = 10.0
"""How long, in seconds, each may take."""

_SCRIPTS = Path(__file__).with_name("machine")
_SYSTEMD = "lib/systemd/systemd"
_NAMESPACES = ("--mount", "--pid", "--uts", "--net", "--ipc", "--propagation=private")
_FOLDERS = "ollama-metrics-machine-"


class MachineError(Exception):
    """A machine that cannot be booted or a command that fails in it; the message has what they said."""


class Machine:
    """A booted systemd over a copy in memory of `root`; nothing that is written in it reaches the host.

    root: the host's "/" or a folder with another root file system; what is mounted below it is not seen
    hide: absolute paths that the machine is not to have
    size: how much may be written in it, as in tmpfs's size=

    Entering the context boots it; leaving it ends every process in it at once. It starts with nothing running but the
    journal; D-Bus starts when it is needed. What `root` has enabled besides stays off until a test starts it.
    The thread that boots it has to live for as long as the machine.
    """

    def __init__(
        self, root: Union[str, Path] = "/", hide: Sequence[str] = (), size: str = "2g"
    ) -> None:
        self._root = root
        self._hide = hide
        self._size = size
        self._stack = ExitStack()
        self._hierarchies: list[_Hierarchy] = []
        self._pid = 0
        self._booted = 0.0

    @property
    def pid(self) -> int:
        """The process id of the machine's systemd, as the host counts."""
        return self._pid

    def __enter__(self) -> Machine:
        self._booted = time.time()
        with ExitStack() as stack:
            self._hierarchies = stack.enter_context(_own_cgroups())
            console = stack.enter_context(_Console())
            try:
                self._pid = stack.enter_context(self._first_process(console))
                self._wait_until_up()
            except MachineError as error:
                raise MachineError(f"{error}; the console's last lines:\n{console}") from None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._pid = 0

    def run(
        self,
        *argv: Union[str, Path],
        check: bool = True,
        timeout: float = COMMAND,
        input: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine as root; `env` is added to ENVIRONMENT.

        Raises MachineError where it takes longer than `timeout`, or fails and that is `check`ed.
        """
        command = [str(argument) for argument in argv]
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        process = self.popen(
            *command,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException as error:
                # With all that it started, which would else keep the pipes open.
                process.kill_all()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                out, err = process.communicate(timeout=ENDING)
                raise MachineError(f"{command} took over {timeout} s\n{out}{err}") from None
        if check and process.returncode:
            raise MachineError(f"{command} ended with {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def shell(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a script of bash, which ends where a command fails; options as for `run`."""
        return self.run("bash", "-euo", "pipefail", "-c", script, **options)

    def popen(
        self,
        *argv: Union[str, Path],
        env: Optional[Mapping[str, str]] = None,
        cwd: str = "/",
        **options: Any,
    ) -> Command:
        """Start a command in the machine; the other options are those of subprocess.Popen."""
        command: list[Union[str, Path]] = [_SCRIPTS / "enter", str(self._pid)]
        command += [hierarchy.commands for hierarchy in self._hierarchies]
        command += ["--", "env", "--ignore-environment", f"--chdir={cwd}"]
        command += [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()]
        options = {"stdin": subprocess.DEVNULL, "text": True, "umask": 0o022, **options}
        return Command([*command, *argv], env=ENVIRONMENT, start_new_session=True, **options)

    def path(self, inside: Union[str, Path]) -> Path:
        """A file in the machine as the host can read and write it.

        Beware of absolute symbolic links on the way to it: they lead into the host's root.
        """
        return Path(f"/proc/{self._pid}/root", str(inside).lstrip("/"))

    def changed_below(self, inside: str) -> bool:
        """Whether a file that the machine sees was made or changed in `root` since the machine was booted. Nothing in
        the machine can have done that; what it has not copied yet shows through."""
        try:
            return os.lstat(Path(self._root, inside.lstrip("/"))).st_ctime >= self._booted
        except OSError:
            return False

    def journal(self, unit: str, *options: str) -> str:
        """The messages of a unit, and systemd's about it, one a line; options are journalctl's."""
        self.run("journalctl", "--sync")
        return self.run(
            "journalctl", "--quiet", "--no-pager", "--output=cat", f"--unit={unit}", *options
        ).stdout

    @contextmanager
    def _first_process(self, console: _Console) -> Iterator[int]:
        """Have the kernel make the machine; gives the process id, here, of its first process."""
        command = ["setpriv", "--pdeathsig=KILL", "unshare", "--fork", "--kill-child", *_NAMESPACES]
        command += ["bash", str(_SCRIPTS / "boot"), str(self._root), self._size, console.name]
        command += [*map(str, self._hierarchies), "--", *self._hide]
        outer = subprocess.Popen(
            command,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=console.fd,
            start_new_session=True,
            text=True,
        )
        with outer:
            assert outer.stdout is not None
            try:
                line = outer.stdout.readline()
                if not line:
                    raise MachineError(f"unshare ended with {outer.wait()}")
                # A number may come to belong to another process, this one cannot.
                first = os.pidfd_open(int(line))
            except BaseException:
                outer.kill()
                raise
            try:
                yield int(line)
            finally:
                # The kernel ends all others with it, and `outer` when they are gone.
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(first, signal.SIGKILL)
                os.close(first)
                outer.wait(ENDING)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + BOOTING
        state = "not even systemd"
        while time.monotonic() < deadline:
            try:
                # Until it is systemd, its root may still be the host's, where a systemd answers, too.
                if os.readlink(f"/proc/{self._pid}/exe").endswith("/systemd"):
                    state = self.run(
                        *("systemctl", "is-system-running", "--wait"),
                        check=False,
                        timeout=deadline - time.monotonic(),
                    ).stdout.strip()
                    if state in ("running", "degraded"):
                        return
            except FileNotFoundError:
                raise MachineError(f"the machine ended while it booted ({state})") from None
            time.sleep(0.02)
        raise MachineError(f"the machine did not boot within {BOOTING} s ({state})")


class Command(subprocess.Popen[str]):
    """A command in a machine. Signals reach the command, its return code is this one's.

    What subprocess knows as the process is nsenter, which waits for the command outside. It must live to reap it.
    """

    def send_signal(self, sig: int) -> None:
        """Signal the command; `terminate` and `kill` come here, too."""
        self._signal(sig, recursive=False)

    def kill_all(self) -> None:
        """Kill the command and what it has started."""
        self._signal(signal.SIGKILL, recursive=True)

    def _signal(self, sig: int, recursive: bool) -> None:
        with suppress(psutil.NoSuchProcess):
            inside = psutil.Process(self.pid).children(recursive)
            for process in inside:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(sig)
            if inside:
                return
        super().send_signal(sig)


@cache
def why_not(root: Union[str, Path] = "/") -> Optional[str]:
    """The reason why no machine can be booted here; None when there is none."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("bash", "mount", "nsenter", "pivot_root", "setpriv", "unshare"):
        if shutil.which(program, path=ENVIRONMENT["PATH"]) is None:
            return f"{program} is not installed"
    if not Path(root, _SYSTEMD).exists():
        return f"no {_SYSTEMD} in {root}"
    script = (
        "mount -t tmpfs tmpfs /tmp; cd /tmp; mkdir upper work root;"
        "mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root"
    )
    trial = subprocess.run(
        ["unshare", "--fork", "--cgroup", *_NAMESPACES, "bash", "-ec", script],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if trial.returncode:
        return f"no namespaces or mounts in them: {trial.stderr.strip()}"
    try:
        with _own_cgroups():
            return None
    except (MachineError, OSError) as error:
        return str(error)


class _Hierarchy(NamedTuple):
    """A cgroup hierarchy and the machine's root in it."""

    type: str  # cgroup or cgroup2
    options: str  # to mount it with
    name: str  # of the folder in /sys/fs/cgroup where it is mounted
    folder: Path

    def __str__(self) -> str:
        return f"{self.type}:{self.options}:{self.name}:{self.folder}"

    @property
    def commands(self) -> Path:
        """Where the commands that are run in the machine belong."""
        # Where v2 hands controllers on, it wants no processes; from v1, systemd removes empty folders.
        return self.folder / "commands" if self.name == "." else self.folder


@contextmanager
def _own_cgroups() -> Iterator[list[_Hierarchy]]:
    """A folder in each hierarchy, removed in the end. Removes those, too, that nobody was left to remove."""
    name = _FOLDERS + secrets.token_hex(4)
    hierarchies = [
        each._replace(folder=each.folder / name) for each in _hierarchies(_mounted_cgroups())
    ]
    with ExitStack() as stack:
        for hierarchy in hierarchies:
            for other in hierarchy.folder.parent.glob(f"{_FOLDERS}*"):
                with suppress(OSError), _locked(other):
                    _remove(other, patience=0)
            hierarchy.folder.mkdir()
            stack.callback(_remove, hierarchy.folder)
            stack.enter_context(_locked(hierarchy.folder))
            if "cpuset" in hierarchy.options:  # nothing may enter it before it has these
                for setting in ("cpuset.cpus", "cpuset.mems"):
                    value = (hierarchy.folder.parent / setting).read_text()
                    (hierarchy.folder / setting).write_text(value)
            hierarchy.commands.mkdir(exist_ok=True)
        yield hierarchies


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder for as long as this process lives; BlockingIOError if another one does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _remove(folder: Path, patience: float = ENDING) -> None:
    """Remove a cgroup and those in it. The kernel may take a moment to see that their processes are gone."""
    deadline = time.monotonic() + patience
    for path, _, _ in os.walk(folder, topdown=False):
        while True:
            try:
                os.rmdir(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _mounted_cgroups() -> dict[str, Path]:
    """By their controllers ("" for cgroup v2) where this process is in the hierarchies that are mounted."""
    own = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
    )
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        root, mounted_at = mount.split()[3:5]
        filesystem, _, options = source.split()[:3]
        for controllers, path in own.items():
            if (filesystem == "cgroup2" and not controllers) or (
                filesystem == "cgroup"
                and controllers
                and set(controllers.split(",")) <= set(options.split(","))
            ):
                folder = Path(mounted_at, os.path.relpath(path, root))
                found.setdefault(controllers, folder if folder.is_dir() else Path(mounted_at))
    return found


def _hierarchies(mounted: Mapping[str, Path]) -> list[_Hierarchy]:
    """The hierarchies that systemd uses, with the folder of each where the machine's is to be."""
    found = []
    for controllers, folder in mounted.items():
        if controllers == "name=systemd":
            found.append(_Hierarchy("cgroup", f"none,{controllers}", "systemd", folder))
        elif controllers == "" and len(mounted) > 1:
            found.append(_Hierarchy("cgroup2", "", "unified", folder))
        elif controllers == "":
            found.append(_Hierarchy("cgroup2", "", ".", _delegating(folder)))
        elif not controllers.startswith("name="):
            found.append(_Hierarchy("cgroup", controllers, controllers, folder))
    if not found:
        raise MachineError("no cgroup hierarchy is mounted")
    return found


def _delegating(folder: Path) -> Path:
    """The nearest folder of cgroup v2, at or above this one, that hands its controllers on."""
    for candidate in (folder, *folder.parents):
        # Where processes are, this fails: the kernel wants them in the leaves.
        with suppress(OSError):
            (candidate / "cgroup.subtree_control").write_text("+cpu +memory +pids")
            return candidate
    raise MachineError(
        f"no cgroup from {folder} up can hand on the cpu, memory and pids controllers"
    )


class _Console:
    """A terminal that keeps what was last said on it. systemd wants one, and waits for a reader when it is full."""

    def __init__(self) -> None:
        self._master, self.fd = os.openpty()
        self.name = os.ttyname(self.fd)
        self._said: deque[bytes] = deque(maxlen=64)
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> _Console:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        self._reader.join(ENDING)
        os.close(self._master)

    def __str__(self) -> str:
        text = b"".join(self._said).decode(errors="replace").replace("\r\n", "\n")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)

    def _read(self) -> None:
        with suppress(OSError):  # EIO when nobody has the other end any more
            while True:
                self._said.append(os.read(self._master, 4096))
