# SPDX-License-Identifier: Apache-2.0
"""A NIfTI volume as a series of CT instances: what a bundle's own sample looks like in an archive."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SLOPE, INTERCEPT = 1, -1024


def as_dicom_series(nifti: Path, folder: Path) -> None:
    """One instance per slice, int16 with a rescaling, positions and orientation of the volume; no patient.

    Raises:
        ValueError: for voxels that are no whole HU.
    """
    image = nib.load(nifti)
    voxels = np.asarray(image.dataobj)
    if not np.array_equal(voxels, np.round(voxels)):
        raise ValueError(f"nifti: expected whole HU in {nifti}")
    levels = (voxels.astype(np.int64) - INTERCEPT) // SLOPE
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine  # DICOM's axes: left, posterior, superior
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    folder.mkdir(parents=True)
    for k in range(levels.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        for name, uid in uids.items():
            setattr(dataset, name, uid)
        dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", "Sample", "sample"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SeriesDescription, dataset.SeriesNumber, dataset.InstanceNumber = "sample", 1, k + 1
        dataset.ImagePositionPatient = [f"{x:.6f}"[:16] for x in affine[:3, 3] + k * affine[:3, 2]]
        dataset.ImageOrientationPatient = [f"{x:.9f}"[:16] for x in (affine[:3, :2] / sizes[:2]).T.flatten()]
        dataset.PixelSpacing = [f"{sizes[1]:.9f}"[:16], f"{sizes[0]:.9f}"[:16]]
        dataset.SliceThickness = f"{sizes[2]:.6f}"[:16]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = levels.shape[1], levels.shape[0], 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = SLOPE, INTERCEPT
        dataset.PixelData = np.ascontiguousarray(levels[:, :, k].T).astype("<i2").tobytes()
        dataset["PixelData"].VR = "OW"
        pydicom.dcmwrite(folder / f"{k:04d}.dcm", dataset, enforce_file_format=True)
