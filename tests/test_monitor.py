"""`OllamaGPUMonitor` with its own reader and with both official clients, over the stand-ins for Ollama and NVML.

What reads GPUs runs in a process of its own, for the driver's library is found as the loader finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

import ollama_standin
import pytest
from ollama_process import OllamaProcess, model
from standin import NvmlStandIn

from ollama_metrics import OllamaAnswer, OllamaDown, OllamaGPUMonitor
from ollama_metrics.gpu import GpuReading
from ollama_metrics.monitor_sources import (
    LONGEST_PAUSE_SECONDS,
    Gpus,
    Ollama,
    Questions,
    Runners,
    asks_at,
)
from ollama_metrics.ollama_url import OllamaUrl, parse_url

PATIENCE = 20.0
GIB = 1 << 30
READERS = ("own", "client", "async client")


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaProcess]:
    """A stand-in for Ollama where OLLAMA_HOST says."""
    with OllamaProcess() as process:
        monkeypatch.setenv("OLLAMA_HOST", process.url)
        yield process


@pytest.fixture
def make(ollama: OllamaProcess) -> Iterator[Callable[..., OllamaGPUMonitor]]:
    """Make a monitor, closed with the test: of an official client with `reader`, else of the own reader."""
    with contextlib.ExitStack() as stack:

        def make(reader: str = "own", timeout: float = 5, **options: Any) -> OllamaGPUMonitor:
            options.setdefault("retry_delay", 0)
            if reader != "own":
                options["ollama_client"] = stack.enter_context(client(reader, ollama.url, timeout))
            return stack.enter_context(OllamaGPUMonitor(**options))

        yield make


@contextlib.contextmanager
def client(reader: str, url: str, timeout: float = 5) -> Iterator[Any]:
    """One of the official clients."""
    official = pytest.importorskip("ollama")
    if reader == "async client":
        # Its connections are those of the event loop, which the test ends.
        yield official.AsyncClient(host=url, timeout=timeout, headers={"Connection": "close"})
        return
    one = official.Client(host=url, timeout=timeout)
    yield one
    one._client.close()  # close() came with a later version


def get(monitor: OllamaGPUMonitor, name: str, **arguments: Any) -> Any:
    """What a method gives, by the twin that is awaited where the monitor has an AsyncClient."""
    if monitor._ollama.is_async:
        return asyncio.run(getattr(monitor, f"async_{name}")(**arguments))
    return getattr(monitor, name)(**arguments)


def asked(ollama: OllamaProcess, target: str = "/api/ps") -> int:
    """How many of the stand-in's last requests were for `target`."""
    return [request["target"] for request in ollama.tell()["requests"]].count(target)


def until(what: Callable[[], Any]) -> Any:
    """The first answer of `what` that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)
    return answer


def threads() -> list[str]:
    """Our threads."""
    return [one.name for one in threading.enumerate() if one.name.startswith("ollama-metrics")]


def handles() -> set[str]:
    """What each descriptor of this process is."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {one for one in found if "/proc/" not in one}


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (1, "KB", "B", 1024.0),
        (1, "B", "b", 8.0),
        (12, "b", "B", 1.5),
        (1536, "MB", "GB", 1.5),
        (1, "TB", "KB", float(1 << 30)),
        (0, "GB", "MB", 0.0),
        (7.25, "GB", "GB", 7.25),
        (3_825_819_519, "B", "MB", 3_825_819_519 / (1 << 20)),
    ],
)
def test_units_convert(value: float, source: str, target: str, expected: float) -> None:
    """A kilobyte has 1024 bytes, a byte 8 bits; the class converts without an instance."""
    converted = OllamaGPUMonitor.convert_byte_unit(value, source, target)
    assert (converted, type(converted)) == (expected, float)


@pytest.mark.parametrize("unit", ["mb", "KiB", "", "PB", None, 1024, ["MB"]])
def test_an_unknown_unit_is_a_value_error(unit: Any) -> None:
    """On either side of a conversion, for a reading, and as the default; the error names those that there are."""
    for arguments in ((1, unit, "MB"), (1, "MB", unit)):
        with pytest.raises(ValueError, match="b, B, KB, MB, GB, TB"):
            OllamaGPUMonitor.convert_byte_unit(*arguments)
    with pytest.raises(ValueError, match="b, B, KB"):
        OllamaGPUMonitor(default_memory_unit=unit)
    if unit is not None:
        with OllamaGPUMonitor() as monitor, pytest.raises(ValueError, match="b, B, KB"):
            monitor.get_gpu_status(unit=unit)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"cache_duration": -1},
        {"cache_duration": float("nan")},
        {"retry_delay": -0.1},
        {"retry_attempts": 0},
        {"background_refresh_interval": 0},
        {"ollama_client": object()},
        {"ollama_client": "http://127.0.0.1:11434"},
        {"cache_duration": "5"},
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any]) -> None:
    """They are refused by the constructor, before a thread is started."""
    with pytest.raises((ValueError, TypeError)):
        OllamaGPUMonitor(**{"enable_background_refresh": True, **options})
    assert threads() == []


