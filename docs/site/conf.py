"""The site of the documentation: ``make docs`` builds it from the same pages that are read in the repository.

Sphinx walks the whole repository, because pages link to others outside of docs/, and those are pages of the site too.
"""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from posixpath import join, normpath

from sphinx.application import Sphinx

HOME = Path(__file__).parent
sys.path.insert(0, str(HOME))

project = "unskew"
version = release = version_of("unskew")
author = "the authors of unskew"
copyright = "The authors of unskew, Apache-2.0"  # noqa: A001 - Sphinx's name for it

extensions = ["myst_parser", "sphinx.ext.autodoc", "reference"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "examples/**.md", "benchmarks/**.md"]
exclude_patterns = [".*", "build", "dist", "demo-output", "src", "tests", "features", "offline", "pipelines", "sinks"]  # fmt: skip
# Pages link to headings as people see them in the repository.
myst_heading_anchors = 4
nitpicky = True

autodoc_typehints = "none"
autodoc_preserve_defaults = True
# Texts have the signs that were written.
smartquotes = False
# Messages and docstrings write commands between single backticks.
default_role = "literal"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"unskew {version}"
html_static_path = ["static"]
html_extra_path = ["top"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "sphinx"
pygments_dark_style = "monokai"


def navigation(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the navigation from the lists of links of the first page: a part for each of its headings.

    Single decisions are not in it, because the page that lists them is.
    """
    if re.match(r"docs/decisions/\d", docname):
        source[0] = f"---\norphan: true\n---\n{source[0]}"
    if docname != root_doc:
        return
    for part in source[0].split("\n## ")[1:]:
        caption, _, text = part.partition("\n")
        links = re.findall(r"^- \[([^]]+)\]\((\S+)\.md\)", text, re.MULTILINE)
        pages = [f"{named} </{normpath(join('docs', page))}>" for named, page in links]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def setup(app: Sphinx) -> None:
    app.connect("source-read", navigation)
