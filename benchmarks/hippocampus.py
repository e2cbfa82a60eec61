# SPDX-License-Identifier: Apache-2.0
"""Standard training, PGD-AT by handler and TRADES of one 3-D UNet on hippocampus MRI, at equal time; then attacked."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandAffined,
    RandGaussianNoised,
    ResizeWithPadOrCropd,
    ScaleIntensityd,
    ThresholdIntensityd,
)
from monai.utils import set_determinism
from torch import nn
from tqdm import tqdm

from benchmarks._measure import data_folder, hardware, race, spread, table
from monai_smia.attacks import PGD, SMIA, TPGD, Attack, GaussianNoise
from monai_smia.engines import RobustTrainer, evaluate_robustness
from monai_smia.handlers import AttackHandler
from monai_smia.losses import TRADESLoss
from monai_smia.reports import RobustnessReport, bootstrap_interval

SEED = 0
SIZE = (48, 64, 48)
BATCH = 4
CPU = torch.device("cpu")
LOSS = DiceCELoss(to_onehot_y=True, softmax=True)
BOUNDS = (0.0, 1.0)
BUDGETS = {"4/255": 4 / 255, "8/255": 8 / 255}
TRAIN_EPS = 8 / 255


def items(folder: Path, part: str) -> list[dict[str, str]]:
    """The cases of ``training``, ``validation`` or ``test``, as the folder's ``dataset.json`` splits them."""
    lists = json.loads((folder / "dataset.json").read_text())
    return [{key: str(folder / file) for key, file in item.items()} for item in lists[part]]


def loader(folder: Path, part: str, cases: int | None = None) -> DataLoader:
    """Images scaled to [0, 1] each by its own range, on one grid; training ones moved a little and noisy."""
    both = ("image", "label")
    fixed = [
        LoadImaged(both),
        EnsureChannelFirstd(both),
        Orientationd(both, axcodes="RAS", labels=None),
        ScaleIntensityd("image"),
        ResizeWithPadOrCropd(both, SIZE),
    ]
    moving = [
        RandAffined(
            both,
            prob=0.5,
            rotate_range=[0.15] * 3,
            scale_range=[0.1] * 3,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        RandGaussianNoised("image", prob=0.3, std=0.02),
        ThresholdIntensityd("image", threshold=1.0, above=False, cval=1.0),
        ThresholdIntensityd("image", threshold=0.0, above=True, cval=0.0),
    ]
    train = part == "training"
    dataset = CacheDataset(
        items(folder, part)[:cases], Compose([*fixed, *(moving if train else [])]), progress=sys.stderr.isatty()
    )
    return DataLoader(dataset, batch_size=BATCH, shuffle=train, num_workers=0, drop_last=train)


def make_network() -> nn.Module:
    torch.manual_seed(SEED)
    return UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=1, norm="batch")


def make_trainer(method: str, network: nn.Module, data: DataLoader, epochs: int = 10**6, **arguments: Any) -> Any:
    """A trainer from the common start; what differs between the methods is all here."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    common = {"device": CPU, "max_epochs": epochs, "train_data_loader": data, "network": network, **arguments}
    pgd = PGD(LOSS, eps=TRAIN_EPS, steps=3, bounds=BOUNDS)
    if method == "TRADES":
        inner = TPGD(LOSS, eps=TRAIN_EPS, steps=3, bounds=BOUNDS)
        return RobustTrainer(optimizer=optimizer, loss_function=TRADESLoss(LOSS, beta=6.0), attack=inner, **common)
    handlers = [AttackHandler(pgd)] if method == "PGD-AT" else []
    return SupervisedTrainer(optimizer=optimizer, loss_function=LOSS, train_handlers=handlers, **common)


METHODS = ("standard", "PGD-AT", "TRADES")


def train(method: str, data: DataLoader, minutes: float, file: Path) -> None:
    """Train for that many minutes, the learning rate along half a cosine; the weights are written at the end."""
    set_determinism(SEED)
    network = make_network()
    trainer = make_trainer(method, network, data)
    begin, budget = time.perf_counter(), 60 * minutes
    with tqdm(total=round(budget), desc=method, unit="s", file=sys.stderr) as bar:

        def schedule(engine: Any) -> None:
            spent = time.perf_counter() - begin
            bar.update(min(round(spent), bar.total) - bar.n)
            bar.set_postfix_str(f"epoch {engine.state.epoch}")
            share = torch.tensor(min(spent / budget, 1.0) * torch.pi)
            for group in engine.optimizer.param_groups:
                group["lr"] = 2e-3 * float(1 + torch.cos(share)) / 2
            if spent >= budget:
                engine.terminate()

        trainer.add_event_handler(Events.ITERATION_COMPLETED, schedule)
        trainer.run()
    iterations = trainer.state.iteration
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save({"model": network.state_dict(), "iterations": iterations, "epochs": iterations / len(data)}, part)
    part.replace(file)


def evaluate(network: nn.Module, data: DataLoader, attacks: dict[str, Attack]) -> RobustnessReport:
    """Dice of both structures, background left out, clean and under every attack."""
    dice = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    post = Compose([AsDiscreted("pred", argmax=True, to_onehot=3), AsDiscreted("label", to_onehot=3)])
    evaluator = SupervisedEvaluator(CPU, data, network, postprocessing=post, key_val_metric={"dice": dice})
    return evaluate_robustness(evaluator, attacks)


def attacks(steps: int) -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for name, eps in BUDGETS.items():
        found[f"PGD-{steps} {name}"] = PGD(LOSS, eps=eps, steps=steps, bounds=BOUNDS)
        found[f"SMIA-{steps} {name}"] = SMIA(LOSS, eps=eps, steps=steps, bounds=BOUNDS)
    largest = max(BUDGETS, key=lambda name: BUDGETS[name])
    found[f"noise {largest}"] = GaussianNoise(LOSS, eps=BUDGETS[largest], bounds=BOUNDS)
    return found


def load(folder: Path, method: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network that `train` left."""
    network = make_network()
    saved = torch.load(folder / f"{method}.pt", weights_only=True)
    network.load_state_dict(saved.pop("model"))
    return network.eval(), saved