def test_an_ollama_host_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named by the error; a client that was given needs none."""
    monkeypatch.setenv("OLLAMA_HOST", "https://ollama.example")
    with pytest.raises(ValueError, match=r"OLLAMA_HOST=https://ollama\.example"):
        OllamaGPUMonitor()
    with client("client", "http://127.0.0.1:1") as one, OllamaGPUMonitor(one):
        pass


# -- what Ollama has loaded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_processes(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """Each reader gives the same of the same answer: all keys, memory in the monitor's unit."""
    ollama.models(
        [model("a:1b", 4 * GIB, 3 * GIB), model("b:1b", GIB, 0, expires_at=None, details=None)]
    )
    first, second = get(make(reader, default_memory_unit="GB"), "get_ollama_processes")
    assert first.pop("expires_timestamp") == pytest.approx(11_010_676_272.123456)
    # The first versions of the official client do not know of it.
    assert first.pop("context_length") in ((4096,) if reader == "own" else (4096, None))
    assert first == {
        "name": "a:1b",
        "digest": ollama_standin.MODEL_IN_MEMORY["digest"],
        "family": "llama",
        "parameter_size": "3.2B",
        "quantization": "Q4_K_M",
        "memory_unit": "GB",
        "total_memory": 4.0,
        "gpu_memory": 3.0,
        "gpu_ratio": 0.75,
    }
    assert (second["gpu_memory"], second["gpu_ratio"]) == (0.0, 0.0)
    assert (second["family"], second["expires_timestamp"]) == (None, None)


@pytest.mark.parametrize("reader", READERS)
def test_nothing_loaded(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """An Ollama without a loaded model gives empty lists."""
    ollama.models([])
    monitor = make(reader)
    assert get(monitor, "get_ollama_processes") == []
    assert get(monitor, "get_model_gpu_usage") == []


@pytest.mark.parametrize("reader", READERS)
def test_values_are_kept_and_forced(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """All methods share one reading for the duration of the cache; `force_refresh` takes another."""
    monitor = make(reader, cache_duration=600)
    for name in (
        "get_ollama_processes",
        "get_model_gpu_usage",
        "format_status",
        "to_dict",
        "to_json",
    ):
        get(monitor, name)
    assert asked(ollama) == 1
    ollama.models([])
    assert get(monitor, "get_ollama_processes", force_refresh=True) == []
    assert get(monitor, "get_model_gpu_usage") == []
    assert asked(ollama) == 2
    assert asked(ollama, "/api/show") == 1


def test_without_a_cache_each_call_reads(make: Any, ollama: OllamaProcess) -> None:
    """With a duration of 0 nothing is kept, and one call still takes one reading."""
    monitor = make(cache_duration=0)
    monitor.get_ollama_processes()
    monitor.get_model_gpu_usage()
    monitor.to_dict()
    assert asked(ollama) == 3


def test_what_is_handed_out_may_be_changed(make: Any) -> None:
    """The lists and dictionaries are the caller's own."""
    monitor = make(cache_duration=600)
    monitor.get_ollama_processes()[0]["name"] = "changed"
    monitor.get_ollama_processes().clear()
    assert monitor.get_ollama_processes()[0]["name"] == ollama_standin.MODEL


@pytest.mark.parametrize("reader", READERS)
def test_fifty_at_once_make_one_request(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """Fifty tasks, and fifty threads where the client allows it: one GET /api/ps."""
    monitor = make(reader, cache_duration=600)

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        ollama.pause()
        tasks: list[Any] = [
            asyncio.ensure_future(monitor.async_get_ollama_processes()) for _ in range(50)
        ]
        await asyncio.sleep(0)
        with ThreadPoolExecutor(50) as pool:
            tasks += [loop.run_in_executor(pool, monitor.get_ollama_processes) for _ in range(50)]
            ollama.resume()  # from this loop: it is not blocked by who waits
            return await asyncio.gather(*tasks)

    answers = asyncio.run(main())
    assert len(answers) == 100
    assert all(answer == answers[0] != [] for answer in answers)
    assert asked(ollama) == 1


# -- what fails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "fault",
    [{"kind": "status", "status": 503}, {"kind": "status", "status": 429}, {"kind": "close"}],
)
def test_what_may_pass_is_tried_again(
    make: Any, ollama: OllamaProcess, reader: str, fault: Any
) -> None:
    """A 5xx, a 429 and a broken connection, twice: the third attempt counts."""
    ollama.fault("/api/ps", times=2, **fault)
    assert len(get(make(reader), "get_ollama_processes")) == 1
    assert asked(ollama) == 3


@pytest.mark.parametrize("reader", READERS)
def test_attempts_come_to_an_end(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """`retry_attempts` is the number of all attempts; the last error is raised, and not kept."""
    monitor = make(reader, retry_attempts=2)
    ollama.fault("/api/ps", "status", status=500)
    with pytest.raises(OllamaAnswer) as caught:
        get(monitor, "get_ollama_processes")
    assert (caught.value.status, asked(ollama)) == (500, 2)
    assert "models" in monitor.last_errors
    ollama.fault("/api/ps", None)
    assert len(get(monitor, "get_ollama_processes")) == 1
    assert monitor.last_errors == {}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 403},
        {"kind": "status", "status": 404},
        {"kind": "body", "body": b"no JSON"},
        {"kind": "body", "body": b'{"models": [{"name": "a"}]}'},
        {"kind": "body", "body": b'{"models": null}'},
        {"kind": "body", "body": b'{"models": [{"name": "a", "size": -1, "size_vram": 0}]}'},
        {"kind": "body", "body": b"\xff\xfe"},
    ],
)
def test_what_cannot_pass_is_raised_at_once(
    make: Any, ollama: OllamaProcess, reader: str, fault: Any
) -> None:
    """Another status and an answer that is not Ollama's are typed errors, after one attempt."""
    ollama.fault("/api/ps", **fault)
    with pytest.raises(OllamaAnswer) as caught:
        get(make(reader), "get_ollama_processes")
    assert caught.value.status == fault.get("status", 200)
    assert asked(ollama) == 1


