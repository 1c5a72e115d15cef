"""When the program is executed anew in its process, and when it is not; test_daemon.py has the real thing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest
from notify_socket import Systemd

from ollama_metrics import renewal as renewal_module
from ollama_metrics.config import HANDOVER_VARIABLE as VARIABLE
from ollama_metrics.handover import Handover
from ollama_metrics.renewal import Renewal, thread_in_the_kernel
from ollama_metrics.service_manager import ServiceManager

PATIENCE = 30.0
ANEW = "the program is executed anew"
REFUSED = "error: not reloaded, the configuration stays as it was: "


def eventually(true: Callable[[], object], what: str) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.002)


def children(pid: int) -> set[int]:
    """The children of a process, and what is left of those that have ended and were not waited for."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


# -- the renewal itself, in this process -------------------------------------------------------------------------------


class Loop:
    """Stands in for the server: writes down what it is asked for."""

    def __init__(self) -> None:
        self.pauses = self.wakes = 0
        self.stopping = False
        self.connections: list[int] = []

    def pause(self) -> None:
        self.pauses += 1

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture(autouse=True)
def no_timer() -> Iterator[None]:
    """What a check has set in this process ends with its test."""
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


class Trial:
    """A renewal whose program is a line of Python, with what it said and did."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        program: str = "",
        environ: Optional[Mapping[str, str]] = None,
        before: Optional[Handover] = None,
    ) -> None:
        command = [sys.executable, "-c", program, "serve", "--window", "30"]
        monkeypatch.setattr(renewal_module, "_command", lambda: command)
        self.now = 1000.0
        self.loop, self.said = Loop(), list[str]()
        self._others = children(os.getpid())
        environ = {} if environ is None else environ
        self.renewal = Renewal(
            self.loop,  # type: ignore[arg-type]
            [],
            ServiceManager(environ),
            environ,
            ["--window", "30"],
            lambda level, sentence: self.said.append(f"{level}: {sentence}"),
            before,
            lambda: self.now,
        )

    @property
    def children(self) -> set[int]:
        """What this renewal has started and not seen the end of."""
        return children(os.getpid()) - self._others

    def turn_until(self, true: Callable[[], object]) -> None:
        def turned() -> object:
            self.renewal.turn()
            return true()

        eventually(turned, f"said: {self.said}")

    def check(self) -> None:
        """Ask for a renewal, and turn until the check has ended."""
        pauses, said = self.loop.pauses, len(self.said)
        self.renewal.ask("a test")
        self.turn_until(lambda: self.loop.pauses > pauses or len(self.said) > said)


def test_a_program_that_would_start_is_executed_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the check has ended well the loop is paused, once, without a word."""
    trial = Trial(monkeypatch)
    trial.check()
    assert (trial.loop.pauses, trial.said) == (1, [])


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit('ollama-metrics: no such thing')", "no such thing"),
        (
            "import sys; print('x' * 50000, file=sys.stderr); sys.exit('ollama-metrics: at last')",
            "at last",
        ),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import sys; sys.exit(3)", "it failed with 3 when it was tried"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "the program that was to be executed was killed by signal 9 when it was tried",
        ),
    ],
)
def test_a_program_that_would_not_start_is_not_executed(
    monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    """One line of the log has the last thing that the check has said, or how it ended; the loop goes on."""
    trial = Trial(monkeypatch, program)
    files = set(os.listdir("/proc/self/fd"))
    trial.check()
    assert set(os.listdir("/proc/self/fd")) == files
    assert trial.said == [f"{REFUSED}{why}"]
    assert trial.loop.pauses == 0


def test_a_check_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is woken when its time is over, by a signal, and the child is no more."""
    monkeypatch.setattr(renewal_module, "CHECK_SECONDS", 0.1)
    trial = Trial(monkeypatch, "import time; time.sleep(600)")
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    before = signal.set_wakeup_fd(waker.fileno())
    try:
        trial.renewal.ask("a test")
        trial.renewal.turn()
        (child,) = trial.children
        assert signal.SIGALRM in woken.recv(1)
        trial.now += 0.1
        trial.turn_until(lambda: trial.said)
    finally:
        signal.set_wakeup_fd(before)
        woken.close()
        waker.close()
    assert "took too long" in trial.said[0]
    assert not Path(f"/proc/{child}").exists()


def test_a_program_that_is_gone_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an interpreter to try it with there is a line in the log, and no check that never ends."""
    trial = Trial(monkeypatch)
    files = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    trial.renewal.ask("a test")
    trial.renewal.turn()
    missing = "/nonexistent/python cannot be executed: No such file or directory"
    assert trial.said == [f"{REFUSED}{missing}"]
    assert set(os.listdir("/proc/self/fd")) == files


def test_the_check_has_the_programs_options_and_not_its_service_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is `check` with the options of `serve`; what it does is nothing to tell systemd."""
    program = """if 1:
        import os, sys
        unwanted = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
        sys.exit(f"{sys.argv[1:]} {unwanted} {os.environ['A']}")
    """
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "A": "b"}
    trial = Trial(monkeypatch, program, environ)
    trial.check()
    assert trial.said == [f"{REFUSED}['check', '--window', '30'] set() b"]


@pytest.mark.parametrize("outcome", [0, 3])
def test_what_is_asked_for_during_a_check_is_checked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: int
) -> None:
    """The configuration may have changed since the check began: the second check tells, whatever the first found."""
    runs = tmp_path / "runs"
    program = f"""if 1:
        import os, sys
        first = not os.path.exists({str(runs)!r})
        print("run", file=open({str(runs)!r}, "a"))
        sys.exit({outcome} if first else 0)
    """
    trial = Trial(monkeypatch, program)
    trial.renewal.ask("the first")
    trial.renewal.turn()
    trial.renewal.ask("the second")
    trial.turn_until(lambda: trial.loop.pauses)
    assert runs.read_text() == "run\nrun\n"
    assert (trial.loop.pauses, trial.said) == (1, [])


class Executed(NamedTuple):
    program: str
    command: list[str]
    environ: Mapping[str, str]
    blocked: set[Any]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Executed]:
    """What was handed to execve(2), which fails."""
    calls: list[Executed] = []

    def execve(program: str, command: list[str], environ: Mapping[str, str]) -> None:
        calls.append(Executed(program, command, environ, signal.pthread_sigmask(0, ())))
        raise OSError(8, "Exec format error")

    monkeypatch.setattr(os, "execve", execve)
    return calls


def test_what_the_program_is_executed_with(
    monkeypatch: pytest.MonkeyPatch, executed: list[Executed]
) -> None:
    """The same command line and environment, what is left to it, and no signal that could end it before it is there."""
    trial = Trial(monkeypatch, environ={"A": "b"})
    trial.check()
    with socket.socket() as connection:
        trial.loop.connections = [connection.fileno()]
        trial.renewal.execute()
        left = Handover(os.getpid(), connections=(connection.fileno(),))
    (call,) = executed
    assert call.program == sys.executable
    assert call.command[3:] == ["serve", "--window", "30"]
    assert call.environ == left.environment({"A": "b"})
    assert call.blocked >= {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}


def test_a_program_that_cannot_be_executed_after_all_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    executed: list[Executed],
    systemd: Systemd,
) -> None:
    """When execve(2) fails that is told, systemd hears that the reload is over, and nothing stays blocked."""
    trial = Trial(monkeypatch, environ=systemd.environment)
    trial.check()
    with socket.socket() as connection:
        trial.loop.connections = [connection.fileno()]
        trial.renewal.execute()
        assert not os.get_inheritable(connection.fileno())
    assert len(executed) == 1
    assert trial.said == [
        f"info: a test: {ANEW}",
        f"error: {sys.executable} cannot be executed anew: Exec format error",
    ]
    assert "RELOADING" in systemd.receive()
    assert systemd.receive() == {"READY": "1", "STATUS": "not reloaded; the log says why"}
    assert not signal.pthread_sigmask(0, ()) & {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}


def test_what_is_asked_for_during_the_pause_is_checked_first(
    monkeypatch: pytest.MonkeyPatch, executed: list[Executed]
) -> None:
    """No child is left to a program that does not know of it: the check begins when the loop has paused."""
    trial = Trial(monkeypatch)
    trial.check()
    trial.renewal.ask("another")
    trial.renewal.turn()
    assert not trial.children
    trial.renewal.execute()
    assert executed == []
    trial.turn_until(lambda: trial.loop.pauses == 2)
    trial.renewal.execute()
    assert len(executed) == 1


def test_a_server_that_is_to_end_is_not_executed_anew(
    monkeypatch: pytest.MonkeyPatch, executed: list[Executed]
) -> None:
    """A SIGTERM that came last wins: after it no new program begins."""
    trial = Trial(monkeypatch)
    trial.check()
    trial.loop.stopping = True
    trial.renewal.execute()
    assert executed == []
    assert trial.said == []


def test_a_check_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that holds the listening sockets does not outlive the process that they are of."""
    trial = Trial(monkeypatch, "import time; time.sleep(600)")
    trial.renewal.stop()
    trial.renewal.ask("a test")
    trial.renewal.turn()
    assert len(trial.children) == 1
    trial.renewal.stop()
    assert not trial.children


# -- for the driver ----------------------------------------------------------------------------------------------------


def asked(trial: Trial) -> bool:
    """Whether a renewal is asked for when the driver is seen to have been replaced; it is not begun."""
    wakes = trial.loop.wakes
    trial.renewal.note_driver(True)
    return trial.loop.wakes > wakes


def test_a_driver_that_was_replaced_is_reason_enough_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time it is asked for at once, and only once however often it is noted."""
    trial = Trial(monkeypatch)
    trial.renewal.note_driver(False)
    assert trial.loop.wakes == 0
    assert asked(trial)
    assert not asked(trial)


@pytest.mark.parametrize(
    ("renewals", "seconds"),
    [(1, 60), (2, 120), (3, 240), (4, 480), (7, 3840), (8, 3840), (10**6, 3840)],
)
def test_in_vain_it_is_done_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, renewals: int, seconds: float
) -> None:
    """The next image waits for a minute, and for twice as long after each that was in vain, to about an hour."""
    before = Handover(1, driver_renewals=renewals, driver_renewed_at=1000.0)
    trial = Trial(monkeypatch, before=before)
    trial.now = 1000.0 + seconds - 0.001
    assert not asked(trial)
    trial.now += 0.001
    assert asked(trial)


def test_a_driver_that_is_well_again_is_waited_for_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was in vain is forgotten with the first good reading; at most once a minute holds all the same."""
    trial = Trial(monkeypatch, before=Handover(1, driver_renewals=6, driver_renewed_at=1000.0))
    trial.renewal.note_driver(False)
    trial.now = 1059.0
    assert not asked(trial)
    trial.now = 1060.0
    assert asked(trial)


def test_what_is_refused_counts_as_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the configuration is bad the log does not fill with a line for each reading of the driver."""
    trial = Trial(monkeypatch, "import sys; sys.exit(2)")
    for wait in (0, 60, 120):
        trial.now += wait
        said = len(trial.said)
        assert asked(trial)
        trial.turn_until(lambda said=said: len(trial.said) > said)  # type: ignore[misc]
        trial.now += 59
        assert not asked(trial)
        trial.now -= 59
    assert len(trial.said) == 3


def test_the_next_program_knows_of_it(
    monkeypatch: pytest.MonkeyPatch, executed: list[Executed]
) -> None:
    """How often and when goes to the next program; a renewal for another reason changes neither."""
    trial = Trial(monkeypatch, before=Handover(1, driver_renewals=1, driver_renewed_at=900.0))

    def left() -> Any:
        trial.renewal.execute()
        fields = executed[-1].environ[VARIABLE]
        return re.findall(r'"driver_renew\w+": ([^,}]+)', fields)

    trial.check()
    assert left() == ["1", "900.0"]
    assert asked(trial)
    trial.turn_until(lambda: trial.loop.pauses == 2)
    assert left() == ["2", "1000.0"]
    assert trial.said[-2].startswith("info: the NVIDIA driver was updated under this process: ")


# -- what the kernel holds ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_thread(fifo: Path) -> Iterator[int]:
    """A thread in the kernel's uninterruptible sleep: its vfork(2)ed child waits for a writer to `fifo`."""
    os.mkfifo(fifo)
    libc = ctypes.CDLL(None)
    actions = ctypes.create_string_buffer(512)
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addopen(actions, 9, os.fsencode(fifo), os.O_RDONLY, 0)
    words = (ctypes.c_char_p * 2)(b"true", None)
    pid = ctypes.c_int()

    def spawn() -> None:
        libc.posix_spawnp(ctypes.byref(pid), b"true", actions, None, words, None)

    thread = threading.Thread(target=spawn)
    thread.start()
    task = thread.native_id

    def held() -> bool:
        return Path(f"/proc/self/task/{task}/stat").read_text().rpartition(") ")[2][0] == "D"

    eventually(held, "the thread is not held")
    assert task is not None
    try:
        yield task
    finally:
        os.close(os.open(fifo, os.O_WRONLY))
        thread.join()
        os.waitpid(pid.value, 0)


def test_a_thread_that_the_kernel_holds_is_found(tmp_path: Path) -> None:
    """It is found as long as it is held; threads that wait or run are not."""
    assert thread_in_the_kernel() is None
    with held_thread(tmp_path / "fifo") as task:
        assert thread_in_the_kernel() == task
    assert thread_in_the_kernel() is None


def test_a_thread_that_is_held_for_a_moment_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that has to come from the disk is no driver that hangs."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(held_thread(tmp_path / "fifo"))
        monkeypatch.setattr(time, "sleep", lambda _: stack.close())
        assert thread_in_the_kernel() is None


def test_what_the_kernel_holds_is_not_executed_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """execve(2) would wait for that thread for ever: the agent goes on as it is, and says so."""
    trial = Trial(monkeypatch)
    with held_thread(tmp_path / "fifo") as task:
        trial.check()
    assert trial.loop.pauses == 0
    assert f"thread {task} is held by the kernel" in trial.said[0]
