# SPDX-License-Identifier: Apache-2.0
"""Faults of the machine stop a run and are tried again; faults of a case stay with it; nothing of two runs is mixed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from evaluators import CPU, Task
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanSquaredError, from_engine
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.losses import DiceLoss
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged

from monai_smia.attacks import PGD
from monai_smia.engines import CaseByCase, progress_log
from monai_smia.engines.faults import MachineFault, is_mistake, of_machine, raised_by_us
from monai_smia.engines.folder_lock import FolderInUse, FolderLock
from monai_smia.engines.progress_log import read_log
from monai_smia.engines.shards import Shard
from monai_smia.reports import files
from monai_smia.reports.files import OutputFault, is_temporary, write_whole

KEYS = ("image", "label")


def runner(task: Task, folder: Path, evaluator: Any = None, **arguments: Any) -> CaseByCase:
    evaluator = task.evaluator(batch_size=1) if evaluator is None else evaluator
    return CaseByCase(
        evaluator, task.attacks(), **{"folder": folder, "progress": False, "diagnose": False, **arguments}
    )


class Failing(Dataset):
    """The second case cannot be had."""

    def __init__(self, items: Any, error: BaseException | None) -> None:
        super().__init__(items)
        self.error = error

    def _transform(self, index: int) -> Any:
        if index == 1 and self.error is not None:
            raise self.error
        return super()._transform(index)


MACHINE = {
    "disk full": OSError(errno.ENOSPC, "No space left on device"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "too many files": OSError(errno.EMFILE, "Too many open files"),
    "memory": MemoryError(),
    "memory of a device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "torch's memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    "device": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "output": OutputFault(errno.EIO, "Input/output error", "progress.pt"),
}
CASE = {
    "gone": FileNotFoundError(errno.ENOENT, "No such file or directory", "a.nii"),
    "unreadable": OSError(errno.EIO, "Input/output error", "a.nii"),
    "forbidden": PermissionError(errno.EACCES, "Permission denied", "a.nii"),
    "shape": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "value": ValueError("not a number"),
}


@pytest.mark.parametrize("name", MACHINE)
def test_a_fault_of_the_machine_stops_the_run_and_is_tried_again(tmp_path: Path, name: str) -> None:
    assert of_machine(MACHINE[name])
    task = Task(2, cases=3)
    dataset = Failing(task.items(), MACHINE[name])
    evaluator = task.evaluator(val_data_loader=DataLoader(dataset, batch_size=1))
    with pytest.raises(MachineFault, match=r"1 \(loading\): |case_1.nii.gz \(loading\): "):
        runner(task, tmp_path, evaluator).run()
    assert read_log(tmp_path / "progress.pt").progress.done == [0]
    dataset.error = None
    run = runner(task, tmp_path, evaluator, resume=True)
    assert run.state.done == [0]
    report = run.run()
    assert run.failures == ()
    assert report.metrics == CaseByCase(
        task.evaluator(batch_size=1), task.attacks(), progress=False, diagnose=False
    ).run().metrics  # fmt: skip


@pytest.mark.parametrize("name", CASE)
def test_a_fault_of_a_case_stays_with_it_until_it_is_tried_again(tmp_path: Path, name: str) -> None:
    assert not of_machine(CASE[name])
    task = Task(2, cases=3)
    dataset = Failing(task.items(), CASE[name])
    evaluator = task.evaluator(val_data_loader=DataLoader(dataset, batch_size=2))
    run = runner(task, tmp_path, evaluator)
    run.run()
    assert [failure.stage for failure in run.failures] == ["loading"]
    dataset.error = None
    assert len(runner(task, tmp_path, evaluator, resume=True).failures) == 1
    again = runner(task, tmp_path, evaluator, retry_failed=True)
    report = again.run()
    assert again.failures == ()
    whole = CaseByCase(task.evaluator(batch_size=2), task.attacks(), progress=False, diagnose=False).run()
    assert report.metrics == whole.metrics
    assert report.cases == whole.cases
    after = runner(task, tmp_path, evaluator, resume=True)
    assert after.failures == ()
    assert after.run().metrics == whole.metrics


def test_a_disk_that_fills_up_while_the_log_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a record is taken away again; the run stops as the machine's fault and goes on afterwards."""
    task = Task(2, cases=3)
    full = [False, True, True, True]
    true = os.fsync

    def fsync(handle: int) -> None:
        if full.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")
        true(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputFault, match="No space left on device"):
        runner(task, tmp_path).run()
    monkeypatch.setattr(os, "fsync", true)
    assert read_log(tmp_path / "progress.pt").progress.done == [0]
    assert not [file for file in tmp_path.iterdir() if is_temporary(file)]
    assert runner(task, tmp_path, resume=True).run().metrics == runner(task, tmp_path / "whole").run().metrics


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff" * 100, b"\0" * 5, b"garbage" * 999], ids=["0", "f", "few", "g"])
def test_what_a_power_cut_leaves_is_cut_off(tmp_path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
    task = Task(2, cases=3)
    report = runner(task, tmp_path).run()
    file = tmp_path / "progress.pt"
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    run = runner(task, tmp_path, resume=True)
    assert f"ended in {len(tail)} bytes that are no record" in caplog.text
    assert file.read_bytes() == whole
    assert run.state.done == [0, 1, 2]
    assert run.run() == report


def test_a_record_that_is_damaged_in_the_middle_is_done_anew_alone(tmp_path: Path) -> None:
    task = Task(2, cases=3)
    report = runner(task, tmp_path).run()
    file = tmp_path / "progress.pt"
    content = bytearray(file.read_bytes())
    frames = [end for _, end in progress_log._frames(bytes(content))]
    content[(frames[1] + frames[2]) // 2] ^= 1  # of the second case
    file.write_bytes(content)
    run = runner(task, tmp_path, resume=True)
    assert run.state.done == [0, 2]
    assert run.run() == report
    assert runner(task, tmp_path, resume=True).state.done == [0, 1, 2]


def test_a_second_run_into_the_folder_is_refused(tmp_path: Path) -> None:
    task = Task(2, cases=2)
    with FolderLock(tmp_path), pytest.raises(FolderInUse, match=f"{tmp_path} is in use by process {os.getpid()} on"):
        runner(task, tmp_path).run()
    assert list(tmp_path.iterdir()) == []
    runner(task, tmp_path).run()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["progress.pt"]


def test_more_shards_than_anybody_has_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"shard: expected i/n with n up to 100000, .*; got '1/1000000000000'"):
        Shard.of("1/1000000000000")
    assert Shard.of("1/100000").count == 100_000


def saved(folder: Path) -> list[dict[str, str]]:
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        for key in KEYS:
            values = (numbers.random((6, 6)).round(0 if key == "label" else 9)).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{name}_{key}.nii")
    return [{key: str(folder / f"{name}_{key}.nii") for key in KEYS} for name in ("a", "b", "c")]


class Setting:
    """An evaluation of files, and what may change between two runs."""

    def __init__(self, items: list[dict[str, str]]) -> None:
        self.items = items
        self.transforms: list[Any] = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS)]
        self.inferer: Any = SlidingWindowInferer(4, overlap=0.25)
        self.post: Any = Compose([])
        self.eps, self.weight, self.steps, self.squared = 0.1, 2.0, 1, True
        self.loss: torch.nn.Module = torch.nn.BCEWithLogitsLoss()

    def run(self, folder: Path, **arguments: Any) -> CaseByCase:
        network = torch.nn.Conv2d(1, 1, 1)
        with torch.no_grad():
            network.weight.fill_(self.weight)
            network.bias.fill_(-1)
        evaluator = SupervisedEvaluator(
            device=CPU,
            val_data_loader=DataLoader(Dataset(self.items, Compose(self.transforms)), batch_size=1),
            network=network,
            inferer=self.inferer,
            postprocessing=self.post,
            key_val_metric={"mse": MeanSquaredError(output_transform=from_engine(KEYS[::-1]))},
            decollate=False,
        )
        attack = PGD(self.loss, eps=self.eps, steps=self.steps)
        return CaseByCase(evaluator, {"PGD": attack}, folder=folder, progress=False, diagnose=False, **arguments)


