"""`ollama-metrics warm`: what it asks of Ollama, what it says, its exit codes, and what it makes of bad answers."""

from __future__ import annotations

import http.server
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ollama_process import OllamaProcess, model
from ports import free_port

from ollama_metrics.errors import OllamaDown
from ollama_metrics.ollama_stream import order
from ollama_metrics.ollama_url import OllamaUrl
from ollama_metrics.progress import Progress, size, span
from ollama_metrics.warm_command import whole_name

DROP_IN = Path(__file__).parents[1] / "systemd" / "ollama.service.d" / "warm.conf.example"
COMMAND = [sys.executable, "-m", "ollama_metrics", "warm"]
PATIENCE = 30
LIBRARY: dict[str, dict[str, Any]] = {
    "llama3.2:latest": {"size": 3_825_819_519},
    "llama3.1:70b": {"size": 42_520_413_916, "here": False},
    "bge-m3:latest": {"size": 1_200_000_000, "embedding": True},
    "slow:latest": {"load": 3600},
}


@pytest.fixture(scope="module")
def process() -> Iterator[OllamaProcess]:
    with OllamaProcess() as ollama:
        yield ollama


@pytest.fixture
def ollama(process: OllamaProcess) -> Iterator[OllamaProcess]:
    """An Ollama with the models of LIBRARY on disk or to be pulled, and none in memory."""
    process.library(LIBRARY)
    process.models([])
    yield process
    for path in ("/api/generate", "/api/pull", "/api/ps", "/api/version"):
        process.fault(path, None)


def environment(**more: str) -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("OLLAMA_")}
    return {**inherited, **more}


def warm(ollama: OllamaProcess, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with the Ollama to ask in OLLAMA_HOST."""
    return subprocess.run(
        [*COMMAND, *options],
        env=environment(OLLAMA_HOST=ollama.url),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def loaded(ollama: OllamaProcess) -> dict[str, str]:
    """The models in memory, and until when."""
    models = ollama._ask("GET", "/api/ps")["models"]
    return {entry["name"]: entry["expires_at"] for entry in models}


# -- loading ---------------------------------------------------------------------------------------


def test_it_loads_a_model(ollama: OllamaProcess) -> None:
    """A model without its tag is loaded and kept as asked, and one line tells how long that took and where it is."""
    before = ollama.tell()["loads"]
    done = warm(ollama, "llama3.2", "--keep-alive", "-1")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"llama3\.2: loaded in \d+\.\d s, 3\.8 GB, all of it on GPUs\n", done.stdout
    )
    assert loaded(ollama)["llama3.2:latest"].startswith("2318")
    assert ollama.tell()["loads"] == before + 1
    assert ollama.tell()["running"] == 0


def test_a_model_that_is_loaded_stays_so(ollama: OllamaProcess) -> None:
    """The second time nothing is loaded, which is said, and the time for which it is kept is the new one."""
    warm(ollama, "llama3.2", "--keep-alive", "-1")
    before = ollama.tell()["loads"]
    done = warm(ollama, "llama3.2", "--keep-alive", "24h")
    assert (done.returncode, ollama.tell()["loads"]) == (0, before)
    assert "was loaded already" in done.stdout
    assert not loaded(ollama)["llama3.2:latest"].startswith("2318")


@pytest.mark.parametrize(
    ("in_vram", "said"), [(1 << 30, "only 25 % of it on GPUs"), (0, "all of it on the CPU")]
)
def test_a_model_on_the_cpu_is_told(ollama: OllamaProcess, in_vram: int, said: str) -> None:
    """What does not fit the GPUs is slow, and the line says how much does."""
    ollama.models([model("llama3.2:latest", 4 << 30, in_vram)])
    assert said in warm(ollama, "llama3.2").stdout


def test_a_model_for_embeddings_is_loaded_too(ollama: OllamaProcess) -> None:
    """Ollama refuses to generate with it, so it is loaded by embedding something."""
    assert warm(ollama, "bge-m3").returncode == 0
    assert "bge-m3:latest" in loaded(ollama)


def test_quiet_says_nothing(ollama: OllamaProcess) -> None:
    """With --quiet there is no output where all is well, and a failure is told all the same."""
    done = warm(ollama, "llama3.2", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "not found" in warm(ollama, "nope", "--quiet").stderr


def test_a_reader_that_has_gone_is_no_failure(ollama: OllamaProcess) -> None:
    """Nobody reads the line, and the model is loaded: exit code 0, and no complaint."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, "llama3.2", "--host", ollama.url],
            stdout=writing, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, env=environment(),
        )  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "loading llama3.2\n")


