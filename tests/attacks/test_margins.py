"""The objectives of the head: DLR and margins by hand, cross-entropies and Jensen-Shannon by naive loops."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch import nn

from monai_smia.attacks import DLR, CrossEntropy, JensenShannon, Margin, MaskedCrossEntropy
from monai_smia.attacks.margins import Decisions

CE = nn.CrossEntropyLoss()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_dlr_by_hand() -> None:
    logits = torch.tensor([[5.0, 3.0, 2.0, 1.0], [1.0, 4.0, 2.0, 0.0], [7.0, 7.0, 1.0, 3.0]])
    label = torch.tensor([0, 2, 3])
    # (3 - 5) / (5 - 2); (4 - 2) / (4 - 1); (7 - 3) / (7 - 3)
    torch.testing.assert_close(DLR(CE).value(logits, label), torch.tensor([-2 / 3, 2 / 3, 1.0]))
    # towards the second likeliest wrong class: (2 - 5) / (5 - 1.5); (1 - 2) / (4 - 0.5); (7 - 3) / (7 - 2)
    towards = Decisions.read(logits, label, CE, "auto").runner_up(2)
    assert towards[:2, 0].tolist() == [2, 0]
    torch.testing.assert_close(DLR(CE, towards=towards).value(logits, label), torch.tensor([-6 / 7, -2 / 7, 0.8]))
    # targeted: (z_t - strongest other) / (5 - 1.5); ... / (4 - 0.5); ... / (7 - 2)
    torch.testing.assert_close(DLR(CE, targeted=True).value(logits, label), torch.tensor([4 / 7, -4 / 7, -0.8]))
    torch.testing.assert_close(DLR(CE).value(30 * logits - 4, label), DLR(CE).value(logits, label))
    p = logits.softmax(1)
    torch.testing.assert_close(DLR(CE, activation="none").value(p, label), DLR(CE).value(logits, label))


def test_margin_is_positive_exactly_where_the_decision_is_wrong() -> None:
    logits, label = torch.randn(50, 4, generator=seeded(1)), torch.randint(4, (50,), generator=seeded(2))
    two, yes = logits[:, :2], (label > 1).float()
    assert torch.equal(Margin(CE).value(logits, label) > 0, logits.argmax(1) != label)
    assert torch.equal(Margin(CE).value(two, label % 2) > 0, two.argmax(1) != label % 2)
    torch.testing.assert_close(Margin(CE).value(two, 0 * label), two[:, 1] - two[:, 0])
    bce = nn.BCEWithLogitsLoss()
    torch.testing.assert_close(Margin(bce).value(logits[:, :1], yes), (1 - 2 * yes) * logits[:, 0])
    several = torch.randint(2, (50, 4), generator=seeded(3)).float()
    wrong = ((logits > 0) != several.bool()).any(1)
    assert torch.equal(Margin(bce).value(logits, several) > 0, wrong)
    assert torch.equal(Margin(bce, targeted=True).value(logits, several) > 0, ~wrong)
    p = Margin(nn.BCELoss()).value(logits.sigmoid(), several)
    torch.testing.assert_close(p, Margin(bce).value(logits, several), rtol=1e-4, atol=1e-5)


def naive(name: str, p: list[list[float]], labels: list[int], targeted: bool, ignored: int) -> float:
    """Voxel by voxel: p is one row of class probabilities a voxel."""
    kept = [(row, y) for row, y in zip(p, labels, strict=True) if y != ignored]
    counts = {y: sum(1 for _, other in kept if other == y) for _, y in kept}
    total = 0.0
    for row, y in kept:
        onehot = [float(k == y) for k in range(len(row))]
        mean = [(a + b) / 2 for a, b in zip(row, onehot, strict=True)]
        if name == "js":
            for one in (row, onehot):
                total += sum(a * math.log(a / m) for a, m in zip(one, mean, strict=True) if a > 0) / 2
            continue
        correct = row.index(max(row)) == y
        if name == "ce" or correct != targeted:
            weight = len(kept) / (len(counts) * counts[y]) if name == "mask-ce-balanced" else 1.0
            total -= weight * math.log(row[y])
    return (-total if targeted else total) / len(kept)


VOXELWISE = {
    "ce": CrossEntropy,
    "js": JensenShannon,
    "mask-ce": MaskedCrossEntropy,
    "mask-ce-balanced": lambda *arguments: MaskedCrossEntropy(*arguments, balanced=True),
}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", VOXELWISE)
def test_dense_objectives_equal_naive_loops(name: str, rank: int, targeted: bool) -> None:
    shape = (4, 3, 2)[:rank]
    logits = 2 * torch.randn((2, 3, *shape), generator=seeded(1)).double()
    target = torch.randint(3, (2, 1, *shape), generator=seeded(2))
    target[:, :, 0] = 1
    ignoring, with_holes = nn.CrossEntropyLoss(ignore_index=7), target.clone()
    with_holes[:, :, 1, :2] = 7
    for loss, label, given, activation in (
        (CE, target, logits, "auto"),
        (ignoring, with_holes, logits, "auto"),
        (DiceLoss(), target, logits.softmax(1), "none"),
    ):
        values = VOXELWISE[name](loss, targeted, activation).value(given, label)
        for i in range(2):
            rows = logits[i].softmax(0).flatten(1).T.tolist()
            expected = naive(name, rows, label[i].flatten().tolist(), targeted, 7)
            assert float(values[i]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", VOXELWISE)
def test_channels_of_a_sigmoid_head_are_binary_decisions(name: str, targeted: bool) -> None:
    logits = torch.randn((2, 2, 4, 3), generator=seeded(1)).double()
    target = torch.randint(2, (2, 2, 4, 3), generator=seeded(2)).double()
    values = VOXELWISE[name](DiceLoss(sigmoid=True), targeted).value(logits, target)
    for i in range(2):
        channels = []
        for z, y in zip(logits[i], target[i], strict=True):
            rows = torch.stack((z.sigmoid(), 1 - z.sigmoid()), -1).reshape(-1, 2).tolist()
            channels.append(naive(name, rows, (1 - y).long().flatten().tolist(), targeted, -1))
        assert float(values[i]) == pytest.approx(sum(channels) / 2, rel=1e-9)


def test_refuses_heads_with_too_few_classes() -> None:
    with pytest.raises(ValueError, match="a margin needs at least 2 classes"):
        Margin(CE).value(torch.zeros(2, 1), torch.zeros(2).long())
    with pytest.raises(ValueError, match="DLR needs at least 3 classes; got 2"):
        DLR(nn.BCEWithLogitsLoss()).value(torch.zeros(2, 5), torch.zeros(2, 5))
