# SPDX-License-Identifier: Apache-2.0
"""Copies without a patient: against a list of elements made by hand, nested ones and private ones too."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged

from monai_smia.bundle import exporting
from monai_smia.bundle.command_export import export_from_config
from monai_smia.export import DicomSeries, NiftiImage, PictureImage, deidentify
from monai_smia.export.deidentify import Deidentification

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("itk")
pytest.importorskip("dicomanonymizer")

from dicom_files import levels_of, save_series  # noqa: E402

HIDDEN = Deidentification(bytes(range(32)))
SECRET = "Zebra"
TEXTS = {  # by the standard's names, in every value representation that holds text
    "PatientName": f"{SECRET}^Ada",
    "PatientID": f"{SECRET}-4711",
    "IssuerOfPatientID": SECRET,
    "OtherPatientIDs": SECRET,
    "OtherPatientNames": SECRET,
    "PatientBirthName": SECRET,
    "PatientMotherBirthName": SECRET,
    "PatientAddress": SECRET,
    "PatientTelephoneNumbers": SECRET,
    "PatientComments": SECRET,
    "PatientInsurancePlanCodeSequence": None,
    "EthnicGroup": SECRET,
    "Occupation": SECRET,
    "AdditionalPatientHistory": SECRET,
    "MedicalRecordLocator": SECRET,
    "MilitaryRank": SECRET,
    "AccessionNumber": SECRET,
    "StudyID": SECRET,
    "StudyDescription": SECRET,
    "SeriesDescription": SECRET,
    "ProtocolName": SECRET,
    "ImageComments": SECRET,
    "DerivationDescription": SECRET,
    "InstitutionName": SECRET,
    "InstitutionAddress": SECRET,
    "InstitutionalDepartmentName": SECRET,
    "StationName": SECRET,
    "ReferringPhysicianName": SECRET,
    "PerformingPhysicianName": SECRET,
    "NameOfPhysiciansReadingStudy": SECRET,
    "OperatorsName": SECRET,
    "PhysiciansOfRecord": SECRET,
    "RequestingPhysician": SECRET,
    "RequestedProcedureDescription": SECRET,
    "PerformedProcedureStepDescription": SECRET,
    "PerformedProcedureStepID": SECRET,
    "AdmissionID": SECRET,
    "DeviceSerialNumber": SECRET,
    "RequestedProcedureID": SECRET,
    "ScheduledProcedureStepDescription": SECRET,
    "CountryOfResidence": SECRET,
    "RegionOfResidence": SECRET,
    "VisitComments": SECRET,
}
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate")
DAY = "19610203"
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
KEPT = (
    "Modality",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "Rows",
    "Columns",
    "BitsStored",
    "InstanceNumber",
    "BurnedInAnnotation",
    "SOPClassUID",
)


def item(**elements: Any) -> Any:
    made = pydicom.Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def nested() -> dict[str, Any]:
    """Sequences that the table names, and one that it does not."""
    request = item(RequestedProcedureID=SECRET, PatientName=SECRET)
    request.add_new(0x00310010, "LO", SECRET)
    request.add_new(0x00311001, "LO", SECRET)
    deep = item(DerivationCodeSequence=[item(CodeMeaning="kept", PatientID=SECRET)], OperatorsName=SECRET)
    return {
        "RequestAttributesSequence": [request],
        "SourceImageSequence": [
            item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID="1.2.3.4.5.6")
        ],
        "SharedFunctionalGroupsSequence": [],
        "VOILUTSequence": [deep],
        "OriginalAttributesSequence": [item(ModifiedAttributesSequence=[item(PatientName=SECRET)])],
        "OtherPatientIDsSequence": [item(PatientID=SECRET)],
    }


def save(folder: Path, seed: int = 0, **more: Any) -> Path:
    elements = {name: value for name, value in TEXTS.items() if value is not None}
    elements |= dict.fromkeys(DATES, DAY)
    extra = {name: value for name, value in nested().items() if value}
    save_series(
        folder,
        levels_of(3, seed=seed),
        names=[f"{SECRET}_{i}.dcm" for i in range(3)],
        StudyTime="101112",
        FrameOfReferenceUID="1.2.3.99",
        WindowCenter=40,
        WindowWidth=400,
        PatientSex="F",
        PatientAge="061Y",
        **{**elements, **extra, **more},
    )
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.add_new(0x60004000, "LT", SECRET)  # an overlay's comment
        dataset.file_meta.SourceApplicationEntityTitle = SECRET
        dataset.preamble = SECRET.encode().ljust(128, b"\1")
        dataset.save_as(path)
    return folder


def everything(dataset: Any) -> Iterator[Any]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for one in element.value:
                yield from everything(one)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dicom")
    source = save(folder / "source")
    series = DicomSeries(source, deidentify=HIDDEN)
    series.write(series.values() + 1, folder / "copy")
    return source, folder / "copy"


def test_nothing_of_the_patient_is_left_in_any_byte(copies: tuple[Path, Path]) -> None:
    source, copy = copies
    for path in source.iterdir():
        assert path.read_bytes().count(SECRET.encode()) > 40
    for path in copy.iterdir():
        content = path.read_bytes()
        assert SECRET.encode() not in content
        assert DAY.encode() not in content
        assert SECRET not in path.name
        assert content[:128] == bytes(128)


@pytest.mark.parametrize("name", [*TEXTS, *DATES, "PatientSex", "PatientAge", "StudyTime"])
def test_every_element_of_the_list_is_gone_or_empty_or_says_nothing(copies: tuple[Path, Path], name: str) -> None:
    for path in copies[1].iterdir():
        for element in everything(pydicom.dcmread(path)):
            if element.keyword == name:
                said = str(element.value or "")
                assert said in ("", "ANONYMIZED", "00010101", "adversarial") or said.startswith("monai_smia: pixel")


def test_no_private_element_is_left_and_the_marks_of_the_standard_are_there(copies: tuple[Path, Path]) -> None:
    for path in copies[1].iterdir():
        dataset = pydicom.dcmread(path)
        assert not [element for element in everything(dataset) if element.tag.is_private]
        assert dataset.PatientIdentityRemoved == "YES"
        assert "PS3.15 basic profile" in dataset.DeidentificationMethod
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert dataset.LongitudinalTemporalInformationModified == "REMOVED"
        assert not hasattr(dataset.file_meta, "SourceApplicationEntityTitle")
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.ImageType[0] == "DERIVED"


def test_uids_are_other_ones_and_references_stay_whole(copies: tuple[Path, Path], tmp_path: Path) -> None:
    source, copy = ([pydicom.dcmread(path) for path in sorted(folder.iterdir())] for folder in copies)
    old = {str(one[name].value) for one in source for name in UIDS} | {"1.2.3.4.5.6"}
    new = {str(element.value) for one in copy for element in everything(one) if element.VR == "UI"}
    assert not old & new
    assert len({one.SOPInstanceUID for one in copy}) == 3
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({one[name].value for one in copy}) == 1
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for one in copy for uid in (one[name].value for name in UIDS))
    # another series of the study, written later: the same study and frame of reference, another series
    other = DicomSeries(save(tmp_path / "other", seed=1, SeriesInstanceUID="1.2.3.77"), deidentify=HIDDEN)
    other.write(other.values(), tmp_path / "out")
    second = pydicom.dcmread(next((tmp_path / "out").iterdir()))
    assert second.StudyInstanceUID == copy[0].StudyInstanceUID == HIDDEN.uid("1.2.3")
    assert second.FrameOfReferenceUID == copy[0].FrameOfReferenceUID
    assert second.SeriesInstanceUID != copy[0].SeriesInstanceUID
    assert Deidentification(bytes(32)).uid("1.2.3") != HIDDEN.uid("1.2.3")


def test_what_the_evaluation_needs_is_kept_and_the_copy_reads_the_same(copies: tuple[Path, Path]) -> None:
    source, copy = (
        sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda one: one.InstanceNumber)
        for folder in copies
    )
    for one, other in zip(source, copy, strict=True):
        for name in KEPT:
            assert other[name].value == one[name].value, name
    plain, hidden = (
        DicomSeries(copies[0]),
        DicomSeries(copies[1]),
    )
    changed = plain.lattice.nearest(plain.values() + 1)
    assert torch.equal(hidden.values(), changed)
    load = LoadImaged("image", ensure_channel_first=True)
    before, after = (load({"image": str(folder)})["image"] for folder in copies)
    assert torch.allclose(before.affine, after.affine)
    assert torch.equal(after.as_tensor(), changed)


def test_without_the_option_everything_is_kept(copies: tuple[Path, Path], tmp_path: Path) -> None:
    series = DicomSeries(copies[0])
    series.write(series.values(), tmp_path / "copy")
    dataset = pydicom.dcmread(next((tmp_path / "copy").iterdir()))
    assert dataset.PatientID == TEXTS["PatientID"]
    assert "PatientIdentityRemoved" not in dataset


class Pooled(torch.nn.Module):
    """Two classes from one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, 2, 1)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x).mean((2, 3, 4))


