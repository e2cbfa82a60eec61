"""What is certified stands in every form of the report, and comes back from its file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from page_samples import sample_report

from monai_smia.certificates import Certificate, certificate_findings, certificate_markdown, certificate_table
from monai_smia.intensity import IntensityScale
from monai_smia.reports import RobustnessReport, report_markdown, write_page


def certificate(voxels: bool) -> Certificate:
    """Four voxels of two images, or four images, by hand."""
    prediction = torch.tensor([[[1, -1], [0, 0]]] * 2 if voxels else [1, -1, 0, 0], dtype=torch.int32)
    radius = torch.full((2,), 0.34) if voxels else torch.tensor([0.6, 0.0, 0.3, 0.9])
    return Certificate(
        prediction,
        prediction.clamp_min(0),
        torch.full_like(prediction, 90),
        radius.double(),
        None if voxels else torch.full((4,), 0.9).double(),
        classes=2,
        size=16,
        sigma=0.5,
        samples=100,
        first_samples=10,
        alpha=0.001,
        tau=0.75 if voxels else None,
        intensity=IntensityScale(0, 255, unit="grey"),
    )


def certified(voxels: bool) -> RobustnessReport:
    label = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]]) if voxels else torch.tensor([1, 1, 0, 1])
    return replace(sample_report(), certificates=tuple(certificate(voxels).to_rows(label)))


@pytest.mark.parametrize("voxels", [True, False])
def test_it_comes_back_from_the_folder(voxels: bool, tmp_path: Path) -> None:
    report = certified(voxels)
    report.save(tmp_path)
    again = RobustnessReport.load(tmp_path)
    assert again.certificates == report.certificates
    assert again.to_markdown() == report.to_markdown()
    assert (tmp_path / "robustness.md").read_text() == report.to_markdown() + "\n"
    frame = pd.read_csv(tmp_path / "certificates.csv", dtype={"case": str})
    assert frame.case.tolist() == [row["case"] for row in report.certificates]
    assert frame.certified.tolist() == pytest.approx([row["certified"] for row in report.certificates])


@pytest.mark.parametrize("voxels", [True, False])
def test_markdown_and_model_card_hold_the_section(voxels: bool) -> None:
    report = certified(voxels)
    section = certificate_markdown(report.certificates)
    plain = sample_report()
    assert report.to_markdown() + "\n" == plain.to_markdown() + "\n\n" + section
    assert report_markdown(report).replace("\n\n" + section, "\n", 1) == report_markdown(plain)


@pytest.mark.parametrize("voxels", [True, False])
def test_the_page_shows_findings_radii_shares_and_abstentions(voxels: bool, tmp_path: Path) -> None:
    report = certified(voxels)
    page = write_page(report, tmp_path / "a.html").read_text()
    for sentence in certificate_findings(report.certificates):
        assert f"<li>{sentence}</li>" in page
    section = page[page.index('<section id="certified"') :]
    section = section[: section.index("</section>")]
    assert "L2 radius [grey]" in section
    table = certificate_table(report.certificates)
    assert section.count("<tr>") == 1 + len(table)
    for name in ("certified_accuracy", "abstain_rate"):
        for value in table[name]:
            assert f"<td>{value:.3f}</td>" in section
    assert '<a href="#certified">' in page


def test_without_certificates_nothing_is_said_of_them(tmp_path: Path) -> None:
    report = sample_report()
    assert report.certificates == ()
    assert "certified" not in write_page(report, tmp_path / "a.html").read_text()
    assert "certificates" not in json.loads(report.to_json())
    report.save(tmp_path / "report")
    assert not (tmp_path / "report" / "certificates.csv").exists()
    assert RobustnessReport.load(tmp_path / "report").certificates == ()


def test_a_file_with_something_else_there_is_refused(tmp_path: Path) -> None:
    content = json.loads(certified(True).to_json())
    for wrong in ({}, [1], [{"case": "a"}]):
        (tmp_path / "report.json").write_text(json.dumps(content | {"certificates": wrong}))
        with pytest.raises(ValueError, match="certificates.*: expected"):
            RobustnessReport.load(tmp_path)
