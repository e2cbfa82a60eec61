# SPDX-License-Identifier: Apache-2.0
"""`CaseByCase`: an evaluation under attack that keeps what is done, goes on after a kill, and survives bad cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.utils import CommonKeys
from tqdm.auto import tqdm

from monai_smia.attacks import Attack, AttackResult
from monai_smia.certificates import TooFewSamples
from monai_smia.engines.alone import alone, without_wrapper
from monai_smia.engines.batches import Failure, Loaded, Planned, check_length, count, failure_of, plan
from monai_smia.engines.case_run import Fitted, Made, Seen, Watcher, run_batch
from monai_smia.engines.contents import Contents, kept_contents
from monai_smia.engines.diagnosis import Doctor, concluded
from monai_smia.engines.evaluator_fingerprint import evaluator_parts
from monai_smia.engines.guards import RECORDING, loaders, silenced, without_own_attacks
from monai_smia.engines.ignite.onlookers import Onlookers
from monai_smia.engines.keeping import Keeper
from monai_smia.engines.progress import Part, Progress, Record
from monai_smia.engines.records import CaseRecorder, as_named, labelled, short_names
from monai_smia.engines.tally import Entry, Tally
from monai_smia.handlers.batch import attack_batch, batch_seed, case_files, check_engine, image_of
from monai_smia.handlers.certifying import certify_batch, certify_options
from monai_smia.intensity import IntensityScale
from monai_smia.reports import CLEAN, RobustnessReport

CERTIFIED = "certificates"
"""Stage and time of what is no run of the evaluator."""


class CaseByCase:
    """Runs an evaluator batch by batch, clean and under each attack, and keeps each batch as soon as it is done.

    The numbers are those of `evaluate_robustness`. A batch that fails is tried case by case; a case that fails, in
    loading, in the network, in an attack or in a metric, is noted and left out of every run, and the others go on. A
    fault of the machine stops the run, see `monai_smia.engines.faults`. A run is gone on with only by its like, see
    `monai_smia.engines.evaluator_fingerprint`, and while the files of the cases done are what they were.

    The cases are those of the loader's sampler and the evaluator's ``epoch_length``. Attacked runs are seen by metrics
    and postprocessing only, see `evaluate_robustness`. MONAI's handlers that write files, print or log to a tracker do
    nothing here; every other one sees the clean run as one: each batch once, when all runs of it are done, and one
    completed epoch with the metrics of all batches.

    The batches may be shared out, to the tasks of a job array (`shard`) or to the processes of a distributed group,
    which take a shard each. A batch is the same whoever evaluates it, with the same cases and the same seed, and so are
    the numbers of all of them together.

    Args:
        evaluator: a `SupervisedEvaluator` or any subclass.
        attacks: name to attack.
        image_key, label_key, mask_key, seed: as in `AttackHandler`.
        intensity: physical unit of the network's input, for the report.
        certify: as in `evaluate_robustness`.
        folder: where the progress is kept (``progress.pt``, or ``shard-<i>-of-<n>.pt``); ``None`` for nowhere.
        settings: what the run is made of, name to text; a run is resumed only by one of the same settings.
        resume: go on with what `folder` holds; if these are finished shards, and `shard` is not given, merge them.
        retry_failed: go on, and try the cases again that failed, with all of their batch.
        shard: ``"i/n"``, the i-th of n equal shares, counted from 1; ``None`` for all batches, or in a distributed
            group for the share of this process.
        fitted: gives an attack what depends on the batch.
        prepare: a batch to the batch that is evaluated, such as one with labels made of the clean prediction.
        made: gives the batch of a run where it is not the attack on the network's input, such as one read from a file.
        watchers: see every run.
        diagnose: look for reasons not to believe the numbers, on the network with the first batch that is evaluated
            and in the report, see `monai_smia.doctor`.
        progress: show a bar with the cases, the attack and the time left.

    Raises:
        TypeError: for an evaluator that has not one network.
        ValueError: when the loader gives other cases at every run or has no end; when a handler changes what the
            network or the metrics see, or ends the run; when a run to resume was made of other settings, or of other
            shards; when shards to merge are missing, unfinished, or not of one evaluation; when `shard` is no share, or
            a metric cannot be shared out.
        FileExistsError: when `folder` holds the progress of an earlier run and `resume` is false.
        OptionalImportError: with `certify`, without scipy.
        FolderInUse: in `run`, when another run writes into `folder`.
        MachineFault: in `run`, when the machine fails.
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
        retry_failed: bool = False,
        shard: Any = None,
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
        self.fitted = fitted
        self.prepare = prepare
        self.made = made
        self.watchers = tuple(watchers)
        self.diagnose = diagnose
        self._doctor = Doctor(evaluator, self.attacks, fitted, image_key, mask_key, progress)
        self._clean: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._some = False
        self.progress = progress
        check_engine(evaluator)
        check_length(evaluator)
        self._weights = loaders(evaluator)
        with without_own_attacks(evaluator):
            self._tally, self._onlookers = Tally(evaluator), Onlookers(evaluator, RECORDING)
        number = count(evaluator.data_loader, evaluator.state.epoch_length)
        batches = {} if number is None else {"batches": str(number)}
        made_of = {**(settings or {}), "attacks of the run": ", ".join(self.attacks), **batches}
        if folder is not None:
            keys = {"keys": [image_key, label_key, mask_key], "certificates": self.certify, "seed of the run": seed}
            made_of |= evaluator_parts(evaluator, self.attacks, keys)
        self._keeper = Keeper(folder, made_of, shard, resume, retry_failed)
        self._contents = Contents(evaluator.data_loader, self._keeper.digests(), image_key)
        self._tally.know([entries for run in (CLEAN, *self.attacks) for entries in self.state.states(run)])

    @property
    def state(self) -> Progress:
        """What is done."""
        return self._keeper.state

    @property
    def complete(self) -> bool:
        """Whether all batches of the evaluation are done: in a shard, whether those of all shards are."""
        return self._keeper.complete

    def run(self) -> RobustnessReport:
        """Evaluate what is not done yet; the evaluator's `CheckpointLoader`, if it has one, loads the weights once.

        Returns:
            The report of all cases done, those of an earlier run included. A shard gives that of its own cases; the
            one that is finished last that of all. In a distributed group every process gives that of all.

        Raises:
            TooFewSamples: when `certify` has too few samples for the first case.
            RuntimeError: when all of the first cases fail alike, which no other case will mend; in a distributed group
                in every process when one of them fails.
            ValueError: when files of cases done are not what they were.
        """
        fresh = not self._keeper.complete
        with self._keeper.together(), self._keeper.held(), alone(), without_wrapper(self.evaluator):
            self._contents.refuse_others(self.state.records.values())
            for load in self._weights:
                load(self.evaluator)
            if fresh:
                with self._quiet():
                    self._evaluate_all()
        with self._quiet():
            report = self.report()
            if fresh and self._keeper.complete and self._clean is not None:
                self._onlookers.complete(*self._clean)
            return report

    def _evaluate_all(self) -> None:
        """Every batch that is not done yet, and is in the shard."""
        loader, batches = self.evaluator.data_loader, 0
        length = self.evaluator.state.epoch_length
        self._onlookers.start(count(loader, length))
        mine = self._keeper.share(count(loader, length))
        show = self.progress and self._keeper.shows
        with tqdm(total=mine, initial=len(self.state.records), disable=not show, unit="batch") as bar:
            bar.set_description("cases under attack")
            self._bar = bar
            for planned in plan(loader, self.image_key, length):
                batches += 1
                if self._keeper.wants(planned.number):
                    self._evaluate(planned)
                    bar.update()
                    self._give_up()
        self._contents.save()
        self._keeper.finish(batches)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Cases that failed."""
        return tuple(self.state.failures)

    def case_names(self) -> dict[str, str]:
        """File of a finished case, numbered where several cases are of one, to its name in the report."""
        labels = self.state.labels
        return dict(zip(labels, short_names(labels), strict=True))

    def report(self) -> RobustnessReport:
        """The report of what is done."""
        recorder = CaseRecorder(self.image_key, self.intensity)
        recorder.names, recorder.rows = self.state.labels, self.state.rows
        recorder.certificates = self.state.certificates
        metrics, details = {}, {}
        for run in (CLEAN, *self.attacks):
            with alone(), without_own_attacks(self.evaluator):
                metrics[run], details[run] = self._tally.computed(self.state.states(run))
        self._clean = metrics[CLEAN], details[CLEAN]
        return self.concluded(recorder.report(metrics, details, self.attacks))

    def concluded(self, report: RobustnessReport) -> RobustnessReport:
        """A report of what is done with what the doctor finds in it and has found on the network."""
        return concluded(report, tuple(self.state.findings or ())) if self.diagnose else report

    def _give_up(self) -> None:
        """Stop where nothing but the same error has come, be its numbers each case's own."""
        self._some = self._some or any(record.parts for record in self.state.records.values())
        if not self._some and (words := self.state.all_alike()):
            self._keeper.forget()
            raise RuntimeError(words)

    def _evaluate(self, planned: Planned) -> None:
        """One batch; if it fails as a whole, its cases one by one."""
        record = Record(planned.number)
        contents = {} if self._keeper.folder is None else self._contents.of_all(planned.indices)
        loaded = planned.load(planned.indices)
        record.failures += loaded.failures
        failure = self._all_runs(loaded, planned, record)
        if failure is not None and len(planned.indices) > 1:
            again = (self._all_runs(planned.load([index]), planned, record) for index in loaded.indices)
            record.failures += [failure for failure in again if failure is not None]
        elif failure is not None:
            record.failures.append(failure)
        record.contents = kept_contents(contents, record, planned.name)
        if self._tally.carried and self._keeper.shard is not None:
            raise ValueError(
                f"shard: {', '.join(self._tally.carried)} does not add up over batches; expected an evaluation in one "
                "piece, or other metrics"
            )
        self._keeper.keep(record)
        for watcher in self.watchers:
            getattr(watcher, "noted", lambda: None)()  # only who keeps files needs it

    def _all_runs(self, loaded: Loaded, planned: Planned, record: Record) -> Failure | None:
        """Every run of a batch, or of one of its cases, kept if none fails."""
        batch, own = loaded.batch, loaded.indices
        if batch is None:
            return None
        names = case_files(batch, self.image_key, start=planned.first)
        if names[0] == str(planned.first) and len(own) == len(names):  # no file in the metadata
            names = [planned.name(item) for item in own]
        recorder = CaseRecorder(self.image_key, self.intensity)
        labels = labelled(names, planned.places_of(own))
        part, seconds = Part(names, labels=labels), dict[str, float]()
        run, clean = CLEAN, Seen()
        try:
            if self.prepare is not None:
                batch = self.prepare(batch)
            chosen = self._doctor.choose(batch) if self._asks(record) else None
            run, started = CERTIFIED, time.perf_counter()  # before the attacks: what it refuses costs one prediction
            part.certificates = self._certified(batch, labels)
            if part.certificates:
                seconds[CERTIFIED] = time.perf_counter() - started
            for run in (CLEAN, *self.attacks):
                started = time.perf_counter()
                seen = self._run(run, batch, record, recorder, chosen, own)
                clean = seen if run == CLEAN else clean
                part.states[run] = seen.entries
                seconds[run] = time.perf_counter() - started
        except Exception as error:
            if isinstance(error, TooFewSamples) and not self.state.names:
                raise  # the same for the next case: the arguments are wrong, and not this case
            for watcher in self.watchers:
                watcher.drop()
            return failure_of(", ".join(names), run, error)
        self._onlookers.batch(record.number, batch, clean.batch, clean.output)
        part.rows = recorder.rows
        record.parts.append(part)
        for watcher in self.watchers:
            watcher.keep(labels, recorder)
        if self._asks(record):
            started = time.perf_counter()
            self._bar.set_postfix_str("doctor")
            record.findings = self._doctor.examine(batch, chosen)
            seconds["doctor"] = time.perf_counter() - started
        for run, spent in seconds.items():
            record.seconds[run] = record.seconds.get(run, 0.0) + spent
        return None

    def _asks(self, record: Record) -> bool:
        """Whether the doctor is to examine the network now: once, in the first shard."""
        return self.diagnose and self._keeper.is_first and self.state.findings is None and record.findings is None

    def _run(
        self,
        run: str,
        batch: Any,
        record: Record,
        recorder: CaseRecorder,
        chosen: tuple[str, Attack] | None,
        indices: Sequence[int],
    ) -> Seen:
        """One run of one batch."""
        seen = run_batch(
            self.evaluator,
            batch,
            record.number,
            self._tally,
            attack=None if run == CLEAN else lambda engine: self._attacked(run, engine),
            before=self._before(run, record),
            indices=indices,
        )
        if run != CLEAN:
            recorder.add(run, image_of(batch, self.image_key), seen.result)
            if chosen is not None and run == chosen[0]:
                self._doctor.saw(seen.result)
        for watcher in self.watchers:
            watcher.saw(run, seen.batch, seen.output, seen.forward, seen.result)
        return seen

    def _before(self, run: str, record: Record) -> list[Entry]:
        """What the metrics made of the last part, where one of them has to know."""
        own = [part.states[run] for part in record.parts]
        return (own or self.state.states(run) or [[]])[-1] if self._tally.carried else []

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
        image = image_of(batch, self.image_key)
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
        state = self.evaluator.state
        kept = {
            name: vars(state)[name] for name in ("metrics", "metric_details", "batch", "output") if name in vars(state)
        }
        with silenced(self.evaluator):
            try:
                yield
            except BaseException as error:
                self._onlookers.fail(error)
                raise
            finally:
                if self._clean is not None and self._clean[0]:
                    kept.update(metrics=self._clean[0], metric_details=self._clean[1])
                for name, value in kept.items():
                    setattr(state, name, value)
