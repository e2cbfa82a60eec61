"""The robustness table: when a result is stale, what an interrupted command does again, and what the tables show."""

from __future__ import annotations

import _thread
import hashlib
import json
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import robustness_table
from benchmarks._robustness_rows import (
    NOTHING,
    Grid,
    Metric,
    cost_header,
    cost_row,
    metric_header,
    metric_rows,
    read_report,
)
from benchmarks._units import LOG, MARK, REPORT, Unit, UnitFailedError, finished, run_units
from monai_smia.reports import CLEAN, RobustnessReport, bootstrap_interval

DICE = Metric("val_mean_dice", "Dice", per_case=True)
GRID = Grid(("FGSM", "PGD"), (1, 2.5), steps=20)
CLEAN_DICE = (0.9, 0.8, 0.7)

# What stands in for a bundle: counts its calls, and leaves a report unless its settings say otherwise.
STAND_IN = """
import json, pathlib, signal, sys
arguments = json.loads(pathlib.Path(sys.argv[1]).read_text())
with open(arguments["calls"], "a") as file:
    file.write(arguments["robustness_dir"] + "\\n")
how = arguments["how"]
if how == "fail":
    print("before", flush=True)
    sys.exit("the reason")
if how == "wait":
    signal.alarm(1200)  # far behind every test: it is to be stopped, not to end
    signal.pause()
if how == "train":
    pathlib.Path(arguments["weights"]).write_bytes(b"new weights")
if how != "nothing":
    pathlib.Path(arguments["robustness_dir"], "robustness.json").write_text("{}")
"""


def stand_in(arguments: Path) -> list[str]:
    return [sys.executable, "-S", "-c", STAND_IN, str(arguments)]


def make_units(folder: Path, *how: str) -> list[Unit]:
    units = []
    for number, one in enumerate(how):
        weights = folder / f"weights{number}.pt"
        weights.write_bytes(b"weights")
        out = folder / f"out{number}"
        places = {"calls": str(folder / "calls"), "robustness_dir": str(out), "weights": str(weights)}
        units.append(Unit(f"unit {number}", out, {"weights": weights}, {"how": one, "steps": 20}, places))
    return units


def calls(folder: Path) -> list[str]:
    return [Path(line).name for line in (folder / "calls").read_text().splitlines()]


def run_of(attack: str, dice: list[float | None], **columns: Any) -> list[dict[str, Any]]:
    return [{"attack": attack, "case": f"case{i}", "val_mean_dice": value, **columns} for i, value in enumerate(dice)]


@pytest.fixture
def report(tmp_path: Path) -> RobustnessReport:
    """Three cases; Dice falls by 0.1 a budget under FGSM and by 0.2 under PGD. Saved, and read again."""
    cases, metrics = run_of(CLEAN, list(CLEAN_DICE)), {CLEAN: {"val_mean_dice": 0.8, "val_auc": 0.95}}
    for drop, passes, name in ((0.1, (2, 1), "FGSM"), (0.2, (22, 20), "PGD")):
        for level, eps in enumerate(("1", "2.5"), start=1):
            dice = [value - level * drop for value in CLEAN_DICE]
            columns = {"clean_loss": 0.1, "loss": 0.2, "largest_change": float(eps), "clean_success": False}
            columns |= {"forward_passes": passes[0], "backward_passes": passes[1]}
            rows = run_of(f"{name}_{eps}grey", dice, **columns)
            cases += [{**row, "success": row["val_mean_dice"] < 0.55} for row in rows]
            metrics[f"{name}_{eps}grey"] = {"val_mean_dice": sum(dice) / 3, "val_auc": float("nan")}
    RobustnessReport(metrics, tuple(cases), {name: "" for name in metrics}, "grey").save(tmp_path)
    return read_report(tmp_path / "robustness.json")


def test_a_row_for_each_budget_with_its_intervals(report: RobustnessReport) -> None:
    rows = metric_rows("a bundle", "robust", report, GRID, [DICE])
    low, high = bootstrap_interval(CLEAN_DICE)
    clean = f"0.800 [{low:.3f}..{high:.3f}]"
    assert [row[:6] for row in rows] == [
        ["a bundle", "robust", "Dice", "3", budget, clean] for budget in ("1 grey levels", "2.5 grey levels")
    ]
    assert metric_header(GRID)[6:] == ["FGSM", "PGD-20"]
    assert [[cell.split()[0] for cell in row[6:]] for row in rows] == [["0.700", "0.600"], ["0.600", "0.400"]]


def test_a_metric_that_is_no_mean_over_cases_has_no_interval(report: RobustnessReport) -> None:
    rows = metric_rows("a bundle", "standard", report, GRID, [Metric("val_auc", "AUC")])
    assert [row[5:] for row in rows] == [["0.950", NOTHING, NOTHING]] * 2  # not a number under attack


