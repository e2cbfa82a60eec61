# SPDX-License-Identifier: Apache-2.0
"""`write_page`: one HTML file that shows an evaluation to people, without a network and without other files."""

from __future__ import annotations

import base64
import hashlib
import platform
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

from monai_smia.reports.figures import COLOURS
from monai_smia.reports.files import write_whole
from monai_smia.reports.page_cases import cases_data, cases_section
from monai_smia.reports.page_certified import certified_link, certified_section
from monai_smia.reports.page_html import as_json
from monai_smia.reports.page_made import findings_section, made_section, verdict_html
from monai_smia.reports.page_viewer import images_section, within
from monai_smia.reports.page_worst import worst_section
from monai_smia.reports.readout import Reading, read_report
from monai_smia.reports.report import RobustnessReport
from monai_smia.reports.summary_text import summary_sentences
from monai_smia.reports.view_encoding import Encoded, encode_views
from monai_smia.reports.views import CaseView

SECTIONS = {
    "summary": "Summary",
    "worst": "At worst",
    "cases": "Case by case",
    "images": "Images",
    "made": "How it was made",
    "findings": "Findings",
}
LIMIT = 15_000_000
_SPARE = 20_000  # per page and view: descriptions of the views
_SCRIPTS = ("page_cases.js", "page_slices.js", "page_viewer.js")
_PACKAGES = ("monai-smia", "monai", "torch", "numpy")


def write_page(
    report: RobustnessReport,
    file: str | Path,
    *,
    views: Sequence[CaseView] = (),
    about: Mapping[str, str] | None = None,
    title: str = "Robustness to adversarial attacks",
    findings: Sequence[str] | None = None,
    reading: Reading | None = None,
    limit: int = LIMIT,
    overwrite: bool = False,
) -> Path:
    """Write a report as one HTML file that a browser opens from disk.

    In this order: a summary in one or two sentences; every metric without an attack and at worst, with intervals and
    curves over the budget; a sortable table by case; a viewer for `views`; how it was made; findings; what is
    certified, where `report` has certificates. All of it comes from `report`; undefined values are shown as
    "undefined". The page asks no network for anything, and a policy in it forbids that. A viewer of volumes needs a
    browser of 2023 or newer.

    Args:
        report: what an evaluation gave.
        file: where to.
        views: cases to look at. Images are stored in 256 steps; where they do not fit into `limit` they are cropped and
            thinned out, and the page says so.
        about: further rows of "How it was made", such as seed, hardware, checksum of the data and command.
        title: heading.
        findings: what checks of the evaluation found (gradient masking, non-finite gradients); empty for nothing, and
            ``None`` takes those of `report`, which may be that none was run.
        reading: first metric, names of structures, patients; ``None`` for the defaults of `Reading`.
        limit: most bytes that the file may have.
        overwrite: whether an existing file may be replaced.

    Returns:
        The file.

    Raises:
        FileExistsError: when there is a file and `overwrite` is false.
        ValueError: when tables and views do not fit into `limit`, or from `read_report`.

    Example:
        .. code-block:: python

            view = CaseView("a.nii.gz", image, {"PGD_5HU": adversarial}, clean, {"PGD_5HU": attacked}, label=label)
            write_page(report, "robustness.html", views=[view], about={"seed": "0"})
    """
    path = Path(file)
    if path.exists() and not overwrite:
        raise FileExistsError(f"file: {path} exists; expected a new file, or overwrite=True")
    readout = read_report(report, reading)
    if findings is None and report.findings is not None:
        findings = [str(finding) for finding in report.findings]
    style = _asset("page.css")
    scripts = [_asset(name) for name in _SCRIPTS]
    parts = {
        "policy": _policy(style, scripts),
        "title": escape(title),
        "style": style,
        "links": "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in SECTIONS.items())
        + certified_link(report.certificates),
        "summary": escape(summary_sentences(readout)),
        "worst": worst_section(readout),
        "cases": cases_section(readout),
        "certified": certified_section(report.certificates),
        "made": made_section(readout, _versions(), about or {}),
        "findings": findings_section(findings),
        "verdict": verdict_html(report, findings),
        "scripts": "".join(f"<script>{script}</script>" for script in scripts),
    }
    cases = as_json(cases_data(readout))
    spare = _SPARE * (1 + len(views))
    room = limit - spare - len(cases) - sum(len(part.encode()) for part in parts.values())
    if room < 0:
        raise ValueError(f"limit: expected room for the tables, {limit - room} bytes; got {limit}")
    encoded = encode_views(within(views, readout, room), room, report.unit)
    parts["images"] = images_section(encoded.views, report.unit)
    parts["data"] = _data(cases, encoded, report.unit)
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))
    if len(page.encode()) > limit:
        raise ValueError(f"limit: expected room for {len(page.encode())} bytes; got {limit}. Give fewer views or boxes")
    write_whole(path, page, overwrite)
    return path


def _asset(name: str) -> str:
    return (files("monai_smia.reports") / "assets" / name).read_text(encoding="utf-8")


def _policy(style: str, scripts: Sequence[str]) -> str:
    """Nothing is loaded, and only these scripts and this style sheet count."""
    hashes = " ".join(_hash(script) for script in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed as a package"
    return versions


def _data(cases: str, encoded: Encoded, unit: str) -> str:
    views = as_json({"unit": unit, "colours": COLOURS, "views": encoded.views})
    payloads = "".join(
        f'<script type="text/plain" class="payload" id="payload-{i}">{text}</script>'
        for i, text in enumerate(encoded.payloads)
    )
    return (
        f'<script type="application/json" id="case-data">{cases}</script>'
        f'<script type="application/json" id="view-data">{views}</script>{payloads}'
    )
