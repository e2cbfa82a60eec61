"""Perfect predictions and labels of a few kinds, shared by the tests of tasks."""

from __future__ import annotations

from typing import Any

import torch
from monai.transforms import Activationsd
from torch.nn import functional as F

from monai_smia.bundle.fitting import FittedLoss
from monai_smia.bundle.tasks import Task

SURE = 20.0  # logits of a perfect prediction


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def classes(channels: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, channels, shape, generator=torch.Generator().manual_seed(sum(shape)))


def hot(index: torch.Tensor, channels: int) -> torch.Tensor:
    return F.one_hot(index, channels).movedim(-1, 1).float()


INDEX, IMAGES = classes(3, 2, 6, 5), classes(3, 4)
VOLUME = classes(3, 2, 5, 4, 3)
SEVERAL = (seeded(2, 3, 6, 5) > 0).float()
SEVERAL[:, :, 0, 0] = 1.0  # several classes at once somewhere
FINDINGS = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
MASK = (seeded(2, 1, 6, 5) > 0).float()
SOFTMAX, SIGMOID = Activationsd("pred", softmax=True), Activationsd("pred", sigmoid=True)


def inner(task: Task) -> Any:
    return task.loss_function.loss_function if isinstance(task.loss_function, FittedLoss) else task.loss_function
