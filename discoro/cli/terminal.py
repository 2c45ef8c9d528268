"""What is said to a person: on a terminal in lines that fit, else in one line, for logs and `grep`."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

_NO_BREAK = "\0"  # stands for a space while lines are broken


def folded(text: str) -> str:
    """The text as standard error should get it. What is to be copied is left whole: a path, and what stands in backquotes."""
    if not sys.stderr.isatty():
        return text
    columns = max(shutil.get_terminal_size().columns, 40)
    whole = re.sub("`[^`]*`", lambda command: command[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.fill(whole, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines.replace(_NO_BREAK, " ")
