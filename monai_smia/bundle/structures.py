# SPDX-License-Identifier: Apache-2.0
"""`named_structures`: metrics of single classes under the classes' names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from monai_smia.reports import RobustnessReport
from monai_smia.reports.wording import label_of

_OF_A_CLASS = re.compile(r"(.+)_(\d+)")


def named_structures(report: RobustnessReport, names: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """What readers see instead of ``<metric>_<k>``, where as many classes are named as the metric has values.

    A metric with one value less than there are names leaves the background out.

    Args:
        report: what an evaluation gave.
        names: of the classes, in the order of the channels, as `metadata.json`'s ``channel_def`` or a sequence.

    Example:
        >>> row = {"attack": "clean", "case": "a", "dice": 0.8, "dice_0": 0.7, "dice_1": 0.9}
        >>> report = RobustnessReport({"clean": {"dice": 0.8}}, (row,), {}, "HU")
        >>> named_structures(report, {"0": "background", "1": "left lung", "2": "right lung"})
        {'dice_0': 'Dice, left lung', 'dice_1': 'Dice, right lung'}
    """
    if isinstance(names, Mapping):  # "3 to 14" is no channel
        names = [names[key] for key in sorted(names, key=int)] if all(str(key).isdecimal() for key in names) else []
    ordered = list(names)
    columns = dict.fromkeys(column for row in report.cases for column in row)
    values: dict[str, list[str]] = {}
    for column in columns:
        found = _OF_A_CLASS.fullmatch(column)
        if found and found[1] in columns:
            values.setdefault(found[1], []).append(column)
    shown = {}
    for metric, own in values.items():
        classes = ordered[len(ordered) - len(own) :]
        if len(classes) == len(own) and len(ordered) - len(own) in (0, 1):
            word = label_of(metric, {})
            shown.update({column: f"{word}, {name}" for column, name in zip(own, classes, strict=True)})
    return shown
