# SPDX-License-Identifier: Apache-2.0
"""`damage`: valid files of every format, and what becomes of the program when some of their bytes are others.

Every input is read as an export and a verification read it. A damaged one is either read (nothing that matters was
hit), or refused by an error of the right kind, in one line, that names the file. Nothing half written is left.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from monai_smia.bundle.weights import load_weights
from monai_smia.data.dataset_json import listed
from monai_smia.export import open_stored, verify_on_disk

SHAPE = (6, 5, 4)
READ, REFUSED, TRACEBACK, UNNAMED, HALF_WRITTEN = "read", "refused", "traceback", "not named", "half written"
REFUSALS = (FileNotFoundError, ImportError, ValueError)
"""What a user's error is, on the command line one line and status 2."""


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged input.

    Attributes:
        kind: of the input, see `KINDS`.
        seed: of the damage.
        how: what was done to it.
        status: `READ` or `REFUSED`; `TRACEBACK` for an error of another type, `UNNAMED` for one of several lines or
            without the file's name, `HALF_WRITTEN` where something was left.
        message: of the error.
    """

    kind: str
    seed: int
    how: str
    status: str
    message: str = ""

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self.status in (READ, REFUSED)


def spoil(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Some bytes less, or others.

    Args:
        content: of a file.
        rng: of what is done, and where.

    Returns:
        The damaged content, and what was done in words.
    """
    many = np.frombuffer(content, np.uint8).copy()
    place = int(rng.integers(len(many)))
    # headers are short: every second time the damage is in the first bytes
    if rng.random() < 0.5:
        place = min(place, int(rng.integers(1, 600)), len(many) - 1)
    length = min(int(rng.integers(1, 65)), len(many) - place)
    how = str(rng.choice(["cut", "flipped", "zeroed", "random", "removed", "doubled"]))
    if how == "cut":
        return content[:place], f"cut at byte {place} of {len(content)}"
    if how == "flipped":
        many[place] ^= 1 << int(rng.integers(8))
        return many.tobytes(), f"one bit flipped at byte {place}"
    if how in ("zeroed", "random"):
        many[place : place + length] = 0 if how == "zeroed" else rng.integers(0, 256, length)
        return many.tobytes(), f"{length} bytes {how} at {place}"
    part = content[place : place + length]
    return content[:place] + part * (0 if how == "removed" else 2) + content[place + length :], (
        f"{length} bytes {how} at {place}"
    )


def try_one(kind: str, seed: int, folder: Path) -> Outcome:
    """Make a valid input, damage it, and read it.

    Args:
        kind: a name in `KINDS`.
        seed: of the damage.
        folder: empty, for this one.
    """
    make, read = KINDS[kind]
    rng = np.random.default_rng([sorted(KINDS).index(kind), seed])
    given = make(folder)
    files = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else beside(given)
    victim = files[int(rng.integers(len(files)))]
    content, how = spoil(victim.read_bytes(), rng)
    victim.write_bytes(content)
    before = set(folder.rglob("*"))
    try:
        written = read(given, folder / "out")
        status, message = READ, ""
    except REFUSALS as error:
        written, message = None, str(error)
        named = any(name in message for name in (given.name, victim.name, str(folder)))
        status = REFUSED if named and len(message.splitlines()) == 1 else UNNAMED
    except Exception as error:  # what nobody expected is what is looked for
        written, status, message = None, TRACEBACK, f"{type(error).__name__}: {error}"
    whole = set() if written is None else {written, *written.rglob("*"), *beside(written)}
    left = {path for path in set(folder.rglob("*")) - before - whole if path != folder / "out"}
    return Outcome(kind, seed, how, HALF_WRITTEN if left else status, message)


