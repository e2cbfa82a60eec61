# SPDX-License-Identifier: Apache-2.0
"""`diagnose`: whether an attack's failure on a network may be taken for robustness."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from monai.data import MetaTensor
from tqdm.auto import tqdm

from monai_smia.attacks import Attack, Criterion, frozen
from monai_smia.attacks.checks import check_batch, check_image
from monai_smia.attacks.freezing import unwrap
from monai_smia.attacks.heads import LossFunction
from monai_smia.attacks.nested import map_tensors
from monai_smia.doctor import check_budgets, check_gradients, check_outputs, check_strength
from monai_smia.doctor.examination import Examination
from monai_smia.inferers import gradient_inferer
from monai_smia.reports.finding import Finding

CHECKS: dict[str, Callable[[Examination], Finding | None]] = {
    "random_forward": check_outputs.random_forward,
    "batch_statistics": check_outputs.batch_statistics,
    "zero_gradient": check_gradients.zero_gradient,
    "nonfinite_gradient": check_gradients.nonfinite_gradient,
    "vanishing_gradient": check_gradients.vanishing_gradient,
    "clipped_gradient": check_gradients.clipped_gradient,
    "broken_promise": check_gradients.broken_promise,
    "one_step_beats": check_strength.one_step_beats,
    "not_converged": check_strength.not_converged,
    "worse_with_steps": check_strength.worse_with_steps,
    "not_falling_with_eps": check_budgets.not_falling_with_eps,
    "unbounded_fails": check_budgets.unbounded_fails,
    "noise_as_strong": check_strength.noise_as_strong,
    "black_box_beats": check_strength.black_box_beats,
    "transfer_beats": check_strength.transfer_beats,
    "budget": check_budgets.budget,
    "raw_outputs": check_outputs.raw_outputs,
    "probabilities": check_outputs.probabilities,
}
"""Every check by its name, in the order in which they are made."""

NEED_ATTACK = ("noise_as_strong", "black_box_beats", "transfer_beats", "budget")
"""Checks that compare with the attack, which cannot be made where no gradient reaches the image."""


def diagnose(
    network: Callable[..., Any],
    image: torch.Tensor,
    target: Any,
    loss_function: LossFunction,
    *,
    eps: Any = None,
    norm: float | str | None = None,
    bounds: Any = None,
    inferer: Any = None,
    attack: Attack | None = None,
    adversarial: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    criterion: Criterion | None = None,
    surrogate: Callable[..., Any] | None = None,
    preprocessed_saturation: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    checks: Iterable[str] | None = None,
    progress: bool = True,
) -> tuple[Finding, ...]:
    r"""Look for reasons not to believe a robustness number of this network.

    An attack that fails proves robustness only if it could have succeeded. The checks compare what cannot be otherwise
    on a network whose gradients are sound:

    .. math:: s(x') \text{ after many steps} \ge s \text{ after one} , \qquad s_{\text{gradient}} > s_{\text{Square}},
              s_{\text{transfer}}, s_{\text{noise}}, \qquad s_{2\varepsilon} \ge s_\varepsilon , \qquad
              \varepsilon = \infty \Rightarrow \text{success}

    s is the log-odds of a wrong answer for classifiers (the loss itself is flat where the network is confident), and
    the loss for everything else. Only samples on which the attack failed count: where it succeeds there is no
    robustness to doubt. A check speaks where at least a quarter of the images, and at least one, are affected; its
    thresholds are named constants beside it.

    The names and what they look for: ``random_forward``; ``batch_statistics`` (a sample depends on its batch mates);
    ``zero_gradient``, ``nonfinite_gradient``, ``vanishing_gradient`` (lost in single precision), ``clipped_gradient``
    (voxels at an end of the intensity range, which a clip cuts off; Linf only), ``broken_promise`` (a short step gains
    far less than the gradient says); ``one_step_beats``, ``not_converged``, ``worse_with_steps``,
    ``not_falling_with_eps``, ``unbounded_fails``, ``noise_as_strong``, ``black_box_beats`` (Square),
    ``transfer_beats``, ``budget`` (of `attack`), ``probabilities`` (where the loss expects raw outputs) and
    ``raw_outputs`` (the reverse).

    The first look takes at most 29 forward and 10 backward passes of the batch, 1.5 times a PGD of 10 steps; with
    `adversarial` 26 and 8. What it gives ground to suspect is made again as plain attacks, at most 130 and 85 passes in
    all, and three times the attack's own in addition where it has steps to double. A `surrogate` takes ten forward and
    eight backward passes, an `attack` without `adversarial` its own.

    Args:
        network: any callable; an `nn.Module` is frozen for the call and restored, and so is the global random state.
        image: a handful of images ``BCHW[D]``, in the network's input units, on which the network is right.
        target: their labels, as for an attack.
        loss_function: as for an attack.
        eps, norm, bounds, criterion: as for an attack; ``None`` takes those of `attack`.
        inferer: a MONAI inferer; a sliding window is replaced by its `gradient_inferer`.
        attack: whose number is in question, the strongest by gradients that there is (one that is smooth or made to
            transfer may lose to one step for good reasons); ``None`` examines the network with a plain BIM.
        adversarial: what `attack` gave on these images, ``BCHW[D]``; ``None`` runs it.
        mask: where the image may change, broadcasts against ``BCHW[D]``.
        surrogate: another network for the same task, from which images are transferred.
        preprocessed_saturation: zeros and ones that broadcast against ``BCHW[D]``, voxels that the preprocessing's
            clip holds at its ends; ``None`` takes those at `bounds`, or at the image's own lowest and highest value.
        generator: source of randomness, on the CPU; ``None`` is a fixed seed.
        checks: names of those to make; ``None`` for all.
        progress: show a bar where it takes more than two seconds.

    Returns:
        What was found, the first check's first; empty where nothing was.

    Raises:
        ValueError: for an unknown check, without eps, or with an eps or norm other than the attack's.
        TypeError: when `image` is no floating tensor, or `attack` no `Attack`.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> image = torch.rand(4, 1, 8, 8)
        >>> label = network(image).argmax(1)
        >>> diagnose(network, image, label, torch.nn.CrossEntropyLoss(), eps=0.01, bounds=(0.0, 1.0))
        ()
        >>> rounded = lambda x: network(x.round())
        >>> findings = diagnose(rounded, image, rounded(image).argmax(1), torch.nn.CrossEntropyLoss(), eps=0.01)
        >>> findings[0].check
        'zero_gradient'

    Reference: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
    https://arxiv.org/abs/1802.00420; Carlini et al., "On evaluating adversarial robustness", 2019,
    https://arxiv.org/abs/1902.06705; Pintor et al., "Indicators of attack failure: debugging and improving optimization
    of adversarial examples", NeurIPS 2022, https://arxiv.org/abs/2106.09947. Deviations: an unbounded attack that fails
    is a finding only where another image is known to succeed, so that a network that ignores its input is not accused.
    """
    if adversarial is not None and attack is None:
        raise ValueError("adversarial: expected the attack that gave it; got none")
    if adversarial is not None and adversarial.shape != image.shape:
        raise ValueError(
            f"adversarial: expected the image's shape, {tuple(image.shape)}; got {tuple(adversarial.shape)}"
        )
    if attack is not None and not isinstance(attack, Attack):
        raise TypeError(f"attack: expected an Attack; got {type(attack).__name__}")
    chosen = list(CHECKS) if checks is None else list(checks)
    unknown = [name for name in chosen if name not in CHECKS]
    if unknown:
        raise ValueError(f"checks: expected names among {', '.join(CHECKS)}; got {', '.join(map(str, unknown))}")
    given = (image, target, mask, preprocessed_saturation, adversarial)
    plain, labels, allowed, saturated, made = (_plain(value) for value in given)
    check_image(plain)
    check_batch("target", labels, plain)
    settings = _settings(attack, eps=eps, norm=norm, bounds=bounds, criterion=criterion)
    network = unwrap(network)
    devices = [plain.device] if plain.device.type == "cuda" else []
    source = torch.Generator().manual_seed(0) if generator is None else generator
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices),
        frozen(network),
        tqdm(total=len(chosen), desc="doctor", unit="check", leave=False, delay=2, disable=not progress) as bar,
    ):
        torch.manual_seed(int(torch.randint(2**62, (), generator=source)))  # a network's own draws: the same every time
        exam = Examination(
            network,
            plain,
            labels,
            loss_function,
            **settings,
            targeted=attack is not None and attack.targeted,
            inferer=gradient_inferer(inferer),
            mask=allowed,
            attack=attack,
            adversarial=made,
            surrogate=surrogate,
            saturated=saturated,
            generator=source,
            tick=lambda: bar.update(0) and None,
        )
        found = []
        for name in (name for name in CHECKS if name in chosen):
            bar.set_postfix_str(name, refresh=False)
            if name not in NEED_ATTACK or exam.slope is not None:
                found.append(CHECKS[name](exam))
            bar.update()
    return tuple(finding for finding in found if finding is not None)


def _settings(attack: Attack | None, **given: Any) -> dict[str, Any]:
    """Budget, bounds and criterion, from the arguments and the attack, which must agree on the budget."""
    if attack is None:
        if given["eps"] is None:
            raise ValueError("eps: expected a budget, or an attack that has one; got None")
        return {**given, "norm": torch.inf if given["norm"] is None else given["norm"]}
    own = {name: getattr(attack, name) for name in given}
    for name in ("eps", "norm"):
        value = given[name]
        if value is not None and not torch.equal(_numbers(value), _numbers(own[name])):
            raise ValueError(f"{name}: expected the attack's, {own[name]}; got {value}")
    return {name: own[name] if value is None else value for name, value in given.items()}


def _numbers(value: Any) -> torch.Tensor:
    return torch.as_tensor(float(value) if isinstance(value, str) else value, dtype=torch.float64).cpu()


def _plain(value: Any) -> Any:
    """Tensors without metadata, graph or inference flag, in any nesting."""

    def of(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        return tensor.clone() if tensor.is_inference() else tensor.detach()

    with torch.inference_mode(False):
        return map_tensors(value, of)
