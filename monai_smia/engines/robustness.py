# SPDX-License-Identifier: Apache-2.0
"""`evaluate_robustness`: any MONAI evaluator, run clean and under attack."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import ignite.distributed as idist
from ignite.engine import Events
from monai.utils import CommonKeys
from tqdm.auto import tqdm

from monai_smia.attacks import Attack
from monai_smia.engines.alone import alone, without_wrapper
from monai_smia.engines.batches import check_length
from monai_smia.engines.diagnosis import concluded, doubted, examined
from monai_smia.engines.distributed import Together, of_first, without_padding
from monai_smia.engines.guards import beside_the_clean, only_computing, savers_of, without_own_attacks
from monai_smia.engines.ignite import private
from monai_smia.engines.ignite.onlookers import watched
from monai_smia.engines.records import CaseRecorder, as_named
from monai_smia.handlers.attack_handler import AttackHandler
from monai_smia.handlers.batch import check_engine, image_checksums, image_of
from monai_smia.handlers.certifying import certify_batch, certify_options
from monai_smia.intensity import IntensityScale
from monai_smia.reports import CLEAN, RobustnessReport
from monai_smia.reports.finding import Finding

_KEPT = ("metrics", "metric_details", "best_metric", "best_metric_epoch", "batch", "output")


def evaluate_robustness(
    evaluator: Any,
    attacks: Mapping[str, Attack] | Sequence[Attack],
    *,
    image_key: str = CommonKeys.IMAGE,
    label_key: str = CommonKeys.LABEL,
    mask_key: str | None = None,
    seed: int = 0,
    intensity: IntensityScale | None = None,
    certify: Mapping[str, Any] | None = None,
    diagnose: bool = True,
    progress: bool = True,
) -> RobustnessReport:
    """Run the evaluator once clean and once under each attack, and put the metrics of all runs side by side.

    Works with any `SupervisedEvaluator` and any subclass; `AttackEvaluator` gives the same numbers in one pass over
    the data. The evaluator's state afterwards is that of the clean run. An attacked run is seen by metrics, by
    `PostProcessing`, and by what is attached inside the iteration (``IterationEvents.MODEL_COMPLETED``), the place for
    postprocessing of one's own; every other handler, whatever it saves, stops, schedules or logs, sees the clean run,
    once. Where the postprocessing saves images, those of an attack go to ``under_attack/<name>`` in the clean ones'
    folder. Runs are paired by checksums of the clean images.

    In a distributed group (`torchrun`) every process evaluates what its loader's `DistributedSampler` gives it, the
    cases that the sampler repeats only once, and all return the report of all cases, in the order of the data. Batches
    of one case are attacked with the random numbers that they have in a single process; larger ones hold other cases
    there, and an attack that draws is then equal in distribution only. `CaseByCase` keeps whole batches together.

    Args:
        evaluator: what evaluates; its own metrics, inferer, postprocessing and handlers are used.
        attacks: name to attack, or a sequence of attacks, named by class.
        image_key, label_key, mask_key, seed: as in `AttackHandler`.
        intensity: physical unit of the network's input, for the report.
        certify: arguments of `monai_smia.certificates.certify`, such as ``{"sigma": 0.25, "samples": 1000}``; every
            clean image is certified in the clean run, through the same inferer, and the report has the rows. Loss and
            activation are those of the attacks, if nothing else is said. ``None`` for no certificates.
        diagnose: look for reasons not to believe the numbers: `monai_smia.diagnose` on the first batch and
            `monai_smia.doctor.diagnose_report` on the report.
        progress: show a bar over runs and batches.

    Returns:
        The metrics of every run, aggregated and per case, with what was found.

    Raises:
        TypeError: for an evaluator that has not one network.
        ValueError: when the postprocessing saves images to a folder that cannot be known; when the loader gives other
            images at every run, or the same in another order; when it has no end; when a handler changes what the
            network or the metrics see; when two processes of a group have the same case.

    Example:
        .. code-block:: python

            report = evaluate_robustness(evaluator, {"pgd": PGD(loss_function, eps=8 / 255, bounds=(0.0, 1.0))})
            print(report.to_markdown())
    """
    named = as_named(attacks)
    options = certify_options(certify, named)
    check_engine(evaluator)
    check_length(evaluator)
    savers = savers_of(evaluator)
    recorder = CaseRecorder(image_key, intensity)
    handlers = {
        name: AttackHandler(
            attack, image_key=image_key, label_key=label_key, mask_key=mask_key, seed=seed, progress=progress
        )
        for name, attack in named.items()
    }
    metrics, details, kept = {}, {}, {}
    together: Together | None = None
    chosen = doubted(named) if diagnose else None
    first: list[Any] = []
    total = (len(named) + 1) * (evaluator.state.epoch_length or 0)
    try:
        with (
            without_padding(evaluator),
            without_wrapper(evaluator),
            without_own_attacks(evaluator),
            tqdm(total=total or None, desc="robustness", disable=not progress or idist.get_rank() > 0) as bar,
        ):
            for run in (CLEAN, *named):
                bar.set_postfix_str(run)
                certifying = None
                if run == CLEAN and options is not None:
                    certifying = partial(
                        certify_batch,
                        options=options,
                        image_key=image_key,
                        seed=seed,
                        intensity=intensity,
                        progress=progress,
                    )
                watched = first if run == chosen else None
                _run(evaluator, run, handlers.get(run), recorder, bar, savers, watched, certifying)
                together = together or Together(evaluator, recorder.names)
                together.sort_metrics()
                metrics[run] = dict(evaluator.state.metrics)
                details[run] = copy.copy(evaluator.state.metric_details)
                if run == CLEAN:
                    kept = {name: copy.copy(getattr(evaluator.state, name)) for name in _KEPT}
    finally:
        for name, value in kept.items():
            setattr(evaluator.state, name, value)
        for name in ("attack_result", "attacked"):
            vars(evaluator.state).pop(name, None)
    assert together is not None
    together.gather(recorder)
    report = recorder.report(metrics, details, named)
    if not diagnose:
        return report
    findings: tuple[Finding, ...] = ()
    if idist.get_rank() == 0:
        attack = None if chosen is None else named[chosen]
        batch, adversarial = first or (None, None)
        keys: dict[str, Any] = {"image_key": image_key, "mask_key": mask_key, "progress": progress}
        with alone(), without_wrapper(evaluator):
            findings = examined(evaluator, attack, batch, adversarial, **keys)
    return concluded(report, of_first(findings))


def _run(
    evaluator: Any,
    run: str,
    handler: AttackHandler | None,
    recorder: CaseRecorder,
    bar: Any,
    savers: list[Any],
    first: list[Any] | None,
    certifying: Any = None,
) -> None:
    """One run of the evaluator, clean where there is no handler, with what records it attached and taken off again.

    Into `first`, where it is given, go the first batch, clean, and what became of its image.
    """
    clean: list[Any] = []
    batches: list[Any] = []
    checksums: list[bytes] = []

    def keep_clean(engine: Any) -> None:
        batch = engine.state.batch
        clean[:] = [image_of(batch, recorder.image_key)]
        batches[:] = [batch]
        checksums[:] = image_checksums(clean[0])
        if handler is not None:
            recorder.check_batch(run, checksums)

    def record(engine: Any) -> None:
        if handler is None:
            known = len(recorder.names)
            recorder.begin_batch(engine.state.batch, checksums)
            if certifying is not None:
                recorder.certificates += certifying(engine, batches[0], names=recorder.names[known:])
        else:
            recorder.add(run, clean[0], engine.state.attack_result)
            if first == []:
                first.extend((batches[0], engine.state.attack_result.adversarial))
        bar.update()

    with ExitStack() as stack:
        if handler is None:
            stack.enter_context(watched(evaluator))
        else:
            stack.enter_context(only_computing(evaluator))
            stack.enter_context(beside_the_clean(savers, run))
            private.add_first(evaluator, Events.EPOCH_COMPLETED, partial(recorder.check_run, run))  # before metrics
        evaluator.add_event_handler(Events.ITERATION_STARTED, keep_clean)
        stack.callback(evaluator.remove_event_handler, keep_clean, Events.ITERATION_STARTED)
        if handler is not None:
            handler.attach(evaluator)
            stack.callback(handler.detach, evaluator)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, record)
        stack.callback(evaluator.remove_event_handler, record, Events.ITERATION_COMPLETED)
        private.forget_run(evaluator)
        evaluator.run()
