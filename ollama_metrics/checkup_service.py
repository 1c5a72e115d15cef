"""What can be wrong around the agent as a service: its port and Ollama's, its unit, its answers, its cost, the clock.

Files are those of proc(5); systemd is asked through systemctl(1).
"""

from __future__ import annotations

import os

from .checkup import OK, PROBLEM, SKIPPED, WARNING, Finding, balance_of, read_text
from .drain import when
from .frozen import dataclass
from .processes import owner_of
from .tcp_connections import ConnectionTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable, Optional

    from .checkup import Agent, Ollama, Said
    from .ollama_url import OllamaUrl
    from .tcp_connections import Connections

UNIT = "ollama-metrics.service"
_PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "StatusText", "MainPID"),
    *("UnitFileState", "User", "SupplementaryGroups", "PrivateDevices", "ActiveEnterTimestamp"),
)
_JOURNAL = "journalctl --no-pager -u ollama-metrics -n 50"
# The unit's MemoryMax= is 256 MB, and with a driver's library it needs some 60.
_MUCH_MEMORY, _MUCH_CPU = 128e6, 0.05
_LEAST_AGE_SECONDS = 60.0
_SLOW_SECONDS = 2.0
_MOST_SKEW_SECONDS = 5.0
# systemd takes a clock for synchronized below this (ntp_synced in its timedated.c), whatever STA_UNSYNC says.
_UNSYNCHRONIZED_MICROSECONDS = 16_000_000


# -- Ollama ---------------------------------------------------------------------------------------------------------


def check_ollama(
    url: OllamaUrl, ollama: Ollama, expected: bool, gpus: int, on_cpu_is_meant: bool
) -> Finding:
    """Whether Ollama answers, and whether its models are on the GPUs, of which `gpus` answer."""
    name = "Ollama"
    if ollama.error:
        text = ollama.error
        if ollama.version:
            return Finding(name, WARNING, f"{ollama.version}, but {text}", "ollama ps")
        if expected:
            return Finding(
                name, PROBLEM, text, "systemctl status ollama; journalctl -u ollama -n 50"
            )
        remedy = "systemctl start ollama; elsewhere: OLLAMA_METRICS_OLLAMA=URL; none here: the same =none"
        return Finding(name, WARNING, f"{text} (and none is expected)", remedy)
    text = f"{ollama.version} at {url}, {1000 * ollama.rtt_seconds:.1f} ms"
    shares = [f"{model} {100 * share:.0f} % on GPUs" for model, share in ollama.models]
    text += f"; {', '.join(shares)}" if shares else "; no model is loaded"
    slow = ollama.rtt_seconds > _SLOW_SECONDS
    if slow:
        return Finding(
            name, WARNING, f"it is slow: {text}", "look for swapping and a busy CPU: top"
        )
    aside = [model for model, share in ollama.models if share < 0.995]
    if aside and gpus and not on_cpu_is_meant:
        remedy = (
            f"ollama stop {aside[0]}, and load it again; still so: journalctl -u ollama says why "
            "(too little free memory, no GPU found); on purpose: OLLAMA_METRICS_OLLAMA_IGNORE=on-cpu"
        )
        return Finding(name, WARNING, text, remedy)
    return Finding(name, OK, text)


# -- who listens -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Owner:
    """Who listens on a port: nobody, or a process as far as it can be seen (`pid` None: it cannot)."""

    listens: bool
    pid: Optional[int] = None
    name: str = ""

    def __str__(self) -> str:
        if not self.listens:
            return "nobody listens"
        return "a process that cannot be seen" if self.pid is None else f"{self.name} ({self.pid})"


def owner(
    port: int, proc: str = "/proc", count: Optional[Callable[[int], Connections]] = None
) -> Owner:
    """Who listens on a port of this network namespace. Raises CollectorError."""
    found = (ConnectionTable(proc).count if count is None else count)(port)
    if not found.listeners:
        return Owner(False)
    pid = owner_of(found.listeners, proc)
    if pid is None:
        return Owner(True)
    return Owner(True, pid, (read_text(f"{proc}/{pid}/comm") or "").strip() or "without a name")