def test_undefined_cases_are_left_out_of_the_interval_as_of_the_mean() -> None:
    cases = (*run_of(CLEAN, [0.5, None, 0.7]), *run_of("FGSM_1grey", [0.5, None, None]))
    report = RobustnessReport(
        {CLEAN: {"val_mean_dice": 0.6}, "FGSM_1grey": {"val_mean_dice": 0.5}}, cases, {"FGSM_1grey": ""}, "grey"
    )
    (row,) = metric_rows("a bundle", "standard", report, Grid(("FGSM",), (1,), 20), [DICE])
    assert row[5:] == ["0.600 [0.500..0.700]", "0.500"]


def test_a_mean_that_is_not_that_of_its_cases_is_refused(report: RobustnessReport) -> None:
    report.metrics[CLEAN]["val_mean_dice"] = 0.7
    with pytest.raises(ValueError, match="val_mean_dice: expected the mean over the cases of 'clean'; got 0.7"):
        metric_rows("a bundle", "standard", report, GRID, [DICE])


def test_the_row_of_costs(report: RobustnessReport) -> None:
    row = cost_row("a bundle", "standard", report, GRID, seconds=7.5, digest="0123456789abcdef")
    assert dict(zip(cost_header(GRID), row, strict=True)) == {
        "bundle": "a bundle",
        "weights": "standard",
        "their SHA-256": "0123456789ab",
        "seconds per case": "2.5",
        "passes of FGSM": "2 + 1",
        "passes of PGD-20": "22 + 20",
        "clean success": "0.00",
        "success of FGSM": "0.00, 0.33",  # under 0.55: none of 0.8, 0.7, 0.6; 0.5 of 0.7, 0.6, 0.5
        "success of PGD-20": "0.33, 1.00",  # 0.5 of 0.7, 0.6, 0.5; all of 0.5, 0.4, 0.3
    }


def test_a_finished_unit_is_not_run_again_and_a_changed_one_is(tmp_path: Path) -> None:
    first, second = make_units(tmp_path, "well", "well")
    run_units([first], 1, stand_in)
    run_units([first, second], 2, stand_in)
    assert calls(tmp_path) == ["out0", "out1"]
    first.files["weights"].write_bytes(b"other weights")
    assert finished(first) is None
    assert finished(second) is not None
    run_units([first, second], 2, stand_in)
    assert calls(tmp_path) == ["out0", "out1", "out0"]


def test_what_makes_a_result_stale(tmp_path: Path) -> None:
    (unit,) = make_units(tmp_path, "well")
    assert finished(unit) is None
    run_units([unit], 1, stand_in)
    mark = finished(unit)
    assert mark is not None
    assert mark["inputs"]["files"]["weights"] == hashlib.sha256(b"weights").hexdigest()
    unit.settings["steps"] = 21
    assert finished(unit) is None
    unit.settings["steps"] = 20
    unit.places["elsewhere"] = "moved"  # where things are does not count
    assert finished(unit) is not None
    (unit.folder / REPORT).write_text("{ }")  # of a process that went on after its command was killed
    assert finished(unit) is None


def test_a_failure_shows_the_log_and_keeps_what_is_finished(tmp_path: Path) -> None:
    units = make_units(tmp_path, "well", "fail", "wait", "well")
    run_units(units[:1], 2, stand_in)
    with pytest.raises(UnitFailedError, match="the reason") as error:
        run_units(units, 2, stand_in)  # the one that waits would never end by itself
    lines = str(error.value).splitlines()
    assert lines == ["before", "the reason", f"unit 1 failed: exit code 1; its log: {units[1].folder / LOG}"]
    assert [finished(unit) is not None for unit in units] == [True, False, False, False]


@pytest.mark.parametrize(("how", "why"), [("nothing", "ended without"), ("train", "changed while it ran")])
def test_a_unit_that_cannot_be_trusted_is_not_marked(tmp_path: Path, how: str, why: str) -> None:
    (unit,) = make_units(tmp_path, how)
    with pytest.raises(UnitFailedError, match=why):
        run_units([unit], 1, stand_in)
    assert not (unit.folder / MARK).exists()


def test_an_interrupt_stops_what_runs_and_the_next_command_goes_on(tmp_path: Path) -> None:
    units = make_units(tmp_path, "well", "wait")

    def interrupt() -> None:
        while finished(units[0]) is None or len(calls(tmp_path)) < 2:
            time.sleep(0.05)
        _thread.interrupt_main()

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt, match="^$"):
            run_units(units, 1, stand_in)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert [finished(unit) is not None for unit in units] == [True, False]
    units[1].settings["how"] = "well"
    run_units(units, 1, stand_in)
    assert calls(tmp_path) == ["out0", "out1", "out1"]


def test_a_missing_file_is_found_before_anything_runs(tmp_path: Path) -> None:
    units = make_units(tmp_path, "well", "well")
    units[1].files["weights"].unlink()
    with pytest.raises(FileNotFoundError, match=r"weights1\.pt"):
        run_units(units, 1, stand_in)
    assert not (tmp_path / "calls").exists()


