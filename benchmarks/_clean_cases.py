# SPDX-License-Identifier: Apache-2.0
"""Clean outputs of a bundle case by case, and its own metrics of any choice of them, with intervals by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from monai_smia.bundle.surroundings import Surroundings
from monai_smia.data.groups import GROUP, GROUP_KIND, UNKNOWN
from monai_smia.reports import bootstrap_interval

CONFIGS = ("train.json", "evaluate.json")
RESAMPLES, SEED = 2000, 0
_MEANS = ("dice", "iou")  # metrics that are means over cases


@dataclass(frozen=True)
class Interval:
    """A metric and its 95 % interval; the ends are NaN for fewer than two groups."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if math.isnan(self.low) else f" [{self.low:.3f}..{self.high:.3f}]")


@dataclass(frozen=True)
class CleanCases:
    """What a bundle's evaluator made of the cases of a split, and its metrics.

    Attributes:
        outputs: of each case, as its metrics take them.
        groups: of each case.
        kind: what a group is, see `monai_smia.data.groups`.
        metrics: name to metric, the evaluator's own.
        items: of the data list.
    """

    outputs: Sequence[Any]
    groups: Sequence[str]
    kind: str
    metrics: dict[str, Any]
    items: Sequence[dict[str, Any]]

    def value(self, name: str, cases: Sequence[int]) -> float:
        """The evaluator's metric of these cases, each as often as it is named."""
        chosen = [self.outputs[case] for case in cases]
        return metric_of(self.metrics[name], joined(chosen))

    def interval(self, name: str, cases: Sequence[int] | None = None) -> Interval:
        """With all cases of a drawn group; a draw on which the metric is not defined is left out."""
        cases = range(len(self.outputs)) if cases is None else cases
        groups = [self.groups[case] for case in cases]
        if any(word in name for word in _MEANS):
            values = [self.value(name, [case]) for case in cases]
            return Interval(float(np.mean(values)), *bootstrap_interval(values, groups, resamples=RESAMPLES, seed=SEED))
        members = {group: [case for case in cases if self.groups[case] == group] for group in dict.fromkeys(groups)}
        value = self.value(name, list(cases))
        if len(members) < 2:
            return Interval(value, math.nan, math.nan)
        names, generator, drawn = list(members), np.random.default_rng(SEED), []
        for _ in range(RESAMPLES):
            picked = [case for i in generator.integers(0, len(names), len(names)) for case in members[names[i]]]
            drawn.append(self.value(name, picked))
        return Interval(value, *(float(end) for end in np.nanpercentile(drawn, [2.5, 97.5])))


def clean_cases(root: Path, model_file: Path, data: Path | None, split: str | None = None) -> CleanCases:
    """Run the bundle's evaluator over its test cases.

    Args:
        root: the bundle.
        model_file: the weights.
        data: the images; ``None`` where the bundle says.
        split: ``None`` for that of its evaluate.json.
    """
    root, model_file = root.resolve(), model_file.resolve()
    around = Surroundings(root)
    around.enter()
    try:
        parser = ConfigParser()
        parser.read_config([str(root / "configs" / name) for name in CONFIGS])
        parser.read_meta(str(root / "configs" / "metadata.json"))
        parser["bundle_root"], parser["ckpt_dir"], parser["model_file"] = (
            str(root),
            str(model_file.parent),
            model_file.name,
        )
        if data is not None:
            parser["dataset_dir"] = str(data)
        if split is not None:
            parser["split"] = split
        handlers = parser["validate#handlers"]
        parser["validate#handlers"] = [item for item in handlers if item["_target_"] == "CheckpointLoader"]
        for i in range(len(parser["initialize"])):
            parser.get_parsed_content(f"initialize#{i}")
        evaluator = parser.get_parsed_content("validate#evaluator")
        outputs: list[Any] = []
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: outputs.extend(apart(engine.state.output))
        )
        evaluator.run()
        names = list(parser.get("validate#key_metric", {})) + list(parser.get("validate#additional_metrics", {}))
        places = ("validate#key_metric", "validate#additional_metrics")
        metrics = {k: v for place in places if place in parser for k, v in parser.get_parsed_content(place).items()}
        items = list(parser.get_parsed_content("validate#datalist"))
    finally:
        around.leave()
    if len(items) != len(outputs):
        raise ValueError(f"{root.name}: expected an output for each of {len(items)} cases; got {len(outputs)}")
    groups = [item.get(GROUP, str(i)) for i, item in enumerate(items)]
    return CleanCases(
        outputs, groups, items[0].get(GROUP_KIND, UNKNOWN), {name: metrics[name] for name in names}, items
    )


def apart(output: Any) -> list[Any]:
    """The outputs of the single cases of a batch, as metrics take them: a list of one, or a dictionary of such."""
    if isinstance(output, dict):
        keys = ("pred", "label")
        return [{key: [output[key][i]] for key in keys} for i in range(len(output["pred"]))]
    return [[{key: item[key] for key in ("pred", "label")}] for item in output]


def joined(outputs: Sequence[Any]) -> Any:
    """Outputs of single cases as one of a batch."""
    if isinstance(outputs[0], dict):
        return {key: [value for output in outputs for value in output[key]] for key in outputs[0]}
    return [item for output in outputs for item in output]


def metric_of(metric: Any, output: Any) -> float:
    """A metric of one batch; NaN where it is not defined, such as an AUC of one class."""
    engine = Engine(lambda _, batch: batch)
    metric.attach(engine, "value")
    try:
        engine.run([output])
    except ValueError:
        return math.nan
    return float(engine.state.metrics["value"])
