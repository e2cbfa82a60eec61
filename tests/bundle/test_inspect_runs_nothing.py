# SPDX-License-Identifier: Apache-2.0
"""`monai-smia inspect` and `overlay` read a bundle and run none of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import bundle_layouts
import pytest
import yaml
from monai.transforms import Compose, Flipd, LoadImaged, NormalizeIntensityd, ScaleIntensityRanged

from monai_smia.bundle import open_bundle
from monai_smia.bundle.attack_options import read_attack_options
from monai_smia.bundle.commands import main
from monai_smia.bundle.errors import BundleError
from monai_smia.bundle.intensity_walk import Unread
from monai_smia.bundle.listed_transforms import listed, literal, stand_ins
from monai_smia.bundle.reading import UNKNOWN, read_bundle
from monai_smia.bundle.text import static_truth, static_value, switched_off
from monai_smia.bundle.units import read_intensity

BUNDLES = Path(__file__).parents[2] / "bundles"
GREY = "ScaleIntensityRanged maps 0..255 to 0..1 and clips: 1 grey is 0.00392157 of the network's input, bounds 0..1"
SAID = {
    "chest_xray_classification": GREY,
    "chest_xray_segmentation": GREY,
    "endoscopy_detection": GREY,
    "endoscopy_polyp_segmentation": GREY,
    "fundus_dr_classification": GREY,
    "hippocampus_mri_segmentation": (
        "ScaleIntensityd maps each image from its own range to 0..1: 1 % is 0.01 of the network's input, bounds 0..1"
    ),
    "lung_ct_segmentation": (
        "ScaleIntensityRanged maps -1000..400 to 0..1 and clips: 1 HU is 0.000714286 of the network's input, "
        "bounds 0..1"
    ),
}
"""What `inspect` said of our bundles while it still built their preprocessing."""


RANGE = {"_target_": "ScaleIntensityRanged", "keys": "image", "b_min": 0, "b_max": 1}


class Canary:
    """Ways to leave a file behind, from expressions, modules and calls; each has a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()

    def expression(self, name: str) -> str:
        return f"$__import__('pathlib').Path({str(self.folder / name)!r}).touch()"

    def call(self, name: str) -> dict[str, Any]:
        return {"_target_": "os.mkdir", "path": str(self.folder / name)}

    def module(self, name: str) -> str:
        return f"import pathlib\npathlib.Path({str(self.folder / name)!r}).touch()\n"

    def touched(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "canaries")


HOOKS = {
    "Window": "class Window:\n    def __init__(self, keys): pass\n",
    "Reader": "class Reader:\n    pass\n",
}


