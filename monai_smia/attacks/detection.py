# SPDX-License-Identifier: Apache-2.0
"""Detection: what makes MONAI's `RetinaNetDetector` attackable, one image a sample, in 2-D and 3-D."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.utils.detector_utils import check_training_targets, preprocess_images
from monai.apps.detection.utils.predict_utils import predict_with_inferer
from monai.data.box_utils import is_valid_box_values
from monai.inferers import SimpleInferer
from monai.utils import convert_to_tensor
from torch import nn

from monai_smia.attacks import checks
from monai_smia.attacks.losses import per_sample
from monai_smia.attacks.nested import map_tensors

Boxes = dict[str, torch.Tensor]
"""Boxes and labels of one image, under the detector's own keys; of a detection also its scores."""


class HeadOutputs(NamedTuple):
    """What a detector says of a batch before it chooses boxes: N anchors in all, K classes, R spatial axes.

    It starts with no tensor, so that nothing takes it for a classifier's output.

    Attributes:
        locations: how many voxels the map of each level has.
        classification: logits, ``(B, N, K)``.
        box_regression: codes of the boxes relative to the anchors, ``(B, N, 2R)``.
        anchors: corners in voxels, ``(B, N, 2R)``, the same for each image.
        size: spatial size of the images before padding, ``(B, R)``.
    """

    locations: tuple[int, ...]
    classification: torch.Tensor
    box_regression: torch.Tensor
    anchors: torch.Tensor
    size: torch.Tensor


