"""Networks that hide their gradient, each in a way of its own, built around a sound one."""

from __future__ import annotations

import torch
from monai.transforms import ScaleIntensityRange
from torch import nn


class Around(nn.Module):
    """A network between two functions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.after(self.network(self.before(image)))

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def after(self, output: torch.Tensor) -> torch.Tensor:
        return output


class Quantised(Around):
    """Rounds the image to 16 grey levels: the gradient of a rounding is zero."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return (image * 15).round() / 15


class Detached(Around):
    """Leaves the graph, as a preprocessing in NumPy does."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return image.detach()


class Saturated(Around):
    """Raw outputs times 1000, so that the softmax is 0 or 1."""

    def after(self, output: torch.Tensor) -> torch.Tensor:
        return 1000 * output


class Steep(Around):
    """Raw outputs scaled for a lead of 30 at the images given: 1 - p is lost in single precision, but is not zero."""

    def __init__(self, network: nn.Module, image: torch.Tensor) -> None:
        super().__init__(network)
        top = network(image).detach().topk(2, dim=1).values
        self.scale = 30 / float((top[:, 0] - top[:, 1]).min())

    def after(self, output: torch.Tensor) -> torch.Tensor:
        return self.scale * output


class Noisy(Around):
    """Draws noise, also in evaluation mode."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return image + 0.1 * torch.randn_like(image)


class Shattered(Around):
    """Adds a sine of small height and high frequency to every voxel: its gradient drowns the network's."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return image + 1e-3 * torch.sin(3e4 * image)


class Softmaxed(Around):
    """Gives probabilities."""

    def after(self, output: torch.Tensor) -> torch.Tensor:
        return output.softmax(1)


class Reversed(Around):
    """Rounds to 256 levels with a straight-through gradient of the wrong sign."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return ((image * 255).round() / 255 + image).detach() - image


class Lattice(Around):
    """A sine whose gradient is right at the image's grey levels and misleading between them: one step is well led."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return image + 2e-4 * torch.sin(2 * torch.pi * 5000 * image)


class Hard(Around):
    """Clips to [0, 1] with hardtanh, whose gradient at the ends is zero."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.hardtanh(image, 0.0, 1.0)


class Clamped(Around):
    """Clips to [0, 1] with clamp, which passes the gradient at its ends: sound."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return image.clamp(0.0, 1.0)


class Root(Around):
    """A square root, whose gradient at 0 is infinite."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return image.clamp_min(0).sqrt()


class Idle(Around):
    """The right numbers with a gradient of zero."""

    def after(self, output: torch.Tensor) -> torch.Tensor:
        return output.detach() + 0 * output


class Confident(Around):
    """Raw outputs times 10000: loss and gradient of what it is right on are exactly zero."""

    def after(self, output: torch.Tensor) -> torch.Tensor:
        return 1e4 * output


class Resized(Around):
    """Scales the image to a random size and back, also in evaluation mode."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        size = [length - int(torch.randint(1, 4, ())) for length in image.shape[2:]]
        return nn.functional.interpolate(nn.functional.interpolate(image, size), image.shape[2:])


class Compressed(Around):
    """JPEG's heart: the cosine transform of 4 x 4 blocks of the first two spatial axes, rounded to steps of 0.1."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        index = torch.arange(4.0)
        basis = torch.cos(torch.pi / 4 * (index[None] + 0.5) * index[:, None]) * 0.5**0.5
        basis[0] = 0.5
        image = image.movedim((2, 3), (-2, -1))
        *outer, height, width = image.shape
        blocks = image.reshape(*outer, height // 4, 4, width // 4, 4).transpose(-3, -2)
        coefficients = ((basis @ blocks @ basis.T) / 0.1).round() * 0.1
        return (basis.T @ coefficients @ basis).transpose(-3, -2).reshape(image.shape).movedim((-2, -1), (2, 3))


class Windowed(Around):
    """MONAI's intensity window inside the network: [0.1, 0.9] to [0, 1], clipped."""

    def before(self, image: torch.Tensor) -> torch.Tensor:
        return ScaleIntensityRange(0.1, 0.9, 0.0, 1.0, clip=True)(image)


class Sigmoided(Around):
    """Gives probabilities of independent labels."""

    def after(self, output: torch.Tensor) -> torch.Tensor:
        return output.sigmoid()
