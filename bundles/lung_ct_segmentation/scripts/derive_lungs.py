# SPDX-License-Identifier: Apache-2.0
"""Left and right lung of a chest CT by thresholds, components and morphology: the labels this bundle learns from.

Everything here works on arrays in HU in RAS order: first axis to the patient's right, second to the front, third to the
head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LEFT, RIGHT = 1, 2
AIR_HU = -400.0

Mask = NDArray[np.bool_]


def derive_lungs(
    hu: NDArray[np.number], spacing: Sequence[float], tumour: Mask | None = None, closing_mm: float = 8.0
) -> NDArray[np.uint8]:
    """Label the patient's left (1) and right (2) lung.

    Air below -400 HU inside the body, without the trachea and the main bronchi, in its two largest parts (split where
    they touch); the parts of `tumour` that touch a lung join that lung; then closing and hole filling slice by slice
    take the vessels in.

    Args:
        hu: CT in HU, shape `(X, Y, Z)` in RAS order.
        spacing: voxel size in mm along X, Y, Z.
        tumour: mask of `hu`'s shape, lesions to count as lung where they touch it; None for none.
        closing_mm: radius in mm of the closing within a slice.

    Returns:
        uint8 array of `hu`'s shape: 0 background, 1 left lung, 2 right lung.

    Raises:
        ValueError: `hu` is not 3-D, `tumour` has another shape, or fewer than two lungs are found.

    Example:
        >>> ct = np.full((60, 40, 8), -1000.0); ct[5:55, 5:35] = 40.0   # a body in air
        >>> ct[10:25, 10:30] = ct[35:50, 10:30] = -850.0                # with two lungs
        >>> np.bincount(derive_lungs(ct, (5.0, 5.0, 5.0)).ravel()).tolist()
        [14400, 2400, 2400]
    """
    hu = np.asarray(hu)
    if hu.ndim != 3:
        raise ValueError(f"hu: expected an array of 3 axes (X, Y, Z), got shape {hu.shape}")
    if tumour is not None and tumour.shape != hu.shape:
        raise ValueError(f"tumour: expected the shape of hu, {hu.shape}, got {tumour.shape}")
    body = body_mask(hu, spacing)
    airway = airway_mask(hu, body, spacing)
    air = (hu < AIR_HU) & body & ~grow(airway, 1.5, spacing)
    lungs = two_lungs(air, spacing)
    lesions = lesions_by_side(lungs, tumour, spacing) if tumour is not None else [np.zeros_like(air)] * 2
    # a lesion is anatomy drawn by hand: neither closing nor the airway takes it away from its side
    closed = [
        close_slices(lung | lesion, closing_mm, spacing) & body for lung, lesion in zip(lungs, lesions, strict=True)
    ]
    wall = grow(airway, 1.5, spacing)
    left, right = (fill_slices((mask & ~wall) | lesion) for mask, lesion in zip(closed, lesions, strict=True))
    both = left & right
    if both.any():
        nearer_left = distance_to(lungs[0], spacing) <= distance_to(lungs[1], spacing)
        left, right = left & ~(both & ~nearer_left), right & ~(both & nearer_left)
    return (left * LEFT + right * RIGHT).astype(np.uint8)


def body_mask(hu: NDArray[np.number], spacing: Sequence[float]) -> Mask:
    """The largest dense part of each axial slice, filled: the air outside the patient is not in it."""
    out = np.zeros(hu.shape, bool)
    disc = ellipsoid(2.5, spacing[:2])
    for z in range(hu.shape[2]):
        dense = ndimage.binary_opening(hu[..., z] > AIR_HU, disc)
        out[..., z] = ndimage.binary_fill_holes(largest(dense, 1)[0]) if dense.any() else False
    return out


def airway_mask(hu: NDArray[np.number], body: Mask, spacing: Sequence[float]) -> Mask:
    """Trachea and main bronchi, followed slice by slice from the top; empty when no trachea is found.

    The first air part (from the head) of 0.3 to 8 cm2 within 45 mm of the body's middle that can be followed for 25 mm
    is the trachea. In each next slice the air parts that touch it go on, at the first threshold at which they are small
    and have a wall of tissue (a patch of thin lung has none), down to 40 mm below the carina.
    """
    depth = max(2, round(25.0 / spacing[2]))
    for z in range(hu.shape[2] - 1, depth - 1, -1):
        for seed in _tracheal_sections(hu[..., z], body[..., z], spacing):
            track = _follow_down(hu, body, seed, z, spacing)
            if track[..., z - depth].any():
                return track
    return np.zeros(hu.shape, bool)


def two_lungs(air: Mask, spacing: Sequence[float]) -> list[Mask]:
    """Patient's left and right lung: the two largest parts of `air`, or its largest cut at its thinnest place."""
    parts = largest(air, 2)
    if not parts or parts[0].sum() * np.prod(spacing) < 1e4:
        raise ValueError("hu: expected two lungs of air below -400 HU inside a body, found none; is the image in HU?")
    if len(parts) < 2 or parts[1].sum() < 0.15 * parts[0].sum():
        parts = split_touching(parts[0], spacing)
    return sorted(parts, key=lambda part: float(np.nonzero(part)[0].mean()))  # RAS: the left lung has the smaller x


def split_touching(air: Mask, spacing: Sequence[float]) -> list[Mask]:
    """Cut one part into two: erode until two large parts remain, then give each voxel to the nearer of them."""
    inside = ndimage.distance_transform_edt(air, sampling=spacing)
    for depth in np.arange(0.5, 15.0, 0.5) * min(spacing):
        cores = largest(inside > depth, 2)
        if len(cores) == 2 and cores[1].sum() > 0.15 * cores[0].sum():
            nearer = distance_to(cores[0], spacing) <= distance_to(cores[1], spacing)
            return [air & nearer, air & ~nearer]
    raise ValueError("hu: expected two lungs, found one region of air that no erosion separates into two")


