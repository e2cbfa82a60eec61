# SPDX-License-Identifier: Apache-2.0
"""`read_attack_options`: what some attacks are given beside the common arguments, such as a clinical goal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.text import children

_KINDS = ("monai_smia.", "monai.losses.")


def read_attack_options(options: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """Attack's name to arguments of its own, their ``_target_`` built, as in the ``attack_options`` of a bundle.

    Only classes of this package, and losses of MONAI, are built. An expression (``$...``) is refused: a file of
    options is no program.

    Args:
        options: a JSON or YAML file, or what would be in it.

    Raises:
        BundleError: naming the file, or what was expected of it.

    Example:
        >>> goal = {"_target_": "monai_smia.attacks.ShiftVolume", "structure": 1, "by": 0.3}
        >>> read_attack_options({"PGD": {"goal": goal}})
        {'PGD': {'goal': ShiftVolume(1, by=0.3)}}
    """
    if options is None:
        return {}
    if isinstance(options, (str, Path)):
        if not Path(options).is_file():
            raise BundleError(f"options: expected a JSON or YAML file; there is no {options}")
        options = ConfigParser.load_config_file(str(options))
    if not isinstance(options, Mapping) or not all(isinstance(value, Mapping) for value in options.values()):
        raise BundleError(f"options: expected an attack's name to its arguments; got {options!r}")
    _refuse_code(options)
    parser = ConfigParser(dict(options))
    try:
        return {name: parser.get_parsed_content(name) for name in options}
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"options: {_first(error)}") from error


def _refuse_code(value: Any) -> None:
    """Refuse what would run anything but the constructors of `_KINDS`."""
    if isinstance(value, str) and value.startswith(("$", "%")):
        raise BundleError(f"options: expected literals and classes, and no expression; got {value!r}")
    if isinstance(value, Mapping):
        if "_target_" in value and not _is_allowed(value["_target_"]):
            raise BundleError(
                f"options: expected classes of monai_smia, or losses of MONAI, as _target_; got {value['_target_']!r}"
            )
        if other := {"_mode_", "_requires_"} & value.keys():
            raise BundleError(f"options: expected no {', '.join(sorted(other))}; got {dict(value)!r}")
    for _, child in children(value):
        _refuse_code(child)


def _is_allowed(target: Any) -> bool:
    """Whether this is the full name of a class of `_KINDS`, or of nothing; what is asked for is never imported."""
    if not isinstance(target, str) or not target.startswith(_KINDS):
        return False
    found: Any = sys.modules[target.split(".")[0]]
    for name in target.split(".")[1:]:
        found = getattr(found, name, None)
    return found is None or (isinstance(found, type) and found.__module__.startswith(_KINDS))


def _first(error: BaseException) -> str:
    """The error behind MONAI's "failed to instantiate ..." wrapper, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