class DetectorHeads(nn.Module):
    """A detector as a network from image to `HeadOutputs`, which an attack can differentiate and slice by image.

    The detector's own forward pass gives, in train mode, one loss for the whole batch and, in eval mode, boxes without
    a gradient. Here its network runs in whatever mode it is in, eval mode inside an attack, so that BatchNorm and
    dropout rest while the losses of training are computed. The detector itself is not changed, its anchors included.

    Args:
        detector: what is attacked.
        use_inferer: predict through the sliding window set with ``detector.set_sliding_window_inferer``. An attack's
            own `inferer` cannot: it would blend anchors.

    Raises:
        TypeError: when `detector` is something else.
        ValueError: when `use_inferer` is set and the detector has no inferer.

    Example:
        .. code-block:: python

            heads = DetectorHeads(detector)  # a RetinaNetDetector with a matcher
            attack = PGD(DetectionLoss(heads), eps=8 / 255, bounds=(0.0, 1.0), criterion=BoxesMissed(heads))
            result = attack(heads, images, [{"boxes": boxes, "labels": labels}, ...])  # images BCHW[D]
            heads.detections(heads.eval()(result.adversarial))

        In MONAI's engines it is the network; targets stay whole, boxes are chosen after the iteration:

        .. code-block:: python

            evaluator = AttackEvaluator(
                device, loader, network=heads, attacks={"pgd": attack}, decollate=False,
                prepare_batch=lambda batch, device, *_, **__: (batch["image"].to(device), batch["label"]),
                postprocessing=lambda data: {**data, "pred": heads.detections(data["pred"])}, ...
            )

    Attacks that resize the image (`DIFGSM`) do not move its boxes.

    Reference: Lin, Goyal, Girshick, He, Dollar, "Focal loss for dense object detection", ICCV 2017,
    https://arxiv.org/abs/1708.02002.
    """

    def __init__(self, detector: RetinaNetDetector, *, use_inferer: bool = False) -> None:
        super().__init__()
        if not isinstance(detector, RetinaNetDetector):
            raise TypeError(f"detector: expected a RetinaNetDetector; got {type(detector).__name__}")
        if use_inferer and detector.inferer is None:
            raise ValueError("use_inferer: the detector has no inferer; call its set_sliding_window_inferer first")
        self.detector = detector
        self.use_inferer = use_inferer

    def forward(self, image: torch.Tensor) -> HeadOutputs:
        """The outputs of classification and regression head at `image`, ``BCHW[D]``, padded as the detector does."""
        detector = self.detector
        images, sizes = preprocess_images(image, detector.spatial_dims, detector.size_divisible)
        keys = [detector.cls_key, detector.box_reg_key]
        inferer: Any = detector.inferer if self.use_inferer else SimpleInferer()
        maps = predict_with_inferer(images, detector.network, keys, inferer)
        scores, codes = ([self._by_anchor(level) for level in maps[key]] for key in keys)
        # a copy: the generator remembers the precision that it was last asked for
        generator = copy.copy(detector.anchor_generator)
        anchors, *_ = generator(images, [_single(level) for level in maps[detector.cls_key]])
        return HeadOutputs(
            locations=tuple(level.shape[2:].numel() for level in maps[detector.cls_key]),
            classification=torch.cat(scores, 1),
            box_regression=torch.cat(codes, 1),
            anchors=anchors.expand(len(image), *anchors.shape),
            size=torch.tensor(sizes, device=image.device),
        )

    def losses(
        self, prediction: HeadOutputs, targets: Sequence[Boxes], seed: int | None = None
    ) -> dict[str, torch.Tensor]:
        """The detector's losses of training, by its own keys.

        Args:
            prediction: what this network gives.
            targets: boxes and labels, one dictionary per image.
            seed: of the sampler's draws; ``None`` draws from torch's global random state, as MONAI does.

        Raises:
            TypeError: when `prediction` is something else.
            ValueError: when a target's boxes or labels are malformed.
        """
        outputs, truths = self._outputs(prediction), self.truths(prediction, targets)
        draws = nullcontext() if seed is None else _seeded(seed, prediction.anchors.device)
        with draws:
            return dict(self.detector.compute_loss(outputs, truths, list(prediction.anchors), prediction.locations))

    @torch.no_grad()
    def detections(self, prediction: HeadOutputs, min_score: float = 0.0) -> list[Boxes]:
        """The boxes, labels and scores that the detector chooses in eval mode, one dictionary per image.

        Args:
            prediction: what this network gives.
            min_score: boxes of a lower score are left out; the detector's own threshold holds too.
        """
        detector, prediction = self.detector, map_tensors(prediction, torch.Tensor.detach)
        chosen = detector.postprocess_detections(
            self._outputs(prediction), list(prediction.anchors), prediction.size.tolist(), prediction.locations
        )
        kept = [boxes[detector.pred_score_key] >= min_score for boxes in chosen]
        return [{key: value[k] for key, value in boxes.items()} for boxes, k in zip(chosen, kept, strict=True)]

    def truths(self, prediction: HeadOutputs, targets: Sequence[Boxes]) -> list[Boxes]:
        """`targets` checked, as plain tensors in the prediction's precision and on its device.

        Raises:
            ValueError: when boxes or labels are missing or malformed, or a label is no class of the detector.
        """
        detector, classes = self.detector, prediction.classification.shape[-1]
        keys = detector.target_label_key, detector.target_box_key
        known = [dict(target) for target in targets]  # a copy: MONAI's check replaces what is empty
        known = check_training_targets(prediction.classification, known, detector.spatial_dims, *keys)
        truths = []
        for target in known:
            labels, boxes = (convert_to_tensor(target[key], device=prediction.anchors.device) for key in keys)
            if labels.shape != boxes.shape[:1] or bool(((labels < 0) | (labels >= classes)).any()):
                raise ValueError(
                    f"expected {len(boxes)} labels, one per box, in [0, {classes}), the detector's classes; "
                    f"got {labels.tolist()}"
                )
            if not is_valid_box_values(boxes):
                raise ValueError(f"expected boxes whose low corner comes first; got {boxes.tolist()}")
            truths.append(dict(zip(keys, (labels, boxes.to(prediction.anchors.dtype)), strict=True)))
        return truths

    def _by_anchor(self, level: torch.Tensor) -> torch.Tensor:
        """``(B, A * C, H, W[, D])`` as ``(B, H * W [* D] * A, C)``, the order of the anchors."""
        split = level.reshape(len(level), self.detector.num_anchors_per_loc, -1, level.shape[2:].numel())
        return split.permute(0, 3, 1, 2).flatten(1, 2)

    def _outputs(self, prediction: HeadOutputs) -> dict[str, torch.Tensor]:
        if not isinstance(prediction, HeadOutputs):
            raise TypeError(
                "prediction: expected HeadOutputs; attack DetectorHeads(detector), not the detector; "
                f"got {type(prediction).__name__}"
            )
        keys = self.detector.cls_key, self.detector.box_reg_key
        return dict(zip(keys, (prediction.classification, prediction.box_regression), strict=True))


