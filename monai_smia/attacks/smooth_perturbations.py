# SPDX-License-Identifier: Apache-2.0
"""`SAP`: smooth adversarial perturbations, the mean of several Gaussian filters of what is optimised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.heads import LossFunction
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.parametrized import ParametrizedAttack, confined
from monai_smia.attacks.smoothing import Gaussian
from monai_smia.attacks.threat_models import LpBall, ThreatModel


@dataclass(frozen=True)
class SmoothedBall(ThreatModel):
    r"""Images at a filtered distance: z is the image plus :math:`\theta` of the ball, and only W's share of it is seen.

    .. math:: A(x, x + \theta) = \operatorname{clip}\Big(x + \frac{1}{K} \sum_{k=1}^{K} W_k * \theta\Big)

    The taps of each filter are positive and sum to 1, and beyond the border there is nothing, so filtering makes no Lp
    norm larger: what is in the ball before is in it after.

    Args:
        ball: budget of :math:`\theta`, bounds and mask.
        kernels: the filters W, with zero padding.
    """

    ball: LpBall
    kernels: tuple[Gaussian, ...]

    def init(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return self.ball.init(image, generator)

    def apply(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        if all(kernel.sigma == 0 for kernel in self.kernels):
            return z
        theta = z - image
        smooth = torch.stack([kernel(theta) for kernel in self.kernels]).mean(0)
        return confined(self.ball, image, image + smooth)

    def project(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.ball.project(image, z)

    def restrict(self, gradient: torch.Tensor) -> torch.Tensor:
        return self.ball.restrict(gradient)

    def feasible(self, gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.ball.feasible(gradient, z)

    def spend(self, update: torch.Tensor, gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.ball.spend(update, gradient, z)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class SAP(ParametrizedAttack):
    r"""Smooth adversarial perturbations: no spikes and no square waves, in signals, images and volumes.

    .. math:: x(\theta) = \operatorname{clip}\Big(x + \frac{1}{K} \sum_{k=1}^{K} W_{\sigma_k} * \theta\Big), \qquad
              \theta_{t+1} = \Pi\big(\theta_t + \alpha \operatorname{steepest}(\nabla_\theta J(f(x(\theta_t)), y))\big)

    eps bounds :math:`\theta` and with it the perturbation, in every norm. Where a voxel meets a bound or the mask's
    edge the perturbation is cut off there, which is the only place where it can be rough. Inputs ``BCL`` (a signal),
    ``BCHW`` and ``BCHWD``.

    Args:
        sigmas: standard deviations :math:`\sigma_k` of the filters along each axis, in `sigma_unit`; 0 is no filter.
            With all of them 0 the attack is BIM, bit for bit.
        kernel_sizes: taps of each filter, odd, as many as `sigmas`, for voxels only; ``None`` takes three standard
            deviations on each side.
        sigma_unit: ``"voxel"`` or ``"mm"``; millimetres read the spacing from the `MetaTensor`'s affine.

    Raises:
        ValueError: at construction, naming the argument.
        TypeError: at the call, when `sigma_unit` is ``"mm"`` and the image is no `MetaTensor`.

    Example:
        >>> import torch
        >>> attack = SAP(torch.nn.CrossEntropyLoss(), eps=0.1, sigmas=(2.0,), steps=3)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> result = attack(network, torch.zeros(1, 1, 64), torch.tensor([0]))
        >>> change = result.adversarial[0, 0].diff().abs().max()  # of an FGSM perturbation: up to 0.2
        >>> bool(change < 0.1 / 2.0)
        True

    Reference: Han, Hu, Foschini, Chinitz, Jankelson, Ranganath, "Deep learning models for electrocardiograms are
    susceptible to adversarial attack", Nature Medicine 26, 2020, https://doi.org/10.1038/s41591-020-0791-x.
    Deviations: starts from no perturbation, not from that of a PGD; default filters for images, see `SAP.authors` for
    those of the ECG; sums over border-cut filters are not renormalised.
    """

    sigmas: Any = (1.0, 2.0, 3.0)
    kernel_sizes: Any = None
    sigma_unit: str = "voxel"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("sigma_unit", self.sigma_unit, ("voxel", "mm"))
        sigmas = checks.as_numbers("sigmas", self.sigmas, low=0.0)
        if not isinstance(sigmas, tuple) or not sigmas or any(isinstance(sigma, tuple) for sigma in sigmas):
            raise ValueError(f"sigmas: expected a sequence of one or more numbers; got {self.sigmas!r}")
        self._set(sigmas=sigmas)
        if self.kernel_sizes is not None:
            if self.sigma_unit == "mm":
                raise ValueError("kernel_sizes: taps are voxels; expected None where sigma_unit is 'mm'")
            if not isinstance(self.kernel_sizes, Sequence) or len(self.kernel_sizes) != len(sigmas):
                raise ValueError(
                    f"kernel_sizes: expected {len(sigmas)} numbers, one per sigma, or None; got {self.kernel_sizes!r}"
                )
            self._set(kernel_sizes=tuple(self.kernel_sizes))
        self._kernels(None)

    @classmethod
    def authors(cls, loss_function: LossFunction, **arguments: Any) -> SAP:
        """The filters of the authors' code for ECGs of 300 Hz: every pair of 5, 7, 11, 15, 19 taps and sigma 1 to 10.

        Args:
            loss_function: J.
            arguments: any of `SAP`'s; they override the preset.
        """
        pairs = [(size, sigma) for size in (5, 7, 11, 15, 19) for sigma in (1.0, 3.0, 5.0, 7.0, 10.0)]
        sizes, sigmas = (tuple(values) for values in zip(*pairs, strict=True))
        return cls(loss_function, **{"sigmas": sigmas, "kernel_sizes": sizes, **arguments})

    def _kernels(self, spacing: tuple[tuple[float, ...], ...] | None) -> tuple[Gaussian, ...]:
        sizes = self.kernel_sizes or [2 * math.ceil(3 * sigma) + 1 for sigma in self.sigmas]
        return tuple(
            Gaussian(sigma, None if spacing else size, spacing=spacing, padding="zeros")
            for sigma, size in zip(self.sigmas, sizes, strict=True)
        )

    def threat_model(self, setting: Setting, progress: float) -> ThreatModel:
        if self.sigma_unit == "voxel":
            return SmoothedBall(setting.threat, self._kernels(None))
        if setting.spacing is None:
            raise TypeError(
                "sigma_unit: 'mm' needs the voxel size; expected a MetaTensor image with an affine, got none"
            )
        return SmoothedBall(setting.threat, self._kernels(setting.spacing))
