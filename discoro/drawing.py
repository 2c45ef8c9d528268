"""A table of figures as a picture: SVG, as text, with a colour for each figure. Values in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

CELL, ROW, LEFT, TOP = 110, 44, 150, 90  # pixels
NONE = "#eeeeee"
INK, PALE_INK = "#1b1b1b", "#ffffff"
SLOWEST, FASTEST = (254, 224, 182), (0, 68, 88)  # red, green, blue


Figures = Mapping[tuple[str, str], tuple[float, str]]  # by source and target: a number, and what stands there


def matrix(title: str, sources: Sequence[str], targets: Sequence[str], figures: Figures) -> str:
    """A row for each source, a column for each target. The number gives the colour; a place without a figure is grey.

    Colours go by the logarithm: a tenth is as far from a hundredth as from one.
    """
    numbers = [number for number, _ in figures.values() if number > 0]
    least, most = (min(numbers), max(numbers)) if numbers else (1.0, 1.0)
    width, height = LEFT + CELL * len(targets) + 20, TOP + ROW * len(sources) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(20, 30, title, size=16),
        _text(20, TOP - 14, "from \N{RIGHTWARDS ARROW} to"),
    ]
    for column, target in enumerate(targets):
        parts.append(_text(LEFT + CELL * column + CELL / 2, TOP - 14, _short(target), anchor="middle"))
    for row, source in enumerate(sources):
        y = TOP + ROW * row
        parts.append(_text(20, y + ROW / 2 + 5, _short(source)))
        for column, target in enumerate(targets):
            number, text = figures.get((source, target), (0.0, ""))
            colour, ink = _colour(number, least, most)
            x = LEFT + CELL * column
            parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{ROW - 2}" rx="4" fill="{colour}"/>')
            parts.append(_text(x + CELL / 2, y + ROW / 2 + 5, text, anchor="middle", fill=ink))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, size: int = 13, anchor: str = "start", fill: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}\N{HORIZONTAL ELLIPSIS}"


def _colour(number: float, least: float, most: float) -> tuple[str, str]:
    """That of the field, and of what is written in it."""
    if number <= 0:
        return NONE, INK
    share = math.log(number / least) / math.log(most / least) if most > least else 1.0
    mixed = [round(slow + share * (fast - slow)) for slow, fast in zip(SLOWEST, FASTEST, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed), PALE_INK if share > 0.5 else INK
