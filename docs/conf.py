"""How Sphinx builds these pages; `sphinx-build -W docs OUT` with the packages of the extra `docs`."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import discoro

project = "discoro"
author = "discoro developers"
copyright = author
release = version = discoro.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 100
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"discoro {release}"
html_copy_source = False


def code_between_backquotes(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings put code between single backquotes; reStructuredText wants two, and a gap before letters."""
    lines[:] = [re.sub(r"`([^`]+)`", r"``\1``\\ ", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", code_between_backquotes)
