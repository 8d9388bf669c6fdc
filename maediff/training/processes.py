"""Training on several processes, of torchrun or `accelerate launch`: who writes, who waits, and how restarts work.

Only the main process writes; the others wait for its files. torchrun restarts all processes when one dies
(`--max-restarts`); a restarted training continues from its last checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from maediff.errors import ConfigError

_PATIENCE = timedelta(hours=3)
"""How long processes wait for each other, such as for the main one to read the scans; torchrun notices dead ones."""


_LAUNCHED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_MISLEADING = ("LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables that accelerate takes for a launch of several processes, but that a cluster's shell may set without one."""


def several() -> bool:
    """Check whether a launcher started this process as one of several.

    Raises:
        ConfigError: The environment says so, but does not say how to find the other processes.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    missing = [name for name in _LAUNCHED if not os.environ.get(name)]
    if not size.isdigit() or (int(size) > 1 and missing):
        raise ConfigError(
            f"WORLD_SIZE={size!r} is set in the environment, but {', '.join(missing) or 'not as a number'}"
            f"{' is not' if missing else ''}; start several processes with torchrun or accelerate launch, or unset "
            "WORLD_SIZE"
        )
    return int(size) > 1


@contextmanager
def alone_unless_launched() -> Iterator[None]:
    """Hide accelerate's own settings, since `train` holds them, and what looks like a launch unless there was one."""
    misleading = () if several() else _MISLEADING
    hidden = [name for name in os.environ if name in misleading or name.startswith("ACCELERATE_")]
    kept = {name: os.environ.pop(name) for name in hidden}
    try:
        yield
    finally:
        os.environ.update(kept)


def is_main() -> bool:
    """Check whether this process is the one that writes; a single process always is."""
    return not several() or int(os.environ["RANK"]) == 0


def restarted() -> bool:
    """Check whether torchrun has started this training again, because a process died."""
    return several() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the other processes for the time of a training, and leave them in order."""
    before = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not several() or before:
        yield
        return
    store, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(count):
        # torchrun of torch 2.13 keeps one store for all attempts, in which a new attempt finds the addresses of dead
        # processes. Attempt numbers agree on one machine only; for several, docs/cluster.md turns that store off.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    PartialState._reset_state()
    PartialState(cpu=device.type == "cpu")
    yield
    if torch.distributed.is_initialized():  # after an error the others may be dead, and leaving would wait for them
        torch.distributed.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run a block first, then the others, which find what it wrote."""
    if not several():
        yield
        return
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def wait_for_all() -> None:
    """Wait until all processes reach this point."""
    if several():
        PartialState().wait_for_everyone()
