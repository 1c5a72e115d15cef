"""Plots as SVG, written by hand: the same figures give the same bytes, whatever is installed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional
from xml.sax.saxutils import escape

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f")
_FONT = 'font-family="sans-serif" font-size="12" fill="#222"'
_ROW, _LEFT, _WIDTH, _RIGHT = 22, 330, 420, 30


@dataclass(frozen=True)
class Series:
    """One colour of a plot: a value for each row, None where there is none."""

    name: str
    values: list[Optional[float]]


def dots(title: str, axis: str, rows: list[str], series: list[Series]) -> str:
    """A dot for each value, rows from top to bottom, the axis logarithmic."""
    values = [value for one in series for value in one.values if value]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))

    def x(value: float) -> float:
        return _LEFT + _WIDTH * (math.log10(value) - low) / (high - low)

    top = 62
    bottom = top + _ROW * len(rows)
    parts = [f'<text x="12" y="20" {_FONT} font-weight="bold">{escape(title)}</text>']
    parts += _legend(series)
    for exponent in range(low, high + 1):
        at = f"{x(10.0**exponent):.1f}"
        parts.append(f'<path d="M{at} {top}V{bottom}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{at}" y="{bottom + 16}" text-anchor="middle" {_FONT}>{10.0**exponent:g}</text>'
        )
    for number, name in enumerate(rows):
        y = top + _ROW * number + _ROW // 2
        parts.append(f'<path d="M{_LEFT} {y}H{_LEFT + _WIDTH}" stroke="#eee"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end" {_FONT}>{escape(name)}</text>'
        )
        for colour, one in zip(COLOURS, series):
            value = one.values[number]
            if value:
                parts.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    parts.append(
        f'<text x="{_LEFT + _WIDTH // 2}" y="{bottom + 36}" text-anchor="middle" {_FONT}>'
        f"{escape(axis)}</text>"
    )
    return _page(bottom + 48, parts)


def bars(title: str, axis: str, rows: list[str], series: list[Series], most: float) -> str:
    """A bar for each value, from 0 to `most`."""
    high = 12 * len(series) + 10
    top = 62
    bottom = top + high * len(rows)
    parts = [f'<text x="12" y="20" {_FONT} font-weight="bold">{escape(title)}</text>']
    parts += _legend(series)
    for step in range(5):
        at = f"{_LEFT + _WIDTH * step / 4:.1f}"
        parts.append(f'<path d="M{at} {top}V{bottom}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{at}" y="{bottom + 16}" text-anchor="middle" {_FONT}>{most * step / 4:g}</text>'
        )
    for number, name in enumerate(rows):
        y = top + high * number + 5
        middle = y + 6 * len(series) + 4
        parts.append(
            f'<text x="{_LEFT - 8}" y="{middle}" text-anchor="end" {_FONT}>{escape(name)}</text>'
        )
        for place, (colour, one) in enumerate(zip(COLOURS, series)):
            width = _WIDTH * min(1.0, (one.values[number] or 0.0) / most)
            parts.append(
                f'<rect x="{_LEFT}" y="{y + 12 * place}" width="{width:.1f}" height="10" '
                f'fill="{colour}"/>'
            )
    parts.append(
        f'<text x="{_LEFT + _WIDTH // 2}" y="{bottom + 36}" text-anchor="middle" {_FONT}>'
        f"{escape(axis)}</text>"
    )
    return _page(bottom + 48, parts)


def _legend(series: list[Series]) -> list[str]:
    parts = []
    x = _LEFT
    for colour, one in zip(COLOURS, series):
        parts.append(f'<circle cx="{x + 5}" cy="42" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="46" {_FONT}>{escape(one.name)}</text>')
        x += 30 + 7 * len(one.name)
    return parts


def _page(height: int, parts: list[str]) -> str:
    width = _LEFT + _WIDTH + _RIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">'
    )
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"
