"""Arrays in the page decode to what was given; what does not fit is reduced and said."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from page_samples import frame_view, volume_view

from monai_smia.reports.packing import pack_difference, pack_image, unpack
from monai_smia.reports.view_encoding import MARGIN, Encoded, encode_views
from monai_smia.reports.views import Boxes, CaseView

ROOM = 10**7


def decoded(encoded: Encoded, described: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    numbers = {name: described[name] for name in ("low", "step", "bits")}
    values = unpack(encoded.payloads[described["payload"]], **numbers)
    return values[: math.prod(shape)].reshape(shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [6, 7])
def test_differences_are_exact_to_half_a_step_and_zero_is_zero(bits: int, count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    values[2] = 0.0
    packed = pack_difference(values, bits)
    again = unpack(packed.text(), low=packed.low, step=packed.step, bits=packed.bits)[:count]
    assert np.abs(again - values).max() <= packed.step / 2 * 1.0001
    assert again[2] == 0
    assert packed.step == pytest.approx(np.abs(values).max() / (2 ** (bits - 1) - 1))


def test_whole_grey_levels_are_stored_exactly() -> None:
    image = np.random.default_rng(0).integers(-3, 250, (1, 9, 9)).astype(float)
    packed = pack_image(image)
    assert np.array_equal(unpack(packed.text(), low=packed.low, step=packed.step, bits=8), image.ravel())
    constant = pack_image(np.full(5, 0.3))
    assert unpack(constant.text(), low=constant.low, step=constant.step, bits=8) == pytest.approx([0.3] * 5)


@pytest.mark.parametrize("view", [volume_view(), frame_view()], ids=["volume", "colour"])
def test_a_view_decodes_to_its_arrays(view: CaseView) -> None:
    encoded = encode_views([view], ROOM, "HU")
    described = encoded.views[0]
    shape = tuple(described["shape"])
    assert shape == view.image.shape
    image = decoded(encoded, described["image"], shape)
    assert np.abs(image - view.image).max() <= described["image"]["step"] / 2 * 1.0001
    run = described["runs"][0]
    change = decoded(encoded, run["difference"], shape)
    assert np.abs(change - (view.adversarial["PGD_5HU"] - view.image)).max() <= run["difference"]["step"] / 2 * 1.0001
    if view.image.ndim == 4:
        assert np.array_equal(decoded(encoded, described["label"], shape[1:]), view.label)
        assert np.array_equal(decoded(encoded, run["prediction"], shape[1:]), view.predictions["PGD_5HU"])
        assert described["start"] == [8, 7, 6]  # the ball's centre
    else:
        assert described["clean"] == {
            "kind": "boxes",
            "boxes": [[4.0, 3.0, 12.0, 11.0]],
            "labels": ("polyp",),
            "scores": (0.9,),
        }
        assert run["prediction"]["boxes"] == []
    assert described["notes"][0].startswith("Image values are stored in steps of")
    assert len(described["notes"]) == 1


def test_a_large_volume_is_cut_to_what_is_labelled() -> None:
    """Noise around a small label: only the box and its margin fit, and the arrays are those of the box."""
    generator = np.random.default_rng(0)
    image = generator.normal(size=(1, 64, 64, 64)).astype(np.float32)
    label = np.zeros((64, 64, 64), int)
    label[20:24, 30:33, 40:45] = 3
    view = CaseView("a", image, {"PGD": image + 0.5}, None, {}, label)
    room = 40_000
    encoded = encode_views([view], room, "HU")
    described = encoded.views[0]
    assert sum(map(len, encoded.payloads)) <= room
    assert described["stride"] == 1
    assert described["origin"] == (20 - MARGIN, 30 - MARGIN, 40 - MARGIN)
    assert described["shape"] == (1, 4 + 2 * MARGIN, 3 + 2 * MARGIN, 5 + 2 * MARGIN)
    box = image[:, 12:32, 22:41, 32:53]
    assert (
        np.abs(decoded(encoded, described["image"], box.shape) - box).max() <= described["image"]["step"] / 2 * 1.0001
    )
    assert np.array_equal(decoded(encoded, described["label"], box.shape[1:]), label[12:32, 22:41, 32:53])
    assert described["runs"][0]["difference"]["bits"] == 8
    assert "12 to 31 of 64, 22 to 40 of 64 and 32 to 52 of 64" in " ".join(described["notes"])


def test_what_still_does_not_fit_is_thinned_out() -> None:
    image = np.random.default_rng(0).normal(size=(1, 40, 40, 40))
    encoded = encode_views([CaseView("a", image, {"PGD": image})], 5_000, "HU")
    described = encoded.views[0]
    stride = described["stride"]
    assert stride > 1
    assert sum(map(len, encoded.payloads)) <= 5_000
    thinned = image[:, ::stride, ::stride, ::stride]
    again = decoded(encoded, described["image"], thinned.shape)
    assert np.abs(again - thinned).max() <= described["image"]["step"] / 2 * 1.0001
    assert any(
        f"every {'second' if stride == 2 else 'third' if stride == 3 else f'{stride}th'}" in note
        for note in described["notes"]
    )


def test_views_share_the_room() -> None:
    image = np.random.default_rng(0).normal(size=(1, 30, 30, 30))
    views = [CaseView(name, image, {"PGD": image + image}) for name in "abc"]
    encoded = encode_views(views, 30_000, "HU")
    assert sum(map(len, encoded.payloads)) <= 30_000
    assert [described["case"] for described in encoded.views] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="views: expected room for 3; 'a' does not fit into 3 bytes"):
        encode_views(views, 10, "HU")


def test_of_four_channels_the_first_is_shown_and_said() -> None:
    image = np.arange(4.0)[:, None, None] * np.ones((4, 3, 3))
    encoded = encode_views([CaseView("a", image, {})], ROOM, "HU")
    assert np.array_equal(decoded(encoded, encoded.views[0]["image"], (1, 3, 3)), image[:1])
    assert encoded.views[0]["notes"][-1] == "Of 4 channels the first is shown."


def test_tensors_are_taken() -> None:
    image = torch.rand(1, 6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    view = CaseView("a", image, {"PGD": image.bfloat16()}, torch.ones(6, 5, dtype=torch.int64), label=torch.zeros(2, 4))
    assert isinstance(view.image, np.ndarray)
    assert view.adversarial["PGD"].dtype == np.float32
    assert view.clean_prediction.dtype == np.uint8
    assert isinstance(view.label, Boxes)


IMAGE = np.zeros((1, 4, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"image": np.zeros((4, 5))},
            r"image: expected the shape \(C, H, W\) or \(C, H, W, D\), not empty; got \(4, 5\)",
        ),
        ({"image": np.zeros((1, 0, 5))}, "image: expected .* not empty"),
        ({"image": IMAGE + np.nan}, "image: expected finite numbers"),
        (
            {"adversarial": {"PGD": np.zeros((1, 5, 4))}},
            r"adversarial\['PGD'\]: expected the image's shape \(1, 4, 5\)",
        ),
        ({"label": np.full((4, 5), 0.5)}, "label: expected whole numbers from 0 to 255; got 0.5 to 0.5"),
        (
            {"clean_prediction": np.zeros((7, 3))},
            r"clean_prediction: expected the image's spatial shape \(4, 5\) or boxes \(K, 4\)",
        ),
        ({"label": {"box": []}}, r"label: expected the key 'boxes'; got \['box'\]"),
        (
            {"label": {"boxes": [[0, 0, 1, 1]], "scores": [1, 2]}},
            "label: expected scores for none or each of 1 boxes; got 2",
        ),
        ({"predictions": {"PGD": "x"}}, r"predictions: expected runs of adversarial, \[\]; got \['PGD'\]"),
        ({"spacing": (1.0, 0.0)}, "spacing: expected 2 positive numbers"),
        ({"orientation": "RS"}, "orientation: expected a letter of R/L, A/P, S/I for each axis; got 'RS'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaseView(**{"case": "a", "image": IMAGE, "adversarial": {}, **arguments})