CHANGES: dict[str, Any] = {
    "weights": lambda s: setattr(s, "weight", 3.0),
    "preprocessing": lambda s: s.transforms.append(ScaleIntensityRanged("image", 0, 1, 0, 2)),
    "inferer": lambda s: setattr(s, "inferer", SlidingWindowInferer(4, overlap=0.5)),
    "inferer ": lambda s: setattr(s, "inferer", SimpleInferer()),
    "postprocessing": lambda s: setattr(s, "post", Compose([ScaleIntensityRanged("pred", 0, 1, 0, 2)])),
    "attack PGD": lambda s: setattr(s, "eps", 0.2),
    "attack PGD ": lambda s: setattr(s, "loss", DiceLoss(sigmoid=True)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_gone_on_with_by_its_like_alone(tmp_path: Path, name: str) -> None:
    """A2: each part is refused by its name, and the log is as it was."""
    setting = Setting(saved(tmp_path / "data"))
    first = setting.run(tmp_path / "out")
    report = first.run()
    before = (tmp_path / "out" / "progress.pt").read_bytes()
    same = Setting(setting.items)
    assert same.run(tmp_path / "out", resume=True).run() == report
    CHANGES[name](setting)
    with pytest.raises(ValueError, match=f"resume: the earlier run had {name.strip()} = .*; expected the same, got "):
        setting.run(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "progress.pt").read_bytes() == before


@pytest.mark.parametrize("key", KEYS)
def test_files_of_cases_that_are_done_must_be_what_they_were(tmp_path: Path, key: str) -> None:
    """A2: other content of equal size, with the old time of change; of a case that is not done it does not matter."""
    setting = Setting(saved(tmp_path / "data"))
    run = setting.run(tmp_path / "out")
    keep, kept = run._keeper.keep, []

    def stopped(record: Any) -> None:
        keep(record)
        kept.append(record)
        if len(kept) == 2:
            raise KeyboardInterrupt

    run._keeper.keep = stopped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()

    def change(case: int) -> bytes:
        file = Path(setting.items[case][key])
        status, content = file.stat(), bytearray(file.read_bytes())
        content[-1] ^= 1
        old = file.read_bytes()
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        return old

    old = change(1)
    with pytest.raises(ValueError, match=r"resume: the earlier run had .*b_image.nii with content \w{12}; expected"):
        setting.run(tmp_path / "out", resume=True).run()
    Path(setting.items[1][key]).write_bytes(old)
    change(2)
    assert len(setting.run(tmp_path / "out", resume=True).run().cases) == 6


def test_whose_error_it_is() -> None:
    def caught(function: Any) -> Exception:
        try:
            function()
        except Exception as error:
            return error
        raise AssertionError

    refused = caught(lambda: Shard.of("3/2"))
    assert (raised_by_us(refused), is_mistake(refused)) == (True, False)
    ours = caught(lambda: read_log(None))  # type: ignore[arg-type]
    assert (raised_by_us(ours), is_mistake(ours)) == (False, True)
    theirs = caught(lambda: torch.zeros(2) + torch.zeros(3))
    assert (raised_by_us(theirs), is_mistake(theirs)) == (False, False)


def test_a_file_is_as_it_was_when_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "a", "old")

    def refuse(*args: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OutputFault, match="Disk quota exceeded"):
        write_whole(tmp_path / "a", "new", overwrite=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


def test_a_link_to_nowhere_is_something_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="link exists"):
        write_whole(tmp_path / "link", "new")
