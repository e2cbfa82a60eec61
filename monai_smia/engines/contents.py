# SPDX-License-Identifier: Apache-2.0
"""`Contents`: what is in the files of the cases, so that a run that goes on mixes no two versions of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from monai_smia.engines.batches import item_of, named
from monai_smia.engines.file_digests import FileDigests
from monai_smia.engines.progress import Record


class Contents:
    """Digests of what a dataset makes its cases of: their files, labels included, or what is in memory.

    Args:
        loader: of the evaluation. A dataset that does not tell what its cases are made of (no list ``data``) has none.
        digests: of files, kept.
        image_key: names a case.
    """

    def __init__(self, loader: Any, digests: FileDigests, image_key: str) -> None:
        self._dataset = getattr(loader, "dataset", None)
        self._digests = digests
        self._image_key = image_key

    def of(self, index: int) -> str | None:
        """A digest of one case; ``None`` where the dataset does not tell, or it cannot be read."""
        item = item_of(self._dataset, index)
        try:
            return None if item is None else self._digests.content(item)
        except OSError:  # loading it will say what is wrong
            return None

    def of_all(self, indices: Sequence[int]) -> dict[int, str]:
        """Number of a case to its digest."""
        found = {index: self.of(index) for index in indices}
        return {index: content for index, content in found.items() if content is not None}

    def refuse_others(self, records: Iterable[Record]) -> None:
        """The files of what is done are as they were.

        Raises:
            ValueError: naming the first case whose files are not.
        """
        for record in records:
            for index, before in record.contents.items():
                if (now := self.of(index)) != before:
                    raise ValueError(
                        f"resume: the earlier run had {named(self._dataset, index, self._image_key)} with content "
                        f"{before[:12]}; expected the files of a case that is done unchanged, its label included; got "
                        f"{'nothing' if now is None else now[:12]}"
                    )
        self.save()

    def save(self) -> None:
        """Keep the digests for the next run."""
        self._digests.save()


def kept_contents(contents: Mapping[int, str], record: Record, name: Callable[[int], str]) -> dict[int, str]:
    """Those of the cases of a batch that did not fail: the others may be mended."""
    done = {case for part in record.parts for case in part.names}
    return {index: content for index, content in contents.items() if not record.failures or name(index) in done}
