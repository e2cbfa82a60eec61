# SPDX-License-Identifier: Apache-2.0
"""The named attacks that any loss serves, each a few parts put together.

All share the arguments of `Attack` and `GradientAttack`; only what differs is documented here. With f the network, J
the loss,
:math:`\\Pi` the projection to the ball and the bounds, every one of them is

.. math:: x_{t+1} = \\Pi\\big(x_t + \\alpha\\, d_t\\big)

for its own direction :math:`d_t`. ``steepest`` is the sign for Linf, the unit vector for L2, and for L1 the sign of
the one percent largest components divided by their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.argument_kinds import in_range
from monai_smia.attacks.attack import Attack, GradientAttack
from monai_smia.attacks.diversity import RandomResize
from monai_smia.attacks.gradients import AtIterate, Diverse, Gradient, LookAhead, VarianceTuned
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Recipe
from monai_smia.attacks.objectives import Deviation
from monai_smia.attacks.smoothing import Gaussian
from monai_smia.attacks.steps import Chain, Momentum, Normalize, Restrict, Scale, Smooth, Step, steepest


def plain_recipe(attack: GradientAttack, setting: Setting, *parts: Step, gradient: Gradient | None = None) -> Recipe:
    """The loss's gradient, through `parts`, then the steepest step."""
    last = steepest(setting.threat.norm, setting.threat.per_channel)
    step = Chain([*parts, last, Scale(attack.stride(setting))])
    return Recipe(Deviation(attack.loss_function, attack.targeted), step, attack.steps, gradient or AtIterate())


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class FGSM(Attack):
    r"""Fast gradient sign method: one step.

    .. math:: x' = \Pi\big(x + \alpha \operatorname{steepest}(\nabla_x J(f(x), y))\big)

    Args:
        step_size: :math:`\alpha`; ``None`` is `eps`. Fast adversarial training takes 1.25 eps after a random start.
        random_start: start from a uniform draw of the ball instead of the image.

    Example:
        >>> import torch
        >>> attack = FGSM(torch.nn.CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0))
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> image = torch.tensor([[[0.5, 0.5]]])
        >>> attack(lambda x: x.flatten(1) @ weights.T, image, torch.tensor([0])).adversarial
        tensor([[[0.4000, 0.6000]]])

    Reference: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015,
    https://arxiv.org/abs/1412.6572. Random start: Wong, Rice, Kolter, ICLR 2020, https://arxiv.org/abs/2001.03994.
    Deviations: L2 and L1 budgets take the steepest step of their norm.
    """

    step_size: Any = None
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            self._set(step_size=checks.as_numbers("step_size", self.step_size, low=0.0))

    @property
    def is_random(self) -> bool:
        return self.random_start

    def start(self, setting: Setting) -> torch.Tensor:
        return setting.threat.init(setting.image, setting.generator if self.random_start else None)

    def compose(self, setting: Setting) -> Recipe:
        size = setting.threat.eps
        if self.step_size is not None:
            size = checks.spread("step_size", self.step_size, setting.image)
        step = Chain([steepest(setting.threat.norm, setting.threat.per_channel), Scale(size)])
        return Recipe(Deviation(self.loss_function, self.targeted), step, steps=1)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class BIM(GradientAttack):
    r"""Basic iterative method: FGSM's step repeated from the image itself.

    .. math:: d_t = \operatorname{steepest}(\nabla_x J(f(x_t), y)), \qquad x_0 = x

    Example:
        >>> import torch
        >>> attack = BIM(torch.nn.CrossEntropyLoss(), eps=8 / 255, steps=5, bounds=(0.0, 1.0))
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> result = attack(network, torch.rand(2, 1, 4, 4), torch.tensor([0, 2]))
        >>> bool((result.loss > result.clean_loss).all())
        True

    Reference: Kurakin, Goodfellow, Bengio, "Adversarial examples in the physical world", 2016, https://arxiv.org/abs/1607.02533.
    Deviations: the step size defaults to ``2.5 * eps / steps`` (the paper steps one grey level).
    """

    def compose(self, setting: Setting) -> Recipe:
        return plain_recipe(self, setting)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class PGD(GradientAttack):
    r"""Projected gradient descent: BIM from a random point of the ball.

    .. math:: d_t = \operatorname{steepest}(\nabla_x J(f(x_t), y)), \qquad x_0 \sim U(B_\varepsilon(x))

    Example:
        >>> import torch
        >>> PGD(torch.nn.CrossEntropyLoss(), eps=0.03, steps=20, bounds=(0.0, 1.0), restarts=3)
        PGD(CrossEntropyLoss(), eps=0.03, bounds=(0.0, 1.0), restarts=3, steps=20)

    Reference: Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks",
    ICLR 2018, https://arxiv.org/abs/1706.06083.
    """

    random_start: bool = True

    def compose(self, setting: Setting) -> Recipe:
        return plain_recipe(self, setting)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class MIFGSM(GradientAttack):
    r"""Momentum iterative FGSM.

    .. math:: m_{t+1} = \mu\, m_t + \frac{\nabla_x J(f(x_t), y)}{\operatorname{mean} |\nabla_x J|}, \qquad
              d_t = \operatorname{steepest}(m_{t+1})

    Args:
        decay: :math:`\mu`, in [0, 1]; 0 gives BIM.

    Reference: Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, https://arxiv.org/abs/1710.06081.
    Deviations: divides by the mean magnitude of each sample, as the published codes do, where the paper writes its L1
    norm; the two differ by a constant factor, which the sign does not see.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("decay", self.decay, 0.0, 1.0)

    def compose(self, setting: Setting) -> Recipe:
        return plain_recipe(self, setting, Normalize(1, mean=True), Momentum(self.decay))


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class NIFGSM(GradientAttack):
    r"""Nesterov iterative FGSM: MI-FGSM with the gradient taken where momentum leads.

    .. math:: m_{t+1} = \mu\, m_t +
              \frac{\nabla_x J(f(x_t + \alpha \mu\, m_t), y)}{\operatorname{mean} |\nabla_x J|}, \qquad
              d_t = \operatorname{steepest}(m_{t+1})

    Args:
        decay: :math:`\mu`, in [0, 1]; 0 gives BIM.

    Reference: Lin et al., "Nesterov accelerated gradient and scale invariance for adversarial attacks", ICLR 2020,
    https://arxiv.org/abs/1908.06281. Deviations: normalises by the mean magnitude, as published codes do (the paper
    writes the L1 norm, for which the look-ahead would vanish); for L2 and L1 budgets by the gradient's norm in them.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("decay", self.decay, 0.0, 1.0)

    def compose(self, setting: Setting) -> Recipe:
        norm = setting.threat.norm
        unit = Normalize(1, mean=True) if norm == math.inf else Normalize(norm)
        gradient = LookAhead(self.decay, self.stride(setting), unit, setting.threat.restrict)
        return plain_recipe(self, setting, gradient=gradient)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class VMIFGSM(GradientAttack):
    r"""Variance-tuned momentum: MI-FGSM on a gradient corrected by its variation around the last iterate.

    .. math:: \hat g_t = \nabla_x J(f(x_t), y) + v_t, \qquad
              v_{t+1} = \frac{1}{N} \sum_{i=1}^{N} \nabla_x J(f(x_t + r_i), y) - \nabla_x J(f(x_t), y), \qquad
              r_i \sim U(B_{\beta \varepsilon})

    Args:
        decay: momentum, in [0, 1].
        neighbours: N; each costs a forward and a backward pass per step.
        beta: :math:`\beta`, radius of the neighbourhood over eps.

    Reference: Wang, He, "Enhancing the transferability of adversarial attacks through variance tuning", CVPR 2021,
    https://arxiv.org/abs/2103.15571. Deviations: normalises by the mean magnitude, see `MIFGSM`.
    """

    decay: float = 1.0
    neighbours: int = 20
    beta: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("decay", self.decay, 0.0, 1.0)
        in_range("beta", self.beta, 0.0)
        checks.as_count("neighbours", self.neighbours)

    def compose(self, setting: Setting) -> Recipe:
        draw = partial(setting.threat.draw, generator=setting.generator, factor=self.beta)
        gradient = VarianceTuned(self.neighbours, draw)
        return plain_recipe(self, setting, Normalize(1, mean=True), Momentum(self.decay), gradient=gradient)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class DIFGSM(GradientAttack):
    r"""Diverse inputs: MI-FGSM on gradients through a random resize and padding R.

    .. math:: m_{t+1} = \mu\, m_t + \frac{\nabla_x J(f(R_t(x_t)), y)}{\operatorname{mean} |\nabla_x J|}

    In 2-D and 3-D. A dense prediction is brought back to the image's grid before the loss, so that labels stay as they
    are.

    Args:
        decay: momentum, in [0, 1]; 0 gives DI-BIM.
        resize_rate: smallest factor of the resize, in (0, 1].
        diversity_probability: how likely a sample is resized at a step; 0 gives MI-FGSM.

    Reference: Xie et al., "Improving transferability of adversarial examples with input diversity", CVPR 2019,
    https://arxiv.org/abs/1803.06978. Deviations: shrinks into a frame of the same size (networks with a fixed input),
    linearly; drawn per sample; the frame is as dark as `bounds` allow (the sample's minimum where unbounded), not zero.
    """

    decay: float = 1.0
    resize_rate: float = 0.9
    diversity_probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("decay", self.decay, 0.0, 1.0)
        if not 0 < self.resize_rate <= 1:
            raise ValueError(f"resize_rate: expected a factor in (0, 1]; got {self.resize_rate!r}")
        if not 0 <= self.diversity_probability <= 1:
            raise ValueError(f"diversity_probability: expected a number in [0, 1]; got {self.diversity_probability!r}")

    def compose(self, setting: Setting) -> Recipe:
        image, bounds = setting.image, setting.threat.bounds
        if image.ndim not in (4, 5):
            raise ValueError(f"image: DIFGSM resizes BCHW and BCHWD; got {tuple(image.shape)}")
        darkest = bounds[0] if bounds is not None else image.amin(tuple(range(1, image.ndim)), keepdim=True)
        resize = RandomResize(self.resize_rate, self.diversity_probability, darkest)
        gradient = Diverse(resize, setting.generator)
        return plain_recipe(self, setting, Normalize(1, mean=True), Momentum(self.decay), gradient=gradient)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class TIFGSM(GradientAttack):
    r"""Translation invariance: steps along the gradient filtered with a Gaussian W.

    .. math:: m_{t+1} = \mu\, m_t + \frac{W * \nabla_x J(f(x_t), y)}{\operatorname{mean} |W * \nabla_x J|}, \qquad
              d_t = \operatorname{steepest}(m_{t+1})

    Args:
        decay: momentum, in [0, 1]; the default 0 is the paper's TI-BIM.
        kernel_size: taps of W along each axis, odd.
        sigma: standard deviation of W in voxels; 0 gives MI-FGSM. The default is the paper's kernel.

    Reference: Dong, Pang, Su, Zhu, "Evading defenses to transferable adversarial examples by translation-invariant
    attacks", CVPR 2019, https://arxiv.org/abs/1904.02884.
    """

    decay: float = 0.0
    kernel_size: int = 15
    sigma: float = 7 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("decay", self.decay, 0.0, 1.0)
        Gaussian(self.sigma, self.kernel_size)

    def compose(self, setting: Setting) -> Recipe:
        smooth = Smooth(Gaussian(self.sigma, self.kernel_size, padding="zeros").on(setting.image))
        inside = Restrict(setting.threat.restrict)
        return plain_recipe(self, setting, smooth, inside, Normalize(1, mean=True), Momentum(self.decay))


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class GaussianNoise(Attack):
    r"""Noise of the attack's size without any gradient: the baseline that an attack must beat.

    .. math:: x' = \Pi(x + \varepsilon\, n), \qquad n \sim N(0, I) \text{ for Linf}, \quad
              n = \frac{N(0, I)}{\|N(0, I)\|_p} \text{ for L2 and L1}

    Args:
        restarts: draws, of which each sample keeps the worst.

    Example:
        >>> import torch
        >>> noise = GaussianNoise(torch.nn.CrossEntropyLoss(), eps=0.25, bounds=(0.0, 1.0))
        >>> result = noise(torch.nn.Flatten(), torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]))
        >>> float((result.adversarial - 0.5).abs().max()) <= 0.25
        True
    """

    @property
    def is_random(self) -> bool:
        return True

    def start(self, setting: Setting) -> torch.Tensor:
        return setting.threat.gaussian(setting.image, setting.generator)

    def compose(self, setting: Setting) -> Recipe:
        return Recipe(Deviation(self.loss_function, self.targeted), Scale(0.0), steps=0)