def test_ctrl_c_ends_it(ollama: OllamaProcess) -> None:
    """While a model loads for an hour, SIGINT ends the command at once with 130."""
    before = ollama.tell()["loads"]
    with subprocess.Popen([*COMMAND, "slow", "--host", ollama.url], env=environment()) as running:
        ollama.tell(loads=before + 1)
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE) == 130


# -- pulling ---------------------------------------------------------------------------------------


def test_it_pulls_and_tells_how_far_it_is(ollama: OllamaProcess) -> None:
    """Where there is no terminal each state is a line, and a download one for each tenth."""
    before = ollama.tell()["pulls"]
    done = warm(ollama, "llama3.1:70b", "--pull")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    percents = [int(found[1]) for line in lines if (found := re.search(r"(\d+) %", line))]
    assert percents == sorted(set(percents))
    assert percents[0] == 0
    assert percents[-1] == 100
    assert len(percents) == 11
    kinds = [line for line in lines if "%" not in line]
    assert kinds == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "success",
        "loading llama3.1:70b",
    ]
    assert ollama.tell()["pulls"] == before + 1
    assert "llama3.1:70b" in loaded(ollama)


def test_a_terminal_gets_a_bar(ollama: OllamaProcess) -> None:
    """On a terminal there is one line that is drawn over again, and it ends full."""
    master, terminal = os.openpty()
    done = subprocess.run(
        [*COMMAND, "llama3.1:70b", "--pull", "--host", ollama.url],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=terminal,
        timeout=PATIENCE, env=environment(TERM="xterm"),
    )  # fmt: skip
    os.close(terminal)
    with open(master, "rb", buffering=0) as screen:
        text = b""
        try:
            while piece := screen.read(1 << 16):
                text += piece
        except OSError:  # how Linux tells the end of a terminal
            pass
    assert done.returncode == 0
    line = next(line for line in text.decode().split("\n") if "%" in line)
    drawn = [one for one in line.replace("\x1b[K", "").split("\r") if one]
    assert all(re.fullmatch(r"pulling \w{12}  \[[#.]{24}\]  .* of 43 GB.*", one) for one in drawn)
    assert f"[{'#' * 24}]  100 %  43 GB of 43 GB" in drawn[-1]


def test_a_pull_that_fails_is_no_failure_where_the_model_is_there(ollama: OllamaProcess) -> None:
    """A registry that cannot be reached keeps no host from loading what it has; the reason is told."""
    ollama.fault("/api/pull", "body", body=b'{"status":"pulling manifest"}\n{"error":"no route"}\n')
    done = warm(ollama, "llama3.2", "--pull")
    assert done.returncode == 0
    assert "llama3.2 could not be pulled: no route; trying what is there" in done.stderr
    assert "loaded in" in done.stdout


def test_a_model_that_is_nowhere(ollama: OllamaProcess) -> None:
    """Exit code 1: to be pulled where that was not asked for, and with both reasons where it was."""
    done = warm(ollama, "nope")
    assert (done.returncode, done.stdout) == (1, "")
    assert "model 'nope' not found; pull it with --pull" in done.stderr
    done = warm(ollama, "nope", "--pull")
    assert done.returncode == 1
    assert "file does not exist" in done.stderr
    assert "is the name right?" in done.stderr


def test_a_pull_may_take_longer_than_its_limit(ollama: OllamaProcess) -> None:
    """--timeout is for what is stuck: a pull of 3 s that gets on is not ended by a limit of 2."""
    ollama.library({"big:latest": {"here": False, "pull": 3}})
    done = warm(ollama, "big", "--pull", "--timeout", "2s")
    assert done.returncode == 0, done.stderr


