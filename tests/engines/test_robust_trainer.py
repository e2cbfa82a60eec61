"""`RobustTrainer`: the weights are those of TRADES, MART and consistency training written by hand, attack included."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluators import CPU, EPS, Task, seen
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.engines import IterationEvents, PrepareBatchExtraInput
from monai.handlers import MeanDice, from_engine
from torch import nn
from torch.nn import functional as F
from trainers import (
    Bfloat16Inferer,
    CpuScaler,
    Perturb,
    SeedDropout,
    away_from_clean,
    by_sample,
    kl,
    optimizer_of,
    pgd,
    train_by_hand,
    trainer_of,
)

from monai_smia.attacks import FGSM, PGD
from monai_smia.attacks.tpgd import TPGD
from monai_smia.engines.robust_trainer import RobustTrainer
from monai_smia.handlers import AttackHandler
from monai_smia.losses import ConsistencyLoss, MARTLoss, TRADESLoss

STEP, STEPS, BETA = 0.04, 2, 3.0
LINF: dict[str, Any] = {"eps": EPS, "bounds": (0.0, 1.0), "steps": STEPS, "step_size": STEP}
TASKS = [Task(2, dense=False, cases=4), Task(2, cases=4), Task(3, cases=4)]
Loss = Callable[..., torch.Tensor]


def trades(task: Task) -> Loss:
    def loss(predict: Any, clean: torch.Tensor, adversarial: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        p, q = predict(clean), predict(adversarial)
        return (by_sample(task.loss(), p, label) + BETA * kl(p, q).reshape(len(p), -1).mean(1)).mean()

    return loss


def mart(task: Task) -> Loss:
    def loss(predict: Any, clean: torch.Tensor, adversarial: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        p, q = predict(clean), predict(adversarial)
        index = label if label.ndim == 1 else label[:, 0]
        true = F.one_hot(index, p.shape[1]).movedim(-1, 1)
        boosted = -(q.softmax(1) * true).sum(1).log() - (1 - (q.softmax(1) * (1 - true)).amax(1)).log()
        return (boosted + BETA * kl(p, q) * (1 - (p.softmax(1) * true).sum(1))).mean()

    return loss


def consistency(task: Task) -> Loss:
    def loss(predict: Any, clean: torch.Tensor, adversarial: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        p, q = predict(clean), predict(adversarial)
        apart = kl(p, q).reshape(len(p), -1).mean(1)
        return (by_sample(task.loss(), p, label) + by_sample(task.loss(), q, label) + BETA * apart).mean()

    return loss


def plain_pgd(task: Task) -> PGD:
    return PGD(task.loss(), **LINF)


METHODS: dict[str, tuple[Any, Any, Callable[[Task], Loss], Callable[[Task], Perturb]]] = {
    "TRADES": (
        lambda task: TRADESLoss(task.loss(), beta=BETA),
        lambda task: TPGD(task.loss(), **LINF),
        trades,
        lambda task: away_from_clean(EPS, STEP, STEPS),
    ),
    "MART": (
        lambda task: MARTLoss(task.loss(), beta=BETA),
        plain_pgd,
        mart,
        lambda task: pgd(task.loss(), EPS, STEP, STEPS),
    ),
    "consistency": (
        lambda task: ConsistencyLoss(task.loss(), weight=BETA),
        plain_pgd,
        consistency,
        lambda task: pgd(task.loss(), EPS, STEP, STEPS),
    ),
}


def batches(task: Task) -> list[dict[str, torch.Tensor]]:
    return [{**batch, "image": batch["image"].double()} for batch in task.batches(2)]


def network_of(task: Task) -> nn.Module:
    return task.network().double()


def robust(task: Task, method: str, network: nn.Module, data: Any = None, **arguments: Any) -> RobustTrainer:
    loss, attack, *_ = METHODS[method]
    arguments.setdefault("train_handlers", [SeedDropout()])
    data = batches(task) if data is None else data
    return trainer_of(network, data, loss(task), RobustTrainer, attack=attack(task), **arguments)


def by_hand(task: Task, method: str, **options: Any) -> nn.Module:
    *_, loss, perturb = METHODS[method]
    return train_by_hand(network_of(task), batches(task), lambda epoch: perturb(task), loss(task), **options)


def assert_close(found: nn.Module, expected: nn.Module, task: Task) -> None:
    start = network_of(task)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: n + m)
        # a bias before BatchNorm has no slope but rounding
        assert name == "0.bias" or not torch.equal(value, start.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_two_epochs_give_the_weights_of_the_formula(task: Task, method: str) -> None:
    """Dropout shows the order and the mode of the two predictions, BatchNorm's statistics that there were no more."""
    network = network_of(task)
    robust(task, method, network).run()
    assert_close(network, by_hand(task, method), task)
    seen_before = network_of(task)[1].num_batches_tracked
    assert int(network[1].num_batches_tracked - seen_before) == 2 * 2 * 2  # views, batches, epochs


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaler"])
@pytest.mark.parametrize("accumulate", [2, 3], ids="accumulate-{}".format)
def test_accumulation_and_scaler(accumulate: int, scaled: bool) -> None:
    task, scaling, theirs = TASKS[1], CpuScaler(), CpuScaler().scaler
    network = network_of(task)
    handlers = [SeedDropout(), scaling] if scaled else [SeedDropout()]
    robust(task, "TRADES", network, train_handlers=handlers, amp=scaled, accumulation_steps=accumulate).run()
    expected = by_hand(task, "TRADES", accumulate=accumulate, scaler=theirs if scaled else None)
    assert_close(network, expected, task)
    if scaled:
        assert scaling.scaler.state_dict() == theirs.state_dict()


