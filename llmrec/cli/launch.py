"""How a process finds its place in `accelerate launch`: who writes, and how to wait for the others."""

import os
from pathlib import Path

from llmrec.rundir import RunDirectory


def open_run(folder: str | Path) -> RunDirectory:
    """The run directory for this process; under `accelerate launch` only the first one writes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return RunDirectory(folder)
    import torch
    from accelerate import PartialState

    # Not told that it is on CPUs, it would take every process for the only one.
    state = PartialState(cpu=not torch.accelerator.is_available())
    return RunDirectory(folder, main=state.is_main_process, wait=state.wait_for_everyone)
