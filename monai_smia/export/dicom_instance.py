# SPDX-License-Identifier: Apache-2.0
"""`DicomInstance`: the pixels of one DICOM file as numbers, and the copy of the file that holds others."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import optional_import

from monai_smia.export.deidentify import Deidentification
from monai_smia.export.stored import one_line

pydicom, _ = optional_import("pydicom")

DERIVATION = "monai_smia: pixel values changed by an adversarial attack"
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom raises where the bytes of a file are damaged: it decodes an element when it is first asked for."""
NUMBERS = ("ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber")
LATER = (
    *NUMBERS,
    *("SeriesInstanceUID", "Modality", "PhotometricInterpretation", "SeriesDate", "SeriesNumber", "SequenceName"),
    "SliceThickness",
)
LONGEST_TEXT, LONGEST_NAME = 1024, 64  # characters of the value representations ST and LO


@dataclass(frozen=True, eq=False)
class DicomInstance:
    """One DICOM file of a monochrome image.

    Attributes:
        path: the file.
        header: its data set without the pixels.
        levels: the stored integers, ``(frames, rows, columns)``.
        lowest, highest: the integers that BitsStored and PixelRepresentation allow.
        slope, intercept: what they mean, one number per frame.
    """

    path: Path
    header: Any
    levels: np.ndarray
    lowest: int
    highest: int
    slope: np.ndarray
    intercept: np.ndarray

    @classmethod
    def read(cls, path: Path) -> DicomInstance:
        """The file's pixels and their meaning.

        Raises:
            ImportError: without pydicom, or without the plug-in of pydicom that its compression needs.
            ValueError: when it cannot be read, is truncated, has colours, other than 8 or 16 bits per pixel, a lookup
                table, or, for CT, no RescaleSlope and RescaleIntercept.
        """
        try:
            return cls._read(path)
        except (*DAMAGED, pydicom.errors.BytesLengthException) as error:
            if isinstance(error, ValueError) and str(error).startswith("path: "):
                raise
            raise ValueError(f"path: {path} cannot be read as DICOM: {one_line(error)}") from error

    @classmethod
    def _read(cls, path: Path) -> DicomInstance:
        dataset = _read_dataset(path)
        _check_pixels(dataset, path)
        for keyword in LATER:
            value = dataset.get(keyword)
            if value and keyword in NUMBERS:
                np.asarray(value, dtype=np.float64)
        frames = int(dataset.get("NumberOfFrames") or 1)
        try:
            array = np.asarray(dataset.pixel_array).reshape(frames, int(dataset.Rows), int(dataset.Columns))
        except (*DAMAGED, OSError, pydicom.errors.BytesLengthException) as error:
            raise ValueError(f"path: the pixels of {path} cannot be read: {one_line(error)}") from error
        bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
        lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        if array.min() < lowest or array.max() > highest:
            raise ValueError(
                f"path: BitsStored {bits} of {path} holds {lowest} to {highest}; got {array.min()} to {array.max()}"
            )
        _as_words(array, dataset, path)
        slope, intercept = _rescale(dataset, frames, path)
        del dataset.PixelData
        return cls(path, dataset, array, lowest, highest, slope, intercept)

    def write(
        self, levels: np.ndarray, path: Path, series_uid: str, deidentify: Deidentification | None = None
    ) -> None:
        """A copy of the file with other stored integers, as a derived instance of a new series.

        Args:
            levels: ``(frames, rows, columns)``.
            path: the new file.
            series_uid: of the new series.
            deidentify: takes the patient away; ``None`` keeps what the file says.
        """
        try:
            dataset = self._changed(levels, series_uid, deidentify)
            dataset.save_as(path)
        except (
            *DAMAGED,
            pydicom.errors.BytesLengthException,
        ) as error:  # an element that reading the pixels does not ask for
            raise ValueError(f"path: {self.path} cannot be copied: {one_line(error)}") from error

    def _changed(self, levels: np.ndarray, series_uid: str, deidentify: Deidentification | None) -> Any:
        """The data set of the copy."""
        dataset = _read_dataset(self.path)
        content = _as_words(levels, dataset, self.path)
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
                if keyword in dataset:
                    del dataset[keyword]
            content += b"\0" * (len(content) % 2)
            dataset.PixelData = content
            dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
            dataset["PixelData"].is_undefined_length = False
        else:
            dataset.PixelData = content + dataset.PixelData[len(content) :]
            if dataset.BitsAllocated == 8 and not dataset.file_meta.TransferSyntaxUID.is_little_endian:
                dataset["PixelData"].VR = "OB"
        if deidentify is not None:
            series_uid = deidentify.uid(f"adversarial {dataset.get('SeriesInstanceUID')}")
            instance_uid = deidentify.uid(f"adversarial {dataset.get('SOPInstanceUID')}")
            deidentify.apply(dataset)
            _mark(dataset, series_uid, instance_uid)
        else:
            _mark(dataset, series_uid, pydicom.uid.generate_uid(prefix=None))
        return dataset


