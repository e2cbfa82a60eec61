# SPDX-License-Identifier: Apache-2.0
"""`read_bundle`: what a bundle's files say of it, with none of its code run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_smia.bundle.describing import NONE, describe, labels, where_from
from monai_smia.bundle.edits import make_harmless
from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.ids import Ids, weights_id
from monai_smia.bundle.lacking import Missing, lacking_data, lacking_packages, lacking_weights
from monai_smia.bundle.layout import Layout, bundle_folder, layouts, read_metadata
from monai_smia.bundle.listed_transforms import stand_ins
from monai_smia.bundle.loaders import running_loaders
from monai_smia.bundle.merging import attack_file, checked_ids, merge, merge_attacks, override
from monai_smia.bundle.metadata import image_format
from monai_smia.bundle.opening import absolute_folder, as_overrides, choose, refuse_unknown
from monai_smia.bundle.text import get, static_truth, static_value
from monai_smia.bundle.weights import DEFAULT

UNKNOWN = "not known without running the bundle"


class BundleText:
    """A bundle as its files describe it. Made by `read_bundle`; nothing can be built from it.

    Attributes:
        root, config_files, metadata, kind, evaluator_id, network_id, loss_id, handlers_id, preprocessing_id,
        weights_id: as those of `OpenBundle`.
    """

    def __init__(
        self,
        root: Path,
        layout: Layout,
        metadata: dict[str, Any],
        config: Mapping[str, Any],
        ids: Ids,
        checkpointed: str | None,
        attack_config: Path | None = None,
    ) -> None:
        self.root = root
        self.config_files = (*layout.files, *([attack_config] if attack_config else []))
        self.metadata = metadata
        self.kind = layout.kind
        self.evaluator_id = ids.evaluator
        self.network_id = ids.network
        self.loss_id = ids.loss
        self.handlers_id = ids.handlers
        self.preprocessing_id = ids.preprocessing
        self.weights_id = checkpointed
        self._workflow = layout.workflow
        self._config = config
        self._ids = ids

    def found(self) -> dict[str, str]:
        """The rows of `OpenBundle.found`, in words; `UNKNOWN` where only running the bundle would tell."""
        files = " + ".join(path.name for path in self.config_files)
        rows = {"kind": self.kind, "configuration": files or NONE}
        if self._workflow is not None:
            rows |= {"evaluator": f"{self._workflow}, a workflow class: {UNKNOWN}", "labels": labels(self.metadata)}
        else:
            rows |= describe(self._config, self._ids, self.metadata)
        known, unknown = self._weights()
        return {**rows, "weights": "; ".join([*([where_from(self.root, known)] if known else []), *unknown])}

    def missing(self) -> tuple[Missing, ...]:
        """What an evaluation needs and is not there, as far as the text tells, and which argument supplies it."""
        lacks = [*lacking_weights(self.root, self._weights()[0])]
        if self._workflow is None:
            lacks += lacking_data(self._config, self._ids, self.root)
            lacks += lacking_packages(self._config, self._ids)
        return tuple(lacks)

    def image_format(self) -> dict[str, Any]:
        """What the metadata says of the input image; empty where nothing."""
        return image_format(self.metadata)

    def preprocessing(self) -> list[Any] | None:
        """What `read_intensity` can be asked of the evaluator's preprocessing; None for a workflow class."""
        if self._workflow is not None:
            return None
        return stand_ins(self._config, get(self._config, self.preprocessing_id) if self.preprocessing_id else None)

    def _weights(self) -> tuple[dict[str, Path], list[str]]:
        """The files that hold the weights by who loads them, and sentences for those that the text does not tell."""
        doubtful: set[str] = set()

        def is_off(name: str) -> bool:
            said = static_truth(self._config, name, self.root)
            if said is None:
                doubtful.add(name.removesuffix("#_disabled_"))
            return said is True

        running = [] if self._workflow is not None else running_loaders(self._config, self._ids, is_off)
        known: dict[str, Path] = {}
        unknown = []
        for name in running:
            path = static_value(self._config, f"{name}#load_path")
            if path is None:
                unknown.append(f"the file that {name} loads: {UNKNOWN}")
            elif name in doubtful:
                unknown.append(f"{path}, if {name} is on: {UNKNOWN}")
            else:
                known[name] = self.root / path
        return (known, unknown) if running else ({"": self.root / DEFAULT}, [])


def read_bundle(
    folder: str | Path,
    *,
    configs: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    dataset_dir: str | Path | None = None,
) -> BundleText:
    """Read a bundle of any layout, and run nothing of it.

    No expression (``$...``) is evaluated, nothing is imported from the bundle, the import path and the working folder
    stay as they are, no file of weights is opened, and of all ``_target_`` only MONAI's own transforms are built, from
    literals, and only those whose formula `read_intensity` knows. JSON and YAML are read as data.

    Args:
        folder, configs, overrides, dataset_dir: those of `open_bundle`.

    Raises:
        BundleError: in one line, when this is no bundle, has no evaluator, or cannot be read.

    Example:
        .. code-block:: python

            for name, words in read_bundle("downloads/some_bundle").found().items():
                print(name, words)
    """
    try:
        return _read(folder, configs, dict(overrides or {}), dataset_dir)
    except RecursionError as error:
        raise BundleError("configs: expected items that do not refer to each other in a circle") from error


def _read(folder: Any, configs: Any, overrides: dict[str, Any], dataset_dir: Any) -> BundleText:
    root = bundle_folder(folder)
    metadata = read_metadata(root)
    given = {} if dataset_dir is None else {"dataset_dir": absolute_folder(dataset_dir)}
    layout, parser = choose(root, layouts(root, configs), metadata, imports=False)
    if parser is None:
        return BundleText(root, layout, metadata, {}, Ids("evaluator", "network_def", dataset="dataset"), "network_def")
    attack_config = None if layout.kind == "inference" else attack_file(root)
    if attack_config:
        layout = Layout(layout.kind, tuple(path for path in layout.files if path != attack_config))
        parser = merge(layout.files, metadata)
        merge_attacks(parser, attack_config, imports=False)
    refuse_unknown(parser.config, overrides)
    override(parser, {**as_overrides(parser, root, given), **overrides})
    ids = checked_ids(parser.config, str(layout), imports=False)
    checkpointed = weights_id(parser.config, ids)  # before the savers that tell are switched off
    make_harmless(parser.config, ids)
    return BundleText(root, layout, metadata, parser.config, ids, checkpointed, attack_config)
