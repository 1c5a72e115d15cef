"""Executes the program anew in this process, with its sockets kept: a reload, or a new driver's library.

Only a new program image reads a changed configuration as a whole, runs another version of the
program, and can load another version of NVIDIA's library (one that is loaded is never unloaded).
The process stays the same to systemd, listening sockets and connections stay open, and what arrives
meanwhile waits in the kernel for the second that it takes.

First a child tries the new configuration (`check`); when it fails, all goes on as it is. Everything
is driven by the event loop (`turn`); nothing here waits.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from .handover import Handover, close_all_but
from .sampler import MAIN_THREADS_SIGNALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Optional

    from .listener import Listener
    from .server import Server
    from .service_manager import ServiceManager

CHECK_SECONDS = 20.0
# For the driver's sake at most this often; each time in vain doubles it, six times at most.
LEAST_SECONDS = 60.0
_DOUBLINGS = 6
# How often a thread is looked at before it is taken to be held by the kernel, and how far apart.
_LOOKS, _LOOK_SECONDS = 10, 0.01
# What the program that is tried has no business with.
_NOT_FOR_A_CHECK = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Renewal:
    """`ask` may be called from any thread and from a signal's handler, the rest by the event loop's thread.

    `arguments` are those after `serve`.
    """

    def __init__(
        self,
        server: Server,
        listeners: Sequence[Listener],
        manager: ServiceManager,
        environ: Mapping[str, str],
        arguments: Sequence[str],
        log: Callable[[str, str], None],
        before: Optional[Handover] = None,
        clock: Callable[[], float] = time.monotonic,
        memory: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._server, self._listeners, self._manager = server, listeners, manager
        self._environ, self._log, self._clock = environ, log, clock
        self._memory = memory
        self._command = _command()
        self._arguments = arguments
        self._asked: Optional[tuple[str, bool]] = None
        self._ready = False  # checked, and only to be executed when the server has paused
        self._why, self._for_driver = "", False
        self._driver_renewals = before.driver_renewals if before is not None else 0
        self._driver_renewed_at = before.driver_renewed_at if before is not None else None
        self._child = 0
        self._output = -1
        self._check_ends_at = 0.0

    def ask(self, why: str, for_driver: bool = False) -> None:
        """Execute the program anew as soon as may be."""
        self._asked = (why, for_driver)
        self._server.wake()

    def note_driver(self, replaced: bool) -> None:
        """Whether the driver that is loaded is another one than its library; to be called after each reading."""
        if not replaced:
            self._driver_renewals = 0
            return
        wait = LEAST_SECONDS * 2 ** min(max(0, self._driver_renewals - 1), _DOUBLINGS)
        last = self._driver_renewed_at
        if (
            self._asked is None
            and not self._child
            and (last is None or self._clock() >= last + wait)
        ):
            self.ask("the NVIDIA driver was updated under this process", for_driver=True)

    def turn(self) -> None:
        """Begin what was asked for, or look how far it is. Pauses the server when it is time to `execute`."""
        if self._child:
            self._look()
        elif self._asked is not None and not self._ready:
            self._begin()

    def execute(self) -> None:
        """Become the new program. Returns when that fails, which is logged, or when it is not to be after all."""
        self._ready = False
        if self._asked is not None:
            self._begin()  # the configuration may have changed since
            return
        # Until the new image has its handlers these would end it. What came before has been handled now.
        signal.pthread_sigmask(signal.SIG_BLOCK, MAIN_THREADS_SIGNALS)
        if not self._server.stopping:
            self._execute()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MAIN_THREADS_SIGNALS)

    def _execute(self) -> None:
        listeners, connections = self._sockets(), self._server.connections
        if self._for_driver:
            self._driver_renewals += 1
            self._driver_renewed_at = self._clock()
        handover = Handover(
            os.getpid(),
            listeners,
            tuple(connections),
            self._driver_renewals,
            self._driver_renewed_at,
            **self._memory(),
        )
        self._log("info", f"{self._why}: the program is executed anew")
        self._manager.reloading()
        try:
            close_all_but({*(fd for _, fd in listeners), *connections})
            os.execve(sys.executable, self._command, handover.environment(self._environ))
        except OSError as error:
            self._log("error", f"{sys.executable} cannot be executed anew: {error.strerror}")
        close_all_but(set())
        self._manager.ready("not reloaded; the log says why")

    def _sockets(self) -> tuple[tuple[str, int], ...]:
        return tuple((listener.name, listener.fileno()) for listener in self._listeners)

    def stop(self) -> None:
        """Give up what has begun: the child has the listening sockets, which are to be closed now."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)

    # -- the check -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start a child that tries whether the program would start now."""
        assert self._asked is not None
        (self._why, self._for_driver), self._asked = self._asked, None
        handover = Handover(os.getpid(), self._sockets())
        environ = {k: v for k, v in self._environ.items() if k not in _NOT_FOR_A_CHECK}
        before = len(self._command) - len(self._arguments) - 1
        command = [*self._command[:before], "check", *self._arguments]
        # Handlers that do nothing: it is the signal's byte to the loop that matters.
        for number in (signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, lambda *_: None)
        self._check_ends_at = self._clock() + CHECK_SECONDS
        signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS + 0.01)
        try:
            self._output, output = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._refuse(f"the program cannot be tried: {error.strerror}")
            return
        try:
            for _, fd in handover.listeners:
                os.set_inheritable(fd, True)
            self._child = os.posix_spawn(
                sys.executable,
                command,
                handover.environment(environ),
                file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
            )
        except OSError as error:
            os.close(self._output)
            self._refuse(f"{sys.executable} cannot be executed: {error.strerror}")
        finally:
            os.close(output)
            for _, fd in handover.listeners:
                os.set_inheritable(fd, False)

    def _look(self) -> None:
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if pid == 0:
            if self._clock() >= self._check_ends_at:
                os.kill(self._child, signal.SIGKILL)
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGCHLD, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        self._child = 0
        try:
            said = os.read(self._output, 1 << 16).decode("utf-8", "replace").strip()
        except BlockingIOError:
            said = ""
        os.close(self._output)
        if self._asked is not None:
            self._begin()  # what was tried may have changed since
        elif status != 0:
            said = said.rpartition("\n")[2].replace("ollama-metrics: ", "", 1)
            if os.WIFSIGNALED(status):
                late = self._clock() >= self._check_ends_at
                how = "took too long" if late else f"was killed by signal {os.WTERMSIG(status)}"
                said = f"the program that was to be executed {how} when it was tried"
            self._refuse(said or f"it failed with {os.WEXITSTATUS(status)} when it was tried")
        elif held := thread_in_the_kernel():
            self._refuse(f"thread {held} is held by the kernel, and to execute would wait for it")
        else:
            self._ready = True
            self._server.pause()

    def _refuse(self, why: str) -> None:
        self._log("error", f"not reloaded, the configuration stays as it was: {why}")
        if self._for_driver:
            self._driver_renewals += 1
            self._driver_renewed_at = self._clock()


def _command() -> list[str]:
    """This process's command line, from the interpreter on.

    Source: /proc/self/cmdline, for Python 3.9 keeps no record of its own options.
    """
    with open("/proc/self/cmdline", "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]


def thread_in_the_kernel() -> Optional[int]:
    """Another thread of this process in an uninterruptible call, as that of a driver that hangs; None if none is.

    execve(2) ends all other threads first, and this one it could not end. One that is there for a
    moment only, for a page to come from the disk, does not count.
    """
    held = _uninterruptible()
    for _ in range(_LOOKS):
        if not held:
            return None
        time.sleep(_LOOK_SECONDS)
        held &= _uninterruptible()
    return min(held, default=None)


def _uninterruptible() -> set[int]:
    """Threads, but for the main one, in the state D of /proc/self/task/TID/stat, proc(5)."""
    found = set()
    for task in map(int, os.listdir("/proc/self/task")):
        try:
            with open(f"/proc/self/task/{task}/stat", "rb") as file:
                state = file.read().rpartition(b") ")[2][:1]
        except OSError:
            continue  # it has ended
        if state == b"D" and task != os.getpid():
            found.add(task)
    return found
