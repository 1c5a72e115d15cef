"""A balancer of the AIConnect kind, to the letter: what it decodes, what it computes, whom it picks."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple, Optional

FIELDS = {
    "cpu_percent": float,
    "ram_percent": float,
    "gpu_count": int,
    "gpu_avg_utilization_percent": float,
    "gpu_avg_memory_percent": float,
}
# What a Go HTTP client sends: no Accept header.
HEADERS = {"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"}


class PollFailed(Exception):
    """One error to the balancer: a status, a timeout, or a body that it cannot decode."""


class Poll(NamedTuple):
    """What the balancer takes from one answer."""

    cpu_percent: float
    ram_percent: float
    gpu_count: int
    gpu_avg_utilization_percent: float
    gpu_avg_memory_percent: float

    @property
    def weight(self) -> float:
        """The balancer's formula; no clamping, nothing else is looked at."""
        weight = self.cpu_percent + self.ram_percent
        if self.gpu_count > 0:
            weight += 1.5 * self.gpu_avg_utilization_percent + 1.5 * self.gpu_avg_memory_percent
        return weight


def _refuse_constant(name: str) -> Any:
    raise PollFailed(f"{name} is not JSON")


def decode(body: bytes) -> Poll:
    """Decode the first JSON value as a strict, typed decoder does: an int is an int, NaN fails, a missing key is 0."""
    text = body.decode("utf-8")
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    try:
        value, _ = decoder.raw_decode(text.lstrip())
    except ValueError as error:
        raise PollFailed(str(error)) from None
    if not isinstance(value, dict):
        raise PollFailed("not an object")
    taken: dict[str, Any] = {}
    for key, kind in FIELDS.items():
        field = value.get(key)
        if field is None:
            field = kind(0)
        elif isinstance(field, bool) or not isinstance(field, (int, float)):
            raise PollFailed(f"{key} is {field!r}")
        elif kind is int and not isinstance(field, int):
            raise PollFailed(f"{key} is {field!r}, not an integer")
        taken[key] = field
    return Poll(**taken)


def poll(port: int, host: str = "127.0.0.1", timeout: float = 5.0) -> Poll:
    """Ask `host` once. Raises PollFailed."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/metrics", headers=HEADERS)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise PollFailed(repr(error)) from None
    finally:
        connection.close()
    if answer.status != 200:
        raise PollFailed(f"status {answer.status}")
    return decode(body)


def pick(polls: dict[str, Optional[Poll]]) -> str:
    """The name of the host that gets every request: the lowest weight, the first among equals.

    A host that has never been polled well (None) has the weight 0.
    """
    return min(polls, key=lambda name: 0.0 if polls[name] is None else polls[name].weight)  # type: ignore[union-attr]
