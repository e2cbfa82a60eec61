# SPDX-License-Identifier: Apache-2.0
"""Certificates of a data set in a table, in Markdown and in sentences, to stand beside the attacks in a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from monai_smia.certificates.rows import SETTINGS

_UNIT = "unit"
COLUMNS = {
    "certified": "certified",
    "certified_accuracy": "certified accuracy",
    "certified_dice": "certified Dice",
    "certified_iou": "certified IoU",
    "abstain_rate": "abstentions",
}
"""Column of the table to what readers see."""


def certificate_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The means over cases, a row for each radius.

    Args:
        rows: those of `Certificate.to_rows`, of all cases, certified with the same settings.

    Returns:
        In rising ``radius`` (network units): ``physical_radius`` and ``per_voxel_radius`` in ``unit`` (the smallest,
        where images differ in size), ``cases``, then the mean of every other column; values that are not defined are
        left out.

    Raises:
        ValueError: when there is no row, or when rows differ in unit or settings, so that a mean would mix them.

    Example:
        >>> import torch
        >>> from monai_smia.certificates import certify
        >>> network = torch.nn.Conv2d(1, 2, 1).eval()
        >>> image, label = torch.randn(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
        >>> rows = []
        >>> for one, true in zip(image.split(1), label.split(1)):  # keeps numbers, and the voxels of one image only
        ...     rows += certify(network, one, sigma=0.25, progress=False).to_rows(true)
        >>> table = certificate_table(rows)
        >>> table[["cases", "unit"]].values.tolist(), round(float(table.radius[0]), 4)
        ([[2, 'network units']], 0.1686)
    """
    rows = list(rows)
    if not rows:
        raise ValueError("rows: expected those of at least one certificate; got none")
    for name in (_UNIT, *SETTINGS, "physical_sigma"):
        values = sorted({str(row.get(name)) for row in rows})
        if len(values) > 1:
            raise ValueError(f"rows: expected certificates of one {name}; got {', '.join(values)}")
    frame = pd.DataFrame(rows)
    fixed = ["radius", "physical_radius", "per_voxel_radius", _UNIT, "case", *SETTINGS, "physical_sigma"]
    means = [name for name in frame.columns if name not in (*fixed, "prediction")]
    groups = frame.groupby("radius", sort=True)
    table = groups[["physical_radius", "per_voxel_radius"]].min()
    table[_UNIT] = groups[_UNIT].first()
    table["cases"] = groups.size()
    return pd.concat([table, groups[means].mean()], axis=1).reset_index()


def certificate_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A section for a model card: what is certified, the table, and how it was made.

    Args:
        rows: as in `certificate_table`.

    Returns:
        Text that starts with a heading of level 3 and ends with a line break.

    Raises:
        ValueError: as `certificate_table`.
    """
    rows = list(rows)
    table = certificate_table(rows)
    unit = table[_UNIT][0]
    values = [name for name in COLUMNS if name in table and table[name].notna().any()]
    head = [f"L2 radius [{unit}]", f"for each voxel at once [{unit}]", "cases", *(COLUMNS[name] for name in values)]
    lines = [_line(head), "|" + "--:|" * len(head)]
    for _, row in table.iterrows():
        sizes = [f"{row[name]:.3g}" for name in ("physical_radius", "per_voxel_radius")]
        lines.append(_line([*sizes, str(row["cases"]), *(_in_digits(row[name]) for name in values)]))
    return (
        "\n\n".join(
            [
                "### Certified by randomized smoothing",
                " ".join(certificate_findings(rows)),
                "\n".join(lines),
                how_made(rows),
            ]
        )
        + "\n"
    )


def certificate_findings(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each radius, for the `findings` of a page.

    Args:
        rows: as in `certificate_table`.

    Raises:
        ValueError: as `certificate_table`.
    """
    rows = list(rows)
    table = certificate_table(rows)
    sentences = []
    for _, row in table.iterrows():
        size = f"{row['physical_radius']:.3g} {row[_UNIT]}"
        voxel = f"{row['per_voxel_radius']:.3g} {row[_UNIT]}"
        known = []
        if "certified_accuracy" in table:
            known.append(f"{_in_digits(row['certified_accuracy'])} of the decisions are right and certified")
        else:
            known.append(f"{_in_digits(row['certified'])} of the decisions are certified")
        known.append(f"the smoothed network abstains from {_in_digits(row['abstain_rate'])} of them")
        if "certified_dice" in table and pd.notna(row["certified_dice"]):
            known.append(f"the mean Dice cannot fall under {_in_digits(row['certified_dice'])}")
        sentences.append(
            f"Smoothed with noise of standard deviation {rows[0]['physical_sigma']:.3g} {row[_UNIT]}, against every "
            f"change of an L2 norm up to {size} over the image ({voxel} in each voxel at once): "
            f"{', '.join(known[:-1])} and {known[-1]}."
        )
    return sentences


def how_made(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the certificates were made, and whose decisions they are of."""
    row = rows[0]
    tau = f", tau {row['tau']:g}, {row['correction']} correction over an image" if "tau" in row else ""
    return (
        f"Randomized smoothing, sigma {row['sigma']:g} in network units, {row['first_samples']} and {row['samples']} "
        f"noisy copies of each image, alpha {row['alpha']:g}{tau}. Each image's certificate holds with confidence "
        f"{1 - row['alpha']:g}, and for the smoothed network, which decides by majority under noise. What is not "
        "certified counts as wrong."
    )


def _in_digits(value: float) -> str:
    return "undefined" if pd.isna(value) else f"{value:.3f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
