# SPDX-License-Identifier: Apache-2.0
"""`Feed`: from a preprocessed item to what the network is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data import list_data_collate

from monai_smia.export.dependence import FAILED, Item, another, same


@dataclass(frozen=True)
class Fed:
    """What a network is called with.

    Attributes:
        inputs: the first argument, batch axis first.
        args, kwargs: further ones, as a ``prepare_batch`` of four values gives them.
    """

    inputs: torch.Tensor
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Feed:
    """An evaluator's way from one preprocessed item to its network, with a gradient.

    Attributes:
        prepare: the evaluator's ``prepare_batch``.
        collate: of the loader; ``None`` for MONAI's.
        device: of the network.
        key: the item's image where that alone is what the network is given, as it is; ``None`` where it is more.
    """

    prepare: Callable[..., Any]
    collate: Callable[[Any], Any] | None
    device: Any
    key: str | None = None

    def __call__(self, end: Item, live: Mapping[str, Any]) -> Fed:
        """What the network is given.

        Args:
            end: the preprocessed clean item.
            live: what depends on the image, at another image.
        """
        if self.key is not None:
            return Fed(live[self.key].as_subclass(torch.Tensor).unsqueeze(0).to(self.device))
        item = dict(end)
        item.update(live)
        return self.of(item)[0]

    def of(self, item: Item) -> tuple[Fed, Any]:
        """What the network is given for an item, and the target."""
        return self.of_batch(self.batch(item))

    def batch(self, item: Item) -> Any:
        """The batch of one item."""
        return (self.collate or list_data_collate)([item])

    def of_batch(self, batch: Any) -> tuple[Fed, Any]:
        """What the network is given for a batch, and the target."""
        prepared = self.prepare(batch, self.device, False)
        args, kwargs = (tuple(prepared[2]), dict(prepared[3])) if len(prepared) == 4 else ((), {})
        inputs = prepared[0]
        plain = inputs.as_subclass(torch.Tensor) if isinstance(inputs, torch.Tensor) else inputs
        return Fed(plain, args, kwargs), prepared[1]

    def needs(self, item: Item, live: set[str]) -> set[str]:
        """Keys among `live` without which the network would be given something else."""
        clean = self.of(item)[0]
        return {name for name in sorted(live) if name in item and self._matters(item, name, clean)}

    def moves_target(self, item: Item, names: Iterable[str]) -> list[str]:
        """Keys among `names` that the target is made of."""
        target = self.of(item)[1]
        return [name for name in names if not same(self.of({**item, name: another(item[name])})[1], target)]

    def narrowed(self, item: Item, key: str, needed: set[str]) -> Feed:
        """The same, by the shortest way where the network is given nothing but the image."""
        if needed != {key} or not isinstance(item[key], torch.Tensor):
            return self
        for image in (item[key], another(item[key])):
            fed = self.of({**item, key: image})[0]
            if fed.args or fed.kwargs or not same(fed.inputs.cpu(), image.cpu().unsqueeze(0)):
                return self
        return Feed(self.prepare, self.collate, self.device, key)

    def _matters(self, item: Item, name: str, clean: Fed) -> bool:
        try:
            other = self.of({**item, name: another(item[name])})[0]
        except FAILED:
            return True
        return not (
            same(other.inputs, clean.inputs) and same(other.args, clean.args) and same(other.kwargs, clean.kwargs)
        )
