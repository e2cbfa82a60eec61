"""The transforms in loaders, caches, worker processes and threads: what a loop over direct calls gives, to the bit."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contract
import numpy as np
import pytest
import torch
from evaluators import BOUNDS, EPS, Task
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset, ThreadDataLoader
from monai.transforms import Compose, CopyItemsd, ScaleIntensityRanged
from monai.utils import MAX_SEED, set_determinism
from torch import nn

from monai_smia.attacks import PGD, Attack
from monai_smia.transforms import AdversarialAttack, AdversarialAttackd, RandAdversarialAttackd

CASES = 6
PROB = 0.5


def pgd() -> Attack:
    """Steps too small to forget the random start."""
    return PGD(Task().loss(), eps=EPS, steps=2, step_size=EPS / 10, bounds=BOUNDS, random_start=True)


def direct(network: nn.Module, image: torch.Tensor, label: torch.Tensor, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return pgd()(network, image[None], label[None], generator=source).adversarial[0]


def images_of(loader: Iterable[Any], key: str = "image") -> torch.Tensor:
    return torch.cat([torch.as_tensor(np.asarray(batch[key])) for batch in loader])


def drawn(network: nn.Module, task: Task, cases: Iterable[int], seed: int) -> list[torch.Tensor]:
    """What a `RandAdversarialAttackd`, alone in a `Compose` with that seed, makes of these cases one after another."""
    seed = int(np.random.RandomState(seed % MAX_SEED).randint(MAX_SEED, dtype="uint32"))
    whether, seeds = (np.random.RandomState(seed % MAX_SEED) for _ in range(2))
    images = []
    for i in cases:
        image = task.images()[i]
        if whether.rand() < PROB:
            seeds.rand()
            image = direct(network, image, task.labels()[i], int(seeds.randint(MAX_SEED, dtype="uint32")))
        images.append(image)
    return images


LOADERS = {
    "DataLoader": lambda data: DataLoader(data, batch_size=2),
    "fork": lambda data: DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork"),
    "ThreadDataLoader": lambda data: ThreadDataLoader(data, batch_size=2),
    "thread workers": lambda data: ThreadDataLoader(data, batch_size=2, num_workers=2, use_thread_workers=True),
    "thread and fork": lambda data: ThreadDataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork"),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_every_loader_gives_what_direct_calls_give(loader: Any) -> None:
    task = Task(cases=CASES)
    network = task.network()
    network(task.images()).sum().backward()  # autograd has worked in this process before any fork
    expected = torch.stack(
        [direct(network, image, label, seed=7) for image, label in zip(task.images(), task.labels(), strict=True)]
    )
    with contract.unchanged(network):
        batches = list(loader(Dataset(task.items(), AdversarialAttackd("image", pgd(), network, seed=7))))
    assert torch.equal(images_of(batches), expected)
    assert all(type(batch["image"]) is MetaTensor for batch in batches)
    names = [name for batch in batches for name in batch["image"].meta["filename_or_obj"]]
    assert names == [f"/data/case_{i}.nii.gz" for i in range(CASES)]


def test_two_spawned_workers() -> None:
    task = Task(cases=CASES)
    network = task.network()
    transform = Compose(
        [
            CopyItemsd("image", names="again"),
            AdversarialAttackd("image", pgd(), network, seed=7),
            RandAdversarialAttackd("again", pgd(), network, prob=PROB),
        ]
    )
    loader = DataLoader(
        Dataset(task.items(), transform),
        batch_size=1,
        num_workers=2,
        multiprocessing_context="spawn",
        generator=torch.Generator().manual_seed(5),
    )
    batches = list(loader)
    expected = [direct(network, x, y, seed=7) for x, y in zip(task.images(), task.labels(), strict=True)]
    assert torch.equal(images_of(batches), torch.stack(expected))
    base = torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(5)).item()
    found = images_of(batches, "again")
    for worker in range(2):
        again = drawn(network, task, range(worker, CASES, 2), base + worker)
        assert torch.equal(found[worker::2], torch.stack(again))


def test_random_transforms_differ_between_workers_and_are_seeded_by_the_loader() -> None:
    task = Task(cases=8)
    network = task.network()

    def epoch() -> torch.Tensor:
        loader = DataLoader(
            Dataset(task.items(), RandAdversarialAttackd("image", pgd(), network, prob=PROB)),
            batch_size=1,
            num_workers=2,
            multiprocessing_context="fork",
            generator=torch.Generator().manual_seed(3),
        )
        return images_of(loader)

    base = torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(3)).item()
    found = epoch()
    for worker in range(2):
        expected = torch.stack(drawn(network, task, range(worker, 8, 2), base + worker))
        assert torch.equal(found[worker::2], expected)
    assert torch.equal(epoch(), found)


@pytest.mark.parametrize("workers", [0, 2])
def test_set_determinism_makes_random_transforms_repeatable(workers: int) -> None:
    task = Task(cases=CASES)
    network = task.network()
    item = task.items()[0]
    data = Dataset([item] * CASES, Compose([RandAdversarialAttackd("image", pgd(), network, prob=1.0)]))
    runs = []
    try:
        for seed in (1, 1, 2):
            set_determinism(seed)
            loader = DataLoader(data, num_workers=workers, multiprocessing_context="fork" if workers else None)
            runs.append([images_of(loader) for _ in range(2)])
    finally:
        set_determinism(None)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, False
    assert all(torch.equal(one, other) for one, other in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])
    for images in runs[0]:  # one item, attacked with new randomness each time, in each worker and in each epoch
        assert len({image.numpy().tobytes() for image in images}) == CASES
    assert not torch.equal(*runs[0])


@pytest.mark.parametrize("kind", ["cache", "persistent", "cache with workers"])
def test_caches_keep_what_comes_before_and_attack_the_weights_of_the_day(kind: str, tmp_path: Path) -> None:
    task = Task(cases=3)
    network = task.network()
    scale = ScaleIntensityRanged("image", a_min=0, a_max=1, b_min=0, b_max=0.5)
    steps = [scale, AdversarialAttackd("image", pgd(), network)]
    items = [{"image": image, "label": label} for image, label in zip(task.images(), task.labels(), strict=True)]
    if kind == "persistent":
        data: Dataset = PersistentDataset(items, Compose(steps), cache_dir=tmp_path)
    else:
        data = CacheDataset(items, steps, num_workers=2 if kind.endswith("workers") else None, progress=False)
        assert torch.equal(data._cache[0]["image"].as_tensor(), task.images()[0] / 2)  # cached, and not attacked
    seen = []
    for _ in range(2):
        found = images_of(DataLoader(data))
        expected = [direct(network, x / 2, y, seed=0) for x, y in zip(task.images(), task.labels(), strict=True)]
        assert torch.equal(found, torch.stack(expected))
        seen.append(found)
        with torch.no_grad():
            network[0].weight.neg_()
    assert not torch.equal(*seen)


class OnCuda(nn.Module):
    """A network that says it is on a GPU, on machines without one."""

    def parameters(self, recurse: bool = True) -> Any:
        return iter([SimpleNamespace(device=torch.device("cuda:0"))])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it must not come to this")


class Messages(Dataset):
    """The messages of the errors that transforms raise, each for one case, in the process that asks."""

    def __init__(self, transforms: list[Any]) -> None:
        super().__init__(transforms)

    def __getitem__(self, index: int) -> str:
        with pytest.raises(RuntimeError, match="^network: expected one on the CPU") as caught:
            self.data[index](Task().items()[0])
        return str(caught.value)


def test_a_worker_process_refuses_what_is_not_on_the_cpu() -> None:
    cpu, meta = Task().network(), Task().network().to("meta")
    rows = {
        "cuda:0": [
            AdversarialAttackd("image", pgd(), OnCuda()),
            AdversarialAttackd("image", pgd(), OnCuda(), device="cpu"),
            AdversarialAttackd("image", pgd(), cpu, device="cuda:0"),
            AdversarialAttackd("image", pgd(), lambda image: image, device="cuda:0"),
            RandAdversarialAttackd("image", pgd(), OnCuda(), prob=1.0),
        ],
        "meta": [AdversarialAttackd("image", pgd(), meta)],
    }
    for device, transforms in rows.items():
        loader = DataLoader(
            Messages(transforms), num_workers=1, multiprocessing_context="fork", collate_fn=lambda batch: batch[0]
        )
        messages = list(loader)
        assert len(messages) == len(transforms)
        for message in messages:
            assert message.startswith(f"network: expected one on the CPU in a loader's worker process; got {device}.")
            assert all(way in message for way in ("num_workers=0", "ThreadDataLoader", "AttackHandler"))


@pytest.mark.parametrize("loader", ["DataLoader", "ThreadDataLoader", "thread workers"])
def test_threads_of_the_main_process_do_not_refuse(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task()
    network = task.network()
    transform = AdversarialAttackd("image", pgd(), network, device="cpu")
    monkeypatch.setattr("monai_smia.transforms.adversarial._device_of", lambda network: torch.device("cuda:0"))
    found = images_of(LOADERS[loader](Dataset(task.items(), transform)))
    expected = [direct(network, x, y, seed=0) for x, y in zip(task.images(), task.labels(), strict=True)]
    assert torch.equal(found, torch.stack(expected))


class Crowded(nn.Module):
    """Notes how many threads are inside at once, and lingers so that others would come in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.inside = 0
        self.most = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.005)
        self.inside -= 1
        return self.network(image)


