"""Text for people in lines that fit: what a terminal breaks by itself, it breaks in the middle of words.

What is to be copied is left whole: addresses and paths, commands in backquotes, an option with its value.
"""

from __future__ import annotations

import re
import textwrap

_TO_COPY = re.compile(r"`[^`]+`|--[a-z-]+ [A-Z]\S*")
_NO_BREAK = "\0"  # stands for a space while lines are broken


def folded(line: str, columns: int) -> str:
    """The line in several where it is longer than so many columns; what follows the first is indented by two more."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    glued = _TO_COPY.sub(lambda found: found[0].replace(" ", _NO_BREAK), line)
    filled = textwrap.fill(glued, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return filled.replace(_NO_BREAK, " ")
