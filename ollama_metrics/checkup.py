"""What a checkup of a host is made of: findings, and questions that are given up when nobody answers in time.

A driver's call may never return, a name's look-up takes as long as the resolver does, and neither can
be interrupted: whatever may hang is asked in a process of its own (`ask_apart`), which is left behind
if it cannot even be killed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time

from .errors import CollectorError, OllamaError
from .frozen import dataclass
from .ollama_api import OllamaApi
from .ollama_processes import is_of_this_host
from .ollama_url import OllamaUrl
from .weight import Balance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Optional

OK, WARNING, PROBLEM, SKIPPED = "ok", "warning", "problem", "skipped"
VERDICTS = (OK, WARNING, PROBLEM, SKIPPED)

_MOST_CHARACTERS = 600  # of one text
_MOST_BYTES = 4 << 20
_MOST_COMPLAINT = 200
_PIECE_BYTES = 1 << 16
_KILLED_SECONDS = 1.0
_FOLDERS = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")
# What systemd's programs and Python are to be like wherever they are started: terse, English, no pager.
_PLAIN = {"LC_ALL": "C.UTF-8", "PATH": ":".join(_FOLDERS), "SYSTEMD_COLORS": "0"}
_APART = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # a handler of Python's waits for the driver
    "sys.path[:] = sys.argv[4:]\n"
    "from importlib import import_module\n"
    "import json\n"
    "function = getattr(import_module(sys.argv[1]), sys.argv[2])\n"
    "print('\\n' + json.dumps(function(*json.loads(sys.argv[3]))))\n"
)


@dataclass(frozen=True)
class Finding:
    """What one check has come to.

    `remedy` is a command or a sentence, `details` are lines for who wants to know more. `hidden` tells
    that root would have seen more.
    """

    check: str
    verdict: str
    text: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class Said:
    """What a program has said; `problem` is why that is no answer, None where it is one."""

    text: str
    problem: Optional[str] = None


def legible(text: str) -> str:
    """A text that a file or an answer has given, for a terminal: one line, bounded, no control characters."""
    shown = "".join(char if char.isprintable() else "?" for char in text[: 2 * _MOST_CHARACTERS])
    if len(shown) > _MOST_CHARACTERS:
        shown = f"{shown[: _MOST_CHARACTERS - 3]}..."
    return shown


def examine(checks: Sequence[tuple[str, Callable[[], Finding]]]) -> Iterator[Finding]:
    """The finding of each check, in order, as soon as it is there; one that fails by itself is a problem.

    What the kernel or a process apart does not tell (CollectorError, NoAnswer) is skipped.
    """
    for name, check in checks:
        try:
            found = check()
        except (CollectorError, NoAnswer) as error:
            yield Finding(name, SKIPPED, legible(str(error)))
            continue
        except Exception as error:  # whatever it is, the other checks go on
            yield Finding(
                name,
                PROBLEM,
                legible(f"the doctor itself failed here: {type(error).__name__}: {error}"),
                "report this; the other lines hold all the same",
            )
            continue
        yield Finding(
            found.check,
            found.verdict,
            legible(found.text),
            legible(found.remedy),
            tuple(map(legible, found.details)),
            found.hidden,
        )


def read_text(path: str, most: int = 1 << 16) -> Optional[str]:
    """The beginning of a file of the kernel's, or of one that is like it; None where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, most).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


# -- questions with a time limit ---------------------------------------------------------------------------------------


def ask_program(
    name: str, *arguments: str, seconds: float = 5.0, folders: Sequence[str] = _FOLDERS
) -> Said:
    """Run a program of the system's, without a terminal and in English."""
    for folder in folders:
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return _run(path, [path, *arguments], _PLAIN, seconds)
    return Said("", f"{name} is not installed")


