"""An endless stream of training samples, in which sample k depends only on the seed and on k.

A resumed run, a run on several processes and a run with loader workers therefore see the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from maediff.config import Config
from maediff.data.slices import SliceSet
from maediff.diffusion.noise import chance, generator, noise_field
from maediff.heads.headset import HeadSet
from maediff.heads.sample import HeadSlice, Look, draw_slice
from maediff.heads.volume import draw_volume
from maediff.methods.build import own_anomalies
from maediff.methods.maediff.partition import random_mask
from maediff.training.augment import augment
from maediff.training.pseudo_lesions import add_pseudo_lesions

Sample = dict[str, Tensor]
"""`image` (C, H, W), the network's input; `clean` (C, H, W), its target; `mask` (1, H, W), the patch;
`noise` (C, H, W) and `t` (), the timestep. Neighbours come behind the slice's own channels in all three images."""
_LESION = 0.2  # least opacity for a pixel to count as lesion when windows are laid
_ON_LESION = 0.7  # share of windows that are laid over a lesion


class SampleStream(Dataset[Sample]):
    """Draw sample k: a slice, its augmentation, a window, a timestep and a noise field.

    Args:
        slices: Healthy slices.
        config: Window, timesteps, noise, augmentation and seed.
        length: Samples in the stream.
        augmented: False for validation: other samples, which stay the same, without augmentation.
    """

    def __init__(self, slices: SliceSet, config: Config, length: int, *, augmented: bool) -> None:
        self.images = torch.from_numpy(slices.images)
        self.masks = torch.from_numpy(slices.masks)
        alone = torch.arange(len(self.images))[:, None]
        self.places = alone if slices.places is None else torch.from_numpy(slices.places)
        self.config = config
        self.length = length
        self.purpose = "train" if augmented else "validation"
        self.augmented = augmented and config.train.augment
        self.anomalies = own_anomalies(config)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        rng = generator(self.purpose, config.train.seed, index)
        clean, brain = self._another(rng)
        if self.augmented:
            clean, brain = augment(clean, brain, config.data.clip, rng)
        shape = (clean.shape[2], clean.shape[3])
        window = random_mask(brain[0, 0], config.partition.window, config.train.windows, rng)
        image = clean
        if self.anomalies is None and chance(config.lesions.share, rng):
            donor, _ = self._another(rng)
            look, offsets = config.lesions, config.data.offsets
            image = add_pseudo_lesions(
                clean, brain, donor, config.data.clip, rng, window=window, look=look, offsets=offsets
            )
        clean, image, brain = clean.flatten(0, 1), image.flatten(0, 1), brain[0]
        noise = noise_field(config.noise, shape, rng, len(clean))
        t = _draw_timestep(config, rng)
        if self.anomalies is not None:
            (other, its_brain), severe = self._another(rng), _share(t, config)
            foreign = other.flatten(0, 1), its_brain[0]
            image = self.anomalies(clean, brain, foreign, rng, severity=severe, clip=config.data.clip)
        return {"image": image, "clean": clean, "mask": window, "noise": noise, "t": t}

    def _another(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Choose a slice: it and its neighbours (P, C, H, W), and their brains (P, 1, H, W)."""
        places = self.places[int(torch.randint(len(self.places), (), generator=rng))]
        images, masks = self.images[places].float(), self.masks[places]  # beyond the scan the last image, for a moment
        images[places < 0], masks[places < 0] = -1.0, False
        return (images if images.ndim == 4 else images[:, None]), masks[:, None]


class HeadStream(Dataset[Sample]):
    """Draw sample k from label maps: a slice with lesions, a window, a timestep that sets their severity, noise.

    Of method volumetric, a sample is a volume (1, D, H, W).

    As in cold diffusion, the timestep tells the network how much to undo: lesions of a small timestep are faint, those
    of the largest one may be opaque. [ours] If the method brings its own anomalies, slices are drawn
    healthy and get those, with the texture of another drawn slice.

    Args:
        source: Label maps and lesion masks.
        config: Working grid, window, timesteps, noise and seed.
        length: Samples in the stream.
        augmented: False for validation: other samples, which stay the same.
    """

    def __init__(self, source: HeadSet, config: Config, length: int, *, augmented: bool) -> None:
        self.source = source
        self.config = config
        self.length = length
        self.purpose = "train" if augmented else "validation"
        self.anomalies = own_anomalies(config)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        rng, t, drawn = self._start(index)
        image, clean = drawn.image[None], drawn.healthy[None]
        if self.anomalies is not None:
            other = self._draw(int(t), rng)
            foreign, brain = (other.healthy[None], other.brain[None]), drawn.brain[None]
            image = self.anomalies(clean, brain, foreign, rng, severity=_share(t, config), clip=config.data.clip)
        lesion = drawn.lesion > _LESION
        aim = lesion if chance(_ON_LESION, rng) and bool(lesion.any()) else drawn.brain
        return {
            "image": image,
            "clean": clean,
            "mask": random_mask(aim, config.partition.window, config.train.windows, rng),
            "noise": noise_field(config.noise, config.shape, rng),
            "t": t,
        }

    def drawn(self, index: int) -> HeadSlice:
        """Draw only the slice of sample k."""
        return self._start(index)[2]

    def _start(self, index: int) -> tuple[torch.Generator, Tensor, HeadSlice]:
        """Draw the timestep and the slice of sample k, and return the generator for further draws."""
        rng = generator(self.purpose, self.config.train.seed, index)
        t = _draw_timestep(self.config, rng)
        return rng, t, self._draw(int(t), rng)

    def _draw(self, t: int, rng: torch.Generator) -> HeadSlice:
        config = self.config
        planes = config.heads.orientations
        look = Look(
            severity=severity(t, config.diffusion.train_timesteps),
            faintest=config.heads.faintest,
            lesions=self.anomalies is None and chance(config.heads.lesions, rng),
            random_share=config.heads.random_contrasts,
            percentiles=config.data.percentiles,
            clip=config.data.clip,
        )
        heads, masks, spacing = self.source.heads, self.source.masks, config.data.spacing_mm
        if config.method == "volumetric":
            return draw_volume(heads, masks, (config.heads.slices, *config.data.size), spacing, rng, look=look)
        orientation = planes[int(torch.randint(len(planes), (), generator=rng))]
        return draw_slice(heads, masks, config.data.size, spacing, rng, look=look, orientation=orientation)


def _draw_timestep(config: Config, rng: torch.Generator) -> Tensor:
    first, last = config.diffusion.train_timesteps
    if config.diffusion.hidden_share and chance(config.diffusion.hidden_share, rng):
        return torch.tensor(config.diffusion.timesteps)
    return torch.randint(first, last + 1, (), generator=rng)


def _share(t: Tensor, config: Config) -> float:
    """Return a timestep as a share of the last one: the severity of a method's own anomalies."""
    return min(1.0, int(t) / config.diffusion.train_timesteps[1])


def severity(t: int, span: tuple[int, int]) -> float:
    """Return the highest opacity of lesions at a timestep: from two fifths at the first to 1 at the last and beyond."""
    first, last = span
    return 1.0 if last == first or t > last else 0.4 + 0.6 * (t - first) / (last - first)


def sample_stream(
    source: SliceSet | HeadSet, config: Config, length: int, *, augmented: bool
) -> SampleStream | HeadStream:
    """Build the stream of samples from scans or label maps."""
    if isinstance(source, HeadSet):
        return HeadStream(source, config, length, augmented=augmented)
    return SampleStream(source, config, length, augmented=augmented)


class Span(Sampler[int]):
    """Yield the sample numbers from `start` to `stop`, in order."""

    def __init__(self, start: int, stop: int) -> None:
        self.span = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.span)

    def __len__(self) -> int:
        return len(self.span)
