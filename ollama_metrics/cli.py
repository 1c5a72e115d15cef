"""The command: arguments, signals and all wiring; the only place that constructs everything."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn, Optional

    from .config import Config
    from .log import Log
    from .sampler import Sampler
    from .server import Server
    from .status_log import StatusLog

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
# The first CPU reading is over this time, or the interval where that is shorter: a balancer waits
# for it.
FIRST_CPU_SECONDS = 0.5
# A driver that hangs is waited for this long at most, however long the interval.
START_SECONDS = 3.0

DESCRIPTION = "Tells a load balancer how busy this Ollama host really is."
EXAMPLES = """\
examples:
  ollama-metrics serve
  ollama-metrics serve --listen '[::]:11435' --window 30
  OLLAMA_METRICS_EXPECTED_GPUS=4 ollama-metrics serve
  ollama-metrics once | jq .weight
  curl -s localhost:11435/metrics
"""


def main(
    arguments: Optional[Sequence[str]] = None, environ: Optional[Mapping[str, str]] = None
) -> int:
    """Run the command; returns its exit code: 0, 1 (it failed) or 2 (it was called wrongly)."""
    if arguments is None:
        # This process is the command's own, and before its first import is the time to slim it.
        from .lean import defer

        defer()
    argv = sys.argv[1:] if arguments is None else list(arguments)
    environment = os.environ if environ is None else environ
    from .errors import ConfigError, ListenError

    try:
        command, config, format = _parse(argv, environment)
        if command == "serve":
            return _serve(config, environment)
        return _once(config, environment, format)
    except ConfigError as error:
        print(f"ollama-metrics: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ListenError as error:
        print(f"ollama-metrics: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


# -- arguments ---------------------------------------------------------------------------------------------------------


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, Config, Optional[str]]:
    import argparse

    from . import __version__
    from .config import SETTINGS, load

    class Parser(argparse.ArgumentParser):
        """One line for a mistake, as the other tools of a shell do it."""

        def error(self, message: str) -> NoReturn:
            # What the user typed stands in it as it is, line breaks and all.
            line = " ".join(message.split())
            self.exit(EXIT_USAGE, f"{self.prog.split()[0]}: {line} (see {self.prog} --help)\n")

    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=24, width=min(79, _columns(environ))
        )

    def command(name: str, help: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=epilog,
            formatter_class=formatter,
            allow_abbrev=False,
        )

    parser = Parser(
        prog="ollama-metrics",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ollama-metrics {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = command(
        "serve",
        "sample this host and serve it until SIGTERM",
        "Each option has an environment variable (--log-level has\n"
        "OLLAMA_METRICS_LOG_LEVEL); the command line wins.\n"
        "Exit codes: 0 ended by a signal, 1 cannot serve, 2 bad usage.",
    )
    once = command(
        "once",
        "print one reading of this host, without a daemon",
        "Exit codes: 0 a reading was printed, whatever its status; 2 bad usage.",
    )
    once.add_argument(
        "--format",
        choices=("json", "prometheus", "openmetrics"),
        default="json",
        help="what to print (default: json)",
    )
    for setting in SETTINGS:
        for sub in (serve,) if setting.serve_only else (serve, once):
            sub.add_argument(
                setting.option,
                metavar=setting.metavar,
                action="append" if setting.repeatable else "store",
                help=f"{setting.help} (default: {setting.default_text})".replace("%", "%%"),
            )
    namespace = vars(parser.parse_args(argv))
    return (
        namespace["command"],
        load(namespace, environ, serve=namespace["command"] == "serve"),
        namespace.get("format"),
    )


def _columns(environ: Mapping[str, str]) -> int:
    text = environ.get("COLUMNS", "")
    return max(50, int(text)) if text.isdecimal() and len(text) < 5 else 79


# -- wiring ------------------------------------------------------------------------------------------------------------


class _Sampling:
    """The samplers of one agent and what they are asked through.

    The constructor starts the first CPU interval before all else, so that the rest of the program
    is imported within it, and then the threads. `wait` is to be called before the first answer.
    """

    def __init__(self, config: Config, log: Log, read_only: bool) -> None:
        from .errors import CollectorError
        from .host import HostCollector
        from .sampler import STUCK_INTERVALS, Sampler

        self._log = log
        first_cpu = min(FIRST_CPU_SECONDS, config.interval)
        self._patience = first_cpu + min(START_SECONDS, STUCK_INTERVALS * config.interval)
        self._status: Optional[StatusLog] = None
        host_collector = HostCollector()
        self._host = Sampler("host", host_collector, config.interval, log, after=self._note)
        try:
            host_collector.prime()
        except CollectorError as error:
            log("error", f"host: {error}")
        self._host.start(first_after=first_cpu)

        from .expectation import Expectation

        expectation = Expectation(config.expected_gpus, config.state_dir, log, read_only=read_only)
        self._gpu: Optional[Sampler] = None
        if config.expected_gpus != 0:
            from .gpu_collector import GpuCollector

            self._gpu = Sampler("gpu", GpuCollector(expectation, log), config.interval, log)
            self._gpu.start()

        from .endpoints import Endpoints
        from .status_log import StatusLog

        self.endpoints: Endpoints = Endpoints(
            self._host,
            self._gpu,
            expectation,
            interval=config.interval,
            window=max(config.window, config.interval),
            on_failure=config.on_failure,
            log=log,
        )
        self._status = StatusLog(self._host, self._gpu, self.endpoints.judge_now, log)

    def wait(self) -> None:
        """Wait for the first readings.

        The wait is bounded, for a driver may hang: what has not been read by then is served as
        failing, which to a balancer is better than a refused connection (to a host that it never
        reached it gives the weight 0).
        """
        if not self._host.first.wait(self._patience):
            self._log("error", "CPU and RAM cannot be read in time; this host is served as failing")
        if self._gpu is not None and not self._gpu.first.wait(self._patience):
            self._log("error", "the GPUs cannot be read in time; this host is served as failing")

    def stop(self) -> None:
        """Let both threads end."""
        self._host.stop()
        if self._gpu is not None:
            self._gpu.stop()

    def _note(self) -> None:
        if self._status is not None:
            self._status.note()


def _serve(config: Config, environ: Mapping[str, str]) -> int:
    from .lean import forget_parser

    forget_parser()
    import signal

    from .log import Log

    ended: list[int] = []
    server: Optional[Server] = None

    def end(number: int, _frame: Any) -> None:
        ended.append(number)
        if server is None:
            raise SystemExit(EXIT_OK)  # nobody is served yet; a driver that hangs is not waited for
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log = Log(config.log_level, environ=environ)
    sampling = _Sampling(config, log, read_only=False)

    from .listener import listen, open_files_for
    from .server import MOST_CONNECTIONS, Server

    if ended:
        return EXIT_OK  # the SystemExit came while a destructor ran, and went no further
    sampling.wait()
    listeners = listen(config.listen)
    most = open_files_for(MOST_CONNECTIONS)
    server = Server(listeners, sampling.endpoints, most_connections=most)
    signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
    sampling.endpoints.counters = server.counters
    for listener in listeners:
        log("info", f"listening on {listener.url} ({listener.bound})")
    try:
        if not ended:
            server.run()
    finally:
        signal.set_wakeup_fd(-1)
        sampling.stop()
    log("info", f"ended by {signal.Signals(ended[0]).name}" if ended else "ended")
    return EXIT_OK


def _once(config: Config, environ: Mapping[str, str], format: Optional[str]) -> int:
    from .log import Log

    sampling = _Sampling(
        config,
        Log(config.log_level if config.log_level != "info" else "error", environ=environ),
        True,
    )
    sampling.wait()
    sampling.stop()
    sampling.endpoints.version()
    document = sampling.endpoints.document(format or "json", indent=2 if format == "json" else None)
    try:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        sys.stdout.flush()
        sys.stdout.buffer.write(document)
        sys.stdout.buffer.flush()
    except OSError as error:
        if sys.stdout is not None:
            # Python would complain once more when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"ollama-metrics: cannot write: {error.strerror or error}", file=sys.stderr)
            return EXIT_FAILED
        # A reader that has had enough (`| head`) is no failure.
    return EXIT_OK
