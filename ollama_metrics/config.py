"""The configuration, out of the command line, the environment and a file of settings; no I/O.

Defaults < file < environment < command line.
"""

from __future__ import annotations

from .errors import ConfigError
from .ollama_url import DEFAULT as DEFAULT_OLLAMA
from .ollama_url import OllamaUrl, from_ollama_host
from .option_values import Address
from .settings import SETTINGS, VARIABLE_PREFIX, Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Optional

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
            if value in parsed[:number] and value != Address(getattr(value, "host", ""), 0):
                raise ConfigError(source, texts[number], "it is given twice; give it once")
        values[setting.name] = tuple(parsed) if setting.repeatable else parsed[0]
        sources[setting.name] = (source, texts[-1])
    if "none" in values.get("ollama_ignore", ()):
        values["ollama_ignore"] = ()
    ollama = values.pop("ollama", "auto")
    values["ollama_expected"] = isinstance(ollama, OllamaUrl)
    values["ollama"] = _ollama_of(environ) if ollama == "auto" else ollama
    if values.get("state_dir") is None:
        values["state_dir"] = default_state_dir(environ)
    config = Config(**values)
    if config.ollama is None:
        _refuse_without_ollama(config, sources)
    if config.agent_check is not None and config.agent_check.port:
        taken = next((one for one in config.listen if one == config.agent_check), None)
        if taken is not None:
            raise ConfigError(
                *sources["agent_check"], "--listen has that address already; give another port"
            )
    if serve and "agent_check_window" in sources and config.agent_check_window < config.interval:
        raise ConfigError(
            *sources["agent_check_window"],
            f"give at least the interval, {config.interval:g} seconds",
        )
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


def _refuse_without_ollama(config: Config, sources: Mapping[str, tuple[str, str]]) -> None:
    """What counts requests in flight cannot do without who knows them."""
    for wanted, name in ((config.queue_aware, "queue_aware"), (config.weight.in_flight, "weight")):
        if wanted:
            source, text = sources[name]
            raise ConfigError(
                source,
                text,
                "requests in flight are not known with --ollama none; set --ollama too",
            )


def _ollama_of(environ: Mapping[str, str]) -> OllamaUrl:
    """Where Ollama's own client would look for it. Raises ConfigError."""
    text = environ.get("OLLAMA_HOST", "").strip()
    try:
        return from_ollama_host(text) if text else DEFAULT_OLLAMA
    except ValueError:
        raise ConfigError(
            "OLLAMA_HOST",
            text,
            "set --ollama to Ollama's own address, such as http://127.0.0.1:11434",
        ) from None


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
