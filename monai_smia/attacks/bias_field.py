# SPDX-License-Identifier: Apache-2.0
"""`BiasField`: a smooth multiplicative field, as a coil's uneven sensitivity leaves it on MR images, as an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.balls import clamp
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.parametrized import ParametrizedAttack, confined, only_linf
from monai_smia.attacks.steps import Chain, Scale, Sign, Step
from monai_smia.attacks.threat_models import LpBall, Size, ThreatModel


def bspline_basis(size: int, count: int, order: int) -> torch.Tensor:
    """A clamped uniform B-spline's basis functions at evenly spaced points, the ends included.

    Every value is in [0, 1] and every row sums to 1, so that a spline stays between the lowest and the highest of its
    control values.

    Args:
        size: number of points.
        count: number of control values.
        order: degree of the pieces; at most ``count - 1`` of it is used, which makes one polynomial.

    Returns:
        ``(size, count)``, double precision.

    Example:
        >>> bspline_basis(3, 2, 1)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    degree = min(order, count - 1)
    inner = torch.linspace(0, 1, count - degree + 1, dtype=torch.float64)
    knots = torch.cat((torch.zeros(degree), inner, torch.ones(degree)))
    x = torch.linspace(0, 1, size, dtype=torch.float64)[:, None]
    span = torch.searchsorted(inner, x, right=True).clamp(1, len(inner) - 1) - 1 + degree
    basis = (torch.arange(len(knots) - 1) == span).double()
    for p in range(1, degree + 1):
        low, high = knots[: -p - 1], knots[p + 1 :]
        rise = (knots[p:-1] - low).clamp_min(1e-300)
        fall = (high - knots[1:-p]).clamp_min(1e-300)
        basis = (x - low) / rise * basis[:, :-1] + (high - x) / fall * basis[:, 1:]
    return basis


