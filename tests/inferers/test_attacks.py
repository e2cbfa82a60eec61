"""Attacks through windows: the same as through MONAI's inferer, by conversion, handler and evaluators."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from evaluators import EPS, Task, handled, images_of, seen
from ignite.engine import Events
from monai.inferers import (
    SimpleInferer,
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
    sliding_window_inference,
)
from monai.losses import DiceCELoss
from torch import nn
from windows import WINDOW, make, picture

from monai_smia.attacks import BIM, DIFGSM, NIFGSM, PGD, SMIA, TIFGSM, VMIFGSM, Attack, CosPGD, SegPGD
from monai_smia.engines import AttackEvaluator, evaluate_robustness
from monai_smia.inferers import GradientSliceInferer, GradientSlidingWindowInferer, gradient_inferer

LOSS = DiceCELoss(to_onehot_y=True, softmax=True)
BUDGET: dict[str, Any] = {"eps": 0.1, "bounds": (0.0, 1.0), "norm": 2}  # no sign to turn a rounding into a step
ATTACKS = {
    "BIM": BIM(LOSS, steps=3, **BUDGET),
    "PGD-best": PGD(LOSS, steps=3, restarts=2, keep="best", **BUDGET),
    "NIFGSM": NIFGSM(LOSS, steps=3, **BUDGET),
    "VMIFGSM": VMIFGSM(LOSS, steps=2, neighbours=2, **BUDGET),
    "DIFGSM": DIFGSM(LOSS, steps=3, diversity_probability=1.0, **BUDGET),
    "TIFGSM": TIFGSM(LOSS, steps=3, kernel_size=3, sigma=1.0, **BUDGET),
    "SMIA": SMIA(LOSS, steps=3, stabilization_weight=5.0, **BUDGET),
    "SMIA-gradient": SMIA(LOSS, steps=3, combine="gradient", **BUDGET),
    "SMIA-hard-image": SMIA(LOSS, steps=3, divergence="hard", smooth="image", **BUDGET),
    "SegPGD": SegPGD(LOSS, steps=3, **BUDGET),
    "CosPGD": CosPGD(LOSS, steps=3, **BUDGET),
}
SETTINGS: dict[str, Any] = {"sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}


def labels(rank: int) -> torch.Tensor:
    return (picture(rank).detach() > 0.6).long()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_the_one_through_monais_inferer(name: str, rank: int, masked: bool) -> None:
    network, image, target = make("unet", rank), picture(rank).detach(), labels(rank)
    mask = None
    if masked:
        mask = torch.zeros_like(image, dtype=torch.bool)
        mask[:, :, :5, 2:9] = True
    plain = SlidingWindowInferer(WINDOW[rank], **SETTINGS)
    expected = ATTACKS[name](network, image, target, inferer=plain, mask=mask)
    found = ATTACKS[name](network, image, target, inferer=gradient_inferer(plain), mask=mask)
    assert bool((expected.adversarial != image).flatten(1).any(1).all())
    torch.testing.assert_close(found.adversarial, expected.adversarial, rtol=0, atol=1e-8)
    for part in ("clean_loss", "loss"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-7, atol=1e-9)
    for part in ("success", "forward_passes", "backward_passes", "nonfinite_gradients"):
        assert torch.equal(getattr(found, part), getattr(expected, part))


def test_smia_predicts_twin_and_iterate_in_one_pass() -> None:
    batches = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make("unet", 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            batches.append((torch.is_grad_enabled(), len(image)))
            return self.network(image)

    inferer = GradientSlidingWindowInferer(WINDOW[3], overlap=0.25)
    result = ATTACKS["SMIA"](Watched(), picture(3, batch=1).detach(), labels(3)[:1], inferer=inferer)
    assert int(result.forward_passes[0]) == 3 + 2 + 1
    windows = batches.count((True, 1)) // 3
    assert windows > 4
    assert batches.count((False, 2)) == 2 * windows  # of steps two and three
    assert batches.count((False, 1)) == 2 * windows  # of the first step and of the verdict
    assert len(batches) == 7 * windows


def test_masked_smia_visits_only_windows_of_the_mask() -> None:
    visits = []

    def network(image: torch.Tensor) -> torch.Tensor:
        visits.extend([torch.is_grad_enabled()] * len(image))
        return body(image)

    body, image = make("unet", 3), picture(3, batch=1).detach()
    mask = torch.zeros_like(image)
    mask[..., :3, :3, :3] = 1
    inferer = GradientSlidingWindowInferer(WINDOW[3], overlap=0)
    result = BIM(LOSS, steps=2, **BUDGET)(network, image, labels(3)[:1], inferer=inferer, mask=mask)
    assert bool((result.adversarial != image).any())
    assert visits.count(True) == 2  # one window, two steps
    assert visits.count(False) == 3 * (3 * 2 * 2)  # two predictions and the verdict


def test_finished_voxels_of_segpgd_cost_no_backward_pass() -> None:
    """Where every voxel of a window is wrong already, SegPGD's first gradient is exactly zero."""
    body, image = make("unet", 2), picture(2, batch=1, size=(16, 16)).detach()
    visits = []

    def network(x: torch.Tensor) -> torch.Tensor:
        visits.extend([torch.is_grad_enabled()] * len(x))
        return body(x)

    inferer = GradientSlidingWindowInferer(WINDOW[2], overlap=0)
    decided = inferer(image, body).argmax(1, keepdim=True)
    target = 1 - decided
    target[:, :, :8, :8] = decided[:, :, :8, :8]
    SegPGD(LOSS, steps=1, random_start=False, eps=0.01)(network, image, target, inferer=inferer)
    assert visits.count(True) == 1
    assert visits.count(False) == 2 * 4


