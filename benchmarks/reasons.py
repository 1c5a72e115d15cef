"""Why a goal is missed, by its key: written by hand, printed only while it is missed."""

from __future__ import annotations

REASONS: dict[str, str] = {}

UNKNOWN = "not yet found"
