"""One flight for each key, whoever asks and whoever gives up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest

from ollama_metrics.single_flight import Flight, Flights, run_as_task, run_as_thread

PATIENCE = 20.0


class Source:
    """Something to read that takes as long as the test says, and counts how often it was read."""

    def __init__(self) -> None:
        self.read_times = 0
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def read(self, flight: Flight) -> str:
        self.read_times += 1
        number = self.read_times
        self.begun.set()
        assert self.may_end.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return f"reading {number}"


@pytest.fixture
def source() -> Iterator[Source]:
    one = Source()
    yield one
    one.may_end.set()


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def flights(now: list[float]) -> Iterator[Flights]:
    one = Flights(5.0, clock=lambda: now[0])
    yield one
    one.close()


@pytest.fixture
def ask(flights: Flights, source: Source) -> Callable[..., Flight]:
    return lambda **how: flights.begin("key", flights.in_thread(source.read), **how)


def value_of(flight: Flight) -> Any:
    """What a thread gets that waits for it, exceptions too."""
    try:
        return flight.wait()
    except Exception as error:
        return error


def test_fifty_threads_make_one_flight(source: Source, ask: Any) -> None:
    """Whoever asks while a flight is in the air gets its value."""
    with ThreadPoolExecutor(50) as pool:
        asked = threading.Barrier(51)

        def get() -> Any:
            flight = ask()
            asked.wait(PATIENCE)
            return flight.wait()

        values = [pool.submit(get) for _ in range(50)]
        asked.wait(PATIENCE)  # all of them have asked, and none has an answer
        source.may_end.set()
        assert {value.result(PATIENCE) for value in values} == {"reading 1"}
    assert source.read_times == 1


def test_tasks_and_threads_share_a_flight(source: Source, ask: Any) -> None:
    """Fifty tasks and fifty threads at once: one reading."""

    async def get() -> Any:
        return await ask().arrival()

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(50) as pool:
            waiting = [loop.run_in_executor(pool, lambda: ask().wait()) for _ in range(50)]
            tasks = [asyncio.ensure_future(get()) for _ in range(50)]
            await loop.run_in_executor(None, source.begun.wait, PATIENCE)
            source.may_end.set()
            return await asyncio.gather(*waiting, *tasks)

    assert asyncio.run(main()) == ["reading 1"] * 100
    assert source.read_times == 1


def test_a_value_is_good_for_its_time(source: Source, ask: Any, now: list[float]) -> None:
    """Within the duration it is the same; at its end, or by force, it is read again."""
    source.may_end.set()
    assert ask().wait() == "reading 1"
    now[0] += 4.9
    assert ask().wait() == "reading 1"
    assert ask(force=True).wait() == "reading 2"
    now[0] += 5.0
    assert ask().wait() == "reading 3"


def test_force_joins_what_is_in_the_air(source: Source, ask: Any) -> None:
    """To ask by force does not make two of a flight that is on its way."""
    first, second = ask(), ask(force=True)
    source.may_end.set()
    assert (first.wait(), second.wait()) == ("reading 1", "reading 1")


def test_keys_do_not_wait_for_each_other(flights: Flights, source: Source, ask: Any) -> None:
    """A flight of one key hangs; that of another lands."""
    ask()
    assert flights.begin("other", flights.in_thread(lambda _: "other")).wait() == "other"
    assert not source.may_end.is_set()


def test_a_failure_reaches_all_and_is_not_kept(source: Source, ask: Any, flights: Flights) -> None:
    """All who wait for a flight get its exception; the next one to ask makes another flight."""
    source.error = OSError("broken")
    waiting = [ask() for _ in range(50)]
    source.may_end.set()
    assert {type(value_of(flight)) for flight in waiting} == {OSError}
    assert flights.errors == {"key": "broken"}
    source.error = None
    assert ask().wait() == "reading 2"
    assert flights.errors == {}


def test_an_old_value_outlives_a_failure_by_force(
    source: Source, ask: Any, now: list[float]
) -> None:
    """A reading by force that fails takes nothing away: the value before it is good for its time."""
    source.may_end.set()
    ask().wait()
    source.error = OSError("broken")
    assert isinstance(value_of(ask(force=True)), OSError)
    assert ask().wait() == "reading 1"


def test_a_timeout_error_of_the_work_is_an_error_like_others(flights: Flights) -> None:
    """What the work raises is never taken for the waiting's own end."""

    def work(_: Flight) -> None:
        raise TimeoutError("the work's own")

    flight = flights.begin("key", flights.in_thread(work))
    with pytest.raises(TimeoutError, match="the work's own"):
        flight.wait()