def test_conversion_keeps_every_setting() -> None:
    settings = {
        "roi_size": (8, -1, 6),
        "sw_batch_size": 3,
        "overlap": (0.5, 0.25, 0.0),
        "mode": "gaussian",
        "sigma_scale": 0.2,
        "padding_mode": "reflect",
        "cval": 0.0,
        "sw_device": "cpu",
        "device": "cpu",
        "progress": False,
        "cpu_thresh": 1000,
        "buffer_steps": 2,
        "buffer_dim": 1,
        "with_coord": True,
    }
    for kind in (SlidingWindowInferer, SlidingWindowInfererAdapt):
        plain = kind(**settings)
        found = gradient_inferer(plain)
        assert type(found) is GradientSlidingWindowInferer
        assert {name: getattr(found, name) for name in vars(plain)} == vars(plain)
    cached = SlidingWindowInferer((8, 8, 8), mode="gaussian", cache_roi_weight_map=True)
    assert gradient_inferer(cached).roi_weight_map is cached.roi_weight_map
    slices = SliceInferer(spatial_dim=1, roi_size=(8, 6), sw_batch_size=2)
    slices(picture(3), make("unet", 2))  # MONAI's changes its own roi_size at the first call
    found = gradient_inferer(slices, sw_batch_size=5, progress=True)
    assert type(found) is GradientSliceInferer
    assert (found.spatial_dim, found.roi_size, found.sw_batch_size, found.progress) == (1, (8, 6), 5, True)


def test_what_is_not_converted_is_returned_as_it_is() -> None:
    class Own(SlidingWindowInferer):
        def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(inputs * 2, network, *args, **kwargs)

    for inferer in (SimpleInferer(), Own((8, 8)), GradientSlidingWindowInferer((8, 8)), sliding_window_inference, None):
        assert gradient_inferer(inferer) is inferer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dim": 3, "roi_size": (8, 8)}, "spatial_dim: expected 0, 1 or 2; got 3"),
        ({"spatial_dim": 0, "roi_size": (8, 8, 8)}, "roi_size: expected two sizes"),
        ({"spatial_dim": 0, "roi_size": 8}, "roi_size: expected two sizes"),
        ({"spatial_dim": 0, "roi_size": (8, 8), "with_coord": True}, "with_coord"),
    ],
)
def test_wrong_arguments_of_a_slice_inferer(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientSliceInferer(**arguments)


def test_a_slice_inferer_wants_a_volume() -> None:
    with pytest.raises(ValueError, match="inputs: expected BCHWD"):
        GradientSliceInferer(0, (8, 8))(picture(2), make("unet", 2))


class TestEngines:
    """Handler and evaluators attack through the gradient inferer by themselves; the evaluation stays MONAI's."""

    task = Task(3)
    inferer = SlidingWindowInferer((4, 4, 4), sw_batch_size=2, overlap=0.5, mode="gaussian")

    def attack(self) -> Attack:
        return BIM(self.task.loss(), eps=EPS, norm=2, steps=2)

    def test_the_handler_keeps_no_window_in_memory(self) -> None:
        kinds: list[set[bool]] = []

        class Watched(nn.Module):
            def __init__(self, body: nn.Module) -> None:
                super().__init__()
                self.body = body

            def forward(self, image: torch.Tensor) -> torch.Tensor:
                kinds[-1].add(torch.is_grad_enabled())
                return self.body(image)

        def note(trial: Any, prediction: Any) -> None:
            kinds.append(set())

        network = Watched(self.task.network())
        engine = self.task.evaluator(network=network, inferer=self.inferer, **handled(self.attack(), callback=note))
        kinds.append(set())
        results = seen(engine, Events.ITERATION_STARTED, lambda e: e.state.attack_result)
        images = images_of(engine)
        engine.run()
        assert engine.inferer is self.inferer
        assert {False, True} in kinds  # predicted without a graph first, visited with one
        for batch, image, result in zip(self.task.batches(), images, results, strict=True):
            by_hand = self.attack()(network, batch["image"], batch["label"], inferer=self.inferer)
            torch.testing.assert_close(image, by_hand.adversarial, rtol=0, atol=1e-4)
            torch.testing.assert_close(result.loss, by_hand.loss, rtol=1e-4, atol=1e-5)

    def test_both_evaluations_agree(self) -> None:
        attacks = {"bim": self.attack(), "smia": SMIA(self.task.loss(), eps=EPS, norm=2, steps=2)}
        one = self.task.evaluator(AttackEvaluator, inferer=self.inferer, attacks=attacks, progress=False)
        one.run()
        many = evaluate_robustness(self.task.evaluator(inferer=self.inferer), attacks, progress=False)
        assert one.report().metrics == many.metrics

    def test_arguments_of_the_network_go_along(self) -> None:
        class Shifted(nn.Module):
            def __init__(self, body: nn.Module) -> None:
                super().__init__()
                self.body = body

            def forward(self, image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
                return self.body(image) + shift

        def prepare(batch: Any, device: Any, non_blocking: bool, **_: Any) -> Any:
            return batch["image"], batch["label"], (torch.tensor(0.5),), {}

        def run(network: nn.Module, **arguments: Any) -> list[torch.Tensor]:
            engine = self.task.evaluator(network=network, inferer=self.inferer, **arguments, **handled(self.attack()))
            images = images_of(engine)
            engine.run()
            return images

        network = self.task.network()
        biased = networks.tiny_network(3, dense=True)
        biased.load_state_dict(network.state_dict())
        with torch.no_grad():
            biased[-1].bias += 0.5
        for one, other in zip(run(Shifted(network), prepare_batch=prepare), run(biased), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
