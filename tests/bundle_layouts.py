"""Small bundles in the layouts that the model zoo has, on data whose Dice is known by hand.

The network is one convolution of one pixel. With the weights of `save_weights` it says foreground where the image is
above 0.5; the labels are the same images above another value, so the Dice is a matter of counting pixels.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml

THRESHOLDS = (0.5, 0.35, 0.7)
"""Of the labels, case by case; the network's is 0.5."""

HANDLED = "$monai.handlers.from_engine(['pred', 'label'])"
NETWORK = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
DICE = {"_target_": "MeanDice", "include_background": False, "output_transform": HANDLED}
LOSS = {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True}
LOADER = {"_target_": "CheckpointLoader", "load_path": "$@ckpt_dir + '/model.pt'", "load_dict": {"model": "@network"}}
SAVER = {
    "_target_": "CheckpointSaver",
    "save_dir": "@ckpt_dir",
    "save_dict": {"model": "@network"},
    "save_key_metric": True,
    "key_metric_filename": "model.pt",
}
STATS = {"_target_": "StatsHandler", "iteration_log": False}
METRICS_SAVER = {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": "*"}
TRANSFORMS = [
    {"_target_": "LoadImaged", "keys": ["image", "label"]},
    {"_target_": "EnsureChannelFirstd", "keys": ["image", "label"]},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 100, "b_min": 0.0, "b_max": 1.0},
    {"_target_": "EnsureTyped", "keys": ["image", "label"]},
]
POST = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2},
]
SAVE_IMAGE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "print_log": False}
METADATA = {
    "version": "0.1.0",
    "network_data_format": {
        "inputs": {"image": {"value_range": [0, 1]}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "bright"}}},
    },
}


def save_data(folder: Path) -> list[float]:
    """Three images of 8 x 6 in [0, 100] and their labels; the Dice of each with the network of `save_weights`."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    dice = []
    for number, threshold in enumerate(THRESHOLDS):
        image = np.random.default_rng(number).uniform(0, 1, (8, 6, 1)).astype(np.float32)
        label, found = image > threshold, image > 0.5
        nib.save(nib.Nifti1Image(image[..., 0] * 100, np.eye(4)), folder / "images" / f"case_{number}.nii.gz")
        nib.save(
            nib.Nifti1Image(label[..., 0].astype(np.uint8), np.eye(4)), folder / "labels" / f"case_{number}.nii.gz"
        )
        dice.append(float(2 * (label & found).sum() / (label.sum() + found.sum())))
    return dice


def known_weights() -> dict[str, torch.Tensor]:
    """Foreground where the image is above 0.5."""
    return {"weight": torch.tensor([0.0, 10.0]).reshape(2, 1, 1, 1), "bias": torch.tensor([0.0, -5.0])}


def save_weights(root: Path, *, under: str | None = "model", name: str = "model.pt") -> Path:
    (root / "models").mkdir(exist_ok=True)
    torch.save(known_weights() if under is None else {under: known_weights()}, root / "models" / name)
    return root / "models" / name


def hashes(root: Path) -> dict[str, str]:
    """Every file below a folder and what is in it; folders too."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
    }


def write(root: Path, configs: dict[str, Any], scripts: dict[str, str] | None = None) -> Path:
    (root / "configs").mkdir(parents=True)
    for name, content in {"metadata.json": METADATA, **configs}.items():
        text = json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content, sort_keys=False)
        (root / "configs" / name).write_text(text)
    if scripts is not None:
        (root / "scripts").mkdir()
        for name, text in {"__init__.py": "", **scripts}.items():
            (root / "scripts" / name).write_text(text)
    save_weights(root)
    return root


