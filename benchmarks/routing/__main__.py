"""The command: performs the study, writes docs/ROUTING.md and its plots."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.routing import page
from benchmarks.routing.study import study, tasks


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing",
        description="Simulates balancers in front of Ollama hosts and writes what came of it.",
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="the page; its plots go beside it"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if a goal is missed")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: the cores"
    )
    chosen = parser.parse_args()
    began = time.monotonic()
    found = tasks()

    def tell(number: int) -> None:
        if number % 100 == 0 or number == len(found):
            seconds = time.monotonic() - began
            print(f"{number} of {len(found)} runs, {seconds:.0f} s", file=sys.stderr, flush=True)

    results = study(found, chosen.processes, tell)
    text = page.markdown(results)
    if chosen.write:
        plots = chosen.write.parent / page.PLOTS
        plots.mkdir(parents=True, exist_ok=True)
        for name, plot in page.plots(results).items():
            (plots / name).write_text(plot, "utf-8")
        chosen.write.write_text(text, "utf-8")
    else:
        print(text, end="")
    return 1 if chosen.strict and any(not goal.met for goal in page.goals(results)) else 0


if __name__ == "__main__":
    sys.exit(main())
