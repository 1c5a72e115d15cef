"""Ollama's log as numbers: requests, durations, errors and model loads, counted out of its lines; no I/O.

Where the lines come from is not known here (`log_follower.py`). No text of any line gets out: paths,
methods and statuses are folded into label values that are known beforehand, all else is counted.

Source: the access log of gin, Ollama's web framework, and what Ollama and its runners say besides
(server/routes.go, llm/). The access log's line, whose duration is printed by Go:

    [GIN] 2026/11/20 - 10:11:12 | 200 |  1.234567s |       127.0.0.1 | POST     "/api/chat"
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left

from .frozen import dataclass
from .metrics import Histogram
from .ollama import ErrorCount, LogReading, RequestCount, RequestSpan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Optional

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the histogram of durations, in seconds."""

SPAN_SECONDS = 120.0
"""How long a span is kept."""

OTHER = "other"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
_INFERENCE = (
    *("/api/generate", "/api/chat", "/api/embed", "/api/embeddings"),
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
)
_MONITORED = ("/", "/api/version", "/api/ps")
_ENDPOINTS = frozenset(
    (
        *_INFERENCE,
        *_MONITORED,
        *("/api/tags", "/api/show", "/api/pull", "/api/push", "/api/create", "/api/copy"),
        *("/api/delete", "/api/me", "/api/signout", "/api/status"),
        *("/api/experimental/web_search", "/api/experimental/web_fetch"),
        *("/api/experimental/aliases", "/api/experimental/model-recommendations"),
        *("/v1/models", "/v1/images/generations", "/v1/images/edits", "/v1/audio/transcriptions"),
    )
)
_PARAMETERS = (
    ("/api/blobs/", "/api/blobs/:digest"),
    ("/v1/models/", "/v1/models/:model"),
    ("/api/user/keys/", "/api/user/keys/:key"),
)
_BY_STATUS = {
    "400": "bad_request",
    "401": "forbidden",
    "403": "forbidden",
    "404": "not_found",
    "499": "cancelled",
    "503": "busy",
    "504": "timeout",
}
_BY_CLASS = {"4": "client_error", "5": "server_error"}
# What is looked for in the lines besides the access log's, and the error that it tells of.
_TELLING = (
    (b"out of memory", "out_of_memory"),
    (b"cudaMalloc failed", "out_of_memory"),
    (b"process has terminated", "runner_terminated"),
    (b"process no longer running", "runner_terminated"),
)
_STARTED = b" started in "
_NEEDLES = (*(needle for needle, _ in _TELLING), _STARTED)
ERROR_TYPES = tuple(
    sorted({*_BY_STATUS.values(), *_BY_CLASS.values(), *(kind for _, kind in _TELLING)})
)

# Every part is bounded or is followed by what it cannot hold itself, so that no line takes longer
# than its length. The path ends with the character that ended it: a quote, the question mark of a
# query, or the next character of a path that is longer than any of Ollama's. Where Docker has put
# the line into JSON the quotes have backslashes. The rest of the line is eaten, whatever it says.
_ACCESS = re.compile(
    rb"\[GIN\] (?:[0-9/]{10} - [0-9:]{8} \| *([0-9]{3}) *\| *"
    rb"(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|ms|\xc2\xb5s|us|ns) *\|"
    rb'[^|\n]{0,80}\| *([^ "\\\n]{0,16})[^"\\\n]{0,200}(\\?"[^"?\n]{0,120}[^\n]?))?[^\n]*'
)
_LONGEST_PATH = 120
_UNITS = {b"s": 1.0, b"ms": 1e-3, b"\xc2\xb5s": 1e-6, b"us": 1e-6, b"ns": 1e-9}
# gin colours the status, the duration and the method where it thinks that it has a terminal.
_COLOUR = re.compile(rb"(?:\x1b|\\u001b)\[[0-9;]{0,20}m")
# Docker's files have lines as JSON strings.
_ESCAPED = re.compile(rb'\\(["\\])')
# The parts of a line of Ollama's own that are Ollama's own words: others may hold a client's.
_SAID = re.compile(rb'\b(?:msg|error|err)="([^"\\]*(?:\\.[^"\\]*)*)"')
_LOADED = re.compile(
    rb"(?:llama runner|llama-server) started in ([0-9]{1,7}(?:\.[0-9]{1,9})?) seconds"
)

# Bounds of what is kept, far above what an Ollama needs.
_MOST_KEYS = 512
_MOST_SERIES = 1024
_MOST_SPANS = 1024

