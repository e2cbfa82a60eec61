# SPDX-License-Identifier: Apache-2.0
"""Export: attacks on the grid and levels of an image's own file, and files that hold their results."""

from __future__ import annotations

from monai_smia.export.carried_back import carried_back
from monai_smia.export.cohort import Cohort, write_cohort
from monai_smia.export.deidentify import Deidentification
from monai_smia.export.dicom import DicomSeries
from monai_smia.export.formats import open_stored
from monai_smia.export.itk_image import ItkImage
from monai_smia.export.lattice import Lattice
from monai_smia.export.native import NativeCase, NativeNetwork, NativeResult, native_case
from monai_smia.export.nifti import NiftiImage
from monai_smia.export.picture import PictureImage
from monai_smia.export.recompression import Recompression
from monai_smia.export.replay import NotDifferentiableError, replay
from monai_smia.export.saving import SaveAdversariald
from monai_smia.export.soft_jpeg import SoftJPEG
from monai_smia.export.stored import StoredImage
from monai_smia.export.survival import Survival, survival_of
from monai_smia.export.verifying import Verification, verify_on_disk

__all__ = [
    "Cohort",
    "Deidentification",
    "DicomSeries",
    "ItkImage",
    "Lattice",
    "NativeCase",
    "NativeNetwork",
    "NativeResult",
    "NiftiImage",
    "NotDifferentiableError",
    "PictureImage",
    "Recompression",
    "SaveAdversariald",
    "SoftJPEG",
    "StoredImage",
    "Survival",
    "Verification",
    "carried_back",
    "native_case",
    "open_stored",
    "replay",
    "survival_of",
    "verify_on_disk",
    "write_cohort",
]
