# SPDX-License-Identifier: Apache-2.0
"""`Budget`, `parse_eps`, `default_eps`: an eps with its unit, as a person writes it and as an attack needs it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch

from monai_smia.attacks.argument_kinds import as_text
from monai_smia.bundle.units import NETWORK, IntensityReading
from monai_smia.intensity import IntensityScale

UNITS = ("HU", "grey", "%", "SD", "intensity", NETWORK)
_OTHER_NAMES = {"gray": "grey", "network": NETWORK}

DEFAULTS = {
    "HU": (2.0, 5.0, 10.0, 20.0),
    "grey": (1.0, 2.0, 4.0, 8.0),
    "%": (0.5, 1.0, 2.0, 4.0),
    "SD": (0.02, 0.05, 0.1, 0.2),
}
OF_THE_BOUNDS = (1.0, 2.0, 4.0)  # percent of their width, in every other unit

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_WRITTEN = re.compile(rf"({_NUMBER})(?:\s*/\s*({_NUMBER}))?\s*(\D*)", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """An eps and its unit.

    Args:
        value: how much, at least 0.
        unit: one of those of a reading; ``""`` is a plain number.
        written: the label to keep, for fractions.

    Raises:
        ValueError: for a value that is negative or not finite.

    Example:
        >>> from monai.transforms import ScaleIntensityRanged
        >>> from monai_smia.bundle.units import read_intensity
        >>> reading = read_intensity(ScaleIntensityRanged("image", -1000, 400, 0, 1, clip=True), modality="CT")
        >>> Budget(14, "HU").to_network(reading), Budget(0.01, "net").in_unit(reading).label
        (0.01, '14HU')
    """

    value: float
    unit: str = ""
    written: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise TypeError(f"eps: expected a number; got {self.value!r}")
        for text in (self.unit, self.written):
            as_text("eps", text)
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"eps: expected a finite number, at least 0; got {self.label}")

    @property
    def label(self) -> str:
        """As in names of attacks: ``"5HU"``, ``"4/255"``, ``"1%"``."""
        return self.written or f"{self.value:g}{self.unit}"

    def to_network(self, reading: IntensityReading, image: torch.Tensor | None = None) -> float | torch.Tensor:
        """In the network's input units.

        Args:
            reading: of the bundle's preprocessing.
            image: the batch ``BCHW[D]``, needed for a percentage of what no transform scales by its own range.

        Returns:
            A float; of a percentage of each image's own range ``(B,)``; ``(1, C)`` where the channels' scales differ.

        Raises:
            ValueError: for a unit that the preprocessing does not have; for a plain number where network units are not
                all there is; for a percentage that needs `image`.
        """
        if self.unit == NETWORK or (not self.unit and _is_unscaled(reading)):
            return self.value
        self._check(reading)
        scales = _scales(reading)
        if not scales or scales[0].unit != self.unit:
            return self._of_each(image)
        if len(scales) > 1:
            return torch.tensor([[scale.to_network(self.value) for scale in scales]], dtype=torch.float64)
        return float(scales[0].to_network(self.value))

    def in_unit(self, reading: IntensityReading) -> Budget:
        """In the reading's default unit; itself where the factor depends on the image or on the channel.

        Raises:
            ValueError: as `to_network`.
        """
        unit = reading.default_unit
        if self.unit == unit:
            return self
        self._check(reading)
        plain = self.unit in ("", NETWORK)
        if unit == NETWORK or reading.scale is None or not plain:
            return Budget(self.value, NETWORK) if not self.unit else self
        return Budget(float(reading.scale.to_physical(self.value)), unit)

    def _check(self, reading: IntensityReading) -> None:
        if not self.unit and not _is_unscaled(reading):
            example = f"{self.value:g}{reading.default_unit}, or {self.value:g}net for the network's input"
            raise ValueError(f"eps: expected a unit ({_list(reading)}); got {self.label}: give {example}")
        if self.unit and self.unit != NETWORK and self.unit not in reading.units:
            raise ValueError(f"eps: expected a unit that this preprocessing has ({_list(reading)}); got {self.label}")

    def _of_each(self, image: torch.Tensor | None) -> torch.Tensor:
        if image is None:
            raise ValueError(f"eps: {self.label} is of each image's own range; expected the image; got none")
        flat = torch.as_tensor(image).detach().flatten(1)
        plain = flat.as_tensor() if hasattr(flat, "as_tensor") else flat
        return (plain.amax(1) - plain.amin(1)) * (self.value / 100)


def parse_eps(eps: Any, reading: IntensityReading | None = None) -> tuple[Budget, ...]:
    """Budgets as they are written: ``"2HU,5HU"``, ``"4/255"``, ``"1%"``, ``0.03``, ``[2, 5]``, ``("2HU", "5HU")``.

    - A unit stands behind its number, in any case: ``HU``, ``grey``, ``%``, ``SD``, ``intensity``, or ``net``, the
      network's input.
    - A fraction without a unit, ``4/255``, is in the network's input units, whatever their range.
    - A plain number is so too, but only where these are all there is: where nothing scales the stored intensities, or
      nothing is known of how. Everywhere else it is refused, because 10 could be meant as 10 HU.

    Args:
        eps: a string, a number, or a sequence of them; what python-fire makes of a command line.
        reading: also refuses what `Budget.to_network` would, and knows this reading's own units.

    Raises:
        TypeError: for what is neither a string nor a number.
        ValueError: for what cannot be read, a unit that is not known, or a negative number.

    Example:
        >>> [budget.label for budget in parse_eps("2HU, 5hu,4/255, 0.5 %")]
        ['2HU', '5HU', '4/255', '0.5%']
    """
    units = (*UNITS, *(reading.units if reading is not None else ()))
    budgets = tuple(_parse(item, units) for item in _items(eps))
    if not budgets:
        raise ValueError(f"eps: expected budgets such as 5HU, 4/255 or 1%; got {eps!r}")
    if reading is not None:
        for budget in budgets:
            budget._check(reading)
    return budgets


def default_eps(reading: IntensityReading) -> tuple[Budget, ...]:
    """The budgets to try where none is given.

    2, 5, 10, 20 HU; 1, 2, 4, 8 grey levels; 0.5, 1, 2, 4 % of each image's own range; 0.02, 0.05, 0.1, 0.2 SD. In
    every other unit 1, 2 and 4 % of the width of the bounds, the narrowest channel's; and where there are none, but the
    unit is a stored intensity, percent of each image's own range.

    Raises:
        ValueError: when nothing is known of the unit, or it is one of your own, and there are no bounds.

    Example:
        >>> from monai.transforms import NormalizeIntensityd
        >>> from monai_smia.bundle.units import read_intensity
        >>> [budget.label for budget in default_eps(read_intensity(NormalizeIntensityd("image")))]
        ['0.02SD', '0.05SD', '0.1SD', '0.2SD']
    """
    unit = reading.default_unit
    if unit in DEFAULTS:
        return tuple(Budget(value, unit) for value in DEFAULTS[unit])
    if reading.bounds is not None:
        width = float(np.min(np.subtract(reading.bounds[1], reading.bounds[0])))
        return tuple(Budget(float(f"{width * part / 100:.6g}"), NETWORK).in_unit(reading) for part in OF_THE_BOUNDS)
    if reading.missing is None and "%" in reading.units:
        return tuple(Budget(value, "%") for value in DEFAULTS["%"])
    hint = reading.missing or f"give --eps, such as 1{unit}"
    raise ValueError(f"eps: expected a budget; got none, and no bounds to take one from: {hint}")


def _items(eps: Any) -> Iterator[Any]:
    if isinstance(eps, str):
        yield from (part.strip() for part in eps.strip().strip("[]()").split(",") if part.strip())
    elif isinstance(eps, (bytes, bytearray)):
        raise TypeError(f"eps: expected numbers, or strings such as 5HU, 4/255 or 1%; got {eps!r}")
    elif isinstance(eps, (list, tuple, set)) or (isinstance(eps, (np.ndarray, torch.Tensor)) and eps.ndim):
        for item in eps.tolist() if isinstance(eps, (np.ndarray, torch.Tensor)) else eps:
            yield from _items(item)
    else:
        yield eps


def _parse(item: Any, units: tuple[str, ...]) -> Budget:
    if isinstance(item, Budget):
        return item
    if isinstance(item, Real) and not isinstance(item, bool):
        return Budget(float(item))
    if not isinstance(item, str):
        raise TypeError(f"eps: expected numbers, or strings such as 5HU, 4/255 or 1%; got {item!r}")
    match = _WRITTEN.fullmatch(item)
    if match is None or (match[2] is not None and float(match[2]) == 0):
        raise ValueError(f"eps: expected a number and a unit, such as 5HU, 4/255 or 1%; got {item!r}")
    name = match[3].strip()
    unit = {known.lower(): known for known in units}.get(name.lower(), _OTHER_NAMES.get(name.lower()))
    if name and unit is None:
        raise ValueError(f"eps: expected one of the units {', '.join(dict.fromkeys(units))}; got {item!r}")
    if any(_vanished(number) for number in (match[1], match[2] or "1")):
        raise ValueError(f"eps: expected a number that is not lost to rounding; got {item!r}")
    if match[2] is None:
        return Budget(float(match[1]), unit or "")
    return Budget(float(match[1]) / float(match[2]), unit or NETWORK, f"{match[1]}/{match[2]}{unit or ''}")


def _vanished(number: str) -> bool:
    """Whether a number is written as something else than 0, and is 0 or infinite when read."""
    mantissa = number.lower().partition("e")[0]
    value = abs(float(number))
    return math.isinf(value) or (
        value < torch.finfo(torch.float32).tiny and any(digit in "123456789" for digit in mantissa)
    )


def _scales(reading: IntensityReading) -> tuple[IntensityScale, ...]:
    return reading.channels or (() if reading.scale is None else (reading.scale,))


def _is_unscaled(reading: IntensityReading) -> bool:
    """Whether network units are all there is, or are the stored ones."""
    scales = _scales(reading)
    return reading.default_unit == NETWORK or (
        reading.default_unit not in ("%", "SD") and all(scale.unit_size == 1 for scale in scales) and bool(scales)
    )


def _list(reading: IntensityReading) -> str:
    return ", ".join(dict.fromkeys((*reading.units, NETWORK)))
