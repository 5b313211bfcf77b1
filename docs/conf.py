"""Sphinx: the Markdown pages and the API reference. `make docs` builds them into build/docs.

Sphinx and not MkDocs: the docstrings are reStructuredText, with roles and math, and Sphinx checks both.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

from ifdd_kernels import __version__

ROOT = Path(__file__).parents[1]

project = "ifdd-kernels"
author = copyright = "ifdd-kernels contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["figures"]
root_doc = "index"
default_role = "code"
nitpicky = False

highlight_language = "none"  # blocks without a language are commands and lists, not Python

html_theme = "furo"
html_title = f"ifdd-kernels {release}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3
myst_enable_extensions = ["html_image"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
napoleon_use_ivar = True


def _links_out(app: Any, page: str, source: list[str]) -> None:
    """Files outside of docs/ are not part of the site: instead of a link it shows their path."""
    folder = (ROOT / "docs" / page).parent

    def path(match: re.Match[str]) -> str:
        target = (folder / match[2].partition("#")[0]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        return f"{match[1]} (`{target.relative_to(ROOT)}`)"

    source[0] = re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)", path, source[0])


def _copy_pictures(app: Any, error: Exception | None) -> None:
    """Pictures with a light and a dark form are HTML in the pages, whose files Sphinx does not look for."""
    if error is None:
        for picture in (ROOT / "docs" / "figures").glob("*.svg"):
            (Path(app.outdir) / "figures").mkdir(exist_ok=True)
            shutil.copy(picture, Path(app.outdir) / "figures" / picture.name)


def _math(self: Any, node: nodes.Element) -> None:
    """MathML, which browsers draw by themselves: no script, and no request to another host."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def _no_text_of_types(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """A constant without a text of its own shows its value, not the docstring of `dict` or `str`."""
    if what == "data" and " ".join(lines).split() == (type(value).__doc__ or "").split():
        lines.clear()


def setup(app: Any) -> None:
    """Registers all of them."""
    app.connect("source-read", _links_out)
    app.connect("autodoc-process-docstring", _no_text_of_types)
    app.connect("build-finished", _copy_pictures)
    app.add_html_math_renderer("mathml", inline_renderers=(_math, None), block_renderers=(_math, None))
