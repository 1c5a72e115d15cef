"""`ollama-metrics rank`: hosts as their balancer sees them, the one that the next request goes to first."""

from __future__ import annotations

import json
import sys
import time

from .errors import ConfigError
from .fleet import FILES_PER_HOST, Fleet, parse_host
from .option_values import seconds
from .rank_table import Row, Screen, rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Optional

    from .fleet import Target

EPILOG = """\
Each host is asked as the balancer asks, and weighed by its formula; the one
marked > gets every request until the balancer's next poll. REQS is how many
requests Ollama has in flight. What the agent alone tells (STATUS, AGE, REQS and
the reasons) is - for another exporter. Without a port a HOST is asked on 11435,
a URL on 80.

examples:
  ollama-metrics rank gpu1 gpu2:8080 '[2001:db8::7]:11435' http://gpu4/agent
  ollama-metrics rank --file hosts.txt --watch
  ollama-metrics rank --json gpu1 gpu2 | jq -r '.[] | select(.next).host'

Exit codes: 0 all hosts answer and none is failing (a drained one is not), 1 a
host does not answer or is failing, 2 bad usage, 130 ended by Ctrl-C.
"""
_MOST_FILE_BYTES = 1 << 20
_TIMEOUT, _PERIOD = (0.1, 60.0), (0.1, 3600.0)
# Of a round that took longer than its period, the next one keeps this distance.
_LEAST_PAUSE = 0.1


def add_options(parser: Any) -> None:
    """The options of this command."""
    parser.add_argument(
        "hosts", metavar="HOST", nargs="*", help="host, host:port, [IPv6]:port or http URL"
    )
    parser.add_argument(
        "--file",
        metavar="FILE",
        help="also the hosts in it, one a line, # for comments; - is stdin",
    )
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const="2",
        help="poll again and again, this often (2 where no number is given)",
    )
    parser.add_argument("--json", action="store_true", help="print an array, sorted, for scripts")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        default="5",
        help="how long a host may take for all of its answer (default: 5, as the balancer)",
    )


def run(options: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    """Poll and print, once or until interrupted; returns the exit code. Raises ConfigError."""
    timeout = _seconds("--timeout", options["timeout"], _TIMEOUT)
    hosts, watch = list(options["hosts"]), options["watch"]
    if watch and _is_host(watch):
        hosts, watch = [watch, *hosts], "2"
    period = _seconds("--watch", watch, _PERIOD) if watch is not None else None
    targets = _targets(hosts, options["file"])
    _make_room(len(targets))
    screen = Screen(sys.stdout, environ, redraw=period is not None and not options["json"])
    fleet = Fleet(targets, timeout)
    try:
        return _rounds(fleet, screen, period, bool(options["json"]), len(targets))
    finally:
        fleet.close()


def _rounds(
    fleet: Fleet, screen: Screen, period: Optional[float], as_json: bool, count: int
) -> int:
    screen.begin(f"asking {count} host{'s' * (count != 1)} ...")
    while True:
        begun = time.monotonic()
        rows = rows_of(fleet.poll())
        if as_json:
            text = to_json(rows, None if period is not None else 2)
        else:
            title = "" if period is None else f"{time.strftime('%H:%M:%S')}, every {period:g} s"
            text = screen.table(rows, title)
        try:
            reading_on = screen.show(text)
        except OSError as error:
            print(f"ollama-metrics: cannot write: {error.strerror or error}", file=sys.stderr)
            return 1
        if period is None or not reading_on:
            return int(any(row.poll.reading is None or row.status == "failing" for row in rows))
        time.sleep(max(_LEAST_PAUSE, period - (time.monotonic() - begun)))


def to_json(rows: Sequence[Row], indent: Optional[int]) -> str:
    """An array of the hosts in their order, on one line without `indent`."""
    return json.dumps([_document(row) for row in rows], indent=indent, allow_nan=False) + "\n"


def _document(row: Row) -> dict[str, Any]:
    reading = row.poll.reading
    target = row.poll.target
    document: dict[str, Any] = {
        "next": row.next,
        "host": target.text,
        "url": f"{target.url}/metrics",
        "weight": row.finite_weight,
        "error": row.poll.error or None,
        "status": row.status,
        "reasons": [],
        "age_seconds": None,
        "gpu_count": None,
        "in_flight": None,
        "notes": list(row.notes),
    }
    if reading is not None:
        document.update(
            reasons=list(reading.reasons),
            age_seconds=reading.age_seconds,
            gpu_count=reading.gpu_count,
            in_flight=reading.in_flight,
        )
    return document


# -- options -----------------------------------------------------------------------------------------------------------


def _seconds(option: str, text: str, bounds: tuple[float, float]) -> float:
    try:
        return seconds(*bounds)(text)
    except ValueError:
        accepted = f"give seconds from {bounds[0]:g} to {bounds[1]:g}"
        raise ConfigError(option, text, accepted) from None


def _is_host(text: str) -> bool:
    """Whether what stands after --watch is the first host, and no number that may have gone wrong."""
    return text[0] not in "+-.0123456789" or ":" in text or text.count(".") == 3


def _targets(hosts: Sequence[str], path: Optional[str]) -> list[Target]:
    """The hosts of the command line and those of the file, in this order."""
    named = [("HOST", host) for host in hosts]
    if path is not None:
        named += _lines(path)
    targets = []
    for source, text in named:
        try:
            targets.append(parse_host(text))
        except ValueError as error:
            raise ConfigError(source, text, str(error)) from None
    if not targets:
        if path is not None:
            raise ConfigError("--file", path, "there is no host in it; write one on each line")
        raise ConfigError("HOST", "", "name at least one host, or a --file of hosts")
    return targets


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """The hosts in a file, each with where it stands."""
    try:
        if path == "-":
            if sys.stdin is None:
                raise OSError("standard input is closed")
            content = sys.stdin.buffer.read(_MOST_FILE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(_MOST_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError("--file", path, f"it cannot be read: {error.strerror or error}") from None
    except ValueError:  # not UTF-8, or a NUL in the path
        raise ConfigError("--file", path, "give a text file in UTF-8") from None
    if len(content) > _MOST_FILE_BYTES:
        raise ConfigError("--file", path, f"it is larger than {_MOST_FILE_BYTES >> 20} MB")
    for number, line in enumerate(text.split("\n"), 1):
        # A comment begins a line or follows a space: no host has one in it.
        host = line.partition("#")[0].strip()
        if host:
            yield f"--file, line {number}", host


def _make_room(hosts: int) -> None:
    """Let this process open as many sockets as a round may need. Raises ConfigError where it may not."""
    from .listener import open_files_for

    room = open_files_for(FILES_PER_HOST * hosts) // FILES_PER_HOST
    if room < hosts:
        raise ConfigError(
            "HOST",
            f"{hosts} hosts",
            f"this process may open files for {room} at a time; raise the limit (`ulimit -Hn` as root, "
            "LimitNOFILE= in a unit) or give fewer hosts",
        )