def hostile(root: Path, canary: Canary) -> Path:
    """A bundle that is what every bundle is, with something that would run in every place."""
    config = bundle_layouts.train_config()
    expression, call = canary.expression, canary.call
    config["imports"] = [expression("imports"), "$import scripts.evil"]
    config["_desc_"] = expression("desc")
    config[expression("key")] = {expression("inner key"): expression("value")}
    config["device"] = expression("device")
    config["network"] = {"_target_": "scripts.evil.Network", "_requires_": [expression("requires"), call("requires 2")]}
    config["loss"] = {"_target_": "os.mkdir", "path": str(canary.folder / "loss")}
    config["optimizer"] = {"_target_": "os.system", "_mode_": "debug", "command": f"touch {canary.folder}/mode"}
    config["initialize"] = [expression("initialize"), call("initialize 2")]
    config["finalize"] = [expression("finalize")]
    config["run"] = [expression("run")]
    validate = config["validate"]
    validate["dataset"]["data"] = expression("data")
    validate["preprocessing"] = {
        "_target_": "Compose",
        "_requires_": expression("compose requires"),
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "scripts.evil.Reader"},
            {"_target_": "SaveImaged", "keys": "image", "writer": "scripts.evil.Writer", "output_dir": "."},
            {"_target_": "scripts.evil.Window", "keys": ["image"]},
            {"_target_": "monai.transforms.os.mkdir", "path": str(canary.folder / "through monai")},
            {"_target_": "monai.transforms.utils.exec", "keys": "image"},
            {"_target_": expression("target"), "keys": "image"},
            {"_target_": "Lambdad", "keys": "image", "func": expression("func")},
            {"_target_": "Flipd", "keys": expression("keys"), "_disabled_": expression("disabled")},
            {"_target_": "ShiftIntensityd", "keys": "image", "offset": expression("offset")},
            {"_target_": "ScaleIntensityd", "keys": "image", "_wrapper_": expression("wrapper"), "_desc_": call("in")},
            expression("transform"),
        ],
    }
    validate["dataset"]["transform"] = "@validate#preprocessing"
    validate["handlers"] = [
        {**bundle_layouts.LOADER, "_disabled_": expression("loader"), "load_path": expression("load path")},
        {"_target_": "scripts.evil.Handler", "_requires_": expression("handler requires")},
        {
            "_target_": "monai.handlers.StatsHandler",
            "_disabled_": "$open(" + repr(str(canary.folder / "open")) + ", 'w')",
        },
    ]
    bundle_layouts.write(
        root,
        {"train.json": config, "attack.json": {"attacks": expression("attacks"), "intensity": call("intensity")}},
        {"__init__.py": canary.module("package"), "evil.py": canary.module("module") + "\n".join(HOOKS.values())},
    )
    (root / "sitecustomize.py").write_text(canary.module("site"))
    (root / "nibabel.py").write_text(canary.module("shadow"))
    (root / "configs" / "logging.conf").write_text(
        f"[formatters]\nkeys=a\n[formatter_a]\nclass=scripts.evil.Formatter\nformat={expression('logging')}\n"
    )
    (root / "models" / "model.pt").write_bytes(b"cos\nmkdir\n(S'" + str(canary.folder / "weights").encode() + b"'\ntR.")
    (root / "large_files.yml").write_text(
        f"large_files:\n- path: models/model.pt\n  url: !!python/object/apply:os.mkdir ['{canary.folder}/large']\n"
    )
    metadata = {
        **bundle_layouts.METADATA,
        "network_data_format": {
            "inputs": {"image": {"modality": expression("modality"), "value_range": [expression("range"), call("r")]}},
            "outputs": {"pred": {"channel_def": {expression("channel"): expression("name\x1b[31m")}}},
        },
    }
    (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    return root


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Any:
    path, modules = list(sys.path), {name for name in sys.modules if name.split(".")[0] == "scripts"}
    yield
    assert sys.path == path
    assert {name for name in sys.modules if name.split(".")[0] == "scripts"} == modules


def test_no_canary_of_a_hostile_bundle_is_touched(
    tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finding C1, with both commands, from outside of the bundle and from inside."""
    root = hostile(tmp_path / "bundle", canary)
    for place in (tmp_path, root):
        monkeypatch.chdir(place)
        assert main(["inspect", str(root)]) == 0
        said = capsys.readouterr().out
        assert "validate#evaluator (SupervisedEvaluator)" in said
        assert "loss (mkdir)" in said
        assert f"units of eps    {UNKNOWN}: " in said
        assert f"the file that validate#handlers#0 loads: {UNKNOWN}" in said
        assert "\x1b" not in said
        assert main(["overlay", str(root)]) == 0
        written = json.loads(capsys.readouterr().out)
        assert written["run"] == ["$evaluate_under_attack(@validate#evaluator, loss_function=@loss, **@attack)"]
        assert os.getcwd() == str(place)
    assert canary.touched() == []


def test_the_canaries_sing_when_a_bundle_is_run(tmp_path: Path, canary: Canary) -> None:
    """The test above could not fail if nothing in it ever ran."""
    root = hostile(tmp_path / "bundle", canary)
    with open_bundle(root) as opened:
        for build in (opened.preprocessing, opened.loss, opened.attacks):
            with pytest.raises(BundleError):
                build() or opened._source.build("nowhere")
    assert {"package", "module", "loss", "attacks"} <= set(canary.touched())


@pytest.mark.parametrize("option", ["--validate#inferer#overlap", "--validate#preprocessing", "--loss"])
def test_overrides_are_not_run_either(tmp_path: Path, canary: Canary, option: str) -> None:
    root = bundle_layouts.standard(tmp_path / "bundle")
    assert main(["inspect", str(root), option, canary.expression("override")]) == 1
    assert main(["inspect", str(root), "--options", canary.expression("options")]) == 2  # no id of this name
    assert canary.touched() == []


@pytest.mark.parametrize(
    "options",
    [
        {"PGD": {"goal": "EXPRESSION"}},
        {"PGD": {"goal": {"_target_": "os.mkdir", "path": "PLACE"}}},
        {"PGD": {"goal": {"_target_": "monai_smia.reports.files.os.mkdir", "path": "PLACE"}}},
        {"PGD": {"goal": {"_target_": "monai_smia.attacks.ShiftVolume", "structure": 1, "by": "EXPRESSION"}}},
        {"PGD": {"goal": {"_target_": "monai_smia.attacks.ShiftVolume", "_requires_": "EXPRESSION"}}},
        {"PGD": {"goal": {"_target_": "monai_smia.attacks.ShiftVolume", "_mode_": "debug"}}},
        {"PGD": {"goal": {"_target_": "EXPRESSION"}}},
    ],
)
def test_a_file_of_options_is_no_program(canary: Canary, tmp_path: Path, options: dict[str, Any]) -> None:
    text = json.dumps(options).replace("PLACE", str(canary.folder / "made"))
    text = text.replace("EXPRESSION", canary.expression("options").replace('"', '\\"'))
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(BundleError, match="options: expected"):
        read_attack_options(tmp_path / "options.json")
    assert canary.touched() == []


def test_a_workflow_class_is_not_imported(tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]) -> None:
    root = bundle_layouts.workflow(tmp_path / "bundle")
    script = root / "scripts" / "workflow.py"
    script.write_text(canary.module("workflow") + script.read_text())
    assert main(["inspect", str(root)]) == 0
    said = capsys.readouterr().out
    assert "a workflow class: " + UNKNOWN in said
    assert main(["inspect", str(root), "--configs", "scripts.workflow.ThresholdWorkflow"]) == 0
    assert main(["overlay", str(root)]) == 2
    assert canary.touched() == []


def test_an_evaluator_of_the_bundles_own_class_is_found_by_what_it_is_given(tmp_path: Path, canary: Canary) -> None:
    root = bundle_layouts.subclass(tmp_path / "bundle")
    script = root / "scripts" / "engine.py"
    script.write_text(canary.module("engine") + script.read_text())
    assert read_bundle(root).evaluator_id == "assess#engine"
    assert canary.touched() == []
    with open_bundle(root) as opened:  # which imports it to see
        assert opened.evaluator_id == "assess#engine"
    assert canary.touched() == ["engine"]


def test_yaml_is_data_also_behind_links_and_macros(tmp_path: Path, canary: Canary) -> None:
    """Tags of Python objects are refused, wherever the file lies."""
    root = bundle_layouts.standard(tmp_path / "bundle")
    tagged = f"evil: !!python/object/apply:os.mkdir ['{canary.folder}/yaml']\n"
    (tmp_path / "outside.yaml").write_text(tagged)
    with pytest.raises(BundleError, match="MONAI cannot resolve the macros"):
        read_bundle(root, overrides={"device": f"%{tmp_path}/outside.yaml::evil"})
    (root / "configs" / "train.json").unlink()
    (root / "configs" / "train.yaml").symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(BundleError, match="MONAI cannot read train.yaml"):
        read_bundle(root)
    assert canary.touched() == []


@pytest.mark.parametrize("layout", ["standard", "train_only", "template", "inference"])
def test_what_is_read_is_what_opening_finds(tmp_path: Path, layout: str) -> None:
    root = getattr(bundle_layouts, layout)(tmp_path / "bundle")
    read = read_bundle(root)
    with open_bundle(root) as opened:
        assert read.found() == opened.found()
        assert read.missing() == opened.missing()
        names = ("evaluator_id", "network_id", "loss_id", "handlers_id", "weights_id", "kind", "config_files")
        assert [getattr(read, name) for name in names] == [getattr(opened, name) for name in names]


@pytest.mark.parametrize("name", SAID)
def test_our_bundles_are_described_as_when_they_ran(name: str) -> None:
    """What `inspect` said of them while it built their preprocessing."""
    read = read_bundle(BUNDLES / name)
    reading = read_intensity(
        read.preprocessing(),
        modality=read.image_format().get("modality"),
        value_range=read.image_format().get("value_range"),
    )
    with open_bundle(BUNDLES / name) as opened:
        assert read.found() == opened.found()
        built = read_intensity(
            opened.preprocessing(),
            modality=read.image_format().get("modality"),
            value_range=read.image_format().get("value_range"),
        )
    assert (reading.scale, reading.bounds, reading.units) == (built.scale, built.bounds, built.units)
    assert reading.said.startswith(SAID[name])
    assert built.said.startswith(SAID[name])


def test_circles_and_bombs_are_refused_in_one_line(tmp_path: Path) -> None:
    """Finding D, a circular configuration; and a few lines of YAML that stand for 10 to the 9 entries."""
    root = bundle_layouts.standard(tmp_path / "bundle")
    circle = {
        "validate#preprocessing": "@validate#preprocessing",
        "loss": "@loss",
        "dataset_dir": "$@dataset_dir + 'a'",
    }
    read = read_bundle(root, overrides=circle)
    assert read.found()["loss"] == "loss"
    (unread,) = [item for item in read.preprocessing() or () if isinstance(item, Unread)]
    assert unread.name == "@validate#preprocessing, which refers to itself"
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (root / "configs" / "train.json").unlink()
    (root / "configs" / "train.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(BundleError, match="expected at most 2000000 entries"):
        read_bundle(root)
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    (root / "configs" / "train.yaml").write_text(yaml.safe_dump({"a": deep}, default_flow_style=True))
    with pytest.raises(BundleError, match="nested at most 100 deep"):
        read_bundle(root)


def test_transforms_are_read_as_they_are_built() -> None:
    config = {
        "low": -1000,
        "first": [
            {"_target_": "LoadImaged", "keys": ["image"], "reader": "NibabelReader"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": "@low",
                "a_max": "$400",
                "b_min": 0,
                "b_max": 1,
            },
        ],
        "second": [
            {"_target_": "monai.transforms.NormalizeIntensityd", "keys": "image", "subtrahend": 0.5, "divisor": 0.25},
            {"_target_": "Flipd", "keys": "image", "_disabled_": "true"},
            {"_target_": "GaussianSmoothd", "keys": "other"},
        ],
        "all": {"_target_": "Compose", "transforms": "$@first + @second"},
    }
    built = Compose(
        [
            LoadImaged("image"),
            ScaleIntensityRanged("image", -1000, 400, 0, 1),
            NormalizeIntensityd("image", 0.5, 0.25),
            Flipd("image"),
        ]
    )
    assert read_intensity(stand_ins(config, "@all")) == read_intensity(built)
    names = [item.name if isinstance(item, Unread) else item["_target_"] for item in listed(config, "$@first[:1]")]
    assert names == ["$@first[:1]"]


def test_what_decides_by_running_is_unread() -> None:
    scale = {"_target_": "ScaleIntensityd", "keys": "image"}
    config = {"data": "$make()", "loop": "@loop"}
    for item in (
        {**scale, "_disabled_": "$maybe()"},
        {**scale, "minv": "@data"},
        {**scale, "minv": "@loop"},
        {**scale, "minv": {"_target_": "float"}},
        {**scale, "_mode_": "callable"},
        {**scale, "unknown": 1},
        {**scale, "_target_": "mine.ScaleIntensityd", "keys": "$keys"},
    ):
        (found,) = stand_ins(config, [item])
        assert isinstance(found, Unread)
        assert read_intensity([found]).units == ("net", "%")
    assert literal({"a": {"b": ["@c", "$(1, 2)"]}, "c": None}, "@a") == {"b": [None, (1, 2)]}


def test_a_class_whose_keys_are_others_leaves_the_image_alone() -> None:
    scale = {**RANGE, "a_min": 0, "a_max": 255}
    own = {"_target_": "scripts.mine.Boxesd", "keys": ["label"]}
    reading = read_intensity(stand_ins({}, [scale, own]))
    assert reading.units == ("grey", "net")
    assert reading.said.endswith("scripts.mine.Boxesd was not run, and by its keys leaves the image alone.")
    assert read_intensity(stand_ins({}, [scale, {**own, "keys": "image"}])).units == ("net", "%")


def test_disabled_and_paths_as_monai_reads_them(tmp_path: Path) -> None:
    """Hole 5 of the suite: a literal ``_disabled_``, and a path that is joined."""
    (tmp_path / "a.json").touch()
    config = {
        "root": str(tmp_path),
        "file": "$os.path.join(@root, 'a.json')",
        "both": "$str(@root) + '/' + 'a.json'",
        "there": "$os.path.isfile(@file)",
        "not_there": "$not os.path.exists(@file)",
        "call": "$open(@file)",
    }
    assert static_value(config, "file") == static_value(config, "both") == str(tmp_path / "a.json")
    assert static_value(config, "call") is None
    assert static_truth(config, "there", tmp_path) is True
    assert static_truth(config, "not_there", tmp_path) is False
    assert static_truth(config, "call", tmp_path) is None
    assert [switched_off({"_disabled_": value}) for value in (True, False, "True", "false", 1, "@a")] == [
        *(True, False, True, False, True),
        None,
    ]


@pytest.mark.parametrize("command", ["evaluate", "export", "train"])
def test_what_runs_a_bundle_says_so_once(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = bundle_layouts.standard(tmp_path / "bundle")
    more = {"export": ["--attack", "PGD", "--eps", "1%"], "train": ["--method", "pgd", "--eps", "1%"]}
    assert main([command, str(root), "--out", str(tmp_path / "out"), *more.get(command, [])]) != 0  # there are no data
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert said == [
        "note: the bundle bundle is a program and runs with your rights; `monai-smia inspect` reads it without"
    ]
    assert main(["inspect", str(root)]) == 1
    assert "note: " not in capsys.readouterr().err
