"""The report: a run as tables, for a terminal and as Markdown."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.figures import Figures
from benchmarks.goals import GOALS, Goal, Outcome
from benchmarks.machine import Facts
from benchmarks.measurements import MEASUREMENTS, Measurement
from benchmarks.peers import CATALOGUE
from benchmarks.reasons import REASONS, UNKNOWN

Rows = list[list[str]]
MET, MISSED, NOT_MEASURED = "met", "MISSED", "not measured"


@dataclass(frozen=True)
class Run:
    """All that a report says."""

    command: str
    quick: bool
    seconds: float
    date: datetime.date
    machine: Facts
    versions: Facts
    measurements: Sequence[Measurement]
    figures: Figures
    missing: dict[str, str]

    def outcomes(self) -> dict[Goal, Outcome | None]:
        return {goal: goal.judge(self.figures) for goal in GOALS}

    def missed(self) -> list[Goal]:
        return [goal for goal, seen in self.outcomes().items() if seen and not seen.met]


def goal_rows(run: Run, all_goals: bool = True) -> Rows:
    rows = [["what", "goal", "measured", "ratio", "verdict"]]
    for goal, seen in run.outcomes().items():
        if seen is None and all_goals:
            rows.append([goal.what, goal.aim, "-", "-", NOT_MEASURED])
        elif seen is not None:
            verdict = MET if seen.met else MISSED
            rows.append([goal.what, goal.aim, seen.measured, seen.judged, verdict])
    return rows


def figure_rows(run: Run, measurement: Measurement) -> Rows:
    """One row per subject; columns without any value are left out."""
    figures = run.figures
    subjects = figures.subjects(measurement.quantities)
    columns = [
        quantity
        for quantity in measurement.quantities
        if any(figures.cell(quantity, who) != "-" for who in subjects)
    ]
    if not columns:
        return [["figures"], [NOT_MEASURED]]
    rows = [["", *(column.heading for column in columns)]]
    rows += [[who, *(figures.cell(column, who) for column in columns)] for who in subjects]
    rows += [
        [who, NOT_MEASURED, *[""] * (len(columns) - 1)]
        for who in run.missing
        if who in getattr(measurement.module, "PEERS", ())
    ]
    return rows


def reasons(run: Run) -> list[str]:
    return [
        f"{goal.what}, {goal.aim}: reason: {REASONS.get(goal.key, UNKNOWN)}"
        for goal in run.missed()
    ]


def notes(run: Run) -> list[str]:
    said = list(run.figures.notes)
    said += [f"{name}: {NOT_MEASURED}: {why}" for name, why in run.missing.items()]
    if run.quick:
        said.insert(0, "A quick run: short intervals, few rounds, fewer scrapes; rough figures.")
    return said


def summary(run: Run) -> str:
    outcomes = list(run.outcomes().values())
    met = sum(1 for seen in outcomes if seen and seen.met)
    unknown = sum(1 for seen in outcomes if seen is None)
    return f"{met} goals met, {len(run.missed())} missed, {unknown} not measured"


def terminal(run: Run) -> str:
    """The whole run as plain text."""
    lines: list[str] = []
    for measurement in run.measurements:
        lines += ["", measurement.title, *_aligned(_turned(figure_rows(run, measurement)))]
    lines += ["", "Goals", *_aligned(goal_rows(run, len(run.measurements) == len(MEASUREMENTS)))]
    for title, texts in (("Missed", reasons(run)), ("Notes", notes(run))):
        if texts:
            lines += ["", title, *(f"  {text}" for text in texts)]
    return "\n".join([*lines, "", summary(run)])


def markdown(run: Run) -> str:
    """The whole run as docs/PERFORMANCE.md."""
    lines = [
        "# Performance",
        "",
        f"Generated on {run.date.isoformat()} by `{run.command}`",
        f"in {run.seconds:.0f} s; do not edit.",
        "Absolute rates and latencies swing several times over on a shared machine. CPU time per",
        "request, resident memory and the ratios within this one run hold: quote those.",
        "",
        f"**{summary(run)}.**",
        "",
        "## Goals",
        "",
        *_piped(goal_rows(run)),
        "",
        *_listed("### Why goals were missed", reasons(run)),
        *_listed("## Machine", _facts(run.machine)),
        *_listed("## Versions", _facts(run.versions)),
        *_listed("## Servers", [f"{peer.name}: {peer.what}" for peer in CATALOGUE.values()]),
        "## Measurements",
        "",
        "Where there were several rounds: the median (lowest..highest).",
        "",
    ]
    for measurement in run.measurements:
        lines += [f"### {measurement.title}", "", measurement.how, ""]
        lines += [*_piped(figure_rows(run, measurement)), ""]
    lines += _listed("## Notes", notes(run))
    return "\n".join(lines).rstrip() + "\n"


def _facts(facts: Facts) -> list[str]:
    return [f"{name}: {fact}" for name, fact in facts.items()]


def _listed(heading: str, texts: Iterable[str]) -> list[str]:
    items = [f"- {text}" for text in texts]
    return [heading, "", *items, ""] if items else []


def _piped(rows: Rows) -> list[str]:
    piped = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [piped[0], "|" + " --- |" * len(rows[0]), *piped[1:]]


def _widths(rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows)]


def _turned(rows: Rows) -> Rows:
    """A table that is too wide for a screen stands on its side instead."""
    wide = sum(_widths(rows)) + 2 * len(rows[0]) > 150
    return [list(column) for column in zip(*rows)] if wide and len(rows) < len(rows[0]) else rows


def _aligned(rows: Rows) -> list[str]:
    widths = _widths(rows)
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    ]
