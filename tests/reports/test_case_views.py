"""Views made of outputs whose meaning is known, and their files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from page_samples import frame_view, volume_view

from monai_smia.intensity import IntensityScale
from monai_smia.reports.case_views import case_view, geometry
from monai_smia.reports.view_encoding import encode_views
from monai_smia.reports.view_files import load_view, save_view
from monai_smia.reports.views import Boxes, CaseView

NAN, INF = float("nan"), float("inf")
CLASSES = torch.tensor([[0, 1, 2], [2, 1, 0]])
ONE_HOT = torch.nn.functional.one_hot(CLASSES).movedim(-1, 0)


def seen(
    output: Any, label: Any = None, activation: str = "softmax", shape: tuple[int, ...] = (2, 3), **more: Any
) -> Any:
    """The view of a blank image, whose adversarial output is this one too."""
    image = torch.zeros(1, *shape)
    outputs = {"clean_output": output, "outputs": {"pgd": output}}
    view = case_view("a", image, {"pgd": image + 1}, **outputs, label=label, activation=activation, **more)
    encode_views([view], 10**6, "HU")  # the page takes it
    attacked = view.predictions["pgd"]
    assert type(attacked) is type(view.clean_prediction)
    return view


def test_softmax_maps_and_every_form_of_label() -> None:
    logits = ONE_HOT * 5.0 - 2
    names = {"0": "background", "1": "left lung", "2": "right lung"}
    for label in (CLASSES[None], CLASSES, ONE_HOT, ONE_HOT.bool(), CLASSES[None].float(), MetaTensor(ONE_HOT)):
        view = seen(logits, label, label_names=names)
        for shown in (view.clean_prediction, view.predictions["pgd"], view.label):
            assert shown.dtype == np.uint8
            assert np.array_equal(shown, CLASSES)
        assert view.classes == ("background", "left lung", "right lung")
    ignored = torch.where(CLASSES == 2, -100, CLASSES)[None]
    assert np.array_equal(seen(logits, ignored).label, [[0, 1, 0], [0, 1, 0]])
    assert seen(logits).classes == ()


def test_sigmoid_channels_lie_on_top_of_each_other() -> None:
    """Whole in part in kernel, as the BraTS regions: 1, 2, 3; a logit of 0 is p = 0.5, which is not positive."""
    regions = torch.tensor([[[1, 1, 1], [0, 0, 1]], [[0, 1, 1], [0, 0, 0]], [[0, 0, 1], [0, 0, 1]]])
    expected = [[1, 2, 3], [0, 0, 3]]
    names = ["whole", "core", "enhancing"]
    view = seen(regions.float() * 4, regions, "sigmoid", label_names=names)
    assert np.array_equal(view.clean_prediction, expected)
    assert np.array_equal(view.label, expected)
    assert view.classes == ("background", *names)
    probabilities = seen(regions * 0.8, regions, "none", label_names=names)
    assert np.array_equal(probabilities.clean_prediction, expected)
    assert np.array_equal(probabilities.label, expected)


@pytest.mark.parametrize("label", [CLASSES[None], ONE_HOT], ids=["indices", "one-hot"])
def test_background_channels_under_a_sigmoid_are_not_drawn(label: torch.Tensor) -> None:
    view = seen(ONE_HOT * 2.0 - 1, label, "sigmoid", label_names=["Background", "a", "b"])
    assert np.array_equal(view.clean_prediction, CLASSES)
    assert np.array_equal(view.label, CLASSES)
    assert view.classes == ("Background", "a", "b")


@pytest.mark.parametrize("names", [{"0": "lung"}, ["background", "lung"]])
@pytest.mark.parametrize(
    "label", [[[[0, 1, 0], [1, 0, 0]]], [[[0.2, 0.8, 0], [1, 0, 0]]], [[[0, 255, 0], [255, 0, 0]]]]
)
def test_one_sigmoid_channel_is_zero_or_one(names: Any, label: Any) -> None:
    view = seen(torch.tensor([[[-1.0, 0.1, 0.0], [7.0, -9, -INF]]]), torch.tensor(label), "sigmoid", label_names=names)
    assert np.array_equal(view.clean_prediction, [[0, 1, 0], [1, 0, 0]])
    assert np.array_equal(view.label, view.clean_prediction)
    assert view.classes == ("background", "lung")


def test_classes_with_their_probability() -> None:
    """Logits log(p) have the probabilities p."""
    logits = torch.tensor([0.05, 0.93, 0.02]).log()
    names = {"0": "normal", "1": "pneumonia", "2": "other"}
    for label in (1, torch.tensor(1), torch.tensor([1]), np.int64(1), torch.tensor([0, 1, 0]), 1.0):
        view = seen(logits, label, label_names=names)
        assert (view.clean_prediction, view.label, view.classes) == ("pneumonia (p = 0.93)", "pneumonia", ())
    assert seen(logits.flip(0)[:2], 2).clean_prediction == "class 1 (p = 0.98)"  # 0.93 / 0.95
    assert seen(logits, 2).label == "class 2"
    assert seen(logits.exp(), 1, "none").clean_prediction == "class 1 (p = 0.93)"


def test_one_and_several_labels() -> None:
    yes, no = torch.tensor([[0.93], [0.12]]).logit()
    names = {"0": "tuberculosis"}
    assert seen(yes, 1, "sigmoid", label_names=names).clean_prediction == "tuberculosis (p = 0.93)"
    assert seen(no, 1, "sigmoid", label_names=names).clean_prediction == "no tuberculosis (p = 0.88)"
    assert seen(no, [1.0], "sigmoid", label_names=names).label == "tuberculosis"
    assert seen(no, 0, "sigmoid", label_names=names).label == "no tuberculosis"
    assert seen(no, 0, "sigmoid", label_names=["healthy", "ill"]).clean_prediction == "healthy (p = 0.88)"
    several = torch.tensor([2.0, -1.0, 0.5])
    view = seen(several, torch.tensor([0, 0, 1]), "sigmoid", label_names=["mass", "nodule", "edema"])
    assert (view.clean_prediction, view.label) == ("mass, edema", "edema")
    view = seen(-several.abs(), torch.zeros(3), "sigmoid")
    assert (view.clean_prediction, view.label) == ("none", "none")
    assert seen(several, torch.tensor([0, 1, 1]), "sigmoid").label == "class 1, class 2"


def test_detections_from_the_keys_of_monai_and_torchvision() -> None:
    corners = [[1.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, NAN], [0.0, 1.0, 1.0, 3.0]]
    for keys in (("boxes", "labels", "labels_scores"), ("box", "label", "label_scores"), ("boxes", "labels", "scores")):
        output = dict(
            zip(keys, (torch.tensor(corners), torch.tensor([0, 0, 4]), torch.tensor([0.5, 0.75, 0.25])), strict=True)
        )
        label = {keys[0]: torch.zeros(0, 4), keys[1]: torch.zeros(0, dtype=torch.long)}
        view = seen(output, label, detections=True, label_names={"0": "polyp"})
        found = view.predictions["pgd"]
        assert isinstance(found, Boxes)
        assert found.corners.tolist() == [corners[0], corners[2]]
        assert (found.labels, found.scores) == (("polyp", "4"), (0.5, 0.25))
        assert view.label.corners.shape == (0, 4)
    heads = {"cls_logits": [torch.zeros(1, 2, 2)]}
    assert seen(heads, corners[:1], detections=True).clean_prediction is None
    assert seen(heads, corners[:1], detections=True).label.corners.tolist() == corners[:1]
    assert seen([output], None, detections=True).clean_prediction.scores == (0.5, 0.25)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize(
    "output",
    [None, torch.zeros(2, 1, 2), torch.full((2, 2, 3), NAN), torch.tensor([NAN, 1.0]), {"x": 1}, [], torch.zeros(0),
     "text", [[1], [1, 2]], torch.zeros(300, 2, 3), torch.zeros(2, 2, 3, dtype=torch.complex64), object()],
)  # fmt: skip
def test_odd_outputs_and_labels_are_left_out(output: Any, activation: str) -> None:
    view = seen(output, output, activation)
    assert view.clean_prediction is None
    assert view.predictions == {"pgd": None}
    assert view.label == ("text" if isinstance(output, str) else None)
    boxes = seen(output, None, activation, detections=True).predictions["pgd"]
    assert boxes is None or (boxes.corners.shape == (0, 4) and len(output) == 0)


def test_labels_that_are_no_classes_are_left_out() -> None:
    for label in (CLASSES[None] + 0.5, CLASSES[None] + 254):
        assert seen(ONE_HOT.float(), label).label is None


def test_deep_supervision_shows_the_full_resolution() -> None:
    full, half = ONE_HOT.float(), torch.ones(3, 1, 2)
    for output in ([full, half], (half, full), torch.stack([full, 1 - full])):
        assert np.array_equal(seen(output, CLASSES[None]).clean_prediction, CLASSES)
    assert seen([half, half], CLASSES[None]).clean_prediction is None


def test_an_odd_clean_output_leaves_the_attacked_one() -> None:
    image = torch.zeros(1, 2, 3)
    outputs = {"a": ONE_HOT.float(), "b": ONE_HOT.float()}
    adversarial = {"a": image, "b": torch.full_like(image, NAN), "c": image}
    view = case_view("x", image, adversarial, clean_output=None, outputs=outputs, label=None, activation="softmax")
    assert list(view.adversarial) == ["a", "c"]
    assert np.array_equal(view.predictions["a"], CLASSES)
    assert view.predictions["c"] is None


def test_images_are_in_the_physical_unit() -> None:
    scale = IntensityScale(-1000, 400)
    image = torch.tensor([[[0.0, 1.0, 0.5]] * 2])
    view = case_view(
        "a", image, {"pgd": image + 0.01}, clean_output=None, outputs={}, label=None, activation="none", intensity=scale
    )
    assert np.array_equal(view.image, [[[-1000, 400, -300]] * 2])
    assert view.adversarial["pgd"] - view.image == pytest.approx(14.0, abs=1e-3)
    assert torch.equal(image, torch.tensor([[[0.0, 1.0, 0.5]] * 2]))


def test_spacing_and_orientation_are_those_of_the_affine() -> None:
    affine = torch.tensor([[0.0, 0, -3, 7], [1.5, 0, 0, 8], [0, 2, 0, 9], [0, 0, 0, 1]])
    volume = MetaTensor(torch.zeros(1, 2, 3, 4), affine=affine)
    view = seen(None, shape=(2, 3, 4))
    assert (view.spacing, view.orientation) == (None, "")
    made = case_view("a", volume, {}, clean_output=None, outputs={}, label=None, activation="softmax")
    assert (made.spacing, made.orientation) == ((1.5, 2.0, 3.0), "ASL")
    assert geometry(MetaTensor(torch.zeros(1, 2, 3), affine=affine)) == (None, "")
    assert geometry(MetaTensor(volume.as_tensor(), affine=affine, meta={"space": "LPS"}))[1] == "PSR"
    degenerate = MetaTensor(volume.as_tensor(), affine=torch.zeros(4, 4))
    assert geometry(degenerate) == (None, "")


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    """Ten wide and four high, its upper right corner red: at the end of the first axis, at the start of the second."""
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.zeros((4, 10, 3), np.uint8)
    pixels[0, 9] = 255, 0, 0
    pillow.fromarray(pixels).save(tmp_path / "a.png")
    image = LoadImage(ensure_channel_first=True)(tmp_path / "a.png")
    view = case_view("a", image, {}, clean_output=None, outputs={}, label=None, activation="softmax")
    assert (view.spatial, view.spacing, view.orientation) == ((10, 4), None, "")
    assert view.image[:, 9, 0].tolist() == [255, 0, 0]
    assert view.image.sum() == 255


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="activation: expected one of .*'softmax'.*; got 'tanh'"):
        seen(ONE_HOT, None, "tanh")
    with pytest.raises(TypeError, match="label_names: expected a list or a mapping of names; got the text 'lung'"):
        seen(ONE_HOT, label_names="lung")
    with pytest.raises(ValueError, match="image: expected finite numbers"):
        case_view("a", torch.full((1, 2, 2), NAN), {}, clean_output=None, outputs={}, label=None, activation="none")


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, in type too."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in fields)
    return bool(one == other) and type(one) is type(other)


def text_view() -> CaseView:
    image = np.random.default_rng(0).normal(size=(2, 5, 4))
    runs = {'a"/\n$': image * (1 + 1e-15), "": image, "c": -image}
    predictions = {"": None, 'a"/\n$': "\ud800 ünï\0"}
    return CaseView("../case\0.png", image, runs, None, predictions, {"boxes": [[0, 0, 0.1, 1]], "scores": [0.1]})


@pytest.mark.parametrize("view", [volume_view(), frame_view(), text_view()], ids=["volume", "boxes", "texts"])
def test_a_view_comes_back_from_its_file(view: CaseView, tmp_path: Path) -> None:
    file = tmp_path / "new" / "view.data"
    assert save_view(view, file) == file
    assert os.listdir(file.parent) == ["view.data"]
    again = load_view(str(file))
    assert same(view, again)
    assert not same(view, dataclasses.replace(again, image=np.nextafter(again.image, np.float32(9))))
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="expected a new file"):
        save_view(view, file)
    save_view(again, file, overwrite=True)
    assert file.read_bytes() == before


def test_other_files_are_no_views(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load_view(tmp_path / "none.npz")
    file = save_view(frame_view(), tmp_path / "a.npz")
    whole = file.read_bytes()
    np.savez(tmp_path / "b.npz", about=np.array("{}"))
    np.savez(tmp_path / "pickled.npz", about=np.array({"format": 1}, dtype=object))
    np.save(tmp_path / "c.npy", np.zeros(3))
    contents = [whole[:-30], whole[:2000] + bytes(64) + whole[2064:], b"", b"text"]
    contents += [(tmp_path / name).read_bytes() for name in ("b.npz", "pickled.npz", "c.npy")]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(ValueError, match="file: expected a case that save_view wrote; got "):
            load_view(file)
