"""The drain: the file that says it, the commands that write and remove it, and the agent that obeys."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from agent_process import AgentProcess
from hypothesis import given
from hypothesis import strategies as st
from ollama_process import OllamaProcess

from ollama_metrics.drain import Drain, DrainFile, legible
from ollama_metrics.drain_command import duration
from ollama_metrics.errors import ConfigError

Start = Callable[..., AgentProcess]


class Wall:
    """A clock of Unix seconds that stands where it is put."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def file(tmp_path: Path, wall: Wall) -> DrainFile:
    return DrainFile(str(tmp_path), wall)


def written(file: DrainFile, text: object) -> None:
    """Put `text` where the drain is said."""
    assert file.path is not None
    Path(file.path).write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())


# -- the file ----------------------------------------------------------------------------------------------------------


def test_begun_read_and_ended(file: DrainFile, wall: Wall) -> None:
    """What was begun is read until it is ended; to end what is not there is no error."""
    assert file.look() is None
    assert not file.end()
    drain = file.begin("a new  disk\n", None)
    assert drain == file.look() == Drain("a new disk", wall.now, None)
    assert drain.sentence == "drained: a new disk"
    assert file.begin("", None).reason == "no reason given"
    assert file.end()
    assert file.look() is None


def test_an_end_ends_it(file: DrainFile, wall: Wall) -> None:
    """A drain with an end holds until that moment and not beyond."""
    drain = file.begin("x", wall.now + 60)
    assert drain.sentence == "drained until 2027-01-15T08:01:00Z: x"
    wall.now += 59.9
    assert file.look() == drain
    wall.now += 0.1
    assert file.current is None
    assert file.look() is None


def test_a_new_drain_takes_the_old_ones_place(file: DrainFile) -> None:
    """The last word counts, also when it comes within the same second."""
    for number in range(20):
        file.begin(f"number {number}", None)
        found = file.look()
        assert found is not None
        assert found.reason == f"number {number}"


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"\xff", b"null", b"[]", b"1", b"[" * 4000, b"x" * 5000, b'{"reason": "x"}'),
        {"reason": 1, "since": 1, "until": None},
        {"reason": "x", "since": "y", "until": None},
        {"reason": "x", "since": 1, "until": True},
        {"reason": "x", "since": 1, "until": -1},
        {"reason": "x", "since": 1, "until": 1e300},
        b'{"reason": "x", "since": 1, "until": NaN}',
        b'{"reason": "x", "since": 1, "until": ' + b"9" * 4000 + b"}",
    ],
)
def test_what_cannot_be_understood_drains(file: DrainFile, text: object) -> None:
    """A file that is there and is no drain drains the host, with a reason that names it."""
    written(file, text)
    found = file.look()
    assert found is not None
    assert found.until is None
    assert "cannot be understood" in found.reason
    file.begin("x", None)
    found = file.look()
    assert found is not None
    assert found.reason == "x"


def test_a_look_that_fails_is_not_remembered(
    file: DrainFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of descriptors for a moment: drained, without an end; the next look reads what is there."""
    drain = file.begin("x", 1_800_000_060.0)
    real = os.open

    def full(*arguments: Any, **more: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", full)
    found = file.look()
    assert found is not None
    assert found.until is None
    assert "Too many open files" in found.reason
    monkeypatch.setattr(os, "open", real)
    assert file.look() == drain


def test_one_that_is_moved_away_and_back_is_seen(file: DrainFile) -> None:
    """Gone between two calls of one look: no drain then, and the file when it is back."""
    drain = file.begin("x", None)
    assert file.path is not None
    os.rename(file.path, f"{file.path}.off")
    assert file.look() is None
    os.rename(f"{file.path}.off", file.path)
    assert file.look() == drain


def test_a_file_that_is_not_there_is_asked_for_at_half_the_price(
    file: DrainFile, wall: Wall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an error that tells why; the file is seen as soon as it is there."""
    assert file.look() is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lambda path: pytest.fail("the file was asked for in full"))
        assert file.look() is None
    begin = DrainFile(str(tmp_path), wall)
    begin.begin("x", None)
    assert file.look() is not None
    assert begin.end()
    assert file.look() is None


def test_a_file_that_cannot_be_asked_for_drains(tmp_path: Path, wall: Wall) -> None:
    """A state directory that leads nowhere any more may hide a drain: it is one, five seconds later at most."""
    now = 1000.0
    folder = tmp_path / "state"
    folder.mkdir()
    file = DrainFile(str(folder), wall, lambda: now)
    assert file.look() is None
    folder.rmdir()
    folder.symlink_to("state")
    seen = []
    for _ in range(6):
        seen.append(file.look())
        now += 1.0
    assert seen[:5] == [None] * 5
    assert seen[5] is not None
    assert "cannot be read (Too many levels of symbolic links)" in seen[5].reason
    folder.unlink()
    folder.mkdir()
    assert file.look() is None


def test_a_link_that_leads_nowhere_drains(file: DrainFile, tmp_path: Path) -> None:
    """Something is there under that name, and it is no file."""
    (tmp_path / "drain").symlink_to(tmp_path / "nothing")
    assert file.look() is not None