def costs(data: DataLoader, repeats: int) -> None:
    """Time of an epoch by method, interleaved, over that of standard training."""
    batches = [dict(batch) for _, batch in zip(range(8), data, strict=False)]

    def epoch(method: str, probability: float | None = None) -> Callable[[], Any]:
        network = make_network()
        trainer = make_trainer(method, network, batches, epochs=1)
        if probability is not None:
            AttackHandler(PGD(LOSS, eps=TRAIN_EPS, bounds=BOUNDS), probability=probability).attach(trainer)
        return trainer.run

    standard = epoch("standard")
    rivals = {
        "handler, probability 0": epoch("standard", probability=0.0),
        "PGD-AT": epoch("PGD-AT"),
        "TRADES": epoch("TRADES"),
    }
    times = race({name: [run, standard] for name, run in rivals.items()}, repeats, "epochs")
    print("### Time of an epoch over that of standard training, interleaved\n")
    print(f"Eight batches of {BATCH}. Aim: a handler that attacks nothing adds less than 3 %.\n")
    header = ["training", "x standard", "x standard, CPU time"]
    rows = [
        [name, spread([a.wall / b.wall for a, b in rounds]), spread([a.cpu / b.cpu for a, b in rounds])]
        for name, rounds in times.items()
    ]
    table(header, rows)
    trainer = make_trainer("standard", make_network(), batches, epochs=1)
    trainer.run()
    handler = AttackHandler(PGD(LOSS, eps=TRAIN_EPS, bounds=BOUNDS), probability=0.0)
    begin = time.perf_counter()
    for _ in range(1000):
        handler(trainer)
    own = (time.perf_counter() - begin) / 1000
    batch = statistics.median(row[1].wall for rounds in times.values() for row in rounds) / len(batches)
    print(f"The handler alone, with probability 0: {own * 1e6:.0f} microseconds, {own / batch:.4%} of an iteration.\n")


def robustness(folder: Path, data: DataLoader, steps: int) -> None:
    """The table: clean Dice and loss, and Dice under attack."""
    header, rows = ["training", "epochs", "clean loss"], []
    for method in METHODS:
        network, saved = load(folder, method)
        report = evaluate(network, data, attacks(steps))
        dice: dict[str, list[float]] = {}
        losses: dict[str, float] = {}
        for row in report.cases:
            dice.setdefault(row["attack"], []).append(row["dice"])
            if "clean_loss" in row:
                losses[row["case"]] = row["clean_loss"]
        cells = []
        for values in dice.values():
            low, high = bootstrap_interval(values, seed=SEED)
            cells.append(f"{sum(values) / len(values):.3f} [{low:.3f}..{high:.3f}]")
        clean_loss = sum(losses.values()) / len(losses)
        rows.append([method, f"{saved['epochs']:.1f}", f"{clean_loss:.3f}", *cells])
        columns, count = [*header, *dice], len(losses)
    print(f"### Dice of {count} test cases, mean of both structures [95 % bootstrap interval over cases]\n")
    table(columns, rows)


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks hippocampus", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each method (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of the attacks that judge (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the cost table (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/hippocampus"), help="weights; those there are not redone"
    )
    parser.add_argument("--small", action="store_true", help="seconds, to see that it runs; no numbers to quote")
    arguments = parser.parse_args(options)
    folder = data_folder() / "hippocampus_mri"
    if not folder.is_dir():
        sys.exit(f"hippocampus: needs Decathlon Task04 in {folder}; MONAI_SMIA_DATA names the folder above it")
    if arguments.small:
        arguments.minutes, arguments.steps, arguments.repeats = 0.05, 2, 1
        arguments.out = arguments.out / "small"
    hardware()
    print(f"- UNet, channels 16 to 128, batch norm, {SIZE} voxels of 1 mm, batches of {BATCH}, seed {SEED}")
    print(
        f"- {arguments.minutes:g} minutes of training each, from the same weights; eps in training 8/255, three steps"
    )
    print("- images scaled to [0, 1] by their own range, so that eps is a share of it\n", flush=True)
    cases = partial(loader, folder, cases=2 * BATCH if arguments.small else None)
    training = None
    for method in METHODS:
        file = arguments.out / f"{method}.pt"
        if not file.exists():
            training = training or cases("training")
            train(method, training, arguments.minutes, file)
    robustness(arguments.out, cases("test"), arguments.steps)
    costs(training or cases("training"), arguments.repeats)
