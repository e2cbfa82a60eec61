"""An attack's steps are queued on the device without waiting for it, and leave a compiled network compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from networks import tiny_network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from monai_smia import attacks

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item", "unique2"}
"""Operations whose result the processor has to know before it can go on."""

BUDGET: dict[str, Any] = {"eps": 0.1, "bounds": (0.0, 1.0)}
STEPWISE = ("BIM", "PGD", "MIFGSM", "NIFGSM", "VMIFGSM", "TIFGSM", "SMIA", "SegPGD", "CosPGD", "APGD")


class Waits(TorchDispatchMode):
    """Counts what makes the processor wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [
            index for index in (args[1] if name in ("index", "index_put_", "_index_put_impl_") else ())
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        ]  # fmt: skip
        if name in WAITING or masks:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def waits(name: str, dense: bool, steps: int, **more: Any) -> list[str]:
    loss = DiceCELoss(to_onehot_y=True, softmax=True) if dense else nn.CrossEntropyLoss()
    attack = getattr(attacks, name)(loss, steps=steps, **{**BUDGET, **more})
    image = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 3, (2, 1, 9, 7) if dense else (2,), generator=torch.Generator().manual_seed(1))
    network = tiny_network(2, dense)
    with Waits() as mode:
        attack(network, image, target)
    return mode.seen


CASES = [(name, "inf") for name in STEPWISE] + [(name, 2) for name in ("PGD", "MIFGSM", "TIFGSM", "SMIA", "APGD")]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_no_step_waits_for_the_device(name: str, norm: Any) -> None:
    """As many waits with eight steps as with four: those of the call, none of a step."""
    dense = name in ("SegPGD", "CosPGD")
    assert waits(name, dense, 8, norm=norm) == waits(name, dense, 4, norm=norm)


@pytest.mark.parametrize("more", [{"keep": "best"}, {"random_start": True, "restarts": 2}, {"norm": 1}], ids=str)
def test_nor_with_its_options(more: dict[str, Any]) -> None:
    for dense in (False, True):
        assert waits("PGD", dense, 8, **more) == waits("PGD", dense, 4, **more)


def test_the_counter_counts() -> None:
    with Waits() as mode:
        bool((torch.ones(2) > 0).all())
        torch.arange(3)[torch.tensor([True, False, True])]
    assert mode.seen[0] in ("_local_scalar_dense", "is_nonzero")
    assert len(mode.seen) >= 2


@pytest.mark.parametrize("name", ["PGD", "SMIA"])
def test_a_compiled_network_stays_compiled(name: str) -> None:
    """As many graphs after many steps and calls as after the first few: flags that an attack sets are no new guards."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = tiny_network(2, False)
    compiled = torch.compile(plain, backend=backend)
    image = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 2])
    attack = getattr(attacks, name)(nn.CrossEntropyLoss(), steps=5, **BUDGET)
    first = attack(compiled, image, target)
    seen = len(graphs)
    assert 1 <= seen <= 3
    for _ in range(2):
        again = attack(compiled, image, target)
        assert torch.equal(again.adversarial, first.adversarial)
    assert len(graphs) == seen
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch.equal(first.adversarial, attack(plain, image, target).adversarial)
    torch._dynamo.reset()
