"""`ollama-metrics doctor`: looks at all that an operator would check by hand, and says what to do about it.

Here is what is looked at and in which order, and how it is shown; what is right and what is wrong is
in the checkup's modules.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from functools import cached_property, partial

from . import __version__
from .checkup import (
    OK,
    PROBLEM,
    SKIPPED,
    VERDICTS,
    WARNING,
    Agent,
    Finding,
    NoAnswer,
    Ollama,
    ask_agent,
    ask_ollama,
    ask_program,
    ask_user,
    examine,
)
from .checkup_driver import (
    ask_driver,
    check_binding,
    check_gpus,
    check_nodes,
    check_persistence,
    check_versions,
)
from .checkup_service import (
    Owner,
    Unit,
    ask_unit,
    check_agent_port,
    check_clock,
    check_cost,
    check_drain,
    check_ollama,
    check_ollama_port,
    check_unit,
    check_weight,
    owner,
)
from .config import CONFIG_VARIABLE, config_file, load
from .config_file import read_config_file
from .drain_command import SERVICE_SETTINGS
from .errors import ConfigError
from .nvml import traces
from .ollama_url import DEFAULT as DEFAULT_OLLAMA
from .ollama_url import OllamaUrl
from .settings import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Optional

    from .checkup import User
    from .checkup_driver import Driver

EPILOG = """\
Nothing is changed. Run it as root: who listens on a port of another user's is
hidden from others, and it says so. Settings come as for the service, and from
the environment of this shell.
Exit codes: 0 nothing is wrong (there may be warnings), 1 there is a problem,
2 bad usage.
"""
DEFAULT_USER = "ollama"
_DEFAULT_SECONDS, _MOST_SECONDS = 20.0, 600.0
# A balancer has no more patience.
_ANSWER_SECONDS = 5.0
_LABELS = {OK: "ok", WARNING: "WARN", PROBLEM: "FAIL", SKIPPED: "skip"}
_COLOURS = {OK: "32", WARNING: "33", PROBLEM: "1;31", SKIPPED: "2"}
_NAME_WIDTH = 13


def add_options(parser: Any) -> None:
    """The options of this command."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"the service's file of settings (default: {SERVICE_SETTINGS}, if it is there)",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help=f"whose right to the GPUs is looked at (default: the service's user, else {DEFAULT_USER})",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        help=f"how long the driver has to answer; all others have less (default: {_DEFAULT_SECONDS:g})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--verbose", action="store_true", help="say what each line was read from")


