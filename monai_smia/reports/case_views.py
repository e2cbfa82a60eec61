# SPDX-License-Identifier: Apache-2.0
"""`case_view`: one case of an evaluation as people look at it, from what the network was given and what it gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.orientations import aff2axcodes

from monai_smia.attacks.heads import ACTIVATIONS
from monai_smia.intensity import IntensityScale
from monai_smia.reports.case_boxes import boxes_shown
from monai_smia.reports.case_decisions import Head, names_of
from monai_smia.reports.case_tensors import main_tensor
from monai_smia.reports.views import CaseView, as_array


def case_view(
    case: str,
    image: Any,
    adversarial: Mapping[str, Any],
    *,
    clean_output: Any,
    outputs: Mapping[str, Any],
    label: Any,
    activation: str,
    intensity: IntensityScale | None = None,
    label_names: Sequence[str] | Mapping[Any, str] = (),
    detections: bool = False,
) -> CaseView:
    """The view of one sample.

    What an output says depends on its shape and on the head, as in `monai_smia.attacks.heads`:

    ==================================  =============================================================================
    output                              shown
    ==================================  =============================================================================
    ``(C, H, W[, D])``, softmax         map of the class with the largest value
    ``(C, H, W[, D])``, sigmoid         map: channel k, where its p > 0.5, as value k + 1, later channels on top; as
                                        value k where channel 0 is the background, which is where its name says so or
                                        where the label holds class numbers
    ``(C,)``, softmax                   text: ``"pneumonia (p = 0.93)"``, ``"class 2 (p = 0.93)"`` without names
    ``(1,)``, sigmoid                   text: ``"tuberculosis (p = 0.93)"`` or ``"no tuberculosis (p = 0.88)"``, p being
                                        that of what is said
    ``(C,)``, sigmoid                   text: the names of the positive labels, or ``"none"``
    boxes                               boxes
    several (deep supervision)          the first at the image's resolution
    anything else; NaN                  nothing
    ==================================  =============================================================================

    Args:
        case: name, that of the report where it is in there.
        image: ``(C, H, W[, D])``, in network units. Of a volume that is a `MetaTensor`, spacing and orientation come
            from its affine. As MONAI loads a photograph, ``(C, W, H)``, it is shown upright.
        adversarial: run to image, likewise. Runs whose image holds NaN or infinity are left out.
        clean_output: what the network gave for `image`, before postprocessing.
        outputs: run to what the network gave for its adversarial image.
        label: as the loader gave it: class numbers ``(1, H, W[, D])`` (negative ones are shown as background), one-hot
            or multi-label ``(C, H, W[, D])``, a class number, a multi-label or one-hot vector ``(C,)``, boxes, a text,
            or ``None``.
        activation: the head, ``"softmax"``, ``"sigmoid"`` or ``"none"`` (probabilities); not read with `detections`.
        intensity: to show images in its physical unit; ``None`` shows network units.
        label_names: names of the classes or channels: a list, or ``{"0": "background", ...}`` like a bundle's
            ``channel_def``.
        detections: the outputs are decoded boxes: a mapping with ``boxes`` ``(K, 2n)`` and, where there are any,
            labels and scores.

    Raises:
        ValueError: for an unknown activation, and from `CaseView` for an image that holds NaN or an adversarial one of
            another shape. An output or label that cannot be shown raises nothing.
        TypeError: when `label_names` is a single text.

    Example:
        >>> image = torch.zeros(1, 4, 4)
        >>> logits = {"clean": torch.tensor([0.0, 3.0]), "PGD": torch.tensor([2.0, 0.0])}
        >>> names = ["healthy", "pneumonia"]
        >>> view = case_view("a.png", image, {"PGD": image + 0.1}, clean_output=logits["clean"], outputs=logits,
        ...     label=1, activation="softmax", label_names=names)
        >>> view.label, view.clean_prediction, view.predictions["PGD"]
        ('pneumonia', 'pneumonia (p = 0.95)', 'healthy (p = 0.88)')
    """
    if not detections and activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}; got {activation!r}")
    shown = _physical(image, intensity)
    attacked = {run: _physical(value, intensity) for run, value in adversarial.items()}
    attacked = {run: value for run, value in attacked.items() if np.isfinite(value).all()}
    spatial, names = tuple(shown.shape[1:]), names_of(label_names)
    known = next(
        (output for output in (clean_output, *outputs.values()) if main_tensor(output, spatial) is not None), None
    )
    head = Head.of(known, label, spatial=spatial, activation=activation, names=names)

    def said(output: Any) -> Any:
        return boxes_shown(output, len(spatial), names) if detections else head.prediction(output)

    boxed = detections or isinstance(label, Mapping)
    truth = None if label is None else boxes_shown(label, len(spatial), names) if boxed else head.label(label)
    clean = said(clean_output)
    predictions = {run: said(outputs.get(run)) for run in attacked}
    has_maps = any(isinstance(value, np.ndarray) for value in (truth, clean, *predictions.values()))
    spacing, orientation = geometry(image)
    return CaseView(
        case,
        shown,
        attacked,
        clean,
        predictions,
        truth,
        spacing,
        orientation,
        head.classes() if has_maps else (),
    )


def geometry(image: Any) -> tuple[tuple[float, ...] | None, str]:
    """Spacing in mm and orientation of a volume ``(C, H, W, D)`` with an affine; ``(None, "")`` of anything else.

    An affine from voxels to LPS+ is turned to RAS+ where the metadata name that space.

    Example:
        >>> geometry(MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.diag(torch.tensor([-0.5, 0.5, 2.0, 1.0]))))
        ((0.5, 0.5, 2.0), 'LAS')
    """
    if not isinstance(image, MetaTensor) or image.ndim != 4:
        return None, ""
    affine = np.asarray(torch.as_tensor(image.affine).cpu(), dtype=float)
    affine = affine[0] if affine.shape == (1, 4, 4) else affine
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return None, ""
    if image.meta.get("space") == "LPS":
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    if not (spacing > 0).all():
        return None, ""
    letters = aff2axcodes(affine)  # type: ignore[no-untyped-call]
    return tuple(spacing.tolist()), "" if None in letters else "".join(letters)


def _physical(image: Any, intensity: IntensityScale | None) -> np.ndarray[Any, Any]:
    values = as_array(image)
    return values if intensity is None else as_array(intensity.value_to_physical(values))
