"""The report's pictures are of the cases that suffered most, whatever their number and order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from monai_smia.bundle.view_keeper import ViewKeeper

RISES = {"a.png": 0.3, "b.png": 2.0, "c.png": 0.1, "d.png": 1.0, "e.png": 3.0}


def show(keeper: ViewKeeper, name: str, rise: float, noted: bool = True) -> None:
    """One case of a batch: clean, then two attacks of one budget and one of another."""
    image = torch.full((1, 1, 4, 4), 0.5)
    output = torch.zeros(1, 2, 4, 4)

    def saw(run: str, change: float, gain: float | None) -> None:
        result: Any = None
        if gain is not None:
            result = SimpleNamespace(
                loss=torch.tensor([gain]), clean_loss=torch.tensor([0.0]), adversarial=image + change
            )
        batch = [{"image": image[0], "label": torch.zeros(1, 4, 4)}]
        keeper.saw(run, batch, None, output, result)

    saw("clean", 0.0, None)
    saw("FGSM_5HU", 0.01, rise / 2)
    saw("PGD_5HU", 0.02, rise)
    saw("PGD_10HU", 0.04, rise / 4)
    keeper.keep([f"/data/{name}"], SimpleNamespace())  # type: ignore[arg-type]
    if noted:
        keeper.noted()


@pytest.mark.parametrize("restart", [False, True], ids=["one go", "a new process for each case"])
def test_the_worst_are_kept(tmp_path: Path, restart: bool) -> None:
    keeper = ViewKeeper(tmp_path, keep=2)
    for name, rise in RISES.items():
        keeper = ViewKeeper(tmp_path, keep=2) if restart else keeper
        show(keeper, name, rise)
    views = keeper.views({f"/data/{name}": name for name in RISES})
    assert [view.case for view in views] == ["e.png", "b.png"]
    assert len(list(tmp_path.glob("*.npz"))) == 2
    for view in views:  # with every run: which is the worst depends on the metric
        assert list(view.adversarial) == ["FGSM_5HU", "PGD_5HU", "PGD_10HU"]
        assert float(view.adversarial["PGD_5HU"].max()) == pytest.approx(0.52)


def test_a_batch_that_failed_leaves_nothing(tmp_path: Path) -> None:
    keeper = ViewKeeper(tmp_path, keep=2)
    keeper.saw("clean", [{"image": torch.zeros(1, 4, 4)}], None, torch.zeros(1, 2, 4, 4), None)
    keeper.drop()
    keeper.keep(["/data/a.png"], SimpleNamespace())  # type: ignore[arg-type]
    assert keeper.views({"/data/a.png": "a.png"}) == []
    assert not list(tmp_path.glob("*.npz"))


def test_a_kill_between_the_views_and_the_log_loses_no_view(tmp_path: Path) -> None:
    """The batch of the kill is done anew; what it would have replaced is there until then, also where it fails then."""
    keeper = ViewKeeper(tmp_path, keep=2)
    show(keeper, "a.png", 1.0)
    show(keeper, "b.png", 2.0)
    show(keeper, "c.png", 3.0, noted=False)  # and here the kill
    names = {f"/data/{name}.png": f"{name}.png" for name in "abc"}
    again = ViewKeeper(tmp_path, keep=2)
    again.known(["/data/a.png", "/data/b.png"])
    assert [view.case for view in again.views(names)] == ["b.png", "a.png"]
    show(again, "c.png", 3.0)
    assert [view.case for view in again.views(names)] == ["c.png", "b.png"]
    assert [view.case for view in ViewKeeper(tmp_path, keep=2).views(names)] == ["c.png", "b.png"]


def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"a": {"file": "../precious.npz", "score": 1}}')
    with pytest.raises(ValueError, match=r"index\.json: cases\.a\.file: expected a path inside of its folder"):
        ViewKeeper(tmp_path)
