"""Rows and tables hold the means of the certificates' own numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from oracles import LinearMargin, VoxelMargin

from monai_smia.certificates import (
    ABSTAIN,
    Certificate,
    certificate_findings,
    certificate_markdown,
    certificate_table,
    certify,
)
from monai_smia.intensity import IntensityScale

SCALE = IntensityScale(-1000, 400)


def segmented(seed: int, **options: object) -> tuple[Certificate, torch.Tensor]:
    network = VoxelMargin(1, 2)
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    label = (network.margin(image) > 0.3).long()
    settings = {"sigma": 0.25, "samples": 200, "batch_size": 100, "intensity": SCALE, "progress": False, **options}
    return certify(network, image, **settings), label


def test_a_segmentation_in_rows_and_in_a_table() -> None:
    pairs = [segmented(seed) for seed in range(3)]
    rows = [row for i, (one, label) in enumerate(pairs) for row in one.to_rows(label, names=[f"case {i}"])]
    assert json.loads(json.dumps(rows)) == rows
    assert [row["case"] for row in rows] == ["case 0", "case 1", "case 2"]
    radius = float(pairs[0][0].radius)
    for row, (one, label) in zip(rows, pairs, strict=True):
        assert row["radius"] == radius
        assert row["physical_radius"] == pytest.approx(1400 * radius)
        assert row["per_voxel_radius"] == pytest.approx(1400 * radius / 8)
        assert (row["unit"], row["physical_sigma"], row["tau"]) == ("HU", 350.0, 0.75)
        assert row["certified_accuracy"] == float(one.certified_accuracy(label))
        assert row["certified_dice"] == row["certified_dice_1"] == float(one.certified_dice(label)[0, 1])
        assert row["certified"] == pytest.approx(1 - row["abstain_rate"])
        assert "certified_dice_0" not in row
        assert "p_lower" not in row
    table = certificate_table(rows)
    assert len(table) == 1
    assert table.cases[0] == 3
    for name in ("certified_accuracy", "certified_dice", "certified_iou", "abstain_rate"):
        assert table[name][0] == pytest.approx(sum(row[name] for row in rows) / 3)
    background = pairs[0][0].to_rows(pairs[0][1], include_background=True)[0]
    dice = pairs[0][0].certified_dice(pairs[0][1])[0]
    assert background["certified_dice"] == pytest.approx(float(dice.mean()))


def test_a_classifier_in_a_table() -> None:
    network = LinearMargin((1, 4, 4))
    weight = network.weight.detach() / network.weight.detach().norm()
    image = torch.stack([weight * distance for distance in (1.2, 0.3, -0.8, 0.0)])
    certificate = certify(network, image, sigma=0.5, samples=2000, batch_size=500, progress=False)
    label = torch.ones(4)
    table = certificate_table(certificate.to_rows(label))
    assert table.radius.tolist() == [0.0, 0.25, 0.5, 1.0]
    assert table.certified_accuracy.tolist() == [0.5, 0.5, 0.25, 0.0] or float(certificate.radius[0]) >= 1
    assert table.certified.tolist()[:3] == [0.75, 0.75, 0.5]
    assert table.largest_radius.tolist() == pytest.approx([float(certificate.radius.mean())] * 4)
    assert table.unit.unique().tolist() == ["network units"]
    rows = certificate.to_rows(radii=[0.1])
    assert [row["prediction"] for row in rows] == [1, 1, 0, ABSTAIN]
    assert [row["p_lower"] for row in rows] == certificate.p_lower.tolist()
    assert "certified_accuracy" not in rows[0]
    assert certificate_findings(rows)[0].endswith(
        "0.750 of the decisions are certified and the smoothed network abstains from 0.250 of them."
    )


def test_sentences_and_markdown_say_the_numbers() -> None:
    one, label = segmented(0)
    rows = one.to_rows(label)
    row = rows[0]
    (sentence,) = certificate_findings(rows)
    assert sentence == (
        "Smoothed with noise of standard deviation 350 HU, against every change of an L2 norm up to 236 HU over the "
        f"image (29.5 HU in each voxel at once): {row['certified_accuracy']:.3f} of the decisions are right and "
        f"certified, the smoothed network abstains from {row['abstain_rate']:.3f} of them and the mean Dice cannot "
        f"fall under {row['certified_dice']:.3f}."
    )
    lines = certificate_markdown(rows).splitlines()
    assert lines[0] == "### Certified by randomized smoothing"
    assert lines[2] == sentence
    assert lines[4] == (
        "| L2 radius [HU] | for each voxel at once [HU] | cases | certified | certified accuracy | certified Dice | "
        "certified IoU | abstentions |"
    )
    names = ("certified", "certified_accuracy", "certified_dice", "certified_iou", "abstain_rate")
    assert lines[6] == "| 236 | 29.5 | 1 | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |"
    assert lines[8].startswith("Randomized smoothing, sigma 0.25 in network units, 100 and 200 noisy copies of each")
    assert "alpha 0.001, tau 0.75, holm correction over an image." in lines[8]


def test_undefined_is_no_number() -> None:
    one, _ = segmented(0)
    rows = one.to_rows(torch.zeros(1, 8, 8))
    rows[0]["certified_dice"] = math.nan
    assert "Dice" not in certificate_findings(rows)[0]
    assert "certified Dice" not in certificate_markdown(rows)


def test_rows_that_do_not_belong_together_are_refused() -> None:
    one, other = segmented(0)[0].to_rows(), segmented(0, tau=0.8)[0].to_rows()
    with pytest.raises(ValueError, match="rows: expected certificates of one tau; got 0.75, 0.8"):
        certificate_table(one + other)
    with pytest.raises(ValueError, match="expected those of at least one certificate; got none"):
        certificate_table([])
    with pytest.raises(ValueError, match="names: expected one for each of the 1 images; got 2"):
        segmented(0)[0].to_rows(names=["a", "b"])
