"""`python -m monai.bundle run` several times over, in each process that `torch.distributed.run` starts.

The file named on the command line holds a list of what each run is given. Starting Python, torch and MONAI costs more
than the runs, so it is done once; each run is a fork of it, which knows nothing of the runs before.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torchvision_shim import load_torchvision

load_torchvision()
torch.set_num_threads(1)

from monai.bundle import run  # noqa: E402 (MONAI looks for torchvision when it is imported)


def meeting_place(number: int) -> Any:
    """A store of this run's own: in the launcher's, the processes would find the addresses of the run before."""
    launcher = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    own = None
    if os.environ["RANK"] == "0":
        own = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False)
        launcher.set(f"port of run {number}", str(own.port))
    os.environ["MASTER_PORT"] = launcher.get(f"port of run {number}").decode()
    return own


def forked(number: int, arguments: dict[str, Any]) -> int:
    """Run in a process of its own; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    store = meeting_place(number)
    run(**arguments)
    del store
    sys.exit()


if __name__ == "__main__":
    for index, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        if code := forked(index, job):
            sys.exit(f"run {index} ended with {code}")