@pytest.mark.parametrize("reader", READERS)
def test_a_dead_ollama(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """The getters raise OllamaDown; what shows all says so in `error`, and never that nothing is loaded."""
    monitor = make(reader, retry_attempts=2)
    ollama.kill()
    for name in ("get_ollama_processes", "get_model_gpu_usage"):
        with pytest.raises(OllamaDown):
            get(monitor, name)
    status = json.loads(get(monitor, "to_json"))
    assert status["error"]
    assert (status["processes"], status["model_gpu_usage"]) == (None, None)
    said = get(monitor, "format_status", include_timestamp=False)
    assert said.startswith("Error: ")
    assert "Models loaded" not in said
    ollama.restart()
    assert get(monitor, "to_dict")["error"] is None


@pytest.mark.parametrize("reader", ["client", "async client"])
def test_a_client_that_runs_out_of_time(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """A client's own timeout is OllamaDown."""
    ollama.fault("/api/ps", "hang")
    with pytest.raises(OllamaDown, match="does not answer"):
        get(make(reader, timeout=0.2, retry_attempts=1), "get_ollama_processes")


class Stopped(threading.Event):
    """Notes how long was to be waited, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: Any = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


def test_pauses_double_up_to_a_bound(ollama: OllamaProcess) -> None:
    """The pauses are `retry_delay`, twice that and so on, and never more than a minute."""
    ollama.fault("/api/ps", "status", status=500)
    stopped = Stopped()
    with pytest.raises(OllamaAnswer):
        Ollama(None, parse_url(ollama.url), 5, 0.5).models(stopped)
    assert stopped.waits == [0.5, 1.0, 2.0, 4.0]
    stopped = Stopped()
    with pytest.raises(OllamaAnswer):
        Ollama(None, parse_url(ollama.url), 50, 20.0).models(stopped)
    assert stopped.waits == [20.0, 40.0, *[LONGEST_PAUSE_SECONDS] * 47]


def test_an_error_of_the_client_itself_is_its_own(make: Any) -> None:
    """What is wrong with the client and not with Ollama is raised as it is, after one attempt."""
    times = []

    class Broken:
        def ps(self) -> Any:
            times.append(1)
            raise RuntimeError("no such thing")

    with OllamaGPUMonitor(Broken()) as monitor, pytest.raises(RuntimeError, match="no such thing"):
        monitor.get_ollama_processes()
    assert times == [1]


# -- an AsyncClient ----------------------------------------------------------------------------------------------------


def test_an_async_client_has_to_be_awaited(make: Any) -> None:
    """The methods of threads say so, until the value that they want has been awaited."""
    monitor = make("async client", cache_duration=600)
    with pytest.raises(TypeError, match="async_"):
        monitor.get_ollama_processes()
    with pytest.raises(TypeError, match="async_"):
        monitor.to_dict()
    assert monitor.get_gpu_status() is not None  # needs no client
    processes = asyncio.run(monitor.async_get_ollama_processes())
    assert monitor.get_ollama_processes() == processes
    with pytest.raises(TypeError, match="async_"):
        monitor.get_ollama_processes(force_refresh=True)


def test_threads_beside_the_loop_of_an_async_client(make: Any, ollama: OllamaProcess) -> None:
    """While that loop runs, other threads may ask by the other methods; its own thread would block it."""
    monitor = make("async client", cache_duration=0)

    async def main() -> Any:
        first = await monitor.async_get_ollama_processes()
        with pytest.raises(TypeError, match="block"):
            monitor.get_ollama_processes()
        await monitor.async_get_ollama_processes()  # what that has begun
        loop = asyncio.get_running_loop()
        return first, await loop.run_in_executor(None, monitor.get_ollama_processes)

    first, second = asyncio.run(main())
    assert first == second != []


def test_an_async_client_on_one_loop_after_another(ollama: OllamaProcess) -> None:
    """A connection that a loop has left behind in the client is a failure that passes."""
    official = pytest.importorskip("ollama")

    def ask_twice() -> None:
        one = official.AsyncClient(host=ollama.url)
        monitor = OllamaGPUMonitor(one, cache_duration=0, retry_delay=0)

        async def last() -> Any:
            found = await monitor.async_get_ollama_processes()
            await one._client.aclose()
            return found

        first = asyncio.run(monitor.async_get_ollama_processes())
        assert asyncio.run(last()) == first != []
        monitor.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the first loop's connection
        ask_twice()
        gc.collect()


def test_async_methods_are_twins(make: Any) -> None:
    """Each has the arguments of the one that it is named after, and gives the same."""
    monitor = make(cache_duration=600)

    async def main() -> list[Any]:
        return [
            await monitor.async_get_gpu_status(unit="GB", force_refresh=False),
            await monitor.async_get_ollama_processes(force_refresh=False),
            await monitor.async_get_model_gpu_usage(force_refresh=False),
            await monitor.async_format_status(include_gpu=True, include_timestamp=False),
            {**await monitor.async_to_dict(), "timestamp": 0},
            {**json.loads(await monitor.async_to_json(indent=4)), "timestamp": 0},
        ]

    assert asyncio.run(main()) == [
        monitor.get_gpu_status(unit="GB", force_refresh=False),
        monitor.get_ollama_processes(force_refresh=False),
        monitor.get_model_gpu_usage(force_refresh=False),
        monitor.format_status(include_gpu=True, include_timestamp=False),
        {**monitor.to_dict(), "timestamp": 0},
        {**json.loads(monitor.to_json(indent=4)), "timestamp": 0},
    ]


def test_json_is_indented_by_two(make: Any) -> None:
    """And by whatever is asked for; None is one line."""
    monitor = make()
    assert monitor.to_json().splitlines()[1].startswith('  "timestamp"')
    assert len(monitor.to_json(indent=None).splitlines()) == 1


# -- the background ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["own", "client"])
def test_the_background_keeps_values_fresh(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """It reads again and again; a getter finds what it has read, and asks nobody."""
    monitor = make(
        reader, cache_duration=600, enable_background_refresh=True, background_refresh_interval=0.05
    )
    until(lambda: asked(ollama) >= 3)
    ollama.models([model("new:1b")])
    until(lambda: [one["name"] for one in monitor.get_ollama_processes()] == ["new:1b"])
    until(lambda: asked(ollama, "/api/show") == 2)  # of the model before, and of this one
    monitor._stop_background_refresh()
    assert threads() == []
    before = asked(ollama)
    assert [one["name"] for one in monitor.get_ollama_processes()] == ["new:1b"]
    assert monitor.get_model_gpu_usage()[0]["model"] == "new:1b"
    assert asked(ollama) == before
    monitor.get_ollama_processes(force_refresh=True)  # it goes on to work
    assert asked(ollama) == before + 1


def test_the_background_with_an_async_client(make: Any, ollama: OllamaProcess) -> None:
    """Its questions are asked on the loop that the client was last awaited on, as long as that runs."""
    monitor = make(
        "async client",
        cache_duration=600,
        enable_background_refresh=True,
        background_refresh_interval=0.05,
    )

    async def main() -> None:
        await monitor.async_get_ollama_processes()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, until, lambda: asked(ollama) >= 3)
        await loop.run_in_executor(None, monitor._stop_background_refresh)

    asyncio.run(main())
    assert threads() == []


def test_failures_do_not_end_the_background(make: Any, ollama: OllamaProcess) -> None:
    """They are kept for who looks; when Ollama is back, so are the values."""
    ollama.kill()
    monitor = make(
        retry_attempts=1, enable_background_refresh=True, background_refresh_interval=0.05
    )
    until(lambda: "models" in monitor.last_errors)
    with pytest.raises(OllamaDown):
        monitor.get_ollama_processes()
    ollama.restart()
    until(lambda: monitor.last_errors == {})
    assert len(monitor.get_ollama_processes()) == 1


@pytest.mark.parametrize("end", ["with", "close", "_stop_background_refresh"])
@pytest.mark.parametrize("state", ["well", "dead"])
def test_nothing_is_left(ollama: OllamaProcess, end: str, state: str) -> None:
    """After the end there is neither a thread nor a descriptor, also out of a pause of minutes."""
    if state == "dead":
        ollama.kill()
    before = handles()
    with OllamaGPUMonitor(
        enable_background_refresh=True, background_refresh_interval=600, retry_delay=50
    ) as monitor:
        if state == "well":
            until(lambda: monitor._flights.fresh("models"))
        else:
            until(lambda: "ollama-metrics models" in threads())
        assert "ollama-metrics refresh" in threads()
        if end != "with":
            getattr(monitor, end)()
            assert threads() == []
            assert handles() == before
    assert threads() == []
    assert handles() == before


def test_the_background_ends_and_others_get_their_value(ollama: OllamaProcess) -> None:
    """What somebody waits for besides the background goes on when that ends."""
    ollama.pause()
    with OllamaGPUMonitor(enable_background_refresh=True) as monitor:
        until(lambda: "ollama-metrics models" in threads())
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(monitor.get_ollama_processes)
            until(lambda: monitor._flights._in_air["models"].wanted)
            monitor._stop_background_refresh()
            assert "ollama-metrics refresh" not in threads()
            ollama.resume()
            assert len(waiting.result(PATIENCE)) == 1


def test_a_monitor_that_is_dropped_ends_its_thread(ollama: OllamaProcess) -> None:
    """Nobody closes it, and its thread ends all the same, long before its interval."""
    with warnings.catch_warnings():
        # The official clients of earlier tests leave their sockets to the collector of garbage.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

    def use_and_drop() -> None:
        monitor = OllamaGPUMonitor(enable_background_refresh=True, background_refresh_interval=600)
        until(lambda: monitor._flights.fresh("models"))
        until(lambda: threads() == ["ollama-metrics refresh"])

    use_and_drop()
    gc.collect()
    until(lambda: threads() == [])


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/api/ps", None),
        *[(path, fault) for path in ("/api/ps", "/api/show") for fault in ("hang", "trickle")],
    ],
)
def test_close_ends_a_question(
    make: Any, ollama: OllamaProcess, path: str, fault: Optional[str]
) -> None:
    """Ollama hangs, or its answer does not end: who waits gets a RuntimeError, and nothing is left."""
    if fault is not None:
        ollama.fault(path, fault)
    before = handles()
    monitor = make(retry_attempts=1)
    if fault is None:
        ollama.pause()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(monitor.get_model_gpu_usage)
        if fault is None:
            until(lambda: "ollama-metrics models" in threads() and handles() > before)
        else:
            until(lambda: asked(ollama, path) == 1)
        monitor.close()
        assert threads() == []
        assert handles() == before
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result(PATIENCE)


def test_close_ends_questions_for_good(ollama: OllamaProcess) -> None:
    """One that is about to be asked when the monitor is closed is not asked."""
    questions = Questions(parse_url(ollama.url))
    assert len(questions.models()) == 1
    questions.end()
    questions.end()
    with pytest.raises(OllamaDown, match="the monitor is closed"):
        questions.models()
    assert asked(ollama) == 1


def test_close_leaves_a_call_that_hangs(make: Any, ollama: OllamaProcess) -> None:
    """Who waits for a client of the user's gets a RuntimeError at once; its thread ends with the call."""
    ollama.pause()
    before = handles()
    monitor = make("client")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(monitor.get_ollama_processes)
        until(lambda: handles() > before)  # it has connected
        monitor.close()
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result(PATIENCE)
    assert threads() == ["ollama-metrics models"]
    ollama.resume()
    until(lambda: threads() == [])


def test_close_is_the_end(make: Any, ollama: OllamaProcess) -> None:
    """After it each method raises a RuntimeError that says so; to close again is harmless."""
    monitor = make()
    monitor.get_ollama_processes()
    monitor.close()
    monitor.close()
    monitor._stop_background_refresh()
    for name in (
        "get_gpu_status",
        "get_ollama_processes",
        "get_model_gpu_usage",
        "to_dict",
        "to_json",
        "format_status",
    ):
        with pytest.raises(RuntimeError, match="closed"):
            getattr(monitor, name)()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(monitor.async_to_dict())


@pytest.mark.parametrize("reader", READERS)
def test_close_wakes_who_waits(make: Any, ollama: OllamaProcess, reader: str) -> None:
    """Who waits while a retry waits gets a RuntimeError, not the minutes that were left."""
    ollama.kill()
    monitor = make(reader, retry_delay=50)

    async def main() -> None:
        if reader == "async client":
            waiting = asyncio.ensure_future(monitor.async_get_ollama_processes())
        else:
            waiting = asyncio.ensure_future(asyncio.to_thread(monitor.get_ollama_processes))
        while not monitor._flights._in_air:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        monitor.close()
        with pytest.raises(RuntimeError, match="closed"):
            await waiting

    asyncio.run(main())
    assert threads() == []


# -- GPUs --------------------------------------------------------------------------------------------------------------

PROLOGUE = """
import asyncio, contextlib, json, os, sys, threading, time
from ollama_metrics import OllamaGPUMonitor, CollectorError
def state(**keys):
    text = "".join(f"{key.replace('__', '.')}={value}\\n" for key, value in keys.items())
    with open(os.environ["NVML_STANDIN_STATE"] + ".new", "w") as file:
        file.write(text)
    os.replace(os.environ["NVML_STANDIN_STATE"] + ".new", os.environ["NVML_STANDIN_STATE"])
def failure(call):
    try:
        return call()
    except CollectorError as error:
        return f"{type(error).__name__}: {error}"
monitor = OllamaGPUMonitor(cache_duration=0, retry_attempts=1)
"""


def run(nvml: NvmlStandIn, script: str) -> Any:
    """What `script`, run after the prologue in a process with these GPUs, leaves in `result`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{PROLOGUE}{script}\nprint(json.dumps(result))"],
        env={**os.environ, **nvml.environment()},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_gpus(nvml: NvmlStandIn) -> None:
    """Each GPU with all keys, memory in the unit that was asked for, ratios from 0 to 1."""
    nvml.update(
        {
            "count": 2,
            "gpu1.name": "NVIDIA A40",
            "gpu1.uuid": "GPU-1",
            "gpu1.memory_total": 48 * GIB,
            "gpu1.memory_used": 12 * GIB,
            "gpu1.memory_reserved": 0,
            "gpu1.utilization": 63,
            "gpu1.temperature": 71,
            "gpu1.power_mw": 150_000,
            "gpu1.power_limit_mw": 300_000,
        }
    )
    result = run(nvml, "result = [monitor.get_gpu_status(), monitor.get_gpu_status(unit='GB')]")
    assert [gpu["gpu_id"] for gpu in result[0]] == [0, 1]
    assert result[0][1]["used_memory"] == 12 * 1024.0
    assert result[1][1] == {
        "gpu_id": 1,
        "uuid": "GPU-1",
        "name": "NVIDIA A40",
        "memory_unit": "GB",
        "total_memory": 48.0,
        "used_memory": 12.0,
        "free_memory": 36.0,
        "used_memory_ratio": 0.25,
        "utilization_ratio": 0.63,
        "temperature_celsius": 71,
        "power_draw_watts": 150.0,
        "power_limit_watts": 300.0,
    }


def test_what_a_gpu_does_not_report_is_none(nvml: NvmlStandIn) -> None:
    """Never 0: not for its memory, not for its power, and the text leaves it out."""
    nvml.update({"gpu0.memory_total": "unsupported", "gpu0.power_mw": "unsupported"})
    gpu, text = run(nvml, "result = [monitor.get_gpu_status()[0], monitor.format_status()]")
    for key in (
        "total_memory",
        "used_memory",
        "free_memory",
        "used_memory_ratio",
        "power_draw_watts",
    ):
        assert gpu[key] is None
    assert "None" not in text


def test_a_host_without_gpus(nvml: NvmlStandIn) -> None:
    """No driver: an empty list, and no error."""
    nvml.unload_driver()
    gpus, status = run(nvml, "result = [monitor.get_gpu_status(), monitor.to_dict()]")
    assert (gpus, status["gpus"], status["lost_gpus"]) == ([], [], [])


def test_a_driver_that_fails(nvml: NvmlStandIn) -> None:
    """A typed error, never an empty list; what shows all says it in `error`."""
    nvml.update({"init": 999})
    error, status, text = run(
        nvml,
        "result = [failure(monitor.get_gpu_status), monitor.to_dict(), monitor.format_status()]",
    )
    assert error.startswith("DriverFailure")
    assert (status["gpus"], status["lost_gpus"]) == (None, None)
    assert "NVML error 999" in status["error"]
    assert "NVML error 999" in text
    assert "GPUs:" not in text


def test_gpus_that_vanish_are_a_failure(nvml: NvmlStandIn) -> None:
    """A host that had GPUs has not become one without when its driver is unloaded."""
    result = run(
        nvml,
        """
result = [len(monitor.get_gpu_status())]
os.unlink(os.environ["NVML_STANDIN_STATE"])
result.append(failure(monitor.get_gpu_status))
state(count=1)
result.append(len(monitor.get_gpu_status()))
""",
    )
    assert result[0] == result[2] == 1
    assert result[1].startswith("NoDriver")


def test_a_lost_gpu(nvml: NvmlStandIn) -> None:
    """It is not among those that answer, and what shows all names it with the reason."""
    nvml.set(count=2)
    nvml.update({"gpu1.lost": 1})
    gpus, status, text = run(
        nvml, "result = [monitor.get_gpu_status(), monitor.to_dict(), monitor.format_status()]"
    )
    assert [gpu["gpu_id"] for gpu in gpus] == [0]
    (lost,) = status["lost_gpus"]
    assert lost["label"].startswith("GPU 1")
    assert lost["reason"]
    assert f"{lost['label']}: lost" in text


def test_a_text_without_gpus_asks_no_driver(nvml: NvmlStandIn, ollama: OllamaProcess) -> None:
    """`include_gpu=False` leaves NVML alone, and so does what only Ollama is asked for."""
    text = run(
        nvml,
        "result = [monitor.format_status(include_gpu=False), monitor.get_ollama_processes()][0]",
    )
    assert "llama3.2:latest" in text
    assert nvml.calls() == []


def test_close_gives_nvml_back(nvml: NvmlStandIn) -> None:
    """The session is ended by close(), and by dropping the monitor."""
    assert run(nvml, "result = len(monitor.get_gpu_status()); monitor.close()") == 1
    assert nvml.calls()[-1] == "nvmlShutdown"
    nvml.forget_calls()
    script = "result = len(monitor.get_gpu_status()); del monitor; import gc; gc.collect()"
    assert run(nvml, script) == 1
    assert nvml.calls()[-1] == "nvmlShutdown"


def test_one_thread_at_a_time_is_in_the_driver() -> None:
    """Also where a reading was given up, but not by the driver, and another one is begun."""

    class Collector:
        inside = met = 0

        def collect(self) -> GpuReading:
            self.inside += 1
            time.sleep(0.0005)
            self.met = max(self.met, self.inside)
            self.inside -= 1
            return GpuReading()

        def close(self) -> None:
            assert not self.inside
            self.met += 100

    collector: Any = Collector()
    gpus = Gpus(collector)
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: gpus.read(), range(100)):
            pass
    gpus.close()
    assert collector.met == 101


def test_a_driver_that_hangs(nvml: NvmlStandIn) -> None:
    """The loop goes on, close() comes back, who waits gets a RuntimeError, the program ends."""
    script = """
async def main():
    waiting = asyncio.ensure_future(monitor.async_get_gpu_status())
    while "gpus" not in monitor._flights._in_air:
        await asyncio.sleep(0)
    await asyncio.get_running_loop().run_in_executor(None, wait_for_call)
    monitor.close()
    try:
        await waiting
    except RuntimeError as error:
        return str(error)
def wait_for_call():
    while True:
        with contextlib.suppress(FileNotFoundError):
            if "nvmlDeviceGetUtilizationRates" in open(os.environ["NVML_STANDIN_CALLS"]).read():
                return
        time.sleep(0.01)
import warnings; warnings.simplefilter("ignore")
result = asyncio.run(main())
"""
    nvml.set(hang="nvmlDeviceGetUtilizationRates")
    assert run(nvml, script) == "the monitor is closed"


# -- where models sit --------------------------------------------------------------------------------------------------

# Ollama with one runner, as its own child: it ends with its standard input.
WITH_RUNNER = """
import subprocess, sys
import ollama_standin
runner = subprocess.Popen(
    [sys.executable, "-c", "import sys; sys.stdin.read()", "--model",
     "/models/blobs/sha256-" + ollama_standin.WEIGHTS, "--port", "1"],
    stdin=subprocess.PIPE,
)
print("runner", runner.pid, file=sys.stderr, flush=True)
ollama_standin.main()
"""


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The process id of the runner of an Ollama at OLLAMA_HOST."""
    script = tmp_path / "with_runner.py"
    script.write_text(WITH_RUNNER, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(Path(ollama_standin.__file__).parent))
    monkeypatch.setattr(ollama_standin, "__file__", str(script))
    with OllamaProcess() as process:
        monkeypatch.setenv("OLLAMA_HOST", process.url)
        yield int(process.wait_for_log(r"^runner (\d+)$")[1])


USAGE = """
import warnings; warnings.simplefilter("ignore")  # of connections that httpx leaves to the end
def usage(reader):
    if reader == "own":
        return OllamaGPUMonitor(default_memory_unit="GB").get_model_gpu_usage()
    import ollama
    if reader == "client":
        return OllamaGPUMonitor(ollama.Client(), "GB").get_model_gpu_usage()
    return asyncio.run(OllamaGPUMonitor(ollama.AsyncClient(), "GB").async_get_model_gpu_usage())
"""


@pytest.mark.parametrize("reader", READERS)
def test_where_a_model_sits(nvml: NvmlStandIn, runner: int, reader: str) -> None:
    """Weights, runner and the driver's lists are joined: the GPUs of the model, with the memory on each."""
    if reader != "own":
        pytest.importorskip("ollama")
    nvml.set(count=3)
    nvml.update(
        {
            "gpu0.name": "NVIDIA A40",
            "gpu0.uuid": "GPU-0",
            "gpu0.processes": f"{runner}:{GIB}",
            "gpu1.processes": f"1:{GIB}",
            "gpu2.name": "NVIDIA A40",
            "gpu2.uuid": "GPU-2",
            "gpu2.processes": f"1:{GIB},{runner}:{2 * GIB}",
        }
    )
    (usage,) = run(nvml, f"{USAGE}result = usage({reader!r})")
    size = ollama_standin.MODEL_IN_MEMORY["size"] / GIB
    assert usage == {
        "model": ollama_standin.MODEL,
        "memory_unit": "GB",
        "total_memory": size,
        "gpu_memory": size,
        "gpu_ratio": 1.0,
        "cpu_ratio": 0.0,
        "gpus": [
            {"gpu_id": 0, "uuid": "GPU-0", "name": "NVIDIA A40", "used_memory": 1.0},
            {"gpu_id": 2, "uuid": "GPU-2", "name": "NVIDIA A40", "used_memory": 2.0},
        ],
        "unknown": None,
    }


@pytest.mark.parametrize("reader", READERS[1:])
def test_a_client_of_another_port_of_this_host(
    nvml: NvmlStandIn, runner: int, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are those of the Ollama that the client asks, wherever OLLAMA_HOST leads."""
    pytest.importorskip("ollama")
    url = os.environ["OLLAMA_HOST"]
    monkeypatch.setenv("OLLAMA_HOST", "http://192.0.2.1:1")
    nvml.update({"gpu0.uuid": "GPU-0", "gpu0.processes": f"{runner}:{GIB}"})
    script = f"{USAGE}import functools, ollama\n" + "".join(
        f"ollama.{name} = functools.partial(ollama.{name}, host={url!r})\n"
        for name in ("Client", "AsyncClient")
    )
    (usage,) = run(nvml, f"{script}result = usage({reader!r})")
    assert usage["unknown"] is None
    assert [gpu["uuid"] for gpu in usage["gpus"]] == ["GPU-0"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://192.0.2.1:11434", "192.0.2.1, where Ollama is asked, is no address of this host"),
        ("https://192.0.2.1", "the client tells no http address of Ollama's"),
        ("https://127.0.0.1", "the client tells no http address of Ollama's"),
    ],
)
@pytest.mark.parametrize("reader", READERS[1:])
def test_a_client_of_another_host(
    nvml: NvmlStandIn, runner: int, reader: str, url: str, reason: str
) -> None:
    """Where its models sit is unknown, with the reason: this host's Ollama, which OLLAMA_HOST names, has others."""
    pytest.importorskip("ollama")
    nvml.update({"gpu0.processes": f"{runner}:{GIB}"})
    script = f"""{USAGE}
import functools, httpx, ollama, ollama_standin
document = {{"models": [ollama_standin.MODEL_IN_MEMORY]}}
transport = httpx.MockTransport(lambda request: httpx.Response(200, json=document))
for name in ("Client", "AsyncClient"):
    kind = getattr(ollama, name)
    setattr(ollama, name, functools.partial(kind, host={url!r}, transport=transport))
result = usage({reader!r})
"""
    (usage,) = run(nvml, script)
    assert (usage["gpus"], usage["unknown"]) == ([], reason)
    assert (usage["model"], usage["cpu_ratio"]) == (ollama_standin.MODEL, 0.0)


def test_an_ollama_host_of_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The own reader's placement is unknown, too; what its models are made of is not even asked."""
    runners = Runners(OllamaUrl("192.0.2.1", 11434))
    assert runners.read() == (
        None,
        "192.0.2.1, where Ollama is asked, is no address of this host",
    )
    monkeypatch.setattr(Questions, "weights_of", None)
    with pytest.raises(OllamaDown, match="no address of this host"):
        runners.weights_of("a:1b")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, OllamaUrl("127.0.0.1", 7)),
        ("0.0.0.0", OllamaUrl("127.0.0.1", 11434)),
        ("localhost:1", OllamaUrl("localhost", 1)),
        ("http://ollama.example", OllamaUrl("ollama.example", 80)),
        ("http://[::1]:8001/base/", OllamaUrl("::1", 8001, "/base")),
        ("https://ollama.example", None),
    ],
)
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_where_an_official_client_asks(
    kind: str, host: Optional[str], url: Optional[OllamaUrl], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own base URL, with OLLAMA_HOST in it where it was given none; https is nothing that we could ask."""
    official = pytest.importorskip("ollama")
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:7")
    assert asks_at(getattr(official, kind)(host=host)) == url


def test_where_another_client_asks() -> None:
    """A client that is only made like an official one does not tell: its models' GPUs are unknown, not guessed."""

    class Other:
        def ps(self) -> Any:
            return {"models": [ollama_standin.MODEL_IN_MEMORY]}

    assert asks_at(Other()) is None
    with OllamaGPUMonitor(Other()) as monitor:
        (usage,) = monitor.get_model_gpu_usage()
    assert usage["unknown"] == "the client tells no http address of Ollama's"


def test_where_is_not_known(nvml: NvmlStandIn, runner: int) -> None:
    """A runner that no GPU names, and GPUs that fail: a reason, and no GPU."""
    result = run(
        nvml,
        """
result = [monitor.get_model_gpu_usage()]
state(init=999)
with contextlib.suppress(CollectorError):
    monitor.get_gpu_status()
monitor = OllamaGPUMonitor()
result.append(monitor.get_model_gpu_usage())
result.append(monitor.format_status())
""",
    )
    for (usage,), reason in zip(
        result, (f"its process {runner} is on no GPU", "no GPU can be read")
    ):
        assert usage["gpus"] == []
        assert usage["unknown"].startswith(reason)
    assert "where is not known: no GPU can be read" in result[2]


def test_a_model_that_show_does_not_know_is_asked_for_once(
    make: Any, ollama: OllamaProcess
) -> None:
    """What a model is made of is not asked for at every call, also where that fails."""
    ollama.fault("/api/show", "status", status=404)
    monitor = make(cache_duration=600)
    for _ in range(3):
        assert monitor.get_model_gpu_usage()[0]["unknown"]
    assert asked(ollama, "/api/show") == 1
    ollama.fault("/api/show", None)
    ollama.models([model("new:1b")])
    monitor.get_model_gpu_usage(force_refresh=True)
    assert asked(ollama, "/api/show") == 2


# -- as a library ------------------------------------------------------------------------------------------------------


def test_a_subclass_that_alerts(nvml: NvmlStandIn) -> None:
    """A subclass takes options of its own and reads the keys `gpu_id` and `used_memory_ratio`."""
    nvml.set(count=2)
    nvml.update(
        {"gpu1.memory_total": 10 * GIB, "gpu1.memory_used": 9 * GIB, "gpu1.memory_reserved": 0}
    )
    script = """
class Alerting(OllamaGPUMonitor):
    def __init__(self, *args, threshold=0.8, **kwargs):
        super().__init__(*args, **kwargs)
        self.threshold = threshold
    def alerts(self):
        return [gpu["gpu_id"] for gpu in self.get_gpu_status() if gpu["used_memory_ratio"] > self.threshold]
    def to_dict(self):
        return {**super().to_dict(), "alerts": self.alerts()}
with Alerting(threshold=0.85, retry_attempts=1) as one:
    result = [one.alerts(), json.loads(one.to_json())["alerts"]]
"""
    assert run(nvml, script) == [[1], [1]]


def test_to_import_costs_nothing() -> None:
    """`import ollama_metrics` loads neither NVML nor psutil nor the library, and starts no thread."""
    script = """
import sys, threading
import ollama_metrics
assert threading.active_count() == 1
loaded = {name for name in sys.modules if name.startswith("ollama_metrics")}
assert loaded == {"ollama_metrics"}, loaded
assert "OllamaGPUMonitor" in dir(ollama_metrics)
from ollama_metrics import OllamaGPUMonitor
monitor = OllamaGPUMonitor()
assert threading.active_count() == 1
assert not {"pynvml", "psutil", "asyncio", "ollama", "httpx"} & set(sys.modules)
try:
    ollama_metrics.OllamaGPUMonitr
except AttributeError as error:
    assert "OllamaGPUMonitr" in str(error)
else:
    raise AssertionError
for name in ollama_metrics.__all__:
    getattr(ollama_metrics, name)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=50)


def test_types_are_known_to_users(tmp_path: Path) -> None:
    """mypy --strict knows the class, its keys, both clients, and that a misspelt name is none."""
    pytest.importorskip("mypy")
    pytest.importorskip("ollama")
    (tmp_path / "user.py").write_text(
        """
import ollama
from ollama_metrics import GpuStatus, MonitorStatus, OllamaGPUMonitor

async def user() -> MonitorStatus:
    with OllamaGPUMonitor(ollama.AsyncClient(), cache_duration=0.5) as monitor:
        return await monitor.async_to_dict()

def full(gpus: list[GpuStatus]) -> list[int]:
    return [gpu["gpu_id"] for gpu in gpus if (gpu["used_memory_ratio"] or 0) > 0.9]

print(full(OllamaGPUMonitor(ollama.Client()).get_gpu_status()))
""",
        "utf-8",
    )
    (tmp_path / "wrong.py").write_text("from ollama_metrics import OllamaGPUMonitr\n", "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), "user.py", "wrong.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert 'no attribute "OllamaGPUMonitr"' in done.stdout
    assert "Found 1 error in 1 file" in done.stdout, done.stdout
