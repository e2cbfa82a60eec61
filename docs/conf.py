# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation: `make docs`, or `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

project = "monai_smia"
author = "The monai_smia developers"
copyright = author
release = re.search(r'__version__ = "(.+)"', (HERE.parent / "monai_smia/__init__.py").read_text(encoding="utf-8"))[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "names_of_the_package",
    "outside_pages",
]
exclude_patterns = ["_build"]

# Markdown as GitHub reads it: formulas between dollars, headings linked by their names.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Where files that are no pages are shown, such as "https://host/owner/name/blob/main/"; without it they are copied.
repository_url = ""

# Docstrings: `name` is a link where it is a name of the package, and code otherwise.
default_role = "py:obj"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Returns"]  # words; the type is in the annotation

html_theme = "furo"
html_title = f"monai_smia {release}"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
