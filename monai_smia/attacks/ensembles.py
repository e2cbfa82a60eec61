# SPDX-License-Identifier: Apache-2.0
"""The worst of several attacks, and of several runs of one."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_smia.attacks import checks
from monai_smia.attacks.attack import Attack, Verdict
from monai_smia.attacks.combination import Combination
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.loop import Observer
from monai_smia.attacks.result import AttackResult
from monai_smia.attacks.survivors import kept, survivors


@dataclass(frozen=True, repr=False, eq=False)
class _Worst(Combination, ABC):
    """Several attacks one after the other, of which each sample keeps the worst."""

    survivors_only: bool = field(default=True, kw_only=True)

    @abstractmethod
    def _sources(self, source: torch.Generator) -> Iterator[torch.Generator]:
        """The generator of each attack. What is drawn from `source` must not depend on how they end."""

    def _run(
        self,
        network: Callable[..., Any],
        inferer: Any,
        setting: Setting,
        target: Any,
        dtype: torch.dtype,
        callback: Observer | None,
    ) -> AttackResult:
        image = setting.image
        going = kept(inferer, len(image), image.device)
        worst: Verdict | None = None
        outcomes: list[AttackResult] = []
        counts = torch.zeros(3, len(image), dtype=torch.long, device=image.device)
        for attack, source in zip(self.members, self._sources(setting.generator), strict=True):
            if not bool(going.any()):
                break
            through = survivors(inferer, going)
            outcome = attack._run(
                network, through, dataclasses.replace(setting, generator=source), target, dtype, callback
            )
            verdict, extra = Verdict(outcome.adversarial, outcome.loss, outcome.success), 0
            if not self._judges_like(attack):
                query = self.query(network, through, dtype, target)
                verdict, extra = self.judge(query, outcome.adversarial.to(image.dtype), target), 1
                verdict = dataclasses.replace(verdict, adversarial=outcome.adversarial)
            asked = kept(through, len(image), image.device)
            passes = (outcome.forward_passes + extra, outcome.backward_passes, outcome.nonfinite_gradients)
            counts += torch.stack(passes) * asked
            outcomes = outcomes or [outcome]
            worst = verdict if worst is None else _where(going, worst.better_of(verdict, self.targeted), worst)
            if self.survivors_only:
                going = going & ~worst.success
        assert worst is not None
        forward, backward, nonfinite = counts
        return AttackResult(
            adversarial=worst.adversarial,
            clean_loss=outcomes[0].clean_loss,
            loss=worst.loss,
            clean_success=outcomes[0].clean_success,
            success=worst.success,
            forward_passes=forward,
            backward_passes=backward,
            nonfinite_gradients=nonfinite,
        )

    def _judges_like(self, attack: Attack) -> bool:
        """Whether an attack's own verdict is the one that counts here."""
        same = attack.loss_function is self.loss_function and attack.criterion == self.criterion
        heads = getattr(attack, "activation", "auto") == self.activation
        return same and heads and attack.amp == self.amp


