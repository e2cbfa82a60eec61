# SPDX-License-Identifier: Apache-2.0
"""`CaseByCase`: an evaluation under attack that keeps what is done, goes on after a kill, and survives bad cases."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, StatsHandler
from monai.utils import CommonKeys
from tqdm.auto import tqdm

from monai_smia.attacks import Attack, AttackResult
from monai_smia.engines.batches import Failure, Planned, count, plan
from monai_smia.engines.diagnosis import concluded, doubted, examined
from monai_smia.engines.guards import RECORDING, loaders, refuse_savers, without_handlers, without_saving_images
from monai_smia.engines.metric_state import metrics_of, restore, state_of
from monai_smia.engines.progress import Progress, read_progress, write_progress
from monai_smia.engines.records import CaseRecorder, as_named, short_names
from monai_smia.handlers.batch import attack_batch, batch_seed, case_files
from monai_smia.handlers.certifying import certify_batch, certify_options
from monai_smia.intensity import IntensityScale
from monai_smia.reports import CLEAN, RobustnessReport

Fitted = Callable[[str, Attack, torch.Tensor], Attack]
"""``(name, attack, image) -> attack`` with what depends on the batch, such as an eps relative to each image."""


Made = Callable[[str, Any, Any, torch.Generator], tuple[Any, AttackResult]]
"""``(name, engine, batch, generator) -> (batch, result)``: a batch made in another way than by an attack on it."""

CERTIFIED = "certificates"
"""Stage and time of what is no run of the evaluator."""

HOPELESS = 3
"""So many first cases that fail alike end a run."""


class Watcher(Protocol):
    """Sees every run of every batch, to keep pictures of it."""

    def saw(self, run: str, batch: Any, output: Any, forward: Any, result: AttackResult | None) -> None:
        """A run of the batch is done; `forward` is the network's own output, `output` the postprocessed one."""

    def keep(self, names: Sequence[str], recorder: CaseRecorder) -> None:
        """All runs of the batch are done."""

    def drop(self) -> None:
        """A run of the batch failed."""


