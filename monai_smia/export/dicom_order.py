# SPDX-License-Identifier: Apache-2.0
"""`slices_in_order`: the instances of one volume as MONAI's readers stack them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import LoadImage

from monai_smia.export.dicom_instance import DicomInstance

READERS = ("ITKReader", "PydicomReader")
SAME = ("SeriesInstanceUID", "Modality", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
# What ITK's reader tells series apart by, beside their UID; it would load one part of the folder.
DETAILS = ("SeriesDate", "SeriesNumber", "SequenceName", "SliceThickness")
CLOSEST = 1e-3  # mm, between two slices
WIDEST = 1.5  # of the smallest distance


def reader_of(path: Path, reader: str | None = None) -> str:
    """Which of MONAI's two DICOM readers loads a path: the given one, else the one that `LoadImage` picks.

    Raises:
        ValueError: for another name, and where `LoadImage` would take neither.
    """
    if reader is None:
        chosen = next(one for one in reversed(LoadImage().readers) if one.verify_suffix(str(path)))
        names = [kind.__name__ for kind in type(chosen).__mro__]
        reader = next((name for name in names if name in READERS), names[0])
    if reader not in READERS:
        raise ValueError(f"reader: expected one of {', '.join(READERS)}; got {reader!r} for {path}")
    return reader


def slices_in_order(instances: Sequence[DicomInstance], reader: str) -> list[DicomInstance]:
    """Sorted by position along the normal (`ITKReader`; by InstanceNumber without positions), or by InstanceNumber.

    Raises:
        ValueError: for more than one series, shape or orientation in the folder, for several images at one place (a
            series in time, or of several echoes), for a missing slice, and where nothing gives an order.
    """
    if len(instances) == 1:
        return list(instances)
    names = (*SAME, *DETAILS) if reader == "ITKReader" else SAME
    shapes = {instance.levels.shape for instance in instances}
    if any(shape[0] > 1 for shape in shapes):
        raise ValueError("path: expected single-frame instances, or one multi-frame file; got several")
    if len(shapes) > 1:
        raise ValueError(f"path: expected slices of one shape in {instances[0].path.parent}; {_odd(instances)}")
    for name in names:
        values = sorted({str(instance.header.get(name, "")) for instance in instances})
        if len(values) > 1:
            raise ValueError(f"path: expected one series in {instances[0].path.parent}; got {name} {', '.join(values)}")
    positions = _positions(instances)
    if positions is not None:
        _check_gaps(instances, positions)
        if reader == "ITKReader":
            return [instances[i] for i in np.argsort(positions)]
    return _by_number(instances)


def _odd(instances: Sequence[DicomInstance]) -> str:
    """Which slice has another shape than most."""
    shapes = [instance.levels.shape[1:] for instance in instances]
    usual = max(set(shapes), key=shapes.count)
    odd = next(instance for instance in instances if instance.levels.shape[1:] != usual)
    return f"{odd.path.name} has {odd.levels.shape[1:]}, the others {usual}"


def _positions(instances: Sequence[DicomInstance]) -> np.ndarray | None:
    """Millimetres along the normal of the slices; ``None`` where one has no place."""
    places = [instance.header.get("ImagePositionPatient") for instance in instances]
    turns = [instance.header.get("ImageOrientationPatient") for instance in instances]
    if not (all(places) and all(turns)):
        return None
    directions = np.array(turns, dtype=np.float64)
    if not np.allclose(directions, directions[0], rtol=0, atol=1e-4):
        raise ValueError("path: expected slices of one ImageOrientationPatient; got several, such as a localizer's")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    return np.array(places, dtype=np.float64) @ normal


def _check_gaps(instances: Sequence[DicomInstance], positions: np.ndarray) -> None:
    order = np.argsort(positions)
    gaps = np.diff(positions[order])
    closest, widest = int(gaps.argmin()), int(gaps.argmax())
    names = [f"{instances[order[i]].path.name} and {instances[order[i + 1]].path.name}" for i in (closest, widest)]
    if gaps[closest] < CLOSEST:
        place = positions[order[closest]]
        raise ValueError(f"path: expected one volume; got two images at {place:g} mm, {names[0]}")
    if gaps[widest] > WIDEST * gaps[closest]:
        raise ValueError(
            f"path: a slice is missing: expected {gaps[closest]:g} mm between slices, as between {names[0]}; got "
            f"{gaps[widest]:g} mm between {names[1]}"
        )


def _by_number(instances: Sequence[DicomInstance]) -> list[DicomInstance]:
    numbers: list[Any] = [instance.header.get("InstanceNumber") for instance in instances]
    if None in numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"path: expected an InstanceNumber of its own in every instance; got {numbers}")
    return sorted(instances, key=lambda instance: int(instance.header.InstanceNumber))
