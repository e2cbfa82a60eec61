"""The parts: balls, losses, criteria, heads, diversity, freezing."""

from __future__ import annotations

import inspect
import math
from functools import partial

import monai.losses
import networks
import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, TverskyLoss
from monai.metrics import compute_dice
from torch import nn
from torch.nn import functional as F

from monai_smia.attacks import (
    PGD,
    SMIA,
    Chain,
    CosPGD,
    DiceBelow,
    LpBall,
    Misclassification,
    Momentum,
    Normalize,
    Not,
    Scale,
    SegPGD,
    Sign,
    frozen,
)
from monai_smia.attacks.balls import project_ball, sample_ball
from monai_smia.attacks.diversity import RandomResize, View
from monai_smia.attacks.heads import infer_activation
from monai_smia.attacks.losses import per_sample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_projection_is_the_nearest_point(norm):
    """Against a search: no feasible point drawn at random, and no step along the segment, is nearer."""
    vectors = torch.randn(20, 7, generator=seeded(), dtype=torch.float64) * 2
    projected = project_ball(vectors, 1.5, norm)
    assert (torch.linalg.vector_norm(projected, norm, dim=1) <= 1.5 + 1e-9).all()
    best = (vectors - projected).norm(dim=1)
    others = sample_ball(torch.zeros(20, 5000, 7, dtype=torch.float64), 1.5, norm, seeded(1))
    # variational inequality: <v - P(v), q - P(v)> <= 0 for every feasible q is what makes P(v) nearest
    inner = ((vectors - projected)[:, None] * (others - projected[:, None])).sum(2)
    assert float(inner.max()) <= 1e-9
    inside = torch.linalg.vector_norm(vectors, norm, dim=1) <= 1.5
    assert torch.equal(projected[inside], vectors[inside])
    assert (best[~inside] > 0).all()


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_draws_are_uniform_in_the_ball(norm):
    """The radius of a uniform draw to the power of the dimension is uniform on [0, 1]; directions are balanced."""
    draws = sample_ball(torch.zeros(20000, 5), 2.0, norm, seeded())
    radius = torch.linalg.vector_norm(draws, norm, dim=1) / 2.0
    assert float(radius.max()) <= 1 + 1e-5
    volume = radius**5
    assert float(volume.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(volume.var()) == pytest.approx(1 / 12, abs=0.005)
    assert draws.mean(0).abs().max() < 0.03
    where = torch.tensor([True, False, True, False, True])
    masked = sample_ball(torch.zeros(20000, 5), 2.0, norm, seeded(), where)
    assert (masked[:, ~where] == 0).all()
    volume = (torch.linalg.vector_norm(masked, norm, dim=1) / 2.0) ** 3
    assert float(volume.mean()) == pytest.approx(1 / 2, abs=0.01)


def test_one_ball_per_channel():
    image = torch.zeros(2, 3, 4, 4)
    eps = torch.tensor([[0.0, 1.0, 2.0]])[:, :, None, None]
    for norm in (math.inf, 2.0, 1.0):
        z = LpBall(eps, norm).project(image, torch.ones_like(image) * 5)
        size = torch.linalg.vector_norm(z.flatten(2), norm, dim=2)
        torch.testing.assert_close(size, torch.tensor([[0.0, 1.0, 2.0]] * 2))


def test_chain_of_steps():
    """Momentum, then sign, then scale, by hand on three gradients."""
    chain = Chain([Normalize(1), Momentum(0.5), Sign(), Scale(0.1)])
    gradients = [torch.tensor([[[4.0, -4.0]]]), torch.tensor([[[-1.0, 3.0]]]), torch.tensor([[[0.0, 0.0]]])]
    state = chain.init(gradients[0])
    momentum = torch.zeros(2)
    for gradient in gradients:
        direction, state = chain.update(gradient, state)
        flat = gradient.flatten()
        momentum = 0.5 * momentum + flat / max(float(flat.abs().sum()), 1e-30) * (flat.abs().sum() > 0)
        torch.testing.assert_close(direction.flatten(), 0.1 * momentum.sign())


DENSE = torch.randn(3, 3, 6, 5, generator=seeded())
INDEX = torch.randint(3, (3, 1, 6, 5), generator=seeded(1))
ONE_HOT = F.one_hot(INDEX[:, 0], 3).movedim(-1, 1)


@pytest.mark.parametrize(
    ("loss", "target", "by_hand"),
    [
        (nn.CrossEntropyLoss(), INDEX, lambda p, t: F.cross_entropy(p, t[:, 0])),
        (
            nn.CrossEntropyLoss(reduction="sum"),
            INDEX.float(),
            lambda p, t: F.cross_entropy(p, t[:, 0].long(), reduction="sum"),
        ),
        (nn.CrossEntropyLoss(reduction="none"), INDEX[:, 0], lambda p, t: F.cross_entropy(p, t)),
        (nn.CrossEntropyLoss(), ONE_HOT, lambda p, t: F.cross_entropy(p, t.argmax(1))),
        (F.cross_entropy, INDEX, lambda p, t: F.cross_entropy(p, t[:, 0])),
        (nn.BCEWithLogitsLoss(), ONE_HOT.bool(), lambda p, t: F.binary_cross_entropy_with_logits(p, t.float())),
        (
            DiceLoss(softmax=True, squared_pred=True),
            ONE_HOT.bool(),
            lambda p, t: DiceLoss(softmax=True, squared_pred=True)(p, t.float()),
        ),
        (DiceCELoss(softmax=True, to_onehot_y=True), INDEX, DiceCELoss(softmax=True, to_onehot_y=True)),
        (DiceLoss(softmax=True, to_onehot_y=True, reduction="none"), INDEX, DiceLoss(softmax=True, to_onehot_y=True)),
        (TverskyLoss(sigmoid=True), ONE_HOT, TverskyLoss(sigmoid=True)),
    ],
)
def test_per_sample_is_the_loss_of_each_sample_alone(loss, target, by_hand):
    values = per_sample(loss, DENSE, target, 3)
    expected = torch.stack([by_hand(DENSE[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(values, expected)


def test_per_sample_of_deep_supervision():
    values = per_sample(lambda p, t: sum(F.cross_entropy(x, t[:, 0]) for x in p), [DENSE, DENSE * 2], INDEX, 3)
    expected = [sum(F.cross_entropy(k * DENSE[i : i + 1], INDEX[i : i + 1, 0]) for k in (1, 2)) for i in range(3)]
    torch.testing.assert_close(values, torch.stack(expected))


@pytest.mark.parametrize(
    ("loss", "channels", "expected"),
    [
        (nn.CrossEntropyLoss(), 3, "softmax"),
        (nn.BCEWithLogitsLoss(), 3, "sigmoid"),
        (nn.BCELoss(), 3, "none"),
        (DiceCELoss(softmax=True), 3, "softmax"),
        (DiceCELoss(sigmoid=True), 3, "sigmoid"),
        (DiceFocalLoss(sigmoid=True), 3, "sigmoid"),
        (FocalLoss(), 3, "sigmoid"),
        (FocalLoss(use_softmax=True), 3, "softmax"),
        (DiceLoss(), 1, "none"),
        (DiceLoss(other_act=torch.tanh), 1, "sigmoid"),
        (DiceCELoss(), 3, "softmax"),
        (nn.Sequential(nn.CrossEntropyLoss()), 3, "softmax"),
        (lambda p, t: p, 1, "sigmoid"),
        (lambda p, t: p, 2, "softmax"),
    ],
)
def test_the_head_is_read_from_the_loss(loss, channels, expected):
    assert infer_activation(loss, channels) == expected


@pytest.mark.parametrize("name", sorted(dir(monai.losses)))
@pytest.mark.parametrize("flag", ["sigmoid", "softmax"])
def test_the_flag_of_every_monai_loss_is_read(name, flag):
    kind = getattr(monai.losses, name)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        return
    if flag not in inspect.signature(kind.__init__).parameters and name != "MaskedDiceLoss":
        return
    assert infer_activation(kind(**{flag: True}), 3) == flag


def test_success_of_a_loss_that_takes_probabilities():
    """A perfect network that ends in its own sigmoid is not counted as wrong."""
    label = torch.zeros(2, 1, 8, 8)
    label[:, :, 2:5, 2:5] = 1
    for loss, extra in ((DiceLoss(), {}), (nn.BCELoss(), {})):
        result = PGD(loss, eps=0.4, steps=3, **extra)(lambda x: torch.sigmoid(8 * x - 4), label.clone(), label)
        assert not result.clean_success.any()
        with torch.no_grad():
            hard = (torch.sigmoid(8 * result.adversarial - 4) > 0.5).float()
        expected = compute_dice(hard, label)[:, 0] < 0.5
        assert torch.equal(result.success, expected)


def test_a_wrapper_of_ones_own_is_called_as_it_is():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = nn.CrossEntropyLoss()

        def forward(self, prediction, target):
            return self.loss(prediction, target[:, 0].long())

    values = per_sample(Wrapper(), DENSE, INDEX.float(), 3)
    torch.testing.assert_close(values, per_sample(nn.CrossEntropyLoss(), DENSE, INDEX, 3))


def test_ignored_labels_do_not_count():
    """A 1x1 convolution, labels ignored on one half: no attack moves a voxel there, and success does not look there."""
    network = nn.Conv2d(1, 3, 1)
    image = torch.rand(2, 1, 6, 8, generator=seeded(5))
    target = torch.randint(3, (2, 1, 6, 8), generator=seeded(6))
    target[..., 4:] = 255
    for loss in (nn.CrossEntropyLoss(ignore_index=255), partial(F.cross_entropy, ignore_index=255)):
        for attack in (
            SMIA(loss, eps=0.1, combine="gradient"),
            SMIA(loss, eps=0.1, combine="gradient", divergence="hard"),
            SegPGD(loss, eps=0.1, random_start=False),
            CosPGD(loss, eps=0.1, random_start=False),
        ):
            delta = attack(network, image, target).adversarial - image
            assert (delta[..., 4:] == 0).all()
            assert (delta[..., :4] != 0).any()


def test_a_verdict_of_nan_does_not_hide_a_later_run():
    calls = []

    def network(x):
        calls.append(x)
        output = x.flatten(1)[:, :3] * 2
        return output * torch.nan if len(calls) == 4 else output  # the verdict of the first run

    image, target = torch.rand(2, 1, 3, 3, generator=seeded()), torch.tensor([0, 1])
    result = PGD(nn.CrossEntropyLoss(), eps=0.1, steps=3, restarts=2)(network, image, target)
    assert result.loss.isfinite().all()


def test_gradients_under_the_callers_float16_autocast_do_not_vanish():
    """As many voxels move as with `amp=torch.float16`, whose gradient is scaled."""
    network = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        network.weight.mul_(1e-3)
    image = torch.rand(1, 1, 32, 32, generator=seeded())
    target = torch.randint(2, (1, 1, 32, 32), generator=seeded(1))
    attack = PGD(nn.CrossEntropyLoss(), eps=0.1, steps=1, random_start=False)
    with torch.autocast("cpu", dtype=torch.float16):
        moved = (attack(network, image, target).adversarial != image).float().mean()
    assert float(moved) > 0.99


def test_a_dictionary_is_undone_like_a_tensor():
    view = RandomResize(0.7, 1.0, 0.0).draw(torch.rand(1, 1, 9, 9), seeded())
    prediction = torch.rand(1, 2, 9, 9)
    assert torch.equal(view.undo({"pred": prediction})["pred"], view.undo(prediction))


def test_dice_criterion_equals_monai_where_all_structures_are_there():
    hard = F.one_hot(DENSE.argmax(1), 3).movedim(-1, 1)
    expected = compute_dice(hard, ONE_HOT, include_background=False).mean(1)
    torch.testing.assert_close(DiceBelow().dice(DENSE, INDEX), expected)
    assert torch.equal(DiceBelow(0.3)(DENSE, INDEX), expected < 0.3)


def test_dice_criterion_of_structures_that_vanish_or_appear():
    """Structure 1 vanished: (0 + 1) / 2. Structure 2 appeared: (1 + 0) / 2. Nothing anywhere: 1."""
    label = torch.zeros(3, 1, 4, 4, dtype=torch.long)
    label[0, 0, 0], label[0, 0, 1] = 1, 2
    label[1, 0, 0] = 1
    predicted = label.clone()
    predicted[0, 0, 0] = 0
    predicted[1, 0, 3] = 2
    logits = F.one_hot(predicted[:, 0], 3).movedim(-1, 1).float()
    torch.testing.assert_close(DiceBelow().dice(logits, label), torch.tensor([0.5, 0.5, 1.0]))


def test_criteria_of_classifiers():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert Misclassification()(logits, torch.tensor([0, 0])).tolist() == [False, True]
    assert Misclassification()(logits, torch.tensor([[0], [0]])).tolist() == [False, True]
    assert Not(Misclassification())(logits, torch.tensor([0, 0])).tolist() == [True, False]
    multilabel = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert Misclassification("sigmoid")(logits - 0.5, multilabel).tolist() == [False, True]
    assert Misclassification("sigmoid")(logits[:, :1] - 1, torch.tensor([1, 0])).tolist() == [False, False]


@pytest.mark.parametrize("dense", [False, True])
def test_targeted_success_can_be_recomputed(dense):
    network = networks.tiny_network(2, dense)
    image = torch.rand(3, 1, 9, 7, generator=seeded(3))
    target = torch.randint(3, (3, 1, 9, 7) if dense else (3,), generator=seeded(4))
    result = PGD(nn.CrossEntropyLoss(), eps=0.5, targeted=True)(network, image, target)
    with torch.no_grad():
        output = network.eval()(result.adversarial)
    expected = DiceBelow().dice(output, target) >= 0.5 if dense else output.argmax(1) == target
    assert torch.equal(result.success, expected)
    assert (result.loss < result.clean_loss).all()


@pytest.mark.parametrize("rank", [2, 3])
def test_a_view_is_undone_on_dense_predictions(rank):
    """A linear image survives shrinking and its undoing, away from the border that interpolation blurs."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 24)] * rank, indexing="ij")
    image = sum((k + 1.0) * axis for k, axis in enumerate(axes)).expand(2, 1, *[24] * rank).contiguous()
    view = RandomResize(0.7, 1.0, fill=-9.0).draw(image, seeded(rank))
    back = view.undo(view.apply(image))
    inner = (slice(None), slice(None), *[slice(3, -3)] * rank)
    torch.testing.assert_close(back[inner], image[inner], rtol=0, atol=1e-4)
    assert (view.apply(image) == -9.0).any()
    logits = torch.rand(2, 5)
    assert torch.equal(view.undo(logits), logits)


def test_a_view_puts_the_image_where_it_says():
    """Half the size, in the far corner: the centre of mass of an image of ones."""
    view = View(torch.tensor([0.5]), torch.tensor([[1.0, -1.0]]), fill=0.0)
    mass = view.apply(torch.ones(1, 1, 40, 40))[0, 0]
    position = torch.arange(40) + 0.5
    assert float((mass.sum(1) * position).sum() / mass.sum()) == pytest.approx(30, abs=0.1)
    assert float((mass.sum(0) * position).sum() / mass.sum()) == pytest.approx(10, abs=0.1)
    assert float(mass.sum()) == pytest.approx(400, rel=0.03)


def test_views_are_drawn_per_sample():
    image = torch.rand(64, 1, 6, 6, generator=seeded())
    view = RandomResize(0.8, 0.5, 0.0).draw(image, seeded(1))
    untouched = view.scale == 1
    assert 20 < int(untouched.sum()) < 44
    assert (view.scale[~untouched] >= 0.8).all()
    assert torch.equal(view.apply(image)[untouched], image[untouched])


def test_frozen_restores_buffers_that_the_network_moves():
    """A network that counts its own calls, even in eval mode, has its count back."""

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)

        def forward(self, x):
            self.calls += 1
            self.last = x.mean().detach()
            return x

    network = Moody()
    calls = network.calls
    with frozen(network):
        network(torch.ones(1))
        assert float(network.calls) == 1
    assert network.calls is calls
    assert float(network.calls) == 0
    assert network.last is None


def test_a_half_precision_network_gets_its_own_dtype():
    network = networks.tiny_network(2, dense=False).to(torch.bfloat16)
    image = torch.rand(2, 1, 9, 7, generator=seeded()).to(torch.bfloat16)
    result = PGD(nn.CrossEntropyLoss(), eps=0.1, steps=3, bounds=(0.0, 1.0))(network, image, torch.tensor([0, 1]))
    assert result.adversarial.dtype == torch.bfloat16
    assert (result.loss > result.clean_loss).all()
