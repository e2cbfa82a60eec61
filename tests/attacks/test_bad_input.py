"""Bad input: the error names the argument, comes before any pass where it can, and the network is as it was."""

from __future__ import annotations

import math

import contract
import networks
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss, DiceLoss, FocalLoss
from torch import nn

from monai_smia.attacks import (
    BIM,
    DIFGSM,
    FGSM,
    FMN,
    PGD,
    SMIA,
    TIFGSM,
    VMIFGSM,
    CosPGD,
    Gaussian,
    Misclassification,
    SegPGD,
    Square,
)

LOSS = nn.CrossEntropyLoss()
IMAGE = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1])

CONSTRUCTION = [
    (lambda: PGD("dice", eps=0.1), TypeError, "loss_function: expected a callable"),
    (lambda: PGD(DiceLoss(batch=True), eps=0.1), ValueError, "loss_function: DiceLoss\\(batch=True\\) mixes"),
    (lambda: PGD(DiceCELoss(batch=True), eps=0.1), ValueError, "loss_function: DiceLoss\\(batch=True\\) mixes"),
    (lambda: PGD(LOSS, eps=-0.1), ValueError, "eps: expected finite numbers >= 0; got -0.1"),
    (lambda: PGD(LOSS, eps=math.nan), ValueError, "eps: expected finite"),
    (lambda: PGD(LOSS, eps="8/255"), TypeError, "eps: expected a number"),
    (lambda: PGD(LOSS, eps=0.1, norm=3), ValueError, "norm: expected inf .*, 2 or 1; got 3"),
    (lambda: PGD(LOSS, eps=0.1, norm="L2"), ValueError, "norm: expected inf"),
    (lambda: PGD(LOSS, eps=0.1, bounds=(1.0, 0.0)), ValueError, "bounds: expected low < high"),
    (lambda: PGD(LOSS, eps=0.1, bounds=1.0), ValueError, "bounds: expected \\(low, high\\)"),
    (lambda: PGD(LOSS, eps=0.1, steps=0), ValueError, "steps: expected a whole number >= 1; got 0"),
    (lambda: PGD(LOSS, eps=0.1, step_size=-1.0), ValueError, "step_size: expected"),
    (lambda: FGSM(LOSS, eps=0.1, step_size=-1.0), ValueError, "step_size: expected"),
    (lambda: BIM(LOSS, eps=0.1, restarts=3), ValueError, "restarts: 3 runs without random_start"),
    (lambda: PGD(LOSS, eps=0.1, restarts=0), ValueError, "restarts: expected a whole number >= 1"),
    (lambda: PGD(LOSS, eps=0.1, keep="first"), ValueError, "keep: expected one of 'last', 'best'"),
    (lambda: PGD(LOSS, eps=0.1, amp="int8"), ValueError, "amp: expected None"),
    (lambda: SMIA(LOSS, eps=0.1, smooth="both"), ValueError, "smooth: expected one of"),
    (lambda: SMIA(LOSS, eps=0.1, divergence="js"), ValueError, "divergence: expected one of"),
    (lambda: SMIA(LOSS, eps=0.1, combine="sum"), ValueError, "combine: expected one of"),
    (lambda: SMIA(LOSS, eps=0.1, sigma_unit="cm"), ValueError, "sigma_unit: expected one of"),
    (lambda: SMIA(LOSS, eps=0.1, stabilization_weight=-1), ValueError, "stabilization_weight: expected"),
    (lambda: SMIA(LOSS, eps=0.1, kernel_size=4), ValueError, "kernel_size: expected an odd number"),
    (lambda: TIFGSM(LOSS, eps=0.1, sigma=-1.0), ValueError, "sigma: expected"),
    (lambda: Gaussian(1.0, dilation=0), ValueError, "dilation: expected at least 1"),
    (lambda: DIFGSM(LOSS, eps=0.1, resize_rate=0.0), ValueError, "resize_rate: expected"),
    (lambda: DIFGSM(LOSS, eps=0.1, diversity_probability=2), ValueError, "diversity_probability: expected"),
    (lambda: VMIFGSM(LOSS, eps=0.1, neighbours=0), ValueError, "neighbours: expected"),
    (lambda: SegPGD(LOSS, eps=0.1, activation="relu"), ValueError, "activation: expected one of"),
]


@pytest.mark.parametrize(("build", "error", "message"), CONSTRUCTION, ids=[row[2][:40] for row in CONSTRUCTION])
def test_construction(build, error, message):
    with pytest.raises(error, match=message):
        build()


def poisoned(index: int) -> torch.Tensor:
    image = IMAGE.clone()
    image[index, 0, 3, 3] = math.nan
    return image


