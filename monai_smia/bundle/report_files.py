# SPDX-License-Identifier: Apache-2.0
"""The files of an evaluation under attack: page, tables, model card, figures, what failed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai_smia.engines.batches import Failure
from monai_smia.reports import CaseView, Reading, RobustnessReport, report_markdown, write_page
from monai_smia.reports.files import write_whole
from monai_smia.reports.own_files import OwnFiles
from monai_smia.reports.schema import AboutFile, file_in, validated
from monai_smia.reports.view_files import load_view, save_view

FILES = ("report.html", "report.json", "report.md", "cases.csv", "about.json")


def write_report(
    folder: str | Path,
    report: RobustnessReport,
    *,
    views: Sequence[CaseView] = (),
    about: Mapping[str, str] | None = None,
    failures: Sequence[Failure] = (),
    findings: Sequence[str] | None = None,
    title: str = "Robustness to adversarial attacks",
    reading: Reading | None = None,
    overwrite: bool = False,
) -> Path:
    """Write everything that is known of an evaluation into a folder.

    ===================  ================================================================================
    ``report.html``      the page, for people, in one file
    ``report.md``        a section for a model card
    ``report.json``      the `RobustnessReport`; `RobustnessReport.load` reads it
    ``cases.csv``        a row for each run and case
    ``about.json``       how it was made, what checks found, what failed
    ``curve.png, .svg``  metric over eps, where matplotlib is there and a metric was attacked at several eps
    ``views/``           the cases to look at, from which `write_again` makes the page anew
    ===================  ================================================================================

    Returns:
        The page.

    Raises:
        FileExistsError: when one of them is there and `overwrite` is false; nothing is written then.
    """
    folder = Path(folder)
    for name in FILES:
        if (folder / name).exists() and not overwrite:
            raise FileExistsError(f"out: {folder / name} exists; expected a new folder, or overwrite=True")
    words = {**(about or {})}
    if failures:
        words["cases that failed"] = "; ".join(f"{f.case} ({f.stage}): {f.error}" for f in failures)
    report.to_json(folder / "report.json", overwrite=overwrite)
    report.to_csv(folder / "cases.csv", overwrite=overwrite)
    stored = {
        "version": AboutFile.VERSION,
        "title": title,
        "about": dict(about or {}),
        "findings": None if findings is None else list(findings),
        "failures": [asdict(failure) for failure in failures],
        "views": [f"{i}.npz" for i in range(len(views))],
        "names": dict(reading.names) if reading is not None else {},
    }
    for i, view in enumerate(views):
        save_view(view, folder / "views" / f"{i}.npz", overwrite=overwrite)
    write_whole(folder / "about.json", json.dumps(stored, indent=2) + "\n", overwrite)
    write_whole(folder / "report.md", report_markdown(report, words, reading=reading), overwrite)
    _write_curve(folder, report, overwrite)
    return write_page(
        report,
        folder / "report.html",
        views=views,
        about=words,
        title=title,
        findings=findings,
        reading=reading,
        overwrite=overwrite,
    )


def write_again(folder: str | Path) -> Path:
    """Make page, model card, table and figure anew from ``report.json``, ``about.json`` and ``views/``.

    Returns:
        The page.

    Raises:
        FileExistsError: when one of the files is not what this program wrote.
        FileNotFoundError: when the folder holds no report.
        ValueError: when a file in it is none of ours, or names a view outside of ``views/``.
    """
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"folder: expected the output of an evaluation, with report.json; got {folder}")
    stored = _about(folder / "about.json")
    arguments: dict[str, Any] = {
        "views": [load_view(file_in(folder / "views", name)) for name in stored.views],
        "about": stored.about,
        "failures": [Failure(failure.case, failure.stage, failure.error) for failure in stored.failures],
        "findings": stored.findings,
        "title": stored.title,
        "reading": Reading(names=stored.names),
    }
    report, own = RobustnessReport.load(folder / "report.json"), OwnFiles(folder)
    if not own.exists():  # the files alone, without the run
        return write_report(folder, report, overwrite=True, **arguments)
    with own.replacing() as made:
        write_report(made, report, **arguments)
    return folder / "report.html"


def _about(file: Path) -> AboutFile:
    if not file.is_file():
        return AboutFile()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding too
        raise ValueError(f"{file}: expected JSON; {error}") from error
    return validated(AboutFile, content, file)


def _write_curve(folder: Path, report: RobustnessReport, overwrite: bool) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return
    try:
        figure = report.figure("curve")
    except ValueError:  # no metric, or one budget only
        return
    for ending in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=150)
        write_whole(folder / f"curve.{ending}", buffer.getvalue(), overwrite)
