# SPDX-License-Identifier: Apache-2.0
"""`write_whole`: files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes, overwrite: bool = False) -> None:
    """Write a file beside its place, then move it there; the folder is made.

    Args:
        path: where to.
        content: text (UTF-8) or bytes.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: when there is a file and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"path: {path} exists; expected a new file, or overwrite=True")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
