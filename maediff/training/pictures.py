"""Pictures of the validation, so that a training can be watched: the same slices at each validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maediff.config import Config
from maediff.data.slices import SliceSet
from maediff.files import atomic_path
from maediff.hardware import use_bf16
from maediff.heads.headset import HeadSet
from maediff.methods.base import Method
from maediff.training.stream import Sample, sample_stream
from maediff.typing import FloatArray


class Pictures:
    """Reconstruct the first validation samples, pseudo-lesions included, as inference does, and draw them.

    A picture has a column per slice and three rows: the slice, its healthy reconstruction, and the residual |x - x̂|
    from 0 (black) to 1 (white) in working units. Of several channels it shows the first; the residual is their mean.

    Args:
        source: Slices of the validation.
        config: Configuration; `train.pictures` is the number of slices.
        folder: Gets ``step-000500.png`` and so on.
        step: Steps done; pictures of later steps belong to an earlier run and are removed.
    """

    def __init__(self, source: SliceSet | HeadSet, config: Config, folder: Path, step: int) -> None:
        self.config = config
        self.folder = folder
        stream = sample_stream(source, config, config.train.pictures, augmented=False)
        samples = [stream[index] for index in range(config.train.pictures)]
        several = len(config.shape) == 3
        self.stacks = (
            [_volume(sample) for sample in samples] if several else [_together(samples, config.data.neighbours)]
        )
        for path in folder.glob("step-*.png"):
            number = path.stem.removeprefix("step-")
            if number.isdecimal() and int(number) > step:
                path.unlink()

    def draw(self, network: Method, device: torch.device, step: int) -> npt.NDArray[np.uint8]:
        """Reconstruct the slices with a network in eval mode, write the picture and return it.

        Raises:
            OutputError: The file cannot be written.
        """
        engine = network.engine(self.config, device, bf16=use_bf16(device, self.config.infer.precision))
        sign = self.config.score.sign
        found: list[tuple[FloatArray, FloatArray, FloatArray]] = []
        for stack in self.stacks:
            healthy = engine(stack.images, stack.brain, ("pictures", self.config.train.seed))
            slices = stack.images.numpy()
            residual = healthy.residual(slices, "abs" if sign == "auto" else sign)
            rows = (_first(slices), _first(healthy.mean.numpy()), residual)
            found.append((rows[0][stack.shown], rows[1][stack.shown], rows[2][stack.shown]))
        picture = contact_sheet(*(np.concatenate(row) for row in zip(*found, strict=True)))
        with atomic_path(self.folder / f"step-{step:06d}.png") as temporary:
            Image.fromarray(picture).save(temporary)
        return picture


class _Stack(NamedTuple):
    """Slices (S, H, W) or (S, C, H, W) that are reconstructed together, their brain, and which of them are shown."""

    images: Tensor
    brain: Tensor
    shown: slice


def _together(samples: Sequence[Sample], neighbours: int) -> _Stack:
    """Stack single slices, each between its own neighbours; only slices in the middle have brain to reconstruct."""
    together = 2 * neighbours + 1
    order = [*range(1, neighbours + 1), 0, *range(neighbours + 1, together)]
    images = torch.cat([sample["image"].unflatten(0, (together, -1))[order] for sample in samples])
    shown = slice(neighbours, None, together)
    brain = torch.zeros_like(images[:, 0], dtype=torch.bool)
    clean = torch.stack([sample["clean"].unflatten(0, (together, -1))[0] for sample in samples])
    brain[shown] = (clean > -1).any(1)
    return _Stack(images[:, 0] if images.shape[1] == 1 else images, brain, shown)


def _volume(sample: Sample) -> _Stack:
    """Take a volume (1, D, H, W), and show the slice that its lesions change most; without lesions the middle one."""
    image, clean = sample["image"][0], sample["clean"][0]
    change = (image - clean).abs().sum((1, 2))
    shown = int(change.argmax()) if bool(change.any()) else len(image) // 2
    return _Stack(image, clean > -1, slice(shown, shown + 1))


def contact_sheet(slices: FloatArray, healthy: FloatArray, residual: FloatArray) -> npt.NDArray[np.uint8]:
    """Draw a column per slice: the slice, its reconstruction and its residual, in grey, anterior up; NaN is white.

    Args:
        slices: (S, H, W), H = working x, W = working y; -1 is black and 1 is white.
        healthy: (S, H, W), on the same scale.
        residual: (S, H, W); 0 is black and 1 is white.

    Returns:
        (3 W, S H).
    """
    rows = [(slices + 1) / 2, (healthy + 1) / 2, residual]
    shares = np.concatenate([np.concatenate([np.rot90(one) for one in row], 1) for row in rows])
    picture: npt.NDArray[np.uint8] = np.round(255 * np.clip(np.nan_to_num(shares, nan=1), 0, 1)).astype(np.uint8)
    return picture


def _first(stack: FloatArray) -> FloatArray:
    """Take the first channel (S, H, W)."""
    return stack[:, 0] if stack.ndim == 4 else stack