def run(options: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Look at this host; returns the exit code. Raises ConfigError."""
    seconds = _seconds(options["timeout"])
    config, settings = read_settings(options["config"], environ)
    host = Host(config, options["user"], seconds, environ, os.geteuid() == 0)
    if options["user"]:
        with contextlib.suppress(NoAnswer):  # then its check says so
            if host.user is None:
                raise ConfigError("--user", options["user"], "give the name of a user of this host")
    shown = _Page(environ, bool(options["verbose"]))
    findings = []
    for finding in examine([("settings", lambda: settings), *host.checks()]):
        findings.append(finding)
        if not options["json"]:
            shown.line(finding)
    if options["json"]:
        shown.document(findings)
    else:
        shown.summary(findings, host.root)
    return 1 if any(finding.verdict == PROBLEM for finding in findings) else 0


def _seconds(text: Optional[str]) -> float:
    try:
        value = _DEFAULT_SECONDS if text is None else float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= _MOST_SECONDS:
        raise ConfigError("--timeout", str(text), f"give seconds from 0.1 to {_MOST_SECONDS:g}")
    return value


def read_settings(
    given: Optional[str],
    environ: Mapping[str, str],
    default: str = SERVICE_SETTINGS,
    may_read: Callable[[str], bool] = lambda path: os.access(path, os.R_OK),
) -> tuple[Config, Finding]:
    """The settings as the service has them, the defaults where those cannot be used; and what is to be said.

    Raises ConfigError for a file that was `given` and is not there.
    """
    name, aside = "settings", " (the lines below go by the defaults)"
    arguments: dict[str, Any] = {"config": given}
    path, source = config_file(arguments, environ), "--config"
    if given is None and path is not None:
        source = CONFIG_VARIABLE
    elif path is None and os.path.lexists(default):
        path = arguments["config"] = default
    if given is not None and not os.path.lexists(given):
        raise ConfigError("--config", given, "there is no such file")
    if path is not None and os.path.lexists(path) and not may_read(path):
        text = f"{path} may not be read by this user{aside}"
        remedy = "run this as root; the service's user has to be able to read it"
        return Config(), Finding(name, SKIPPED, text, remedy, hidden=True)
    file = None
    try:
        if path is not None:
            file = read_config_file(path, source)
        config = load(arguments, environ, True, file)
    except ConfigError as error:
        remedy = f"correct {path or 'the environment'}, then systemctl reload ollama-metrics{aside}"
        return Config(), Finding(name, PROBLEM, str(error), remedy)
    text = f"{path}, {len(file or {})} set" if path is not None else "no file, defaults"
    own = sorted(key for key in environ if key.startswith("OLLAMA_METRICS_") and environ[key])
    if own:
        text += f"; {', '.join(own)} of this shell"
    return config, Finding(name, OK, text)


class Host:
    """This host, each thing of it asked once at most, when the first check wants it.

    `root`: this is run as root, who sees all processes.
    """

    def __init__(
        self,
        config: Config,
        user: Optional[str],
        seconds: float,
        environ: Mapping[str, str],
        root: bool,
    ) -> None:
        self._config, self._user, self._seconds, self._environ = config, user, seconds, environ
        self.root = root
        self._short = min(seconds, _ANSWER_SECONDS)
        self._ollama_url = config.ollama or DEFAULT_OLLAMA
        self._program = partial(ask_program, seconds=self._short)

    def checks(self) -> list[tuple[str, Callable[[], Finding]]]:
        """What is to be looked at, in this order."""
        config = self._config
        checks: list[tuple[str, Callable[[], Finding]]] = [
            ("service", lambda: check_unit(self.unit)),
        ]
        agents = list(dict.fromkeys(address.port for address in config.listen))
        checks += [(f"port {port}", partial(self._agent_port, port)) for port in agents]
        checks += [
            (f"port {port}", partial(self._ollama_port, port))
            for port in dict.fromkeys((DEFAULT_OLLAMA.port, self._ollama_url.port))
            if port not in agents
        ]
        checks += [
            ("Ollama", self._ollama),
            ("weight", lambda: check_weight(self.agent)),
            ("drain", lambda: check_drain(self.agent)),
        ]
        if config.expected_gpus == 0:
            text = "the agent was told to leave them alone (--expected-gpus 0)"
            checks.append(("GPUs", lambda: Finding("GPUs", SKIPPED, text)))
        else:
            library_path = self._environ.get("LD_LIBRARY_PATH", "")
            wanted = config.expected_gpus
            checks += [
                ("driver", lambda: check_versions(self.driver, wanted, "/", library_path)),
                ("GPUs", lambda: check_gpus(self.driver, wanted)),
                ("persistence", lambda: check_persistence(self.driver)),
                ("device nodes", self._nodes),
                ("pynvml", lambda: check_binding(traces())),
            ]
        return [
            *checks,
            ("clock", lambda: check_clock(self.agent, self._program)),
            ("cost", self._cost),
        ]

    @cached_property
    def unit(self) -> Unit:
        """The agent's unit."""
        return ask_unit(self._program, self._short)

    @cached_property
    def agent(self) -> Agent:
        """The agent's answer."""
        address = self._config.listen[0].from_here
        return ask_agent(OllamaUrl(address.host, address.port), self._short)

    @cached_property
    def ollama(self) -> Ollama:
        """Ollama's answer."""
        return ask_ollama(self._ollama_url, self._short)

    @cached_property
    def driver(self) -> Driver:
        """NVML's answer."""
        return ask_driver(self._seconds, self._environ)

    @cached_property
    def user(self) -> Optional[User]:
        """Whose right to the GPUs is looked at."""
        get = self.unit.properties.get
        name = self._user or get("User") or DEFAULT_USER
        groups = get("SupplementaryGroups", "").split() if name == get("User") else []
        return ask_user(name, groups, self._short)

    @cached_property
    def _expected(self) -> bool:
        """Whether Ollama has to be there: by the settings, or by the agent's memory."""
        seen = (self.agent.document or {}).get("ollama")
        remembered = isinstance(seen, dict) and seen.get("expected") is True
        return self._config.ollama_expected or (self._config.ollama is not None and remembered)

    def _agent_port(self, port: int) -> Finding:
        if port == 0:
            text = "any free one is taken; the agent's log names it"
            return Finding("port 0", SKIPPED, text)
        return check_agent_port(port, owner(port), self.agent, self.unit.main_pid, self.root)

    def _ollama_port(self, port: int) -> Finding:
        own = self._config.ollama is not None and port == self._ollama_url.port
        if own and not self.ollama.local:
            text = f"Ollama is on another host: {self._ollama_url}"
            return Finding(f"port {port}", SKIPPED, text)
        who, ollama, through = owner(port), Ollama(), Agent(None)
        here = OllamaUrl("127.0.0.1", port)
        if who.listens:
            ollama = self.ollama if own else ask_ollama(here, self._short)
        if who.name == "nginx":
            through = ask_agent(here, self._short)
        return check_ollama_port(port, who, ollama, through, own and self._expected, self.root)

    def _ollama(self) -> Finding:
        if self._config.ollama is None:
            text = "the agent was told to leave it alone (--ollama none)"
            return Finding("Ollama", SKIPPED, text)
        gpus = 0
        if self._config.expected_gpus != 0:
            gpus = sum(not gpu.lost for gpu in self.driver.gpus)
        meant = "on-cpu" in self._config.ollama_ignore
        return check_ollama(self._ollama_url, self.ollama, self._expected, gpus, meant)

    def _nodes(self) -> Finding:
        if self.user is None:
            text = f"there is no user {self._user or DEFAULT_USER} here"
            if not traces():
                return Finding("device nodes", SKIPPED, text)
            return Finding("device nodes", PROBLEM, text, "name the service's user: --user NAME")
        return check_nodes(self.user)

    def _cost(self) -> Finding:
        pid = self.unit.main_pid
        if pid is None:
            who: Owner = owner(self._config.listen[0].port) if self.agent.document else Owner(False)
            pid = who.pid
        return check_cost(pid, self.root)


class _Page:
    """Standard output, as a person or a script reads it. A reader that has had enough is no failure."""

    def __init__(self, environ: Mapping[str, str], verbose: bool) -> None:
        self._out = sys.stdout
        self._verbose = verbose
        terminal = self._out is not None and self._out.isatty()
        # https://no-color.org: whatever it says, if it says anything.
        self._coloured = (
            terminal and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"
        )

    def line(self, finding: Finding) -> None:
        """A line, and those that belong to it."""
        label = f"{_LABELS[finding.verdict]:4}"
        if self._coloured:
            label = f"\x1b[{_COLOURS[finding.verdict]}m{label}\x1b[0m"
        self._print(f"{label}  {finding.check:{_NAME_WIDTH}} {finding.text}")
        indent = " " * (6 + _NAME_WIDTH + 1)
        if finding.remedy and finding.verdict != OK:
            self._print(f"{indent}-> {finding.remedy}")
        if self._verbose:
            for detail in finding.details:
                self._print(f"{indent}   {detail}")

    def summary(self, findings: Sequence[Finding], root: bool) -> None:
        """The last line."""
        counts = _counts(findings)
        said = [
            f"{counts[verdict]} {word}{'' if counts[verdict] == 1 else 's'}"
            for verdict, word in ((PROBLEM, "problem"), (WARNING, "warning"))
            if counts[verdict]
        ]
        self._print("")
        self._print(
            f"{', '.join(said) or 'Nothing is wrong'}; {counts[OK]} ok, {counts[SKIPPED]} skipped."
        )
        hidden = [finding.check for finding in findings if finding.hidden]
        if hidden and not root:
            self._print(f"Not all could be seen ({', '.join(hidden)}); root sees more.")

    def document(self, findings: Sequence[Finding]) -> None:
        """The same for a script."""
        counts = _counts(findings)
        worst = next((one for one in (PROBLEM, WARNING) if counts[one]), OK)
        checks = [{**vars(finding), "details": list(finding.details)} for finding in findings]
        document = {
            "verdict": worst,
            "counts": counts,
            "version": __version__,
            "checks": checks,
        }
        self._print(json.dumps(document, indent=2))

    def _print(self, line: str) -> None:
        if self._out is None:
            return
        encoding = self._out.encoding or "utf-8"
        try:
            print(
                line.encode(encoding, "backslashreplace").decode(encoding),
                file=self._out,
                flush=True,
            )
        except BrokenPipeError:
            # Python would complain once more when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            self._out = None


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {
        verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS
    }