BEFORE_ANY_PASS = {
    "image: expected finite values; sample 1": ({}, {"image": poisoned(1)}),
    "image: expected a floating dtype": ({}, {"image": (IMAGE * 255).to(torch.uint8)}),
    "image: expected BCHW": ({}, {"image": IMAGE[0, 0]}),
    "image: expected a tensor": ({}, {"image": IMAGE.numpy()}),
    "bounds: the image leaves \\[0.0, 0.5\\]: its values run from 0.* to 0.9": ({"bounds": (0.0, 0.5)}, {}),
    "bounds: expected a number, one per channel \\(1\\) for": ({"bounds": ([0.0, 0.0], 1.0)}, {}),
    "eps: expected a number, one per channel \\(1\\), or one per sample in shape \\(2, 1\\)": (
        {"eps": [0.1, 0.1, 0.1]},
        {},
    ),
    "step_size: expected a number": ({"step_size": [0.1, 0.1, 0.1]}, {}),
    "target: expected 2 samples, as the image has; got 3": ({}, {"target": torch.tensor([0, 1, 2])}),
    "target: expected 2 samples, as the image has; got a single number": ({}, {"target": torch.tensor(1)}),
    "mask: expected a shape that broadcasts": ({}, {"mask": torch.ones(2, 1, 9, 8)}),
    "mask: expected zeros and ones; got values from 0.5 to 0.5": ({}, {"mask": torch.full((2, 1, 9, 7), 0.5)}),
    "mask: expected a tensor": ({}, {"mask": [[1]]}),
}


@pytest.mark.parametrize("message", BEFORE_ANY_PASS)
def test_call_before_any_pass(message):
    arguments, call = BEFORE_ANY_PASS[message]
    network = networks.Counting(networks.tiny_network(2, dense=False))
    attack = BIM(LOSS, **{"eps": 0.1, **arguments})
    call = {"image": IMAGE, "target": TARGET, **call}
    with contract.unchanged(network), pytest.raises((ValueError, TypeError), match=message):
        attack(network, call.pop("image"), call.pop("target"), **call)
    assert network.forwards == 0


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_flat_eps_is_one_per_channel_whatever_the_size_of_the_batch(batch: int) -> None:
    """A loader's last batch may have as many samples as an image has channels."""
    image, budget = torch.full((batch, 3, 5, 5), 0.5), [0.1, 0.2, 0.3]
    network, labels = networks.tiny_network(2, dense=False, channels=3), torch.zeros(batch, dtype=torch.long)
    change = BIM(LOSS, eps=budget)(network, image, labels).adversarial - image
    assert (change.abs().amax((2, 3)) <= torch.tensor(budget) + 1e-6).all()
    assert (change.abs().amax((2, 3)) > torch.tensor(budget) / 2).all()
    rows = torch.full((batch, 1), 0.1)
    change = BIM(LOSS, eps=rows)(network, image, labels).adversarial - image
    assert float(change.abs().max()) <= 0.1 + 1e-6
    with pytest.raises(ValueError, match=r"eps: expected a number, one per channel \(3\), or one per sample in shape"):
        BIM(LOSS, eps=[0.1] * 5)(network, image, labels)


def in_place_softmax(x: torch.Tensor) -> torch.Tensor:
    output = x.flatten(2).mean(2).repeat(1, 3).exp()
    return output.div_(output.sum(1, keepdim=True)).mul_(2.0)


AT_THE_NETWORK = {
    "network: expected a prediction that depends differentiably": lambda x: x.detach().flatten(1)[:, :3],
    "network: expected a prediction that depends on the image": lambda x: torch.zeros(2, 3, requires_grad=True) + 0,
    "network: an operation overwrites in place": lambda x: (
        x.flatten(1)[:, :3].exp().add_(1.0).sqrt().mul_(2.0).add_(1.0)
    ),
}


@pytest.mark.parametrize("message", AT_THE_NETWORK)
def test_network_without_gradient(message):
    with pytest.raises(RuntimeError, match=message):
        BIM(LOSS, eps=0.1)(AT_THE_NETWORK[message], IMAGE, TARGET)


TARGETS = {
    "target: expected labels \\(2,\\) or \\(2, 1\\), or one-hot": (False, LOSS, torch.zeros(2, 4)),
    "target: expected class indices under 3.* got values from 0 to 3": (False, LOSS, torch.tensor([0, 3])),
    "target: expected labels \\(2, 9, 7\\) or \\(2, 1, 9, 7\\)": (
        True,
        DiceCELoss(softmax=True),
        torch.zeros(2, 1, 9, 8),
    ),
    "target: expected class indices under 3.*to 5": (
        True,
        DiceCELoss(to_onehot_y=True, softmax=True),
        torch.full((2, 1, 9, 7), 5),
    ),
    "target: expected labels .*one-hot": (True, nn.BCEWithLogitsLoss(), torch.zeros(2, 2, 9, 7)),
}


