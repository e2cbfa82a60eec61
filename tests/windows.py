"""Networks, images and measures for the tests of inferers that slide a window."""

from __future__ import annotations

from typing import Any

import networks
import torch
from monai.networks.nets import UNet
from torch import nn

SIZE = {2: (23, 18), 3: (19, 14, 11)}
WINDOW = {2: (8, 8), 3: (8, 8, 8)}


class Softmax(nn.Module):
    """Ends in an operation that saves its output, which MONAI's in-place blending breaks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image).softmax(1)


class Unaliased(nn.Module):
    """What MONAI's inferer needs around such a network to be differentiable at all."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.network(*args, **kwargs)
        if isinstance(outputs, dict):
            return {key: value.clone() for key, value in outputs.items()}
        return outputs.clone() if isinstance(outputs, torch.Tensor) else tuple(value.clone() for value in outputs)


class Pyramid(nn.Module):
    """Outputs of half, the full and twice the window's size, in that order, as a tuple or a dictionary."""

    def __init__(self, rank: int, named: bool = False) -> None:
        super().__init__()
        self.down = networks.CONV[rank](1, 2, 2, stride=2)
        self.same = networks.CONV[rank](1, 3, 3, padding=1)
        self.up = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank](1, 2, 2, stride=2)
        self.named = named

    def forward(self, image: torch.Tensor) -> Any:
        parts = {"full": self.same(image), "half": self.down(image), "twice": self.up(image).tanh()}
        return parts if self.named else (parts["twice"], parts["half"])


def make(name: str, rank: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(rank, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch")
        kinds = {
            "unet": lambda: unet,
            "softmax": lambda: Softmax(unet),
            "strided": lambda: nn.Sequential(networks.CONV[rank](1, 3, 4, stride=4), nn.Sigmoid()),
            "tuple": lambda: Pyramid(rank),
            "dict": lambda: Pyramid(rank, named=True),
        }
        return kinds[name]().to(dtype).eval()


def picture(rank: int, dtype: torch.dtype = torch.float64, batch: int = 2, size: Any = None) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.rand((batch, 1, *(size or SIZE[rank])), generator=source, dtype=dtype).requires_grad_()


def tensors(prediction: Any) -> list[torch.Tensor]:
    if isinstance(prediction, dict):
        return list(prediction.values())
    return [prediction] if isinstance(prediction, torch.Tensor) else list(prediction)


def value(prediction: Any) -> torch.Tensor:
    """A loss that is not linear in the prediction and differs from voxel to voxel."""
    total = torch.zeros(())
    for output in tensors(prediction):
        ramp = torch.linspace(0.5, 2.0, output.numel(), dtype=output.dtype).reshape(output.shape)
        total = total + (ramp * output.square()).sum() + (ramp * output).sum()
    return total


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert float(expected.norm()) > 0
    return float((found - expected).norm() / expected.norm())
