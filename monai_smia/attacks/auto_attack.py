# SPDX-License-Identifier: Apache-2.0
"""`AutoAttack`: the standard ensemble, chosen by the head of the network attacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.attack import Attack
from monai_smia.attacks.auto_members import MEMBERS, build_members, members_for
from monai_smia.attacks.ensembles import Restarts, WorstOf
from monai_smia.attacks.heads import ACTIVATIONS, activation_of, is_binary, is_regression, main_output
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Observer
from monai_smia.attacks.query import Query
from monai_smia.attacks.result import AttackResult


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class AutoAttack(Attack):
    r"""The worst of several strong attacks that need no tuning, per sample; they are chosen by the network's head.

    .. math:: x' = x^{(k^*)}, \qquad k^* = \arg\max_k \big(\text{success}_k, \; J(f(x^{(k)}), y)\big)

    * 4 classes and more: APGD on cross-entropy, and on the DLR towards each of the C - 1 (at most 9) most likely wrong
      classes; `FMN`; `Square`
    * 3 classes: APGD on cross-entropy, on the DLR, and on the margin towards both wrong classes; `FMN`; `Square`
    * 2 classes, one sigmoid output, or several labels: APGD on cross-entropy and on the margin; `FMN`; `Square`
    * dense outputs: APGD on the balanced masked cross-entropy, the masked one and the Jensen-Shannon divergence, each
      with the radii 2, 1.5 and 1 times eps; `Square`

    The DLR is undefined for fewer than 3 classes, and towards one for fewer than 4; the margin takes its place.
    Towards a target of the user's (`targeted`) there are no runners-up: APGD on cross-entropy, on the DLR (the margin
    for fewer than 4 classes), `FMN`, `Square`; dense outputs as above. Samples on which one has succeeded make no
    further passes, see `WorstOf`: success is on every case at least that of each attack called alone with the same
    generator, and at least that of the image itself, so that no case that is wrong without an attack counts as robust.

    Cost: one forward pass shows the head. Each APGD run and `FMN` take `steps` backward passes. Forward, an APGD run
    takes ``steps + 3``, one more towards a runner-up and two more with three radii, `FMN` ``steps + 2`` and `Square` up
    to ``queries + 2``. By default that is 1100 backward and 2144 forward passes for a sample that stands all attacks on
    10 classes, 300 and 1311 on two, 300 and 1318 in a dense output; the result says what each sample took.

    Args:
        restarts: runs of every random member, each on the samples that are left, see `Restarts`.
        steps: of every APGD run and of `FMN`.
        queries: of `Square`.
        version: ``"standard"`` (the first three rows), ``"dense"`` (the last), or ``"auto"`` by the output's axes.
        members: names instead, in the order in which they are made: ``"apgd-ce"``, ``"apgd-dlr"``, ``"apgd-dlr-t"``
            (towards the runners-up), ``"apgd-margin"``, ``"apgd-margin-t"``, ``"apgd-mask-ce-balanced"``,
            ``"apgd-mask-ce"``, ``"apgd-js"``, ``"fmn"``, ``"square"``; ``None`` for those above.
        survivors_only: ``False`` makes all attacks on all samples, for the highest loss: for a segmentation whose score
            is reported, not its success.
        activation: the head: ``"softmax"``, ``"sigmoid"``, ``"none"`` (probabilities); ``"auto"`` reads it from the
            loss.

    Raises:
        ValueError: at construction, for a regression loss, unknown `members`, `members` beside a `version`, and
            runners-up where `targeted`; at the call, for a softmax head of one class and for a member that the head
            has too few classes for.
        TypeError: at the call, when the prediction holds no classes, as a detector's: there the ensemble is a `WorstOf`
            of attacks on its loss.

    Example:
        >>> attack = AutoAttack(torch.nn.CrossEntropyLoss(), eps=0.1, bounds=(0.0, 1.0), steps=10, queries=20)
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> image = torch.tensor([[[[0.55, 0.45]]], [[[0.95, 0.05]]]])  # margins 0.1 and 0.9; the attack moves 0.2
        >>> result = attack(lambda x: x.flatten(1) @ weights.T, image, torch.tensor([0, 0]))
        >>> result.success.tolist(), result.backward_passes.tolist(), result.forward_passes.tolist()
        ([True, False], [10, 30], [14, 61])

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, https://arxiv.org/abs/2003.01690 (standard version); for L1 the radii 3, 2 and 1 times eps of
    the same, "Mind the box", ICML 2021, https://arxiv.org/abs/2103.01208. Dense outputs: Croce, Singh, Hein, "Towards
    reliable evaluation and fast training of robust semantic segmentation models", ECCV 2024,
    https://arxiv.org/abs/2306.12941 (SEA). Deviations: `FMN` in the place of FAB, as both look for the smallest
    perturbation and FMN also does so for heads of any number of classes, several labels and L1, with one gradient a
    step (FAB takes one for each class, or a run for each target); `Square` makes 1000 queries, not 5000; members share
    the draw of their start, where the authors draw anew; samples that are wrong before the attack are attacked by the
    first member; L1 has as many restarts and runners-up as the other norms (the authors take 5 and 5); 1 to 3 classes,
    several labels and targets as above. SEA: 100 steps a loss, where the authors' code takes 300; losses beyond these
    three in versions of that code are left out; `Square` is added; the worst is taken by `criterion`, then by
    `loss_function`, not by the accuracy of the voxels. See `APGD`, `FMN` and `Square` for their own.
    """

    steps: int = 100
    queries: int = 1000
    version: str = "auto"
    members: Any = None
    survivors_only: bool = True
    activation: str = "auto"

    def __post_init__(self) -> None:
        if self.members is not None:
            self._set(members=_as_members(self.members))
        super().__post_init__()
        checks.as_count("steps", self.steps)
        checks.as_count("queries", self.queries)
        checks.one_of("version", self.version, ("auto", "standard", "dense"))
        checks.one_of("activation", self.activation, ("auto", *ACTIVATIONS))
        if self.members is not None and self.version != "auto":
            raise ValueError(f"members: expected None with version={self.version!r}; got {self.members}")
        if self.targeted and any(name.endswith("-t") for name in self.members or ()):
            raise ValueError(f"members: expected no runners-up ('-t') where targeted=True; got {self.members}")
        if is_regression(self.loss_function):
            raise ValueError(
                f"loss_function: AutoAttack turns decisions; got the regression loss {self.loss_function!r}"
            )

    @property
    def is_random(self) -> bool:
        return self.members is None or any(name != "fmn" for name in self.members)

    def ensemble(self, prediction: Any, target: Any) -> WorstOf:
        """The attacks for this head.

        Args:
            prediction: the network's, ``BC[HWD]``, or a sequence that starts with it.
            target: labels as in the call.

        Example:
            >>> attack = AutoAttack(torch.nn.CrossEntropyLoss(), eps=0.1)
            >>> [getattr(a, "objective", type(a).__name__) for a in attack.ensemble(torch.zeros(2, 4), None).attacks]
            ['ce', 'dlr', 'dlr', 'dlr', 'FMN', 'Square']
        """
        output = _classes_of(prediction)
        activation = activation_of(self.activation, self.loss_function, output)
        multilabel = isinstance(target, torch.Tensor) and target.shape == output.shape
        classes = 2 if is_binary(activation, output.shape[1], multilabel) else output.shape[1]
        if classes < 2:
            raise ValueError("network: expected at least 2 classes of a softmax head; got 1, which is never wrong")
        version = ("dense" if output.ndim > 2 else "standard") if self.version == "auto" else self.version
        names = members_for(version, classes, self.targeted) if self.members is None else self.members
        shared = ("eps", "norm", "bounds", "targeted", "criterion", "amp", "activation")
        common = {name: getattr(self, name) for name in shared}
        attacks: list[Attack] = [
            Restarts(attack, self.restarts, survivors_only=self.survivors_only)
            if self.restarts > 1 and attack.is_random
            else attack
            for name in names
            for attack in build_members(name, self.loss_function, classes, self.steps, self.queries, **common)
        ]
        return WorstOf(attacks, survivors_only=self.survivors_only)

    def _run(
        self,
        network: Callable[..., Any],
        inferer: Any,
        setting: Setting,
        target: Any,
        dtype: torch.dtype,
        callback: Observer | None,
    ) -> AttackResult:
        def check(prediction: Any) -> None:
            checks.check_target(self.loss_function, prediction, target, self.activation, self.criterion)

        query = Query(network, inferer, checks.as_amp(self.amp), dtype, check)
        ensemble = self.ensemble(query.judge(setting.image), target)
        outcome = ensemble._run(network, inferer, setting, target, dtype, callback)
        undone = outcome.clean_success & ~outcome.success
        wide = undone.reshape(-1, *[1] * (setting.image.ndim - 1))
        return dataclasses.replace(
            outcome,
            adversarial=torch.where(wide, setting.image.to(dtype), outcome.adversarial),
            loss=torch.where(undone, outcome.clean_loss, outcome.loss),
            success=outcome.success | undone,
            forward_passes=outcome.forward_passes + query.forward_passes,
        )


def _classes_of(prediction: Any) -> torch.Tensor:
    """The output that the head is read from.

    Raises:
        TypeError: naming the ensemble that needs no classes.
    """
    try:
        return main_output(prediction)
    except TypeError as error:
        raise TypeError(
            "network: AutoAttack chooses its attacks by the classes of a tensor, or of a sequence that starts with "
            f"one; got {type(prediction).__name__}. The ensemble for a detector is WorstOf([PGD(...), SMIA(...)])"
        ) from error


def _as_members(members: Any) -> tuple[str, ...]:
    """Names in `MEMBERS`, each once."""
    good = isinstance(members, Sequence) and not isinstance(members, str) and len(members) > 0
    if not good or any(name not in MEMBERS for name in members) or len(set(members)) < len(members):
        raise ValueError(
            f"members: expected names among {', '.join(map(repr, MEMBERS))}, each once, or None; got {members!r}"
        )
    return tuple(members)
