# SPDX-License-Identifier: Apache-2.0
"""`OwnFiles`: what this program wrote into a folder, so that it replaces nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_smia.reports.files import PREFIX, SUFFIX, force, is_temporary, write_whole, writing


class OwnFiles:
    """Names and SHA-256 of the files that were written into a folder.

    Files that appear together are made in a temporary folder and moved to their places at the end. There a file of
    ours gives way, as long as it is what was written; anything else is left alone, and refused by name.

    Args:
        folder: of the files.
        record: the file below it that remembers them.
    """

    def __init__(self, folder: Path, record: str = "progress/written.json") -> None:
        self.folder = folder
        self._record = folder / record

    def exists(self) -> bool:
        """Whether anything is remembered."""
        return self._record.is_file()

    def refuse_links(self, *names: str) -> None:
        """Folders of ours, where they exist, are folders: a link would lead out.

        Raises:
            FileExistsError: naming the link.
        """
        for name in names:
            place = self.folder / name
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise FileExistsError(
                    f"out: {place} is a {'link' if place.is_symlink() else 'file'}; expected a folder"
                )

    def refuse_others(self, names: Iterable[str]) -> None:
        """What is there under these names is what was written.

        Raises:
            FileExistsError: naming the first that is not.
        """
        known = self._known()
        for name in names:
            place = self.folder / name
            self.refuse_links(*(str(part) for part in Path(name).parents if part != Path(".")))
            if not place.exists() and not place.is_symlink():
                continue
            if place.is_symlink() or not place.is_file() or _digest(place) not in known.get(name, ()):
                raise FileExistsError(
                    f"out: {place} is not what this program wrote there; expected it as it was, or gone; nothing was "
                    "replaced"
                )

    @contextmanager
    def replacing(self) -> Iterator[Path]:
        """A temporary folder, whose files go to the same places below the folder at the end.

        Raises:
            FileExistsError: when something else is at one of them; then nothing is moved.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=self.folder, prefix=PREFIX, suffix=SUFFIX))
        try:
            yield made
            files = {file.relative_to(made).as_posix(): file for file in sorted(made.rglob("*")) if file.is_file()}
            self.refuse_others(files)
            force(made)
            known = self._known()
            new = {name: _digest(file) for name, file in files.items()}
            # both, so that a kill in between leaves nothing that is not known
            self._remember({**known, **{name: [*known.get(name, ())[-1:], digest] for name, digest in new.items()}})
            for name, file in files.items():
                with writing(self.folder / name):
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, self.folder / name)
            self._remember({**known, **{name: [digest] for name, digest in new.items()}})
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _known(self) -> dict[str, list[str]]:
        if not self._record.is_file():
            return {}
        try:
            content: Any = json.loads(self._record.read_text(encoding="utf-8"))
            return {str(name): [str(digest) for digest in digests] for name, digests in content["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"out: {self._record} is damaged ({error}); expected the folder of a run") from error

    def _remember(self, files: dict[str, list[str]]) -> None:
        text = json.dumps({"format": "monai-smia written 1", "files": files}, indent=1)
        write_whole(self._record, text + "\n", overwrite=True)


def clear_temporary(*folders: Path) -> None:
    """Take away what a killed run left unfinished, known by its name, in folders that no other run writes into."""
    for folder in folders:
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            if not is_temporary(path) or path.is_symlink():
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """A folder in `beside`, which is made, that goes away with all that is left in it."""
    with writing(beside):
        beside.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=beside, prefix=PREFIX, suffix=SUFFIX))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
