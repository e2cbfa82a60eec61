"""A row's clean and adversarial values are of one image: runs are paired by what images hold, not by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from evaluators import Task
from monai.data import DataLoader, Dataset, PersistentDataset
from monai.transforms import LoadImaged, RandGaussianNoised, RandShiftIntensityd
from torch.utils.data import IterableDataset

from monai_smia import AttackEvaluator, evaluate_robustness
from monai_smia.attacks import GaussianNoise
from monai_smia.engines import CaseByCase
from monai_smia.engines.records import short_names, unique_names
from monai_smia.handlers.batch import image_checksums

TASK = Task(cases=6)
STILL = {"still": GaussianNoise(TASK.loss(), eps=0.0)}


def unnamed(task: Task = TASK) -> list[dict[str, Any]]:
    """In memory: their names are running numbers."""
    return [{"image": item["image"].as_tensor(), "label": item["label"]} for item in task.items()]


def compared(loader: Any, **arguments: Any) -> Any:
    return evaluate_robustness(
        TASK.evaluator(val_data_loader=loader, **arguments), STILL, diagnose=False, progress=False
    )


def test_shuffled_images_without_names_are_refused() -> None:
    loader = DataLoader(Dataset(unnamed()), batch_size=2, shuffle=True)
    with pytest.raises(ValueError, match=r"gives the cases in another order at every run; .* got \d where \d was"):
        compared(loader)


@pytest.mark.parametrize("named", [True, False])
def test_augmentation_left_in_the_validation_data_is_refused(named: bool) -> None:
    data = TASK.items() if named else unnamed()
    loader = DataLoader(Dataset(data, RandShiftIntensityd("image", 0.2, prob=1.0)), batch_size=2)
    case = "/data/case_0.nii.gz" if named else "0"
    with pytest.raises(ValueError, match=f"other images at every run; .*without randomness.*image of {case} is not"):
        compared(loader)


def test_augmentation_is_of_no_harm_where_a_batch_is_loaded_once() -> None:
    """Case by case and in one pass every run has the same loaded batch: a budget of zero changes nothing."""
    noisy = Dataset(TASK.items(), RandGaussianNoised("image", prob=1.0, std=0.2))
    loader = DataLoader(noisy, batch_size=2)
    reports = [CaseByCase(TASK.evaluator(val_data_loader=loader), STILL, diagnose=False, progress=False).run()]
    one = TASK.evaluator(AttackEvaluator, attacks=STILL, val_data_loader=loader, progress=False)
    one.run()
    for report in (*reports, one.report()):
        values = report.cases_frame().pivot(index="case", columns="attack", values="val_dice")
        assert values["clean"].tolist() == values["still"].tolist()


def test_a_cold_cache_on_disk(tmp_path: Path) -> None:
    """The second run reads tensors that have forgotten their files; rows carry the names of the first."""
    (tmp_path / "data").mkdir()
    for i, image in enumerate(TASK.images()):
        nibabel.save(nibabel.Nifti1Image(image[0].numpy(), np.eye(4)), tmp_path / "data" / f"case_{i}.nii.gz")
    files = sorted((tmp_path / "data").glob("*.nii.gz"))
    items = [{"image": str(file), "label": label} for file, label in zip(files, TASK.labels(), strict=True)]
    load = LoadImaged("image", ensure_channel_first=True, image_only=True)

    def loader(folder: str) -> DataLoader:
        return DataLoader(PersistentDataset(items, load, cache_dir=tmp_path / folder), batch_size=2)

    report = compared(loader("cold"))
    assert {row["case"] for row in report.cases} == {file.name for file in files}
    warm = loader("warm")
    list(warm)
    assert compared(warm).metrics == report.metrics
    assert report.metrics["still"] == report.metrics["clean"]


def test_a_loader_that_can_be_read_once_is_refused() -> None:
    class Once(IterableDataset):
        def __init__(self) -> None:
            self.items = iter(unnamed())

        def __iter__(self) -> Any:
            return self.items

    loader = DataLoader(Once(), batch_size=2)
    with pytest.raises(ValueError, match="6 cases in the clean run and 0 under 'still'; expected a loader that can"):
        compared(loader, epoch_length=3)


def test_checksums_are_of_values_shape_and_type() -> None:
    images = torch.arange(12.0).reshape(3, 1, 2, 2)
    one, two, three = image_checksums(images)
    assert len({one, two, three}) == 3
    assert image_checksums(images.flip(0)) == [three, two, one]
    assert image_checksums(images.transpose(2, 3))[0] != one
    assert image_checksums(images.reshape(3, 1, 4, 1))[0] != one
    assert image_checksums(images.double())[0] != one
    assert image_checksums(images.to(torch.bfloat16))[0] != one
    assert image_checksums(images.clone()) == [one, two, three]


@pytest.mark.parametrize("way", ["by runs", "by cases", "in one pass"])
def test_several_cases_of_one_file_keep_apart(way: str) -> None:
    """Slices of a volume, say: each has a row of its own, with a name that is the same in every way of evaluating."""
    items = TASK.items()
    for i, item in enumerate(items):
        item["image"].meta["filename_or_obj"] = f"/data/volume_{i // 4}.nii.gz"
    loader = DataLoader(Dataset(items), batch_size=4)
    if way == "by runs":
        report = compared(loader)
    elif way == "by cases":
        run = CaseByCase(TASK.evaluator(val_data_loader=loader), STILL, diagnose=False, progress=False)
        report = run.run()
        assert list(run.case_names().values()) == [row["case"] for row in report.cases if row["attack"] == "clean"]
    else:
        one = TASK.evaluator(AttackEvaluator, attacks=STILL, val_data_loader=loader, progress=False)
        one.run()
        report = one.report()
    first = ["volume_0.nii.gz", *(f"volume_0.nii.gz ({k})" for k in (2, 3, 4))]
    expected = [*first, "volume_1.nii.gz", "volume_1.nii.gz (2)"]
    for name in ("clean", "still"):
        assert [row["case"] for row in report.cases if row["attack"] == name] == expected


def test_names_are_unique_whatever_the_files() -> None:
    assert unique_names(["a", "a (2)", "a", "a"]) == ["a", "a (2)", "a (2) (2)", "a (3)"]
    files = [f"/data/{i % 3}/{i % 5}/image.nii" for i in range(60)]
    assert len(set(short_names(files))) == len(set(unique_names(files))) == 60


def test_short_names_of_many_files_take_no_time_by_the_square() -> None:
    """A file is compared with no other one: each is asked for its name a fixed number of times."""
    asked = [0]

    class Counting(str):
        def __eq__(self, other: object) -> bool:
            asked[0] += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    number = 400
    short_names([Counting(f"/data/{i}/image.nii") for i in range(number)])
    assert asked[0] < 20 * number
