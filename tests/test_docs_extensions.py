"""What the documentation adds to Sphinx: links that leave its folder, and names of the package in docstrings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXTENSIONS = Path(__file__).parents[1] / "docs" / "_extensions"
CONF = f"""
import sys
sys.path[:0] = [{str(EXTENSIONS)!r}]
extensions = ["myst_parser", "names_of_the_package", "outside_pages"]
myst_heading_anchors = 3
default_role = "py:obj"
html_theme = "basic"
"""
FILES = {
    "docs/index.md": "# T\n```{toctree}\npage\nbundle\nnames\n```\n",
    "docs/page.md": "# P\n[a](../bundle/README.md#head) [b](../bundle/data.txt) [c](../bundle) [d](bundle.md)\n",
    "docs/bundle.md": "```{include} ../bundle/README.md\n```\n",
    "docs/names.rst": (
        "Names\n=====\n\n.. py:class:: pack.one.Thing\n\n.. py:function:: pack.two.twice\n\n"
        ".. py:function:: pack.one.twice\n\n.. py:module:: pack.three\n\n`Thing` `twice` `eps`\n"
    ),
    "bundle/README.md": "# B\n## Head\n[e](../docs/page.md) [f](data.txt) [g](#head)\n",
    "bundle/data.txt": "x",
}


def built(folder: Path, *options: str) -> dict[str, list[str]]:
    """Links of the built pages' text, in their order."""
    for module in ("sphinx", "myst_parser"):
        pytest.importorskip(module)
    for name, text in {**FILES, "docs/conf.py": CONF}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-q", *options, "docs", "out"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {name: (folder / "out" / f"{name}.html").read_text() for name in ("page", "bundle", "names")}
    bodies = {name: text.split('role="main"')[1].split("sphinxsidebar")[0] for name, text in pages.items()}
    return {name: re.findall(r'<a class="reference[^"]*"[^>]*?href="([^"]*)"', body) for name, body in bodies.items()}


def test_links_lead_to_pages_and_copies_without_a_repository(tmp_path: Path) -> None:
    links = built(tmp_path)
    copy = links["page"][1]
    assert re.fullmatch(r"_downloads/\w+/data\.txt", copy)
    assert links["page"] == ["bundle.html#head", copy, "bundle.html"]  # a folder is no link
    assert links["bundle"] == ["page.html", copy, "#head"]
    assert links["names"] == ["#pack.one.Thing"]  # `twice` could be either, `eps` is none


def test_links_lead_to_the_repository_where_there_is_one(tmp_path: Path) -> None:
    host = "https://host.org/blob/main/"
    links = built(tmp_path, "-D", f"repository_url={host}")
    assert links["page"] == ["bundle.html#head", f"{host}bundle/data.txt", f"{host}bundle", "bundle.html"]
    assert links["bundle"] == ["page.html", f"{host}bundle/data.txt", "#head"]
