"""The scale of the comparisons against the losses that it straightens."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceLoss
from torch import nn

from monai_smia.attacks.losses import per_sample
from monai_smia.doctor import Finding
from monai_smia.doctor.log_odds import decides, log_odds


def test_the_cross_entropy_is_the_softplus_of_it() -> None:
    raw = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    target = torch.tensor([0, 3, 1, 1, 2])
    loss = nn.CrossEntropyLoss()
    torch.testing.assert_close(
        nn.functional.softplus(log_odds(loss, raw, target)), per_sample(loss, raw, target, 5), rtol=1e-10, atol=1e-12
    )


def test_of_one_binary_label_the_loss_is_its_softplus_too() -> None:
    raw = torch.tensor([[2.0], [-1.0], [0.5]]).double()
    target = torch.tensor([[1.0], [1.0], [0.0]])
    loss = nn.BCEWithLogitsLoss()
    odds = log_odds(loss, raw, target)
    assert odds.shape == (3,)
    torch.testing.assert_close(nn.functional.softplus(odds), per_sample(loss, raw, target, 3).double())


def test_probabilities_give_the_odds_of_their_raw_outputs() -> None:
    raw = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    target = torch.randint(3, (2, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    given = log_odds(DiceLoss(to_onehot_y=True), raw.softmax(1), target)
    torch.testing.assert_close(given, log_odds(DiceLoss(to_onehot_y=True, softmax=True), raw, target))
    by_voxel = nn.functional.cross_entropy(raw, target[:, 0], reduction="none").expm1().log().flatten(1).mean(1)
    torch.testing.assert_close(given, by_voxel)


def test_a_lead_that_the_cross_entropy_loses_is_kept() -> None:
    raw, target = torch.tensor([[200.0, 0.0]]), torch.tensor([0])
    assert float(nn.functional.cross_entropy(raw, target)) == 0
    assert float(log_odds(nn.CrossEntropyLoss(), raw, target)) == -200


@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda prediction, target: prediction.mean()])
def test_what_has_no_classes_has_no_odds(loss: object) -> None:
    assert not decides(loss, torch.zeros(1, 2))  # type: ignore[arg-type]
    assert not decides(nn.CrossEntropyLoss(), [{"boxes": torch.zeros(1, 4)}])


def test_a_finding_reads_as_one_paragraph() -> None:
    finding = Finding("budget", "Changes reach 2 eps.", "Another threat model.", "Project.", "warning")
    assert str(finding) == "Warning (budget): Changes reach 2 eps. Another threat model. Project."
