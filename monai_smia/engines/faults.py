# SPDX-License-Identifier: Apache-2.0
"""Whose fault an error is: the machine's, which stops a run and passes, or the case's, which stays with it."""

from __future__ import annotations

import dis
import errno
import traceback
from collections.abc import Iterator

import torch

from monai_smia.reports.files import OutputFault

STOPPING = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ENOTCONN", "EHOSTDOWN", "ENODEV",
                 "ETIMEDOUT")
    if hasattr(errno, name)
)  # fmt: skip
"""No space, no quota, read-only, no more files or memory, a network drive that is gone: alike for every case."""

_TEXTS = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDA error",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "not enough memory",
)
"""What torch says, in plain `RuntimeError`, when a device fails or memory ends."""

_MISTAKES = (AttributeError, NameError, LookupError, AssertionError, TypeError, ArithmeticError, NotImplementedError)


class MachineFault(RuntimeError):
    """A fault of the machine that stopped a run: what is done is kept, and the run can be gone on with."""


def of_machine(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a fault of the machine.

    Disk full, no quota, read-only, too many open files, a network drive that is gone, no memory (of the processor or
    of a device), a device that fails, and every error in writing a file of ours. An input that cannot be read is not.

    Example:
        >>> of_machine(OSError(errno.ENOSPC, "No space left on device"))
        True
        >>> of_machine(FileNotFoundError(errno.ENOENT, "No such file", "image.nii.gz"))
        False
    """
    return any(_itself(one) for one in causes(error))


def _itself(error: BaseException) -> bool:
    if isinstance(error, (MachineFault, OutputFault, MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return True
    if isinstance(error, OSError):
        return error.errno in STOPPING
    return type(error) is RuntimeError and any(text in str(error) for text in _TEXTS)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__


def raised_by_us(error: BaseException) -> bool:
    """Whether a ``raise`` in this package made the error: something was looked at, and refused.

    An error that comes out of Python, torch or another library, through code of ours that did not expect it, is none.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, _ = frames[-1]
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not _is_ours(frame.f_globals.get("__name__", "")):
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def is_mistake(error: BaseException) -> bool:
    """Whether it is an error in the program: of such a type, in a line of this package, and not by a ``raise``."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames or not isinstance(error, _MISTAKES) or raised_by_us(error):
        return False
    return _is_ours(frames[-1][0].f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module == "monai_smia" or module.startswith("monai_smia.")


def one_line(error: BaseException) -> str:
    """Type and text of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
