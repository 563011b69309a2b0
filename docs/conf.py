"""What Sphinx is told: `make docs`.

The site is made of the files that the repository shows, from its root, so that a link between two
of them leads to the same place in both. What only the site has (the tree of pages, the reference,
the tables of defaults) is added while the pages are read: see ``generated.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import streamqueue  # noqa: E402
from docs import generated  # noqa: E402

project = "streamqueue"
author = "the streamqueue maintainers"
release = version = streamqueue.__version__
root_doc = "docs/README"

include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/*/*.md",
    "deploy/README.md",
    "deploy/*/README.md",
    "examples/README.md",
    "grafana/README.md",
]
exclude_patterns = ["docs/_build", "**/node_modules"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = f"streamqueue {release}"
html_show_copyright = False
html_copy_source = False


def _add(app: Any, name: str, source: list[str]) -> None:
    source[0] += generated.added_to(name)


COLON = "\ue000"
"""Stands for a colon while napoleon reads the docstring of a property: it would take what stands
before the first one for a type."""


def _hide_colon(
    app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]
) -> None:
    if what in {"property", "attribute"} and lines:
        lines[0] = lines[0].replace(": ", f"{COLON} ")


def _show_colon(
    app: Any, what: str, name: str, member: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]


def _lead_to_the_root(app: Any, error: Exception | None) -> None:
    """Let the address of the site itself lead to its first page."""
    if error is None and app.builder.format == "html":
        page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(page, "utf-8")


def setup(app: Any) -> None:
    """Connect what the site has beside the pages."""
    generated.check()
    app.connect("source-read", _add)
    app.connect("autodoc-process-docstring", _hide_colon, priority=400)
    app.connect("autodoc-process-docstring", _show_colon, priority=600)
    app.connect("build-finished", _lead_to_the_root)
