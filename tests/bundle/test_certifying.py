"""Noise in a bundle's own units as `monai-smia evaluate --certify` takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluators import BOUNDS, Task
from monai.transforms import NormalizeIntensityd, ScaleIntensityRanged

from monai_smia.bundle import evaluate_under_attack, read_intensity
from monai_smia.bundle.certifying import noise_of

CT = read_intensity(ScaleIntensityRanged("image", -1000, 400, 0, 1, clip=True), modality="CT")


@pytest.mark.parametrize(
    ("written", "sigma"), [("70HU", 0.05), ("0.25net", 0.25), ("64/256", 0.25), ({"sigma": "70hu"}, 0.05)]
)
def test_sigma_in_units(written: Any, sigma: float) -> None:
    options = noise_of(written, CT)
    assert options is not None
    assert options["sigma"] == pytest.approx(sigma)
    assert noise_of(None, CT) is None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("20", "certify: expected a unit .*give 20HU"),
        ("2grey", "certify: expected a unit that this preprocessing has"),
        ("2HU,3HU", "certify: expected one size of the noise; got '2HU,3HU'"),
        ({"samples": 100}, "certify: expected the noise under sigma; got samples"),
        ("much", "certify: expected a number and a unit"),
    ],
)
def test_what_is_no_noise_is_refused(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noise_of(written, CT)


def test_noise_that_differs_is_refused() -> None:
    colours = read_intensity(NormalizeIntensityd("image", [1, 2, 3], [1, 2, 4], channel_wise=True))
    with pytest.raises(ValueError, match="noise of one size for all channels; 1intensity is another in each"):
        noise_of("1intensity", colours)
    with pytest.raises(ValueError, match="noise of one size for all images; 1% is of each image's range"):
        noise_of("1%", CT.unknown())


def test_noise_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    evaluator, passes = Task(2).evaluator(), list[Any]()
    evaluator.network.register_forward_pre_hook(lambda module, inputs: passes.append(inputs))
    with pytest.raises(ValueError, match="certify: expected a unit that this preprocessing has"):
        evaluate_under_attack(
            evaluator, ["PGD"], "0.02net", certify="5HU", bounds=BOUNDS, out=tmp_path / "out", progress=False
        )
    assert passes == []