def evaluator(folder: Path, count: int = 2) -> SupervisedEvaluator:
    items = []
    for i in range(count):
        place = folder / f"{SECRET}_case_{i}"
        if not place.exists():
            save(place, seed=i, SeriesInstanceUID=f"1.2.3.{i}")
        items.append({"image": str(place), "label": 1, "patient_id": 4711 + i, "notes": str(folder / f"{SECRET}.txt")})
    transforms = [LoadImaged("image"), EnsureChannelFirstd("image"), ScaleIntensityRanged("image", -1024, 3000, 0, 1)]
    loader = DataLoader(Dataset(items, Compose(transforms)), batch_size=1)
    return SupervisedEvaluator(torch.device("cpu"), loader, network=Pooled().eval())


def export(engine: Any, out: Path, **more: Any) -> None:
    settings = {"attack": "BIM", "eps": "50HU", "steps": 1, "loss_function": torch.nn.CrossEntropyLoss()}
    export_from_config(engine, **settings, out=out, progress=False, **more)


def test_a_cohort_tells_nothing_and_survives_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = evaluator(tmp_path / "data")
    export(engine, tmp_path / "plain")
    assert capsys.readouterr().err.count("--deidentify takes it out") == 1
    export(engine, tmp_path / "hidden", deidentify=True)
    assert "--deidentify" not in capsys.readouterr().err
    for path in (tmp_path / "hidden").rglob("*"):
        told = str(path.relative_to(tmp_path)).encode() + (path.read_bytes() if path.is_file() else b"")
        if "progress" not in path.parts:
            assert SECRET.encode() not in told, path
            assert b"4711" not in told, path
    rows = {
        name: json.loads((tmp_path / name / "manifest.json").read_text())["adversarial"] for name in ("plain", "hidden")
    }
    for plain, hidden in zip(rows["plain"], rows["hidden"], strict=True):
        assert hidden["made"]["loss"] == plain["made"]["loss"]
        assert hidden["label"] == 1
        assert not {"source", "source_sha256"} & set(hidden["made"])
        assert set(hidden) == {"image", "label", "made"}
    assert rows["hidden"][0]["image"] == "images/0000"
    survival = [(tmp_path / name / "report" / "survival.md").read_text() for name in ("plain", "hidden")]
    assert survival[0] == survival[1]
    assert stat.S_IMODE((tmp_path / "hidden" / "deidentify.key").stat().st_mode) == 0o600
    checked = exporting.verify_cohort(
        engine, tmp_path / "hidden", loss_function=torch.nn.CrossEntropyLoss(), progress=False
    )
    assert (checked.changed, checked.failures) == ((), ())
    assert checked.survival[0].disk == pytest.approx(checked.survival[0].memory, rel=1e-5)


