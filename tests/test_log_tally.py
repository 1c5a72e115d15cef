"""What is counted of Ollama's log: each form of its lines, and that nothing of a line's text gets out."""

from __future__ import annotations

import random
import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_metrics.log_tally import (
    BOUNDS,
    ERROR_TYPES,
    SPAN_SECONDS,
    LogTally,
    RequestStats,
    request_stats,
    seconds_of,
    step,
)
from ollama_metrics.ollama import LogReading, RequestSpan

PROMPT = "Tell me about the Duchess of Malfi"


def line(
    path: str = "/api/chat",
    method: str = "POST",
    status: object = 200,
    took: str = "1.234567s",
    ip: str = "127.0.0.1",
) -> str:
    """An access line as gin prints it."""
    quoted = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return (
        f'[GIN] 2026/11/20 - 10:11:12 | {status} | {took:>13} | {ip:>15} | {method:<7}  "{quoted}"'
    )


def coloured(path: str = "/api/chat", method: str = "POST", status: int = 200) -> str:
    """The same for a terminal, as gin has done it since 1.11."""
    return (
        f"[GIN] 2026/11/20 - 10:11:12 |\x1b[97;42m {status} \x1b[0m|\x1b[97;43m    1.23s \x1b[0m|"
        f'       127.0.0.1 |\x1b[97;46m {method:<7} \x1b[0m "{path}"'
    )


def docker(text: str) -> str:
    """A line as Docker's json-file driver keeps it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\x1b", "\\u001b")
    return f'{{"log":"{escaped}\\n","stream":"stderr","time":"2026-11-20T10:11:12.000000001Z"}}'


def read(*lines: str) -> LogReading:
    tally = LogTally()
    tally.lines("".join(each + "\n" for each in lines).encode())
    return tally.reading(0.0)


def requests(*lines: str) -> dict[tuple[str, str, str], int]:
    return {
        (one.method, one.endpoint, one.status): one.requests_total for one in read(*lines).requests
    }


def errors(*lines: str) -> dict[str, int]:
    """Those that there were."""
    return {one.error_type: one.errors_total for one in read(*lines).errors if one.errors_total}


# -- access lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        line(),
        coloured(),
        docker(line()),
        docker(coloured()),
        "Nov 20 10:11:12 host ollama[1234]: " + line(),
        "<30>1 2026-11-20T10:11:12Z host ollama 1234 - - " + line(),
        "2026-11-20T10:11:12.123456789Z stderr F " + line(),
        "ollama-1  | " + line(),
        "\0" * 5000 + line(),
        line() + "\r",
        line(ip="2001:db8::1"),
        line(ip=""),
        line("/api/chat?token=secret"),
        docker(line("/api/chat?token=secret")),
        line("/api/chat?" + "x" * 60000),
    ],
)
def test_an_access_line_is_understood_in_each_of_its_forms(text: str) -> None:
    """Plain, coloured, in Docker's JSON, behind any prefix, with a query that is cut off: one POST of /api/chat."""
    assert requests(text) == {("POST", "/api/chat", "200"): 1}
    assert read(text).log_lines_unparsed_total == 0


@pytest.mark.parametrize(
    ("took", "seconds"),
    [
        ("0s", 0.0),
        ("120ns", 120e-9),
        ("812.4µs", 812.4e-6),
        ("812us", 812e-6),
        ("35.1ms", 0.0351),
        ("35ms", 0.035),
        ("1.234567s", 1.234567),
        ("59s", 59.0),
        ("2m3s", 123.0),
        ("1m0s", 60.0),
        ("1h2m3.5s", 3723.5),
        ("100h0m0s", 360000.0),
    ],
)
def test_durations_are_gos(took: str, seconds: float) -> None:
    """Each form in which Go prints a duration has its value in seconds."""
    histogram = read(line(took=took)).request_duration_seconds
    assert histogram is not None
    assert histogram.sum == pytest.approx(seconds)
    assert histogram.bounds == BOUNDS
    assert histogram.counts == (*(int(seconds <= bound) for bound in BOUNDS), 1)