def campaign(count: int, folder: Path, kinds: Iterable[str] = ()) -> Iterator[Outcome]:
    """Damage `count` inputs, the kinds in turn, the same ones every time.

    Args:
        count: of inputs.
        folder: for them; each is taken away again.
        kinds: names in `KINDS`; none for all.
    """
    names = list(kinds) or sorted(KINDS)
    for i in range(count):
        place = folder / f"{i:05d}"
        place.mkdir(parents=True)
        try:
            yield try_one(names[i % len(names)], i // len(names), place)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def table(outcomes: Iterable[Outcome]) -> str:
    """Counts by kind, in Markdown."""
    found = list(outcomes)
    columns = (READ, REFUSED, TRACEBACK, UNNAMED, HALF_WRITTEN)
    lines = [f"| damaged | tried | {' | '.join(columns)} |", f"|:--|{'--:|' * (len(columns) + 1)}"]
    for kind in sorted({one.kind for one in found}):
        counts = Counter(one.status for one in found if one.kind == kind)
        lines.append(f"| {kind} | {counts.total()} | {' | '.join(str(counts[column]) for column in columns)} |")
    return "\n".join(lines)


def beside(path: Path) -> list[Path]:
    """A file with those of the same name that belong to it, such as the voxels of a header."""
    return sorted(one for one in path.parent.glob(f"{path.name.split('.')[0]}.*") if one.is_file())


def voxels(dtype: Any = np.int16) -> np.ndarray:
    """Made up."""
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


def as_nifti(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        nib.save(nib.Nifti1Image(voxels(), np.diag([1.0, 2.0, 3.0, 1.0])), folder / f"image{suffix}")
        return folder / f"image{suffix}"

    return make


def as_itk(suffix: str, compressed: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import itk

        itk.imwrite(itk.image_from_array(voxels()), str(folder / f"image{suffix}"), compression=compressed)
        return folder / f"image{suffix}"

    return make


def as_picture(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"image{suffix}")
        return folder / f"image{suffix}"

    return make


def instance(number: int, series: str = "1.2.3.4") -> Any:
    """A CT slice."""
    import pydicom

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    kind = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.4.5.{number + 1}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, "1.2.3", "CT"
    dataset.PatientName, dataset.PatientID, dataset.ImageType = "Made^Up", "1", ["ORIGINAL", "PRIMARY"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 5.0 * number], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.InstanceNumber = [1, 1], 5, number + 1
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 6, 5, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    levels = np.random.default_rng(number).integers(0, 4096, (6, 5)).astype(np.uint16)
    dataset.PixelData = levels.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def as_dicom(folder: Path) -> Path:
    instance(0).save_as(folder / "image.dcm", enforce_file_format=True)
    return folder / "image.dcm"


def as_series(folder: Path) -> Path:
    place = folder / "series"
    place.mkdir()
    for number in range(3):
        instance(number).save_as(place / f"slice{number}.dcm", enforce_file_format=True)
    return place


def as_weights(folder: Path) -> Path:
    torch.save(torch.nn.Conv3d(1, 2, 3).state_dict(), folder / "model.pt")
    return folder / "model.pt"


def as_manifest(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(voxels(), np.eye(4)), folder / "copy.nii.gz")
    made = {"source": "/data/a.nii.gz", "sha256": "0" * 64, "attack": "PGD", "eps": 1.0, "clean_loss": 0.1, "loss": 0.5}
    rows = [{"image": "copy.nii.gz", "label": 1, "made": made}]
    (folder / "manifest.json").write_text(json.dumps({"adversarial": rows}, indent=2))
    return folder / "manifest.json"


def as_data_list(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(voxels(), np.eye(4)), folder / "image.nii.gz")
    cases = [{"image": "image.nii.gz", "label": "image.nii.gz", "patient": f"p{number}"} for number in range(3)]
    (folder / "dataset.json").write_text(json.dumps({"name": "made up", "training": cases, "test": cases}, indent=2))
    return folder / "dataset.json"


def read_data_list(path: Path, out: Path) -> None:
    """As a bundle's data list is read."""
    listed(path.parent, "training", ["image", "label"])


def read_image(path: Path, out: Path) -> Path:
    """As an export reads an image, and writes the copy of it."""
    stored = open_stored(path)
    values = stored.values()
    target = out / f"copy{stored.suffix}"
    stored.write(stored.lattice.nearest(values + 1), target)
    again = open_stored(target)
    if tuple(again.values().shape) != tuple(values.shape):
        raise AssertionError(f"the copy of {path} has {tuple(again.values().shape)}, expected {tuple(values.shape)}")
    return target


def read_state(path: Path, out: Path) -> None:
    """As a bundle's weights are read."""
    load_weights(torch.nn.Conv3d(1, 2, 3), path)


class Pooled(torch.nn.Module):
    """Two classes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        return torch.cat([mean, -mean], 1)


def read_manifest(path: Path, out: Path) -> None:
    """As `verify` reads a cohort."""
    pipeline = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
    engine = SupervisedEvaluator(torch.device("cpu"), DataLoader(Dataset([], pipeline)), network=Pooled().eval())
    verify_on_disk(engine, path, torch.nn.CrossEntropyLoss(), progress=False)


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Path], Any]]] = {
    "NIfTI": (as_nifti(".nii"), read_image),
    "NIfTI, gzip": (as_nifti(".nii.gz"), read_image),
    "NRRD": (as_itk(".nrrd", False), read_image),
    "NRRD, gzip": (as_itk(".nrrd", True), read_image),
    "MetaImage": (as_itk(".mha", False), read_image),
    "MetaImage, compressed": (as_itk(".mha", True), read_image),
    "MetaImage in two files": (as_itk(".mhd", False), read_image),
    "PNG": (as_picture(".png"), read_image),
    "JPEG": (as_picture(".jpg"), read_image),
    "DICOM file": (as_dicom, read_image),
    "DICOM series": (as_series, read_image),
    "weights": (as_weights, read_state),
    "data list": (as_data_list, read_data_list),
    "manifest": (as_manifest, read_manifest),
}
"""What is damaged: how a valid one is made in a folder, and how it is read and copied to a place."""
