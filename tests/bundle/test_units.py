"""`read_intensity` against what MONAI's transforms do to numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.apps.nuclick.transforms import AddLabelAsGuidanced
from monai.data import MetaTensor
from monai.transforms import (
    CastToTyped,
    Compose,
    ConcatItemsd,
    CopyItemsd,
    CropForegroundd,
    EnsureTyped,
    Flipd,
    GaussianSmoothd,
    HistogramNormalized,
    Lambdad,
    LoadImaged,
    NormalizeIntensity,
    NormalizeIntensityd,
    OneOf,
    RandFlipd,
    RandGaussianNoised,
    RandRotated,
    Resized,
    ScaleIntensity,
    ScaleIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    ShiftIntensity,
    ShiftIntensityd,
    Spacingd,
    ThresholdIntensityd,
)

from monai_smia.bundle.units import IntensityReading, read_intensity
from monai_smia.intensity import IntensityScale

F64 = np.float64
WINDOW = ScaleIntensityRange(-1000, 400, 0.0, 1.0, clip=True, dtype=F64)
GREY = ScaleIntensityRange(0, 255, 0.0, 1.0, dtype=F64)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pushed(transform: Any, *values: float, channels: int = 3) -> torch.Tensor:
    """Stored values through the real transform: ``(channels, len(values))``."""
    stored = torch.tensor(values, dtype=torch.float64).expand(channels, 1, -1).clone()
    return Compose(transform)(stored).as_tensor()[:, 0].double()


AFFINE: dict[str, tuple[Any, tuple[float, float]]] = {
    "window": (WINDOW, (-990.0, 390.0)),
    "symmetric": (ScaleIntensityRange(-57, 164, -1, 1, dtype=F64), (-50.0, 150.0)),
    "no target": (ScaleIntensityRange(-57, 164, dtype=F64), (-50.0, 150.0)),
    "half a target": (ScaleIntensityRange(-57, 164, b_max=0.9, clip=True, dtype=F64), (-50.0, 100.0)),
    "equal ends": (ScaleIntensityRange(7, 7, 2, 3, dtype=F64), (1.0, 9.0)),
    "fixed mean": (NormalizeIntensity(120.5, 40.25, dtype=F64), (3.0, 200.0)),
    "fixed mean, not of zeros": (NormalizeIntensity(120.5, 40.25, nonzero=True, dtype=F64), (3.0, 200.0)),
    "only a divisor of 0": (NormalizeIntensity(3.0, 0.0, dtype=F64), (3.0, 200.0)),
    "factor": (ScaleIntensity(None, None, factor=0.5, dtype=F64), (-3.0, 8.0)),
    "neither": (ScaleIntensity(None, None, dtype=F64), (-3.0, 8.0)),
    "shift": (ShiftIntensity(-1024), (24.0, 2000.0)),
    "shift, then window": ([ShiftIntensity(-1024), WINDOW], (40.0, 1400.0)),
    "two windows": ([WINDOW, ScaleIntensityRange(0, 1, -1, 3, clip=True, dtype=F64)], (-990.0, 390.0)),
    "narrower, then wider": ([WINDOW, ScaleIntensityRange(-2, 3, 0, 1, clip=True, dtype=F64)], (-990.0, 390.0)),
    "wider, then narrower": ([WINDOW, ScaleIntensityRange(0.25, 0.75, 0, 1, clip=True, dtype=F64)], (-640.0, 40.0)),
    "colours": ([GREY, NormalizeIntensity(MEAN, STD, channel_wise=True, dtype=F64)], (3.0, 200.0)),
    "colours alike": ([GREY, NormalizeIntensity([0.5] * 3, [0.5] * 3, channel_wise=True, dtype=F64)], (3.0, 200.0)),
    "colours, clipped": (
        [ScaleIntensityRange(0, 255, 0, 1, clip=True), NormalizeIntensity(MEAN, STD, channel_wise=True)],
        (3.0, 200.0),
    ),
    "arrays": (NormalizeIntensity(np.reshape(MEAN, (3, 1, 1)), np.reshape(STD, (3, 1, 1))), (0.1, 0.9)),
    "everything": (
        [ShiftIntensity(5.0), ScaleIntensity(None, None, factor=-0.75), WINDOW, NormalizeIntensity(0.25, 2.0)],
        (-900.0, 1500.0),
    ),
}


@pytest.mark.parametrize("case", AFFINE)
def test_scale_is_what_the_transforms_do(case: str) -> None:
    transform, (low, high) = AFFINE[case]
    reading = read_intensity(transform)
    after = pushed(transform, low, high).numpy()
    scales = reading.channels or (reading.scale,) * 3
    assert reading.missing is None
    assert all(scale is not None and scale.unit == reading.default_unit for scale in scales)
    for scale, (network_low, network_high) in zip(scales, after, strict=True):
        assert scale.value_to_network(low) == pytest.approx(network_low, abs=2e-6)
        assert scale.value_to_network(high) == pytest.approx(network_high, abs=2e-6)
        assert scale.to_network(high - low) == pytest.approx(network_high - network_low, abs=4e-6)
        assert scale.to_physical(network_high - network_low) == pytest.approx(high - low, rel=1e-5)


@pytest.mark.parametrize("case", AFFINE)
def test_bounds_are_where_the_transforms_end(case: str) -> None:
    transform, _ = AFFINE[case]
    reading = read_intensity(transform)
    far = pushed(transform, -1e7, 1e7)
    if reading.default_unit == "grey":
        far = pushed(transform, 0, 255)  # where 8-bit grey levels end
    ends = far.abs() < 1e4
    if not bool(ends.all()):
        assert reading.bounds is None
        return
    assert reading.bounds is not None
    for found, expected in zip(reading.bounds, far.T, strict=True):
        assert np.broadcast_to(found, 3) == pytest.approx(expected.numpy(), abs=1e-6)
    assert reading.scale is None or reading.scale.bounds in (reading.bounds, None)


def test_zeros_that_are_left_alone_belong_to_the_bounds() -> None:
    transform = [ScaleIntensityRange(0, 100, 2, 3, clip=True), NormalizeIntensity(-1, 1, nonzero=True)]
    reading = read_intensity(transform)
    assert reading.bounds == (0.0, 4.0)
    assert "zeros left alone" in reading.said


def test_exactly_the_numbers_of_the_transform() -> None:
    for arguments in ((-57, 164, 0.0, 1.0), (-963.8247715525971, 1053.678477684517, 0.0, 1.0), (-175, 250, -1.0, 1.0)):
        reading = read_intensity(ScaleIntensityRanged(["image"], *arguments, clip=True), modality="CT")
        assert reading.scale == IntensityScale(*arguments, clip=True, unit="HU")
        assert reading.scale == IntensityScale.from_transforms(ScaleIntensityRanged("image", *arguments, clip=True))


PIPELINE = [
    LoadImaged(["image", "label"]),
    CastToTyped("image", np.float32),
    ScaleIntensityRanged("image", -57, 164, 0.0, 1.0, clip=True),
    [CropForegroundd(["image", "label"], source_key="image"), Compose([Spacingd("image", (1, 1, 1))])],
    OneOf([RandFlipd("image"), RandRotated("image")]),
    CopyItemsd("image", names="raw"),
    ConcatItemsd(["image", "raw"], name="both"),
    Lambdad(["label", "raw"], lambda x: x > 0),
    Lambdad("image", lambda x: x > 0, overwrite="body"),
    NormalizeIntensityd("other"),
    EnsureTyped(["image", "label"]),
]


def test_what_changes_no_intensity_of_the_image_is_passed_over() -> None:
    expected = read_intensity(ScaleIntensityRanged("image", -57, 164, 0.0, 1.0, clip=True))
    assert expected.units == ("HU", "net")
    assert read_intensity(Compose(PIPELINE)) == expected
    assert read_intensity(PIPELINE) == expected
    assert read_intensity(Compose(PIPELINE), "other").default_unit == "SD"


def dictionary(*transforms: Any) -> Any:
    return Compose(list(transforms))


def test_dictionary_versions_are_the_array_versions() -> None:
    shifted = dictionary(
        ShiftIntensityd("image", -1024), ScaleIntensityd("image", None, None, factor=1.0), WINDOW_D, MEAN_D
    )
    reading = read_intensity(shifted)
    stored = torch.tensor([[[624.0, 1100.0]]])
    low, high = shifted({"image": stored})["image"].flatten().tolist()
    assert reading.scale is not None
    assert [reading.scale.value_to_network(value) for value in (624.0, 1100.0)] == pytest.approx([low, high], abs=1e-6)


WINDOW_D = ScaleIntensityRanged("image", -1000, 400, 0.0, 1.0, clip=True)
MEAN_D = NormalizeIntensityd("image", 0.5, 0.25)

OWN: dict[str, tuple[Any, tuple[float, float] | None]] = {
    "range": (ScaleIntensityd("image"), (0.0, 1.0)),
    "symmetric": (ScaleIntensityd("image", -1.0, 1.0), (-1.0, 1.0)),
    "half": (ScaleIntensityd("image", None, 3.0), (0.0, 1.0)),
    "factor that MONAI ignores": (ScaleIntensityd("image", factor=4.0), (0.0, 1.0)),
    "after a z-score": (dictionary(NormalizeIntensityd("image"), ScaleIntensityd("image", -1, 1)), (-1.0, 1.0)),
    "after a lambda": (dictionary(Lambdad("image", lambda x: x**3), ScaleIntensityd("image")), (0.0, 1.0)),
    "then fixed": (dictionary(ScaleIntensityd("image"), MEAN_D), (-2.0, 2.0)),
    "all percentiles": (ScaleIntensityRangePercentilesd("image", 0, 100, 0, 2), (0.0, 2.0)),
    "percentiles": (ScaleIntensityRangePercentilesd("image", 10, 90, 0, 2), None),
    "percentiles, clipped": (ScaleIntensityRangePercentilesd("image", 10, 90, 0, 2, clip=True), (0.0, 2.0)),
    "relative": (ScaleIntensityRangePercentilesd("image", 10, 90, 0, 2, clip=True, relative=True), (0.2, 1.8)),
    "no target": (ScaleIntensityRangePercentilesd("image", 10, 90, None, None), None),
}


@pytest.mark.parametrize("case", OWN)
def test_percent_of_each_images_own_range(case: str) -> None:
    transform, bounds = OWN[case]
    reading = read_intensity(transform, value_range=[0, 1])
    image = torch.linspace(-37.0, 63.0, 101)[None, None]  # percentiles and minimum to maximum: 1 is 1 %
    if "lambda" in case:
        image = image.sign() * image.abs() ** (1 / 3)
    after = transform({"image": image})["image"].as_tensor().flatten()
    low, high = (10, 90) if case in ("percentiles", "percentiles, clipped", "relative", "no target") else (0, 100)
    assert reading.units == ("%", "net")
    assert reading.scale is not None
    assert reading.scale.unit == "%"
    assert reading.scale.to_network(100.0) == pytest.approx(float(after[high] - after[low]), abs=1e-5)
    assert reading.scale.value_to_network(0.0) == pytest.approx(float(after[low]), abs=1e-5)
    assert reading.bounds == pytest.approx(bounds)
    if bounds is not None:
        assert (float(after.min()), float(after.max())) == pytest.approx(bounds, abs=1e-6)
    assert ("is not used" in reading.said) == (bounds is None)


@pytest.mark.parametrize(
    "arguments", [{}, {"nonzero": True, "channel_wise": True}, {"subtrahend": 3.0}, {"channel_wise": True}]
)
def test_z_score(arguments: dict[str, Any]) -> None:
    transform = NormalizeIntensityd("image", **arguments)
    reading = read_intensity([ScaleIntensityd("image"), transform, EnsureTyped("image")], value_range=[0, 1])
    assert (reading.units, reading.default_unit, reading.bounds) == (("SD", "%", "net"), "SD", None)
    image = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(0)) * 17 + 5
    after = transform({"image": image.clone()})["image"]
    assert reading.scale is not None
    assert reading.scale.to_network(float(image[0, 3, 3] - image[0, 0, 0]) / float(image.std(correction=0))) == (
        pytest.approx(float(after[0, 3, 3] - after[0, 0, 0]), abs=1e-5)
    )
    assert ("each channel" in reading.said) == arguments.get("channel_wise", False)
    assert ("zeros left alone" in reading.said) == arguments.get("nonzero", False)
    assert "value_range 0..1 is not that of images scaled by themselves" in reading.said


def test_an_own_mean_with_a_fixed_divisor_keeps_the_unit_and_loses_the_bounds() -> None:
    transform = dictionary(WINDOW_D, NormalizeIntensityd("image", None, 0.25))
    reading = read_intensity(transform)
    after = transform({"image": torch.tensor([[[-300.0, 0.0, 77.0]]])})["image"].flatten()
    assert reading.units == ("HU", "net")
    assert reading.bounds is None
    assert reading.scale is not None
    assert reading.scale.to_network(77.0) == pytest.approx(float(after[2] - after[1]), abs=1e-6)
    assert "each image's own mean" in reading.said


UNREADABLE = {
    "Lambdad": Lambdad("image", lambda x: x**2),
    "HistogramNormalized": HistogramNormalized("image"),
    "ThresholdIntensityd": ThresholdIntensityd("image", 0.5),
    "GaussianSmoothd": GaussianSmoothd("image", 1.0),
    "function": lambda data: data,
    "OneOf": OneOf([RandFlipd("image"), RandGaussianNoised("image")]),
    "ConcatItemsd": ConcatItemsd(["a", "b"], name="image"),
    "CopyItemsd": CopyItemsd("a", names="image"),
    "ShiftIntensityd": ShiftIntensityd("image", 1.0, factor_key="max"),
    "ScaleIntensity": ScaleIntensity(None, None, factor=-1.0),
    "NormalizeIntensity": NormalizeIntensity(np.zeros((1, 4, 4)), np.ones((1, 4, 4))),
    "Mine": type("Mine", (Flipd,), {})("image"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_said(name: str) -> None:
    reading = read_intensity([WINDOW_D, UNREADABLE[name]], modality="CT")
    assert (reading.scale, reading.bounds, reading.units) == (None, None, ("net", "%"))
    assert f"{name} changes intensities in a way that cannot be read" in reading.said
    assert reading.missing is not None
    assert "--eps in network units" in reading.missing
    assert "--bounds LOW,HIGH" in reading.missing
    assert name in reading.missing
    declared = read_intensity([WINDOW_D, UNREADABLE[name]], value_range=(0, 1))
    assert declared.bounds == (0.0, 1.0)
    assert "metadata's value_range" in declared.said
    assert "--bounds" not in (declared.missing or "")


def test_bounds_after_something_unreadable_are_those_of_the_next_clip() -> None:
    reading = read_intensity([Lambdad("image", abs), ScaleIntensityRanged("image", 0, 1, -1, 2, clip=True)])
    assert (reading.scale, reading.bounds) == (None, (-1.0, 2.0))
    inverted = ScaleIntensityRanged("image", 0, 2, 1.0, 0.0)
    assert read_intensity(inverted).bounds is None
    reading = read_intensity([WINDOW_D, inverted])
    assert (reading.scale, reading.bounds) == (None, (0.5, 1.0))
    ends = Compose([WINDOW_D, inverted])({"image": torch.tensor([[[-1e5, 1e5]]])})["image"].flatten().tolist()
    assert sorted(ends) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("ends", "modality", "unit"),
    [
        ((-57, 164), "CT", "HU"),
        ((0, 80), "ct ", "HU"),
        ((0, 255), None, "grey"),
        ((0, 255), "CT", "grey"),
        ((0, 255), "regular", "grey"),
        ((-57, 164), None, "HU"),
        ((-1024, 3071), "none", "HU"),
        ((-57, 164), "MR", "intensity"),
        ((-1, 1), None, "intensity"),
        ((-5000, 5000), None, "intensity"),
        ((0, 4095), "", "intensity"),
    ],
)
def test_names_of_units(ends: tuple[float, float], modality: str | None, unit: str) -> None:
    reading = read_intensity(ScaleIntensityRanged("image", *ends, 0, 1), modality=modality)
    assert reading.default_unit == reading.units[0] == unit
    assert reading.units[-1] == "net"
    assert reading.scale is not None
    assert reading.scale.unit == unit


def test_nothing_that_scales() -> None:
    plain = Compose([LoadImaged("image"), Resized("image", (8, 8))])
    for modality, declared, unit, bounds in (
        (None, [], "intensity", None),
        ("CT", None, "HU", None),
        (None, [0, 255], "grey", (0.0, 255.0)),
        ("MR", (0, 1), "intensity", (0.0, 1.0)),
        (None, [1, 0], "intensity", None),
        (None, "01234", "intensity", None),
    ):
        reading = read_intensity(plain, modality=modality, value_range=declared)
        assert (reading.default_unit, reading.bounds) == (unit, bounds)
        assert reading.scale is not None
        assert (reading.scale.unit_size, reading.scale.value_to_network(7.0)) == (1.0, 7.0)
    assert read_intensity(None).scale == read_intensity(plain).scale


def test_metadata_is_the_last_resort() -> None:
    unclipped = ScaleIntensityRanged("image", -57, 164, -1, 1)
    assert read_intensity(WINDOW_D, value_range=[-9, 9]).bounds == (0.0, 1.0)
    assert "value_range" not in read_intensity(WINDOW_D, value_range=[-9, 9]).said
    covers = read_intensity(unclipped, value_range=[-1, 1])
    assert covers.bounds == (-1.0, 1.0)
    assert "as metadata's value_range says" in covers.said
    short = read_intensity(unclipped, value_range=[0, 1])
    assert short.bounds is None
    assert "leaves out a part of what the transforms name" in short.said


def test_guidance_channels_are_noted() -> None:
    reading = read_intensity([ScaleIntensityRanged("image", 0, 255, -1, 1), AddLabelAsGuidanced("image")])
    assert (reading.default_unit, reading.bounds) == ("grey", (-1.0, 1.0))
    assert "AddLabelAsGuidanced appends channels that are no image" in reading.said


def test_unknown_and_one_sentence() -> None:
    unknown = IntensityReading.unknown()
    assert (unknown.scale, unknown.bounds, unknown.default_unit, unknown.said) == (None, None, "net", "")
    readings = [read_intensity(transform) for transform, _ in (*AFFINE.values(), *OWN.values())]
    assert all(reading.said.endswith(".") and "\n" not in reading.said for reading in readings)


def test_metatensors_through_the_same_numbers() -> None:
    image = MetaTensor(torch.tensor([[[-300.0, 0.0]]]))
    low, high = WINDOW_D({"image": image})["image"].flatten().tolist()
    scale = read_intensity(WINDOW_D).scale
    assert scale is not None
    assert [scale.value_to_network(-300.0), scale.value_to_network(0.0)] == pytest.approx([low, high], abs=1e-7)
