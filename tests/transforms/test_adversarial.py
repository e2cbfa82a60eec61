"""The array transforms: direct calls of the attack are the oracle, to the bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import contract
import networks
import numpy as np
import pytest
import torch
from evaluators import BOUNDS, EPS, Task
from monai.data import DataLoader, Dataset, MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait, ThreadUnsafe
from monai.utils import MAX_SEED, TransformBackends
from torch import nn

from monai_smia.attacks import BIM, PGD, SMIA, Attack, GaussianNoise
from monai_smia.transforms import AdversarialAttack, RandAdversarialAttack

TASKS = {
    "2d-segmentation": Task(2),
    "3d-segmentation": Task(3),
    "2d-classification": Task(2, dense=False),
    "3d-classification": Task(3, dense=False),
}
AFFINE = torch.diag(torch.tensor([2.0, 0.5, 4.0, 1.0], dtype=torch.float64))


def direct(
    attack: Attack, network: Any, image: torch.Tensor, label: torch.Tensor, seed: int = 0, **arguments: Any
) -> torch.Tensor:
    """The adversarial image of one case by a call of the attack, as a plain tensor without batch axis."""
    source = torch.Generator().manual_seed(seed)
    adversarial = attack(network, image[None], label[None], generator=source, **arguments).adversarial[0]
    return adversarial.as_tensor() if isinstance(adversarial, MetaTensor) else adversarial


def pgd(**arguments: Any) -> Attack:
    return PGD(Task().loss(), **{"eps": EPS, "steps": 2, "bounds": BOUNDS, "random_start": True, **arguments})


def meta_image(image: torch.Tensor) -> MetaTensor:
    """An image with metadata and a transform in its history."""
    operation = {"class": "Spacingd", "orig_size": (4, 4), "extra_info": {"mode": "bilinear"}}
    return MetaTensor(image, affine=AFFINE, meta={"filename_or_obj": "case.nii.gz"}, applied_operations=[operation])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, meta_image], ids=["array", "tensor", "MetaTensor"])
@pytest.mark.parametrize("name", ["bim", "pgd"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_is_the_direct_call_in_the_type_of_the_image(task: Task, name: str, kind: Any) -> None:
    attack, network = task.attacks()[name], task.network()
    image, label = task.images()[1], task.labels()[1]
    expected = direct(attack, network, image, label, seed=3)
    given = kind(image.clone())
    transform = AdversarialAttack(attack, network, seed=3)
    with contract.unchanged(network):
        found = transform(given, label)
        again = transform(given, label)
    assert type(found) is type(given)
    assert found.dtype == given.dtype
    for adversarial in (found, again):
        assert torch.equal(torch.as_tensor(np.asarray(adversarial)), expected)
    assert torch.equal(torch.as_tensor(np.asarray(given)), image)
    assert not torch.equal(expected, image)


def test_metadata_and_history_are_kept_and_not_shared() -> None:
    task = Task(3)
    given = meta_image(task.images()[0])
    found = AdversarialAttack(pgd(), task.network())(given, task.labels()[0])
    assert torch.equal(found.affine, AFFINE)
    assert found.meta["filename_or_obj"] == "case.nii.gz"
    assert set(found.meta) == set(given.meta)
    assert found.applied_operations == given.applied_operations
    assert not found.is_batch
    assert not found.requires_grad
    found.applied_operations.append({"class": "OneOf"})
    found.meta["patient"] = "phantom"
    assert len(given.applied_operations) == 1
    assert "patient" not in given.meta


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_keeps_the_dtype(dtype: Any) -> None:
    task = Task()
    image = task.images()[0].numpy().astype(dtype)
    network = task.network().to(torch.as_tensor(image).dtype)
    found = AdversarialAttack(pgd(), network)(image, task.labels()[0])
    assert found.dtype == dtype
    assert np.array_equal(found, direct(pgd(), network, torch.as_tensor(image), task.labels()[0]).numpy())


def test_a_budget_of_zero_gives_a_copy() -> None:
    task = Task()
    image = task.images()[0].numpy()
    found = AdversarialAttack(pgd(eps=0.0), task.network())(image, task.labels()[0])
    assert np.array_equal(found, image)
    assert not np.shares_memory(found, image)


CLASS_LABELS = [1, np.int64(1), torch.tensor(1), np.array(1), np.array([1]), MetaTensor(torch.tensor(1)), np.eye(3)[1]]


@pytest.mark.parametrize("label", CLASS_LABELS, ids=lambda label: f"{type(label).__name__}{np.shape(label)}")
def test_class_labels_as_loaders_give_them(label: Any) -> None:
    task = Task(dense=False)
    network, attack, image = task.network(), BIM(nn.CrossEntropyLoss(), eps=EPS, bounds=BOUNDS), task.images()[0]
    (batch,) = DataLoader(Dataset([{"image": image, "label": label}]))
    found = AdversarialAttack(attack, network)(image, label)
    assert torch.equal(found, attack(network, batch["image"], batch["label"]).adversarial[0])
    assert torch.equal(found, direct(attack, network, image, torch.tensor(1)))


@pytest.mark.parametrize("label", [True, np.bool_(True), torch.tensor(True), np.array([True]), 1.0])
def test_binary_labels(label: Any) -> None:
    network = networks.tiny_network(2, dense=False, outputs=1)
    attack, image = BIM(nn.BCEWithLogitsLoss(), eps=EPS, bounds=BOUNDS), Task().images()[0]
    found = AdversarialAttack(attack, network)(image, label)
    assert torch.equal(found, direct(attack, network, image, torch.tensor([1.0])))
    other = AdversarialAttack(attack, network)(image, not bool(label))
    assert not torch.equal(found, other)


@pytest.mark.parametrize("kind", ["uint8 array", "MetaTensor", "one-hot", "one-hot bool"])
def test_label_maps(kind: str) -> None:
    task = Task(3)
    image, index, network = task.images()[0], task.labels()[0], task.network()
    one_hot = nn.functional.one_hot(index[0], networks.CLASSES).movedim(-1, 0)
    label = {
        "uint8 array": index.numpy().astype(np.uint8),
        "MetaTensor": MetaTensor(index.float(), affine=AFFINE),
        "one-hot": one_hot.float().numpy(),
        "one-hot bool": one_hot.bool(),
    }[kind]
    loss = DiceCELoss(to_onehot_y=not kind.startswith("one-hot"), softmax=True)
    attack = BIM(loss, eps=EPS, steps=2, bounds=BOUNDS)
    expected = direct(attack, network, image, one_hot.float() if kind.startswith("one-hot") else index)
    assert torch.equal(AdversarialAttack(attack, network)(image, label), expected)


def test_seed_starts_the_randomness_and_the_global_one_is_left_alone() -> None:
    task = Task()
    image, label, network = task.images()[0], task.labels()[0], task.network()
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = {seed: AdversarialAttack(pgd(), network, seed=seed)(image, label) for seed in (0, 1)}
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], pgd()(network, image[None], label[None]).adversarial[0])  # its own fixed seed
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
def test_mask(dtype: torch.dtype, kind: Any) -> None:
    task = Task()
    image, label, network = task.images()[0], task.labels()[0], task.network()
    mask = (torch.arange(image[0].numel()).reshape(image.shape) % 2).to(dtype)
    found = AdversarialAttack(pgd(), network)(image, label, kind(mask))
    assert torch.equal(found, direct(pgd(), network, image, label, mask=mask[None]))
    assert torch.equal(found != image, (found != image) & (mask != 0))
    assert not torch.equal(found, image)


def test_inferer_is_used() -> None:
    task = Task(3)
    image, label, network = task.images()[0], task.labels()[0], task.network()
    inferer = SlidingWindowInferer(4, overlap=0.5)
    found = AdversarialAttack(pgd(), network, inferer=inferer)(image, label)
    assert torch.equal(found, direct(pgd(), network, image, label, inferer=inferer))
    assert not torch.equal(found, AdversarialAttack(pgd(), network)(image, label))


def test_the_affine_reaches_the_attack() -> None:
    task = Task(3)
    image, label, network = task.images()[0], task.labels()[0], task.network()
    attack = SMIA(task.loss(), eps=EPS, steps=3, bounds=BOUNDS, stabilization_weight=1.0, sigma=2.0, sigma_unit="mm")
    found = AdversarialAttack(attack, network)(meta_image(image), label)
    assert torch.equal(found.as_tensor(), direct(attack, network, MetaTensor(image, affine=AFFINE), label))
    assert not torch.equal(found.as_tensor(), direct(attack, network, MetaTensor(image), label))
    with pytest.raises(TypeError, match="sigma_unit"):
        AdversarialAttack(attack, network)(image, label)


def test_the_device_is_the_networks_unless_given() -> None:
    task = Task()
    image, label = task.images()[0], task.labels()[0]
    seen: list[torch.device] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.device)
        return torch.cat([x, -x, 0 * x], 1)

    AdversarialAttack(pgd(), network)(image, label)
    assert set(seen) == {torch.device("cpu")}
    # a tensor on "meta" has no values: whatever reads them says where the image was taken
    for arguments in ({"network": task.network().to("meta")}, {"network": network, "device": "meta"}):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            AdversarialAttack(pgd(), **arguments)(image, label)
    found = AdversarialAttack(pgd(), network, device="cpu")(image, label)
    assert torch.equal(found, direct(pgd(), network, image, label))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_gradients_are_off(mode: Any) -> None:
    task = Task()
    label, network = task.labels()[0], task.network()
    expected = direct(pgd(), network, task.images()[0], label)
    with mode():
        found = AdversarialAttack(pgd(), network)(MetaTensor(task.images()[0].clone()), label)
    assert torch.equal(found.as_tensor(), expected)


@pytest.mark.parametrize("kind", [AdversarialAttack, RandAdversarialAttack])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "pgd"}, "attack: expected an Attack; got str"),
        ({"network": 3}, "network: expected a callable"),
        ({"inferer": "sliding"}, "inferer: expected a MONAI inferer"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_bad_arguments(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        kind(**{"attack": pgd(), "network": Task().network(), **arguments})


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_bad_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        AdversarialAttack(pgd(), Task().network(), seed=seed)


@pytest.mark.parametrize("prob", [-0.1, 1.1, float("nan")])
def test_bad_probability(prob: float) -> None:
    with pytest.raises(ValueError, match="prob"):
        RandAdversarialAttack(pgd(), Task().network(), prob=prob)


def test_bad_input() -> None:
    task = Task()
    image, label = task.images()[0], task.labels()[0]
    transform = AdversarialAttack(pgd(), task.network())
    with pytest.raises(TypeError, match="img: expected an array or tensor"):
        transform(image.tolist(), label)
    with pytest.raises(TypeError, match="img: expected an array or tensor"):
        transform("case.nii.gz", label)
    with pytest.raises(TypeError, match="label: expected"):
        transform(image, None)
    with pytest.raises(TypeError, match="floating"):
        transform((image * 255).byte(), label)
    with pytest.raises(ValueError, match="bounds"):
        transform(image * 255, label)
    with pytest.raises(ValueError, match="target"):
        transform(image, label[0])


def test_an_image_without_a_voxel_that_may_change_stays_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    task = Task()
    image, label = task.images()[0], task.labels()[0]
    assert torch.equal(AdversarialAttack(pgd(), task.network())(image, label, torch.zeros_like(image)), image)
    assert "mask: empty in sample 0" in caplog.text


@pytest.mark.parametrize("kind", [AdversarialAttack, RandAdversarialAttack])
def test_is_what_monai_expects_of_such_a_transform(kind: Any) -> None:
    transform = kind(pgd(), Task().network())
    assert isinstance(transform, Transform)
    assert isinstance(transform, RandomizableTrait)  # never cached
    assert isinstance(transform, ThreadUnsafe) == (kind is RandAdversarialAttack)
    assert kind.backend == [TransformBackends.TORCH]


@pytest.mark.parametrize("clone", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copies_do_the_same(clone: Any) -> None:
    task = Task()
    image, label = task.images()[0], task.labels()[0]
    transform = AdversarialAttack(pgd(), task.network(), inferer=SlidingWindowInferer(5), device="cpu", seed=4)
    assert torch.equal(clone(transform)(image, label), transform(image, label))
    random = RandAdversarialAttack(pgd(), task.network(), prob=0.5).set_random_state(5)
    copied = clone(random)
    for _ in range(6):
        assert torch.equal(copied(image, label), random(image, label))


def test_repr_shows_the_arguments_but_no_layers() -> None:
    task = Task()
    transform = AdversarialAttack(pgd(), task.network(), device="cpu", seed=4)
    assert repr(transform) == (
        f"AdversarialAttack(attack={pgd()!r}, network=Sequential, inferer=None, device=device(type='cpu'), seed=4)"
    )
    random = RandAdversarialAttack(pgd(), task.network(), prob=0.5)
    assert repr(random) == (
        f"RandAdversarialAttack(attack={pgd()!r}, network=Sequential, prob=0.5, inferer=None, device=None)"
    )


@pytest.mark.parametrize("prob", [0.0, 0.1, 0.5, 1.0])
def test_random_draws_by_hand(prob: float) -> None:
    task = Task()
    image, label, network = meta_image(task.images()[0]), task.labels()[0], task.network()
    transform = RandAdversarialAttack(GaussianNoise(task.loss(), eps=EPS, bounds=BOUNDS), network, prob=prob)
    assert transform.set_random_state(11) is transform
    source = np.random.RandomState(11)
    for _ in range(20):
        found = transform(image, label)
        if source.rand() < prob:
            seed = int(source.randint(MAX_SEED, dtype="uint32"))
            assert torch.equal(found.as_tensor(), direct(transform.adversary.attack, network, image, label, seed=seed))
            assert found.applied_operations == image.applied_operations
        else:
            assert found is image


def test_the_default_probability_is_monais() -> None:
    assert RandAdversarialAttack(pgd(), Task().network()).prob == 0.1


def test_the_last_draw_can_be_repeated() -> None:
    task = Task()
    image, label = task.images()[0], task.labels()[0]
    transform = RandAdversarialAttack(pgd(), task.network(), prob=1.0).set_random_state(1)
    with pytest.raises(RuntimeError, match="randomize"):
        transform(image, label, randomize=False)
    first = transform(image, label)
    assert torch.equal(transform(image, label, randomize=False), first)
    assert not torch.equal(transform(image, label), first)
    transform.set_random_state(1)
    assert torch.equal(transform(image, label), first)