def test_a_pull_that_is_stuck_ends(ollama: OllamaProcess) -> None:
    """Without a new line within the limit it is over, and the reason is said."""
    ollama.library({"big:latest": {"here": False, "pull": None}})
    done = warm(ollama, "big", "--pull", "--timeout", "1s")
    assert done.returncode == 1
    assert "nothing new within 1 s" in done.stderr


def test_a_line_that_repeats_itself_is_no_progress() -> None:
    """Ollama goes on telling the same bytes while a download hangs: the limit is not renewed by that."""
    over = threading.Event()

    class Stuck(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"first"}\n')
            while not over.wait(0.02):
                self.wfile.write(b'{"status":"pulling","completed":7,"total":9}\n')

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stuck)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    lines = order(OllamaUrl("127.0.0.1", server.server_port), "/api/pull", {}, 0.5)
    try:
        assert next(lines)["status"] == "first"
        assert next(lines)["status"] == "pulling"
        with pytest.raises(OllamaDown, match=r"nothing new within 0\.5 s"):
            deque(lines)
    finally:
        over.set()
        server.shutdown()
        server.server_close()


# -- an Ollama that is not well --------------------------------------------------------------------


def test_nobody_answers() -> None:
    """Exit code 1, with what to do."""
    done = subprocess.run(
        [*COMMAND, "llama3.2", "--host", f"127.0.0.1:{free_port()}"],
        env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "connection refused; does Ollama run (systemctl status ollama)?" in done.stderr
    assert "--wait 60" in done.stderr


def test_it_waits_for_an_ollama_that_boots() -> None:
    """With --wait one that begins to listen later is asked, too."""
    port = free_port()
    with subprocess.Popen(
        [*COMMAND, "llama3.2", "--host", f"127.0.0.1:{port}", "--wait", "20s"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stderr is not None
        assert "waiting for Ollama" in running.stderr.readline()
        with OllamaProcess(port):
            said, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert said.startswith("llama3.2: ")


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        (
            "status",
            {"status": 500, "body": b'{"error":"needs 90 GiB\\u001b[2J"}'},
            "needs 90 GiB?[2J",
        ),
        ("status", {"status": 500, "body": b"\xff\x00"}, "answered 500"),
        (
            "status",
            {"status": 503, "body": b'{"error":"server busy"}'},
            "when Ollama has less to do",
        ),
        ("body", {"body": b"[1]"}, "no JSON object"),
        ("body", {"body": b"[" * 60000}, "no JSON object"),
        ("body", {"body": b"x" * 100_000}, "a line of more than 65536 bytes"),
        ("body", {"body": b""}, "without saying that it is done"),
        ("body", {"body": b'{"done":1}'}, "without saying that it is done"),
        ("close", {}, "closed before the end"),
        ("redirect", {}, "answered 302"),
        ("trickle", {}, "nothing new within 1 s"),
        ("hang", {}, "nothing new within 1 s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_answers(ollama: OllamaProcess, kind: str, more: dict[str, Any], said: str) -> None:
    """Each ends in one printable line that says what is wrong, and exit code 1."""
    ollama.fault("/api/generate", kind, **more)
    done = warm(ollama, "llama3.2", "--timeout", "1s")
    assert (done.returncode, done.stdout) == (1, "")
    loading, error = done.stderr.splitlines()
    assert loading == "loading llama3.2"
    assert said in error
    assert error.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":7,"completed":true,"total":"9"}\n',
        b'{"status":"pulling","completed":-1,"total":99999999999999999999999999}\n',
        b'{"status":"pulling","completed":9,"total":3}\n{"status":"success"}\nx',
        b'{"status":"a\\u001b]0;x\\u0007","completed":1.5,"total":null}\n',
    ],
    ids=["types", "numbers", "end", "escapes"],
)
def test_strange_lines_of_a_pull(ollama: OllamaProcess, body: bytes) -> None:
    """What makes no sense in a pull is shown as far as it does, and never ends in a traceback."""
    ollama.fault("/api/pull", "body", body=body)
    done = warm(ollama, "llama3.2", "--pull")
    assert done.returncode == 0
    assert "could not be pulled" in done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_an_answer_of_another_kind_of_server(ollama: OllamaProcess) -> None:
    """What answers /api/version with something else is not asked to load anything."""
    ollama.fault("/api/version", "body", body=b"<html>")
    done = warm(ollama, "llama3.2")
    assert done.returncode == 1
    assert "no JSON" in done.stderr
    assert loaded(ollama) == {}


# -- its arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        [],
        [""],
        ["two words"],
        ["m", "--keep-alive", "0"],
        ["m", "--keep-alive", "-5"],
        ["m", "--timeout", "soon"],
        ["m", "--wait", "-1"],
        ["m", "--host", "https://ollama.example"],
        ["m", "--host", "a b"],
    ],
    ids=repr,
)
def test_bad_usage(ollama: OllamaProcess, options: list[str]) -> None:
    """Exit code 2 and a line that says what would do; a keep-alive of 0 would unload the model."""
    done = warm(ollama, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_the_whole_name_of_a_model() -> None:
    """A tag is what follows a colon in the last part: the port of a registry is none."""
    assert whole_name("llama3.2") == "llama3.2:latest"
    assert whole_name("llama3.1:70b") == "llama3.1:70b"
    assert whole_name("registry:5000/me/model") == "registry:5000/me/model:latest"


# -- progress --------------------------------------------------------------------------------------


def test_sizes_and_times() -> None:
    """Bytes in powers of 1000 as Ollama writes them, times so that a person need not calculate."""
    assert [size(n) for n in (0, 999, 1700, 43 * 10**9, 2 * 10**12)] == [
        *("0 B", "999 B", "1.7 kB", "43 GB", "2.0 TB"),
    ]
    assert [span(s) for s in (0.04, 9.94, 59, 65, 3599.7, 7800)] == [
        *("0.0 s", "9.9 s", "59 s", "1m05s", "1h00m", "2h10m"),
    ]


def test_speed_and_what_is_left() -> None:
    """After a second there is a rate of what came since the beginning, and the time that the rest takes."""
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(stream, {}, lambda: now[0])
    progress.tell("pulling", 1_000_000, 11_000_000)
    now[0] = 2.0
    progress.tell("pulling", 3_000_000, 11_000_000)
    assert stream.getvalue().splitlines() == [
        "pulling    9 %  1.0 MB of 11 MB",
        "pulling   27 %  3.0 MB of 11 MB  1.0 MB/s  8.0 s left",
    ]


def test_a_stream_that_breaks_ends_no_pull() -> None:
    """Who no longer reads the progress misses it, and that is all."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress = Progress(Broken(), {})
    progress.tell("pulling")
    progress.tell("verifying")


# -- where it is used ------------------------------------------------------------------------------


def test_the_daemon_does_not_have_it() -> None:
    """What `serve` imports has none of these modules: they would cost every host memory."""
    code = "import sys, ollama_metrics.daemon, ollama_metrics.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    names = ("warm_command", "ollama_stream", "progress")
    assert not {f"ollama_metrics.{name}" for name in names} & set(done.stdout.split())


def test_systemd_knows_every_key_of_the_drop_in(analyze: str, tmp_path: Path) -> None:
    """systemd-analyze verify has nothing to say of an Ollama with the drop-in."""
    unit = tmp_path / "ollama.service"
    unit.write_text("[Unit]\nDescription=Ollama\n[Service]\nExecStart=/bin/true\n")
    text = DROP_IN.read_text("utf-8")
    python = "/opt/ollama-metrics/current/bin/python"
    assert text.count(python) == 1
    (tmp_path / "ollama.service.d").mkdir()
    (tmp_path / "ollama.service.d" / "warm.conf").write_text(text.replace(python, "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", str(unit)],
        env=environment(SYSTEMD_UNIT_PATH=f"{tmp_path}:"),
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_of_the_drop_in_loads_the_model(ollama: OllamaProcess) -> None:
    """What systemd would execute works as it stands, quietly, with OLLAMA_HOST from Ollama's own unit."""
    (line,) = re.findall(r"^ExecStartPost=-\S+ -I (.*)$", DROP_IN.read_text("utf-8"), re.MULTILINE)
    done = subprocess.run(
        [sys.executable, *shlex.split(line)],
        env=environment(OLLAMA_HOST=ollama.url), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(loaded(ollama)) == ["llama3.2:latest"]