def test_the_histogram_is_cumulative_and_its_bounds_belong_to_them() -> None:
    """Each bucket counts all observations up to its bound, which is in it."""
    histogram = read(*(line(took=took) for took in ("10ms", "11ms", "1s", "20m0s")))
    counts = histogram.request_duration_seconds
    assert counts is not None
    assert counts.counts == (1, 2, 2, 2, 2, 2, *[3] * 9, 4)
    assert counts.sum == pytest.approx(1201.021)


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/", "/"),
        ("/api/generate", "/api/generate"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/models", "/v1/models"),
        ("/api/blobs/sha256:" + "0" * 64, "/api/blobs/:digest"),
        ("/v1/models/llama3.2:1b", "/v1/models/:model"),
        ("/v1/models/" + "x" * 5000, "/v1/models/:model"),
        ("/api/user/keys/AAAA", "/api/user/keys/:key"),
        ("/api/blobs/", "other"),
        ("/api/chat/", "other"),
        ("/api/chat\\", "other"),
        ('/api/chat"', "other"),
        ('/api/chat"?', "other"),
        ("/API/CHAT", "other"),
        ("/wp-login.php", "other"),
        ("/" + "x" * 60000, "other"),
        ("/ümlaut", "other"),
        ("/two\nlines", "other"),
        ("/[GIN] again", "other"),
        ("", "other"),
    ],
)
@pytest.mark.parametrize("wrap", [str, docker], ids=["plain", "docker"])
def test_endpoints_are_those_of_ollamas_api_or_other(
    path: str, endpoint: str, wrap: object
) -> None:
    """Paths with a parameter fold into one label, and all that is not Ollama's into `other`."""
    text = docker(line(path)) if wrap is docker else line(path)
    assert requests(text) == {("POST", endpoint, "200"): 1}
    assert read(text).log_lines_unparsed_total == 0


@pytest.mark.parametrize(
    ("method", "label"),
    [("GET", "GET"), ("PATCH", "PATCH"), ("post", "OTHER"), ("GET-X", "OTHER"), ("BREW", "OTHER")],
)
def test_methods_outside_https_are_one(method: str, label: str) -> None:
    """A method that a client has invented is no label."""
    assert requests(line(method=method)) == {(label, "/api/chat", "200"): 1}
    assert requests(line(method=method + "X" * 100)) == {("OTHER", "/api/chat", "200"): 1}


@pytest.mark.parametrize(
    "text",
    [
        "[GIN] ",
        "[GIN] hello",
        '[GIN] | 200 | 1s | 127.0.0.1 | POST "/api/chat"',
        line(status="1000"),
        line(status="099"),
        line(status="600"),
        line(status="abc"),
        line(took="-1s"),
        line(took="1"),
        line(took="1.2.3s"),
        line(took="nan"),
        line(took="9" * 400 + "s"),
        line()[:-1],
        line()[: -len('/api/chat"')],
        line()[:-12],
        line()[:40],
        line(ip="1" * 100),
    ],
)
def test_what_begins_like_an_access_line_and_is_none_is_counted(text: str) -> None:
    """A line that was cut off or is nonsense counts as unparsed, and nothing else."""
    reading = read(text)
    assert (reading.log_lines_total, reading.log_lines_unparsed_total) == (1, 1)
    assert reading.requests == ()
    assert reading.request_duration_seconds is not None
    assert reading.request_duration_seconds.counts[-1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "[GIN-debug] POST   /api/chat  --> server.(*Server).ChatHandler-fm (6 handlers)",
        "time=2026 level=INFO msg=hello",
        'level=DEBUG msg="chat request" prompt="' + line().replace('"', '\\"') + '"',
        "",
    ],
)
def test_other_lines_are_only_counted(text: str) -> None:
    """gin's debugging, Ollama's own lines and an access line that a prompt has within it are no requests."""
    reading = read(text)
    assert (reading.log_lines_total, reading.log_lines_unparsed_total) == (1, 0)
    assert reading.requests == ()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/api/version", "/api/ps"])
def test_what_a_monitor_asks_has_no_duration(method: str, path: str) -> None:
    """The questions by which monitors look whether Ollama is up are counted, and left out of the histogram."""
    text = line(path, method)
    histogram = read(text).request_duration_seconds
    assert requests(text) == {(method, path, "200"): 1}
    assert histogram is not None
    assert histogram.counts[-1] == 0
    other = read(line(path, "POST"), line("/api/tags", method)).request_duration_seconds
    assert other is not None
    assert other.counts[-1] == 2


