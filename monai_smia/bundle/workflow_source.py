# SPDX-License-Identifier: Apache-2.0
"""A bundle that is described by a workflow class in ``scripts``: its objects come from the class's properties."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import BundleWorkflow
from monai.handlers import CheckpointLoader

from monai_smia.bundle.cases import limited
from monai_smia.bundle.config_source import empty
from monai_smia.bundle.edits import WRITERS
from monai_smia.bundle.errors import BundleError, reason
from monai_smia.bundle.ids import LOSSES
from monai_smia.bundle.weights import DEFAULT, load_weights
from monai_smia.engines.ignite import private


class WorkflowSource:
    """Objects of a `BundleWorkflow`, made and initialized when they are first asked for.

    Args:
        path: ``scripts.module.Class``.
        root: the bundle.
        given: ``dataset_dir``, ``device``, ``split`` and overrides: arguments of the class where it has them, else
            its properties.
        weights, cases: as in `ConfigSource`.
    """

    def __init__(
        self,
        path: str,
        root: Path,
        given: Mapping[str, Any],
        *,
        weights: Path | None,
        cases: int | tuple[str, ...] | None,
    ) -> None:
        self.path = path
        self._root = root
        self._given_values = given
        self._given = weights
        self._cases = cases
        self._made: dict[str, Any] = {}

    def kind(self) -> type[Any]:
        """The class.

        Raises:
            BundleError: when it cannot be imported or is no workflow.
        """
        module, _, name = self.path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever the bundle's code raises when it is imported
            raise BundleError(f"configs: {self.path} cannot be imported; {reason(error)}") from error
        if not (isinstance(found, type) and issubclass(found, BundleWorkflow)):
            raise BundleError(f"configs: expected a BundleWorkflow; {self.path} is none")
        return found

    def weights(self) -> dict[str, Path]:
        return {"": self._given or self._root / DEFAULT}

    def workflow(self) -> Any:
        """The workflow, initialized."""
        if "workflow" not in self._made:
            kind, meta = self.kind(), self._root / "configs" / "metadata.json"
            parameters = inspect.signature(kind).parameters
            anything = any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values())
            offered = {**({"meta_file": str(meta)} if meta.is_file() else {}), "bundle_root": str(self._root)}
            if "workflow_type" in parameters and parameters["workflow_type"].default is inspect.Parameter.empty:
                offered["workflow_type"] = "train"
            taken = {key: value for key, value in offered.items() if key in parameters}
            values = dict(self._given_values)
            taken |= {key: values.pop(key) for key in list(values) if key in parameters or anything}
            try:
                workflow = kind(**taken)
                for key, value in values.items():
                    setattr(workflow, key, value)
                workflow.initialize()
            except Exception as error:  # of the bundle's own code
                raise BundleError(f"{self.path}: cannot be made; {reason(error)}") from error
            self._made["workflow"] = workflow
        return self._made["workflow"]

    def take(self, *names: str) -> Any:
        """The first of these properties or attributes that the workflow has; None for none."""
        workflow = self.workflow()
        for name in names:
            try:
                getter = getattr(type(workflow), f"get_{name}", None)
                declared = name in (workflow.properties or {})
                value = getattr(workflow, name) if declared or name in vars(workflow) else None
                if value is None and getter is not None and not declared:
                    value = self._made.setdefault(name, getter(workflow))
            except Exception as error:  # a property that is required and not there, or that cannot be built
                if getter is None:
                    continue
                raise BundleError(f"{self.path}: {name} cannot be built; {reason(error)}") from error
            if value is not None:
                return value
        return None

    def evaluator(self) -> Any:
        """The workflow's evaluator, with weights and cases; what writes files is detached.

        Raises:
            BundleError: when there is none, no weights or no cases.
        """
        if "evaluator" not in self._made:
            evaluator = self.take("evaluator")
            if evaluator is None:
                raise BundleError(f"{self.path}: expected the property evaluator (a method get_evaluator); it has none")
            if self._cases is not None:
                loader = evaluator.data_loader
                if limited(loader.dataset, self._cases) is not loader.dataset:
                    raise BundleError(f"cases: expected a data set with a list data; {self.path} has none")
                evaluator.state.epoch_length = len(loader)
            if empty(evaluator):
                raise BundleError(f"{self.path}: expected cases to evaluate; there are none (dataset_dir=)")
            _detach_writers(evaluator)
            self._load(evaluator)
            self._made["evaluator"] = evaluator
        return self._made["evaluator"]

    def network(self) -> Any:
        """The evaluator's network, with the weights."""
        return self.evaluator().network

    def loss(self) -> Any:
        return self.take(*LOSSES)

    def postprocessing(self) -> Any:
        return self.take("val_postprocessing", "postprocessing")

    def preprocessing(self) -> Any:
        return self.take("val_preprocessing", "preprocessing")

    def finalize(self) -> None:
        """Finalize a workflow that was initialized."""
        if "workflow" in self._made:
            try:
                self.workflow().finalize()
            except Exception as error:  # of the bundle's own code
                raise BundleError(f"{self.path}: cannot be finalized; {reason(error)}") from error

    def _load(self, evaluator: Any) -> None:
        loaders = [owner for owner in _owners(evaluator) if isinstance(owner, CheckpointLoader)]
        if self._given is not None:
            _detach(evaluator, lambda owner: isinstance(owner, CheckpointLoader))
        for loader in loaders if self._given is None else ():
            try:
                loader(evaluator)
            except Exception as error:  # of torch's loading, and of a network that does not fit
                raise BundleError(f"weights: cannot load {loader.load_path}; {reason(error)[:400]}") from error
        if not loaders or self._given is not None:
            load_weights(evaluator.network, self.weights()[""])


def _owners(evaluator: Any) -> list[Any]:
    return [private.owner_of(entry[0]) for entries in private.handlers_of(evaluator).values() for entry in entries]


def _detach(evaluator: Any, condition: Any) -> None:
    for entries in private.handlers_of(evaluator).values():
        entries[:] = [entry for entry in entries if not condition(private.owner_of(entry[0]))]


def _detach_writers(evaluator: Any) -> None:
    _detach(evaluator, lambda owner: WRITERS.fullmatch(type(owner).__name__) is not None)