def test_threads_attack_one_network_one_after_another() -> None:
    task = Task(cases=4)
    network = Crowded(task.network())
    cases = list(zip(task.images(), task.labels(), strict=True))  # here: making labels draws weights for a moment
    expected = [direct(network, image, label, seed=0) for image, label in cases]
    found: dict[int, torch.Tensor] = {}
    ready = threading.Barrier(4)

    def work(i: int) -> None:
        transform = AdversarialAttack(pgd(), network)  # a transform each: they share the network
        ready.wait()
        found[i] = transform(*cases[i])

    with contract.unchanged(network):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert network.most == 1
    assert all(torch.equal(found[i], expected[i]) for i in range(4))


BACKSTOP = 600
"""Seconds after which a hang becomes a failure."""


def test_a_fork_during_an_attack_in_another_thread_does_not_hang() -> None:
    task = Task()
    entered, leave = threading.Event(), threading.Event()
    network = task.network()

    def waiting(image: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            leave.wait()
        return network(image)

    attacker = threading.Thread(
        target=AdversarialAttack(pgd(), waiting), args=(task.images()[0], task.labels()[0]), daemon=True
    )
    attacker.start()
    assert entered.wait(timeout=BACKSTOP)
    try:
        data = Dataset(task.items(), AdversarialAttackd("image", pgd(), network))
        loader = DataLoader(data, num_workers=1, multiprocessing_context="fork", timeout=BACKSTOP)
        found = images_of(loader)
    finally:
        leave.set()
        attacker.join()
    expected = [direct(network, x, y, seed=0) for x, y in zip(task.images(), task.labels(), strict=True)]
    assert torch.equal(found, torch.stack(expected))
    assert not multiprocessing.active_children()
