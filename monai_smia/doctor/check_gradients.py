# SPDX-License-Identifier: Apache-2.0
"""Checks of the gradient itself: whether it is there, finite, large enough, and not cut off by a clip."""

from __future__ import annotations

import math
from typing import Any

import torch

from monai_smia.attacks import BIM, Not
from monai_smia.attacks.criteria import default_criterion
from monai_smia.attacks.heads import main_output
from monai_smia.attacks.loop import finite_only
from monai_smia.attacks.losses import per_sample
from monai_smia.attacks.steps import steepest
from monai_smia.doctor.examination import STEPS, Examination
from monai_smia.doctor.log_odds import decides, log_odds, log_odds_map
from monai_smia.reports.finding import Finding

SATURATED = 1e-5
"""Gradient of the loss over that of the log-odds, at the outputs. For the cross-entropy this is 1 - p; single precision
ends at 6e-8, and near it the true class's share of the gradient is rounded and its direction wrong."""
FLAT_SHARE = 0.9  # of the decisions
FLIPPED = 2e-3  # of the voxels
LEAD = 3.0  # log-odds at which no loss is saturated: 1 - p is 5 %
VANISHING_GAIN = 1.1  # by this the same steps along the log-odds must gain more: a tenth is what two attacks differ by
SHORT = 0.05  # of eps: over this distance a network is as good as linear
PROMISE = 0.2  # of the rise promised must come true; sound networks keep a half and more
ROUNDING = 1e-4  # of the loss: smaller rises are rounding
CLIPPED_SHARE = 0.01  # of the voxels: fewer hardly change what an attack can do
CLIPPED_GAIN = 0.1  # of the attack's own gain: less is within what two plain attacks differ by


def zero_gradient(exam: Examination) -> Finding | None:
    """Samples of which the gradient is zero or absent, and which are not wrong already."""
    slope = exam.slope
    if slope is None:
        seen = "No gradient of the loss reaches the image."
    else:
        zero = (slope.flatten(1) == 0).all(1) & ~exam.clean.success
        if not exam.many(zero):
            return None
        seen = f"The gradient of the loss is exactly zero at {exam.count(zero)}."
    return Finding(
        "zero_gradient",
        seen,
        "An attack that follows gradients stands still there, and reports the clean image's performance as robustness.",
        "Look for rounding, thresholds, arg-max, detach or a saturated softmax between image and loss; attack a "
        "differentiable stand-in for that part, another loss (DLR, Margin), or use Square.",
        "error",
    )


def nonfinite_gradient(exam: Examination) -> Finding | None:
    """Samples of which the gradient, at the image or during the attack, held NaN or infinity."""
    if exam.slope is None:
        return None
    bad = ~exam.slope.flatten(1).isfinite().all(1)
    if exam.resisted:
        assert exam.walk
    for spoilt in exam.spoilt:
        bad |= spoilt
    if exam.made is not None:
        bad |= exam.made.nonfinite_gradients > 0
    if not bool(bad.any()):
        return None
    return Finding(
        "nonfinite_gradient",
        f"Gradients of {exam.count(bad)} held NaN or infinity.",
        "Such a gradient counts as zero: the attack takes no step where it arises.",
        "Look for a square root, a logarithm or a division at zero, or for an overflow in half precision; attack in "
        "single precision (amp=None).",
        "error",
    )


def vanishing_gradient(exam: Examination) -> Finding | None:
    """Samples that the loss has lost in rounding, and on which a loss that is not saturated comes further."""
    if exam.slope is None or not exam.resisted or not decides(exam.loss_function, exam.prediction):
        return None
    flat = _flat_share(exam)
    small = (flat >= FLAT_SHARE) & ~exam.clean.success
    if not exam.many(small):
        return None

    dense = main_output(exam.prediction).ndim > 2
    lead = log_odds_map(exam.loss_function, main_output(exam.prediction), exam.target).abs().flatten().median()
    temperature = max(1.0, float(lead) / LEAD)

    def unsaturated(prediction: Any, target: Any) -> torch.Tensor:
        output = main_output(prediction)
        if not dense:
            return log_odds(exam.loss_function, output, target)
        return per_sample(exam.loss_function, output / temperature, target, len(output))

    arguments = exam.arguments()
    if exam.criterion is None:  # a loss of our own says nothing about the head
        untargeted = default_criterion(exam.loss_function, exam.prediction, False)
        arguments["criterion"] = Not(untargeted) if exam.targeted else untargeted
    along = exam.climb(BIM(unsaturated, steps=STEPS, **arguments))
    if not dense:
        lost = small & exam.outdone(exam.surely, along, VANISHING_GAIN)
        how = "the latter come further"
    else:
        clean, white, other = (
            exam.wrong(images) for images in (exam.image, exam.surely.adversarial, along.adversarial)
        )
        lost = small & ~exam.surely.success & (other - clean > FLIPPED) & (other - clean > 2 * (white - clean))
        how = f"a loss of the outputs over {temperature:.3g} turn more than twice as many voxels"
    if not exam.many(lost):
        return None
    return Finding(
        "vanishing_gradient",
        f"At {exam.count(lost)} the gradient of the loss at the outputs is under {SATURATED:.0e} of the log-odds' "
        f"for at least {float(flat[lost].min()):.0%} of the decisions, and as many steps along {how}.",
        "The loss saturates: in single precision its gradient is rounded away or points in a wrong direction.",
        "Attack with an objective that does not saturate (APGD with DLR, Margin), or divide the raw outputs by a "
        "temperature for the attack.",
        "error",
    )


