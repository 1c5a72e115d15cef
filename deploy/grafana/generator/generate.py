"""Writes the dashboards: `python3 deploy/grafana/generator/generate.py`, or `make dashboards`.

A broken host must not look like a calm one. So each dashboard begins with the agents' verdicts, in which
a host whose agent does not answer has a word of its own; a panel without data says what that means; and
no expression puts a zero where nothing was read. The expressions are made of the agent's own series, so
the dashboards need no recording rule.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fleet import fleet
from gpus import gpus
from host import host

FOLDER = Path(__file__).parents[1] / "dashboards"


def files() -> dict[str, str]:
    """The text of each file by its name."""
    made = {"fleet": fleet(), "gpus": gpus(), "host": host()}
    return {
        f"{name}.json": json.dumps(one, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        for name, one in made.items()
    }


def main() -> None:
    """Write them, into the folder that is named or else into the one of the repository."""
    if len(sys.argv) > 2 or sys.argv[-1].startswith("-"):
        sys.exit(f"usage: {sys.argv[0]} [FOLDER]   writes the dashboards, by default into {FOLDER}")
    folder = Path(sys.argv[1]) if sys.argv[1:] else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
