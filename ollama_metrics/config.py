"""Every setting: its option, its environment variable, its default and what is accepted; no I/O.

Defaults < file < environment < command line. `SETTINGS` is the one list: the parser, `--help`, the
environment and docs/CONFIGURATION.md come from it.
"""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass

from .errors import ConfigError
from .expectation import MOST_GPUS
from .log import LEVELS
from .policy import ON_FAILURE
from .window import LONGEST_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Callable, Optional

VARIABLE_PREFIX = "OLLAMA_METRICS_"
LEAST_INTERVAL, LONGEST_INTERVAL = 0.1, 60.0


@dataclass(frozen=True)
class Address:
    """Where to listen: a host name or address (IPv6 without brackets) and a port, 0 for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Setting:
    """One setting.

    `parse` turns the text of an option or a variable into the value and raises ValueError
    otherwise; `accepted` is the end of the sentence that the user gets then. A `repeatable` option
    may be given several times, its variable holds several values apart by commas or spaces.
    """

    option: str
    metavar: str
    default: Any
    default_text: str
    help: str
    accepted: str
    parse: Callable[[str], Any]
    repeatable: bool = False
    serve_only: bool = False

    @property
    def name(self) -> str:
        """The attribute of Config that holds it."""
        return self.option[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that is its twin."""
        return VARIABLE_PREFIX + self.name.upper()


@dataclass(frozen=True)
class Config:
    """All settings, valid by themselves and together."""

    config: Optional[str] = None
    listen: tuple[Address, ...] = (Address("0.0.0.0", 11435),)
    interval: float = 1.0
    window: float = 15.0
    expected_gpus: Optional[int] = None
    state_dir: Optional[str] = None
    on_failure: str = ON_FAILURE[0]
    log_level: str = "info"


def parse_address(text: str) -> Address:
    """`ADDR:PORT`, `[IPv6]:PORT` or `NAME:PORT`. Raises ValueError."""
    host, colon, port = text.strip().rpartition(":")
    if (
        not colon
        or not host
        or not (port.isascii() and port.isdigit())
        or len(port) > 5
        or int(port) > 65535
    ):
        raise ValueError(text)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError(text)
    elif ":" in host:
        raise ValueError(text)
    if not host or not host.isprintable() or any(character in host for character in " []/@"):
        raise ValueError(text)
    if host.replace(".", "").isdigit() and not _is_ipv4(host):
        raise ValueError(text)
    return Address(host, int(port))


def _is_ipv4(host: str) -> bool:
    parts = host.split(".")
    return len(parts) == 4 and all(
        part.isdigit() and len(part) <= 3 and int(part) <= 255 for part in parts
    )


def _is_ipv6(host: str) -> bool:
    """Whether `host` is an IPv6 address, with or without the zone of a link-local one (`%eth0`)."""
    address, percent, zone = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):  # ValueError: not ASCII, or a NUL
        return False
    return bool(zone) or not percent


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = math.nan if "_" in text else float(text)  # 1_0 is Python's, not a person's
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(text)
        return value

    return parse


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return parse


def _gpus(text: str) -> Optional[int]:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 3 or int(text) > MOST_GPUS:
        raise ValueError(text)
    return int(text)


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(text)
    return text


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "--config",
        "FILE",
        Config.config,
        "none",
        "file of settings, a NAME=VALUE in each line, with the names of the environment variables.",
        "give the path of a file of settings",
        _path,
    ),
    Setting(
        "--listen",
        "ADDR:PORT",
        Config.listen,
        "0.0.0.0:11435",
        "address to serve on; may be repeated. [::]:11435 is IPv6, and IPv4 too where the system allows. "
        "Port 0 picks a free one, which the log names. 11434 is Ollama's own port.",
        "give ADDR:PORT with a port from 0 to 65535, such as 0.0.0.0:11435 or [::]:11435",
        parse_address,
        repeatable=True,
        serve_only=True,
    ),
    Setting(
        "--interval",
        "SECONDS",
        Config.interval,
        "1",
        "time between two samples.",
        f"give seconds from {LEAST_INTERVAL:g} to {LONGEST_INTERVAL:g}, such as 1",
        _seconds(LEAST_INTERVAL, LONGEST_INTERVAL),
    ),
    Setting(
        "--window",
        "SECONDS",
        Config.window,
        "15",
        "time over which utilization is averaged.",
        f"give seconds from the interval to {LONGEST_SECONDS:g}, such as 15",
        _seconds(LEAST_INTERVAL, LONGEST_SECONDS),
        serve_only=True,
    ),
    Setting(
        "--expected-gpus",
        "auto|N",
        Config.expected_gpus,
        "auto",
        "GPUs that this host should have; one that is missing looks busy. auto remembers the most ever seen, "
        "across restarts. 0 leaves GPUs alone.",
        f"give auto or a number from 0 to {MOST_GPUS}",
        _gpus,
    ),
    Setting(
        "--state-dir",
        "DIR",
        Config.state_dir,
        "systemd's STATE_DIRECTORY, else ~/.local/state/ollama-metrics",
        "where the number of GPUs is remembered.",
        "give the path of a directory",
        _path,
    ),
    Setting(
        "--on-failure",
        "POLICY",
        Config.on_failure,
        ON_FAILURE[0],
        "what a balancer gets from a failing host: pessimistic (the highest weight, 500), error (the same with "
        "status 503) or last-good (the last good numbers for two minutes, then pessimistic).",
        f"give one of {', '.join(ON_FAILURE)}",
        _one_of(ON_FAILURE),
    ),
    Setting(
        "--log-level",
        "LEVEL",
        Config.log_level,
        "info",
        f"least urgent messages to log: {', '.join(LEVELS)}.",
        f"give one of {', '.join(LEVELS)}",
        _one_of(tuple(LEVELS)),
    ),
)


