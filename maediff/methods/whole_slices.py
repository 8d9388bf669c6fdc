"""Baselines that take slices as they are, and the engine that reconstructs with them.

They see pseudo-lesions if `lesions.share` asks for them, as MAEDiff does; none of their authors do that, and the
default is off.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from maediff.config import Config
from maediff.diffusion.noise import generator, noise_field
from maediff.methods.base import Draw, Healthy, Key, Method, OnWindows
from maediff.methods.folded_unet import padded_shape
from maediff.methods.neighbours import with_neighbours

_SLICES = 32
"""Slices per forward pass if `infer.batch_size` is auto: these networks are small, and more are no faster on CPUs."""
Pass = tuple[int, int]
"""Timestep and number of the noise draw of one reconstruction."""


class WholeSliceMethod(Method):
    """A method that reconstructs whole slices.

    Attributes:
        multiple: Sides of a slice must be multiples of it; inference pads to them.
        uses_timesteps: Whether the reconstruction depends on a timestep; if not, one pass is enough.
        offsets: Distance of the neighbouring slices that it sees, in slices, see :mod:`maediff.methods.neighbours`.
        averages_residuals: Whether the map is the mean of the passes' residuals, not the residual of their mean.
    """

    multiple: int = 1
    uses_timesteps: bool = True
    offsets: tuple[int, ...] = ()
    averages_residuals: bool = False

    @abstractmethod
    def reconstruct(self, images: Tensor, brain: Tensor, t: int, draw: Draw) -> Tensor:
        """Reconstruct the healthy version of slices.

        Args:
            images: (B, 1 + K, H, W) float32, -1 outside the brain; the K neighbours come behind the slice.
            brain: (B, 1, H, W) bool.
            t: Test timestep.
            draw: Source of noise, of the shape of `images`.

        Returns:
            (B, 1, H, W) float32.
        """

    def passes(self, config: Config) -> list[Pass]:
        """Plan the reconstructions of a slice: each of `diffusion.test_timesteps`, `infer.draws` times."""
        times = config.diffusion.test_timesteps
        return list(product(times, range(config.infer.draws))) if self.uses_timesteps else [(times[0], 0)]

    def engine(self, config: Config, device: torch.device, *, bf16: bool) -> WholeReconstructor:
        """Return the engine that reconstructs slice by slice."""
        return WholeReconstructor(self, config, device, bf16=bf16)


class WholeReconstructor:
    """Reconstruct the healthy version of slices, each as a whole; slices without brain stay as they are.

    Args:
        network: Trained method, in eval mode, on `device`.
        config: Configuration that it was trained with.
        device: Where to compute.
        bf16: Run the network under bf16 autocast.
    """

    def __init__(self, network: WholeSliceMethod, config: Config, device: torch.device, *, bf16: bool) -> None:
        self.network = network
        self.config = config
        self.device = device
        self.bf16 = bf16
        self.passes = network.passes(config)

    @torch.inference_mode()
    def __call__(self, slices: Tensor, mask: Tensor, key: Key, on_batch: OnWindows | None = None) -> Healthy:
        """Reconstruct; the result does not depend on the batch size, since each slice has its own noise."""
        height, width = slices.shape[1:]
        tall, wide = padded_shape((height, width), self.network.multiple)
        extra = (0, wide - width, 0, tall - height)
        images = F.pad(slices.float(), extra, value=-1.0)
        brain = F.pad(mask, extra)
        with_brain = brain.flatten(1).any(1).nonzero().squeeze(1)
        results = images[None].repeat(len(self.passes), 1, 1, 1)
        size = _SLICES if self.config.infer.batch_size == "auto" else self.config.infer.batch_size
        done = 0
        for number, (t, draw) in enumerate(self.passes):
            for index in with_brain.split(size):
                seen = with_neighbours(images[:, None], index, self.network.offsets)
                results[number, index] = self._batch(seen, brain[index], t, (*key, t, draw), index)
                done += len(index)
                if on_batch is not None:
                    on_batch(done, len(with_brain) * len(self.passes))
        results = results[:, :, :height, :width]
        kept = results if self.network.averages_residuals else None
        return Healthy(results.mean(0), results.std(0) if len(results) > 1 else None, kept)

    def _batch(self, images: Tensor, brain: Tensor, t: int, key: Key, index: Tensor) -> Tensor:
        _, channels, *shape = images.shape

        def draw(*names: object) -> Tensor:
            fields = [
                noise_field(self.config.noise, (shape[0], shape[1]), generator(*key, *names, k), channels)
                for k in index.tolist()
            ]
            return torch.stack(fields).to(self.device)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            healthy = self.network.reconstruct(images.to(self.device), brain[:, None].to(self.device), t, draw)
        return healthy.squeeze(1).float().cpu()
