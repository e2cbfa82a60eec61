"""A network whose samples depend on their batch mates is named by the doctor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_smia.doctor import diagnose

IMAGE = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(norm: nn.Module) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, 3)]
    return nn.Sequential(*parts).eval()


NORMS = {
    "none kept": (nn.BatchNorm2d(4, track_running_stats=False), True),
    "kept": (nn.BatchNorm2d(4), False),
    "of each sample": (nn.InstanceNorm2d(4), False),
    "of groups": (nn.GroupNorm(2, 4), False),
}


@pytest.mark.parametrize("norm", NORMS)
def test_the_finding_is_there_exactly_where_batch_mates_matter(norm: str) -> None:
    layer, expected = NORMS[norm]
    net = network(layer)
    with torch.no_grad():
        depends = not torch.allclose(net(IMAGE)[:1], net(IMAGE[:1]), atol=1e-5)
        label = net(IMAGE).argmax(1)
    assert depends == expected
    found = diagnose(net, IMAGE, label, nn.CrossEntropyLoss(), eps=0.01, checks=["batch_statistics"], progress=False)
    assert [finding.check for finding in found] == ["batch_statistics"] * expected
    if expected:
        assert found[0].seen == "1 batch normalisation without running statistics: '1'."
        assert found[0].severity == "warning"
