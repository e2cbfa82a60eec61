"""`PerturbationNorm` and `similarity_metrics` against numpy and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from evaluators import EPS, Task
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import PSNRMetric, SSIMMetric
from monai.transforms import Compose, CopyItemsd, Lambda

from monai_smia.engines import AttackEvaluator
from monai_smia.handlers import AttackHandler
from monai_smia.intensity import IntensityScale
from monai_smia.metrics import PerturbationNorm, compute_perturbation_norm, similarity_metrics

NORMS = ["inf", 2, 1, 0]
SCALE = IntensityScale(-1000, 400, clip=True)


def pair(rank: int, channels: int = 2, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(5)
    shape = (batch, channels, *(6, 5, 4)[:rank])
    clean = torch.rand(shape, generator=source)
    change = 0.1 * torch.randn(shape, generator=source) * (torch.rand(shape, generator=source) < 0.3)
    return clean, clean + change


def by_hand(clean: torch.Tensor, adversarial: torch.Tensor, norm: Any) -> list[float]:
    values = []
    for one, other in zip(clean.double().numpy(), adversarial.double().numpy(), strict=True):
        change = other - one
        values.append(
            {
                "inf": np.abs(change).max(),
                2: math.sqrt((change**2).sum()),
                1: np.abs(change).sum(),
                0: np.count_nonzero(np.abs(change).max(axis=0)),
            }[norm]
        )
    return values


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_those_of_numpy_sample_by_sample(rank: int, norm: Any) -> None:
    clean, adversarial = pair(rank)
    expected = by_hand(clean, adversarial, norm)
    assert compute_perturbation_norm(clean, adversarial, norm).tolist() == pytest.approx(expected, rel=1e-12)
    metric = PerturbationNorm(norm)
    metric(clean[:2], adversarial[:2])
    metric(list(clean[2:]), [MetaTensor(image) for image in adversarial[2:]])  # decollated
    assert metric.get_buffer()[:, 0].tolist() == pytest.approx(expected, rel=1e-12)
    assert metric.aggregate().item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert metric.aggregate("sum").item() == pytest.approx(np.sum(expected), rel=1e-6)
    metric.reset()
    metric(clean, clean)
    assert metric.aggregate().item() == 0


@pytest.mark.parametrize(("norm", "expected"), [("inf", 14.0), (2, 14.0 * 8), (1, 14.0 * 64), (0, 64.0)])
def test_a_constant_perturbation_in_hounsfield_units(norm: Any, expected: float) -> None:
    """0.01 of a range of 1400 HU, in all of 64 voxels; a count of voxels has no unit."""
    clean = torch.full((2, 1, 4, 4, 4), 0.25, dtype=torch.float64)
    sizes = compute_perturbation_norm(clean, clean + 0.01, norm, SCALE)
    assert sizes.tolist() == pytest.approx([expected] * 2)


def test_a_voxel_counts_once_however_many_channels_change() -> None:
    clean = torch.zeros(1, 3, 2, 2)
    adversarial = clean.clone()
    adversarial[0, :, 0, 0] = 1.0
    adversarial[0, 1, 1, 1] = -1.0
    assert compute_perturbation_norm(clean, adversarial, 0).tolist() == [2.0]


def test_sums_over_many_voxels_in_half_precision_do_not_overflow() -> None:
    clean = torch.zeros(1, 1, 400, 400, dtype=torch.float16)
    assert compute_perturbation_norm(clean, clean + 1, 1).tolist() == [160000.0]  # float16 ends at 65504


@pytest.mark.parametrize("norm", [3, "2", "l2", None, -1, math.nan, [2]])
def test_another_norm_is_refused(norm: Any) -> None:
    with pytest.raises(ValueError, match="norm: expected inf, 2, 1 or 0; got"):
        PerturbationNorm(norm)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adversarial: .* \(1, 1, 2, 2\); got \(1, 1, 2, 3\)"):
        compute_perturbation_norm(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3))
    with pytest.raises(ValueError, match="expected the adversarial image"):
        PerturbationNorm()(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="expected at least one sample before"):
        PerturbationNorm().aggregate()
    with pytest.raises(ValueError, match="Unsupported option 'average'"):
        PerturbationNorm(reduction="average")


def largest_change(intensity: IntensityScale | None = None) -> IgniteMetricHandler:
    return IgniteMetricHandler(PerturbationNorm("inf", intensity), output_transform=from_engine(["clean", "image"]))


def test_an_evaluator_under_an_attack_handler_logs_it() -> None:
    task = Task()
    attack = task.attacks()["bim"]
    evaluator = task.evaluator(
        val_handlers=[AttackHandler(attack)],
        postprocessing=Compose([CopyItemsd("image_clean", names="clean"), task.postprocessing()]),
        additional_metrics={"change": largest_change(SCALE)},
    )
    evaluator.run()
    adversarial = attack(task.network(), task.images(), task.labels()).adversarial
    expected = [1400 * value for value in by_hand(task.images(), adversarial, "inf")]
    assert max(expected) == pytest.approx(1400 * EPS, rel=1e-5)
    assert evaluator.state.metrics["change"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert evaluator.state.metric_details["change"][:, 0].tolist() == pytest.approx(expected, rel=1e-6)


def test_an_attack_evaluator_logs_it_for_every_attack() -> None:
    task = Task()
    keep_clean = Lambda(lambda data: {**data, "clean": data.get("image_clean", data["image"])})
    evaluator = task.evaluator(
        AttackEvaluator,
        attacks=task.attacks(),
        progress=False,
        postprocessing=Compose([keep_clean, task.postprocessing()]),
        additional_metrics={"change": largest_change()},
    )
    evaluator.run()
    assert evaluator.state.metrics["change"] == 0
    report = evaluator.report()
    for name in task.attacks():
        rows = [row for row in report.cases if row["attack"] == name]
        assert [row["change"] for row in rows] == pytest.approx([row["largest_change"] for row in rows])
        assert evaluator.state.metrics[f"{name}_change"] == pytest.approx(np.mean([row["change"] for row in rows]))


@pytest.mark.parametrize("arguments", [{"bounds": (-1.0, 3.0)}, {"intensity": IntensityScale(0, 255, -1, 3)}], ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_psnr_and_ssim_are_monais_with_the_range_of_the_input(rank: int, arguments: dict[str, Any]) -> None:
    source = torch.Generator().manual_seed(1)
    clean = 2 * torch.rand((2, 2, *(9, 8, 8)[:rank]), generator=source)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=source)
    metrics = similarity_metrics(rank, win_size=7, **arguments)
    error = ((clean - noisy).double() ** 2).flatten(1).mean(1).numpy()
    assert metrics["psnr"](clean, noisy)[:, 0].tolist() == pytest.approx(10 * np.log10(16 / error), rel=1e-5)
    expected = SSIMMetric(rank, data_range=4.0, win_size=7)(clean, noisy)
    assert torch.equal(metrics["ssim"](clean, noisy), expected)
    assert expected.shape == (2, 1)
    assert metrics["ssim"](clean, clean)[:, 0].tolist() == pytest.approx([1.0, 1.0])
    assert type(metrics["psnr"]) is PSNRMetric
    assert type(metrics["ssim"]) is SSIMMetric


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected exactly one"),
        ({"bounds": (0, 1), "intensity": SCALE}, "expected exactly one"),
        ({"bounds": ((0, 0), (1, 1))}, "expected two numbers"),
        ({"bounds": (1, 0)}, "expected low < high"),
        ({"bounds": (0, math.inf)}, "expected low < high"),
    ],
)
def test_similarity_refuses_what_is_no_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"bounds.*{message}"):
        similarity_metrics(2, **arguments)