def test_a_cancelled_task_leaves_the_flight_to_others(source: Source, ask: Any) -> None:
    """Of two tasks that wait for a flight one is cancelled: the other gets the value, without another reading."""

    async def main() -> Any:
        one, other = (asyncio.ensure_future(ask().arrival()) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        source.may_end.set()
        return await other

    assert asyncio.run(main()) == "reading 1"
    assert source.read_times == 1


def test_a_task_that_waits_does_not_block_its_loop(source: Source, ask: Any) -> None:
    """The loop goes on to run what ends the wait."""

    async def main() -> Any:
        task = asyncio.ensure_future(ask().arrival())
        await asyncio.sleep(0)
        source.may_end.set()  # never reached on a loop that is blocked
        return await task

    assert asyncio.run(main()) == "reading 1"


# -- on an event loop --------------------------------------------------------------------------------------------------


def test_a_cancelled_task_leaves_a_loops_flight_to_others(flights: Flights) -> None:
    """The same of a flight that is a task itself."""
    times: list[int] = []

    async def main() -> Any:
        gate = asyncio.Event()

        async def work() -> str:
            times.append(1)
            await gate.wait()
            return "value"

        launch = flights.on_loop(asyncio.get_running_loop(), threading.get_ident(), work)
        first, second = (flights.begin("key", launch) for _ in range(2))
        one, other = (asyncio.ensure_future(flight.arrival()) for flight in (first, second))
        await asyncio.sleep(0.01)
        one.cancel()
        await asyncio.sleep(0)
        gate.set()
        return await other

    assert asyncio.run(main()) == "value"
    assert times == [1]


def test_the_loops_own_thread_is_not_blocked(flights: Flights) -> None:
    """A thread that would wait for its own event loop gets a TypeError instead of waiting forever."""

    async def work() -> str:
        return "value"

    async def main() -> Any:
        launch = flights.on_loop(asyncio.get_running_loop(), threading.get_ident(), work)
        flight = flights.begin("key", launch)
        with pytest.raises(TypeError, match="async_"):
            flight.wait()
        return (
            await flight.arrival(),
            flight.wait(),
        )  # when it has landed, there is nothing to wait for

    assert asyncio.run(main()) == ("value", "value")


@pytest.mark.parametrize("ends", ["closed", "stopped"])
def test_a_loop_that_ends_takes_nobody_along(flights: Flights, ends: str) -> None:
    """Its flight fails for those in other threads, and the next one to ask makes a new flight."""

    async def never() -> None:
        await asyncio.Event().wait()

    async def begin() -> Flight:
        launch = flights.on_loop(asyncio.get_running_loop(), threading.get_ident(), never)
        flight = flights.begin("key", launch)
        await asyncio.sleep(0.01)
        return flight

    loop = asyncio.new_event_loop()
    try:
        if ends == "closed":
            flight = asyncio.run(begin())
        else:
            flight = loop.run_until_complete(begin())
        with pytest.raises(RuntimeError, match="event loop"):
            flight.wait()
        assert flights.begin("key", flights.in_thread(lambda _: "new")).wait() == "new"
    finally:
        if ends == "stopped":
            assert flight.task is not None
            flight.task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_close_wakes_who_waits(flights: Flights, source: Source, ask: Any) -> None:
    """Who waits gets a RuntimeError at once, whatever the flight does; so does who asks later."""
    flight = ask()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(value_of, flight)
        flights.close()
        assert isinstance(waiting.result(PATIENCE), RuntimeError)
    with pytest.raises(RuntimeError, match="closed"):
        ask()
    with pytest.raises(RuntimeError, match="closed"):
        flights.fresh("key")
    source.may_end.set()  # what lands now is dropped
    flights.join(time.monotonic() + PATIENCE)
    assert flight.thread is not None
    assert not flight.thread.is_alive()


def test_a_flight_that_waits_is_told_to_stop(flights: Flights) -> None:
    """What waits for `stopped` ends by close(), and join() finds its thread ended."""
    flight = flights.begin("key", flights.in_thread(lambda one: one.stopped.wait(PATIENCE)))
    flights.close()
    flights.join(time.monotonic() + PATIENCE)
    assert flight.thread is not None
    assert not flight.thread.is_alive()


def test_only_what_nobody_wants_is_stopped(flights: Flights) -> None:
    """The background's flight ends with it, but not the one that somebody has joined."""
    may_end = threading.Event()

    def work(one: Flight) -> str:
        return "stopped" if one.stopped.wait(0) or not may_end.wait(PATIENCE) else "landed"

    def wait(one: Flight) -> str:
        return "stopped" if one.stopped.wait(PATIENCE) else "landed"

    alone = flights.begin("alone", flights.in_thread(wait), wanted=False)
    joined = flights.begin("joined", flights.in_thread(work), wanted=False)
    assert flights.begin("joined", flights.in_thread(work)) is joined
    flights.stop_unwanted()
    may_end.set()
    assert isinstance(value_of(alone), RuntimeError)
    assert joined.wait() == "landed"
    assert flights.errors == {}


def test_a_thread_that_cannot_be_had_is_an_error(
    flights: Flights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who asks gets the system's error, and the next one who asks is not stuck behind it."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            flights.begin("key", flights.in_thread(lambda _: "value"))
    assert flights.begin("key", flights.in_thread(lambda _: "value")).wait() == "value"


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["thread", "task"])
def test_steps_are_the_same_for_threads_and_tasks(flights: Flights, how: str) -> None:
    """Steps are sent what their flights bring, and are thrown what they fail with."""

    def fail(_: Flight) -> None:
        raise OSError("broken")

    def steps() -> Any:
        found = [(yield flights.begin("one", flights.in_thread(lambda _: 1)))]
        try:
            yield flights.begin("two", flights.in_thread(fail))
        except OSError as error:
            found.append(str(error))
        return found

    got = run_as_thread(steps()) if how == "thread" else asyncio.run(run_as_task(steps()))
    assert got == [1, "broken"]
