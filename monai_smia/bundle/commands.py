# SPDX-License-Identifier: Apache-2.0
"""The command `monai-smia`: evaluate, merge, export, verify, inspect, train, report, attacks, overlay."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from monai_smia.bundle.errors import BundleError

STOPPED = 130
BAD_INPUT = 2
SOME_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: ``None`` takes those of the process.

    Returns:
        0; 1 when cases failed and the others were evaluated; 2 for bad input; 130 when interrupted.
    """
    import fire

    outcome: list[int] = []
    commands = {name: _noting(command, outcome) for name, command in _commands().items()}
    try:
        fire.Fire(commands, command=arguments, name="monai-smia")
    except KeyboardInterrupt:
        print("monai-smia: interrupted; the same command with --resume goes on where it was", file=sys.stderr)
        return STOPPED
    except (BundleError, FileExistsError, FileNotFoundError, ImportError, RuntimeError, TypeError, ValueError) as error:
        print(f"monai-smia: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    return max(outcome, default=0)


def _commands() -> dict[str, Callable[..., int]]:
    from monai_smia.bundle import (
        command_evaluate,
        command_export,
        command_inspect,
        command_merge,
        command_overlay,
        command_report,
        command_train,
        command_verify,
    )

    return {
        "evaluate": command_evaluate.evaluate,
        "export": command_export.export,
        "verify": command_verify.verify,
        "inspect": command_inspect.inspect,
        "merge": command_merge.merge,
        "train": command_train.train,
        "report": command_report.report,
        "attacks": command_inspect.attacks,
        "overlay": command_overlay.overlay,
    }


def _noting(command: Callable[..., int], outcome: list[int]) -> Callable[..., None]:
    """The command, whose exit status is noted instead of printed."""
    import functools

    @functools.wraps(command)
    def noted(*args: Any, **kwargs: Any) -> None:
        outcome.append(command(*args, **kwargs))

    return noted
