"""The command: arguments, signals and all wiring; the only place that constructs everything."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn, Optional

    from .config import Config
    from .endpoints import Endpoints
    from .log import Log
    from .sampler import Sampler

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
# The first CPU reading is over this time, or the interval where that is shorter: a balancer waits
# for it.
FIRST_CPU_SECONDS = 0.5

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


# -- arguments ---------------------------------------------------------------------------------------------------------


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, Config, Optional[str]]:
    import argparse

    from . import __version__
    from .config import SETTINGS, load

    class Parser(argparse.ArgumentParser):
        """One line for a mistake, as the other tools of a shell do it."""

        def error(self, message: str) -> NoReturn:
            self.exit(EXIT_USAGE, f"{self.prog.split()[0]}: {message} (see {self.prog} --help)\n")

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
    return max(50, int(text)) if text.isdigit() and len(text) < 5 else 79


# -- wiring ------------------------------------------------------------------------------------------------------------


class _Sampling:
    """The samplers of one agent and what they are asked through."""

    def __init__(self, config: Config, log: Log, read_only: bool) -> None:
        from .endpoints import Endpoints
        from .expectation import Expectation
        from .gpu_collector import GpuCollector
        from .host import HostCollector
        from .sampler import Sampler
        from .status_log import StatusLog

        self._config, self._log = config, log
        self._host_collector = HostCollector()
        expectation = Expectation(config.expected_gpus, config.state_dir, log, read_only=read_only)
        self.host: Sampler = Sampler(
            "host", self._host_collector, config.interval, log, after=lambda: self.status.note()
        )
        self.gpu: Optional[Sampler] = None
        if config.expected_gpus != 0:
            self.gpu = Sampler("gpu", GpuCollector(expectation, log), config.interval, log)
        self.endpoints: Endpoints = Endpoints(
            self.host,
            self.gpu,
            expectation,
            interval=config.interval,
            window=max(config.window, config.interval),
            on_failure=config.on_failure,
        )
        self.status = StatusLog(self.endpoints.judge_now, log)

    def start(self) -> None:
        """Start both threads and wait for their first readings.

        The wait is bounded, for a driver may hang: what has not been read by then is served as
        failing, which to a balancer is better than a refused connection (to a host that it never
        reached it gives the weight 0).
        """
        from .errors import CollectorError
        from .sampler import STUCK_INTERVALS

        first_cpu = min(FIRST_CPU_SECONDS, self._config.interval)
        patience = first_cpu + STUCK_INTERVALS * self._config.interval
        if self.gpu is not None:
            self.gpu.start()
        try:
            self._host_collector.prime()
        except CollectorError as error:
            self._log("error", f"host: {error}")
        self.host.start(first_after=first_cpu)
        if not self.host.first.wait(patience):
            self._log("error", "CPU and RAM cannot be read in time; this host is served as failing")
        if self.gpu is not None and not self.gpu.first.wait(patience):
            self._log(
                "error",
                "the GPUs cannot be read in time: a driver call hangs; this host is served as failing",
            )

    def stop(self) -> None:
        """Let both threads end."""
        self.host.stop()
        if self.gpu is not None:
            self.gpu.stop()


def _serve(config: Config, environ: Mapping[str, str]) -> int:
    from .lean import forget_parser

    forget_parser()
    import signal

    from .listener import listen, open_files_for
    from .log import Log
    from .server import MOST_CONNECTIONS, Server

    log = Log(config.log_level, environ=environ)
    sampling = _Sampling(config, log, read_only=False)
    ended = []
    server: Optional[Server] = None

    def end(number: int, _frame: Any) -> None:
        ended.append(number)
        if server is not None:
            server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    sampling.start()
    if ended:
        return EXIT_OK
    listeners = listen(config.listen)
    server = Server(
        listeners, sampling.endpoints, most_connections=open_files_for(MOST_CONNECTIONS)
    )
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
    sampling.start()
    sampling.stop()
    sampling.endpoints.version()
    indent = 2 if format == "json" else None
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(sampling.endpoints.document(format or "json", indent=indent))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The reader has had enough (`| head`); Python would complain again when it flushes at its
        # end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK
