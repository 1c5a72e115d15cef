"""A sampler's cycle on a clock that the test turns, and its thread with real ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Callable, Optional, Union

import pytest

from ollama_metrics.backoff import backed_off
from ollama_metrics.errors import CollectorError, DriverFailure
from ollama_metrics.sampler import Sampler

PATIENCE = 10.0


class Sample:
    """A reading of one level."""

    def __init__(self, level: float) -> None:
        self.level = level

    def levels(self) -> Mapping[str, tuple[Optional[float], ...]]:
        return {"": (self.level,)}


class Script:
    """A collector that gives what the test put in; each reading takes `takes` seconds."""

    def __init__(self) -> None:
        self.now = 100.0
        self.takes = 0.0
        self.pause = 0.0
        self.next: Union[float, Exception] = 0.5

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_000_000.0 + self.now

    def collect(self) -> Sample:
        self.now += self.takes
        if isinstance(self.next, Exception):
            raise self.next
        return Sample(self.next)


class Bench:
    """A sampler of one second's interval, what drives it and what it said."""

    def __init__(self) -> None:
        self.script = Script()
        self.log: list[tuple[str, str]] = []
        self.sampler = Sampler(
            "kettle",
            self.script,
            1.0,
            lambda level, sentence: self.log.append((level, sentence)),
            clock=self.script.clock,
            wall=self.script.wall,
        )

    def cycle(self, outcome: Union[float, Exception]) -> float:
        """One cycle with this outcome; then time goes on to when the next one is due."""
        begun, self.script.next = self.script.now, outcome
        wait = self.sampler.cycle()
        self.script.now = max(self.script.now, begun + wait)
        return wait


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- cycles ------------------------------------------------------------------------------------------------------------


def test_before_the_first_cycle_there_is_no_sample(bench: Bench) -> None:
    """A new sampler has nothing to show, no failure counted, and three intervals' time for its first reading."""
    state = bench.sampler.state
    assert state.sample is None
    assert state.last_good is None
    assert state.read_at is None
    assert state.ring == ()
    assert (state.health.success, state.health.consecutive_failures) == (False, 0)
    assert state.overdue_at == 103.0
    assert not bench.sampler.first.is_set()


def test_a_cycle_publishes_its_reading(bench: Bench) -> None:
    """A good cycle swaps in a whole new state: sample, times, health and ring."""
    before = bench.sampler.state
    bench.script.takes = 0.25
    assert bench.cycle(0.5) == 1.0
    state = bench.sampler.state
    assert state is not before
    assert before.sample is None
    assert state.sample is state.last_good is not None
    assert state.sample.level == 0.5
    assert (state.read_at, state.read_timestamp) == (100.25, 1_000_100.25)
    health = state.health
    assert (health.collector, health.success, health.error) == ("kettle", True, None)
    assert health.duration_seconds == 0.25
    assert health.last_success_timestamp_seconds == 1_000_100.25
    assert (health.consecutive_failures, health.failures_total) == (0, 0)
    assert [(span.start, span.end) for span in state.ring] == [(99.25, 100.25)]
    assert bench.sampler.first.is_set()
    assert bench.log == []


def test_readings_join_without_gap_or_overlap(bench: Bench) -> None:
    """Each reading stands for the time since the one before it."""
    for level in (0.1, 0.2, 0.3):
        bench.cycle(level)
    assert [(s.start, s.end) for s in bench.sampler.state.ring] == [
        (99.0, 100.0),
        (100.0, 101.0),
        (101.0, 102.0),
    ]


@pytest.mark.parametrize(
    ("missed", "start"), [(0.5, 100.0), (1.0, 100.0), (1.01, 101.01), (60, 160)]
)
def test_a_gap_in_the_readings_weighs_nothing(bench: Bench, missed: float, start: float) -> None:
    """A reading whose predecessor is over two intervals old stands for one interval only."""
    bench.cycle(0.1)
    bench.script.now += missed
    bench.cycle(0.9)
    newest = bench.sampler.state.ring[-1]
    assert newest.start == pytest.approx(start)
    assert newest.end == pytest.approx(101.0 + missed)


def test_a_sampler_is_overdue_three_intervals_after_its_reading(bench: Bench) -> None:
    """Exactly three intervals after a reading the collector counts as stuck."""
    bench.script.takes = 0.5
    bench.cycle(0.5)
    state = bench.sampler.state
    assert state.overdue_at - state.read_at == 3.0


def test_a_failure_drops_the_sample_and_keeps_the_last_good_one(bench: Bench) -> None:
    """A failed cycle shows no sample; what was last good, its time and the ring stay for who wants them."""
    bench.cycle(0.5)
    good = bench.sampler.state
    bench.script.takes = 0.25
    bench.cycle(CollectorError("no water"))
    state = bench.sampler.state
    assert state.sample is None
    assert state.last_good is good.last_good
    assert (state.read_at, state.read_timestamp) == (good.read_at, good.read_timestamp)
    assert state.ring is good.ring
    health = state.health
    assert (health.success, health.error) == (False, "no water")
    assert health.duration_seconds == 0.25
    assert health.last_success_timestamp_seconds == good.read_timestamp
    assert (health.consecutive_failures, health.failures_total) == (1, 1)


def test_failures_are_counted_in_a_row_and_in_all(bench: Bench) -> None:
    """A good reading ends the row and leaves the total."""
    counts = []
    trouble = CollectorError("no water")
    for outcome in (trouble, trouble, 0.5, trouble, 0.5):
        bench.cycle(outcome)
        health = bench.sampler.state.health
        counts.append((health.consecutive_failures, health.failures_total))
    assert counts == [(1, 1), (2, 2), (0, 2), (1, 3), (0, 3)]


def test_a_failing_collector_is_asked_again_with_back_off(bench: Bench) -> None:
    """Waits double from 1 s to 30 s and begin anew after a good reading."""
    trouble = CollectorError("no water")
    waits = [bench.cycle(trouble) for _ in range(8)]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert bench.cycle(0.5) == 1
    assert bench.cycle(trouble) == 1
    assert bench.cycle(trouble) == 2


def test_back_off_counts_from_the_failure(bench: Bench) -> None:
    """A call that took long to fail is not made again at once."""
    bench.script.takes = 40.0
    begun = bench.script.now
    assert bench.cycle(CollectorError("timed out")) == 41.0
    assert bench.script.now == begun + 41.0
    assert bench.cycle(CollectorError("timed out")) == 42.0


def test_backing_off_never_makes_it_faster() -> None:
    """With an interval above the first waits the interval is the least."""
    bench = Bench()
    slow = Sampler("slow", bench.script, 5.0, lambda *_: None, clock=bench.script.clock)
    bench.script.next = CollectorError("no water")
    assert [slow.cycle() for _ in range(5)] == [5, 5, 5, 8, 16]


def test_a_sampler_that_backs_off_is_not_stuck(bench: Bench) -> None:
    """While it waits to ask again it is failing, not overdue; two intervals after it should have it is."""
    for _ in range(3):
        bench.cycle(CollectorError("no water"))
    failed_at = bench.script.now - 4
    assert bench.sampler.state.overdue_at == failed_at + 4 + 2


def test_the_wait_after_one_of_nothing() -> None:
    """The first wait is a second, the longest half a minute, each the double of the one before."""
    waits = [0.0]
    for _ in range(7):
        waits.append(backed_off(waits[-1]))
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30]


def test_a_cause_is_logged_once_and_its_end_once(bench: Bench) -> None:
    """A trouble that lasts is one line, another trouble another one, and the return of the readings the last."""
    for outcome in (
        *[0.5] * 2,
        *[CollectorError("no water")] * 3,
        *[CollectorError("no power")] * 2,
        *[0.5] * 2,
        CollectorError("no power"),
    ):
        bench.cycle(outcome)
    assert bench.log == [
        ("error", "kettle: no water"),
        ("error", "kettle: no power"),
        ("info", "kettle: readings are back"),
        ("error", "kettle: no power"),
    ]


def test_a_collector_with_nothing_to_collect_is_left_in_peace(bench: Bench) -> None:
    """A collector's own pause stretches the interval, and what counts as overdue with it."""
    bench.script.pause = 16.0
    assert bench.cycle(0.5) == 16.0
    assert bench.sampler.state.overdue_at == 100.0 + 16.0 + 2.0
    bench.script.pause = 0.5
    assert bench.cycle(0.5) == 1.0


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("spout"), "unexpected KeyError: 'spout'"),
        (DriverFailure("no GPU answers"), "no GPU answers"),
        (MemoryError(), "unexpected MemoryError: "),
    ],
)
def test_any_exception_is_a_failure(bench: Bench, error: Exception, sentence: str) -> None:
    """What nobody thought of fails the cycle like what somebody did; the sampler goes on."""
    bench.cycle(error)
    assert bench.sampler.state.health.error == sentence
    assert bench.sampler.first.is_set()
    bench.cycle(0.5)
    assert bench.sampler.state.health.success