@dataclass(frozen=True, repr=False, eq=False)
class WorstOf(_Worst):
    r"""The worst of several attacks, per sample: one that succeeds, and among equals the one with the higher loss.

    .. math:: x' = x^{(k^*)}, \qquad k^* = \arg\max_k \big(\text{success}_k, \; J(f(x^{(k)}), y)\big)

    All are judged by the loss and the criterion of the first. A sample on which one has succeeded is left out of those
    that follow, so put the cheap ones first. Each draws what it would draw on its own: on every case the outcome
    is at least as strong as that of any member called alone with the same generator.

    Args:
        attacks: at least one, with the same eps, norm, bounds and targeted.
        survivors_only: whether a sample is done once an attack has succeeded on it; otherwise all attacks are made on
            all samples, for the highest loss.
        eps, norm: see `Combination`.

    The network is given only the samples that are left, and passes are counted for those that made them; an
    inferer that is no MONAI `Inferer` gets the whole batch. A callback sees all attacks, and meaningless predictions of
    the samples that are done.

    Example:
        >>> import torch
        >>> from monai_smia.attacks import FGSM, PGD
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> attack = WorstOf([FGSM(loss, eps=0.1), PGD(loss, eps=0.1, steps=5)])
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> image = torch.tensor([[[[0.55, 0.45]]], [[[0.95, 0.05]]]])
        >>> result = attack(lambda x: x.flatten(1) @ weights.T, image, torch.tensor([0, 0]))
        >>> result.success.tolist(), result.backward_passes.tolist()
        ([True, False], [1, 6])

    Reference: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, https://arxiv.org/abs/2003.01690, for the order and the samples left out.
    """

    attacks: Sequence[Attack]

    def __post_init__(self) -> None:
        attacks: Any = self.attacks
        if isinstance(attacks, str) or not isinstance(attacks, Sequence) or not attacks:
            raise ValueError(f"attacks: expected a sequence of at least one attack; got {attacks!r}")
        if len({id(attack) for attack in attacks}) < len(attacks):
            raise ValueError("attacks: expected each once, as one attack gives the same twice; use Restarts")
        self._set(attacks=self.adopt("attacks", attacks))

    @property
    def members(self) -> tuple[Attack, ...]:
        return tuple(self.attacks)

    def _sources(self, source: torch.Generator) -> Iterator[torch.Generator]:
        state = source.get_state()
        yield source
        torch.randint(2, (), generator=source, device=source.device)  # the next call differs if the first draws nothing
        for _ in self.members[1:]:
            yield torch.Generator(source.device).set_state(state)

    def __repr__(self) -> str:
        shown = "" if self.survivors_only else ", survivors_only=False"
        return f"WorstOf([{', '.join(map(repr, self.attacks))}], {self.budget()}{shown})"


@dataclass(frozen=True, repr=False, eq=False)
class Restarts(_Worst):
    """The worst of n runs of one random attack, per sample; those on which a run succeeded make no other.

    The attack's own `restarts` makes every run on every sample. One run is the attack itself, bit for bit.

    Args:
        attack: one with randomness.
        n: number of runs.
        survivors_only, eps, norm: see `WorstOf`.

    Raises:
        ValueError: at construction, for several runs of an attack without randomness.

    Example:
        >>> import torch
        >>> from monai_smia.attacks import PGD
        >>> Restarts(PGD(torch.nn.CrossEntropyLoss(), eps=0.03), 5)
        Restarts(PGD(CrossEntropyLoss(), eps=0.03), 5, eps=0.03)
    """

    attack: Attack
    n: int

    def __post_init__(self) -> None:
        checks.as_count("n", self.n)
        self._set(attack=self.adopt("attack", (self.attack,))[0])
        if self.n > 1 and not self.is_random:
            raise ValueError(f"n: {self.n} runs of an attack without randomness are all the same; expected 1")

    @property
    def members(self) -> tuple[Attack, ...]:
        return (self.attack,) * self.n

    def _sources(self, source: torch.Generator) -> Iterator[torch.Generator]:
        yield source
        seeds = torch.randint(2**62, (self.n - 1,), generator=source, device=source.device)
        for seed in seeds.tolist():
            yield torch.Generator(source.device).manual_seed(seed)

    def __repr__(self) -> str:
        shown = "" if self.survivors_only else ", survivors_only=False"
        return f"Restarts({self.attack!r}, {self.n}, {self.budget()}{shown})"


def _where(samples: torch.Tensor, one: Verdict, other: Verdict) -> Verdict:
    """One verdict for some samples, the other for the rest."""
    wide = samples.reshape(-1, *[1] * (one.adversarial.ndim - 1))
    return Verdict(
        torch.where(wide, one.adversarial, other.adversarial),
        torch.where(samples, one.loss, other.loss),
        torch.where(samples, one.success, other.success),
    )