def test_no_label_grows_without_bound() -> None:
    """A log of nothing but new paths, methods and statuses is counted in full and in a bounded number of series."""
    tally = LogTally()
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW")
    number = 0
    for status in range(100, 600):
        for method in methods:
            for path in ("/api/chat", "/api/show", f"/{status}{method}"):
                tally.lines((line(path, method, status) + "\n").encode())
                number += 1
    reading = tally.reading(0.0)
    assert sum(one.requests_total for one in reading.requests) == number
    assert len(reading.requests) <= 1024 + 500
    by_status = dict.fromkeys(map(str, range(100, 600)), 0)
    for one in reading.requests:
        by_status[one.status] += one.requests_total
    assert set(by_status.values()) == {21}


def test_what_is_remembered_of_lines_is_bounded() -> None:
    """A client that asks for a new path each time takes no memory with that."""
    tally = LogTally()
    tracemalloc.start()
    for number in range(20_000):
        tally.lines((line(f"/{number:0>100}") + "\n").encode())
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 1_000_000


# -- errors and loads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "bad_request"), (401, "forbidden"), (403, "forbidden"), (404, "not_found")),
        *((499, "cancelled"), (503, "busy"), (504, "timeout")),
        *(
            (405, "client_error"),
            (429, "client_error"),
            (500, "server_error"),
            (599, "server_error"),
        ),
    ],
)
def test_errors_come_from_statuses(status: int, kind: str) -> None:
    """Each status from 400 has its kind of error."""
    assert errors(line(status=status)) == {kind: 1}


def test_what_went_well_is_no_error() -> None:
    """Statuses below 400 are none, and every kind is there with 0 before it comes."""
    assert errors(line(), line(status=301), line(status=101)) == {}
    assert [one.error_type for one in LogTally().reading(0.0).errors] == list(ERROR_TYPES)


TERMINATED = "process has terminated: exit status 2"


@pytest.mark.parametrize("wrap", [str, docker], ids=["plain", "docker"])
@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("ggml_cuda_device_malloc: cudaMalloc failed: out of memory", {"out_of_memory"}),
        ("CUDA error: out of memory", {"out_of_memory"}),
        (f'level=ERROR msg="Load failed" error="llama runner {TERMINATED}"', {"runner_terminated"}),
        (f'level=INFO msg="Load failed" err="llama-server {TERMINATED}"', {"runner_terminated"}),
        (
            'level=INFO msg=x error="llama runner process no longer running: 1"',
            {"runner_terminated"},
        ),
        (
            'msg="Load failed" error="llama runner process has terminated: cudaMalloc failed: out of memory"',
            {"out_of_memory", "runner_terminated"},
        ),
        (f'level=INFO msg="an \\"escaped\\" quote: {TERMINATED}"', {"runner_terminated"}),
        ('level=WARN msg="invalid option provided" option="out of memory"', set()),
        ('level=WARN msg="invalid option" option="error=\\"out of memory\\""', set()),
        ('level=DEBUG msg="chat request" prompt="my runner process has terminated, why?"', set()),
        (line("/out of memory"), set()),
        (line('/msg="llama runner started in 5 seconds'), set()),
    ],
)
def test_errors_come_from_other_lines(text: str, kinds: set[str], wrap: object) -> None:
    """Ollama's and its runners' own words count, once for each kind and line; a client's within them do not."""
    text = docker(text) if wrap is docker else text
    assert errors(text) == dict.fromkeys(kinds, 1)
    assert read(text).model_loads_total == 0


@pytest.mark.parametrize("wrap", [str, docker], ids=["plain", "docker"])
def test_loads_are_announced_by_runners(wrap: object) -> None:
    """Both of the lines that announce a runner count as a load with its seconds."""
    lines = [
        'time=2026 level=INFO source=server.go:1 msg="llama runner started in 29.96 seconds"',
        'time=2026 level=INFO source=llama_server.go:1 msg="llama-server started in 2.34 seconds"',
        'time=2026 level=INFO msg="llama runner started in several seconds"',
        'time=2026 level=INFO msg="x" prompt="llama runner started in 29.96 seconds"',
        'time=2026 level=INFO msg="I said: llama runner started in 29.96 seconds"',
    ]
    reading = read(*(docker(each) if wrap is docker else each for each in lines))
    assert reading.model_loads_total == 2
    assert reading.model_load_seconds_total == pytest.approx(32.30)
    assert reading.model_load_last_seconds == 2.34
    assert LogTally().reading(0.0).model_load_last_seconds is None


