# SPDX-License-Identifier: Apache-2.0
"""`RobustnessReport`: the metrics of every run, aggregated and case by case."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from monai_smia.certificates import certificate_markdown
from monai_smia.reports.files import write_whole
from monai_smia.reports.finding import Finding, headline
from monai_smia.reports.report_reading import read_saved
from monai_smia.reports.safe_text import csv_text, escaped
from monai_smia.reports.schema import ReportFile

if TYPE_CHECKING:
    from monai_smia.reports.views import CaseView

CLEAN = "clean"


@dataclass(frozen=True)
class RobustnessReport:
    """Clean and adversarial metrics side by side.

    Attributes:
        metrics: run (``"clean"`` or an attack's name) to metric to value, as the evaluator aggregated it.
        cases: one row for each run and case: ``attack``, ``case``, every metric that is known per case
            (``<metric>_<k>`` for its k-th class), and for attacks the columns of `AttackResult`; ``largest_change``
            is in `unit`. Attacks towards a clinical goal have ``clean_measured [<unit>]`` and ``measured [<unit>]``.
        attacks: name to the attack's ``repr``.
        unit: unit of the perturbation sizes.
        certificates: rows of `monai_smia.certificates.Certificate.to_rows`, where the clean images were certified.
        findings: reasons not to believe the numbers; ``None`` where none were looked for.

    Example:
        >>> report = RobustnessReport({"clean": {"dice": 0.9}, "pgd": {"dice": 0.3}}, (), {"pgd": "PGD(...)"}, "HU")
        >>> print(report.to_markdown())
        | attack | dice |
        |:--|--:|
        | clean | 0.9000 |
        | pgd | 0.3000 |
    """

    metrics: dict[str, dict[str, Any]]
    cases: tuple[dict[str, Any], ...]
    attacks: dict[str, str]
    unit: str
    certificates: tuple[dict[str, Any], ...] = ()
    findings: tuple[Finding, ...] | None = None

    @classmethod
    def load(cls, folder_or_file: str | Path) -> RobustnessReport:
        """The report that `save` or `to_json` wrote.

        It equals the one written, except that what was not finite (or ``None``) is NaN, and that arrays and tensors are
        lists.

        Args:
            folder_or_file: a JSON file, or the folder of ``robustness.json`` or else ``report.json``.

        Raises:
            FileNotFoundError: when it is not there.
            ValueError: when it is not such a report.

        Example:
            >>> import tempfile
            >>> report = RobustnessReport({"clean": {"dice": 0.9}, "pgd": {"dice": 0.3}}, (), {"pgd": "PGD()"}, "HU")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     report.save(folder)
            ...     RobustnessReport.load(folder) == report
            True
        """
        return cls(**read_saved(folder_or_file))

    def to_frame(self) -> pd.DataFrame:
        """One row per run: its metrics, then the attack's success rate, mean losses, largest change and mean passes.

        Of attacks towards a clinical goal also the means of what it is measured by, before and after.
        """
        rows = []
        for run, values in self.metrics.items():
            row: dict[str, Any] = {"attack": run, **values}
            cases = [case for case in self.cases if case["attack"] == run and "success" in case]
            if cases:
                row["success_rate"] = _mean(cases, "success")
                row["loss"] = _mean(cases, "loss")
                row[f"largest_change [{self.unit}]"] = max(case["largest_change"] for case in cases)
                row["forward_passes"] = _mean(cases, "forward_passes")
                row["backward_passes"] = _mean(cases, "backward_passes")
                goals = [name for name in cases[0] if name.startswith(("clean_measured", "measured"))]
                row.update({name: _mean(cases, name) for name in goals})
            elif run == CLEAN and any("clean_loss" in case for case in self.cases):
                first = [case for case in self.cases if "clean_loss" in case]
                first = [case for case in first if case["attack"] == first[0]["attack"]]
                row["success_rate"] = _mean(first, "clean_success")
                row["loss"] = _mean(first, "clean_loss")
            rows.append(row)
        return pd.DataFrame(rows).set_index("attack")

    def cases_frame(self) -> pd.DataFrame:
        """One row per run and case."""
        return pd.DataFrame(list(self.cases))

    def to_markdown(self) -> str:
        """Findings, where there are some; the aggregated table; then what is certified, if anything.

        Numbers have four decimals, passes none.
        """
        frame = self.to_frame()
        header = ["attack", *map(str, frame.columns)]
        lines = ["| " + " | ".join(map(escaped, header)) + " |", "|:--" + "|--:" * len(frame.columns) + "|"]
        for run, row in frame.iterrows():
            cells = [_shown(name, value) for name, value in row.items()]
            lines.append("| " + " | ".join([escaped(str(run)), *cells]) + " |")
        found = headline(self.findings)
        points = [f"- {escaped(str(finding))}" for finding in self.findings or ()]
        above = [] if found is None else [f"**{escaped(found)}**", "", *points, ""]
        below = ["", certificate_markdown(self.certificates).rstrip("\n")] if self.certificates else []
        return "\n".join([*above, *lines, *below])

    def to_json(self, path: str | Path | None = None, *, overwrite: bool = False) -> str:
        """Everything as JSON text, null for what is not finite; also written to `path` where one is given."""
        content: dict[str, Any] = {"version": ReportFile.VERSION, "metrics": self.metrics}
        content |= {"attacks": self.attacks, "unit": self.unit}
        content["findings"] = None if self.findings is None else [asdict(finding) for finding in self.findings]
        content["cases"] = self.cases
        if self.certificates:
            content["certificates"] = self.certificates
        text = json.dumps(_plain(content), indent=2, allow_nan=False)
        if path is not None:
            write_whole(path, text + "\n", overwrite)
        return text

    def to_csv(self, path: str | Path | None = None, *, overwrite: bool = False) -> str:
        """The rows per case as CSV text, also written to `path` where one is given.

        A text that a spreadsheet would take for a formula has ``'`` before it, see `monai_smia.reports.safe_text`.
        """
        text = csv_text(self.cases_frame())
        if path is not None:
            write_whole(path, text, overwrite)
        return text

    def figure(
        self, kind: str = "curve", case: str | None = None, *, views: Sequence[CaseView] = (), **options: Any
    ) -> Any:
        """A matplotlib figure for a paper: see `monai_smia.reports.figure`, which has the options.

        Args:
            kind: ``"curve"``, a metric over the budget, or ``"case"``, what the attacks did to one case.
            case: which case; ``None`` where there is one view only.
            views: where its images are from.
            options: ``reading`` of a curve; ``runs`` and ``index`` of a case.

        Returns:
            A ``matplotlib.figure.Figure``, bound to no window; ``savefig`` writes it.

        Example:
            .. code-block:: python

                report = RobustnessReport.load("robustness")
                report.figure("curve").savefig("curve.svg")
                report.figure("case", "a.nii.gz", views=[load_view("a.npz")]).savefig("case.png", dpi=200)
        """
        from monai_smia.reports.curves import figure  # which imports this module

        return figure(self, kind, case, views=views, **options)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``robustness.md``, ``robustness.csv`` (runs), ``cases.csv`` (cases) and ``robustness.json``.

        Where something is certified, ``certificates.csv`` (cases and radii) as well.

        Raises:
            FileExistsError: when one of them is there already and `overwrite` is false; nothing is written then.
        """
        writers: dict[str, Callable[[], str]] = {
            "robustness.md": lambda: self.to_markdown() + "\n",
            "robustness.csv": lambda: csv_text(self.to_frame().reset_index()),
            "cases.csv": self.to_csv,
            "robustness.json": lambda: self.to_json() + "\n",
        }
        if self.certificates:
            writers["certificates.csv"] = lambda: csv_text(pd.DataFrame(list(self.certificates)))
        paths = {Path(folder) / name: write for name, write in writers.items()}
        for path in paths:
            if path.exists() and not overwrite:
                raise FileExistsError(f"folder: {path} exists; expected a new folder, or overwrite=True")
        for path, write in paths.items():
            write_whole(path, write(), overwrite)


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(float(row[name]) for row in rows) / len(rows)


def _shown(name: str, value: Any) -> str:
    if pd.api.types.is_number(value):
        if pd.isna(value):
            return ""
        return f"{value:.0f}" if str(name).endswith("_passes") else f"{value:.4f}"
    plain = _plain(value)
    return escaped(plain) if isinstance(plain, str) else str(plain)


def _plain(value: Any) -> Any:
    """What JSON can hold: tensors and arrays as lists, NaN and infinity as nothing."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
