# SPDX-License-Identifier: Apache-2.0
"""`VAFA`: volumetric adversarial frequency attack, on the quantisation of an image's block-wise cosine transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.argument_kinds import in_range
from monai_smia.attacks.balls import clamp
from monai_smia.attacks.frequency import BlockDCT
from monai_smia.attacks.hunt import Hunt, Setting
from monai_smia.attacks.parametrized import ParametrizedAttack, confined, only_linf
from monai_smia.attacks.similarity import structural_similarity
from monai_smia.attacks.steps import Chain, Scale, Sign, Step
from monai_smia.attacks.threat_models import LpBall, Size, ThreatModel
from monai_smia.attacks.trial import Trial

SHARPEST = 1e-4  # under this softness a sigmoid's slope is nothing but rounding


def soft_round(value: torch.Tensor, softness: float) -> torch.Tensor:
    r"""Rounding with a slope: a scaled tanh between each integer and the next.

    .. math:: \lfloor v \rfloor + \frac{1}{2}\Big(1 + \frac{\tanh\big(k (v - \lfloor v \rfloor - \frac12)\big)}
              {1 - a}\Big), \qquad k = \log(2 / a - 1)

    Integers and halves stay where they are; nothing moves by more than a half.

    Args:
        value: any shape.
        softness: a in [0, 1); 0 rounds, a half up.

    Example:
        >>> soft_round(torch.tensor([1.0, 1.4, 1.5, 1.9]), 0.1)
        tensor([1.0000, 1.3410, 1.5000, 1.9593])
        >>> soft_round(torch.tensor([1.0, 1.4, 1.5, 1.9]), 0.0)
        tensor([1., 1., 2., 2.])
    """
    if softness < SHARPEST:
        return torch.floor(value + 0.5)
    floor = torch.floor(value.detach())
    steepness = math.log(2 / softness - 1)
    return floor + (1 + torch.tanh(steepness * (value - floor - 0.5)) / (1 - softness)) / 2


@dataclass(frozen=True)
class QuantizedBlocks(ThreatModel):
    r"""Images whose cosine coefficients are rounded to multiples of z, a table of steps, one per coefficient.

    .. math:: A(x, z) = \operatorname{clip}\Big(x + \mathrm{DCT}^{-1}\big(z \odot \mathrm{round}(c / z) - c\big)\Big),
              \qquad c = \mathrm{DCT}(x - m), \qquad \rho\, \varepsilon \le z \le \varepsilon

    Args:
        eps: largest step, in the network's input units; 0 rounds nothing.
        floor: smallest step over eps, :math:`\rho`.
        dct: the transform.
        centre: intensity m that counts as zero.
        softness: of the rounding.
        ball: bounds and mask.
    """

    eps: Size
    floor: float
    dct: BlockDCT
    centre: Size
    softness: float
    ball: LpBall

    def init(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        table = torch.ones_like(self.dct.forward(image)) * self.eps
        if generator is None:
            return table
        draw = torch.rand(table.shape, generator=generator, dtype=image.dtype, device=generator.device)
        return table * (self.floor + (1 - self.floor) * draw.to(image.device))

    def apply(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        coefficients = self.dct.forward(image - self.centre)
        positive = z > 0
        step = torch.where(positive, z, 1.0)
        rounded = step * soft_round(coefficients / step, self.softness)
        error = torch.where(positive, rounded - coefficients, 0.0)
        return confined(self.ball, image, image + self.dct.inverse(error, image.shape))

    def project(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return clamp(z, self.eps * self.floor, self.eps)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class VAFA(ParametrizedAttack):
    r"""Volumetric adversarial frequency attack: information is dropped where the network needs it.

    .. math:: x'(q) = \operatorname{clip}\Big(m + \mathrm{DCT}^{-1}\big(q \odot \phi(\mathrm{DCT}(x - m) / q)\big)\Big),
              \qquad q_{t+1} = \operatorname{clip}_{[\rho \varepsilon, \varepsilon]}\Big(q_t + \alpha
              \operatorname{sign} \nabla_q \big[ J(f(x'(q_t)), y) + w\, \mathrm{SSIM}(x, x'(q_t)) \big]\Big)

    The transform is taken in blocks, every block and every frequency with a step q of its own, starting at
    :math:`q = \varepsilon`. :math:`\phi` rounds softly, ever harder from step to step; the image returned is rounded
    for good, so that it holds whole multiples of q. In 2-D the same attack works on pictures (AdvDrop).

    eps is the largest quantisation step of a coefficient, in the network's input units, not an Lp radius of the image:
    the paper's 20 grey levels are ``20 / 255`` for images in [0, 1]. As the transform is orthonormal, a whole block
    changes by at most ``eps / 2`` root mean square; a single voxel may change more. Bounds and mask hold as
    for every attack. A sample whose gradients are of no use comes back quantised with the first table, not as it was.

    Args:
        eps: largest entry of the table; a number, one per sample or one per channel.
        norm: ``inf``; there is no other.
        steps: iterations.
        step_size: of the table's entries; ``None`` is ``eps / steps`` (the authors': 1 grey level for eps 20 in 20
            steps).
        block_size: voxels along every axis, or one number per axis; a shorter axis is one block. Anisotropic volumes
            want fewer voxels along their thick axis.
        floor: :math:`\rho`, smallest entry over eps, in (0, 1]; the authors' is 5 over 20.
        ssim_weight: w, of the structural similarity (box of 3 voxels) to the clean image; 0 leaves it out.
        softness: of the first step's rounding, in [0, 1), see `soft_round`; it falls linearly to 0.
        random_start: start from a table drawn uniformly from its range.

    Raises:
        ValueError: at construction, naming the argument; at the call, when `block_size` does not fit the rank.

    Example:
        >>> import torch
        >>> attack = VAFA(torch.nn.CrossEntropyLoss(), eps=20 / 255, block_size=(8, 8, 4), bounds=(0.0, 1.0), steps=4)
        >>> network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1))
        >>> image = torch.rand(1, 1, 12, 12, 6)
        >>> change = attack(network, image, torch.zeros(1, 1, 12, 12, 6)).adversarial - image
        >>> bool(0 < change.abs().max()) and bool(change.square().mean().sqrt() < 10 / 255)
        True

    Reference: Hanif, Naseer, Khan, Shah, Khan, "Frequency domain adversarial training for robust volumetric medical
    segmentation", MICCAI 2023, https://arxiv.org/abs/2307.07269; soft rounding: Duan, Chen, Niu, Yang, Qin, He,
    "AdvDrop", ICCV 2021, https://arxiv.org/abs/2108.09034. Deviations: pads instead of refusing sizes that blocks do
    not divide; clips to the bounds where the published code stretches every slice to [0, 1]; returns the hard-rounded
    image of the last table where that code returns the last soft one.
    """

    steps: int = 20
    block_size: Any = 32
    floor: float = 0.25
    ssim_weight: float = 1.0
    softness: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        only_linf("VAFA", self.norm, "the largest quantisation step of a coefficient")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor: expected a number in (0, 1]; got {self.floor!r}")
        if not 0 <= self.softness < 1:
            raise ValueError(f"softness: expected a number in [0, 1); got {self.softness!r}")
        in_range("ssim_weight", self.ssim_weight, 0.0)
        if isinstance(self.block_size, Sequence) and not isinstance(self.block_size, str):
            self._set(block_size=tuple(checks.as_count("block_size", size) for size in self.block_size))
        else:
            checks.as_count("block_size", self.block_size)

    def stride(self, setting: Setting) -> Size:
        return setting.threat.eps / self.steps if self.step_size is None else super().stride(setting)

    def direction(self, setting: Setting) -> Step:
        return Chain([Sign(), Scale(self.stride(setting))])

    def penalty(self, setting: Setting, adversarial: torch.Tensor) -> torch.Tensor | None:
        if self.ssim_weight == 0:
            return None
        image, bounds = setting.image, setting.threat.bounds
        axes = tuple(range(1, image.ndim))
        width = bounds[1] - bounds[0] if bounds else image.amax(axes, keepdim=True) - image.amin(axes, keepdim=True)
        width = torch.as_tensor(width, dtype=image.dtype, device=image.device).clamp_min(torch.finfo(image.dtype).eps)
        return -self.ssim_weight * structural_similarity(image, adversarial, width)

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        def observe(trial: Trial, prediction: Any) -> None:
            # without a random start a first prediction is taken for that of the clean image, which this one is not
            hunt.observe(trial, None if trial.step == 0 else prediction)

        return super().search(replace(hunt, observe=observe))

    def threat_model(self, setting: Setting, progress: float) -> ThreatModel:
        image, threat = setting.image, setting.threat
        blocks = self.block_size if isinstance(self.block_size, tuple) else (self.block_size,) * (image.ndim - 2)
        centre = 0.0 if threat.bounds is None else (threat.bounds[0] + threat.bounds[1]) / 2
        softness = self.softness * (1 - progress)
        return QuantizedBlocks(threat.eps, self.floor, BlockDCT(blocks), centre, softness, threat)
