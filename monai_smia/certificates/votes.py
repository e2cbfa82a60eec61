# SPDX-License-Identifier: Apache-2.0
"""What a network decides under Gaussian noise, counted at the memory of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from monai_smia.attacks.heads import decisions

Predict = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class NoisyDecisions:
    """The decisions at ``image + noise``, batch by batch.

    The noise of every sample is drawn by itself: `batch_size` changes the memory, and no decision. It is not clipped to
    the intensity range, as the theory needs it Gaussian.

    Args:
        predict: noisy images ``BCHW[D]`` to the head's output ``BK[HWD]``.
        sigma: standard deviation of the noise, in the network's input units.
        activation: ``"softmax"``, ``"sigmoid"`` or ``"none"``.
        multilabel: whether each of several channels of probabilities is a decision.
        batch_size: noisy images at a time.
        generator: source of the noise.
        watch: called with the number of images after each batch.
    """

    predict: Predict
    sigma: float
    activation: str
    multilabel: bool
    batch_size: int
    generator: torch.Generator
    watch: Callable[[int], object]

    def __call__(self, image: torch.Tensor, samples: int) -> Iterator[torch.Tensor]:
        """Decisions at `samples` noisy copies of one image ``(1, C, *spatial)``.

        Yields:
            Classes ``(b, *spatial)``, or booleans ``(b, K, *spatial)`` of a binary head.

        Raises:
            ValueError: when a prediction holds NaN, of which nothing is decided, or is not one for each image.
        """
        for start in range(0, samples, self.batch_size):
            size = min(self.batch_size, samples - start)
            output = self.predict(image + self.sigma * torch.cat([self._noise(image) for _ in range(size)]))
            if len(output) != size:
                raise ValueError(f"network: expected {size} predictions for {size} images; got {len(output)}")
            if bool(output.isnan().any()):
                raise ValueError(f"network: expected a prediction without NaN under noise of sigma {self.sigma:g}")
            yield decisions(output, self.activation, self.multilabel)
            self.watch(size)

    def _noise(self, image: torch.Tensor) -> torch.Tensor:
        source = self.generator
        return torch.randn(image.shape, generator=source, dtype=image.dtype, device=source.device).to(image.device)


def guess_of(noisy: NoisyDecisions, image: torch.Tensor, samples: int, classes: int) -> torch.Tensor:
    """The most frequent decision of one image.

    Returns:
        ``(*spatial)`` classes, or ``(K, *spatial)`` of 0 and 1 for a binary head; int32.
    """
    dtype = torch.int16 if samples <= torch.iinfo(torch.int16).max else torch.int32
    counts, binary = torch.zeros((), dtype=dtype, device=image.device), False
    for decided in noisy(image, samples):
        binary = decided.dtype == torch.bool
        if not binary:
            index = torch.arange(classes, device=decided.device).reshape(-1, *[1] * (decided.ndim - 1))
            decided = decided.unsqueeze(1) == index
        counts = counts + decided.sum(0, dtype=dtype)
    guess = counts > samples // 2 if binary else counts.max(0).indices
    return guess.int()


def votes_for(noisy: NoisyDecisions, image: torch.Tensor, guess: torch.Tensor, samples: int) -> torch.Tensor:
    """How many of fresh samples agree with the guess: of the guess's shape, int32."""
    votes = torch.zeros_like(guess)
    for decided in noisy(image, samples):
        votes += (decided == guess).sum(0, dtype=torch.int32)
    return votes