@pytest.mark.parametrize("message", TARGETS)
@pytest.mark.parametrize("attack", [BIM, SMIA, CosPGD])
def test_target_that_does_not_fit(attack, message):
    dense, loss, target = TARGETS[message]
    network = networks.tiny_network(2, dense)
    with contract.unchanged(network), pytest.raises(ValueError, match=message):
        attack(loss, eps=0.1)(network, IMAGE, target)


def test_network_made_under_inference_mode():
    with torch.inference_mode():
        network = networks.tiny_network(2, dense=False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    with pytest.raises(ValueError, match="network: .*inference_mode"):
        BIM(LOSS, eps=0.1)(network, IMAGE, TARGET)
    assert flags == [parameter.requires_grad for parameter in network.parameters()]


def test_a_label_layout_that_the_loss_refuses():
    network, target = networks.tiny_network(2, dense=True), torch.zeros(2, 1, 9, 7)
    with contract.unchanged(network), pytest.raises(ValueError, match=r"target: DiceLoss.* refuses .*\(2, 1, 9, 7\)"):
        BIM(DiceLoss(softmax=True), eps=0.1)(network, IMAGE, target)


def test_di_in_one_dimension():
    with pytest.raises(ValueError, match="image: DIFGSM resizes BCHW and BCHWD"):
        DIFGSM(LOSS, eps=0.1)(lambda x: x.flatten(1)[:, :3], torch.rand(2, 1, 8), TARGET)


def test_regression_needs_a_criterion():
    network, target = networks.tiny_network(2, dense=False, outputs=1), torch.rand(2, 1)
    with pytest.raises(ValueError, match="criterion: success of a regression"):
        BIM(nn.MSELoss(), eps=0.1)(network, IMAGE, target)

    class Off(Misclassification):
        def __call__(self, prediction, target):
            return (prediction - target).abs().flatten(1).amax(1) > 0.5

    result = BIM(nn.MSELoss(), eps=0.1, criterion=Off())(network, IMAGE, target)
    assert (result.loss > result.clean_loss).all()


@pytest.mark.parametrize(
    "loss", [FocalLoss(use_softmax=True, to_onehot_y=True), DiceLoss(softmax=True, to_onehot_y=True)]
)
def test_softmax_head_inside_a_sliding_window(loss):
    """MONAI's inferer weights windows in place, which breaks a softmax head's gradient; an attack must not notice."""
    network = nn.Sequential(networks.tiny_network(3, dense=True), nn.Softmax(1))
    image = torch.rand(1, 1, 9, 8, 9, generator=torch.Generator().manual_seed(1))
    target = torch.randint(3, (1, 1, 9, 8, 9), generator=torch.Generator().manual_seed(2))
    inferer = SlidingWindowInferer((6, 6, 6), sw_batch_size=2, overlap=0.25, mode="gaussian")
    result = PGD(loss, eps=0.1, steps=3)(network, image, target, inferer=inferer)
    assert (result.loss > result.clean_loss).all()


def test_in_place_head_is_fine_where_autograd_can_follow():
    result = BIM(LOSS, eps=0.1)(lambda x: x.flatten(1)[:, :3].mul_(2.0), IMAGE, TARGET)
    assert (result.loss > result.clean_loss).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_sample_without_a_voxel_that_may_change_stays_and_is_named(
    batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A case without a lesion, among others and alone: the others are attacked as they are by themselves."""
    network, image = networks.tiny_network(2, dense=False), IMAGE[:batch]
    mask = torch.ones(batch, 1, 9, 7)
    mask[-1] = 0
    for attack in (BIM(LOSS, eps=0.1), Square(LOSS, eps=0.1, queries=5), FMN(LOSS, norm=2, eps=0.5)):
        caplog.clear()
        result = attack(network, image, TARGET[:batch], mask=mask)
        assert torch.equal(result.adversarial[-1], image[-1])
        assert torch.equal(result.loss[-1], result.clean_loss[-1])
        assert f"mask: empty in sample {batch - 1} of the batch" in caplog.text
    if batch == 2:
        alone = BIM(LOSS, eps=0.1)(network, image[:1], TARGET[:1], mask=mask[:1])
        torch.testing.assert_close(BIM(LOSS, eps=0.1)(network, image, TARGET, mask=mask).loss[0], alone.loss[0])
