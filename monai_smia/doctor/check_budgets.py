# SPDX-License-Identifier: Apache-2.0
"""Checks of the budget: more of it must help, all of it must suffice, and none may be overdrawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from monai_smia.attacks import VAFA, BiasField
from monai_smia.attacks.balls import grouped, norm_of
from monai_smia.doctor.examination import STEPS, Examination
from monai_smia.reports.finding import Finding

FACTORS = (0.5, 1.0, 2.0, 4.0)
DECLINE = 0.75  # a larger ball holds the smaller one; an attack's own unevenness is a tenth
FLAT = 1.2  # eight times the budget must gain more than this; a linear network gains eight times as much
ROOM = 4.0  # of the eight times, what the intensity bounds must leave for the rule to be applied
OVERDRAWN = 1e-4  # of the radius: rounding of a projection in single precision is 1e-6 of it
HALF = 1e-2  # the same for an image in half precision, whose own digits are coarse


def not_falling_with_eps(exam: Examination) -> Finding | None:
    """Budgets of half to four times eps: gains must rise, as long as the attack fails."""
    if exam.slope is None or not exam.resisted or not exam.many(_losing_ground(exam)):
        return None
    ladder = [exam.iterated(factor) for factor in FACTORS]
    gains = [exam.gain(outcome) for outcome in ladder]
    odd = torch.zeros_like(ladder[0].success)
    for smaller, larger, outcome in zip(gains, gains[1:], ladder[1:], strict=False):
        odd |= ~outcome.success & (smaller > exam.floor) & (larger < DECLINE * smaller)
    rises = _room(exam, FACTORS[-1]) >= ROOM * _room(exam, FACTORS[0])
    odd |= ~ladder[-1].success & rises & (gains[-1] > exam.floor) & (gains[-1] < FLAT * gains[0])
    if not exam.many(odd):
        return None
    return Finding(
        "not_falling_with_eps",
        f"At {exam.count(odd)} a BIM with a larger budget (0.5 to 4 times eps) comes no further, and fails.",
        "A larger budget allows all that a smaller one does, so robustness must fall with it.",
        "The attack loses its way: look for gradients that are masked, and for steps that are too large or too small.",
        "warning",
    )


def unbounded_fails(exam: Examination) -> Finding | None:
    """A budget that reaches every image, one of which is known to succeed, and an attack that does not find any."""
    if exam.slope is None or not exam.resisted:
        return None
    failed = ~torch.stack([outcome.success for outcome in (exam.white, *exam.walk)]).any(0)
    if not exam.many(failed):
        return None
    failed &= ~exam.iterated(math.inf).success
    if not exam.many(failed):
        return None
    known = torch.zeros_like(failed)
    for image in _witnesses(exam):
        known |= exam.judge(image).success
    failed &= known
    if exam.many(failed):  # once more, slower, before anything is said
        failed &= ~exam.iterated(math.inf, 2 * STEPS).success
    if not exam.many(failed):
        return None
    return Finding(
        "unbounded_fails",
        f"With a budget that allows any image a BIM still fails at {exam.count(failed)}, for which a plain other "
        "image succeeds.",
        "Without a budget every attack must bring the network to chance; this one fails because of its gradients, not "
        "because of eps.",
        "Do not report robustness from gradient attacks on this network; find out where its gradient is lost.",
        "error",
    )


def budget(exam: Examination) -> Finding | None:
    """The images of the attack in question lie in the ball, the bounds and the mask."""
    attack, result = exam.attack, exam.result
    if attack is None or result is None:
        return None
    image, adversarial = exam.image, result.to(exam.image.dtype)
    slack = HALF if result.dtype.itemsize < 4 else OVERDRAWN
    rounding = slack * float(image.abs().max()) * 0.1  # of the intensities themselves
    faults = []
    if not isinstance(attack, (BiasField, VAFA)):  # whose eps is no radius of the image
        change = grouped(adversarial - image, exam.threat.per_channel)
        eps = torch.as_tensor(exam.threat.eps, dtype=change.dtype, device=change.device)
        radius = eps.flatten(2) if eps.ndim > 2 else eps
        count = 1.0 if math.isinf(exam.norm) else change.shape[-1] ** (1 / exam.norm)
        size = norm_of(change, exam.norm)
        if bool((size > radius * (1 + slack) + rounding * count).any()):
            faults.append(f"changes reach {float((size / radius.clamp_min(1e-12)).max()):.3g} times eps")
    if exam.threat.bounds is not None:
        low, high = exam.ends
        if bool(((adversarial < low - rounding) | (adversarial > high + rounding)).any()):
            faults.append(f"intensities run from {float(adversarial.min()):.4g} to {float(adversarial.max()):.4g}")
    if exam.threat.mask is not None and bool(((adversarial != image) & ~exam.threat.mask).any()):
        faults.append("voxels outside the mask change")
    if not bool(adversarial.isfinite().all()):
        faults.append("some intensities are not finite")
    if not faults:
        return None
    return Finding(
        "budget",
        f"The attack leaves what it is allowed: {'; '.join(faults)}.",
        "Its number belongs to another threat model than the one that is reported.",
        "Project every iterate to the ball, then to the bounds, and judge the image that is returned.",
        "error",
    )


def _losing_ground(exam: Examination) -> torch.Tensor:
    """Where a longer stride of the walk lost, without success, what a shorter one had won, ``(B,)`` bool."""
    succeeded, best = exam.clean.success, torch.zeros_like(exam.clean.score)
    odd = torch.zeros_like(succeeded)
    for outcome in exam.walk[1:]:
        gain, succeeded = exam.gain(outcome), succeeded | outcome.success
        odd |= ~succeeded & (best > exam.floor) & (gain < DECLINE * best)
        best = torch.maximum(best, gain)
    first = exam.gain(exam.one_step)
    return odd | (~succeeded & (best > exam.floor) & (best < FLAT * first))


def _room(exam: Examination, factor: float) -> torch.Tensor:
    """Mean distance that a voxel can go, ``(B,)``; what the bounds leave of the budget."""
    if exam.threat.bounds is None or not math.isinf(exam.norm):
        return torch.full_like(exam.clean.score, factor)
    eps = torch.as_tensor(exam.threat.eps * factor).to(exam.image)
    low, high = exam.ends
    far = torch.maximum(exam.image - low, high - exam.image)
    return torch.minimum(far, eps.expand_as(far)).flatten(1).mean(1).to(exam.clean.score)


def _witnesses(exam: Examination) -> Iterator[torch.Tensor]:
    """Images that no attack made, inside the bounds and equal to the image outside the mask."""
    low, high = exam.ends
    draw = torch.rand(exam.image.shape, generator=exam.generator).to(exam.image)
    lowest, highest = low.expand_as(exam.image), high.expand_as(exam.image)
    for other in (exam.image.roll(1, 0), lowest, highest, low + (high - low) * draw):
        yield exam.image + exam.threat.restrict(other - exam.image)