@dataclass(frozen=True)
class DetectionLoss:
    r"""The detector's training loss of one image, a deterministic function of prediction and boxes.

    .. math:: J = w_c\, J_\text{classification} + w_b\, J_\text{box regression}

    Matcher, sampler, box coder and both losses are the detector's own. The sampler, which draws the negative anchors
    from torch's global random state, is given the same seed for each image and each step, and the global state back
    afterwards: the loss does not change between two looks at one image, nor with the image's batch mates.

    Args:
        heads: the network that is attacked.
        classification_weight, box_weight: :math:`w_c, w_b \ge 0`.
        seed: of the sampler's draws. With it ``torch.manual_seed(seed)`` before the detector's own forward pass in
            train mode gives the same number for one image.

    Raises:
        TypeError, ValueError: when `heads` is something else or its detector has no matcher; when a weight is negative.

    Example:
        .. code-block:: python

            loss = DetectionLoss(heads, box_weight=0.5)
            loss(heads(image), [{"boxes": boxes, "labels": labels}])  # one image

    Deviations: made for one image at a time, as attacks call it; for a batch it is MONAI's mean over all its anchors.
    """

    heads: DetectorHeads = field(repr=False)
    classification_weight: float = 1.0
    box_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_heads(self.heads)
        checks.as_numbers("classification_weight", self.classification_weight, low=0.0)
        checks.as_numbers("box_weight", self.box_weight, low=0.0)
        checks.as_count("seed", self.seed, low=0)
        if not hasattr(self.heads.detector, "proposal_matcher"):
            raise ValueError(
                "heads: the detector has no matcher for its losses; call its set_regular_matcher or set_atss_matcher"
            )

    def __call__(self, prediction: HeadOutputs, target: Sequence[Boxes]) -> torch.Tensor:
        """The loss, a number, of a prediction with its list of boxes."""
        detector, losses = self.heads.detector, self.heads.losses(prediction, target, self.seed)
        return self.classification_weight * losses[detector.cls_key] + self.box_weight * losses[detector.box_reg_key]


@dataclass(frozen=True)
class DetectionDivergence:
    r"""SMIA's divergence for detectors: the loss towards the boxes that the twin's prediction holds.

    .. math:: D(f(x), f(\tilde x)) = J(f(x), \operatorname{boxes} f(\tilde x))

    While the twin still shows the true boxes, deviation and stabilization are about :math:`(1 - \lambda) J`: a
    `stabilization_weight` of 1 hardly moves, one under 1 does.

    Args:
        loss_function: J.
        score: lowest score, in [0, 1], of a box of the twin that counts. Where none does, D is the loss of an image
            without boxes.

    Example:
        .. code-block:: python

            loss = DetectionLoss(heads)
            attack = SMIA(loss, eps=0.03, divergence=DetectionDivergence(loss), criterion=BoxesMissed(heads))
    """

    loss_function: DetectionLoss
    score: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.loss_function, DetectionLoss):
            raise TypeError(f"loss_function: expected a DetectionLoss; got {type(self.loss_function).__name__}")
        check_share("score", self.score)

    def __call__(self, prediction: HeadOutputs, twin: HeadOutputs, target: Any) -> torch.Tensor:
        """The divergence of each image, ``(B,)``; the target is not looked at."""
        boxes = self.loss_function.heads.detections(twin, self.score)
        return per_sample(self.loss_function, prediction, boxes, len(boxes))


def _single(value: torch.Tensor) -> torch.Tensor:
    """In single precision at least: half precision has no room for the corners of anchors."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def check_heads(heads: Any) -> None:
    """Refuse what is no `DetectorHeads`, above all the detector itself."""
    if not isinstance(heads, DetectorHeads):
        raise TypeError(f"heads: expected DetectorHeads(detector); got {type(heads).__name__}")


def check_share(name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1]."""
    number = checks.as_numbers(name, value, low=0.0)
    if not isinstance(number, float) or number > 1:
        raise ValueError(f"{name}: expected a number in [0, 1]; got {value!r}")


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generator of this device started from `seed`, and afterwards where it was."""
    generator = torch.default_generator
    if device.type != "cpu":
        generator = torch.get_device_module(device).default_generators[device.index]
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        yield
    finally:
        generator.set_state(state)