def train_config() -> dict[str, Any]:
    """A training in the zoo's usual layout: caches, workers, trackers, and a saver that overwrites ``model.pt``."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data/Task99_Bright",
        "images": "$list(sorted(glob.glob(@dataset_dir + '/images/*.nii.gz')))",
        "labels": "$list(sorted(glob.glob(@dataset_dir + '/labels/*.nii.gz')))",
        "device": "$torch.device('cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "loss": LOSS,
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.1},
        "train": {
            "deterministic_transforms": TRANSFORMS,
            "dataset": {"_target_": "not.there.TrainingData"},
            "postprocessing": {"_target_": "Compose", "transforms": POST},
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": 2,
                "device": "@device",
                "train_data_loader": "@train#dataset",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
            },
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
                "transform": "@validate#preprocessing",
                "cache_rate": 1.0,
                "num_workers": 2,
            },
            "dataloader": {
                "_target_": "DataLoader",
                "dataset": "@validate#dataset",
                "batch_size": 1,
                "shuffle": True,
                "num_workers": 4,
                "persistent_workers": True,
            },
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [4, 4], "sw_batch_size": 2, "overlap": 0.25},
            "postprocessing": "%train#postprocessing",
            "handlers": [
                STATS,
                {"_target_": "TensorBoardStatsHandler", "log_dir": "@output_dir", "iteration_log": False},
                {"_target_": "EarlyStopHandler", "trainer": "@train#trainer", "patience": 1, "score_function": "$len"},
                SAVER,
            ],
            "key_metric": {"val_mean_dice": DICE},
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "inferer": "@validate#inferer",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$setattr(torch.backends.cudnn, 'benchmark', True)"],
        "run": ["$@train#trainer.run()"],
    }


def train_only(root: Path) -> Path:
    """No file to evaluate with: the validation of the training, whose handlers save and do not load."""
    return write(root, {"train.json": train_config()})


def standard(root: Path) -> Path:
    """Train and evaluate, whose handlers load the weights."""
    evaluate = {
        "validate#dataset#cache_rate": 0,
        "validate#handlers": [LOADER, STATS, METRICS_SAVER],
        "run": ["$@validate#evaluator.run()"],
    }
    return write(root, {"train.json": train_config(), "evaluate.json": evaluate})


def saving(root: Path) -> Path:
    """Evaluate inverts and saves every prediction."""
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@validate#preprocessing", "orig_keys": "image"}
    post = {"_target_": "Compose", "transforms": [POST[0], invert, POST[1], SAVE_IMAGE, "@image_saver"]}
    evaluate = {"image_saver": SAVE_IMAGE, "validate#postprocessing": post, "validate#handlers": [LOADER]}
    return write(root, {"train.json": train_config(), "evaluate.yml": evaluate})


def template(root: Path) -> Path:
    """The templates' layout: everything at the root, in yaml; a missing checkpoint would silently not be loaded."""
    config = {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "dataset_dir": "$@bundle_root + '/train_data'",
        "output_dir": "./results",
        "device": "$torch.device('cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "images": "$sorted(glob.glob(@dataset_dir + '/images/*.nii.gz'))",
        "pairs": "$[{'image': i, 'label': i.replace('images', 'labels')} for i in @images]",
        "base_transforms": TRANSFORMS[:2],
        "val_transforms": TRANSFORMS[2:],
        "val_preprocessing": {"_target_": "Compose", "transforms": "$@base_transforms + @val_transforms"},
        "val_dataset": {
            "_target_": "PersistentDataset",
            "data": "@pairs",
            "transform": "@val_preprocessing",
            "cache_dir": "$@bundle_root + '/cache'",
        },
        "val_dataloader": {
            "_target_": "ThreadDataLoader",
            "dataset": "@val_dataset",
            "batch_size": 2,
            "num_workers": 4,
        },
        "lossfn": LOSS,
        "postprocessing": {"_target_": "Compose", "transforms": POST},
        "val_handlers": [
            {"_target_": "LogfileHandler", "output_dir": "@output_dir"},
            {**LOADER, "load_path": "@ckpt_path", "_disabled_": "$not os.path.exists(@ckpt_path)"},
            {**SAVER, "save_dir": "@output_dir"},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@val_dataloader",
            "network": "@network",
            "postprocessing": "@postprocessing",
            "key_val_metric": {"val_mean_dice": DICE},
            "val_handlers": "@val_handlers",
        },
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": 1,
            "network": "@network",
            "loss_function": "@lossfn",
        },
        "run": ["$@trainer.run()"],
    }
    return write(root, {"train.yaml": config})


