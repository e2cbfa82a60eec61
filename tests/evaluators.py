"""Tiny data, evaluators and trainers for the tests of handlers and engines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networks
import torch
from ignite.engine import Events
from ignite.metrics import Accuracy
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import ROCAUC, MeanDice, from_engine
from monai.losses import DiceCELoss
from monai.transforms import Activationsd, AsDiscreted, Compose
from torch import nn

from monai_smia.attacks import BIM, PGD, Attack
from monai_smia.handlers import AttackHandler

BOUNDS = (0.0, 1.0)
EPS = 0.1
CPU = torch.device("cpu")


def scores_and_one_hot(output: list[dict[str, Any]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What `ROCAUC` takes, from decollated outputs with class indices."""
    one_hot = [nn.functional.one_hot(torch.as_tensor(item["label"]).long(), networks.CLASSES) for item in output]
    return [item["pred"] for item in output], one_hot


@dataclass(frozen=True)
class Task:
    """Segmentation (`dense`) or classification, 2-D or 3-D, with three cases."""

    rank: int = 2
    dense: bool = True
    cases: int = 3

    def network(self) -> nn.Sequential:
        """In train mode with a BatchNorm frozen by hand, and with classes that are about equally likely."""
        network = networks.tiny_network(self.rank, self.dense)
        with torch.no_grad():
            scores = copy.deepcopy(network).eval()(self.images())
            network[-1].bias -= scores.transpose(0, 1).flatten(1).mean(1)
        return network

    def images(self) -> torch.Tensor:
        size = (self.cases, 1, *(9, 7, 5)[: self.rank])
        return torch.rand(size, generator=torch.Generator().manual_seed(3))

    def labels(self) -> torch.Tensor:
        """Classes in turn; for a dense task what the network says of a slightly different image: good, not perfect."""
        if not self.dense:
            return torch.arange(self.cases) % networks.CLASSES
        images = self.images()
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            return self.network().eval()(0.7 * images + 0.3 * noise).argmax(1, keepdim=True)

    def loss(self) -> nn.Module:
        return DiceCELoss(to_onehot_y=True, softmax=True) if self.dense else nn.CrossEntropyLoss()

    def items(self) -> list[dict[str, Any]]:
        """Cases whose image knows its file, as `LoadImaged` leaves it."""
        return [
            {"image": MetaTensor(image, meta={"filename_or_obj": f"/data/case_{i}.nii.gz"}), "label": label}
            for i, (image, label) in enumerate(zip(self.images(), self.labels(), strict=True))
        ]

    def loader(self, batch_size: int = 2) -> DataLoader:
        return DataLoader(Dataset(self.items()), batch_size=batch_size)

    def batches(self, batch_size: int = 2) -> list[dict[str, torch.Tensor]]:
        """Plain tensors, already collated."""
        split = zip(self.images().split(batch_size), self.labels().split(batch_size), strict=True)
        return [{"image": image.clone(), "label": label.clone()} for image, label in split]

    def attacks(self) -> dict[str, Attack]:
        """One without randomness, one with."""
        return {
            "bim": BIM(self.loss(), eps=EPS, steps=2, bounds=BOUNDS),
            "pgd": PGD(self.loss(), eps=EPS, steps=2, bounds=BOUNDS, random_start=True),
        }

    def metrics(self) -> dict[str, Any]:
        if self.dense:
            return {
                "key_val_metric": {"val_dice": MeanDice(False, output_transform=from_engine(["pred", "label"]))},
                "additional_metrics": {"val_dice_all": MeanDice(True, output_transform=from_engine(["pred", "label"]))},
            }
        return {
            "key_val_metric": {"val_accuracy": Accuracy(output_transform=from_engine(["pred", "label"]))},
            "additional_metrics": {"val_auc": ROCAUC(output_transform=scores_and_one_hot)},
        }

    def postprocessing(self) -> Compose:
        if not self.dense:
            return Compose([Activationsd("pred", softmax=True)])
        return Compose(
            [
                AsDiscreted("pred", argmax=True, to_onehot=networks.CLASSES),
                AsDiscreted("label", to_onehot=networks.CLASSES),
            ]
        )

    def evaluator(
        self, kind: Callable[..., Any] = SupervisedEvaluator, *, batch_size: int = 2, **arguments: Any
    ) -> Any:
        """An evaluator of `kind` with everything that `arguments` do not replace."""
        defaults = {
            "val_data_loader": self.loader(batch_size),
            "network": self.network(),
            "postprocessing": self.postprocessing(),
            **self.metrics(),
        }
        return kind(device=CPU, **{**defaults, **arguments})


def seen(engine: Any, event: Any, look: Callable[[Any], Any]) -> list[Any]:
    """What `look(engine)` gives every time that `event` is fired, after the handlers there are now."""
    values: list[Any] = []
    engine.add_event_handler(event, lambda: values.append(look(engine)))
    return values


def images_of(engine: Any) -> list[torch.Tensor]:
    """The images that the engine's iterations are about to see."""
    return seen(engine, Events.ITERATION_STARTED, lambda e: torch.as_tensor(_first(e.state.batch)).clone())


def _first(batch: Any) -> torch.Tensor:
    return batch["image"] if isinstance(batch, dict) else batch[0]


def generator(seed: int = 0, epoch: int = 1, batch: int = 0) -> torch.Generator:
    """What `AttackHandler` promises to draw from for that batch of an evaluation, and in that epoch of a training."""
    return torch.Generator().manual_seed(seed + epoch + (2**31 - 1) * batch)


def attacked_by_hand(attack: Attack, network: nn.Module, batches: Any, seed: int) -> list[dict[str, Any]]:
    """The batches with adversarial images, by nothing but calls of the attack."""
    sources = (generator(seed, batch=i) for i, _ in enumerate(batches))
    return [
        {**batch, "image": attack(network, batch["image"], batch["label"], generator=source).adversarial}
        for batch, source in zip(batches, sources, strict=True)
    ]


def metrics_of(engine: Any) -> dict[str, Any]:
    """The metrics of a run."""
    engine.run()
    return dict(engine.state.metrics)


def handled(attack: Attack, **arguments: Any) -> dict[str, Any]:
    """Arguments of an evaluator with this attack."""
    return {"val_handlers": [AttackHandler(attack, **arguments)]}


def counted(engine: Any) -> dict[Any, int]:
    """How many handlers each event has."""
    return {event: len(handlers) for event, handlers in engine._event_handlers.items() if handlers}