def test_autocast() -> None:
    """In bfloat16, of which the inferer gives single precision; to the rounding of single precision."""
    task = TASKS[1]
    network, expected = task.network(), task.network()
    robust(task, "TRADES", network, task.batches(2), inferer=Bfloat16Inferer(), max_epochs=1).run()
    *_, loss, perturb = METHODS["TRADES"]
    train_by_hand(
        expected,
        task.batches(2),
        lambda epoch: perturb(task),
        loss(task),
        epochs=1,
        predict=lambda model: lambda x: Bfloat16Inferer()(x, model),
    )
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", TASKS[:2], ids=str)
def test_beta_zero_is_the_plain_trainer(task: Task) -> None:
    network, plain = network_of(task), network_of(task)
    trainer = trainer_of(
        network,
        batches(task),
        TRADESLoss(task.loss(), beta=0.0),
        RobustTrainer,
        attack=plain_pgd(task),
        train_handlers=[SeedDropout()],
    )
    trainer.run()
    trainer_of(plain, batches(task), task.loss(), train_handlers=[SeedDropout()]).run()
    for (name, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("decollate", [False, True], ids=["batched", "decollated"])
def test_what_handlers_find(decollate: bool) -> None:
    """Both predictions, the clean image and its metadata, the attack's result, a metric under attack, the events."""
    task = TASKS[1]
    items = [
        {**item, "image": MetaTensor(item["image"], affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))}
        for item in task.items()
    ]
    data = [list_data_collate(items[:2]), list_data_collate(items[2:])]
    dice = MeanDice(output_transform=from_engine(["pred_adversarial", "label"])) if decollate else None
    attack = plain_pgd(task)
    network = task.network()
    trainer = trainer_of(
        network,
        data,
        TRADESLoss(task.loss()),
        RobustTrainer,
        attack=attack,
        max_epochs=1,
        decollate=decollate,
        postprocessing=task.postprocessing() if decollate else None,
        key_train_metric={"dice": dice} if decollate else None,
    )
    count: Counter[Any] = Counter()
    for event in IterationEvents:
        trainer.add_event_handler(event, lambda e, event=event: count.update([event]))
    results = seen(
        trainer, Events.ITERATION_COMPLETED, lambda e: (e.state.batch, e.state.output, e.state.attack_result)
    )
    trainer.run()
    expected = {"FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED"}
    assert {event.name: number for event, number in count.items() if number} == dict.fromkeys(expected, 2)
    for (batch, output, result), clean in zip(results, data, strict=True):
        changes = torch.as_tensor(result.adversarial - clean["image"]).flatten(1).abs().amax(1)
        assert changes.tolist() == pytest.approx([EPS] * 2, rel=1e-5)
        assert isinstance(result.adversarial, MetaTensor)
        if not decollate:
            assert torch.equal(output["image"], clean["image"])
            assert output["pred_adversarial"].shape == output["pred"].shape
            assert not torch.equal(output["pred_adversarial"], output["pred"])
            continue
        assert [sorted(item) for item in batch] == [["image", "label"]] * 2
        assert [sorted(item) for item in output] == [["image", "label", "loss", "pred", "pred_adversarial"]] * 2
        assert torch.equal(output[0]["image"].affine.diagonal()[:2], torch.tensor([2.0, 3.0]).double())
    if decollate:
        assert 0 < trainer.state.metrics["dice"] < 1


def test_the_reported_loss_is_the_mean_over_samples_and_unscaled() -> None:
    task = TASKS[0]
    trainer = robust(task, "TRADES", network_of(task), accumulation_steps=2, max_epochs=1, decollate=False)
    outputs = seen(trainer, Events.ITERATION_COMPLETED, lambda e: dict(e.state.output))
    trainer.run()
    for output in outputs:
        clean, adversarial = output["pred"], output["pred_adversarial"]
        expected = F.cross_entropy(clean, output["label"]) + BETA * kl(clean, adversarial).mean()
        assert float(output["loss"]) == pytest.approx(float(expected), rel=1e-9)


