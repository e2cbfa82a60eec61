"""Tiny data sets in the layouts that the bundles read: bright blocks on a dark ground, of one seed.

`known_networks` finds the blocks without training, so that what a bundle should say of them is known. Shapes are not
square and the blocks lie off the middle: a transposed, flipped or rescaled result cannot be equal to the right one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

CASES = {"training": 4, "validation": 2, "test": 3}
CHEST_SIZE, FUNDUS_SIZE, FRAME_SIZE = (128, 96), (96, 80), (256, 192)  # width, height
SQUARES = (((28, 76),), ((92, 44),), ((36, 20), (84, 100)), ((76, 92),))
"""Centres of the polyps of each frame in turn, in the pixels of a frame resized to 128 x 128; each is 32 x 32."""


def cases() -> Iterator[tuple[str, int, str]]:
    """Split, number in the split and name of each case."""
    for split, count in CASES.items():
        for number in range(count):
            yield split, number, f"{split}{number}"


def chest(folder: Path) -> None:
    """X-rays whose lung mask is the block; one with tuberculosis has a large block."""
    (folder / "images").mkdir(parents=True)
    (folder / "lung_masks").mkdir()
    listed: dict[str, list[dict[str, Any]]] = {split: [] for split in CASES}
    for split, number, name in cases():
        ill, (width, height) = number % 2, CHEST_SIZE
        mask = np.zeros((height, width), bool)
        mask[6 : 84 if ill else 54, 8 : 96 if ill else 40] = True
        image = np.where(mask, 250, noise(name, mask.shape, 0, 30)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "lung_masks" / f"{name}.png")
        listed[split].append({"image": f"images/{name}.png", "label": f"lung_masks/{name}.png", "tuberculosis": ill})
    (folder / "dataset.json").write_text(json.dumps(listed))


def fundus(folder: Path) -> None:
    """Photographs whose brightest colour is the grade: red 0, green 1, blue 2."""
    (folder / "images").mkdir(parents=True)
    listed: dict[str, list[dict[str, Any]]] = {split: [] for split in CASES}
    for split, number, name in cases():
        image = noise(name, (FUNDUS_SIZE[1], FUNDUS_SIZE[0], 3), 20, 60)
        image[..., number % 3] += 120
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{name}.png")
        listed[split].append({"image": f"images/{name}.png", "grade": number % 3, "patient": name})
    (folder / "dataset.json").write_text(json.dumps(listed))


def polyps(folder: Path) -> None:
    """Frames with bright squares (`SQUARES`) and their masks."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    listed: dict[str, list[dict[str, Any]]] = {split: [] for split in CASES}
    for split, number, name in cases():
        mask = np.zeros(FRAME_SIZE[::-1], bool)
        for x1, y1, x2, y2 in polyp_boxes(number):
            mask[y1:y2, x1:x2] = True
        image = np.where(mask[..., None], 250, noise(name, (*mask.shape, 3), 0, 30)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
        listed[split].append({"image": f"images/{name}.png", "label": f"masks/{name}.png"})
    (folder / "dataset.json").write_text(json.dumps(listed))


def polyp_boxes(number: int) -> list[tuple[int, int, int, int]]:
    """x1, y1, x2, y2 of the polyps of a frame, in its own pixels."""
    across, down = (side / 128 for side in FRAME_SIZE)
    return [
        (int((x - 16) * across), int((y - 16) * down), int((x + 16) * across), int((y + 16) * down))
        for x, y in SQUARES[number]
    ]


def artefacts(folder: Path) -> None:
    """EAD-2019: the frames of `polyps` beside YOLO texts, as many as the rule needs for all three splits."""
    folder.mkdir(parents=True)
    for i in range(12):
        lines, image = [], noise(str(i), (FRAME_SIZE[1], FRAME_SIZE[0], 3), 0, 30)
        for x1, y1, x2, y2 in polyp_boxes(i % 4):
            image[y1:y2, x1:x2] = 250
            numbers = ((x1 + x2) / 512, (y1 + y2) / 384, (x2 - x1) / 256, (y2 - y1) / 192)
            lines.append(" ".join(map(str, (i % 7, *numbers))))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:05}.png")
        (folder / f"{i:05}.txt").write_text("\n".join(lines))


def hippocampus(folder: Path) -> None:
    """Volumes with two blocks, grey and bright, stored from right to left and from front to back."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    listed: dict[str, list[dict[str, str]]] = {split: [] for split in CASES}
    for split, _, name in cases():
        image, label = volume(name, (14, 30, 11))
        for part, voxels in (("imagesTr", image * 400), ("labelsTr", label)):
            save(voxels, (1.0, 1.0, 1.0), folder / part / f"{name}.nii.gz")
        listed[split].append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps(listed))


def lungs(folder: Path) -> None:
    """CTs in HU, on the grid that the bundle resamples to, of a size that its network takes whole."""
    folder.mkdir(parents=True)
    for _, _, name in cases():
        image, label = volume(name, (48, 32, 16))
        for part, voxels in (("image", image * 1400 - 1000), ("lungs", label)):
            save(voxels, (2.5, 2.5, 5.0), folder / f"{name}_{part}.nii.gz")


def volume(name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An image in [0, 1], exactly from 0 to 1, and its label: 1 where it is near 0.5, 2 where it is near 1.

    The block of 1 is longer from case to case.
    """
    label = np.zeros(shape, np.uint8)
    label[2:6, 3 : 12 + 5 * int(name[-1]), 2:9] = 1
    label[7:12, 4:10, 4:10] = 2
    image = label / 2 + noise(name, shape, -0.04, 0.04)
    image.flat[0], image[9, 6, 6] = 0.0, 1.0
    return image.clip(0, 1), label


def save(voxels: np.ndarray, spacing: tuple[float, ...], path: Path) -> None:
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    kind = np.uint8 if voxels.dtype == np.uint8 else np.float32
    nib.save(nib.Nifti1Image(voxels.astype(kind), affine), path)


def noise(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    return np.random.default_rng(list(name.encode())).uniform(low, high, shape)
