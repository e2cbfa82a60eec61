# SPDX-License-Identifier: Apache-2.0
"""`FreeAdversarialTraining`: one gradient for the weights and for the perturbation."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.utils import CommonKeys, convert_to_dst_type

from monai_smia.attacks import LpBall, checks
from monai_smia.attacks.balls import clamp
from monai_smia.engines.ignite import private
from monai_smia.handlers.batch import with_first


class FreeAdversarialTraining:
    r"""Free adversarial training, as the ``iteration_update`` of a `SupervisedTrainer`.

    .. math:: &\text{for } i = 1, \dots, m: \quad x' = \Pi(x + \delta), \quad
              \theta \leftarrow \theta - \tau\, \nabla_\theta J(f_\theta(x'), y), \quad
              \delta \leftarrow \operatorname{clip}\big(\delta + \varepsilon
              \operatorname{sign} \nabla_{x'} J(f_\theta(x'), y), -\varepsilon, \varepsilon\big)

    Both gradients are of one backward pass, with the network in training mode. Each replay is a whole iteration of the
    trainer: autocast and scaler, events, decollation and postprocessing are MONAI's; the output is the last replay's.
    An epoch costs m of standard training, so train for 1 / m of the epochs.

    The perturbation is carried from batch to batch, its first rows where a batch is smaller, and starts anew where the
    images have another size or are more. It is the state that `state_dict` gives to a `CheckpointSaver`.

    Args:
        eps: budget in the network's input units, a number or one per channel ``(C,)``; in Linf.
        replays: m.
        bounds: ``(low, high)`` intensity range of the network's input, numbers or one per channel; ``None`` for
            unbounded.
        image_key: key of the image.

    Raises:
        TypeError, ValueError: at construction, naming the argument; at the call, when the trainer accumulates
            gradients over batches, which replays with a step each would break.

    Example:
        .. code-block:: python

            free = FreeAdversarialTraining(eps=8 / 255, replays=4, bounds=(0.0, 1.0))
            trainer = SupervisedTrainer(..., iteration_update=free)

    Reference: Shafahi et al., "Adversarial training for free!", NeurIPS 2019, https://arxiv.org/abs/1904.12843.
    Deviations: the gradient is taken at the projected image, where the published code takes it through the clamp to
    the intensity range, which stops every voxel that met a bound.
    """

    def __init__(self, *, eps: Any, replays: int = 4, bounds: Any = None, image_key: str = CommonKeys.IMAGE) -> None:
        self.eps = checks.as_numbers("eps", eps, low=0.0)
        self.replays = checks.as_count("replays", replays)
        self.bounds = checks.as_bounds(bounds)
        self.image_key = image_key
        self.perturbation: torch.Tensor | None = None

    def __call__(self, engine: SupervisedTrainer, batch: Any) -> Any:
        """The replays of one batch.

        Args:
            engine: the trainer.
            batch: what the loader gave: a dictionary, or a sequence that starts with the image.

        Returns:
            The trainer's output of the last replay.
        """
        accumulated = getattr(engine, "accumulation_steps", 1)  # MONAI 1.5 has none
        if accumulated > 1:
            raise ValueError(
                f"accumulation_steps: every replay takes a step of the optimizer; expected 1, got {accumulated}"
            )
        original = batch[self.image_key] if isinstance(batch, dict) else batch[0]
        image = original.as_tensor() if isinstance(original, MetaTensor) else original
        checks.check_image(image)
        eps = checks.spread("eps", self.eps, image, samples=False)
        threat = LpBall(eps, bounds=checks.fit_bounds(self.bounds, image))
        delta = self._carried(image)
        output = None
        for _ in range(self.replays):
            adversarial = threat.project(image, image + delta)
            leaf = convert_to_dst_type(adversarial, original)[0].detach().requires_grad_()
            engine.state.batch = {**batch, self.image_key: leaf} if isinstance(batch, dict) else with_first(batch, leaf)
            output = private.iteration(engine, engine.state.batch)
            gradient = torch.zeros_like(image) if leaf.grad is None else torch.as_tensor(leaf.grad)
            leaf.requires_grad_(False).grad = None
            delta = clamp(delta + eps * gradient.sign().nan_to_num(), -eps, eps)
        self._carry(delta)
        return output

    def state_dict(self) -> dict[str, Any]:
        """The perturbation that the next batch starts from."""
        return {"perturbation": self.perturbation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a perturbation saved."""
        self.perturbation = state["perturbation"]

    def _carried(self, image: torch.Tensor) -> torch.Tensor:
        carried = self.perturbation
        if carried is None or carried.shape[1:] != image.shape[1:] or len(carried) < len(image):
            self.perturbation = carried = torch.zeros_like(image)
        return carried[: len(image)].to(image)

    def _carry(self, delta: torch.Tensor) -> None:
        assert self.perturbation is not None
        self.perturbation = torch.cat((delta, self.perturbation[len(delta) :].to(delta)))
