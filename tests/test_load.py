"""The load tester: that its figures are what the servers counted, and that each kind of failure is told."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

import pytest
from haproxy_process import HAProxy, Pool
from ollama_process import OllamaProcess
from ports import free_port

from benchmarks.load.__main__ import arguments
from benchmarks.load.plan import Plan
from benchmarks.load.report import failure_percent, spread, table
from benchmarks.load.users import Tally

pytestmark = pytest.mark.deploy
REPOSITORY = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "benchmarks.load"]
PATIENCE = 50
MANY = 174
QUICK = '{"pace": 0.001}'  # the stand-in's time between two tokens


@pytest.fixture(scope="module")
def process() -> Iterator[OllamaProcess]:
    with OllamaProcess() as ollama:
        yield ollama


@pytest.fixture
def ollama(process: OllamaProcess) -> Iterator[OllamaProcess]:
    yield process
    for path in ("/api/generate", "/api/ps"):
        process.fault(path, None)
    process.library({})


def load(*options: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        [*COMMAND, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
    )


def figures(code: int, *options: str) -> Any:
    """The JSON of a run that ends with this code."""
    done = load(*options, "--json", "-", "--quiet")
    assert (done.returncode, done.stderr) == (code, ""), (done.returncode, done.stderr, done.stdout)
    return json.loads(done.stdout)


# -- figures ---------------------------------------------------------------------------------------


@pytest.mark.component
def test_174_users_of_a_front(component: Callable[[str], str], tmp_path: Path) -> None:
    """Behind HAProxy no request of 174 users fails, and requests and tokens are what three Ollamas counted."""
    with ExitStack() as stack:
        pool = stack.enter_context(Pool())
        front = HAProxy(
            component("haproxy"), tmp_path / "haproxy", pool.ports, {"OLLAMA_REQUESTS_PER_MINUTE": "100000"}
        )  # fmt: skip
        stack.enter_context(front)
        front.wait_for_checks()
        found = figures(
            0,
            *(f"http://127.0.0.1:{front.port}", "--users", str(MANY), "--requests", str(3 * MANY)),
            *("--tokens", "5", "--options", QUICK, "--ramp-up", "0.5"),
        )
        assert (found["users"], found["served"], found["failed"]) == (MANY, 3 * MANY, 0)
        assert sum(pool.tell("finished")) == 3 * MANY
        assert sum(pool.tell("tokens")) == found["tokens"] == found["tokens_evaluated"] == 15 * MANY
        assert min(pool.tell("finished")) > 0
        assert sum(pool.tell("disconnected")) == 0


@pytest.mark.parametrize("api", ["generate", "chat"])
def test_its_times_are_those_of_the_stream(ollama: OllamaProcess, api: str) -> None:
    """The first token is as late as the load before it, the rest come by their pace; each has its percentiles."""
    options = '{"load": 0.3, "pace": 0.05}'
    found = figures(
        0, ollama.url, "--users", "3", "--requests", "6", "--tokens", "5", "--api", api, "--options", options
    )  # fmt: skip
    assert (found["served"], found["tokens"], found["url"]) == (6, 30, f"{ollama.url}/api/{api}")
    for name, least in (("first_token_seconds", 0.3), ("total_seconds", 0.55)):
        times = found[name]
        assert least <= times["p50"] <= times["p95"] <= times["p99"] <= times["worst"]
    rates = found["stream_tokens_per_second"]
    assert 20 >= rates["p50"] >= rates["p95"] >= rates["worst"] > 0


def test_the_table_and_the_file(ollama: OllamaProcess, tmp_path: Path) -> None:
    """The table is on standard output, progress is not, and the JSON of the same run is in the file."""
    file = tmp_path / "load.json"
    done = load(
        *(ollama.url, "--users", "2", "--requests", "4", "--tokens", "3", "--options", QUICK),
        *("--json", str(file)),
    )
    assert done.returncode == 0
    assert re.search(r"^served +4  [\d.]+/s$", done.stdout, re.MULTILINE)
    assert re.search(r"^failed +0  0\.0 %$", done.stdout, re.MULTILINE)
    assert re.search(r"^tokens +12  ", done.stdout, re.MULTILINE)
    assert re.search(r"^first token( +\d+\.\d+ s){4}$", done.stdout, re.MULTILINE)
    assert json.loads(file.read_text())["served"] == 4


def test_the_model_is_the_one_that_is_loaded(ollama: OllamaProcess) -> None:
    """Without --model the first that is loaded is asked for, else the first that there is."""
    ollama.library({"on-disk:1b": {"tokens": 1, "pace": 0}})
    ollama.models([])
    done = figures(0, ollama.url, "--requests", "1", "--users", "1")
    assert done["model"] == "on-disk:1b"


def test_prompts_come_from_a_file(ollama: OllamaProcess, tmp_path: Path) -> None:
    """One prompt a line; a file without any is bad usage."""
    file = tmp_path / "prompts"
    file.write_text("Why?\n\nWhy not?\n")
    options = (ollama.url, "--requests", "2", "--tokens", "1", "--prompts", str(file))
    assert figures(0, *options)["served"] == 2
    file.write_text("\n")
    assert load(*options).returncode == 2


# -- ends ------------------------------------------------------------------------------------------


def test_the_duration_ends_it_and_what_runs_is_finished(ollama: OllamaProcess) -> None:
    """When the time is over nothing new is begun, and what runs is waited for."""
    before = ollama.tell()
    found = figures(
        0, ollama.url, "--users", "5", "--duration", "0.5", "--tokens", "10", "--ramp-up", "0"
    )
    after = ollama.tell()
    assert found["served"] == found["requests"] == after["finished"] - before["finished"] > 0
    assert (found["unfinished"], found["failed"]) == (0, 0)
    assert after["disconnected"] == before["disconnected"]


def test_what_outlasts_the_grace_is_cut_off(ollama: OllamaProcess) -> None:
    """A stream without an end is unfinished and no failure; that nothing was served is exit code 1."""
    before = ollama.tell()["disconnected"]
    found = figures(1, ollama.url, "--users", "3", "--duration", "0.2", "--grace", "0.2")
    assert (found["unfinished"], found["failed"], found["served"]) == (3, 0, 0)
    assert found["tokens"] > 0
    ollama.tell(disconnected=before + 3, running=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_a_signal_prints_what_there_is(ollama: OllamaProcess, number: signal.Signals) -> None:
    """Ctrl-C ends it at once, with the table of what was served until then, and 130."""
    before = ollama.tell()["finished"]
    with subprocess.Popen(
        [*COMMAND, ollama.url, "--users", "1", "--tokens", "1", "--think", "3600", "--duration", "3600"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        ollama.tell(finished=before + 1, running=0)
        running.send_signal(number)
        said, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130
    assert re.search(r"^served +1 ", said, re.MULTILINE)


# -- failures --------------------------------------------------------------------------------------


def test_failures_are_told_by_kind_and_by_share(ollama: OllamaProcess) -> None:
    """Three of ten fail with Ollama's own words; that is exit code 1, unless as many may fail."""
    options = (ollama.url, "--users", "1", "--requests", "10", "--tokens", "1", "--options", QUICK)
    body = b'{"error":"server busy\\u001b[2J"}'
    ollama.fault("/api/generate", "status", times=3, status=503, body=body)
    found = figures(1, *options)
    assert found["failures"] == {"status 503: server busy?[2J": 3}
    assert (found["served"], found["failed"], found["failed_percent"]) == (7, 3, 30.0)
    ollama.fault("/api/generate", "status", times=3, status=503, body=body)
    assert figures(0, *options, "--max-failures", "30")["failed"] == 3


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("close", {}, "the connection broke off"),
        ("hang", {}, "nothing came for 0.3 s"),
        ("body", {"body": b'{"response":"a"}\n'}, "the stream ended before it was done"),
        ("body", {"body": b'{"error":"out of memory"}\n'}, "an error in the stream: out of memory"),
        ("body", {"body": b"<html>\n"}, "an answer that is not Ollama's"),
        ("body", {"body": b'[1]\n{"done":true}'}, "an answer that is not Ollama's"),
        ("body", {"body": b'{"message":7}\n'}, "an answer that is not Ollama's"),
        ("body", {"body": b"x" * 3_000_000}, "an answer that is not Ollama's"),
        ("redirect", {"location": "/"}, "status 302"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_of_failure(
    ollama: OllamaProcess, kind: str, more: dict[str, Any], said: str
) -> None:
    """What goes wrong in each way is one failure of its own kind, and never a traceback."""
    ollama.fault("/api/generate", kind, **more)
    found = figures(1, ollama.url, "--users", "1", "--requests", "2", "--silence", "0.3")
    assert found["failures"] == {said: 2}


def test_nobody_listens() -> None:
    """Without a model it cannot even begin; with one each request fails, and the reason is told."""
    url = f"http://127.0.0.1:{free_port()}"
    done = load(url, "--requests", "1")
    assert done.returncode == 1
    assert "names no model" in done.stderr
    found = figures(1, url, "--model", "m", "--users", "1", "--requests", "2")
    assert found["failures"] == {"cannot connect: connection refused": 2}
    assert found["first_token_seconds"]["p50"] is None


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["ftp://host"],
        ["http://"],
        ["host", "--users", "0"],
        ["host", "--users", "nan"],
        ["host", "--duration", "-1"],
        ["host", "--options", "[]"],
        ["host", "--header", "no colon"],
        ["host", "--prompts", "/nowhere"],
        ["host", "--max-failures", "101"],
    ],
    ids=" ".join,
)
def test_bad_usage(options: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and a line that says what is wrong."""
    with pytest.raises(SystemExit) as ended:
        arguments([*options])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


# -- the report ------------------------------------------------------------------------------------


def test_percentiles_of_what_is_better_when_high() -> None:
    """Of times the worst is the highest, of rates the lowest; of nothing there is none."""
    values = [float(number) for number in range(1, 101)]
    assert spread(values) == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "worst": 100.0}
    assert spread(values, lowest=True) == {"p50": 50.0, "p95": 5.0, "p99": 1.0, "worst": 1.0}
    assert set(spread([]).values()) == {None}


def test_the_share_of_failures_leaves_out_what_did_not_end() -> None:
    """A share is of the requests that came to an end; of none it is 0."""
    tally = Tally(totals=[1.0] * 3, unfinished=6)
    tally.failures["x"] = 1
    assert failure_percent(tally) == 25.0
    assert failure_percent(Tally()) == 0.0


def test_a_limit_of_the_front_is_explained() -> None:
    """Where requests failed with 429 the table names the setting that has the limit."""
    tally = Tally()
    plan = Plan("http://h", "m", 1)
    assert "OLLAMA_REQUESTS_PER_MINUTE" not in table(plan, tally)
    tally.failures["status 429: more than 60 requests in a minute"] = 1
    assert "OLLAMA_REQUESTS_PER_MINUTE" in table(plan, tally)
