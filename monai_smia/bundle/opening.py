# SPDX-License-Identifier: Apache-2.0
"""`open_bundle`: a bundle folder of any layout, and its evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser

from monai_smia.bundle.cases import Cases, as_cases
from monai_smia.bundle.config_source import ConfigSource
from monai_smia.bundle.describing import NONE, describe, labels, where_from
from monai_smia.bundle.edits import make_harmless
from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.ids import Ids, find_ids, weights_id
from monai_smia.bundle.lacking import Missing, lacking_data, lacking_packages, lacking_weights
from monai_smia.bundle.layout import Layout, bundle_folder, layouts, read_metadata
from monai_smia.bundle.merging import attack_file, checked_ids, merge, merge_attacks, nothing_found, override, resolved
from monai_smia.bundle.metadata import image_format, label_names
from monai_smia.bundle.surroundings import Surroundings
from monai_smia.bundle.text import normal
from monai_smia.bundle.weights import given_weights
from monai_smia.bundle.workflow_source import WorkflowSource


class OpenBundle:
    """A bundle that is open: what it is made of, and its objects, built when they are first asked for.

    While it is open the working folder is the bundle, ``scripts`` is importable, and nothing is written into it. Close
    it, or use it in a ``with`` statement. Made by `open_bundle`.

    Attributes:
        root: the bundle's folder.
        config_files: the files that were merged, in their order; none for a workflow class.
        metadata: ``configs/metadata.json``, empty where there is none.
        kind: ``"evaluate"``, ``"train-only"``, ``"inference"`` or ``"python"``.
        attack_config: this package's ``configs/attack.json``, or None.
        evaluator_id, network_id, loss_id, postprocessing_id, preprocessing_id, dataset_id, handlers_id: ids of the
            configuration, ``#`` between their parts; of a workflow class its properties. None for what it has not.
        weights_id: what the weights are of, where that is not all of what the evaluator evaluates (a detector's head).
    """

    def __init__(
        self,
        root: Path,
        layout: Layout,
        metadata: dict[str, Any],
        source: ConfigSource | WorkflowSource,
        surroundings: Surroundings,
        attack_config: Path | None = None,
    ) -> None:
        ids = source.ids if isinstance(source, ConfigSource) else Ids("evaluator", "network_def", dataset="dataset")
        self.root = root
        self.config_files = (*layout.files, *([attack_config] if attack_config else []))
        self.metadata = metadata
        self.kind = layout.kind
        self.attack_config = attack_config
        self.evaluator_id = ids.evaluator
        self.network_id = ids.network
        self.loss_id = ids.loss
        self.postprocessing_id = ids.postprocessing
        self.preprocessing_id = ids.preprocessing
        self.dataset_id = ids.dataset
        self.handlers_id = ids.handlers
        self.weights_id = source.weights_id if isinstance(source, ConfigSource) else ids.network
        self._ids = ids
        self._source = source
        self._surroundings = surroundings

    def found(self) -> dict[str, str]:
        """What the bundle is made of, in words; read from its text, with nothing built and no data read."""
        files = " + ".join(path.name for path in self.config_files)
        if isinstance(self._source, WorkflowSource):
            rows = {"evaluator": self._source.path, "labels": labels(self.metadata)}
        else:
            rows = describe(self._source.config, self._ids, self.metadata)
        weights = where_from(self.root, self._source.weights())
        return {"kind": self.kind, "configuration": files or NONE, **rows, "weights": weights}

    def missing(self) -> tuple[Missing, ...]:
        """What an evaluation needs and is not there, as far as the text tells, and which argument supplies it."""
        lacks = [*lacking_weights(self.root, self._source.weights())]
        if isinstance(self._source, ConfigSource):
            lacks += lacking_data(self._source.config, self._ids, self.root)
            lacks += lacking_packages(self._source.config, self._ids)
        return tuple(lacks)

    def require(self) -> None:
        """Refuse to go on with something `missing`.

        Raises:
            BundleError: naming everything that is missing, and the arguments that supply it.
        """
        if lacks := self.missing():
            raise BundleError(f"{self.root.name}: missing {'; '.join(map(str, lacks))}")

    def label_names(self) -> dict[str, str]:
        """Number of a channel of the prediction to its name, as the metadata has it; empty where it has none."""
        return label_names(self.metadata)

    def image_format(self) -> dict[str, Any]:
        """What the metadata says of the input image (``modality``, ``value_range``, ...); empty where nothing."""
        return image_format(self.metadata)

    @property
    def weights_file(self) -> Path | None:
        """The file of the weights; None while it does not exist."""
        return next((path for path in self._source.weights().values() if path.is_file()), None)

    def evaluator(self) -> Any:
        """The evaluator, its network with the bundle's weights, its data set with the wanted cases.

        Raises:
            BundleError: when something is missing or cannot be built: the id, the original error, and what would help.
        """
        return self._source.evaluator()

    def network(self) -> Any:
        """What the evaluator evaluates, with the bundle's weights; of a configuration, without reading data."""
        return self._source.network()

    def loss(self) -> Any:
        """The loss function that the bundle is trained with; None where it tells of none."""
        return self._source.loss() if isinstance(self._source, WorkflowSource) else self._source.build(self.loss_id)

    def postprocessing(self) -> Any:
        """The evaluator's postprocessing, without what saves images; None where there is none."""
        if isinstance(self._source, WorkflowSource):
            return self._source.postprocessing()
        return self._source.build(self.postprocessing_id)

    def preprocessing(self) -> Any:
        """The transform of the evaluator's data set; None where there is none."""
        if isinstance(self._source, WorkflowSource):
            return self._source.preprocessing()
        return self._source.build(self.preprocessing_id)

    def attacks(self) -> Any:
        """The attacks of the bundle's own ``attack.json``, by name; None where there is none."""
        return self._defined("attacks")

    def attack_options(self, names: Sequence[str]) -> dict[str, Any]:
        """What the bundle's own ``attack.json`` gives some attacks beside the common arguments, of these names only."""
        options = self._defined("attack_options") or {}
        return {name: options[name] for name in names if name in options}

    def criterion(self) -> Any:
        """What counts as success in the bundle's own ``attack.json``; None where it does not say."""
        return self._defined("criterion")

    def intensity(self) -> Any:
        """The `IntensityScale` of the bundle's own ``attack.json``; None where there is none."""
        return self._defined("intensity")

    def close(self) -> None:
        """Finalize what was initialized, and give the process its working folder and import path back."""
        try:
            self._source.finalize()
        finally:
            self._surroundings.leave()

    def __enter__(self) -> OpenBundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._surroundings.leave()  # a second error of finalizing would hide the first

    def _defined(self, name: str) -> Any:
        if self.attack_config is None or isinstance(self._source, WorkflowSource):
            return None
        return self._source.build(name) if name in self._source.config else None


def open_bundle(
    folder: str | Path,
    *,
    configs: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    dataset_dir: str | Path | None = None,
    weights: str | Path | None = None,
    cases: Cases = None,
    split: str | None = None,
    device: str | None = None,
) -> OpenBundle:
    """Open a bundle of any layout to evaluate it; nothing is built yet.

    The evaluator is found by MONAI's bundle properties, else by its class. Caches, worker processes, savers and
    trackers are switched off in the text, so that evaluating is quick to start and writes nothing; the weights are
    those of the bundle's `CheckpointLoader`, else ``models/model.pt``, and never random.

    Args:
        folder: the bundle, with its ``configs``.
        configs: names of files in ``configs``, merged in their order, or ``"scripts.module.Class"`` of a workflow;
            None for train and evaluate (or test), else train alone, else a workflow class, else inference.
        overrides: ids to values, as on MONAI's command line: ``{"validate#inferer#overlap": 0.5}``.
        dataset_dir: where the data is; the configuration's ``dataset_dir``.
        weights: a file of weights instead of the bundle's own.
        cases: how many cases, or names of their files, see `as_cases`; None for all.
        split: the configuration's ``split``, where it has one.
        device: such as ``"cpu"`` or ``"cuda:0"``.

    Raises:
        BundleError: in one line, when this is no bundle, has no evaluator, or cannot be read.

    Example:
        .. code-block:: python

            with open_bundle("spleen_ct_segmentation", dataset_dir="Task09_Spleen", cases=2) as bundle:
                evaluator = bundle.evaluator()
                evaluator.run()
                print(evaluator.state.metrics)
    """
    root = bundle_folder(folder)
    metadata = read_metadata(root)
    wanted: dict[str, Any] = {"weights": given_weights(weights, root), "cases": as_cases(cases)}
    given = {"split": split, "device": None if device is None else f"$torch.device({device!r})"}
    given["dataset_dir"] = None if dataset_dir is None else absolute_folder(dataset_dir)
    given = {key: value for key, value in given.items() if value is not None}
    ways = layouts(root, configs)
    surroundings = Surroundings(root)
    surroundings.enter()
    try:
        layout, parser = choose(root, ways, metadata)
        if parser is None:
            values = {**given, **({"device": device} if device else {}), **(overrides or {})}
            own = WorkflowSource(str(layout), root, values, **wanted)
            own.kind()
            return OpenBundle(root, layout, metadata, own, surroundings)
        attack_config = None if layout.kind == "inference" else attack_file(root)  # attacks need a loss and labels
        if attack_config:
            layout = Layout(layout.kind, tuple(path for path in layout.files if path != attack_config))
            parser = merge(layout.files, metadata)
            merge_attacks(parser, attack_config)
        refuse_unknown(parser.config, overrides or {})
        source = _source(root, layout, parser, {**as_overrides(parser, root, given), **(overrides or {})}, wanted)
        return OpenBundle(root, layout, metadata, source, surroundings, attack_config)
    except BaseException:
        surroundings.leave()
        raise


def choose(
    root: Path, ways: list[Layout], metadata: dict[str, Any], *, imports: bool = True
) -> tuple[Layout, ConfigParser | None]:
    """The first way that leads to an evaluator, with its text; no text for a workflow class.

    `imports` is that of `find_ids`.
    """
    tried = {}
    for layout in ways:
        if layout.workflow is not None:
            return layout, None
        parser = merge(layout.files, metadata)
        if find_ids(resolved(parser).config, imports=imports) is not None:
            return layout, parser
        tried[str(layout)] = parser.config
    raise nothing_found(tried)


def refuse_unknown(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse an override of what is not there, which would do nothing: a misspelt argument.

    Raises:
        BundleError: for an id that neither the configuration has nor another override refers to.
    """
    for name in overrides:
        top = normal(name).split("#")[0].lstrip("+")
        if top not in config and not any(f"@{top}" in str(value) for value in overrides.values()):
            raise BundleError(f"{name}: neither an argument nor an id of the configuration")


def as_overrides(parser: ConfigParser, root: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as overrides, and the bundle's own folder as ``bundle_root`` unless that is another one.

    Raises:
        BundleError: for an argument that the configuration has no id for.
    """
    for key in given:
        if key not in parser.config:
            there = ", ".join(name for name in parser.config if name != "_meta_")
            raise BundleError(f"{key}: expected a configuration with an id {key}; got {there}; use overrides=")
    stated = parser.config.get("bundle_root")
    elsewhere = isinstance(stated, str) and Path(stated).is_absolute() and Path(stated).is_dir()
    found = {**({} if elsewhere else {"bundle_root": str(root)}), **given}
    if "dataset_dir" in given and str(parser.config["dataset_dir"]).endswith("/"):
        found["dataset_dir"] = f"{str(given['dataset_dir']).rstrip('/')}/"  # names of files are put straight after it
    return found


def absolute_folder(folder: str | Path) -> str:
    """The folder of the data, absolute, because the working folder will be the bundle.

    Raises:
        BundleError: when it is not there.
    """
    if not Path(folder).expanduser().exists():
        raise BundleError(f"dataset_dir: expected the folder of the data; {str(folder)!r} does not exist")
    return f"{Path(folder).expanduser().absolute()}{'/' if str(folder).endswith('/') else ''}"


def _source(
    root: Path, layout: Layout, parser: ConfigParser, overrides: Mapping[str, Any], wanted: Mapping[str, Any]
) -> ConfigSource:
    override(parser, overrides)
    ids = checked_ids(parser.config, str(layout))
    checkpointed = weights_id(parser.config, ids)  # before the savers that tell are switched off
    make_harmless(parser.config, ids)

    def hint() -> str:
        lacks = [*lacking_data(parser.config, ids, root), *lacking_packages(parser.config, ids)]
        return f"; missing: {'; '.join(map(str, lacks))}" if lacks else ""

    return ConfigSource(parser, ids, root, weights_id=checkpointed, hint=hint, **wanted)
