"""The dictionary transforms: keys, labels, draws, MONAI's compositions and configurations."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
from typing import Any

import monai.transforms
import networks
import numpy as np
import pytest
import torch
from evaluators import BOUNDS, EPS, Task
from monai.bundle import ConfigParser
from monai.bundle.config_item import ComponentLocator
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, Identityd, OneOf, RandFlipd, RandSpatialCropSamplesd, SomeOf, Spacingd
from monai.transforms.traits import RandomizableTrait, ThreadUnsafe
from monai.utils import MAX_SEED

import monai_smia.transforms
from monai_smia.attacks import PGD, Attack
from monai_smia.transforms import (
    AdversarialAttack,
    AdversarialAttackd,
    RandAdversarialAttackd,
    adversarial,
    dictionary,
)

BOTH = pytest.mark.parametrize("kind", [AdversarialAttackd, RandAdversarialAttackd])


def pgd(**arguments: Any) -> Attack:
    return PGD(Task().loss(), **{"eps": EPS, "steps": 2, "bounds": BOUNDS, "random_start": True, **arguments})


def case(i: int = 0, rank: int = 2) -> dict[str, Any]:
    """Two images of one label, a mask, and something that is not attacked."""
    task = Task(rank)
    image, label = task.images()[i], task.labels()[i]
    mask = (torch.arange(image[0].numel()).reshape(image.shape) % 3 > 0).numpy()
    return {"image": MetaTensor(image), "flair": 1 - image.numpy(), "label": label, "roi": mask, "age": 71}


def certain(kind: Any, *arguments: Any, **options: Any) -> Any:
    """A transform that always attacks."""
    return kind(*arguments, **options, **({"prob": 1.0} if kind is RandAdversarialAttackd else {}))


def plain(image: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(image))


def test_equals_the_array_version_key_by_key() -> None:
    network, data = Task().network(), case()
    before = {key: plain(value).clone() for key, value in data.items()}
    array = AdversarialAttack(pgd(), network, seed=3)
    found = AdversarialAttackd(("image", "flair"), pgd(), network, seed=3)(data)
    assert found is not data
    for key in ("image", "flair"):
        assert type(found[key]) is type(data[key])
        assert torch.equal(plain(found[key]), plain(array(data[key], data["label"])))
        assert not torch.equal(plain(found[key]), before[key])
    assert {key for key in data if found[key] is data[key]} == {"label", "roi", "age"}
    assert all(torch.equal(plain(data[key]), value) for key, value in before.items())


def test_label_and_mask_keys() -> None:
    network, data = Task().network(), case()
    data["seg"] = data.pop("label")
    found = AdversarialAttackd("image", pgd(), network, label_key="seg", mask_key="roi")(data)
    expected = AdversarialAttack(pgd(), network)(data["image"], data["seg"], data["roi"])
    assert torch.equal(plain(found["image"]), plain(expected))
    assert torch.equal((plain(found["image"]) != plain(data["image"])) & ~plain(data["roi"]), torch.zeros(1, 9, 7) > 0)


@BOTH
def test_missing_keys(kind: Any) -> None:
    network, data = Task().network(), case()
    del data["flair"]
    with pytest.raises(KeyError, match="flair"):
        certain(kind, ("image", "flair"), pgd(), network)(data)
    found = certain(kind, ("flair", "image"), pgd(), network, allow_missing_keys=True)(data)
    assert set(found) == set(data)
    assert not torch.equal(plain(found["image"]), plain(data["image"]))
    assert certain(kind, "flair", pgd(), network, allow_missing_keys=True)({"age": 3}) == {"age": 3}
    for name in ("label_key", "mask_key"):
        with pytest.raises(KeyError, match=f"{name}: expected 'absent'.*age"):
            certain(kind, "image", pgd(), network, allow_missing_keys=True, **{name: "absent"})(data)


def test_missing_keys_are_missed_although_not_attacked() -> None:
    transform = RandAdversarialAttackd(("image", "pet"), pgd(), Task().network(), prob=0.0)
    with pytest.raises(KeyError, match="pet"):
        transform(case())


@BOTH
def test_bad_arguments(kind: Any) -> None:
    with pytest.raises(ValueError, match="keys"):
        kind((), pgd(), Task().network())
    with pytest.raises(TypeError, match="attack: expected an Attack"):
        kind("image", None, Task().network())
    with pytest.raises(ValueError, match="prob"):
        RandAdversarialAttackd("image", pgd(), Task().network(), prob=10)


@pytest.mark.parametrize("prob", [0.0, 0.4, 1.0])
def test_random_draws_by_hand(prob: float) -> None:
    network = Task().network()
    transform = RandAdversarialAttackd(("image", "flair"), pgd(), network, prob=prob)
    for _ in range(2):  # the same seed gives the same bits again
        assert transform.set_random_state(seed=9) is transform
        whether, seeds = (np.random.RandomState(9) for _ in range(2))
        attacked = 0
        for i in range(6):
            data = case(i % 3)
            found = transform(data)
            if whether.rand() >= prob:
                assert all(found[key] is data[key] for key in data)
                continue
            attacked += 1
            for key in ("image", "flair"):
                seeds.rand()  # the array transform's own draw, with probability 1
                seed = int(seeds.randint(MAX_SEED, dtype="uint32"))
                expected = AdversarialAttack(pgd(), network, seed=seed)(data[key], data["label"])
                assert torch.equal(plain(found[key]), plain(expected))
        assert 6 * prob <= attacked <= 6 * (prob > 0)


def test_a_shared_state_is_drawn_from() -> None:
    network, results = Task().network(), []
    for _ in range(2):
        state = np.random.RandomState(2)
        transform = RandAdversarialAttackd("image", pgd(), network, prob=1.0).set_random_state(state=state)
        results += [plain(transform(case())["image"]) for _ in range(2)]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])
    assert not torch.equal(results[0], results[1])


def test_the_three_names_are_one_class() -> None:
    for name in ("AdversarialAttack", "RandAdversarialAttack"):
        d, upper, full = (getattr(monai_smia.transforms, name + ending) for ending in ("d", "D", "Dict"))
        assert d is upper is full
        assert d.__name__ == f"{name}d"
        assert isinstance(certain(d, "image", pgd(), Task().network()), RandomizableTrait)
        assert issubclass(d, ThreadUnsafe) == (d is RandAdversarialAttackd)


@BOTH
def test_pickles_and_shows_its_arguments(kind: Any) -> None:
    network = Task().network()
    transform = certain(kind, ("image", "flair"), pgd(), network, mask_key="roi", device="cpu")
    if kind is RandAdversarialAttackd:
        transform.set_random_state(3)
    copied = pickle.loads(pickle.dumps(transform))
    assert torch.equal(plain(copied(case())["image"]), plain(transform(case())["image"]))
    shown = repr(transform)
    assert shown.startswith(f"{kind.__name__}(keys=('image', 'flair'), attack=PGD(")
    for part in ("network=Sequential, ", "label_key='label'", "mask_key='roi'", "device=device(type='cpu')"):
        assert part in shown
    assert "Conv2d" not in shown
    assert "\n" not in shown
    assert ("seed=0" if kind is AdversarialAttackd else "prob=1.0") in shown


@BOTH
def test_in_monais_compositions(kind: Any) -> None:
    network, data = Task().network(), case()
    transform = certain(kind, "image", pgd(random_start=False), network)
    expected = plain(AdversarialAttack(pgd(random_start=False), network)(data["image"], data["label"]))
    pipelines = {
        "Compose": Compose([Identityd("image"), transform]),
        "nested": Compose([Compose([transform])]),
        "OneOf": OneOf([transform, Identityd("image")], weights=[1.0, 0.0]),
        "SomeOf": SomeOf([transform, Identityd("image")], num_transforms=2, replace=False),
        "OneOf of Compose": Compose([OneOf([Identityd("image"), Compose([transform])], weights=[0.0, 1.0])]),
    }
    for name, pipeline in pipelines.items():
        for track in (data, {**data, "image": plain(data["image"])}):
            found = pipeline.set_random_state(1)(track)
            assert torch.equal(plain(found["image"]), expected), name
            assert type(found["image"]) is type(track["image"])
            inverted = pipeline.inverse(found)
            assert torch.equal(plain(inverted["image"]), expected), name  # an attack has no inverse
    assert data["image"].applied_operations == []


def test_every_item_of_a_list_is_attacked_on_its_own() -> None:
    task = Task(cases=4)
    network = task.network()
    data = [{"image": image, "label": label} for image, label in zip(task.images(), task.labels(), strict=True)]
    crops = RandSpatialCropSamplesd(("image", "label"), roi_size=5, num_samples=3, random_size=False)
    attack = pgd(random_start=False)
    pipeline = Compose([crops, AdversarialAttackd("image", attack, network)]).set_random_state(4)
    by_hand = Compose([crops]).set_random_state(4)
    expected = [
        plain(AdversarialAttack(attack, network)(item["image"], item["label"])) for item in by_hand(data[0].copy())
    ]
    found = pipeline.set_random_state(4)(data[0])
    assert [tuple(item["image"].shape) for item in found] == [(1, 5, 5)] * 3
    assert all(torch.equal(plain(item["image"]), image) for item, image in zip(found, expected, strict=True))
    mapped = Compose([AdversarialAttackd("image", attack, network)], map_items=2)([data[:2], data[2:]])
    for item, source in zip([*mapped[0], *mapped[1]], data, strict=True):
        assert torch.equal(item["image"], AdversarialAttack(attack, network)(source["image"], source["label"]))


def test_pending_operations_are_carried_out_before_the_attack() -> None:
    task = Task(3)
    network = task.network()
    affine = torch.diag(torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    data = {
        "image": MetaTensor(task.images()[0], affine=affine),
        "label": MetaTensor(task.labels()[0].float(), affine=affine),
    }
    keys, modes = ("image", "label"), ("bilinear", "nearest")
    before = [Spacingd(keys, pixdim=1.0, mode=modes), RandFlipd(keys, prob=1.0, spatial_axis=0)]
    attacked = AdversarialAttackd("image", pgd(), network)
    eager, lazy = (Compose([*before, attacked], lazy=lazy)(data) for lazy in (False, True))
    assert eager["image"].shape == lazy["image"].shape == (1, 9, 13, 5)
    assert not lazy["image"].pending_operations
    resampled = Compose(before, lazy=True)(data)
    expected = AdversarialAttack(pgd(), network)(resampled["image"], resampled["label"])
    assert torch.equal(plain(lazy["image"]), plain(expected))


@pytest.mark.parametrize("name", ["AdversarialAttackd", "AdversarialAttackDict", "RandAdversarialAttackD"])
def test_builds_from_json(name: str) -> None:
    config = json.dumps(
        {
            "network": {"_target_": "networks.tiny_network", "rank": 2, "dense": True},
            "attack": {
                "_target_": "monai_smia.attacks.PGD",
                "loss_function": {"_target_": "monai.losses.DiceCELoss", "to_onehot_y": True, "softmax": True},
                "eps": EPS,
                "steps": 2,
                "bounds": list(BOUNDS),
                "random_start": True,
            },
            "transform": {
                "_target_": f"monai_smia.transforms.{name}",
                "keys": "image",
                "attack": "@attack",
                "network": "@network",
                "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [6, 6]},
                "device": "cpu",
                **({"prob": 1.0} if name.startswith("Rand") else {"seed": 2}),
            },
        }
    )
    transform = ConfigParser(json.loads(config)).get_parsed_content("transform")
    expected = getattr(monai_smia.transforms, name)(
        keys="image",
        attack=pgd(),
        network=networks.tiny_network(2, dense=True),
        inferer=SlidingWindowInferer(6),
        device="cpu",
        **({"prob": 1.0} if name.startswith("Rand") else {"seed": 2}),
    )
    for built in (transform, expected):
        if name.startswith("Rand"):
            built.set_random_state(6)
    assert torch.equal(plain(transform(case())["image"]), plain(expected(case())["image"]))


def test_bare_names_are_found_once() -> None:
    locator = ComponentLocator()
    for name in monai_smia.transforms.__all__:
        home = "universal" if "Universal" in name else "adversarial" if name.endswith("Attack") else "dictionary"
        assert locator.get_component_module_name(name) == f"monai_smia.transforms.{home}"
    # what else the modules define takes no name of MONAI's, whose bare names configurations use
    for module in (adversarial, dictionary):
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__:
                assert locator.get_component_module_name(name) == module.__name__


@pytest.mark.parametrize("module", [monai_smia.transforms, adversarial, dictionary])
def test_importing_runs_nothing(module: Any) -> None:
    """Imports, definitions and names are all there is at the top: nothing is called or registered anywhere."""
    body = ast.parse(inspect.getsource(module)).body
    assert isinstance(body[0], ast.Expr)  # the docstring
    allowed = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign)
    assert [type(node).__name__ for node in body[1:] if not isinstance(node, allowed)] == []
    values = [node.value for node in body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    decorators = [part for node in body for part in getattr(node, "decorator_list", [])]
    assert not [call for value in values for call in ast.walk(value) if isinstance(call, ast.Call)]
    assert decorators == []
    assert not set(monai_smia.transforms.__all__) & set(dir(monai.transforms))
