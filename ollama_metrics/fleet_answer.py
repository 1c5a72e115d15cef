"""What an AIConnect-style balancer takes from a host's answer, and what the agent says there besides; pure.

The balancer is a Go program, and this decodes as Go's encoding/json does: the first JSON value of the
body, a key in any case of its letters, numbers of the right kind and range. A later value of the same key
wins, but for null, which changes nothing.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata

from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Union

CPU, RAM, GPUS = "cpu_percent", "ram_percent", "gpu_count"
GPU_UTILIZATION, GPU_MEMORY = "gpu_avg_utilization_percent", "gpu_avg_memory_percent"
FIELDS = (CPU, RAM, GPUS, GPU_UTILIZATION, GPU_MEMORY)
# encoding/json's maxNestingDepth.
_DEEPEST = 10_000
# Brackets, and whole strings, whose brackets are none.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_WHITESPACE = " \t\r\n"
_LEAST_INT, _MOST_INT = -(1 << 63), (1 << 63) - 1
_MOST_REASONS, _LONGEST_REASON, _LONGEST_WORD = 16, 300, 16


@dataclass(frozen=True)
class Reading:
    """An answer: the balancer's five fields, and the agent's own keys, None where they are not there.

    `missing` are fields without a value, for which the balancer takes 0.
    """

    cpu_percent: float
    ram_percent: float
    gpu_count: int
    gpu_avg_utilization_percent: float
    gpu_avg_memory_percent: float
    missing: tuple[str, ...] = ()
    status: Optional[str] = None
    reasons: tuple[str, ...] = ()
    age_seconds: Optional[float] = None
    in_flight: Optional[int] = None
    said_weight: Optional[float] = None

    @property
    def weight(self) -> float:
        """The balancer's formula; the lowest wins. Not finite where the fields are absurd."""
        weight = self.cpu_percent + self.ram_percent
        if self.gpu_count > 0:
            weight += 1.5 * self.gpu_avg_utilization_percent + 1.5 * self.gpu_avg_memory_percent
        return weight


class _Number(str):
    """A number as it is written: whether it is an integer shows in nothing else."""

    __slots__ = ()


class _Object(list):  # type: ignore[type-arg]  # of pairs
    """The members of an object in their order, repeated keys and all."""

    __slots__ = ()


def _depth(text: str) -> int:
    """How deep what is in `text`, which is JSON, is nested; 0 where there are too few brackets for it to matter."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return 0
    depth = deepest = 0
    for word in _BRACKETS.findall(text):
        if word in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif word in "]}":
            depth -= 1
    return deepest


def decode(body: bytes) -> Reading:
    """What the balancer takes from a body. Raises ValueError, with a clause for a person, where it fails."""
    # As in Go: bytes that are no UTF-8 are a replacement character in a string, and no JSON elsewhere.
    text = body.decode("utf-8", "replace").lstrip(_WHITESPACE)
    decoder = json.JSONDecoder(
        object_pairs_hook=_Object,
        parse_float=_Number,
        parse_int=_Number,
        parse_constant=_refuse_constant,
    )
    if not text:
        raise ValueError("its answer is empty")
    try:
        value, end = decoder.raw_decode(text)
    except json.JSONDecodeError:
        raise ValueError(f"its answer is no JSON; it begins with {_quoted(text)}") from None
    except RecursionError:
        raise ValueError("its answer is nested too deeply") from None
    if _depth(text[:end]) > _DEEPEST:  # Python's own limit is lower before 3.14 and higher since
        raise ValueError("its answer is nested too deeply")
    if value is None:  # which Go decodes into anything
        value = _Object()
    if not isinstance(value, _Object):
        raise ValueError(f"its answer is {_shown(value)} and no JSON object")
    given: dict[str, Any] = {}
    for key, member in value:
        name = key.lower() if key.isascii() else key
        if name in FIELDS and member is not None:
            given[name] = _integer(name, member) if name == GPUS else _float(name, member)
    return Reading(
        given.get(CPU, 0.0),
        given.get(RAM, 0.0),
        given.get(GPUS, 0),
        given.get(GPU_UTILIZATION, 0.0),
        given.get(GPU_MEMORY, 0.0),
        tuple(name for name in FIELDS if name not in given),
        **_own(dict(value)),
    )


def _own(document: dict[str, Any]) -> dict[str, Any]:
    """The agent's own keys. They are not the balancer's: what makes no sense there is left out."""
    reasons = document.get("reasons")
    ollama = document.get("ollama")
    queue = dict(ollama).get("in_flight") if isinstance(ollama, _Object) else None
    in_flight = _number(queue)
    age = _number(document.get("age_seconds"))
    return {
        "status": _word(document.get("status")),
        "reasons": tuple(
            legible(reason, _LONGEST_REASON)
            for reason in (reasons[:_MOST_REASONS] if type(reasons) is list else ())
            if isinstance(reason, str) and not isinstance(reason, _Number)
        ),
        "age_seconds": age if age is not None and age >= 0 else None,
        "in_flight": int(in_flight) if in_flight is not None and 0 <= in_flight < 1e9 else None,
        "said_weight": _number(document.get("weight")),
    }


def legible(text: str, most: int) -> str:
    """One line of at most `most` characters without anything that a terminal would obey."""
    piece = unicodedata.normalize("NFC", text[: 4 * most])
    # Marks that are left stand on top of the character before them: hundreds would cover other lines.
    shown = "".join(
        character if character.isprintable() and not unicodedata.combining(character) else " "
        for character in piece
    )
    line = " ".join(shown.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _refuse_constant(_name: str) -> Any:
    raise json.JSONDecodeError("no JSON", "", 0)


def _float(name: str, value: Any) -> float:
    number = float(value) if isinstance(value, _Number) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {_shown(value)}, and not a number that the balancer takes")
    return number


def _integer(name: str, value: Any) -> int:
    digits = value.lstrip("-") if isinstance(value, _Number) else ""
    number = int(value) if digits.isdecimal() and len(digits) < 20 else None
    if number is None or not _LEAST_INT <= number <= _MOST_INT:
        raise ValueError(f"{name} is {_shown(value)}, and the balancer takes only an integer")
    return number


def _number(value: Any) -> Optional[float]:
    number = float(value) if isinstance(value, _Number) else math.nan
    return number if math.isfinite(number) else None


def _word(value: Any) -> Optional[str]:
    if not isinstance(value, str) or isinstance(value, _Number):
        return None
    return legible(value, _LONGEST_WORD) or None


def _shown(value: Union[bool, str, list[Any], None]) -> str:
    """A JSON value in a few characters."""
    if isinstance(value, _Number):
        return legible(value, 30)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "an object" if isinstance(value, _Object) else "a list"


def _quoted(text: str) -> str:
    return f"'{legible(text[:80], 30)}'"
