# SPDX-License-Identifier: Apache-2.0
"""`GradientSlidingWindowInferer`: whole-volume prediction by windows, differentiable in the memory of a few of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import (
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
    sliding_window_inference,
)
from monai.utils import (
    PytorchPadMode,
    convert_to_dst_type,
    ensure_tuple_rep,
    fall_back_tuple,
    look_up_option,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

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
        super().__init__(roi_size, sw_batch_size, *args, **kwargs)
        if roi_weight_map is not None:
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
        image = _plain(inputs)
        shape = image.shape[2:]
        window = fall_back_tuple(self._window(len(shape)), shape)
        padding = [max(size - have, 0) for size, have in zip(window, shape, strict=True)]
        pads = [part for total in reversed(padding) for part in (total // 2, total - total // 2)]

        def padded(value: torch.Tensor) -> torch.Tensor:
            mode = look_up_option(self.padding_mode, PytorchPadMode)
            return F.pad(value, pads, mode=mode, value=self.cval) if any(pads) else value

        kwargs = dict(kwargs)
        condition = kwargs.pop("condition", None)
        if condition is not None and condition.shape != inputs.shape:
            raise ValueError(f"condition: expected the shape of inputs, {tuple(image.shape)}; got {condition.shape}")
        device = kwargs.pop("device", self.device)
        if device is None and self.cpu_thresh is not None and shape.numel() > self.cpu_thresh:
            device = "cpu"
        buffer_steps = kwargs.pop("buffer_steps", self.buffer_steps)
        _refuse_gradients({"condition": condition, **dict(enumerate(args)), **kwargs})
        blend = partial(
            sliding_window_inference,
            roi_size=window,
            sw_batch_size=self.sw_batch_size,
            overlap=self.overlap,
            mode=self.mode,
            sigma_scale=self.sigma_scale,
            sw_device=self.sw_device,
            device=device,
            roi_weight_map=self.roi_weight_map,
            buffer_steps=buffer_steps,
            buffer_dim=kwargs.pop("buffer_dim", self.buffer_dim),
        )
        count = self._count(image)
        sweep = Sweep(
            Predictor(
                network,
                args,
                kwargs,
                None if condition is None else padded(_plain(condition)),
                self.with_coord,
                self.process_fn,
                self._flat,
            ),
            blend,
            batch=self.sw_batch_size,
            buffered=buffer_steps is not None and buffer_steps > 0,
            device=torch.device(self.sw_device or image.device),
            total=count if self.progress else None,
        )
        mask = None if self.mask is None else self._reach(image, padded)
        twin = None if other is None else padded(_plain(other).detach())
        parameters = self._parameters(network)
        given = padded(image)
        if count <= self.sw_batch_size and twin is None and (self.parameters or _frozen(network)):
            outputs = sweep.predict(given if mask is None else torch.where(mask, given, given.detach()))
        else:
            outputs = Windows.apply(sweep, mask, twin, given, *parameters)  # type: ignore[no-untyped-call]
        if any(pads):
            outputs = [_cropped(output, window, pads, shape) for output in outputs]
        half = len(outputs) if other is None else len(outputs) // 2
        found = []
        for part in (outputs[:half], outputs[half:]) if other is not None else (outputs,):
            prediction = sweep.restore(part)
            if isinstance(inputs, MetaTensor):
                like = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
                prediction = convert_to_dst_type(prediction, like, device=device or image.device)[0]
            found.append(prediction)
        return found[0], found[-1]

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

    def _reach(self, image: torch.Tensor, padded: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The mask over space, on the padded grid; padding copies voxels, and so copies of the mask."""
        assert self.mask is not None
        mask = self.mask.to(image.device)
        if mask.ndim != image.ndim:
            raise ValueError(f"mask: expected {image.ndim} axes, as inputs have; got {tuple(mask.shape)}")
        mask = mask.expand(len(mask), -1, *image.shape[2:]).any(1, keepdim=True)
        return padded(mask.to(image.dtype)) > 0

    def _parameters(self, network: Callable[..., Any]) -> list[nn.Parameter]:
        if not self.parameters:
            return []
        if not isinstance(network, nn.Module) or isinstance(network, DistributedDataParallel):
            raise TypeError(
                "network: parameters=True needs the nn.Module itself, so that its gradients arrive; got "
                f"{type(network).__name__}"
            )
        return [parameter for parameter in network.parameters() if parameter.requires_grad]


