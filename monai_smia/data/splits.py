# SPDX-License-Identifier: Apache-2.0
"""The names of the splits, and the one rule for data sets that are distributed without a split of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .checks import Item, one_of
from .groups import GROUP

SPLITS = ("training", "validation", "test")
_SPLIT_OF_POSITION = {0: "test", 5: "validation"}


def split_of_groups(groups: Iterable[str]) -> dict[str, str]:
    """Give every group of cases its split.

    The groups are sorted as text, each once. Of every ten, the one at position 0 (of 0 to 9) is test, the one at
    position 5 is validation, the other eight are training. Nothing is random, so that every machine has the same split;
    it changes when groups are added or taken away. Validation starts at the sixth group.

    Args:
        groups: the group of each case, in any order: the patient where it is known, else the name of the case.

    Returns:
        Group to the name of its split.

    Example:
        >>> split_of_groups(f"p{i}" for i in (5, 4, 3, 2, 1, 0))
        {'p0': 'test', 'p1': 'training', 'p2': 'training', 'p3': 'training', 'p4': 'training', 'p5': 'validation'}
    """
    return {
        group: _SPLIT_OF_POSITION.get(position % 10, "training") for position, group in enumerate(sorted(set(groups)))
    }


def split_by_rule(
    cases: list[Item], split: str, group: Callable[[Item], str] = lambda case: str(case[GROUP])
) -> list[Item]:
    """The cases of one split, by the rule of `split_of_groups`, sorted by group.

    Args:
        cases: all cases.
        split: "training", "validation" or "test".
        group: gives the group of a case, by default what `monai_smia.data.groups` calls so. The cases of one group stay
            together and in their order.

    Raises:
        ValueError: `split` is none of the three, or the rule leaves it empty because there are too few groups.
    """
    one_of("split", split, SPLITS)
    assigned = split_of_groups(group(case) for case in cases)
    chosen = [case for case in sorted(cases, key=group) if assigned[group(case)] == split]
    if not chosen:
        raise ValueError(
            f"split: {split!r} has no case: the rule gives it none of {len(assigned)} groups (the first is test, the "
            "sixth validation)"
        )
    return chosen
