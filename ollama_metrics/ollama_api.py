"""What is asked of Ollama's API, and what its answers have to be like to be believed.

Every answer is read as if a stranger had written it: what matters is right or the whole answer is an
OllamaAnswer, what does not is left out. Texts of an answer that are not among the values never leave
this module, neither in an error nor in one behind it: they hold prompts.

Source: Ollama's docs/api.md and api/types.go, and for `slots` the README of llama.cpp's server.
"""

from __future__ import annotations

import json
from dataclasses import replace

from .errors import OllamaAnswer
from .ollama import Model
from .ollama_http import exchange
from .ollama_url import OllamaUrl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any, Callable, Optional

MOST_MODELS = 256
_MOST_NAME = 256
_MOST_TEXT = 128
_MOST_DIGITS = 20  # of a whole number: more are no 64 bits, and cost time without bound
# A parsed document takes up to 30 times its bytes; 256 models are some 200 KB.
_MOST_VERSION_BYTES = 1 << 16
_MOST_MODELS_BYTES = 1 << 20
_MOST_SHOW_BYTES = 4 << 20
_MOST_SLOTS_BYTES = 16 << 20
_NOTHING = object()  # the parsed form of what is no JSON
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)  # each month of a usual year
_DAYS_TO_1970 = 365 * 1970 + 1969 // 4 - 1969 // 100 + 1969 // 400


class OllamaApi:
    """Asks the Ollama at `url`, which has `seconds` for each answer; `opened` hears of each connection.

    Every method raises OllamaDown where nobody answers in time, and OllamaAnswer where the answer is
    not Ollama's.
    """

    def __init__(
        self,
        url: OllamaUrl,
        seconds: float = 5.0,
        opened: Optional[Callable[[socket], None]] = None,
    ) -> None:
        self._url, self._seconds, self._opened = url, seconds, opened
        self._parse = _parser()

    def version(self) -> tuple[str, float]:
        """Ollama's version and the round trip in seconds. Source: GET /api/version."""
        document, rtt = self._ask("/api/version", _MOST_VERSION_BYTES)
        version = (
            _label(document.get("version"), _MOST_TEXT) if isinstance(document, dict) else None
        )
        if version is None:
            raise OllamaAnswer(f"{self._url}/api/version answered without a version")
        return version, rtt

    def models(self) -> tuple[Model, ...]:
        """The loaded models, in Ollama's order. Source: GET /api/ps."""
        document, _ = self._ask("/api/ps", _MOST_MODELS_BYTES)
        return models_in(document, f"{self._url}/api/ps")

    def weights_of(self, name: str) -> Optional[str]:
        """The digest of the blob that has the weights of a model, as weights_in() says.

        Raises OllamaAnswer with status 404 for a model that Ollama does not have. Source: POST
        /api/show.
        """
        asked = json.dumps({"model": name}).encode("ascii")
        document, _ = self._ask("/api/show", _MOST_SHOW_BYTES, asked)
        return weights_in(document, f"{self._url}/api/show")

    def _ask(self, path: str, most: int, body: Optional[bytes] = None) -> tuple[Any, float]:
        answer, rtt = exchange(
            self._url,
            path,
            body=body,
            seconds=self._seconds,
            most_bytes=most,
            opened=self._opened,
        )
        return _document(self._parse, answer, f"{self._url}{path}"), rtt


def slots(port: int, seconds: float = 2.0) -> tuple[int, int]:
    """How many of the slots of the llama-server on a port of 127.0.0.1 are busy, and how many it has.

    An entry may hold the prompt that is worked on: of each object only its `is_processing` is kept
    while the answer is parsed. Raises OllamaDown, and OllamaAnswer (where /slots is switched off with
    the status 501 or 404). Source: GET /slots.
    """
    url = OllamaUrl("127.0.0.1", port)
    answer, _ = exchange(url, "/slots", seconds=seconds, most_bytes=_MOST_SLOTS_BYTES)
    found = _document(_parser(_is_processing), answer, f"{url}/slots")
    if not isinstance(found, list) or not found:
        raise OllamaAnswer(f"{url}/slots answered without a list of slots")
    busy = 0
    for slot in found:
        if not isinstance(slot, tuple) or not isinstance(slot[0], bool):
            raise OllamaAnswer(
                f"{url}/slots answered with a slot that does not say whether it works"
            )
        busy += slot[0]
    return busy, len(found)


def models_in(document: Any, asked: str = "/api/ps") -> tuple[Model, ...]:
    """The models of an answer of /api/ps, which is parsed JSON of any kind.

    Name and both sizes have to be right for each model. What else cannot be used is None. Entries of
    one name (a model that was made anew while the old one is still loaded) become one with the memory
    of all: the name is the label of its series, and no byte on a CPU may get lost. Raises
    OllamaAnswer, whose text begins with `asked`.
    """
    entries = document.get("models") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise OllamaAnswer(f"{asked} answered without a list of models")
    if len(entries) > MOST_MODELS:
        raise OllamaAnswer(f"{asked} answered with {len(entries)} models, more than {MOST_MODELS}")
    models: dict[str, Model] = {}
    for number, entry in enumerate(entries, 1):
        model = _model(entry, f"{asked} answered model {number}")
        before = models.get(model.name)
        models[model.name] = model if before is None else _together(before, model)
    return tuple(models.values())


