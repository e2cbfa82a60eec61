# SPDX-License-Identifier: Apache-2.0
"""`Sweep`: a network over an image's windows, blended, and its exact gradient with one batch of windows in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from tqdm.auto import tqdm

from monai_smia.inferers.blending import Blending, Index, blending, gather, resized, scale_of, scatter
from monai_smia.inferers.predictor import Predictor


@dataclass(frozen=True)
class Visit:
    """A batch of windows that meets the network together, and the random state it meets them in."""

    windows: tuple[Index, ...]
    random: tuple[torch.Tensor, ...]


class Sweep:
    """One pass over the windows, which can be taken again, window by window, for the gradient.

    The second pass runs in the modes, the autocast and the random state of the first and leaves no trace.

    Args:
        predictor: what predicts a batch of windows.
        blend: MONAI's `sliding_window_inference` with its settings as keywords, all but ``inputs``, ``predictor``,
            ``process_fn`` and ``with_coord``; ``sw_device`` is a device.
        total: windows of the pass, for the progress bar; ``None`` shows none.
    """

    def __init__(self, predictor: Predictor, blend: partial[Any], *, total: int | None) -> None:
        self.predictor = predictor
        self.blend = blend
        self.total = total
        self.batch: int = blend.keywords["sw_batch_size"]
        self.device: torch.device = blend.keywords["sw_device"]
        self.buffered = (blend.keywords["buffer_steps"] or 0) > 0  # outputs are then as large as windows
        self.other: torch.Tensor | None = None  # kept where the second pass needs it to draw alike
        self.visits: list[Visit] = []
        self.keys: list[Any] | None = None
        self.paired = False
        self.importance: torch.Tensor | None = None  # what process_fn is given
        self.weight: torch.Tensor | None = None  # that of the first windows, by which MONAI counts overlaps
        self.shapes: list[torch.Size] = []  # spatial shape of each output for one window
        self.window = torch.Size()
        self.modes = [(module, module.training) for module in predictor.modules]
        self.passes = [count for m in predictor.modules if (count := m._buffers.get("passes")) is not None]  # drawn by
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in sorted({"cpu", self.device.type})
        ]

    def predict(self, image: torch.Tensor, other: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Blended outputs at `image`, ``BCHW[D]``, then those at `other`, whose windows share the network's batches."""
        self.paired = other is not None
        with self._bar("windows", self.total) as bar:

            def visit(windows: torch.Tensor, where: list[list[slice]], *_: Any, **__: Any) -> list[torch.Tensor]:
                index = tuple(tuple(part) for part in where)  # MONAI shifts its own lists when it buffers
                self.visits.append(Visit(index, self._random_state()))
                given = windows if other is None else torch.cat(windows.chunk(2, 1))
                outputs, self.keys = self.predictor(given, index if other is None else (*index, *index))
                bar.update(len(index))
                if other is not None:
                    return [torch.cat(x.chunk(2), 1) for x in outputs]
                # blending multiplies in place: neither a graph nor an image handed back by the network may feel it
                return [x.clone() if x.requires_grad or _shares(x, windows) else x for x in outputs]

            both = image if other is None else torch.cat((image, other), 1)
            result = self.blend(inputs=both, predictor=visit, process_fn=self._weigh, with_coord=True)
        states = [*(item.random for item in self.visits), self._random_state()]
        self.drew = any(state is not states[0] for state in states)
        self.other = other if self.drew else None
        outputs = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        if other is None:
            return outputs
        halves = [x.chunk(2, 1) for x in outputs]
        return (*(first for first, _ in halves), *(second for _, second in halves))

    def restore(self, outputs: Sequence[Any]) -> tuple[Any, Any]:
        """What `predict` gave, in the structure that MONAI returns: of the image, and of the other one or ``None``."""
        count = len(outputs) // 2 if self.paired else len(outputs)
        first, second = outputs[:count], outputs[count:]
        return self._packed(first), self._packed(second) if second else None

    def _packed(self, outputs: Sequence[Any]) -> Any:
        if self.keys is not None:
            return dict(zip(self.keys, outputs, strict=False))  # buffered stitching keeps the first alone
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def pull_back(
        self,
        image: torch.Tensor,
        gradients: Sequence[torch.Tensor | None],
        parameters: Sequence[nn.Parameter],
        wants_image: bool,
        mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The vector-Jacobian product of the first pass, by predicting the windows again.

        Args:
            image: that of the first pass, ``BCHW[D]``.
            gradients: of each blended output; ``None`` is zero.
            parameters: those whose gradients are wanted.
            wants_image: whether the image's is.
            mask: ``(B or 1, 1, *spatial)`` bool, where the image's gradient is wanted; ``None`` for everywhere.

        Returns:
            The image's gradient, zero outside the mask, and the parameters'.
        """
        assert self.weight is not None
        given = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None}
        weights = resized(self.weight, self.shapes, self.window)
        first = [index for visit in self.visits for index in visit.windows if index[0].start == 0]
        blendings = {i: blending(gradient, first, weights[i], self._scale(i)) for i, gradient in given.items()}
        visits = self._live(given, blendings, None if parameters else mask)
        total = torch.zeros_like(image) if wants_image else None
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        count = sum(len(visit.windows) for visit in visits)
        with self._as_before(), self._bar("gradient", None if self.total is None else count) as bar:
            for visit in visits:
                self._add_gradients(visit, image, given, blendings, total, parameters, sums)
                bar.update(len(visit.windows))
        if total is not None and mask is not None:
            total.masked_fill_(~mask, 0.0)
        return total, sums

    def _add_gradients(
        self,
        visit: Visit,
        image: torch.Tensor,
        given: dict[int, torch.Tensor],
        blendings: dict[int, Blending],
        total: torch.Tensor | None,
        parameters: Sequence[nn.Parameter],
        sums: Sequence[torch.Tensor],
    ) -> None:
        """Add what a batch of windows contributes; nothing of it is in memory when the next one comes."""
        self._set_random_state(visit.random)
        windows = gather(image, visit.windows).to(self.device).requires_grad_(total is not None)
        outputs, weight = self._again(windows, visit.windows)
        weights = resized(weight, self.shapes, self.window)
        pulls = {
            i: blendings[i].transpose(gradient, visit.windows, weights[i]).to(outputs[i].dtype)
            for i, gradient in given.items()
            if outputs[i].requires_grad
        }
        targets = [*([windows] if total is not None else []), *parameters]
        found: list[torch.Tensor | None] = [None] * len(targets)
        if pulls:
            outs = [outputs[i] for i in pulls]
            found = list(torch.autograd.grad(outs, targets, list(pulls.values()), allow_unused=True))
        if all(gradient is None for gradient in found):
            raise RuntimeError(
                "network: expected a prediction that depends differentiably on the image; no gradient reaches it "
                "(is there a detach, an argmax or a no_grad inside?)"
            )
        if total is not None:
            gradient = found.pop(0)
            if gradient is not None:
                scatter(total, visit.windows, gradient)
        for value, gradient in zip(sums, found, strict=True):
            if gradient is not None:
                value += gradient

    def _again(self, windows: torch.Tensor, where: tuple[Index, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Outputs of a batch of windows, with a graph, and their weight."""
        assert self.weight is not None
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            if self.other is not None:  # the same draws need the same batch
                with_other = torch.cat((windows, gather(self.other, where).to(self.device)))
                outputs, _ = self.predictor(with_other, (*where, *where))
                outputs = [x[: len(where)] for x in outputs]
            else:
                outputs, _ = self.predictor(windows, where)
            if self.predictor.process_fn is None:
                return outputs, self.weight
            processed, weight = self.predictor.process_fn(tuple(outputs), windows, self.importance)
        if weight.requires_grad:
            raise ValueError(
                "process_fn: its weight depends on the image, so that the overlaps' count would have a gradient too; "
                "expected a weight without one (detach it to leave that part out)"
            )
        return list(processed), weight

    def _live(
        self, given: dict[int, torch.Tensor], blendings: dict[int, Blending], mask: torch.Tensor | None
    ) -> list[Visit]:
        """The visits, without windows whose incoming gradient is zero or that see nothing of the mask."""
        windows = [index for visit in self.visits for index in visit.windows]
        flags = []
        for index in windows:
            flag = torch.stack([blendings[i].cut(gradient, index).any() for i, gradient in given.items()]).any()
            if mask is not None:
                own = mask if len(mask) == 1 else mask[index[0]]
                place = (slice(None), slice(None), *index[2:])
                flag = flag & own[place].any().to(flag.device)
            flags.append(flag)
        alive = torch.stack(flags).tolist()
        modes = [training for _, training in self.modes]
        if modes and not any(modes) and not self.drew and self.predictor.process_fn is None:
            # no window knows its batch mates, so that batches can be filled up
            kept = list(itertools.compress(windows, alive))
            return [Visit(tuple(kept[i : i + self.batch]), ()) for i in range(0, len(kept), self.batch)]
        flag_of = iter(alive)
        return [visit for visit in self.visits if any([next(flag_of) for _ in visit.windows])]

    def _weigh(self, outputs: Any, windows: torch.Tensor, weight: torch.Tensor) -> Any:
        """MONAI's hook after each prediction: the user's, and a look at weights and shapes."""
        importance = weight
        if self.predictor.process_fn is not None:
            outputs, weight = self.predictor.process_fn(outputs, windows, importance)
        if self.weight is None:
            self.importance, self.weight = importance, weight
            self.window, self.shapes = windows.shape[2:], [x.shape[2:] for x in outputs]
        return outputs, weight

    def _scale(self, output: int) -> tuple[float, ...] | None:
        return None if self.buffered else scale_of(self.shapes[output], self.window)

    def _random_state(self) -> tuple[torch.Tensor, ...]:
        """The global random state and the passes counted; the last visit's object where nothing was drawn since."""
        state: tuple[torch.Tensor, ...] = (torch.get_rng_state(), *(count.clone() for count in self.passes))
        if self.device.type == "cuda":
            state = (*state, torch.cuda.get_rng_state(self.device))
        last = self.visits[-1].random if self.visits else ()
        return last if last and all(map(torch.equal, last, state)) else state

    def _set_random_state(self, state: tuple[torch.Tensor, ...]) -> None:
        if self.drew and state:
            torch.set_rng_state(state[0])
            with torch.no_grad():
                for count, value in zip(self.passes, state[1:], strict=False):
                    count.copy_(value)
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state[-1], self.device)

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """The modes of the first pass; modes, buffers and random state are then again what they were."""
        modes = [(module, module.training) for module, _ in self.modes]
        learning = [module for module, training in self.modes if training]
        kept = [*(buffer for module in learning for buffer in module.buffers(recurse=False)), *self.passes]
        buffers = [(buffer, buffer.clone()) for buffer in kept]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=self.drew):
            try:
                _set_modes(self.modes)
                yield
            finally:
                _set_modes(modes)
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)

    @staticmethod
    def _bar(name: str, total: int | None) -> Any:
        return tqdm(total=total, desc=name, unit="window", leave=False, delay=2, disable=total is None)


class Windows(torch.autograd.Function):
    """A `Sweep` as a function of the image and the parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        sweep: Sweep,
        mask: torch.Tensor | None,
        other: torch.Tensor | None,
        image: torch.Tensor,
        *parameters: nn.Parameter,
    ) -> tuple[torch.Tensor, ...]:
        ctx.sweep, ctx.mask = sweep, mask
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(image, *parameters)  # autograd then refuses ones that were changed in between
        outputs = sweep.predict(image, other)
        if other is not None:
            ctx.mark_non_differentiable(*outputs[len(outputs) // 2 :])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        image, *parameters = ctx.saved_tensors
        found, sums = ctx.sweep.pull_back(image, gradients, parameters, ctx.needs_input_grad[3], ctx.mask)
        return None, None, None, found, *sums


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:
            module.training = training


def _shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
