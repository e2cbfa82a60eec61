# SPDX-License-Identifier: Apache-2.0
"""`AttackHandler`: adversarial images in any MONAI trainer or evaluator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator
from monai.utils import CommonKeys

from monai_smia.attacks import Attack
from monai_smia.handlers.batch import attack_batch, batch_seed, epoch_seed, scheduled
from monai_smia.handlers.saving import CaseSaver, check_saver, save_cases


class AttackHandler:
    """Replaces the image of every batch by an adversarial one, before the iteration sees it.

    Attached to a `SupervisedEvaluator` it makes the evaluation adversarial; attached to a `SupervisedTrainer` it is
    adversarial training. The engine's network, ``prepare_batch``, inferer, device and autocast are used as they are, a
    sliding-window inferer by way of `gradient_inferer`, which attacks whole volumes exactly at constant memory;
    the network's mode, gradients and buffers are left as found. ``batch["image_clean"]`` keeps the clean image,
    ``engine.state.attack_result`` the `AttackResult` of the samples attacked, ``engine.state.attacked`` their indices.

    Args:
        attack: any attack.
        image_key: key of the image.
        label_key: key of the label, for error messages; labels come from the engine's ``prepare_batch``.
        mask_key: key of a mask ``(B, 1, H, W[, D])``, the voxels that may change; ``None`` for all.
        probability: share of the samples that are attacked, drawn for each; the others stay clean.
        start_epoch: first epoch, counted from 1, that is attacked.
        eps_schedule: ``epoch -> eps``, replaces the attack's eps from then on; ``None`` keeps it.
        seed: of the attack's randomness. It is started anew from ``seed + epoch`` at every epoch, so that a training
            resumed from a checkpoint draws what it would have drawn; processes that train together draw differently.
            In an evaluator it is started anew for each batch, so that a batch is attacked the same way whatever was
            before it.
        save: a `monai_smia.export.SaveAdversariald`, which writes every attacked image as a file like its source.
        callback: ``callback(trial, prediction)`` after each gradient.
        progress: show a pass over the windows of an image that takes more than two seconds.

    Raises:
        TypeError, ValueError: at construction, naming the argument.

    Example:
        .. code-block:: python

            attack = PGD(loss_function, eps=8 / 255, bounds=(0.0, 1.0))
            trainer = SupervisedTrainer(..., train_handlers=[AttackHandler(attack, probability=0.5)])
    """

    def __init__(
        self,
        attack: Attack,
        *,
        image_key: str = CommonKeys.IMAGE,
        label_key: str = CommonKeys.LABEL,
        mask_key: str | None = None,
        probability: float = 1.0,
        start_epoch: int = 1,
        eps_schedule: Callable[[int], Any] | None = None,
        seed: int = 0,
        save: CaseSaver | None = None,
        callback: Callable[[Any, Any], None] | None = None,
        progress: bool = True,
    ) -> None:
        if not isinstance(attack, Attack):
            raise TypeError(f"attack: expected an Attack; got {type(attack).__name__}")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: expected a number in [0, 1]; got {probability!r}")
        if eps_schedule is not None and not callable(eps_schedule):
            raise TypeError(f"eps_schedule: expected a callable epoch -> eps; got {type(eps_schedule).__name__}")
        check_saver(save)
        self.attack = attack
        self.image_key = image_key
        self.label_key = label_key
        self.mask_key = mask_key
        self.probability = probability
        self.start_epoch = start_epoch
        self.eps_schedule = eps_schedule
        self.seed = seed
        self.save = save
        self.callback = callback
        self.progress = progress
        self._generator = torch.Generator()

    def attach(self, engine: Any) -> None:
        """Take part in the engine's iterations.

        Args:
            engine: a `SupervisedTrainer`, a `SupervisedEvaluator` or a subclass.
        """
        if not engine.has_event_handler(self, Events.ITERATION_STARTED):
            engine.add_event_handler(Events.EPOCH_STARTED, self.reseed)
            engine.add_event_handler(Events.ITERATION_STARTED, self)

    def detach(self, engine: Any) -> None:
        """Take no part any more."""
        engine.remove_event_handler(self.reseed, Events.EPOCH_STARTED)
        engine.remove_event_handler(self, Events.ITERATION_STARTED)

    def reseed(self, engine: Any) -> None:
        """Start the randomness of this epoch."""
        self._generator.manual_seed(epoch_seed(self.seed, engine.state.epoch))

    def __call__(self, engine: Any) -> None:
        """Attack the batch that the engine is about to process."""
        epoch = engine.state.epoch
        if epoch < self.start_epoch:
            return
        batch = engine.state.batch
        if isinstance(engine, Evaluator):
            self._generator.manual_seed(batch_seed(self.seed, engine))
        size = len(batch[self.image_key] if isinstance(batch, dict) else batch[0])
        only = None
        if self.probability < 1:
            only = (torch.rand(size, generator=self._generator) < self.probability).nonzero()[:, 0]
            if len(only) == 0:
                engine.state.attack_result, engine.state.attacked = None, only
                return
        attack = scheduled(self.attack, self.eps_schedule, epoch)
        engine.state.batch, engine.state.attack_result = attack_batch(
            engine,
            attack,
            batch,
            image_key=self.image_key,
            label_key=self.label_key,
            mask_key=self.mask_key,
            generator=self._generator,
            only=only,
            callback=self.callback,
            progress=self.progress,
        )
        engine.state.attacked = torch.arange(size) if only is None else only
        if self.save is not None:
            attacked = engine.state.attacked.tolist()
            save_cases(self.save, engine.state.batch, engine.state.attack_result, attack, self.seed, attacked)