# -- spans -------------------------------------------------------------------------------------------------------------


def test_a_reading_makes_a_span_of_what_came_since_the_last() -> None:
    """Inference requests are in the span in which they were logged, failed ones among them, others are not."""
    tally = LogTally()
    tally.lines((line() + "\n").encode())
    assert tally.reading(10.0).spans == (RequestSpan(10.0, 10.0, 1, 0, {step(1.234567): 1}),)
    assert len(tally.reading(11.0).spans) == 1
    tally.lines((line("/v1/messages", took="2s") + "\n" + line(status=500) + "\n").encode())
    tally.lines((line("/api/tags", "GET") + "\n" + line(method="GET") + "\n").encode())
    tally.lines((line(status=404, took="2s") + "\n").encode())
    spans = tally.reading(12.5).spans
    assert spans[1] == RequestSpan(11.0, 12.5, 3, 1, {step(2.0): 2, step(1.234567): 1})


def test_old_spans_are_dropped() -> None:
    """What ended longer ago than any window is forgotten, and however often one reads, spans are bounded."""
    tally = LogTally()
    for second in range(300):
        tally.lines((line() + "\n").encode())
        spans = tally.reading(float(second)).spans
    assert [spans[0].end, spans[-1].end] == [299 - SPAN_SECONDS, 299.0]
    assert tally.reading(1000.0).spans == ()
    for _ in range(2000):
        tally.lines((line() + "\n").encode())
        spans = tally.reading(1000.0).spans
    assert len(spans) == 1024


def test_steps_keep_durations_within_five_per_cent() -> None:
    """A duration comes back from its step to within 2.5 %, and from outside the range as its end."""
    for milliseconds in (1, 1.5, 10, 333, 5000, 61234, 7199999):
        seconds = milliseconds / 1000
        assert seconds_of(step(seconds)) == pytest.approx(seconds, rel=0.025)
    for short in (-1.0, 0.0, 0.0001, float("nan")):
        assert seconds_of(step(short)) == 0.001
    for long in (7200.0, 1e9, float("inf")):
        assert seconds_of(step(long)) == pytest.approx(7200.0, rel=0.025)
    assert seconds_of(-5) == 0.001
    assert seconds_of(10**6) == seconds_of(step(7200.0))


def span(end: float, requests: int, failed: int = 0, seconds: float = 1.0) -> RequestSpan:
    return RequestSpan(end - 1.0, end, requests, failed, {step(seconds): requests})


def test_stats_are_over_the_spans_of_the_window() -> None:
    """Rate, error share and quantiles are those of the spans that ended within the window."""
    spans = [span(40.0, 50, 50), span(95.0, 96, 4), span(99.0, 3, 0, 10.0), span(100.0, 1, 1, 60.0)]
    stats = request_stats(spans, 100.0, 50.0)
    assert (stats.requests, stats.failed, stats.rate_per_second) == (100, 5, 2.0)
    assert stats.error_ratio == 0.05
    assert stats.p50_seconds == pytest.approx(1.0, rel=0.05)
    assert stats.p95_seconds == pytest.approx(1.0, rel=0.05)
    assert stats.p99_seconds == pytest.approx(10.0, rel=0.05)


def test_one_request_is_all_its_quantiles() -> None:
    """With one request each quantile is its duration."""
    stats = request_stats([span(100.0, 1, 0, 7.0)], 100.0, 10.0)
    assert stats.p50_seconds == stats.p95_seconds == stats.p99_seconds
    assert stats.p99_seconds == pytest.approx(7.0, rel=0.05)


def test_a_span_that_is_longer_than_the_window_gives_no_higher_rate() -> None:
    """The requests of a minute that are read at once are not those of ten seconds."""
    assert (
        request_stats([RequestSpan(40.0, 100.0, 60, 0, {0: 60})], 100.0, 10.0).rate_per_second == 1
    )


def test_without_requests_there_are_no_quantiles() -> None:
    """No request is no error share and no duration, and a window of nothing divides by nothing."""
    assert request_stats([], 100.0, 10.0) == RequestStats(0, 0, 0.0, None, None, None, None)
    assert request_stats([span(50.0, 3)], 100.0, 10.0).p50_seconds is None
    instant = RequestSpan(100.0, 100.0, 3, 0, {0: 3})
    assert request_stats([instant], 99.0, 0.0).rate_per_second == 0.0


