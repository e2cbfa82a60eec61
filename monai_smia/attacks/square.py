# SPDX-License-Identifier: Apache-2.0
"""`Square`: random search with windows, the attack that needs no gradient."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.attack import Attack
from monai_smia.attacks.decision_margin import decision_margin
from monai_smia.attacks.heads import ACTIVATIONS, activation_of, ignore_index, is_regression, main_output
from monai_smia.attacks.hunt import Hunt
from monai_smia.attacks.square_moves import moves
from monai_smia.attacks.trial import Trial

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which of 10000 queries the window's share of the image is halved."""


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Square(Attack):
    r"""Random search: a window of the image is changed, and the change kept where it helps.

    .. math:: x_{t+1} = \begin{cases} x_t + \delta_t & s(f(x_t + \delta_t), y) > s(f(x_t), y) \\
                                      x_t & \text{otherwise} \end{cases}, \qquad
              \delta_t \text{ zero outside a window with } p_t \text{ of all voxels}

    It has a loop of its own, as it takes no gradient: it works where gradients are hidden, and an attack with gradients
    that it beats has a fault. Each sample has its own window and keeps its own changes. A classifier's samples stop
    where they succeed, and the call ends when all have; dense outputs are worsened to the last query.

    In an image of rank R the window has :math:`p_t^{1/R}` of the image's length along each axis, in voxels: the paper's
    square where the image is one, and otherwise a box of the image's proportions (millimetres play no part). Where
    there is a mask, windows lie in, and are a share of, the smallest box around it.

    Args:
        queries: predictions at most, the start included; that of the clean image and the verdict's come on top.
        p_init: :math:`p_0` in (0, 1], share of the voxels in the first windows; halved nine times on the way, at the
            paper's iterations rescaled to `queries`.
        score: s, ``"margin"`` of the decision (the mean over voxels where the output is dense) or ``"loss"`` for
            `loss_function`; negative where targeted. ``"auto"`` is the margin for an untargeted classifier, as in
            the paper, and the loss for everything else.
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.
        amp: without effect: there are no gradient passes.

    The callback is called after each query, with the image tried.

    Example:
        >>> import torch
        >>> attack = Square(torch.nn.CrossEntropyLoss(), eps=0.1, queries=50, bounds=(0.0, 1.0))
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> result = attack(lambda x: x.flatten(1) @ weights.T, torch.tensor([[[[0.55, 0.45]]]]), torch.tensor([0]))
        >>> bool(result.success), bool(result.forward_passes < 50), int(result.backward_passes)
        (True, True, 0)

    Reference: Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack
    via random search", ECCV 2020, https://arxiv.org/abs/1912.00049. Schedule of p: the authors' code, which also halves
    at 500. Deviations: any rank; boxes of the image's proportions; a Linf draw that would change nothing takes the
    opposite signs; the Lp start splits all its tiles along one axis; L1 budgets are L2's rule in their own norm.
    """

    queries: int = 1000
    p_init: float = 0.8
    score: str = "auto"
    activation: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.as_count("queries", self.queries)
        checks.one_of("score", self.score, ("auto", "margin", "loss"))
        checks.one_of("activation", self.activation, ("auto", *ACTIVATIONS))
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init: expected a share of the image in (0, 1]; got {self.p_init!r}")
        if self.score == "margin" and is_regression(self.loss_function):
            raise ValueError(
                f"score: a regression has no margin; expected 'loss' or 'auto' with {self.loss_function!r}"
            )

    @property
    def is_random(self) -> bool:
        return True

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        image, threat = hunt.setting.image, hunt.setting.threat
        # of its own, so that an early end leaves the call's generator where any other end would
        given = hunt.setting.generator
        seed = int(torch.randint(2**62, (), generator=given, device=given.device))
        step_of = moves(hunt.setting, torch.Generator(given.device).manual_seed(seed))
        best = tried = step_of.start()
        value = torch.full((len(image),), -torch.inf, dtype=image.dtype, device=image.device)
        done = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        for step in range(self.queries):
            if step > 0:
                tried = torch.where(_wide(done, image), best, step_of.propose(best, self._share(step)))
            prediction = hunt.query.judge(tried)
            trial = Trial(
                image=image,
                adversarial=tried,
                step=step,
                steps=self.queries,
                previous=best if step > 0 else None,
                update=tried - best if step > 0 else None,
                predict=hunt.query.predict,
                project=lambda x: threat.project(image, x),
                restrict=threat.restrict,
            )
            hunt.observe(trial, prediction)
            found = self._scores(hunt, prediction)
            reached = hunt.succeeds(prediction) if _classifies(prediction) else torch.zeros_like(done)
            better = (found > value) | reached
            best = torch.where(_wide(better, image), tried, best)
            value = torch.where(better, found.to(value.dtype), value)
            done = done | reached
            if bool(done.all()):
                break
        return best, torch.zeros(len(image), dtype=torch.long, device=image.device)

    def _share(self, step: int) -> float:
        """Share of the voxels in the window of this step."""
        return self.p_init / 2.0 ** bisect_left(HALVINGS, step * 10_000 // self.queries)

    def _scores(self, hunt: Hunt, prediction: Any) -> torch.Tensor:
        """What each sample increases, ``(B,)``."""
        margin = self.score == "margin"
        if self.score == "auto":
            margin = not self.targeted and _classifies(prediction) and not is_regression(self.loss_function)
        if margin:
            activation = activation_of(self.activation, self.loss_function, main_output(prediction))
            score = decision_margin(prediction, hunt.target, activation, ignore_index(self.loss_function))
        else:
            score = hunt.losses(prediction)
        return -score if self.targeted else score


def _classifies(prediction: Any) -> bool:
    """Whether the output is one decision, or some labels, per sample."""
    try:
        return main_output(prediction).ndim == 2
    except TypeError:  # a detector's
        return False


def _wide(samples: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return samples.reshape(-1, *[1] * (image.ndim - 1))
