"""Which format a client of /metrics gets, from its Accept header; pure.

One URL serves a balancer (no Accept header, JSON), curl (`*/*`, JSON), every Prometheus (named
exposition formats) and a browser (`text/html`). Prometheus 2.49.0 sends `*/*;q=2`: a quality above
1 is taken as 1, and a wildcard never beats a format that is named.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

FORMATS = ("json", "prometheus", "openmetrics", "html")

# As much of the header as is looked at; a browser's has 150 characters, Prometheus's 250.
_LONGEST = 1024

_NAMED: dict[str, str] = {
    "application/json": "json",
    "application/openmetrics-text": "openmetrics",
    "text/plain": "prometheus",
    "text/html": "html",
}


def negotiate(accept: Optional[str]) -> str:
    """One of FORMATS: the named format of the highest quality, the first among equals, else JSON."""
    best, best_quality = "json", 0.0
    for media_range in (accept or "")[:_LONGEST].split(","):
        media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
        name = _NAMED.get(media_type)
        if name == "prometheus" and not any(one.startswith("version=") for one in parameters):
            continue  # many HTTP libraries name text/plain beside */* and want JSON
        if name is not None:
            quality = _quality(parameters)
            if quality > best_quality:
                best, best_quality = name, quality
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                return 0.0
            return min(1.0, max(0.0, quality))  # NaN becomes 0
    return 1.0
