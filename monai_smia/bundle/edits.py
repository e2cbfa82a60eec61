# SPDX-License-Identifier: Apache-2.0
"""Changes to a configuration's text so that it only evaluates: it writes and caches nothing, in one process."""

from __future__ import annotations

import re
from typing import Any

import monai.apps
import monai.data

from monai_smia.bundle.ids import Ids, needs_trainer
from monai_smia.bundle.text import children, class_name, components, get, is_component, normal, reached_components

WRITERS = re.compile(
    r"(\w*Saver[dD]?|Save[A-Z]\w*|TensorBoard\w*|MLFlow\w*|ClearML\w*|Wandb\w*|LogfileHandler|ProbMapProducer)"
)
"""Class names of what writes files or to a tracker."""

MADE_PLAIN = ("SmartCacheDataset", "PersistentDataset", "CacheNTransDataset", "LMDBDataset", "GDSDataset")
"""Data sets that are as long as their cache, or that cache on disk."""


def make_harmless(config: dict[str, Any], ids: Ids) -> None:
    """Change the text, macros resolved, in place.

    - Savers, trackers and log files are switched off (`_disabled_`), and so are early stopping and handlers that need
      a trainer: an evaluation writes nothing into the bundle, and its checkpoints stay as they are.
    - Caching data sets cache nothing (``cache_num`` 0), or become plain ones (`MADE_PLAIN`).
    - Data loaders load in this process, the evaluator's in a fixed order.
    - A loader of checkpoints loads onto the evaluator's device.
    """
    off = {name for name, item in components(config) if _writes(item)}
    handlers = reached_components(config, ids.handlers) if ids.handlers else {}
    off |= {name for name, item in handlers.items() if class_name(item) == "EarlyStopHandler"}
    off |= {name for name, item in handlers.items() if needs_trainer(config, item)}
    disable(config, off)
    for _, item in components(config):
        _do_not_cache(item)
        _load_here(item)
        if class_name(item) == "CheckpointLoader" and item.get("map_location") is None:
            item["map_location"] = "@device" if "device" in config else "cpu"
    loader: Any = get(config, ids.loader) if ids.loader else None
    if is_component(loader) and "shuffle" in loader:
        loader["shuffle"] = False


def disable(config: dict[str, Any], names: set[str]) -> None:
    """Switch components off, also where a list refers to them: what is off there would be None in the list.

    Their arguments go too: MONAI builds what they refer to, such as a trainer, even for a component that is off.
    """
    for name in names:
        item = get(config, name)
        target = item["_target_"]
        item.clear()
        item.update(_target_=target, _disabled_=True)
    _follow(config, config, names)


def _follow(config: dict[str, Any], value: Any, names: set[str]) -> None:
    for key, child in children(value):
        if isinstance(value, list) and isinstance(child, str) and child[:1] == "@" and normal(child[1:]) in names:
            value[int(key)] = {"_target_": get(config, child[1:])["_target_"], "_disabled_": True}
        else:
            _follow(config, child, names)


def _writes(item: dict[str, Any]) -> bool:
    return isinstance(item["_target_"], str) and WRITERS.fullmatch(class_name(item)) is not None


def _do_not_cache(item: dict[str, Any]) -> None:
    name = class_name(item)
    kind = getattr(monai.data, name, None) or getattr(monai.apps, name, None)
    if name in MADE_PLAIN:
        kept: dict[str, Any] = {
            key: item[key] for key in ("data", "transform", "_disabled_", "_requires_") if key in item
        }
        item.clear()
        item.update(kept, _target_="monai.data.Dataset")
    elif _is_caching(kind) or "cache_num" in item or "cache_rate" in item:
        item["cache_num"] = 0
        if "cache_rate" in item:
            item["cache_rate"] = 0.0


def _is_caching(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, monai.data.CacheDataset)


def _load_here(item: dict[str, Any]) -> None:
    if not class_name(item).endswith("DataLoader"):
        return
    if "num_workers" in item:
        item["num_workers"] = 0
    for key in ("persistent_workers", "prefetch_factor", "multiprocessing_context", "timeout"):
        item.pop(key, None)  # torch refuses them without workers
