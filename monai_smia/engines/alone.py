# SPDX-License-Identifier: Apache-2.0
"""`alone`: a process of a distributed group works by itself for a while, without a word to the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ignite.distributed as idist
from torch.nn.parallel import DistributedDataParallel

from monai_smia.engines.ignite import private


@contextmanager
def alone() -> Iterator[None]:
    """Inside it `ignite.distributed` says that there is one process.

    MONAI's and ignite's metrics gather what all processes have whenever they are computed. Processes that evaluate
    different numbers of batches would wait for each other for ever.
    """
    if idist.get_world_size() == 1:
        yield
        return
    with private.one_process():
        yield


@contextmanager
def without_wrapper(evaluator: Any) -> Iterator[None]:
    """The evaluator's network inside it is that in its `DistributedDataParallel`.

    The wrapper's forward pass sends the buffers to all processes, which must then make the same number of passes.
    """
    network = evaluator.network
    if isinstance(network, DistributedDataParallel):
        evaluator.network = network.module
    try:
        yield
    finally:
        evaluator.network = network
