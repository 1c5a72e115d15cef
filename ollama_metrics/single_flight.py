"""Readings that are kept for a while and taken by one flight for each key, whoever asks: threads, tasks or both.

It knows of no GPU and no Ollama. How a flight reads is its launcher's business: in a thread of its own
(`in_thread`) or as a task of an event loop (`on_loop`). One that fails tells all who wait for it, and
nothing is kept. Nobody who stops waiting ends it for the others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future, TimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task
    from collections.abc import Coroutine, Generator
    from typing import Any, Callable, Optional, TypeVar

    Value = TypeVar("Value")
    # Something that is done in steps: it yields flights, and is sent what each has brought.
    Steps = Generator["Flight", Any, Value]

# How often a thread that waits for an event loop looks whether it still runs.
_LOOK_SECONDS = 0.5
_CLOSED = "the monitor is closed"
_STRANDED = "the event loop that was asking Ollama runs no more"


class Flight:
    """One reading on its way, or the one that has landed.

    `stopped` is set when nobody wants it any more: between two attempts it is what to wait for.
    """

    def __init__(self, key: str, wanted: bool) -> None:
        self.key = key
        self.wanted = wanted  # else it is the background's, and nobody waits for it
        self.followed = False  # the background goes on when it has landed
        self.landed_at = 0.0
        self.stopped = threading.Event()
        self.thread: Optional[threading.Thread] = None
        self.loop: Optional[AbstractEventLoop] = None
        self.loop_thread = 0
        self.task: Optional[Task[None]] = None
        self.future: Future[Any] = Future()
        # Else a task that waits for it and is cancelled would cancel it for all.
        self.future.set_running_or_notify_cancel()

    def stop(self) -> None:
        """Have it end its waits; what is within a call of somebody else's ends with the call."""
        self.stopped.set()
        if self.loop is not None and self.task is not None:
            with contextlib.suppress(RuntimeError):  # it was closed, and has cancelled its tasks
                self.loop.call_soon_threadsafe(self.task.cancel)

    @property
    def is_carried(self) -> bool:
        """Whether a thread is still at it, wanted or not."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def stranded(self) -> bool:
        """Whether the event loop that carries it runs no more."""
        return self.loop is not None and not self.loop.is_running()

    def wait(self) -> Any:
        """The value, for a thread. Raises what the flight failed with.

        Raises TypeError in the thread of the event loop that is to bring the value.
        """
        while self.loop is not None and not self.future.done():
            if self.loop_thread == threading.get_ident() and not self.stranded:
                raise TypeError(
                    "this would block the event loop that is to bring the value: "
                    "await the method whose name begins with async_"
                )
            try:
                return self.future.result(_LOOK_SECONDS)
            except TimeoutError:
                if self.stranded and not self.future.done():
                    raise RuntimeError(_STRANDED) from None
        return self.future.result()

    async def arrival(self) -> Any:
        """The value, for a task. Raises what the flight failed with."""
        import asyncio

        return await asyncio.wrap_future(self.future)


class Flights:
    """The flights of each key, and the last one that landed, good for `seconds`.

    All methods may be called by any thread. `errors` has what the last flight of a key failed with,
    if it failed.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._lock = threading.Lock()
        self._landed: dict[str, Flight] = {}
        self._in_air: dict[str, Flight] = {}
        self._carried: list[Flight] = []  # by threads of which some may still run
        self.closed = False
        self.errors: dict[str, str] = {}

    def fresh(self, key: str) -> Optional[Flight]:
        """The flight that landed less than `seconds` ago. Raises RuntimeError after close()."""
        with self._lock:
            return self._fresh(key)

    def begin(
        self, key: str, launch: Callable[[Flight], None], force: bool = False, wanted: bool = True
    ) -> Flight:
        """The flight to wait for: a fresh one (unless `force`), the one in the air, or a new one by `launch`.

        Raises RuntimeError after close(), or what `launch` raises.
        """
        with self._lock:
            flight = self._fresh(key)
            if flight is not None and not force:
                return flight
            lost = None
            flight = self._in_air.get(key)
            if flight is not None:
                if not flight.stranded:
                    flight.wanted |= wanted
                    return flight
                lost = flight
            flight = self._in_air[key] = Flight(key, wanted)
        if lost is not None:
            lost.future.set_exception(RuntimeError(_STRANDED))
        try:
            launch(flight)
        except BaseException as error:
            self._fail(flight, error)
            raise
        return flight

    def in_thread(self, work: Callable[[Flight], Any]) -> Callable[[Flight], None]:
        """Have `work` done by a thread of the flight's own.

        A daemon: a call that hangs in a driver must not keep the program from ending.
        """

        def run(flight: Flight) -> None:
            if flight.stopped.is_set():
                return
            try:
                self._land(flight, work(flight))
            except BaseException as error:
                self._fail(flight, error)

        def launch(flight: Flight) -> None:
            name = f"ollama-metrics {flight.key}"
            thread = threading.Thread(target=run, args=(flight,), name=name, daemon=True)
            thread.start()
            flight.thread = thread
            with self._lock:
                self._carried = [one for one in self._carried if one.is_carried]
                self._carried.append(flight)

        return launch

    def on_loop(
        self, loop: AbstractEventLoop, thread: int, work: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Callable[[Flight], None]:
        """Have `work` done by a task of the event loop, which runs in the thread with this id."""

        async def run(flight: Flight) -> None:
            try:
                self._land(flight, await work())
            except Exception as error:
                self._fail(flight, error)
            except BaseException:
                # The loop ends, say. Those who wait for this flight were not cancelled themselves.
                self._fail(flight, RuntimeError(_STRANDED))
                raise

        def start(flight: Flight) -> None:
            flight.task = loop.create_task(run(flight))
            if flight.stopped.is_set():
                flight.task.cancel()

        def launch(flight: Flight) -> None:
            flight.loop, flight.loop_thread = loop, thread
            loop.call_soon_threadsafe(start, flight)

        return launch

    def stop_unwanted(self) -> None:
        """Give up what only the background has begun."""
        with self._lock:
            unwanted = [flight for flight in self._in_air.values() if not flight.wanted]
            for flight in unwanted:
                del self._in_air[flight.key]
        for flight in unwanted:
            flight.future.set_exception(RuntimeError("the background refresh has ended"))
            flight.stop()

    def close(self) -> None:
        """Give up all flights and drop all values; whoever waits gets a RuntimeError at once."""
        with self._lock:
            self.closed = True
            flights = tuple(self._in_air.values())
            self._in_air.clear()
            self._landed.clear()
        for flight in flights:
            flight.future.set_exception(RuntimeError(_CLOSED))
            flight.stop()

    def join(self, until: float) -> None:
        """Wait for the threads of flights that have ended or were given up, but not beyond `until` (monotonic)."""
        with self._lock:
            ended = [one for one in self._carried if self._in_air.get(one.key) is not one]
        for flight in ended:
            if flight.thread is not None and flight.thread is not threading.current_thread():
                flight.thread.join(max(0.0, until - time.monotonic()))

    def _fresh(self, key: str) -> Optional[Flight]:
        if self.closed:
            raise RuntimeError(_CLOSED)
        flight = self._landed.get(key)
        if flight is None or self._clock() - flight.landed_at >= self._seconds:
            return None
        return flight

    def _land(self, flight: Flight, value: Any) -> None:
        with self._lock:
            if self._in_air.get(flight.key) is not flight:
                return  # it was given up
            del self._in_air[flight.key]
            self.errors.pop(flight.key, None)
            flight.landed_at = self._clock()
            self._landed[flight.key] = flight
        flight.future.set_result(value)

    def _fail(self, flight: Flight, error: BaseException) -> None:
        with self._lock:
            if self._in_air.get(flight.key) is not flight:
                return
            del self._in_air[flight.key]
            self.errors[flight.key] = str(error) or repr(error)
        flight.future.set_exception(error)


def run_as_thread(steps: Steps[Value]) -> Value:
    """Take the steps; the calling thread waits for the flights."""
    try:
        flight = next(steps)
        while True:
            try:
                value = flight.wait()
            except Exception as error:
                flight = steps.throw(error)
            else:
                flight = steps.send(value)
    except StopIteration as end:
        result: Value = end.value
        return result


async def run_as_task(steps: Steps[Value]) -> Value:
    """Take the steps; the calling task waits for the flights, its event loop goes on."""
    try:
        flight = next(steps)
        while True:
            try:
                value = await flight.arrival()
            except Exception as error:
                flight = steps.throw(error)
            else:
                flight = steps.send(value)
    except StopIteration as end:
        result: Value = end.value
        return result
