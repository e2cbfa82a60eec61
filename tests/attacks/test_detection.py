"""Detection against MONAI's own detector: its losses of training, its boxes, its matching."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import contract
import networks
import pytest
import torch
from detectors import EPS, IOU, attack_on, copied, own_boxes, own_losses
from evaluators import generator
from monai.apps.detection.metrics.matching import matching_batch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.data.box_utils import box_iou
from monai.losses import BoxGIoULoss, FocalLoss

from monai_smia.attacks import BIM, PGD, SMIA, Attack, GaussianNoise, SegPGD
from monai_smia.attacks.detection import DetectionDivergence, DetectionLoss, DetectorHeads
from monai_smia.attacks.detection_criteria import BoxesMissed, FalsePositives

ranks = pytest.mark.parametrize("rank", [2, 3])


def default_sampler(detector: RetinaNetDetector) -> None:
    """As built: the hard negative sampler."""


def balanced_sampler(detector: RetinaNetDetector) -> None:
    detector.set_balanced_sampler(12, 0.25)


def focal_without_sampler(detector: RetinaNetDetector) -> None:
    detector.fg_bg_sampler = None
    detector.set_cls_loss(FocalLoss(gamma=2.0))


def atss_and_giou(detector: RetinaNetDetector) -> None:
    detector.set_atss_matcher(num_candidates=4)
    detector.set_box_regression_loss(BoxGIoULoss(reduction="mean"), encode_gt=False, decode_pred=True)


def keys_of_ones_own(detector: RetinaNetDetector) -> None:
    detector.set_target_keys("box", "label")


SETTINGS = [default_sampler, balanced_sampler, focal_without_sampler, atss_and_giou, keys_of_ones_own]


@pytest.mark.parametrize("change", SETTINGS)
@ranks
def test_the_loss_of_an_image_is_the_detectors_own(rank: int, change: Callable[..., None]) -> None:
    heads, images, targets = copied(rank)
    change(heads.detector)
    box, label = heads.detector.target_box_key, heads.detector.target_label_key
    targets = [{box: target["boxes"], label: target["labels"]} for target in targets]
    loss = DetectionLoss(heads, classification_weight=2.0, box_weight=0.5, seed=3)
    heads.eval()
    for i in range(len(images)):
        own = own_losses(heads, images[i : i + 1], targets[i : i + 1], seed=3)
        expected = 2 * own["classification"] + 0.5 * own["box_regression"]
        prediction = heads(images[i : i + 1])
        assert torch.equal(loss(prediction, targets[i : i + 1]), expected)
        assert bool(expected > 0)
        assert prediction.classification.requires_grad
    batch = heads.losses(heads(images), targets, seed=3)
    own = own_losses(heads, images, targets, seed=3)
    torch.testing.assert_close(batch, own)


@pytest.mark.parametrize("use_inferer", [False, True])
@ranks
def test_the_boxes_are_the_detectors_own(rank: int, use_inferer: bool) -> None:
    heads, images, targets = copied(rank)
    heads.detector.set_sliding_window_inferer(roi_size=12, overlap=0.25, sw_batch_size=4)
    heads = DetectorHeads(heads.detector, use_inferer=use_inferer).eval()
    found = heads.detections(heads(images))
    expected = own_boxes(heads, images, use_inferer=use_inferer)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert torch.equal(value, theirs[key])
    assert any(len(boxes["boxes"]) > 0 for boxes in found)
    confident = heads.detections(heads(images), min_score=0.3)
    kept = [boxes["labels"][boxes["labels_scores"] >= 0.3] for boxes in expected]
    assert [boxes["labels"].tolist() for boxes in confident] == [labels.tolist() for labels in kept]
    if not use_inferer:
        criterion = BoxesMissed(heads, iou=IOU, score=0.3)
        assert criterion.found(heads(images), targets).tolist() == [1.0] * len(images)
    result = attack_on(heads, BIM, steps=2)(heads, images, targets)
    assert bool((result.loss > result.clean_loss).all())


@pytest.mark.parametrize("kind", [PGD, SMIA])
@ranks
def test_an_attack_beats_noise_of_its_size(rank: int, kind: Callable[..., Attack]) -> None:
    """What the result says is what the detector itself says of the image; noise hides nothing, the attack does."""
    heads, images, targets = copied(rank)
    result = attack_on(heads, kind, steps=8)(heads, images, targets)
    noise = attack_on(heads, GaussianNoise)(heads, images, targets)
    assert float((result.adversarial - images).abs().max()) <= EPS * (1 + 1e-6)
    assert bool((result.loss > 2 * noise.loss)[:-1].all())  # the last image shows nothing that could be hidden
    assert not result.clean_success.any()
    assert int(result.success.sum()) > int(noise.success.sum())
    for image, losses in ((images, result.clean_loss), (result.adversarial, result.loss)):
        expected = [own_losses(heads, image[i : i + 1], targets[i : i + 1]) for i in range(len(image))]
        torch.testing.assert_close(losses, torch.stack([sum(own.values()) for own in expected]))
    missed = []
    for truth, boxes in zip(targets, own_boxes(heads, result.adversarial), strict=True):
        found = [
            any(
                float(box_iou(box[None], other[None])) >= IOU and label == kind_ and float(score) >= 0.3
                for other, kind_, score in zip(
                    *(boxes[key] for key in ("boxes", "labels", "labels_scores")), strict=True
                )
            )
            for box, label in zip(truth["boxes"], truth["labels"], strict=True)
        ]
        missed.append(bool(found) and sum(found) / len(found) < 0.75)
    assert result.success.tolist() == missed


@ranks
def test_an_image_does_not_depend_on_its_batch_mates(rank: int) -> None:
    heads, images, targets = copied(rank)
    heads, images = heads.double(), images.double()
    attack = attack_on(heads, SMIA, steps=3)
    together = attack(heads, images, targets)
    reordered = attack(heads, images.flip(0), targets[::-1])
    torch.testing.assert_close(reordered.adversarial.flip(0), together.adversarial, rtol=0, atol=1e-12)
    for i in (0, len(images) - 1):
        alone = attack(heads, images[i : i + 1], targets[i : i + 1])
        torch.testing.assert_close(alone.adversarial[0], together.adversarial[i], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.loss[0], together.loss[i], rtol=1e-10, atol=1e-12)


@ranks
def test_everything_is_as_it_was_also_after_an_interrupt(rank: int) -> None:
    heads, images, targets = copied(rank)
    detector = heads.detector
    next(detector.parameters()).grad = torch.ones_like(next(detector.parameters()))
    kept, anchors, state = copy.deepcopy(targets), detector.anchors, torch.get_rng_state()
    cells = detector.anchor_generator.cell_anchors
    with contract.unchanged(heads):
        first = attack_on(heads, SMIA, steps=3)(heads, images, targets, generator=generator())
        again = attack_on(heads, SMIA, steps=3)(heads, images, targets, generator=generator())
    assert torch.equal(first.adversarial, again.adversarial)
    assert torch.equal(first.loss, again.loss)
    for left in (1, 3):
        broken = networks.Failing(heads, left)
        with contract.unchanged(broken), pytest.raises(KeyboardInterrupt, match="planted"):
            attack_on(heads)(broken, images, targets)
    attack_on(heads, steps=1)(heads, images[..., :12], targets)  # another size, for which MONAI makes new anchors
    assert torch.equal(torch.get_rng_state(), state)
    assert detector.anchors is anchors
    assert detector.anchor_generator.cell_anchors is cells
    assert detector.training
    for before, after in zip(kept, targets, strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_global_random_state_is_given_back_after_an_error() -> None:
    heads, images, targets = copied(2)

    def broken(*arguments: Any) -> Any:
        torch.rand(3)
        raise KeyboardInterrupt("planted")

    heads.detector.compute_loss = broken
    prediction, state = heads.eval()(images[:1]), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt, match="planted"):
        DetectionLoss(heads)(prediction, targets[:1])
    assert torch.equal(torch.get_rng_state(), state)


def test_targets_as_loaders_give_them() -> None:
    """Boxes with metadata, in double precision, made under `inference_mode`: the same bits."""
    heads, images, targets = copied(2)
    attack = attack_on(heads, steps=2)
    expected = attack(heads, images, targets)
    meta = [{key: MetaTensor(value) for key, value in target.items()} for target in targets]
    double = [{**target, "boxes": target["boxes"].double()} for target in targets]
    with torch.inference_mode():
        inference = [{key: value + 0 for key, value in target.items()} for target in targets]
    for given in (meta, double, inference, tuple(targets)):
        result = attack(heads, MetaTensor(images, meta={"patient": "phantom"}), given)
        assert torch.equal(result.adversarial.as_tensor(), expected.adversarial)
        assert torch.equal(result.loss, expected.loss)
        assert result.adversarial.meta["patient"] == "phantom"
    cast = attack_on(heads, steps=2, amp=torch.bfloat16)(heads, images, targets)
    torch.testing.assert_close(cast.clean_loss, expected.clean_loss)


@ranks
def test_criteria_agree_with_monais_matching(rank: int) -> None:
    """Found boxes are the ground truth that MONAI matches, over a sweep of scores and overlaps, on noisy images."""
    heads, images, targets = copied(rank)
    heads.eval()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3))
    prediction = heads(0.5 * images + 0.5 * noise)
    shares, extras = set(), set()
    for iou in (0.2, 0.5, 0.85):
        for score in (0.05, 0.2, 0.6):
            chosen = heads.detections(prediction, score)
            matched = matching_batch(
                box_iou,
                [iou],
                *([boxes[key].numpy() for boxes in chosen] for key in ("boxes", "labels", "labels_scores")),
                *([target[key].numpy() for target in targets] for key in ("boxes", "labels")),
            )
            hits = [sum(int(found["gtMatches"].sum()) for found in image.values()) for image in matched]
            share = torch.tensor([hit / 2 for hit in hits[:-1]] + [1.0])  # none to miss in the last
            assert torch.equal(BoxesMissed(heads, iou=iou, score=score).found(prediction, targets), share)
            for fraction in (0.5, 1.0):
                criterion = BoxesMissed(heads, iou=iou, score=score, fraction=fraction)
                assert torch.equal(criterion(prediction, targets), share < fraction)
            far = torch.tensor(
                [
                    sum(
                        not any(
                            label == other and float(box_iou(box[None], true[None])) >= iou
                            for true, other in zip(target["boxes"], target["labels"], strict=True)
                        )
                        for box, label in zip(boxes["boxes"], boxes["labels"], strict=True)
                    )
                    for boxes, target in zip(chosen, targets, strict=True)
                ]
            )
            assert torch.equal(FalsePositives(heads, iou=iou, score=score).number(prediction, targets), far)
            assert torch.equal(FalsePositives(heads, iou=iou, score=score, count=2)(prediction, targets), far >= 2)
            shares |= set(share.tolist())
            extras |= set(far.tolist())
    assert len(shares) > 1  # the sweep is not all found or all missed
    assert len(extras) > 1


def test_boxes_can_be_made_to_appear() -> None:
    """On the image without any an ascent makes some, and a higher loss than noise."""
    heads, images, targets = copied(2)
    criterion = FalsePositives(heads, iou=IOU, score=0.5)
    made = BIM(DetectionLoss(heads), eps=0.4, criterion=criterion)(heads, images[-1:], targets[-1:])
    noise = GaussianNoise(DetectionLoss(heads), eps=0.4, criterion=criterion)(heads, images[-1:], targets[-1:])
    assert (made.clean_success.item(), made.success.item()) == (False, True)
    assert float(made.loss) > 2 * float(noise.loss)


@ranks
def test_divergence_is_the_loss_towards_the_boxes_of_the_twin(rank: int) -> None:
    heads, images, _ = copied(rank)
    heads.eval()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3))
    other = 0.85 * images + 0.15 * noise
    with torch.no_grad():
        values = DetectionDivergence(DetectionLoss(heads), score=0.2)(heads(images), heads(other), None)
    for i, boxes in enumerate(own_boxes(heads, other)):
        kept = boxes["labels_scores"] >= 0.2
        target = {key: boxes[key][kept] for key in ("boxes", "labels")}
        own = own_losses(heads, images[i : i + 1], [target])
        torch.testing.assert_close(values[i], sum(own.values()))


def test_stabilization_changes_the_outcome_and_can_be_switched_off() -> None:
    heads, images, targets = copied(2)
    bim = attack_on(heads, BIM, steps=4)(heads, images, targets)
    off = attack_on(heads, SMIA, steps=4, stabilization_weight=0.0)(heads, images, targets)
    on = attack_on(heads, SMIA, steps=4, sigma=2.0)(heads, images, targets)
    assert torch.equal(off.adversarial, bim.adversarial)
    assert not torch.equal(on.adversarial, bim.adversarial)


def test_built_from_a_configuration() -> None:
    heads, images, targets = copied(2)
    home = "monai_smia.attacks"
    config = {
        "heads": {"_target_": f"{home}.detection.DetectorHeads", "detector": "@detector"},
        "loss": {"_target_": f"{home}.detection.DetectionLoss", "heads": "@heads", "box_weight": 0.5},
        "attack": {
            "_target_": f"{home}.SMIA",
            "loss_function": "@loss",
            "eps": EPS,
            "steps": 2,
            "divergence": {"_target_": f"{home}.detection.DetectionDivergence", "loss_function": "@loss"},
            "criterion": {"_target_": f"{home}.detection_criteria.BoxesMissed", "heads": "@heads", "iou": IOU},
        },
    }
    parser = ConfigParser({**config, "detector": "$__import__('builtins')"})
    parser["detector"] = heads.detector
    attack = parser.get_parsed_content("attack")
    loss = DetectionLoss(heads, box_weight=0.5)
    divergence, criterion = DetectionDivergence(loss), BoxesMissed(heads, iou=IOU)
    expected = SMIA(loss, eps=EPS, steps=2, divergence=divergence, criterion=criterion)
    assert repr(attack) == repr(expected)
    assert len(repr(attack)) < 400  # no network is printed
    result = attack(parser.get_parsed_content("heads"), images, targets)
    assert torch.equal(result.adversarial, expected(heads, images, targets).adversarial)


def without_matcher(heads: DetectorHeads) -> DetectorHeads:
    del heads.detector.proposal_matcher
    return heads


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda h: DetectorHeads(h), TypeError, "detector: expected a RetinaNetDetector; got DetectorHeads"),
        (lambda h: DetectorHeads(h.detector, use_inferer=True), ValueError, "use_inferer: the detector has no inferer"),
        (lambda h: DetectionLoss(h.detector), TypeError, "heads: expected DetectorHeads"),
        (lambda h: DetectionLoss(h, box_weight=-1.0), ValueError, "box_weight: expected finite numbers >= 0"),
        (lambda h: DetectionLoss(h, seed=-1), ValueError, "seed: expected a whole number >= 0"),
        (lambda h: DetectionLoss(without_matcher(h)), ValueError, "heads: the detector has no matcher"),
        (lambda h: DetectionDivergence(h), TypeError, "loss_function: expected a DetectionLoss"),
        (lambda h: DetectionDivergence(DetectionLoss(h), score=2), ValueError, r"score: expected a number in \[0, 1\]"),
        (lambda h: BoxesMissed(h.detector), TypeError, "heads: expected DetectorHeads"),
        (lambda h: BoxesMissed(h, fraction=50), ValueError, r"fraction: expected a number in \[0, 1\]; got 50"),
        (lambda h: FalsePositives(h, iou=-1), ValueError, "iou: expected finite numbers >= 0"),
        (lambda h: FalsePositives(h, count=0), ValueError, "count: expected a whole number >= 1"),
    ],
)
def test_wrong_arguments(build: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(copied(2)[0])


BOX = torch.tensor([[1.0, 2.0, 6.0, 7.0]])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"boxes": BOX}, "labels and boxes are expected keys"),
        ({"boxes": BOX, "labels": torch.tensor([2])}, r"target: .*expected 1 labels, one per box, in \[0, 2\)"),
        ({"boxes": BOX, "labels": torch.tensor([-1])}, r"one per box, in \[0, 2\)"),
        ({"boxes": BOX, "labels": torch.tensor([0, 1])}, "expected 1 labels, one per box"),
        ({"boxes": BOX.flip(1), "labels": torch.tensor([0])}, "expected boxes whose low corner comes first"),
        ({"boxes": torch.rand(1, 6), "labels": torch.tensor([0])}, r"tensor of shape \[N, 4\]"),
    ],
)
def test_malformed_targets(target: dict[str, torch.Tensor], message: str) -> None:
    heads, images, _ = copied(2)
    with contract.unchanged(heads), pytest.raises(ValueError, match=message):
        attack_on(heads)(heads, images[:1], [target])


def test_what_needs_classes_says_so() -> None:
    heads, images, targets = copied(2)
    for attack in (PGD(DetectionLoss(heads), eps=EPS), SegPGD(DetectionLoss(heads), eps=EPS)):
        with pytest.raises(TypeError, match="got HeadOutputs. Give a `criterion`"):
            attack(heads, images, targets)
    with pytest.raises(ValueError, match="target: expected 4 samples"):
        attack_on(heads)(heads, images, targets[:2])
    with pytest.raises(TypeError, match=r"attack DetectorHeads\(detector\), not the detector; got list"):
        attack_on(heads)(lambda x: [{"boxes": x.flatten(1)}], images, targets)
