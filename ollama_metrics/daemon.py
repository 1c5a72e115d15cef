"""The daemon: samplers, event loop, signals and service manager, wired, from its start to its end."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Optional

    from .handover import Handover
    from .heartbeat import Heartbeat
    from .listener import Listener
    from .renewal import Renewal
    from .server import Server
    from .settings import Config

EXIT_OK = 0


class Daemon:
    """One run of `serve`, to be used once, by the main thread.

    `arguments` are the command line's after `serve`: with them, SIGHUP executes the program anew.
    None is for a program that has this one as a part of itself.
    """

    def __init__(
        self, config: Config, environ: Mapping[str, str], arguments: Optional[Sequence[str]]
    ) -> None:
        self._config, self._environ, self._arguments = config, environ, arguments
        self._ended: list[int] = []
        self._hung_up = False
        self._driver_replaced = False
        self._server: Optional[Server] = None
        self._heartbeat: Optional[Heartbeat] = None
        self._renewal: Optional[Renewal] = None
        self._before: Optional[Handover] = None

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit code. Raises ListenError."""
        self._take_signals()

        from .log import Log

        self._log = log = Log(self._config.log_level, environ=self._environ)

        self._before = before = self._handed_over()

        from .sampling import Sampling

        self._sampling = sampling = Sampling(self._config, log, read_only=False, before=before)

        from .listener import open_files_for
        from .server import MOST_CONNECTIONS, Server
        from .service_manager import ServiceManager

        self._manager = manager = ServiceManager(self._environ)
        if self._ended:
            return EXIT_OK  # the SystemExit came while a destructor ran, and went no further
        sampling.wait()
        listeners, tellers = self._listen()
        self._listeners = listeners + tellers
        most = open_files_for(MOST_CONNECTIONS)
        self._server = server = Server(
            listeners,
            sampling.endpoints,
            most_connections=most,
            tellers=[(listener, sampling.endpoints.agent_check_line) for listener in tellers],
        )
        if before is not None:
            server.adopt(before.connections)
        server.on_wake = self._woken
        signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
        sampling.endpoints.counters = server.counters
        sampling.on_driver = self._note_driver
        for listener in listeners:
            log("info", f"listening on {listener.url} ({listener.description})")
        for listener in tellers:
            log("info", f"agent-check on {listener.description}")
        if manager.listens:
            self._report(sampling)
        if self._hung_up:
            server.wake()  # it came when there was nobody to be woken
        try:
            while server.run():
                assert self._renewal is not None
                sampling.release()
                self._renewal.execute()
        finally:
            signal.set_wakeup_fd(-1)
            sampling.stop()
            if self._renewal is not None:
                self._renewal.stop()
        log("info", f"ended by {signal.Signals(self._ended[0]).name}" if self._ended else "ended")
        return EXIT_OK

    # -- signals -------------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        if self._arguments is None:
            return
        _fill_standard_streams()
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL and not _has_terminal():
            # Of a terminal that is closed it means the end; nohup(1) has it ignored.
            signal.signal(signal.SIGHUP, self._hang_up)
        from .sampler import MAIN_THREADS_SIGNALS

        # What this process held back while it was executed anew.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MAIN_THREADS_SIGNALS)

    def _end(self, number: int, _frame: Any) -> None:
        self._ended.append(number)
        if self._server is None:
            # Nobody is served yet; a driver that hangs is not waited for. An import that an exception
            # interrupts may swallow it, or make another of it.
            if self._arguments is not None:
                os._exit(EXIT_OK)
            raise SystemExit(EXIT_OK)
        self._manager.stopping()
        self._server.stop()

    def _hang_up(self, _number: int, _frame: Any) -> None:
        self._hung_up = True
        if self._server is not None:
            self._server.wake()

    # -- what the program before this one has left -------------------------------------------------------------------

    def _handed_over(self) -> Optional[Handover]:
        from .config import HANDOVER_VARIABLE

        if self._arguments is None or HANDOVER_VARIABLE not in self._environ:
            return None
        from .handover import handed_over

        return handed_over(self._environ, os.getpid())

    def _listen(self) -> tuple[list[Listener], list[Listener]]:
        """For HTTP and for agent-checks.

        On systemd's sockets, else on those of the program before this one and what is configured besides.
        """
        from .listener import PASSED, adopt, listen
        from .service_manager import passed_sockets

        inherited = list(self._before.listeners) if self._before is not None else []
        passed = passed_sockets(self._environ) or [fd for name, fd in inherited if name == PASSED]
        addresses = self._config.listen if not passed else ()
        checks = (self._config.agent_check,) if self._config.agent_check is not None else ()
        bound = listen((*addresses, *checks), inherited)
        kept = {listener.fileno() for listener in bound} | set(passed)
        for fd in {fd for _, fd in inherited} - kept:
            os.close(fd)  # configured no more
        http = [adopt(fd, PASSED) for fd in passed] + bound[: len(addresses)]
        return http, bound[len(addresses) :]

    # -- what wakes the event loop -------------------------------------------------------------------------------

    def _report(self, sampling: Any) -> None:
        """Tell the service manager that the service is ready, and from now on that it is alive."""
        from .heartbeat import Heartbeat, status_line

        assert self._server is not None
        judge = sampling.endpoints.judge_now
        self._heartbeat = Heartbeat(self._manager, self._config.interval, judge, self._server.wake)
        self._manager.ready(status_line(judge))
        sampling.on_host = self._heartbeat.sampled

    def _note_driver(self, replaced: bool) -> None:
        """Called by the GPU's sampler."""
        self._driver_replaced = replaced
        if replaced and self._server is not None:
            self._server.wake()

    def _woken(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.beat()
        wanted = self._hung_up or self._driver_replaced or self._renewal is not None
        if wanted and self._arguments is not None and not self._ended:
            self._renew(self._arguments)

    def _renew(self, arguments: Sequence[str]) -> None:
        if self._renewal is None:
            assert self._server is not None
            try:
                from .renewal import Renewal
            except Exception as error:  # who put another version in this one's place?
                self._hung_up = self._driver_replaced = False
                why = f"{type(error).__name__}: {error}"
                self._log("error", f"not reloaded, this program cannot be read any more: {why}")
                return
            self._renewal = Renewal(
                self._server,
                self._listeners,
                self._manager,
                self._environ,
                arguments,
                self._log,
                self._before,
                memory=lambda: self._sampling.to_be_remembered,
            )
        self._renewal.note_driver(self._driver_replaced)
        if self._hung_up:
            self._hung_up = False
            self._renewal.ask("SIGHUP")
        self._renewal.turn()


def _fill_standard_streams() -> None:
    """Have no socket in the place of a standard stream that was closed: there the next program could not have it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal: /dev/tty can be opened then, tty(4)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
