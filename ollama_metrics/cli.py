"""The command: its arguments, its exit codes, and which of its commands does what."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn, Optional

    from .settings import Config

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

DESCRIPTION = "Tells a load balancer how busy this Ollama host really is."
# Commands that are modules of their own: what they do, by name.
TOOLS = {
    "drain": "take this host out of its balancer's rotation",
    "resume": "put this host back into its balancer's rotation",
    "rank": "show hosts as their balancer sees them, the next one to be chosen first",
    "doctor": "look for what is wrong on this host, and say what to do",
    "warm": "have Ollama load a model before the first request waits for it",
}
EXAMPLES = """\
examples:
  ollama-metrics serve
  ollama-metrics serve --listen '[::]:11435' --window 30
  OLLAMA_METRICS_EXPECTED_GPUS=4 ollama-metrics serve
  ollama-metrics check --config /etc/ollama-metrics/environment
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
        _stay_with_this_version()
    argv = sys.argv[1:] if arguments is None else list(arguments)
    environment = os.environ if environ is None else environ
    from .errors import ConfigError, ListenError

    try:
        if argv and argv[0] in TOOLS:
            if arguments is None:
                _end_at_once_when_interrupted()
            code: int = _tool(argv[0]).run(_ask_argparse(argv, environment), environment)
            return code
        command, config, format = _parse(argv, environment)
        if command == "serve":
            from .daemon import Daemon

            return Daemon(config, environment, argv[1:] if arguments is None else None).run()
        if command == "check":
            return _check(config, environment)
        if arguments is None:
            _end_at_once_when_interrupted()
        return _once(config, environment, format)
    except ConfigError as error:
        print(f"ollama-metrics: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ListenError as error:
        print(f"ollama-metrics: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _stay_with_this_version() -> None:
    """Have later imports come from where the first ones came from.

    The path may lead over a symbolic link that an upgrade has pointed to another version by then.
    """
    for paths in (sys.path, sys.modules[__name__.rpartition(".")[0]].__path__):
        paths[:] = map(os.path.realpath, paths)


def _end_at_once_when_interrupted() -> None:
    """Have SIGINT be no exception, which an import that it interrupts may swallow. Ignored, it stays so."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))


# -- arguments ---------------------------------------------------------------------------------------------------------


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, Config, Optional[str]]:
    from .arguments import plain_options
    from .config import CONFIG_VARIABLE, config_file, load

    options = plain_options(argv)
    given = {"command": "serve", **options} if options is not None else _ask_argparse(argv, environ)
    path = config_file(given, environ)
    file = None
    if path is not None:
        from .config_file import read_config_file

        file = read_config_file(path, "--config" if given["config"] else CONFIG_VARIABLE)
    name = given["command"]
    return name, load(given, environ, name != "once", file), given.get("format")


def _ask_argparse(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """The command, and the texts of its options by name. For help and for a mistake, raises SystemExit."""
    import argparse

    from . import __version__
    from .settings import SETTINGS

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
        "SIGHUP reads the configuration anew and keeps all connections.\n"
        "Exit codes: 0 ended by a signal, 1 cannot serve, 2 bad usage.",
    )
    check = command(
        "check",
        "say whether `serve` would accept its options and settings",
        "Exit codes: 0 it would, 2 it would not.",
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
    for name, help in TOOLS.items():
        tool = _tool(name) if argv[:1] == [name] else None
        sub = command(name, help, tool.EPILOG if tool is not None else "")
        if tool is not None:  # only its own help and mistakes need its options
            tool.add_options(sub)
    for setting in SETTINGS:
        for sub in (serve, check) if setting.serve_only else (serve, check, once):
            # `--orca` by itself is `--orca on`.
            bare: Any = {"nargs": "?", "const": "on"} if setting.metavar == "on|off" else {}
            sub.add_argument(
                setting.option,
                metavar=setting.metavar,
                action="append" if setting.repeatable else "store",
                **bare,
                help=f"{setting.help} (default: {setting.default_text})".replace("%", "%%"),
            )
    return vars(parser.parse_args(argv))


def _tool(name: str) -> Any:
    """The module of a command: its `EPILOG`, `add_options(parser)` and `run(options, environ)` -> exit code.

    A `run` may raise ConfigError (exit code 2) and KeyboardInterrupt.
    """
    if name == "rank":
        from . import rank_command

        return rank_command
    if name == "doctor":
        from . import doctor_command

        return doctor_command
    if name == "warm":
        from . import warm_command

        return warm_command
    from . import drain_command, resume_command

    return drain_command if name == "drain" else resume_command


def _columns(environ: Mapping[str, str]) -> int:
    text = environ.get("COLUMNS", "")
    return max(50, int(text)) if text.isdecimal() and len(text) < 5 else 79


def _check(config: Config, environ: Mapping[str, str]) -> int:
    """What `serve` would do before it is ready, without reading anything of this host.

    To the daemon that asks before it is executed anew (renewal.py) it says, too, whether the
    addresses can be listened on.
    """
    # A broken installation shows here: what `serve` imports at any time is imported by these.
    from . import (  # noqa: F401
        agent_check,
        daemon,
        drain,
        endpoints,
        expectation,
        gpu_collector,
        heartbeat,
        history,
        host,
        log_journal,
        log_tally,
        ollama_collector,
        ollama_expectation,
        ollama_processes,
        renewal,
        sampler,
        sampling,
        server,
        service_manager,
        status_log,
    )
    from .handover import handed_over
    from .listener import PASSED, listen

    asking = handed_over(environ, os.getppid())
    if asking is not None:
        addresses = config.listen if PASSED not in dict(asking.listeners) else ()
        checks = (config.agent_check,) if config.agent_check is not None else ()
        listen((*addresses, *checks), asking.listeners)
    print("ollama-metrics: the configuration is usable")
    return EXIT_OK


def _once(config: Config, environ: Mapping[str, str], format: Optional[str]) -> int:
    from .log import Log
    from .sampling import Sampling

    sampling = Sampling(
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
