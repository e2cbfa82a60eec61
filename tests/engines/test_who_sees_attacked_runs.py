"""Attacked runs are for metrics and postprocessing; whatever else is attached sees the clean run, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import EPS, Task, counted
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from monai.engines.utils import IterationEvents
from monai.handlers import (
    CheckpointSaver,
    LrScheduleHandler,
    MetricsSaver,
    PostProcessing,
    StatsHandler,
    ValidationHandler,
)

from monai_smia import AttackEvaluator, evaluate_robustness
from monai_smia.attacks import BIM
from monai_smia.engines import CaseByCase
from monai_smia.handlers import AttackHandler
from monai_smia.reports import RobustnessReport

TASK = Task()
BATCHES = 2


def by_runs(evaluator: Any) -> RobustnessReport:
    return evaluate_robustness(evaluator, TASK.attacks(), diagnose=False, progress=False)


def by_cases(evaluator: Any) -> RobustnessReport:
    return CaseByCase(evaluator, TASK.attacks(), diagnose=False, progress=False).run()


def in_one_pass(evaluator: Any) -> RobustnessReport:
    evaluator.run()
    return evaluator.report()


WAYS = {"by runs": by_runs, "by cases": by_cases, "in one pass": in_one_pass}


def an_evaluator(way: str, **arguments: Any) -> Any:
    own = {"attacks": TASK.attacks(), "progress": False} if way == "in one pass" else {}
    return TASK.evaluator(AttackEvaluator if own else type(TASK.evaluator()), **own, **arguments)


@pytest.fixture
def clean() -> float:
    evaluator = TASK.evaluator()
    evaluator.run()
    return evaluator.state.metrics["val_dice"]


@pytest.mark.parametrize("way", WAYS)
def test_ignites_handlers_act_once_by_the_clean_metric(tmp_path: Path, way: str, clean: float) -> None:
    """A checkpoint, early stopping of a training, a schedule by the metric, and a function."""
    evaluator, seen = an_evaluator(way), list[float]()
    trainer = Engine(lambda engine, batch: None)
    stop = EarlyStopping(1, lambda engine: engine.state.metrics["val_dice"], trainer)
    save = Checkpoint(
        {"network": evaluator.network},
        DiskSaver(str(tmp_path), require_empty=False),
        n_saved=50,
        score_function=lambda engine: -engine.state.metrics["val_dice"],
    )
    optimizer = torch.optim.SGD(evaluator.network.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.1, patience=0)
    step = LrScheduleHandler(schedule, print_lr=False, step_transform=lambda engine: engine.state.metrics["val_dice"])
    step.attach(evaluator)
    for event in (Events.COMPLETED, Events.EPOCH_COMPLETED):
        evaluator.add_event_handler(event, lambda engine: seen.append(engine.state.metrics["val_dice"]))
    evaluator.add_event_handler(Events.COMPLETED, stop)
    evaluator.add_event_handler(Events.COMPLETED, save)
    before = counted(evaluator)
    WAYS[way](evaluator)
    assert seen == pytest.approx([clean, clean])
    assert len(list(tmp_path.iterdir())) == 1
    assert stop.counter == 0
    assert not trainer.should_terminate
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert schedule.last_epoch == 1
    assert counted(evaluator) == before


@pytest.mark.parametrize("way", WAYS)
def test_every_event_comes_as_in_a_clean_run(way: str) -> None:
    """The same events in the same order, with the same iterations, images and numbers of handlers to be called."""

    def log_of(evaluator: Any, run: Callable[[Any], Any]) -> list[Any]:
        seen: list[Any] = []

        def note(engine: Any, name: str) -> None:
            state = engine.state
            batch = state.batch
            image = batch["image"] if isinstance(batch, dict) else None
            total = None if image is None else float(torch.as_tensor(image).sum())
            seen.append((name, state.iteration, state.epoch, state.epoch_length, state.max_epochs, total))

        for event in (
            Events.STARTED,
            Events.EPOCH_STARTED,
            Events.GET_BATCH_STARTED,
            Events.GET_BATCH_COMPLETED,
            Events.ITERATION_STARTED,
            Events.ITERATION_COMPLETED,
            Events.EPOCH_COMPLETED,
            Events.COMPLETED,
        ):
            evaluator.add_event_handler(event, note, event.name)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED(every=2), note, "every second")
        evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), note, "first")
        run(evaluator)
        return seen

    expected = log_of(TASK.evaluator(), lambda evaluator: evaluator.run())
    assert len(expected) == 4 + 4 * BATCHES + 2
    assert log_of(an_evaluator(way), WAYS[way]) == expected


def test_predictions_that_onlookers_see_by_cases_are_the_clean_ones() -> None:
    def predictions(run: Callable[[Any], Any]) -> list[torch.Tensor]:
        evaluator, seen = TASK.evaluator(), list[torch.Tensor]()
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: seen.extend(torch.as_tensor(item["pred"]) for item in engine.state.output),
        )
        run(evaluator)
        return seen

    found, expected = predictions(by_cases), predictions(lambda evaluator: evaluator.run())
    assert len(found) == len(expected) == TASK.cases
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_case_that_fails_is_not_shown() -> None:
    """What fails under an attack is left out of every run; its batch mates are shown once, one by one."""
    evaluator, sizes, ends = TASK.evaluator(batch_size=3), list[int](), list[float]()
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: sizes.append(len(engine.state.output)))
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: ends.append(engine.state.metrics["val_dice"]))
    evaluator.data_loader.dataset.data[1]["image"].fill_(2.0)  # outside the bounds
    run = CaseByCase(evaluator, TASK.attacks(), diagnose=False, progress=False)
    report = run.run()
    assert len(run.failures) == 1
    assert sizes == [1, 1]
    assert ends == [report.metrics["clean"]["val_dice"]]


@pytest.mark.parametrize("way", WAYS)
def test_checkpoint_saver_of_monai(tmp_path: Path, way: str, clean: float) -> None:
    network = TASK.network()
    saver = CheckpointSaver(str(tmp_path), {"net": network}, save_key_metric=True, key_metric_n_saved=9)
    WAYS[way](an_evaluator(way, network=network, val_handlers=[saver]))
    assert [path.name for path in tmp_path.iterdir()] == [f"net_key_metric={clean:.4f}.pt"]


@pytest.mark.parametrize("way", ["by runs", "in one pass"])
def test_what_monai_prints_and_saves_is_of_the_clean_run(tmp_path: Path, way: str, clean: float) -> None:
    second, printed, validated = TASK.evaluator(), list[int](), list[float]()
    second.add_event_handler(Events.COMPLETED, lambda engine: validated.append(engine.state.metrics["val_dice"]))
    handlers = [
        StatsHandler(epoch_print_logger=lambda engine: printed.append(engine.state.epoch), iteration_log=False),
        ValidationHandler(1, second),
        MetricsSaver(str(tmp_path), metrics="val_dice", metric_details="val_dice"),
    ]
    WAYS[way](an_evaluator(way, val_handlers=handlers))
    assert printed == [1]
    assert validated == [clean]
    assert len((tmp_path / "val_dice_raw.csv").read_text().splitlines()) == 1 + TASK.cases


@pytest.mark.parametrize("attached", ["function", "PostProcessing"])
@pytest.mark.parametrize("way", WAYS)
def test_postprocessing_of_ones_own_is_for_every_run(way: str, attached: str) -> None:
    """Attached inside the iteration it gives every run the numbers of the same postprocessing given to the engine."""

    def postprocessing(engine: Any) -> None:
        transform = TASK.postprocessing()
        engine.state.output = [transform(item) for item in engine.state.output]

    evaluator = an_evaluator(way, postprocessing=None)
    if attached == "function":
        evaluator.add_event_handler(IterationEvents.MODEL_COMPLETED, postprocessing)
    else:
        PostProcessing(TASK.postprocessing()).attach(evaluator)
    report, expected = WAYS[way](evaluator), by_runs(TASK.evaluator())
    assert report.metrics == expected.metrics
    assert report.metrics["clean"] != report.metrics["bim"]


@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, Events.GET_BATCH_COMPLETED])
@pytest.mark.parametrize("way", ["by runs", "by cases"])
def test_a_handler_that_changes_the_batch_is_refused(way: str, event: Any) -> None:
    def brighter(engine: Any) -> None:
        engine.state.batch["image"] = engine.state.batch["image"] * 0.9

    evaluator = TASK.evaluator()
    evaluator.add_event_handler(event, brighter)
    before = counted(evaluator)
    with pytest.raises(ValueError, match=rf"evaluator: .*brighter on {event.name} changes the batch or the output"):
        WAYS[way](evaluator)
    assert counted(evaluator) == before


@pytest.mark.parametrize("way", ["by runs", "by cases"])
def test_a_handler_that_changes_what_metrics_see_is_refused_and_one_after_them_is_not(way: str) -> None:
    def forgetting(engine: Any) -> None:
        engine.state.output[0]["pred"].zero_()

    after = TASK.evaluator()
    after.add_event_handler(Events.ITERATION_COMPLETED, forgetting)  # the metrics have counted
    assert WAYS[way](after).metrics == by_runs(TASK.evaluator()).metrics
    before = TASK.evaluator(key_val_metric=None, additional_metrics=None)
    before.add_event_handler(Events.ITERATION_COMPLETED, forgetting)
    TASK.metrics()["key_val_metric"]["val_dice"].attach(before, "val_dice")
    with pytest.raises(ValueError, match="forgetting on ITERATION_COMPLETED changes the batch or the output"):
        WAYS[way](before)


@pytest.mark.parametrize("way", ["by runs", "by cases"])
def test_an_attack_on_the_clean_run_is_refused(way: str) -> None:
    """The run called clean would be an attacked one."""
    handler = AttackHandler(BIM(TASK.loss(), eps=EPS, steps=1), progress=False)
    with pytest.raises(ValueError, match="evaluator: AttackHandler on ITERATION_STARTED changes the batch"):
        WAYS[way](TASK.evaluator(val_handlers=[handler]))


@pytest.mark.parametrize("way", ["by runs", "by cases"])
def test_a_handler_that_ends_the_run_is_named(way: str) -> None:
    evaluator = TASK.evaluator()
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: engine.terminate())
    message = {
        "by runs": "evaluator: its loader gave 2 cases in the clean run and more under 'bim'",
        "by cases": "evaluator: a handler terminated it at iteration_completed",
    }
    with pytest.raises(ValueError, match=message[way]):
        WAYS[way](evaluator)


def test_a_shard_that_is_not_the_last_completes_no_epoch(tmp_path: Path, clean: float) -> None:
    seen: list[Any] = []
    for shard in ("2/2", "1/2"):
        evaluator = TASK.evaluator()
        for event in (Events.STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
            evaluator.add_event_handler(event, lambda engine, name: seen.append(name), event.name)
        evaluator.add_event_handler(Events.COMPLETED, lambda engine: seen.append(engine.state.metrics["val_dice"]))
        CaseByCase(evaluator, TASK.attacks(), folder=tmp_path, shard=shard, diagnose=False, progress=False).run()
    assert seen == ["STARTED", "ITERATION_COMPLETED"] * 2 + ["EPOCH_COMPLETED", pytest.approx(clean)]


@pytest.mark.parametrize("way", ["by runs", "by cases"])
def test_attacks_of_the_evaluators_own_are_left_out(way: str) -> None:
    """An `AttackEvaluator` counts as a plain one, also in the passes that it makes; afterwards it is itself again."""

    def passes(evaluator: Any) -> tuple[Any, int]:
        seen: list[int] = []
        evaluator.network.register_forward_pre_hook(lambda *_: seen.append(1))
        return WAYS[way](evaluator), len(seen)

    evaluator = an_evaluator("in one pass")
    before = counted(evaluator)
    assert passes(evaluator) == passes(TASK.evaluator())
    assert counted(evaluator) == before
    assert in_one_pass(evaluator) == by_runs(TASK.evaluator())