def check_agent_port(
    port: int, who: Owner, agent: Agent, main_pid: Optional[int], root: bool
) -> Finding:
    """Whether the agent has its port, and whether it is the service's; `main_pid` is that of a unit that runs."""
    name = f"port {port}"
    if not who.listens:
        return Finding(
            name,
            PROBLEM,
            "nobody listens: the agent does not run, or listens elsewhere",
            "systemctl start ollama-metrics; OLLAMA_METRICS_LISTEN says where it listens",
        )
    hidden = who.pid is None and not root
    if agent.document is None:
        text = f"{who} listens, and does not answer as the agent: {agent.error}"
        return Finding(name, PROBLEM, text, f"ss -ltnp 'sport = :{port}'", hidden=hidden)
    if main_pid and who.pid is not None and who.pid != main_pid:
        return Finding(
            name,
            WARNING,
            f"the agent, {who}, which is not the service's process {main_pid}",
            f"kill {who.pid}, and systemctl restart ollama-metrics",
        )
    return Finding(name, OK, f"the agent, {who}", hidden=hidden)


def check_ollama_port(
    port: int, who: Owner, ollama: Ollama, through: Agent, needed: bool, root: bool
) -> Finding:
    """Whether Ollama has a port, or the front; `ollama` and `through` are what Ollama and agent answer on it."""
    name = f"port {port}"
    hidden = who.pid is None and not root
    if not who.listens:
        if not needed:
            return Finding(name, OK, "nobody listens, and nobody has to")
        remedy = "systemctl start ollama; where it listens: systemctl cat ollama (OLLAMA_HOST)"
        return Finding(name, PROBLEM, "nobody listens: Ollama does not run here", remedy)
    if not ollama.version:
        return Finding(
            name,
            PROBLEM if needed else WARNING,
            f"{who} listens, and Ollama does not answer there: {ollama.error}",
            f"ss -ltnp 'sport = :{port}'; is it Ollama: systemctl restart ollama",
            hidden=hidden,
        )
    if who.name == "nginx":
        if through.document is None:
            return Finding(
                name,
                WARNING,
                f"{who} leads to Ollama, and its /metrics not to the agent: {through.error}",
                "./install.sh --front nginx makes one that does",
            )
        return Finding(name, OK, f"{who}, with Ollama and the agent behind it")
    through_ = "" if who.pid is None or who.name == "ollama" else ", and Ollama answers through it"
    return Finding(name, OK, f"{who}{through_}", hidden=hidden)


# -- the unit ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """The properties of a unit by systemd's names, or why they are not known."""

    properties: Mapping[str, str]
    problem: str = ""

    @property
    def main_pid(self) -> Optional[int]:
        """The process of a service that runs."""
        text = self.properties.get("MainPID", "")
        return int(text) or None if text.isascii() and text.isdigit() else None


def ask_unit(program: Callable[..., Said], seconds: float, root: str = "/") -> Unit:
    """What systemd knows of the agent's unit. Source: sd_booted(3), systemctl(1)."""
    if not os.path.isdir(f"{root}run/systemd/system"):
        return Unit({}, "systemd does not run here")
    said = program(
        "systemctl", "show", UNIT, f"--property={','.join(_PROPERTIES)}", seconds=seconds
    )
    if said.problem is not None:
        return Unit({}, said.problem)
    pairs = (line.partition("=") for line in said.text.splitlines())
    return Unit({key: value for key, equals, value in pairs if equals and key in _PROPERTIES})


