"""Whole-slice reconstruction for methods that take slices as they are, and the choice of engine for a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maediff.config import Config
from maediff.diffusion.noise import generator, noise_field
from maediff.methods.base import padded_shape
from maediff.methods.build import PatchedDDPM, SlicePeer
from maediff.methods.maediff.reconstructor import Reconstructor
from maediff.methods.maediff.sliding import Healthy, Key, SlidingReconstructor

_SLICES = 32
"""Slices a forward pass where `infer.batch_size` is auto: peers are small, and more are no faster on CPUs."""


class Engine(Protocol):
    """Make slices healthy."""

    def __call__(
        self, slices: Tensor, mask: Tensor, key: Key, on_batch: Callable[[int, int], None] | None = None
    ) -> Healthy:
        """Reconstruct slices (S, H, W) with brain (S, H, W); the noise depends on the key and the slice's index."""
        ...


def engine(network: nn.Module, config: Config, device: torch.device, *, bf16: bool) -> Engine:
    """Choose the engine that a network works with.

    Raises:
        TypeError: A network that none fits.
    """
    if isinstance(network, SlicePeer):
        return WholeReconstructor(network, config, device, bf16=bf16)
    if isinstance(network, (Reconstructor, PatchedDDPM)):
        return SlidingReconstructor(network, config, device, bf16=bf16)
    raise TypeError(f"no engine for a {type(network).__name__}; use a SlicePeer, a PatchedDDPM or a Reconstructor")


class WholeReconstructor:
    """Reconstruct the healthy version of slices, each as a whole; slices without brain stay as they are.

    Args:
        network: Trained peer, in eval mode, on `device`.
        config: Configuration that it was trained with.
        device: Where to compute.
        bf16: Run the network under bf16 autocast.
    """

    def __init__(self, network: SlicePeer, config: Config, device: torch.device, *, bf16: bool) -> None:
        self.network = network
        self.config = config
        self.device = device
        self.bf16 = bf16
        times = config.diffusion.test_timesteps
        draws = range(config.infer.draws)
        self.passes = [(t, draw) for t in times for draw in draws] if network.uses_timesteps else [(times[0], 0)]

    @torch.inference_mode()
    def __call__(
        self, slices: Tensor, mask: Tensor, key: Key, on_batch: Callable[[int, int], None] | None = None
    ) -> Healthy:
        """Reconstruct; the result does not depend on the batch size, since each slice has its own noise."""
        height, width = slices.shape[1:]
        tall, wide = padded_shape((height, width), self.network.multiple)
        extra = (0, wide - width, 0, tall - height)
        images, brain = F.pad(slices.float(), extra, value=-1.0), F.pad(mask, extra)
        wanted = brain.flatten(1).any(1).nonzero().squeeze(1)
        results = images[None].repeat(len(self.passes), 1, 1, 1)
        wanted_size = self.config.infer.batch_size
        done, size = 0, _SLICES if wanted_size == "auto" else wanted_size
        for number, (t, draw) in enumerate(self.passes):
            for index in wanted.split(size):
                results[number, index] = self._batch(images[index], brain[index], t, (*key, t, draw), index)
                done += len(index)
                if on_batch is not None:
                    on_batch(done, len(wanted) * len(self.passes))
        results = results[:, :, :height, :width]
        return Healthy(results.mean(0), results.std(0) if len(results) > 1 else None)

    def _batch(self, images: Tensor, brain: Tensor, t: int, key: Key, index: Tensor) -> Tensor:
        shape = (images.shape[1], images.shape[2])

        def draw(*names: object) -> Tensor:
            fields = [noise_field(self.config.noise, shape, generator(*key, *names, k)) for k in index.tolist()]
            return torch.stack(fields).to(self.device)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            healthy = self.network.reconstruct(images[:, None].to(self.device), brain[:, None].to(self.device), t, draw)
        return healthy.squeeze(1).float().cpu()
