"""The command: what to ask of whom, progress while it runs, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import report
from benchmarks.load.plan import PROMPTS, Plan
from benchmarks.load.users import Tally, Users
from benchmarks.process import open_files

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
_MOST_USERS = 10_000
_LINE_SECONDS = 10.0  # between two lines where there is no terminal
_EPILOG = """\
examples:
  python -m benchmarks.load http://balancer:11434 --users 174 --duration 60
  python -m benchmarks.load http://gpu1:11434 --users 4 --requests 100 --json load.json

Ctrl-C ends it and prints what there is so far.
Exit codes: 0 well, 1 more failures than --max-failures or nothing was served,
2 bad usage, 130 ended by Ctrl-C.
"""


def _number(least: float, most: float, whole: bool = False) -> Any:
    def parse(text: str) -> float:
        value = int(text) if whole else float(text)
        if not least <= value <= most:  # NaN is neither
            raise ValueError(text)
        return value

    parse.__name__ = f"number from {least:g} to {most:g}:"
    return parse


def _url(text: str) -> str:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} is no address such as http://balancer:11434")
    return parts.geturl().rstrip("/")


def _prompts(text: str) -> list[str]:
    try:
        lines = Path(text).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise argparse.ArgumentTypeError(f"there is no prompt in {text}; write one on each line")
    return prompts


def _options(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(text)
    return found


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isprintable():
        raise ValueError(text)
    return name.strip(), value.strip()


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load",
        description="Puts the load of many users on an Ollama or on the front of a pool of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    seconds = _number(0, 864_000)
    parser.add_argument("url", type=_url, metavar="URL", help="the address of the Ollama or front")
    parser.add_argument(
        "--users",
        type=_number(1, _MOST_USERS, True),
        default=10,
        help="at once (default: %(default)s)",
    )
    parser.add_argument(
        "--duration", type=seconds, metavar="SECONDS", help="default: 30, with --requests none"
    )
    parser.add_argument(
        "--requests", type=_number(1, 1e9, True), metavar="N", help="end after so many in all"
    )
    parser.add_argument(
        "--model", help="default: the first that is loaded, else the first there is"
    )
    parser.add_argument("--api", choices=("generate", "chat"), default="generate")
    parser.add_argument(
        "--tokens", type=_number(1, 1e6, True), metavar="N", help="at most so many in an answer"
    )
    parser.add_argument(
        "--options", type=_options, default={}, metavar="JSON", help="more of Ollama's options"
    )
    parser.add_argument(
        "--prompts", type=_prompts, default=PROMPTS, metavar="FILE", help="one on each line"
    )
    parser.add_argument(
        "--think", type=seconds, default=0.0, metavar="SECONDS",
        help="mean time between an answer and the next request of a user (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--ramp-up", type=seconds, metavar="SECONDS",
        help="time until all users have begun (default: a tenth of the duration, at most 10)",
    )  # fmt: skip
    parser.add_argument(
        "--silence", type=_number(0.1, 86_400), default=300.0, metavar="SECONDS",
        help="without a byte for so long a request has failed (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--grace", type=seconds, default=30.0, metavar="SECONDS",
        help="for what runs when the duration is over (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--header", type=_header, action="append", default=[], metavar="'NAME: VALUE'",
        help="with each request (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--max-failures", type=_number(0, 100), default=0.0, metavar="PERCENT",
        help="more than these are an exit code of 1 (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--json", metavar="FILE", help="also as JSON; - is stdout, without the table"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(given)


def first_model(url: str, headers: dict[str, str]) -> str | None:
    """The name of one that is loaded or, else, that there is; None where nobody tells."""
    for path in ("/api/ps", "/api/tags"):
        try:
            asked = urllib.request.Request(f"{url}{path}", headers=headers)
            with urllib.request.urlopen(asked, timeout=10) as answer:
                models = json.loads(answer.read(1 << 22))["models"]
            if models:
                return str(models[0]["name"])
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return None


def plan_of(chosen: argparse.Namespace, model: str) -> Plan:
    duration = chosen.duration
    if duration is None and chosen.requests is None:
        duration = 30.0
    ramp_up = chosen.ramp_up
    if ramp_up is None:
        ramp_up = min(10.0, duration / 10) if duration is not None else 1.0
    tokens = {"num_predict": chosen.tokens} if chosen.tokens is not None else {}
    return Plan(
        url=chosen.url,
        model=model,
        users=chosen.users,
        api=chosen.api,
        ramp_up=ramp_up,
        duration=duration,
        requests=chosen.requests,
        think=chosen.think,
        silence=chosen.silence,
        grace=chosen.grace,
        prompts=chosen.prompts,
        options={**chosen.options, **tokens},
        headers=dict(chosen.header),
    )


async def _progress(tally: Tally) -> None:
    """Tell how far it is, until cancelled: on a terminal in one line that is drawn anew."""
    terminal, began = sys.stderr.isatty(), time.monotonic()
    while True:
        await asyncio.sleep(1.0 if terminal else _LINE_SECONDS)
        text = report.line(tally, time.monotonic() - began)
        sys.stderr.write(f"\r{text}\x1b[K" if terminal else f"{text}\n")
        sys.stderr.flush()


async def run(plan: Plan, quiet: bool) -> tuple[Tally, bool]:
    """What came of it, and whether a signal has ended it."""
    stop, users = asyncio.Event(), Users(plan)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    progress = None if quiet else asyncio.ensure_future(_progress(users.tally))
    try:
        return await users.run(stop), stop.is_set()
    finally:
        if progress is not None:
            progress.cancel()
            if sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K")


def main() -> int:
    chosen = arguments()
    model = chosen.model or first_model(chosen.url, dict(chosen.header))
    if model is None:
        print(
            f"{chosen.url} names no model: is an Ollama there? Else give --model", file=sys.stderr
        )
        return EXIT_FAILED
    plan = plan_of(chosen, model)
    try:
        with open_files(plan.users):
            tally, interrupted = asyncio.run(run(plan, chosen.quiet))
    except OSError as error:
        print(f"{plan.users} users: {error}", file=sys.stderr)
        return EXIT_FAILED
    if chosen.json != "-":
        print(report.table(plan, tally), end="")
    if chosen.json is not None:
        text = json.dumps(report.document(plan, tally, interrupted), indent=2, allow_nan=False)
        if chosen.json == "-":
            print(text)
        else:
            try:
                Path(chosen.json).write_text(f"{text}\n", "utf-8")
            except OSError as error:
                print(f"{chosen.json} cannot be written: {error.strerror}", file=sys.stderr)
                return EXIT_FAILED
    if interrupted:
        return EXIT_INTERRUPTED
    failed = not tally.served or report.failure_percent(tally) > chosen.max_failures
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