# -- threads -----------------------------------------------------------------------------------------------------------


class Gate:
    """A collector that can be made to hang, and that tells of each reading that it begins and ends."""

    pause = 0.0

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.hanging = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def collect(self) -> Sample:
        self.begun.release()
        if not self.open.is_set():
            self.hanging.set()
            self.open.wait(60)
        self.ended.release()
        return Sample(0.5)


Starter = Callable[..., Sampler]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Start a sampler of a gate, of 20 ms' interval; its thread ends with the test."""
    started: list[tuple[Sampler, Gate]] = []

    def start(name: str, gate: Gate, first_after: float = 0.0) -> Sampler:
        sampler = Sampler(name, gate, 0.02, lambda *_: None)
        started.append((sampler, gate))
        sampler.start(first_after)
        return sampler

    yield start
    for sampler, gate in started:
        sampler.stop()
        gate.open.set()
        thread = thread_of(sampler)
        if thread is not None:
            thread.join(PATIENCE)


def thread_of(sampler: Sampler) -> Optional[threading.Thread]:
    name = f"{sampler.name}-sampler"
    return next((t for t in threading.enumerate() if t.name == name), None)


def test_a_thread_takes_readings_by_itself(start: Starter) -> None:
    """A started sampler publishes its first reading and goes on."""
    gate = Gate()
    sampler = start("one", gate)
    assert sampler.first.wait(PATIENCE)
    for _ in range(3):
        assert gate.ended.acquire(timeout=PATIENCE)
    assert sampler.state.health.success


def test_a_collector_that_hangs_delays_no_other(start: Starter) -> None:
    """While one driver call hangs another sampler takes reading after reading, and it heals when the call returns."""
    hanging, healthy = Gate(), Gate()
    hanging.open.clear()
    stuck, other = start("stuck", hanging), start("other", healthy)
    assert hanging.begun.acquire(timeout=PATIENCE)
    for _ in range(10):
        assert healthy.ended.acquire(timeout=PATIENCE)
    assert other.first.is_set()
    assert not stuck.first.is_set()
    assert stuck.state.sample is None
    hanging.open.set()
    assert stuck.first.wait(PATIENCE)
    assert stuck.state.health.success
    for _ in range(3):
        assert hanging.begun.acquire(timeout=PATIENCE)


def test_a_hang_does_not_drop_what_was_read_before(start: Starter) -> None:
    """Its last state stands while a collector hangs, and is overdue by its own time."""
    gate = Gate()
    sampler = start("late", gate)
    assert gate.ended.acquire(timeout=PATIENCE)
    gate.open.clear()
    assert gate.hanging.wait(PATIENCE)
    state = sampler.state
    assert state.sample is not None
    assert state.overdue_at == pytest.approx((state.read_at or 0) + 0.06)


def test_the_first_reading_can_be_put_off(start: Starter) -> None:
    """`first_after` leaves the first interval its time, and stopping does not wait for it."""
    gate = Gate()
    sampler = start("patient", gate, first_after=3600.0)
    thread = thread_of(sampler)
    assert thread is not None
    sampler.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not gate.begun.acquire(blocking=False)


def test_what_comes_after_each_cycle_sees_its_outcome() -> None:
    """`after` is called by the thread when a cycle has been published, the good ones and the others."""
    gate, seen = Gate(), threading.Semaphore(0)
    states = []

    def after() -> None:
        states.append(sampler.state.sample)
        seen.release()

    sampler = Sampler("noted", gate, 0.02, lambda *_: None, after=after)
    sampler.start()
    try:
        for _ in range(2):
            assert seen.acquire(timeout=PATIENCE)
        assert None not in states
    finally:
        thread = thread_of(sampler)
        sampler.stop()
        assert thread is not None
        thread.join(PATIENCE)


def test_stop_ends_the_thread(start: Starter) -> None:
    """After `stop` the thread ends without another reading; to stop twice is no mistake."""
    gate = Gate()
    sampler = start("ending", gate)
    thread = thread_of(sampler)
    assert thread is not None
    assert thread.daemon
    assert gate.ended.acquire(timeout=PATIENCE)
    sampler.stop()
    sampler.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
