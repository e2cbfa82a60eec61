# SPDX-License-Identifier: Apache-2.0
"""`EoT`: any attack of the one loop, on gradients averaged over a random preprocessing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.attack import Attack
from monai_smia.attacks.combination import Combination
from monai_smia.attacks.gradients import Ask, AtIterate, Gradient
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Recipe
from monai_smia.attacks.random_views import Through, Transform, check_transform, draw_view


@dataclass(frozen=True)
class Expectation(Gradient):
    r"""The mean of gradients, each through a draw of its own.

    .. math:: g = \frac{1}{n} \sum_{i=1}^{n} \nabla_x J\big(f(t_i(x)), y\big), \qquad t_i \sim T

    A draw whose gradient is not finite counts as zero.

    Args:
        samples: n; each costs a forward and a backward pass.
        transform: T, see `Transform`; ``None`` where the network draws by itself.
        generator: source of the draws.
        inner: where each gradient is taken.
    """

    samples: int
    transform: Transform | None
    generator: torch.Generator
    inner: Gradient = field(default_factory=AtIterate)

    def init(self, z: torch.Tensor) -> Any:
        return self.inner.init(z)

    def update(self, ask: Ask, adversarial: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any, Any]:
        def mean(at: torch.Tensor, view: Any = None) -> tuple[torch.Tensor, Any]:
            total, prediction = torch.zeros_like(at), None
            for _ in range(self.samples):
                through = view
                if self.transform is not None:
                    drawn = draw_view(self.transform, at, self.generator)
                    through = drawn if view is None else Through(view, drawn)
                gradient, prediction = ask(at, through)
                total = total + gradient
            return total / self.samples, prediction

        gradient, prediction, state = self.inner.update(mean, adversarial, state)
        return gradient, prediction if self.transform is None else None, state


@dataclass(frozen=True, repr=False, eq=False)
class EoT(Combination):
    r"""Expectation over transformation: an attack that follows the mean gradient over a random preprocessing.

    .. math:: \nabla_x\, \mathbb{E}_{t \sim T}\, J\big(f(t(x)), y\big) \approx
              \frac{1}{n} \sum_{i=1}^{n} \nabla_x J\big(f(t_i(x)), y\big)

    Two uses. A preprocessing that the image will meet on its way and the network does not hold (a rescaling, noise of
    a scanner) is given as `transform`; loss and success are the network's at the image as it is. A network that draws
    by itself (`RandomPreprocessing`) needs `samples` only; loss and success are those of one draw. The draws come from
    the generator of the call, new at each step; both passes of each are counted.

    Args:
        attack: one that steps along gradients in the one loop: PGD, MI-FGSM, SMIA, ...
        transform: T: ``transform(image, generator)``, differentiable, which leaves voxels in place, or an object whose
            ``draw(image, generator)`` gives views that are undone on dense predictions, as `RandomResize`. ``None``
            where the network draws by itself.
        samples: n, draws per gradient.
        eps, norm: see `Combination`.

    Raises:
        TypeError: at construction, for an attack with a loop of its own, and for a transform that is none.

    Example:
        >>> import torch
        >>> from monai_smia.attacks import FGSM
        >>> def flip(image, generator):
        ...     return image * (1 - 2 * torch.randint(2, (len(image), 1, 1), generator=generator))
        >>> attack = EoT(FGSM(torch.nn.CrossEntropyLoss(), eps=0.1), flip, samples=8)
        >>> result = attack(torch.nn.Flatten(), torch.tensor([[[0.5, 0.2]]]), torch.tensor([0]))
        >>> int(result.backward_passes), int(result.forward_passes)
        (8, 10)

    Reference: Athalye, Engstrom, Ilyas, Kwok, "Synthesizing robust adversarial examples", ICML 2018,
    https://arxiv.org/abs/1707.07397; on defences: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of
    security", ICML 2018, https://arxiv.org/abs/1802.00420. Deviations: the image itself is bounded, as in the second,
    not its distance after the transformation, as in the first.
    """

    attack: Attack
    transform: Transform | None = None
    samples: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        checks.as_count("samples", self.samples)
        if self.transform is not None:
            check_transform(self.transform)
        self._set(attack=self.adopt("attack", (self.attack,))[0])
        kind: Any = type(self.attack)
        if kind.search is not Attack.search or kind._run is not Attack._run:
            raise TypeError(f"attack: expected one that steps in the one loop; {kind.__name__} has a search of its own")
        self._set(restarts=self.attack.restarts)

    @property
    def members(self) -> tuple[Attack, ...]:
        return (self.attack,)

    @property
    def is_random(self) -> bool:
        return self.transform is not None or self.attack.is_random

    @property
    def keeps_best(self) -> bool:
        return self.attack.keeps_best

    def start(self, setting: Setting) -> torch.Tensor:
        return self.attack.start(setting)

    def compose(self, setting: Setting) -> Recipe:
        recipe = self.attack.compose(setting)
        gradient = Expectation(self.samples, self.transform, setting.generator, recipe.gradient)
        return dataclasses.replace(recipe, gradient=gradient)

    def __repr__(self) -> str:
        transform: Any = self.transform
        name = getattr(transform, "__qualname__", None)
        shown = [] if transform is None else [f"{transform.__module__}.{name}" if name else repr(transform)]
        return f"EoT({', '.join([repr(self.attack), *shown, self.budget(), f'samples={self.samples}'])})"
