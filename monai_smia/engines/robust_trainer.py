# SPDX-License-Identifier: Apache-2.0
"""`RobustTrainer`: adversarial training whose loss needs the clean and the adversarial prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.utils import CommonKeys

from monai_smia.attacks import Attack
from monai_smia.handlers.batch import attack_batch, epoch_seed, scheduled
from monai_smia.losses import TwoViewsLoss

PRED_ADVERSARIAL = f"{CommonKeys.PRED}_adversarial"


class RobustTrainer(SupervisedTrainer):
    """A `SupervisedTrainer` for TRADES, MART and consistency training.

    Each iteration attacks the batch with the network in evaluation mode, then predicts the clean and the adversarial
    images, in this order and both in training mode, as the papers' codes do: BatchNorm sees both, one after the other.
    The iteration itself is the parent's, so that accumulation of gradients, autocast and scaler, events, decollation
    and postprocessing are MONAI's.

    ``engine.state.attack_result`` is the `AttackResult` of the batch. ``engine.state.output`` has, beside the parent's
    keys, ``"pred_adversarial"``; its ``"pred"`` is the clean prediction and its ``"loss"`` the mean over samples.

    Args:
        device, max_epochs, train_data_loader, network, optimizer: as in `SupervisedTrainer`.
        loss_function: a loss of both views: `TRADESLoss`, `MARTLoss`, `ConsistencyLoss` or one of your own.
        attack: makes the adversarial view: `TPGD` for TRADES, `PGD` for MART, any attack for consistency.
        image_key, label_key: keys of the batch.
        mask_key: key of the voxels that may change; ``None`` for all.
        eps_schedule: ``epoch -> eps``, replaces the attack's eps, as in `AttackHandler`; ``None`` keeps it.
        seed: of the attack's randomness, started anew from ``seed + epoch`` at every epoch.
        kwargs: everything else that `SupervisedTrainer` takes, but ``iteration_update``.

    Raises:
        TypeError, ValueError: at construction, naming the argument.

    Example:
        .. code-block:: json

            {
                "trainer": {
                    "_target_": "monai_smia.engines.RobustTrainer",
                    "loss_function": {
                        "_target_": "monai_smia.losses.TRADESLoss", "loss_function": "@loss", "beta": 6.0
                    },
                    "attack": {
                        "_target_": "monai_smia.attacks.TPGD", "loss_function": "@loss", "eps": 0.03, "bounds": [0, 1]
                    }
                }
            }

    Reference: TRADES https://arxiv.org/abs/1901.08573, MART https://openreview.net/forum?id=rklOg6EFwS, VAFT
    https://arxiv.org/abs/2307.07269.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Any,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: TwoViewsLoss,
        attack: Attack,
        *,
        image_key: str = CommonKeys.IMAGE,
        label_key: str = CommonKeys.LABEL,
        mask_key: str | None = None,
        eps_schedule: Callable[[int], Any] | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(loss_function, TwoViewsLoss):
            raise TypeError(
                "loss_function: expected a loss of both views, such as TRADESLoss(loss); "
                f"got {type(loss_function).__name__}"
            )
        if not isinstance(attack, Attack):
            raise TypeError(f"attack: expected an Attack; got {type(attack).__name__}")
        if eps_schedule is not None and not callable(eps_schedule):
            raise TypeError(f"eps_schedule: expected a callable epoch -> eps; got {type(eps_schedule).__name__}")
        if kwargs.get("iteration_update") is not None:
            raise ValueError("iteration_update: RobustTrainer's iteration is its own; expected None")
        self.attack = attack
        self.image_key = image_key
        self.label_key = label_key
        self.mask_key = mask_key
        self.eps_schedule = eps_schedule
        self.seed = seed
        self.two_views_loss = loss_function
        self._generator = torch.Generator()
        self._adversarial_batch: Any = None
        # the parent asks for the loss of its own, clean prediction, inside its autocast
        super().__init__(device, max_epochs, train_data_loader, network, optimizer, self._loss, **kwargs)
        self.add_event_handler(Events.EPOCH_STARTED, self._reseed)

    def _reseed(self, engine: Any) -> None:
        self._generator.manual_seed(epoch_seed(self.seed, self.state.epoch))

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        self._adversarial_batch, self.state.attack_result = attack_batch(
            self,
            scheduled(self.attack, self.eps_schedule, self.state.epoch),
            batchdata,
            image_key=self.image_key,
            label_key=self.label_key,
            mask_key=self.mask_key,
            generator=self._generator,
        )
        try:
            return super()._iteration(engine, batchdata)
        finally:
            self._adversarial_batch = None

    def _loss(self, prediction: Any, target: Any) -> torch.Tensor:
        """The loss of both views, with the adversarial prediction made here."""
        prepared = self.prepare_batch(self._adversarial_batch, self.state.device, self.non_blocking, **self.to_kwargs)
        inputs, _, args, kwargs = prepared if len(prepared) == 4 else (*prepared, (), {})
        if self.compile and isinstance(inputs, MetaTensor):
            inputs = inputs.as_tensor()  # as the parent does for the clean view
        adversarial = self.inferer(inputs, self.network, *args, **kwargs)
        self.state.output[PRED_ADVERSARIAL] = adversarial
        return self.two_views_loss(prediction, adversarial, target)