def check_unit(unit: Unit) -> Finding:
    """Whether systemd runs the agent, and has had to start it again."""
    name = "service"
    if not unit.properties:
        return Finding(name, SKIPPED, unit.problem or "systemd does not say anything of it")
    get = unit.properties.get
    if get("LoadState") != "loaded":
        text = f"systemd has no {UNIT} ({get('LoadState', 'unknown')})"
        return Finding(name, SKIPPED, text, "./install.sh installs it")
    state = f"{get('ActiveState', 'unknown')} ({get('SubState', 'unknown')})"
    status, result, restarts = get("StatusText"), get("Result", "success"), get("NRestarts") or "0"
    often = f"restarted {restarts} time{'' if restarts == '1' else 's'} by systemd"
    details = tuple(f"{key}={value}" for key, value in sorted(unit.properties.items()) if value)
    if get("SubState") == "auto-restart" or get("ActiveState") == "failed" or result != "success":
        text = f"{state}, the last run ended with {result}, {often}"
        return Finding(name, PROBLEM, text, _JOURNAL, details)
    if get("ActiveState") == "inactive":
        start = "enable --now" if get("UnitFileState") == "disabled" else "start"
        return Finding(name, PROBLEM, state, f"systemctl {start} ollama-metrics", details)
    if get("PrivateDevices") == "yes":
        remedy = (
            "systemctl edit ollama-metrics: PrivateDevices=no; systemctl restart ollama-metrics"
        )
        return Finding(name, PROBLEM, "PrivateDevices=yes hides every GPU", remedy, details)
    if get("ActiveState") not in ("active", "reloading"):
        text = state + (f": {status}" if status else "")
        return Finding(name, WARNING, text, _JOURNAL, details)
    since = get("ActiveEnterTimestamp")
    text = state + (f" since {since}" if since else "")
    if restarts != "0":
        return Finding(name, WARNING, f"{text}, {often}", _JOURNAL, details)
    if get("UnitFileState") == "disabled":
        text += ", and not at the next boot"
        return Finding(name, WARNING, text, "systemctl enable ollama-metrics", details)
    return Finding(name, OK, text, details=details)


# -- what the agent says and costs -------------------------------------------------------------------------------------


def check_weight(agent: Agent) -> Finding:
    """What a balancer that reads the five fields would weigh this host by, and why."""
    name = "weight"
    document = agent.document
    balance = balance_of(document) if document is not None else None
    if document is None or balance is None:
        return Finding(name, PROBLEM, f"unknown: {agent.error}", _JOURNAL)
    weight, own = balance.weight, document.get("weight")
    text = f"{weight:g} of 500"
    if isinstance(own, (int, float)) and own != weight:
        text += f", `weight` {own:g}"
    status, reasons = document.get("status"), document.get("reasons")
    why = "; ".join(map(str, reasons)) if isinstance(reasons, list) else ""
    text += f", {status}{why and ': '}{why}"
    details = (
        "as the balancer computes it from these, and the lowest gets the next request:",
        *(f"{field} {value:g}" for field, value in vars(balance).items()),
    )
    if status == "ok":
        return Finding(name, OK, text, details=details)
    if status == "draining":
        return Finding(name, WARNING, text, "see `drain`", details)
    remedy = "by the other lines; docs/OPERATIONS.md has what to do about each reason"
    return Finding(name, WARNING if status == "degraded" else PROBLEM, text, remedy, details)


def check_drain(agent: Agent) -> Finding:
    """Whether an operator has taken this host out of rotation."""
    name = "drain"
    if agent.document is None:
        return Finding(name, SKIPPED, "the agent does not answer")
    drain = agent.document.get("drain")
    if drain is None:
        return Finding(name, OK, "not drained")
    get = drain.get if isinstance(drain, dict) else {}.get
    text = f"drained{_moment(' since', get('since'))}{_moment(' until', get('until'))}: {get('reason')}"
    return Finding(name, WARNING, text, "ollama-metrics resume")


def _moment(word: str, seconds: Any) -> str:
    known = isinstance(seconds, (int, float)) and 0 <= seconds < 253402300800
    return f"{word} {when(seconds)}" if known else ""