@dataclass(frozen=True)
class SmoothField(ThreatModel):
    r"""Images times a field: z are the control values of a tensor-product spline, the field's logarithm.

    .. math:: A(x, z) = \operatorname{clip}\big(o + b_z\, (x - o)\big), \qquad \log b_z = B z, \qquad
              \log(1 - \varepsilon) \le z \le \log(1 + \varepsilon)

    As the rows of B are weights that sum to 1, the field is in :math:`[1 - \varepsilon, 1 + \varepsilon]` everywhere.

    Args:
        eps: largest relative deviation of the field, under 1.
        bases: B along each spatial axis, ``(voxels, control values)``.
        origin: intensity o of no signal.
        ball: bounds and mask.
        per_channel: whether every channel has a field of its own.
    """

    eps: Size
    bases: tuple[torch.Tensor, ...]
    origin: Size
    ball: LpBall
    per_channel: bool

    @property
    def limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest control value."""
        eps = torch.as_tensor(self.eps, dtype=self.bases[0].dtype, device=self.bases[0].device)
        return torch.log1p(-eps), torch.log1p(eps)

    def init(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        counts = [basis.shape[1] for basis in self.bases]
        shape = (len(image), image.shape[1] if self.per_channel else 1, *counts)
        if generator is None:
            return torch.zeros(shape, dtype=image.dtype, device=image.device)
        low, high = self.limits
        draw = torch.rand(shape, generator=generator, dtype=image.dtype, device=generator.device)
        return low + (high - low) * draw.to(image.device)

    def log_field(self, z: torch.Tensor) -> torch.Tensor:
        """The field's logarithm, ``(B, C | 1, H, W[, D])``."""
        for axis, basis in enumerate(self.bases, start=2):
            z = (z.movedim(axis, -1) @ basis.T).movedim(-1, axis)
        return z

    def apply(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        gained = torch.expm1(self.log_field(z)) * (image - self.origin)
        return confined(self.ball, image, image + gained)

    def project(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return clamp(z, *self.limits)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class BiasField(ParametrizedAttack):
    r"""Adversarial bias field: the image times a smooth field, positive and near 1.

    .. math:: x' = \operatorname{clip}\big(o + b\, (x - o)\big), \qquad
              \log b(u) = \sum_{ijk} z_{ijk}\, B_i(u_1) B_j(u_2) B_k(u_3), \qquad |b - 1| \le \varepsilon

    B are clamped uniform B-splines. z takes sign steps; as a spline stays between its control values, clamping them
    keeps the field in its range.

    eps is the largest relative deviation of the field, not an Lp radius of the image: with ``eps=0.1`` the field is in
    [0.9, 1.1]. A voxel changes by at most eps times its distance from `origin`. Bounds and mask hold as for every
    attack; outside the mask the field is 1, with an edge where the mask ends.

    Args:
        eps: in [0, 1); a number, one per sample, or one per channel with `per_channel`.
        norm: ``inf``; there is no other.
        control_points: control values along every axis, or one number per axis, at least 1 each; more of them make a
            field that varies faster. 1 is a constant along that axis. Axes of another size in millimetres want other
            numbers.
        order: degree of the spline, at least 1: 1 interpolates linearly, 3 smoothly. An axis with ``order + 1`` or
            fewer control values holds one polynomial; so the default is a cubic polynomial.
        origin: intensity of no signal, in the network's input units, a number or one per channel: the value that a
            voxel of air has. 0 where images are scaled to [0, 1].
        per_channel: a field for every channel, as for sequences of different coils; else one for all.
        step_size: of a step of z, in units of the logarithm of the field; ``None`` is
            ``-2.5 * log(1 - eps) / steps``.
        random_start: start from uniformly drawn control values.

    Raises:
        ValueError: at construction, naming the argument; at the call, when `control_points` does not fit the rank, or
            eps has one value per channel of a common field.

    Example:
        >>> import torch
        >>> attack = BiasField(torch.nn.CrossEntropyLoss(), eps=0.1, control_points=1, bounds=(0.0, 1.0))
        >>> weights = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        >>> attack(lambda x: x.flatten(1) @ weights.T, torch.full((1, 1, 2), 0.5), torch.tensor([0])).adversarial
        tensor([[[0.4500, 0.4500]]])

    Reference: Chen, Qin, Qiu, Ouyang, Wang, Chen, Tarroni, Bai, Rueckert, "Realistic adversarial data augmentation for
    MR image segmentation", MICCAI 2020, https://arxiv.org/abs/2006.13322 (cubic spline of 4 x 4 control points in the
    logarithm); Tian, Guo, Juefei-Xu, Chan, Cheng, Li, Xie, Qin, "Bias field poses a threat to DNN-based X-ray
    recognition", ICME 2021, https://arxiv.org/abs/2009.09247 (polynomial, any loss). Deviations: the range is kept by
    clamping control values instead of scaling the field back; sign steps; no network-generated fields.
    """

    control_points: Any = 4
    order: int = 3
    origin: Any = 0.0
    per_channel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        only_linf("BiasField", self.norm, "the largest relative deviation of the field")
        if not bool((torch.tensor(self.eps) < 1).all()):
            raise ValueError(
                f"eps: expected a relative deviation in [0, 1), so that the field is positive; got {self.eps}"
            )
        checks.as_count("order", self.order)
        self._set(origin=checks.as_numbers("origin", self.origin))
        counts = self.control_points
        if isinstance(counts, Sequence) and not isinstance(counts, str):
            self._set(control_points=tuple(checks.as_count("control_points", count) for count in counts))
        else:
            checks.as_count("control_points", counts)

    def stride(self, setting: Setting) -> Size:
        if self.step_size is not None:
            return super().stride(setting)
        eps = torch.as_tensor(setting.threat.eps, dtype=setting.image.dtype, device=setting.image.device)
        return torch.log1p(-eps) * (-2.5 / self.steps)

    def direction(self, setting: Setting) -> Step:
        return Chain([Sign(), Scale(self.stride(setting))])

    def threat_model(self, setting: Setting, progress: float) -> ThreatModel:
        image, threat = setting.image, setting.threat
        sizes = image.shape[2:]
        counts = self.control_points if isinstance(self.control_points, tuple) else (self.control_points,) * len(sizes)
        if len(counts) != len(sizes):
            raise ValueError(
                f"control_points: expected a number or {len(sizes)}, one per spatial axis of an image "
                f"{tuple(image.shape)}; got {self.control_points}"
            )
        if threat.per_channel and not self.per_channel:
            raise ValueError(
                f"eps: all channels share a field; expected per_channel=True for one per channel; got {self.eps}"
            )
        bases = (bspline_basis(size, count, self.order).to(image) for size, count in zip(sizes, counts, strict=True))
        origin = checks.spread("origin", self.origin, image, samples=False)
        return SmoothField(threat.eps, tuple(bases), origin, threat, self.per_channel)
