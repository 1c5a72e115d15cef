"""Hosts as a table: their order, what is to be said of them, and a terminal or a pipe to show it on."""

from __future__ import annotations

import math
import os
import unicodedata

from .fleet_answer import CPU, GPU_MEMORY, GPU_UTILIZATION, RAM
from .frozen import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Optional, TextIO

    from .fleet import Poll
    from .fleet_answer import Reading

FAILING, DRAINING = "failing", "draining"
# What the weight that the agent tells may differ by, for it is rounded.
_ROUNDED = 0.05
_HIGHEST = 500.0
_HEADER = ("HOST", "WEIGHT", "STATUS", "AGE", "GPUS", "REQS")
_TO_THE_RIGHT = ("WEIGHT", "AGE", "GPUS", "REQS")
_WIDEST = 10  # a cell of these but the host's: the numbers are anybody's
_WIDEST_HOST = 60
_MOST_NOTES, _MOST_NAMED = 6, 4
_COLOURS = {FAILING: "31", DRAINING: "33", "degraded": "33", "ok": "32"}
_ERROR_COLOUR, _NEXT_COLOUR = "31", "1"


@dataclass(frozen=True)
class Row:
    """A host in its place; `next`: the balancer's next request goes to it. `notes` is what to know of it."""

    poll: Poll
    next: bool
    notes: tuple[str, ...]

    @property
    def status(self) -> Optional[str]:
        """What the agent says of its host."""
        return self.poll.reading.status if self.poll.reading is not None else None

    @property
    def finite_weight(self) -> Optional[float]:
        """The weight, if there is one that can be written as a number."""
        reading = self.poll.reading
        finite = reading is not None and math.isfinite(reading.weight)
        return round(reading.weight, 4) if reading is not None and finite else None


def rows_of(polls: Sequence[Poll]) -> list[Row]:
    """The hosts by weight, the lowest first, equal ones in the order given; at the end those without one."""
    ordered = sorted(polls, key=_place)
    fit = any(
        poll.reading is not None and poll.reading.status not in (FAILING, DRAINING)
        for poll in polls
    )
    return [
        Row(poll, is_next, tuple(_notes(poll.reading, is_next, fit)))
        for number, poll in enumerate(ordered)
        for is_next in (number == 0 and poll.reading is not None,)
    ]


def _place(poll: Poll) -> tuple[bool, float]:
    if poll.reading is None:
        return True, 0.0
    weight = poll.reading.weight
    return False, math.inf if math.isnan(weight) else weight


def _notes(reading: Optional[Reading], is_next: bool, fit: bool) -> list[str]:
    if reading is None:
        return [
            "the poll failed: a balancer keeps the last weight for two more polls, and one that never had an answer "
            "takes 0, which wins. Look there with `systemctl status ollama-metrics`"
        ]
    notes = []
    if is_next and reading.status in (FAILING, DRAINING):
        why = "" if fit else ", for no host that answers is ok or degraded"
        notes.append(f"{reading.status}, and yet the next request goes to it{why}")
    missing = [
        name
        for name in reading.missing
        if name in (CPU, RAM) or (reading.gpu_count > 0 and name in (GPU_UTILIZATION, GPU_MEMORY))
    ]
    if missing:
        notes.append(f"without {' and '.join(missing)}, for which the balancer takes 0")
    if not 0 <= reading.weight <= _HIGHEST:
        notes.append("its weight is not within 0 to 500: its fields are no percentages")
    said = reading.said_weight
    if said is not None and not abs(said - reading.weight) <= _ROUNDED:
        notes.append(
            f"it calls its weight {_number(said)}, and its five fields give {_number(reading.weight)}: "
            "coefficients or a capacity are configured there, which this kind of balancer does not know"
        )
    return notes


# -- text --------------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 1e6 or math.isnan(value) else f"{value:.2f}"


def _age(seconds: Optional[float]) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.1f}s" if seconds < 100 else f"{seconds:.0f}s" if seconds < 1e6 else "long"


