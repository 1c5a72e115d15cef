"""What `OllamaGPUMonitor` reads from: the GPUs, Ollama through whichever client it was given, Ollama's processes.

Each source may be called by any thread, and lets one at a time through. How long values are kept, and
who shares them, is not known here.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from itertools import count

from .errors import CollectorError, OllamaAnswer, OllamaDown, OllamaError
from .expectation import Expectation
from .gpu_collector import GpuCollector
from .ollama_api import OllamaApi, models_in
from .ollama_processes import OllamaProcesses, is_of_this_host
from .ollama_url import parse_url

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


class Questions(OllamaApi):
    """Ollama's API, asked by threads; another one can end all questions, for good."""

    def __init__(self, url: OllamaUrl) -> None:
        super().__init__(url, opened=self._note)
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._ended = False

    def end(self) -> None:
        """Who asks gets an OllamaDown at once, but for one who waits for the resolver."""
        with self._lock:
            self._ended = True
            for one in self._sockets:
                with contextlib.suppress(OSError):  # it is not connected, or closed by now
                    one.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()

    def _note(self, one: socket.socket) -> None:
        with self._lock:
            if self._ended:
                raise OSError("the monitor is closed")
            others = [other for other in self._sockets if other.fileno() >= 0 and other is not one]
            self._sockets = [*others, one]


def asks_at(client: OllamaClient) -> Optional[OllamaUrl]:
    """Where an official client asks; None for another one, and for an address that is not one of http."""
    base = getattr(getattr(client, "_client", None), "base_url", None)
    try:
        return parse_url(str(base)) if base is not None else None
    except ValueError:
        return None


class Runners:
    """Ollama's processes on this host and what they serve, by the address where Ollama is asked.

    `url` is None where that is not known.
    """

    def __init__(self, url: Optional[OllamaUrl]) -> None:
        self._lock = threading.Lock()
        self._url = url
        self._api = Questions(url) if url is not None else None
        self._processes: Optional[OllamaProcesses] = None

    def read(self) -> tuple[Optional[tuple[Runner, ...]], str]:
        """The processes that serve a model; else None, and why, where Ollama is not known to be on this host."""
        with self._lock:
            why = self._elsewhere()
            if why or self._url is None:
                return None, why
            if self._processes is None:
                self._processes = OllamaProcesses(self._url.port, cgroup="none")
            try:
                self._processes.connections()
                return self._processes.runners(), ""
            except CollectorError:
                return None, ""

    def weights_of(self, name: str) -> Optional[str]:
        """The digest of a model's weights, None where Ollama does not name them. Raises OllamaError.

        Only an Ollama of this host is asked: of another's models nobody here is the runner.
        """
        why = self._elsewhere()
        if why or self._api is None:
            raise OllamaDown(why)
        return self._api.weights_of(name)

    def _elsewhere(self) -> str:
        """Why Ollama is not known to be on this host, empty where it is; looks up a name."""
        if self._url is None:
            return "the client tells no http address of Ollama's"
        if self._processes is None and not is_of_this_host(self._url.host):
            return f"{self._url.host}, where Ollama is asked, is no address of this host"
        return ""

    def end(self) -> None:
        """End the question that is on its way."""
        if self._api is not None:
            self._api.end()


class Ollama:
    """What Ollama has loaded, asked through the user's client or else the daemon's own reader at `url`.

    What may pass is tried `attempts` times in all, with a pause of `delay` seconds that doubles. Where
    the client's calls have to be awaited, `is_async`, the method named so is to be used.
    """

    def __init__(
        self, client: Optional[OllamaClient], url: OllamaUrl, attempts: int, delay: float
    ) -> None:
        self._api, self._client = Questions(url), client
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

    def end(self) -> None:
        """End the own reader's question that is on its way."""
        self._api.end()

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