def check_cost(pid: Optional[int], root: bool, proc: str = "/proc") -> Finding:
    """Memory and CPU of the agent's process since its start. Source: /proc/PID/status and stat, /proc/uptime."""
    name = "cost"
    if pid is None:
        text = "the agent's process cannot be seen" if not root else "the agent has no process here"
        return Finding(name, SKIPPED, text, hidden=not root)
    status = read_text(f"{proc}/{pid}/status") or ""
    # "7 (name) S 1 ...": a name may hold anything, parentheses too.
    words = (read_text(f"{proc}/{pid}/stat") or "").rpartition(")")[2].split()
    uptime = (read_text(f"{proc}/uptime") or "").split()
    rss = next((line.split() for line in status.splitlines() if line.startswith("VmRSS:")), [])
    if len(rss) < 2 or len(words) < 20 or not uptime:
        return Finding(name, SKIPPED, f"process {pid} cannot be read", hidden=not root)
    ticks = os.sysconf("SC_CLK_TCK")
    memory, used = int(rss[1]) * 1024, (int(words[11]) + int(words[12])) / ticks
    age = max(0.01, float(uptime[0]) - int(words[19]) / ticks)
    share = used / age
    text = f"{memory / 1e6:.1f} MB of memory, {100 * share:.2g} % of a CPU since its start {_ago(age)} ago"
    details = (f"process {pid}",)
    if memory > _MUCH_MEMORY or (share > _MUCH_CPU and age > _LEAST_AGE_SECONDS):
        remedy = "many clients, or a longer OLLAMA_METRICS_INTERVAL is due; else report it with the output of this"
        return Finding(name, WARNING, text, remedy, details)
    return Finding(name, OK, text, details=details)


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# -- the clock ---------------------------------------------------------------------------------------------------------


def clock_error_microseconds() -> Optional[int]:
    """The most that the kernel takes its clock to be off by; None where it does not say. Source: adjtimex(2)."""
    import ctypes

    class Timex(ctypes.Structure):
        """The beginning of struct timex, and room for the rest."""

        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("rest", ctypes.c_char * 512),
        )

    asked = Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(asked)) < 0:
        return None
    return int(asked.maxerror)


def check_clock(
    agent: Agent,
    program: Callable[..., Said],
    error_microseconds: Callable[[], Optional[int]] = clock_error_microseconds,
) -> Finding:
    """Whether somebody keeps the clock right, and whether the agent's time is this host's."""
    name = "clock"
    document = agent.document or {}
    stamp, age = document.get("timestamp"), document.get("age_seconds")
    if isinstance(stamp, (int, float)) and isinstance(age, (int, float)):
        skew = agent.at - stamp - age
        if abs(skew) > _MOST_SKEW_SECONDS:
            text = (
                f"the agent's timestamp is {skew:+.0f} s from this clock, which was set meanwhile"
            )
            return Finding(
                name, WARNING, text, "look again; for good: systemctl restart ollama-metrics"
            )
    remedy = "timedatectl set-ntp true, or install chrony"
    try:
        error = error_microseconds()
    except (AttributeError, OSError):
        error = None
    if error is not None:
        if error < _UNSYNCHRONIZED_MICROSECONDS:
            return Finding(name, OK, f"synchronized, to {error / 1e6:.2g} s")
        return Finding(name, WARNING, "nobody synchronizes it", remedy)
    said = program("timedatectl", "show", "--property=NTPSynchronized")
    if said.problem is None and said.text.strip() == "NTPSynchronized=yes":
        return Finding(name, OK, "synchronized")
    if said.problem is None and said.text.strip() == "NTPSynchronized=no":
        return Finding(name, WARNING, "nobody synchronizes it", remedy)
    text = f"neither the kernel nor timedatectl says whether it is synchronized ({said.problem})"
    return Finding(name, SKIPPED, text)
