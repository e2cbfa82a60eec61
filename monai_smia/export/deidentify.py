# SPDX-License-Identifier: Apache-2.0
"""`Deidentification`: the basic profile of DICOM PS3.15 annex E, and the same spirit for what else names a patient."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.utils import optional_import

pydicom, _ = optional_import("pydicom")
anonymizer, HAS_PROFILE = optional_import("dicomanonymizer.simpledicomanonymizer")
tables, _ = optional_import("dicomanonymizer.dicomfields_selector")

TABLE = "dicomfields_2026c"
"""Edition of table E.1-1, as `dicom-anonymizer` has it."""

METHOD = "monai_smia: DICOM PS3.15 basic profile, table E.1-1 of 2026c; pixel data as they were"
KEY_FILE = "deidentify.key"
KEPT_META = ("FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID")
KEY_BYTES = 32


@dataclass(frozen=True)
class Deidentification:
    r"""What a copy keeps of its patient: nothing of the basic profile's table.

    Every element of table E.1-1 is removed, emptied, or given a dummy value as the table says, in nested sequences too;
    so are private elements, curves, and overlays. UIDs become

    .. math:: \mathrm{UID}' = 2.25.\,\mathrm{HMAC}_{\mathrm{SHA256}}(k, \mathrm{UID})_{1 \dots 128}

    so that references inside a study stay whole, also over several runs with the same key. Pixel data are left as they
    are: nobody looks for a name that is burnt into them, or for a face in a head scan.

    Args:
        key: k, secret. Without it nobody can find out which UID has become which; who has it and a list of UIDs can.
        keep_link: say in the manifest where each copy came from.

    Raises:
        ImportError: without the extra ``deidentify``.

    Example:
        .. code-block:: python

            hidden = Deidentification(secrets.token_bytes(32))
            series = DicomSeries("ct_folder", deidentify=hidden)
            series.write(series.values(), Path("ct_without_a_name"))

    Reference: DICOM PS3.15, annex E, "Attribute Confidentiality Profiles",
    https://dicom.nema.org/medical/dicom/current/output/html/part15.html#chapter_E. Deviation: its table is that of the
    package `dicom-anonymizer`, whose own walk leaves nested sequences; a sequence of the table that must not be empty
    keeps its items with dummy values.
    """

    key: bytes = field(repr=False)
    keep_link: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.key, bytes) or len(self.key) < KEY_BYTES:
            raise ValueError(f"key: expected at least {KEY_BYTES} secret bytes; got {type(self.key).__name__}")

    @classmethod
    def of_folder(cls, folder: Path, keep_link: bool = False) -> Deidentification:
        """With the key that is kept in a folder, a new one where there is none; only the user may read it.

        Raises:
            ImportError: without the extra ``deidentify``.
            ValueError: where the file holds no key.
        """
        require()
        file = folder / KEY_FILE
        if not file.exists() or file.stat().st_size == 0:  # a kill may come between making and writing it
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            with open(os.open(file, flags, 0o600), "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(KEY_BYTES) + "\n")
        try:
            return cls(bytes.fromhex(file.read_text(encoding="ascii").strip()), keep_link)
        except ValueError as error:
            raise ValueError(f"deidentify: {file} holds no key; expected {2 * KEY_BYTES} hexadecimal digits") from error

    def uid(self, old: str) -> str:
        """The UID in the place of another, the same every time."""
        return f"2.25.{int.from_bytes(self._digest('uid', old)[:16], 'big')}"

    def seal(self, source: str | Path) -> str:
        """A name for a source file that tells nothing about it."""
        return self._digest("file", os.path.abspath(source)).hex()

    def apply(self, dataset: Any) -> None:
        """Take a data set's patient away, in place."""
        require()
        profile = _Profile(self.uid)
        dataset.remove_private_tags()
        profile.clean(dataset)
        meta = dataset.file_meta
        for element in [one for one in meta if one.keyword not in (*KEPT_META, "TransferSyntaxUID")]:
            del meta[element.tag]
        if "SOPInstanceUID" in dataset:
            meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.preamble = b"\0" * 128
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = METHOD[:64]
        dataset.LongitudinalTemporalInformationModified = "REMOVED"
        code = pydicom.Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
        code.CodeMeaning = "Basic Application Confidentiality Profile"
        dataset.DeidentificationMethodCodeSequence = [code]

    def row(self, row: Mapping[str, Any], image_key: str, made_key: str, label_key: str) -> dict[str, Any]:
        """An entry of a manifest without source, names, and paths: image, a label that is no text, and the numbers."""
        made = {**row[made_key], "case": self.seal(row[made_key]["source"]), "deidentified": METHOD}
        if self.keep_link:
            return {**row, made_key: made}
        kept = {image_key: row[image_key]}
        if label_key in row and not _has_text(row[label_key]):
            kept[label_key] = row[label_key]
        return {**kept, made_key: {name: made[name] for name in made if name not in ("source", "source_sha256")}}

    def _digest(self, kind: str, text: str) -> bytes:
        return hmac.new(self.key, f"{kind}:{text}".encode(), hashlib.sha256).digest()


