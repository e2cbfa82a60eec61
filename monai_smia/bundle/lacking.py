# SPDX-License-Identifier: Apache-2.0
"""What a bundle needs and does not have here, read from its text: weights, data, lists of data, packages."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_smia.bundle.ids import Ids
from monai_smia.bundle.text import children, components, reached, static_value, switched_off
from monai_smia.bundle.weights import listed_download

_FILE = re.compile(r".*[^/.]\.(json|csv|tsv|txt|npz|npy|pkl|pt|pth|ts|h5|xlsx|ya?ml)", re.IGNORECASE)
_PATTERN = re.compile(r"[*?{\n]")


@dataclass(frozen=True)
class Missing:
    """Something that a bundle needs and that is not there.

    Attributes:
        what: in a few words, with the id of the configuration.
        argument: the argument of `open_bundle` that supplies it, or with `override` the id to override (on the
            command line ``--id value`` for both); empty for what has to be installed.
        override: whether `argument` is an id.
    """

    what: str
    argument: str
    override: bool = False

    def __str__(self) -> str:
        if not self.argument:
            return self.what
        return f"{self.what} ({f'overrides={{{self.argument!r}: ...}}' if self.override else f'{self.argument}='})"


def lacking_weights(root: Path, files: Mapping[str, Path]) -> Iterator[Missing]:
    """Files of weights that do not exist."""
    for path in files.values():
        if not path.is_file():
            download = listed_download(root, path)
            yield Missing(f"weights: {path}{f', which {download} fetches' if download else ''}", "weights")


def lacking_data(config: Mapping[str, Any], ids: Ids, root: Path) -> Iterator[Missing]:
    """Folders and files that the evaluator's own items refer to by id and that do not exist.

    Only paths that the text gives away: literals, sums and `os.path.join` of them; also where a component that the data
    set needs has one as its argument.
    """
    needed = reached(config, ids.evaluator, without=("val_handlers",))
    folder = static_value(config, "dataset_dir") if "dataset_dir" in needed else None
    absent = folder is not None and not (root / folder).is_dir()
    if absent:
        yield Missing(f"dataset_dir: the folder {folder}", "dataset_dir")
    for name in dict.fromkeys([*needed, *_arguments(config, ids)]):
        path = static_value(config, name)
        if name == "dataset_dir" or path is None or not _FILE.fullmatch(path) or _PATTERN.search(path):
            continue
        if not (root / path).is_file():
            below = folder is not None and Path(root / path).is_relative_to(root / folder)
            if not below:
                yield Missing(f"{name}: the file {path}", name, override=True)
            elif not absent:
                yield Missing(f"{name}: the file {path}", "dataset_dir")


def _arguments(config: Mapping[str, Any], ids: Ids) -> Iterator[str]:
    """Ids of what components of the data set's own items have as arguments, in folders; references have ids already."""
    for start, value in reached(config, ids.dataset).items() if ids.dataset else ():
        for name, component in components(value, start):
            for key, argument in component.items():
                written = isinstance(argument, str) and "/" in argument and not argument.startswith("@")
                if written and switched_off(component) is not True:
                    yield f"{name}#{key}"


def lacking_packages(config: Mapping[str, Any], ids: Ids) -> Iterator[Missing]:
    """Packages that the configuration imports for its evaluator, or takes components from, and that are not there."""
    needed = list(reached(config, ids.evaluator).values())
    words = " ".join(text for value in needed for text in _expressions(value))
    wanted = {str(item["_target_"]).split(".")[0] for value in needed for _, item in components(value)
              if re.fullmatch(r"\w+(\.\w+)+", str(item["_target_"]))}  # fmt: skip
    for module, name in _imports(config):
        if re.search(rf"(?<![\w.]){re.escape(name)}\b", words):
            wanted.add(module.split(".")[0])
    for package in sorted(wanted - {"scripts"}):
        if package.isidentifier() and importlib.util.find_spec(package) is None:
            yield Missing(f"the package {package}, which is not installed", "")


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("$"):
        yield value[1:]
    for _, child in children(value):
        yield from _expressions(child)


def _imports(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Module, and the name that expressions know it by, of every import statement at the top of the configuration."""
    listed = [text for value in config.values() if isinstance(value, list) for text in value]
    for text in [*config.values(), *listed]:
        if isinstance(text, str) and text.startswith("$") and "import" in text:
            try:
                node = ast.parse(text[1:].strip()).body[0]
            except (SyntaxError, IndexError):
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, alias.asname or alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((node.module, alias.asname or alias.name) for alias in node.names)
