"""The rings of a snapshot's collectors as JSON arrays; pure.

Each collector has a clock of its own, and so its readings have times of their own. Where they come
faster than twice a second, those of one half second are one entry, their mean: an answer has 241 entries
of a kind at most, whatever the interval is.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Optional

    from .gpu import GpuReading
    from .ollama import OllamaReading
    from .snapshot import Snapshot, State
    from .window import Levels, Span

    Entry = tuple[float, Mapping[str, Levels]]

_PER_SECOND = 2


def render_history(snapshot: Snapshot, seconds: float, now: float, timestamp: float) -> bytes:
    """The readings of the last `seconds` before `now` (monotonic; as Unix seconds it is `timestamp`)."""
    document = to_document(snapshot, seconds, now, timestamp)
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.encode("ascii") + b"\n"


def to_document(snapshot: Snapshot, seconds: float, now: float, timestamp: float) -> dict[str, Any]:
    """The same as Python values: equally long lists, oldest first, None where nothing was reported.

    `gpu` and `ollama` are None where they are not looked at.
    """
    begin = now - seconds
    host = _entries(snapshot.host.ring, begin)
    return {
        "timestamp": round(timestamp, 3),
        "seconds": seconds,
        "host": {
            "ago_seconds": _ago(host, now),
            "cpu_percent": _percent(host, "", 0),
            "ram_percent": _percent(host, "", 1),
        },
        "gpu": _gpus(snapshot.gpu, begin, now) if snapshot.gpu is not None else None,
        "ollama": _ollama(snapshot.ollama, begin, now) if snapshot.ollama is not None else None,
    }


def _gpus(state: State[GpuReading], begin: float, now: float) -> dict[str, Any]:
    """Each GPU that was read within that time, be it lost by now; those that answered last come first."""
    entries = _entries(state.ring, begin)
    indices = {gpu.uuid: gpu.index for gpu in state.last_good.gpus} if state.last_good else {}
    read = {uuid for _, levels in entries for uuid in levels}
    uuids = [uuid for uuid in indices if uuid in read] + sorted(read - set(indices))
    return {
        "ago_seconds": _ago(entries, now),
        "gpus": [
            {
                "index": indices.get(uuid),
                "uuid": uuid,
                "utilization_percent": _percent(entries, uuid, 0),
                "memory_percent": _percent(entries, uuid, 1),
            }
            for uuid in uuids
        ],
    }


def _ollama(state: State[OllamaReading], begin: float, now: float) -> dict[str, Any]:
    entries = _entries(state.ring, begin)
    counts = [levels[""][0] for _, levels in entries]
    return {
        "ago_seconds": _ago(entries, now),
        "in_flight": [round(count, 1) if count is not None else None for count in counts],
    }


def _entries(ring: Iterable[Span], begin: float) -> list[Entry]:
    """The readings that ended after `begin`: their ends and their levels, those of a half second as one."""
    halves: dict[int, list[Span]] = {}
    for span in ring:
        if span.end > begin:
            halves.setdefault(int(span.end * _PER_SECOND), []).append(span)
    return [(spans[-1].end, _levels(spans)) for spans in halves.values()]


def _ago(entries: list[Entry], now: float) -> list[float]:
    return [round(max(0.0, now - end), 2) for end, _ in entries]


def _percent(entries: list[Entry], source: str, level: int) -> list[Optional[float]]:
    column: list[Optional[float]] = []
    for _, levels in entries:
        own = levels.get(source)
        value = own[level] if own is not None else None
        column.append(round(100 * value, 1) if value is not None else None)
    return column


def _levels(spans: list[Span]) -> Mapping[str, Levels]:
    """The means of each level by time, as in `window.stats`; those of a reading by itself as they are."""
    if len(spans) == 1:
        return spans[0].levels
    sources = {source: own for span in spans for source, own in span.levels.items()}
    return {
        source: tuple(_mean(spans, source, level) for level in range(len(own)))
        for source, own in sources.items()
    }


def _mean(spans: list[Span], source: str, level: int) -> Optional[float]:
    known = []
    for span in spans:
        own = span.levels.get(source)
        value = own[level] if own is not None else None
        if value is not None:
            known.append((value, span.end - span.start))
    time = sum(seconds for _, seconds in known)
    if time <= 0:
        return known[-1][0] if known else None
    return sum(value * seconds for value, seconds in known) / time
