# SPDX-License-Identifier: Apache-2.0
"""`certify`: randomized smoothing of any classifier or segmentation network, 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm

from monai_smia.attacks.checks import as_count, as_numbers, check_image, one_of
from monai_smia.attacks.freezing import frozen, unwrap
from monai_smia.attacks.heads import (
    ACTIVATIONS,
    LossFunction,
    infer_activation,
    is_binary,
    is_regression,
    main_output,
    takes_floats,
)
from monai_smia.attacks.query import Query
from monai_smia.certificates.binomial import binomial_tail, lower_confidence_bound, require_scipy
from monai_smia.certificates.certificate import ABSTAIN, Certificate
from monai_smia.certificates.family import CORRECTIONS, TooFewSamples, least_samples, reject
from monai_smia.certificates.votes import NoisyDecisions, guess_of, votes_for
from monai_smia.intensity import IntensityScale
from monai_smia.metrics.reduced import plain


def certify(
    network: Callable[..., Any],
    image: torch.Tensor,
    loss_function: LossFunction | None = None,
    *,
    sigma: float,
    samples: int = 1000,
    first_samples: int = 100,
    alpha: float = 0.001,
    activation: str = "auto",
    tau: float = 0.75,
    correction: str = "holm",
    batch_size: int = 8,
    inferer: Any = None,
    generator: torch.Generator | None = None,
    intensity: IntensityScale | None = None,
    progress: bool = True,
) -> Certificate:
    r"""Certify what the network decides under Gaussian noise, in an L2 radius, with confidence 1 - alpha an image.

    The most frequent decision of `first_samples` noisy copies is the guess; `samples` fresh ones, at which it comes
    :math:`n_A` times of n, test it. A classifier (prediction ``BK``) is certified where the Clopper-Pearson bound
    :math:`\underline{p}` of its probability is above 1/2, and its radius is as large as that allows; of a segmentation
    (``BKHW[D]``) each voxel is tested against one tau, for one radius:

    .. math:: R = \sigma\, \Phi^{-1}(\underline{p}) \quad \text{or} \quad R = \sigma\, \Phi^{-1}(\tau)
              \text{ where } H_0: p_v \le \tau \text{ is rejected by } P[\mathrm{Bin}(n, \tau) \ge n_A].

    What cannot be certified is `ABSTAIN`. The voxels of an image are one family of tests, so that all its certified
    voxels hold together. The noise is not clipped to the intensity range: the theory needs it Gaussian. So a network
    that was not trained under such noise may be certified little; the certificate is for the smoothed network, which
    decides by the majority under noise, and not for the network itself.

    Args:
        network: image to prediction. An `nn.Module` is frozen for the call and restored exactly, as attacks do.
        image: ``BCHW[D]``, floating, in the network's input units.
        loss_function: what the network was trained with; tells a sigmoid from a softmax head where `activation` is
            ``"auto"``. ``None`` takes one channel for sigmoid and more for softmax.
        sigma: standard deviation of the noise, in the network's input units, above 0.
        samples, first_samples: noisy copies, each a forward pass, for the test and for the guess.
        alpha: chance, in (0, 1), that anything certified of an image is wrong.
        activation: ``"softmax"``, ``"sigmoid"`` (each channel is a decision), ``"none"`` (probabilities; of several
            channels the largest is the class, unless `loss_function` is torch's `BCELoss`) or ``"auto"``.
        tau: of a segmentation: probability in [1/2, 1) that certified voxels exceed. A larger one gives a wider radius
            and more abstentions.
        correction: ``"holm"``, ``"bonferroni"``, or ``"none"`` for confidence by voxel and not by image. The channels
            of a sigmoid classifier share alpha equally unless it is ``"none"``.
        batch_size: noisy copies at a time: memory and speed. The noise does not depend on it, nor the memory on the
            number of samples.
        inferer: a MONAI inferer, ``inferer(inputs, network)``; ``None`` calls the network.
        generator: source of the noise, one image after the other; ``None`` is a fixed seed. The global random state is
            never used.
        intensity: gives the radius in its physical unit too.
        progress: show a bar over noisy copies.

    Returns:
        The certified decisions and their radius, see `Certificate`.

    Raises:
        TypeError, ValueError: naming the argument.
        TooFewSamples: a `ValueError`, when `samples` are so few that not even agreement of them all could certify
            anything; said after one noiseless prediction.
        OptionalImportError: without scipy (extra ``certificates``), before the network is used.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> _ = network[1].weight.data.copy_(torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0]]))
        >>> image = torch.zeros(2, 1, 2, 2)
        >>> image[0, 0, 0, 0] = 0.5
        >>> certificate = certify(network, image, sigma=0.5, samples=10_000, batch_size=1000, progress=False)
        >>> certificate.prediction.tolist(), bool(0.45 < certificate.radius[0] < 0.5)  # 0.5 is the true one
        ([1, -1], True)

    Reference:
        Cohen, Rosenfeld and Kolter, Certified Adversarial Robustness via Randomized Smoothing, 2019
        (https://arxiv.org/abs/1902.02918), algorithm CERTIFY; Fischer, Baader and Vechev, Scalable Certified
        Segmentation via Randomized Smoothing, 2021 (https://arxiv.org/abs/2107.00228), algorithm SegCertify.

    Deviations:
        Volumes and sigmoid heads, each channel of which is a problem of two classes. As in the papers' code, noise and
        network are in floating point, which the proof idealises (Voracek and Hein, 2022,
        https://arxiv.org/abs/2207.07209).
    """
    check_image(image)
    require_scipy()
    if not isinstance(as_numbers("sigma", sigma), float) or not sigma > 0:
        raise ValueError(f"sigma: expected a number above 0, in network units; got {sigma!r}")
    for name, value in (("samples", samples), ("first_samples", first_samples), ("batch_size", batch_size)):
        as_count(name, value)
    if not isinstance(as_numbers("alpha", alpha), float) or not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a number in (0, 1); got {alpha!r}")
    if not isinstance(as_numbers("tau", tau), float) or not 0.5 <= tau < 1:
        raise ValueError(f"tau: expected a number in [0.5, 1); got {tau!r}")
    one_of("correction", correction, CORRECTIONS)
    one_of("activation", activation, ("auto", *ACTIVATIONS))
    if loss_function is not None and is_regression(loss_function):
        raise ValueError(f"loss_function: expected one over classes; got {loss_function!r}")
    work = plain(image).detach()
    work = work if work.dtype in (torch.float32, torch.float64) else work.float()
    if generator is None:
        generator = torch.Generator(work.device).manual_seed(0)
    query = Query(unwrap(network), inferer, None, image.dtype, lambda prediction: None)

    def predict(noisy: torch.Tensor) -> torch.Tensor:
        return main_output(query.judge(noisy))

    total = len(work) * (first_samples + samples)
    bar = tqdm(total=total, desc="certify", unit="pass", leave=None, disable=not progress)
    with torch.inference_mode(False), frozen(unwrap(network)), torch.no_grad(), bar:
        first = predict(work[:1])
        activation = _activation(first, loss_function, activation)
        classes, voxelwise = first.shape[1], first.ndim > 2
        several = activation == "none" and loss_function is not None and takes_floats(loss_function)
        binary = is_binary(activation, classes, several)
        family = 1 if correction == "none" else (first[0] if binary else first[0, 0]).numel()
        del first
        _enough(samples, alpha, tau if voxelwise else 0.5, family)
        noisy = NoisyDecisions(predict, float(sigma), activation, several, batch_size, generator, bar.update)
        guesses: list[torch.Tensor] = []
        votes: list[torch.Tensor] = []
        for one in torch.split(work, 1):
            guess = guess_of(noisy, one, first_samples, classes)
            guesses.append(guess)
            votes.append(votes_for(noisy, one, guess, samples))
        settings: dict[str, Any] = {
            "classes": classes,
            "size": work[0].numel(),
            "sigma": float(sigma),
            "samples": samples,
            "first_samples": first_samples,
            "alpha": alpha,
            "correction": correction,
            "binary": binary,
            "intensity": intensity,
        }
        guess, count = torch.stack(guesses), torch.stack(votes)
        if voxelwise:
            return _of_voxels(guess, count, tau, settings)
        return _of_images(guess, count, settings)


def _activation(output: torch.Tensor, loss_function: LossFunction | None, activation: str) -> str:
    """The activation between the prediction and a probability."""
    if output.ndim < 2:
        raise ValueError(f"network: expected a prediction BK or BKHW[D]; got {tuple(output.shape)}")
    if activation != "auto":
        return activation
    if loss_function is not None:
        return infer_activation(loss_function, output.shape[1])
    return "sigmoid" if output.shape[1] == 1 else "softmax"


def _enough(samples: int, alpha: float, probability: float, tests: int) -> None:
    """Refuse a run that could only abstain."""
    least = least_samples(probability, alpha / tests)
    if samples < least:
        raise TooFewSamples(
            f"samples: expected at least {least}, or nothing can be certified at alpha {alpha:g} over {tests} "
            f"decision{'s' if tests > 1 else ''} an image; got {samples}"
        )


def _of_images(guess: torch.Tensor, votes: torch.Tensor, settings: dict[str, Any]) -> Certificate:
    """Cohen et al.: a radius for each decision."""
    share = 1 if settings["correction"] == "none" or guess.ndim == 1 else guess.shape[1]
    p_lower = lower_confidence_bound(votes, settings["samples"], settings["alpha"] / share)
    certified = p_lower > 0.5
    radius = settings["sigma"] * torch.special.ndtri(p_lower.clamp_min(0.5))
    return Certificate(guess.masked_fill(~certified, ABSTAIN), guess, votes, radius, p_lower, **settings)


def _of_voxels(guess: torch.Tensor, votes: torch.Tensor, tau: float, settings: dict[str, Any]) -> Certificate:
    """Fischer et al.: one radius, and a family of tests for each image."""
    p_values = binomial_tail(settings["samples"], tau)
    certified = torch.stack([reject(own, p_values, settings["alpha"], settings["correction"]) for own in votes])
    phi = torch.special.ndtri(torch.tensor(tau, dtype=torch.float64)).item()
    radius = torch.full((len(guess),), settings["sigma"] * phi, dtype=torch.float64, device=guess.device)
    return Certificate(guess.masked_fill(~certified, ABSTAIN), guess, votes, radius, None, tau=tau, **settings)
