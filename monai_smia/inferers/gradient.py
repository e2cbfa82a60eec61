# SPDX-License-Identifier: Apache-2.0
"""`GradientSlidingWindowInferer`: whole-volume prediction by windows, differentiable in the memory of a few of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from monai.utils import convert_to_dst_type, ensure_tuple_rep, fall_back_tuple
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_smia.inferers.padding import Padding
from monai_smia.inferers.predictor import Predictor, ProcessFn
from monai_smia.inferers.sweep import Sweep, Windows


class GradientSlidingWindowInferer(SlidingWindowInferer):
    r"""MONAI's `SlidingWindowInferer`, with an exact gradient at the memory of one batch of windows.

    .. math:: y = \frac{\sum_i S_i^\top \big(w \odot f(S_i x)\big)}{\sum_i S_i^\top w}, \qquad
              \Big(\frac{\partial y}{\partial x}\Big)^{\!\top} g =
              \sum_i S_i^\top J_f(S_i x)^\top \Big(w \odot S_i \frac{g}{\sum_j S_j^\top w}\Big)

    :math:`S_i` cuts window i out of the image x, w is MONAI's importance map. The forward pass is MONAI's own code, run
    without a graph, so that the output has its bits. The backward pass predicts each batch of windows again, with a
    graph, and adds its vector-Jacobian product: two forward passes and one backward pass in all, any overlap, blending
    and number of outputs. Windows whose incoming gradient is zero everywhere are not visited again.

    The second prediction runs in the modes, the autocast and the random state of the first, so that dropout draws the
    same units; buffers (BatchNorm's statistics) move once. Where every submodule is in evaluation mode and nothing was
    drawn, the windows that are left fill up batches; a network in training mode meets the batches of the first pass.

    An image that is one batch of windows is predicted once, with a graph: that is all there would be to save.

    Args:
        roi_size, sw_batch_size, args, kwargs: as in `SlidingWindowInferer`. ``progress=True`` shows both passes window
            by window, once one takes more than two seconds.
        parameters: whether the network's parameters get their gradients too, for training on whole volumes. Otherwise
            the image alone does, and parameters are constants.
        process_fn: as in `sliding_window_inference`; its weight must not depend on the image.
        roi_weight_map: as in `sliding_window_inference`; a constant.

    Raises:
        TypeError: at the call, when `parameters` is set and the network is no `nn.Module` or is a
            `DistributedDataParallel`, which would miss the gradients; wrap a module that calls the inferer instead.
        ValueError: for a weight map, a condition or another argument of the network that requires a gradient.
        RuntimeError: in a second pass, when no gradient reaches the image, as through an argmax; when it is
            differentiated twice; when image or parameters were changed in place between the passes.

    Example:
        >>> import torch
        >>> network = torch.nn.Conv3d(1, 2, 3, padding=1).double().requires_grad_(False)
        >>> volume = torch.rand(1, 1, 40, 40, 40, dtype=torch.float64, requires_grad=True)
        >>> inferer = GradientSlidingWindowInferer((16, 16, 16), sw_batch_size=4, overlap=0.5, mode="gaussian")
        >>> prediction = inferer(volume, network)
        >>> plain = SlidingWindowInferer((16, 16, 16), sw_batch_size=4, overlap=0.5, mode="gaussian")(volume, network)
        >>> torch.equal(prediction, plain)
        True
        >>> (exact,) = torch.autograd.grad(plain.square().sum(), volume)
        >>> (ours,) = torch.autograd.grad(prediction.square().sum(), volume)
        >>> torch.allclose(ours, exact)
        True
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        *args: Any,
        parameters: bool = False,
        process_fn: ProcessFn | None = None,
        roi_weight_map: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        _check_sizes(roi_size, sw_batch_size)
        super().__init__(roi_size, sw_batch_size, *args, **kwargs)
        if roi_weight_map is not None:
            if not isinstance(roi_weight_map, torch.Tensor):
                raise TypeError(f"roi_weight_map: expected a tensor, or None; got {roi_weight_map!r}")
            if roi_weight_map.requires_grad:
                raise ValueError("roi_weight_map: expected a constant; it requires a gradient, which would be lost")
            self.roi_weight_map = roi_weight_map
        self.parameters = parameters
        self.process_fn = process_fn
        self.mask: torch.Tensor | None = None
        self._flat: int | None = None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Predict `inputs`, differentiably where gradients are on.

        Args:
            inputs: ``BCHW[D]``, a tensor or `MetaTensor`.
            network: ``(N, C, *window)`` to a tensor, or a tuple or dictionary of tensors, of any resolution.
            args, kwargs: passed on to it, but for ``condition`` (an image like `inputs`, cut into windows with it) and
                ``device``, ``buffer_steps`` and ``buffer_dim``, which override the constructor's.

        Returns:
            What MONAI's inferer returns, bit for bit.
        """
        return self._run(inputs, None, network, args, kwargs)[0]

    def beside(
        self, inputs: torch.Tensor, other: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Predict two images of one shape; only the first prediction carries a gradient.

        Both images share one pass: a batch holds their windows at the same places, ``2 * sw_batch_size`` in all. It is
        without a graph, and so smaller than the backward pass of ``sw_batch_size`` windows. Networks that may not see
        the images side by side (in training mode, plain callables, with a `process_fn`) and images that are one batch
        get two passes.

        Args:
            inputs, network, args, kwargs: as in a call.
            other: the second image, of `inputs`' shape.

        Returns:
            The prediction at `inputs`, and that at `other`.
        """
        if other.shape != inputs.shape:
            raise ValueError(f"other: expected the shape of inputs, {tuple(inputs.shape)}; got {tuple(other.shape)}")
        modules = network.modules() if isinstance(network, nn.Module) else ()
        modes = [module.training for module in modules]
        mixes = not modes or any(modes) or self.process_fn is not None
        if mixes or self._count(inputs) <= self.sw_batch_size:
            with torch.no_grad():
                second = self._run(other, None, network, args, dict(kwargs))[0]
            return self._run(inputs, None, network, args, kwargs)[0], second
        first, second = self._run(inputs, other, network, args, kwargs)
        return first, second

    def within(self, mask: torch.Tensor | None) -> GradientSlidingWindowInferer:
        """The same inferer for an image that may change inside `mask` only: its gradient is zero elsewhere.

        Windows that see nothing of the mask are predicted, and not visited by the backward pass. The gradients of
        parameters are those of the whole.

        Args:
            mask: bool, broadcasts against ``BCHW[D]``; ``None`` for everywhere.
        """
        other = copy.copy(self)
        other.mask = mask
        return other

    def _run(
        self,
        inputs: torch.Tensor,
        other: torch.Tensor | None,
        network: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        image, kwargs = _plain(inputs), dict(kwargs)
        window = fall_back_tuple(self._window(image.ndim - 2), image.shape[2:])
        padding = Padding(image.shape[2:], window, self.padding_mode, self.cval)
        condition = kwargs.pop("condition", None)
        if condition is not None and condition.shape != inputs.shape:
            raise ValueError(f"condition: expected the shape of inputs, {tuple(image.shape)}; got {condition.shape}")
        blend = self._blend(image, window, kwargs)
        _refuse_gradients({"condition": condition, **dict(enumerate(args)), **kwargs})
        count = self._count(image)
        sweep = Sweep(
            Predictor(
                network,
                args,
                kwargs,
                None if condition is None else padding.put(_plain(condition)),
                self.with_coord,
                self.process_fn,
                self._flat,
            ),
            blend,
            total=count if self.progress else None,
        )
        given = padding.put(image)
        mask = None if self.mask is None else padding.put(self._reach(image)) > 0
        twin = None if other is None else padding.put(_plain(other).detach())
        parameters = self._parameters(network)
        if count <= self.sw_batch_size and twin is None and (self.parameters or _frozen(network)):
            outputs = sweep.predict(given if mask is None else torch.where(mask, given, given.detach()))
        else:
            outputs = Windows.apply(sweep, mask, twin, given, *parameters)  # type: ignore[no-untyped-call]
        pair = sweep.restore([padding.take_off(output) for output in outputs])
        if not isinstance(inputs, MetaTensor):
            return pair
        like, device = MetaTensor([]).copy_meta_from(inputs, copy_attr=False), blend.keywords["device"] or image.device
        first, second = (None if x is None else convert_to_dst_type(x, like, device=device)[0] for x in pair)
        return first, second

    def _blend(self, image: torch.Tensor, window: Sequence[int], kwargs: dict[str, Any]) -> partial[Any]:
        """MONAI's function with all settings; those that a call may override are taken out of `kwargs`."""
        device = kwargs.pop("device", self.device)
        if device is None and self.cpu_thresh is not None and image.shape[2:].numel() > self.cpu_thresh:
            device = "cpu"
        return partial(
            sliding_window_inference,
            roi_size=window,
            sw_batch_size=self.sw_batch_size,
            overlap=self.overlap,
            mode=self.mode,
            sigma_scale=self.sigma_scale,
            sw_device=torch.device(self.sw_device or image.device),
            device=device,
            roi_weight_map=self.roi_weight_map,
            buffer_steps=kwargs.pop("buffer_steps", self.buffer_steps),
            buffer_dim=kwargs.pop("buffer_dim", self.buffer_dim),
        )

    def _window(self, rank: int) -> Any:
        """The window as given, for an image of `rank` spatial axes."""
        if isinstance(self.roi_size, Sequence) and len(self.roi_size) != rank:
            raise ValueError(
                f"inputs: expected a batch, a channel and {len(self.roi_size)} spatial axes for a roi_size of "
                f"{tuple(self.roi_size)}; got {rank} spatial axes"
            )
        return self.roi_size

    def _count(self, image: torch.Tensor) -> int:
        """How many windows MONAI lays over a batch of images."""
        shape = image.shape[2:]
        window = fall_back_tuple(self._window(len(shape)), shape)
        overlap = ensure_tuple_rep(self.overlap, len(shape))
        steps = [max(int(size * (1 - part)), 1) for size, part in zip(window, overlap, strict=True)]
        sizes = zip(shape, window, steps, strict=True)
        return len(image) * math.prod(math.ceil(max(have - size, 0) / step) + 1 for have, size, step in sizes)

    def _reach(self, image: torch.Tensor) -> torch.Tensor:
        """The mask over space, as numbers: padding copies voxels, and must copy the mask with them."""
        assert self.mask is not None
        mask = self.mask.to(image.device)
        if mask.ndim != image.ndim:
            raise ValueError(f"mask: expected {image.ndim} axes, as inputs have; got {tuple(mask.shape)}")
        return mask.expand(len(mask), -1, *image.shape[2:]).any(1, keepdim=True).to(image.dtype)

    def _parameters(self, network: Callable[..., Any]) -> list[nn.Parameter]:
        if not self.parameters:
            return []
        if not isinstance(network, nn.Module) or isinstance(network, DistributedDataParallel):
            raise TypeError(
                "network: parameters=True needs the nn.Module itself, so that its gradients arrive; got "
                f"{type(network).__name__}"
            )
        return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _check_sizes(roi_size: Any, sw_batch_size: Any) -> None:
    """Whole numbers; a size of the window that is none, or under 1, is the image's along its axis."""
    if isinstance(sw_batch_size, bool) or not isinstance(sw_batch_size, Integral) or sw_batch_size < 1:
        raise ValueError(f"sw_batch_size: expected a whole number >= 1; got {sw_batch_size!r}")
    sizes = roi_size.tolist() if hasattr(roi_size, "tolist") else roi_size
    each = list(sizes) if isinstance(sizes, (list, tuple, range)) else [sizes]
    if not each or any(isinstance(size, bool) or not isinstance(size, Integral | None) for size in each):
        raise TypeError(f"roi_size: expected a whole number, or one per spatial axis; got {roi_size!r}")


def _frozen(network: Callable[..., Any]) -> bool:
    """Whether a graph of the network would lead to nothing but the image."""
    return isinstance(network, nn.Module) and not any(parameter.requires_grad for parameter in network.parameters())


def _refuse_gradients(values: dict[Any, Any]) -> None:
    """Arguments of the network are constants to the second pass."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: an argument of the network that requires a gradient would not get it; detach it")