class GradientSliceInferer(GradientSlidingWindowInferer):
    """MONAI's `SliceInferer`, a 2-D network on the slices of a volume, with an exact gradient at constant memory.

    Args:
        spatial_dim: axis that the slices are stacked along: 0, 1 or 2.
        roi_size: window inside a slice, two sizes.
        args, kwargs: as in `GradientSlidingWindowInferer`; not ``with_coord``.

    Example:
        >>> volume = torch.rand(1, 1, 24, 20, 4)
        >>> inferer = GradientSliceInferer(spatial_dim=2, roi_size=(16, 16), sw_batch_size=2)
        >>> inferer(volume, torch.nn.Conv2d(1, 3, 3, padding=1)).shape
        torch.Size([1, 3, 24, 20, 4])
    """

    def __init__(self, spatial_dim: int = 0, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if spatial_dim not in (0, 1, 2):
            raise ValueError(f"spatial_dim: expected 0, 1 or 2; got {spatial_dim!r}")
        if not isinstance(self.roi_size, Sequence) or len(self.roi_size) != 2:
            raise ValueError(f"roi_size: expected two sizes, those of a window in a slice; got {self.roi_size!r}")
        if self.with_coord:
            raise ValueError("with_coord: a network of slices is given no coordinates; expected False")
        self.spatial_dim = self._flat = spatial_dim

    def _window(self, rank: int) -> Any:
        if rank != 3:
            raise ValueError(f"inputs: expected BCHWD, whose slices a 2-D network sees; got {rank} spatial axes")
        window = list(self.roi_size)
        window.insert(self.spatial_dim, 1)
        return window


_SETTINGS = (
    "sw_batch_size",
    "overlap",
    "mode",
    "sigma_scale",
    "padding_mode",
    "cval",
    "sw_device",
    "device",
    "progress",
    "cpu_thresh",
    "buffer_steps",
    "buffer_dim",
    "with_coord",
    "roi_weight_map",
)


def gradient_inferer(inferer: Any, **changes: Any) -> Any:
    """The inferer to attack through: the same windows and blending, with an exact gradient at constant memory.

    Args:
        inferer: a `SlidingWindowInferer`, `SlidingWindowInfererAdapt` or `SliceInferer` is converted. Anything else,
            subclasses of these that override what they do included, is returned as it is: autograd goes through it.
            What `SlidingWindowInfererAdapt` does when a GPU's memory is exhausted does not come along.
        changes: settings to replace, such as ``sw_batch_size=1`` or ``progress=True``.

    Returns:
        A `GradientSlidingWindowInferer` or `GradientSliceInferer`, or `inferer` itself.

    Example:
        >>> from monai.inferers import SimpleInferer
        >>> type(gradient_inferer(SlidingWindowInferer((96, 96, 96), overlap=0.5))).__name__
        'GradientSlidingWindowInferer'
        >>> type(gradient_inferer(SimpleInferer())).__name__
        'SimpleInferer'
    """
    kind = type(inferer)
    if kind not in (SlidingWindowInferer, SlidingWindowInfererAdapt, SliceInferer):
        return inferer
    settings = {**{name: getattr(inferer, name) for name in _SETTINGS}, **changes}
    if kind is SliceInferer:
        return GradientSliceInferer(inferer.spatial_dim, inferer.orig_roi_size, **settings)
    return GradientSlidingWindowInferer(inferer.roi_size, **settings)


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _cropped(output: torch.Tensor, window: Sequence[int], pads: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """An output without what comes from the padding, on its own grid, rounded as MONAI rounds."""
    index = [slice(None), slice(None)]
    for axis, (have, size) in enumerate(zip(shape, window, strict=True)):
        zoom = output.shape[2 + axis] / size
        before = pads[2 * (len(shape) - axis - 1)]
        index.append(slice(round(before * zoom), round((before + have) * zoom)))
    return output[tuple(index)]


def _frozen(network: Callable[..., Any]) -> bool:
    """Whether a graph of the network would lead to nothing but the image."""
    return isinstance(network, nn.Module) and not any(parameter.requires_grad for parameter in network.parameters())


def _refuse_gradients(values: dict[Any, Any]) -> None:
    """Arguments of the network are constants to the second pass."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: an argument of the network that requires a gradient would not get it; detach it")
