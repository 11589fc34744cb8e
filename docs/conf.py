"""The documentation as a site: ``make docs`` builds it, ``make lint`` does so with warnings as errors.

The source folder is the repository's root, so that a page may link a module, a recipe or the README of a folder as it
does on any host of repositories; a link to nothing is an error. Navigation is read from the tables of ``index.md``.
"""

from __future__ import annotations

import re
from importlib.metadata import version as installed

project = "l2d"
author = "the authors of l2d"
version = release = installed("l2d")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "benchmarks/*.md",
    "findings/*.md",
    "data/**/*.md",
    "rejector/**/*.md",
    "tests/*.md",
]
exclude_patterns = [".*", "build", "shared", "l2d-demo*"]

myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # an ellipsis in an example is not an error
highlight_language = "text"

# The API page shows signatures as they are written, with defaults, and nothing that is inherited from a library.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "l2d"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False


def navigation(index: str) -> str:
    """Shelves of the index page and the pages in their tables, as hidden tables of contents."""
    found = []
    for shelf in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        pages = re.findall(r"^\| \[([^]]+)\]\(([^)]+)\.md\)", shelf, flags=re.MULTILINE)
        entries = [f"{title} <{page}>" for title, page in pages]
        caption = shelf.splitlines()[0]
        found.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""]))
    return "\n".join(found)


def add_navigation(app: object, name: str, source: list[str]) -> None:
    """Append the navigation to the index page when Sphinx reads it."""
    if name == root_doc:
        source[0] += "\n" + navigation(source[0])


def setup(app: object) -> None:
    """Register what this site adds to Sphinx."""
    app.connect("source-read", add_navigation)