def clipped_gradient(exam: Examination) -> Finding | None:
    """Voxels that have no gradient, that the attack never moved, and that matter: a clip holds them at its end."""
    slope, image = exam.slope, exam.image
    if slope is None or not math.isinf(exam.norm):
        return None
    allowed = exam.threat.restrict(torch.ones_like(image)) > 0
    stuck = allowed & (slope == 0) & (exam.white.adversarial == image)
    if exam.saturated is not None:
        stuck &= exam.saturated.expand_as(image) != 0
    share = stuck.flatten(1).sum(1) / allowed.flatten(1).sum(1).clamp_min(1)
    whole = share == 1  # no voxel has a gradient: another check's
    if not exam.many((share >= CLIPPED_SHARE) & ~whole & ~exam.white.success):
        return None
    eps, hidden = exam.threat.eps, torch.zeros_like(image)
    for way in (1.0, -1.0):  # which end of the clip it is, is not known
        beside = exam.gradient(exam.threat.project(image, image + way * stuck * eps))
        if beside is not None:
            hidden = torch.where((beside * way > 0) & (beside.abs() > hidden.abs()), beside, hidden)
    moved = exam.judge(exam.threat.project(image, exam.white.adversarial + hidden.sign() * stuck * eps))
    lost = exam.outdone(exam.white, moved, 1 + CLIPPED_GAIN) & (share >= CLIPPED_SHARE) & ~whole
    if not exam.many(lost):
        return None
    return Finding(
        "clipped_gradient",
        f"At {exam.count(lost)} up to {float(share[lost].max()):.0%} of the voxels have no gradient; the attack left "
        "them as they are, though moving them raises the loss.",
        "A clip (clip=True, clamp, hardtanh, ReLU) passes no gradient at its ends: the attack cannot use these voxels, "
        "an adversary can.",
        "Give the attack a random start, attack behind the clip (in the network's input, with `bounds`), or replace "
        "the clip by one that passes gradients.",
        "warning",
    )


def broken_promise(exam: Examination) -> Finding | None:
    """A short step along the gradient that raises the loss by a small part of what the gradient promises."""
    slope = exam.slope
    if slope is None or not exam.resisted:
        return None
    direction, _ = steepest(exam.norm, exam.threat.per_channel).update(
        exam.threat.restrict(finite_only(slope)[0]), None
    )
    near = exam.threat.project(exam.image, exam.image + SHORT * exam.threat.eps * direction)
    sign = -1.0 if exam.targeted else 1.0
    promised = sign * ((near - exam.image) * finite_only(slope)[0]).flatten(1).double().sum(1)
    before, after = (exam.losses(prediction) for prediction in (exam.prediction, exam.query.judge(near)))
    kept = sign * (after - before)
    loud = promised > ROUNDING * before.abs().clamp_min(torch.finfo(torch.float32).tiny)
    odd = loud & ~exam.white.success & ~exam.clean.success & (kept < PROMISE * promised)
    if not exam.many(odd):
        return None
    return Finding(
        "broken_promise",
        f"At {exam.count(odd)} a step of {SHORT:.0%} of eps along the gradient raises the loss by at most "
        f"{max(float((kept / promised)[odd].max()), 0.0):.1%} of what the gradient promises.",
        "The gradient is shattered or wrong: it holds for distances that are far shorter than a step of the attack.",
        "Look for a high-frequency or rounding part, or a gradient written by hand; average the gradient over noise, "
        "attack a differentiable stand-in for that part, or use Square.",
        "error",
    )


def _flat_share(exam: Examination) -> torch.Tensor:
    """Share of each sample's decisions where the loss is as good as flat beside the log-odds, ``(B,)``.

    Read at the outputs, which costs no pass of the network.
    """
    prediction = exam.prediction
    output = main_output(prediction).detach().requires_grad_()
    whole = output if isinstance(prediction, torch.Tensor) else (output, *prediction[1:])
    loss = per_sample(exam.loss_function, whole, exam.target, len(output)).sum()
    odds = log_odds(exam.loss_function, output, exam.target).sum()
    sizes = []
    for value in (loss, odds):
        (part,) = torch.autograd.grad(value, output)
        sizes.append(torch.linalg.vector_norm(part.double(), dim=1).reshape(len(output), -1))
    return (sizes[0] < SATURATED * sizes[1]).double().mean(1)
