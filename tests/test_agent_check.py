"""HAProxy's line: what is said of which host, and that a steady one does not flap."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

import pytest
from agent_process import AgentProcess
from hypothesis import given
from hypothesis import strategies as st
from standin import NvmlStandIn

from ollama_metrics.agent_check import HYSTERESIS, Headroom, line
from ollama_metrics.verdict import Verdict

WITH_CHECK = ("--agent-check", "127.0.0.1:0")


def verdict(status: str, load: float = 0.38, **more: Any) -> Verdict:
    return Verdict(status, 0, 0, load_ratio=load, weight=1.0, **more)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (verdict("ok"), b"ready up 62%\n"),
        (verdict("degraded"), b"ready up 62%\n"),
        (verdict("ok", 0.0), b"ready up 100%\n"),
        (verdict("ok", 1.0), b"ready up 1%\n"),
        (verdict("draining", drained=True), b"drain up\n"),
        (verdict("failing", reasons=("no GPU", "gone")), b"ready down #no GPU; gone\n"),
        (verdict("failing", reasons=("gone",), drained=True), b"drain down #gone\n"),
        (verdict("failing"), b"ready down #failing\n"),
        (verdict("degraded", reasons=("wait",), waiting=True), b"ready down #wait\n"),
        (verdict("draining", reasons=("wait",), waiting=True, drained=True), b"drain down #wait\n"),
        (verdict("failing", reasons=("a\nb\t\u00b5\0",)), b"ready down #a?b???\n"),
        (verdict("failing", reasons=("x" * 999,)), b"ready down #" + b"x" * 200 + b"\n"),
    ],
)
def test_each_status_has_its_line(known: Verdict, said: bytes) -> None:
    """Administration and operation are named in each; a reason is one line of printable ASCII, and not too long."""
    assert line(known, Headroom()) == said


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_percentage_is_never_far_from_the_load(loads: list[float]) -> None:
    """1 to 100 for every load, and off by no more than what it is held back by, and a half by rounding."""
    headroom = Headroom()
    for load in loads:
        percent = headroom.percent(load)
        assert 1 <= percent <= 100
        assert abs(percent - max(1.0, 100 * (1 - load))) <= HYSTERESIS + 0.51


def test_a_steady_host_does_not_flap() -> None:
    """A load that trembles by less than three points leaves the percentage as it is; a real change does not."""
    headroom = Headroom()
    seen = {headroom.percent(0.5 + tremble / 1000) for tremble in (0, 9, -9, 14, -14, 3)}
    assert seen == {50}
    assert headroom.percent(0.6) == 40


def asked(port: int, question: bytes = b"") -> bytes:
    """What an agent-check gets: all bytes until the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        if question:
            client.sendall(question)
        received = b""
        while data := client.recv(4096):
            received += data
        return received


def port_of(agent: AgentProcess) -> int:
    """Where the agent answers agent-checks, by its log."""
    return int(agent.wait_for_log(r"agent-check on 127\.0\.0\.1:(\d+)").group(1))


def test_whoever_connects_is_told_the_line(start_agent: Callable[..., AgentProcess]) -> None:
    """With or without a question (HAProxy's agent-send), also a long one; and HTTP goes on beside it."""
    agent = start_agent(*WITH_CHECK)
    port = port_of(agent)
    for question in (b"", b"hello\n", b"x" * 100_000):
        said = asked(port, question)
        assert said.startswith(b"ready up ")
        assert said.endswith(b"%\n")
    assert agent.get("/health").status == 200
    # None of those is held; the one that asks this may be counted.
    agent.wait_until(lambda document: document["agent"]["connections"] <= 1)


def test_clients_that_stay_are_sent_away(start_agent: Callable[..., AgentProcess]) -> None:
    """A client that neither sends nor closes gets its line at once, and others get theirs meanwhile."""
    agent = start_agent(*WITH_CHECK)
    port = port_of(agent)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert asked(port).startswith(b"ready up ")
        assert agent.get("/health").status == 200


def test_a_lost_driver_is_down_and_comes_up_again(
    start_agent: Callable[..., AgentProcess], nvml: NvmlStandIn
) -> None:
    """`down` with the reason while no GPU answers, `ready up` when they are back."""
    agent = start_agent(*WITH_CHECK, "--interval", "0.2", environment=nvml.environment())
    port = port_of(agent)
    agent.wait_until(lambda document: document["status"] == "ok")
    assert asked(port).startswith(b"ready up ")
    nvml.unload_driver()
    agent.wait_until(lambda document: document["status"] == "failing")
    assert asked(port).startswith(b"ready down #the GPUs cannot be read")
    nvml.load_driver()
    agent.wait_until(lambda document: document["status"] == "ok")
    assert asked(port).startswith(b"ready up ")


def test_a_reload_keeps_the_listener(
    start_agent: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    """SIGHUP executes the program anew on the same sockets: the port is the same, and nobody is refused."""
    agent = start_agent(*WITH_CHECK)
    port = port_of(agent)
    agent.reload()
    assert asked(port).startswith(b"ready up ")


def test_no_agent_check_unless_asked_for(start_agent: Callable[..., AgentProcess]) -> None:
    """Without the option there is one listener."""
    agent = start_agent()
    assert "agent-check" not in agent.log
