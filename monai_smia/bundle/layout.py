# SPDX-License-Identifier: Apache-2.0
"""Which files of a bundle folder describe its evaluation."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_smia.bundle.errors import BundleError

SUFFIXES = (".json", ".yaml", ".yml")
EVALUATE = ("evaluate", "test")
"""Names of the files that turn a training into an evaluation; the segmentation template calls it test."""


@dataclass(frozen=True)
class Layout:
    """One way to read a bundle.

    Attributes:
        kind: ``"evaluate"`` (a file of its own for evaluation), ``"train-only"`` (the validation of the training),
            ``"inference"`` (no labels) or ``"python"`` (a workflow class).
        files: configuration files, to be merged in this order.
        workflow: ``scripts.module.Class``; None unless the kind is ``"python"``.
    """

    kind: str
    files: tuple[Path, ...] = ()
    workflow: str | None = None

    def __str__(self) -> str:
        return self.workflow or " + ".join(path.name for path in self.files)


def bundle_folder(folder: str | Path) -> Path:
    """The bundle's folder, absolute.

    Raises:
        BundleError: when it is no bundle.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise BundleError(f"folder: expected a bundle's folder; {folder} is not a folder")
    if not (root / "configs").is_dir():
        raise BundleError(f"folder: expected a MONAI bundle, with its configuration in {folder}/configs; it has none")
    return root


def layouts(root: Path, configs: str | Sequence[str] | None) -> list[Layout]:
    """The ways to read a bundle, best first, or the one that `configs` names.

    Raises:
        BundleError: when a name of `configs` is no file of the bundle, or the bundle has no configuration at all.
    """
    if configs is not None:
        return [_named(root, configs)]
    train = find_file(root, "train")
    evaluate = next((path for name in EVALUATE if (path := find_file(root, name))), None)
    inference = find_file(root, "inference")
    workflows = find_workflows(root)
    found = []
    if train and evaluate:
        found.append(Layout("evaluate", (train, evaluate)))
    if train:
        found.append(Layout("train-only", (train,)))
    if evaluate:
        found.append(Layout("evaluate", (evaluate,)))
    found += [Layout("python", workflow=name) for name, complete in workflows.items() if complete]
    if inference:
        found.append(Layout("inference", (inference,)))
    found += [Layout("python", workflow=name) for name, complete in workflows.items() if not complete]
    if not found:
        there = ", ".join(sorted(path.name for path in (root / "configs").iterdir())) or "nothing"
        raise BundleError(
            f"configs: expected train, evaluate or inference ({', '.join(SUFFIXES)}) in {root.name}/configs, or a "
            f"workflow class in {root.name}/scripts; found {there}; configs= can name others"
        )
    return found


def find_file(root: Path, name: str) -> Path | None:
    """A configuration file by its name without suffix."""
    return next((path for suffix in SUFFIXES if (path := root / "configs" / f"{name}{suffix}").is_file()), None)


def find_workflows(root: Path) -> dict[str, bool]:
    """Workflow classes in the files of ``scripts``, read and not imported, and whether they make an evaluator."""
    found: dict[str, bool] = {}
    for path in sorted((root / "scripts").glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # not ours to judge: other configurations may do without it
        own: dict[str, bool] = {}
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases]
                if any(base.endswith("Workflow") or base in own for base in bases):
                    own[node.name] = any(own.get(base, False) for base in bases) or "get_evaluator" in _members(node)
        found |= {f"scripts.{path.stem}.{name}": complete for name, complete in own.items()}
    return found


def read_metadata(root: Path) -> dict[str, Any]:
    """``configs/metadata.json``; empty where there is none.

    Raises:
        BundleError: when it is not JSON, or holds no object.
    """
    path = root / "configs" / "metadata.json"
    if not path.is_file():
        return {}
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path.name}: expected JSON; {error}") from error
    if not isinstance(metadata, dict):
        raise BundleError(f"{path.name}: expected an object; got {type(metadata).__name__}")
    return metadata


def _members(node: ast.ClassDef) -> Iterator[str]:
    yield from (item.name for item in node.body if isinstance(item, ast.FunctionDef))


def _named(root: Path, configs: str | Sequence[str]) -> Layout:
    given = [name.strip() for name in (configs.split(",") if isinstance(configs, str) else configs)]
    if len(given) == 1 and "/" not in given[0] and given[0].count(".") >= 2 and _file(root, given[0]) is None:
        return Layout("python", workflow=given[0])
    files = []
    for name in given:
        path = _file(root, name)
        if path is None:
            there = ", ".join(sorted(path.name for path in (root / "configs").iterdir() if path.suffix in SUFFIXES))
            raise BundleError(f"configs: expected files of {root.name}/configs ({there}); got {name!r}")
        files.append(path)
    if not files:
        raise BundleError("configs: expected at least one name")
    stems = {path.stem.lower() for path in files}
    kind = next((k for k, words in _KINDS.items() if any(stem.startswith(words) for stem in stems)), "evaluate")
    return Layout(kind, tuple(files))


_KINDS = {"evaluate": EVALUATE, "train-only": ("train",), "inference": ("inference", "batch_inference")}


def _file(root: Path, name: str) -> Path | None:
    places = [root / "configs" / name, root / name, Path(name).expanduser().absolute()]
    places += [root / "configs" / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path.resolve() for path in places if path.is_file()), None)
