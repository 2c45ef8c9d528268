"""How often each letter stands in a text, but for those that do not count."""

from collections import Counter
from pathlib import Path

IGNORED = Path(__file__).with_name("ignored.txt").read_text().split()  # a data file of the package


def most_common(text, how_many):
    """The most frequent letters, as (letter, how often)."""
    return Counter(letter for letter in text.lower() if letter.isalpha() and letter not in IGNORED).most_common(how_many)
