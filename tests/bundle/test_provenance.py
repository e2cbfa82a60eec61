# SPDX-License-Identifier: Apache-2.0
"""The checksum of a data list."""

from __future__ import annotations

from pathlib import Path

from monai.data import Dataset

from monai_smia.bundle.provenance import data_checksum


def test_texts_of_any_length_are_told_apart(tmp_path: Path) -> None:
    """A text longer than a file's name may be is no file."""
    (tmp_path / "a.nii").write_bytes(b"1")
    one, other = ([{"image": str(tmp_path / "a.nii"), "text": word * 300}] for word in ("x", "y"))
    assert data_checksum(Dataset(one)) == data_checksum(Dataset(one)) != data_checksum(Dataset(other))