def lesions_by_side(lungs: list[Mask], tumour: Mask, spacing: Sequence[float]) -> list[Mask]:
    """The parts of `tumour` that touch a lung, for the lung with which they share the longer border."""
    out = [np.zeros_like(lung) for lung in lungs]
    reach = 1.5 * max(spacing[:2])
    labels, count = ndimage.label(tumour, np.ones((3, 3, 3)))
    for index in range(1, count + 1):
        part = labels == index
        near = grow(part, reach, spacing)
        shared = [int((near & lung).sum()) for lung in lungs]
        if max(shared) > 0:
            out[int(np.argmax(shared))] |= part
    return out


def close_slices(mask: Mask, radius_mm: float, spacing: Sequence[float]) -> Mask:
    """Closing by a disc and hole filling in each axial slice, as if the picture went on outside its frame."""
    pad = [int(radius_mm / s) + 2 for s in spacing[:2]]
    out = np.zeros_like(mask)
    for z in np.flatnonzero(mask.any((0, 1))):
        box = ndimage.find_objects(mask[..., z].astype(np.uint8))[0]
        padded = np.pad(mask[..., z][box], [(pad[0], pad[0]), (pad[1], pad[1])])
        dilated = distance_to(padded, spacing[:2]) <= radius_mm + 1e-6
        closed = distance_to(~dilated, spacing[:2]) > radius_mm + 1e-6
        out[..., z][box] = ndimage.binary_fill_holes(closed)[pad[0] : -pad[0], pad[1] : -pad[1]]
    return out


def fill_slices(mask: Mask) -> Mask:
    """Fill the holes of each axial slice."""
    return np.stack([ndimage.binary_fill_holes(mask[..., z]) for z in range(mask.shape[2])], -1)


def largest(mask: Mask, count: int) -> list[Mask]:
    """The `count` largest parts connected by faces, the largest first; fewer when there are fewer."""
    labels, found = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=found + 1)[1:]
    return [labels == index + 1 for index in np.argsort(sizes, kind="stable")[::-1][:count]]


def grow(mask: Mask, radius_mm: float, spacing: Sequence[float]) -> Mask:
    """Dilation by an ellipsoid of `radius_mm`."""
    return np.asarray(ndimage.binary_dilation(mask, ellipsoid(radius_mm, spacing))) if mask.any() else mask.copy()


def distance_to(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Distance in mm of each voxel to `mask`."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing))


def ellipsoid(radius_mm: float, spacing: Sequence[float]) -> Mask:
    """A ball of `radius_mm` on a grid of `spacing` mm, in as many dimensions as `spacing` has numbers."""
    half = [int(radius_mm / s) for s in spacing]
    grid = np.meshgrid(*(np.arange(-h, h + 1) * s for h, s in zip(half, spacing, strict=True)), indexing="ij")
    return np.asarray(sum(g**2 for g in grid) <= radius_mm**2 + 1e-6)


def _tracheal_sections(hu: NDArray[np.number], body: Mask, spacing: Sequence[float]) -> Iterator[Mask]:
    """Air parts of one slice that may be the trachea, the most central first."""
    air = (hu < AIR_HU - 100) & body
    labels, count = ndimage.label(air)
    if count == 0:
        return
    middle = np.nonzero(body)[0].mean()
    areas = ndimage.sum_labels(air, labels, np.arange(1, count + 1)) * spacing[0] * spacing[1]
    offsets = [abs(c[0] - middle) * spacing[0] for c in ndimage.center_of_mass(air, labels, np.arange(1, count + 1))]
    for index in np.argsort(offsets):
        if 30.0 <= areas[index] <= 800.0 and offsets[index] <= 45.0:
            yield labels == index + 1


def _follow_down(hu: NDArray[np.number], body: Mask, seed: Mask, top: int, spacing: Sequence[float]) -> Mask:
    """The airway below `seed`, slice by slice, to 40 mm below the first slice where it has two branches."""
    out = np.zeros(hu.shape, bool)
    out[..., top] = seed
    bottom = 0
    for z in range(top - 1, -1, -1):
        near = grow(out[..., z + 1], 2.5, spacing[:2])
        out[..., z] = _airway_section(hu[..., z], body[..., z], near, spacing[:2])
        branches = ndimage.label(out[..., z])[1]
        if branches > 1 and bottom == 0:
            bottom = max(1, z - round(40.0 / spacing[2]))
        if branches == 0 or z <= bottom:
            break
    return out


def _airway_section(hu: NDArray[np.number], body: Mask, near: Mask, spacing: Sequence[float]) -> Mask:
    """The air parts of one slice that touch `near`, each at the first threshold at which it is an airway's section."""
    found = np.zeros(hu.shape, bool)
    for threshold in (-500.0, -700.0, -850.0, -930.0):
        labels, _ = ndimage.label((hu < threshold) & body & ~found)
        for index in np.unique(labels[near & (labels > 0)]):
            part = labels == index
            if 15.0 <= part.sum() * spacing[0] * spacing[1] <= 500.0 and _wall_hu(hu, part, spacing) > -380.0:
                found |= part
    return found


def _wall_hu(hu: NDArray[np.number], part: Mask, spacing: Sequence[float]) -> float:
    """Mean HU of the ring of 3 mm around a part of one slice."""
    ring = grow(part, 3.0, spacing) & ~part
    return float(hu[ring].mean()) if ring.any() else float("nan")
