"""The running agent while things break under it, and what its pollers see meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

import pytest
from agent_process import AgentProcess
from balancer import Poll, PollFailed, decode, pick, poll
from ports import free_port
from standin import NvmlStandIn

from ollama_metrics.endpoints import Endpoints
from ollama_metrics.expectation import Expectation
from ollama_metrics.sampler import Sampler

StartAgent = Callable[..., AgentProcess]
INTERVAL = "0.2"


class Pollers:
    """Balancers that poll without a pause; a poll may take one second."""

    def __init__(self, port: int, count: int = 4) -> None:
        self._port, self._ended = port, threading.Event()
        self.polls, self.failures = 0, list[str]()
        self._threads = [threading.Thread(target=self._poll) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _poll(self) -> None:
        while not self._ended.is_set():
            try:
                poll(self._port, timeout=1.0)
                self.polls += 1
            except PollFailed as failure:
                self.failures.append(str(failure))
            self._ended.wait(0.005)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def polled(agent: AgentProcess) -> Iterator[Pollers]:
    """Poll the agent for the time of the block, in which no poll may fail or take over a second."""
    pollers = Pollers(agent.port)
    try:
        yield pollers
    finally:
        pollers.end()
    assert pollers.failures == []
    assert pollers.polls > 50


def test_nvml_is_killed_hung_lost_mismatched_and_restored_under_pollers(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """Through every failure of the driver no poll fails, each is seen for what it is, and each heals by itself."""
    nvml.set(count=3)
    agent = start_agent("--interval", INTERVAL, environment=nvml.environment())
    healthy = poll(agent.port)
    with polled(agent):

        def seen(status: str, word: str) -> Poll:
            document = agent.wait_until(lambda d: d["status"] == status)
            assert word in " ".join(document["reasons"]), document["reasons"]
            return poll(agent.port)

        def healed() -> None:
            agent.wait_until(lambda d: d["status"] == "ok" and d["gpu_count"] == 3)

        nvml.lose(1)
        lost = seen("degraded", "1 of 3 GPUs lost")
        assert lost.gpu_count == 3
        assert 500 > lost.weight > healthy.weight
        nvml.restore(1)
        healed()

        nvml.hang()
        assert seen("failing", "a driver call hangs") == Poll(100, 100, 3, 100, 100)
        nvml.release()
        healed()

        nvml.unload_driver()
        assert seen("failing", "not loaded") == Poll(100, 100, 3, 100, 100)
        nvml.load_driver()
        healed()

        nvml.update({"init": 18, "error.nvmlDeviceGetCount": 18})
        assert seen("failing", "updated under its library") == Poll(100, 100, 3, 100, 100)
        nvml.remove("init", "error.nvmlDeviceGetCount")
        healed()

        for index in range(3):
            nvml.lose(index)
        assert seen("failing", "no GPU answers") == Poll(100, 100, 3, 100, 100)
        nvml.restore()
        healed()

        nvml.set(count=1)
        fewer = seen("degraded", "2 of 3 GPUs lost")
        assert fewer.gpu_count == 3
        nvml.set(count=3)
        healed()


def test_a_hung_driver_delays_neither_cpu_nor_ram(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """While a driver call hangs, CPU and RAM are sampled on, fresh in every answer, and the hang shows its age."""
    agent = start_agent("--interval", INTERVAL, environment=nvml.environment())
    nvml.hang()
    nvml.wait_for_call("nvmlDeviceGetCount")
    hung = agent.wait_until(lambda d: d["status"] == "failing")
    assert hung["collectors"]["gpu"]["stuck"] is True
    assert hung["collectors"]["gpu"]["success"] is False
    begun = hung["collectors"]["host"]["last_success_timestamp"]
    later = agent.wait_until(
        lambda d: d["collectors"]["host"]["last_success_timestamp"] >= begun + 5 * float(INTERVAL)
    )
    host, gpu = later["collectors"]["host"], later["collectors"]["gpu"]
    assert host["success"] is True
    assert host["stuck"] is False
    assert gpu["age_seconds"] > host["age_seconds"]
    assert gpu["age_seconds"] >= hung["collectors"]["gpu"]["age_seconds"]
    assert later["age_seconds"] == pytest.approx(gpu["age_seconds"], abs=0.01)
    assert later["gpus"] == []
    assert later["instant"]["cpu_percent"] is not None
    assert (
        "ollama_gpu_utilization_ratio" not in agent.get("/metrics?format=prometheus").body.decode()
    )


def test_a_driver_that_hangs_from_the_start_is_served_as_failing(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """The port is bound although the very first driver call hangs, and the first answer is 500, not idle."""
    nvml.hang("nvmlInit")
    agent = start_agent("--interval", INTERVAL, environment=nvml.environment())
    assert poll(agent.port) == Poll(100, 100, 1, 100, 100)
    assert agent.get("/health").status == 503
    nvml.release()
    agent.wait_until(lambda d: d["status"] == "ok" and d["gpu_count"] == 1)


def test_gpus_are_expected_across_restarts(
    start_agent: StartAgent, nvml: NvmlStandIn, tmp_path: Path
) -> None:
    """A host that boots without its GPUs says 500, and tells the operator how to accept the new number."""
    nvml.set(count=4)
    start_agent("--interval", INTERVAL, environment=nvml.environment()).close()
    nvml.remove_library()
    agent = start_agent("--interval", INTERVAL, environment=nvml.environment())
    document = agent.metrics()
    assert document["status"] == "failing"
    assert (document["weight"], document["gpu_count"], document["gpu_expected"]) == (500, 4, 4)
    remembered = tmp_path / "state" / "gpus-expected"
    assert f"delete {remembered} and restart" in " ".join(document["reasons"])
    agent.close()
    remembered.unlink()
    accepted = start_agent("--interval", INTERVAL, environment=nvml.environment()).metrics()
    assert (accepted["status"], accepted["gpu_count"]) == ("ok", 0)


def test_what_the_operator_says_is_expected(start_agent: StartAgent, nvml: NvmlStandIn) -> None:
    """--expected-gpus N makes a host with fewer degraded from its first answer; 0 never asks the driver."""
    nvml.set(count=2)
    few = start_agent(
        "--interval", INTERVAL, "--expected-gpus", "4", environment=nvml.environment()
    )
    document = few.metrics()
    assert (document["status"], document["gpu_count"]) == ("degraded", 4)
    assert "set --expected-gpus to the number left" in " ".join(document["reasons"])
    few.close()
    nvml.forget_calls()
    none = start_agent(
        "--interval", INTERVAL, "--expected-gpus", "0", environment=nvml.environment()
    )
    document = none.metrics()
    assert (document["status"], document["gpu_count"], document["gpus"]) == ("ok", 0, [])
    assert nvml.calls() == []


def test_on_failure_error_answers_503_and_prometheus_still_gets_the_truth(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """Policy error: JSON has status 503 and the same numbers; exposition text stays 200."""
    agent = start_agent(
        "--interval", INTERVAL, "--on-failure", "error", environment=nvml.environment()
    )
    nvml.unload_driver()
    agent.wait_until(lambda d: d["status"] == "failing")
    answer = agent.get()
    assert answer.status == 503
    assert answer.json["weight"] == 500
    with pytest.raises(PollFailed):
        poll(agent.port)
    text = agent.get("/metrics?format=prometheus")
    assert text.status == 200
    assert 'ollama_host_status{status="failing"} 1' in text.body.decode()


def test_on_failure_last_good_keeps_the_numbers_with_their_age(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """Policy last-good: the numbers from before the failure, failing, and an age that grows."""
    nvml.update(
        {"gpu0.utilization": 42, "gpu0.memory_total": 1000 << 20, "gpu0.memory_used": 500 << 20}
    )
    agent = start_agent(
        "--interval", INTERVAL, "--on-failure", "last-good", environment=nvml.environment()
    )
    nvml.unload_driver()
    first = agent.wait_until(lambda d: d["status"] == "failing")
    assert first["gpu_avg_utilization_percent"] == 42.0
    assert first["gpu_avg_memory_percent"] == 50.0
    assert first["weight"] < 500
    assert [gpu["utilization_percent"] for gpu in first["gpus"]] == [42.0]
    later = agent.wait_until(lambda d: d["age_seconds"] > first["age_seconds"] + 0.5)
    assert later["gpu_avg_utilization_percent"] == 42.0
    assert agent.get("/health").status == 503


def test_a_healthy_host_is_picked_over_a_broken_one_by_the_real_thing(
    start_agent: StartAgent, nvml: NvmlStandIn, tmp_path: Path
) -> None:
    """Two running agents, one saturated and one whose driver is gone: the balancer picks the one that works."""
    busy_gpu = NvmlStandIn(tmp_path / "busy")
    busy_gpu.update(
        {"gpu0.utilization": 100, "gpu0.memory_used": 81_559 << 20, "gpu0.memory_reserved": 0}
    )
    busy_gpu.update({"gpu0.memory_total": 81_559 << 20})
    busy = start_agent(
        "--interval",
        INTERVAL,
        environment=busy_gpu.environment(),
        state_dir=tmp_path / "state-busy",
    )
    broken = start_agent("--interval", INTERVAL, environment=nvml.environment())
    nvml.unload_driver()
    broken.wait_until(lambda d: d["status"] == "failing")
    polls: dict[str, Any] = {"broken": poll(broken.port), "busy": poll(busy.port)}
    assert pick(polls) == "busy"


def test_utilization_is_the_mean_over_the_window_that_is_asked_for(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """After a step from 0 to 100 a long window lies between, a short one at the top; the maximum is 100 in both."""
    nvml.update({"gpu0.utilization": 0})
    agent = start_agent("--interval", INTERVAL, "--window", "60", environment=nvml.environment())
    agent.wait_until(lambda d: d["agent"]["uptime_seconds"] > 1.5)
    nvml.update({"gpu0.utilization": 100})
    agent.wait_until(lambda d: d["instant"]["gpu_avg_utilization_percent"] == 100.0)
    # The step may lie within the newest reading but one, of which a window as long as the interval
    # has a corner as long as the clock is uneven: the reading after it is wholly above the step.
    agent.wait_until(
        lambda _: agent.metrics(f"/metrics?window={INTERVAL}")["gpu_avg_utilization_percent"] == 100
    )
    short = agent.metrics(f"/metrics?window={INTERVAL}")
    long = agent.metrics()
    assert short["gpu_avg_utilization_percent"] == 100.0
    assert 0 < long["gpu_avg_utilization_percent"] < 90
    assert long["gpus"][0]["utilization_max_percent"] == 100.0
    assert long["gpus"][0]["utilization_instant_percent"] == 100.0
    assert (short["window_seconds"], long["window_seconds"]) == (float(INTERVAL), 60)


def test_the_first_answer_is_measured(start_agent: StartAgent) -> None:
    """The first answer ever has a fresh sample and a CPU share over a true interval, not a zero of the start."""
    agent = start_agent()
    document = agent.metrics()
    assert document["status"] == "ok"
    assert document["age_seconds"] is not None
    assert document["collectors"]["host"]["success"] is True
    assert document["instant"]["cpu_percent"] is not None
    assert agent.get("/-/ready").status == 200


def test_changes_of_the_verdict_are_logged_once_with_their_reason(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """The log says when a host becomes degraded or failing and why, and when it is well again."""
    nvml.set(count=2)
    agent = start_agent("--interval", INTERVAL, environment=nvml.environment())
    agent.wait_for_log("status: ok, weight")
    nvml.lose(0)
    agent.wait_for_log("warning: status: degraded, weight .*GPU is lost")
    nvml.hang()
    agent.wait_for_log("warning: status: failing, weight 500: .*a driver call hangs")
    nvml.release()
    nvml.restore()
    agent.wait_for_log("status: ok, weight", skip=1)
    assert len([line for line in agent.log if "status: failing" in line]) == 1


def test_an_agent_that_cannot_render_says_500_to_a_balancer() -> None:
    """A fault of the agent's own in rendering is the highest weight to a balancer, and the loop goes on."""

    class Nonsense:
        pause = 0.0

        def collect(self) -> Any:
            return self

        def levels(self) -> Any:
            return {"": ("not", "numbers")}

    said: list[str] = []
    sampler = Sampler("host", Nonsense(), 1.0, lambda _level, sentence: said.append(sentence))
    sampler.cycle()
    endpoints = Endpoints(
        sampler,
        None,
        Expectation(0, None, print),
        interval=1.0,
        window=15.0,
        on_failure="pessimistic",
        log=lambda _level, sentence: said.append(sentence),
    )
    endpoints.version()
    answer = endpoints.render(endpoints.page("GET", "/metrics", None))
    assert answer.status == 200
    assert decode(answer.body) == Poll(100, 100, 1, 100, 100)
    assert endpoints.render(endpoints.page("GET", "/metrics?format=prometheus", None)).status == 500
    assert endpoints.render(endpoints.page("GET", "/health", None)).status == 500
    assert len(said) == 1
    assert "the agent itself fails" in said[0]


