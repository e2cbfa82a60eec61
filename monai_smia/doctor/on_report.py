# SPDX-License-Identifier: Apache-2.0
"""`diagnose_report`: what the numbers of an evaluation say against themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch

from monai_smia.doctor.check_budgets import DECLINE, FLAT
from monai_smia.doctor.check_strength import BEATS, FALLING, NOISE
from monai_smia.doctor.examination import AFFECTED
from monai_smia.doctor.paired_runs import ITERATED, PairedRuns, outdone
from monai_smia.reports.finding import Finding
from monai_smia.reports.report import RobustnessReport

OVERDRAWN = 0.01  # of eps: more than what names and half precision round
WRONG_CLEAN = 0.5  # of the cases: a network that is wrong on more has nothing to lose, or is given wrong labels
MUCH_MORE = 4.0  # budgets so far apart that the loss must have risen between them
NO_RADIUS = ("BiasField", "VAFA")  # their eps is no radius of the image
WIDTHS = {math.inf: "largest_change", 2.0: "l2_change", 1.0: "l1_change"}
WEAKER = (
    ("one_step_beats", "FGSM", BEATS, "one step (FGSM)"),
    ("noise_as_strong", "GaussianNoise", NOISE, "noise"),
    ("black_box_beats", "Square", BEATS, "Square, without gradients,"),
    ("transfer_beats", "Transfer", BEATS, "an attack made on another network"),
)


def diagnose_report(report: RobustnessReport) -> tuple[Finding, ...]:
    """Look for reasons not to believe a report, in its numbers alone; no network is asked.

    The names and what they look for: ``budget`` (changes beyond eps, by more than 1 %), ``nonfinite_gradient``,
    ``loss_unmoved`` (an attack by gradients left the loss exactly where it was),
    ``wrong_at_clean`` (success before the attack at more than half of the cases), and as in `diagnose`
    ``one_step_beats``, ``noise_as_strong``, ``black_box_beats``, ``transfer_beats`` at equal budgets,
    ``not_falling_with_eps`` and ``worse_with_steps``. The baselines are taken from the runs that there are (FGSM,
    GaussianNoise, Square, Transfer), the strongest of BIM, PGD, APGD, MIFGSM, NIFGSM, SegPGD and CosPGD counts as the
    attack, and only cases on which it failed count. Rules that need rows per case are silent without them.

    Args:
        report: from `evaluate_robustness`, `AttackEvaluator` or `RobustnessReport.load`.

    Returns:
        What was found; empty where nothing was.

    Example:
        >>> row = {"attack": "pgd", "case": "a", "clean_loss": 0.1, "loss": 0.9, "clean_success": False,
        ...        "success": True, "largest_change": 0.2, "nonfinite_gradients": 0}
        >>> report = RobustnessReport({}, (row,), {"pgd": "PGD(CrossEntropyLoss(), eps=0.1)"}, "network units")
        >>> [finding.check for finding in diagnose_report(report)]
        ['budget']

    Reference: Carlini et al., "On evaluating adversarial robustness", 2019, https://arxiv.org/abs/1902.06705.
    """
    runs = PairedRuns(report)
    alone = (*_budget(runs), *_nonfinite(runs), *_unmoved(runs), *_wrong_at_clean(runs))
    return (*alone, *_weaker(runs), *_eps(runs), *_steps(runs))


def _budget(runs: PairedRuns) -> Iterator[Finding]:
    for run in runs.rows:
        budget = runs.budgets[run]
        if budget.eps is None or budget.measured or runs.kind(run) in NO_RADIUS or budget.norm not in WIDTHS:
            continue
        sizes = runs.values(run, WIDTHS[budget.norm])
        over = sizes > budget.eps * (1 + OVERDRAWN)
        if bool(over.any()):
            yield Finding(
                "budget",
                f"{run}: changes reach {float(sizes[over].max()):.4g} {runs.report.unit} at a budget of "
                f"{budget.eps:.4g}, in {_count(over)}.",
                "The number belongs to a larger budget than the one that is reported.",
                "Project every iterate to the ball; check that eps and the report have the same unit.",
                "error",
            )


def _nonfinite(runs: PairedRuns) -> Iterator[Finding]:
    for run in runs.rows:
        counts = runs.values(run, "nonfinite_gradients").nan_to_num(0)
        if bool((counts > 0).any()):
            yield Finding(
                "nonfinite_gradient",
                f"{run}: {int(counts.sum())} gradients held NaN or infinity, in {_count(counts > 0)}.",
                "Such a gradient counts as zero: the attack takes no step where it arises.",
                "Look for a square root, a logarithm or a division at zero, or for an overflow in half precision.",
                "error",
            )


def _unmoved(runs: PairedRuns) -> Iterator[Finding]:
    """Attacks by gradients that did not change the loss by a single bit; one run of each budget is named."""
    settings = set()
    for run in runs.chosen((*ITERATED, "FGSM", "SMIA")):
        rows, setting = runs.read(run), runs.setting(run)
        still = (rows.gain == 0) & ~rows.success
        if runs.eps(run) == 0 or setting in settings or not _many(still):
            continue
        settings.add(setting)
        zero = still & (rows.clean_loss == 0)
        yield Finding(
            "loss_unmoved",
            f"{run}: the loss under attack is exactly the clean one at {_count(still)} that count as robust"
            + (f"; it is exactly 0 at {int(zero.sum())}." if bool(zero.any()) else "."),
            "Loss and gradient are saturated or cut off: the attack stood still, and clean performance was reported "
            "as robustness.",
            "Run `diagnose` on the network; attack with an objective that does not saturate (APGD with DLR, Margin), "
            "or with Square.",
            "error",
        )


def _wrong_at_clean(runs: PairedRuns) -> Iterator[Finding]:
    for run in runs.rows:
        wrong = runs.read(run).clean_success
        if not runs.targeted(run) and float(wrong.double().mean()) > WRONG_CLEAN:
            yield Finding(
                "wrong_at_clean",
                f"The network is wrong at {_count(wrong)} before any attack.",
                "A success rate counts these, and little is left that an attack could worsen.",
                "Check labels, preprocessing and the criterion; give success rates among the cases that were right.",
                "warning",
            )
            return  # the clean images are the same in all runs


def _weaker(runs: PairedRuns) -> Iterator[Finding]:
    """Weaker adversaries against the strongest attack by gradients at the same budget."""
    for check, kind, factor, words in WEAKER:
        for run in runs.chosen((kind,)):
            stronger = runs.chosen(ITERATED, runs.setting(run))
            if not stronger and kind != "FGSM":
                stronger = runs.chosen(("FGSM",), runs.setting(run))
            if not stronger:
                continue
            beaten = outdone(runs.best(stronger), runs.read(run), factor)
            if _many(beaten):
                much = f"at least {NOISE:.0%} as much as" if factor < 1 else "more than"
                yield Finding(
                    check,
                    f"{run}: {words} raises the loss {much} {_or(stronger)} at {_count(beaten)} where "
                    f"{'this' if len(stronger) == 1 else 'these'} failed.",
                    "An attack that follows the network's own gradient must come further: the gradient is masked, or "
                    "the attack is set badly.",
                    "Run `diagnose` on the network; until then report the strongest run of all.",
                    "error",
                )


def _eps(runs: PairedRuns) -> Iterator[Finding]:
    """Budgets of one attack in ascending order; the first pair that is odd is named."""
    families: dict[tuple[object, ...], list[str]] = {}
    for run in sorted(runs.chosen(ITERATED), key=runs.eps):
        families.setdefault((runs.budgets[run].family, *runs.setting(run)[1:]), []).append(run)
    for ladder in families.values():
        for small, large in combinations(ladder, 2):
            if runs.eps(large) == runs.eps(small):
                continue
            less, more = runs.read(small), runs.read(large)
            odd = (less.gain > less.floor) & (more.gain < DECLINE * less.gain)
            if runs.eps(large) >= MUCH_MORE * runs.eps(small) > 0:
                odd |= (more.gain > more.floor) & (more.gain < FLAT * less.gain)
            odd &= ~more.success
            if _many(odd):
                yield Finding(
                    "not_falling_with_eps",
                    f"{large} comes no further than {small} at {_count(odd)}, and fails.",
                    "A larger budget allows all that a smaller one does, so robustness must fall with it.",
                    "Run `diagnose` on the network; check the step size.",
                    "warning",
                )
                break


def _steps(runs: PairedRuns) -> Iterator[Finding]:
    """Runs of one attack that differ in their steps."""
    for few in runs.chosen(ITERATED):
        for many in runs.chosen((runs.kind(few),), runs.setting(few)):
            if (runs.steps(many) or 0) <= (runs.steps(few) or math.inf):
                continue
            less, more = runs.read(few), runs.read(many)
            odd = (less.gain > less.floor) & ~more.success & (more.gain < FALLING * less.gain)
            if _many(odd):
                yield Finding(
                    "worse_with_steps",
                    f"{many} comes less far than {few} at {_count(odd)}, with more steps.",
                    "More steps can only help where gradients lead uphill.",
                    "Run `diagnose` on the network; check the step size and keep the best iterate.",
                    "warning",
                )


def _many(affected: torch.Tensor) -> bool:
    return int(affected.sum()) >= max(1, math.ceil(AFFECTED * len(affected)))


def _count(affected: torch.Tensor) -> str:
    return f"{int(affected.sum())} of {len(affected)} cases"


def _or(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
