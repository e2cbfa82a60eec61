# SPDX-License-Identifier: Apache-2.0
"""Universal perturbations: one for all images, stored and applied; `UAP` fits them."""

from __future__ import annotations

import os
import tempfile
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type

from monai_smia.attacks import checks
from monai_smia.attacks.attack import Attack
from monai_smia.attacks.hunt import Hunt
from monai_smia.attacks.threat_models import LpBall


@dataclass(frozen=True, eq=False)
class UniversalPerturbation:
    """One perturbation for all images.

    Args:
        delta: ``CHW[D]``, in the network's input units.
        eps: budget it was fitted in, a number or one per channel.
        norm: norm of the budget: ``inf``, 2 or 1.
        bounds: ``(low, high)`` intensity range of the images, numbers or one per channel; ``None`` for unbounded.
        epochs: passes over the data that it was fitted in.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> perturbation = UniversalPerturbation(torch.tensor([[0.1, -0.1]]), eps=0.1, bounds=(0.0, 1.0))
        >>> perturbation(torch.tensor([[0.5, 0.0]]))
        tensor([[0.6000, 0.0000]])
    """

    delta: torch.Tensor
    _: KW_ONLY
    eps: Any
    norm: float | str = float("inf")
    bounds: Any = None
    epochs: int = 0

    def __post_init__(self) -> None:
        delta = self.delta
        if not isinstance(delta, torch.Tensor) or not delta.is_floating_point():
            raise TypeError(f"delta: expected a floating tensor CHW[D]; got {getattr(delta, 'dtype', type(delta))}")
        if delta.ndim < 2 or not bool(delta.isfinite().all()):
            raise ValueError(f"delta: expected finite values of shape CHW[D]; got {tuple(delta.shape)}")
        for name, value in (
            ("delta", as_plain(delta).detach().clone()),
            ("eps", checks.as_numbers("eps", self.eps, low=0.0)),
            ("norm", checks.as_norm(self.norm)),
            ("bounds", checks.as_bounds(self.bounds)),
            ("epochs", checks.as_count("epochs", self.epochs, low=0)),
        ):
            object.__setattr__(self, name, value)

    def __call__(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The image with the perturbation, clipped to the bounds; it is not changed.

        Args:
            image: ``CHW[D]`` or a batch ``BCHW[D]``, floating, in the network's input units.
            mask: where the image may change, broadcasts against it, zeros and ones; ``None`` for everywhere.

        Returns:
            Same type, shape, dtype and device as `image`.

        Raises:
            ValueError: when the shape is not that of the perturbation, or the image leaves the bounds.
        """
        self.check_shape(image)
        batch = image if image.ndim > self.delta.ndim else image[None]
        work = as_plain(batch)
        work = work if work.dtype == torch.float64 else work.float()
        allowed = mask if mask is None or mask.ndim == batch.ndim else mask[None]
        ball = LpBall(
            eps=checks.spread("eps", self.eps, work, samples=False),
            bounds=checks.fit_bounds(self.bounds, work),
            mask=None if allowed is None else checks.check_mask(as_plain(allowed), work),
        )
        changed = _perturbed(ball, work, self.delta.to(work)[None]).to(image.dtype)
        changed = changed if image.ndim > self.delta.ndim else changed[0]
        return convert_to_dst_type(changed, image)[0] if isinstance(image, MetaTensor) else changed

    def check_shape(self, image: torch.Tensor) -> None:
        """Refuse an image, or a batch, of another shape."""
        shape = tuple(self.delta.shape)
        if tuple(image.shape[-len(shape) :]) != shape or image.ndim > len(shape) + 1:
            raise ValueError(f"image: the perturbation fits images of shape {shape}; got {tuple(image.shape)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it with `torch.save`: one dictionary of a tensor and numbers.

        Args:
            path: file; an existing one is replaced at once, so that an interrupt leaves the old or the new one.
        """
        values = {"delta": self.delta.cpu(), "eps": self.eps, "norm": self.norm, "bounds": self.bounds}
        folder, name = os.path.split(os.path.abspath(path))
        handle, part = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")  # a name that nobody has
        try:
            with os.fdopen(handle, "wb") as stream:
                torch.save({**values, "epochs": self.epochs}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o666 & ~mask)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> UniversalPerturbation:
        """Read what `save` wrote, to the CPU; no code of the file is run.

        Args:
            path: file.

        Raises:
            ValueError: when the file holds something else.
        """
        values = torch.load(path, map_location="cpu", weights_only=True)
        names = {"delta", "eps", "norm", "bounds", "epochs"}
        if not isinstance(values, dict) or set(values) != names:
            found = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"path: expected a file with {sorted(names)}; {os.fspath(path)} holds {found}")
        return cls(values.pop("delta"), **values)

    def __repr__(self) -> str:
        size = float(self.delta.abs().max()) if self.delta.numel() else 0.0
        return (
            f"UniversalPerturbation(shape={tuple(self.delta.shape)}, max={size:.4g}, eps={self.eps}, norm={self.norm}, "
            f"bounds={self.bounds}, epochs={self.epochs})"
        )


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class UniversalAttack(Attack):
    r"""A fitted perturbation as an attack: :math:`x' = \Pi(x + \delta)`, without any gradient.

    It can be evaluated wherever an attack can, beside attacks that are made for each image.

    Args:
        perturbation: what `UAP.fit` gave.
        eps, norm, bounds: ``None`` takes the perturbation's own; a smaller budget projects it.

    Raises:
        ValueError: at the call, when the images have another shape than the perturbation.

    Example:
        >>> import torch
        >>> perturbation = UniversalPerturbation(torch.tensor([[-0.2, 0.2]]), eps=0.2)
        >>> attack = UniversalAttack(torch.nn.CrossEntropyLoss(), perturbation=perturbation)
        >>> weights = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        >>> result = attack(lambda x: x.flatten(1) @ weights.T, torch.tensor([[[0.6, 0.4]]]), torch.tensor([0]))
        >>> result.adversarial, bool(result.success)
        (tensor([[[0.4000, 0.6000]]]), True)

    Reference: see `UAP`.
    """

    perturbation: UniversalPerturbation
    eps: Any = None
    norm: Any = None
    bounds: Any = None

    def __post_init__(self) -> None:
        own = self.perturbation
        if not isinstance(own, UniversalPerturbation):
            raise TypeError(f"perturbation: expected a UniversalPerturbation; got {type(own).__name__}")
        for name in ("eps", "norm", "bounds"):
            if getattr(self, name) is None:
                self._set(**{name: getattr(own, name)})
        super().__post_init__()

    @property
    def is_random(self) -> bool:
        return False

    def search(self, hunt: Hunt) -> tuple[torch.Tensor, torch.Tensor]:
        image = hunt.setting.image
        self.perturbation.check_shape(image)
        adversarial = _perturbed(hunt.setting.threat, image, self.perturbation.delta.to(image)[None])
        return adversarial, torch.zeros(len(image), dtype=torch.long, device=image.device)


def _perturbed(ball: LpBall, image: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return ball.project(image, image + delta)


def as_plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without metadata."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
