# SPDX-License-Identifier: Apache-2.0
"""Checks of the attack's strength: a weaker adversary may not come further on samples that it failed on."""

from __future__ import annotations

import math

import torch

from monai_smia.doctor.examination import DRAWS, QUERIES, STEPS, Examination
from monai_smia.reports.finding import Finding

BEATS = 1.1
"""By this the weaker adversary must gain more. Two runs of one attack on a plain network differ by a few percent."""
NOISE = 0.8
"""Share of the attack's gain. On a locally linear network noise gains |g|_2 / |g|_1 of it, a tenth for 100 voxels."""
SPREAD = 5.0
"""|g|_1 / |g|_2 over which that holds; where a handful of voxels decide, noise finds their signs by chance."""
RISING = 1.25
"""Gain with twice the steps over the gain. Plain networks settle to within a tenth."""
FALLING = 0.75  # the same the other way round

LOOK = "Look for a part of the network with a misleading gradient (rounding, randomness, a rough or reversed one); "


def one_step_beats(exam: Examination) -> Finding | None:
    """FGSM against the iterated attack."""
    if exam.slope is None or not exam.resisted:
        return None
    beaten = exam.outdone(exam.white, exam.one_step, BEATS)
    if not exam.many(beaten):
        return None
    return Finding(
        "one_step_beats",
        f"One step (FGSM) raises the loss more than the iterated attack at {exam.count(beaten)} that it failed on.",
        "More steps can only help where gradients lead uphill: either the attack is set badly or they do not.",
        LOOK + "check the step size; keep the best iterate.",
        "error",
    )


def noise_as_strong(exam: Examination) -> Finding | None:
    """The best of a few draws of noise against the attack."""
    if not exam.resisted:
        return None
    beaten = exam.outdone(exam.white, exam.noise, NOISE)
    if math.isinf(exam.norm) and exam.slope is not None:
        flat = exam.slope.flatten(1).double()
        size = torch.linalg.vector_norm(flat, dim=1)
        beaten &= (flat.abs().sum(1) >= SPREAD * size) | (size == 0) | ~size.isfinite()
    if not exam.many(beaten):
        return None
    return Finding(
        "noise_as_strong",
        f"At {exam.count(beaten)} that the attack failed on, the best of {DRAWS} draws of noise of its size raises the "
        f"loss at least {NOISE:.0%} as much.",
        "The gradient gives the attack no advantage over chance.",
        LOOK + "attack a differentiable stand-in for it, or use Square.",
        "error",
    )


def black_box_beats(exam: Examination) -> Finding | None:
    """Square, which takes no gradient, against the attack."""
    if not exam.resisted:
        return None
    beaten = exam.outdone(exam.white, exam.black_box, BEATS)
    if not exam.many(beaten):
        return None
    return Finding(
        "black_box_beats",
        f"Square with {QUERIES} queries and no gradient raises the loss more than the attack at {exam.count(beaten)} "
        "that it failed on.",
        "An attack that knows the gradient must come further; the gradient is masked.",
        LOOK + "report Square with many queries, or attack a differentiable stand-in.",
        "error",
    )


def transfer_beats(exam: Examination) -> Finding | None:
    """An attack made on the surrogate against the attack made on the network."""
    if not exam.resisted or exam.transferred is None:
        return None
    beaten = exam.outdone(exam.white, exam.transferred, BEATS)
    if not exam.many(beaten):
        return None
    return Finding(
        "transfer_beats",
        f"Images made on the surrogate raise the loss more than the attack on the network itself at "
        f"{exam.count(beaten)} that it failed on.",
        "An attack that knows the network must come further; its gradient is masked.",
        LOOK + "report the transferred attack as well.",
        "error",
    )


def not_converged(exam: Examination) -> Finding | None:
    """Twice the steps against the attack."""
    if exam.slope is None or not exam.resisted or not exam.many(_still_rising(exam)) or exam.longer is None:
        return None
    beaten = exam.outdone(exam.surely, exam.longer, RISING)
    if not exam.many(beaten):
        return None
    gains, base = exam.gain(exam.longer)[beaten].sum(), exam.gain(exam.surely)[beaten].sum()
    more = f"{float(gains / base):.3g} times as far" if base > gains / 1000 else "further, where it came nowhere,"
    steps = STEPS if exam.attack is None else getattr(exam.attack, "steps", STEPS)
    return Finding(
        "not_converged",
        f"With {2 * steps} steps in the place of {steps} the attack comes {more} at {exam.count(beaten)} that it "
        "failed on.",
        "The loss still rises at the last step: the attack stops before it has done what it can.",
        "Take more steps or larger ones until the numbers stand still.",
        "warning",
    )


def worse_with_steps(exam: Examination) -> Finding | None:
    """Twice the steps come less far."""
    if exam.slope is None or not exam.resisted or not exam.many(_turning_down(exam)) or exam.longer is None:
        return None
    gain = exam.gain(exam.surely)
    worse = ~exam.longer.success & (gain > exam.floor) & (exam.gain(exam.longer) < FALLING * gain)
    if not exam.many(worse):
        return None
    return Finding(
        "worse_with_steps",
        f"With twice the steps the attack comes less far at {exam.count(worse)}.",
        "More steps can only help where gradients lead uphill.",
        LOOK + "check the step size; keep the best iterate.",
        "warning",
    )


def _still_rising(exam: Examination) -> torch.Tensor:
    """Where the last steps, or some more after them, still came further, ``(B,)`` bool."""
    path = exam.quick[-2:] if exam.result is None else exam.polished
    before, after = exam.gain(path[0]), exam.gain(path[-1])
    return ~path[0].success & (after > exam.floor) & (after > BEATS * before)


def _turning_down(exam: Examination) -> torch.Tensor:
    """Where a later step lost what an earlier one had won, ``(B,)`` bool."""
    path = exam.quick[1:] if exam.result is None else exam.polished
    gains = torch.stack([exam.gain(outcome) for outcome in path])
    best = gains.amax(0)
    return ~path[-1].success & (best > exam.floor) & (gains[-1] < FALLING * best)
