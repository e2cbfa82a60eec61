# SPDX-License-Identifier: Apache-2.0
"""`OverfittingAlarm`: notices when single-step adversarial training has stopped to work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events

from monai_smia.attacks import PGD, Attack, checks
from monai_smia.handlers.attack_handler import AttackHandler
from monai_smia.handlers.batch import attack_batch, epoch_seed, scheduled

THRESHOLDS = {"success": 0.2, "loss": 1.0}


class OverfittingAlarm:
    r"""Compares, after every epoch, the attack trained with to a stronger one on a few batches.

    Networks trained with one-step attacks may from one epoch to the next learn to mask the gradient of that step: they
    stand it ever better and fall to every iterated attack ("catastrophic overfitting"). The alarm goes off when

    .. math:: s_{\mathrm{probe}} - s_{\mathrm{training}} > \tau \qquad \text{or} \qquad
              \frac{J_{\mathrm{probe}} - J_{\mathrm{training}}}{|J_{\mathrm{training}}|} > \tau

    with s the share of samples on which an attack succeeds, by its criterion, and J the mean loss under it. It is a
    warning of the engine's logger and four metrics in ``engine.state.metrics``: ``overfitting_training`` and
    ``overfitting_probe`` (s or J), ``overfitting_gap`` (the left-hand side) and ``overfitting_alarm`` (0 or 1). Put it
    before the handlers that log metrics. Network, gradients, random states and the engine's batch and output are left
    as they are. Where several processes train together all of them decide alike.

    Args:
        handler: the handler that the trainer trains with; its attack, keys, `eps_schedule`, `start_epoch` and seed are
            used.
        probe: the stronger attack; ``None`` is a `PGD` of ten steps with the budget of the handler's attack. Under an
            `eps_schedule` it gets the epoch's eps as well.
        loader: where the batches come from, anything to iterate over, such as a validation loader; ``None`` keeps the
            first ones of each epoch.
        batches: how many.
        measure: ``"success"`` or ``"loss"``.
        threshold: :math:`\tau`; ``None`` is 0.2 for success (the published code's drop of accuracy) and 1 for the loss
            (twice as high).
        terminate: whether the alarm stops the training.

    Raises:
        TypeError, ValueError: at construction, naming the argument; at the end of an epoch, when there was no batch.

    Example:
        .. code-block:: python

            fast = AttackHandler(FGSM(loss, eps=eps, step_size=1.25 * eps, random_start=True, bounds=(0.0, 1.0)))
            trainer = SupervisedTrainer(..., train_handlers=[fast, OverfittingAlarm(fast, terminate=True)])

    Reference: Wong, Rice, Kolter, "Fast is better than free", ICLR 2020, https://arxiv.org/abs/2001.03994;
    Andriushchenko, Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020,
    https://arxiv.org/abs/2007.02617. Deviations: the published code compares the probe with the epoch before; here it
    is compared with the attack trained with, which does not miss a slow decay.
    """

    def __init__(
        self,
        handler: AttackHandler,
        probe: Attack | None = None,
        *,
        loader: Iterable[Any] | None = None,
        batches: int = 1,
        measure: str = "success",
        threshold: float | None = None,
        terminate: bool = False,
    ) -> None:
        if not isinstance(handler, AttackHandler):
            raise TypeError(f"handler: expected the AttackHandler trained with; got {type(handler).__name__}")
        if probe is not None and not isinstance(probe, Attack):
            raise TypeError(f"probe: expected an Attack; got {type(probe).__name__}")
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
            raise TypeError(f"threshold: expected a number or None; got {threshold!r}")
        self.handler = handler
        self.probe = _stronger(handler.attack) if probe is None else probe
        self.loader = loader
        self.batches = checks.as_count("batches", batches)
        self.measure = checks.one_of("measure", measure, tuple(THRESHOLDS))
        self.threshold = THRESHOLDS[measure] if threshold is None else threshold
        self.terminate = terminate
        self._kept: list[Any] = []

    def attach(self, engine: Any) -> None:
        """Probe after each epoch.

        Args:
            engine: the `SupervisedTrainer` that the handler is attached to.
        """
        if not engine.has_event_handler(self, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
            engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._keep)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Probe, put the metrics into the engine's state, and give the alarm where it is due."""
        epoch = engine.state.epoch
        if epoch < self.handler.start_epoch:
            return
        training, probe = self._measure(engine, epoch)
        gap = probe - training
        if self.measure == "loss":
            gap = gap / max(abs(training), torch.finfo(torch.float64).tiny)
        alarm = not gap <= self.threshold  # also for a loss that is not a number
        values = {"training": training, "probe": probe, "gap": gap, "alarm": float(alarm)}
        engine.state.metrics.update({f"overfitting_{name}": value for name, value in values.items()})
        if alarm:
            engine.logger.warning(
                "Epoch[%d] catastrophic overfitting: %s is %.4g under the attack trained with and %.4g under the probe",
                epoch,
                self.measure,
                training,
                probe,
            )
            if self.terminate:
                engine.terminate()

    def _measure(self, engine: Any, epoch: int) -> tuple[float, float]:
        """The measure under the attack trained with and under the probe, over all samples of all processes."""
        both = (self.handler.attack, self.probe)
        attacks = [scheduled(attack, self.handler.eps_schedule, epoch) for attack in both]
        sums = [0.0, 0.0, 0.0]
        generator = torch.Generator().manual_seed(epoch_seed(self.handler.seed, epoch))
        for batch in self._batches():
            for i, attack in enumerate(attacks):
                _, result = attack_batch(
                    engine,
                    attack,
                    batch,
                    image_key=self.handler.image_key,
                    label_key=self.handler.label_key,
                    mask_key=self.handler.mask_key,
                    generator=generator,
                )
                sums[i] += float(getattr(result, self.measure).double().sum())
            sums[2] += len(result.loss)
        training, probe, count = idist.all_reduce(torch.tensor(sums, device=engine.state.device)).tolist()
        if count == 0:
            raise ValueError("loader: expected at least one batch to probe with; it gave none")
        return training / count, probe / count

    def _batches(self) -> Iterator[Any]:
        if self.loader is None:
            yield from self._kept
            return
        with torch.random.fork_rng(devices=[]):  # a loader draws the seed of its workers and samplers
            yield from islice(self.loader, self.batches)

    def _forget(self, engine: Any) -> None:
        self._kept.clear()

    def _keep(self, engine: Any) -> None:
        if self.loader is None and len(self._kept) < self.batches:
            self._kept.append(engine.state.batch)


def _stronger(attack: Attack) -> PGD:
    """Ten steps of PGD with this attack's loss, budget and criterion."""
    names = ("eps", "norm", "bounds", "targeted", "criterion", "amp")
    return PGD(attack.loss_function, **{name: getattr(attack, name) for name in names})
