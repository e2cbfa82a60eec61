"""Detectors in MONAI's engines: an evaluation with the COCO metric, and adversarial training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectors import Targets, attack_on, copied, own_boxes
from evaluators import CPU, generator
from ignite.engine import Events
from ignite.metrics import Metric
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data import DataLoader
from monai.data.box_utils import box_iou
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from monai_smia.engines import AttackEvaluator, evaluate_robustness
from monai_smia.handlers import AttackHandler


class Coco(Metric):
    """Average precision at an overlap of 0.4, by MONAI's matching and its COCO metric."""

    def reset(self) -> None:
        self.results: list[Any] = []

    def update(self, output: tuple[Targets, Targets]) -> None:
        self.results += matched_by_monai(*output)

    def compute(self) -> float:
        return average_precision(self.results)


def coco() -> COCOMetric:
    return COCOMetric(["dim", "bright"], iou_list=[0.4], iou_range=(0.4, 0.4, 0.1), max_detection=[10])


def matched_by_monai(boxes: Targets, targets: Targets) -> list[Any]:
    return matching_batch(
        box_iou,
        coco().get_iou_thresholds(),
        *([item[key].numpy() for item in boxes] for key in ("boxes", "labels", "labels_scores")),
        *([item[key].numpy() for item in targets] for key in ("boxes", "labels")),
        max_detections=10,
    )


def average_precision(results: list[Any]) -> float:
    return float(coco()(results)[0]["mAP_IoU_0.40_0.40_0.10_MaxDet_10"])


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"image": torch.stack([item["image"] for item in items]), "label": [item["label"] for item in items]}


def loader(images: torch.Tensor, targets: Targets) -> DataLoader:
    items = [{"image": image, "label": target} for image, target in zip(images, targets, strict=True)]
    return DataLoader(items, batch_size=2, collate_fn=collate)


def prepare(batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any) -> Any:
    return batch["image"].to(device), [{key: value.to(device) for key, value in t.items()} for t in batch["label"]]


@pytest.mark.parametrize("rank", [2, 3])
def test_an_evaluation_with_the_coco_metric(rank: int) -> None:
    """Clean and adversarial average precision, in one pass and in several, are those of the detector called by hand."""
    heads, images, targets = copied(rank)

    def evaluator(kind: Callable[..., Any] = SupervisedEvaluator, **arguments: Any) -> Any:
        return kind(
            device=CPU,
            val_data_loader=loader(images, targets),
            network=heads,
            prepare_batch=prepare,
            decollate=False,
            postprocessing=lambda data: {**data, "pred": heads.detections(data["pred"])},
            key_val_metric={"val_map": Coco(output_transform=lambda output: (output["pred"], output["label"]))},
            **arguments,
        )

    attacks = {"pgd": attack_on(heads, steps=6)}
    one = evaluator(AttackEvaluator, attacks=attacks, progress=False)
    one.run()
    many = evaluate_robustness(evaluator(), attacks, diagnose=False, progress=False)
    assert one.report() == many
    results, clean = [], []
    for i, batch in enumerate(loader(images, targets)):
        adversarial = attacks["pgd"](heads, batch["image"], batch["label"], generator=generator(batch=i)).adversarial
        results += matched_by_monai(own_boxes(heads, adversarial), batch["label"])
        clean += matched_by_monai(own_boxes(heads, batch["image"]), batch["label"])
    assert many.metrics["clean"]["val_map"] == average_precision(clean) > 0.9
    assert many.metrics["pgd"]["val_map"] == average_precision(results) < 0.9
    assert [row["success"] for row in many.cases if row["attack"] == "pgd"][-1] is False


@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_adversarial_training_is_the_handwritten_one(probability: float) -> None:
    """An epoch on attacked batches, by the detector's own losses, gives the same weights, to the bit."""
    heads, images, targets = copied(2)
    attack = attack_on(heads, steps=2)
    by_hand = copy.deepcopy(heads)

    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), 0.05)

    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=loader(images, targets),
        network=heads,
        optimizer=optimizer(heads),
        loss_function=lambda prediction, target: sum(heads.losses(prediction, target).values()),
        prepare_batch=prepare,
        decollate=False,
        train_handlers=[AttackHandler(attack, probability=probability)],
    )
    attacked: list[torch.Tensor] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: attacked.append(e.state.batch["image"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        trainer.run()
    batches = list(loader(images, targets))
    changed = torch.cat([(a != b["image"]).flatten(1).any(1) for a, b in zip(attacked, batches, strict=True)])
    assert bool(changed.all()) == (probability == 1.0)
    assert bool(changed.any())
    by_hand.train()
    steps = optimizer(by_hand)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for image, batch in zip(attacked, loader(images, targets), strict=True):  # a loader draws its seed
            steps.zero_grad()
            sum(by_hand.detector.train()(image, batch["label"]).values()).backward()
            steps.step()
    for one, other in zip(heads.state_dict().values(), by_hand.state_dict().values(), strict=True):
        assert torch.equal(one, other)
