# SPDX-License-Identifier: Apache-2.0
"""The command `monai-smia`: evaluate, merge, export, verify, inspect, train, report, attacks, overlay."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from monai_smia.bundle.errors import BAD_INPUT, MACHINE, OURS, SOME_FAILED, STOPPED, status_of

__all__ = ["BAD_INPUT", "MACHINE", "OURS", "SOME_FAILED", "STOPPED", "main"]

DEBUG = "--debug"
_LEADS = {
    BAD_INPUT: "",
    MACHINE: "a fault of the machine; what is done is kept, and the same command with --resume continues: ",
    OURS: "an error in the program, please report it: ",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    With ``--debug``, after any command, errors come with their traceback, those of cases included.

    Args:
        arguments: ``None`` takes those of the process.

    Returns:
        The exit status, see `monai_smia.bundle.errors`.
    """
    import fire

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in arguments
    arguments = [argument for argument in arguments if argument != DEBUG]
    outcome: list[int] = []
    commands = {name: _noting(command, outcome) for name, command in _commands().items()}
    try:
        with _telling(debug):
            fire.Fire(commands, command=arguments, name="monai-smia")
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("monai-smia: interrupted; the same command with --resume goes on where it was", file=sys.stderr)
        return STOPPED
    except Exception as error:
        status = status_of(error)
        if debug or status == OURS:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"monai-smia: {_LEADS[status]}{text}", file=sys.stderr)
        return status
    return max(outcome, default=0)


@contextmanager
def _telling(debug: bool) -> Iterator[None]:
    """With `debug`, what the package logs goes to stderr, tracebacks of failed cases among it."""
    logger, handler = logging.getLogger("monai_smia"), logging.StreamHandler(sys.stderr)
    level = logger.level
    if debug:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


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
