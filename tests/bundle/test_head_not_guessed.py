"""No head is read from the number of channels where the bundle makes something of its own of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from head_samples import INDEX, SEVERAL, hot, seeded
from monai.losses import DiceLoss
from monai.transforms import Activationsd, Compose, EnsureTyped, Lambda, Lambdad, SaveImaged
from torch import nn

from monai_smia.bundle.tasks import infer_task

OUTPUT = seeded(2, 3, 6, 5)


class LogitsToLabelsd:
    """A cell's logit and two flows, as VISTA2D's network gives them, turned into instances."""

    def __init__(self, keys: Any) -> None:
        self.keys = keys

    def __call__(self, data: Any) -> Any:
        return data


STEPS: dict[str, Any] = {
    "LogitsToLabelsd": Compose([EnsureTyped("pred"), LogitsToLabelsd(("pred",))]),
    "Lambdad": Lambdad("pred", lambda x: x[:, :1]),
    "Lambda": [Lambda(lambda x: x[:1])],
    "flows": lambda data: data,
}
STEPS["flows"].__name__ = "flows"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("label", [None, INDEX[:, None]], ids=["no label", "instances under 3"])
def test_a_postprocessing_of_its_own_is_named(step: str, label: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match=f"activation: the postprocessing's {step} makes .* 3 channels .*`activation`"):
        infer_task(OUTPUT, label, postprocessing=STEPS[step])


KNOWN: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a person says it": (lambda: {"activation": "sigmoid"}, "sigmoid"),
    "the loss says it": (lambda: {"loss_function": DiceLoss(sigmoid=True)}, "sigmoid"),
    "a step before says it": (
        lambda: {"postprocessing": Compose([Activationsd("pred", softmax=True), LogitsToLabelsd(("pred",))])},
        "softmax",
    ),
    "the label says it": (lambda: {"label": SEVERAL}, "sigmoid"),
    "a one-hot label says it": (lambda: {"label": hot(INDEX, 3)}, "softmax"),
    "it changes the image": (
        lambda: {"postprocessing": LogitsToLabelsd(("image",)), "label": INDEX[:, None]},
        "softmax",
    ),
    "MONAI's alone": (
        lambda: {"postprocessing": SaveImaged("pred", print_log=False), "label": INDEX[:, None]},
        "softmax",
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_what_is_known_is_taken(case: str) -> None:
    make, expected = KNOWN[case]
    arguments = {"postprocessing": STEPS["LogitsToLabelsd"], "label": None, **make()}
    label = arguments.pop("label")
    if label is None and "loss_function" in arguments:
        label = SEVERAL
    assert infer_task(OUTPUT, label, **arguments).activation == expected


def test_a_loss_that_contradicts_itself_needs_a_word() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = DiceLoss(sigmoid=True), nn.CrossEntropyLoss()

        def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return self.one(prediction, target) + self.other(prediction, target)

    with pytest.raises(ValueError, match="loss_function: Both holds both DiceLoss .* and CrossEntropyLoss"):
        infer_task(OUTPUT, SEVERAL, loss_function=Both())
    assert infer_task(OUTPUT, SEVERAL, loss_function=Both(), activation="sigmoid").activation == "sigmoid"
