"""The log's view of the verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ollama_metrics.sampler import Sampler
from ollama_metrics.status_log import StatusLog
from ollama_metrics.verdict import FAILING, OK, Verdict


class Scripted:
    """A collector that gives a reading or fails, as it is told."""

    pause = 0.0
    fails = False

    def collect(self) -> Any:
        if self.fails:
            raise RuntimeError("told to")
        return self

    def levels(self) -> Any:
        return {}


class Judge:
    """A verdict that is set by hand, and how often it was asked for."""

    status, asked, broken = OK, 0, False

    def __call__(self) -> Verdict:
        self.asked += 1
        if self.broken:
            raise ZeroDivisionError("a fault of the verdict's own")
        return Verdict(self.status, 0, 0, ("because",), weight=500.0)


class Bench:
    """A status log over two samplers whose clock stands where it is put."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.now, self.judge = 0.0, Judge()
        self.collectors = Scripted(), Scripted()
        self.host, self.gpu = (
            Sampler(name, collector, 1.0, self._quiet, clock=lambda: self.now)
            for name, collector in zip(("host", "gpu"), self.collectors)
        )
        self.cycle()
        self.log = StatusLog(
            self.host,
            self.gpu,
            self.judge,
            lambda *said: self.said.append(said),
            clock=lambda: self.now,
        )

    def cycle(self) -> None:
        self.host.cycle()
        self.gpu.cycle()

    @staticmethod
    def _quiet(_level: str, _sentence: str) -> None:
        pass


def test_a_status_is_logged_once() -> None:
    """The first status and each change of it make a line, with the weight and the reason; the same status none."""
    bench = Bench()
    for status in (OK, OK, FAILING, FAILING, OK):
        bench.judge.status = status
        bench.cycle()
        bench.log.note()
    assert [(level, line.split(",")[0]) for level, line in bench.said] == [
        ("info", "status: ok"),
        ("warning", "status: failing"),
        ("info", "status: ok"),
    ]
    assert bench.said[0][1] == "status: ok, weight 500: because"


def test_the_verdict_is_asked_for_when_something_can_have_changed_it() -> None:
    """A new GPU state, a failure of the host sampler and an overdue GPU sampler are looked at; all else not."""
    bench = Bench()

    def asked() -> bool:
        before = bench.judge.asked
        bench.log.note()
        return bench.judge.asked > before

    assert asked()
    bench.host.cycle()
    assert not asked()
    bench.gpu.cycle()
    assert asked()
    bench.collectors[0].fails = True
    bench.host.cycle()
    assert asked()
    bench.host.cycle()
    assert not asked()
    bench.now = bench.gpu.state.overdue_at + 0.1
    assert asked()
    assert asked()


def test_what_makes_a_host_degraded_is_looked_for_every_quarter_minute() -> None:
    """Where nothing breaks, the verdict is asked for all the same: an Ollama may have become slow."""
    bench = Bench()
    bench.log.note()
    bench.judge.status = "degraded"
    bench.now += 14.9
    bench.gpu.state = replace(bench.gpu.state, overdue_at=bench.now + 100)
    bench.log.note()  # a new state
    asked = bench.judge.asked
    bench.now += 14.9
    bench.log.note()
    assert bench.judge.asked == asked
    bench.now += 0.2
    bench.log.note()
    assert bench.judge.asked == asked + 1


def test_a_fault_of_the_verdict_is_logged_once_and_raises_nothing() -> None:
    """The sampler whose thread notes the status goes on when the verdict fails."""
    bench = Bench()
    bench.judge.broken = True
    for _ in range(3):
        bench.cycle()
        bench.log.note()
    (line,) = bench.said
    assert line == ("error", "the verdict fails: ZeroDivisionError: a fault of the verdict's own")
    bench.judge.broken = False
    bench.cycle()
    bench.log.note()
    assert bench.said[-1][1].startswith("status: ok")
