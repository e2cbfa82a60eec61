# SPDX-License-Identifier: Apache-2.0
"""From a bundle's files to one configuration text: merged as MONAI merges them, with what the user overrides."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_smia.bundle.errors import BundleError, reason
from monai_smia.bundle.ids import Ids, find_ids
from monai_smia.bundle.text import get, normal

RUN = ("initialize", "run", "finalize")

MOST_ENTRIES, DEEPEST = 2_000_000, 100
"""Of a configuration, its data lists included."""


def merge(files: Sequence[Path], metadata: Mapping[str, Any]) -> ConfigParser:
    """Files merged in their order, macros not yet resolved.

    Raises:
        BundleError: naming the file that cannot be read.
    """
    for path in files:
        _load(path)
    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a "+key" that the files before do not have
        try:
            parser.read_config([str(path) for path in files])
            parser.read_meta(copy.deepcopy(dict(metadata)))
        except (
            Exception
        ) as error:  # MONAI raises KeyError, ValueError, TypeError or IndexError for ids that lead nowhere
            names = " + ".join(path.name for path in files)
            raise BundleError(f"configs: MONAI cannot merge {names}; {reason(error)}") from error
    return parser


def attack_file(root: Path) -> Path | None:
    """The bundle's ``attack.json`` of this package, which defines ``attacks``; None where there is none."""
    path = root / "configs" / "attack.json"
    return path if path.is_file() and "attacks" in _load(path) else None


def merge_attacks(parser: ConfigParser, path: Path, *, imports: bool = True) -> None:
    """Add what an ``attack.json`` defines, and leave out how it changes the evaluator, its handlers and the run.

    `imports` is that of `find_ids`.
    """
    ids = find_ids(resolved(parser).config, imports=imports)
    evaluation = tuple(name for name in (ids.evaluator, ids.handlers) if name) if ids else ()
    for key, value in _load(path).items():
        name = normal(key.removeprefix("+"))
        if name in RUN or any(name == own or name.startswith(f"{own}#") for own in evaluation):
            continue
        try:
            if key.startswith("+") and isinstance(there := get(parser.config, name), list):
                parser[name] = [*there, *value]
            elif key.startswith("+") and isinstance(there, dict):
                parser[name] = {**there, **value}
            else:
                parser[name] = value
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise BundleError(f"configs: {path.name} changes {key}, which leads nowhere; {reason(error)}") from error


def override(parser: ConfigParser, overrides: Mapping[str, Any]) -> None:
    """Set ids to values and resolve the macros, in place: an id inside of a macro's copy is set after.

    Raises:
        BundleError: naming an id that leads nowhere, or the macro that cannot be resolved.
    """
    late = {}
    for key, value in overrides.items():
        try:
            parser[key] = value
        except (KeyError, ValueError, IndexError, TypeError):
            late[key] = value
    try:
        parser.resolve_macro_and_relative_ids()
    except Exception as error:  # files and ids that macros name
        raise BundleError(f"configs: MONAI cannot resolve the macros (%...); {reason(error)}") from error
    check_size(parser.config, "the configuration")
    for key, value in late.items():
        try:
            parser[key] = value
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise BundleError(f"overrides: expected ids of the configuration; {key!r} leads nowhere in it") from error


def resolved(parser: ConfigParser) -> ConfigParser:
    """A copy with its macros resolved."""
    twin = ConfigParser(copy.deepcopy(parser.config))
    override(twin, {})
    return twin


def nothing_found(tried: Mapping[str, Mapping[str, Any]]) -> BundleError:
    """What to say of a bundle without evaluator: what its files do define."""
    there = "; ".join(f"{name} has {', '.join(key for key in text if key != '_meta_')}" for name, text in tried.items())
    return BundleError(
        f"configs: expected an evaluator (validate#evaluator, evaluator, or a component of such a class); {there}"
    )


def checked_ids(config: Mapping[str, Any], name: str, *, imports: bool = True) -> Ids:
    """The ids of a configuration that is to be evaluated; `imports` is that of `find_ids`.

    Raises:
        BundleError: when it has no evaluator.
    """
    ids = find_ids(config, imports=imports)
    if ids is None:
        raise nothing_found({name: config})
    return ids


def _load(path: Path) -> dict[str, Any]:
    try:
        content = ConfigParser.load_config_file(path)
    except Exception as error:  # of json and yaml, and MONAI's own for a key that is there twice
        raise BundleError(f"configs: MONAI cannot read {path.name}; {reason(error)}") from error
    if not isinstance(content, dict):
        raise BundleError(f"configs: expected an object in {path.name}; got {type(content).__name__}")
    check_size(content, path.name)
    return content


def check_size(config: Any, name: str) -> None:
    """Refuse a configuration too large to be walked through, as a few lines of YAML aliases can make one.

    Raises:
        BundleError: when it has more than `MOST_ENTRIES`, or is nested too deeply.
    """
    left, todo = MOST_ENTRIES, [(config, 0)]
    while todo:
        value, depth = todo.pop()
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        left -= len(inside)
        if left < 0 or depth > DEEPEST:
            raise BundleError(
                f"configs: expected at most {MOST_ENTRIES} entries, nested at most {DEEPEST} deep; {name} has more"
            )
        todo += [(child, depth + 1) for child in inside if isinstance(child, (Mapping, list))]
