"""The values: what is measured (Quantity), what was seen (Figures), and how it reads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)  # a column is itself, even if another reads the same
class Quantity:
    """One column of a table. `unit` is part of the heading; `digits` come after the point."""

    title: str
    unit: str
    digits: int = 1

    @property
    def heading(self) -> str:
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def show(self, value: float) -> str:
        return "-" if math.isnan(value) else f"{value:,.{self.digits}f}"


@dataclass
class Figures:
    """All values of one run: per quantity and subject (a server, a size) one value per round."""

    values: dict[tuple[Quantity, str], list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def record(self, quantity: Quantity, subject: str, *values: float) -> None:
        self.values.setdefault((quantity, subject), []).extend(values)

    def median(self, quantity: Quantity, subject: str) -> float | None:
        values = self.values.get((quantity, subject))
        if not values:
            return None
        middle = statistics.median(values)
        return None if math.isnan(middle) else middle

    def subjects(self, quantities: Sequence[Quantity]) -> list[str]:
        """Who has a value in any of `quantities`, in the order of measuring."""
        return list(dict.fromkeys(who for what, who in self.values if what in quantities))

    def cell(self, quantity: Quantity, subject: str) -> str:
        """The median, and the lowest and highest of the rounds where there were several."""
        values = self.values.get((quantity, subject))
        if not values:
            return "-"
        text = quantity.show(statistics.median(values))
        if len(values) > 1:
            text += f" ({quantity.show(min(values))}..{quantity.show(max(values))})"
        return text

    def note(self, lines: Iterable[str]) -> None:
        self.notes.extend(line for line in lines if line not in self.notes)
