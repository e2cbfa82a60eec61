# SPDX-License-Identifier: Apache-2.0
"""Tiny DICOM files, made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CT, ENHANCED_CT = UID("1.2.840.10008.5.1.4.1.1.2"), UID("1.2.840.10008.5.1.4.1.1.2.1")
ROWS, COLUMNS = 4, 5


def levels_of(count: int, *, seed: int = 0, bits: int = 12, signed: bool = False) -> np.ndarray:
    """``(count, rows, columns)``, over all of the range."""
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    return np.random.default_rng(seed).integers(low, high, (count, ROWS, COLUMNS))


def instance(
    levels: np.ndarray, *, syntax: UID = ExplicitVRLittleEndian, sop_class: UID = CT, **elements: Any
) -> Dataset:
    """A CT image of 12 bits with a rescaling, ready to be saved; `elements` replace, ``None`` removes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    settings = {
        "SeriesInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Modality": "CT",
        "PatientName": "Made^Up",
        "PatientID": "1",
        "BurnedInAnnotation": "NO",
        "SeriesDescription": "Thorax 5.0",
        "SeriesNumber": 2,
        "SliceThickness": "5.0",
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.7, 0.8],
        "Rows": levels.shape[-2],
        "Columns": levels.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        **elements,
    }
    for name, value in settings.items():
        if value is not None:
            setattr(dataset, name, value)
    sign, size = "iu"[not settings["PixelRepresentation"]], settings["BitsAllocated"] // 8
    order = "<" if syntax.is_little_endian else ">"
    dataset.PixelData = levels.astype(f"{order}{sign}{size}").tobytes()
    dataset["PixelData"].VR = "OW" if size == 2 else "OB"
    dataset.add_new(0x00290010, "LO", "MADE UP")
    dataset.add_new(0x00291001, "OB", b"\1\2\3\4")
    return dataset


def save_series(
    folder: Path,
    levels: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    per_slice: Sequence[dict[str, Any]] = (),
    **elements: Any,
) -> list[Path]:
    """One file a slice, 5 mm apart, the first slice lowest and with the highest InstanceNumber."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, plane in enumerate(levels):
        own = per_slice[i] if per_slice else {}
        place = {"ImagePositionPatient": [10, 20, 5.0 * i], "InstanceNumber": len(levels) - i}
        dataset = instance(plane, **{**place, **elements, **own})
        path = folder / (names[i] if names else f"slice{(i * 7) % 10}.dcm")
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def save_enhanced(
    path: Path, levels: np.ndarray, *, shared: bool = True, rescale: Sequence[tuple[float, float]] = ()
) -> None:
    """An enhanced CT image whose rescaling is in the functional groups."""
    dataset = instance(
        levels, sop_class=ENHANCED_CT, RescaleSlope=None, RescaleIntercept=None, NumberOfFrames=len(levels)
    )
    for keyword in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del dataset[keyword]
    pairs = list(rescale) or [(2, -1000)] * len(levels)

    def transformation(pair: tuple[float, float]) -> Items:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept, item.RescaleType = pair[0], pair[1], "HU"
        return Items([item])

    common = Dataset()
    measures, turn = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.8], 5
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    common.PixelMeasuresSequence, common.PlaneOrientationSequence = Items([measures]), Items([turn])
    if shared:
        common.PixelValueTransformationSequence = transformation(pairs[0])
    frames = []
    for i, pair in enumerate(pairs):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [10, 20, 5.0 * i]
        frame.PlanePositionSequence = Items([position])
        if not shared:
            frame.PixelValueTransformationSequence = transformation(pair)
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Items([common])
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    dataset.save_as(path, enforce_file_format=True)


def untouched(path: Path, *changed: str) -> dict[Any, Any]:
    """Tag to value of all elements but the named ones and the group lengths, with the file meta information."""
    dataset = pydicom.dcmread(path)
    elements = [*dataset.file_meta, *dataset]
    return {
        element.tag: element.value for element in elements if element.tag.element and element.keyword not in changed
    }
