"""`open_bundle`: the right evaluator of every layout, with the weights of the file, and the bundle left as it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_layouts as layouts
import pytest
import torch

from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.opening import OpenBundle, open_bundle

Write = Callable[[Path], Path]
V = "validate#"
EXPECTED: dict[Write, tuple[str, tuple[str | None, ...]]] = {
    layouts.standard: ("evaluate", (V + "evaluator", "network", "loss", V + "postprocessing", V + "preprocessing",
                                    V + "dataset", V + "handlers")),
    layouts.saving: ("evaluate", (V + "evaluator", "network", "loss", V + "postprocessing", V + "preprocessing",
                                  V + "dataset", V + "handlers")),
    layouts.train_only: ("train-only", (V + "evaluator", "network", "loss", V + "postprocessing", V + "preprocessing",
                                        V + "dataset", V + "handlers")),
    layouts.template: ("train-only", ("evaluator", "network", "lossfn", "postprocessing", "val_preprocessing",
                                      "val_dataset", "val_handlers")),
    layouts.subclass: ("train-only", ("assess#engine", "network", "loss", "assess#postprocessing",
                                      "assess#preprocessing", "assess#dataset", "assess#handlers")),
    layouts.inference: ("inference", ("evaluator", "network", None, "postprocessing", "preprocessing", "dataset",
                                      "handlers")),
    layouts.workflow: ("python", ("evaluator", "network_def", None, None, None, "dataset", None)),
}  # fmt: skip
LABELLED = [write for write in EXPECTED if write is not layouts.inference]


def name_of(value: Any) -> str | None:
    return value.__name__ if callable(value) else None


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, list[float]]:
    """A folder of data, and the Dice of each of its cases."""
    return tmp_path / "data", layouts.save_data(tmp_path / "data")


def ids(bundle: OpenBundle) -> tuple[str | None, ...]:
    return (
        bundle.evaluator_id,
        bundle.network_id,
        bundle.loss_id,
        bundle.postprocessing_id,
        bundle.preprocessing_id,
        bundle.dataset_id,
        bundle.handlers_id,
    )


def dice(bundle: OpenBundle) -> float:
    evaluator = bundle.evaluator()
    evaluator.run()
    return float(evaluator.state.metrics["val_mean_dice"])


@pytest.mark.parametrize("write", EXPECTED, ids=name_of)
def test_kind_and_ids_of_every_layout(tmp_path: Path, write: Write) -> None:
    with open_bundle(write(tmp_path / "bundle")) as bundle:
        assert (bundle.kind, ids(bundle)) == EXPECTED[write]
        assert bundle.root == tmp_path / "bundle"
        assert bundle.metadata == layouts.METADATA
        assert bundle.attack_config is None
        assert bundle.attacks() is None


@pytest.mark.parametrize("write", LABELLED, ids=name_of)
def test_every_layout_gives_the_dice_counted_by_hand(
    tmp_path: Path, data: tuple[Path, list[float]], write: Write
) -> None:
    root = write(tmp_path / "bundle")
    before, here, path = layouts.hashes(root), Path.cwd(), list(sys.path)
    with open_bundle(root, dataset_dir=data[0]) as bundle:
        assert dice(bundle) == pytest.approx(sum(data[1]) / 3, abs=1e-6)
        assert dice(bundle) == pytest.approx(sum(data[1]) / 3, abs=1e-6)  # and again
    assert layouts.hashes(root) == before
    assert (Path.cwd(), sys.path) == (here, path)
    assert not [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]


@pytest.mark.parametrize("write", EXPECTED, ids=name_of)
def test_the_network_has_the_weights_of_the_file(tmp_path: Path, data: tuple[Path, list[float]], write: Write) -> None:
    with open_bundle(write(tmp_path / "bundle"), dataset_dir=data[0]) as bundle:
        network = bundle.network()  # before any evaluator runs, which is when a CheckpointLoader loads
        for key, value in layouts.known_weights().items():
            assert torch.equal(network.state_dict()[key], value)
        assert bundle.evaluator().network is network


def test_inference_predicts_with_the_weights(tmp_path: Path, data: tuple[Path, list[float]]) -> None:
    root = layouts.inference(tmp_path / "bundle")
    before = layouts.hashes(root)
    with open_bundle(root, dataset_dir=data[0]) as bundle:
        evaluator = bundle.evaluator()
        evaluator.run()
        output = evaluator.state.output[0]
        assert torch.equal(output["pred"][1] > 0.5, output["image"][0] > 0.5)
        assert bundle.loss() is None
    assert layouts.hashes(root) == before


@pytest.mark.parametrize("under", [None, "model", "network", "state_dict"])
def test_other_weights_are_loaded_however_they_are_kept(tmp_path: Path, under: str | None) -> None:
    for write in (layouts.train_only, layouts.standard, layouts.inference):
        root = write(tmp_path / write.__name__)
        layouts.save_weights(root, under=under, name="other.pt")
        torch.save({"model": {"weight": torch.zeros(2, 1, 1, 1), "bias": torch.zeros(2)}}, root / "models" / "model.pt")
        with open_bundle(root, weights="other.pt") as bundle:
            assert torch.equal(bundle.network().bias, layouts.known_weights()["bias"])
            assert bundle.found()["weights"] == "models/other.pt"
        with open_bundle(root) as bundle:
            assert torch.equal(bundle.network().bias, torch.zeros(2))


@pytest.mark.parametrize("write", EXPECTED, ids=name_of)
def test_random_weights_are_never_evaluated(tmp_path: Path, data: tuple[Path, list[float]], write: Write) -> None:
    root = write(tmp_path / "bundle")
    (root / "models" / "model.pt").unlink()
    before = layouts.hashes(root)
    with open_bundle(root, dataset_dir=data[0]) as bundle:
        assert [entry.argument for entry in bundle.missing()] == ["weights"]
        with pytest.raises(BundleError, match=r"^weights: expected the file .*model\.pt; it does not exist"):
            bundle.evaluator()
        with pytest.raises(BundleError, match="weights"):
            bundle.network()
    assert layouts.hashes(root) == before


def test_weights_that_are_not_the_networks_are_refused(tmp_path: Path) -> None:
    root = layouts.train_only(tmp_path / "bundle")
    torch.save({"weight": torch.zeros(2, 1, 1, 1)}, root / "models" / "half.pt")
    torch.save({"epoch": 3}, root / "models" / "none.pt")
    (root / "models" / "text.pt").write_text("no weights")
    said = {
        "half.pt": 'is not of this Conv2d.*"bias"',
        "none.pt": "expected a state dict.*epoch",
        "text.pt": "expected a",
    }
    for name, words in said.items():
        with (
            open_bundle(root, weights=name) as bundle,
            pytest.raises(BundleError, match=f"weights: .*{words}") as caught,
        ):
            bundle.network()
        assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match=r"weights: expected a file; absent\.pt does not exist"):
        open_bundle(root, weights="absent.pt")


@pytest.mark.parametrize("write", LABELLED, ids=name_of)
def test_some_cases_only(tmp_path: Path, data: tuple[Path, list[float]], write: Write) -> None:
    root = write(tmp_path / "bundle")
    wanted: dict[Any, list[int]] = {1: [0], "2": [0, 1], "case_2": [2], "case_1.nii.gz, *_0": [0, 1]}
    for cases, numbers in wanted.items():
        with open_bundle(root, dataset_dir=data[0], cases=cases) as bundle:
            assert dice(bundle) == pytest.approx(sum(data[1][i] for i in numbers) / len(numbers), abs=1e-6)
    with (
        open_bundle(root, dataset_dir=data[0], cases=["case_7"]) as bundle,
        pytest.raises(BundleError, match=r"cases: expected names of the 3 cases \(case_0, case_1, case_2\).*case_7"),
    ):
        bundle.evaluator()


def test_caches_workers_and_writers_are_off(tmp_path: Path, data: tuple[Path, list[float]]) -> None:
    with open_bundle(layouts.train_only(tmp_path / "bundle"), dataset_dir=data[0]) as bundle:
        loader = bundle.evaluator().data_loader
        assert loader.num_workers == 0
        assert loader.dataset.cache_num == 0
        owners = {
            type(getattr(h[0], "__self__", None)).__name__
            for e in bundle.evaluator()._event_handlers.values()
            for h in e
        }
        assert "StatsHandler" in owners
        assert not owners & {"CheckpointSaver", "TensorBoardStatsHandler", "EarlyStopHandler"}


@pytest.mark.parametrize("kind", ["SmartCacheDataset", "PersistentDataset", "monai.data.LMDBDataset"])
def test_every_caching_data_set_gives_all_cases(tmp_path: Path, data: tuple[Path, list[float]], kind: str) -> None:
    root = layouts.standard(tmp_path / "bundle")
    before = layouts.hashes(root)
    overrides = {"validate#dataset#_target_": kind, "validate#dataset#cache_dir": "$@bundle_root + '/cache'"}
    with open_bundle(root, dataset_dir=data[0], overrides=overrides) as bundle:
        assert dice(bundle) == pytest.approx(sum(data[1]) / 3, abs=1e-6)
    assert layouts.hashes(root) == before


def test_overrides_reach_the_objects_also_behind_macros(tmp_path: Path, data: tuple[Path, list[float]]) -> None:
    overrides = {
        "validate#inferer#overlap": 0.5,
        "train#deterministic_transforms#2#a_max": 200,  # of what validation copies
        "validate#postprocessing#transforms#1#to_onehot": 3,  # inside of the copy
    }
    with open_bundle(layouts.standard(tmp_path / "bundle"), dataset_dir=data[0], overrides=overrides) as bundle:
        assert bundle.evaluator().inferer.overlap == 0.5
        assert bundle.preprocessing().transforms[2].scaler.a_max == 200
        assert bundle.postprocessing().transforms[1].to_onehot == [3, 3]
        assert "a_max=200" in bundle.found()["intensity"]
    with pytest.raises(BundleError, match="overrides: .*'validate#absent#key' leads nowhere"):
        open_bundle(tmp_path / "bundle", overrides={"validate#absent#key": 1})


def test_found_and_missing_build_nothing(tmp_path: Path) -> None:
    root = layouts.standard(tmp_path / "bundle")
    overrides = {"network_def#_target_": "not.there.Net", "validate#dataset#data": "$1 / 0"}
    with open_bundle(root, overrides=overrides) as bundle:
        found = bundle.found()
        assert found["evaluator"] == "validate#evaluator (SupervisedEvaluator)"
        assert found["network"] == "network (Net)"
        assert found["loss"] == "loss (DiceCELoss)"
        assert found["inferer"] == "validate#inferer (SlidingWindowInferer)"
        assert found["postprocessing"] == "Activationsd, AsDiscreted"
        assert found["intensity"] == "ScaleIntensityRanged(a_min=0, a_max=100, b_min=0.0, b_max=1.0)"
        assert found["labels"] == "0 background, 1 bright"
        assert bundle.label_names() == {"0": "background", "1": "bright"}
        assert bundle.image_format() == {"value_range": [0, 1]}
        assert bundle.weights_file == root / "models" / "model.pt"
        assert found["metrics"] == "val_mean_dice"
        assert found["weights"] == "models/model.pt, loaded by validate#handlers#0"
        assert [str(entry) for entry in bundle.missing()] == ["the package not, which is not installed"]


def test_missing_data_and_lists_are_named(tmp_path: Path) -> None:
    root = layouts.standard(tmp_path / "bundle")
    with open_bundle(root) as bundle:
        assert [entry.argument for entry in bundle.missing()] == ["dataset_dir"]
        with pytest.raises(
            BundleError, match="there are none; missing: dataset_dir: the folder /workspace/data"
        ) as caught:
            bundle.evaluator()
        assert "\n" not in str(caught.value)
    overrides = {
        "list_file": "$@bundle_root + '/configs/datalist.json'",
        "imports": ["$import json"],
        "validate#dataset#data": "$json.load(open(@list_file))",
    }
    with open_bundle(root, overrides=overrides) as bundle:
        entry = bundle.missing()[0]
        assert str(entry) == f"list_file: the file {root}/configs/datalist.json (overrides={{'list_file': ...}})"
        with pytest.raises(BundleError, match=r"^bundle: missing list_file: the file .*datalist\.json"):
            bundle.require()
        with pytest.raises(BundleError, match=r"^validate#evaluator: .*FileNotFoundError.*datalist\.json.*list_file"):
            bundle.evaluator()


def test_a_list_that_a_component_reads_is_named(tmp_path: Path) -> None:
    root = layouts.standard(tmp_path / "bundle")
    overrides = {
        "lists": {"_target_": "scripts.lists.Lists", "filename": "./configs/list.json"},
        "validate#dataset#data": "$@lists.items",
    }
    with open_bundle(root, overrides=overrides) as bundle:
        named = [entry for entry in bundle.missing() if entry.override]
        assert [(entry.what, entry.argument) for entry in named] == [
            ("lists#filename: the file ./configs/list.json", "lists#filename")
        ]
    (root / "configs" / "list.json").write_text("[]")
    with open_bundle(root, overrides=overrides) as bundle:
        assert not [entry for entry in bundle.missing() if entry.override]


@pytest.mark.parametrize(
    ("raised", "advice"),
    [
        ("URLError('no such host')", "the bundle downloads something here"),
        ("AttributeError(\"module 'numpy' has no attribute 'product'\")", "written for an older NumPy"),
    ],
)
def test_what_would_help_is_said_of_what_bundles_do(
    tmp_path: Path, data: tuple[Path, list[float]], raised: str, advice: str
) -> None:
    root = layouts.standard(tmp_path / "bundle")
    raising = f"$(_ for _ in ()).throw(__import__('urllib.error').error.{raised})"
    raising = raising if raised.startswith("URL") else f"$(_ for _ in ()).throw({raised})"
    overrides = {"network_def": raising}
    with (
        open_bundle(root, dataset_dir=data[0], overrides=overrides) as bundle,
        pytest.raises(BundleError, match=advice),
    ):
        bundle.evaluator()


def test_what_is_no_bundle_or_has_no_evaluator_is_said_in_one_line(tmp_path: Path) -> None:
    here = Path.cwd()
    config = layouts.train_config()
    del config["validate"]
    broken = layouts.write(tmp_path / "broken", {})
    (broken / "configs" / "train.json").write_text('{"a": 1,')
    (tmp_path / "empty").mkdir()
    said = {
        tmp_path / "absent": "folder: .*is not a folder",
        tmp_path / "empty": "folder: expected a MONAI bundle.*it has none",
        layouts.write(tmp_path / "nothing", {}): "configs: expected train, evaluate or inference.*found metadata.json",
        layouts.write(
            tmp_path / "blind", {"train.json": config}
        ): "configs: expected an evaluator.*train.json has imports",
        broken: "configs: MONAI cannot read train.json; JSONDecodeError",
    }
    for folder, words in said.items():
        with pytest.raises(BundleError, match=words) as caught:
            open_bundle(folder)
        assert "\n" not in str(caught.value)
    assert Path.cwd() == here


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"configs": "absent.json"},
            r"configs: expected files of bundle/configs \(evaluate.json, metadata.json, train",
        ),
        ({"configs": "scripts.workflow.Absent"}, "configs: scripts.workflow.Absent cannot be imported; ModuleNotFound"),
        ({"cases": 0}, "cases: expected a number of at least 1"),
        ({"cases": " , "}, "cases: expected a number of at least 1, or file names"),
        ({"cases": 1.5}, "cases: expected a number of at least 1, or file names; got 1.5"),
        ({"cases": ["case_0", 3]}, r"cases: expected a number of at least 1, or file names; got \['case_0', 3\]"),
        ({"dataset_dir": "absent"}, "dataset_dir: expected the folder of the data; 'absent' does not exist"),
        ({"split": "test"}, "split: expected a configuration with an id split; got imports, bundle_root"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        open_bundle(layouts.standard(tmp_path / "bundle"), **arguments)


def test_configs_can_be_named(tmp_path: Path, data: tuple[Path, list[float]]) -> None:
    root = layouts.standard(tmp_path / "bundle")
    shutil.copy(root / "configs" / "evaluate.json", root / "configs" / "mine.json")
    with open_bundle(root, configs=["train", "mine.json"], dataset_dir=data[0]) as bundle:
        assert [path.name for path in bundle.config_files] == ["train.json", "mine.json"]
        assert dice(bundle) == pytest.approx(sum(data[1]) / 3, abs=1e-6)
    with open_bundle(root, configs="train.json") as bundle:
        assert bundle.kind == "train-only"
        assert bundle.found()["weights"] == "models/model.pt"
    with open_bundle(layouts.workflow(tmp_path / "python"), configs="scripts.workflow.Bright") as bundle:
        assert bundle.found()["evaluator"] == "scripts.workflow.Bright"
        assert bundle.loss().dice.softmax


def test_two_bundles_have_each_their_own_scripts(tmp_path: Path, data: tuple[Path, list[float]]) -> None:
    first, second = layouts.subclass(tmp_path / "first"), layouts.subclass(tmp_path / "second")
    (second / "scripts" / "engine.py").write_text(layouts.ENGINE.replace("batches = 0", "batches = 40"))
    for root, batches in ((first, 3), (second, 43)):
        with open_bundle(root, dataset_dir=data[0]) as bundle:
            bundle.evaluator().run()
            assert bundle.evaluator().batches == batches


def test_relative_paths_are_the_bundles(tmp_path: Path, data: tuple[Path, list[float]]) -> None:
    root = layouts.template(tmp_path / "bundle")
    shutil.copytree(data[0], root / "train_data")
    with open_bundle(root) as bundle:
        assert bundle.missing() == ()
        assert dice(bundle) == pytest.approx(sum(data[1]) / 3, abs=1e-6)


def test_initialize_does_not_outlive_the_bundle(tmp_path: Path, data: tuple[Path, list[float]]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    with open_bundle(layouts.standard(tmp_path / "bundle"), dataset_dir=data[0]) as bundle:
        bundle.evaluator()
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    assert torch.equal(torch.rand(1), expected)


def test_an_absolute_bundle_root_that_exists_is_kept(tmp_path: Path) -> None:
    root, other = layouts.train_only(tmp_path / "bundle"), layouts.train_only(tmp_path / "other")
    for stated, expected in ((str(other), other), ("/workspace/bundle", root)):
        config = {**json.loads((root / "configs" / "train.json").read_text()), "bundle_root": stated}
        (root / "configs" / "train.json").write_text(json.dumps({**config, "dataset_dir": "$@bundle_root + '/absent'"}))
        with open_bundle(root) as bundle:
            assert bundle.missing()[0].what == f"dataset_dir: the folder {expected}/absent"
