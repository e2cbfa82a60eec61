# SPDX-License-Identifier: Apache-2.0
"""`TPGD`: away from the network's own clean prediction, the attack inside TRADES."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.attack import GradientAttack
from monai_smia.attacks.heads import (
    ACTIVATIONS,
    LossFunction,
    activation_of,
    ignore_index,
    is_regression,
    main_output,
)
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Recipe
from monai_smia.attacks.objectives import Objective
from monai_smia.attacks.smia import SoftDivergence
from monai_smia.attacks.steps import Chain, Scale, steepest
from monai_smia.attacks.trial import Trial


@dataclass(frozen=True)
class Drift(Objective):
    """``KL(f(x) || f(x_t))`` from the clean prediction, which carries no gradient; made for one call of an attack.

    Args:
        loss_function: read for its head and its ignored label only.
        activation: the head; ``"auto"`` reads it from the loss.
        clean: the clean prediction, asked for once.
    """

    loss_function: LossFunction
    activation: str
    clean: list[Any] = field(default_factory=list)

    def prepare(self, trial: Trial) -> Trial:
        if not self.clean:
            with torch.no_grad():
                self.clean.append(trial.predict(trial.image))
        return replace(trial, asked=self.clean[0])

    def __call__(self, prediction: Any, target: Any, trial: Trial) -> torch.Tensor:
        activation = activation_of(self.activation, self.loss_function, main_output(prediction))
        divergence = SoftDivergence(activation, ignore_index(self.loss_function))
        return divergence(trial.asked, prediction, target)


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class TPGD(GradientAttack):
    r"""PGD on the divergence from the clean prediction, whatever the label says: the inner attack of TRADES.

    .. math:: d_t = \operatorname{steepest}\big(\nabla_{x_t} \mathrm{KL}(f(x)\,\|\,f(x_t))\big), \qquad
              x_0 = \Pi(x + \sigma\, n), \quad n \sim N(0, I)

    The divergence is summed over classes and averaged over voxels, binary for sigmoid heads. `loss_function` is read
    for the head and reported. The clean prediction is asked for once per call.

    Args:
        noise: :math:`\sigma`, in the network's input units. The start must not be the image: there the divergence has
            no slope.
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.

    Raises:
        ValueError: at construction, for `targeted` (there is no label to reach), for a start without noise, and for a
            regression loss (there are no classes).

    Example:
        >>> import torch
        >>> attack = TPGD(torch.nn.CrossEntropyLoss(), eps=8 / 255, steps=5, bounds=(0.0, 1.0))
        >>> network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1))
        >>> result = attack(network, torch.rand(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8))
        >>> int(result.forward_passes), int(result.backward_passes)
        (8, 5)

    Reference: Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically principled trade-off between robustness and
    accuracy", ICML 2019, https://arxiv.org/abs/1901.08573. Deviations: the start is projected to the ball as well.
    """

    random_start: bool = True
    noise: float = 0.001
    activation: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("activation", self.activation, ("auto", *ACTIVATIONS))
        checks.as_numbers("noise", self.noise, low=0.0)
        if self.targeted:
            raise ValueError("targeted: TPGD leaves the clean prediction and has no label to reach; expected False")
        if not self.random_start or self.noise == 0:
            raise ValueError(
                "random_start: at the image itself the divergence has no slope; expected True with noise > 0; got "
                f"random_start={self.random_start}, noise={self.noise}"
            )
        if is_regression(self.loss_function):
            raise ValueError(f"loss_function: TPGD compares classes; got the regression loss {self.loss_function!r}")

    def start(self, setting: Setting) -> torch.Tensor:
        image, source = setting.image, setting.generator
        noise = torch.randn(image.shape, generator=source, dtype=image.dtype, device=source.device).to(image.device)
        return setting.threat.project(image, image + self.noise * noise)

    def compose(self, setting: Setting) -> Recipe:
        step = Chain([steepest(setting.threat.norm, setting.threat.per_channel), Scale(self.stride(setting))])
        return Recipe(Drift(self.loss_function, self.activation), step, self.steps)
