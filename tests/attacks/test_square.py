"""`Square`: closed forms, the paper's moves by hand, two peers' success rates, and every clause of the contract."""

from __future__ import annotations

import math
from typing import Any

import contract
import networks
import pytest
import torch
from monai.losses import DiceCELoss
from oracles import LinearMargin, largest_margin_change
from torch import nn

from monai_smia.attacks import Criterion, Misclassification, Square
from monai_smia.attacks.decision_margin import decision_margin
from monai_smia.attacks.hunt import Setting
from monai_smia.attacks.square_moves import moves
from monai_smia.attacks.square_windows import Frame, Window, pyramids
from monai_smia.attacks.threat_models import LpBall

LOSS = nn.CrossEntropyLoss()
TASKS = ("classification", "multilabel", "segmentation")
ranks = pytest.mark.parametrize("rank", [2, 3])


class Never(Criterion):
    """A search that may not stop."""

    def __call__(self, prediction: Any, target: Any) -> torch.Tensor:
        return torch.zeros(len(prediction), dtype=torch.bool)


def few(loss: Any, **arguments: Any) -> Square:
    return Square(loss, **{"queries": 12, **arguments})


@pytest.mark.parametrize("clause", contract.CHECKS)
@pytest.mark.parametrize("task", TASKS)
@ranks
def test_contract(rank: int, task: str, clause: str) -> None:
    contract.CHECKS[clause](contract.Case(few, rank, task))


@pytest.mark.parametrize("task", TASKS)
@ranks
def test_one_sample_of_several_channels(rank: int, task: str) -> None:
    case = contract.Case(few, rank, task, batch=1, channels=4)
    contract.check_budget_and_bounds(case)
    for norm in ("inf", 2):
        result = case.run(attack=case.attack(eps=[0.0, 0.05, 0.1, 0.2], norm=norm))
        size = torch.linalg.vector_norm((result.adversarial - case.image()).flatten(2), ord=float(norm), dim=2)[0]
        assert (size <= torch.tensor([0.0, 0.05, 0.1, 0.2]) + 1e-6).all()
        assert size[0] == 0


@ranks
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_linf_finds_the_optimum_of_a_linear_network(rank: int, channels: int, targeted: bool) -> None:
    """The corner that the signs of the weights give: the loss rises by at least 1/1.01 of what is possible."""
    shape = (channels, *((5, 4) if rank == 2 else (3, 3, 2)))
    network, eps = LinearMargin(shape, seed=rank), 0.05
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 1])
    attack = Square(LOSS, eps=eps, queries=1000, score="loss", targeted=targeted, criterion=Never())
    result = attack(network, image, label)
    with torch.no_grad():
        change = largest_margin_change(network.weight, eps, math.inf)
        towards = torch.where(label == 0, 1.0, -1.0) * (-1.0 if targeted else 1.0)
        best = network.margin(image) + towards * change
        optimum = nn.functional.cross_entropy(torch.stack((torch.zeros(2), best), 1), label, reduction="none")
    share = (result.loss - result.clean_loss) / (optimum - result.clean_loss)
    assert bool((share >= 1 / 1.01).all()), share
    assert bool((share <= 1 + 1e-5).all())


@ranks
@pytest.mark.parametrize(("norm", "least"), [(2, 0.45), (1, 0.35)])
def test_lp_comes_near_the_optimum_of_a_smooth_linear_network(rank: int, norm: int, least: float) -> None:
    """In 400 queries a good part of the dual norm's change, which grows with queries, and three times what the best of
    400 random directions of the same length gives: the search works, it does not only draw.
    """
    shape = (1, 14, 12) if rank == 2 else (1, 9, 8, 7)
    network, eps = LinearMargin(shape, seed=rank), 0.5
    pool = nn.AvgPool2d(5, 1, 2) if rank == 2 else nn.AvgPool3d(5, 1, 2)
    with torch.no_grad():
        network.weight.copy_(pool(network.weight))
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    label = torch.zeros(2, dtype=torch.long)

    def share(queries: int) -> torch.Tensor:
        attack = Square(LOSS, eps=eps, norm=norm, queries=queries, score="loss", criterion=Never())
        with torch.no_grad():
            gained = network.margin(attack(network, image, label).adversarial) - network.margin(image)
            return gained / largest_margin_change(network.weight, eps, norm)

    noise = torch.randn(400, *shape, generator=torch.Generator().manual_seed(2)).flatten(1)
    noise = noise / torch.linalg.vector_norm(noise, ord=norm, dim=1, keepdim=True)
    with torch.no_grad():
        by_noise = (noise @ network.weight.flatten()).max() / largest_margin_change(network.weight, 1.0, norm)
    reached = share(400)
    assert bool((reached >= least).all()), reached
    assert bool((reached > 3 * by_noise).all()), (reached, by_noise)
    assert bool((reached > share(20)).all())


