"""The command: chooses what runs, goes on past a failure, prints and writes the report."""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from benchmarks import report
from benchmarks.bench import FULL, QUICK, Bench
from benchmarks.figures import Figures
from benchmarks.http_load import LoadFailed
from benchmarks.machine import machine, versions
from benchmarks.measurements import MEASUREMENTS, Measurement
from benchmarks.peers import CATALOGUE
from benchmarks.server import ServerFailed


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the agent side by side with named peers and judges the goals.",
        epilog="Measurements: " + ", ".join(MEASUREMENTS) + ".",
    )
    parser.add_argument("--quick", action="store_true", help="a rough run of 1-2 minutes")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASUREMENTS),
        metavar="NAME",
        help="run this measurement alone (repeatable)",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write it as Markdown")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a goal is missed")
    parser.add_argument(
        "--skip-missing", action="store_true", help="exit 0 though a peer is missing"
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="the agent's deadline for a whole request (default: %(default)g)",
    )
    parser.add_argument(
        "--first-interval",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="the agent's first CPU interval, before it serves (default: %(default)g)",
    )
    return parser.parse_args(arguments)


def measure(chosen: list[Measurement], bench: Bench, figures: Figures) -> bool:
    """Runs the measurements one after the other; False if one of them failed."""
    complete = True
    for number, measurement in enumerate(chosen, start=1):
        bench.begin(f"[{number}/{len(chosen)}] {measurement.title}")
        try:
            measurement.measure(bench, figures)
        except Exception as failure:  # whatever ends one measurement, the others can still run
            complete = False
            if not isinstance(failure, (ServerFailed, LoadFailed)):
                traceback.print_exc()
            why = type(failure).__name__  # the message may hold paths, and the report is published
            figures.note([f"{measurement.title} failed ({why}): the run's own output says more."])
            bench.progress(f"failed: {failure}")
    return complete


def end(number: int, _frame: FrameType | None) -> None:
    """Turns SIGTERM into an exception, so that everything started is ended on the way out."""
    raise SystemExit(128 + number)


def main() -> int:
    chosen = options()
    signal.signal(signal.SIGTERM, end)
    bench = Bench(QUICK if chosen.quick else FULL, chosen.deadline, chosen.first_interval)
    absent = {name: peer.missing() for name, peer in CATALOGUE.items()}
    bench.missing = {name: why for name, why in absent.items() if why}
    for name, why in bench.missing.items():
        print(f"{name}: {why}", file=sys.stderr)
    if "agent" in bench.missing:
        return 1
    if shutil.which("wrk") is None:
        print("The load needs wrk: apt-get install wrk", file=sys.stderr)
        return 1

    figures = Figures()
    measurements = [
        MEASUREMENTS[name] for name in MEASUREMENTS if name in (chosen.only or MEASUREMENTS)
    ]
    place = machine(bench.cores)
    began = time.monotonic()
    os.sched_setaffinity(0, {bench.cores.load})
    complete = measure(measurements, bench, figures)
    run = report.Run(
        command=" ".join(["python -m benchmarks", *sys.argv[1:]]),
        quick=chosen.quick,
        seconds=time.monotonic() - began,
        date=datetime.date.today(),
        machine=place,
        versions=versions(),
        measurements=measurements,
        figures=figures,
        missing=bench.missing,
    )
    print(report.terminal(run))
    if chosen.write:
        chosen.write.parent.mkdir(parents=True, exist_ok=True)
        chosen.write.write_text(report.markdown(run))
    if not complete or (bench.missing and not chosen.skip_missing):
        return 1
    return 1 if chosen.strict and run.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
