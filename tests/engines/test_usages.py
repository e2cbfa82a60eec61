"""Metrics of every usage of ignite: the right value, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import Task
from ignite.engine import Events
from ignite.metrics import Accuracy, Average, Metric, MetricsLambda, RunningAverage
from ignite.metrics.metric import BatchFiltered, BatchWise, RunningBatchWise, RunningEpochWise

from monai_smia import AttackEvaluator, evaluate_robustness
from monai_smia.engines import CaseByCase

TASK = Task(cases=6)
ALPHA = 0.7


def share(output: list[dict[str, Any]]) -> torch.Tensor:
    """One number a batch."""
    return torch.stack([torch.as_tensor(item["pred"])[0].float().mean() for item in output]).mean()


def pairs(output: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    stacked = [torch.stack([torch.as_tensor(item[key]).argmax(0) for item in output]) for key in ("pred", "label")]
    return stacked[0], stacked[1]


def right(output: list[dict[str, Any]]) -> torch.Tensor:
    prediction, label = pairs(output)
    return prediction == label


class Right(Average):
    """Share of right pixels, a mean of one number a batch."""

    def __init__(self) -> None:
        super().__init__(output_transform=lambda output: right(output).float().mean())


def metrics(kind: str) -> dict[str, Metric]:
    """New ones at every call, as an engine of its own needs."""
    if kind == "output":
        return {"value": RunningAverage(output_transform=share, alpha=ALPHA)}
    if kind == "source":
        return {"value": RunningAverage(Right(), alpha=ALPHA)}
    return {"value": MetricsLambda(lambda a, b: a - 2 * b, Right(), Average(output_transform=share))}


def values_of_batches(attack: Any) -> dict[str, list[float]]:
    """By a plain run over each batch: the share of class 0, and of right pixels."""
    found: dict[str, list[float]] = {"output": [], "source": []}
    evaluator = TASK.evaluator(key_val_metric=None, additional_metrics=None, val_handlers=attack)
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: (
            found["output"].append(float(share(engine.state.output))),
            found["source"].append(
                float((pairs(engine.state.output)[0] == pairs(engine.state.output)[1]).float().mean())
            ),
        ),
    )
    evaluator.run()
    return found


def by_hand(kind: str, attack: Any) -> float:
    found = values_of_batches(attack)
    if kind == "made of others":
        return sum(found["source"]) / 3 - 2 * sum(found["output"]) / 3
    value = found[kind][0]
    for new in found[kind][1:]:
        value = ALPHA * value + (1 - ALPHA) * new
    return value


def evaluated(way: str, attach: Any, **arguments: Any) -> dict[str, dict[str, Any]]:
    """The metrics of every run; `attach` adds more to an evaluator."""
    kind = AttackEvaluator if way == "in one pass" else type(TASK.evaluator())
    more = {"attacks": TASK.attacks(), "progress": False} if way == "in one pass" else {}
    evaluator = TASK.evaluator(kind, additional_metrics=None, **arguments, **more)
    attach(evaluator)
    if way == "in one pass":
        evaluator.run()
        return evaluator.report().metrics
    if way == "by runs":
        return evaluate_robustness(evaluator, TASK.attacks(), diagnose=False, progress=False).metrics
    return CaseByCase(evaluator, TASK.attacks(), diagnose=False, progress=False).run().metrics


@pytest.mark.parametrize("kind", ["output", "source", "made of others"])
@pytest.mark.parametrize("way", ["by runs", "by cases", "in one pass"])
def test_the_value_by_hand(way: str, kind: str) -> None:
    from monai_smia.handlers import AttackHandler

    found = evaluated(way, lambda evaluator: None, key_val_metric=metrics(kind))
    for name, attack in {"clean": [], **{name: [AttackHandler(a)] for name, a in TASK.attacks().items()}}.items():
        assert float(found[name]["value"]) == pytest.approx(by_hand(kind, attack), rel=1e-5), name
    assert float(found["bim"]["value"]) != float(found["clean"]["value"])


@pytest.mark.parametrize(
    ("usage", "metric"),
    [
        (BatchWise(), Right),
        (BatchFiltered(every=2), Right),
        (RunningBatchWise(), Right),
        (RunningEpochWise(), lambda: RunningAverage(Right(), alpha=ALPHA)),
    ],
    ids=["batch wise", "every second batch", "running", "once an epoch"],
)
def test_case_by_case_as_in_whole_runs(usage: Any, metric: Any) -> None:
    ways = [
        evaluated(way, lambda evaluator: metric().attach(evaluator, "value", usage)) for way in ("by runs", "by cases")
    ]
    for name, found in ways[0].items():
        assert float(ways[1][name]["value"]) == pytest.approx(float(found["value"]), rel=1e-5), name
    assert float(ways[0]["clean"]["value"]) != float(ways[0]["bim"]["value"])


def test_what_is_left_of_the_last_batch_is_refused() -> None:
    def attach(evaluator: Any) -> None:
        RunningAverage(output_transform=share).attach(evaluator, "value", RunningEpochWise())

    with pytest.raises(ValueError, match="a RunningAverage counts the output of the last batch when an epoch ends"):
        evaluated("by cases", attach)


def test_a_running_average_goes_on_after_a_kill_and_is_not_shared(tmp_path: Path) -> None:
    """Also where the first value is zero, which a sum of zeros looks like."""

    def metric() -> dict[str, Metric]:
        return {"value": RunningAverage(output_transform=lambda output: share(output).item() - first, alpha=ALPHA)}

    first = values_of_batches([])["output"][0]

    def run(**arguments: Any) -> CaseByCase:
        evaluator = TASK.evaluator(key_val_metric=metric(), additional_metrics=None)
        return CaseByCase(evaluator, TASK.attacks(), diagnose=False, progress=False, **arguments)

    value = 0.0
    for new in values_of_batches([])["output"][1:]:
        value = ALPHA * value + (1 - ALPHA) * (new - first)
    whole = run().run()
    assert float(whole.metrics["clean"]["value"]) == pytest.approx(value, rel=1e-5)
    killed = run(folder=tmp_path / "a")
    evaluate, done = killed._evaluate, list[int]()

    def stop(planned: Any) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        evaluate(planned)

    killed._evaluate = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    assert run(folder=tmp_path / "a", resume=True).run() == whole
    with pytest.raises(ValueError, match="shard: RunningAverage does not add up over batches"):
        run(folder=tmp_path / "b", shard="1/2").run()


def test_accuracy_beside_its_running_average() -> None:
    """Two metrics with states of their own."""

    def attach(evaluator: Any) -> None:
        RunningAverage(Right(), alpha=ALPHA).attach(evaluator, "running")

    accuracy = {
        "value": Accuracy(output_transform=lambda output: (right(output).long(), torch.ones_like(right(output)).long()))
    }
    found = evaluated("by cases", attach, key_val_metric=accuracy)
    assert float(found["clean"]["running"]) == pytest.approx(by_hand("source", []), rel=1e-5)
    assert found["clean"]["value"] == pytest.approx(sum(values_of_batches([])["source"]) / 3, rel=1e-5)
