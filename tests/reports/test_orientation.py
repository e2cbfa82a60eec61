# SPDX-License-Identifier: Apache-2.0
"""The patient's left is on the viewer's right, and superior and anterior are up, whatever way an array runs."""

from __future__ import annotations

import base64
import io
import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import INSTALL, Browser, chromium
from monai.data import MetaTensor
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from page_samples import sample_report

from monai_smia.reports import CaseView, RobustnessReport, case_view, figure, write_page
from monai_smia.reports.case_views import geometry
from monai_smia.reports.figures import COLOURS, overlay
from monai_smia.reports.orientation import Turn, radiological
from monai_smia.reports.view_encoding import encode_views
from monai_smia.reports.views import Boxes

LETTERS = [
    "".join(letters) for order in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*order)
]
"""All 48 ways that the axes of a volume may run."""

SIZE = {"L": 8, "A": 6, "S": 4}
LEFT, FRONT, TOP = 100.0, 60.0, 30.0


def phantom() -> np.ndarray:
    """``(L, A, S)``: bright on the patient's left, less bright in front, least on top; indices grow that way."""
    values = np.zeros((8, 6, 4))
    values[:, :, 3] = TOP
    values[:, 5, :] = FRONT
    values[7, :, :] = LEFT
    return values


def stored(values: np.ndarray, letters: str) -> np.ndarray:
    """The phantom as a file whose axes run this way has it."""
    turned = values.transpose(["LAS".index(_positive(letter)) for letter in letters])
    return np.ascontiguousarray(turned[tuple(slice(None, None, 1 if k in "LAS" else -1) for k in letters)])


def _positive(letter: str) -> str:
    return {"R": "L", "P": "A", "I": "S"}.get(letter, letter)


def affine_of(letters: str, tilt: float = 0.0) -> np.ndarray:
    """From voxels to RAS+ millimetres for such an array, by nibabel: spacing 1, 2 and 3 mm along L, A and S."""
    spacing = {"L": 1.0, "A": 2.0, "S": 3.0}
    canonical = np.diag([spacing[_positive(k)] for k in ("R", "A", "S")] + [1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(letters)))
    sizes = [SIZE[k] for k in "LAS"]
    affine = canonical @ inv_ornt_aff(turn, sizes)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    return np.asarray(rotation @ affine)


def decoded(view: CaseView) -> tuple[np.ndarray, dict[str, Any]]:
    """The image as the page's script gets it."""
    encoded = encode_views([view], 10**6, "HU")
    (about,) = encoded.views
    own = about["image"]
    codes = np.frombuffer(zlib.decompress(base64.b64decode(encoded.payloads[own["payload"]])), np.uint8)
    return own["low"] + own["step"] * codes.reshape(about["shape"]), about


@pytest.mark.parametrize("letters", LETTERS)
def test_the_page_gets_every_orientation_the_same_way(letters: str) -> None:
    """Finding B17: by the values of the slices that the script draws, first axis to the right, others up."""
    image = stored(phantom(), letters)[None]
    view = CaseView("a", image, {"PGD": image + 1}, None, {"PGD": (image[0] > 90).astype(int)}, orientation=letters)
    values, about = decoded(view)
    assert about["orientation"] == "LAS"
    assert np.allclose(values[0], phantom(), atol=about["image"]["step"])
    assert values[0, -1].min() == pytest.approx(LEFT, abs=0.5)  # the viewer's right
    place = [7, 0, 0]  # of the left side; where is that in the file?
    index = [size - 1 - place[axis] if flipped else place[axis] for axis, flipped, size in about["stored"]]
    assert image[0][tuple(index)] == LEFT
    assert [size for *_, size in about["stored"]] == list(image.shape[1:])


