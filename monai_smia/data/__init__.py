# SPDX-License-Identifier: Apache-2.0
"""Data lists: which files of a dataset folder belong together, as the dictionaries MONAI's datasets take."""

from __future__ import annotations

from .lung_ct import lung_ct_datalist

__all__ = ["lung_ct_datalist"]
