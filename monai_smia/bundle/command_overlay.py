# SPDX-License-Identifier: Apache-2.0
"""``monai-smia overlay``."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from monai_smia.bundle.opening import OpenBundle
from monai_smia.bundle.reading import BundleText, read_bundle


def overlay(bundle: str | None = None, eps: str | None = None, attacks: str | None = None) -> int:
    """Print a configuration file that puts a bundle under attack when it is appended to the bundle's own.

    None of the bundle's code is run.

    Examples:
        monai-smia overlay > attack.json
        python -m monai.bundle run --config_file "['configs/train.json','configs/evaluate.json','attack.json']"

    Everything in it can be changed on that command line: --attack#eps 10HU --attack#steps 20 --attack#cases 5

    Args:
        bundle: folder of the bundle that it is to fit; without one it fits the usual layout of MONAI's model zoo.
        eps: budgets, such as 2HU,5HU.
        attacks: names, such as SMIA,PGD.
    """
    content = packaged("attack.json") if bundle is None else fitting(read_bundle(bundle))
    for name, value in (("eps", eps), ("attacks", attacks)):
        if value is not None:
            content["attack"][name] = value
    print(json.dumps(content, indent=4))
    return 0


def packaged(name: str) -> dict[str, Any]:
    """One of the overlays that come with the package."""
    text: dict[str, Any] = json.loads((files("monai_smia.bundle") / "configs" / name).read_text(encoding="utf-8"))
    return text


def fitting(opened: OpenBundle | BundleText) -> dict[str, Any]:
    """The overlay with the ids of a bundle; with the weights' loader where the bundle's own handlers have none."""
    if opened.kind == "python":
        raise ValueError("bundle: a workflow class takes no configuration files; expected monai-smia evaluate")
    content = packaged("attack.json")
    loss = f"loss_function=@{opened.loss_id}, " if opened.loss_id else ""
    content["run"] = [f"$evaluate_under_attack(@{opened.evaluator_id}, {loss}**@attack)"]
    if opened.kind == "train-only":
        (handlers,) = packaged("load_weights.json").values()
        handlers[0]["load_dict"] = {"model": f"@{opened.weights_id}"}
        content = {str(opened.handlers_id): handlers, **content}
    return content