@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_the_affine_decides(letters: str, tilt: float) -> None:
    """Also an oblique one, and one to LPS+."""
    image = stored(phantom(), letters)
    affine = affine_of(letters, tilt)
    assert geometry(MetaTensor(torch.tensor(image)[None], affine=affine))[1] == letters
    for space, given in (("RAS", affine), ("LPS", np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)):
        tensor = MetaTensor(torch.tensor(image)[None], affine=torch.tensor(given), meta={"space": space})
        output = torch.stack([torch.zeros(image.shape), torch.tensor(image) - 90])
        view = case_view(
            "a",
            tensor,
            {"PGD": tensor + 1},
            clean_output=output,
            outputs={"PGD": output},
            label=torch.tensor(image > 90)[None],
            activation="softmax",
        )
        seen = radiological(view)
        assert np.array_equal(seen.image[0], phantom().astype(np.float32))
        assert np.array_equal(seen.label, phantom() > 90)
        assert np.array_equal(seen.clean_prediction, phantom() > 90)
        assert np.array_equal(seen.predictions["PGD"], phantom() > 90)
        assert seen.orientation == "LAS"
        assert seen.spacing == pytest.approx((1, 2, 3))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_affine_that_is_not_finite_says_nothing(bad: float) -> None:
    """Hole 13 of the suite."""
    for place in ((0, 0), (2, 3), (3, 3)):
        affine = torch.eye(4, dtype=torch.float64)
        affine[place] = bad
        image = MetaTensor(torch.zeros(1, 2, 2, 2))
        image.affine = affine
        assert geometry(image) == (None, "")
    image.affine = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64))
    assert geometry(image) == (None, "")  # an axis of no length


@pytest.mark.parametrize("wrong", [0.5, -1, 256])
def test_a_label_map_with_one_wrong_value_is_refused(wrong: float) -> None:
    """Hole 14: most of it is whole numbers from 0 to 255, and one is not."""
    label = np.ones((4, 4))
    label[2, 3] = wrong
    with pytest.raises(ValueError, match="label: expected whole numbers from 0 to 255"):
        CaseView("a", np.zeros((1, 4, 4)), {}, label=label)


@pytest.mark.parametrize("letters", ["RAS", "LPS", "PIR", "SLA"])
def test_boxes_turn_with_the_image(letters: str) -> None:
    """A box around the bright voxels stays around them."""
    marked = np.zeros((8, 6, 4))
    marked[5:7, 1:4, 2:3] = 1
    image = stored(marked, letters)
    where = np.argwhere(image)
    box = [*where.min(0), *(where.max(0) + 1)]
    seen = radiological(CaseView("a", image[None], {}, label={"boxes": [box], "scores": [0.5]}, orientation=letters))
    assert isinstance(seen.label, Boxes)
    assert seen.label.corners.tolist() == [[5, 1, 2, 7, 4, 3]]
    assert seen.label.scores == (0.5,)


def test_planes_go_down_and_unknown_ones_stay() -> None:
    image = np.arange(6.0).reshape(1, 2, 3)
    assert radiological(CaseView("a", image, {})).image.tolist() == image.tolist()
    seen = radiological(CaseView("a", image, {}, orientation="RA"))
    assert (seen.orientation, seen.image.tolist()) == ("LP", image[:, ::-1, ::-1].tolist())
    turned = radiological(CaseView("a", image, {}, orientation="AR"))
    assert (turned.orientation, turned.image.tolist()) == ("LP", image[:, ::-1, ::-1].transpose(0, 2, 1).tolist())
    for letters in LETTERS:
        turn = Turn.of(letters)
        assert turn.letters(letters) == "LAS"
        assert np.array_equal(turn.array(stored(phantom(), letters)), phantom())


@pytest.mark.parametrize("letters", ["RAS", "LPS", "LAS", "SPR"])
def test_figures_show_the_left_on_the_right(letters: str) -> None:
    pytest.importorskip("matplotlib")
    image = stored(phantom(), letters)[None]
    view = CaseView("a", image, {"PGD": image}, label=(image[0] == FRONT).astype(int), orientation=letters)
    drawn = figure(RobustnessReport({}, (), {}, "HU"), "case", views=[view], index=1)
    axis = drawn.axes[0]
    values = np.asarray(axis.images[0].get_array())  # rows are A, columns L
    assert axis.get_ylim()[0] < axis.get_ylim()[1]
    assert values[:, -1].tolist() == [LEFT] * 6
    assert values[-1, :-1].tolist() == [FRONT] * 7


