# SPDX-License-Identifier: Apache-2.0
"""`AttackEvaluator`: clean and adversarial metrics in one pass over the data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys, ensure_tuple
from tqdm.auto import tqdm

from monai_smia.attacks import Attack
from monai_smia.engines.batches import check_length
from monai_smia.engines.guards import beside_the_clean, image_savers
from monai_smia.engines.ignite import private
from monai_smia.engines.records import CaseRecorder, as_named
from monai_smia.handlers.attack_events import AttackEvents
from monai_smia.handlers.batch import attack_batch, batch_seed, image_of
from monai_smia.handlers.saving import CaseSaver, check_saver, save_cases
from monai_smia.intensity import IntensityScale
from monai_smia.reports import CLEAN, RobustnessReport


class AttackEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` that also evaluates every batch under each of the given attacks.

    Each metric of the evaluator gets a copy per attack, in ``engine.state.metrics`` under ``<attack>_<metric>``, so
    that every handler (statistics, TensorBoard, MLflow, metrics saver, checkpoints) sees it. The adversarial batch
    goes through the evaluator's own iteration: ``prepare_batch``, inferer, autocast, decollation and postprocessing,
    with what is attached inside it (``IterationEvents.MODEL_COMPLETED``). Every other handler sees the clean iteration,
    once a batch, and one completed epoch; ``AttackEvents.ATTACK_COMPLETED`` is there for what is to see the attacked.
    The numbers are those of running the evaluator again with an `AttackHandler`, to the last digit. Where the
    postprocessing saves images, those of an attack go to ``under_attack/<attack>`` in the clean ones' folder.

    Args:
        device, val_data_loader, network: as in `SupervisedEvaluator`.
        attacks: name to attack; the name becomes the prefix of the metrics.
        image_key, label_key: keys of the batch.
        mask_key: key of the voxels that may change; ``None`` for all.
        seed: of the attacks' randomness, see `AttackHandler`.
        intensity: physical unit of the network's input, for the report; ``None`` reports network units.
        save: a `monai_smia.export.SaveAdversariald`, which writes every adversarial image as a file like its source,
            into a folder for each attack.
        progress: show a bar, attack by attack.
        kwargs: everything else that `SupervisedEvaluator` takes.

    Raises:
        TypeError, ValueError: when `attacks` is empty or holds something else, or `postprocessing` saves images to a
            folder that cannot be known, so that the adversarial ones would overwrite the clean ones.

    Example:
        In a bundle, one more configuration file:

        .. code-block:: json

            {
                "validate#evaluator#_target_": "monai_smia.engines.AttackEvaluator",
                "validate#evaluator#attacks": {
                    "pgd": {
                        "_target_": "monai_smia.attacks.PGD", "loss_function": "@loss", "eps": 0.01, "bounds": [0, 1]
                    }
                }
            }
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: Any,
        network: torch.nn.Module,
        attacks: Mapping[str, Attack] | Sequence[Attack],
        *,
        image_key: str = CommonKeys.IMAGE,
        label_key: str = CommonKeys.LABEL,
        mask_key: str | None = None,
        seed: int = 0,
        intensity: IntensityScale | None = None,
        save: CaseSaver | None = None,
        progress: bool = True,
        **kwargs: Any,
    ) -> None:
        self.attacks = as_named(attacks)
        self.image_key = image_key
        self.label_key = label_key
        self.mask_key = mask_key
        self.seed = seed
        check_saver(save)
        self.save = save
        self.progress = progress
        self._updates: dict[str, list[private.Entry]] = {name: [] for name in self.attacks}
        self._metric_names: list[str] = []
        self._recorder = CaseRecorder(image_key, intensity)
        self._raw: Any = None
        self._bar = tqdm(disable=True)
        self._savers = image_savers(kwargs.get("postprocessing"))
        with beside_the_clean(self._savers, ""):  # refuses what it cannot move
            pass
        kwargs["event_names"] = [AttackEvents, *(kwargs.get("event_names") or [])]
        metrics = {**(kwargs.get("key_val_metric") or {}), **(kwargs.get("additional_metrics") or {})}
        if not kwargs.get("key_val_metric"):
            metrics = {}  # MONAI leaves additional ones out then
        copies = {attack: copy.deepcopy(metrics) for attack in self.attacks}  # before they know this engine
        handlers = kwargs.pop("val_handlers", None)
        super().__init__(device, val_data_loader, network, **kwargs)
        self._metric_names = list(metrics)
        self._attach_copies(copies)
        if handlers is not None:  # after all metrics, which they report
            for handler in ensure_tuple(handlers):
                handler.attach(self)
        for event, function in (
            (Events.STARTED, self._start),
            (Events.ITERATION_STARTED, self._keep_batch),
            (Events.ITERATION_COMPLETED, self._attack_all),
        ):
            self.add_event_handler(event, function)
            self.own_handlers.append(private.handlers_of(self)[event][-1])

    def run(self, global_epoch: int = 1) -> None:
        """Evaluate, as `SupervisedEvaluator` does; also again after a run that failed."""
        check_length(self)
        private.forget_run(self)
        try:
            super().run(global_epoch)
        finally:
            self._bar.close()  # also after an error: the next bar would be drawn below it

    def report(self) -> RobustnessReport:
        """Clean and adversarial metrics of the last run, aggregated and case by case.

        Raises:
            RuntimeError: before the first run, and in a distributed group, where a process has its own cases only;
                `evaluate_robustness` and `CaseByCase` put them together. The metrics in ``state.metrics`` are of all.
        """
        if idist.get_world_size() > 1:
            raise RuntimeError(
                f"report: expected one process; got {idist.get_world_size()}, of which each has its own cases. "
                "evaluate_robustness and CaseByCase put them together"
            )
        if any(name not in self.state.metrics for name in self._metric_names) or not self._recorder.names:
            raise RuntimeError("report: expected a finished run; call run() first")
        metrics = {CLEAN: {name: self.state.metrics[name] for name in self._metric_names}}
        details = {CLEAN: {name: self.state.metric_details.get(name) for name in self._metric_names}}
        for attack in self.attacks:
            metrics[attack] = {name: self.state.metrics[f"{attack}_{name}"] for name in self._metric_names}
            details[attack] = {name: self.state.metric_details.get(f"{attack}_{name}") for name in self._metric_names}
        return self._recorder.report(metrics, details, self.attacks)

    def _attach_copies(self, copies: Mapping[str, Mapping[str, Metric]]) -> None:
        """Each attack's metrics, updated by the attack's own iteration and not by the clean one.

        What a metric does at the end of an iteration, counting and with some usages computing, is taken out of the
        event, for `_attack` to do; a metric made of others hangs its parts there, too.
        """
        ends = private.handlers_of(self)[Events.ITERATION_COMPLETED]
        known = {id(entry) for entries in private.handlers_of(self).values() for entry in entries}
        clean = len(ends)
        for attack, own in copies.items():
            for name, metric in own.items():
                metric.attach(self, f"{attack}_{name}")
            self._updates[attack] = ends[clean:]
            del ends[clean:]
        entries = chain.from_iterable(private.handlers_of(self).values())
        self.own_handlers = [entry for entry in entries if id(entry) not in known]

    def _start(self, engine: Any) -> None:
        self._recorder.reset()
        total = len(self.attacks) * (self.state.epoch_length or 0)
        self._bar = tqdm(total=total or None, desc="attacks", disable=not self.progress)

    def _keep_batch(self, engine: Any) -> None:
        self._raw = self.state.batch

    def _attack_all(self, engine: Any) -> None:
        clean_batch, clean_output = self.state.batch, self.state.output
        self.state.clean_output = clean_output
        self.state.first_case = len(self._recorder.names)
        self._recorder.begin_batch(clean_batch)
        try:
            for name in self.attacks:
                self._attack(name)
        finally:
            self.state.batch, self.state.output, self._raw = clean_batch, clean_output, None

    def _attack(self, name: str) -> None:
        def show(trial: Any, prediction: Any) -> None:
            self._bar.set_postfix_str(f"{name} {trial.step + 1}/{trial.steps}")

        batch, result = attack_batch(
            self,
            self.attacks[name],
            self._raw,
            image_key=self.image_key,
            label_key=self.label_key,
            mask_key=self.mask_key,
            generator=torch.Generator().manual_seed(batch_seed(self.seed, self)),
            callback=show,
            progress=self.progress,
        )
        if self.save is not None:
            save_cases(self.save.under(name), batch, result, self.attacks[name], self.seed)
        clean = image_of(self._raw, self.image_key)
        self.state.batch = batch
        with beside_the_clean(self._savers, name):
            self.state.output = private.process(self, batch)
        for update in self._updates[name]:
            private.call(self, update)
        self._recorder.add(name, clean, result)
        self.state.attack_name, self.state.attack_result = name, result
        self.fire_event(AttackEvents.ATTACK_COMPLETED)
        self._bar.update()
