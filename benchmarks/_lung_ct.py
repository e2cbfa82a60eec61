# SPDX-License-Identifier: Apache-2.0
"""The lung CT bundle's network, and the two CTs with their derived lungs, on their own grid or the network's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, ScaleIntensityRanged, Spacingd
from torch import nn

from benchmarks._measure import data_folder
from monai_smia.intensity import IntensityScale

BUNDLE = Path(__file__).parents[1] / "bundles" / "lung_ct_segmentation"
PREPARED = Path("runs/lung_ct")
SCALE = ScaleIntensityRanged("image", a_min=-1000, a_max=400, b_min=0.0, b_max=1.0, clip=True)
HOUNSFIELD = IntensityScale.from_transforms(SCALE)
LOSS = DiceCELoss(to_onehot_y=True, softmax=True)


def load_network() -> nn.Module:
    """The shipped network with its shipped weights, frozen."""
    config = ConfigParser()
    config.read_config(BUNDLE / "configs" / "inference.json")
    network: nn.Module = config.get_parsed_content("network_def")
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    return network.eval().requires_grad_(False)


def prepared_files(case: str) -> dict[str, Path]:
    """A CT and its lungs on the CT's own grid; they are made where they are not there yet."""
    files = {"image": PREPARED / f"{case}_image.nii.gz", "label": PREPARED / f"{case}_lungs.nii.gz"}
    if not all(file.is_file() for file in files.values()):
        source = data_folder() / "lung_ct"
        if not source.is_dir():
            sys.exit(f"needs the CTs of pyradiomics in {source}; MONAI_SMIA_DATA names the folder above it")
        script = BUNDLE / "scripts" / "prepare_data.py"
        arguments = ["--source", source, "--output", PREPARED, "--cases", case, "--force"]
        subprocess.run([sys.executable, script, *arguments], check=True)
    return files


def load_case(case: str, spacing: tuple[float, float, float] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Image ``(1, 1, X, Y, Z)`` in the network's units, and labels; `spacing` in mm, ``None`` for the CT's own."""
    files = prepared_files(case)
    both = ("image", "label")
    steps = [LoadImaged(both), EnsureChannelFirstd(both), Orientationd(both, axcodes="RAS", labels=None)]
    if spacing is not None:
        steps.append(Spacingd(both, pixdim=spacing, mode=("bilinear", "nearest")))
    data = Compose([*steps, SCALE])(files)
    return data["image"].as_tensor()[None], data["label"].as_tensor()[None]


def dice(prediction: torch.Tensor, label: torch.Tensor) -> tuple[float, float]:
    """Dice of the left and of the right lung, from raw outputs ``(1, 3, X, Y, Z)``."""
    decided = prediction.argmax(1, keepdim=True)
    left, right = (
        float(2 * ((decided == k) & (label == k)).sum() / ((decided == k).sum() + (label == k).sum())) for k in (1, 2)
    )
    return left, right