@ranks
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_no_image_shown_to_the_network_leaves_the_ball(rank: int, norm: float) -> None:
    network = networks.tiny_network(rank, dense=False).eval()
    image = torch.rand(3, 1, *(9, 7, 5)[:rank], generator=torch.Generator().manual_seed(1))
    eps, seen = {math.inf: 0.1, 2: 0.5, 1: 2.0}[norm], []

    def watch(trial: Any, prediction: Any) -> None:
        seen.append(trial.adversarial)

    attack = Square(LOSS, eps=eps, norm=norm, bounds=(0.0, 1.0), queries=60, criterion=Never())
    result = attack(network, image, torch.zeros(3, dtype=torch.long), callback=watch)
    assert len(seen) == 60
    assert result.forward_passes.tolist() == [62] * 3
    assert result.backward_passes.tolist() == [0] * 3
    for tried in seen:
        size = torch.linalg.vector_norm((tried - image).double().flatten(1), ord=norm, dim=1)
        assert bool((size <= eps * (1 + 1e-5)).all())
        assert 0 <= float(tried.min()) <= float(tried.max()) <= 1


def test_a_step_changes_one_window_and_no_draw_is_wasted() -> None:
    """Every voxel of the window is at a corner of the ball, and something changes at every step."""
    image = torch.full((2, 1, 8, 6), 0.5)
    setting = Setting(image, LpBall(0.1, math.inf, (0.0, 1.0)), torch.Generator(), None)
    walk = moves(setting, torch.Generator().manual_seed(0))
    best = walk.start()
    stripes = best - image
    assert torch.equal(stripes, stripes[:, :, :1].expand_as(stripes))
    for _ in range(50):
        tried = walk.propose(best, 0.1)
        changed = (tried != best)[:, 0]
        assert bool(changed.flatten(1).any(1).all())
        for one in changed:
            rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
            sides = (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1)
            assert sides[0] <= 3  # 8 and 6 times the root of 0.1 are 2.5 and 1.9; a part may have been there already
            assert sides[1] <= 2
        assert torch.allclose((tried - image).abs(), torch.tensor(0.1))
        best = tried


def test_windows_have_the_proportions_of_the_frame_and_stay_in_it() -> None:
    image = torch.zeros(2, 1, 40, 20, 8)
    mask = torch.ones(2, 1, 40, 20, 8, dtype=torch.bool)
    mask[1] = False
    mask[1, :, 5:15, 2:12, 7] = True
    frame = Frame.of(image, mask)
    assert frame.low.tolist() == [[0, 0, 0], [5, 2, 7]]
    assert frame.size.tolist() == [[40, 20, 8], [10, 10, 1]]
    assert frame.sides(1 / 8).tolist() == [[20, 10, 4], [5, 5, 1]]
    assert frame.sides(1 / 8, odd=True).tolist() == [[21, 11, 5], [5, 5, 1]]
    assert frame.sides(1e-6).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert frame.sides(1.0, odd=True).tolist() == [[39, 19, 7], [9, 9, 1]]
    source, starts = torch.Generator().manual_seed(0), []
    for _ in range(300):
        window = frame.draw(frame.sides(1 / 8), source)
        starts.append(window.start)
        inside = window.inside()
        assert inside.flatten(1).sum(1).tolist() == [20 * 10 * 4, 25]
        assert not bool((inside[1] & ~mask[1]).any())
    assert torch.stack(starts).amin(0).tolist() == [[0, 0, 0], [5, 2, 7]]
    assert torch.stack(starts).amax(0).tolist() == [[20, 10, 4], [10, 7, 7]]


def test_pyramids_are_those_of_the_paper() -> None:
    """Equation 2 by hand: a 5x5 window of a 2x5 and a 3x5 pyramid, rings 1, 1 + 1/4 and 1 + 1/4 + 1/9 less the rest."""
    window = Window((7, 7), torch.tensor([[1, 1]]), torch.tensor([[5, 5]]))
    eta = pyramids(window.coordinates(), window.sides, torch.tensor([0]), torch.float64) * window.inside()
    ring = [1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9]
    first = [[ring[max(abs(r - 1), abs(c - 2))] for c in range(5)] for r in range(2)]
    second = [[-ring[max(abs(r - 1), abs(c - 2))] for c in range(5)] for r in range(3)]
    expected = torch.zeros(7, 7, dtype=torch.float64)
    expected[1:6, 1:6] = torch.tensor(first + second, dtype=torch.float64)
    torch.testing.assert_close(eta[0, 0], expected, rtol=0, atol=1e-12)