def test_a_resumed_cohort_gives_the_same_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second case is of the study of the first, and is written by another run."""
    engine = evaluator(tmp_path / "data")
    out, write, calls = tmp_path / "out", DicomSeries.write, []

    def interrupted(self: Any, *arguments: Any) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(DicomSeries, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(engine, out, deidentify=True)
    assert len(list((out / "images").iterdir())) == 1
    export(engine, out, deidentify=True, resume=True)
    found = [pydicom.dcmread(path) for path in out.rglob("*.dcm")]
    assert len(found) == 6
    assert len({one.StudyInstanceUID for one in found}) == 1
    assert len({one.SeriesInstanceUID for one in found}) == 2
    assert len(json.loads((out / "manifest.json").read_text())["adversarial"]) == 2
    with pytest.raises(ValueError, match="deidentify"):
        export(engine, out, resume=True)


def test_the_link_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    export(evaluator(tmp_path / "data", 1), tmp_path / "out", deidentify=True, keep_link=True)
    (row,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["adversarial"]
    assert Path(row["made"]["source"]).name == f"{SECRET}_case_0"
    for path in (tmp_path / "out" / "images").rglob("*.dcm"):
        assert SECRET.encode() not in path.read_bytes()


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deidentify, "HAS_PROFILE", False)
    with pytest.raises(
        ImportError, match=r"^deidentify: needs dicom-anonymizer; pip install 'monai-smia\[deidentify\]'$"
    ):
        export(evaluator(tmp_path / "data", 1), tmp_path / "out", deidentify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", [b"short", "text", None])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="key: expected at least 32 secret bytes"):
        Deidentification(key)


@pytest.mark.parametrize(("kind", "suffix"), [(nib.Nifti1Image, ".nii.gz"), (nib.Nifti2Image, ".nii")])
def test_a_nifti_header_says_nothing(tmp_path: Path, kind: Any, suffix: str) -> None:
    image = kind(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([2.0, 3, 4, 1]))
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        if name in image.header:
            image.header[name] = SECRET.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    nib.save(image, tmp_path / f"a{suffix}")
    stored = NiftiImage(tmp_path / f"a{suffix}", deidentify=HIDDEN)
    out = tmp_path / f"b{suffix}"
    stored.write(stored.values() + 1, out)
    again: Any = nib.load(out)
    assert not again.header.extensions
    assert SECRET.encode() not in again.header.binaryblock + out.read_bytes()
    assert np.array_equal(again.affine, image.affine)
    assert torch.equal(NiftiImage(out).values(), stored.values() + 1)
    assert again.header.get_data_dtype() == np.int16


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_says_nothing(tmp_path: Path, suffix: str) -> None:
    Image = pytest.importorskip("PIL.Image")
    PngImagePlugin = pytest.importorskip("PIL.PngImagePlugin")
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x010E] = SECRET
    path, out = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    if suffix == ".png":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", SECRET)
        pixels.save(path, pnginfo=notes, exif=exif)
    else:
        pixels.save(path, exif=exif, comment=SECRET, quality=90)
    assert SECRET.encode() in path.read_bytes()
    picture = PictureImage(path, deidentify=HIDDEN)
    picture.write(picture.values(), out)
    assert SECRET.encode() not in out.read_bytes()
    assert torch.equal(PictureImage(out).values(), picture.held(picture.values()))


def test_itk_metadata_says_nothing(tmp_path: Path) -> None:
    import itk

    from monai_smia.export import ItkImage

    image = itk.image_from_array(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.GetMetaDataDictionary()["Patient"] = SECRET
    itk.imwrite(image, str(tmp_path / "a.nrrd"))
    assert SECRET.encode() in (tmp_path / "a.nrrd").read_bytes()
    stored = ItkImage(tmp_path / "a.nrrd", deidentify=HIDDEN)
    stored.write(stored.values(), tmp_path / "b.nrrd")
    assert SECRET.encode() not in (tmp_path / "b.nrrd").read_bytes()
    assert torch.equal(ItkImage(tmp_path / "b.nrrd").values(), stored.values())
    spacing = [re.findall(rb"space directions: (.*)", (tmp_path / name).read_bytes()) for name in ("a.nrrd", "b.nrrd")]
    assert spacing[0] == spacing[1]


def test_no_element_of_the_table_is_left_as_it_was(tmp_path: Path) -> None:
    """All 650 at once, each in the file, in a sequence that is kept, and beside each other."""
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    lists = dicom_anonymization_database_selector(deidentify.TABLE)
    tags = {pydicom.tag.Tag(row) for name, rows in lists.items() if name != "ALL_TAGS" for row in rows if len(row) == 2}
    texts = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}
    inner = pydicom.Dataset()
    for tag in sorted(tags):
        known = pydicom.datadict.dictionary_has_tag(tag) and tag.group > 2
        kind = pydicom.datadict.dictionary_VR(tag) if known else ""
        if kind in texts:
            inner.add_new(tag, kind, SECRET.upper() if kind == "CS" else SECRET)
        elif kind in ("DA", "DT"):
            inner.add_new(tag, kind, DAY)
        elif kind == "SQ":
            inner.add_new(tag, kind, [item(PatientName=SECRET, CodeMeaning=SECRET)])
    assert len(inner) > 450
    (path,) = save_series(tmp_path, levels_of(1))
    dataset = pydicom.dcmread(path)
    dataset.VOILUTSequence = [inner]
    for element in inner:
        if element.keyword not in ("PixelData", "Rows"):
            dataset.add(element)
    dataset.save_as(path)
    assert path.read_bytes().upper().count(SECRET.upper().encode()) > 800
    series = DicomSeries(path, deidentify=HIDDEN)
    series.write(series.values(), tmp_path / "out.dcm")
    content = (tmp_path / "out.dcm").read_bytes()
    assert SECRET.upper().encode() not in content.upper()
    assert DAY.encode() not in content
