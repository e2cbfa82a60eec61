# SPDX-License-Identifier: Apache-2.0
"""Where a configuration keeps its evaluator, and the network, loss, data and transforms of that evaluator."""

from __future__ import annotations

import pydoc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from monai.bundle.properties import InferProperties, TrainProperties
from monai.engines import SupervisedEvaluator
from monai.utils import BundlePropertyConfig

from monai_smia.bundle.text import (
    argument_id,
    class_name,
    components,
    get,
    is_component,
    normal,
    reached,
    references,
    switched_off,
)
from monai_smia.bundle.weights import KEYS

LOSSES = ("loss", "lossfn", "loss_function", "loss_fn", "criterion")
"""Top-level ids under which bundles keep their loss; no bundle property names it."""


@dataclass(frozen=True)
class Ids:
    """Configuration ids, ``#`` between their parts; None for what the configuration has not.

    Attributes:
        evaluator: the evaluator.
        network, inferer, postprocessing, handlers, loader: what it is given.
        dataset, preprocessing: the loader's data set, and that data set's transform.
        loss: the trainer's loss function.
    """

    evaluator: str
    network: str | None = None
    inferer: str | None = None
    postprocessing: str | None = None
    handlers: str | None = None
    loader: str | None = None
    dataset: str | None = None
    preprocessing: str | None = None
    loss: str | None = None


def find_ids(config: Mapping[str, Any], *, imports: bool = True) -> Ids | None:
    """The ids of a configuration whose macros are resolved; None when there is no evaluator in it.

    The evaluator is the item of MONAI's bundle property, ``validate#evaluator`` or ``evaluator``, else the first
    component whose class is called an evaluator or is a `SupervisedEvaluator`: one with a network and metrics before
    one without. An override of its ``_disabled_`` to true passes one over.

    Args:
        config: macros resolved.
        imports: whether classes may be imported to see if they are evaluators, which runs a bundle's code; without, a
            component of another name is an evaluator where it is given a network and a ``val_data_loader``.
    """
    evaluator = _property(config, "evaluator") or next(_evaluators(config, imports), None)
    if evaluator is None:
        return None
    loader = argument_id(config, evaluator, "val_data_loader")
    dataset = argument_id(config, loader, "dataset")
    return Ids(
        evaluator=evaluator,
        network=argument_id(config, evaluator, "network") or next((i for i in ("network", "net") if i in config), None),
        inferer=argument_id(config, evaluator, "inferer"),
        postprocessing=argument_id(config, evaluator, "postprocessing"),
        handlers=argument_id(config, evaluator, "val_handlers"),
        loader=loader,
        dataset=dataset,
        preprocessing=argument_id(config, dataset, "transform"),
        loss=_loss(config),
    )


def weights_id(config: Mapping[str, Any], ids: Ids) -> str | None:
    """The id of what the weights are of: what checkpoints of this configuration save and load, else the network."""
    needed = reached(config, ids.evaluator)
    for _, item in components(config):
        saved = item.get("save_dict") or item.get("load_dict")
        if class_name(item) in ("CheckpointSaver", "CheckpointLoader") and isinstance(saved, Mapping):
            for name in (name for key in KEYS for name in references(saved.get(key))):
                if name in needed:
                    return name
    return "network" if "network" in needed else ids.network


def needs_trainer(config: Mapping[str, Any], value: Any) -> bool:
    """Whether a value refers to a trainer: there is none to evaluate with."""
    items = (get(config, name) for name in references(value))
    return any(is_component(item) and class_name(item).endswith("Trainer") for item in items)


def _property(config: Mapping[str, Any], name: str) -> str | None:
    """The id of a bundle property, of training before inference, that is a component here."""
    for properties in (TrainProperties, InferProperties):
        if name in properties:
            found = normal(properties[name][BundlePropertyConfig.ID])
            if _enabled(get(config, found)):
                return found
    return None


def _enabled(value: Any) -> bool:
    return is_component(value) and switched_off(value) is not True


def _evaluators(config: Mapping[str, Any], imports: bool) -> Iterator[str]:
    every = [(name, item) for name, item in components(config) if name.split("#")[0] != "_meta_" and _enabled(item)]
    found = [(name, item) for name, item in every if class_name(item).endswith("Evaluator")]
    if not found and imports:
        found = [(name, item) for name, item in every if _is_evaluator(item["_target_"])]
    elif not found:
        found = [(name, item) for name, item in every if {"network", "val_data_loader"} <= item.keys()]
    found.sort(key=lambda entry: ("network" not in entry[1], "key_val_metric" not in entry[1]))
    yield from (name for name, _ in found)


def _is_evaluator(target: Any) -> bool:
    """Whether a full path leads to a `SupervisedEvaluator`; a bare name is MONAI's own, and says so."""
    if not isinstance(target, str) or "." not in target or target.startswith("$"):
        return False
    try:
        kind = pydoc.locate(target)
    except pydoc.ErrorDuringImport:
        return False
    return isinstance(kind, type) and issubclass(kind, SupervisedEvaluator)


def _loss(config: Mapping[str, Any]) -> str | None:
    trainer = _property(config, "trainer")
    if trainer is None:
        trainers = [
            name for name, item in components(config) if _enabled(item) and class_name(item).endswith("Trainer")
        ]
        trainer = trainers[0] if trainers else None
    given = argument_id(config, trainer, "loss_function")
    return given or next((name for name in LOSSES if name in config), None)
