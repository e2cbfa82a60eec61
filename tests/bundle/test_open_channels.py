# SPDX-License-Identifier: Apache-2.0
"""Limits of channels that differ: one open end of one channel leaves all of them without bounds."""

from __future__ import annotations

import numpy as np
import pytest

from monai_smia.bundle.intensity_map import IntensityMap

INF = np.inf


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((0.0, -INF), (1.0, 1.0)),
        ((-INF, 0.0), (1.0, 1.0)),
        ((0.0, 0.0), (1.0, INF)),
        ((0.0, 0.0), (INF, 1.0)),
        ((0.0, 1.0), (1.0, 1.0)),  # the second channel has no room
    ],
)
def test_one_channel_without_bounds_leaves_none(low: tuple[float, float], high: tuple[float, float]) -> None:
    """Bounds of the other channel alone would clip what no file clips."""
    assert IntensityMap(limits=(np.array(low), np.array(high))).bounds() is None


def test_channels_that_all_have_bounds_keep_each_its_own() -> None:
    found = IntensityMap(limits=(np.array([0.0, -1.0]), np.array([1.0, 3.0]))).bounds()
    assert found is not None
    assert [end.tolist() for end in found] == [[0.0, -1.0], [1.0, 3.0]]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), ((0.0, -INF), (1.0, 1.0))])
def test_the_scale_of_a_channel_clips_only_where_all_do(low: object, high: object) -> None:
    scale = IntensityMap(limits=(np.array(low), np.array(high))).channel(0, "HU")
    assert scale.clip is (np.ndim(low) == 0)