@ranks
def test_l2_spends_the_whole_budget(rank: int) -> None:
    """Away from the bounds every image tried has the length eps: nothing is lost between the windows."""
    image = torch.zeros(2, 2, *(9, 7, 5)[:rank])
    setting = Setting(image, LpBall(0.7, 2.0), torch.Generator(), None)
    walk = moves(setting, torch.Generator().manual_seed(0))
    best = walk.start()
    for step in range(40):
        torch.testing.assert_close(best.flatten(1).norm(dim=1), torch.full((2,), 0.7))
        best = walk.propose(best, 0.5 / (1 + step))


def test_share_of_the_window_is_halved_as_in_the_paper() -> None:
    attack = Square(LOSS, eps=0.1, queries=10_000)
    shares = {step: 0.8 / attack._share(step) for step in (1, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)}
    assert list(shares.values()) == [1, 1, 2, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert Square(LOSS, eps=0.1, queries=100)._share(81) == 0.8 / 512


def test_a_sample_that_succeeded_stays_and_the_call_ends_when_all_have() -> None:
    """One sample falls to the first query, the other never: the first keeps its image, and alone it ends the call."""
    network = LinearMargin((1, 4, 4))
    image = torch.zeros(2, 1, 4, 4)
    with torch.no_grad():
        image[1] += 10 * network.weight.sign()
    label, seen = torch.tensor([1, 1]), []
    with torch.no_grad():
        network.bias.fill_(1e-3)
    attack = Square(LOSS, eps=0.1, queries=80)
    result = attack(network, image, label, callback=lambda trial, _: seen.append(trial.adversarial[0]))
    assert result.success.tolist() == [True, False]
    assert len(seen) == 80
    reached = next(i for i, x in enumerate(seen) if bool(network.margin(x[None]) < 0))
    assert all(torch.equal(x, seen[reached]) for x in seen[reached:])
    assert torch.equal(result.adversarial[0], seen[reached])
    mates = attack(network, image[:1].repeat(2, 1, 1, 1), label)
    assert bool(mates.success.all())
    assert int(mates.forward_passes[0]) < 30


def test_restarts_of_a_sample_do_not_see_when_its_mates_stopped() -> None:
    """An early end draws nothing less from the call's generator."""
    network = LinearMargin((1, 4, 4))
    image = torch.zeros(2, 1, 4, 4)
    with torch.no_grad():
        network.bias.fill_(0.5)
    hard = image.clone()
    hard[1] += 10 * network.weight.detach().sign()
    attack = Square(LOSS, eps=0.03, queries=30, restarts=3)
    label = torch.tensor([1, 1])
    easy, other = attack(network, image, label), attack(network, hard, label)
    assert torch.equal(easy.adversarial[0], other.adversarial[0])


@ranks
def test_dense_outputs_are_worsened_beyond_their_success(rank: int) -> None:
    """More queries, more loss, by the loss and by the mean margin of all voxels; the start is not the best."""
    network = networks.tiny_network(rank, dense=True).eval()
    image = torch.rand(2, 1, *(9, 7, 5)[:rank], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        label = network(image).argmax(1, keepdim=True)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def margin(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return decision_margin(network(x), label, "softmax")

    few_queries, more = (Square(loss, eps=0.1, queries=n)(network, image, label) for n in (1, 150))
    assert bool((more.loss > few_queries.loss).all())
    by_margin = Square(loss, eps=0.1, queries=150, score="margin")(network, image, label)
    assert bool((margin(by_margin.adversarial) > margin(few_queries.adversarial)).all())
    assert bool((margin(by_margin.adversarial) >= margin(more.adversarial)).all())
    assert bool((more.loss >= by_margin.loss).all())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_the_margin_is_above_zero_where_a_decision_is_wrong(activation: str) -> None:
    source = torch.Generator().manual_seed(0)
    output = torch.randn(64, 3, generator=source)
    output = output.softmax(1) if activation == "none" else output
    target = torch.randint(3, (64,), generator=source)
    if activation == "sigmoid":
        target = torch.randint(2, (64, 3), generator=source).float()
    wrong = Misclassification(activation)(output, target)
    assert torch.equal(decision_margin(output, target, activation) > 0, wrong)
    assert 0 < int(wrong.sum()) < 64


def test_voxels_that_the_loss_ignores_have_no_margin() -> None:
    output = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[[[0, 255], [255, 255]]]])
    alone = decision_margin(output[..., 0, 0], torch.tensor([0]), "softmax")
    assert torch.equal(decision_margin(output, target, "softmax", ignored=255), alone)


@pytest.fixture(scope="module")
def peer_problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Noisy images of a small network, and its own labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()]
        network = nn.Sequential(*body, nn.Linear(8 * 64, 4)).eval()
        image = torch.rand(64, 3, 16, 16)
    with torch.no_grad():
        network[-1].bias -= network(image).mean(0)
        return network, image, network(image).argmax(1)


