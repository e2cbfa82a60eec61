"""`IntensityScale` against what MONAI's transform does to numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import (
    Compose,
    EnsureTyped,
    HistogramNormalized,
    NormalizeIntensity,
    NormalizeIntensityd,
    RandFlipd,
    ScaleIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)

from monai_smia.intensity import IntensityScale

CASES = {
    "lung": {"a_min": -1000, "a_max": 400, "b_min": 0.0, "b_max": 1.0, "clip": True},
    "symmetric": {"a_min": -57, "a_max": 164, "b_min": -1.0, "b_max": 1.0, "clip": False},
    "grey": {"a_min": 0, "a_max": 255, "b_min": -1.0, "b_max": 3.0, "clip": False},
    "unscaled": {"a_min": -100, "a_max": 300, "b_min": None, "b_max": None, "clip": False},
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_is_what_the_transform_does(arguments: dict[str, Any]) -> None:
    transform = ScaleIntensityRanged("image", **arguments)
    scale = IntensityScale.from_transforms(transform)
    low, high = arguments["a_min"], arguments["a_max"]
    physical = torch.linspace(low + 20, high - 20, 7, dtype=torch.float64)[None]
    eps = 15.0

    def through(values: torch.Tensor) -> torch.Tensor:
        return ScaleIntensityRange(**arguments, dtype=torch.float64)(values).as_tensor()

    before, after = through(physical), through(physical + eps)
    torch.testing.assert_close(scale.value_to_network(physical), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(scale.value_to_physical(before), physical, rtol=0, atol=1e-9)
    assert (after - before).tolist()[0] == pytest.approx([scale.to_network(eps)] * 7, abs=1e-12)
    assert scale.to_physical(after - before).tolist()[0] == pytest.approx([eps] * 7, abs=1e-9)
    single = transform({"image": physical.float()})["image"]
    torch.testing.assert_close(single.as_tensor(), scale.value_to_network(physical).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_bounds_are_where_the_transform_clips(arguments: dict[str, Any]) -> None:
    scale = IntensityScale.from_transforms(ScaleIntensityRanged("image", **arguments))
    far = ScaleIntensityRange(**arguments)(torch.tensor([[-1e4, 1e4]])).as_tensor()[0]
    if arguments["clip"]:
        assert scale.bounds == tuple(far.tolist()) == (arguments["b_min"], arguments["b_max"])
    else:
        assert scale.bounds is None
        assert far[0] < scale.b_min
        assert far[1] > scale.b_max


def test_round_trips_and_unit_size() -> None:
    scale = IntensityScale(-1000, 400, b_min=-1, b_max=1)
    assert scale.unit_size == 700
    assert scale.to_network(7) == 0.01
    assert scale.to_physical(scale.to_network(3.7)) == pytest.approx(3.7)
    assert scale.value_to_physical(scale.value_to_network(123.0)) == pytest.approx(123.0)
    assert (scale.value_to_network(-1000), scale.value_to_network(400)) == (-1, 1)
    values = torch.tensor([[1.0, -2.0]])
    assert torch.equal(scale.to_physical(values), values * 700)


SCALER = ScaleIntensityRanged(["image"], -1000, 400, 0.0, 1.0, clip=True)
EXPECTED = IntensityScale(-1000, 400, 0.0, 1.0, True)


@pytest.mark.parametrize(
    "transforms",
    [
        SCALER,
        [EnsureTyped("image"), SCALER],
        Compose([EnsureTyped("image"), Compose([SCALER, RandFlipd("image")])]),
        Compose([NormalizeIntensityd("weight"), SCALER, ScaleIntensityRanged("weight", 0, 9, 0.0, 1.0)]),
        Compose([ScaleIntensityRange(-1000, 400, 0.0, 1.0, clip=True)]),
        ConfigParser(
            {
                "t": {
                    "_target_": "Compose",
                    "transforms": [
                        {
                            "_target_": "ScaleIntensityRanged",
                            "keys": "image",
                            "a_min": -1000,
                            "a_max": 400,
                            "b_min": 0,
                            "b_max": 1,
                            "clip": True,
                        }
                    ],
                }
            }
        ).get_parsed_content("t"),
    ],
    ids=["alone", "list", "nested", "other keys ignored", "array transform", "configuration"],
)
def test_is_found_in_the_preprocessing(transforms: Any) -> None:
    assert IntensityScale.from_transforms(transforms) == EXPECTED


def test_another_key_and_unit() -> None:
    both = [SCALER, ScaleIntensityRanged("pet", 0, 20, 0.0, 2.0)]
    assert IntensityScale.from_transforms(both, key="pet", unit="SUV") == IntensityScale(0, 20, 0.0, 2.0, False, "SUV")
    assert IntensityScale.from_transforms(both) == EXPECTED


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([], "expected one ScaleIntensityRanged for the key 'image', .*; got 0"),
        (None, "got 0"),
        ([EnsureTyped("image")], "got 0"),
        ([ScaleIntensityRanged("label", 0, 1, 0, 1)], "got 0"),
        ([SCALER, SCALER], "got 2"),
        ([SCALER, NormalizeIntensityd("image")], "NormalizeIntensityd scales every image by itself"),
        ([NormalizeIntensity(), SCALER], "NormalizeIntensity scales every image"),
        (Compose([SCALER, Compose([ScaleIntensityd("image")])]), "ScaleIntensityd scales every image"),
        ([ScaleIntensityRangePercentilesd("image", 1, 99, 0, 1)], "ScaleIntensityRangePercentilesd scales every"),
        ([SCALER, HistogramNormalized("image")], "HistogramNormalized scales every image"),
    ],
)
def test_without_a_fixed_unit_it_is_an_error(transforms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"transforms: .*{message}"):
        IntensityScale.from_transforms(transforms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a_min": 400, "a_max": -1000}, "a_min, a_max: expected a_min < a_max; got 400, -1000"),
        ({"a_min": 1, "a_max": 1}, "a_min, a_max"),
        ({"a_min": 0, "a_max": 1, "b_min": 1.0, "b_max": 0.0}, "b_min, b_max: expected b_min < b_max"),
    ],
)
def test_empty_and_reversed_ranges(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IntensityScale(**arguments)
