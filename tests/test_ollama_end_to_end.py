"""The running agent and an Ollama that is killed, hung, restored and broken in every other way; under polls."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from agent_process import AgentProcess
from balancer import decode
from ollama_process import OllamaProcess, model
from standin import NvmlStandIn

pytestmark = pytest.mark.timeout(120)

Start = Callable[..., AgentProcess]
EVERY_SECOND = ("--ollama-interval", "1")


@pytest.fixture
def ollama() -> Iterator[OllamaProcess]:
    """A stand-in for Ollama, on a port of its own."""
    with OllamaProcess() as process:
        yield process


class Polls:
    """Polls an agent as a balancer does, all the time; `answers` are (status, weight), `failed` what went wrong."""

    def __init__(self, agent: AgentProcess) -> None:
        self._agent, self._ended = agent, threading.Event()
        self.failed: list[str] = []
        self.count = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Polls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                answer = self._agent.get(timeout=1.0)
                assert answer.status == 200, answer.status
                decode(answer.body)
                self.count += 1
            except Exception as error:
                self.failed.append(repr(error))


def failing(document: Any) -> bool:
    return bool(document["status"] == "failing" and document["weight"] == 500)


def ok(document: Any) -> bool:
    return bool(document["status"] == "ok" and document["weight"] < 500)


def answered(document: Any) -> bool:
    return bool(document["ollama"]["up"])


def test_ollama_is_killed_hung_and_restored_under_polls(
    start_agent: Start, ollama: OllamaProcess
) -> None:
    """Dead or hung it is failing at weight 500 after the third check, back after the next; no poll fails."""
    agent = start_agent("--ollama", ollama.url, *EVERY_SECOND)
    with Polls(agent) as polls:
        agent.wait_until(ok)
        assert agent.get("/health/ollama").status == 200
        ollama.kill()
        document = agent.wait_until(failing)
        assert document["collectors"]["ollama"]["consecutive_failures"] == 3
        assert "connection refused (3 checks in a row)" in document["reasons"][0]
        assert agent.get("/health").status == 503
        assert agent.get("/health/ollama").status == 503
        ollama.restart()
        agent.wait_until(ok)
        ollama.pause()
        document = agent.wait_until(failing)
        assert document["collectors"]["ollama"]["consecutive_failures"] == 3
        ollama.resume()
        agent.wait_until(ok)
        assert agent.get("/health/ollama").status == 200
    assert polls.failed == []
    assert polls.count > 100


def test_a_reload_is_no_grace_for_a_dead_ollama(start_agent: Start, ollama: OllamaProcess) -> None:
    """Executed anew, the agent goes on to say that Ollama is dead: no poll sees anything else."""
    agent = start_agent("--ollama", ollama.url, *EVERY_SECOND)
    agent.wait_until(answered)
    ollama.kill()
    agent.wait_until(failing)
    agent.reload()
    assert failing(agent.metrics())


def test_an_expected_ollama_is_waited_for_and_then_no_more(
    start_agent: Start, ollama: OllamaProcess
) -> None:
    """Not seen since the start: degraded and just below 500 within the grace, failing after it."""
    ollama.kill()
    agent = start_agent("--ollama", ollama.url, "--ollama-grace", "3")
    document = agent.metrics()
    assert (document["status"], document["weight"]) == ("degraded", 499.9)
    assert agent.get("/health").status == 200
    assert agent.get("/health/ollama").status == 503
    agent.wait_until(failing)
    ollama.restart()
    agent.wait_until(ok)


def test_one_that_has_answered_is_expected_after_a_restart_of_the_agent(
    start_agent: Start, ollama: OllamaProcess
) -> None:
    """auto expects none on a host that never had one, and the one that it has seen from then on."""
    where = {"OLLAMA_HOST": f"127.0.0.1:{ollama.port}"}
    ollama.kill()
    with start_agent("--ollama", "auto", environment=where) as agent:
        document = agent.metrics()
        assert document["status"] == "ok"
        assert "none is expected" in document["reasons"][-1]
        assert document["ollama"]["expected"] is False
        ollama.restart()
        agent.wait_until(lambda document: document["ollama"]["expected"])
    ollama.kill()
    with start_agent("--ollama", "auto", "--ollama-grace", "0", environment=where) as agent:
        agent.wait_until(failing)


def test_open_connections_are_in_flight(start_agent: Start, ollama: OllamaProcess) -> None:
    """550 connections to Ollama are 550 requests in flight, the agent's own not among them."""
    agent = start_agent("--ollama", ollama.url, *EVERY_SECOND)
    agent.wait_until(lambda document: document["ollama"]["in_flight"] == 0)
    with contextlib.ExitStack() as stack:
        for _ in range(550):
            stack.enter_context(socket.create_connection(("127.0.0.1", ollama.port)))
        agent.wait_until(lambda document: document["ollama"]["in_flight"] == 550)
        assert b"\nollama_active_requests 550\n" in agent.get("/metrics?format=prometheus").body
    agent.wait_until(lambda document: document["ollama"]["in_flight"] == 0)


