# SPDX-License-Identifier: Apache-2.0
"""Members of `AutoAttack`: which of them a head calls for, and each of them built."""

from __future__ import annotations

from typing import Any

from monai_smia.attacks.apgd import APGD
from monai_smia.attacks.attack import Attack
from monai_smia.attacks.fmn import FMN
from monai_smia.attacks.square import Square

DENSE = ("apgd-mask-ce-balanced", "apgd-mask-ce", "apgd-js")
MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-dlr-t", "apgd-margin", "apgd-margin-t", *DENSE, "fmn", "square")
MOST_RUNNERS_UP = 9
SEA_RADII = ((0.3, 2.0), (0.3, 1.5), (0.4, 1.0))
L1_RADII = ((0.3, 3.0), (0.3, 2.0), (0.4, 1.0))


def members_for(version: str, classes: int, targeted: bool) -> tuple[str, ...]:
    """The names that fit a head.

    Args:
        version: ``"standard"`` or ``"dense"``.
        classes: of one decision; 2 for every sigmoid channel.
        targeted: whether a target of the user's is to be reached: then there are no runners-up.

    Example:
        >>> members_for("standard", 3, targeted=False)
        ('apgd-ce', 'apgd-dlr', 'apgd-margin-t', 'fmn', 'square')
    """
    if version == "dense":
        return (*DENSE, "square")
    if targeted:
        margins: tuple[str, ...] = ("apgd-dlr",) if classes >= 4 else ("apgd-margin",)
    elif classes >= 4:
        margins = ("apgd-dlr-t",)
    else:
        margins = ("apgd-dlr", "apgd-margin-t") if classes == 3 else ("apgd-margin",)
    return ("apgd-ce", *margins, "fmn", "square")


def build_members(name: str, loss_function: Any, classes: int, steps: int, queries: int, **common: Any) -> list[Attack]:
    """The attacks of one name: one, or for a name in ``-t`` one towards each runner-up.

    Args:
        name: one of `MEMBERS`.
        loss_function, common: arguments that all have.
        classes: of one decision.
        steps: of `APGD` and `FMN`.
        queries: of `Square`.
    """
    if name == "fmn":
        return [FMN(loss_function, steps=steps, **common)]
    if name == "square":
        return [Square(loss_function, queries=queries, **common)]
    objective = name.removeprefix("apgd-").removesuffix("-t")
    ranks = range(1, min(classes - 1, MOST_RUNNERS_UP) + 1) if name.endswith("-t") else (None,)
    radii = SEA_RADII if name in DENSE else L1_RADII if common["norm"] == 1 else ()
    return [
        APGD(loss_function, objective=objective, runner_up=rank, radii=radii, steps=steps, **common) for rank in ranks
    ]
