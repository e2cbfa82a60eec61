# SPDX-License-Identifier: Apache-2.0
"""`BundleError`: what is wrong with a bundle, in one line."""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle that cannot be opened or built: one line with the id and the argument that would help."""


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
