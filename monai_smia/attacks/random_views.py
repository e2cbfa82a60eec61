# SPDX-License-Identifier: Apache-2.0
"""Random preprocessing: a function with a generator, or an object that draws views; and as a part of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from monai_smia.attacks import checks


class DrawnView(Protocol):
    """One draw, differentiable."""

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """The image as preprocessed, ``BCHW[D]``."""

    def undo(self, prediction: Any) -> Any:
        """The prediction on the grid of the image given to `apply`."""


@runtime_checkable
class RandomView(Protocol):
    """A preprocessing that moves voxels, and so must bring dense predictions back, as `RandomResize` does."""

    def draw(self, image: torch.Tensor, generator: torch.Generator) -> DrawnView:
        """One draw for the samples of `image`, ``BCHW[D]``."""


Transform = Callable[[torch.Tensor, torch.Generator], torch.Tensor] | RandomView
"""``transform(image, generator) -> image``, random and differentiable, which leaves voxels in place; or a `RandomView`.

It draws all its randomness, for every sample by itself, from the generator, on the generator's device.
"""


@dataclass(frozen=True)
class InPlace:
    """One application of ``transform(image, generator)``; it draws when applied, and is applied once."""

    transform: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
    generator: torch.Generator

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        return self.transform(image, self.generator)

    def undo(self, prediction: Any) -> Any:
        return prediction


@dataclass(frozen=True)
class Through:
    """One view after another."""

    first: DrawnView
    second: DrawnView

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        return self.second.apply(self.first.apply(image))

    def undo(self, prediction: Any) -> Any:
        return self.first.undo(self.second.undo(prediction))


def check_transform(transform: Any) -> None:
    """A callable, or an object that draws views."""
    if not callable(transform) and not isinstance(transform, RandomView):
        raise TypeError(
            f"transform: expected transform(image, generator), or an object with draw(image, generator); "
            f"got {type(transform).__name__}"
        )


def draw_view(transform: Transform, image: torch.Tensor, generator: torch.Generator) -> DrawnView:
    """One draw of the preprocessing."""
    return transform.draw(image, generator) if isinstance(transform, RandomView) else InPlace(transform, generator)


class RandomPreprocessing(nn.Module):
    r"""A network behind a random preprocessing, :math:`f(t(x))`, with a new :math:`t` at each pass: a defence.

    An attack on it should average gradients over draws, ``EoT(attack, samples=n)``. The draws of a pass follow from
    `seed` and the number of passes made, a buffer, which an attack leaves as found: two calls give the same bits.

    Args:
        network: any callable from image to prediction.
        transform: the preprocessing, see `Transform`.
        seed: of its draws, at least 0.

    Example:
        >>> def noise(image, generator):
        ...     return image + torch.randn(image.shape, generator=generator)
        >>> network = RandomPreprocessing(torch.nn.Flatten(), noise)
        >>> image = torch.zeros(1, 1, 2)
        >>> bool((network(image) == network(image)).all())
        False
    """

    passes: torch.Tensor

    def __init__(self, network: Callable[..., Any], transform: Transform, *, seed: int = 0) -> None:
        super().__init__()
        if not callable(network):
            raise TypeError(f"network: expected a callable from image to prediction; got {type(network).__name__}")
        check_transform(transform)
        self.network = network
        self.transform = transform
        self.seed = checks.as_count("seed", seed, low=0)
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, image: torch.Tensor) -> Any:
        """The prediction through one draw, on the grid of `image`, ``BCHW[D]``."""
        generator = torch.Generator(image.device).manual_seed(self._seed())
        self.passes += 1
        view = draw_view(self.transform, image, generator)
        return view.undo(self.network(view.apply(image)))

    def _seed(self) -> int:
        """One for each pass, far from those of the next seed: seeds are spread by a large odd multiplier."""
        return (self.seed * 0x9E3779B97F4A7C15 + int(self.passes)) % 2**63
