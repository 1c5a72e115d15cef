"""The sign of life for systemd's watchdog: when it is due, and that it takes both threads."""

from __future__ import annotations

from typing import Optional

import pytest

from ollama_metrics.heartbeat import Heartbeat, status_line
from ollama_metrics.verdict import Balance, Verdict


class Manager:
    """Writes down what it is told; the watchdog is that of ServiceManager."""

    def __init__(self, watchdog_seconds: Optional[float] = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        self.said: list[str] = []

    def extend_watchdog(self, seconds: float) -> None:
        if self.watchdog_seconds is not None:
            self.watchdog_seconds = max(self.watchdog_seconds, seconds)

    def alive(self, status: str) -> None:
        self.said.append(status)


class Beating:
    """A heartbeat on a clock of its own, with what it did."""

    def __init__(self, watchdog_seconds: Optional[float] = None, interval: float = 1.0) -> None:
        self.now, self.wakes = 100.0, 0
        self.manager = Manager(watchdog_seconds)
        self.heart = Heartbeat(self.manager, interval, OK, self._wake, lambda: self.now)  # type: ignore[arg-type]

    def _wake(self) -> None:
        self.wakes += 1

    def sample_at(self, now: float) -> int:
        """Have the host's sampler tell of a sample; how often the loop was woken for it."""
        self.now, self.wakes = now, 0
        self.heart.sampled()
        return self.wakes


def verdict(status: str, weight: float, *reasons: str) -> Verdict:
    return Verdict(status, 0, 0, reasons, Balance(weight, 0.0, 0, 0.0, 0.0), weight=weight)


def OK() -> Verdict:
    return verdict("ok", 43.5)


def test_the_first_sample_is_a_sign_of_life() -> None:
    """The loop is woken for the first sample already, and tells the verdict."""
    beating = Beating()
    assert beating.sample_at(100.0) == 1
    beating.heart.beat()
    assert beating.manager.said == ["ok, weight 43.5"]


def test_a_loop_without_samples_gives_no_sign() -> None:
    """However often the loop is woken: while the host's sampler is stuck systemd hears nothing."""
    beating = Beating()
    for _ in range(3):
        beating.now += 1000.0
        beating.heart.beat()
    assert beating.manager.said == []
    beating.sample_at(5000.0)
    for _ in range(3):
        beating.heart.beat()
    assert len(beating.manager.said) == 1


def test_samples_without_a_loop_give_no_sign() -> None:
    """Nothing is sent by the sampler's thread: a loop that is stuck is not covered up by it."""
    beating = Beating()
    for second in range(100):
        beating.sample_at(100.0 + second)
    assert beating.manager.said == []


@pytest.mark.parametrize(
    ("watchdog", "interval", "every"),
    [
        (None, 1.0, 5.0),
        (30.0, 1.0, 5.0),
        (20.0, 1.0, 5.0),
        (8.0, 1.0, 2.0),
        (2.0, 0.1, 0.5),
        (2.0, 1.0, 1.0),  # the watchdog is asked to wait for four intervals
        (30.0, 60.0, 5.0),
    ],
)
def test_how_often_a_sign_is_due(watchdog: Optional[float], interval: float, every: float) -> None:
    """Four times within the watchdog's time, every five seconds at least; in between samples wake nobody."""
    beating = Beating(watchdog, interval)
    assert beating.sample_at(100.0) == 1
    beating.heart.beat()
    assert beating.sample_at(100.0 + every * 0.99) == 0
    beating.heart.beat()
    assert len(beating.manager.said) == 1
    assert beating.sample_at(100.0 + every) == 1
    beating.heart.beat()
    assert len(beating.manager.said) == 2


@pytest.mark.parametrize(
    ("watchdog", "interval", "asked_for"),
    [(None, 60.0, None), (30.0, 1.0, 30.0), (30.0, 7.5, 30.0), (30.0, 60.0, 240.0)],
)
def test_the_watchdog_is_never_quicker_than_the_samples(
    watchdog: Optional[float], interval: float, asked_for: Optional[float]
) -> None:
    """Where samples are further apart than the watchdog has patience, it is asked for four intervals."""
    assert Beating(watchdog, interval).manager.watchdog_seconds == asked_for


def test_the_line_has_status_weight_and_reasons() -> None:
    """It is what a person reads in `systemctl status`."""
    assert status_line(OK) == "ok, weight 43.5"
    reasons = "GPU 0 is lost", "a driver call hangs"
    assert (
        status_line(lambda: verdict("failing", 500.0, *reasons))
        == "failing, weight 500: GPU 0 is lost; a driver call hangs"
    )


def test_a_verdict_that_fails_is_told_and_is_no_end() -> None:
    """A fault of the agent's own does not end its loop; the sign of life tells of it."""

    def faulty() -> Verdict:
        raise ZeroDivisionError("x")

    assert status_line(faulty) == "the verdict fails: ZeroDivisionError"
