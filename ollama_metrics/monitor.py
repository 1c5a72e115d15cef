"""`OllamaGPUMonitor`: the readings of this package inside another program, for its threads and its tasks.

It reads by `monitor_sources.py`, which drives the daemon's own collectors; how values are kept and shared
is `single_flight.py`, what the dictionaries hold is `monitor_values.py`. The daemon knows nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import weakref
from dataclasses import replace

from .errors import CollectorError, OllamaDown, OllamaError
from .monitor_sources import Gpus, Ollama, Runners, asks_at
from .monitor_values import (
    converted,
    empty_status,
    gpu_entries,
    known_unit,
    lost_entries,
    process_entries,
    text,
    usage_entries,
)
from .ollama_url import DEFAULT, from_ollama_host
from .placement import place
from .single_flight import Flights, run_as_task, run_as_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Sequence
    from concurrent.futures import Future
    from typing import Any, Callable, Optional

    from .gpu import GpuSample
    from .monitor_sources import OllamaClient
    from .monitor_values import GpuStatus, ModelGpuUsage, MonitorStatus, OllamaProcess
    from .ollama import Model
    from .ollama_url import OllamaUrl
    from .single_flight import Flight, Steps, Value

# How long close() and _stop_background_refresh() wait for threads.
_JOIN_SECONDS = 0.6


class OllamaGPUMonitor:
    """What Ollama has loaded, and on which GPUs of this host.

    Values are read when they are asked for and kept for `cache_duration` seconds; however many ask
    for one, from threads and tasks, it is read once. `ollama_client` is an `ollama.Client` or an
    `ollama.AsyncClient`; None is this package's own reader, which asks where OLLAMA_HOST says. What
    may pass (no answer, a 5xx, a 429) is tried `retry_attempts` times, `retry_delay` seconds after the
    first failure and twice as long after each further one, up to a minute. With
    `enable_background_refresh` a thread reads everything every `background_refresh_interval` seconds.

    Raises ValueError or TypeError for an argument or an OLLAMA_HOST that cannot be used.
    """

    def __init__(
        self,
        ollama_client: Optional[OllamaClient] = None,
        default_memory_unit: str = "MB",
        cache_duration: float = 5,
        enable_background_refresh: bool = False,
        background_refresh_interval: float = 10,
        retry_attempts: int = 3,
        retry_delay: float = 1.0,
    ) -> None:
        self.default_memory_unit = known_unit(default_memory_unit)
        if not cache_duration >= 0 or not retry_delay >= 0:  # so that NaN is refused, too
            raise ValueError("cache_duration and retry_delay are seconds, 0 or more")
        if not background_refresh_interval > 0:
            raise ValueError("background_refresh_interval is seconds, more than 0")
        if not retry_attempts >= 1:
            raise ValueError("retry_attempts is 1 or more")
        url = _ollama_host() if ollama_client is None else asks_at(ollama_client)
        self._ollama = Ollama(ollama_client, url or DEFAULT, retry_attempts, retry_delay)
        self._gpus, self._runners = Gpus(), Runners(url)
        self._flights = Flights(cache_duration)
        self._weights: dict[tuple[str, Optional[str]], Optional[str]] = {}
        self._loop: Optional[AbstractEventLoop] = None  # the one that an AsyncClient is awaited on
        self._loop_thread = 0
        self._background: Optional[threading.Thread] = None
        self._enough = threading.Event()
        # A monitor that is dropped takes its thread and NVML's session along.
        weakref.finalize(self, _release, self._enough, self._gpus).atexit = False
        if enable_background_refresh:
            pause = min(background_refresh_interval, threading.TIMEOUT_MAX)
            self._background = threading.Thread(
                target=_refresh,
                args=(weakref.ref(self), self._enough, pause),
                name="ollama-metrics refresh",
                daemon=True,
            )
            self._background.start()

    # -- what there is to know ------------------------------------------------------------------------------------

    def get_gpu_status(
        self, unit: Optional[str] = None, force_refresh: bool = False
    ) -> list[GpuStatus]:
        """The GPUs that answer; none on a host without. Memory in `unit`, or the monitor's own.

        Source: NVML. Raises ValueError for an unknown unit, errors.DriverFailure when there is a
        driver and no GPU answers.
        """
        return run_as_thread(self._gpu_status(unit, force_refresh))

    def get_ollama_processes(self, force_refresh: bool = False) -> list[OllamaProcess]:
        """The models that Ollama has loaded.

        Source: Ollama's GET /api/ps. Raises errors.OllamaDown when nobody answers, after the retries,
        and errors.OllamaAnswer for an answer that is not Ollama's.
        """
        return run_as_thread(self._ollama_processes(force_refresh))

    def get_model_gpu_usage(self, force_refresh: bool = False) -> list[ModelGpuUsage]:
        """Each loaded model with the GPUs that it is on, or the reason why they are not known.

        Sources: Ollama's API, NVML's lists of processes, the command lines in /proc. Raises as
        get_ollama_processes() does; where no GPU can be read, the reason says so.
        """
        return run_as_thread(self._model_gpu_usage(force_refresh))

    def format_status(self, include_gpu: bool = True, include_timestamp: bool = True) -> str:
        """All of it for a person to read; without `include_gpu` the driver is not asked.

        What cannot be read is a line in it, and not raised.
        """
        return text(run_as_thread(self._status(include_gpu)), include_gpu, include_timestamp)

    def to_dict(self) -> MonitorStatus:
        """All of it. What cannot be read is None, and `error` says why; nothing of that is raised."""
        return run_as_thread(self._status())

    def to_json(self, indent: Optional[int] = 2) -> str:
        """to_dict() as JSON."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    # -- the same for tasks ---------------------------------------------------------------------------------------

    async def async_get_gpu_status(
        self, unit: Optional[str] = None, force_refresh: bool = False
    ) -> list[GpuStatus]:
        """As get_gpu_status(), without blocking the event loop."""
        return await self._awaited(self._gpu_status(unit, force_refresh))

    async def async_get_ollama_processes(self, force_refresh: bool = False) -> list[OllamaProcess]:
        """As get_ollama_processes(), without blocking the event loop."""
        return await self._awaited(self._ollama_processes(force_refresh))

    async def async_get_model_gpu_usage(self, force_refresh: bool = False) -> list[ModelGpuUsage]:
        """As get_model_gpu_usage(), without blocking the event loop."""
        return await self._awaited(self._model_gpu_usage(force_refresh))

    async def async_format_status(
        self, include_gpu: bool = True, include_timestamp: bool = True
    ) -> str:
        """As format_status(), without blocking the event loop."""
        return text(await self._awaited(self._status(include_gpu)), include_gpu, include_timestamp)

    async def async_to_dict(self) -> MonitorStatus:
        """As to_dict(), without blocking the event loop."""
        return await self._awaited(self._status())

    async def async_to_json(self, indent: Optional[int] = 2) -> str:
        """As to_json(), without blocking the event loop."""
        return json.dumps(await self.async_to_dict(), indent=indent, allow_nan=False)

    # -- the rest -------------------------------------------------------------------------------------------------

    @staticmethod
    def convert_byte_unit(value: float, src_unit: str, target_unit: str) -> float:
        """`value` of one unit in another: b (bits), B, KB (1024 B), MB, GB or TB.

        Raises ValueError for any other unit.
        """
        return converted(value, src_unit, target_unit)

    @property
    def last_errors(self) -> dict[str, str]:
        """Why the last reading of `gpus` or `models` failed, if it did; the background's failures, too."""
        return dict(self._flights.errors)

    def close(self) -> None:
        """End the background refresh and all that is on its way, and give NVML back; in under a second.

        Who waits for a value gets a RuntimeError, and so does every later call. A call that hangs in
        the driver, in the system's resolver or in a client of yours is left to a daemon thread, which
        ends with that call.
        """
        self._enough.set()
        self._flights.close()
        self._ollama.end()
        self._runners.end()
        self._join()
        self._gpus.close()

    def _stop_background_refresh(self) -> None:
        """End the background refresh alone, in under a second; the monitor goes on to work."""
        self._enough.set()
        self._join()

    def _join(self) -> None:
        until = time.monotonic() + _JOIN_SECONDS
        if self._background is not None and self._background is not threading.current_thread():
            self._background.join(_JOIN_SECONDS)
        self._flights.stop_unwanted()
        self._flights.join(until)

    def __enter__(self) -> OllamaGPUMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- each method but for the waiting -----------------------------------------------------------------------------

    def _gpu_status(self, unit: Optional[str], force: bool) -> Steps[list[GpuStatus]]:
        unit = known_unit(unit) if unit is not None else self.default_memory_unit
        return gpu_entries((yield self._begin_gpus(force)), unit)

    def _ollama_processes(self, force: bool) -> Steps[list[OllamaProcess]]:
        return process_entries((yield self._begin_models(force)), self.default_memory_unit)

    def _model_gpu_usage(self, force: bool) -> Steps[list[ModelGpuUsage]]:
        gpus, runners = self._begin_gpus(force), self._begin_runners(force)  # while Ollama is asked
        models = yield self._begin_models(force)
        return (yield from self._usage(models, gpus, runners))

    def _usage(
        self, models: Sequence[Model], gpus: Flight, runners: Flight
    ) -> Steps[list[ModelGpuUsage]]:
        if self._lacking(models):
            yield self._begin_weights(models)
        found: Sequence[GpuSample] = ()
        try:
            found = (yield gpus).gpus
        except CollectorError:
            pass  # the reason that place() gives tells it
        weights = {name: known for (name, _), known in self._weights.items() if known is not None}
        seen, why = yield runners
        placements = place(models, weights, seen, found)
        if why:
            placements = tuple(
                one if one.placement_known else replace(one, unknown=why) for one in placements
            )
        return usage_entries(models, placements, found, self.default_memory_unit)

    def _status(self, include_gpu: bool = True) -> Steps[MonitorStatus]:
        status = empty_status(self.default_memory_unit)
        errors = []
        gpus = self._begin_gpus() if include_gpu else None
        try:
            models = yield self._begin_models()
            status["processes"] = process_entries(models, self.default_memory_unit)
            if gpus is not None:
                usage = yield from self._usage(models, gpus, self._begin_runners())
                status["model_gpu_usage"] = usage
        except CollectorError as error:
            errors.append(str(error))
        try:
            if gpus is not None:
                reading = yield gpus
                status["gpus"] = gpu_entries(reading, self.default_memory_unit)
                status["lost_gpus"] = lost_entries(reading)
        except CollectorError as error:
            errors.append(str(error))
        status["error"] = "; ".join(errors) or None
        return status

    async def _awaited(self, steps: Steps[Value]) -> Value:
        if self._ollama.is_async:
            import asyncio

            self._loop, self._loop_thread = asyncio.get_running_loop(), threading.get_ident()
        return await run_as_task(steps)

    # -- the flights -------------------------------------------------------------------------------------------------

    def _begin_gpus(self, force: bool = False, wanted: bool = True) -> Flight:
        return self._in_thread("gpus", lambda _: self._gpus.read(), force, wanted)

    def _begin_runners(self, force: bool = False, wanted: bool = True) -> Flight:
        return self._in_thread("runners", lambda _: self._runners.read(), force, wanted)

    def _begin_weights(self, models: Sequence[Model], wanted: bool = True) -> Flight:
        fresh = self._flights.fresh("weights")
        unasked = fresh is not None and not _keys(models) <= fresh.wait()
        return self._in_thread("weights", lambda _: self._read_weights(models), unasked, wanted)

    def _begin_models(self, force: bool = False, wanted: bool = True) -> Flight:
        if not self._ollama.is_async:
            return self._in_thread(
                "models", lambda flight: self._ollama.models(flight.stopped), force, wanted
            )
        flight = None if force else self._flights.fresh("models")
        if flight is not None:
            return flight
        loop = self._loop
        if loop is None or not self._can_begin_models:
            raise TypeError(
                "an AsyncClient has to be awaited: use the method whose name begins with async_"
            )
        launch = self._flights.on_loop(loop, self._loop_thread, self._ollama.async_models)
        return self._flights.begin("models", launch, force, wanted)

    @property
    def _can_begin_models(self) -> bool:
        """Not with an AsyncClient that was never awaited, or whose event loop has ended."""
        return not self._ollama.is_async or (self._loop is not None and self._loop.is_running())

    def _in_thread(
        self, key: str, work: Callable[[Flight], Any], force: bool, wanted: bool
    ) -> Flight:
        return self._flights.begin(key, self._flights.in_thread(work), force, wanted)

    # -- what they do ------------------------------------------------------------------------------------------------

    def _lacking(self, models: Sequence[Model]) -> list[Model]:
        """The models on a GPU whose weights are not known yet."""
        known = self._weights
        return [one for one in models if one.vram_bytes and (one.name, one.digest) not in known]

    def _read_weights(self, models: Sequence[Model]) -> set[tuple[str, Optional[str]]]:
        """Ask for what is lacking; returns for which models that was seen to, whatever came of it."""
        known = {key: one for key, one in self._weights.items() if key in _keys(models)}
        for model in self._lacking(models):
            if self._flights.closed:
                break
            try:
                known[model.name, model.digest] = self._runners.weights_of(model.name)
            except OllamaDown:
                break  # and so would be the others
            except OllamaError:
                pass  # where this one sits is not known for now
        self._weights = known
        return _keys(models)

    def _refresh_all(self) -> None:
        """Begin to read everything; what fails is kept by the flights."""
        with contextlib.suppress(RuntimeError):  # closed, or there is no thread to be had
            self._begin_gpus(force=True, wanted=False)
            self._begin_runners(force=True, wanted=False)
            if self._can_begin_models:
                flight = self._begin_models(force=True, wanted=False)
                if not flight.followed:
                    flight.followed, this = True, weakref.ref(self)
                    flight.future.add_done_callback(lambda models: _follow(this, models))


