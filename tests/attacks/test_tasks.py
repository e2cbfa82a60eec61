"""Tasks beyond the contract's: binary, multi-label, regression, deep supervision and dictionaries, in 2-D and 3-D.

Every task has its loss and its success written out by hand, in plain torch, sample by sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networks
import pytest
import torch
from contract import unchanged
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceLoss
from monai.networks.nets import DynUNet
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import BIM, SMIA, Attack, Criterion, GaussianNoise

EPS = 0.1
CASES = 3
SIZES = {2: (9, 7), 3: (9, 7, 5)}
ranks = pytest.mark.parametrize("rank", [2, 3])


class Parts(nn.Module):
    """A dense trunk with several heads: full, half and a third of the resolution, and a number per image."""

    def __init__(self, rank: int, as_dictionary: bool) -> None:
        super().__init__()
        self.trunk = networks.tiny_network(rank, dense=True)
        self.rank = rank
        self.as_dictionary = as_dictionary

    def forward(self, image: torch.Tensor) -> Any:
        full = self.trunk(image)
        if self.as_dictionary:
            return {"map": full, "presence": full.flatten(2).mean(2)[:, :1]}
        pool = (F.avg_pool2d, F.avg_pool3d)[self.rank - 2]
        return [full, pool(full, 2), pool(full, 3)]


class OffBy(Criterion):
    """The largest error of the sample's numbers is over a tolerance."""

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return (prediction - target).flatten(1).abs().amax(1) > 0.5


class PresenceFlips(Criterion):
    """The sample's presence is decided wrongly."""

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return (prediction["presence"][:, 0] > 0) != target["presence"][:, 0].bool()


def two_heads(prediction: Any, target: Any) -> torch.Tensor:
    """A user's loss on dictionaries."""
    return F.cross_entropy(prediction["map"], target["mask"][:, 0]) + F.binary_cross_entropy_with_logits(
        prediction["presence"], target["presence"]
    )


def total_variation(prediction: Any, twin: Any, target: Any) -> torch.Tensor:
    """A user's divergence on dictionaries."""
    return (prediction["map"].softmax(1) - twin["map"].softmax(1)).abs().flatten(1).mean(1)


def binary_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (labels * F.softplus(-logits) + (1 - labels) * F.softplus(logits)).mean()


def soft_dice(probability: torch.Tensor, truth: torch.Tensor, square: bool = False) -> torch.Tensor:
    """``1 - Dice``, averaged over the channels of one sample ``(C, ...)``."""
    p, y = probability.flatten(1), truth.flatten(1)
    size = (p * p + y * y if square else p + y).sum(1)
    return (1 - (2 * (p * y).sum(1) + 1e-5) / (size + 1e-5)).mean()