def cells(text: str) -> int:
    """How many columns of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def clip(text: str, width: int) -> str:
    """The text, with dots for an end if it is wider than `width`."""
    if cells(text) <= width:
        return text
    kept = ""
    for character in text:
        if cells(kept + character) > width - 3:
            break
        kept += character
    return f"{kept}..."[:width]


def render(
    rows: Sequence[Row], width: Optional[int], height: Optional[int] = None, colour: bool = False
) -> list[str]:
    """The lines of a table, `width` columns and `height` lines at most where they are given."""
    texts = [_cells_of(row) for row in rows]
    host_width = min(_WIDEST_HOST, width // 3 if width is not None else 10_000)
    widths = [
        min(host_width if number == 0 else _WIDEST, max(cells(text[number]) for text in texts))
        for number in range(len(_HEADER))
    ]
    widths = [max(least, len(name)) for least, name in zip(widths, _HEADER)]
    footer = _footer(rows, width)
    shown = len(rows)
    if height is not None and shown + len(footer) + 1 > height:
        # The notes are cut first, then hosts, which are sorted.
        footer = footer[: max(1, height // 3)]
        shown = min(shown, max(1, height - len(footer) - 2))
    lines = [_line("", [*_HEADER, "REASONS"], widths, width, {})]
    for row, text in zip(rows[:shown], texts):
        mark = ">" if row.next else ""
        if row.poll.reading is None:
            # What was found out is said across the columns that there is nothing to put into.
            line = _line(mark, text[:2], widths[:2], width, {})
            left = max(10, width - cells(line) - 2) if width is not None else 10_000
            said = clip(row.poll.error, left)
            lines.append(f"{line}  {_painted(said, _ERROR_COLOUR if colour else '')}")
            continue
        colours = {2: _COLOURS.get(row.status or "", "")} if colour else {}
        if colour and row.next:
            colours[0] = _NEXT_COLOUR
        lines.append(_line(mark, text, widths, width, colours))
    if shown < len(rows):
        lines.append(f"  and {len(rows) - shown} more")
    return [*lines, *footer]


def _cells_of(row: Row) -> list[str]:
    reading = row.poll.reading
    host = row.poll.target.text
    if reading is None:
        return [host, "-", "", "", "", "", ""]
    return [
        host,
        _number(reading.weight),
        reading.status or "-",
        _age(reading.age_seconds),
        str(reading.gpu_count),
        "-" if reading.in_flight is None else str(reading.in_flight),
        "; ".join(reading.reasons) or ("-" if reading.status is None else ""),
    ]


def _line(
    mark: str,
    texts: Sequence[str],
    widths: Sequence[int],
    width: Optional[int],
    colours: Mapping[int, str],
) -> str:
    line, used = f"{mark:2}", 2
    for number, (text, room) in enumerate(zip(texts, widths)):
        if width is not None and used + room > width:
            return line.rstrip()  # a column that does not fit is left out with those after it
        text = clip(text, room)
        padding = " " * (room - cells(text))
        right = _HEADER[number] in _TO_THE_RIGHT
        shown = _painted(text, colours.get(number, ""))
        line += f"{padding}{shown}  " if right else f"{shown}{padding}  "
        used += room + 2
    if len(texts) > len(widths):
        last = texts[-1]
        line += clip(last, max(0, width - used)) if width is not None else last
    return line.rstrip()


def _painted(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and text else text


def _footer(rows: Sequence[Row], width: Optional[int]) -> list[str]:
    """What is to be said of the whole, and each note with the hosts that it is about."""
    answering = sum(row.poll.reading is not None for row in rows)
    count = f"{len(rows)} host{'s' * (len(rows) != 1)}"
    whole = f"{count}, {answering} usable answer{'s' * (answering != 1)}"
    by_note: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            by_note.setdefault(note, []).append(clip(row.poll.target.text, _WIDEST_HOST))
    notes = [f"{_named(hosts)}: {note}" for note, hosts in by_note.items()]
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES:] = [f"{len(notes) - _MOST_NOTES} more notes: see them with --json"]
    if width is None:
        return ["", whole, *notes]
    import textwrap

    wrapper = textwrap.TextWrapper(width, break_on_hyphens=False)
    return ["", *(line for text in (whole, *notes) for line in wrapper.wrap(text))]


def _named(hosts: Sequence[str]) -> str:
    more = len(hosts) - _MOST_NAMED
    return ", ".join(hosts[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


# -- where it is shown -------------------------------------------------------------------------------------------------


class Screen:
    """Standard output: a terminal that is drawn on anew each time (`redraw`), or lines one after another."""

    def __init__(self, stream: Optional[TextIO], environ: Mapping[str, str], redraw: bool) -> None:
        self._stream, self._environ = stream, environ
        terminal = stream is not None and stream.isatty() and environ.get("TERM") != "dumb"
        self._terminal, self._redraw = terminal, redraw and terminal
        self._colour = terminal and not environ.get("NO_COLOR")
        self._shown = 0

    def begin(self, text: str) -> None:
        """Clear a terminal that is drawn on, and say what is waited for."""
        if self._redraw:
            self._write(f"\x1b[H\x1b[2J{text}\n")

    def table(self, rows: Sequence[Row], title: str) -> str:
        """The table as it fits here, below its title."""
        width, height = self._size()
        if height is not None:
            height -= 1 + bool(title)
        lines = render(rows, width, height if self._redraw else None, self._colour)
        return "".join(f"{line}\n" for line in ([title] if title else []) + lines)

    def show(self, text: str) -> bool:
        """Show it in place of what was shown before, or after it; False: nobody reads any more. Raises OSError."""
        if self._redraw:
            # Line by line over the old ones, in one write: nothing is ever blank.
            return self._write("\x1b[H" + text.replace("\n", "\x1b[K\n") + "\x1b[J")
        between = "\n" if self._shown and "\n" in text[:-1] else ""
        self._shown += 1
        return self._write(between + text)

    def _size(self) -> tuple[Optional[int], Optional[int]]:
        columns = self._environ.get("COLUMNS", "")
        width = max(40, int(columns)) if columns.isdecimal() and len(columns) < 5 else None
        if not self._terminal or self._stream is None:
            return width, None
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return width or 79, None
        # The last column stays free: what a terminal does after writing there is its own affair.
        return width or max(40, (size.columns or 80) - 1), size.lines or None

    def _write(self, text: str) -> bool:
        if self._stream is None:
            raise OSError("standard output is closed")
        try:
            self._stream.flush()
            encoding = self._stream.encoding or "utf-8"
            self._stream.buffer.write(text.encode(encoding, "replace"))
            self._stream.buffer.flush()
            return True
        except OSError as error:
            # Python would complain once more when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                return False  # a reader that has had enough (`| head`) is no failure
            raise
