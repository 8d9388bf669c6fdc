"""Resume state: all that a run needs to continue exactly, written atomically and read without unpickling code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maediff.errors import ModelError, OutputError
from maediff.files import atomic_path, cannot_write

Weights = dict[str, Tensor]


def checkpoint_path(run_dir: Path) -> Path:
    """Return where a run keeps its resume state."""
    return run_dir / "checkpoints" / "last.pt"


@dataclass
class TrainState:
    """Progress of a run. Samples depend only on the step, so no generator state is needed.

    Attributes:
        step: Steps done.
        model: Weights of the network.
        ema: Their exponential moving average.
        optimizer: State of the optimizer.
        best: Averaged weights with the lowest validation loss so far.
        best_loss: That loss; infinite before the first validation.
        config_hash: Configuration that the run was started with.
        data_hash: Subjects that the run was started with; empty in checkpoints of earlier versions.
        scaler: State of the loss scale in fp16; else empty.
    """

    step: int
    model: Weights
    ema: Weights
    optimizer: dict[str, Any]
    config_hash: str
    data_hash: str = ""
    best: Weights = field(default_factory=dict)
    best_loss: float = float("inf")
    scaler: dict[str, Any] = field(default_factory=dict)


def save_state(path: Path, state: TrainState) -> None:
    """Write the state atomically.

    Raises:
        OutputError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            torch.save(vars(state), stream)
    except RuntimeError as error:  # torch's writer hides the system's error
        if isinstance(error.__context__, OSError):
            raise cannot_write(path, error.__context__) from error
        reason = str(error).splitlines()[0]
        raise OutputError(
            f"cannot write {path} ({reason}); is the disk full? The earlier checkpoint is kept"
        ) from error


def load_state(path: Path, config_hash: str, data_hash: str | None = None) -> TrainState:
    """Read a state onto the CPU.

    Args:
        path: From :func:`checkpoint_path`.
        config_hash: Configuration that the run must have.
        data_hash: Subjects that the run must have; not compared if None.

    Raises:
        ModelError: Missing or damaged file, or a run with another configuration or with other subjects.
    """
    try:
        state = TrainState(**torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise ModelError(f"no checkpoint {path} to resume from; start without --resume") from error
    except Exception as error:  # a damaged file makes torch's restricted unpickler raise almost anything
        raise ModelError(f"checkpoint {path} cannot be read ({error}); remove it and start without --resume") from error
    if state.config_hash != config_hash:
        raise ModelError(
            f"{path} belongs to another configuration ({state.config_hash[:12]}, now {config_hash[:12]}); "
            "resume with the run's own config.yaml, or train into another folder"
        )
    if data_hash is not None and state.data_hash not in {"", data_hash}:
        raise ModelError(
            f"{path} belongs to a training on other scans: subjects, or their slices, were added or taken away; resume "
            "with those it was started with, or train into another folder (train.init goes on from a model's weights)"
        )
    return state
