# SPDX-License-Identifier: Apache-2.0
"""`inside_budget`: levels whose change stays inside a ball that is measured over all voxels."""

from __future__ import annotations

import torch

from monai_smia.export.lattice import Lattice


def inside_budget(
    lattice: Lattice, adversarial: torch.Tensor, clean: torch.Tensor, eps: float, norm: float
) -> torch.Tensor:
    r"""The nearest values that a file holds, inside the budget in L1 or L2 too.

    Rounding to the nearest level makes some changes larger. In Linf a budget of whole levels is never left; in L1 and
    L2 the sum of many roundings can leave it. Then the voxels that rounding enlarged the most are rounded towards the
    clean image instead, as few as it takes; with all of them no change is larger than before.

    Args:
        lattice: what the file holds.
        adversarial, clean: ``(C, *spatial)``; `clean` is on the lattice.
        eps, norm: the budget.

    Example:
        >>> clean, changed = torch.zeros(1, 4), torch.tensor([[0.6, 0.6, 0.6, -0.4]])
        >>> inside_budget(Lattice(1.0, 0.0, -9, 9), changed, clean, eps=1.5, norm=2.0)
        tensor([[0., 1., 1., 0.]])
    """
    nearest = lattice.nearest(adversarial)
    if norm == float("inf") or lattice.continuous:
        return nearest
    rounded = (nearest - clean).double().abs()
    slope = torch.as_tensor(lattice.slope, dtype=torch.float64).expand_as(rounded)
    wanted = (adversarial - clean).double()
    # a level less where rounding went beyond what was wanted
    smaller = torch.where(rounded > wanted.abs(), (rounded - slope).clamp_min(0), rounded)
    gain = (rounded**norm - smaller**norm).flatten()
    excess = float((rounded**norm).sum()) - float(eps) ** norm * (1 + 1e-9)
    if excess <= 0:
        return nearest
    order = (rounded - wanted.abs()).flatten().argsort(descending=True, stable=True)
    count = int((gain[order].cumsum(0) < excess).sum()) + 1
    undone = torch.zeros_like(gain, dtype=torch.bool)
    undone[order[:count]] = True
    size = torch.where(undone.reshape(rounded.shape), smaller, rounded)
    return lattice.nearest((clean.double() + (nearest - clean).sign() * size).to(nearest.dtype))
