"""The parameters of a request's query: read, judged, refused in a sentence."""

from __future__ import annotations

import math
import urllib.parse

from .answer import Refused


def parameters(query: str, *names: str) -> dict[str, str]:
    """The parameters of these names, each given once at most; others are passed over. Raises Refused."""
    try:
        # keep_blank_values: `window=` is a mistake to be told, not one to be passed over.
        # urllib.parse is loaded by the first query (lean.py); most pollers send none.
        pairs = (
            urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=16)
            if query
            else []
        )
    except ValueError:
        raise Refused(400, "the query cannot be read") from None
    known = [(name, value) for name, value in pairs if name in names]
    if len(dict(known)) < len(known):
        each = " and ".join(names) + (" may each" if len(names) > 1 else " may")
        raise Refused(400, f"{each} be given once")
    return dict(known)


def as_seconds(name: str, value: str, least: float, most: float, why: str = "") -> float:
    """The value of a parameter; `why` stands behind the least one in the refusal. Raises Refused."""
    try:
        number = float(value) if len(value) <= 16 and "_" not in value else math.nan
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise Refused(400, f"{name}: give seconds from {least:g}{why} to {most:g}")
    # Rounded up: every number is a page to be rendered, and there shall be few of them.
    return float(math.ceil(number)) if number > 1 else math.ceil(number * 10) / 10
