# SPDX-License-Identifier: Apache-2.0
"""`Lattice`: the values that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Lattice:
    r"""The values that an integer type with a slope and an intercept can hold.

    .. math:: v_k = s\,k + b, \qquad k \in \{k_{\min}, \dots, k_{\max}\}

    A file of floating-point numbers holds any value: there s is 0.

    Args:
        slope: s, physical units per level, not negative; a number, or a tensor that broadcasts against the image where
            slices differ. 0 for a floating type.
        intercept: b, physical units; a number or a tensor.
        lowest, highest: the levels that the type has.

    Raises:
        ValueError: for a negative slope or an empty range.

    Example:
        >>> held = Lattice(slope=2.0, intercept=-1000.0, lowest=0, highest=4095)
        >>> held.nearest(torch.tensor([-999.5, 40.9, 9000.0])).tolist()
        [-1000.0, 40.0, 7190.0]
        >>> held.bounds, held.whole_levels(5.0)
        ((-1000.0, 7190.0), 4.0)
    """

    slope: float | torch.Tensor
    intercept: float | torch.Tensor = 0.0
    lowest: int = 0
    highest: int = 255

    def __post_init__(self) -> None:
        if bool((torch.as_tensor(self.slope) < 0).any()):
            raise ValueError(f"slope: expected physical units per level, at least 0; got {self.slope!r}")
        if not self.lowest < self.highest:
            raise ValueError(f"lowest, highest: expected lowest < highest; got {self.lowest}, {self.highest}")

    @classmethod
    def of_type(cls, dtype: Any, slope: float = 1.0, intercept: float = 0.0) -> Lattice:
        """The lattice of a numpy type; for a negative slope its levels count the other way.

        Raises:
            ValueError: for a type that holds neither integers nor floating-point numbers.
        """
        kind = np.dtype(dtype)
        if kind.kind == "f":
            return cls(0.0)
        if kind.kind not in "iu":
            raise ValueError(f"dtype: expected integers or floating-point numbers; got {kind}")
        sign = -1 if slope < 0 else 1
        ends = sorted(sign * int(end) for end in (np.iinfo(kind).min, np.iinfo(kind).max))
        return cls(abs(slope), intercept, *ends)

    @property
    def continuous(self) -> bool:
        """Whether every value is held."""
        return not bool(torch.as_tensor(self.slope).any())

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Lowest and highest value, physical units, over all slices; ``None`` where there are none."""
        if self.continuous:
            return None
        ends = [self.values(torch.tensor(float(level), dtype=torch.float64)) for level in (self.lowest, self.highest)]
        return float(ends[0].min()), float(ends[1].max())

    def levels(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest level of every value, int64.

        Raises:
            ValueError: when every value is held, which has no levels.
        """
        if self.continuous:
            raise ValueError("slope: a floating type has no levels")
        slope, intercept = self._broadcast(values)
        level = ((values.double() - intercept) / slope).round()
        return level.clamp(self.lowest, self.highest).long()

    def values(self, levels: torch.Tensor) -> torch.Tensor:
        """What the levels mean, physical units, float64."""
        slope, intercept = self._broadcast(levels)
        return levels.double() * slope + intercept

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest value that can be held, in the dtype of `values`; the lowest or highest where it lies outside."""
        return values if self.continuous else self.values(self.levels(values)).to(values.dtype)

    def whole_levels(self, eps: float) -> float:
        """The largest budget of whole levels inside `eps`, physical units: rounding then never leaves it.

        Raises:
            ValueError: when `eps` is under one level, which leaves nothing to change.
        """
        if self.continuous:
            return float(eps)
        slopes = torch.as_tensor(self.slope, dtype=torch.float64)
        counts = (eps / slopes * (1 + 1e-9)).floor()
        if eps > 0 and bool((counts < 1).any()):
            raise ValueError(f"eps: expected at least one level of the file, {float(slopes.max()):g}; got {eps:g}")
        return float((counts * slopes).min())

    def _broadcast(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.as_tensor(self.slope, dtype=torch.float64, device=like.device),
            torch.as_tensor(self.intercept, dtype=torch.float64, device=like.device),
        )
