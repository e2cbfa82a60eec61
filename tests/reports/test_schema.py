# SPDX-License-Identifier: Apache-2.0
"""Saved files are checked when they are read: what is in them, and their version."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from page_samples import sample_report, volume_view

from monai_smia.bundle.report_files import write_again, write_report
from monai_smia.bundle.view_keeper import ViewKeeper
from monai_smia.engines.batches import Failure
from monai_smia.export.manifest import Manifest, read_manifest
from monai_smia.reports import RobustnessReport
from monai_smia.reports.schema import (
    AboutFile,
    CaseViewFile,
    ManifestFile,
    ReportFile,
    ViewIndexFile,
    file_in,
    inside,
    plain_name,
    validated,
)
from monai_smia.reports.view_files import load_view, save_view

REPORT: dict[str, Any] = {
    "version": 1,
    "metrics": {"clean": {"dice": 0.9, "by_class": [0.8, None]}, "PGD": {"dice": 0.1, "by_class": [0.1, 0.2]}},
    "attacks": {"PGD": "PGD()"},
    "unit": "HU",
    "cases": [
        {"attack": "clean", "case": "a", "dice": 0.9, "site": "A"},
        {"attack": "PGD", "case": "a", "dice": None, "site": "A", "loss": 0.5, "success": True},
    ],
}
MADE = {"source": "/data/a.nii.gz", "source_sha256": "0" * 64, "sha256": "f" * 64, "attack": "PGD()"}
MANIFEST: dict[str, Any] = {"version": 1, "adversarial": [{"image": "images/a.nii.gz", "label": 1, "made": MADE}]}
ABOUT: dict[str, Any] = {"version": 1, "title": "t", "views": ["0.npz"], "findings": None, "names": {"dice": "Dice"}}
INDEX: dict[str, Any] = {"version": 1, "cases": {"a.nii.gz": {"file": "0.npz", "score": 0.5}}}
KINDS = {
    "report": (ReportFile, REPORT),
    "manifest": (ManifestFile, MANIFEST),
    "about": (AboutFile, ABOUT),
    "index": (ViewIndexFile, INDEX),
}


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a place such as ``cases.0.dice``."""
    copy = json.loads(json.dumps(content))
    *way, last = place.split(".")
    inner = copy
    for key in way:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[int(last) if isinstance(inner, list) else last] = value
    return dict(copy)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_version(name: str) -> None:
    kind, content = KINDS[name]
    assert validated(kind, content, "f").version == 1
    older = {key: value for key, value in content.items() if key != "version"}
    assert validated(kind, older if name != "index" else INDEX["cases"], "f").version == 0
    with pytest.raises(ValueError, match=r"f: it has version 999, and this monai_smia reads versions up to 1"):
        validated(kind, {**content, "version": 999}, "f")
    for wrong in ([], "text", 1, None):
        with pytest.raises(ValueError, match="f: the file: expected an object of names and values"):
            validated(kind, wrong, "f")


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("report", "version", "1", "version: expected a valid integer; got '1'"),
        ("report", "version", -1, "version: expected greater than or equal to 0; got -1"),
        ("report", "metrics.PGD.dice", "abc", "metrics.PGD.dice: expected a number, or numbers in lists; got 'abc'"),
        ("report", "metrics.PGD.by_class.1", "0.2", "metrics.PGD.by_class: expected a number"),
        ("report", "metrics.PGD", 1, "metrics.PGD: expected an object"),
        ("report", "cases.1.dice", "0.5", "cases.1.dice: expected a number; got '0.5'"),
        ("report", "cases.1.loss", "abc", "cases.1.loss: expected a number; got 'abc'"),
        ("report", "cases.0.by_class_1", "abc", "cases.0.by_class_1: expected a number; got 'abc'"),
        ("report", "cases.1.site", 3, "cases.1.site: expected a text, as before; got 3"),
        ("report", "cases.0.case", 1, "cases.0.case: expected a text; got 1"),
        ("report", "attacks.PGD", None, "attacks.PGD: expected a text; got None"),
        ("report", "unit", 5, "unit: expected a text"),
        ("report", "findings", [{"check": "c"}], "findings.0.seen: expected it to be there"),
        ("report", "certificates", [{"radius": "1"}], "certificates.0.radius: expected a valid number; got '1'"),
        ("manifest", "adversarial.0.made", None, "adversarial.0.made: expected an object"),
        ("manifest", "adversarial.0.made.sha256", "x", "adversarial.0.made.sha256: expected a SHA-256"),
        ("about", "views.0", "../0.npz", "views.0: expected a path inside of its folder"),
        ("about", "views.0", "a/0.npz", "views.0: expected the name of a file"),
        ("about", "about", {"seed": 0}, "about.seed: expected a text; got 0"),
        ("index", "cases.a.nii.gz", 0, "expected"),
    ],
)
def test_what_does_not_fit_is_named(name: str, place: str, value: Any, words: str) -> None:
    """Finding C2: an edited report with the metric "abc" was accepted, and so was version 999."""
    kind, content = KINDS[name]
    content = {**content, "cases": {"a.nii.gz": value}} if name == "index" else changed(content, place, value)
    with pytest.raises(ValueError, match=f"^f: .*{re.escape(words)}"):
        validated(kind, content, "f")


