"""Let torchvision's Python part be imported beside a CPU build of torch.

The torchvision on the package index is built for CUDA. Beside a CPU torch its compiled library cannot be loaded, and
the import ends with ``RuntimeError: operator torchvision::nms does not exist``. Declaring the two operators first is
enough for what MONAI's detection networks take from it; the operators themselves stay unavailable.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def load_torchvision() -> bool:
    """Import torchvision, declaring its operators where its own library cannot, and say whether it is there.

    MONAI looks for torchvision once, when MONAI is imported, so this has to come before.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in _OPERATORS:
            torch.library.define(f"torchvision::{name}", _SIGNATURE)
        importlib.import_module("torchvision")
    return True