def test_a_pipeline_of_distinct_pages_starves_no_poll(
    start_agent: StartAgent, nvml: NvmlStandIn
) -> None:
    """Clients that ask for every window there is, as fast as they can, delay no poll by a second."""
    nvml.set(count=16)
    agent = start_agent("--interval", INTERVAL, environment=nvml.environment())
    agent.wait_until(lambda d: d["agent"]["uptime_seconds"] > 3)
    flood = b"".join(
        f"GET /metrics?window={number / 10} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for number in range(2, 1200)
    )
    clients = [socket.create_connection(("127.0.0.1", agent.port)) for _ in range(20)]
    try:
        for client in clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.send(flood)
        for _ in range(5):
            poll(agent.port, timeout=1.0)
    finally:
        for client in clients:
            client.close()


def test_a_log_that_nobody_reads_stops_nothing(start_agent: StartAgent, nvml: NvmlStandIn) -> None:
    """With standard error a full pipe, readings go on, and SIGTERM ends the agent."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
    process = subprocess.Popen(
        [
            *AGENT,
            "--listen",
            f"127.0.0.1:{port}",
            "--interval",
            INTERVAL,
            "--state-dir",
            "/nonexistent/x",
        ],
        env={**environment, **nvml.environment()},
        stderr=writer,
    )
    try:
        assert eventually(lambda: poll(port).gpu_count == 1)
        nvml.unload_driver()
        assert eventually(lambda: poll(port).weight == 500)
        nvml.load_driver()
        assert eventually(lambda: poll(port).weight < 500)
        process.terminate()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


AGENT = [sys.executable, "-m", "ollama_metrics", "serve"]


def eventually(true: Callable[[], bool]) -> bool:
    """Whether `true` comes to hold within ten seconds; an agent that does not answer yet counts as not."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(PollFailed):
            if true():
                return True
        threading.Event().wait(0.02)
    return False