def hard_dice(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean Dice of the masks ``(C, ...)`` that are there."""
    p, y = predicted.flatten(1), truth.flatten(1)
    size = p.sum(1) + y.sum(1)
    there = size > 0
    return (2 * (p & y).sum(1)[there] / size[there]).mean() if bool(there.any()) else torch.tensor(1.0)


def deep_by_hand(outputs: list[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
    """Dice and cross-entropy of each resolution, weights 1, 1/2, 1/4, labels looked up at the nearest voxel."""
    total = torch.zeros(())
    for level, output in enumerate(outputs):
        index = label[0]
        for axis, (size, full) in enumerate(zip(output.shape[1:], label.shape[1:], strict=True)):
            nearest = ((torch.arange(size) + 0.5) * (full / size)).floor().long()
            index = index.index_select(axis, nearest)
        one_hot = F.one_hot(index.long(), networks.CLASSES).movedim(-1, 0).to(output.dtype)
        log_p = output.log_softmax(0)
        total = total + 0.5**level * (soft_dice(log_p.exp(), one_hot) - (log_p * one_hot).sum(0).mean())
    return total


def foreground(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    hard = logits.argmax(0)
    return hard_dice(*(torch.stack([x == k for k in range(1, networks.CLASSES)]) for x in (hard, label[0])))


@dataclass(frozen=True)
class Task:
    """A task, its arguments to an attack, and the loss and success of one sample by hand."""

    network: Callable[[int], nn.Module]
    target: Callable[[tuple[int, ...], torch.Generator], Any]
    loss: Callable[..., Any]
    loss_by_hand: Callable[[Any, Any], torch.Tensor]
    success_by_hand: Callable[[Any, Any], Any]
    criterion: Criterion | None = None
    divergence: Any = "kl"

    def attack(self, kind: Callable[..., Attack], **arguments: Any) -> Attack:
        if kind is SMIA:
            arguments["divergence"] = self.divergence
        return kind(self.loss, eps=EPS, bounds=(0.0, 1.0), criterion=self.criterion, **arguments)

    def data(self, rank: int) -> tuple[torch.Tensor, Any]:
        source = torch.Generator().manual_seed(rank)
        return torch.rand((CASES, 1, *SIZES[rank]), generator=source), self.target(SIZES[rank], source)


def head(dense: bool, outputs: int) -> Callable[[int], nn.Module]:
    return lambda rank: networks.tiny_network(rank, dense, outputs=outputs)


def integers(high: int, *shape: int) -> Callable[[tuple[int, ...], torch.Generator], torch.Tensor]:
    """Labels ``(B, *shape)``; a 0 in the shape stands for the spatial axes."""

    def draw(size: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
        axes = [n for axis in shape for n in (size if axis == 0 else (axis,))]
        return torch.randint(high, (CASES, *axes), generator=source)

    return draw


def floats(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda size, source: draw(size, source).float()


def mask_and_presence(size: tuple[int, ...], source: torch.Generator) -> dict[str, torch.Tensor]:
    mask = integers(networks.CLASSES, 1, 0)(size, source)
    return {"mask": mask, "presence": torch.tensor([[0.0], [1.0], [1.0]])}


TASKS = {
    "binary classification": Task(
        head(False, 1),
        integers(2),
        nn.BCEWithLogitsLoss(),
        lambda p, y: binary_entropy(p, y[None].to(p.dtype)),
        lambda p, y: (p[0] > 0) != y.bool(),
    ),
    "two-class classification": Task(
        head(False, 2),
        integers(2, 1),
        nn.CrossEntropyLoss(),
        lambda p, y: p.exp().sum().log() - p[y[0]],
        lambda p, y: p.argmax() != y[0],
    ),
    "binary segmentation": Task(
        head(True, 1),
        integers(2, 1, 0),
        DiceLoss(sigmoid=True),
        lambda p, y: soft_dice(p.sigmoid(), y.to(p.dtype)),
        lambda p, y: hard_dice(p > 0, y.bool()) < 0.5,
    ),
    "multi-label segmentation": Task(
        head(True, 2),
        floats(integers(2, 2, 0)),
        DiceLoss(sigmoid=True, squared_pred=True),
        lambda p, y: soft_dice(p.sigmoid(), y.to(p.dtype), square=True),
        lambda p, y: hard_dice(p > 0, y.bool()) < 0.5,
    ),
    "regression": Task(
        head(False, 2),
        lambda size, source: torch.randn(CASES, 2, generator=source),
        nn.MSELoss(),
        lambda p, y: ((p - y) ** 2).mean(),
        lambda p, y: (p - y).abs().max() > 0.5,
        OffBy(),
    ),
    "image to image": Task(
        head(True, 1),
        lambda size, source: torch.randn((CASES, 1, *size), generator=source),
        nn.SmoothL1Loss(beta=0.7),
        lambda p, y: torch.where((p - y).abs() < 0.7, (p - y) ** 2 / 1.4, (p - y).abs() - 0.35).mean(),
        lambda p, y: (p - y).abs().max() > 0.5,
        OffBy(),
    ),
    "deep supervision": Task(
        lambda rank: Parts(rank, as_dictionary=False),
        floats(integers(networks.CLASSES, 1, 0)),
        DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True)),
        deep_by_hand,
        lambda p, y: foreground(p[0], y) < 0.5,
    ),
    "dictionaries": Task(
        lambda rank: Parts(rank, as_dictionary=True),
        mask_and_presence,
        two_heads,
        lambda p, y: (
            -(p["map"].log_softmax(0) * F.one_hot(y["mask"][0], networks.CLASSES).movedim(-1, 0)).sum(0).mean()
            + binary_entropy(p["presence"], y["presence"])
        ),
        lambda p, y: (p["presence"] > 0) != y["presence"].bool(),
        PresenceFlips(),
        total_variation,
    ),
}


def sample(value: Any, index: int) -> Any:
    """Sample `index` without its batch axis."""
    if isinstance(value, torch.Tensor):
        return value[index]
    if isinstance(value, dict):
        return {key: item[index] for key, item in value.items()}
    return [item[index] for item in value]


def chosen(value: Any, order: list[int]) -> Any:
    """The samples in this order."""
    return {key: item[order] for key, item in value.items()} if isinstance(value, dict) else value[order]


tasks = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@pytest.mark.parametrize("kind", [BIM, SMIA])
@tasks
@ranks
def test_the_verdict_is_the_one_by_hand_and_beats_noise(rank: int, task: Task, kind: Callable[..., Attack]) -> None:
    network, (image, target) = task.network(rank), task.data(rank)
    with unchanged(network):
        result = task.attack(kind, steps=5)(network, image, target)
    noise = task.attack(GaussianNoise)(network, image, target)
    network.eval()
    with torch.no_grad():
        for x, losses, success in (
            (image, result.clean_loss, result.clean_success),
            (result.adversarial, result.loss, result.success),
            (noise.adversarial, noise.loss, noise.success),
        ):
            prediction = network(x)
            pairs = [(sample(prediction, i), sample(target, i)) for i in range(CASES)]
            by_hand = torch.stack([task.loss_by_hand(p, y) for p, y in pairs])
            torch.testing.assert_close(losses, by_hand, rtol=1e-5, atol=1e-6)
            assert success.tolist() == [bool(task.success_by_hand(p, y)) for p, y in pairs]
    assert bool((result.loss > torch.maximum(noise.loss, result.clean_loss)).all())


@tasks
@ranks
def test_a_sample_does_not_depend_on_its_batch_mates(rank: int, task: Task) -> None:
    network, (image, target) = task.network(rank).double(), task.data(rank)
    attack = task.attack(SMIA, steps=3)
    together = attack(network, image.double(), target)
    for order in ([1], [2, 0]):
        others = attack(network, image[order].double(), chosen(target, order))
        torch.testing.assert_close(others.adversarial, together.adversarial[order], rtol=0, atol=1e-12)
        torch.testing.assert_close(others.loss, together.loss[order], rtol=1e-6, atol=1e-6)


@tasks
@ranks
def test_the_ascent_follows_the_gradient_of_the_loss_by_hand(rank: int, task: Task) -> None:
    """One step of BIM is the sign of the gradient of the loss written out, where that is not about zero."""
    network, (image, target) = task.network(rank).eval(), task.data(rank)
    result = task.attack(BIM, steps=1, step_size=EPS)(network, image, target)
    leaf = image.clone().requires_grad_()
    prediction = network(leaf)
    total = sum(task.loss_by_hand(sample(prediction, i), sample(target, i)) for i in range(CASES))
    (gradient,) = torch.autograd.grad(total, leaf)
    expected = (image + EPS * gradient.sign()).clamp(0, 1)
    clear = gradient.abs() > 1e-5 * gradient.abs().amax()
    assert float(clear.float().mean()) > 0.9
    torch.testing.assert_close(result.adversarial[clear], expected[clear], rtol=0, atol=1e-6)


@ranks
def test_a_network_that_stacks_its_outputs_in_train_mode(rank: int) -> None:
    """MONAI's `DynUNet` with deep supervision: attacked in eval mode, where it gives its full resolution alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kernels, strides = [3, 3, 3], [1, 2, 2]
        network = DynUNet(rank, 1, 3, kernels, strides, strides[1:], filters=[4, 6, 8], deep_supervision=True)
    image = torch.rand((2, 1, *[8] * rank), generator=torch.Generator().manual_seed(1))
    label = torch.randint(3, (2, 1, *[8] * rank), generator=torch.Generator().manual_seed(2)).float()
    plain = DiceCELoss(to_onehot_y=True, softmax=True)
    expected = BIM(plain, eps=EPS, steps=3)(copy.deepcopy(network).eval(), image, label)
    assert network.train()(image).ndim == rank + 3
    with unchanged(network):
        results = [BIM(loss, eps=EPS, steps=3)(network, image, label) for loss in (plain, DeepSupervisionLoss(plain))]
    for result in results:
        assert torch.equal(result.adversarial, expected.adversarial)
        assert torch.equal(result.loss, expected.loss)
    assert bool((expected.loss > expected.clean_loss).all())


def test_what_a_dictionary_does_not_tell_is_asked_for() -> None:
    task = TASKS["dictionaries"]
    network, (image, target) = task.network(2), task.data(2)
    with unchanged(network), pytest.raises(TypeError, match="got dict. Give a `criterion`"):
        BIM(task.loss, eps=EPS)(network, image, target)
    with unchanged(network), pytest.raises(TypeError, match="got dict"):
        SMIA(task.loss, eps=EPS, criterion=task.criterion)(network, image, target)
