"""An endless stream of training samples, in which sample k depends on the seed and on k alone.

So a resumed run, a run on several processes and a run with loader workers all see the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from maediff.config import Config
from maediff.data.slices import SliceSet
from maediff.diffusion.noise import generator, noise_field
from maediff.methods.maediff.partition import random_window, window_masks
from maediff.training.augment import augment, chance
from maediff.training.pseudo_lesions import add_pseudo_lesions

Sample = dict[str, Tensor]
"""`image` (C, H, W) what the network gets to see, `clean` (C, H, W) what it must return, `mask` (1, H, W) the patch,
`noise` (C, H, W) and `t` (), the timestep."""


class SampleStream(Dataset[Sample]):
    """Draw sample k: a slice, its augmentation, a window, a timestep and a noise field.

    Args:
        slices: Healthy slices.
        config: Window, timesteps, noise, augmentation and seed.
        length: Samples in the stream.
        augmented: False for validation: no augmentation, and slice k is taken in turn.
    """

    def __init__(self, slices: SliceSet, config: Config, length: int, *, augmented: bool) -> None:
        self.images = torch.from_numpy(slices.images)
        self.masks = torch.from_numpy(slices.masks)
        self.config = config
        self.length = length
        self.augmented = augmented and config.train.augment

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        rng = generator("train" if self.augmented else "validation", config.train.seed, index)
        which = int(torch.randint(len(self.images), (), generator=rng))
        clean, brain = self._slice(which)
        if self.augmented:
            clean, brain = augment(clean, brain, config.data.clip, rng)
        shape = (clean.shape[1], clean.shape[2])
        corner = random_window(brain[0], config.partition.window, rng)
        window = window_masks(corner[None], config.partition.window, shape)[0]
        image = clean
        if chance(config.train.pseudo_lesions, rng):
            donor, _ = self._slice(int(torch.randint(len(self.images), (), generator=rng)))
            image = add_pseudo_lesions(clean, brain, donor, config.data.clip, rng, window=window, look=config.train)
        first, last = config.diffusion.train_timesteps
        return {
            "image": image,
            "clean": clean,
            "mask": window,
            "noise": noise_field(config.noise, shape, rng, len(clean)),
            "t": torch.randint(first, last + 1, (), generator=rng),
        }

    def _slice(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.images[index].float(), self.masks[index][None]
        return (image if image.ndim == 3 else image[None]), mask


class Span(Sampler[int]):
    """Name the samples from `start` to `stop`, in order."""

    def __init__(self, start: int, stop: int) -> None:
        self.span = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.span)

    def __len__(self) -> int:
        return len(self.span)
