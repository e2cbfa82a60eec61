# SPDX-License-Identifier: Apache-2.0
"""The ways to train under attack, as changes to a trainer's text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monai.bundle import ConfigParser

from monai_smia.bundle.text import argument_id, get

Text = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way.

    Attributes:
        steps: of its attack, where nothing else is said.
        change: ``(parser, trainer's id, attack's common arguments, steps, seed)``.
    """

    steps: int
    change: Callable[[ConfigParser, str, Text, int, int], None]

    def put_in(
        self, parser: ConfigParser, trainer: str, *, eps: Any, steps: int | None, bounds: Any, seed: int
    ) -> None:
        """Change the text of the trainer.

        Raises:
            ValueError: when the trainer has no loss function, or no list of handlers can be found.
        """
        loss = get(parser.config, f"{trainer}#loss_function")
        if loss is None:
            raise ValueError(f"{trainer}#loss_function: an attack needs the loss that is trained; there is none")
        place = argument_id(parser.config, trainer, "loss_function")
        common = {"loss_function": f"@{place}", "eps": eps, "bounds": None if bounds is None else list(bounds)}
        if place == f"{trainer}#loss_function":  # written inside the trainer: kept under an id of its own
            parser["adversarial_loss"] = loss
            common["loss_function"] = "@adversarial_loss"
        self.change(parser, trainer, common, self.steps if steps is None else steps, seed)


def _handler(attack: Text, parser: ConfigParser, trainer: str, seed: int) -> None:
    item = {"_target_": "monai_smia.handlers.AttackHandler", "attack": attack, "seed": seed}
    place = argument_id(parser.config, trainer, "train_handlers") or f"{trainer}#train_handlers"
    handlers = get(parser.config, place)
    if handlers is not None and not isinstance(handlers, list):
        raise ValueError(f"{place}: expected a list of handlers, to which the attack is added; got {handlers!r}")
    parser[place] = [*(handlers or []), item]


def _pgd(parser: ConfigParser, trainer: str, common: Text, steps: int, seed: int) -> None:
    _handler({"_target_": "monai_smia.attacks.PGD", **common, "steps": steps}, parser, trainer, seed)


def _smia(parser: ConfigParser, trainer: str, common: Text, steps: int, seed: int) -> None:
    _handler({"_target_": "monai_smia.attacks.SMIA", **common, "steps": steps}, parser, trainer, seed)


def _fast(parser: ConfigParser, trainer: str, common: Text, steps: int, seed: int) -> None:
    eps = common["eps"]
    stride = [1.25 * value for value in eps] if isinstance(eps, list) else 1.25 * eps
    attack = {"_target_": "monai_smia.attacks.FGSM", **common, "step_size": stride, "random_start": True}
    _handler(attack, parser, trainer, seed)


def _free(parser: ConfigParser, trainer: str, common: Text, steps: int, seed: int) -> None:
    update = {"_target_": "monai_smia.engines.FreeAdversarialTraining", "replays": steps}
    parser[f"{trainer}#iteration_update"] = {**update, "eps": common["eps"], "bounds": common["bounds"]}
    place = argument_id(parser.config, trainer, "max_epochs") or f"{trainer}#max_epochs"
    epochs = get(parser.config, place)
    if isinstance(epochs, int):  # an epoch makes `steps` passes over the data
        parser[place] = math.ceil(epochs / steps)


def _two_views(loss: str, attack: str) -> Callable[[ConfigParser, str, Text, int, int], None]:
    def change(parser: ConfigParser, trainer: str, common: Text, steps: int, seed: int) -> None:
        parser[f"{trainer}#_target_"] = "monai_smia.engines.RobustTrainer"
        parser[f"{trainer}#attack"] = {"_target_": f"monai_smia.attacks.{attack}", **common, "steps": steps}
        parser[f"{trainer}#loss_function"] = {
            "_target_": f"monai_smia.losses.{loss}",
            "loss_function": common["loss_function"],
        }
        parser[f"{trainer}#seed"] = seed

    return change


METHODS = {
    "pgd": Method(7, _pgd),
    "smia": Method(7, _smia),
    "fast": Method(1, _fast),
    "free": Method(4, _free),
    "trades": Method(7, _two_views("TRADESLoss", "TPGD")),
    "mart": Method(7, _two_views("MARTLoss", "PGD")),
}
"""Name to method: on PGD's or SMIA's images (Madry et al. 2018), on one step's (Wong et al. 2020), for free (Shafahi et
al. 2019), with TRADES (Zhang et al. 2019) or MART (Wang et al. 2020)."""
