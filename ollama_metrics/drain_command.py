"""`ollama-metrics drain`: writes the file that drains this host, and sees to it that the agent has seen it."""

from __future__ import annotations

import os
import sys
import time

from .checkup import tell_agent
from .config import CONFIG_VARIABLE, config_file, load
from .config_file import read_config_file
from .drain import NO_REASON, DrainFile, when
from .errors import ConfigError
from .ollama_url import OllamaUrl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable, Optional

    from .settings import Config

EPILOG = """\
The balancer sees it at its next poll: weight 500, status draining, /health 503,
`drain` for HAProxy. It holds across restarts, until `ollama-metrics resume` or
for as long as --for says. Run it as root or as the service's user.
A balancer may send requests until it has seen the drain, so --wait believes that
nothing is in flight only some time later (--settle).
Exit codes: 0 drained and seen by the agent (with --wait: and nothing is in
flight), 1 it could not be done or was not seen, 2 bad usage.
"""
# Where install.sh has the service keep its settings and its state.
SERVICE_SETTINGS = "/etc/ollama-metrics/environment"
SERVICE_STATE = "/var/lib/ollama-metrics"
_OF_USE = (
    *("OLLAMA_METRICS_LISTEN", "OLLAMA_METRICS_STATE_DIR", "OLLAMA_METRICS_INTERVAL"),
    *("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"),
)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_SECONDS = 366 * 86400.0
# A little more than the 30 s between two polls of a balancer.
_SETTLE_SECONDS = 35.0
# The agent looks at the file with each sample, and its answer to this may come late.
_SEEN_SECONDS = 5.0
_POLL_SECONDS = 0.5


def add_options(parser: Any) -> None:
    """The options of this command."""
    parser.add_argument(
        "--reason", default=NO_REASON, help="why, for those who see the host drained"
    )
    parser.add_argument(
        "--for",
        dest="duration",
        metavar="TIME",
        help="end by itself after this time, such as 90s, 30m, 2h or 1d (default: never)",
    )
    parser.add_argument(
        "--wait", action="store_true", help="return when Ollama has no request in flight any more"
    )
    parser.add_argument(
        "--settle",
        metavar="TIME",
        default=f"{_SETTLE_SECONDS:g}s",
        help="with --wait: how long after the drain a balancer may still send requests (default: %(default)s)",
    )
    add_service_options(parser)


def add_service_options(parser: Any) -> None:
    """The options that say which service is meant; also of `resume`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"the service's file of settings (default: {SERVICE_SETTINGS}, if it is there)",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help=f"the service's state directory (default: {SERVICE_STATE}, if it is there)",
    )


def run(options: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Drain this host; returns the exit code. Raises ConfigError."""
    until = None
    if options["duration"] is not None:
        until = round(time.time() + duration(options["duration"]), 3)
    settle = duration(options["settle"], "--settle", 0.0)
    service = Service(options, environ)
    try:
        drain = service.file.begin(options["reason"], until)
    except OSError as error:
        return fail(f"{service.file.path} cannot be written: {error}; {WHO}")
    ends = "until `ollama-metrics resume`" if until is None else f"until {when(until)}"
    print(f"drained {ends}: {drain.reason}", flush=True)
    begun = time.monotonic()
    seen = service.await_status(lambda document: document.get("drain") is not None)
    if seen is False:
        return fail(
            f"the agent at {service.url} does not see it: is {service.file.path} its state directory's?"
            " set --state-dir"
        )
    if seen is None:
        return fail(
            f"the agent at {service.url} does not answer; if {service.file.path} is its state directory's"
            " it is drained when it starts"
        )
    return service.await_nothing_in_flight(begun, settle) if options["wait"] else 0


WHO = "run this as root or as the service's user, or set --state-dir"


def fail(sentence: str) -> int:
    """Say what went wrong; the exit code for it."""
    print(f"ollama-metrics: {sentence}", file=sys.stderr)
    return 1


def duration(text: str, option: str = "--for", least: float = 1.0) -> float:
    """Seconds of `90s`, `30m`, `2h`, `1d` or of a number of seconds. Raises ConfigError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        plain = number.isascii() and number.replace(".", "", 1).isdecimal()
        seconds = float(number) * _UNITS[unit] if plain else -1.0
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= _LONGEST_SECONDS:
        raise ConfigError(option, text, f"give a time from {least:g}s to 366d, such as 30m")
    return seconds


class Service:
    """The agent that runs as a service on this host: its settings, its drain file, its answers."""

    def __init__(self, options: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        given = {"config": options["config"], "state_dir": options["state_dir"]}
        if config_file(given, environ) is None and os.access(SERVICE_SETTINGS, os.R_OK):
            given["config"] = SERVICE_SETTINGS
        path, file = config_file(given, environ), {}
        if path is not None:
            file = _of_use(
                read_config_file(path, "--config" if options["config"] else CONFIG_VARIABLE)
            )
        named = options["state_dir"] or {**file, **environ}.get("OLLAMA_METRICS_STATE_DIR")
        if not named and "STATE_DIRECTORY" not in environ and os.path.isdir(SERVICE_STATE):
            given["state_dir"] = SERVICE_STATE
        config: Config = load(given, _of_use(environ), True, file)
        self.file = DrainFile(config.state_dir)
        self._seen_seconds = _SEEN_SECONDS + config.interval
        address = config.listen[0].from_here
        self.url = OllamaUrl(address.host, address.port)

    def document(self) -> Optional[dict[str, Any]]:
        """What the agent answers now; None where it does not."""
        return tell_agent(self.url.host, self.url.port, _SEEN_SECONDS)[0]

    def await_status(self, seen: Callable[[dict[str, Any]], bool]) -> Optional[bool]:
        """Whether the agent's answer becomes so within some seconds; None where it does not answer."""
        until = time.monotonic() + self._seen_seconds
        while (document := self.document()) is not None:
            if seen(document):
                return True
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_SECONDS)
        return None

    def await_nothing_in_flight(self, begun: float, settle: float) -> int:
        """Wait until Ollama, looked at `settle` seconds after `begun` (monotonic), has no request; the exit code."""
        told: object = None
        while True:
            document = self.document()
            if document is None:
                return fail(f"the agent at {self.url} does not answer any more")
            ollama = document.get("ollama")
            if not isinstance(ollama, dict):
                return fail(
                    "the agent leaves Ollama alone (--ollama none): nobody can tell what is in flight"
                )
            part = (document.get("collectors") or {}).get("ollama_connections") or {}
            count, age = ollama.get("in_flight"), part.get("age_seconds")
            why = str(part.get("error") or "not counted yet")
            if count is None and why.startswith("nothing listens") and ollama.get("up") is False:
                print("Ollama does not run: nothing is in flight")
                return 0
            if count is None:
                return fail(f"requests in flight are not known: {why}")
            settled = age is not None and age < time.monotonic() - begun - settle
            if count == 0 and settled:
                print("nothing is in flight")
                return 0
            if count != told:
                told = count
                waits = f", until the balancer has seen it ({settle:g} s)" if count == 0 else ""
                print(f"{count} in flight{waits}", flush=True)
            time.sleep(_POLL_SECONDS)


def _of_use(settings: Mapping[str, str]) -> dict[str, str]:
    """Those that say where the agent is: a mistake in another one must not keep a host from being drained."""
    return {
        name: text for name, text in settings.items() if name in _OF_USE or name == CONFIG_VARIABLE
    }
