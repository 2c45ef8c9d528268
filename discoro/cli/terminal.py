"""What is said to a person: on a terminal in lines that fit, else in one line, for logs and `grep`."""

from __future__ import annotations

import shutil
import sys
import textwrap


def folded(text: str) -> str:
    """The text as standard error should get it. What cannot be divided, such as a path, is left whole."""
    if not sys.stderr.isatty():
        return text
    columns = max(shutil.get_terminal_size().columns, 40)
    return textwrap.fill(text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