# What an answer can say that it should not is in test_ollama_api.py; a body that trickles takes 5 s there, too.
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("body", {"body": b'{"models": [{"name": "x", "size": -1, "size_vram": 0}]}'}),
    ("huge", {}),
    ("redirect", {}),
    ("status", {"status": 500}),
    ("close", {}),
]


def test_bad_answers_about_models_are_a_reason_and_nothing_is_lost(
    start_agent: Start, ollama: OllamaProcess
) -> None:
    """Each bad answer of /api/ps is told in that part's health; the models of before stay and age, the host is ok."""
    agent = start_agent("--ollama", ollama.url, *EVERY_SECOND)
    name = "llama3.2:latest"
    with Polls(agent) as polls:
        for kind, more in FAULTS:
            agent.wait_until(lambda document: document["collectors"]["ollama_models"]["success"])
            ollama.fault("/api/ps", kind, **more)
            document = agent.wait_until(
                lambda document: not document["collectors"]["ollama_models"]["success"]
            )
            assert "/api/ps" in document["collectors"]["ollama_models"]["error"], kind
            assert [one["name"] for one in document["ollama"]["models"]] == [name], kind
            assert document["collectors"]["ollama_models"]["age_seconds"] > 0
            assert document["ollama"]["up"]
            assert ok(document)
            text = agent.get("/metrics?format=prometheus").body
            assert b"ollama_model_size_bytes" not in text, kind
            ollama.fault("/api/ps", None)
    assert polls.failed == []


def test_a_model_on_the_cpu_takes_the_gpus_headroom(
    start_agent: Start, ollama: OllamaProcess, nvml: NvmlStandIn
) -> None:
    """A model wholly on the CPU of a host whose GPU works: degraded, and the GPU counts as 100 and 100."""
    ollama.models([model("a:1b", size=1 << 30, size_vram=0)])
    agent = start_agent("--ollama", ollama.url, *EVERY_SECOND, environment=nvml.environment())
    document = agent.wait_until(lambda document: document["status"] == "degraded")
    assert "a:1b 100 %" in " ".join(document["reasons"])
    assert document["gpu_avg_utilization_percent"] == 100
    assert document["gpu_avg_memory_percent"] == 100
    text = agent.get("/metrics?format=prometheus").body
    assert b'\nollama_model_cpu_ratio{model="a:1b"} 1.0\n' in text


def test_requests_are_counted_out_of_a_log(
    start_agent: Start, ollama: OllamaProcess, tmp_path: Path
) -> None:
    """What is written to the log from now on is counted; most requests failing makes the host degraded."""
    path = tmp_path / "ollama.log"
    line = '[GIN] 2026/11/20 - 10:11:12 | %d |  1.5s |  127.0.0.1 | POST     "/api/chat"\n'
    path.write_text(line % 200 * 50)
    agent = start_agent("--ollama", ollama.url, *EVERY_SECOND, "--ollama-log", f"file:{path}")
    agent.wait_until(lambda document: document["collectors"]["ollama_log"]["success"])
    with path.open("a") as file:
        file.write(line % 200 * 5 + line % 500 * 7 + "the secret prompt\n")
    document = agent.wait_until(lambda document: document["status"] == "degraded")
    assert "failed 7 of 12 requests" in " ".join(document["reasons"])
    requests = document["ollama"]["requests"]
    assert (requests["count"], requests["error_percent"]) == (12, 58.3)
    assert requests["p50_seconds"] == pytest.approx(1.5, rel=0.05)
    text = agent.get("/metrics?format=openmetrics").body.decode()
    assert 'ollama_requests_total{method="POST",endpoint="/api/chat",status="500"} 7' in text
    assert "ollama_request_duration_seconds_count 12" in text
    assert "secret" not in text + json.dumps(document)


def test_without_ollama_nothing_of_it_is_there(start_agent: Start) -> None:
    """--ollama none: no thread, a null in JSON, no family, and /health/ollama says why it is 503."""
    agent = start_agent("--ollama", "none")
    assert agent.metrics()["ollama"] is None
    assert b"ollama_up" not in agent.get("/metrics?format=prometheus").body
    answer = agent.get("/health/ollama")
    assert answer.status == 503
    assert "--ollama none" in answer.json["error"]
    names = {
        Path(f"/proc/{agent.pid}/task/{task}/comm").read_text()
        for task in os.listdir(f"/proc/{agent.pid}/task")
    }
    assert not any("ollama-sampler" in name for name in names)


def test_a_hung_check_delays_nobody(start_agent: Start, ollama: OllamaProcess) -> None:
    """While a check hangs, CPU and RAM go on to be read and served."""
    agent = start_agent("--ollama", ollama.url, *EVERY_SECOND)
    agent.wait_until(answered)
    ollama.pause()
    before = agent.metrics()["timestamp"]
    agent.wait_until(lambda document: document["timestamp"] > before + 2)
    ollama.resume()
