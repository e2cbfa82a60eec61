"""Losses of two views: the papers' formulas written out from probabilities, for every head, value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceCELoss, DiceLoss
from torch import nn
from torch.nn import functional as F

from monai_smia.losses import ConsistencyLoss, MARTLoss, TRADESLoss, TwoViewsLoss

BATCH, CLASSES, BETA = 3, 4, 2.5


@dataclass(frozen=True)
class Head:
    """A loss, what the network ends in, labels, and the decisions by hand.

    Attributes:
        decided: ``(prediction, label) -> (p, q)``: probabilities ``(B, decisions, K)`` and their true class
            ``(B, decisions)``.
    """

    loss: Any
    shape: tuple[int, ...]
    binary: bool = False
    probabilities: bool = False
    channel_axis: bool = True

    def leaves(self) -> list[torch.Tensor]:
        """What the network's last layer gives for each view."""
        source, size = torch.Generator().manual_seed(1), (BATCH, CLASSES, *self.shape)
        return [torch.randn(size, generator=source, dtype=torch.float64).requires_grad_() for _ in range(2)]

    def predictions(self, leaves: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
        leaves = self.leaves() if leaves is None else leaves
        return [leaf.softmax(1) for leaf in leaves] if self.probabilities else leaves

    def labels(self) -> torch.Tensor:
        source = torch.Generator().manual_seed(2)
        if self.binary:
            return torch.randint(2, (BATCH, CLASSES, *self.shape), generator=source).double()
        index = torch.randint(CLASSES, (BATCH, *self.shape), generator=source)
        return index.unsqueeze(1) if self.shape and self.channel_axis else index

    def decided(self, prediction: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.binary:
            yes = prediction.sigmoid().flatten(1)
            return torch.stack((1 - yes, yes), 2), label.flatten(1).long()
        p = prediction if self.probabilities else prediction.exp() / prediction.exp().sum(1, keepdim=True)
        return p.flatten(2).movedim(1, 2) if self.shape else p.unsqueeze(1), label.reshape(BATCH, -1)

    def base(self, prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        if self.shape and isinstance(self.loss, nn.CrossEntropyLoss) and label.ndim == prediction.ndim:
            label = label[:, 0]
        return torch.stack([self.loss(prediction[i : i + 1], label[i : i + 1]) for i in range(BATCH)])


HEADS = {
    "classes": Head(nn.CrossEntropyLoss(), ()),
    "labels-of-a-classifier": Head(nn.BCEWithLogitsLoss(), (), binary=True),
    "voxels": Head(DiceCELoss(to_onehot_y=True, softmax=True), (4, 3, 2)),
    "pixels": Head(nn.CrossEntropyLoss(), (5, 3)),
    "pixels-without-channel": Head(nn.CrossEntropyLoss(), (5, 3), channel_axis=False),
    "sigmoid-voxels": Head(DiceLoss(sigmoid=True), (3, 2, 2), binary=True),
    "probabilities": Head(DiceLoss(to_onehot_y=True), (4, 3), probabilities=True),
}
heads = pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(2)


def trades(head: Head, clean: torch.Tensor, attacked: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    p, q = head.decided(clean, label)[0], head.decided(attacked, label)[0]
    return head.base(clean, label) + BETA * kl(p, q).mean(1)


def mart(head: Head, clean: torch.Tensor, attacked: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    (p, index), (q, _) = head.decided(clean, label), head.decided(attacked, label)
    true = F.one_hot(index, p.shape[2]).bool()
    boosted = -q[true].log() - (1 - torch.where(true, 0, q).amax(2).flatten()).log()
    weighted = kl(p, q) * (1 - p[true].reshape(index.shape))
    return (boosted.reshape(index.shape) + BETA * weighted).mean(1)


def consistency(head: Head, clean: torch.Tensor, attacked: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return trades(head, clean, attacked, label) + head.base(attacked, label)


LOSSES: dict[str, tuple[Callable[[Any], TwoViewsLoss], Callable[..., torch.Tensor]]] = {
    "TRADES": (lambda loss: TRADESLoss(loss, beta=BETA), trades),
    "MART": (lambda loss: MARTLoss(loss, beta=BETA), mart),
    "consistency": (lambda loss: ConsistencyLoss(loss, weight=BETA), consistency),
}
losses = pytest.mark.parametrize("name", LOSSES)


@heads
@losses
def test_value_and_gradients_are_those_of_the_formula(head: Head, name: str) -> None:
    make, by_hand = LOSSES[name]
    leaves, label = head.leaves(), head.labels()
    views = head.predictions(leaves)
    found, expected = make(head.loss)(*views, label), by_hand(head, *views, label)
    assert found.shape == (BATCH,)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    weights = torch.tensor([1.0, 2.0, -3.0])
    ours, theirs = (
        torch.autograd.grad((value * weights).sum(), leaves, retain_graph=True) for value in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@heads
@losses
def test_a_sample_does_not_depend_on_its_mates(head: Head, name: str) -> None:
    loss, views, label = LOSSES[name][0](head.loss), head.predictions(), head.labels()
    together = loss(*views, label)
    for i in range(BATCH):
        alone = loss(*(view[i : i + 1] for view in views), label[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-12)


@losses
def test_metadata_half_precision_and_deep_supervision(name: str) -> None:
    head = HEADS["voxels"]
    (clean, attacked), label = head.predictions(), head.labels()
    loss = LOSSES[name][0](head.loss)
    expected = loss(clean, attacked, label)
    wrapped = loss(*(MetaTensor(value) for value in (clean, attacked, label)))
    assert type(wrapped) is torch.Tensor
    assert torch.equal(wrapped, expected)
    half = loss(clean.bfloat16(), attacked.bfloat16(), label)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), expected, rtol=0.02, atol=0.02)
    if name == "MART":  # the others ask the base loss, which is to take what the network returns
        assert torch.equal(loss([clean, clean[:, :, :2]], [attacked, attacked[:, :, :2]], label), expected)


@pytest.mark.parametrize("name", ["TRADES", "MART"])
def test_ignored_voxels_do_not_count(name: str) -> None:
    head = Head(nn.CrossEntropyLoss(ignore_index=9), (5, 3))
    (clean, attacked), label = head.predictions(), head.labels()
    label[:, :, :2] = 9
    make, by_hand = LOSSES[name]
    found = make(head.loss)(clean, attacked, label)
    rest = Head(nn.CrossEntropyLoss(), (3, 3))
    expected = by_hand(rest, clean[:, :, 2:], attacked[:, :, 2:], label[:, :, 2:])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_mart_is_what_the_published_code_gives_but_for_its_constants() -> None:
    head = HEADS["classes"]
    (clean, attacked), y = head.predictions(), head.labels()
    q, p = attacked.softmax(1), clean.softmax(1)
    first, second = q.argsort(1)[:, -1], q.argsort(1)[:, -2]
    rival = torch.where(first == y, second, first)
    boosted = F.cross_entropy(attacked, y) + F.nll_loss((1.0001 - q + 1e-12).log(), rival)
    divergence = F.kl_div((q + 1e-12).log(), p, reduction="none").sum(1)
    published = boosted + BETA * (divergence * (1.0000001 - p.gather(1, y[:, None])[:, 0])).mean()
    torch.testing.assert_close(MARTLoss(head.loss, beta=BETA)(clean, attacked, y).mean(), published, rtol=2e-4, atol=0)


@losses
def test_certain_predictions_stay_finite(name: str) -> None:
    clean = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    attacked = torch.tensor([[0.0, 300.0, 0.0], [0.0, 0.0, 300.0]], requires_grad=True)
    value = LOSSES[name][0](nn.CrossEntropyLoss())(clean, attacked, torch.tensor([0, 0]))
    gradients = torch.autograd.grad(value.sum(), (clean, attacked))
    assert bool(value.isfinite().all())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_a_distance_of_ones_own() -> None:
    """Also where there are no classes."""
    loss = ConsistencyLoss(nn.MSELoss(), weight=3.0, divergence=lambda p, q, y: (p - q).abs().flatten(1).mean(1))
    p, q, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]]), torch.tensor([[0.0], [2.0]])
    assert loss(p, q, y).tolist() == [1 + 9 + 3 * 2, 0 + 0.25 + 3 * 0.5]


def test_errors() -> None:
    for kind in (TRADESLoss, MARTLoss, ConsistencyLoss):
        with pytest.raises(ValueError, match=f"loss_function: {kind.__name__} compares class probabilities"):
            kind(nn.MSELoss())
        with pytest.raises(ValueError, match="mixes the samples of a batch"):
            kind(DiceLoss(batch=True))
        with pytest.raises(ValueError, match="activation: expected one of"):
            kind(nn.CrossEntropyLoss(), activation="relu")
    with pytest.raises(ValueError, match="beta: expected finite numbers >= 0; got -1"):
        TRADESLoss(nn.CrossEntropyLoss(), beta=-1)
    with pytest.raises(TypeError, match="weight: expected one number; got"):
        ConsistencyLoss(nn.CrossEntropyLoss(), weight=[1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divergence: expected one of 'kl'; got 'l1'"):
        ConsistencyLoss(nn.CrossEntropyLoss(), divergence="l1")
