"""Universal perturbations: fitted, resumed and interrupted, stored, applied, as an attack and as a transform."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contract
import networks
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.losses import DiceCELoss
from monai.transforms import Compose
from oracles import LinearMargin
from torch import nn

import monai_smia.attacks
from monai_smia.attacks.universal import UniversalAttack, UniversalPerturbation
from monai_smia.attacks.universal_fit import UAP
from monai_smia.transforms.universal import (
    AddUniversalPerturbation,
    AddUniversalPerturbationD,
    AddUniversalPerturbationd,
    AddUniversalPerturbationDict,
)

# a perturbation is no text and needs no gradient: `repr` does not rebuild it, and nothing can spoil one
CLAUSES = sorted({*contract.CHECKS} - {"configuration", "bad_sample"})


def make(rank: int) -> contract.Make:
    delta = 0.3 * torch.randn((1, *(9, 7, 5)[:rank]), generator=torch.Generator().manual_seed(0))
    perturbation = UniversalPerturbation(delta, eps=1.0)
    return lambda loss, **arguments: UniversalAttack(loss, **{"perturbation": perturbation, **arguments})


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize(("rank", "task"), [(2, "segmentation"), (3, "classification"), (3, "segmentation")])
def test_contract(rank: int, task: str, clause: str) -> None:
    contract.CHECKS[clause](contract.Case(make(rank), rank, task))


def batches(rank: int = 2, count: int = 4, size: int = 3) -> list[dict[str, torch.Tensor]]:
    source = torch.Generator().manual_seed(1)
    shape = (size, 1, *(9, 7, 5)[:rank])
    return [
        {"image": torch.rand(shape, generator=source), "label": torch.randint(3, shape, generator=source)}
        for _ in range(count)
    ]


DICE = DiceCELoss(to_onehot_y=True, softmax=True)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("norm", ["inf", 2])
def test_on_a_linear_network_it_is_the_steepest_direction_of_the_mean_gradient(rank: int, norm: float | str) -> None:
    """Samples of both classes pull against each other; their mean gradient is known: ``(p - y) w``, averaged."""
    shape = (2, 6, 5, 4)[: rank + 1]
    network = LinearMargin(shape)
    image = torch.randn(7, *shape, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 1, 1, 0, 1, 1, 1])
    with torch.no_grad():
        pull = (torch.sigmoid(network.margin(image)) - label).mean()
    found = UAP(nn.CrossEntropyLoss(), eps=0.05, norm=norm, epochs=1, step_size=9.0).fit(
        network, [(image, label)], progress=False
    )
    mean = pull * network.weight.detach()
    expected = 0.05 * (mean.sign() if norm == "inf" else mean / mean.norm())
    torch.testing.assert_close(found.delta, expected, rtol=1e-5, atol=1e-7)


def test_equals_the_method_written_out() -> None:
    """Mini-batches, clipped losses and clipped images, one tensor of plain gradient ascent."""
    network, data = networks.tiny_network(2, dense=True), batches()
    eps, step, clip, low, high = 0.2, 0.05, 3.1, 0.1, 0.9
    data = [{**batch, "image": batch["image"] * 0.8 + 0.1} for batch in data]
    delta = torch.zeros(1, 9, 7)
    plain = copy.deepcopy(network).eval()
    clipped = 0
    for _ in range(3):
        for batch in data:
            leaf = delta.clone().requires_grad_()
            x = (batch["image"] + leaf).clamp(low, high)
            losses = torch.stack([DICE(plain(x[i : i + 1]), batch["label"][i : i + 1]) for i in range(3)])
            clipped += int((losses > clip).sum())
            (gradient,) = torch.autograd.grad(losses.clamp(max=clip).mean(), leaf)
            delta = (delta + step * gradient.sign()).clamp(-eps, eps)
    assert 0 < clipped < 36
    uap = UAP(DICE, eps=eps, bounds=(low, high), epochs=3, step_size=step, loss_clip=clip)
    found = uap.fit(network, data, progress=False)
    torch.testing.assert_close(found.delta, delta, rtol=0, atol=1e-6)
    assert (found.eps, found.norm, found.bounds, found.epochs) == (eps, float("inf"), (low, high), 3)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("targeted", [False, True])
def test_moves_the_loss_of_images_it_has_not_seen_and_more_than_noise(rank: int, targeted: bool) -> None:
    network, data = networks.tiny_network(rank, dense=True), batches(rank, count=6)
    label = torch.zeros_like(data[0]["label"])  # one label for all, so that there is something in common
    data = [{**batch, "label": label} for batch in data]
    uap = UAP(DICE, eps=0.2, bounds=(0.0, 1.0), epochs=4, targeted=targeted)
    found = uap.fit(network, data[:4], progress=False)
    assert float(found.delta.abs().max()) <= 0.2 + 1e-7
    noise = 0.2 * torch.randn(found.delta.shape, generator=torch.Generator().manual_seed(3)).sign()
    random = UniversalPerturbation(noise, eps=0.2, bounds=(0.0, 1.0))
    gains = []
    for perturbation in (found, random):
        attack = UniversalAttack(DICE, perturbation=perturbation, targeted=targeted)
        results = [attack(network, batch["image"], batch["label"]) for batch in data[4:]]
        gains.append(torch.cat([result.loss - result.clean_loss for result in results]))
    fitted, drawn = (-gain if targeted else gain for gain in gains)
    assert bool((fitted > 0).all())
    assert bool((fitted > drawn).all())


def test_interrupted_and_resumed_it_is_the_same_and_the_network_is_as_it_was(tmp_path: Path) -> None:
    network, data = networks.tiny_network(2, dense=True), batches()
    network[0].weight.grad = torch.ones_like(network[0].weight)
    uap = UAP(DICE, eps=0.2, bounds=(0.0, 1.0), epochs=5, step_size=0.03)
    with contract.unchanged(network):
        whole = uap.fit(network, data, progress=False)
    seen: list[int] = []

    def keep(perturbation: UniversalPerturbation) -> None:
        seen.append(perturbation.epochs)
        perturbation.save(tmp_path / "uap.pt")

    failing = networks.Failing(network, at=10)  # in the third epoch of four batches
    with contract.unchanged(failing), pytest.raises(KeyboardInterrupt, match="planted"):
        uap.fit(failing, data, callback=keep)
    assert seen == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["uap.pt"]
    resumed = uap.fit(network, data, start=UniversalPerturbation.load(tmp_path / "uap.pt"), progress=False)
    assert torch.equal(resumed.delta, whole.delta)
    assert resumed.epochs == 5
    assert uap.fit(network, data, start=resumed, progress=False) is resumed


def test_the_bar_counts_batches_and_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    network, data = networks.tiny_network(2, dense=True), batches()
    uap = UAP(DICE, eps=0.2, epochs=2)
    uap.fit(network, data)
    shown = capsys.readouterr().err
    assert "universal perturbation 2/2" in shown
    assert "0/4" in shown
    uap.fit(network, data, progress=False)
    assert capsys.readouterr().err == ""


def test_takes_what_loaders_give_and_leaves_the_global_generator_alone() -> None:
    network, data = networks.tiny_network(2, dense=True), batches(size=1)
    state = torch.get_rng_state()
    uap = UAP(DICE, eps=0.2, epochs=2)
    expected = uap.fit(network, data, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    cases = [{key: MetaTensor(value[0]) for key, value in batch.items()} for batch in data]
    loader = DataLoader(Dataset(cases), batch_size=1)
    assert torch.equal(uap.fit(network, loader, progress=False).delta, expected.delta)
    pairs = [(batch["image"], batch["label"]) for batch in data]
    assert torch.equal(uap.fit(network, pairs, progress=False).delta, expected.delta)
    named = [{"ct": image, "organ": label} for image, label in pairs]
    own = uap.fit(network, named, prepare_batch=lambda b: (b["ct"], b["organ"]), progress=False)
    assert torch.equal(own.delta, expected.delta)
    with torch.no_grad():
        assert torch.equal(uap.fit(network, data, progress=False).delta, expected.delta)
    half = [{**batch, "image": batch["image"].bfloat16()} for batch in data]
    assert uap.fit(copy.deepcopy(network).bfloat16(), half, progress=False).delta.dtype == torch.float32


def test_a_sample_without_a_finite_gradient_does_not_count() -> None:
    network, data = networks.tiny_network(2, dense=True).eval(), batches(count=1)

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            gradient[0] = torch.nan
            return gradient

    uap = UAP(DICE, eps=0.2, epochs=2)
    rest = [{key: value[1:] for key, value in data[0].items()}]
    poisoned = uap.fit(lambda x: network(Poison.apply(x)), data, progress=False)
    assert torch.equal(poisoned.delta, uap.fit(network, rest, progress=False).delta)


def test_stored_and_read_again(tmp_path: Path) -> None:
    delta = torch.randn(2, 4, 3, 5)
    kept = UniversalPerturbation(delta, eps=[0.1, 5.0], norm="inf", bounds=([-1.0, 0.0], [1.0, 2.0]), epochs=3)
    kept.save(tmp_path / "uap.pt")
    again = UniversalPerturbation.load(tmp_path / "uap.pt")
    assert torch.equal(again.delta, delta)
    assert (again.eps, again.norm, again.bounds, again.epochs) == (kept.eps, kept.norm, kept.bounds, kept.epochs)
    assert repr(again) == repr(kept)
    torch.save({"weight": delta}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="path: expected a file with .* holds \\['weight'\\]"):
        UniversalPerturbation.load(tmp_path / "other.pt")


def test_applied_to_one_image_and_to_a_batch() -> None:
    image = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    delta = 0.4 * torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    perturbation = UniversalPerturbation(delta, eps=0.4, bounds=(0.0, 1.0))
    expected = (image + delta).clamp(0, 1)
    torch.testing.assert_close(perturbation(image), expected)
    torch.testing.assert_close(perturbation(image[0]), expected[0])
    mask = torch.zeros(1, 6, 5)
    mask[:, :3] = 1
    assert torch.equal(perturbation(image[0], mask), torch.where(mask > 0, perturbation(image[0]), image[0]))
    meta = perturbation(MetaTensor(image[0].double(), meta={"patient": "phantom"}))
    assert isinstance(meta, MetaTensor)
    assert (meta.dtype, meta.meta["patient"]) == (torch.float64, "phantom")
    attack = UniversalAttack(nn.CrossEntropyLoss(), perturbation=perturbation)
    assert (attack.eps, attack.bounds, attack.norm) == (0.4, (0.0, 1.0), float("inf"))
    result = attack(nn.Flatten(), image, torch.zeros(3, dtype=torch.long))
    assert torch.equal(result.adversarial, perturbation(image))
    assert result.backward_passes.tolist() == [0, 0, 0]


def test_transforms() -> None:
    delta = torch.tensor([[[0.2, -0.2], [0.3, -0.3]]])
    perturbation = UniversalPerturbation(delta, eps=0.3, bounds=(0.0, 1.0))
    image = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]])
    expected = torch.tensor([[[1.0, 0.0], [0.8, 0.2]]])
    add = AddUniversalPerturbation(perturbation)
    torch.testing.assert_close(add(image), expected)
    array = image.numpy().astype(np.float16)
    assert isinstance(add(array), np.ndarray)
    assert add(array).dtype == np.float16
    np.testing.assert_allclose(add(array), expected.numpy(), atol=1e-3)
    mask = np.array([[[1, 0], [0, 1]]])
    torch.testing.assert_close(add(image, mask), torch.tensor([[[1.0, 0.1], [0.5, 0.2]]]))
    pipeline = Compose(
        [AddUniversalPerturbationd(("image", "other"), perturbation, mask_key="roi", allow_missing_keys=True)]
    )
    case = {"image": MetaTensor(image), "roi": torch.as_tensor(mask), "label": 1}
    out = pipeline(case)
    assert isinstance(out["image"], MetaTensor)
    torch.testing.assert_close(out["image"].as_tensor(), torch.tensor([[[1.0, 0.1], [0.5, 0.2]]]))
    assert torch.equal(case["image"].as_tensor(), image)
    assert AddUniversalPerturbationD is AddUniversalPerturbationd is AddUniversalPerturbationDict
    assert "shape=(1, 2, 2)" in repr(pipeline.transforms[0])
    with pytest.raises(KeyError, match="mask_key: expected 'roi' in the data"):
        AddUniversalPerturbationd("image", perturbation, mask_key="roi")({"image": image})
    with pytest.raises(ValueError, match="img: expected one image of shape"):
        add(image[None])
    with pytest.raises(TypeError, match="perturbation: expected a UniversalPerturbation; got Tensor"):
        AddUniversalPerturbation(delta)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="img: expected an array or tensor"):
        add([[0.5]])


def test_built_from_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (UAP, UniversalAttack, UniversalPerturbation):
        monkeypatch.setattr(monai_smia.attacks, value.__name__, value, raising=False)
    UniversalPerturbation(torch.full((1, 2, 2), 0.1), eps=0.1).save(tmp_path / "uap.pt")
    config = {
        "perturbation": {
            "_target_": "monai_smia.attacks.UniversalPerturbation.load",
            "path": str(tmp_path / "uap.pt"),
        },
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "attack": {
            "_target_": "monai_smia.attacks.UniversalAttack",
            "loss_function": "@loss",
            "perturbation": "@perturbation",
        },
        "uap": {"_target_": "monai_smia.attacks.UAP", "loss_function": "@loss", "eps": 0.1, "norm": "inf"},
    }
    parser = ConfigParser(json.loads(json.dumps(config)))
    attack = parser.get_parsed_content("attack")
    assert type(attack) is UniversalAttack
    assert torch.equal(attack.perturbation.delta, torch.full((1, 2, 2), 0.1))
    assert parser.get_parsed_content("uap").norm == float("inf")


def test_errors() -> None:
    loss = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="epochs: expected a whole number >= 1; got 0"):
        UAP(loss, eps=0.1, epochs=0)
    with pytest.raises(ValueError, match="loss_clip: a targeted perturbation lowers the loss"):
        UAP(loss, eps=0.1, targeted=True, loss_clip=9.0)
    with pytest.raises(ValueError, match="loss_function: .*batch=True"):
        UAP(DiceCELoss(batch=True), eps=0.1)
    with pytest.raises(AttributeError, match="cannot assign to field 'eps'"):
        UAP(loss, eps=0.1).eps = 1.0  # type: ignore[misc]
    uap = UAP(loss, eps=0.1, bounds=(0.0, 1.0))
    image, label = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)

    def fit(data: Any) -> None:
        uap.fit(nn.Flatten(), data, progress=False)

    def empty() -> Iterator[Any]:
        yield from ()

    with pytest.raises(ValueError, match="loader: expected at least one batch; got none"):
        fit(empty())
    with pytest.raises(ValueError, match="loader: expected images of one shape, \\(1, 4, 4\\) as the perturbation"):
        fit([(image, label), (torch.full((2, 1, 4, 5), 0.5), label)])
    with pytest.raises(ValueError, match="loader: expected the keys .* got \\['image', 'seg'\\]"):
        fit([{"image": image, "seg": label}])
    with pytest.raises(ValueError, match="loader: expected batches that are dictionaries or pairs"):
        fit([image])
    with pytest.raises(ValueError, match="bounds: the image leaves"):
        fit([(image * 4, label)])
    perturbation = UniversalPerturbation(torch.zeros(1, 4, 4), eps=0.1)
    with pytest.raises(ValueError, match="image: the perturbation fits images of shape \\(1, 4, 4\\)"):
        UniversalAttack(loss, perturbation=perturbation)(nn.Flatten(), torch.ones(2, 1, 4, 5), label)
    with pytest.raises(ValueError, match="delta: expected finite values"):
        UniversalPerturbation(torch.full((1, 2), torch.nan), eps=0.1)
    with pytest.raises(TypeError, match="delta: expected a floating tensor"):
        UniversalPerturbation(torch.zeros(1, 2, dtype=torch.long), eps=0.1)
    with pytest.raises(TypeError, match="perturbation: expected a UniversalPerturbation; got Tensor"):
        UniversalAttack(loss, perturbation=torch.zeros(1, 2))  # type: ignore[arg-type]


def test_a_fit_under_inference_mode_is_the_fit_without() -> None:
    """Its images were made there, too."""
    network = networks.tiny_network(2, dense=True)
    uap = UAP(DICE, eps=0.1, epochs=2, bounds=(0.0, 1.0))
    expected = uap.fit(network, batches(), progress=False).delta
    with torch.inference_mode():
        found = uap.fit(network, batches(), progress=False).delta
    assert torch.equal(found, expected)
    assert float(expected.abs().max()) > 0
    assert not found.is_inference()
