# SPDX-License-Identifier: Apache-2.0
"""`BlockDCT`: the cosine transform of an image in blocks, of any rank and any block size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


def dct_matrix(size: int) -> torch.Tensor:
    r"""The orthonormal cosine transform (DCT-II) of `size` values; its transpose is the inverse.

    .. math:: D_{kn} = s_k \cos\frac{\pi k (2n + 1)}{2N}, \qquad s_0 = \sqrt{1/N}, \quad s_k = \sqrt{2/N}

    Args:
        size: N.

    Returns:
        ``(size, size)``, double precision, one row per frequency.

    Example:
        >>> dct_matrix(2)
        tensor([[ 0.7071,  0.7071],
                [ 0.7071, -0.7071]], dtype=torch.float64)
    """
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / (2 * size) * n[:, None] * (2 * n + 1)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


@dataclass(frozen=True)
class BlockDCT:
    """Orthonormal cosine transform of every block of an image, each channel by itself.

    Axes that the block does not divide are padded at their end with their last value; `inverse` cuts that off. The
    coefficients lie where their block lies: those of the first block of ``BCHW[D]`` are ``[:, :, :b1, :b2[, :b3]]``.

    Args:
        block_size: voxels along each spatial axis, one number per axis; an axis that is shorter is one block.

    Example:
        >>> image = torch.arange(12.0).reshape(1, 1, 4, 3)
        >>> dct = BlockDCT((2, 2))
        >>> coefficients = dct.forward(image)
        >>> coefficients.shape  # the second axis was padded to two blocks
        torch.Size([1, 1, 4, 4])
        >>> torch.allclose(dct.inverse(coefficients, image.shape), image, atol=1e-5)
        True
    """

    block_size: tuple[int, ...]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Coefficients of ``BCHW[D]``, padded to whole blocks, ``BCH'W'[D']``."""
        for axis, block in self._blocks(image.shape):
            size = image.shape[axis]
            if size % block:
                where = torch.arange(math.ceil(size / block) * block, device=image.device).clamp_max(size - 1)
                image = image.index_select(axis, where)
            image = _along(image, axis, dct_matrix(block).to(image))
        return image

    def inverse(self, coefficients: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The image of size `shape`, ``BCHW[D]``, that has these coefficients."""
        for axis, block in self._blocks(shape):
            coefficients = _along(coefficients, axis, dct_matrix(block).T.to(coefficients))
            coefficients = coefficients.narrow(axis, 0, shape[axis])
        return coefficients

    def _blocks(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        sizes = tuple(shape)[2:]
        if len(sizes) != len(self.block_size):
            raise ValueError(
                f"block_size: expected {len(sizes)} numbers, one per spatial axis of an image {tuple(shape)}; "
                f"got {self.block_size}"
            )
        return [(i, min(b, s)) for i, (b, s) in enumerate(zip(self.block_size, sizes, strict=True), start=2)]


def _along(image: torch.Tensor, axis: int, matrix: torch.Tensor) -> torch.Tensor:
    """The matrix times each stretch of its length along an axis."""
    last = image.movedim(axis, -1)
    stretches = last.reshape(*last.shape[:-1], -1, len(matrix))
    return (stretches @ matrix.T).flatten(-2).movedim(-1, axis)