def _read_dataset(path: Path) -> Any:
    try:
        dataset = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError(f"path: {path} is no DICOM file") from error
    if "TransferSyntaxUID" not in dataset.file_meta:
        raise ValueError(f"path: expected a TransferSyntaxUID in the file meta information; got none in {path}")
    return dataset


def _check_pixels(dataset: Any, path: Path) -> None:
    needed = ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    missing = [keyword for keyword in needed if dataset.get(keyword) is None]
    if missing:
        raise ValueError(f"path: {path} has no {', '.join(missing)}; truncated, or no image of integers")
    meaning = str(dataset.get("PhotometricInterpretation"))
    if meaning not in ("MONOCHROME1", "MONOCHROME2") or int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise ValueError(f"path: expected MONOCHROME1 or MONOCHROME2; got {meaning} in {path}")
    allocated, stored, high = (int(dataset[keyword].value) for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (8, 16) or not 1 < stored <= allocated or high != stored - 1:
        raise ValueError(
            "path: expected BitsAllocated 8 or 16 and HighBit BitsStored - 1; got BitsAllocated "
            f"{allocated}, BitsStored {stored}, HighBit {high} in {path}"
        )
    if "ModalityLUTSequence" in dataset:
        raise ValueError(f"path: expected a rescale slope and intercept; got a ModalityLUTSequence in {path}")


def _as_words(levels: np.ndarray, dataset: Any, path: Path) -> bytes:
    """The integers as pixel data, with the sign extended or not beyond BitsStored, as the file has it."""
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    syntax = dataset.file_meta.TransferSyntaxUID
    order = "<" if syntax.is_little_endian else ">"
    kind = np.dtype(f"{order}{'i' if signed else 'u'}{int(dataset.BitsAllocated) // 8}")
    extended = levels.astype(kind).tobytes()
    if syntax.is_encapsulated or bits == dataset.BitsAllocated:
        return extended
    unsigned = np.dtype(kind.str.replace("i", "u"))
    words = np.frombuffer(dataset.PixelData, unsigned, count=levels.size).astype(np.int64)
    mask = (1 << bits) - 1
    outside = words & ~mask
    if signed and bool((outside == np.where(words >> bits - 1 & 1, np.iinfo(unsigned).max & ~mask, 0)).all()):
        return extended
    if not outside.any():
        return (levels.astype(np.int64) & mask).astype(unsigned).tobytes()
    raise ValueError(
        f"path: expected nothing in the pixel data beyond BitsStored {bits}; got other bits, such as an overlay, in "
        f"{path}"
    )


def _rescale(dataset: Any, frames: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of every frame; 1 and 0 where there are none, except for CT."""
    found = []
    for groups in _per_frame(dataset, frames):
        slopes, intercepts = (
            [group.get(keyword) for group in groups if group.get(keyword) is not None]
            for keyword in ("RescaleSlope", "RescaleIntercept")
        )
        if dataset.get("Modality") == "CT" and not (slopes and intercepts):
            raise ValueError(f"path: expected RescaleSlope and RescaleIntercept in a CT image; got none in {path}")
        found.append((float([*slopes, 1.0][0]), float([*intercepts, 0.0][0])))
    slope, intercept = np.array(found, dtype=np.float64).T
    if not (np.isfinite(found).all() and slope.all()):
        raise ValueError(f"path: expected finite rescaling, a slope other than 0; got {found[0]} in {path}")
    return slope, intercept


def _per_frame(dataset: Any, frames: int) -> list[list[Any]]:
    """For every frame the data sets that may hold its rescaling, the first first."""
    shared, single = (dataset.get(name) or [] for name in GROUPS)
    common = [item for group in shared for item in group.get("PixelValueTransformationSequence") or []]
    if single and len(single) != frames:
        raise ValueError(f"path: expected {frames} per-frame functional groups; got {len(single)}")
    own = [list(group.get("PixelValueTransformationSequence") or []) for group in single] or [[]] * frames
    return [[*items, *common, dataset] for items in own]


def _mark(dataset: Any, series_uid: str, uid: str) -> None:
    """The identity of a derived image, and what was done to it."""
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.SeriesInstanceUID = series_uid
    kept = dataset.get("ImageType") or ["ORIGINAL", "PRIMARY"]
    kept = [kept] if isinstance(kept, str) else list(kept)
    dataset.ImageType = ["DERIVED", *kept[1:]] if len(kept) > 1 else ["DERIVED", "PRIMARY"]
    before = dataset.get("DerivationDescription") or ""
    room = LONGEST_TEXT - len(DERIVATION) - 2
    dataset.DerivationDescription = f"{before[:room]}; {DERIVATION}" if before else DERIVATION
    dataset.SeriesDescription = f"adversarial {dataset.get('SeriesDescription') or ''}".strip()[:LONGEST_NAME]
