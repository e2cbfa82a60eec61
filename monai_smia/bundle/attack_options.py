# SPDX-License-Identifier: Apache-2.0
"""`read_attack_options`: what some attacks are given beside the common arguments, such as a clinical goal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_smia.bundle.errors import BundleError


def read_attack_options(options: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """Attack's name to arguments of its own, their ``_target_`` built, as in the ``attack_options`` of a bundle.

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
    parser = ConfigParser(dict(options))
    try:
        return {name: parser.get_parsed_content(name) for name in options}
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"options: {_first(error)}") from error


def _first(error: BaseException) -> str:
    """The error behind MONAI's "failed to instantiate ..." wrapper, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