CONFIG_VARIABLE = f"{VARIABLE_PREFIX}CONFIG"
# No setting: what a program leaves to the one that is executed anew in its process (handover.py).
HANDOVER_VARIABLE = f"{VARIABLE_PREFIX}HANDOVER"
# What may stand in a file of settings.
FILE_VARIABLES: tuple[str, ...] = tuple(
    setting.variable for setting in SETTINGS if setting.name != "config"
)


def config_file(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Optional[str]:
    """The path of the file of settings, if one is given."""
    path = arguments.get("config") or environ.get(CONFIG_VARIABLE, "").strip()
    return str(path) if path else None


def load(
    arguments: Mapping[str, Any],
    environ: Mapping[str, str],
    serve: bool = True,
    file: Optional[Mapping[str, str]] = None,
) -> Config:
    """The configuration out of `arguments` (setting name -> text, list of texts, or None), environment and `file`.

    An empty variable counts as not set. Raises ConfigError, which names the option or the variable.
    """
    values: dict[str, Any] = {}
    sources: dict[str, tuple[str, str]] = {}
    for setting in SETTINGS:
        if setting.serve_only and not serve:
            continue
        given: Any = arguments.get(setting.name)
        source = setting.option
        if given is None:
            source, text = setting.variable, environ.get(setting.variable, "").strip()
            if not text and file is not None:
                text = file.get(setting.variable, "").strip()
                source += f" in {config_file(arguments, environ)}"
            if text:
                # Nothing but commas is no address, which the parser is to say.
                given = (text.replace(",", " ").split() or [text]) if setting.repeatable else text
        if given is None:
            continue
        texts = given if setting.repeatable else [given]
        parsed = []
        for text in texts:
            try:
                parsed.append(setting.parse(text))
            except ValueError:
                raise ConfigError(source, text, setting.accepted) from None
        for number, value in enumerate(parsed):
            if value in parsed[:number] and value != Address(value.host, 0):
                raise ConfigError(source, texts[number], "it is given twice; give it once")
        values[setting.name] = tuple(parsed) if setting.repeatable else parsed[0]
        sources[setting.name] = (source, texts[-1])
    if values.get("state_dir") is None:
        values["state_dir"] = default_state_dir(environ)
    config = Config(**values)
    if serve and config.window < config.interval:
        # Whichever the user gave is at fault; with both, the window.
        if "window" in sources:
            source, text = sources["window"]
            raise ConfigError(
                source, text, f"give at least the interval, {config.interval:g} seconds"
            )
        source, text = sources["interval"]
        raise ConfigError(
            source, text, f"give at most the window, {config.window:g} seconds, or set --window too"
        )
    return config


def default_state_dir(environ: Mapping[str, str]) -> Optional[str]:
    """systemd's STATE_DIRECTORY (the first, if several), else the XDG state folder; None without a home.

    Source: systemd.exec(5), XDG Base Directory Specification 0.8.
    """
    for first in environ.get("STATE_DIRECTORY", "").split(":"):
        if first.startswith("/"):
            return first
    base = environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return f"{base.rstrip('/')}/ollama-metrics"
    home = environ.get("HOME", "")
    return f"{home.rstrip('/')}/.local/state/ollama-metrics" if home.startswith("/") else None