def test_no_file_but_something_else_drains(file: DrainFile) -> None:
    """A directory, a pipe (which nobody waits for) and a link to itself under its name drain the host, too."""
    assert file.path is not None
    path = Path(file.path)
    path.mkdir()
    assert file.look() is not None
    path.rmdir()
    os.mkfifo(path)
    assert file.look() is not None
    path.unlink()
    path.symlink_to(path)
    assert file.look() is not None


def test_a_link_is_not_written_through(file: DrainFile, tmp_path: Path) -> None:
    """Root may run this in a folder of the service's: neither the file nor the scratch file leads elsewhere."""
    assert file.path is not None
    victim = tmp_path / "victim"
    victim.write_text("precious")
    Path(file.path).symlink_to(victim)
    Path(f"{file.path}.{os.getpid()}").symlink_to(victim)
    file.begin("x", None)
    assert victim.read_text() == "precious"
    assert not Path(file.path).is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drain", "victim"]


def test_everybody_may_read_it(file: DrainFile) -> None:
    """Root's umask does not keep it from the service's user."""
    before = os.umask(0o077)
    try:
        file.begin("x", None)
    finally:
        os.umask(before)
    assert file.path is not None
    assert Path(file.path).stat().st_mode & 0o777 == 0o644


def test_without_a_state_directory_there_is_no_drain() -> None:
    """Nothing is read, nothing is ended, and to begin one is an error."""
    nowhere = DrainFile(None)
    assert nowhere.look() is None
    assert not nowhere.end()
    with pytest.raises(OSError, match="no state directory"):
        nowhere.begin("x", None)