@pytest.mark.peers
@pytest.mark.parametrize("norm", [math.inf, 2])
def test_succeeds_as_often_as_torchattacks(
    peer_problem: tuple[nn.Module, torch.Tensor, torch.Tensor], norm: float
) -> None:
    """The draws differ, so the rates may by 0.15 of the 64 images; both are far from none and from all."""
    torchattacks = pytest.importorskip("torchattacks")
    network, image, label = peer_problem
    eps, name = (0.02, "Linf") if norm == math.inf else (0.3, "L2")
    with torch.random.fork_rng(devices=[]):
        peer = torchattacks.Square(network, norm=name, eps=eps, n_queries=100)
        theirs = (network(peer(image, label)).argmax(1) != label).float().mean()
    result = Square(LOSS, eps=eps, norm=norm, queries=100, bounds=(0.0, 1.0))(network, image, label)
    ours = result.success.float().mean()
    assert 0.2 < float(theirs) < 0.9, theirs
    assert abs(float(ours - theirs)) < 0.15, (ours, theirs)


@pytest.mark.peers
def test_succeeds_as_often_as_art(peer_problem: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    attacks = pytest.importorskip("art.attacks.evasion")
    models = pytest.importorskip("art.estimators.classification")
    network, image, label = peer_problem
    model = models.PyTorchClassifier(
        network, loss=LOSS, input_shape=(3, 16, 16), nb_classes=4, clip_values=(0.0, 1.0), device_type="cpu"
    )
    import numpy as np

    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        peer = attacks.SquareAttack(model, eps=0.02, max_iter=100, verbose=False)
        adversarial = torch.from_numpy(peer.generate(image.numpy(), label.numpy()))
    finally:
        np.random.set_state(state)  # noqa: NPY002
    with torch.no_grad():
        theirs = (network(adversarial).argmax(1) != label).float().mean()
    ours = Square(LOSS, eps=0.02, queries=100, bounds=(0.0, 1.0))(network, image, label).success.float().mean()
    assert 0.2 < float(theirs) < 0.9, theirs
    assert abs(float(ours - theirs)) < 0.15, (ours, theirs)


def test_errors() -> None:
    for p in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"p_init: expected a share of the image in \(0, 1\]"):
            Square(LOSS, eps=0.1, p_init=p)
    with pytest.raises(ValueError, match="queries: expected a whole number >= 1; got 0"):
        Square(LOSS, eps=0.1, queries=0)
    with pytest.raises(ValueError, match="score: expected one of 'auto', 'margin', 'loss'; got 'ce'"):
        Square(LOSS, eps=0.1, score="ce")
    with pytest.raises(ValueError, match="score: a regression has no margin"):
        Square(nn.MSELoss(), eps=0.1, score="margin")
    with pytest.raises(ValueError, match="activation: expected one of"):
        Square(LOSS, eps=0.1, activation="tanh")


@pytest.mark.parametrize("norm", [2.0, 1.0])
def test_what_the_budget_has_left_is_shared_by_the_channels(norm: float) -> None:
    """Two channels that spent half of it spend all of it in the next step, without a loss outside its windows."""
    image = torch.full((1, 2, 16, 16), 0.5, dtype=torch.float64)
    walk = moves(Setting(image, LpBall(1.0, norm), torch.Generator(), None), torch.Generator().manual_seed(0))
    change = torch.randn(image.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    change = 0.5 * change / torch.linalg.vector_norm(change, ord=norm)
    moved = walk.propose(image + change, 0.04) - image
    kept = (moved - change).abs().amax(1) < 1e-12
    assert int((~kept).sum()) <= 2 * 3 * 3  # two windows of three voxels along each axis
    assert abs(float(torch.linalg.vector_norm(moved, ord=norm)) - 1.0) < 1e-12


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_a_mask_on_signals(norm: Any) -> None:
    image = torch.rand(2, 1, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 40, dtype=torch.bool)
    mask[..., 3:9] = True
    attack = Square(nn.CrossEntropyLoss(), eps=0.1, norm=norm, queries=20)
    change = attack(nn.Flatten(), image, torch.tensor([4, 5]), mask=mask).adversarial - image
    assert bool((change[~mask.expand_as(change)] == 0).all())
    assert bool((change.flatten(1) != 0).any(1).all())
    assert (torch.linalg.vector_norm(change.flatten(1), ord=float(norm), dim=1) <= 0.1 + 1e-6).all()
