# SPDX-License-Identifier: Apache-2.0
"""The transform that knows the labels: 1 the patient's left lung, 2 the right lung, 3 an infection in a lung."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import MapTransform
from torch.nn.functional import max_pool3d

LEFT, RIGHT, INFECTION = 1, 2, 3


class InfectionToLungd(MapTransform):
    """Give each voxel of label 3 the label of the nearest lung voxel.

    3 is the infection in COVID-19-CT-Seg's `Lung_and_Infection_Mask`. A lung with pneumonia is still lung: dropped, the
    infection would be a hole. Nearest is counted in steps to any of the 26 neighbours, and a tie goes to the left lung;
    put it after `Spacingd`, where few voxels are left. Labels without a 3 pass unchanged. Labels have the shape
    `(1, X, Y, Z)`; a label with a 3 and no lung at all is a ValueError.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the labels of `keys` folded."""
        out = dict(data)
        for key in self.key_iterator(out):
            label = out[key]
            pending = label == INFECTION
            if not bool(pending.any()):
                continue
            sides = torch.cat([label == LEFT, label == RIGHT]).as_subclass(torch.Tensor).float()
            if not bool(sides.any()):
                raise ValueError(f"{key}: expected a lung (1 or 2) beside the infection (3), got no voxel of either")
            folded = label.clone()
            while bool(pending.any()):
                sides = max_pool3d(sides, kernel_size=3, stride=1, padding=1)
                for value, side in ((LEFT, sides[:1]), (RIGHT, sides[1:])):
                    reached = pending & (side > 0)
                    folded[reached] = value
                    pending = pending & ~reached
            out[key] = folded
        return out
