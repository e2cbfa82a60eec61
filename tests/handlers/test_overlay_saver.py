"""`OverlaySaver`: which pictures are written, under which names, of what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import Task
from monai.data import DataLoader, Dataset, MetaTensor

import monai_smia.handlers.overlay_saver as module
from monai_smia.engines import AttackEvaluator
from monai_smia.handlers import OverlaySaver
from monai_smia.intensity import IntensityScale


def run(task: Task, saver: OverlaySaver, **arguments: Any) -> AttackEvaluator:
    evaluator = task.evaluator(
        AttackEvaluator, attacks=task.attacks(), progress=False, val_handlers=[saver], **arguments
    )
    evaluator.run()
    return evaluator


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been drawn, instead of pictures."""
    calls: list[dict[str, Any]] = []

    def overlay(*images: torch.Tensor, **words: Any) -> bytes:
        calls.append({"images": images, **words})
        return b"picture"

    monkeypatch.setattr(module, "overlay", overlay)
    return calls


def test_writes_pictures_that_decode(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    run(Task(3, cases=2), OverlaySaver(tmp_path / "new", max_cases=1))
    names = ["case_0_bim.png", "case_0_pgd.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    for name in names:
        with image.open(tmp_path / "new" / name) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("PNG", (1500, 360))
            assert len(picture.convert("L").getcolors(maxcolors=256)) > 20


def test_draws_what_the_attack_did_in_physical_units(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    task, scale = Task(2), IntensityScale(-1000, 400, clip=True)
    run(task, OverlaySaver(tmp_path, intensity=scale))
    assert [call["title"] for call in drawn] == [
        f"case_{i}: {name}" for batch in ((0, 1), (2,)) for name in ("bim", "pgd") for i in batch
    ]
    network, attack = task.network().eval(), task.attacks()["bim"]
    adversarial = attack(network, task.images(), task.labels()).adversarial
    for call in drawn:
        if not call["title"].endswith("bim"):
            continue
        i = int(call["title"][5])
        clean, attacked, before, after, label = (torch.as_tensor(value) for value in call["images"])
        torch.testing.assert_close(clean, task.images()[i] * 1400 - 1000, rtol=1e-6, atol=1e-3)
        torch.testing.assert_close(attacked, adversarial[i] * 1400 - 1000, rtol=1e-6, atol=1e-3)
        with torch.no_grad():
            classes = network(torch.stack([task.images()[i], adversarial[i]])).argmax(1)
        assert torch.equal(before.argmax(0), classes[0])
        assert torch.equal(after.argmax(0), classes[1])
        assert torch.equal(label.argmax(0), task.labels()[i, 0])
        assert call["unit"] == "HU"


def test_cases_without_a_file_are_numbered_also_in_a_last_short_batch(
    tmp_path: Path, drawn: list[dict[str, Any]]
) -> None:
    task = Task(2)  # three cases, batches of two and one
    run(task, OverlaySaver(tmp_path), val_data_loader=task.batches(2))
    expected = [f"{i}_{name}.png" for i in range(3) for name in ("bim", "pgd")]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    run(task, OverlaySaver(tmp_path / "two", max_cases=2), val_data_loader=task.batches(1))
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == expected[:4]


def test_a_second_run_replaces_the_first(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    evaluator = run(Task(2), OverlaySaver(tmp_path))
    evaluator.run()
    assert len(drawn) == 12
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ct.nii.gz", "ct"),
        ("scan.png", "scan"),
        ("patient.07.nii", "patient.07"),
        ("1.2.840.113619.2.55", "1.2.840.113619.2.55"),
        ("1.2.840.113619.2.56.dcm", "1.2.840.113619.2.56"),
    ],
)
def test_a_name_loses_its_suffix_and_no_more(tmp_path: Path, drawn: list[dict[str, Any]], file: str, name: str) -> None:
    task = Task(2, cases=1)
    (item,) = task.items()
    item["image"] = MetaTensor(item["image"].as_tensor(), meta={"filename_or_obj": f"/data/{file}"})
    run(task, OverlaySaver(tmp_path), val_data_loader=DataLoader(Dataset([item])))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}_bim.png", f"{name}_pgd.png"]
