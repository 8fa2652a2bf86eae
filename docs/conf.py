"""Sphinx settings; knows how pages are built, not what they say. The build needs no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import tables

project = "Air-meta-pFL testbed"
author = "the authors"
copyright = "MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
html_theme = "furo"
html_title = project
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "imported-members": True, "exclude-members": "model_config"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

_LITERAL = re.compile(r"(``.+?``|:\w+:`[^`]+`)", re.DOTALL)


def _plain_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write |x| for a magnitude and *batch for a shape; reStructuredText would take them for markup."""
    if getattr(obj, "__module__", "").startswith("pydantic"):  # inherited from a library: not ours to explain
        lines[:] = []
        return
    if what == "property" and lines:  # napoleon would take the words before a colon for a type
        lines[0] = lines[0].replace(": ", "; ")
    text = "\n".join(lines)
    parts = _LITERAL.split(text)
    parts[::2] = [part.replace("|", r"\|").replace("*", r"\*").replace("`", "``") for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def _fill(app: Any, name: str, source: list[str]) -> None:
    source[0] = tables.fill(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Fill generated tables in before a page is parsed, and clean docstrings before napoleon reads them."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _plain_bars, priority=100)
    return {"parallel_read_safe": True}
