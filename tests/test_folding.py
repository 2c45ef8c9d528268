"""Lines for people: broken between words, never inside what is to be copied."""

from __future__ import annotations

from discoro.folding import folded


def test_a_line_that_fits_stays() -> None:
    assert folded("  short", 80) == "  short"


def test_a_long_line_is_broken_between_words_and_indented() -> None:
    lines = folded("  " + "word " * 30, 40).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 40
    assert lines[0].startswith("  word") and all(line.startswith("    word") for line in lines[1:])


def test_what_is_to_be_copied_stays_whole() -> None:
    for whole in ("`discoro join --keep 1d`", "--peer HOST[:PORT]", "/a/path-with-hyphens/" * 4, "[fd00::2]:24200"):
        for before in range(20, 40):
            assert whole in folded("x" * before + f" {whole} and more words behind it", 40)