@given(st.text(max_size=3000))
def test_a_reason_is_one_line(text: str) -> None:
    """Whatever is given as a reason is shown as one printable line of at most 200 characters."""
    shown = legible(text)
    assert len(shown) <= 200
    assert shown.isprintable()
    assert shown == shown.strip()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400), ("1.5h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    """Seconds, minutes, hours and days."""
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "0", "0s", "-1", "1w", "1h30m", "x", "inf", "nan", "1e3", "400d", "\u0661m", "1_0"],
)
def test_no_duration(text: str) -> None:
    """Anything else is a mistake that names the option."""
    with pytest.raises(ConfigError, match="--for"):
        duration(text)


# -- the commands and the agent ----------------------------------------------------------------------------------------


def command(
    name: str, agent: Optional[AgentProcess], state: Path, *options: str, environment: Any = None
) -> subprocess.CompletedProcess[str]:
    """Run `ollama-metrics drain` or `resume` for an agent whose state directory is `state`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
    port = agent.port if agent is not None else 1
    return subprocess.run(
        [sys.executable, "-m", "ollama_metrics", name, "--state-dir", str(state), *options],
        env={**inherited, "OLLAMA_METRICS_LISTEN": f"127.0.0.1:{port}", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_drain_and_resume(start_agent: Start, tmp_path: Path) -> None:
    """Drained: weight 500, its own status, /health 503, `drain` for HAProxy; it outlives a restart; then resumed."""
    state = tmp_path / "state"
    with start_agent("--agent-check", "127.0.0.1:0") as agent:
        assert agent.metrics()["drain"] is None
        done = command("drain", agent, state, "--reason", "a new disk")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "drained until `ollama-metrics resume`: a new disk\n"
        document = agent.metrics()
        assert (document["status"], document["weight"], document["gpu_count"]) == (
            "draining",
            500.0,
            1,
        )
        assert document["reasons"][0] == "drained: a new disk"
        assert document["drain"]["reason"] == "a new disk"
        assert document["drain"]["until"] is None
        assert agent.get("/health").status == 503
        port = int(agent.wait_for_log(r"agent-check on 127\.0\.0\.1:(\d+)").group(1))
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.recv(100) == b"drain up\n"
        agent.wait_for_log(r"status: draining, weight 500: drained: a new disk")
        text = agent.get("/metrics?format=prometheus").body
        assert b'\nollama_host_status{status="draining"} 1\n' in text
        assert b"\nollama_host_weight 500.0\n" in text
        agent.reload()
        assert agent.metrics()["status"] == "draining"
    with start_agent() as agent:
        assert agent.metrics()["status"] == "draining"
        done = command("resume", agent, state)
        assert (done.returncode, done.stdout, done.stderr) == (0, "resumed\n", "")
        assert agent.metrics()["status"] == "ok"
        assert agent.get("/health").status == 200
        again = command("resume", agent, state)
        assert (again.returncode, again.stdout) == (0, "it was not drained\n")


def test_a_drain_ends_by_itself(start_agent: Start, tmp_path: Path) -> None:
    """With --for it is over after that time, without anybody's doing."""
    agent = start_agent()
    done = command("drain", agent, tmp_path / "state", "--for", "2s")
    assert done.returncode == 0
    assert agent.metrics()["drain"]["until"] == pytest.approx(
        agent.metrics()["drain"]["since"] + 2, abs=1
    )
    agent.wait_until(lambda document: document["status"] == "ok")
    assert agent.metrics()["drain"] is None


def test_wait_returns_when_nothing_is_in_flight(start_agent: Start, tmp_path: Path) -> None:
    """`--wait` tells how many are left and returns when the last connection to Ollama has gone."""
    state = tmp_path / "state"
    with OllamaProcess() as ollama, contextlib.ExitStack() as stack:
        agent = start_agent("--ollama", ollama.url, "--ollama-interval", "1")
        connections = [socket.create_connection(("127.0.0.1", ollama.port)) for _ in range(3)]
        for connection in connections:
            stack.enter_context(connection)
        agent.wait_until(lambda document: document["ollama"]["in_flight"] == 3)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA_")}
        waiting = subprocess.Popen(
            [
                *(sys.executable, "-m", "ollama_metrics", "drain", "--settle", "1s"),
                *("--wait", "--settle", "1s"),
                "--state-dir",
                str(state),
            ],
            env={**inherited, "OLLAMA_METRICS_LISTEN": f"127.0.0.1:{agent.port}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(waiting.kill)
        assert waiting.stdout is not None
        assert waiting.stdout.readline().startswith("drained until")
        assert waiting.stdout.readline() == "3 in flight\n"
        assert waiting.poll() is None
        for connection in connections:
            connection.close()
        lines = iter(waiting.stdout.readline, "")
        assert "nothing is in flight\n" in lines
        assert waiting.wait(30) == 0
        waiting.stdout.close()


def test_nobody_can_wait_without_knowing(start_agent: Start, tmp_path: Path) -> None:
    """An agent that leaves Ollama alone cannot tell what is in flight: drained, and exit code 1 with the reason."""
    agent = start_agent("--ollama", "none")
    done = command("drain", agent, tmp_path / "state", "--wait", "--settle", "0")
    assert done.returncode == 1
    assert "nobody can tell what is in flight" in done.stderr
    assert agent.metrics()["status"] == "draining"


def test_an_agent_that_looks_elsewhere_is_told_of(start_agent: Start, tmp_path: Path) -> None:
    """A drain in another state directory than the agent's is not seen: exit code 1, and what to look at."""
    agent = start_agent()
    done = command("drain", agent, tmp_path / "another")
    assert done.returncode == 1
    assert "does not see it" in done.stderr
    assert "--state-dir" in done.stderr
    assert agent.metrics()["status"] == "ok"


def test_without_an_agent_the_drain_waits_for_it(start_agent: Start, tmp_path: Path) -> None:
    """A host whose agent is not running can be drained before it starts; that nobody has seen it is exit code 1."""
    done = command("drain", None, tmp_path / "state")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert str(tmp_path / "state" / "drain") in done.stderr
    assert start_agent().metrics()["status"] == "draining"


def test_a_failing_host_is_drained_as_well(start_agent: Start, tmp_path: Path) -> None:
    """With --on-failure error its page is a 503, which tells the drain all the same."""
    options = ("--expected-gpus", "4", "--on-failure", "error")
    agent = start_agent(*options)
    agent.wait_until(lambda document: document["status"] == "failing")
    done = command("drain", agent, tmp_path / "state")
    assert (done.returncode, done.stderr) == (0, "")
    assert agent.metrics()["status"] == "failing"
    assert "drained: no reason given" in agent.metrics()["reasons"]


def test_a_mistake_in_the_settings_does_not_keep_it_from_draining(
    start_agent: Start, tmp_path: Path
) -> None:
    """Only what says where the agent is counts: a half-edited setting of another kind is not looked at."""
    agent = start_agent()
    wrong = {"OLLAMA_METRICS_WINDOW": "soon", "OLLAMA_HOST": "https://x"}
    done = command("drain", agent, tmp_path / "state", environment=wrong)
    assert (done.returncode, done.stderr) == (0, "")


def test_who_may_not_write_is_told_who_may(tmp_path: Path) -> None:
    """A state directory that cannot be written is one sentence with the remedy, and exit code 1."""
    (tmp_path / "state").write_text("no directory")
    done = command("drain", None, tmp_path / "state")
    assert done.returncode == 1
    assert done.stderr.startswith("ollama-metrics: ")
    assert "run this as root or as the service's user" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["drain", "resume"])
def test_help_and_mistakes(name: str, tmp_path: Path) -> None:
    """--help tells the options and the exit codes; a mistake is one line and exit code 2."""
    helped = command(name, None, tmp_path, "--help")
    assert helped.returncode == 0
    assert "--state-dir" in helped.stdout
    assert "Exit codes" in helped.stdout
    wrong = command(name, None, tmp_path, "--nonsense")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


def test_a_drain_that_cannot_be_understood_is_obeyed(start_agent: Start, tmp_path: Path) -> None:
    """Half a file, from a disk that was full, drains the host until somebody resumes it."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "drain").write_text('{"reason": "half a')
    agent = start_agent()
    document = agent.metrics()
    assert (document["status"], document["weight"]) == ("draining", 500.0)
    assert command("resume", agent, state).returncode == 0
    assert agent.metrics()["status"] == "ok"