def _keys(models: Sequence[Model]) -> set[tuple[str, Optional[str]]]:
    return {(model.name, model.digest) for model in models}


def _follow(monitor: weakref.ref[OllamaGPUMonitor], models: Future[Any]) -> None:
    """The models have been read in the background: read what they are made of."""
    one = monitor()
    if one is not None and models.exception() is None and one._lacking(models.result()):
        with contextlib.suppress(RuntimeError):
            one._begin_weights(models.result(), wanted=False)


def _ollama_host() -> OllamaUrl:
    """Where OLLAMA_HOST leads. Raises ValueError."""
    host = os.environ.get("OLLAMA_HOST", "").strip()
    try:
        return from_ollama_host(host) if host else DEFAULT
    except ValueError as error:
        raise ValueError(f"OLLAMA_HOST={host} cannot be used: {error}") from None


def _refresh(
    monitor: weakref.ref[OllamaGPUMonitor], enough: threading.Event, interval: float
) -> None:
    """What the background's thread does; it holds the monitor only while it begins the flights."""
    while not enough.is_set():
        one = monitor()
        if one is None:
            return
        one._refresh_all()
        del one
        enough.wait(interval)


def _release(enough: threading.Event, gpus: Gpus) -> None:
    enough.set()
    gpus.close()
