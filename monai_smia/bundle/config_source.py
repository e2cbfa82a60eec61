# SPDX-License-Identifier: Apache-2.0
"""A bundle that is described by configuration files: its objects, built when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

from ignite.engine import Engine
from monai.bundle import ConfigParser

from monai_smia.bundle.cases import limited
from monai_smia.bundle.edits import disable
from monai_smia.bundle.errors import BundleError, cause, reason
from monai_smia.bundle.ids import Ids, needs_trainer
from monai_smia.bundle.loaders import loaders_in, running_loaders, steps
from monai_smia.bundle.text import class_name, get, references, static_value
from monai_smia.bundle.weights import DEFAULT, load_weights


class ConfigSource:
    """Objects of a configuration whose text is ready: macros resolved, edited by `make_harmless`.

    Args:
        parser: holds the text.
        ids: where the evaluator and its parts are.
        root: the bundle.
        weights_id: what the weights are of.
        weights: loaded instead of what the configuration would load; None for the bundle's own.
        cases: a number of cases, or names, see `as_cases`.
        hint: what is missing, asked when something cannot be built.
    """

    def __init__(
        self,
        parser: ConfigParser,
        ids: Ids,
        root: Path,
        *,
        weights_id: str | None,
        weights: Path | None,
        cases: int | tuple[str, ...] | None,
        hint: Callable[[], str],
    ) -> None:
        self.parser = parser
        self.ids = ids
        self.config: dict[str, Any] = parser.config
        self._root = root
        self.weights_id = weights_id
        self._given = weights
        self._cases = cases
        self._hint = hint
        self._ready: set[str] = set()
        if weights is not None:
            disable(self.config, set(loaders_in(self.config, ids.handlers)))
        parser.ref_resolver.reset()

    # what the text says

    def weights(self) -> dict[str, Path]:
        """The files that hold the weights, and who loads them: the id of a loader, or ``""`` for us."""
        if self._given is not None:
            return {"": self._given}
        running = running_loaders(self.config, self.ids, self._is_off)
        files = {name: self._path(f"{name}#load_path") for name in running}
        return files or {"": self._root / DEFAULT}

    # objects

    def evaluator(self) -> Any:
        """The evaluator, its network with the weights loaded.

        Raises:
            BundleError: when there are no weights, no cases, or something cannot be built.
        """
        if "evaluator" not in self._ready:
            self._check_weights()
            self._initialize()
            self._limit()
            evaluator = self.build(self.ids.evaluator)
            self._load()
            if empty(evaluator):
                raise BundleError(
                    f"{self.ids.loader or self.ids.evaluator}: expected cases to evaluate; there are none{self._hint()}"
                )
            self._ready.add("evaluator")
        return self.build(self.ids.evaluator)

    def network(self) -> Any:
        """What the evaluator evaluates, with the weights loaded; reads no data.

        Raises:
            BundleError: when there are no weights or it cannot be built.
        """
        if self.ids.network is None:
            return self.evaluator().network
        self._check_weights()
        network = self.build(self.ids.network)
        self._load()
        return network

    def build(self, name: str | None) -> Any:
        """The object of an id, the same at every call; None for no id.

        Raises:
            BundleError: with the error of what cannot be built.
        """
        if name is None:
            return None
        try:
            return self.parser.get_parsed_content(name)
        except BundleError:
            raise
        except Exception as error:  # whatever the classes and expressions of the bundle raise
            raise BundleError(f"{name}: cannot be built; {reason(error)}{_advice(error)}{self._hint()}") from error

    def finalize(self) -> None:
        """Run what ``finalize`` says of objects that were built."""
        done = self.parser.ref_resolver.resolved_content
        for name in steps(self.config, "finalize"):
            if "initialized" in self._ready and {needed.replace("#", "::") for needed in self._refs(name)} <= set(done):
                self.build(name)

    # steps

    def _initialize(self) -> None:
        """Run ``initialize``, without what trains or loads weights, which is done when the network is there."""
        if "initialized" in self._ready:
            return
        self._ready.add("initialized")
        for name in steps(self.config, "initialize"):
            loads = [n for n in self._refs(name) if class_name(get(self.config, n)) == "CheckpointLoader"]
            if not loads and not needs_trainer(self.config, get(self.config, name)):
                self.build(name)

    def _limit(self) -> None:
        if self._cases is None:
            return
        if self.ids.dataset is None:
            raise BundleError(f"cases: expected a data set with an id of its own; {self.ids.evaluator} has none")
        dataset = self.build(self.ids.dataset)
        self.parser.ref_resolver.resolved_content[self.ids.dataset.replace("#", "::")] = limited(dataset, self._cases)

    def _check_weights(self) -> None:
        for path in self.weights().values():
            if not path.is_file():
                raise BundleError(f"weights: expected the file {path}; it does not exist, and none are made up")

    def _load(self) -> None:
        """Load the weights once, by the bundle's loaders or by ours: loaders only load when the evaluator runs."""
        if "loaded" in self._ready:
            return
        for loader, path in self.weights().items():
            if not loader:
                load_weights(self.build(self.weights_id), path)
                continue
            try:
                self.build(loader)(Engine(lambda engine, batch: None))
            except BundleError:
                raise
            except Exception as error:  # of torch's loading, and of a network that does not fit
                raise BundleError(f"weights: {loader} cannot load {path}; {reason(error)[:400]}") from error
        self._ready.add("loaded")

    def _refs(self, name: str) -> list[str]:
        return references(get(self.config, name))

    # loaders

    def _is_off(self, name: str) -> bool:
        value = self._value(name)
        return value.lower().strip() == "true" if isinstance(value, str) else bool(value)

    def _path(self, name: str) -> Path:
        path = static_value(self.config, name) or self._value(name)
        return self._root / str(path)

    def _value(self, name: str) -> Any:
        """A small value, evaluated apart from the objects that are built."""
        value = get(self.config, name)
        if isinstance(value, str) and value[:1] in "$@":
            try:
                return ConfigParser(self.config).get_parsed_content(name)
            except Exception as error:  # whatever the expression raises
                raise BundleError(f"{name}: cannot be told; {reason(error)}{_advice(error)}") from error
        return value


def empty(evaluator: Any) -> bool:
    """Whether an evaluator's loader has a length, and it is 0."""
    loader: Any = getattr(evaluator, "data_loader", None)
    return hasattr(loader, "__len__") and len(loader) == 0


def _advice(error: BaseException) -> str:
    error = cause(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "; expected dataset_dir= where the data is, or overrides= for the id that names this file"
    if isinstance(error, URLError):
        return "; the bundle downloads something here, which needs a connection, or the file in the place it is kept in"
    if "module 'numpy' has no attribute" in str(error):
        return "; the bundle was written for an older NumPy than the one that is installed"
    if str(error).startswith("Cannot locate"):
        return "; expected a class of the installed MONAI, of the bundle, or of another package that is installed"
    if isinstance(error, ImportError) or "No module named" in str(error):
        return "; install the package that is missing"
    if "CUDA" in str(error) or "nvidia" in str(error).lower():
        return "; device='cpu' computes without a GPU"
    return ""