_SHORTEST, _LONGEST, _RATIO = 0.001, 7200.0, 1.05
_LOG_RATIO = math.log(_RATIO)
_LAST_STEP = round(math.log(_LONGEST / _SHORTEST) / _LOG_RATIO)


def step(seconds: float) -> int:
    """The logarithmic step of a duration, from 0 (1 ms and less) to 324 (2 hours and more)."""
    if not seconds > _SHORTEST:
        return 0
    if seconds >= _LONGEST:
        return _LAST_STEP
    return round(math.log(seconds / _SHORTEST) / _LOG_RATIO)


def seconds_of(step: int) -> float:
    """The duration that a step stands for; what `step` was given is at most 2.5 % off."""
    return min(_LONGEST, float(_SHORTEST * _RATIO ** max(0, min(step, _LAST_STEP))))


class _Series:
    """One series of the requests, and what its requests count for."""

    __slots__ = ("count", "failed", "inference", "key", "timed")

    def __init__(self, method: str, endpoint: str, status: str) -> None:
        self.key = (method, endpoint, status)
        self.count = 0
        self.timed = not (endpoint in _MONITORED and method in ("GET", "HEAD"))
        self.inference = method == "POST" and endpoint in _INFERENCE
        self.failed = status >= "500"


class LogTally:
    """What the lines said so far. Fed and read by one thread."""

    def __init__(self) -> None:
        # By the bytes of a line (status, method, path), so that most lines cost one look here.
        self._by_bytes: dict[tuple[Optional[bytes], ...], _Series] = {}
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._lines = self._unparsed = 0
        self._buckets = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._told = dict.fromkeys((kind for _, kind in _TELLING), 0)
        self._loads, self._load_seconds = 0, 0.0
        self._last_load: Optional[float] = None
        self._requests = self._failed = 0
        self._durations: dict[int, int] = {}
        self._since: Optional[float] = None
        self._spans: tuple[RequestSpan, ...] = ()

    def lines(self, block: bytes) -> None:
        """Count a block of whole lines; a last one without a newline is a line, too. Raises nothing."""
        if not block:
            return
        self._lines += block.count(b"\n") + (not block.endswith(b"\n"))
        if b"\x1b[" in block or b"\\u001b[" in block:
            block = _COLOUR.sub(b"", block)
        if b"[GIN] " in block:
            self._access(block)
        for needle in _NEEDLES:
            if needle in block:
                self._others(block)
                break

    def reading(self, now: float) -> LogReading:
        """All that was counted; what came since the last reading becomes a span that ends at `now`."""
        spans = [span for span in self._spans if span.end >= now - SPAN_SECONDS]
        if self._requests:
            since = now if self._since is None else self._since
            span = RequestSpan(since, now, self._requests, self._failed, self._durations)
            spans.append(span)
            self._requests, self._failed, self._durations = 0, 0, {}
        self._since, self._spans = now, tuple(spans[-_MOST_SPANS:])
        cumulative, total = [], 0
        for count in self._buckets:
            total += count
            cumulative.append(total)
        return LogReading(
            request_duration_seconds=Histogram(BOUNDS, tuple(cumulative), self._seconds),
            model_loads_total=self._loads,
            model_load_seconds_total=self._load_seconds,
            model_load_last_seconds=self._last_load,
            log_lines_total=self._lines,
            log_lines_unparsed_total=self._unparsed,
            requests=tuple(
                RequestCount(*key, requests_total=series.count)
                for key, series in sorted(self._series.items())
            ),
            errors=self._errors(),
            spans=self._spans,
        )

    def _errors(self) -> tuple[ErrorCount, ...]:
        """Every kind of error, also those that never came: a rate needs the series before the first."""
        counts = dict.fromkeys(ERROR_TYPES, 0)
        counts.update(self._told)
        for (_, _, status), series in self._series.items():
            kind = _BY_STATUS.get(status) or _BY_CLASS.get(status[0])
            if kind is not None:
                counts[kind] += series.count
        return tuple(ErrorCount(kind, errors_total=count) for kind, count in counts.items())

    def _access(self, block: bytes) -> None:
        by_bytes, buckets, durations = self._by_bytes, self._buckets, self._durations
        for match in _ACCESS.finditer(block):
            start = match.start()
            if start and block[start - 1] != 0x0A and _is_quoted(block, start):
                continue
            key = match.group(1, 6, 7)
            series = by_bytes.get(key) or self._find(key)
            if series is None:
                self._unparsed += 1
                continue
            series.count += 1
            if not series.timed:
                continue
            hours, minutes, number, unit = match.group(2, 3, 4, 5)
            seconds = float(number) * _UNITS[unit]
            if minutes or hours:
                seconds += 60.0 * int(minutes or 0) + 3600.0 * int(hours or 0)
            buckets[bisect_left(BOUNDS, seconds)] += 1
            self._seconds += seconds
            if series.inference:
                self._requests += 1
                self._failed += series.failed
                at = step(seconds)
                durations[at] = durations.get(at, 0) + 1

    def _find(self, key: tuple[Optional[bytes], ...]) -> Optional[_Series]:
        """The series of a line's status, method and path; None where they are none."""
        status, method, path = ((part or b"").decode("latin-1") for part in key)
        endpoint = _endpoint(path)
        if endpoint is None or not "100" <= status <= "599":
            return None
        labels = (method if method in _METHODS else "OTHER", endpoint, status)
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= _MOST_SERIES:
                labels = ("OTHER", OTHER, status)
            series = self._series.setdefault(labels, _Series(*labels))
        if len(self._by_bytes) >= _MOST_KEYS:
            self._by_bytes.clear()
        self._by_bytes[key] = series
        return series

    def _others(self, block: bytes) -> None:
        for line in block.split(b"\n"):
            if b"[GIN] " in line:
                continue  # its path is a client's
            for needle in _NEEDLES:
                if needle in line:
                    self._other(line)
                    break

    def _other(self, line: bytes) -> None:
        if line.startswith(b"{"):
            line = _ESCAPED.sub(rb"\1", line)
        said = _SAID.findall(line) if b"msg=" in line else (line,)
        for kind in {kind for needle, kind in _TELLING if any(needle in text for text in said)}:
            self._told[kind] += 1
        for text in said:
            loaded = _LOADED.fullmatch(text)
            if loaded:
                self._last_load = float(loaded[1])
                self._loads += 1
                self._load_seconds += self._last_load


