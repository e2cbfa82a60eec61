# SPDX-License-Identifier: Apache-2.0
"""The lung bundle's own transform, against labels small enough to write down."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from monai.data import MetaTensor

BUNDLE = Path(__file__).parents[2] / "bundles" / "lung_ct_segmentation"


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`scripts.transforms` of this bundle, imported as its configs import it."""
    monkeypatch.syspath_prepend(str(BUNDLE))
    for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
        monkeypatch.delitem(sys.modules, name)
    import scripts.transforms

    return scripts.transforms


def column(*values: int) -> MetaTensor:
    """A label of shape (1, X, 1, 1)."""
    return MetaTensor(torch.tensor(values, dtype=torch.float32)[None, :, None, None])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ((1, 3, 0, 3, 2), (1, 1, 0, 2, 2)),
        ((1, 1, 0, 0, 3, 2), (1, 1, 0, 0, 2, 2)),
        ((1, 3, 3, 3, 3, 2), (1, 1, 1, 2, 2, 2)),
        ((1, 3, 2), (1, 1, 2)),
        ((0, 2, 0, 3), (0, 2, 0, 2)),
        ((0, 1, 2, 0), (0, 1, 2, 0)),
    ],
)
def test_infection_joins_the_nearest_lung(
    transforms: ModuleType, label: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    given = column(*label)
    folded = transforms.InfectionToLungd("label")({"label": given})["label"]
    assert isinstance(folded, MetaTensor)
    assert folded.flatten().tolist() == list(expected)
    assert given.flatten().tolist() == list(label)


def test_infection_without_a_lung_is_an_error(transforms: ModuleType) -> None:
    with pytest.raises(ValueError, match="label: expected a lung"):
        transforms.InfectionToLungd("label")({"label": column(0, 3)})