def require() -> None:
    """Raises:
    ImportError: without the library that has the profile.
    """
    if not HAS_PROFILE:
        raise ImportError("deidentify: needs dicom-anonymizer; pip install 'monai-smia[deidentify]'")


class _Profile:
    """Table E.1-1 on data sets, and on the data sets in their sequences."""

    def __init__(self, uid: Any) -> None:
        table = tables.dicom_anonymization_database_selector(TABLE)
        self.uid = uid
        self.exact: dict[Any, str] = {}
        self.masked: list[tuple[Any, str]] = []
        for kind, rows in table.items():
            for row in rows if kind != "ALL_TAGS" else ():
                if len(row) == 2:
                    self.exact[pydicom.tag.Tag(row)] = kind
                else:
                    self.masked.append((row, kind))

    def clean(self, dataset: Any) -> None:
        for element in list(dataset):
            kind = self.kind_of(element.tag)
            if kind == "X_TAGS" or (element.VR == "SQ" and kind in ("Z_TAGS", "X_Z_TAGS")):
                del dataset[element.tag]
            elif element.VR == "SQ":
                for item in element.value:
                    self.clean(item)
                    if kind is not None:
                        self._dummies(item)
            elif kind in ("U_TAGS", "X_Z_U_STAR_TAGS") and element.VR == "UI":
                self._hide_uid(element)
            elif kind in ("Z_TAGS", "X_Z_TAGS"):
                element.value = b"" if element.VR in ("OB", "OW", "UN") else None
            elif kind is not None:
                self._dummy(dataset, element)

    def kind_of(self, tag: Any) -> str | None:
        """The table's action for an element, by the library's name of its list; ``None`` to keep it."""
        if (kind := self.exact.get(tag)) is not None:
            return kind
        for (group, number, group_mask, number_mask), kind in self.masked:
            if tag.group & group_mask == group & group_mask and tag.element & number_mask == number & number_mask:
                return kind
        return None

    def _hide_uid(self, element: Any) -> None:
        many = element.VM > 1
        if element.value:
            element.value = [self.uid(one) for one in element.value] if many else self.uid(element.value)

    def _dummies(self, dataset: Any) -> None:
        """Dummy values throughout, but for what says of which class an object is."""
        for element in list(dataset):
            if element.VR == "SQ":
                for item in element.value:
                    self._dummies(item)
            elif element.VR != "UI":
                self._dummy(dataset, element)

    def _dummy(self, dataset: Any, element: Any) -> None:
        try:
            anonymizer.replace_element(element)
        except NotImplementedError:  # a type without a dummy value in the library
            del dataset[element.tag]


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_text(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_text(one) for one in value)
    return isinstance(value, (str, bytes, Path))
