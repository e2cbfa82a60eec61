# SPDX-License-Identifier: Apache-2.0
"""`AttackEvents`: what an `AttackEvaluator` fires beside ignite's own events."""

from __future__ import annotations

from ignite.engine import EventEnum


class AttackEvents(EventEnum):
    """Events of an evaluation under attack.

    ``ATTACK_COMPLETED`` follows each attack of each batch. ``engine.state.batch`` and ``engine.state.output`` are
    then the adversarial ones, ready for metrics; ``state.attack_name``, ``state.attack_result``,
    ``state.clean_output`` and ``state.first_case`` (the number of the batch's first case) are set.
    """

    ATTACK_COMPLETED = "attack_completed"