def ask_apart(
    module: str,
    function: str,
    *arguments: Any,
    seconds: float,
    environ: Optional[Mapping[str, str]] = None,
) -> Any:
    """What a function of this package's `module` returns in a process of its own, by way of JSON.

    Raises NoAnswer when there is none within `seconds`.
    """
    package = __name__.rpartition(".")[0]
    path = [*sys.path, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    command = [
        *(sys.executable, "-I", "-c", _APART),
        *(f"{package}.{module}", function, json.dumps(arguments), *path),
    ]
    said = _run(sys.executable, command, os.environ if environ is None else environ, seconds)
    if said.problem is not None:
        raise NoAnswer(said.problem)
    try:
        return json.loads(said.text.rstrip().rpartition("\n")[2])
    except ValueError:
        raise NoAnswer("the answer makes no sense") from None


class NoAnswer(Exception):
    """What was asked in a process of its own gave no answer; the text says why."""


@dataclass(frozen=True)
class User:
    """A user and all of the groups that its processes have."""

    name: str
    uid: int
    gids: tuple[int, ...]


def ask_user(name: str, groups: Sequence[str], seconds: float) -> Optional[User]:
    """A user of this host's, with `groups` besides its own; None where there is none.

    The database may be in a network, so this is asked apart. Raises NoAnswer.
    """
    told = ask_apart("checkup", "tell_user", name, list(groups), seconds=seconds)
    return None if told is None else User(name, told[0], tuple(told[1]))


def tell_user(name: str, groups: Sequence[str]) -> Optional[tuple[int, list[int]]]:
    """The same, in this process: (uid, gids). Source: passwd(5), group(5)."""
    import grp
    import pwd

    try:
        user = pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None
    gids = set(os.getgrouplist(name, user.pw_gid))
    for group in groups:
        try:
            gids.add(grp.getgrnam(group).gr_gid)
        except KeyError:
            continue
    return user.pw_uid, sorted(gids)


# -- what is asked so -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    """The agent's answer at /metrics as it was decoded, or None and why there is none; `at`: Unix seconds by then."""

    document: Optional[Mapping[str, Any]]
    error: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class Ollama:
    """Ollama's answers: its version, the round trip, name and GPU share of each model; or why there are none."""

    local: bool = True
    version: str = ""
    rtt_seconds: float = 0.0
    models: tuple[tuple[str, float], ...] = ()
    error: str = ""


def ask_agent(url: OllamaUrl, seconds: float) -> Agent:
    """What the agent at `url` answers."""
    try:
        document, error = ask_apart(
            "checkup", "tell_agent", url.host, url.port, seconds, seconds=seconds + 1
        )
    except NoAnswer as problem:
        return Agent(None, f"{url}: {problem}")
    return Agent(document, error, time.time())


def tell_agent(host: str, port: int, seconds: float) -> tuple[Optional[dict[str, Any]], str]:
    """The same, in this process, whatever the status: a page with 503 has its reasons, too."""
    asked = f"{OllamaUrl(host, port)}/metrics"
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "application/json"})
        body = connection.getresponse().read(_MOST_BYTES)
        document = json.loads(body.decode("utf-8"), parse_constant=_refused)
    except (socket.timeout, TimeoutError):
        return None, f"{asked}: no answer within {seconds:g} s"
    except OSError as error:
        return None, f"{asked}: {(error.strerror or 'no connection').lower()}"
    except (http.client.HTTPException, ValueError, RecursionError):
        return None, f"{asked} answers something else than the agent's JSON"
    finally:
        connection.close()
    if not isinstance(document, dict) or balance_of(document) is None or "status" not in document:
        return None, f"{asked} answers something else than the agent's JSON"
    return document, ""


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def balance_of(document: Mapping[str, Any]) -> Optional[Balance]:
    """The five fields as a balancer decodes them; None where it would not."""
    values: dict[str, Any] = {}
    for name in Balance.__annotations__:
        value = document.get(name)
        kinds = (int,) if name == "gpu_count" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return None
        values[name] = value
    return Balance(**values)


def ask_ollama(url: OllamaUrl, seconds: float) -> Ollama:
    """What the Ollama at `url` answers."""
    try:
        told = ask_apart(
            "checkup",
            *("tell_ollama", url.host, url.port, url.path, seconds),
            seconds=2 * seconds + 1,
        )
    except NoAnswer as problem:
        return Ollama(error=f"{url}: {problem}; looking up the name may take that long")
    models = tuple((str(name), float(share)) for name, share in told[3])
    return Ollama(bool(told[0]), str(told[1]), float(told[2]), models, str(told[4]))


def tell_ollama(host: str, port: int, path: str, seconds: float) -> tuple[Any, ...]:
    """The same, in this process: whether it is of this host, version, round trip, models, error."""
    local = is_of_this_host(host)
    api = OllamaApi(OllamaUrl(host, port, path), seconds)
    version, rtt = "", 0.0
    try:
        version, rtt = api.version()
        models = [
            (model.name, 1.0 if model.gpu_ratio is None else model.gpu_ratio)
            for model in api.models()
        ]
    except OllamaError as error:
        return local, version, rtt, [], str(error)
    return local, version, rtt, models, ""


# -- processes -------------------------------------------------------------------------------------------------------


def _run(path: str, command: Sequence[str], environ: Mapping[str, str], seconds: float) -> Said:
    """What a program says until it ends, on both its outputs together."""
    until = time.monotonic() + seconds
    # A socket, for reading from one can have a time limit.
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            try:
                pid = _spawn(path, command, environ, theirs.fileno())
            except OSError as error:
                return Said("", f"{path} cannot be started ({error.strerror})")
        said, late = bytearray(), True
        try:
            while len(said) <= _MOST_BYTES:
                ours.settimeout(max(0.001, until - time.monotonic()))
                piece = ours.recv(_PIECE_BYTES)
                if not piece:
                    late = False
                    break
                said += piece
        except (socket.timeout, TimeoutError):  # two classes before Python 3.10
            pass
        except OSError:
            late = False  # it has ended with something unread
        finally:
            # Also when this is interrupted.
            status = _ended(pid, 0.0 if late else until)
    text = said.decode("utf-8", "replace")
    if len(said) > _MOST_BYTES:
        return Said("", "the answer does not end")
    if late or status is None:
        return Said(text, f"no answer within {seconds:g} s")
    if status != 0:
        lines = text.strip().splitlines() or [""]
        # A Python that failed says why at the end, other programs at the beginning.
        why = lines[-1 if path == sys.executable else 0][:_MOST_COMPLAINT]
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return Said(text, f"{os.path.basename(path)} ended with {how}{': ' if why else ''}{why}")
    return Said(text)


def _spawn(path: str, command: Sequence[str], environ: Mapping[str, str], out: int) -> int:
    """Start a program that inherits nothing but `out`, as both its outputs. Raises OSError."""
    return os.posix_spawn(
        path,
        list(command),
        environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_DUP2, out, 2),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        ],
        setsigmask=(),
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _ended(pid: int, until: float) -> Optional[int]:
    """The exit status of a child, waited for until then; None for one that had to be killed.

    One that not even SIGKILL ends, for the kernel holds it, is not waited for.
    """
    killed_at = None
    with contextlib.suppress(ChildProcessError):
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) if killed_at is None else None
            now = time.monotonic()
            if killed_at is None and now >= until:
                os.kill(pid, signal.SIGKILL)
                killed_at = now
            elif killed_at is not None and now > killed_at + _KILLED_SECONDS:
                return None
            time.sleep(0.002)
    return None