def inference(root: Path) -> Path:
    """Images without labels; ``initialize`` loads the weights, as the zoo's inference does."""
    config = {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data/Task99_Bright",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/images/*.nii.gz')))",
        "device": "$torch.device('cpu')",
        "network_def": NETWORK,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [{**item, "keys": "image"} for item in TRANSFORMS]},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 4},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [POST[0], SAVE_IMAGE]},
        "handlers": [STATS],
        "load_pretrain": True,
        "checkpointloader": LOADER,
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$@checkpointloader(@evaluator) if @load_pretrain else None"],
        "run": ["$@evaluator.run()"],
    }
    return write(root, {"inference.json": config})


def subclass(root: Path) -> Path:
    """An evaluator of the bundle's own class, under an id of its own, beside another one of less worth."""
    config = train_config()
    config["assess"] = config.pop("validate")
    text = json.dumps(config).replace("@validate#", "@assess#").replace("%validate#", "%assess#")
    config = json.loads(text)
    config["assess"]["engine"] = {**config["assess"].pop("evaluator"), "_target_": "scripts.engine.CountingEngine"}
    config["assess"]["handlers"] = [LOADER]
    return write(root, {"train.json": config}, {"engine.py": ENGINE})


def workflow(root: Path) -> Path:
    """A workflow class and no configuration."""
    return write(root, {}, {"workflow.py": WORKFLOW})


ENGINE = """
from monai.engines import SupervisedEvaluator


class CountingEngine(SupervisedEvaluator):
    batches = 0

    def _iteration(self, engine, batchdata):
        self.batches += 1
        return super()._iteration(engine, batchdata)
"""

WORKFLOW = """
import glob

import torch
from monai.bundle import PythonicWorkflow
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointSaver, MeanDice, from_engine
from monai.losses import DiceCELoss
from monai.transforms import (
    Activationsd, AsDiscreted, Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged, ScaleIntensityRanged,
)


class Bright(PythonicWorkflow):
    def __init__(self, workflow_type="train", bundle_root=".", dataset_dir="/workspace", meta_file=None):
        super().__init__(workflow_type=workflow_type, meta_file=meta_file)
        self.bundle_root, self.dataset_dir, self.device = bundle_root, dataset_dir, torch.device("cpu")

    def run(self):
        self.evaluator.run()

    def finalize(self):
        self.finished = True

    def get_network_def(self):
        return torch.nn.Conv2d(1, 2, 1)

    def get_loss_function(self):
        return DiceCELoss(to_onehot_y=True, softmax=True)

    def get_val_preprocessing(self):
        keys = ["image", "label"]
        return Compose([
            LoadImaged(keys), EnsureChannelFirstd(keys), ScaleIntensityRanged("image", 0, 100, 0.0, 1.0),
            EnsureTyped(keys),
        ])

    def get_val_postprocessing(self):
        argmax = AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2)
        return Compose([Activationsd("pred", softmax=True), argmax])

    def get_evaluator(self):
        images = sorted(glob.glob(self.dataset_dir + "/images/*.nii.gz"))
        data = [{"image": image, "label": image.replace("images", "labels")} for image in images]
        return SupervisedEvaluator(
            device=self.device,
            val_data_loader=DataLoader(Dataset(data, self.val_preprocessing), batch_size=1),
            network=self.network_def,
            postprocessing=self.val_postprocessing,
            key_val_metric={"val_mean_dice": MeanDice(False, output_transform=from_engine(["pred", "label"]))},
            val_handlers=[CheckpointSaver(self.bundle_root + "/models", {"model": self.network_def}, save_final=True)],
        )
"""
