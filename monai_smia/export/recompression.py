# SPDX-License-Identifier: Apache-2.0
"""`Recompression`: JPEG at a random quality, for attacks that shall outlast it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.utils import optional_import

from monai_smia.attacks import BPDA
from monai_smia.export.soft_jpeg import SoftJPEG

Image, _ = optional_import("PIL.Image")

SAMPLES = 4
"""Qualities that a gradient is the mean of."""


class Recompression:
    r"""What viewers, archives and web pages do to a picture: JPEG of a quality that is not known beforehand.

    .. math:: t_q(x) = \mathrm{JPEG}_q(x), \qquad q \sim \mathcal{U}\{q_{\min}, \dots, q_{\max}\}, \qquad
              \frac{\partial t_q}{\partial x} := \frac{\partial \hat g_q}{\partial x}

    Forward it is Pillow's own encoder and decoder, backward `SoftJPEG` at the same quality, :math:`\hat g_q`. As the
    transform of `EoT` it makes an attack on the mean over qualities.

    Args:
        qualities: :math:`q_{\min}, q_{\max}`, whole numbers from 1 to 100; every image draws its own.
        before: what the picture goes through first, ``(1 or 3, width, height)`` to the same: the file that is
            compressed again.

    Raises:
        ImportError: at the call, without Pillow.
        ValueError: at construction, for other numbers; at the call, for pictures that JPEG does not hold.

    Example:
        .. code-block:: python

            attack = EoT(PGD(loss, eps=2.0, bounds=(0.0, 255.0)), Recompression((50, 95)), samples=4)
            attacked = native_case(evaluator, 0).attack(attack)

    Reference: Athalye, Engstrom, Ilyas, Kwok, "Synthesizing robust adversarial examples", ICML 2018,
    https://arxiv.org/abs/1707.07397. Deviation: the codec has no gradient, so that of a differentiable copy
    stands in for it (BPDA); the forward pass is the encoder that users have.
    """

    def __init__(
        self, qualities: Sequence[int] = (50, 95), before: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self.qualities = as_qualities(qualities)
        self.before = before

    def __call__(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The picture after a round trip.

        Args:
            image: ``(B, 1 or 3, width, height)``, grey levels, 0 to 255.
            generator: source of the quality.
        """
        low, high = self.qualities
        drawn = torch.randint(low, high + 1, (len(image),), generator=generator, device=generator.device).tolist()

        def trip(pixels: torch.Tensor) -> torch.Tensor:
            return torch.stack([as_jpeg(one, quality) for one, quality in zip(pixels, drawn, strict=True)])

        def soft_trip(pixels: torch.Tensor) -> torch.Tensor:
            copies = [SoftJPEG.of_quality(quality, pixels.shape[1]) for quality in drawn]
            return torch.stack([copy(one) for copy, one in zip(copies, pixels, strict=True)])

        plain = image.as_subclass(torch.Tensor)
        if self.before is not None:
            plain = torch.stack([self.before(one) for one in plain])
        through: torch.Tensor = BPDA(trip, soft_trip)(plain)
        return through

    def __repr__(self) -> str:
        return f"Recompression({self.qualities})"


def as_qualities(qualities: Sequence[int]) -> tuple[int, int]:
    """Two qualities in their order.

    Raises:
        ValueError: for anything else.
    """
    ends = tuple(qualities)
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if len(ends) != 2 or not whole or not 1 <= ends[0] <= ends[1] <= 100:
        raise ValueError(f"qualities: expected (lowest, highest), whole numbers from 1 to 100; got {qualities!r}")
    return ends[0], ends[1]


def as_jpeg(pixels: torch.Tensor, quality: int) -> torch.Tensor:
    """A picture ``(1 or 3, width, height)`` in grey levels after a round trip through JPEG."""
    if pixels.ndim != 3 or len(pixels) not in (1, 3):
        raise ValueError(f"image: expected pictures (B, 1 or 3, width, height) for JPEG; got {tuple(pixels.shape)}")
    levels = pixels.round().clamp(0, 255).byte().cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(levels[0].T if len(levels) == 1 else levels.T)).save(
        stream, "JPEG", quality=quality
    )
    with Image.open(stream) as image:
        array = np.asarray(image).T
    grid = torch.from_numpy(np.array(array, dtype=np.float32))
    return (grid if grid.ndim == 3 else grid.unsqueeze(0)).to(pixels)
