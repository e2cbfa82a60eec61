"""Every way of hiding a gradient that the doctor is told to see is planted in a sound network, and is named."""

from __future__ import annotations

from typing import Any

import masked_networks as masked
import pytest
import torch
from doctor_networks import BOUNDS, Patient, classifier, linear, segmenter, volume_segmenter, volumes
from monai.losses import DiceLoss

from monai_smia import attacks
from monai_smia.doctor import Finding, diagnose


def findings(network: Any, patient: Patient, image: torch.Tensor | None = None, **arguments: Any) -> dict[str, Finding]:
    """By name, on labels that the network itself gives where it classifies."""
    image = patient.image if image is None else image
    target = patient.target if patient.target.ndim > 1 else network(image).argmax(1)
    settings = {"eps": patient.eps, "bounds": BOUNDS, **arguments}
    found = diagnose(network, image, target, patient.loss, progress=False, **settings)
    return {finding.check: finding for finding in found}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (masked.Quantised, {"zero_gradient", "unbounded_fails", "noise_as_strong", "black_box_beats"}),
        (masked.Detached, {"zero_gradient"}),
        (masked.Saturated, {"zero_gradient", "vanishing_gradient", "black_box_beats"}),
        (masked.Noisy, {"random_forward"}),
        (masked.Confident, {"zero_gradient", "vanishing_gradient", "unbounded_fails"}),
        (masked.Resized, {"random_forward"}),
        (masked.Compressed, {"zero_gradient", "unbounded_fails", "noise_as_strong", "black_box_beats"}),
        (masked.Lattice, {"broken_promise", "one_step_beats", "worse_with_steps"}),
        (masked.Sigmoided, {"probabilities"}),
        (
            masked.Shattered,
            {"broken_promise", "noise_as_strong", "black_box_beats", "not_falling_with_eps", "worse_with_steps"},
        ),
        (masked.Softmaxed, {"probabilities"}),
        (masked.Reversed, {"broken_promise", "unbounded_fails", "noise_as_strong", "black_box_beats"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_linear_network_behind_a_mask_is_caught(kind: Any, expected: set[str], seed: int) -> None:
    patient = linear(seed)
    assert expected <= findings(kind(patient.network).eval(), patient).keys()


def test_the_message_of_a_zero_gradient_counts_the_images() -> None:
    patient = linear(0)
    found = findings(masked.Quantised(patient.network), patient, checks=["zero_gradient"])
    assert found["zero_gradient"].seen == "The gradient of the loss is exactly zero at 4 of 4 images."
    assert found["zero_gradient"].severity == "error"


CONVOLUTIONAL = [
    (masked.Quantised, "zero_gradient"),
    (masked.Compressed, "zero_gradient"),
    (masked.Resized, "random_forward"),
    (masked.Shattered, "broken_promise"),
    (masked.Lattice, "broken_promise"),
    (masked.Softmaxed, "probabilities"),
    (masked.Reversed, "broken_promise"),
]


@pytest.mark.parametrize("make", [classifier, volumes, segmenter, volume_segmenter], ids=lambda make: make.__name__)
@pytest.mark.parametrize(("kind", "check"), CONVOLUTIONAL, ids=lambda value: getattr(value, "__name__", value))
def test_convolutional_networks_of_any_rank_behind_a_mask_are_caught(kind: Any, check: str, make: Any) -> None:
    patient = make(0)
    assert check in findings(kind(patient.network).eval(), patient)


@pytest.mark.parametrize("make", [classifier, segmenter], ids=lambda make: make.__name__)
def test_a_saturated_head_is_caught_where_it_weakens_the_attack(make: Any) -> None:
    patient = make(0)
    assert "vanishing_gradient" in findings(masked.Confident(patient.network), patient)


def test_air_just_below_an_intensity_window_inside_the_network_is_caught() -> None:
    patient = classifier(0)
    image = 0.1 + 0.8 * patient.image
    below = torch.where(patient.image == 0, image - patient.eps / 4, image)
    network = masked.Windowed(patient.network)
    assert findings(network, patient, below).keys() == {"clipped_gradient"}


@pytest.mark.parametrize("seed", range(2))
def test_a_lead_beyond_single_precision_is_caught(seed: int) -> None:
    patient = linear(seed)
    assert "vanishing_gradient" in findings(masked.Steep(patient.network, patient.image), patient)


@pytest.mark.parametrize("seed", range(2))
def test_a_gradient_that_is_right_only_at_the_image_lets_one_step_win(seed: int) -> None:
    patient = linear(seed)
    image = (patient.image * 5000).round() / 5000
    network = masked.Lattice(patient.network)
    found = findings(network, patient, image, surrogate=patient.network, checks=["one_step_beats", "transfer_beats"])
    assert found.keys() == {"one_step_beats", "transfer_beats"}


def test_voxels_held_at_the_ends_of_a_clip_are_caught_and_a_sound_clip_is_not() -> None:
    patient = classifier(0)
    hard, names = masked.Hard(patient.network), ["clipped_gradient", "zero_gradient"]
    assert findings(hard, patient, checks=names).keys() == {"clipped_gradient"}
    assert not findings(masked.Clamped(patient.network), patient, checks=names)
    air = (patient.image == 0) | (patient.image == 1)
    found = findings(hard, patient, checks=names, preprocessed_saturation=air, bounds=None)
    assert found.keys() == {"clipped_gradient"}
    assert not findings(hard, patient, checks=names, preprocessed_saturation=~air, bounds=None)


def test_a_gradient_that_is_not_finite_is_caught() -> None:
    patient = classifier(0)
    assert "nonfinite_gradient" in findings(masked.Root(patient.network), patient, checks=["nonfinite_gradient"])


@pytest.mark.parametrize(
    ("kind", "check"),
    [(masked.Quantised, "zero_gradient"), (masked.Reversed, "black_box_beats"), (masked.Softmaxed, "probabilities")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_masked_segmentation_is_caught(kind: Any, check: str) -> None:
    patient = segmenter(0)
    assert findings(kind(patient.network), patient, checks=[check]).keys() == {check}


def test_raw_outputs_in_a_loss_on_probabilities_are_caught() -> None:
    patient = segmenter(0)
    loss = DiceLoss(to_onehot_y=True)
    for network, expected in ((patient.network, ["raw_outputs"]), (masked.Softmaxed(patient.network), [])):
        found = diagnose(
            network, patient.image, patient.target, loss, eps=0.01, checks=["raw_outputs", "probabilities"]
        )
        assert [finding.check for finding in found] == expected


def test_an_attack_that_stops_too_early_is_caught() -> None:
    patient = linear(0)
    timid = attacks.BIM(patient.loss, eps=0.01, steps=4, step_size=1e-4, bounds=BOUNDS)
    found = findings(patient.network, patient, eps=None, bounds=None, attack=timid, checks=["not_converged"])
    # on a linear network eight steps of one size come twice as far as four
    assert found["not_converged"].seen.startswith("With 8 steps in the place of 4 the attack comes 2 times as far")
    able = attacks.BIM(patient.loss, eps=0.01, steps=4, bounds=BOUNDS)
    assert not findings(patient.network, patient, eps=None, attack=able, checks=["not_converged"])


class Careless(attacks.BIM):
    """Forgets its threat model at the end."""

    def search(self, hunt: attacks.Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        adversarial, bad = super().search(hunt)
        return hunt.setting.image + 3 * (adversarial - hunt.setting.image) + 1e-3, bad


@pytest.mark.parametrize(("norm", "eps"), [("inf", 0.1), (2, 0.5)])
def test_an_attack_that_leaves_ball_bounds_and_mask_is_caught(norm: float | str, eps: float) -> None:
    patient = linear(0)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    shared = {"eps": None, "bounds": None, "mask": mask, "checks": ["budget"]}
    attack = Careless(patient.loss, eps=eps, norm=norm, bounds=BOUNDS)
    text = findings(patient.network, patient, attack=attack, **shared)["budget"].seen
    assert "times eps" in text
    assert "intensities run from" in text
    assert "outside the mask" in text
    sound = attacks.PGD(patient.loss, eps=eps, norm=norm, bounds=BOUNDS)
    assert not findings(patient.network, patient, attack=sound, **shared)
