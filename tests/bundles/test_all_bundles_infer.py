"""Every bundle's inference: one output per image, on the image's own pixels, with a network whose output is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import known_networks
import nibabel as nib
import numpy as np
import pytest
import tiny_data
import torch
from bundle_runs import Trained
from PIL import Image

LABELS = {"chest_xray_segmentation": "lung_masks", "endoscopy_polyp_segmentation": "masks"}


@pytest.fixture
def files(trained: Trained, tmp_path: Path) -> list[Path]:
    """What inference writes when the known network is the model."""
    (tmp_path / "models").mkdir()
    torch.save(known_networks.Known.weights(), tmp_path / "models" / "model.pt")
    more = {"ckpt_dir": str(tmp_path / "models"), "network_def": trained.row.known}
    return trained.infer(tmp_path / "out", **more)


def test_outputs_are_right_and_lie_where_they_should(trained: Trained, files: list[Path]) -> None:
    check = {"classification": classes, "detection": boxes, "segmentation": masks}[trained.row.name.split("_")[-1]]
    check(trained, files)


def classes(trained: Trained, files: list[Path]) -> None:
    """A row for each image, with the probabilities that its colours mean."""
    (table,) = files
    rows = {Path(name).name: list(map(float, values)) for name, *values in csv.reader(table.open())}
    images = sorted((trained.data / "images").iterdir())
    assert list(rows) == [image.name for image in images]
    for image in images:
        means = np.asarray(Image.open(image), float).reshape(-1, len(Image.open(image).getbands())).mean(0) / 255
        logits = torch.tensor(known_networks.GAIN * (means - 0.3))
        expected = logits.sigmoid() if len(logits) == 1 else logits.softmax(0)
        assert rows[image.name] == pytest.approx(expected.tolist(), abs=2e-3)


def boxes(trained: Trained, files: list[Path]) -> None:
    """The squares themselves, in the pixels of the file."""
    numbers = {name: number for _, number, name in tiny_data.cases()}
    assert [path.stem for path in files] == sorted(numbers)
    for path in files:
        content = json.loads(path.read_text())
        assert content["image"] == f"{path.stem}.png"
        found = sorted(entry["box"] for entry in content["boxes"])
        assert found == [list(map(pytest.approx, box)) for box in sorted(tiny_data.polyp_boxes(numbers[path.stem]))]
        assert {entry["class"] for entry in content["boxes"]} == {"polyp"}
        scores = [entry["score"] for entry in content["boxes"]]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) > 0.9


def masks(trained: Trained, files: list[Path]) -> None:
    """The blocks themselves: volumes voxel by voxel, and pictures, which were resized on the way, but for an edge."""
    names = sorted(name for _, _, name in tiny_data.cases())
    for name in names:
        (path,) = [path for path in files if path.name.startswith(name)]
        if path.suffix == ".png":
            label = trained.data / LABELS[trained.row.name] / f"{name}.png"
            found, expected = np.asarray(Image.open(path)), np.asarray(Image.open(label))
            assert found.dtype == np.uint8
            assert found.shape == expected.shape
            assert set(np.unique(found)) == {0, 255}
            assert (found != expected).mean() < 0.02
        else:
            label = trained.data / ("labelsTr" if trained.row.images != "." else ".")
            label = label / (f"{name}.nii.gz" if trained.row.images != "." else f"{name}_lungs.nii.gz")
            found, expected = nib.load(path), nib.load(label)
            assert found.get_data_dtype() == np.uint8
            np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert len(files) == len(names)


def test_the_bundle_s_own_network_gives_as_many(trained: Trained, files: list[Path], tmp_path: Path) -> None:
    own = trained.infer(tmp_path / "own")
    assert [path.name for path in own] == [path.name for path in files]