def test_only_the_region_between_the_markers_is_replaced() -> None:
    begin, end = robustness_table.BEGIN, robustness_table.END
    text = f"before\n\n{begin}\nold\n\nold\n{end}\n\nafter\n"
    once = robustness_table.replace_region(text, "\nnew\n")
    assert once == f"before\n\n{begin}\nnew\n{end}\n\nafter\n"
    assert robustness_table.replace_region(once, "new") == once
    for wrong in (f"{end}\n{begin}", begin, text + begin, ""):
        with pytest.raises(ValueError, match="robustness table: begin"):
            robustness_table.replace_region(wrong, "new")


def test_the_page_has_the_region() -> None:
    """Exactly once, with a table of every bundle in it; what stands around it stays."""
    text = (Path(__file__).parents[2] / "docs" / "robustness.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(robustness_table.BEGIN)
    region, _, after = rest.partition(robustness_table.END)
    for name in robustness_table.BUNDLES:
        assert f"\n| {name} | " in region
    expected = f"{before}{robustness_table.BEGIN}\nnew\n{robustness_table.END}{after}"
    assert robustness_table.replace_region(text, "new") == expected


def test_the_command_writes_its_tables_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the bundle: the report is one that lies ready."""
    runs = [f"{attack}_{eps}HU" for eps in (5, 20, 50) for attack in robustness_table.ATTACKS]
    metrics = {run: {"val_mean_dice": 0.9 - number / 100} for number, run in enumerate([CLEAN, *runs])}
    passes = {"success": True, "clean_success": False, "forward_passes": 2, "backward_passes": 1}
    cases = [{"attack": run, "case": "lung1", **values, **passes} for run, values in metrics.items()]
    ready = {"metrics": metrics, "attacks": dict.fromkeys(runs, ""), "unit": "HU", "cases": cases}
    (tmp_path / "ready.json").write_text(json.dumps(ready))
    code = (
        "import json, pathlib, shutil, sys; arguments = json.loads(pathlib.Path(sys.argv[1]).read_text());"
        "shutil.copy(sys.argv[2], arguments['robustness_dir'] + '/robustness.json')"
    )

    def copying(arguments: Path) -> list[str]:
        return [sys.executable, "-S", "-c", code, str(arguments), str(tmp_path / "ready.json")]

    monkeypatch.setattr(robustness_table, "run_units", partial(run_units, command=copying))
    models, page = tmp_path / "lung_ct_segmentation", tmp_path / "page.md"
    models.mkdir()
    (models / "model.pt").write_bytes(b"weights")
    page.write_text(f"before\n{robustness_table.BEGIN}\n{robustness_table.END}\nafter\n")
    options = ["--bundles", "lung_ct_segmentation", "--weights-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"files are missing:\n.*model_robust\.pt"):
        robustness_table.main([*options, "--write", str(page)])
    robustness_table.main([*options, "--weights", "standard", "--write", str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{robustness_table.BEGIN}\n`python -m benchmarks robustness_table --bundles lung")
    assert text.endswith(f"|\n{robustness_table.END}\nafter\n")
    for row, budget in enumerate((5, 20, 50)):
        values = " | ".join(f"{0.9 - number / 100:.3f}" for number in (0, *range(1 + 4 * row, 5 + 4 * row)))
        assert f"| lung_ct_segmentation | standard | Dice | 1 | {budget} HU | {values} |\n" in text
    assert "| 0.00 | 1.00, 1.00, 1.00 |" in text


def test_trials_are_kept_apart_marked_and_never_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {robustness_table.out_folder(tmp_path, *kind) for kind in ((20, None), (20, 2), (2, None), (2, 2))}
    assert len(folders) == 4
    assert robustness_table.out_folder(tmp_path, 20, None) == tmp_path
    assert robustness_table.trial(20, None) == ""
    assert all(robustness_table.trial(*kind) for kind in ((20, 2), (2, None), (2, 2)))
    with pytest.raises(SystemExit, match="^2$"):
        robustness_table.main(["--cases", "2", "--write", str(tmp_path / "page.md")])
    assert "--write takes results only" in capsys.readouterr().err


def test_the_table_covers_the_bundles_and_their_budgets() -> None:
    root = Path(__file__).parents[2] / "bundles"
    assert sorted(robustness_table.BUNDLES) == sorted(path.name for path in root.iterdir() if path.is_dir())
    for name in robustness_table.BUNDLES:
        unit = robustness_table.make_unit(name, "robust", Path("runs"), weights_dir=None, steps=20, cases=None)
        key, sizes = robustness_table.budgets(name)
        assert len(sizes) == 3
        assert unit.settings[key] == sizes
        assert unit.files["weights"] == root / name / "models" / "model_robust.pt"
        for file in robustness_table.CONFIGS:
            assert unit.files[f"configs/{file}"].is_file()
        train = json.loads((root / name / "configs" / "train.json").read_text())
        metrics = {**train["validate"]["key_metric"], **train["validate"].get("additional_metrics", {})}
        assert {metric.name for metric in robustness_table.BUNDLES[name].metrics} <= set(metrics)
