"""What `OllamaGPUMonitor` reads from: the GPUs, Ollama through whichever client it was given, Ollama's processes.

Each source may be called by any thread, and lets one at a time through. How long values are kept, and
who shares them, is not known here.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from itertools import count

from .errors import CollectorError, OllamaAnswer, OllamaDown, OllamaError
from .expectation import Expectation
from .gpu_collector import GpuCollector
from .ollama_api import OllamaApi, models_in
from .ollama_processes import OllamaProcesses, is_of_this_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Optional, Protocol

    from .gpu import GpuReading
    from .ollama import Model, Runner
    from .ollama_url import OllamaUrl

    class OllamaClient(Protocol):
        """All that is asked of an `ollama.Client` or `ollama.AsyncClient`."""

        def ps(self) -> Any:
            """What is loaded."""


# An attempt is waited for at most so long, however many have failed.
LONGEST_PAUSE_SECONDS = 60.0
# How long the end of an NVML session waits for a call that is still in the driver.
_DRIVER_SECONDS = 0.2


class Gpus:
    """NVML by the daemon's collector; the first reading makes it, and opens the session."""

    def __init__(self, collector: Optional[GpuCollector] = None) -> None:
        self._lock = threading.Lock()
        self._collector = collector
        self._closed = False

    def read(self) -> GpuReading:
        """One reading, with the processes on each GPU. Raises CollectorError."""
        with self._lock:
            if self._collector is None:
                # No GPU is expected before it was seen, and nothing is remembered on disk.
                expectation = Expectation(None, None, _unheard, read_only=True)
                self._collector = GpuCollector(expectation, _unheard, processes_every=0.0)
            try:
                return self._collector.collect()
            finally:
                if self._closed:  # while the driver took its time
                    self._collector.close()

    def close(self) -> None:
        """Give NVML back; where a call hangs in the driver, as soon as it returns."""
        self._closed = True
        if self._lock.acquire(timeout=_DRIVER_SECONDS):
            try:
                if self._collector is not None:
                    self._collector.close()
            finally:
                self._lock.release()


class Runners:
    """Ollama's processes on this host and what they serve, by the address that OLLAMA_HOST names.

    `url` is None where nothing can be asked there: a client of the user's does not tell where it asks.
    """

    def __init__(self, url: Optional[OllamaUrl]) -> None:
        self._lock = threading.Lock()
        self._url = url
        self._api = OllamaApi(url) if url is not None else None
        self._processes: Optional[OllamaProcesses] = None

    def read(self) -> Optional[tuple[Runner, ...]]:
        """The processes that serve a model; None where they cannot be seen."""
        with self._lock:
            if self._processes is None:
                # By the flight's own thread, for a name is looked up.
                if self._url is None or not is_of_this_host(self._url.host):
                    return None
                self._processes = OllamaProcesses(self._url.port, cgroup="none")
            try:
                self._processes.connections()
                return self._processes.runners()
            except CollectorError:
                return None

    def weights_of(self, name: str) -> Optional[str]:
        """The digest of a model's weights, None where Ollama does not name them. Raises OllamaError."""
        return self._api.weights_of(name) if self._api is not None else None


class Ollama:
    """What Ollama has loaded, asked through the user's client or else the daemon's own reader at `url`.

    What may pass is tried `attempts` times in all, with a pause of `delay` seconds that doubles. Where
    the client's calls have to be awaited, `is_async`, the method named so is to be used.
    """

    def __init__(
        self, client: Optional[OllamaClient], url: OllamaUrl, attempts: int, delay: float
    ) -> None:
        self._api, self._client = OllamaApi(url), client
        self._attempts, self._delay = attempts, delay
        self.is_async = False
        if client is not None:
            if not callable(getattr(client, "ps", None)):
                raise TypeError(f"{client!r} is no client of Ollama's: it has no method ps")
            # Not by its class: any client that is made like the official ones will do.
            from inspect import iscoroutinefunction

            self.is_async = iscoroutinefunction(client.ps)

    def models(self, stopped: threading.Event) -> tuple[Model, ...]:
        """What is loaded; a pause ends when `stopped` is set. Raises OllamaDown or OllamaAnswer."""
        for attempt in count(1):
            try:
                if self._client is None:
                    return self._api.models()
                with _translated():
                    return _models_of(self._client.ps())
            except OllamaError as error:
                pause = self._pause(attempt, error)
                if pause is None or stopped.wait(pause):
                    raise
        raise AssertionError  # for type checkers

    async def async_models(self) -> tuple[Model, ...]:
        """As models(); a pause ends when the task is cancelled."""
        import asyncio

        for attempt in count(1):
            try:
                with _translated():
                    return _models_of(await self._client.ps())  # type: ignore[union-attr]
            except OllamaError as error:
                pause = self._pause(attempt, error)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError

    def _pause(self, attempt: int, error: OllamaError) -> Optional[float]:
        """How long to wait after this attempt (from 1); None where another one is of no use."""
        passing = isinstance(error, OllamaDown) or (
            isinstance(error, OllamaAnswer) and (error.status >= 500 or error.status == 429)
        )
        if not passing or attempt >= self._attempts:
            return None
        return min(self._delay * 2.0 ** min(attempt - 1, 30), LONGEST_PAUSE_SECONDS)


def _models_of(answer: Any) -> tuple[Model, ...]:
    """What a client answers is made Ollama's own JSON again, and read as that."""
    dump = getattr(answer, "model_dump", None)
    plain = answer if dump is None else dump(mode="json")
    return models_in(plain, "Ollama's client")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """A client's errors become this package's."""
    try:
        yield
    except OllamaError:
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        httpx: Any = sys.modules.get("httpx")  # which the official clients ask with
        if isinstance(error, OSError) or _is(error, httpx, "TransportError"):
            raise OllamaDown(f"Ollama does not answer its client: {said}") from error
        if isinstance(error, RuntimeError) and "loop is closed" in said:
            # A connection that was kept since an event loop that has ended; the next one is new.
            raise OllamaDown(
                "the client's connection was of an event loop that has ended"
            ) from error
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            raise OllamaAnswer(f"Ollama answers its client: {said}", status) from error
        if isinstance(error, ValueError) or _is(error, httpx, "HTTPError"):
            raise OllamaAnswer(
                f"what Ollama answers makes no sense to its client: {said}"
            ) from error
        raise


def _is(error: Exception, module: Any, name: str) -> bool:
    kind = getattr(module, name, None)
    return isinstance(kind, type) and isinstance(error, kind)


def _unheard(level: str, sentence: str) -> None:
    """For what the daemon would log: a library says what fails by what it returns and raises."""
