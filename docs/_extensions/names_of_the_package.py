# SPDX-License-Identifier: Apache-2.0
"""`Name` in a docstring links to that public name, whichever module of the package documents it."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def elsewhere(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """The one object of that last name, where Sphinx found none in the docstring's own module."""
    if node.get("refdomain") != "py" or "." in node["reftarget"]:
        return None
    ends = f".{node['reftarget']}"
    found = [
        (name, entry)
        for name, entry in env.get_domain("py").objects.items()
        if name.endswith(ends) and name.count(".") == 2 and not entry.aliased
    ]
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("missing-reference", elsewhere)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
