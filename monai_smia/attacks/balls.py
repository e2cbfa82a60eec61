# SPDX-License-Identifier: Apache-2.0
"""Lp balls on flat vectors: norm, projection and uniform sampling over the last axis."""

from __future__ import annotations

import math

import torch

NORMS = (math.inf, 2.0, 1.0)


def grouped(image: torch.Tensor, per_channel: bool) -> torch.Tensor:
    """The vectors that norms are taken of: ``(B, C, N)`` where every channel is one, else ``(B, 1, C * N)``."""
    return image.flatten(2) if per_channel else image.flatten(1).unsqueeze(1)


def clamp(value: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    """`torch.clamp` between numbers or tensors."""
    return torch.clamp(value, low, high)  # type: ignore[arg-type]  # torch types no mix of both


def norm_of(vector: torch.Tensor, norm: float) -> torch.Tensor:
    """Lp norm over the last axis, kept as an axis of length 1."""
    return torch.linalg.vector_norm(vector, ord=norm, dim=-1, keepdim=True)


def faint_norm_of(vector: torch.Tensor, norm: float) -> torch.Tensor:
    """`norm_of`, also where the squares of an L2 norm would vanish: the gradient of a network that is very sure.

    Example:
        >>> faint_norm_of(torch.tensor([3e-30, 4e-30]), 2)
        tensor([5.0000e-30])
    """
    size = norm_of(vector, norm)
    if norm != 2:
        return size
    return torch.where(size > _FAINT, size, norm_of(vector * _LIFT, norm) / _LIFT)


_FAINT, _LIFT = 2.0**-40, 2.0**80  # a power of two: no bit of a vector or its norm changes


def project_ball(vector: torch.Tensor, radius: torch.Tensor | float, norm: float) -> torch.Tensor:
    """Nearest point, in Euclidean distance, of the Lp ball around zero.

    Args:
        vector: any shape; the last axis is the vector.
        radius: a number, or a tensor that broadcasts against `vector`; same unit as `vector`, not negative.
        norm: ``inf``, 2 or 1.

    Example:
        >>> project_ball(torch.tensor([3.0, 4.0]), 1.0, 2)
        tensor([0.6000, 0.8000])
        >>> project_ball(torch.tensor([3.0, 4.0]), 1.0, 1)
        tensor([0., 1.])
    """
    if norm == math.inf:
        return clamp(vector, -radius, radius)
    size = norm_of(vector, norm)
    if norm == 2:
        return vector * torch.clamp(radius / size.clamp_min(torch.finfo(vector.dtype).tiny), max=1.0)
    # L1: soft threshold, whose level is found on the sorted magnitudes (Duchi et al., ICML 2008)
    magnitudes, _ = vector.abs().sort(dim=-1, descending=True)
    excess = magnitudes.cumsum(-1) - radius
    counts = torch.arange(1, vector.shape[-1] + 1, device=vector.device, dtype=vector.dtype)
    active = (magnitudes * counts > excess).sum(-1, keepdim=True).clamp_min(1)
    level = (excess.gather(-1, active - 1) / active).clamp_min(0)
    shrunk = torch.sign(vector) * (vector.abs() - level).clamp_min(0)
    return torch.where(size <= radius, vector, shrunk)


def project_ball_in_box(
    vector: torch.Tensor, radius: torch.Tensor | float, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    r"""Nearest point, in Euclidean distance, of the L1 ball around zero and a box around zero together.

    .. math:: d_i = \operatorname{clip}\big(\operatorname{sign}(v_i) \max(|v_i| - \lambda, 0),\; l_i,\; h_i\big)

    with the least :math:`\lambda \ge 0` for which :math:`\|d\|_1 \le r`, by bisection. To the ball first and the box
    then would leave a part of the radius unused.

    Args:
        vector: any shape; the last axis is the vector.
        radius: as for `project_ball`.
        low, high: the box, broadcast against `vector`; not above and not below 0.

    Example:
        >>> project_ball_in_box(torch.tensor([3.0, 2.0]), 1.5, torch.tensor(-1.0), torch.tensor(1.0))
        tensor([1.0000, 0.5000])
    """
    sign, magnitude = vector.sign(), vector.abs()
    room = torch.where(sign > 0, high, -low).clamp_min(0)

    def size(level: torch.Tensor) -> torch.Tensor:
        return torch.minimum((magnitude - level).clamp_min(0), room)

    below = torch.zeros_like(vector[..., :1])
    above = torch.where(size(below).sum(-1, keepdim=True) > radius, magnitude.amax(-1, keepdim=True), below)
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        over = size(middle).sum(-1, keepdim=True) > radius
        below, above = torch.where(over, middle, below), torch.where(over, above, middle)
    return sign * size(above)


_HALVINGS = 53  # of the bracket around a threshold: the bits of double precision


def sample_ball(
    like: torch.Tensor,
    radius: torch.Tensor | float,
    norm: float,
    generator: torch.Generator,
    where: torch.Tensor | None = None,
) -> torch.Tensor:
    """A point drawn uniformly from the Lp ball of the coordinates chosen by `where`; the others are zero.

    Args:
        like: shape, dtype and device of the result; the last axis is the vector.
        radius: as for `project_ball`.
        norm: ``inf``, 2 or 1.
        generator: drawn on its own device: one on the CPU gives the same numbers for an image on a GPU.
        where: boolean, broadcasts against `like`.
    """

    def uniform(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)

    if norm == math.inf:
        # one rounding, as torch's own uniform_ has, so that the bits are those of the peers that call it
        width = torch.as_tensor(radius, dtype=like.dtype, device=like.device)
        noise = torch.addcmul(-width, uniform(like.shape), 2 * width)
        return noise if where is None else noise * where
    if norm == 2:
        noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)
    else:  # the L1 sphere: exponential magnitudes with random signs
        tiny = torch.finfo(like.dtype).tiny
        noise = -uniform(like.shape).clamp_min(tiny).log() * (uniform(like.shape) - 0.5).sign()
    count: torch.Tensor | int = like.shape[-1]
    if where is not None:
        where = where.expand_as(like)
        noise, count = noise * where, where.sum(-1, keepdim=True).clamp_min(1)
    direction = noise / norm_of(noise, norm).clamp_min(torch.finfo(like.dtype).tiny)
    return direction * radius * uniform((*like.shape[:-1], 1)) ** (1 / count)