def test_the_report_command_refuses_an_edited_report(tmp_path: Path) -> None:
    write_report(tmp_path, sample_report(), views=[volume_view()], failures=[Failure("b", "clean", "ValueError: no")])
    assert write_again(tmp_path) == tmp_path / "report.html"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["version"] == json.loads((tmp_path / "about.json").read_text())["version"] == 1
    for edited in (changed(report, "metrics.clean.dice", "abc"), {**report, "version": 999}):
        (tmp_path / "report.json").write_text(json.dumps(edited))
        with pytest.raises(ValueError, match=r"report\.json: "):
            write_again(tmp_path)
        with pytest.raises(ValueError, match=r"report\.json: "):
            RobustnessReport.load(tmp_path)


def test_reports_of_before_there_were_versions_are_read(tmp_path: Path) -> None:
    report = sample_report()
    content = json.loads(report.to_json())
    del content["version"], content["findings"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert RobustnessReport.load(tmp_path).to_json() == report.to_json()


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.npz", "a/../../b", "", ".", "C:\\a", "..\\a", "\\\\host\\a", "a\0b", "C:a"]
)
def test_names_that_leave_their_folder(name: str, tmp_path: Path) -> None:
    for check in (inside, plain_name):
        with pytest.raises(ValueError, match="expected"):
            check(name)
    with pytest.raises(ValueError, match="expected"):
        file_in(tmp_path, name)


def test_links_that_leave_their_folder(tmp_path: Path) -> None:
    (tmp_path / "views").mkdir()
    (tmp_path / "secret.npz").touch()
    (tmp_path / "views" / "out.npz").symlink_to(tmp_path / "secret.npz")
    (tmp_path / "views" / "own.npz").touch()
    (tmp_path / "views" / "in.npz").symlink_to("own.npz")
    assert file_in(tmp_path / "views", "in.npz") == tmp_path / "views" / "in.npz"
    with pytest.raises(ValueError, match=r"out.npz.*expected a file in .*; a link leads to"):
        file_in(tmp_path / "views", "out.npz")


def test_views_elsewhere_are_not_read(tmp_path: Path) -> None:
    """Finding C2: names in `about.json` and `index.json` that leave the folder."""
    folder = tmp_path / "report"
    write_report(folder, sample_report(), views=[volume_view()])
    save_view(volume_view(), tmp_path / "elsewhere.npz")
    about = json.loads((folder / "about.json").read_text())
    for name in ("../../elsewhere.npz", str(tmp_path / "elsewhere.npz")):
        (folder / "about.json").write_text(json.dumps({**about, "views": [name]}))
        with pytest.raises(ValueError, match=r"about\.json: views\.0: expected a path inside"):
            write_again(folder)
        (tmp_path / "kept").mkdir(exist_ok=True)
        kept = {"case.nii": {"file": name, "score": 1.0}}
        for index in (kept, {"version": 1, "cases": kept}):
            (tmp_path / "kept" / "index.json").write_text(json.dumps(index))
            with pytest.raises(ValueError, match=r"index\.json: .*expected a path inside"):
                ViewKeeper(tmp_path / "kept")
            with pytest.raises(ValueError, match=r"index\.json: .*expected a path inside"):
                ViewKeeper(tmp_path / "other").views({"case.nii": "case"}, others=[tmp_path / "kept"])


def test_a_view_of_another_kind_is_refused(tmp_path: Path) -> None:
    import numpy as np

    file = save_view(volume_view(), tmp_path / "a.npz")
    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files}
    about = json.loads(str(arrays["about"]))
    assert validated(CaseViewFile, about, "f").case == volume_view().case
    for edited in ({**about, "version": 2}, {**about, "format": "other"}, {**about, "runs": "PGD"}):
        np.savez_compressed(tmp_path / "b.npz", **{**arrays, "about": np.array(json.dumps(edited))})
        with pytest.raises(ValueError, match="expected a case that save_view wrote"):
            load_view(tmp_path / "b.npz")
    del about["version"]
    np.savez_compressed(tmp_path / "b.npz", **{**arrays, "about": np.array(json.dumps(about))})
    assert load_view(tmp_path / "b.npz").case == volume_view().case


@pytest.mark.parametrize("name", ["../precious", "/precious", "images/../../precious", 5])
def test_a_manifest_with_images_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    """Findings A1 and C2: whoever reads a manifest gets paths below its folder, or none."""
    (tmp_path / "manifest.json").write_text(json.dumps(changed(MANIFEST, "adversarial.0.image", name)))
    with pytest.raises(ValueError, match=r"manifest\.json: .*adversarial\.0\.image: expected a path inside"):
        read_manifest(tmp_path / "manifest.json", "image")
    with pytest.raises(ValueError, match="not a manifest that this program wrote"):
        Manifest(tmp_path / "manifest.json", "image").read()
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    assert read_manifest(tmp_path / "manifest.json", "image") == MANIFEST["adversarial"]
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a manifest that monai-smia export wrote"):
        read_manifest(tmp_path / "manifest.json")
