"""The whole study: every run, spread over the cores, and what is read from them together."""

from __future__ import annotations

import math
import multiprocessing
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Callable, Optional, Union

from benchmarks.routing import cells, faults
from benchmarks.routing.cells import LOADS, SIZES
from benchmarks.routing.contenders import CONTENDERS, ORACLE, Contender, contenders
from benchmarks.routing.faults import FAULTS, SETUPS
from benchmarks.routing.workload import Place

Cell = tuple[int, float]  # hosts and load
# A cell, a contender's key and a replication; or a fault's key, a setup's and a replication.
Task = Union[tuple[int, float, str, int], tuple[str, str, int]]
Result = Union[cells.Run, faults.Outcome]

CELLS: tuple[Cell, ...] = tuple((hosts, load) for hosts in SIZES for load in LOADS)


@dataclass(frozen=True)
class Ratio:
    """A figure over the oracle's, and its standard error (jackknife over the replications)."""

    value: float
    error: float


@dataclass
class Study:
    """All results, by cell and contender and by fault and setup; each list by replication."""

    runs: dict[tuple[Cell, str], list[cells.Run]] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], list[faults.Outcome]] = field(default_factory=dict)

    def has(self, cell: Cell, contender: Contender) -> bool:
        return (cell, contender.key) in self.runs

    def mean(self, cell: Cell, contender: Contender) -> float:
        """Mean seconds to the first token, over all requests of all replications."""
        runs = self.runs[cell, contender.key]
        return _pooled([(run.requests, run.mean) for run in runs])

    def p99(self, cell: Cell, contender: Contender) -> float:
        """The mean of the replications' 99th percentiles."""
        return statistics.fmean(run.p99 for run in self.runs[cell, contender.key])

    def ratio(self, cell: Cell, contender: Contender, base: Contender = ORACLE) -> Ratio:
        """Mean wait over the base's, on the same requests."""
        ours = [(run.requests, run.mean) for run in self.runs[cell, contender.key]]
        theirs = [(run.requests, run.mean) for run in self.runs[cell, base.key]]
        return Ratio(_pooled(ours) / _pooled(theirs), _jackknife(ours, theirs, _pooled))

    def p99_ratio(self, cell: Cell, contender: Contender, base: Contender = ORACLE) -> Ratio:
        ours = [(run.requests, run.p99) for run in self.runs[cell, contender.key]]
        theirs = [(run.requests, run.p99) for run in self.runs[cell, base.key]]
        return Ratio(_plain(ours) / _plain(theirs), _jackknife(ours, theirs, _plain))

    def share(self, cell: Cell, contender: Contender, of: Callable[[cells.Run], float]) -> float:
        return _pooled([(run.requests, of(run)) for run in self.runs[cell, contender.key]])

    def total(self, fault: str, setup: str, of: Callable[[faults.Outcome], float]) -> float:
        return sum(of(outcome) for outcome in self.outcomes[fault, setup])

    def fault_mean(self, fault: str, setup: str) -> Optional[float]:
        """Mean wait of the requests that got a token, over the replications in which any did."""
        found = [(one.served, one.mean) for one in self.outcomes[fault, setup] if one.served > 0]
        return _pooled(found) if found else None


def _pooled(weighted: list[tuple[int, float]]) -> float:
    return sum(count * value for count, value in weighted) / sum(count for count, _ in weighted)


def _plain(weighted: list[tuple[int, float]]) -> float:
    return statistics.fmean(value for _, value in weighted)


def _jackknife(
    ours: list[tuple[int, float]],
    theirs: list[tuple[int, float]],
    of: Callable[[list[tuple[int, float]]], float],
) -> float:
    count = len(ours)
    if count < 2:
        return math.nan
    without = [
        of(ours[:left] + ours[left + 1 :]) / of(theirs[:left] + theirs[left + 1 :])
        for left in range(count)
    ]
    middle = statistics.fmean(without)
    return math.sqrt((count - 1) / count * sum((one - middle) ** 2 for one in without))


def tasks() -> list[Task]:
    """All runs, those that take longest first."""
    found: list[Task] = []
    for hosts in sorted(SIZES, reverse=True):
        for load in reversed(LOADS):
            for contender in contenders(hosts):
                found += [(hosts, load, contender.key, one) for one in range(SIZES[hosts][0])]
    for fault in FAULTS:
        count = faults.REPLICATIONS.get(fault.key, faults.OTHER_REPLICATIONS)
        found += [(fault.key, setup.key, one) for setup in SETUPS for one in range(count)]
    return found


def perform(task: Task) -> Result:
    """One run. It depends on nothing but the task."""
    if len(task) == 3:
        fault = next(one for one in FAULTS if one.key == task[0])
        setup = next(one for one in SETUPS if one.key == task[1])
        return faults.run(fault, setup, task[2])
    hosts, load, key, replication = task
    contender = next(one for one in CONTENDERS if one.key == key)
    place = Place(hosts, load, SIZES[hosts][1])
    return cells.run(contender, place, f"{hosts} {load} {replication}")


def study(chosen: list[Task], processes: int, tell: Callable[[int], None]) -> Study:
    """Performs the tasks; in which order they end makes no difference."""
    found = Study()
    with multiprocessing.Pool(processes) as pool:
        results: Iterable[Result] = pool.imap(perform, chosen, chunksize=1)
        for number, (task, result) in enumerate(zip(chosen, results), start=1):
            if isinstance(result, cells.Run):
                assert len(task) == 4
                found.runs.setdefault(((task[0], task[1]), task[2]), []).append(result)
            else:
                assert len(task) == 3
                found.outcomes.setdefault((task[0], task[1]), []).append(result)
            tell(number)
    return found
