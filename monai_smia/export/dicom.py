# SPDX-License-Identifier: Apache-2.0
"""`DicomSeries`: a folder of DICOM instances, or one DICOM file, as a volume."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from monai.utils import optional_import
from tqdm import tqdm

from monai_smia.export.deidentify import Deidentification
from monai_smia.export.dicom_instance import DicomInstance
from monai_smia.export.dicom_order import reader_of, slices_in_order
from monai_smia.export.lattice import Lattice
from monai_smia.export.stored import StoredImage, appearing

pydicom, _ = optional_import("pydicom")
is_dicom, _ = optional_import("pydicom.misc", name="is_dicom")

Item = TypeVar("Item")
SUFFIXES = (".dcm", ".dicom", ".ima")


class DicomSeries(StoredImage):
    """A folder of single-frame instances of one series, or one file, single-frame or (enhanced) multi-frame.

    The copy is a derived series: every instance gets a new SOP Instance UID, the series a new Series Instance UID, the
    first value of ImageType is DERIVED, DerivationDescription names this package and says that an adversarial attack
    changed the pixels, SeriesDescription begins with "adversarial". Every other element is kept: patient, study,
    geometry, rescaling, BurnedInAnnotation. File names are kept. The transfer syntax is kept where it is uncompressed
    or deflated; what RLE, JPEG, JPEG-LS or JPEG 2000 compressed (which pydicom's plug-ins must be able to read) is
    written as Explicit VR Little Endian.

    Values are those of the stored integers that BitsStored and PixelRepresentation allow, through the RescaleSlope and
    RescaleIntercept of each slice; 1 and 0 where there are none. `ITKReader` inverts MONOCHROME1; `PydicomReader` does
    not. Files in the folder that are no DICOM images (a DICOMDIR, a text) are not copied.

    Args:
        path: the folder or file.
        reader: which of MONAI's readers the values are those of, ``"ITKReader"`` (slices by position) or
            ``"PydicomReader"`` (by InstanceNumber); ``None`` for the one that `LoadImage` picks.
        deidentify: takes the patient out of the copies, whose files are then numbered in the order of the slices.

    Raises:
        ImportError: without pydicom.
        FileNotFoundError: when nothing is there.
        ValueError: when it is truncated, has no DICOM image, colours, more than 16 bits, more than one series or
            shape, several images at one place, a missing slice, slopes of both signs; a CT image without rescaling; a
            multi-frame file for `PydicomReader`, which mixes its axes; frames with rescaling of their own, of which
            `ITKReader` takes the first.

    Example:
        .. code-block:: python

            series = DicomSeries("ct_folder")
            series.write(series.values() + 1.0, Path("ct_folder_adversarial"))
    """

    def __init__(
        self, path: str | Path, *, reader: str | None = None, deidentify: Deidentification | None = None
    ) -> None:
        self.path = Path(path)
        self._deidentify = deidentify
        files = _files(self.path)
        self._reader = reader_of(self.path, reader)
        instances = [DicomInstance.read(file) for file in _progress(files, f"reading {self.path.name}")]
        self._slices = slices_in_order(instances, self._reader)
        self._check_frames()
        first = self._slices[0]
        inverted = self._reader == "ITKReader" and first.header.PhotometricInterpretation == "MONOCHROME1"
        if inverted and first.lowest < 0:
            raise ValueError(f"path: expected unsigned pixels with MONOCHROME1; got signed ones in {first.path}")
        slope = np.concatenate([one.slope for one in self._slices])
        intercept = np.concatenate([one.intercept for one in self._slices])
        if slope.min() < 0 < slope.max():
            raise ValueError(f"path: expected RescaleSlopes of one sign; got {slope.min():g} to {slope.max():g}")
        sign = -1 if slope[0] < 0 else 1
        self._factor, self._shift = (-sign, sign * (first.lowest + first.highest)) if inverted else (sign, 0)
        ends = sorted(sign * end for end in (first.lowest, first.highest))
        self.lattice = Lattice(_one_or_all(abs(slope)), _one_or_all(intercept), ends[0], ends[1])
        self.suffix = "" if self.path.is_dir() else self.path.suffix.lower()
        if self.path.is_file() and self.suffix not in SUFFIXES:
            self.suffix = ".dcm"

    def values(self) -> torch.Tensor:
        """As MONAI's reader loads it, ``(1, columns, rows, slices)``; `PydicomReader` gives one slice two axes."""
        stored = np.concatenate([one.levels for one in self._slices])
        grid = self.lattice.values(torch.from_numpy(self._turned(stored).T.copy()[np.newaxis])).float()
        return grid[..., 0] if self._flat else grid

    def write(self, values: torch.Tensor, path: Path) -> None:
        plain, clean = self.check(values), self.values()
        if self._flat:
            plain, clean = plain.unsqueeze(-1), clean.unsqueeze(-1)
        changed = (plain != clean)[0].numpy().T
        wanted = self._turned_back(self.lattice.levels(plain)[0].numpy().T)
        stored = np.concatenate([one.levels for one in self._slices])
        levels = np.where(changed, wanted, stored)
        parts = np.split(levels, np.cumsum([len(one.levels) for one in self._slices])[:-1])
        series_uid = pydicom.uid.generate_uid(prefix=None)
        with appearing(path) as place:
            if self.path.is_dir():
                place.mkdir()
            pairs = list(zip(self._slices, parts, strict=True))
            for i, (one, part) in enumerate(_progress(pairs, f"writing {path.name}")):
                name = one.path.name if self._deidentify is None else f"{i:05d}.dcm"
                one.write(part, place / name if self.path.is_dir() else place, series_uid, self._deidentify)

    @property
    def _flat(self) -> bool:
        return self._reader == "PydicomReader" and len(self._slices) == 1

    def _check_frames(self) -> None:
        for one in self._slices:
            enhanced = len(one.levels) > 1 or "SharedFunctionalGroupsSequence" in one.header
            if enhanced and self._reader == "PydicomReader":
                raise ValueError(
                    "path: PydicomReader mixes the axes of frames and does not rescale them; expected ITKReader for "
                    f"{one.path}"
                )
            if len({*zip(one.slope, one.intercept, strict=True)}) > 1:
                raise ValueError(
                    f"path: expected frames of one RescaleSlope and RescaleIntercept; got several in {one.path}, of "
                    "which ITKReader takes the first"
                )

    def _turned(self, stored: np.ndarray) -> np.ndarray:
        """Levels of the lattice: inverted where the reader inverts, of the other sign where the slope is negative."""
        return self._factor * stored.astype(np.int64) + self._shift

    def _turned_back(self, levels: np.ndarray) -> np.ndarray:
        return self._factor * (levels - self._shift)


def _files(path: Path) -> list[Path]:
    """The DICOM images at a path."""
    if not path.exists():
        raise FileNotFoundError(f"path: nothing at {path}")
    if path.is_file():
        return [path]
    found = []
    for file in sorted(path.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        if is_dicom(file):
            found += [file] if file.name.upper() != "DICOMDIR" else []
        elif file.suffix.lower() in SUFFIXES or not file.stat().st_size:
            raise ValueError(f"path: {file} is no DICOM file; truncated, or another format")
    if not found:
        raise ValueError(f"path: expected a folder of DICOM instances; got none in {path}")
    return found


def _one_or_all(numbers: np.ndarray) -> float | torch.Tensor:
    """The number that all slices have, or a tensor that broadcasts along the last axis."""
    return float(numbers[0]) if (numbers == numbers[0]).all() else torch.from_numpy(numbers.copy())


def _progress(items: list[Item], name: str) -> Iterable[Item]:
    return tqdm(items, desc=name, unit="file", leave=False, delay=2)
