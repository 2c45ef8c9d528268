"""A table of figures as a picture: well-formed, complete, a colour for each figure."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from discoro import drawing

FIGURES = {("a", "b"): (1e6, "1 MB/s"), ("b", "a"): (1e8, "100 MB/s"), ("a", "c"): (1e7, "10 MB/s")}


def fields(text: str) -> list[str]:
    """The colours of the fields, in order."""
    return re.findall(r'rx="4" fill="(#[0-9a-f]{6})"', text)


def test_every_figure_stands_in_it_and_the_rest_is_grey() -> None:
    text = drawing.matrix("Ways", ["a", "b"], ["a", "b", "c"], FIGURES)
    root = ElementTree.fromstring(text)
    said = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert said[0] == "Ways"
    assert {"1 MB/s", "10 MB/s", "100 MB/s", "a", "b", "c"} <= set(said)
    assert len(fields(text)) == 6
    assert fields(text).count(drawing.NONE) == 3
    assert float(root.get("width", "")) == drawing.LEFT + 3 * drawing.CELL + 20


def test_the_slowest_and_the_fastest_have_the_ends_of_the_colours() -> None:
    text = drawing.matrix("", ["a", "b"], ["a", "b", "c"], FIGURES)
    slow, fast = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in (drawing.SLOWEST, drawing.FASTEST))
    assert slow in fields(text) and fast in fields(text)


@pytest.mark.parametrize("figures", [{}, {("a", "a"): (0.0, "")}, {("a", "a"): (5.0, "5")}])
def test_there_may_be_no_figure_or_one(figures: dict[tuple[str, str], tuple[float, str]]) -> None:
    ElementTree.fromstring(drawing.matrix("", ["a"], ["a"], figures))


def test_names_are_taken_as_text_and_cut_where_they_are_long() -> None:
    text = drawing.matrix("<b>", ["<script>"], ["x" * 60], {})
    ElementTree.fromstring(text)
    assert "<script>" not in text and "x" * 16 not in text