def weights_in(document: Any, asked: str = "/api/show") -> Optional[str]:
    """`sha256-` and 64 hexadecimal digits: the blob that has a model's weights, by an answer of /api/show.

    It is the one that the first FROM of its `modelfile` names; None where that names none (a later
    one is a projector, or text of a prompt). Raises OllamaAnswer where there is no `modelfile`.
    """
    text = document.get("modelfile") if isinstance(document, dict) else None
    if not isinstance(text, str):
        raise OllamaAnswer(f"{asked} answered without a modelfile")
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = end if end >= 0 else len(text)
        if text[at : at + 5].upper() in ("FROM ", "FROM\t"):
            named = text[at + 5 : end].strip().strip('"')
            mark, digits = named[-71:-64], named[-64:]
            hexadecimal = len(digits) == 64 and not digits.strip("0123456789abcdef")
            return f"sha256-{digits}" if hexadecimal and mark in ("sha256-", "sha256:") else None
        at = end + 1
    return None


def unix_seconds(text: Any) -> Optional[float]:
    """Unix seconds of an RFC 3339 time with up to nine digits of fraction; None for anything else.

    None, too, for times before 1970: Go writes a time that was never set as one of the year 1.
    """
    if not isinstance(text, str) or not 20 <= len(text) <= 35 or not text.isascii():
        return None
    numbers = [text[:4], text[5:7], text[8:10], text[11:13], text[14:16], text[17:19]]
    rest, fraction = text[19:], "0"
    if rest[0] == ".":
        length = len(rest) - 1 - len(rest[1:].lstrip("0123456789"))
        fraction, rest = rest[1 : 1 + length], rest[1 + length :]
    sign = 1
    if rest in ("Z", "z"):
        numbers += ["00", "00"]
    else:
        if len(rest) != 6 or rest[0] not in "+-" or rest[3] != ":":
            return None
        numbers += [rest[1:3], rest[4:]]
        sign = -1 if rest[0] == "-" else 1
    if text[4] + text[7] + text[10] + text[13] + text[16] not in ("--T::", "--t::", "-- ::"):
        return None
    if not all(number.isdigit() for number in numbers) or not 1 <= len(fraction) <= 9:
        return None
    year, month, day, hour, minute, second, hours, minutes = map(int, numbers)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if year < 1970 or not 1 <= month <= 12 or hour > 23 or minute > 59 or second > 59:
        return None
    if not 1 <= day <= (31, 28 + leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]:
        return None
    if hours > 23 or minutes > 59:
        return None
    past = year - 1
    days = 365 * year + past // 4 - past // 100 + past // 400 - _DAYS_TO_1970
    days += _DAYS_BEFORE[month - 1] + (leap and month > 2) + day - 1
    clock = hour * 3600 + minute * 60 + second - sign * (hours * 3600 + minutes * 60)
    return days * 86400 + clock + float(f"0.{fraction}")


# -- one model -----------------------------------------------------------------------------------------------------


def _model(entry: Any, answered: str) -> Model:
    if not isinstance(entry, dict):
        raise OllamaAnswer(f"{answered} as no object")
    name = _label(entry.get("name"), _MOST_NAME)
    if name is None:
        raise OllamaAnswer(f"{answered} without a usable name")
    size, vram = _whole(entry.get("size")), _whole(entry.get("size_vram"))
    if size is None or vram is None:
        raise OllamaAnswer(f"{answered} without a usable {'size' if size is None else 'size_vram'}")
    details = entry.get("details")
    if not isinstance(details, dict):
        details = {}
    return Model(
        name=name,
        digest=_text(entry.get("digest")),
        family=_text(details.get("family")),
        parameter_size=_text(details.get("parameter_size")),
        quantization=_text(details.get("quantization_level")),
        size_bytes=size,
        vram_bytes=vram,
        gpu_ratio=_ratio(vram, size),
        context_length=_whole(entry.get("context_length")) or None,  # 0: it is still being loaded
        expires_timestamp_seconds=unix_seconds(entry.get("expires_at")),
    )


def _together(first: Model, other: Model) -> Model:
    size, vram = first.size_bytes + other.size_bytes, first.vram_bytes + other.vram_bytes
    return replace(first, size_bytes=size, vram_bytes=vram, gpu_ratio=_ratio(vram, size))


def _ratio(vram: int, size: int) -> Optional[float]:
    return min(1.0, vram / size) if size else None


def _whole(value: Any) -> Optional[int]:
    """A number of bytes or tokens; a bool and a float are none."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value < 1 << 63 else None


def _label(value: Any, most: int) -> Optional[str]:
    return (
        value if isinstance(value, str) and 0 < len(value) <= most and value.isprintable() else None
    )


def _text(value: Any) -> Optional[str]:
    return _label(value[:_MOST_TEXT] if isinstance(value, str) else None, _MOST_TEXT)


# -- JSON ----------------------------------------------------------------------------------------------------------


def _parser(hook: Optional[Callable[[list[tuple[str, Any]]], Any]] = None) -> json.JSONDecoder:
    """A parser that takes RFC 8259 and nothing more: NaN is not JSON."""
    return json.JSONDecoder(parse_int=_int, parse_constant=_refuse, object_pairs_hook=hook)


def _document(parser: json.JSONDecoder, answer: bytes, asked: str) -> Any:
    document = _parsed(parser, answer)
    # Not raised where the parser's own error is at hand: that one has the whole text with it.
    if document is _NOTHING:
        raise OllamaAnswer(f"{asked} answered with what is no JSON")
    return document


def _parsed(parser: json.JSONDecoder, answer: bytes) -> Any:
    try:
        return parser.decode(answer.decode("utf-8"))
    except (ValueError, RecursionError):  # what is no UTF-8 or no JSON is a ValueError
        return _NOTHING


def _int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number without bound")
    return int(digits)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _is_processing(pairs: list[tuple[str, Any]]) -> tuple[Any]:
    """All that is kept of an object, in a tuple: nothing that JSON has by itself becomes one."""
    for key, value in reversed(pairs):
        if key == "is_processing":
            return (value if isinstance(value, bool) else None,)
    return (None,)