def test_mask_and_schedule() -> None:
    task = TASKS[2]
    mask = torch.zeros(2, 1, 9, 7, 5)
    mask[..., 2:4] = 1
    data = [{**batch, "allowed": mask} for batch in batches(task)]
    schedule = {1: 0.02, 2: 0.05}.__getitem__
    trainer = robust(task, "consistency", network_of(task), data, mask_key="allowed", eps_schedule=schedule)
    found = seen(
        trainer,
        Events.ITERATION_COMPLETED,
        lambda e: e.state.attack_result.adversarial - data[(e.state.iteration - 1) % 2]["image"],
    )
    trainer.run()
    for change, eps in zip(found, [0.02] * 2 + [0.05] * 2, strict=True):
        assert float(change.abs().max()) == pytest.approx(eps, rel=1e-6)
        assert bool((change[mask == 0] == 0).all())


class Gated(nn.Module):
    """A network that wants more than an image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return self.network(image) * gate


def test_inputs_beside_the_image_reach_both_predictions() -> None:
    task, gate = TASKS[0], torch.tensor([[2.0], [0.5]]).double()
    data = [{**batch, "gate": gate} for batch in batches(task)]
    network = Gated(network_of(task))
    trainer = robust(task, "TRADES", network, data, prepare_batch=PrepareBatchExtraInput("gate"))
    trainer.run()
    expected = by_hand(task, "TRADES", predict=lambda model: lambda x: model(x) * gate)
    assert_close(network.network, expected, task)


def test_compiled_network_and_metadata() -> None:
    """The parent hands a compiled network plain tensors; so does the second prediction."""
    task = TASKS[0]
    data = [{**batch, "image": MetaTensor(batch["image"])} for batch in batches(task)]
    network = network_of(task)
    compiling = {"compile": True, "compile_kwargs": {"backend": "eager"}}
    robust(task, "TRADES", network, data, decollate=False, **compiling).run()
    assert_close(network, by_hand(task, "TRADES"), task)


def test_from_json() -> None:
    task = TASKS[0]
    config = {
        "network": None,
        "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
        "attack": {
            "_target_": "monai_smia.attacks.tpgd.TPGD",
            "loss_function": "@loss",
            "eps": EPS,
            "bounds": [0, 1],
            "steps": STEPS,
            "step_size": STEP,
        },
        "trainer": {
            "_target_": "monai_smia.engines.robust_trainer.RobustTrainer",
            "device": "cpu",
            "max_epochs": 2,
            "train_data_loader": None,
            "network": "@network",
            "optimizer": None,
            "loss_function": {"_target_": "monai_smia.losses.TRADESLoss", "loss_function": "@loss", "beta": BETA},
            "attack": "@attack",
            "train_handlers": None,
        },
    }
    parser, network = ConfigParser(json.loads(json.dumps(config))), network_of(task)
    parser["network"] = network
    parser["trainer#train_data_loader"] = batches(task)
    parser["trainer#optimizer"] = optimizer_of(network)
    parser["trainer#train_handlers"] = [SeedDropout()]
    trainer = parser.get_parsed_content("trainer")
    assert type(trainer) is RobustTrainer
    trainer.run()
    assert_close(network, by_hand(task, "TRADES"), task)


def test_a_handler_may_attack_the_clean_view_as_well() -> None:
    """Handlers run before the iteration: what they leave in the batch is the clean view."""
    task = TASKS[0]
    network, fgsm = network_of(task), FGSM(task.loss(), eps=0.05, bounds=(0.0, 1.0))
    trainer = robust(task, "TRADES", network, train_handlers=[SeedDropout(), AttackHandler(fgsm)], max_epochs=1)
    changes = seen(
        trainer,
        Events.ITERATION_COMPLETED,
        lambda e: torch.stack([i["image"] - i["image_clean"] for i in e.state.batch]),
    )
    trainer.run()
    assert all(float(change.abs().max()) == pytest.approx(0.05, rel=1e-6) for change in changes)
    assert int(trainer.state.attack_result.backward_passes[0]) == STEPS


def test_errors() -> None:
    task = TASKS[0]

    def make(**arguments: Any) -> RobustTrainer:
        defaults = {"attack": plain_pgd(task), "loss": TRADESLoss(task.loss())}
        return trainer_of(network_of(task), batches(task), kind=RobustTrainer, **{**defaults, **arguments})

    with pytest.raises(TypeError, match="loss_function: expected a loss of both views, such as TRADESLoss"):
        make(loss=nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match="attack: expected an Attack; got str"):
        make(attack="pgd")
    with pytest.raises(TypeError, match="eps_schedule: expected a callable"):
        make(eps_schedule=0.1)
    with pytest.raises(ValueError, match="iteration_update: RobustTrainer's iteration is its own"):
        make(iteration_update=lambda engine, batch: None)
    assert make().state.device == CPU
