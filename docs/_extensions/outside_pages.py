# SPDX-License-Identifier: Apache-2.0
"""Links in Markdown pages, resolved from the file that they were written in.

The same files are read on GitHub, where a link is relative to its file. On the site some pages consist of a file from
elsewhere in the repository (nothing but an `include`). A link to such a file goes to its page, a link to any other file
outside of the documentation to the repository where `repository_url` is set and to a copy otherwise, and a link to a
folder is plain text without a repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

INCLUDE = re.compile(r"\A```\{include\} (\S+)\n```\s*\Z")


def included_files(folder: Path) -> dict[Path, str]:
    """Every file that a page of `folder` consists of, to that page's name."""
    pages = {}
    for page in sorted(folder.rglob("*.md")):
        found = INCLUDE.match(page.read_text(encoding="utf-8"))
        if found:
            pages[Path(os.path.normpath(page.parent / found[1]))] = page.relative_to(folder).with_suffix("").as_posix()
    return pages


class LinksFromTheirFile(SphinxTransform):
    """Each relative link leads where it leads on GitHub."""

    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        self.folder = Path(self.env.srcdir)
        self.page = Path(self.env.doc2path(self.env.docname))
        self.pages = included_files(self.folder)
        for node in list(self.document.findall(lambda node: isinstance(node, (pending_xref, download_reference)))):
            if node.get("reftype") == "myst":
                self.redirect(node)

    def redirect(self, node: nodes.Element) -> None:
        """Replace `node` by a link to what its target is beside the file that it stands in."""
        path, fragment = self.target(node)
        docname = self.pages.get(path) or self.env.path2doc(path)
        if docname in self.env.found_docs:
            link: nodes.Element = pending_xref(
                "", refdomain="doc", reftarget=docname, reftargetid=fragment, **self.common(node)
            )
        elif not path.exists():
            return  # myst_parser says which link it is
        elif self.config.repository_url:
            inside = path.relative_to(self.folder.parent).as_posix() + (f"#{fragment}" if fragment else "")
            link = nodes.reference("", refuri=self.config.repository_url + inside)
        elif path.is_file():
            copy = os.path.relpath(path, self.page.parent)
            link = download_reference("", refdomain=None, reftarget=copy, **self.common(node))
        else:
            link = nodes.inline()
        link.source, link.line = node.source, node.line
        link += node.children
        node.replace_self(link)

    def target(self, node: nodes.Element) -> tuple[Path, str | None]:
        """The path that a link means, and the heading in it."""
        written, fragment = node["reftarget"], node.get("reftargetid")
        if node.get("refdomain") == "doc":  # resolved from the page: back to what was written
            written = os.path.relpath(self.folder / f"{written}.md", self.page.parent)
        elif "#" in written:
            written, fragment = written.split("#", 1)
        return Path(os.path.normpath(Path(node.source or self.page).parent / written)), fragment

    def common(self, node: nodes.Element) -> dict[str, Any]:
        return {"refdoc": self.env.docname, "reftype": "myst", "refexplicit": node.get("refexplicit", True)}


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("repository_url", "", "env", str)
    app.add_transform(LinksFromTheirFile)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
