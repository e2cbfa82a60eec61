# SPDX-License-Identifier: Apache-2.0
"""Windows of the Square attack: boxes of voxels in any rank, one per sample, and the pyramids that fill them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TILES = 5
"""Tiles along each axis of the pyramids that an Lp attack starts from."""


def uniform(shape: tuple[int, ...], source: torch.Generator, device: torch.device) -> torch.Tensor:
    """Numbers in [0, 1), drawn on the generator's own device."""
    return torch.rand(shape, generator=source, dtype=torch.float32, device=source.device).to(device)


def signs(shape: tuple[int, ...], source: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """1 or -1, equally likely, with the dtype and device of `like`."""
    return torch.where(uniform(shape, source, like.device) < 0.5, -1.0, 1.0).to(like.dtype)


@dataclass(frozen=True)
class Frame:
    """The smallest box that holds every voxel that may change, one per sample of ``BCHW[D]``; R spatial axes.

    Attributes:
        shape: the image's spatial size.
        low: first voxel along each axis, ``(B, R)``.
        size: voxels along each axis, ``(B, R)``.

    Example:
        >>> mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
        >>> mask[..., 2:6, 3] = True
        >>> frame = Frame.of(torch.zeros(1, 3, 8, 8), mask)
        >>> frame.low.tolist(), frame.size.tolist()
        ([[2, 3]], [[4, 1]])
    """

    shape: tuple[int, ...]
    low: torch.Tensor
    size: torch.Tensor

    @classmethod
    def of(cls, image: torch.Tensor, mask: torch.Tensor | None) -> Frame:
        """The frame of a mask that broadcasts against `image`; the whole image where it is ``None``."""
        shape, batch = tuple(image.shape[2:]), len(image)
        whole = torch.tensor(shape, device=image.device).expand(batch, -1)
        if mask is None:
            return cls(shape, torch.zeros_like(whole), whole)
        allowed = mask.any(1).expand(batch, *shape)
        lows, highs = [], []
        for axis in range(len(shape)):
            line = allowed.movedim(axis + 1, 1).reshape(batch, shape[axis], -1).any(2).int()
            lows.append(line.argmax(1))
            highs.append(shape[axis] - line.flip(1).argmax(1))
        low = torch.stack(lows, 1)
        return cls(shape, low, torch.stack(highs, 1) - low)

    def sides(self, fraction: float, odd: bool = False) -> torch.Tensor:
        """Sides ``(B, R)`` in voxels of a window with this fraction of the frame, in the frame's own proportions.

        Args:
            fraction: of the frame's voxels, in (0, 1].
            odd: odd sides of at least 3 where the frame has as many, as the pyramids have.
        """
        sides = (self.size.float() * fraction ** (1 / len(self.shape))).round().long().clamp_min(1)
        if odd:
            sides = sides.clamp_min(3)
            sides = torch.minimum(sides + 1 - sides % 2, self.size - 1 + self.size % 2)
        return torch.minimum(sides.clamp_min(1), self.size)

    def draw(self, sides: torch.Tensor, source: torch.Generator) -> Window:
        """A window of these sides, anywhere in the frame with equal chance."""
        places = self.size - sides + 1
        start = (uniform(tuple(sides.shape), source, sides.device) * places).long()
        return Window(self.shape, self.low + torch.minimum(start, places - 1), sides)


@dataclass(frozen=True)
class Window:
    """A box per sample.

    Attributes:
        shape: the image's spatial size.
        start: first voxel along each axis, ``(B, R)``.
        sides: voxels along each axis, ``(B, R)``.
    """

    shape: tuple[int, ...]
    start: torch.Tensor
    sides: torch.Tensor

    def coordinates(self) -> list[torch.Tensor]:
        """For each axis every voxel's index from the window's first one, ``(B, length)``."""
        return [
            torch.arange(length, device=self.start.device) - self.start[:, axis : axis + 1]
            for axis, length in enumerate(self.shape)
        ]

    def inside(self) -> torch.Tensor:
        """Which voxels it holds, ``(B, 1, *spatial)`` bool."""
        held = torch.ones((), dtype=torch.bool, device=self.start.device)
        for axis, place in enumerate(self.coordinates()):
            held = held & _along((place >= 0) & (place < self.sides[:, axis : axis + 1]), axis, len(self.shape))
        return held


def pyramids(
    coordinates: list[torch.Tensor], sides: torch.Tensor, split: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    r"""Two pyramids of opposite sign, side by side along the axis `split`, which together fill a window.

    .. math:: \eta(l) = \sum_{r = d(l)}^{R} \frac{1}{(r + 1)^2}

    d is the largest distance along any axis from the centre of the half that l is in, in voxels, R half the window's
    longest side.

    Args:
        coordinates: for each axis every voxel's index from the window's first one, ``(B, length)``; values outside the
            window are meaningless.
        sides: of the window, ``(B, R)``.
        split: which axis is halved, ``(B,)``.
        dtype: of the result.

    Returns:
        ``(B, 1, *spatial)``.
    """
    rank = sides.shape[1]
    distance = torch.zeros((), dtype=torch.long, device=sides.device)
    sign = torch.ones((), dtype=dtype, device=sides.device)
    for axis, place in enumerate(coordinates):
        side, halved = sides[:, axis : axis + 1], (split == axis)[:, None]
        half, first = side // 2, place < side // 2
        centre = torch.where(halved, torch.where(first, half // 2, half + (side - half) // 2), half)
        distance = torch.maximum(distance, _along((place - centre).abs(), axis, rank))
        sign = sign * _along(torch.where(halved & ~first, -1.0, 1.0).to(dtype), axis, rank)
    # sums from r on, of the image's length whatever the windows are, so that no sample's rounding depends on another's
    longest = max(place.shape[1] for place in coordinates)
    terms = torch.arange(1, longest + 3, dtype=dtype, device=sides.device) ** -2.0
    tail = terms.flip(0).cumsum(0).flip(0)
    beyond = tail[sides.amax(1) // 2 + 1].reshape(-1, *[1] * (rank + 1))
    return sign * (tail[distance.clamp_max(longest)] - beyond)


def tiles(frame: Frame, source: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """The frame tiled with pyramids, five along each axis, with random signs per tile and channel; ``BCHW[D]``."""
    batch, channels, *spatial = like.shape
    rank = len(spatial)
    sides = (frame.size + TILES - 1) // TILES
    split = (uniform((batch,), source, like.device) * rank).long().clamp_max(rank - 1)
    grid = signs((batch, *[TILES] * rank, channels), source, like)
    whole = Window(frame.shape, frame.low, frame.size)
    places = whole.coordinates()
    within = [place % sides[:, axis : axis + 1] for axis, place in enumerate(places)]
    which = [
        _along((place // sides[:, axis : axis + 1]).clamp(0, TILES - 1), axis, rank)[:, 0]
        for axis, place in enumerate(places)
    ]
    sample = torch.arange(batch, device=like.device).reshape(-1, *[1] * rank)
    index = (sample, *which)
    sign = grid[index].movedim(-1, 1)
    return whole.inside() * pyramids(within, sides, split, like.dtype) * sign


def _along(values: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    """``(B, length)`` as one that broadcasts against ``(B, 1, *spatial)``."""
    shape = [1] * rank
    shape[axis] = values.shape[1]
    return values.reshape(len(values), 1, *shape)
