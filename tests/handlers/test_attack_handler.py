"""`AttackHandler` in an evaluator: what the iteration then sees, and what stays as it was."""

from __future__ import annotations

from types import SimpleNamespace

import contract
import networks
import pytest
import torch
from evaluators import EPS, Task, attacked_by_hand, generator, handled, images_of, metrics_of, seen
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from monai.losses import DiceLoss
from torch import nn

from monai_smia.attacks import BIM, FGSM, PGD
from monai_smia.handlers import AttackHandler

TASKS = {
    "2d-segmentation": Task(2),
    "3d-segmentation": Task(3),
    "2d-classification": Task(2, dense=False),
    "3d-classification": Task(3, dense=False),
}


@pytest.mark.parametrize("name", ["bim", "pgd"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_equals_a_loader_of_images_attacked_by_hand(task: Task, name: str) -> None:
    attack, network = task.attacks()[name], task.network()
    by_hand = attacked_by_hand(attack, network, task.loader(), 5)
    expected = metrics_of(task.evaluator(val_data_loader=by_hand))
    engine = task.evaluator(network=network, **handled(attack, seed=5))
    images = images_of(engine)
    assert metrics_of(engine) == expected
    for image, batch in zip(images, by_hand, strict=True):
        assert torch.equal(image, batch["image"].as_tensor())
    assert metrics_of(task.evaluator()) != expected


def test_keeps_the_clean_image_and_the_loaders_batch() -> None:
    task = Task()
    attack, network, batches = task.attacks()["bim"], task.network(), task.batches()
    copies = [{key: value.clone() for key, value in batch.items()} for batch in batches]
    engine = task.evaluator(val_data_loader=batches, network=network, **handled(attack))
    states = seen(
        engine,
        Events.ITERATION_STARTED,
        lambda e: SimpleNamespace(batch=e.state.batch, result=e.state.attack_result, attacked=e.state.attacked),
    )
    engine.run()
    for state, batch, copy in zip(states, batches, copies, strict=True):
        assert state.batch is not batch
        assert set(batch) == {"image", "label"}
        assert all(torch.equal(batch[key], copy[key]) for key in copy)
        assert state.batch["image_clean"] is batch["image"]
        expected = attack(network, copy["image"], copy["label"])
        for key, value in vars(expected).items():
            assert torch.equal(getattr(state.result, key), value), key
        assert torch.equal(state.batch["image"], expected.adversarial)
        assert state.attacked.tolist() == list(range(len(copy["image"])))


def test_leaves_the_network_as_found() -> None:
    task = Task()
    network = task.network()
    engine = task.evaluator(network=network, **handled(task.attacks()["pgd"]))
    modes = seen(engine, Events.ITERATION_STARTED, lambda e: [module.training for module in network.modules()])
    found = [module.training for module in network.modules()]
    parameters = {name: value.clone() for name, value in network.state_dict().items()}
    engine.run()
    assert modes[0] == found  # before MONAI's own iteration, whose eval_mode thaws the frozen BatchNorm
    assert network.training
    assert all(torch.equal(value, parameters[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_touches_neither_the_network_nor_the_global_randomness() -> None:
    task = Task()
    (batch,) = task.batches(3)
    engine = task.evaluator(**handled(task.attacks()["pgd"]))
    before = torch.get_rng_state()
    with contract.unchanged(engine.network):
        engine.fire_event(Events.EPOCH_STARTED)
        engine.state.epoch, engine.state.batch = 1, batch
        engine.fire_event(Events.ITERATION_STARTED)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode: type) -> None:
    task = Task(3)
    expected = metrics_of(task.evaluator(**handled(task.attacks()["pgd"])))
    engine = task.evaluator(**handled(task.attacks()["pgd"]))
    with mode():
        assert metrics_of(engine) == expected


def test_amp_on_a_cpu_changes_nothing() -> None:
    task = Task()
    expected = metrics_of(task.evaluator(**handled(task.attacks()["pgd"])))
    assert metrics_of(task.evaluator(amp=True, **handled(task.attacks()["pgd"]))) == expected


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_probability_chooses_samples_that_are_attacked_as_if_alone(probability: float) -> None:
    task = Task(cases=8)
    (batch,), network = task.batches(8), task.network()
    attack = task.attacks()["bim"]
    engine = task.evaluator(
        val_data_loader=[batch], network=network, **handled(attack, probability=probability, seed=2)
    )
    images, attacked = images_of(engine), seen(engine, Events.ITERATION_STARTED, lambda e: e.state.attacked)
    engine.run()
    chosen = attacked[0].tolist()
    if probability in (0.0, 1.0):
        assert len(chosen) == 8 * probability
    else:
        assert 0 < len(chosen) < 8
        assert engine.state.attack_result.loss.shape == (len(chosen),)
        assert chosen == (torch.rand(8, generator=generator(2)) < 0.5).nonzero()[:, 0].tolist()
    for i in range(8):
        one = slice(i, i + 1)
        if i not in chosen:
            assert torch.equal(images[0][i], batch["image"][i])
        else:
            alone = attack(network, batch["image"][one], batch["label"][one]).adversarial
            torch.testing.assert_close(images[0][one], alone, rtol=0, atol=1e-6)
            assert not torch.equal(images[0][i], batch["image"][i])


def test_mask_key_restricts_the_change() -> None:
    task = Task(3)
    batches = task.batches()
    for batch in batches:
        batch["lung"] = torch.zeros_like(batch["label"])
        batch["lung"][:, :, 2:6, 1:4] = 1
    for probability in (1.0, 0.6):
        engine = task.evaluator(
            val_data_loader=batches, **handled(task.attacks()["pgd"], mask_key="lung", probability=probability)
        )
        images = images_of(engine)
        engine.run()
        changes = [image - batch["image"] for image, batch in zip(images, batches, strict=True)]
        for change, batch in zip(changes, batches, strict=True):
            assert bool((change[batch["lung"] == 0] == 0).all())
        assert any(bool(change.any()) for change in changes)


def test_tuple_batches() -> None:
    task = Task()
    dictionaries = task.evaluator(val_data_loader=task.batches(), **handled(task.attacks()["pgd"]))
    expected = images_of(dictionaries)
    metrics = metrics_of(dictionaries)
    for kind in (tuple, list):
        pairs = [kind((batch["image"], batch["label"])) for batch in task.batches()]
        engine = task.evaluator(val_data_loader=pairs, **handled(task.attacks()["pgd"]))
        images = images_of(engine)
        assert metrics_of(engine) == metrics
        assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))
        assert all(
            torch.equal(pair[0], batch["image"]) and len(pair) == 2
            for pair, batch in zip(pairs, task.batches(), strict=True)
        )


def test_detach_and_attach_twice() -> None:
    task = Task()
    attack, clean = task.attacks()["bim"], metrics_of(task.evaluator())
    engine, handler = task.evaluator(), AttackHandler(attack)
    handler.attach(engine)
    handler.attach(engine)
    adversarial = metrics_of(engine)
    assert adversarial == metrics_of(task.evaluator(**handled(attack)))
    handler.detach(engine)
    assert metrics_of(engine) == clean != adversarial


def test_seeds() -> None:
    task = Task()

    def images(epoch: int, seed: int = 0, times: int = 1) -> torch.Tensor:
        engine = task.evaluator(**handled(task.attacks()["pgd"], seed=seed))
        found = images_of(engine)
        for _ in range(times):
            engine.run(global_epoch=epoch)
        return torch.cat(found[-2:])

    first = images(1)
    assert torch.equal(first, images(1, times=2))
    assert not torch.equal(first, images(2))
    assert not torch.equal(first, images(1, seed=9))
    assert torch.equal(images(2), images(1, seed=1))  # an engine resumed at epoch 2 draws what it would have drawn


def test_callback_sees_every_gradient() -> None:
    task, steps = Task(), []
    engine = task.evaluator(
        **handled(task.attacks()["bim"], callback=lambda trial, prediction: steps.append(trial.step))
    )
    engine.run()
    assert steps == [0, 1] * 2


class TestSlidingWindow:
    """The gradient is the one that plain autograd finds through MONAI's own sliding window."""

    inferer = SlidingWindowInferer((6, 6), sw_batch_size=2, overlap=0.5, mode="gaussian")

    @pytest.mark.parametrize("head", [None, nn.Softmax(1), nn.Sigmoid()], ids=["logits", "softmax", "sigmoid"])
    def test_equals_autograd(self, head: nn.Module | None) -> None:
        task = Task()
        network = task.network() if head is None else nn.Sequential(task.network(), head)
        loss = task.loss() if head is None else DiceLoss(to_onehot_y=True)
        batch = task.batches()[0]
        engine = task.evaluator(
            val_data_loader=[batch], network=network, inferer=self.inferer, **handled(FGSM(loss, eps=EPS))
        )
        images = images_of(engine)
        engine.run()
        image = batch["image"].clone().requires_grad_()
        network.eval()
        prediction = sliding_window_inference(
            image, (6, 6), 2, lambda x: network(x).clone(), overlap=0.5, mode="gaussian"
        )
        loss(prediction, batch["label"]).backward()
        clear = image.grad.abs() > 1e-6 * image.grad.abs().max()  # no sign to agree on where the slope is rounding
        expected = image.detach() + EPS * image.grad.sign()
        assert clear.float().mean() > 0.95
        torch.testing.assert_close(images[0][clear], expected[clear], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attack": nn.Identity()}, TypeError, "attack: expected an Attack; got Identity"),
        ({"probability": 1.5}, ValueError, "probability: .*1.5"),
        ({"probability": -0.1}, ValueError, "probability"),
        ({"eps_schedule": 0.3}, TypeError, "eps_schedule: .*float"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AttackHandler(**{"attack": BIM(nn.CrossEntropyLoss(), eps=EPS), **arguments})


def test_missing_labels_and_masks_are_named() -> None:
    task = Task()
    unlabelled = [{"image": batch["image"]} for batch in task.batches()]
    arguments = {"key_val_metric": None, "additional_metrics": None, "postprocessing": None}
    engine = task.evaluator(val_data_loader=unlabelled, **arguments, **handled(task.attacks()["bim"]))
    with pytest.raises(ValueError, match="label_key: .*label"):
        engine.run()
    engine = task.evaluator(**arguments, **handled(task.attacks()["bim"], mask_key="lung"))
    with pytest.raises(ValueError, match="mask_key: .*'lung'"):
        engine.run()


def test_an_image_outside_the_bounds_is_named_and_the_network_restored() -> None:
    task, network = Task(), Task().network()
    engine = task.evaluator(network=network, **handled(PGD(task.loss(), eps=EPS, bounds=(0.0, 0.5), random_start=True)))
    with contract.unchanged(network), pytest.raises(ValueError, match="bounds: the image leaves"):
        engine.run()


def test_nan_in_the_image_is_named_and_not_taken_for_a_rescaling() -> None:
    task = Task()
    (batch,) = task.batches(3)
    batch["image"][1, 0, 2, 2] = torch.nan
    engine = task.evaluator(val_data_loader=[batch], **handled(task.attacks()["bim"]))
    with pytest.raises(ValueError, match="image: expected finite values; sample 1"):
        engine.run()


def test_an_interrupt_in_the_attack_leaves_the_network() -> None:
    task = Task()
    network = networks.Failing(task.network(), at=2)
    engine = task.evaluator(network=network, **handled(task.attacks()["bim"]))
    with contract.unchanged(network), pytest.raises(KeyboardInterrupt, match="planted"):
        engine.run()


def test_a_subclass_and_an_iteration_of_ones_own() -> None:
    task = Task(2, dense=False)
    attack = task.attacks()["bim"]
    expected = metrics_of(task.evaluator(**handled(attack)))

    class Quiet(SupervisedEvaluator):
        def _iteration(self, engine: object, batchdata: dict) -> dict:
            return super()._iteration(engine, batchdata)

    def update(engine: SupervisedEvaluator, batch: dict) -> list[dict]:
        with torch.no_grad():
            prediction = engine.network.eval()(batch["image"].as_tensor()).softmax(1)
        return [{"pred": p, "label": y} for p, y in zip(prediction, batch["label"], strict=True)]

    assert metrics_of(task.evaluator(Quiet, **handled(attack))) == expected
    assert metrics_of(task.evaluator(iteration_update=update, **handled(attack))) == expected