class CaseByCase:
    """Runs an evaluator batch by batch, clean and under each attack, and keeps each batch as soon as it is done.

    The numbers are those of `evaluate_robustness`. A batch that fails is tried case by case; a case that fails, in
    loading, in the network, in an attack or in a metric, is noted and left out of every run, and the others go on.

    Args:
        evaluator: a `SupervisedEvaluator` or any subclass.
        attacks: name to attack.
        image_key, label_key, mask_key, seed: as in `AttackHandler`.
        intensity: physical unit of the network's input, for the report.
        certify: as in `evaluate_robustness`.
        folder: where the progress is kept (``progress.pt``); ``None`` for nowhere.
        settings: what the run is made of, name to text; a run is resumed only by one of the same settings.
        resume: go on with what `folder` holds.
        fitted: gives an attack what depends on the batch.
        prepare: a batch to the batch that is evaluated, such as one with labels made of the clean prediction.
        made: gives the batch of a run where it is not the attack on the network's input, such as one read from a file.
        watchers: see every run.
        diagnose: look for reasons not to believe the numbers, on the network with the first batch that is evaluated
            and in the report, see `monai_smia.doctor`.
        progress: show a bar with the cases, the attack and the time left.

    Raises:
        ValueError: when a `CheckpointSaver` is attached; when a run to resume was made of other settings.
        FileExistsError: when `folder` holds the progress of an earlier run and `resume` is false.
    """

    def __init__(
        self,
        evaluator: Any,
        attacks: Mapping[str, Attack] | Sequence[Attack],
        *,
        image_key: str = CommonKeys.IMAGE,
        label_key: str = CommonKeys.LABEL,
        mask_key: str | None = None,
        seed: int = 0,
        intensity: IntensityScale | None = None,
        certify: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
        settings: Mapping[str, str] | None = None,
        resume: bool = False,
        fitted: Fitted | None = None,
        prepare: Callable[[Any], Any] | None = None,
        made: Made | None = None,
        watchers: Sequence[Watcher] = (),
        diagnose: bool = True,
        progress: bool = True,
    ) -> None:
        self.evaluator = evaluator
        self.attacks = as_named(attacks)
        self.image_key, self.label_key, self.mask_key = image_key, label_key, mask_key
        self.seed = seed
        self.intensity = intensity
        self.certify = certify_options(certify, self.attacks)
        self.file = None if folder is None else Path(folder) / "progress.pt"
        self.settings = dict(settings or {})
        self.fitted = fitted
        self.prepare = prepare
        self.made = made
        self.watchers = tuple(watchers)
        self.diagnose = diagnose
        self._examined: AttackResult | None = None
        self.progress = progress
        refuse_savers(evaluator)
        self._weights = loaders(evaluator)
        self._metrics = metrics_of(evaluator)
        self.state = Progress() if self.file is None else read_progress(self.file, self.settings, resume)

    def run(self) -> RobustnessReport:
        """Evaluate what is not done yet; the evaluator's `CheckpointLoader`, if it has one, loads the weights once.

        Returns:
            The report of all cases done, those of an earlier run included.

        Raises:
            RuntimeError: when all of the first cases fail alike, which no other case will mend.
        """
        loader, first = self.evaluator.data_loader, self.state.done
        for load in self._weights:
            load(self.evaluator)
        with (
            self._quiet(),
            tqdm(total=count(loader), initial=len(first), disable=not self.progress, unit="batch") as bar,
        ):
            bar.set_description("cases under attack")
            self._bar = bar
            for planned in plan(loader, self.image_key):
                if planned.number not in self.state.done:
                    self._evaluate(planned)
                    bar.update()
                    self._give_up()
        if not self.state.names:
            self._forget()
        return self.report()

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Cases that failed."""
        return tuple(self.state.failures)

    def case_names(self) -> dict[str, str]:
        """File of a finished case to its name in the report."""
        return dict(zip(self.state.names, short_names(self.state.names), strict=True))

    def report(self) -> RobustnessReport:
        """The report of what is done."""
        recorder = CaseRecorder(self.image_key, self.intensity)
        recorder.names, recorder.rows = self.state.names, self.state.rows
        recorder.certificates = self.state.certificates
        runs = (CLEAN, *self.attacks)
        metrics = {run: self.state.metrics.get(run, {}) for run in runs}
        details = {run: self.state.details.get(run, {}) for run in runs}
        return self.concluded(recorder.report(metrics, details, self.attacks))

    def concluded(self, report: RobustnessReport) -> RobustnessReport:
        """A report of what is done with what the doctor finds in it and has found on the network."""
        return concluded(report, tuple(self.state.findings or ())) if self.diagnose else report

    def _give_up(self) -> None:
        """Stop where nothing but the same error has come, be its numbers each case's own."""
        failed = [(failure.stage, failure.error) for failure in self.state.failures if failure.stage != "loading"]
        alike = {(stage, re.sub(r"[\d.]+", "", error)) for stage, error in failed}
        if not self.state.names and len(failed) >= HOPELESS and len(alike) == 1:
            self._forget()
            raise RuntimeError(
                f"{failed[0][0]}: the first {len(failed)} cases all failed; the first with {failed[0][1]}"
            )

    def _forget(self) -> None:
        """Leave the folder free for a run with better arguments: of this one nothing is worth going on with."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _evaluate(self, planned: Planned) -> None:
        """One batch; if it fails as a whole, its cases one by one."""
        batch, failures = planned.load(planned.indices)
        self.state.failures += failures
        if batch is not None and (failure := self._all_runs(batch, planned)) is not None:
            if len(planned.indices) > 1:
                for index in planned.indices:
                    batch, _ = planned.load([index])  # what cannot be loaded is noted already
                    if batch is not None and (failure := self._all_runs(batch, planned, index)) is not None:
                        self.state.failures.append(failure)
            else:
                self.state.failures.append(failure)
        self.state.done.append(planned.number)
        if self.file is not None:
            write_progress(self.file, self.state, self.settings)

    def _all_runs(self, batch: Any, planned: Planned, index: int | None = None) -> Failure | None:
        """Every run of a batch, or of one of its cases, kept if none fails."""
        first = index if index is not None else (*planned.indices, len(self.state.names))[0]
        names = case_files(batch, self.image_key, start=first)
        own = planned.indices if index is None else (index,)
        if names[0] == str(first) and len(own) == len(names):  # no file in the metadata
            names = [planned.name(item) for item in own]
        recorder = CaseRecorder(self.image_key, self.intensity)
        kept: dict[str, tuple[Any, ...]] = {}
        run = CLEAN
        try:
            if self.prepare is not None:
                batch = self.prepare(batch)
            chosen = self._doubted(batch)
            for run in (CLEAN, *self.attacks):
                started = time.perf_counter()
                kept[run] = (*self._run(run, batch, planned.number, recorder, chosen), time.perf_counter() - started)
            run, started = CERTIFIED, time.perf_counter()
            certificates = self._certified(batch, names)
            certifying = time.perf_counter() - started
        except Exception as error:
            for watcher in self.watchers:
                watcher.drop()
            return Failure.of(", ".join(names), run, error)
        self.state.names += names
        for run, (metrics, details, states, seconds) in kept.items():
            self.state.metrics[run], self.state.details[run], self.state.states[run] = metrics, details, states
            self.state.seconds[run] = self.state.seconds.get(run, 0.0) + seconds
        self.state.certificates += certificates
        if certificates:
            self.state.seconds[CERTIFIED] = self.state.seconds.get(CERTIFIED, 0.0) + certifying
        for run, rows in recorder.rows.items():
            self.state.rows.setdefault(run, []).extend(rows)
        for watcher in self.watchers:
            watcher.keep(names, recorder)
        if self.diagnose and self.state.findings is None:
            self._examine(batch, chosen)
        return None

    def _doubted(self, batch: Any) -> tuple[str, Attack] | None:
        """The attack that the doctor examines with this batch."""
        if not self.diagnose or self.state.findings is not None:
            return None
        image = batch[self.image_key] if isinstance(batch, dict) else batch[0]
        attacks = {
            name: attack if self.fitted is None else self.fitted(name, attack, image)
            for name, attack in self.attacks.items()
        }
        name = doubted(attacks)
        return None if name is None else (name, attacks[name])

    def _examine(self, batch: Any, chosen: tuple[str, Attack] | None) -> None:
        """The doctor's findings on this batch, to the state."""
        self._bar.set_postfix_str("doctor")
        started = time.perf_counter()
        adversarial = None if self._examined is None else self._examined.adversarial
        found = examined(
            self.evaluator,
            None if chosen is None else chosen[1],
            batch,
            adversarial,
            image_key=self.image_key,
            mask_key=self.mask_key,
            progress=self.progress,
        )
        self._examined = None
        self.state.findings = list(found)
        self.state.seconds["doctor"] = time.perf_counter() - started

    def _run(
        self, run: str, batch: Any, number: int, recorder: CaseRecorder, chosen: tuple[str, Attack] | None
    ) -> tuple[Any, Any, Any]:
        """One run of one batch; what the metrics say and have accumulated afterwards."""
        evaluator, seen = self.evaluator, dict[str, Any]()

        def begin(engine: Any) -> None:
            for metric, state in zip(self._metrics, self.state.states.get(run, ()), strict=False):
                restore(metric, state)

        def attack(engine: Any) -> None:
            if run != CLEAN:
                seen["clean"] = batch[self.image_key] if isinstance(batch, dict) else batch[0]
                engine.state.batch, seen["result"] = self._attacked(run, engine)

        def forward(engine: Any) -> None:
            output = engine.state.output
            seen["forward"] = output.get(CommonKeys.PRED) if isinstance(output, dict) else output

        def end(engine: Any) -> None:
            seen["batch"], seen["output"] = engine.state.batch, engine.state.output

        def failed(engine: Any, error: BaseException) -> None:
            raise error  # ignite goes on after an error that a handler has seen, even after an interrupt

        events: dict[Any, Callable[..., None]] = {
            Events.EPOCH_STARTED: begin,
            Events.ITERATION_STARTED: attack,
            Events.ITERATION_COMPLETED: end,
            Events.EXCEPTION_RAISED: failed,
        }
        if IterationEvents.FORWARD_COMPLETED in evaluator._allowed_events:
            events[IterationEvents.FORWARD_COMPLETED] = forward
        loader, length = evaluator.data_loader, evaluator.state.epoch_length
        try:
            for event, handler in events.items():
                evaluator.add_event_handler(event, handler)
            evaluator.data_loader, evaluator.state.epoch_length = [batch], 1
            evaluator.state.first_batch = number
            evaluator._internal_run_generator = None  # of a run that failed: ignite would go on with it
            evaluator.run()
        finally:
            evaluator._internal_run_generator = None
            evaluator.data_loader, evaluator.state.epoch_length = loader, length
            vars(evaluator.state).pop("first_batch", None)
            for event, handler in events.items():
                evaluator.remove_event_handler(handler, event)
                if not evaluator._event_handlers[event]:
                    del evaluator._event_handlers[event]
        if run != CLEAN:
            recorder.add(run, seen["clean"], seen["result"])
            if chosen is not None and run == chosen[0]:
                self._examined = seen["result"]
        for watcher in self.watchers:
            watcher.saw(run, seen["batch"], seen["output"], seen.get("forward"), seen.get("result"))
        states = [state_of(metric) for metric in self._metrics]
        return dict(evaluator.state.metrics), dict(getattr(evaluator.state, "metric_details", {})), states

    def _certified(self, batch: Any, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of what is certain about the clean images of the batch."""
        if self.certify is None:
            return []
        self._bar.set_postfix_str(CERTIFIED)
        return certify_batch(
            self.evaluator,
            batch,
            self.certify,
            names,
            image_key=self.image_key,
            seed=self.seed,
            intensity=self.intensity,
            progress=self.progress,
        )

    def _attacked(self, run: str, engine: Any) -> tuple[Any, AttackResult]:
        batch, attack = engine.state.batch, self.attacks[run]
        generator = torch.Generator().manual_seed(batch_seed(self.seed, engine))
        if self.made is not None:
            self._bar.set_postfix_str(run)
            return self.made(run, engine, batch, generator)
        image = batch[self.image_key] if isinstance(batch, dict) else batch[0]
        attack = attack if self.fitted is None else self.fitted(run, attack, image)

        def show(trial: Any, prediction: Any) -> None:
            self._bar.set_postfix_str(f"{run} {trial.step + 1}/{trial.steps}")

        return attack_batch(
            engine,
            attack,
            batch,
            image_key=self.image_key,
            label_key=self.label_key,
            mask_key=self.mask_key,
            generator=generator,
            callback=show,
            progress=self.progress,
        )

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """The evaluator without what records, prints or saves, and with its own state back afterwards."""
        state, logger = self.evaluator.state, self.evaluator.logger
        level = logger.level
        kept = {
            name: vars(state)[name] for name in ("metrics", "metric_details", "batch", "output") if name in vars(state)
        }
        with ExitStack() as stack:
            stack.enter_context(without_handlers(self.evaluator, (*RECORDING, StatsHandler, CheckpointLoader)))
            stack.enter_context(without_saving_images(self.evaluator))
            logger.setLevel(logging.CRITICAL)  # of every run of every batch; failures are reported
            try:
                yield
            finally:
                logger.setLevel(level)
                if CLEAN in self.state.metrics:
                    kept.update(metrics=self.state.metrics[CLEAN], metric_details=self.state.details[CLEAN])
                for name, value in kept.items():
                    setattr(state, name, value)
