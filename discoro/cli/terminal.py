"""What is said to a person: on a terminal in lines that fit, else in one line, for logs and `grep`."""

from __future__ import annotations

import shutil
import sys

from discoro import folding


def folded(text: str) -> str:
    """The text as standard error should get it."""
    return folding.folded(text, max(shutil.get_terminal_size().columns, 40)) if sys.stderr.isatty() else text