def _is_quoted(block: bytes, start: int) -> bool:
    """Whether `[GIN] ` at `start` stands in a line of Ollama's own, say in a prompt that is logged there."""
    return b"msg=" in block[block.rfind(b"\n", 0, start) + 1 : start]


def _endpoint(quoted: str) -> Optional[str]:
    """The label of a path as the regular expression leaves it; None where the line was cut off within it."""
    escaped = quoted.startswith("\\")
    path, end = quoted[1 + escaped : -1], quoted[1 + escaped :][-1:]
    if not end:
        return None
    if end not in '"?' and len(path) < _LONGEST_PATH:
        return None
    if escaped and end == '"':
        path = path[:-1]
    if path in _ENDPOINTS:
        return path
    for prefix, label in _PARAMETERS:
        if path.startswith(prefix) and len(path) > len(prefix):
            return label
    return OTHER


@dataclass(frozen=True)
class RequestStats:
    """The inference requests of a window.

    Ratios are 0-1, times seconds at a resolution of 5 %; None where there were no requests.
    """

    requests: int
    failed: int
    rate_per_second: float
    error_ratio: Optional[float]
    p50_seconds: Optional[float]
    p95_seconds: Optional[float]
    p99_seconds: Optional[float]


def request_stats(spans: Iterable[RequestSpan], now: float, window: float) -> RequestStats:
    """The spans that ended within the last `window` seconds, as one.

    A span counts whole. Where the first one began before the window, the rate is over the longer
    time.
    """
    within = [span for span in spans if span.end > now - window]
    requests = sum(span.requests for span in within)
    failed = sum(span.failed for span in within)
    if not requests:
        return RequestStats(0, 0, 0.0, None, None, None, None)
    durations: dict[int, int] = {}
    for span in within:
        for at, count in span.durations.items():
            durations[at] = durations.get(at, 0) + count
    time = max(window, now - min(span.start for span in within))
    return RequestStats(
        requests,
        failed,
        requests / time if time > 0 else 0.0,
        failed / requests,
        *(_quantile(durations, requests, share) for share in (0.5, 0.95, 0.99)),
    )


def _quantile(durations: dict[int, int], requests: int, share: float) -> Optional[float]:
    left = math.ceil(requests * share)
    for at in sorted(durations):
        left -= durations[at]
        if left <= 0:
            return seconds_of(at)
    return None
