"""The command: runs the demo, and does to one that runs what it tells people to try."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time

from benchmarks.demo import control
from benchmarks.demo.fleet import ENDING, DemoFailed, Ended, Fleet, end, missing, program, shown
from benchmarks.demo.host import DISTANT, LARGE, Host
from benchmarks.demo.shipped import ShippedFileChanged

EXIT_FAILED = 1
_MOST_HOSTS = 9
_DEEDS = {
    "lose-gpu": "let a GPU of a host, or another one, fall off the bus",
    "restore-gpu": "bring all of them back",
    "kill-ollama": "let the Ollama of a host die",
    "start-ollama": "start it again",
}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="A fleet of Ollama hosts on this machine, without a GPU, behind HAProxy and Prometheus.",
        epilog="Without a command it runs until Ctrl-C; it prints what to open and what to try.",
    )
    parser.add_argument(
        "--hosts", type=int, choices=range(1, _MOST_HOSTS + 1), default=3, metavar="N",
        help=f"1 to {_MOST_HOSTS} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--no-load", action="store_true", help="without users")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, help in _DEEDS.items():
        command = commands.add_parser(name, help=help, description=help)
        command.add_argument("host", help="its name, such as gpu1")
        command.add_argument(
            "--demo", type=int, default=1, metavar="N", help="which, if several run (default: 1)"
        )
    return parser.parse_args(given)


def text(fleet: Fleet, seconds: float) -> str:
    """What to open and what to try."""
    agents = " ".join(_agent(host) for host in fleet.hosts)
    command = os.path.join(os.path.dirname(sys.executable), "ollama-metrics")
    tool = shown(command) if os.access(command, os.X_OK) else f"{_python()} -m ollama_metrics"
    deed = f"{_python()} -m benchmarks.demo"
    which = f" --demo {fleet.number}" if fleet.number != 1 else ""
    first, second, last = fleet.hosts[0], fleet.hosts[1 % len(fleet.hosts)], fleet.hosts[-1]
    drained = shlex.quote(str(last.settings))
    lines = [
        f"up in {seconds:.1f} s: {len(fleet.hosts)} hosts with two GPUs each, which are not real",
        "",
        "open",
        *(f"    http://{host.agent}/   {host.name}" for host in fleet.hosts),
        f"    http://127.0.0.1:{fleet.state}/   HAProxy: who is up, with which weight",
    ]
    if fleet.prometheus is not None:
        lines.append(
            f"    http://127.0.0.1:{fleet.prometheus}/   Prometheus, with the shipped rules"
        )
    else:
        lines.append("    no Prometheus: apt-get install prometheus")
    tries = [
        (
            "what a balancer sees, drawn anew every second (Ctrl-C ends it)",
            f"{tool} rank --watch 1 {agents}",
        ),
        ("ask through HAProxy", _curl(fleet.front)),
        (
            f"load a large model: the GPU memory of {first.name} fills",
            f"{tool} warm {LARGE} --host {first.ollama_url} --keep-alive 10m",
        ),
        (
            "give it work: utilization, power and temperature rise",
            f"{_python()} -m benchmarks.load {first.ollama_url} --model {LARGE} --users 4",
        ),
        (
            f"pull one to {second.name}, and load it",
            f"{tool} warm {DISTANT} --pull --host {second.ollama_url}",
        ),
        (
            f"lose a GPU: {second.name} gets less; again, and it gets nothing",
            f"{deed} lose-gpu {second.name}{which}",
        ),
        ("bring all of them back", f"{deed} restore-gpu {second.name}{which}"),
        (f"let Ollama die on {first.name}", f"{deed} kill-ollama {first.name}{which}"),
        ("start it again", f"{deed} start-ollama {first.name}{which}"),
        (
            f"drain {last.name}: what runs there goes on, nothing new comes",
            f"{tool} drain --config {drained} --reason 'a look at the demo'",
        ),
        ("put it back", f"{tool} resume --config {drained}"),
        (
            "174 users for half a minute",
            f"{_python()} -m benchmarks.load http://127.0.0.1:{fleet.front} --users 174 --duration 30 --tokens 5",
        ),
    ]
    lines += ["", f"try, from another terminal in {os.getcwd()}"]
    for what, typed in tries:
        lines += [f"  # {what}", f"    {typed}"]
    return "\n".join([*lines, "", "Ctrl-C ends all of it.", ""])


def _curl(port: int) -> str:
    asked = '{"model": "llama3.2", "prompt": "Why is the sky blue?"}'
    return f"curl -sN http://127.0.0.1:{port}/api/generate -d {shlex.quote(asked)}"


def _agent(host: Host) -> str:
    """As `rank` takes it: without the usual port."""
    return host.agent[: -len(":11435")] if host.agent.endswith(":11435") else host.agent


def _python() -> str:
    return shown(sys.executable)


def tell(command: str, host: str, number: int) -> int:
    """Have a demo that runs do something."""
    try:
        said = control.tell(number, f"{command} {host}")
    except OSError:
        print("no demo runs here: start it with `make demo`", file=sys.stderr)
        return EXIT_FAILED
    print(said.lstrip("!"), file=sys.stderr if said.startswith("!") else sys.stdout)
    return EXIT_FAILED if said.startswith("!") else 0


def main() -> int:
    chosen = arguments()
    if chosen.command is not None:
        return tell(chosen.command, chosen.host, chosen.demo)
    packages = missing()
    if packages:
        names = " ".join([*packages, *([] if program("prometheus") else ["prometheus"])])
        print(f"the demo needs Debian packages: apt-get install {names}", file=sys.stderr)
        return EXIT_FAILED
    for number in ENDING:
        signal.signal(number, end)
    began = time.monotonic()
    try:
        print("starting ...", flush=True)
        with Fleet(chosen.hosts, not chosen.no_load) as fleet:
            print(text(fleet, time.monotonic() - began), flush=True)
            fleet.run()
    except Ended:
        print("ended, and nothing is left")
    except (DemoFailed, ShippedFileChanged, OSError) as error:
        print(f"the demo cannot run: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
