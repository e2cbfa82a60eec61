# SPDX-License-Identifier: Apache-2.0
"""The group of each case: what belongs to one person, stays in one split and counts once in an interval."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

Item = dict[str, Any]

GROUP, GROUP_KIND = "group", "group_kind"
UNKNOWN = "image"
_PERSONS = ("subject", "patient")


def with_groups(items: Iterable[Item]) -> list[Item]:
    """The same items, each with the two keys that name its group.

    - ``group``: text, the same for all cases of one group and for no others of its kind.
    - ``group_kind``: what the group is: "subject" or "patient" where it is known who belongs together, "image" where it
      is not. Then each image is a group of its own, and an interval by group is one by image: too narrow where one
      person has several.

    An item with ``group`` keeps it, and its kind is "group" where it does not say another; one with ``subject`` or
    ``patient`` is grouped by that; all others by the name of their image without its suffix.

    Args:
        items: cases with ``image``, a path.

    Example:
        >>> with_groups([{"image": "a/1_left.png", "patient": 1}])
        [{'image': 'a/1_left.png', 'patient': 1, 'group': '1', 'group_kind': 'patient'}]
        >>> with_groups([{"image": "a/1.nii.gz"}])
        [{'image': 'a/1.nii.gz', 'group': '1', 'group_kind': 'image'}]
    """
    return [_grouped(item) for item in items]


def _grouped(item: Item) -> Item:
    if GROUP in item:
        return {**item, GROUP: str(item[GROUP]), GROUP_KIND: item.get(GROUP_KIND, GROUP)}
    for kind in _PERSONS:
        if kind in item:
            return {**item, GROUP: str(item[kind]), GROUP_KIND: kind}
    return {**item, GROUP: Path(item["image"].removesuffix(".gz")).stem, GROUP_KIND: UNKNOWN}