# -- many lines, hostile lines -----------------------------------------------------------------------------------------


def test_many_lines_are_counted_exactly() -> None:
    """20,000 lines of a seeded mix give the very counts that went into them, in whatever blocks they come."""
    chance = random.Random(4)
    expected: dict[tuple[str, str, str], int] = {}
    lines = []
    for _ in range(20_000):
        method, path, status = (
            *chance.choice([("POST", "/api/chat"), ("GET", "/api/tags"), ("GET", "/nowhere")]),
            str(chance.choice([200, 404, 500, 503])),
        )
        key = (method, "other" if path == "/nowhere" else path, status)
        expected[key] = expected.get(key, 0) + 1
        lines.append(line(path, method, status, f"{chance.random() * 50:.6f}s"))
        if chance.random() < 0.2:
            lines.append(f'time=2026 level=INFO msg="something" prompt="{PROMPT}"')
    text = [(each + "\n").encode() for each in lines]
    tally = LogTally()
    while text:
        count = chance.randrange(1, 900)
        tally.lines(b"".join(text[:count]))
        del text[:count]
    reading = tally.reading(0.0)
    assert {
        (o.method, o.endpoint, o.status): o.requests_total for o in reading.requests
    } == expected
    assert reading.log_lines_total == len(lines)
    assert reading.log_lines_unparsed_total == 0
    assert reading.request_duration_seconds is not None
    assert reading.request_duration_seconds.counts[-1] == 20_000


@pytest.mark.parametrize(
    "text",
    [
        f'level=DEBUG msg="{PROMPT}" prompt="{PROMPT}"',
        f'level=ERROR msg="out of memory: {PROMPT}" error="{PROMPT}"',
        line(f"/api/chat?prompt={PROMPT}"),
        line(f"/v1/models/{PROMPT}"),
        line(f"/{PROMPT}"),
        line(method=PROMPT),
        line(took=PROMPT),
        line(ip=PROMPT),
        f"[GIN] {PROMPT}",
        f"{PROMPT}: {line(status=400)}",
    ],
)
def test_no_text_of_a_line_gets_out(text: str) -> None:
    """Whatever stands wherever in a line is not in the reading."""
    shown = repr(read(text, line(), text))
    assert not [word for word in re.findall(r"\w{4,}", PROMPT) if word in shown]
    assert "127.0.0.1" not in shown


PIECES = st.sampled_from(
    [
        *(b"[GIN] ", b"[GIN] 2026/11/20 - 10:11:12 | ", b"200 | ", b"1.2s | ", b"127.0.0.1 | "),
        *(b'POST     "/api/chat"', b'GET "/', b"\n", b"\r\n", b"\x1b[97;42m", b"\\u001b[0m", b"\0"),
        *(b'msg="', b'error="', b'"', b"\\", b'\\"', b'{"log":"', b"out of memory", b"9" * 50),
        *(b"llama runner started in 1.5 seconds", b"process has terminated", b"h", b"m", b"s"),
    ]
)
BLOCKS = st.lists(st.one_of(st.binary(max_size=40), PIECES), max_size=40).map(b"".join)


@settings(deadline=None)
@given(st.lists(BLOCKS, max_size=6))
def test_garbage_is_counted_and_never_raises(blocks: list[bytes]) -> None:
    """Whatever bytes come: each line is counted, and the requests, durations and spans agree with each other."""
    tally = LogTally()
    lines = 0
    for block in blocks:
        tally.lines(block)
        lines += len(block.split(b"\n")) - (block.endswith(b"\n") or not block)
    reading = tally.reading(0.0)
    total = sum(one.requests_total for one in reading.requests)
    assert reading.log_lines_total == lines
    assert reading.log_lines_unparsed_total + total <= lines
    assert reading.request_duration_seconds is not None
    counts = reading.request_duration_seconds.counts
    assert counts[-1] <= total
    assert list(counts) == sorted(counts)
    assert sum(one.requests for one in reading.spans) <= counts[-1]
    assert all(sum(one.durations.values()) == one.requests for one in reading.spans)
    assert reading.model_load_seconds_total >= 0
