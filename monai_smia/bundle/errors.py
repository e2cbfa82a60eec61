# SPDX-License-Identifier: Apache-2.0
"""`BundleError`: what is wrong with a bundle, in one line; and with what status the command line ends.

Statuses of `monai-smia`:

====  ==========================================================================================
0     all is well
1     some cases failed, the others were evaluated
2     bad input: one line says what to change
3     a fault of the machine (disk, permission, memory, device): what is done is kept; --resume
4     a criterion failed, or a comparison is worse (reserved)
5     inconclusive (reserved)
70    an error in the program: a traceback, which we would like to see
130   interrupted (Ctrl-C)
====  ==========================================================================================

How they are told apart: a fault of the machine is one by its type or number (see `monai_smia.engines.faults`). Bad
input is a `BundleError`, or an error of the usual types that a ``raise`` of this package made: something was looked at
and refused. A path that leads nowhere, through a file, or has too long a name is bad input, too; one that may not be
written is the machine's. Everything else came out of Python or a library where nobody expected it, and is ours.
"""

from __future__ import annotations

import errno

from monai_smia.engines.faults import of_machine, raised_by_us

SUCCESS, SOME_FAILED, BAD_INPUT, MACHINE, WORSE, INCONCLUSIVE, OURS, STOPPED = 0, 1, 2, 3, 4, 5, 70, 130

_REFUSALS = (ValueError, TypeError, RuntimeError, OSError, ImportError)
_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class BundleError(ValueError):
    """A bundle that cannot be opened or built: one line with the id and the argument that would help."""


def status_of(error: BaseException) -> int:
    """With what status the command line ends after an error, see above.

    Example:
        >>> status_of(BundleError("cases: expected a number")), status_of(KeyError("a")), status_of(MemoryError())
        (2, 70, 3)
    """
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    if of_machine(error):
        return MACHINE
    if isinstance(error, BundleError) or (isinstance(error, _REFUSALS) and raised_by_us(error)):
        return BAD_INPUT
    if isinstance(error, OSError):
        return BAD_INPUT if isinstance(error, _PATHS) or error.errno == errno.ENAMETOOLONG else MACHINE
    return OURS


def reason(error: BaseException) -> str:
    """The original error in one line, without the "Failed to ..." that MONAI's parser wraps around it.

    Example:
        >>> try:
        ...     try:
        ...         open("no-such-list.json")
        ...     except OSError as cause:
        ...         raise RuntimeError("Failed to evaluate ConfigExpression") from cause
        ... except RuntimeError as error:
        ...     reason(error)
        "FileNotFoundError: [Errno 2] No such file or directory: 'no-such-list.json'"
    """
    error = cause(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def cause(error: BaseException) -> BaseException:
    """The error that MONAI's parser met."""
    while isinstance(error, RuntimeError) and str(error).startswith("Failed to ") and error.__cause__ is not None:
        error = error.__cause__
    return error