@pytest.mark.parametrize("letters", ["RAS", "LPS", "LAS", "SPR"])
def test_pictures_show_the_left_on_the_right(letters: str) -> None:
    """By pixels of the PNG: what is predicted is the left, and lies on the right of its panel; the front is up."""
    pytest.importorskip("matplotlib")
    pictures = pytest.importorskip("PIL.Image")
    image = torch.tensor(stored(phantom(), letters))[None]
    label = (image == LEFT).float()
    png = overlay(image, image, label, label, None, orientation=letters)
    with pictures.open(io.BytesIO(png)) as picture:
        panel = np.asarray(picture.convert("RGB"))[78:300, 945:1225].astype(int)  # the fourth, below its title
    black = np.argwhere(panel.max(-1) < 10)  # what is 0
    (top, left), (bottom, right) = black.min(0), black.max(0)
    middle_row, middle_column = (top + bottom) // 2, (left + right) // 2
    orange = [(255 + int(COLOURS[0][k : k + 2], 16)) // 2 for k in (1, 3, 5)]
    assert panel[middle_row, right + 10].tolist() == pytest.approx(orange, abs=3)
    assert panel[top - 10, middle_column].tolist() == pytest.approx([153] * 3, abs=3)  # 60 of 100


def test_structures_have_one_colour_everywhere(tmp_path: Path) -> None:
    """The page gets the colours of the pictures and figures, and has none of its own."""
    page = write_page(sample_report(), tmp_path / "page.html").read_text()
    assert '"colours":' + str(list(COLOURS)).replace("'", '"').replace(" ", "") in page
    script = (Path(write_page.__code__.co_filename).parent / "assets" / "page_slices.js").read_text()
    assert not [colour for colour in COLOURS if colour in script]


@pytest.mark.skipif(chromium() is None, reason=INSTALL)
@pytest.mark.parametrize("letters", ["RAS", "LPS", "SPR"])
def test_the_viewer_draws_the_left_on_the_right(tmp_path: Path, letters: str) -> None:
    """By the pixels of its three pictures, and the letters' sides by the position of a click."""
    image = stored(phantom(), letters)[None]
    label = (image[0] == LEFT).astype(int)
    view = CaseView("a.nii.gz", image, {"PGD_5HU": image}, label, label=label, orientation=letters)
    path = write_page(sample_report(), tmp_path / "page.html", views=[view])
    binary = chromium()
    assert binary is not None
    with Browser(binary) as page:
        page.open(path.as_uri(), "document.readyState === 'complete' && !document.getElementById('viewer').hidden")
        for box in ("view-label", "view-cross"):
            page.ask(f"document.getElementById('{box}').click()")
        page.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

        def grey(plane: int, x: float, y: float) -> int:
            found: int = page.ask(
                f"(() => {{ const canvas = document.getElementById('plane-{plane}-canvas');"
                f" return canvas.getContext('2d').getImageData(Math.floor({x} * canvas.width),"
                f" Math.floor({y} * canvas.height), 1, 1).data[0]; }})()"
            )
            return found

        page.ask(
            "for (const [i, value] of [[0, 1], [1, 1], [2, 1]]) { const slider ="
            " document.getElementById(`plane-${i}-slice`); slider.value = value;"
            " slider.dispatchEvent(new Event('input')); }"
        )
        page.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        assert grey(0, 0.97, 0.3) > 250  # axial: the left on the right
        assert grey(0, 0.3, 0.05) == pytest.approx(153, abs=3)  # and the front up
        assert grey(1, 0.97, 0.3) > 250  # coronal: the left on the right
        assert grey(1, 0.3, 0.05) == pytest.approx(77, abs=3)  # and the top up
        assert grey(2, 0.3, 0.05) == pytest.approx(77, abs=3)  # sagittal: the top up
        assert [problem for problem in page.problems if "willReadFrequently" not in problem] == []
