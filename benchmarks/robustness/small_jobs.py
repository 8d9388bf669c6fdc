"""Jobs that take seconds, and how to tell whether the files that they left are whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from maediff.errors import ModelError
from maediff.model_folder import verify_model_folder
from maediff.staging import CHECKSUMS

SMALL = (
    *("train.max_steps=12", "train.val_every=6", "train.checkpoint_every=2", "train.batch_size=4"),
    *("data.size=[32,32]", "data.spacing_mm=8", "partition.window=16", "partition.stride=16"),
)
"""Settings with which the preset `quick` trains in seconds."""
_TIMES = {
    "seconds",
    "written",
    "images_per_second",
    "status",
    "message",
    "arguments",
    "counts",
    "machine",
    "resume",
    "pace",
}
"""What differs between any two runs, or says how a run came to its end."""


def half_written(folder: Path) -> Iterator[str]:
    """Name the files that carry a final name and are not whole."""
    for path in folder.rglob("*"):
        if is_hidden(path, folder) or not path.is_file():
            continue
        try:
            read(path)
        except Exception as error:
            yield f"{path.relative_to(folder)}: {error}"


def read(path: Path) -> object:
    """Read a file to its end, as something that compares equal to another reading of equal content."""
    if path.name.endswith(".nii.gz"):
        np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)
    if path.suffix == ".pt":
        return _plain(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix in {".csv", ".tsv"}:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        return [_timeless(row) for row in rows]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays}
    return path.read_bytes()


def sound_or_refused(model: Path) -> bool:
    """Check whether a model folder verifies; one that does not is refused, never used."""
    if not (model / CHECKSUMS).is_file():
        return True
    try:
        verify_model_folder(model)
    except ModelError:
        return False
    return True


def is_hidden(path: Path, root: Path) -> bool:
    """Check whether a file, or a folder below the root that holds it, carries a hidden name."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _timeless(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    return {key: value for key, value in row.items() if key not in _TIMES}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
