"""How Sphinx builds these pages; `sphinx-build -W docs OUT` with the packages of the extra `docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import discoro

project = "discoro"
author = "discoro developers"
copyright = author
release = version = discoro.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"discoro {release}"
html_copy_source = False
