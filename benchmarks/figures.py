"""What benchmarks found, as values: figures of discoro beside those of something else, in pairs from the same moments.

A machine is noisy, and what else it does comes and goes: so discoro and what stands beside it do the same work in turn, each
pair gives one ratio, and the median of these is what counts. Printed as a table, written as JSON.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

PLAIN = "plain loop"  # of pyzmq; plain.py


class Row(NamedTuple):
    """One figure. The rounds of `ours` and `theirs` belong together in pairs; without `theirs` ours counts by itself."""

    workload: str  # W0 to W8
    what: str
    unit: str  # of both: "/s", "us", "ms", "s", "KB", "MB", or "" for a share
    ours: list[float]
    theirs: list[float] = []
    beside: str = ""  # what theirs are of
    aim: float | None = None  # of the ratio; of ours where it counts by itself
    less_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """Of each pair; empty where ours counts by itself."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)] if self.theirs else []

    @property
    def counts(self) -> float:
        """What the aim is for."""
        return statistics.median(self.ratios or self.ours)

    @property
    def verdict(self) -> str:
        """Whether the aim is reached; "" where there is none."""
        if self.aim is None:
            return ""
        return "yes" if (self.counts <= self.aim if self.less_is_better else self.counts >= self.aim) else "NO"


def short(value: float) -> str:
    """A number in few characters: three digits that count."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if value >= 1e4:
        return f"{value / 1e3:.0f}k"
    if value >= 1e3:
        return f"{value / 1e3:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """The median, and from where to where they go."""
    middle = short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({short(min(values))}-{short(max(values))})"


HEADINGS = ("", "", "discoro", "beside it", "ratio", "aim", "met")


def cells(row: Row) -> tuple[str, ...]:
    """The row of the table."""
    unit = f" {row.unit}" if row.unit and row.unit != "/s" else row.unit
    aim = "" if row.aim is None else f"{'<=' if row.less_is_better else '>='} {row.aim:g}"
    theirs = f"{spread(row.theirs)}{unit}, {row.beside}" if row.theirs else ""
    ratio = spread(row.ratios) if row.ratios else ""
    return row.workload, row.what, f"{spread(row.ours)}{unit}", theirs, ratio, aim, row.verdict


def table(rows: Iterable[Row]) -> str:
    """All rows, in columns that Markdown takes too."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    printed = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    printed.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(printed)


def plain_values(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """For JSON: every round, and what came of them."""
    return [{**row._asdict(), "ratios": row.ratios, "counts": row.counts, "met": row.verdict} for row in rows]
