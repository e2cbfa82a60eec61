# SPDX-License-Identifier: Apache-2.0
"""`Certificate`: what is certain about the decisions of a smoothed network, in which radius, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks.heads import labels
from monai_smia.certificates.overlap import overlap_counts
from monai_smia.certificates.rows import rows_of
from monai_smia.intensity import IntensityScale
from monai_smia.metrics.reduced import plain

ABSTAIN = -1


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""Certified decisions of a batch, made by `certify`.

    With confidence :math:`1 - \alpha` for each image, no change of the network's input with an L2 norm of at most the
    radius changes a certified decision of the smoothed network

    .. math:: g(x) = \arg\max_k P[f(x + \sigma z) = k], \quad z \sim N(0, I).

    The norm is over the whole image, all its N numbers (channels times voxels): one voxel may change by the whole
    radius if no other does, and every voxel by :math:`R / \sqrt N`, the `per_voxel_radius`. That root mean square is
    the number to compare with the eps of a Linf attack, whose ball is inside the certified one if eps is no larger.

    Attributes:
        prediction: certified decisions, `ABSTAIN` (-1) where there is none, int32: classes ``(B, *spatial)``, or 0 and
            1 ``(B, C, *spatial)`` for a head of which each channel is a decision (sigmoid). A classifier's have no
            spatial axes.
        guess: the same decisions without abstention, not certified.
        votes: how many of `samples` agree with the guess, int32.
        radius: certified L2 radius in the network's input units, float64, of the shape of `prediction` for a classifier
            (0 where it abstains), ``(B,)`` for a segmentation, whose certified voxels share it.
        p_lower: lower bound of a classifier's probability of its guess, float64; ``None`` for a segmentation, whose
            certified probabilities are above `tau`.
        classes: channels of the prediction.
        size: N, numbers of an image.
        sigma: standard deviation of the noise, in the network's input units.
        samples, first_samples, alpha, tau, correction: as `certify` was given them; `tau` is ``None`` for a classifier.
        intensity: physical unit of the input; ``None`` for network units.

    Example:
        >>> votes = torch.tensor([970, 510], dtype=torch.int32)
        >>> certificate = Certificate(
        ...     torch.tensor([1, ABSTAIN]), torch.tensor([1, 0]), votes, torch.tensor([0.82, 0.0]).double(),
        ...     torch.tensor([0.949, 0.461]).double(), classes=2, size=100, sigma=0.5, samples=1000, first_samples=100,
        ...     alpha=0.001, intensity=IntensityScale(-1000, 400),
        ... )
        >>> certificate.certified_accuracy(torch.tensor([1, 0]), 0.5).tolist(), certificate.abstain_rate.tolist()
        ([1.0, 0.0], [0.0, 1.0])
        >>> [round(float(r[0]), 4) for r in (certificate.physical_radius, certificate.per_voxel_radius)]  # HU
        [1148.0, 114.8]
    """

    prediction: torch.Tensor = field(repr=False)
    guess: torch.Tensor = field(repr=False)
    votes: torch.Tensor = field(repr=False)
    radius: torch.Tensor
    p_lower: torch.Tensor | None
    classes: int
    size: int
    sigma: float
    samples: int
    first_samples: int
    alpha: float
    tau: float | None = None
    correction: str = "holm"
    binary: bool = False
    intensity: IntensityScale | None = None

    def __len__(self) -> int:
        """Images of the batch."""
        return len(self.prediction)

    @property
    def abstained(self) -> torch.Tensor:
        """Where nothing is certified: booleans of the shape of `prediction`."""
        return self.prediction == ABSTAIN

    @property
    def abstain_rate(self) -> torch.Tensor:
        """Share of each image's decisions that are not certified, ``(B,)``, float64."""
        return _share(self.abstained)

    @property
    def unit(self) -> str:
        """The unit of `physical_radius` and `per_voxel_radius`."""
        return "network units" if self.intensity is None else self.intensity.unit

    @property
    def physical_radius(self) -> torch.Tensor:
        """`radius` in `unit`: the L2 norm over the image of a change of intensities.

        Where the preprocessing clips, it holds for the image before as well: clipping makes no change larger.
        Resampling does, so the voxels are those that the network is given. Where it scales each image by its own
        statistics (``%``, ``SD``), it holds for the scaled image only: a change of the image changes these too.
        """
        return self.in_unit(self.radius)

    @property
    def per_voxel_radius(self) -> torch.Tensor:
        """`physical_radius` by the root of N, in `unit`: each voxel may change by this, all at once."""
        return self.physical_radius / math.sqrt(self.size)

    def in_unit(self, size: Any) -> Any:
        """A size of a change, from network units to `unit`."""
        return size if self.intensity is None else self.intensity.to_physical(size)

    def held(self, radius: float = 0.0) -> torch.Tensor:
        """Decisions certified in this L2 radius, in network units: booleans of the shape of `prediction`."""
        if not radius >= 0:
            raise ValueError(f"radius: expected a number >= 0, in network units; got {radius!r}")
        wide = self.radius.reshape(*self.radius.shape, *[1] * (self.prediction.ndim - self.radius.ndim))
        return ~self.abstained & (wide >= radius)

    def certified_accuracy(self, label: torch.Tensor, radius: float = 0.0) -> torch.Tensor:
        """Share of each image's decisions that are right and certified; abstaining counts as wrong.

        Args:
            label: ``(B,)``, ``(B, 1, H, W[, D])``, ``(B, H, W[, D])`` or one-hot.
            radius: L2, in network units.

        Returns:
            ``(B,)``, float64: 0 or 1 for a classifier of one decision. Its mean over images is what papers plot.

        Raises:
            ValueError: when the label fits no layout, or the radius is negative.
        """
        return _share(self.held(radius) & (self.prediction == self._label(label)))

    def certified_dice(self, label: torch.Tensor, radius: float = 0.0) -> torch.Tensor:
        r"""Dice of each class that no change in the radius can bring the smoothed network under.

        Every voxel that is not certified counts as wrong for the class in the worst way: as missed where the label has
        the class, as invented where it has not (set U).

        .. math:: D_k = \frac{2 |P_k \cap Y_k|}{|P_k| + |Y_k| + |U \setminus Y_k|}

        Args:
            label: as in `certified_accuracy`.
            radius: L2, in network units; above the certified one nothing is certain, and the Dice is 0.

        Returns:
            ``(B, K)``, float64; of the positive class only where each channel is binary. NaN where the label lacks the
            class and no voxel may become it.

        Raises:
            ValueError: for a classifier, and as `certified_accuracy`.
        """
        both, invented, missed = self._overlap(label, radius)
        return 2 * both / (2 * both + invented + missed)

    def certified_iou(self, label: torch.Tensor, radius: float = 0.0) -> torch.Tensor:
        """Intersection over union, with the same worst case, arguments, shape and errors as `certified_dice`."""
        both, invented, missed = self._overlap(label, radius)
        return both / (both + invented + missed)

    def to_rows(
        self,
        label: torch.Tensor | None = None,
        radii: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        include_background: bool = False,
    ) -> list[dict[str, Any]]:
        """A row of plain numbers for each image and radius, for `certificate_table`; see `rows_of`."""
        return rows_of(self, label, radii, names, include_background)

    def _label(self, label: torch.Tensor) -> torch.Tensor:
        """The label as the prediction is laid out."""
        spatial = self.prediction.shape[2 if self.binary else 1 :]
        output = torch.empty((len(self), self.classes, *spatial), device="meta")
        return labels(plain(label), output, "sigmoid" if self.binary else "softmax").to(self.prediction.device)

    def _overlap(self, label: torch.Tensor, radius: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.tau is None:
            raise ValueError("certificate: expected a segmentation, whose voxels overlap; got one of a classifier")
        prediction = self.prediction.masked_fill(~self.held(radius), ABSTAIN)
        return overlap_counts(prediction, self._label(label), self.classes, self.binary)


def _share(where: torch.Tensor) -> torch.Tensor:
    return where.reshape(len(where), -1).double().mean(1)
